"""What a protocol gives to a conversation: channels of bytes over one connection of a client. Shapes only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

__all__ = ["CREATION", "IDLE", "LINGER", "Channel", "Gone", "Link", "Wanted", "while_there"]

CREATION = 30.0  # seconds: until a client must have opened what it wants, as the kubelet has it
IDLE = 4 * 3600.0  # seconds without a byte either way: the kubelet's default
LINGER = 10.0  # seconds: until a client must have hung up after it was told the end

_T = TypeVar("_T")


class Gone(Exception):
    """The client has hung up, or was given up."""


class Wanted(NamedTuple):
    """Which streams an exec or attach was asked for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Channel(Protocol):
    """One stream of bytes each way."""

    async def read(self) -> bytes:
        """Bytes of the client; b"" at the end of them."""

    async def write(self, data: bytes) -> None:
        """Bytes for the client; waits while it does not take them."""

    async def finish(self) -> None:
        """No more bytes for the client."""

    def ignore(self) -> None:
        """What the client sends from now on is dropped."""


class Link(Protocol):
    """A client's connection for one exec or attach."""

    lingers: bool  # whether the client is to hang up first, once it was told the end
    structured: bool  # whether the end is told as a Status object (v4 and later), else in plain words

    async def run(self) -> None:
        """Serve the connection; returns when the client has hung up or has been idle for too long."""

    async def channels(self, wanted: Wanted) -> Mapping[str, Channel]:
        """Those that are wanted, and "error" and with a terminal "resize", by their names. Gone if they do not come."""

    async def close(self) -> None:
        """Say goodbye and hang up."""


async def while_there(running: asyncio.Task[None], work: Callable[[], Awaitable[_T]]) -> _T:
    """Do the work while the client is there: `running` is its link's `run`. Raises Gone, after the work has stopped."""
    task = asyncio.ensure_future(work())
    try:
        await asyncio.wait({running, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    except ConnectionError:
        raise Gone from None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
