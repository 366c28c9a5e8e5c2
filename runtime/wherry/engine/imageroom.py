"""What images and what containers wrote take on disk, cheap enough to be asked every few seconds.

Decides what is counted once: layers do not change, so each is walked when it is first seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from wherry.errors import WherryError

from .house import House

__all__ = ["usage"]

Room = tuple[int, int]  # bytes, inodes


def usage(house: House) -> tuple[Room, Room]:
    """Of all images, and of all writable layers."""
    house.prepare()
    root = house.place.root
    layers = [_layer(house, f"{root}/layers/{name}") for name in _names(f"{root}/layers")]
    blobs = list(_files(f"{root}/images/blobs"))
    return _sum([*layers, *blobs]), _sum(_written(house))


def _sum(rooms: list[Room]) -> Room:
    return sum(size for size, _ in rooms), sum(inodes for _, inodes in rooms)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _files(place: str) -> Iterator[Room]:
    for algorithm in _names(place):
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{place}/{algorithm}") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # swept meanwhile
                    yield entry.stat(follow_symlinks=False).st_blocks * 512, 1


def _layer(house: House, path: str) -> Room:
    from wherry.image.snapshot import tree_usage

    known = house.walked.get(path)
    if known is None:
        with contextlib.suppress(OSError):
            known = house.walked[path] = tree_usage(path)
    return known or (0, 0)


def _written(house: House) -> list[Room]:
    found = []
    for key in _names(f"{house.place.root}/snapshots"):
        with contextlib.suppress(WherryError, OSError):  # removed meanwhile
            found.append(house.snapshots.usage(key))
    return found
