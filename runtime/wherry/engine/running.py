"""A running process as a face sees it: its id, its frames, its end. Knows nothing of terminals and of printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from wherry.model import ExitStatus

__all__ = ["Running"]


@runtime_checkable
class Running(Protocol):
    """What `run`, `start`, `attach` and `exec` give.

    Frame types are `model.ATTACH_*`. A face that shows output loops over `read`, and calls `wait` when it ends; a
    face that lets the container go calls `close` (a detach). A detached `Running` has no stream: `fileno()` is -1.
    """

    id: str  # the container's, also for an exec session
    tty: bool
    pid: int  # of an exec session's process; 0 where that is not known

    def fileno(self) -> int:
        """Return the descriptor to poll for frames, -1 if there is no stream."""

    def read(self) -> tuple[int, bytes] | None:
        """Return the next frame (STDOUT, STDERR, EXIT); blocks; None when the stream has ended."""

    def write(self, data: bytes) -> None:
        """Send bytes to the process's standard input."""

    def eof(self) -> None:
        """Close the process's standard input."""

    def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""

    def relay(  # noqa: PLR0917  # the order of container.attach.relay
        self,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        keys: bytes = b"",
        wake: int | None = None,
        on_wake: Callable[[], None] | None = None,
    ) -> bool:
        """Copy between these descriptors and the process (`container.attach.relay`). True: its end was reached or
        the monitor is gone, `wait` tells; False: the detach keys were typed, `close` lets go."""

    def no_waiting(self) -> None:
        """For an event loop: from now on `write`, `eof` and `resize` queue what does not go at once."""

    def quiet(self) -> None:
        """Ask for nothing but the end from now on: output that nobody reads does not hold the process back."""

    def flush(self) -> bool:
        """Send what is queued, as much as goes without waiting; whether all of it is gone."""

    def arrived(self) -> list[tuple[int, bytes]] | None:
        """Read once, after `no_waiting`, and return the frames that are complete; None when the stream has ended."""

    def kill(self) -> None:
        """Kill the process of an exec session, with what else is in its process group; a container is left alone."""

    def wait(self) -> ExitStatus:
        """Wait for the end, settle what the engine has to settle (cleanup, restart, --rm), and tell how it ended."""

    def close(self) -> None:
        """Let go: the process runs on, and the monitor settles its end by itself."""
