"""Who starts the helper and waits for what it leaves: this process, or in a warm child the front that called it, so
that a container is always its caller's descendant.

Decides where descriptors land (native/plan.h). `current` is set once, by a warm child for its one command.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from wherry.kernel import process

__all__ = ["Local", "Spawner", "current", "use"]


class Spawner(Protocol):
    """The three things that a caller's descendant can do."""

    def spawn(self, helper: int, role: str, fds: Sequence[int]) -> int:
        """Start the helper (a sealed memfd) with plan, report and slots as descriptors 3 and up; its pid."""

    def reap(self, pid: int) -> int:
        """Wait for one that was spawned or adopted; its exit code as a shell's (128 + n by signal)."""

    def adopting(self) -> AbstractContextManager[None]:
        """Meanwhile orphans below become children: what waits for a container's init must have it as its own."""

class Local:
    """This process does it."""

    def spawn(self, helper: int, role: str, fds: Sequence[int]) -> int:
        """The launch role keeps our standard streams and environment, the monitor gets neither."""
        with ExitStack() as passed:

            def keep(fd: int) -> int:
                passed.callback(os.close, fd)
                return fd

            null = keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            wanted = [*([null] * 3 if role == "monitor" else [0, 1, 2]), *fds]
            # above every target first, so that no dup2 overwrites a source that is still needed
            high = [keep(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wanted))) for fd in wanted]
            actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(high)]
            env = os.environ if role == "launch" else {}
            return os.posix_spawn(f"/proc/self/fd/{helper}", ["wherry-helper", role], env, file_actions=actions)

    def reap(self, pid: int) -> int:
        """Our own child."""
        return process.reap(pid)

    def adopting(self) -> AbstractContextManager[None]:
        """PR_SET_CHILD_SUBREAPER, and afterwards as before: orphans that nobody reaps would stay for ever."""
        return process.subreaper()

_chosen: list[Spawner] = [Local()]


def current() -> Spawner:
    """The one that this process uses."""
    return _chosen[0]


def use(spawner: Spawner) -> None:
    """For the rest of this process's life."""
    _chosen[0] = spawner
