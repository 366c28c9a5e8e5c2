"""A process in the foreground: its streams on ours, its terminal in ours, signals to it, its exit code as ours.

Decides what docker's client decides: raw mode only for a terminal with input, signals are passed on only without one,
the detach keys. Moving the bytes is the engine's (`Running.relay`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT
from wherry.terminal import RawTerminal, Signals, Terminated, size

from .app import App, fd_of, is_terminal

if TYPE_CHECKING:
    from wherry.engine.running import Running

DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q
PROXIED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
    signal.SIGALRM,
)  # fmt: skip
ENDING = (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT)
IMPATIENCE = 3  # docker's client gives up waiting at the third SIGINT or SIGTERM


class Wish(NamedTuple):
    """How a process is shown: is its input ours, which outputs are printed, what detaches, who gets our signals."""

    stdin: bool
    streams: frozenset[str] = frozenset({"stdout", "stderr"})
    keys: bytes = DETACH_KEYS
    proxy: Callable[[str], None] | None = None


def check_terminal(app: App, interactive: bool, tty: bool) -> None:
    """docker's check, before anything is started."""
    if interactive and tty and not is_terminal(app.stdio.stdin):
        raise WherryError(Kind.INVALID, "the input device is not a TTY", hint="leave -t out to pipe input", code=1)


def foreground(app: App, running: Running, wish: Wish) -> int:
    """Show the process until it ends (its exit code) or is let go (0)."""
    app.stdio.stdout.flush()
    try:
        ended = _frames(app, running) if fd_of(app.stdio.stdout) < 0 else _relayed(app, running, wish)
    except Terminated as end:
        running.close()
        return end.code
    except BaseException:
        running.close()
        raise
    if not ended:
        running.close()
        app.err("read escape sequence")
        return 0
    status = running.wait()
    if status.error and status.code in (126, 127):
        app.err(f"wherry: {status.error}")
    return status.code


def _relayed(app: App, running: Running, wish: Wish) -> bool:
    terminal = running.tty and wish.stdin and is_terminal(app.stdio.stdin)
    with ExitStack() as stack:
        raw = stack.enter_context(RawTerminal(fd_of(app.stdio.stdin))) if terminal else None
        watcher = _Watcher(app, running, wish, raw)
        signals = stack.enter_context(Signals(watcher.numbers(), watcher.handle))
        watcher.resize()
        out, err = (_sink(app, name, wish.streams) for name in ("stdout", "stderr"))
        stdin = fd_of(app.stdio.stdin) if wish.stdin else -1
        source = stdin if stdin >= 0 else None
        keys = wish.keys if terminal else b""
        return running.relay(source, out, err, keys, signals.fileno(), signals.dispatch)


def _sink(app: App, name: str, wanted: frozenset[str]) -> int | None:
    fd = fd_of(getattr(app.stdio, name))
    return fd if name in wanted and fd >= 0 else None


def _frames(app: App, running: Running) -> bool:
    """Without descriptors (an embedding program's own streams): output only."""
    sinks = {ATTACH_STDOUT: app.raw_out, ATTACH_STDERR: app.raw_err}
    while (frame := running.read()) is not None and frame[0] != ATTACH_EXIT:
        if frame[0] in sinks:
            sinks[frame[0]](frame[1])
    return True


class _Watcher:
    """What each signal means while the process is in the foreground."""

    def __init__(self, app: App, running: Running, wish: Wish, raw: RawTerminal | None) -> None:
        self._app, self._running, self._wish, self._raw = app, running, wish, raw
        self._impatience = 0

    def numbers(self) -> tuple[int, ...]:
        """The signals to catch: with a terminal its own, without one those that are passed on."""
        if self._raw is not None:
            return (signal.SIGWINCH, signal.SIGTSTP, signal.SIGINT, *ENDING)
        window = (signal.SIGWINCH,) if self._running.tty else ()
        return (*window, *PROXIED) if self._wish.proxy else (*window, *ENDING)

    def handle(self, number: int) -> None:
        """Act on one signal."""
        if number == signal.SIGWINCH:
            self.resize()
        elif number == signal.SIGTSTP and self._raw is not None:
            self._raw.stopped()
            self.resize()
        elif self._wish.proxy is not None and self._raw is None:
            self._pass_on(number)
        else:
            raise Terminated(number)

    def _pass_on(self, number: int) -> None:
        assert self._wish.proxy is not None
        self._impatience += number in (signal.SIGINT, signal.SIGTERM)
        if self._impatience >= IMPATIENCE:
            raise Terminated(number)
        with suppress(WherryError):  # it has just ended: its status says the rest
            self._wish.proxy(signal.Signals(number).name)

    def resize(self) -> None:
        """Give the process the size of our terminal."""
        found = size(fd_of(self._app.stdio.stdout)) or size(fd_of(self._app.stdio.stdin))
        if self._running.tty and found:
            self._running.resize(*found)
