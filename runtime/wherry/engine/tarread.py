"""A tar stream, member by member, with bounds: what `cp` reads of an untrusted archive.

Decides which forms are read (ustar, GNU long names, pax names, sizes and times) and how much of a header is believed.
Unpacks nothing and touches no file.
"""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["Chunks", "Member", "members"]

_BLOCK = tarfile.BLOCKSIZE
_HEADER_MAX = 1 << 20  # an extended header is read into memory
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_XATTR, _SPARSE = "SCHILY.xattr.", "GNU.sparse."  # GNU tar and libarchive write the first, star's invention
_SECOND = 1_000_000_000
_REGULAR = (b"0", b"\0", b"7", b"")


class Member(NamedTuple):
    """One entry. `type` is tar's letter; "0" for every regular file."""

    name: str
    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: str
    xattrs: Mapping[str, bytes] = {}  # SCHILY.xattr.*


class Chunks:
    """Exact reads from a file or from an iterable of bytes."""

    def __init__(self, source: BinaryIO | Iterable[bytes]) -> None:
        self._chunks = iter(lambda: source.read(1 << 16), b"") if hasattr(source, "read") else iter(source)
        self._left = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; fewer only at the end of the stream."""
        parts, have = [self._left], len(self._left)
        while have < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._left = data[size:]
        return data[:size]

    def exactly(self, size: int) -> bytes:
        """Return `size` bytes; a stream that ends before is an error."""
        data = self.read(size)
        if len(data) != size:
            raise WherryError(Kind.INVALID, "the archive is truncated")
        return data

    def skip(self, size: int) -> None:
        """Drop bytes."""
        while size > 0:
            size -= len(self.exactly(min(size, 1 << 20)))


def members(stream: Chunks) -> Iterator[Member]:
    """Yield the members; after each, exactly its `size` bytes and their padding must be read (`body` does both)."""
    extended: dict[str, str] = {}
    while (block := stream.read(_BLOCK)) and block.count(0) != len(block):
        info = _header(block)
        if info.type in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            extended |= _extended(info, _small_body(stream, info.size))
            continue
        yield _member(info, extended)
        extended = {}


def body(stream: Chunks, member: Member) -> Iterator[bytes]:
    """Yield a member's bytes; must be read to its end."""
    left = member.size
    while left:
        data = stream.exactly(min(left, 1 << 20))
        left -= len(data)
        yield data
    stream.skip(-member.size % _BLOCK)


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise WherryError(Kind.INVALID, f"the archive is not a tar: {error}") from error


def _small_body(stream: Chunks, size: int) -> bytes:
    if not 0 <= size <= _HEADER_MAX:
        raise WherryError(Kind.INVALID, "the archive holds an extended header that is too large")
    data = stream.exactly(size)
    stream.skip(-size % _BLOCK)
    return data


def _extended(info: tarfile.TarInfo, data: bytes) -> dict[str, str]:
    if info.type == _PAX_GLOBAL:  # container tools ignore them
        return {}
    if info.type == _PAX:
        return dict(_pax(data))
    text = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return {"path" if info.type == _LONG_NAME else "linkpath": text}


def _pax(data: bytes) -> Iterator[tuple[str, str]]:
    """Records "LENGTH KEY=VALUE\\n" (POSIX.1-2001, pax)."""
    at = 0
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 <= int(length) <= len(data) - at:
            raise WherryError(Kind.INVALID, "the archive holds a damaged extended header")
        key, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        at += int(length)


def _member(info: tarfile.TarInfo, extended: dict[str, str]) -> Member:
    if any(key.startswith(_SPARSE) for key in extended):
        hint = "make it without --sparse"
        raise WherryError(Kind.UNSUPPORTED, f"{info.name[:200]} in the archive is in GNU's sparse form", hint=hint)
    kind = "0" if info.type in _REGULAR else info.type.decode("latin-1")
    made = Member(info.name, kind, info.mode, info.uid, info.gid, int(info.mtime) * _SECOND, info.size, info.linkname)
    if kind != "0":
        made = made._replace(size=0)
    try:
        return made._replace(
            name=extended.get("path", made.name),
            link=extended.get("linkpath", made.link),
            size=_positive(extended["size"]) if "size" in extended and kind == "0" else made.size,
            uid=_positive(extended.get("uid", str(made.uid))),
            gid=_positive(extended.get("gid", str(made.gid))),
            mtime_ns=_nanoseconds(extended["mtime"]) if "mtime" in extended else made.mtime_ns,
            xattrs={k.removeprefix(_XATTR): _bytes(v) for k, v in extended.items() if k.startswith(_XATTR)},
        )
    except ValueError:
        raise WherryError(Kind.INVALID, "the archive holds a damaged extended header") from None


def _positive(text: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError(text)
    return int(text)


def _nanoseconds(text: str) -> int:
    """Of decimal seconds, which a float would round."""
    seconds, _, rest = text.partition(".")
    sign = -1 if seconds.startswith("-") else 1
    return int(seconds) * _SECOND + sign * int((rest + "0" * 9)[:9])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
