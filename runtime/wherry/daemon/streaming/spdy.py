"""SPDY/3.1, the part of it that Kubernetes' clients speak: bytes in become events, calls become bytes out.

Does no I/O, knows no clock and never waits. Decides what a well-formed peer may send: whatever is outside of the
protocol, or of the limits here, ends the session (`ProtocolError`); a stream too many is refused.

The peers (moby/spdystream) keep no flow-control windows: they send no WINDOW_UPDATE and would wait for none. So there
are none here either: SETTINGS and WINDOW_UPDATE are checked and dropped, and a slow reader is the transport's affair.
Section numbers are those of the SPDY protocol's draft 3.1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .dictionary import DICTIONARY

__all__ = ["CANCEL", "CONTROL_MAX", "FRAME_MAX", "HEADERS_MAX", "INTERNAL_ERROR", "PROTOCOL_ERROR", "REFUSED_STREAM",
           "Data", "Event", "GoAway", "Pong", "ProtocolError", "Reply", "Reset", "Session", "Syn"]  # fmt: skip

PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, INTERNAL_ERROR = 1, 3, 5, 6  # of RST_STREAM, 2.6.3
CONTROL_MAX = 1 << 16  # payload of a control frame
HEADERS_MAX = 1 << 13  # a block of headers, inflated; each open stream keeps its own
FRAME_MAX = 1 << 16  # what we send in one data frame; what comes may be any size: it is passed on in pieces

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
_FIN, _UNIDIRECTIONAL = 1, 2
_CONTROL, _VERSION = 0x8000, 3
_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")
_PAIR = struct.Struct(">II")


class ProtocolError(Exception):
    """The peer does not speak SPDY/3.1 as it is understood here; the session cannot go on."""


class Syn(NamedTuple):
    """The peer has opened a stream. Names of headers are in lower case."""

    id: int
    headers: Mapping[str, str]
    fin: bool = False


class Reply(NamedTuple):
    """The peer has accepted our stream."""

    id: int
    headers: Mapping[str, str]
    fin: bool = False


class Data(NamedTuple):
    """Bytes of a stream; `fin`: the peer sends no more on it."""

    id: int
    data: bytes
    fin: bool = False


class Reset(NamedTuple):
    """The peer has given a stream up, both ways."""

    id: int
    status: int


class Pong(NamedTuple):
    """The answer to a ping of ours."""

    id: int


class GoAway(NamedTuple):
    """The peer opens no more streams; `last` is the last of ours that it has seen."""

    last: int
    status: int


Event = Syn | Reply | Data | Reset | Pong | GoAway


class _Open:
    """Which directions of a stream are open still."""

    __slots__ = ("local", "remote")

    def __init__(self, *, local: bool, remote: bool) -> None:
        self.local, self.remote = local, remote


class Session:
    """One side of one connection: the server's, whose streams are even, or the client's."""

    def __init__(self, *, client: bool = False, streams: int = 1024) -> None:
        """`streams`: how many may be open at once; more of the peer's are refused."""
        self._parity = 1 if client else 0  # of our ids
        self._most = streams
        self._open: dict[int, _Open] = {}
        self._theirs, self._ours, self._pinged = 0, 0, 0  # the last ids
        self._in, self._out = bytearray(), bytearray()
        self._frame: tuple[int, int, bool] | None = None  # a data frame: stream, bytes to come, fin
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        # a window of 2 KiB holds the dictionary: a server answers with next to nothing, and there may be many
        self._deflate = zlib.compressobj(9, zlib.DEFLATED, 11, 2, zdict=DICTIONARY)
        self._control: dict[int, Callable[[int, bytes], Event | None]] = {
            _SYN_STREAM: self._syn, _SYN_REPLY: self._replied, _RST_STREAM: self._was_reset, _SETTINGS: self._settings,
            _PING: self._ping, _GOAWAY: self._went, _HEADERS: self._more, _WINDOW_UPDATE: self._window,
        }  # fmt: skip

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._open)

    # ---- bytes in ----

    def receive(self, data: bytes) -> list[Event]:
        """What these bytes complete, in order. Raises ProtocolError."""
        self._in += data
        events: list[Event] = []
        at = 0
        while True:
            used, event = self._piece(at) if self._frame else self._head(at)
            if event is not None:
                events.append(event)
            if not used:
                break
            at += used
        del self._in[:at]
        return events

    def _head(self, at: int) -> tuple[int, Event | None]:
        """A control frame, or the head of a data frame, at this place: (bytes used, event)."""
        if len(self._in) - at < _HEAD.size:
            return 0, None
        word, rest = _HEAD.unpack_from(self._in, at)
        flags, length = rest >> 24, rest & 0xFFFFFF
        if not word >> 31:
            return self._begin(word, flags, length)
        if word >> 16 != _CONTROL | _VERSION:
            raise ProtocolError(f"version {word >> 16 & 0x7FFF} of SPDY, where 3 is spoken")
        if length > CONTROL_MAX:
            raise ProtocolError(f"a control frame of {length} bytes, where {CONTROL_MAX} are taken")
        end = at + _HEAD.size + length
        if len(self._in) < end:
            return 0, None
        handle = self._control.get(word & 0xFFFF)  # 2.2.1: unknown ones are ignored
        payload = bytes(self._in[at + _HEAD.size : end])
        return _HEAD.size + length, handle(flags, payload) if handle else None

    def _begin(self, stream: int, flags: int, length: int) -> tuple[int, Event | None]:
        if not stream or stream > (self._ours if self._is_ours(stream) else self._theirs):
            raise ProtocolError(f"data of stream {stream}, which was never opened")
        fin = bool(flags & _FIN)
        if length:
            self._frame = stream, length, fin
            return _HEAD.size, None
        return _HEAD.size, self._data(stream, b"", fin)

    def _piece(self, at: int) -> tuple[int, Event | None]:
        """As much of the data frame as is there."""
        assert self._frame
        stream, left, fin = self._frame
        piece = bytes(self._in[at : at + left])
        if not piece:
            return 0, None
        left -= len(piece)
        self._frame = (stream, left, fin) if left else None
        return len(piece), self._data(stream, piece, fin and not left)

    def _data(self, stream: int, data: bytes, fin: bool) -> Event | None:
        state = self._open.get(stream)
        if state is None:
            return None  # it was on the way when the stream was given up here
        if not state.remote:
            raise ProtocolError(f"data of stream {stream} after its end")
        if fin:
            state.remote = False
            self._forget(stream, state)
        return Data(stream, data, fin) if data or fin else None

    def _is_ours(self, stream: int) -> bool:
        return stream & 1 == self._parity

    def _forget(self, stream: int, state: _Open) -> None:
        if not state.local and not state.remote:
            self._open.pop(stream, None)

    # ---- control frames in ----

    def _syn(self, flags: int, payload: bytes) -> Event | None:
        if len(payload) < 10:
            raise ProtocolError("a SYN_STREAM that is too short")
        stream = _WORD.unpack_from(payload)[0] & 0x7FFFFFFF
        headers = self._headers(payload[10:])
        if not stream or self._is_ours(stream) or stream <= self._theirs:
            raise ProtocolError(f"stream {stream} opened after stream {self._theirs}")
        self._theirs = stream
        if headers is None:
            self._rst(stream, PROTOCOL_ERROR)
            return None
        if len(self._open) >= self._most:
            self._rst(stream, REFUSED_STREAM)
            return None
        fin = bool(flags & _FIN)
        state = _Open(local=not flags & _UNIDIRECTIONAL, remote=not fin)
        self._open[stream] = state
        self._forget(stream, state)
        return Syn(stream, headers, fin)

    def _replied(self, flags: int, payload: bytes) -> Event | None:
        stream, headers = self._named(payload)
        state = self._open.get(stream)
        if state is None or not self._is_ours(stream):
            return None
        if headers is None:
            self.reset(stream, PROTOCOL_ERROR)
            return Reset(stream, PROTOCOL_ERROR)
        fin = bool(flags & _FIN)
        if fin:
            state.remote = False
            self._forget(stream, state)
        return Reply(stream, headers, fin)

    def _more(self, flags: int, payload: bytes) -> Event | None:
        """HEADERS: nobody here has a use for more of them, but their end may be the stream's."""
        stream, _ = self._named(payload)
        return self._data(stream, b"", fin=True) if flags & _FIN else None

    def _was_reset(self, _flags: int, payload: bytes) -> Event | None:
        stream, status = self._two(payload, "RST_STREAM")
        return Reset(stream, status) if self._open.pop(stream & 0x7FFFFFFF, None) else None

    def _settings(self, _flags: int, payload: bytes) -> Event | None:
        if len(payload) < 4 or len(payload) != 4 + 8 * _WORD.unpack_from(payload)[0]:
            raise ProtocolError("a SETTINGS frame whose number of entries is not its length")
        return None

    def _window(self, _flags: int, payload: bytes) -> Event | None:
        self._two(payload, "WINDOW_UPDATE")
        return None

    def _ping(self, _flags: int, payload: bytes) -> Event | None:
        if len(payload) != 4:
            raise ProtocolError("a PING that is not 4 bytes long")
        number = _WORD.unpack(payload)[0]
        if self._is_ours(number):
            return Pong(number)
        self._send(_PING, payload)
        return None

    def _went(self, _flags: int, payload: bytes) -> Event | None:
        last, status = self._two(payload, "GOAWAY")
        return GoAway(last & 0x7FFFFFFF, status)

    def _two(self, payload: bytes, what: str) -> tuple[int, int]:
        if len(payload) != _PAIR.size:
            raise ProtocolError(f"a {what} that is not 8 bytes long")
        first, second = _PAIR.unpack(payload)
        return first, second

    def _named(self, payload: bytes) -> tuple[int, dict[str, str] | None]:
        """Stream and headers of a SYN_REPLY or HEADERS."""
        if len(payload) < 4:
            raise ProtocolError("a frame of headers that names no stream")
        return _WORD.unpack_from(payload)[0] & 0x7FFFFFFF, self._headers(payload[4:])

    def _headers(self, packed: bytes) -> dict[str, str] | None:
        """Inflate and read a block; it is inflated in any case, for the next ones build upon it. None: a bad one."""
        try:
            block = self._inflate.decompress(packed, HEADERS_MAX + 1)
        except zlib.error as error:
            raise ProtocolError(f"headers that do not inflate: {error}") from None
        if len(block) > HEADERS_MAX or self._inflate.unconsumed_tail or self._inflate.eof:
            raise ProtocolError(f"headers of more than {HEADERS_MAX} bytes")
        return _pairs(block)

    # ---- bytes out ----

    def outgoing(self) -> bytes:
        """What is to be sent now; each byte is given once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _send(self, kind: int, payload: bytes, flags: int = 0) -> None:
        head = _HEAD.pack((_CONTROL | _VERSION) << 16 | kind, flags << 24 | len(payload))
        self._out += head + payload

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream of ours; its id."""
        self._ours = self._ours + 2 if self._ours else 2 - self._parity
        self._open[self._ours] = _Open(local=not fin, remote=True)
        self._send(_SYN_STREAM, _WORD.pack(self._ours) + bytes(6) + self._packed(headers), _FIN if fin else 0)
        return self._ours

    def reply(self, stream: int, headers: Mapping[str, str] | None = None) -> None:
        """Accept a stream of the peer's."""
        if stream in self._open:
            self._send(_SYN_REPLY, _WORD.pack(stream) + self._packed(headers or {}))

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Bytes on a stream, in frames of at most FRAME_MAX. On one that is not open any more they are dropped."""
        state = self._open.get(stream)
        if state is None or not state.local:
            return
        for start in range(0, len(data) or fin, FRAME_MAX):
            part = data[start : start + FRAME_MAX]
            last = fin and start + FRAME_MAX >= len(data)
            self._out += _HEAD.pack(stream, (_FIN if last else 0) << 24 | len(part)) + part
        if fin:
            state.local = False
            self._forget(stream, state)

    def reset(self, stream: int, status: int = CANCEL) -> None:
        """Give a stream up, both ways."""
        if self._open.pop(stream, None):
            self._rst(stream, status)

    def _rst(self, stream: int, status: int) -> None:
        self._send(_RST_STREAM, _PAIR.pack(stream, status))

    def ping(self) -> int:
        """Ask for a sign of life; the number that its Pong has."""
        self._pinged = self._pinged + 2 if self._pinged else 2 - self._parity
        self._send(_PING, _WORD.pack(self._pinged))
        return self._pinged

    def go_away(self, status: int = 0) -> None:
        """Take no more streams: 0 for a good end, 1 for a peer that broke the protocol (2.6.6)."""
        self._send(_GOAWAY, _PAIR.pack(self._theirs, status))

    def _packed(self, headers: Mapping[str, str]) -> bytes:
        words = [_WORD.pack(len(headers))]
        for text in (text for pair in headers.items() for text in pair):
            words.append(_WORD.pack(len(text.encode())) + text.encode())
        return self._deflate.compress(b"".join(words)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _pairs(block: bytes) -> dict[str, str] | None:
    """A block of name/value pairs (2.6.10); None unless it is exactly that, with each name once and in lower case."""
    texts: list[str] = []
    at = 4
    while at + 4 <= len(block):
        end = at + 4 + _WORD.unpack_from(block, at)[0]
        if end > len(block):
            return None
        texts.append(block[at + 4 : end].decode("utf-8", "replace"))
        at = end
    names, values = texts[::2], texts[1::2]
    sound = len(block) >= 4 and at == len(block) and len(texts) == 2 * _WORD.unpack_from(block)[0]
    fine = all(name and name == name.lower() for name in names) and len(set(names)) == len(names)
    return dict(zip(names, values, strict=True)) if sound and fine else None
