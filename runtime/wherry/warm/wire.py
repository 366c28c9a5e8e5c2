"""What the front and the warm process say to each other: the Python side of native/front.h."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Ask", "adopt_fds", "close_all", "hear", "hear_ask", "tell"]

MAGIC: Final = 0x52464857
VERSION: Final = 1
COLD, BEGIN, GO, SPAWN, SPAWNED, REAP, STATUS, REAPER, END = range(1, 10)
LAUNCH, MONITOR = range(2)
_ASK: Final = struct.Struct("=6I32s")
_MSG: Final = struct.Struct("=Ii")
_WORDS_MAX: Final = 8 << 20  # argv and environment; the kernel takes 6 MiB at most
_SEALS: Final = 0xF  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
_F_GET_SEALS: Final = 1034


class Ask(NamedTuple):
    """One command as the front hands it over."""

    program: str
    argv: tuple[str, ...]  # without the name
    env: dict[str, str]
    umask: int
    securebits: int
    stdio: tuple[int, int, int]
    cwd: int  # O_PATH


def hear_ask(sock: socket.socket) -> Ask | None:
    """The first message; None where it is not what a front of this version sends."""
    data, fds, flags, _ = socket.recv_fds(sock, _ASK.size + 1, 8)
    if len(data) != _ASK.size or len(fds) != 5 or flags & socket.MSG_CTRUNC:
        close_all(fds)
        return None
    magic, version, argc, envc, umask, bits, program = _ASK.unpack(data)
    words = _words(fds[0]) if (magic, version) == (MAGIC, VERSION) else None
    os.close(fds[0])
    if words is None or len(words) != argc + envc or not argc:
        close_all(fds[1:])
        return None
    env = _environment(words[argc:])
    name = program.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return Ask(name, tuple(words[1:argc]), env, umask, bits, (fds[1], fds[2], fds[3]), fds[4])


def _environment(words: Sequence[str]) -> dict[str, str]:
    """As os.environ has it: of two with one name the first; a word without "=" is none."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name and equals:
            found.setdefault(name, value)
    return found


def _words(fd: int) -> list[str] | None:
    if fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS != _SEALS or (size := os.fstat(fd).st_size) > _WORDS_MAX:
        return None
    text = os.pread(fd, size, 0)
    return [os.fsdecode(word) for word in text.split(b"\0")[:-1]] if text.endswith(b"\0") else None


def tell(sock: socket.socket, kind: int, value: int = 0, fds: Sequence[int] = ()) -> None:
    """Send one message; BrokenPipeError or ConnectionError where the front is gone."""
    if fds:
        socket.send_fds(sock, [_MSG.pack(kind, value)], fds, socket.MSG_NOSIGNAL)
    else:
        sock.send(_MSG.pack(kind, value), socket.MSG_NOSIGNAL)


def hear(sock: socket.socket, kind: int) -> int:
    """The value of the next message, which must be of this kind; ConnectionError else."""
    data = sock.recv(_MSG.size)
    if len(data) != _MSG.size or (found := _MSG.unpack(data))[0] != kind:
        raise ConnectionError("the front is gone")
    return int(found[1])


def adopt_fds(ask: Ask) -> None:
    """The caller's streams in the place of ours."""
    for target, fd in enumerate(ask.stdio):
        os.dup2(fd, target)
    close_all(ask.stdio)


def close_all(fds: Sequence[int]) -> None:
    """Close them."""
    for fd in fds:
        os.close(fd)
