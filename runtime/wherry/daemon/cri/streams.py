"""The streaming server, begun when the first connection is prepared: its modules are large."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wherry.engine.engine import Engine

if TYPE_CHECKING:
    from wherry.daemon.streaming.server import Streaming

__all__ = ["Streams"]


class Streams:
    """The one streaming server of a wherryd."""

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine, self._address = engine, address
        self._one = asyncio.Lock()
        self._server: Streaming | None = None

    async def server(self) -> Streaming:
        """It, serving."""
        async with self._one:
            if self._server is None:
                from wherry.daemon.streaming.server import Streaming

                made = Streaming(self._engine, self._address)
                await made.start()
                self._server = made
            return self._server

    async def stop(self) -> None:
        """End all connections."""
        if self._server is not None:
            await self._server.stop()
