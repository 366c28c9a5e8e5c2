"""What a container says to systemd by sd_notify(3), passed on by the unit's main process, which we are.

Decides what of it goes on: nothing that would make the manager look at another process or keep descriptors.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from wherry.engine.notifying import Notify

__all__ = ["Passing"]

_MOST = 4096  # bytes of a message
_DESCRIPTORS = 8  # in one, which are closed: for BARRIER=1 that is the answer
_GOES_ON = frozenset({
    "READY", "RELOADING", "MONOTONIC_USEC", "STOPPING", "STATUS", "ERRNO", "BUSERROR", "WATCHDOG", "WATCHDOG_USEC",
    "EXTEND_TIMEOUT_USEC",
})  # fmt: skip


class Passing:
    """From a socket that a container gets to NOTIFY_SOCKET. For `with`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        path = env["NOTIFY_SOCKET"]
        self._target = f"\0{path[1:]}" if path.startswith("@") else path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        watchdog = env.get("WATCHDOG_USEC", "")
        self.offer = Notify(self._listener, (f"WATCHDOG_USEC={watchdog}",) if watchdog.isdigit() else ())
        self._thread = threading.Thread(target=self._pass_on, name="notify", daemon=True)

    def __enter__(self) -> Passing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait of the thread
        self._thread.join(1)
        self._listener.close()

    def _pass_on(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            while True:
                try:
                    data, found, _, _ = socket.recv_fds(self._listener, _MOST, _DESCRIPTORS)
                except OSError:
                    return
                if not data and not found:
                    return
                with suppress(OSError):
                    if allowed := _allowed(data):
                        sender.sendto(allowed, self._target)
                for fd in found:  # after that: who waits for a barrier is heard already
                    os.close(fd)


def _allowed(data: bytes) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines()
    return "\n".join(line for line in lines if line.partition("=")[0] in _GOES_ON).encode()
