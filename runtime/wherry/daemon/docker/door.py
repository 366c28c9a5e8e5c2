"""Connections and how many: who asks for nothing holds nothing, and who comes too many is told to come again.

Decides which connection goes where there are too many. Knows no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from wherry.errors import Kind, WherryError

from .gate import failed

__all__ = ["Door"]

_FIRST_REQUEST = 30.0  # seconds that a connection may take to ask for something
_IDLE_MOST = 256  # connections that ask for nothing just now; one more, and the oldest goes
_CALLS_MOST = 4096  # at once; followed streams and terminals are among them

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """Of one server. `make`: a handler of aiohttp's for a new connection."""

    def __init__(self, make: Callable[[], RequestHandler]) -> None:
        self._make = make
        self._idle: dict[RequestHandler, asyncio.TimerHandle | None] = {}
        self._calls = 0

    def opened(self) -> RequestHandler:
        """A new connection."""
        handler = self._make()
        self._rests(handler, asyncio.get_running_loop().call_later(_FIRST_REQUEST, self._expire, handler))
        return handler

    def _rests(self, handler: RequestHandler, timer: asyncio.TimerHandle | None) -> None:
        if len(self._idle) >= _IDLE_MOST:
            # a connection that is not made yet has no transport either: only those that have asked are told by it
            for gone in [one for one, first in self._idle.items() if first is None and one.transport is None]:
                self._left(gone)
        if len(self._idle) >= _IDLE_MOST:
            self._expire(next(iter(self._idle)))
        self._idle[handler] = timer

    def _left(self, handler: RequestHandler) -> None:
        if timer := self._idle.pop(handler, None):
            timer.cancel()

    def _expire(self, handler: RequestHandler) -> None:
        self._left(handler)
        # of many that come at once, some are not made yet, and would stay open: they are when this is called
        asyncio.get_running_loop().call_soon(handler.force_close)

    @web.middleware
    async def counted(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """One call, if there is room for it."""
        self._left(request.protocol)
        if self._calls >= _CALLS_MOST:
            return failed(WherryError(Kind.UNAVAILABLE, f"{_CALLS_MOST} calls are running", hint="try again later"))
        self._calls += 1
        try:
            return await handler(request)
        finally:
            self._calls -= 1
            if request.protocol.transport is not None:
                self._rests(request.protocol, None)
