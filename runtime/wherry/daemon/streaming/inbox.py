"""Bytes from a client for one channel, up to a bound: who puts more waits until they are taken."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Inbox"]


class Inbox:
    """One putter, one reader."""

    def __init__(self, most: int = 1 << 18) -> None:
        self._most, self._held = most, 0
        self._parts: deque[bytes] = deque()
        self._ended = False
        self._filled, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()

    def put(self, data: bytes) -> None:
        """Take in; may exceed the bound by these bytes. After the end they are dropped."""
        if self._ended or not data:
            return
        self._parts.append(data)
        self._held += len(data)
        self._filled.set()
        if self._held >= self._most:
            self._room.clear()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._filled.set()
        self._room.set()

    def forget(self) -> None:
        """Nobody reads any more: end, and give the memory back."""
        self._parts.clear()
        self._held = 0
        self.end()

    @property
    def full(self) -> bool:
        """Whether to wait for `room`."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Until more can be put."""
        await self._room.wait()

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        while not self._parts:
            if self._ended:
                return b""
            self._filled.clear()
            await self._filled.wait()
        data = self._parts.popleft()
        self._held -= len(data)
        if self._held < self._most:
            self._room.set()
        return data
