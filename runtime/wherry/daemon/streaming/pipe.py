"""A connection after its upgrade, as bytes both ways: plain TCP, or the messages of a WebSocket that tunnels them.

Decides how a client that has hung up is noticed while nothing is read from it.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

from aiohttp import WSMsgType, web
from aiohttp.web_protocol import RequestHandler

__all__ = ["Pipe", "TcpPipe", "TunnelPipe", "hold", "hung_up", "taken_over"]

_READ = 1 << 16


class Pipe(Protocol):
    """Bytes both ways."""

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """All of them; waits while the client does not take them. ConnectionError if it is gone."""

    def hung_up(self) -> bool:
        """Whether the client is gone, though there may be bytes of it to read still."""

    async def close(self) -> None:
        """Hang up."""


def hung_up(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the other end has closed: to be asked where nobody reads, for then the loop would not tell."""
    sock = transport.get_extra_info("socket") if transport is not None and not transport.is_closing() else None
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class _Taken(asyncio.StreamReaderProtocol):
    """Reads a connection in aiohttp's place, and tells it of the connection's end, which it keeps account of."""

    def __init__(self, reader: asyncio.StreamReader, before: RequestHandler) -> None:
        super().__init__(reader)
        self._before = before

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._before.connection_lost(exc)


class TcpPipe:
    """The connection itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        """See `Pipe`."""
        try:
            return await self._reader.read(_READ)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """See `Pipe`."""
        if self._writer.is_closing():
            raise ConnectionResetError("the client has hung up")
        self._writer.write(data)
        await self._writer.drain()

    def hung_up(self) -> bool:
        """See `Pipe`."""
        return hung_up(self._writer.transport)

    async def close(self) -> None:
        """See `Pipe`. What it does not take within a moment is dropped."""
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            self._writer.transport.abort()


def hold(request: web.Request) -> None:
    """Before the answer 101: a client may speak at once, and must not speak to aiohttp's parser."""
    if isinstance(request.transport, asyncio.Transport):
        request.transport.pause_reading()


def taken_over(request: web.Request) -> TcpPipe:
    """The request's connection, after `hold` and its answer: aiohttp reads it no more."""
    transport, loop = request.transport, asyncio.get_running_loop()
    if transport is None:
        raise ConnectionResetError("the client has hung up")
    reader = asyncio.StreamReader(_READ, loop)
    protocol = _Taken(reader, request.protocol)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    assert isinstance(transport, asyncio.Transport)
    transport.resume_reading()
    return TcpPipe(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


class TunnelPipe:
    """Binary messages, whose borders mean nothing."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._socket, self._request = socket, request

    async def read(self) -> bytes:
        """See `Pipe`."""
        while True:
            message = await self._socket.receive()
            if message.type is not WSMsgType.BINARY:
                return b""
            if message.data:
                return bytes(message.data)

    async def write(self, data: bytes) -> None:
        """See `Pipe`."""
        await self._socket.send_bytes(data)

    def hung_up(self) -> bool:
        """See `Pipe`."""
        return hung_up(self._request.transport)

    async def close(self) -> None:
        """See `Pipe`."""
        await self._socket.close()
