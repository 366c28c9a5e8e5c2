"""One command in a fork of the warm process: is it one for us, and if so, carried out as if Python had just started.

Decides what is served. Everything else is answered COLD, before anything was begun.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from wherry.container import spawn

from . import peer, wire
from .front import Front

__all__ = ["handle"]

#: short verbs of `wherry`; what asks, downloads, builds or shows a terminal starts cold
_VERBS: Final = frozenset((
    "connect", "create", "diff", "disconnect", "events", "exec", "history", "images", "info", "inspect", "kill", "logs",
    "ls", "pause", "port", "ports", "ps", "rename", "restart", "rm", "rmi", "run", "start", "stats", "stop", "tag",
    "top", "unpause", "update", "version", "wait"
))  # fmt: skip
_GROUPS: Final = frozenset(("container", "image", "network", "system", "volume"))
_OCI_VERBS: Final = frozenset((
    "create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "pause", "resume", "update",
    "features"
))  # fmt: skip
_PLACES: Final = ("--root", "--state", "--config")
_FAULT: Final = 125
_PATIENCE: Final = 5.0  # seconds for a front to say what it has to: one that is stopped must not keep us
_GARBAGE: Final = 20_000  # as in boot.py


def handle(sock: socket.socket, own: peer.World, answered: Callable[[], object]) -> int:
    """Serve one connection; the exit code of this process. `answered` is called before an answer after which we go on:
    the end of the front is then no reason to stop."""
    sock.settimeout(_PATIENCE)
    ask = wire.hear_ask(sock)
    program = _served(ask) if ask is not None else None
    pid, _ = peer.pid_of(sock)
    if ask is None or program is None or not _like(ask, own, pid) or not peer.still(sock, pid):
        wire.tell(sock, wire.COLD)
        return 0
    pidfd = os.pidfd_open(os.getpid())
    try:
        wire.tell(sock, wire.BEGIN, 0, [pidfd])
        wire.hear(sock, wire.GO)
    except OSError:
        return 0  # the front has lost its patience and started Python
    os.close(pidfd)
    sock.settimeout(None)
    _become(ask)
    spawn.use(Front(sock))
    rest: list[Callable[[], object]] = []
    code = _carried_out(program, ask, rest.append)
    if rest:
        _hide()
        answered()
    wire.tell(sock, wire.END, code)
    for step in rest:
        with suppress(Exception):  # nobody is there to be told: a sweep finds it, as after a crash
            step()
    return 0


def _hide() -> None:
    """Nobody who waits for the end of our output, or for our directory to be free, waits for us any more."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")


def _like(ask: wire.Ask, own: peer.World, pid: int) -> bool:
    from wherry.kernel import process

    return ask.securebits == process.securebits() and _utf8(ask.env) and peer.world(pid) == own


def _utf8(env: Mapping[str, str]) -> bool:
    """Python's streams would have the locale's encoding: ours is UTF-8, as in the C locale (PEP 538)."""
    found = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or "C"
    return found.lower().replace("-", "").partition(".")[2] == "utf8" or found in ("C", "POSIX")


# ---- what is served


def _served(ask: wire.Ask) -> Callable[..., int] | None:
    """The program's main, where this command is one for us."""
    if ask.program == "wherry" and _short_verb(ask.argv, ask.env) and not _terminal(ask):
        from wherry.cli.main import main

        return lambda words, env, later: main(words, env, None, later)
    if ask.program == "wherry-oci" and _oci(ask):
        from wherry.ocicli.main import main as oci

        return lambda words, env, _later: oci(words, env)
    return _plugin(ask.program)


def _plugin(name: str) -> Callable[..., int] | None:
    """A CNI plugin, which waits for nobody."""
    from wherry.net import launchers

    plugin = launchers.called(name)
    return plugin and (lambda _words, env, _later: plugin(sys.argv, env, sys.stdin.buffer, sys.stdout.buffer))


def _short_verb(argv: tuple[str, ...], env: Mapping[str, str]) -> bool:
    """Whether it is one of ours: `ps`, `container ps`; what follows a group's name is a verb by itself."""
    words = _words(argv, _PLACES)
    verb = next(words, "")
    verb = next(words, "") if verb in _GROUPS else verb
    return verb in _VERBS or (verb == "pull" and _here(argv, env))


def _here(argv: tuple[str, ...], env: Mapping[str, str]) -> bool:
    """Whether what is to be pulled is there: then a question to its registry is mostly all. A download starts cold."""
    from wherry.cli import quick
    from wherry.engine import images
    from wherry.engine.config import place

    line = quick.read(argv)
    return line is not None and images.has_name(place(env=env, **line.places), str(line.values.get("image", "")))


def _words(argv: tuple[str, ...], with_value: tuple[str, ...]) -> Iterator[str]:
    """Those that are no option, nor an option's value."""
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            yield word
        elif word in with_value:
            next(words, "")


def _terminal(ask: wire.Ask) -> bool:
    """A terminal that the command may want for itself: -t, -i on one, attach."""
    words = set(ask.argv)
    asked = "attach" in words or any(_short(word) for word in ask.argv) or {"--tty", "--interactive"} & words
    follows = "start" in words or "run" in words or "exec" in words
    return bool(asked) and follows and os.isatty(ask.stdio[0])


def _short(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and word[1] != "-" and bool({"i", "t", "a"} & set(word))


def _oci(ask: wire.Ask) -> bool:
    from wherry.ocicli.verbs import GLOBAL

    spelled = tuple(f"{dash}{flag.name}" for flag in GLOBAL if flag.metavar for dash in ("-", "--"))
    verb = next(_words(ask.argv, spelled), "")
    if verb not in _OCI_VERBS or "LISTEN_FDS" in ask.env or any("preserve-fds" in word for word in ask.argv):
        return False
    return verb not in ("run", "exec") or not os.isatty(ask.stdio[0])


# ---- as if just started


def _become(ask: wire.Ask) -> None:
    gc.set_threshold(_GARBAGE)
    gc.enable()
    wire.adopt_fds(ask)
    os.fchdir(ask.cwd)
    os.close(ask.cwd)
    os.umask(ask.umask)
    os.environ.clear()
    os.environ.update(ask.env)
    time.tzset()
    sys.argv = [ask.program, *ask.argv]
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        setattr(sys, name, _stream(fd, mode))


def _stream(fd: int, mode: str) -> Any:
    """As Python opens its own: stderr never holds a line back."""
    buffering = 1 if fd == 2 or (mode == "w" and os.isatty(fd)) else -1
    errors = "backslashreplace" if fd == 2 else "surrogateescape"
    return open(fd, mode, buffering, encoding="utf-8", errors=errors, closefd=False)


def _carried_out(program: Callable[..., int], ask: wire.Ask, later: Callable[[Callable[[], object]], None]) -> int:
    try:
        code = program(list(ask.argv), os.environ, later)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else _FAULT
    except BaseException as error:  # the programs catch everything; this is for what they do on the way out
        sys.stderr.write(f"{ask.program}: {type(error).__name__}: {error}\n")
        code = _FAULT
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    return code
