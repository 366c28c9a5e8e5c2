"""The build cache from outside: what there is of it, how much room it takes, and its end. Decides docker's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wherry.engine import filters as conditions
from wherry.engine import images
from wherry.engine.house import House
from wherry.image.buildcache import BuildCache, Entry
from wherry.model import Json

from .work import rfc3339

__all__ = ["listing", "prune"]

Filters = Mapping[str, Sequence[str]]


def listing(house: House) -> list[Json]:
    """docker's BuildCache objects, the latest used first."""
    cache = BuildCache(house.place.root)
    shared = _of_images(house)
    return [_shape(house, cache, entry, shared) for entry in cache.entries()]


def _of_images(house: House) -> set[str]:
    return {diff_id for record in house.images.list() for diff_id in record.config.diff_ids}


def _shape(house: House, cache: BuildCache, entry: Entry, shared: set[str]) -> Json:
    return {
        "ID": entry.id,
        "Type": entry.kind,
        "Description": entry.title,
        "InUse": False,
        "Shared": entry.diff_id in shared,
        "Size": _size(house, cache, entry),
        "CreatedAt": rfc3339(entry.created),
        "LastUsedAt": rfc3339(entry.used),
    }


def _size(house: House, cache: BuildCache, entry: Entry) -> int:
    from wherry.image.snapshot import layer_path, tree_usage
    from wherry.image.sweep import layer_bytes

    if entry.kind != "regular":
        return tree_usage(cache.path(entry))[0]
    return layer_bytes(layer_path(house.place.root, entry.diff_id)) if entry.diff_id else 0


def prune(house: House, *, all: bool, filters: Filters) -> Json:
    """Forget; the layers that nothing else uses go with the next sweep, which is now."""
    conditions.check(filters, ("until", "id", "type"))
    cache = BuildCache(house.place.root)
    shared = _of_images(house)
    doomed = [entry for entry in cache.entries() if (all or entry.diff_id not in shared) and _fits(entry, filters)]
    freed = sum(_size(house, cache, entry) for entry in doomed if entry.kind != "regular")
    gone = cache.forget(doomed)
    keep = [diff_id for row in house.db.containers() for diff_id in row.config.get("layers", ())]
    return {"CachesDeleted": gone, "SpaceReclaimed": freed + house.images.gc(keep)}


def _fits(entry: Entry, wanted: Filters) -> bool:
    checks = {
        "until": lambda values: entry.used < images.moment(values[0]),
        "id": lambda values: any(entry.id.startswith(value) for value in values),
        "type": lambda values: entry.kind in values,
    }
    return all(checks[name](values) for name, values in wanted.items())
