"""A connection taken over for a process's streams, as docker's clients have it, or a WebSocket in its place.

Decides the first line (101 for who asks for an upgrade, 200 else), the frames of what is no terminal (docker's
stdcopy: stream u8, three zero bytes, length u32 big endian), which keys detach, and how a client that is gone is told
from one that only has no more input.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import sys
import termios
from typing import Protocol

from aiohttp import hdrs, web

from wherry.daemon.streaming.pipe import TunnelPipe, hold, taken_over
from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_STDERR

from .call import Call, Version
from .gate import HEADERS, Told

__all__ = ["Client", "Socket", "detach_keys", "gone", "opened"]

_RAW, _FRAMED = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"
_FRAMES_TOLD = Version(1, 42)  # which names the second of them
_HEADER = struct.Struct(">B3xI")
_DETACH = b"\x10\x11"  # ctrl-p, ctrl-q
_NAMED = {"[": 27, "\\": 28, "]": 29, "^": 30, "_": 31, "@": 0}
_HEAD_LOOKS = 50  # a millisecond each
_LOOK = 1.0  # seconds between two looks whether a silent client is still there


class Pipe(Protocol):
    """Bytes both ways (daemon/streaming/pipe.py)."""

    async def read(self) -> bytes:
        """Some; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """All; ConnectionError if nobody is there."""

    async def close(self) -> None:
        """Hang up."""


class Client:
    """The client's side of a session. `framed`: standard output and errors are told apart."""

    def __init__(self, pipe: Pipe, request: web.Request, *, framed: bool) -> None:
        self._pipe, self._request, self._framed = pipe, request, framed
        self._writing = asyncio.Lock()
        self.read, self.close = pipe.read, pipe.close

    async def take(self, kind: int, payload: bytes) -> None:
        """Output (ATTACH_STDOUT, ATTACH_STDERR); waits while the client does not read. ConnectionError if it left."""
        head = _HEADER.pack(2 if kind == ATTACH_STDERR else 1, len(payload)) if self._framed else b""
        async with self._writing:
            await self._pipe.write(head + payload)

    async def vanished(self) -> None:
        """Returns when the client has hung up for good, as far as that can be seen without writing to it."""
        while not gone(self._request.transport):
            await asyncio.sleep(_LOOK)


def gone(transport: asyncio.BaseTransport | None) -> bool:
    """Whether both directions are closed. A client of ours may close its own only: that ends its input, no more."""
    sock = transport.get_extra_info("socket") if transport is not None and not transport.is_closing() else None
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)  # POLLHUP and POLLERR are always told
    return bool(poll.poll(0))


async def opened(call: Call, *, tty: bool) -> tuple[Client, Told]:
    """Take the connection over. The answer is to be given back by the handler when all is said."""
    request = call.request
    upgrade = request.headers.get(hdrs.UPGRADE, "")
    framed = not tty and call.version >= _FRAMES_TOLD
    told = {hdrs.CONTENT_TYPE: _FRAMED if framed else _RAW, **HEADERS}
    first = "HTTP/1.1 200 OK"
    if upgrade:
        first, told = "HTTP/1.1 101 UPGRADED", {**told, hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: "tcp"}
    hold(request)
    pipe = taken_over(request)
    await pipe.write("\r\n".join([first, *(f"{key}: {value}" for key, value in told.items()), "", ""]).encode())
    await _read(request.transport)
    return Client(pipe, request, framed=not tty), Told()


async def _read(transport: asyncio.BaseTransport | None) -> None:
    """Until the client has read the answer's head, or a moment has passed. Some (docker-py) read it through a buffer,
    and then from the socket itself: what came along with the head would be lost to them."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    for _ in range(_HEAD_LOOKS):
        if sock is None or sock.fileno() < 0 or not _unread(sock.fileno()):
            return
        await asyncio.sleep(0.001)


def _unread(fd: int) -> int:
    """Bytes that the other end has not taken yet (SIOCOUTQ, unix(7) and tcp(7))."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Socket(Client):
    """A WebSocket: binary messages, raw as a terminal's."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        super().__init__(TunnelPipe(socket, request), request, framed=False)


def detach_keys(text: str) -> bytes:
    """docker's detachKeys: "ctrl-a", "ctrl-@", a letter, with commas between; "" is ctrl-p,ctrl-q."""
    if not text:
        return _DETACH
    return bytes(_key(word) for word in text.split(","))


def _key(word: str) -> int:
    if len(word) == 1 and word.isascii():
        return ord(word)
    last = word.removeprefix("ctrl-")
    if word.startswith("ctrl-") and len(last) == 1:
        if "a" <= last <= "z":
            return ord(last) - 96
        if last in _NAMED:
            return _NAMED[last]
    raise WherryError(Kind.INVALID, f"detachKeys: {word[:20]!r} is no key", hint='such as "ctrl-p,ctrl-q" or "a"')


class Keys:
    """Looks for the detach keys in what is typed."""

    def __init__(self, keys: bytes) -> None:
        self._keys, self._seen = keys, 0

    def typed(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to the process, and whether the keys were typed."""
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    return bytes(out), True
                continue
            out += self._keys[: self._seen]
            self._seen = 0
            if byte == self._keys[0]:
                self._seen = 1
            else:
                out.append(byte)
        return bytes(out), False


