"""`Running` made of a monitor's stream: what `run`, `start`, `attach` and `exec` hand to a face."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, ExitStatus

from .house import House

if TYPE_CHECKING:
    from wherry.container.attach import AttachStream

__all__ = ["Stream"]


class Stream:
    """One attached (or, without a stream, detached) process.

    After its end `settle` is called once, and then `ended` with its exit code.
    """

    def __init__(
        self,
        house: House,
        cid: str,
        stream: AttachStream | None,
        *,
        tty: bool,
        settle: Callable[[], None] | None = None,
        lost: Callable[[], ExitStatus] | None = None,
        ended: Callable[[int], None] | None = None,
        kill: Callable[[], None] | None = None,
        pid: int = 0,
    ) -> None:
        self._house, self._stream, self._settle, self._lost = house, stream, settle, lost
        self._told, self._kill = ended, kill
        self.id, self.tty, self.pid = cid, tty, pid
        self._status: ExitStatus | None = None

    def fileno(self) -> int:
        """See `Running`."""
        return self._stream.fileno() if self._stream else -1

    def read(self) -> tuple[int, bytes] | None:
        """See `Running`."""
        frame = self._stream.read() if self._stream else None
        if frame and frame[0] == ATTACH_EXIT:
            self._ended(frame[1])
        return frame

    def _ended(self, payload: bytes) -> None:
        from wherry.container.attach import decode_exit

        self._status = decode_exit(payload)

    def write(self, data: bytes) -> None:
        """See `Running`."""
        if self._stream:
            self._stream.write(data)

    def eof(self) -> None:
        """See `Running`."""
        if self._stream:
            self._stream.eof()

    def resize(self, rows: int, cols: int) -> None:
        """See `Running`."""
        if self._stream:
            self._stream.resize(rows, cols)

    def relay(  # noqa: PLR0917  # the order of container.attach.relay
        self,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        keys: bytes = b"",
        wake: int | None = None,
        on_wake: Callable[[], None] | None = None,
    ) -> bool:
        """See `Running`."""
        from wherry.container.attach import End, relay

        if self._stream is None:
            return True
        found = relay(self._stream, stdin, stdout, stderr, keys, wake, on_wake)
        if found.status is not None:
            self._status = found.status
        return found.end is not End.DETACHED

    def no_waiting(self) -> None:
        """See `Running`."""
        if self._stream:
            self._stream.waits = False

    def quiet(self) -> None:
        """See `Running`."""
        if self._stream:
            self._stream.quiet()

    def flush(self) -> bool:
        """See `Running`."""
        return self._stream.flush() if self._stream else True

    def arrived(self) -> list[tuple[int, bytes]] | None:
        """See `Running`."""
        alive = self._stream.fill() if self._stream else False
        frames = []
        while self._stream and (frame := self._stream.take()) is not None:
            frames.append(frame)
            if frame[0] == ATTACH_EXIT:
                self._ended(frame[1])
        return frames if frames or alive else None

    def kill(self) -> None:
        """See `Running`."""
        if self._kill is not None:
            self._kill()

    def wait(self) -> ExitStatus:
        """See `Running`."""
        while self._status is None and self._stream is not None:
            if self.read() is None:
                break
        settle, self._settle = self._settle, None
        if settle is not None:
            settle()
        if self._status is None:
            self._status = self._unknown()
        elif self._told is not None:
            told, self._told = self._told, None
            told(self._status.code)
        if self._stream is not None:
            self._house.later(self._stream.let_go)
            self._stream = None
        return self._status

    def _unknown(self) -> ExitStatus:
        if self._lost is None:
            hint = "wherry inspect tells more"
            raise WherryError(Kind.UNAVAILABLE, f"the monitor of {self.id[:12]} went away", hint=hint)
        return self._lost()

    def close(self) -> None:
        """See `Running`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
