"""The tar stream of a layer or archive out of its compressed bytes: gzip (by ISA-L where it is installed), zstd, plain;
bzip2 and xz too.

Decides by the first bytes what the compression is; media types are not believed. Refuses to know where bytes come from,
and bounds nothing but zstd's window: how much may come out is the caller's to count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

__all__ = ["Readable", "broken_streams", "inflate"]

_PACKED = 64 << 10  # what was not used of a piece is copied: small pieces
_CHUNK = 256 << 10
_ZSTD_WINDOW = 1 << 27  # 128 MiB: zstd --ultra without --long=28 and more
_GZIP, _ZSTD, _BZIP2, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zX"
_XZ_MEMORY = 128 << 20


class Readable(Protocol):
    """`read` gives at most `size` bytes, b"" at the end only."""

    def read(self, size: int, /) -> bytes: ...


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class _Rest:
    """A reader whose first bytes were looked at."""

    def __init__(self, head: bytes, file: Readable) -> None:
        self._head, self._file = head, file

    def read(self, size: int, /) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._file.read(size)


def inflate(file: Readable) -> Iterator[bytes]:
    """The inflated stream in chunks of at most 256 KiB; errors are those of `broken_streams`."""
    head = b""
    while len(head) < 4 and (more := file.read(4 - len(head))):
        head += more
    rest = _Rest(head, file)
    if head.startswith(_GZIP):
        yield from _gunzip(rest)
    elif head == _ZSTD:
        yield from _unzstd(rest)
    elif head.startswith(_BZIP2) or head == _XZ:
        yield from _slowly(rest, head)
    else:
        while chunk := rest.read(_CHUNK):
            yield chunk


def broken_streams() -> tuple[type[Exception], ...]:
    """What damaged data raises."""
    import zlib

    kinds: list[type[Exception]] = [zlib.error, EOFError]
    with contextlib.suppress(ImportError):
        import bz2  # noqa: F401 - a confined process loads nothing later
        import lzma

        kinds.append(lzma.LZMAError)
    with contextlib.suppress(ImportError):
        import zstandard

        kinds.append(zstandard.ZstdError)
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        kinds.append(cast("type[Exception]", isal_zlib.error))  # its stub says an instance
    return tuple(kinds)


def _gzip_inflater() -> _Inflater:
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib.decompressobj(wbits=31)
    inflater: _Inflater = isal_zlib.decompressobj(wbits=31)
    return inflater


def _gunzip(file: Readable) -> Iterator[bytes]:
    inflater = _gzip_inflater()
    fed = False  # a member has begun
    data = file.read(_PACKED)
    while data:
        if not fed and data.count(0) == len(data):  # zeros after the last member pad to a block, as gzip(1) tolerates
            data = file.read(_PACKED)
            continue
        fed = True
        chunk = inflater.decompress(data, _CHUNK)
        if chunk:
            yield chunk
        if inflater.eof:
            data, inflater, fed = inflater.unused_data or file.read(_PACKED), _gzip_inflater(), False
        else:
            data = getattr(inflater, "unconsumed_tail", b"") or file.read(_PACKED)
    if fed:
        yield from _gunzip_rest(inflater)


def _gunzip_rest(inflater: _Inflater) -> Iterator[bytes]:
    while not inflater.eof:
        chunk = inflater.decompress(b"", _CHUNK)
        if not chunk:
            raise EOFError("the gzip stream is truncated")
        yield chunk


_MARK = b"wherry: the end of a zstd stream"  # a frame of it ends with its checksum, not with these bytes


class _Ended:
    """A reader that gives one frame more than there is: the library says nothing of a stream that breaks off."""

    def __init__(self, file: Readable, frame: bytes) -> None:
        self._file, self._frame = file, frame

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        if not data:
            data, self._frame = self._frame[:size], self._frame[size:]
        return data


def _unzstd(file: Readable) -> Iterator[bytes]:
    import zstandard

    held = b""
    for chunk in _frames(_Ended(file, zstandard.ZstdCompressor(write_checksum=True).compress(_MARK))):
        held += chunk
        if len(held) > len(_MARK):
            yield held[: -len(_MARK)]
            held = held[-len(_MARK) :]
    if held != _MARK:  # what broke off took the frame for its own
        raise EOFError("the zstd stream is truncated")


def _frames(file: Readable) -> Iterator[bytes]:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        cast(BinaryIO, file), read_size=_PACKED, read_across_frames=True
    )
    while chunk := reader.read(_CHUNK):
        yield chunk


def _slowly(file: Readable, head: bytes) -> Iterator[bytes]:
    """bzip2 and xz, which no layer has, but archives of ADD and build contexts may."""
    import bz2
    import lzma

    def fresh() -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        return bz2.BZ2Decompressor() if head.startswith(_BZIP2) else lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    inflater, data = fresh(), b""
    while True:
        data = data or (file.read(_PACKED) if inflater.needs_input or inflater.eof else b"")
        if inflater.eof:
            if not data.strip(b"\0"):
                return
            inflater = fresh()
        if not data and inflater.needs_input:
            raise EOFError("the packed stream is truncated")
        try:
            chunk, data = inflater.decompress(data, _CHUNK), b""
        except OSError as error:  # bzip2's word for damaged data
            raise EOFError(str(error)) from error
        if chunk:
            yield chunk
        if inflater.eof:
            data = inflater.unused_data
