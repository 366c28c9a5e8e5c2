"""Who the container's process is: `--user`, passwd and group of the image's own root filesystem.

Decides ids, groups and home. Reads only through a descriptor of the root, beneath it, a bounded number of bytes
(invariants 1, 3 and 5): digits are a number in range or an error, never a name.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["User", "lookup", "read_beneath"]

_MAX_FILE = 4 << 20
_MAX_ID = (1 << 31) - 1  # docker's range; 2^32-1 is the kernel's "no id"


class User(NamedTuple):
    """Numeric identity, supplementary groups, and the home that an unset HOME gets."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""


class _Entry(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


def read_beneath(root: int, path: str, limit: int = _MAX_FILE) -> bytes:
    """Read a regular file beneath a root descriptor; absent is empty, too large is an error."""
    from wherry.kernel import files

    try:
        fd = files.open_regular(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise WherryError(Kind.INVALID, f"{path} of the image cannot be read: {error.strerror}") from error
    try:
        with open(fd, "rb", closefd=False) as file:
            # files of procfs say 0, and some change when they are read: as for an empty file, nothing is
            data = file.read(limit + 1) if os.fstat(fd).st_size else b""
    finally:
        os.close(fd)
    if len(data) > limit:
        raise WherryError(Kind.INVALID, f"{path} of the image is larger than {limit} bytes")
    return data


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) <= 10 and int(text) <= _MAX_ID else None


def _id(text: str, what: str) -> int | None:
    """Digits are an id or an error (CVE-2024-40635); None: it is a name."""
    signless = text[1:] if text[:1] in "+-" else text
    if not (signless.isascii() and signless.isdigit()):
        return None
    value = _number(text)
    if value is None:
        raise WherryError(Kind.INVALID, f"{what} {text} is out of range: 0 to {_MAX_ID}", code=126)
    return value


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        if line and line[0] != "#":
            yield line.split(":")


def _passwd(data: bytes) -> Iterator[_Entry]:
    for fields in _lines(data):
        if len(fields) >= 6:
            uid, gid = _number(fields[2]), _number(fields[3])
            if fields[0] and uid is not None and gid is not None:
                yield _Entry(fields[0], uid, gid, fields[5])


def _groups(data: bytes) -> list[tuple[str, int, list[str]]]:
    found = []
    for fields in _lines(data):
        gid = _number(fields[2]) if len(fields) >= 4 else None
        if gid is not None:
            found.append((fields[0], gid, fields[3].split(",")))
    return found


def _find_user(text: str, passwd: bytes) -> tuple[_Entry | None, int]:
    uid = _id(text, "user")
    for entry in _passwd(passwd):
        if entry.name == text if uid is None else entry.uid == uid:
            return entry, entry.uid
    if uid is None:
        raise WherryError(Kind.INVALID, f"unable to find user {text}: no matching entries in passwd file", code=126)
    return None, uid


def _find_group(text: str, groups: Sequence[tuple[str, int, list[str]]]) -> int:
    gid = _id(text, "group")
    if gid is not None:
        return gid
    for name, number, _ in groups:
        if name == text:
            return number
    raise WherryError(Kind.INVALID, f"unable to find group {text}: no matching entries in group file", code=126)


def _home(entry: _Entry | None) -> str:
    home = entry.home if entry else ""
    return home if home.startswith("/") and home.isprintable() else "/"


def resolve(spec: str, extra: Sequence[str], passwd: bytes, group: bytes) -> User:
    """Pure: `user[:group]` and --group-add against the two files' bytes, with docker's rules."""
    user_text, _, group_text = (spec or "0").partition(":")
    entry, uid = _find_user(user_text or "0", passwd)
    known = _groups(group)
    gid = _find_group(group_text, known) if group_text else (entry.gid if entry else 0)
    member = [] if group_text or entry is None else [g for _, g, names in known if entry.name in names]
    added = [_find_group(text, known) for text in extra]
    return User(uid, gid, tuple(dict.fromkeys([gid, *member, *added])), _home(entry), entry.name if entry else "")


def lookup(root: int, spec: str, extra: Sequence[str] = ()) -> User:
    """Resolve a user by the passwd and group files beneath `root`, a descriptor of the container's root."""
    return resolve(spec, extra, read_beneath(root, "etc/passwd"), read_beneath(root, "etc/group"))
