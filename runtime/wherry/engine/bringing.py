"""A driver's volumes at the start of a container: mounted for it, filled at its first start, limited in its cgroup.

Decides what is mounted read-only and which volume is filled from the image. Loaded only for containers that have such a
volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.model import Json

from . import filling, limits, records, served, volumes
from .house import House
from .mounts import Resolved
from .undo import Undo

if TYPE_CHECKING:
    from .db import Container, Volume

__all__ = ["Brought", "bring"]


class Brought(NamedTuple):
    """What the configuration needs: the words of --device for block volumes, and linux.resources.blockIO."""

    devices: tuple[str, ...]
    block_io: Json


def bring(house: House, row: Container, wanted: Sequence[Resolved], undo: Undo) -> Brought:
    """Mount every volume of `wanted` for the container, each once."""
    undo.add(served.release, house, row.id)
    devices: list[str] = []
    block_io: Json = {}
    for name in dict.fromkeys(mount.name for mount in wanted):
        volume, mine = volumes.get(house, name), [mount for mount in wanted if mount.name == name]
        path = served.attach(house, volume, row.id, readonly=_readonly(mine))
        if volume.handle["access"] == "block":
            devices += [f"{path}:{mount.target}:{'rwm' if mount.writable else 'rm'}" for mount in mine]
        else:
            _fill(house, row, path, mine)
        for key, entries in _limits(house, volume, path).items():
            block_io.setdefault(key, []).extend(entries)
    return Brought(tuple(devices), block_io)


def _readonly(mine: Sequence[Resolved]) -> bool:
    """If none of them writes; the owner that :U gives is written too."""
    return not any(mount.writable or "U" in mount.options for mount in mine)


def _fill(house: House, row: Container, path: str, mine: Sequence[Resolved]) -> None:
    first = records.load(house.container_dir(row.id)).started == 0
    fills = [mount for mount in mine if "nocopy" not in mount.options]
    if first and fills and volumes.is_empty(path):
        filling.copy_up(house, row.id, fills)


def _limits(house: House, volume: Volume, path: str) -> Json:
    found = served.throttles(volume, path)
    if found and "io" not in house.facts.cgroup_available:
        raise limits.missing(f"the io limit of volume {volume.name}", "io", house.facts)
    return found
