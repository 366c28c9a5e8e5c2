"""Containers that were started here: who is attached to each, and how it ends.

docker's clients attach before the start, so whoever attaches to what does not run waits here for it. Decides that
output is asked of a container's monitor only while somebody takes it, and that we settle the end ourselves: no Python
starts for it, and who waits hears of it at once. If wherryd dies, or stops, the monitors settle by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from wherry.daemon.streaming.frames import Frames
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError

from .happenings import Happenings

__all__ = ["Lives", "Tap"]

_log = logging.getLogger("wherryd.docker")
_SETTLERS = 16  # threads: an end takes milliseconds of one
_STALL = 10.0  # seconds that one of several may take nothing, as with the monitors


class Tap(Protocol):
    """Who takes a container's output from its first byte on."""

    def begun(self, frames: Frames) -> None:
        """It runs; input goes to these."""

    async def take(self, kind: int, payload: bytes) -> None:
        """ATTACH_STDOUT or ATTACH_STDERR, bytes. ConnectionError: nobody takes it any more."""

    def over(self, error: WherryError | None) -> None:
        """It has ended, or could not be started."""


class Lives:
    """Of one engine and one loop."""

    def __init__(self, engine: Engine, happenings: Happenings) -> None:
        self._engine, self._happenings = engine, happenings
        self._waiting: dict[str, list[Tap]] = {}  # for a start
        self._starting: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._frames: set[Frames] = set()
        self._pool = ThreadPoolExecutor(_SETTLERS, "lives")

    def attend(self, cid: str, tap: Tap) -> None:
        """`tap` takes the output of the next start."""
        self._waiting.setdefault(cid, []).append(tap)

    def leave(self, cid: str, tap: Tap) -> bool:
        """It does not wait any more: whether it did, rather than belong to a start already. Idempotent."""
        taps = self._waiting.get(cid, [])
        if waited := tap in taps:
            taps.remove(tap)
        if not taps:
            self._waiting.pop(cid, None)
        return waited

    async def start(self, cid: str, change: Callable[[], Awaitable[object]] | None = None) -> bool:
        """Start it, unless it runs: whether it did not. `change`: what is done right before, a stop perhaps."""
        lock = self._starting.setdefault(cid, asyncio.Lock())
        try:
            async with lock:
                if change is not None:
                    await change()
                elif await self._do(self._engine.runs, cid):
                    return False
                await self._start(cid)
                return True
        finally:
            if not lock.locked():
                self._starting.pop(cid, None)

    async def _do(self, call: Callable[[str], bool], cid: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, cid)

    async def _start(self, cid: str) -> None:
        loop = asyncio.get_running_loop()
        taps = self._waiting.pop(cid, [])
        try:
            running = await loop.run_in_executor(self._pool, lambda: self._engine.start(cid, attach=True))
        except WherryError as error:
            for tap in taps:
                tap.over(error)
            raise
        frames = Frames(running, self._pool)
        self._frames.add(frames)
        for tap in taps:
            tap.begun(frames)
        task = loop.create_task(self._live(frames, taps))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._engine.behind:
            loop.run_in_executor(self._pool, self._engine.catch_up)

    async def _live(self, frames: Frames, taps: list[Tap]) -> None:
        try:
            if not taps:
                await frames.quiet()
            async for kind, payload in frames:
                for tap in list(taps):
                    await self._give(frames, taps, tap, kind, payload)
            await frames.wait()
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:  # removed meanwhile
                _log.warning("the end of a container could not be settled: %s", error)
        finally:
            self._frames.discard(frames)
            frames.close()
            for tap in taps:
                tap.over(None)
            self._happenings.poke()
        if self._engine.behind:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._engine.catch_up)

    @staticmethod
    async def _give(frames: Frames, taps: list[Tap], tap: Tap, kind: int, payload: bytes) -> None:
        """One that is alone may hold its container back, as with docker; one of several must not hold the others."""
        try:
            async with asyncio.timeout(_STALL if len(taps) > 1 else None):
                await tap.take(kind, payload)
        except (ConnectionError, TimeoutError):
            taps.remove(tap)
            tap.over(None)
            if not taps:
                await frames.quiet()

    async def stop(self) -> None:
        """Let go of all: their monitors settle their ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for taps in self._waiting.values():
            for tap in taps:
                tap.over(None)
        self._pool.shutdown(wait=False)
