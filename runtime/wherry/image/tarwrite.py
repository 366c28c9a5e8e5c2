"""The headers of a tar that we write: ustar, and a pax header before it only where ustar has no room for a value.

Decides which values need one. Pure and deterministic: the same member gives the same bytes on any machine. Refuses to
know where members come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BLOCK", "END", "Member", "header", "padding"]

BLOCK = 512
END = bytes(2 * BLOCK)
_SECOND = 1_000_000_000
_SIZE_MAX = 8**11 - 1  # eleven octal digits: sizes and times
_ID_MAX = 8**7 - 1
_NAME, _PREFIX = 100, 155


class Member(NamedTuple):
    """What one header tells. Names are bytes: a file system does not know of encodings. `kind` is tar's typeflag."""

    name: bytes
    kind: bytes = b"0"
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[str, bytes] = {}


def padding(size: int) -> bytes:
    """The zeros between a member's content and the next header."""
    return bytes(-size % BLOCK)


def header(member: Member) -> bytes:
    """Everything that stands before the content of a member."""
    prefix, name = _split(member.name)
    extended = _extended(member, prefix, name)
    pax = b""
    if extended:
        body = b"".join(_record(key, extended[key]) for key in sorted(extended))
        pax = _block(Member(b"././@PaxHeader", b"x", 0o644, size=len(body)), b"", b"././@PaxHeader")
        pax += body + padding(len(body))
    return pax + _block(member, prefix, name)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """(prefix, name) as ustar cuts a long name at a slash; what cannot be cut is told by pax, and shortened here."""
    if len(name) <= _NAME:
        return b"", name
    cut = name.find(b"/", max(len(name) - _NAME - 1, 1))
    if 0 < cut <= _PREFIX and len(name) > cut + 1:
        return name[:cut], name[cut + 1 :]
    return b"", name[:_NAME]


def _extended(member: Member, prefix: bytes, name: bytes) -> dict[bytes, bytes]:
    """The pax records that this member needs."""
    found = {b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape"): v for key, v in member.xattrs.items()}
    whole = prefix + b"/" + name if prefix else name
    if whole != member.name or not member.name.isascii():
        found[b"path"] = member.name
    if len(member.link) > _NAME or not member.link.isascii():
        found[b"linkpath"] = member.link
    for key, value, most in ((b"size", member.size, _SIZE_MAX), (b"uid", member.uid, _ID_MAX), (b"gid", member.gid, _ID_MAX)):  # noqa: E501  # fmt: skip
        if value > most:
            found[key] = b"%d" % value
    if member.mtime_ns % _SECOND or not 0 <= member.mtime_ns // _SECOND <= _SIZE_MAX:
        found[b"mtime"] = _decimal(member.mtime_ns)
    return found


def _decimal(nanoseconds: int) -> bytes:
    sign, whole = (b"-", -nanoseconds) if nanoseconds < 0 else (b"", nanoseconds)
    seconds, rest = divmod(whole, _SECOND)
    return sign + b"%d" % seconds + ((b".%09d" % rest).rstrip(b"0") if rest else b"")


def _record(key: bytes, value: bytes) -> bytes:
    """LENGTH KEY=VALUE, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _octal(number: int, width: int) -> bytes:
    """A number that fits, or 0 where pax tells it."""
    return b"%0*o\0" % (width, number if 0 <= number < 8**width else 0)


def _block(member: Member, prefix: bytes, name: bytes) -> bytes:
    fields = (
        name.ljust(_NAME, b"\0"),
        _octal(member.mode, 7), _octal(member.uid, 7), _octal(member.gid, 7),
        _octal(member.size, 11), _octal(member.mtime_ns // _SECOND, 11),
        b"        ", member.kind, member.link[:_NAME].ljust(_NAME, b"\0"),
        b"ustar\x0000", bytes(64),  # no names of users: numbers are what counts inside an image
        _octal(member.major, 7), _octal(member.minor, 7), prefix.ljust(_PREFIX + 12, b"\0"),
    )  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
