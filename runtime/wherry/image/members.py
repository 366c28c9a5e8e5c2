"""Where the members of an image archive lie. An index for reading streams: nothing is ever extracted by it.

Decides which headers of a tar count (ustar, pax, GNU long names) and stops at what it does not understand. Refuses to
know what the members mean.
"""

import os
import posixpath
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from wherry.errors import Kind, WherryError

__all__ = ["Member", "Source", "clean_name", "index_tar", "is_header", "members"]

_BLOCK = 512
_MEMBERS_MAX = 200_000
_EXTENDED_MAX = 1 << 20
_NAMES_MAX = 32 << 20  # characters of all names: they are kept
_PAX = ("path", "linkpath", "size")  # what counts of a pax header


class Member(NamedTuple):
    """One member: `target` is the name that a link leads to, "" for a file."""

    offset: int
    size: int
    target: str = ""


class Source(Protocol):
    """The bytes of a tar, forwards; `at` counts them."""

    at: int

    def read(self, size: int, /) -> bytes: ...
    def skip(self, size: int, /) -> None: ...


def clean_name(name: str) -> str:
    """The name as a path below the archive's root; one that climbs ends there."""
    return posixpath.normpath("/" + name).lstrip("/")


def is_header(block: bytes) -> bool:
    """Whether a tar may begin with this block."""
    return len(block) == _BLOCK and _checksum_right(block)


def index_tar(fd: int, shown: str) -> dict[str, Member]:
    """The files and links of an uncompressed tar by clean name; of equal names the last counts, as tar does."""
    end = os.fstat(fd).st_size
    found = {}
    for name, member in members(_File(fd), shown):
        if member.offset + member.size > end:
            raise _bad(shown, f"it ends inside {name[:200]}")
        found[name] = member
    return found


def members(source: Source, shown: str) -> Iterator[tuple[str, Member]]:
    """The files and links of a tar, by clean name. While a file is the caller's, its content is what `source` reads."""
    reader, names = _Reader(source, shown), 0
    for _ in range(_MEMBERS_MAX):
        kind, found, end = reader.step()
        if kind is None:
            return
        if found is not None:
            names += len(found[0]) + len(found[1].target)
            if names > _NAMES_MAX:
                raise WherryError(Kind.INVALID, f"{shown} has names of more than {_NAMES_MAX} characters")
            yield found
        source.skip(end - source.at)
    raise WherryError(Kind.INVALID, f"{shown} has more than {_MEMBERS_MAX} members")


class _File:
    """A seekable tar."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.at = 0

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, size, self.at)
        self.at += len(data)
        return data

    def skip(self, size: int, /) -> None:
        self.at += size


def _bad(shown: str, why: str) -> WherryError:
    return WherryError(Kind.INVALID, f"{shown} is not a tar archive, or a damaged one: {why}")


class _Reader:
    def __init__(self, source: Source, shown: str) -> None:
        self._source = source
        self._shown = shown
        self._next: dict[str, str] = {}  # what extended headers say of the next member

    def step(self) -> tuple[bytes | None, tuple[str, Member] | None, int]:
        """Take one header in: its kind (None at the end), the member if it is a file or a link, where the next is."""
        block = self._source.read(_BLOCK)
        if not block.strip(b"\0"):
            if self._source.at <= _BLOCK:
                raise self._bad("it is empty")
            return None, None, 0
        if not is_header(block):
            raise self._bad("the checksum of a header is wrong")
        kind, size, found = block[156:157], self._number(block[124:136]), None
        start = self._source.at
        if kind in b"xLKgX" and kind:
            self._extended(kind, self._body(size))
        else:
            found, size = self._member(block, kind, size)
        return kind, found, start + -(-size // _BLOCK) * _BLOCK

    def _member(self, block: bytes, kind: bytes, size: int) -> tuple[tuple[str, Member] | None, int]:
        size = self._decimal(self._next["size"]) if "size" in self._next else size
        name = clean_name(self._next.get("path") or _header_name(block))
        link = self._next.get("linkpath") or _text(block[157:257])
        self._next = {}
        if kind in (b"0", b"\0", b"7"):
            return (name, Member(self._source.at, size)), size
        if kind in (b"1", b"2"):
            base = posixpath.dirname(name) if kind == b"2" else ""
            return (name, Member(0, 0, clean_name(posixpath.join(base, link)))), 0
        if kind == b"S":
            raise self._bad("it holds sparse files")
        return None, size if kind not in b"3456" else 0

    def _extended(self, kind: bytes, body: bytes) -> None:
        if kind in (b"L", b"K"):
            self._next["path" if kind == b"L" else "linkpath"] = _text(body)
        elif kind != b"g":
            self._next.update(self._records(body))

    def _records(self, body: bytes) -> dict[str, str]:
        found = {}
        while body:
            length = self._decimal(body[:20].partition(b" ")[0].decode("ascii", "replace"))
            record = body[:length]
            key, equals, value = record.partition(b" ")[2].partition(b"=")
            if not equals or len(record) != length or not value.endswith(b"\n"):
                raise self._bad("a pax record is malformed")
            found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
            body = body[length:]
        if any(key.startswith("GNU.sparse.") for key in found):
            raise self._bad("it holds sparse files")
        return {key: found[key] for key in _PAX if key in found}

    def _body(self, size: int) -> bytes:
        if size > _EXTENDED_MAX:
            raise self._bad("an extended header is too large")
        body = self._source.read(size)
        if len(body) < size:
            raise self._bad("it ends inside an extended header")
        return body

    def _number(self, field: bytes) -> int:
        if field[0] & 0x80:
            return self._in_range(int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big"))
        digits = field.strip(b" \0")
        try:
            return self._in_range(int(digits or b"0", 8))
        except ValueError:
            raise self._bad("a number of a header is malformed") from None

    def _decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._bad("a number of a pax record is malformed")
        return self._in_range(int(text))

    def _in_range(self, number: int) -> int:
        if not 0 <= number < 1 << 60:
            raise self._bad("a size is out of range")
        return number

    def _bad(self, why: str) -> WherryError:
        return _bad(self._shown, why)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_name(block: bytes) -> str:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _checksum_right(block: bytes) -> bool:
    digits = block[148:156].strip(b" \0")
    expected = 8 * 32 + sum(block[:148]) + sum(block[156:])
    return digits.isdigit() and all(c in b"01234567" for c in digits) and int(digits, 8) == expected
