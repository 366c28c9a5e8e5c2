"""`system df`: what takes how much room, adding up to what `du` says of ROOT.

Decides docker's shape, and what of each kind could go. Every allocated block below ROOT belongs to one row; a layer
that images share counts once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from wherry.image.buildcache import BuildCache
from wherry.model import Json

from . import images, listing, volumes
from .build import pruning
from .house import House

if TYPE_CHECKING:
    from wherry.image.usage import Usage

    from .db import Volume

__all__ = ["df"]

_LIVING = ("running", "paused", "restarting")
_BUILD_CACHE = "cache/build"
_ROWS = {"Containers": ("containers", "snapshots"), "Local Volumes": ("volumes", "csi"), "Build Cache": (_BUILD_CACHE,)}


class _Room(NamedTuple):
    """Bytes in use, and what of them could go."""

    size: int
    free: int

    def shape(self) -> Json:
        return {"Size": self.size, "Reclaimable": self.free}


def df(house: House) -> Json:
    """The verb."""
    house.prepare()
    usage = house.images.disk_usage()
    containers = listing.containers(house, all=True, filters={}, size=True, last=0)
    volumes_ = [_volume(house, row) for row in house.db.volumes()]
    rooms = {"Images": _images(house, usage), **{name: _room(house, folders) for name, folders in _ROWS.items()}}
    rooms["Containers"] = rooms["Containers"]._replace(free=_of_the_dead(house, containers))
    idle = sum(row["UsageData"]["Size"] for row in volumes_ if not row["UsageData"]["RefCount"])
    rooms["Local Volumes"] = rooms["Local Volumes"]._replace(free=min(idle, rooms["Local Volumes"].size))
    cached = _only_cached(house, usage)
    rooms["Images"] = _Room(rooms["Images"].size - cached, max(rooms["Images"].free - cached, 0))
    rooms["Build Cache"] = _Room(rooms["Build Cache"].size + cached, rooms["Build Cache"].free + cached)
    rooms["Other"] = _Room(_bytes(house.place.root) - sum(room.size for room in rooms.values()), 0)
    return {
        "LayersSize": usage.total,
        "Images": _image_rows(house, usage),
        "Containers": containers,
        "Volumes": volumes_,
        "BuildCache": pruning.listing(house),
        "Usage": {name: room.shape() for name, room in rooms.items()},
    }


def _only_cached(house: House, usage: Usage) -> int:
    """The bytes of blobs and layers that are there for builds to find, and for no image."""
    blobs, diff_ids = BuildCache(house.place.root).used()
    parts = {("blob", digest.partition(":")[2]) for digest in blobs}
    parts |= {("layer", diff_id.partition(":")[2]) for diff_id in diff_ids}
    return usage.sum(parts - {part for found in usage.images.values() for part in found})


def _bytes(path: str) -> int:
    from wherry.image.snapshot import tree_usage

    return tree_usage(path)[0]


def _room(house: House, folders: tuple[str, ...]) -> _Room:
    size = sum(_bytes(os.path.join(house.place.root, folder)) for folder in folders)
    return _Room(size, size if folders == (_BUILD_CACHE,) else 0)


def _images(house: House, usage: Usage) -> _Room:
    used = {row.image for row in house.db.containers()}
    return _Room(usage.total, usage.total - usage.of(used))


def _image_rows(house: House, usage: Usage) -> list[Json]:
    """docker's rows, with what `du` says of each and of what it shares."""
    rows = images.listing(house, all=True, filters={})
    return [{**row, "Size": usage.of([row["Id"]]), "SharedSize": usage.shared(row["Id"])} for row in rows]


def _of_the_dead(house: House, rows: list[Json]) -> int:
    ended = [row["Id"] for row in rows if row.get("State") not in _LIVING]
    return sum(_bytes(f"{house.place.root}/{folder}/{cid}") for cid in ended for folder in ("containers", "snapshots"))


def _volume(house: House, row: Volume) -> Json:
    usage = {"Size": volumes.usage(house, row), "RefCount": len(house.db.volume_users(row.name))}
    return {**volumes.shape(house, row), "UsageData": usage}
