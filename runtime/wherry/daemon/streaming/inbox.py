"""Bytes from a client for one channel, up to a bound: who puts more waits until they are taken.

However small the pieces are that they come in, they take no more than their size: no peer can make us hold more.
"""

from __future__ import annotations

import asyncio

__all__ = ["Bound", "Inbox"]

_PART = 1 << 16  # bytes given at once


class Bound:
    """How much is held, of how much; what is put last may exceed it. Several inboxes may share one."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._below = asyncio.Event()
        self._below.set()

    def add(self, size: int) -> None:
        """More, or with a negative size less, is held."""
        self._held += size
        if self._held < self._most:
            self._below.set()
        else:
            self._below.clear()

    @property
    def full(self) -> bool:
        """Whether it is reached."""
        return self._held >= self._most

    async def room(self) -> None:
        """Until it is not."""
        await self._below.wait()

    def lift(self) -> None:
        """Let go of who waits."""
        self._below.set()


class Inbox:
    """One putter, one reader."""

    def __init__(self, most: int = 1 << 18, shared: Bound | None = None) -> None:
        """`shared`: of all inboxes of a connection together."""
        self._own = Bound(most)
        self._bounds = (self._own,) if shared is None else (self._own, shared)
        self._data = bytearray()
        self._ended = False
        self._filled = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Take in; may exceed the bound by these bytes. After the end they are dropped."""
        if self._ended or not data:
            return
        self._data += data
        self._count(len(data))
        self._filled.set()

    def _count(self, size: int) -> None:
        for bound in self._bounds:
            bound.add(size)

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._filled.set()
        self._own.lift()

    def forget(self) -> None:
        """Nobody reads any more: end, and give the memory back."""
        self._count(-len(self._data))
        self._data = bytearray()
        self.end()

    @property
    def full(self) -> bool:
        """Whether to wait for `room`."""
        return not self._ended and any(bound.full for bound in self._bounds)

    async def room(self) -> None:
        """Until more can be put."""
        for bound in self._bounds:
            await bound.room()

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        while not self._data:
            if self._ended:
                return b""
            self._filled.clear()
            await self._filled.wait()
        data = bytes(self._data[:_PART])
        del self._data[:_PART]
        self._count(-len(data))
        return data
