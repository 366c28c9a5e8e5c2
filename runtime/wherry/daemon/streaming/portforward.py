"""Port-forward: each connection of the client's side is one pair of streams, and one TCP connection in the pod.

Decides which streams make a pair, how errors are told on it, and that both halves close by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

from wherry.errors import Kind, WherryError

from .link import CREATION, Channel, Gone, while_there
from .spdy import PROTOCOL_ERROR
from .spdylink import SpdyConnection, SpdyStream
from .wslink import WsConnection

__all__ = ["Target", "serve_channels", "serve_streams"]

_READ = 1 << 16
_LINGER = 10.0  # seconds for the pod's side to take the last bytes
_PATIENCE = 10.0  # seconds a connection may take to come about: only a full queue of the listener's makes it wait


class Target(NamedTuple):
    """Where connections go."""

    pod: str
    sockets: Callable[[], list[tuple[socket.socket, str]]]  # not connected, with their addresses; may block
    pool: Executor  # for that


class _Data(Channel, Protocol):
    was_reset: bool  # the client gave it up, and did not only end its half


async def serve_streams(connection: SpdyConnection, target: Target) -> None:
    """Over SPDY, as long as the connection lasts."""
    pairs = _Pairs(connection, target)
    running, opening = asyncio.create_task(connection.run()), asyncio.create_task(pairs.collect())
    try:
        await asyncio.wait({running, opening}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        opening.cancel()
        await pairs.end()
        running.cancel()  # first, for the WebSocket's farewell: see `remote.serve`
        await asyncio.gather(running, opening, return_exceptions=True)
        await connection.close()


class _Pairs:
    """Streams that wait for their other half, by request; and the pairs at work."""

    def __init__(self, connection: SpdyConnection, target: Target) -> None:
        self._connection, self._target = connection, target
        self._waiting: dict[str, tuple[SpdyStream, asyncio.Task[None]]] = {}
        self._working: set[asyncio.Task[None]] = set()

    async def collect(self) -> None:
        """Pair streams as they are opened."""
        while True:
            stream = await self._connection.opened()
            kind = stream.headers.get("streamtype", "")
            request = _request(stream, kind)
            other, timer = self._waiting.pop(request, (None, None))
            if timer:
                timer.cancel()
            if kind not in ("data", "error") or (other and other.headers["streamtype"] == kind):
                await self._refuse(stream, other)
            elif other is None:
                self._waiting[request] = stream, asyncio.create_task(self._expire(request, stream))
            else:
                self._work(*((stream, other) if kind == "data" else (other, stream)))

    @staticmethod
    async def _refuse(*streams: SpdyStream | None) -> None:
        for stream in streams:
            if stream:
                await stream.reset(PROTOCOL_ERROR)

    async def _expire(self, request: str, stream: SpdyStream) -> None:
        await asyncio.sleep(CREATION)
        self._waiting.pop(request, None)
        await stream.reset(PROTOCOL_ERROR)

    def _work(self, data: SpdyStream, error: SpdyStream) -> None:
        task = asyncio.create_task(self._serve(data, error))
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _serve(self, data: SpdyStream, error: SpdyStream) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                await forward(data, error, _port(data), self._target)
            finally:
                for stream in (error, data):
                    await stream.finish()
                    await stream.reset()

    async def end(self) -> None:
        """Stop all of it."""
        tasks = [*self._working, *(timer for _, timer in self._waiting.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _request(stream: SpdyStream, kind: str) -> str:
    """The pair that it belongs to. Old clients name none: there the data stream follows the error stream's number."""
    return stream.headers.get("requestid") or str(stream.id - 2 if kind == "data" else stream.id)


def _port(stream: SpdyStream) -> int:
    text = stream.headers.get("port", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0


async def serve_channels(connection: WsConnection, ports: Sequence[int], target: Target) -> None:
    """Over a WebSocket: channels 2n and 2n + 1 are data and errors of the nth port, which each names first."""
    running = asyncio.create_task(connection.run())
    pairs = zip(connection.channels[::2], connection.channels[1::2], ports, strict=True)
    work = [asyncio.create_task(_channel_pair(data, error, port, target)) for data, error, port in pairs]
    try:
        await while_there(running, lambda: asyncio.gather(*work, return_exceptions=True))
    except Gone:
        pass
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        running.cancel()  # first, for the WebSocket's farewell: see `remote.serve`
        await asyncio.gather(running, return_exceptions=True)
        await connection.close()


async def _channel_pair(data: _Data, error: Channel, port: int, target: Target) -> None:
    for channel in (data, error):
        await channel.write(port.to_bytes(2, "little"))
    await forward(data, error, port, target)


async def forward(data: _Data, error: Channel, port: int, target: Target) -> None:
    """One connection from its beginning to the end of both halves; what goes wrong is told on `error`."""
    loop = asyncio.get_running_loop()
    try:
        reader, writer = await asyncio.open_connection(sock=await _connected(port, target))
    except (WherryError, OSError) as problem:
        await _told(error, port, target, problem)
        return
    try:
        await _both(data, reader, writer)
    except ConnectionError as problem:
        await _told(error, port, target, problem)
    finally:
        writer.close()
        loop.call_later(_LINGER, writer.transport.abort)


async def _connected(port: int, target: Target) -> socket.socket:
    """By the first family that answers."""
    if not 0 < port < 1 << 16:
        raise WherryError(Kind.INVALID, f"port {port} is not between 1 and 65535")
    made = await asyncio.get_running_loop().run_in_executor(target.pool, target.sockets)
    problems = []
    with contextlib.ExitStack() as unused:
        for sock, _ in made:
            unused.callback(sock.close)
        for sock, address in made:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await asyncio.get_running_loop().sock_connect(sock, (address, port))
            except OSError as problem:  # TimeoutError is one
                problems.append(f"{address}: {problem.strerror or 'timed out'}")
            else:
                return sock.dup()
    raise WherryError(Kind.UNAVAILABLE, f"cannot connect to port {port} of localhost in pod {target.pod[:12]}: "
                      + ", ".join(problems), hint="does a container of the pod listen there?")  # fmt: skip


async def _told(error: Channel, port: int, target: Target, problem: Exception) -> None:
    with contextlib.suppress(ConnectionError):
        await error.write(f"error forwarding port {port} to pod {target.pod}: {problem}".encode())


async def _both(data: _Data, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    halves = [asyncio.create_task(_up(data, writer)), asyncio.create_task(_down(reader, data))]
    try:
        await asyncio.gather(*halves)
    finally:
        for half in halves:
            half.cancel()
        await asyncio.gather(*halves, return_exceptions=True)


async def _up(data: _Data, writer: asyncio.StreamWriter) -> None:
    """From the client into the pod. A client that gave up wants nothing back either."""
    while chunk := await data.read():
        writer.write(chunk)
        await writer.drain()
    if data.was_reset:
        writer.transport.abort()
    elif writer.can_write_eof():
        writer.write_eof()


async def _down(reader: asyncio.StreamReader, data: _Data) -> None:
    while chunk := await reader.read(_READ):
        await data.write(chunk)
    await data.finish()
