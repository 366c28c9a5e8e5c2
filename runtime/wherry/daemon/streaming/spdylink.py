"""SPDY over a connection: its streams as channels, and what an exec or attach wants of them.

Decides how much is held of each stream (an `Inbox`) before the whole connection is read no further: the protocol has no
windows that its clients would heed, so streams of one connection wait for each other when one is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from .inbox import Bound, Inbox
from .link import CREATION, IDLE, Channel, Gone, Wanted
from .pipe import Pipe
from .spdy import CANCEL, PROTOCOL_ERROR, Data, Event, GoAway, ProtocolError, Reset, Session, Syn

__all__ = ["SpdyConnection", "SpdyLink", "SpdyStream"]

_LOOK = 5.0  # seconds between two looks at a client that is not read
_HELD_MAX = 4 << 20  # bytes that all streams of a connection may hold together


class SpdyStream:
    """One stream of the client's: a `Channel`."""

    def __init__(self, connection: SpdyConnection, syn: Syn) -> None:
        self._connection = connection
        self.id, self.headers = syn.id, syn.headers
        self.inbox = Inbox(shared=connection.held)
        self.was_reset = False
        if syn.fin:
            self.inbox.end()

    async def read(self) -> bytes:
        """See `Channel`."""
        return await self.inbox.read()

    async def write(self, data: bytes) -> None:
        """See `Channel`. What is written to a stream that the client has reset is dropped."""
        self._connection.session.send(self.id, data)
        await self._connection.flush()

    async def finish(self) -> None:
        """See `Channel`."""
        self._connection.session.send(self.id, b"", fin=True)
        await self._connection.flush()

    def ignore(self) -> None:
        """See `Channel`."""
        self.inbox.forget()

    async def reset(self, status: int = CANCEL) -> None:
        """Give it up both ways."""
        self._connection.drop(self, status)
        await self._connection.flush()


class SpdyConnection:
    """A client's streams. `opened` hands out each new one, accepted; `run` must be running."""

    def __init__(self, pipe: Pipe, streams: int = 1024) -> None:
        """`streams`: how many may be open at once."""
        self._pipe = pipe
        self.session = Session(streams=streams)
        self.held = Bound(_HELD_MAX)
        self._streams: dict[int, SpdyStream] = {}
        self._new: asyncio.Queue[SpdyStream] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._active = asyncio.get_running_loop().time()

    async def opened(self) -> SpdyStream:
        """The next stream that the client opens."""
        return await self._new.get()

    async def run(self) -> None:
        """See `Link`."""
        try:
            while data := await self._read():
                for event in self.session.receive(data):
                    await self._take(event)
                await self.flush()
        except ProtocolError:
            self.session.go_away(PROTOCOL_ERROR)
            await self._last_words()
        except ConnectionError:
            pass
        finally:
            for stream in self._streams.values():
                stream.was_reset = True
                stream.inbox.forget()
            self._streams.clear()

    async def _read(self) -> bytes:
        """The next bytes; b"" too where the client has been idle for too long."""
        while True:
            try:
                async with asyncio.timeout_at(self._active + IDLE):
                    data = await self._pipe.read()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= self._active + IDLE:
                    return b""
            else:
                self._touch()
                return data

    def _touch(self) -> None:
        self._active = asyncio.get_running_loop().time()

    async def _take(self, event: Event) -> None:
        if isinstance(event, Syn):
            self._accept(event)
        elif isinstance(event, Data):
            await self._data(event)
        elif isinstance(event, Reset) and (stream := self._streams.pop(event.id, None)):
            stream.was_reset = True
            stream.inbox.forget()
        elif isinstance(event, GoAway):
            self.session.go_away()

    def _accept(self, syn: Syn) -> None:
        stream = self._streams[syn.id] = SpdyStream(self, syn)
        self.session.reply(syn.id)
        self._new.put_nowait(stream)

    async def _data(self, event: Data) -> None:
        stream = self._streams.get(event.id)
        if stream is None:
            return
        stream.inbox.put(event.data)
        if event.fin:
            stream.inbox.end()
        while stream.inbox.full:
            await self._room(stream)

    async def _room(self, stream: SpdyStream) -> None:
        try:
            async with asyncio.timeout(_LOOK):
                await stream.inbox.room()
        except TimeoutError:
            if self._pipe.hung_up():
                raise ConnectionResetError("the client has hung up") from None

    def drop(self, stream: SpdyStream, status: int) -> None:
        """Reset it, and forget what is held of it."""
        self.session.reset(stream.id, status)
        stream.inbox.forget()
        self._streams.pop(stream.id, None)

    async def flush(self) -> None:
        """Send what the session has to send, in its order."""
        async with self._writing:
            if data := self.session.outgoing():
                await self._pipe.write(data)
                self._touch()

    async def _last_words(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self.flush()
        except (TimeoutError, ConnectionError):
            pass

    async def close(self) -> None:
        """See `Link`."""
        self.session.go_away()
        await self._last_words()
        await self._pipe.close()


class SpdyLink:
    """Exec or attach over SPDY: each stream is named by its header `streamtype`."""

    lingers = True  # closing first would cut off what the client has not read yet

    def __init__(self, pipe: Pipe, version: int) -> None:
        """`version`: of the remote command protocol, 1 to 5. Terminals are resized since 3, Status objects since 4."""
        self._connection = SpdyConnection(pipe, streams=16)
        self._resizes, self.structured = version >= 3, version >= 4
        self.run, self.close = self._connection.run, self._connection.close

    async def channels(self, wanted: Wanted) -> Mapping[str, Channel]:
        """See `Link`."""
        names = {name for name in ("stdin", "stdout", "stderr") if getattr(wanted, name)} | {"error"}
        names |= {"resize"} if wanted.tty and self._resizes else set()
        found: dict[str, Channel] = {}
        try:
            async with asyncio.timeout(CREATION):
                while len(found) < len(names):
                    await self._next(names, found)
        except TimeoutError:
            raise Gone from None
        return found

    async def _next(self, names: set[str], found: dict[str, Channel]) -> None:
        stream = await self._connection.opened()
        kind = stream.headers.get("streamtype", "")
        if kind in names and kind not in found:
            found[kind] = stream
        else:
            await stream.reset(PROTOCOL_ERROR)
