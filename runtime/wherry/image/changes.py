"""What a container changed: its upper directory compared with the layers below, as `docker diff` tells it.

Decides kinds (A added, C changed, D deleted) from overlayfs' marks. Reads only, by descriptors, never through links.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

__all__ = ["changes", "hidden_below"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_Parts = tuple[str, ...]


def _open(root: str, parts: _Parts) -> int:
    """The directory at `parts`; OSError when it is none or a link stands in the way."""
    fd = os.open(root, _DIRECTORY)
    for part in parts:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _list(root: str, parts: _Parts) -> dict[str, os.stat_result]:
    fd = _open(root, parts)
    try:
        with os.scandir(fd) as entries:
            return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    finally:
        os.close(fd)


def _is_opaque(root: str, parts: _Parts) -> bool:
    fd = _open(root, parts)
    try:
        for name in _OPAQUE:
            with contextlib.suppress(OSError):
                if os.getxattr(fd, name) == b"y":
                    return True
    finally:
        os.close(fd)
    return False


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _merged(layers: Sequence[str], parts: _Parts) -> dict[str, os.stat_result]:
    """The names in a directory of the stack below, highest layer first."""
    found: dict[str, os.stat_result] = {}
    for layer in layers:
        try:
            listing = _list(layer, parts)
        except FileNotFoundError:
            if _ends_above(layer, parts):
                break
            continue
        except OSError:  # no directory here: what lies deeper is hidden
            break
        for name, status in listing.items():
            found.setdefault(name, status)
        if any(_is_opaque(layer, parts[:depth]) for depth in range(len(parts) + 1)):
            break
    return {name: status for name, status in found.items() if not _is_whiteout(status)}


def _ends_above(layer: str, parts: _Parts) -> bool:
    """Whether this layer hides the path in the layers below it: an opaque ancestor."""
    for depth in range(len(parts)):
        try:
            if _is_opaque(layer, parts[:depth]):
                return True
        except OSError:
            return False
    return False


def _same_directory(one: os.stat_result, two: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns) == (
        two.st_mode,
        two.st_uid,
        two.st_gid,
        two.st_mtime_ns,
    )


def _walk(upper: str, layers: Sequence[str]) -> Iterator[tuple[_Parts, str]]:
    """(path, kind) parents first; kind "" for a directory that is only there for what is below it."""
    stack: list[tuple[_Parts, bool]] = [((), bool(layers))]
    while stack:
        parts, has_lower = stack.pop()
        try:
            listing = _list(upper, parts)
        except OSError:  # gone meanwhile: the container runs
            continue
        below = _merged(layers, parts) if has_lower else {}
        hidden = {n: s for n, s in below.items() if n not in listing} if below and _is_opaque(upper, parts) else {}
        for name in hidden:
            yield (*parts, name), "D"
        for name, status in listing.items():
            kind, merged = _kind(status, None if name in hidden else below.get(name))
            if kind is not None:
                yield (*parts, name), kind
                if stat.S_ISDIR(status.st_mode):
                    stack.append(((*parts, name), merged))


def _kind(status: os.stat_result, below: os.stat_result | None) -> tuple[str | None, bool]:
    """The kind of one entry of the upper directory, and whether what is below it still shows through."""
    if _is_whiteout(status):
        return ("D" if below else None), False
    if below is None:
        return "A", False
    if stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(below.st_mode):
        return ("" if _same_directory(status, below) else "C"), True
    return "C", False


def hidden_below(layers: Sequence[str], parts: _Parts) -> bool:
    """Whether these layers (highest first) show anything in the directory `parts`, which an opaque one would hide."""
    return bool(_merged(layers, parts))


def changes(upper: str, layers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(kind, path) sorted by path. `layers`: the directories below, highest first."""
    shown: dict[_Parts, str] = {}
    for parts, kind in sorted(_walk(upper, layers), reverse=True):  # children before their directory
        if kind or parts in shown:
            shown[parts] = kind or "C"
            if len(parts) > 1:
                shown.setdefault(parts[:-1], "C")
    for parts in sorted(shown):
        yield shown[parts], "/" + "/".join(parts)
