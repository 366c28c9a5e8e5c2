"""One plugin's connection: calls to it, and its calls to us, both at once.

Decides the bounds: how long an answer is waited for, how many calls of the plugin run, how much waits to be read by it.
Whatever is not kept to ends the connection. Knows no method.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from . import mux, ttrpc
from .ttrpc import Answer, Broken, Call, Frame

__all__ = ["Gone", "Link", "Refused"]

_log = logging.getLogger("wherryd.nri")
_CHUNK = 1 << 16
_UNREAD_MAX = 2 * mux.PIECE_MAX  # bytes that the plugin has not read
_CALLS_MAX = 8  # of the plugin, at once
Serve = Callable[[Call], Awaitable[bytes]]


class Gone(Exception):
    """The connection has ended, for the reason that it says."""


class Refused(Exception):
    """The peer's answer to a call is an error: a gRPC code and its sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Link:
    """A connection, from the moment that it is accepted. `serve` answers the plugin's calls (Refused)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve) -> None:
        self._reader, self._writer, self._serve = reader, writer, serve
        self._next = 1  # streams that a client begins are odd
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._why = ""

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return bool(self._why)

    async def run(self) -> str:
        """Read until it ends; why it did."""
        pieces = mux.Decoder()
        streams = {mux.PLUGIN: ttrpc.Decoder(), mux.RUNTIME: ttrpc.Decoder()}
        try:
            while data := await self._reader.read(_CHUNK):
                for connection, part in pieces.feed(data):
                    if connection in streams:  # others are for versions to come
                        for frame in streams[connection].feed(part):
                            self._take(connection, frame)
            self.close("it has left")
        except Broken as error:
            self.close(f"it does not speak NRI: {error}")
        except OSError as error:
            self.close(f"its connection broke: {error.strerror or error}")
        finally:
            self.close("wherryd is ending")
            for task in self._serving:
                task.cancel()
        return self._why

    def close(self, why: str) -> None:
        """End it; who waits for an answer hears why. Once: the first reason counts."""
        if self._why:
            return
        self._why = why
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Gone(why))
        self._waiting.clear()
        self._writer.transport.abort()

    async def call(self, asked: Call, timeout: float) -> bytes:
        """The answer's payload. Gone where it has ended, also by this call's deadline; Refused."""
        if self._why:
            raise Gone(self._why)
        stream, self._next = self._next, self._next + 2
        try:
            message = ttrpc.request(stream, asked, timeout)
        except ValueError as error:
            raise Refused(ttrpc.RESOURCE_EXHAUSTED, f"it cannot be told: {error}") from error
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answered
        try:
            self._write(mux.PLUGIN, message)
            async with asyncio.timeout(timeout):
                told = await answered
        except TimeoutError as error:
            self.close(f"it did not answer {asked.method} within {timeout:g} seconds")
            raise Gone(self._why) from error
        finally:
            self._waiting.pop(stream, None)
        if told.code:
            raise Refused(told.code, told.message)
        return told.payload

    def _write(self, connection: int, message: bytes) -> None:
        if self._why:
            return
        self._writer.write(mux.encoded(connection, message))
        if self._writer.transport.get_write_buffer_size() > _UNREAD_MAX:
            self.close("it does not read what it is told")

    def _take(self, connection: int, frame: Frame) -> None:
        if connection == mux.PLUGIN and frame.kind == ttrpc.RESPONSE:
            future = self._waiting.get(frame.stream)
            if future is not None and not future.done():
                future.set_result(ttrpc.answer(frame))
        elif connection == mux.RUNTIME and frame.kind == ttrpc.REQUEST:
            self._begin(frame)
        else:
            raise Broken(f"a message of type {frame.kind} on connection {connection}")

    def _begin(self, frame: Frame) -> None:
        if len(self._serving) >= _CALLS_MAX:
            told = Answer(ttrpc.RESOURCE_EXHAUSTED, f"{_CALLS_MAX} calls of this plugin are running", b"")
            self._write(mux.RUNTIME, ttrpc.response(frame.stream, told))
            return
        task = asyncio.ensure_future(self._answer(frame.stream, ttrpc.call(frame)))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _answer(self, stream: int, asked: Call) -> None:
        try:
            told = Answer(0, "", await self._serve(asked))
        except Refused as error:
            told = Answer(error.code, error.message, b"")
        except Exception as error:
            _log.exception("a plugin's call %s.%s", asked.service, asked.method)
            told = Answer(ttrpc.UNKNOWN, f"a defect of wherryd: {type(error).__name__}", b"")
        with suppress(ValueError):
            self._write(mux.RUNTIME, ttrpc.response(stream, told))
