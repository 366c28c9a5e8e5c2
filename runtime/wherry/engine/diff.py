"""`diff`: docker's words for the snapshot's changes."""

from __future__ import annotations

from wherry.model import Json

from . import rootfs
from .house import House

__all__ = ["changes"]

_KINDS = {"C": 0, "A": 1, "D": 2}
_OURS = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})  # mount points that a start makes


def changes(house: House, ref: str) -> list[Json]:
    """The verb."""
    row = house.db.find(ref)
    inside = {mount["Destination"] for mount in row.config["mounts"]} | _OURS
    rootfs.settle(house, house.snapshots.diff_ids(row.id))
    found = [{"Path": path, "Kind": _KINDS[kind]} for kind, path in house.snapshots.diff(row.id)]
    return [entry for entry in found if entry["Path"] not in inside]
