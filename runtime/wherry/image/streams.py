"""A tar that comes through a pipe, packed or not: read once, from its beginning to its end.

Decides how much may come out of a packed stream. Refuses to know what its members mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from wherry.errors import Kind, WherryError
from wherry.image.inflate import Readable, broken_streams, inflate
from wherry.image.members import is_header

__all__ = ["Stream", "is_one_way", "pieces", "tar_of"]

_TOTAL, _RATIO, _FREE = 256 << 30, 100, 4 << 30  # the ratio counts only beyond what is free


class _Counted:
    """Packed bytes, counted."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.total = 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size) or b""
        self.total += len(data)
        return data


class Stream:
    """The inflated bytes, forwards only. `at` counts them."""

    def __init__(self, file: Readable, what: str) -> None:
        self._packed = _Counted(file)
        self._chunks = inflate(self._packed)
        self._left = memoryview(b"")
        self._total = 0
        self.what = what
        self.at = 0

    def some(self, most: int) -> memoryview:
        """Up to `most` bytes; none at the end only."""
        if not self._left:
            self._left = memoryview(self._more())
        part, self._left = self._left[:most], self._left[most:]
        self.at += len(part)
        return part

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end only."""
        parts = []
        while size and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Read over `size` bytes."""
        while size and (part := self.some(size)):
            size -= len(part)

    def _more(self) -> bytes:
        try:
            chunk = next(self._chunks, b"")
        except broken_streams() as error:
            raise WherryError(Kind.INVALID, f"{self.what} is damaged: {error}") from error
        self._total += len(chunk)
        most = min(_TOTAL, max(_FREE, self._packed.total * _RATIO))
        if self._total > most:
            raise WherryError(Kind.INVALID, f"{self.what} inflates to more than {most} bytes",
                              hint="this looks like a decompression bomb")  # fmt: skip
        return chunk


def tar_of(file: Readable, out: Callable[[bytes], object], what: str) -> None:
    """Hand over a tar as it is inside its compression; what begins with no header is none."""
    stream = Stream(file, what)
    head = stream.read(512)
    if not is_header(head):
        raise WherryError(Kind.INVALID, f"{what} is not a tar archive" if head else f"{what} is empty",
                          hint="a tar was expected, plain or packed by gzip or zstd")  # fmt: skip
    out(head)
    while part := stream.some(1 << 20):
        out(bytes(part))


def is_one_way(file: BinaryIO) -> bool:
    """Whether it must be read from its beginning to its end: no regular file, or one that begins as gzip or zstd do."""
    try:
        return os.pread(file.fileno(), 4, 0).startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))
    except OSError:
        return True


def pieces(stream: Stream, size: int) -> Iterator[bytes]:
    """The next `size` bytes; INVALID where it ends before."""
    while size:
        part = stream.some(min(size, 1 << 20))
        if not part:
            raise WherryError(Kind.INVALID, f"{stream.what} is truncated")
        size -= len(part)
        yield bytes(part)
