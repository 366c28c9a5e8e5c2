"""The gate that every call goes through: bytes to a request, an answer or an error to bytes, a line in the log.

Decides the gRPC code of each kind of failure. Knows no call by name.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from wherry.daemon.measures import Measures
from wherry.errors import Kind, WherryError

from .services import Method

__all__ = ["CODES", "Expired", "Joined", "code_of", "wrap"]

_log = logging.getLogger("wherryd.cri")
_T = TypeVar("_T")
_Code = grpc.StatusCode

#: Kind -> what the kubelet is told. It acts on NOT_FOUND, and on UNAVAILABLE by coming again.
CODES: Mapping[Kind, grpc.StatusCode] = {
    Kind.INVALID: _Code.INVALID_ARGUMENT,
    Kind.NOT_FOUND: _Code.NOT_FOUND,
    Kind.EXISTS: _Code.ALREADY_EXISTS,
    Kind.CONFLICT: _Code.FAILED_PRECONDITION,
    Kind.PRECONDITION: _Code.FAILED_PRECONDITION,
    Kind.DENIED: _Code.PERMISSION_DENIED,
    Kind.UNAVAILABLE: _Code.UNAVAILABLE,
    Kind.EXHAUSTED: _Code.RESOURCE_EXHAUSTED,
    Kind.UNSUPPORTED: _Code.UNIMPLEMENTED,
    Kind.INTERNAL: _Code.INTERNAL,
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
#: what of a request may be told in the log: never credentials, environments, commands
_LOGGED = ("pod_sandbox_id", "container_id")
_NUL = re.compile(r"embedded null|NUL byte")
_SENTENCE_MAX = 2048  # characters: it travels in a header


class Expired(WherryError):
    """What was asked was not done in the time that the request gave."""

    def __init__(self, message: str) -> None:
        super().__init__(Kind.UNAVAILABLE, message)


def code_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the sentence of whatever a call ended with."""
    if isinstance(error, Expired):
        return _Code.DEADLINE_EXCEEDED, error.message
    if isinstance(error, WherryError):
        return CODES[error.kind], (f"{error.message}; {error.hint}" if error.hint else error.message)[:_SENTENCE_MAX]
    if isinstance(error, OSError):
        code = _Code.RESOURCE_EXHAUSTED if error.errno in _FULL else _Code.INTERNAL
        about = f" ({error.filename})" if error.filename else ""
        return code, f"the kernel refused: {error.strerror or error}{about}"[:_SENTENCE_MAX]
    if isinstance(error, ValueError) and _NUL.search(str(error)):  # what Python says where it reaches the kernel
        return _Code.INVALID_ARGUMENT, "a text of the request has a NUL byte"
    return _Code.INTERNAL, f"a defect of wherryd: {type(error).__name__}: {error}"[:_SENTENCE_MAX]


def wrap(method: Method, serve: Callable[[Any], Any] | None, measures: Measures) -> Callable[..., Any]:
    """The handler of a method; `serve` takes the request and gives a message (or its bytes), or an asynchronous
    iterator of them. None: nobody serves it."""
    if serve is None:
        return _unserved
    return (_streaming if method.streams else _plain)(method, serve, measures)


async def _unserved(_raw: bytes, context: Any) -> bytes:
    await context.abort(_Code.UNIMPLEMENTED, "wherry does not do this")
    return b""


def _plain(
    method: Method, serve: Callable[[Any], Awaitable[Message | bytes]], measures: Measures
) -> Callable[..., Any]:
    async def call(raw: bytes, context: Any) -> bytes:
        told = _Told(method, context, measures)
        try:
            answer = _bytes(await serve(told.parsed(raw)))
        except Exception as error:
            await told.failed(error)
            raise  # abort has raised already
        told.done()
        return answer

    return call


def _streaming(
    method: Method, serve: Callable[[Any], AsyncIterator[Message | bytes]], measures: Measures
) -> Callable[..., Any]:
    async def call(raw: bytes, context: Any) -> AsyncIterator[bytes]:
        told = _Told(method, context, measures)
        try:
            async for answer in serve(told.parsed(raw)):
                yield _bytes(answer)
        except Exception as error:
            await told.failed(error)
        told.done()

    return call


def _bytes(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class _Told:
    """One call's line in the log, its place in the measures, and its status."""

    def __init__(self, method: Method, context: Any, measures: Measures) -> None:
        self._method, self._context, self._measures, self._began = method, context, measures, time.monotonic()
        self._about: dict[str, object] = {}

    def parsed(self, raw: bytes) -> Message:
        """The request."""
        try:
            request: Message = self._method.request.FromString(raw)
        except DecodeError as error:
            raise WherryError(Kind.INVALID, "the request cannot be parsed: is it runtime.v1?") from error
        if _log.isEnabledFor(logging.DEBUG):
            self._about = {name: value for name in _LOGGED if (value := getattr(request, name, ""))}
        return request

    def done(self) -> None:
        """It went well."""
        self._ended("OK")
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(self._method.name, extra={"fields": {**self._about, "ms": self._took()}})

    async def failed(self, error: Exception) -> None:
        """It did not; raises what gRPC wants."""
        code, sentence = code_of(error)
        self._measures.failed("cri", error)
        self._ended(code.name)
        level = logging.ERROR if code is _Code.INTERNAL else logging.DEBUG
        fields = {**self._about, "code": code.name, "ms": self._took(), "error": sentence}
        _log.log(level, self._method.name, extra={"fields": fields}, exc_info=error if code is _Code.INTERNAL else None)
        await self._context.abort(code, sentence)

    def _ended(self, code: str) -> None:
        sent = {}
        if self._measures.spanning:
            sent = {key: value for key, value in self._context.invocation_metadata() or () if isinstance(value, str)}
        self._measures.called(self._method.name, code, time.monotonic() - self._began, sent)

    def _took(self) -> float:
        return round((time.monotonic() - self._began) * 1000, 1)


class Joined:
    """Work in progress, by name: who asks for the same meanwhile waits for its end, and nobody who goes away ends it.

    A kubelet whose call timed out asks again; it must not find half of what its first call makes.
    """

    def __init__(self) -> None:
        self._running: dict[object, asyncio.Task[Any]] = {}

    async def do(self, key: object, make: Callable[[], Awaitable[_T]]) -> _T:
        """What `make` gives, by this call or by one before it that has not ended."""
        task: asyncio.Task[_T] | None = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(_awaited(make()))
            self._running[key] = task
            task.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(task)

    def _ended(self, key: object, task: asyncio.Task[Any]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # told to whoever still waits; if nobody does, it is no defect

    async def drained(self) -> None:
        """Until nothing runs any more."""
        while self._running:
            await asyncio.wait(list(self._running.values()))


async def _awaited(work: Awaitable[_T]) -> _T:
    return await work
