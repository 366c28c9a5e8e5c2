"""Byte streams that cannot be rewound (pipes): their beginning is looked at, then read once, packed or not.

Decides how much may come out of a packed stream. Refuses to know what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from wherry.errors import Kind, WherryError
from wherry.image.unpack import broken_streams, inflate

__all__ = ["Replay", "plain_chunks", "tar_of"]

_TOTAL, _RATIO, _FREE = 256 << 30, 100, 4 << 30


class Replay:
    """A stream that gives its first bytes again: `inflate` looks at them and goes back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._again = b""
        self.consumed = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all that is left without."""
        if self._again:
            data, self._again = (self._again, b"") if size < 0 else (self._again[:size], self._again[size:])
            return data
        data = self._stream.read(size) or b""
        self.consumed += len(data)
        self._last = data
        return data

    def seek(self, at: int) -> int:
        """Back to the beginning, as long as only one piece was read."""
        if at or self.consumed != len(self._last):
            raise OSError(29, os.strerror(29))
        self._again = self._last
        return 0

    def tell(self) -> int:
        """How much was taken from the stream."""
        return self.consumed


def plain_chunks(stream: BinaryIO, what: str) -> Iterator[bytes]:
    """What a stream holds, inflated where it is gzip or zstd, within bounds."""
    replay = Replay(stream)
    total = 0
    try:
        for chunk in inflate(cast(BinaryIO, replay)):
            total += len(chunk)
            if total > min(_TOTAL, max(_FREE, replay.consumed * _RATIO)):
                raise WherryError(Kind.INVALID, f"{what} inflates to {total} bytes and more",
                                  hint="this looks like a decompression bomb")  # fmt: skip
            yield chunk
    except broken_streams() as error:
        raise WherryError(Kind.INVALID, f"{what} is damaged: {error}") from error


def tar_of(stream: BinaryIO, out: Callable[[bytes], object], what: str) -> None:
    """Hand over a tar; what is empty or begins with no header is none."""
    first = True
    for chunk in plain_chunks(stream, what):
        if first and chunk[257:262] != b"ustar" and not chunk[:512].strip(b"\0").isascii():
            raise WherryError(Kind.INVALID, f"{what} is not a tar archive")
        first = False
        out(chunk)
    if first:
        raise WherryError(Kind.INVALID, f"{what} is empty: a tar archive was expected")
