"""Where files have data, and where two of them differ: by FIEMAP where the file system tells, by content else.

Two files that share an extent on disk have the same bytes there, and while both exist nobody else's bytes can come to
that place; so between clones only what is at different places has to be called changed. Never too little is: what
the kernel will not vouch for (inline, encoded, not yet placed) counts as different. Source:
Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from . import kernel
from .backend import Extent

__all__ = ["Piece", "allocated", "changed", "clone", "copy", "differing", "gather", "parse", "pieces", "share"]

_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP
_SYNC = 1
_LAST, _UNKNOWN, _DELALLOC, _UNWRITTEN = 0x1, 0x2, 0x4, 0x800
#: errno of FICLONE where it is not for these files
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_VAGUE = _UNKNOWN | _DELALLOC | 0x8 | 0x80 | 0x100 | 0x200 | 0x400  # ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, INLINE, TAIL
_HEADER, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")
_GETXATTR, _SETXATTR = 0x801C581F, 0x401C5820  # FS_IOC_FS[GS]ETXATTR
_HINTED = 0x800 | 0x10000  # FS_XFLAG_EXTSIZE | FS_XFLAG_COWEXTSIZE
_GRANULE = 1 << 20  # bytes
_BATCH = 512
_CHUNK = 1 << 20  # bytes compared at a time
_GRAIN = 4096  # bytes that are told apart by content


class Piece(NamedTuple):
    """Data of a file that is in one piece on disk."""

    start: int  # in the file
    end: int
    place: int | None  # on the file system's device; None: unknown


def parse(buffer: bytes) -> tuple[list[tuple[int, int, int, int]], bool]:
    """A filled struct fiemap: (logical, physical, length, flags) of its extents, and whether the last one was there."""
    count = min(_HEADER.unpack_from(buffer)[3], (len(buffer) - _HEADER.size) // _EXTENT.size)
    found = [_EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size) for index in range(count)]
    return found, not found or bool(found[-1][3] & _LAST)


def _mapped(fd: int) -> Iterator[tuple[int, int, int, int]]:
    start, flags = 0, _SYNC  # once: it waits for what is being written
    while True:
        buffer = ctypes.create_string_buffer(_HEADER.size + _BATCH * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, flags, 0, _BATCH, 0)
        kernel.ioctl(fd, _FIEMAP, buffer)
        found, last = parse(buffer.raw)
        yield from found
        if last:
            return
        start, flags = found[-1][0] + found[-1][2], 0


def _seen(fd: int, size: int) -> Iterator[Piece]:
    """By SEEK_DATA, where there is no FIEMAP (tmpfs)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield Piece(start, end, None)


def pieces(fd: int, size: int) -> Iterator[Piece]:
    """Data of the first `size` bytes, ascending. What is allocated but was never written is none: it reads as zeros."""
    try:
        for start, place, length, flags in _mapped(fd):
            if not flags & _UNWRITTEN and start < size:
                yield Piece(start, min(start + length, size), None if flags & _VAGUE else place)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
        yield from _seen(fd, size)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[Extent]:
    """Adjacent ones as one."""
    begin = end = 0
    for start, stop in ranges:
        if start > end:
            if end > begin:
                yield Extent(begin, end - begin)
            begin = start
        end = stop
    if end > begin:
        yield Extent(begin, end - begin)


def allocated(fd: int, size: int) -> Iterator[Extent]:
    """Where the file has data."""
    return _merged((piece.start, piece.end) for piece in pieces(fd, size))


def differing(old: Iterable[Piece], new: Iterable[Piece]) -> Iterator[tuple[int, int]]:
    """Ranges where two files' pieces are not at the same place: data against a hole, or data at different places."""
    edges = _Edges(old), _Edges(new)
    position = 0
    while (end := min(edge.until(position) for edge in edges)) < _END:
        here = [edge.place(position) for edge in edges]
        if here[0] != here[1] or here[0] == "?":
            yield position, end
        position = end


_END = 1 << 63


class _Edges:
    """A cursor over ascending pieces."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._rest = iter(pieces)
        self._piece = next(self._rest, None)

    def until(self, position: int) -> int:
        """Up to where it is the same piece, or the same hole, as at `position`."""
        while self._piece and self._piece.end <= position:
            self._piece = next(self._rest, None)
        if not self._piece:
            return _END
        return self._piece.start if position < self._piece.start else self._piece.end

    def place(self, position: int) -> int | str:
        """On disk; "" in a hole, "?" if unknown."""
        if not self._piece or position < self._piece.start:
            return ""
        return "?" if self._piece.place is None else self._piece.place + position - self._piece.start


def _unequal(old: int, new: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of the ranges has different bytes, in grains of 4096."""
    for start, end in ranges:
        for offset in range(start, end, _CHUNK):
            length = min(_CHUNK, end - offset)
            left, right = (os.pread(fd, length, offset).ljust(length, b"\0") for fd in (old, new))
            if left == right:
                continue
            for grain in range(0, length, _GRAIN):
                stop = min(grain + _GRAIN, length)
                if left[grain:stop] != right[grain:stop]:
                    yield offset + grain, offset + stop


def changed(old: int, new: int, size: int) -> Iterator[Extent]:
    """Where `new` differs from `old`: by place if they share anything on disk, else by content.

    Their pieces are read twice and never kept: who owns a volume decides how many there are.
    """
    data = sum(piece.end - piece.start for piece in pieces(new, size))
    apart = sum(end - start for start, end in differing(pieces(old, size), pieces(new, size)))
    ranges = differing(pieces(old, size), pieces(new, size))
    return _merged(ranges if apart < data else _unequal(old, new, ranges))


def gather(fd: int) -> None:
    """Ask for room in pieces of 1 MiB, for an empty file that will be written at random and cloned: each extent of a
    clone costs some 50 µs. XFS does it, others ignore it."""
    value = (ctypes.c_uint32 * 7)()  # struct fsxattr: flags, extent size, extents, project, CoW extent size, padding
    with suppress(OSError):
        kernel.ioctl(fd, _GETXATTR, value)
        value[0], value[1], value[4] = value[0] | _HINTED, _GRANULE, _GRANULE
        kernel.ioctl(fd, _SETXATTR, value)


def clone(source: int, target: int) -> bool:
    """Whether `target` could be made to share all bytes of `source`, as they are at one instant."""
    try:
        kernel.clone_file(target, source)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


def share(source: int, target: int) -> None:
    """Clone, or else copy, a file."""
    if not clone(source, target):
        copy(source, target)


def copy(source: int, target: int) -> None:
    """Copy the data of a whole file; its holes stay holes, and `target`, which must be empty, gets its length."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for piece in _seen(source, size):
        _copy_range(source, target, piece.start, piece.end)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        done = os.copy_file_range(source, target, end - start, start, start)
        if not done:  # it became shorter meanwhile
            return
        start += done
