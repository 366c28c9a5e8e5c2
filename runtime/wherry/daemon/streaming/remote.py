"""Exec and attach: a process on one side, the channels of a client on the other.

Decides what happens when either side ends: the process's end is told and the client hangs up; a client that goes takes
the exec'd process with it, and leaves an attached container alone. Knows neither SPDY nor WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from functools import partial

from wherry.engine.running import Running
from wherry.errors import WherryError
from wherry.model import ATTACH_STDERR, ATTACH_STDOUT, Json

from . import status
from .beginnings import Beginnings
from .frames import CHUNK, Frames
from .link import LINGER, Channel, Gone, Link, Wanted, while_there

__all__ = ["Task", "serve"]

_SIZE_MAX = 1024  # bytes of one message about the terminal's size
_BLANKS = re.compile(r"\s*")
_OUTPUTS = {ATTACH_STDOUT: "stdout", ATTACH_STDERR: "stderr"}


class Task:
    """What was asked for: how it begins, and whether it ends with its client."""

    def __init__(self, container: str, begin: Callable[[], Running], wanted: Wanted, *, mortal: bool) -> None:
        """`begin` may block. `mortal`: an exec, whose process is killed when the client goes, and whose code counts."""
        self.container, self.begin, self.wanted, self.mortal = container, begin, wanted, mortal


async def serve(link: Link, task: Task, beginnings: Beginnings, pool: Executor) -> None:
    """The whole conversation, to the end of the connection. `pool` does what else blocks."""
    running = asyncio.create_task(link.run())
    try:
        channels = await while_there(running, partial(link.channels, task.wanted))
        outcome = await _outcome(running, channels, task, beginnings, pool)
        await while_there(running, partial(_goodbye, channels, status.told(outcome, structured=link.structured)))
        await asyncio.wait({running}, timeout=LINGER if link.lingers else 0)
    except Gone:
        pass
    finally:
        running.cancel()  # first: who closes a WebSocket that another task reads does not hear the client's farewell
        await asyncio.gather(running, return_exceptions=True)
        await link.close()


async def _goodbye(channels: Mapping[str, Channel], words: bytes) -> None:
    for channel in channels.values():
        channel.ignore()
    if words:
        await channels["error"].write(words)
    for channel in channels.values():
        await channel.finish()


async def _outcome(
    running: asyncio.Task[None], channels: Mapping[str, Channel], task: Task, beginnings: Beginnings, pool: Executor
) -> Json:
    try:
        begun = await beginnings.begin(task.container, task.begin, mortal=task.mortal)
        frames = Frames(begun, pool)
    except WherryError as error:
        doing = "executing command in" if task.mortal else "attaching to"
        return status.failed(f"error {doing} container: {error.message}")
    try:
        return await while_there(running, partial(_converse, frames, channels, task))
    except (Gone, asyncio.CancelledError):
        await _leave(frames, task)
        raise
    except WherryError as error:
        return status.failed(error.message)
    finally:
        frames.close()


async def _leave(frames: Frames, task: Task) -> None:
    """The client has gone. For a container that takes input from one client only, this is the end of its input."""
    if task.mortal:
        await frames.kill()
    elif task.wanted.stdin:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await frames.eof()


async def _converse(frames: Frames, channels: Mapping[str, Channel], task: Task) -> Json:
    feeders = [asyncio.create_task(feed(frames, channels[name]))
               for name, feed in (("stdin", _input), ("resize", _sizes)) if name in channels]  # fmt: skip
    try:
        async for kind, payload in frames:
            if channel := channels.get(_OUTPUTS[kind]):
                await channel.write(payload)
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)
    if frames.lost and not task.mortal:
        return status.failed("the container's monitor has hung up: its output was not taken for too long, or it died")
    ended = await frames.wait()
    return status.exited(ended.code) if task.mortal else status.SUCCESS


async def _input(frames: Frames, channel: Channel) -> None:
    while data := await channel.read():
        for start in range(0, len(data), CHUNK):
            await frames.send(data[start : start + CHUNK])
    if not frames.tty:
        await frames.eof()


async def _sizes(frames: Frames, channel: Channel) -> None:
    async for size in _objects(channel):
        rows, cols = size.get("Height"), size.get("Width")
        if isinstance(rows, int) and isinstance(cols, int) and 0 < rows < 1 << 16 and 0 < cols < 1 << 16:
            await frames.resize(rows, cols)


async def _objects(channel: Channel) -> AsyncIterator[Json]:
    """JSON objects, one after the other, however they were cut into messages. What is none ends them."""
    text, decoder = "", json.JSONDecoder()
    while len(text) < _SIZE_MAX and (data := await channel.read()):
        text, at = text + data.decode("latin-1"), 0
        while (at := _next(text, at)) < len(text):
            try:
                found, at = decoder.raw_decode(text, at)
            except ValueError:
                break
            except RecursionError:
                return
            if not isinstance(found, dict):
                return
            yield found
        text = text[at:]


def _next(text: str, at: int) -> int:
    """Where something other than blanks comes. No part of the text is copied: a client may send many objects at once,
    and nobody else is served meanwhile."""
    match = _BLANKS.match(text, at)
    return match.end() if match else at
