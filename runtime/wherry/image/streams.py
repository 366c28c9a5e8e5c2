"""Bytes that are read once, from their beginning to their end: an archive through a pipe, a layer as it is inside.

Decides how much may come out of what is packed. That is inflated by the worker, which can do nothing else (invariant
6); what is not packed is read as it is. Refuses to know what the bytes mean.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO

from wherry.errors import Kind, WherryError
from wherry.image.inflate import Readable
from wherry.image.members import is_header
from wherry.image.unpack import pipe
from wherry.image.worker import Worker, verdict

__all__ = ["Stream", "is_one_way", "pieces", "tar_of"]

_TOTAL, _RATIO, _FREE = 256 << 30, 100, 4 << 30  # the ratio counts only beyond what is free
_CHUNK = 256 << 10
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zX")  # gzip, zstd, bzip2, xz
_HEAD = 4


class _Rewound:
    """A reader whose first bytes were looked at, and that counts."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.head = b""
        while len(self.head) < _HEAD and (more := file.read(_HEAD - len(self.head))):
            self.head += more
        self.total = len(self.head)

    def read(self, size: int, /) -> bytes:
        if self.head:
            data, self.head = self.head, b""
            return data
        data = self._file.read(size) or b""
        self.total += len(data)
        return data


class _Apart:
    """What a reader gives, inflated by a worker of its own. A thread brings it there."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._worker = Worker()
        packed, self._packed = pipe()
        self._inflated, inflated = pipe()
        self._report, report = pipe()
        self._failed: list[Exception] = []
        try:
            self._worker.begin("sha256", _TOTAL, packed, inflated, report)
        finally:
            for fd in (packed, inflated, report):
                os.close(fd)
        self._thread = threading.Thread(target=self._feed, name="feed", daemon=True)  # it may wait for a pipe for ever
        self._thread.start()

    def read(self, size: int, /) -> bytes:
        data = os.read(self._inflated, size)
        if not data:
            self._thread.join()
            if self._failed:
                raise self._failed[0]
            verdict(self._report)
        return data

    def _feed(self) -> None:
        try:
            while data := self._source.read(_CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(self._packed, view) :]
        except BrokenPipeError:
            pass  # the worker has ended: its report says why
        except Exception as error:
            self._failed.append(error)
        finally:
            os.close(self._packed)

    def close(self) -> None:
        """End it all; the thread ends at its next write."""
        self._worker.close()
        os.close(self._inflated)
        os.close(self._report)


class Stream:
    """A context. What was packed comes inflated; `at` counts the bytes that came out."""

    def __init__(self, file: Readable, what: str) -> None:
        self._rest = _Rewound(file)
        self._apart = _Apart(self._rest) if self._rest.head.startswith(_PACKED) else None
        self._left = memoryview(b"")
        self._total = 0
        self.what = what
        self.at = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._apart is not None:
            self._apart.close()

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
        if self._apart is None:
            return self._rest.read(_CHUNK)
        try:
            chunk = self._apart.read(_CHUNK)
        except WherryError as error:
            raise WherryError(error.kind, f"{self.what} is damaged: {error.message}", hint=error.hint) from error
        self._total += len(chunk)
        most = min(_TOTAL, max(_FREE, self._rest.total * _RATIO))
        if self._total > most:
            raise WherryError(Kind.INVALID, f"{self.what} inflates to more than {most} bytes",
                              hint="this looks like a decompression bomb")  # fmt: skip
        return chunk


def tar_of(file: Readable, out: Callable[[bytes], object], what: str) -> None:
    """Hand over a tar as it is inside its compression; what begins with no header is none."""
    with Stream(file, what) as stream:
        head = stream.read(512)
        if not is_header(head):
            raise WherryError(Kind.INVALID, f"{what} is not a tar archive" if head else f"{what} is empty",
                              hint="a tar was expected, plain or packed by gzip, zstd, bzip2 or xz")  # fmt: skip
        out(head)
        while part := stream.some(1 << 20):
            out(bytes(part))


def is_one_way(file: BinaryIO) -> bool:
    """Whether it must be read from its beginning to its end: no regular file, or one that is packed."""
    try:
        return os.pread(file.fileno(), _HEAD, 0).startswith(_PACKED)
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
