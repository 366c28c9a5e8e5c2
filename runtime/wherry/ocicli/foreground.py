"""Staying with a process until it ends: signals passed on, the terminal relayed, its exit code told.

Decides what the caller's terminal and signals mean to the process. Knows no verb.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from wherry.container import spawn
from wherry.kernel import process
from wherry.kernel.process import Process
from wherry.model import Json
from wherry.terminal import RawTerminal, Signals, size

__all__ = ["Console", "Foreground", "sized"]

#: what cannot be caught, what is about our own children and terminal, and faults of our own
_OWN = {"KILL", "STOP", "CHLD", "URG", "WINCH", "TTIN", "TTOU", "PIPE", "SEGV", "BUS", "FPE", "ILL", "PROF"}
_CHUNK = 1 << 16


class Console:
    """A socket pair through which the helper hands us the terminal's master: `theirs` goes into the plan."""

    def __init__(self, held: ExitStack) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours, self.theirs = held.enter_context(ours), held.enter_context(theirs)

    def master(self) -> int:
        """The master, which has come by the time the launch is through; -1 of a process without a terminal."""
        self._ours.setblocking(False)
        try:
            _, fds, _, _ = socket.recv_fds(self._ours, 4096, 1)
        except BlockingIOError:
            return -1
        return fds[0] if fds else -1


def sized(own: Json) -> Json:
    """The process with our terminal's size where it asks for none: it may look before we are told of any change."""
    found = size(0)
    if found is None or own.get("consoleSize"):
        return own
    return {**own, "consoleSize": {"height": found[0], "width": found[1]}}


class Foreground:
    """Signals are caught from here on: one that comes before the process is there would end us and leave it behind.
    They wait, and reach it once `stay` knows it."""

    def __init__(self, held: ExitStack) -> None:
        held.enter_context(spawn.current().adopting())
        self._pidfd = self._master = -1
        self._signals = held.enter_context(Signals(_numbers(), self._pass))

    def stay(self, init: Process, master: int = -1) -> int:
        """Relay until `init`, by now a child of the spawner's, has ended; its code as a shell's."""
        with ExitStack() as held:
            pidfd = held.enter_context(process.held(init))
            if pidfd is None:
                return spawn.current().reap(init.pid)
            held.callback(_close, master)
            self._pidfd, self._master = pidfd, master
            if master >= 0 and os.isatty(0):
                held.enter_context(RawTerminal(0))
                _resize(master)
            _relay(pidfd, self._signals, master)
        return spawn.current().reap(init.pid)

    def _pass(self, number: int) -> None:
        if number == signal.SIGWINCH:
            _resize(self._master)
        else:
            process.send(self._pidfd, number)


def _numbers() -> Iterable[int]:
    wanted = {number for number in signal.Signals if number.name.removeprefix("SIG") not in _OWN}
    return sorted(wanted | {signal.SIGWINCH})


def _resize(master: int) -> None:
    found = size(0) if master >= 0 else None
    if found is not None:
        import termios

        with suppress(OSError, termios.error):
            termios.tcsetwinsize(master, found)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _relay(pidfd: int, signals: Signals, master: int) -> None:
    poll = select.poll()
    for fd in (pidfd, signals.fileno(), *((0, master) if master >= 0 else ())):
        poll.register(fd, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if signals.fileno() in ready:
            signals.dispatch()
        for source, sink in ((0, master), (master, 1)):
            if source in ready and not _copy(source, sink):
                poll.unregister(source)
        if pidfd in ready:
            while master in ready and _copy(master, 1):  # what it printed last
                ready = dict(poll.poll(0))
            return


def _copy(source: int, sink: int) -> bool:
    """One piece; False at the end (a terminal whose last process has gone says EIO)."""
    try:
        data = os.read(source, _CHUNK)
        while data:
            data = data[os.write(sink, data):]
            if not data:
                return True
    except OSError:
        return False
    return False
