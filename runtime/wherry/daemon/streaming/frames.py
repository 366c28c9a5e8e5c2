"""A `Running` for an event loop: its output as it comes, its input as fast as the process takes it.

Decides when to read and to write: output is read only while somebody asks for it, so a slow taker holds the process
back, and nothing piles up here. Knows no protocol of any client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from itertools import groupby
from operator import itemgetter

from wherry.engine.running import Running
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT, ExitStatus

__all__ = ["CHUNK", "Frames"]

CHUNK = 1 << 16  # bytes of input at once


class Frames(AsyncIterator[tuple[int, bytes]]):
    """The frames (ATTACH_STDOUT or ATTACH_STDERR, bytes) of one process, up to its end; `wait` tells how it ended.

    One task iterates; `send`, `eof` and `resize` may come from others. `close` in any case.
    """

    def __init__(self, running: Running, pool: Executor | None = None) -> None:
        """`pool` does what may block: settling the end."""
        running.no_waiting()
        self._running, self._pool = running, pool
        self._loop = asyncio.get_running_loop()
        self._ready: deque[tuple[int, bytes]] = deque()
        self._sending = asyncio.Lock()
        self._ended = False
        self.lost = False  # it ended without a word: whoever took nothing for too long is dropped by the monitor
        self.tty = running.tty

    async def __anext__(self) -> tuple[int, bytes]:
        while not self._ready:
            if self._ended or self._running.fileno() < 0:
                raise StopAsyncIteration
            await self._until(self._loop.add_reader, self._loop.remove_reader)
            self._take()
        return self._ready.popleft()

    def _take(self) -> None:
        frames = self._running.arrived()
        self.lost = frames is None
        self._ended = frames is None or any(kind == ATTACH_EXIT for kind, _ in frames)
        # a program that writes little by little makes many small frames; each would be a message to the client
        for kind, run in groupby(frames or (), itemgetter(0)):
            if kind in (ATTACH_STDOUT, ATTACH_STDERR):
                self._ready.append((kind, b"".join(payload for _, payload in run)))

    async def _until(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Until the descriptor is ready to be read, or to be written."""
        fd, ready = self._running.fileno(), asyncio.Event()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)

    async def send(self, data: bytes) -> None:
        """Standard input; returns when all of it is on its way."""
        await self._sent(lambda: self._running.write(data))

    async def eof(self) -> None:
        """No more standard input."""
        await self._sent(self._running.eof)

    async def quiet(self) -> None:
        """Nobody reads any more: only the end is told."""
        await self._sent(self._running.quiet)

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""
        await self._sent(lambda: self._running.resize(rows, cols))

    async def _sent(self, queue: Callable[[], object]) -> None:
        async with self._sending:
            queue()
            while not self._running.flush():
                await self._until(self._loop.add_writer, self._loop.remove_writer)

    async def wait(self) -> ExitStatus:
        """How it ended, after the last frame. What the engine settles then is settled."""
        return await self._loop.run_in_executor(self._pool, self._running.wait)

    async def kill(self, patience: float = 5.0) -> None:
        """Kill the process of an exec session, and see its end through."""
        await self._loop.run_in_executor(self._pool, self._running.kill)
        try:
            async with asyncio.timeout(patience):
                async for _ in self:
                    pass
                await self.wait()
        except TimeoutError:
            pass  # a process in the kernel's hands (D state): its monitor sees to it

    def close(self) -> None:
        """Let go. No task may be waiting in any other method."""
        self._ended = True
        self._running.close()
