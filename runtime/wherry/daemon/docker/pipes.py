"""Bytes between the loop and a thread: a body that the engine reads, an archive that it writes, news of long work.

A pipe of the kernel's bounds what lies between them, so whoever is slow holds the other side back. Decides what becomes
of a failure: before the first byte it is the answer, later it can only be told in the stream, or break it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import BinaryIO, TypeVar

from aiohttp import web

from wherry.errors import WherryError
from wherry.model import Json

from .call import Call

__all__ = ["News", "received", "sent"]

_T = TypeVar("_T")
_CHUNK = 1 << 18
_WAITING = 1 << 20  # bytes of news that wait for a client
_PATIENCE = 120.0  # seconds that work is held up for one that does not read


async def received(call: Call, read: Callable[[BinaryIO], _T]) -> _T:
    """What `read`, in a thread, makes of the request's body."""
    inner, outer = os.pipe2(os.O_CLOEXEC)
    loop = asyncio.get_running_loop()

    def reading() -> _T:
        with open(inner, "rb", buffering=_CHUNK) as file:
            return read(file)

    work = asyncio.ensure_future(call.parts.wait(reading))
    try:
        end = open(outer, "wb", 0)  # noqa: SIM115  # the transport's
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, end)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        try:
            await _fed(call, writer, work)
        finally:
            writer.close()
        return await work
    finally:
        if not work.done():
            with contextlib.suppress(Exception):
                await work


async def _fed(call: Call, writer: asyncio.StreamWriter, work: asyncio.Future[_T]) -> None:
    """Until the body ends, or nobody reads it any more: then the rest of it is let go by."""
    with contextlib.suppress(ConnectionError):
        async for chunk in call.request.content.iter_chunked(_CHUNK):
            if not work.done():
                writer.write(chunk)
                await writer.drain()


async def sent(call: Call, write: Callable[[int], object], headers: Mapping[str, str]) -> web.StreamResponse:
    """An answer of what `write`, in a thread, writes to a descriptor. Its failure before the first byte is raised, one
    after that breaks the connection off: the client must not take a part for the whole."""
    outer, inner = os.pipe2(os.O_CLOEXEC)
    loop = asyncio.get_running_loop()

    def writing() -> None:
        try:
            write(inner)
        except BrokenPipeError:  # the client has left
            pass
        finally:
            os.close(inner)

    work = asyncio.ensure_future(call.parts.wait(writing))
    reader = asyncio.StreamReader(_CHUNK, loop)
    end = open(outer, "rb", 0)  # noqa: SIM115  # the transport's
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), end)
    answer: web.StreamResponse | None = None
    try:
        first = await reader.read(_CHUNK)
        if not first:
            await work
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(call.request)
        while first:
            await answer.write(first)
            first = await reader.read(_CHUNK)
        await work
        await answer.write_eof()
    except (WherryError, OSError) as error:
        if answer is None:
            raise
        if call.request.transport is not None:
            call.request.transport.abort()
        raise ConnectionResetError(f"broken off: {error}") from error
    finally:
        transport.close()
    return answer


class News:
    """Lines of JSON while long work goes on; of each piece of it (`key`) only the newest, if the client is slow.

    `tell` may be called in threads, and holds them up while much waits for the client; one that reads nothing for long
    is let go, and its work goes on untold. The answer begins with the first line: a failure before that has its own
    status.
    """

    def __init__(self, call: Call) -> None:
        self._call, self._loop, self._owner = call, asyncio.get_running_loop(), threading.get_ident()
        self._lines: dict[object, bytes] = {}
        self._size = 0
        self._lock, self._room, self._gone = threading.Lock(), threading.Event(), False
        self._room.set()
        self._some = asyncio.Event()
        self._answer: web.StreamResponse | None = None

    def tell(self, line: Json, key: object = None) -> None:
        """One line."""
        if threading.get_ident() != self._owner and not self._room.wait(_PATIENCE):
            self._loop.call_soon_threadsafe(self._let_go)
        self._add(json.dumps(line).encode() + b"\r\n", object() if key is None else key)
        self._loop.call_soon_threadsafe(self._some.set)

    def _add(self, line: bytes, key: object) -> None:
        with self._lock:
            if self._gone:
                return
            self._size += len(line) - len(self._lines.pop(key, b""))
            self._lines[key] = line
            if self._size > _WAITING:
                self._room.clear()

    def _let_go(self) -> None:
        if self._call.request.transport is not None:
            self._call.request.transport.abort()
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._gone, self._lines, self._size = True, {}, 0
        self._room.set()

    async def during(self, work: Awaitable[_T]) -> tuple[web.StreamResponse, _T | None]:
        """The answer, not ended, and what the work gave; None where it failed, which has been told then."""
        running = asyncio.ensure_future(work)
        running.add_done_callback(lambda _: self._some.set())
        while not running.done():
            await self._some.wait()
            self._some.clear()
            if self._lines:
                await self.write()
        try:
            found = running.result()
        except WherryError as error:
            if self._answer is None and not self._lines:
                raise
            words = f"{error.message}; {error.hint}" if error.hint else error.message
            code = {} if error.code is None else {"code": error.code}
            self.tell({"errorDetail": {**code, "message": words}, "error": words})
            return await self.write(), None
        return await self.write(), found

    async def write(self) -> web.StreamResponse:
        """What was told up to now is on its way when this returns."""
        try:
            return await self._written()
        except (ConnectionError, asyncio.CancelledError):
            self._forget()
            raise

    async def _written(self) -> web.StreamResponse:
        if self._answer is None:
            self._answer = web.StreamResponse(headers={"Content-Type": "application/json"})
            await self._answer.prepare(self._call.request)
        with self._lock:
            lines, self._lines, self._size = self._lines, {}, 0
        if lines:
            await self._answer.write(b"".join(lines.values()))
        self._room.set()
        return self._answer
