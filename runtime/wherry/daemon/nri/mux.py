"""Several connections in one, as NRI has them: bytes in, pieces of connections out, and back. Does no I/O.

Decides how what is sent is cut: plugins read a piece into a buffer that must hold all of it, and that of the usual
client library is 4 KiB until it knows how long a message is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .ttrpc import DATA_MAX, Broken
from .ttrpc import HEADER as MESSAGE

__all__ = ["PIECE_MAX", "PLUGIN", "RUNTIME", "Decoder", "encoded"]

#: the connection on which we call the plugin, and the one on which it calls us
PLUGIN, RUNTIME = 1, 2
PIECE_MAX = DATA_MAX + MESSAGE.size
_HEADER = struct.Struct(">II")  # connection, length of what follows
_FIRST = 4096


class Decoder:
    """Pieces out of a stream of bytes. They are passed on as they come, whole or not: nothing is kept but a header."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._connection = self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(connection, bytes of it). Broken where a piece is larger than any may be."""
        at = 0
        while at < len(data):
            if not self._left:
                at = self._begin(data, at)
                continue
            part = data[at : at + self._left]
            self._left -= len(part)
            at += len(part)
            yield self._connection, part

    def _begin(self, data: bytes, at: int) -> int:
        part = data[at : at + _HEADER.size - len(self._header)]
        self._header += part
        if len(self._header) == _HEADER.size:
            self._connection, self._left = _HEADER.unpack(self._header)
            self._header.clear()
            if self._left > PIECE_MAX:
                raise Broken(f"a piece of {self._left} bytes, more than {PIECE_MAX}")
        return at + len(part)


def encoded(connection: int, message: bytes) -> bytes:
    """A whole message of a connection, in one piece or two."""
    pieces = filter(None, (message[:_FIRST], message[_FIRST:]))
    return b"".join(_HEADER.pack(connection, len(piece)) + piece for piece in pieces)
