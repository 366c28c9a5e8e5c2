"""The channel protocols over a WebSocket: the first byte (or digit) of a message is its channel.

Decides how channels are numbered and messages are coded; `v4.channel.k8s.io` and its kin in binary, `base64.` ones as
text. Since v5 a client can end one channel: message 255 with the channel's number.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping

from aiohttp import WSMsgType, web

from .inbox import Inbox
from .link import IDLE, Channel, Wanted
from .pipe import hung_up

__all__ = ["MESSAGE_MAX", "PLAIN", "WsChannel", "WsConnection", "WsLink", "channels_max"]

MESSAGE_MAX = 1 << 20  # bytes of a client's message
#: what the plain "" means: the binary protocol before v4
PLAIN = "channel.k8s.io"

_NAMES = ("stdin", "stdout", "stderr", "error", "resize")
_CLOSE = 255
_LOOK = 5.0  # seconds between two looks at a client that is not read


def channels_max(protocol: str) -> int:
    """How many channels it can number: by one digit, or by one byte."""
    return 10 if "base64" in protocol else 256


class WsChannel:
    """One channel: a `Channel`."""

    def __init__(self, connection: WsConnection, number: int) -> None:
        self._connection, self._number = connection, number
        self.inbox = Inbox()
        self.was_reset = False

    async def read(self) -> bytes:
        """See `Channel`."""
        return await self.inbox.read()

    async def write(self, data: bytes) -> None:
        """See `Channel`."""
        await self._connection.send(self._number, data)

    async def finish(self) -> None:
        """See `Channel`. The protocols have no word for it: the end of the connection is."""

    def ignore(self) -> None:
        """See `Channel`."""
        self.inbox.forget()


class WsConnection:
    """A client's channels, numbered from 0."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, channels: int) -> None:
        protocol = socket.ws_protocol or PLAIN
        self._socket, self._request = socket, request
        self._text, self._closes = "base64" in protocol, protocol.startswith("v5")
        self.channels = tuple(WsChannel(self, number) for number in range(channels))
        self._active = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """See `Link`."""
        try:
            while (message := await self._message()) is not None:
                if message:
                    await self._take(message[0], message[1:])
        except ConnectionError:
            pass
        finally:
            for channel in self.channels:
                channel.was_reset = True
                channel.inbox.end()

    async def _message(self) -> bytes | None:
        """The next one, decoded: its channel's number and the bytes. None: the end, or nothing for too long."""
        while True:
            try:
                async with asyncio.timeout_at(self._active + IDLE):
                    message = await self._socket.receive()
            except TimeoutError:
                if asyncio.get_running_loop().time() >= self._active + IDLE:
                    return None
                continue
            self._touch()
            if message.type is WSMsgType.BINARY and not self._text:
                return bytes(message.data)
            return _decoded(message.data) if message.type is WSMsgType.TEXT and self._text else None

    def _touch(self) -> None:
        self._active = asyncio.get_running_loop().time()

    async def _take(self, number: int, data: bytes) -> None:
        if self._closes and number == _CLOSE and len(data) == 1:
            if data[0] < len(self.channels):
                self.channels[data[0]].inbox.end()
        elif number < len(self.channels):
            inbox = self.channels[number].inbox
            inbox.put(data)
            while inbox.full:
                await self._room(inbox)

    async def _room(self, inbox: Inbox) -> None:
        try:
            async with asyncio.timeout(_LOOK):
                await inbox.room()
        except TimeoutError:
            if hung_up(self._request.transport):
                raise ConnectionResetError("the client has hung up") from None

    async def send(self, number: int, data: bytes) -> None:
        """One message; waits while the client does not take it."""
        if self._text:
            await self._socket.send_str(f"{number}{base64.b64encode(data).decode()}")
        else:
            await self._socket.send_bytes(bytes([number]) + data)
        self._touch()

    async def close(self) -> None:
        """See `Link`."""
        await self._socket.close()


def _decoded(text: str) -> bytes | None:
    try:
        return bytes([int(text[:1])]) + base64.b64decode(text[1:])
    except (ValueError, binascii.Error):
        return None


class WsLink:
    """Exec or attach over a WebSocket."""

    lingers = False  # the WebSocket's own farewell sees to it that all was read

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._connection = WsConnection(socket, request, len(_NAMES))
        self.structured = (socket.ws_protocol or "").startswith(("v4", "v5"))
        self.run, self.close = self._connection.run, self._connection.close

    async def channels(self, wanted: Wanted) -> Mapping[str, Channel]:
        """See `Link`. An empty message tells the client that they stand."""
        asked = {"stdin": wanted.stdin, "stdout": wanted.stdout, "stderr": wanted.stderr, "error": True,
                 "resize": wanted.tty}  # fmt: skip
        found = {name: channel for name, channel in zip(_NAMES, self._connection.channels, strict=True) if asked[name]}
        for name, channel in zip(_NAMES, self._connection.channels, strict=True):
            if not asked[name]:
                channel.ignore()
        first = next(name for name in ("stdout", "stderr", "error") if name in found)
        await found[first].write(b"")
        return dict(found)
