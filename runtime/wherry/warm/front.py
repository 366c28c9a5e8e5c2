"""The front as a spawner (container/spawn.py): what only the caller's descendant can do, asked for by message."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from . import wire

__all__ = ["Front"]


class Front:
    """The other end of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def spawn(self, helper: int, role: str, fds: Sequence[int]) -> int:
        """The front forks and executes the sealed helper."""
        value = wire.MONITOR if role == "monitor" else wire.LAUNCH
        with _or_gone():
            wire.tell(self._sock, wire.SPAWN, value, [helper, *fds])
            pid = wire.hear(self._sock, wire.SPAWNED)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def reap(self, pid: int) -> int:
        """A child of the front's."""
        with _or_gone():
            wire.tell(self._sock, wire.REAP, pid)
            code = os.waitstatus_to_exitcode(wire.hear(self._sock, wire.STATUS))
        return code if code >= 0 else 128 - code

    def adopting(self) -> AbstractContextManager[None]:
        """The front becomes the subreaper; it ends with its command."""
        with _or_gone():
            wire.tell(self._sock, wire.REAPER)
        return nullcontext()


@contextmanager
def _or_gone() -> Iterator[None]:
    """A command whose front was killed is killed, as the warm process does a moment later: there is nobody to tell."""
    try:
        yield
    except ConnectionError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise
