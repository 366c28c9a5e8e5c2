"""The caller's terminal and signals while a process is in the foreground.

Decides when a terminal is raw and that it always comes back: at the end, after an exception, at a signal that ends us,
and while we are stopped. Knows nothing of containers; what a signal means is told by the caller.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any


class Terminated(Exception):
    """A signal that ends this process has come; everything is put back on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class RawTerminal:
    """A terminal in raw mode, for the time of a `with`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[Any] = []

    def __enter__(self) -> RawTerminal:
        import termios

        self._saved = termios.tcgetattr(self.fd)
        atexit.register(self.cooked)
        self.raw()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cooked()
        atexit.unregister(self.cooked)

    def raw(self) -> None:
        """Every key goes through, nothing is echoed, output is left alone."""
        import termios
        import tty

        tty.setraw(self.fd, termios.TCSANOW)

    def cooked(self) -> None:
        """As it was. TCSADRAIN: what the process printed last still appears in raw mode."""
        import termios

        with suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._saved)

    def stopped(self) -> None:
        """Stop as the shell expects it, and go on in raw mode when we are continued."""
        self.cooked()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.raw()


def size(fd: int) -> tuple[int, int] | None:
    """Rows and columns; None if it is no terminal, or one that does not know its size."""
    try:
        cols, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return (rows, cols) if rows and cols else None


class Signals:
    """Signals as bytes in a pipe, for a loop that polls. The handlers of before come back at the end."""

    def __init__(self, numbers: Iterable[int], handle: Callable[[int], None]) -> None:
        self._numbers, self._handle = tuple(numbers), handle
        self._before: dict[int, Any] = {}
        self._read = self._write = -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in self._numbers:
            with suppress(ValueError):  # not in the main thread: the embedding program keeps its handlers
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(self._write, bytes([number]))

    def fileno(self) -> int:
        """The descriptor that is readable when a signal has come."""
        return self._read

    def dispatch(self) -> None:
        """Handle the signals that have come."""
        with suppress(BlockingIOError):
            for number in os.read(self._read, 64):
                self._handle(number)
