"""What the driver knows of a volume, a snapshot or a group, and how it is kept: JSON files that survive a power cut.

A record is the truth about everything that the bytes beside it cannot tell. It is written as a temporary file, synced,
renamed over the old one, and its directory synced. Reading is strict: a record that is damaged or of somebody else is
an error with a sentence, never a guess.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from .backend import Shape

__all__ = [
    "RECORD", "Group", "Published", "Snapshot", "Unreadable", "Volume", "family", "load", "read", "save", "write",
]

RECORD = "record.json"
_VERSION = 1
_SIZE_MAX = 1 << 20  # bytes; a record has some hundred


class Unreadable(Exception):
    """A record that cannot be trusted; the message says why."""


class Published(NamedTuple):
    """A ControllerPublishVolume that was answered."""

    readonly: bool
    access: str
    mode: str


class Volume(NamedTuple):
    """A volume; `shape` says how its bytes are kept."""

    id: str
    name: str
    created: int  # ns since the epoch
    backend: str
    shape: Shape
    modes: tuple[str, ...] = ()  # access modes that it was asked for
    limits: Mapping[str, int] = {}  # requests.LIMITS, without those that are 0
    source: tuple[str, str] | None = None  # ("snapshot" or "volume", id)
    family: str = ""  # the id of the volume that it was first copied from, over any number of copies
    shared: int = 0  # bytes that its making by reflink shared with its source
    growing: int = 0  # the size that a growth under way leads to
    published: Mapping[str, Published] = {}  # by node

    @property
    def promised(self) -> int:
        """Bytes of the pool that it may take."""
        return max(self.shape.size, self.growing)


class Snapshot(NamedTuple):
    """A snapshot: what the volume `volume` was at `created`."""

    id: str
    name: str
    created: int
    backend: str
    shape: Shape
    volume: str
    taken: int = 0  # bytes allocated at its making
    family: str = ""
    shared: int = 0
    group: str = ""

    @property
    def promised(self) -> int:
        """Bytes of the pool that it may take: nobody writes to it."""
        return self.taken


class Group(NamedTuple):
    """A group snapshot: its file is what makes its snapshots one."""

    id: str
    name: str
    created: int
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]


def family(source: Volume | Snapshot | None) -> str:
    """The volume that a copy of `source` descends from."""
    if source is None:
        return ""
    return source.family or (source.volume if isinstance(source, Snapshot) else source.id)


R = TypeVar("R", Volume, Snapshot, Group)


def write(record: Volume | Snapshot | Group) -> bytes:
    """A record as the text of its file."""
    plain: dict[str, Any] = record._asdict()
    if isinstance(record, Volume):
        plain["published"] = {node: found._asdict() for node, found in record.published.items()}
        plain["limits"] = dict(record.limits)
    if not isinstance(record, Group):
        plain["shape"] = record.shape._asdict()
    text = json.dumps({"version": _VERSION, "kind": type(record).__name__.lower(), **plain}, indent=1)
    return text.encode() + b"\n"


def read(kind: type[R], text: bytes) -> R:
    """The record in a text; Unreadable if it is none of this kind and version."""
    try:
        plain = json.loads(text)
        _expect(isinstance(plain, dict), "it is no JSON object")
        _expect(plain.pop("version", None) == _VERSION, f"it is not of version {_VERSION}")
        _expect(plain.pop("kind", None) == kind.__name__.lower(), f"it is no {kind.__name__.lower()}")
        return kind(**_fields(kind, plain))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{error}") from error


def _expect(true: bool, sentence: str) -> None:
    if not true:
        raise Unreadable(sentence)


_PLAIN = {"id": str, "name": str, "created": int, "backend": str, "family": str, "shared": int, "growing": int,
          "volume": str, "taken": int, "group": str}  # fmt: skip
_SHAPE = {"size": int, "access": str, "fs": str, "thick": bool, "project": int}
_PUBLISHED = {"readonly": bool, "access": str, "mode": str}


def _fields(kind: type[R], plain: dict[str, Any]) -> dict[str, Any]:
    _expect(set(plain) == set(kind._fields), f"its fields are not those of a {kind.__name__.lower()}")
    return {key: _field(key, value) for key, value in plain.items()}


def _field(key: str, value: Any) -> Any:
    if key in _PLAIN:
        _typed(key, value, _PLAIN[key])
        return value
    return _COMPOUND[key](value)


def _typed(key: str, value: Any, kind: type) -> Any:
    _expect(type(value) is kind, f"its {key} is {value!r}")
    _expect(kind is not int or value >= 0, f"its {key} is negative")
    return value


def _table(what: str, value: Any, types: Mapping[str, type]) -> dict[str, Any]:
    _expect(isinstance(value, dict) and set(value) == set(types), f"its {what} is {value!r}")
    return {key: _typed(f"{what}.{key}", value[key], kind) for key, kind in types.items()}


def _words(value: Any) -> tuple[str, ...]:
    _expect(isinstance(value, list), f"{value!r} is no list")
    return tuple(_typed("list", word, str) for word in value)


def _source(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    kind, of = _words(value)
    return kind, of


_COMPOUND: Mapping[str, Callable[[Any], Any]] = {
    "shape": lambda value: Shape(**_table("shape", value, _SHAPE)),
    "modes": _words,
    "volumes": _words,
    "snapshots": _words,
    "source": _source,
    "limits": lambda value: {key: _typed(key, bound, int) for key, bound in value.items()},
    "published": lambda value: {
        node: Published(**_table("published", found, _PUBLISHED)) for node, found in value.items()
    },
}


def save(directory: int, name: str, text: bytes) -> None:
    """Write a file so that it is there whole or as it was before, whatever happens; durable on return."""
    temporary = name + ".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb", buffering=0) as file:
            while text:  # a short write is how a full disk begins
                text = text[file.write(text) :]
            os.fsync(fd)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def load(directory: int, name: str) -> bytes:
    """The text of a file in a directory; never through a symlink, never a device, capped."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, _SIZE_MAX)
    finally:
        os.close(fd)
