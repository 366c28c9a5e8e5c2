"""Snapshots of volumes, and volumes made of them or of other volumes.

Decides names, docker-like shapes, and that whoever writes to a plain volume is held still while it is copied: then the
copy is of one instant, as a driver's is. A plain volume's snapshot is a directory in the volumes' pool.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import events, filters, voloptions, volumes
from .db import Volume, VolumeSnapshot
from .house import House
from .undo import making

__all__ = ["clone", "inspect", "listing", "remove", "restore", "snapshot"]

Filters = Mapping[str, Sequence[str]]
_FILTERS = ("name", "volume", "driver")


def snapshot(house: House, volume: str, name: str) -> Json:
    """`volume snapshot`; without a name it is the volume's, with the time."""
    row = volumes.get(house, volume)
    volumes.check_name(name, "snapshot")
    name = name or _fresh_name(house, volume)
    if house.db.snapshot(name) is not None:
        hint = "choose another name, or remove that snapshot first"
        raise WherryError(Kind.EXISTS, f"a volume snapshot {name} exists", hint=hint)
    with making(house):
        made = _taken(house, row, name)
        try:
            house.db.add_snapshot(made)
        except BaseException:
            _drop(house, made)
            raise
        house.db.sync()
    events.emit(house, "volume", "snapshot", volume, {"driver": row.driver, "snapshot": name})
    return _shape(made)


def _fresh_name(house: House, volume: str) -> str:
    stamp = f"{volume}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    taken = {row.name for row in house.db.snapshots()}
    return next(name for name in (stamp, *(f"{stamp}-{n}" for n in range(2, 1 << 20))) if name not in taken)


def _taken(house: House, row: Volume, name: str) -> VolumeSnapshot:
    if row.driver != voloptions.LOCAL:
        from . import served

        return served.take(house, row, name)
    with _held_still(house, row):
        now = time.time()
        return VolumeSnapshot(name, _copied(house, row), now, row.name)


@contextlib.contextmanager
def _held_still(house: House, row: Volume) -> Iterator[None]:
    """Frozen are the containers that have it, as `commit` freezes its own."""
    from . import frozen
    from .status import look

    with contextlib.ExitStack() as held:
        for cid in house.db.volume_users(row.name):
            if look(house, cid).status == "running":
                held.enter_context(frozen.while_held(house, cid))
        yield


def _copied(house: House, row: Volume) -> str:
    """A directory of the pool with the volume's content."""
    with volumes.opened(house, row) as source:
        return _of(house, source, row.name)


def _of(house: House, source: int, name: str) -> str:
    try:
        return house.volumes.create(source)
    except OSError as error:
        kind = Kind.EXHAUSTED if error.errno in (28, 122) else Kind.INTERNAL  # ENOSPC, EDQUOT
        raise WherryError(kind, f"cannot copy {name}: {error.strerror}") from error


def _drop(house: House, row: VolumeSnapshot) -> None:
    if row.driver == voloptions.LOCAL:
        house.volumes.remove(row.dir)
    else:
        from . import served

        served.drop(house, row)


# ---- volumes of them ----


def restore(house: House, name: str, new: str, *, labels: Mapping[str, str], options: Mapping[str, str]) -> Json:
    """`volume restore`: a new volume with what the snapshot holds."""
    row = _get(house, name)
    _check_new(house, new)
    blank = Volume(new, "", time.time(), labels=dict(labels))
    with making(house):
        if row.driver == voloptions.LOCAL:
            _no_options(options)
            with house.volumes.data(row.dir) as source:
                made = blank._replace(dir=_of(house, source, name))
        else:
            wanted = _as_large(row.handle["options"], options, row.handle["size"], f"snapshot {name}")
            made = _served(house, blank, row.driver, wanted, ("snapshot", row.handle["id"]))
        return _stored(house, made, "restore", name)


def clone(house: House, name: str, new: str, *, labels: Mapping[str, str], options: Mapping[str, str]) -> Json:
    """`volume clone`: a new volume with what another holds now."""
    row = volumes.get(house, name)
    _check_new(house, new)
    blank = Volume(new, "", time.time(), labels=dict(labels))
    with making(house):
        if row.driver == voloptions.LOCAL:
            _no_options(options)
            with _held_still(house, row):
                made = blank._replace(dir=_copied(house, row))
        else:
            wanted = _as_large(row.options, options, row.handle["size"], f"volume {name}")
            made = _served(house, blank, row.driver, wanted, ("volume", row.handle["id"]))
        return _stored(house, made, "clone", name)


def _as_large(old: Mapping[str, str], given: Mapping[str, str], least: int, source: str) -> dict[str, str]:
    """The options of a copy: as large as its source is now, which may have grown, or larger."""
    if "size" in given and voloptions.size(given["size"]) < least:
        hint = "give at least that, or leave size out"
        raise WherryError(Kind.INVALID, f"a copy cannot be smaller than {source} with its {least} bytes", hint=hint)
    grown = "size" not in old or voloptions.size(old["size"]) < least
    return {**old, **({"size": str(least)} if grown else {}), **given}


def _served(
    house: House, blank: Volume, driver: str, options: Mapping[str, str], source: tuple[str, str]
) -> Volume:  # fmt: skip
    from . import served

    request = voloptions.read(driver, options)
    assert request is not None
    return served.make(house, blank._replace(dir=os.urandom(16).hex(), options=dict(options)), request, source)


def _stored(house: House, row: Volume, action: str, source: str) -> Json:
    made, new = volumes.store(house, row)
    if not new:
        _check_new(house, made.name)
    events.emit(house, "volume", action, made.name, {"driver": made.driver, "source": source})
    return volumes.shape(house, made)


def _check_new(house: House, name: str) -> None:
    volumes.check_name(name, "volume")
    if house.db.volume(name) is not None:
        hint = "choose another name, or remove that volume first"
        raise WherryError(Kind.EXISTS, f"a volume {name} exists", hint=hint)


def _no_options(options: Mapping[str, str]) -> None:
    if options:
        hint = "a copy of a plain volume is a plain volume: leave -o out"
        raise WherryError(Kind.INVALID, f'volume option "{min(options)}" does not go with a directory', hint=hint)


# ---- looked at, removed ----


def _get(house: House, name: str) -> VolumeSnapshot:
    row = house.db.snapshot(name)
    if row is None:
        hint = "wherry volume snapshot ls lists those there are"
        raise WherryError(Kind.NOT_FOUND, f"no such volume snapshot: {name}", hint=hint)
    return row


def _shape(row: VolumeSnapshot) -> Json:
    from datetime import UTC, datetime

    return {
        "Name": row.name,
        "Volume": row.volume,
        "Driver": row.driver,
        "CreatedAt": datetime.fromtimestamp(row.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "Size": row.handle.get("size", 0),
        "Options": dict(row.handle.get("options") or {}) or None,
    }


def inspect(house: House, name: str) -> Json:
    """One snapshot. Size: what a volume made of it has at least; 0 for a directory."""
    return _shape(_get(house, name))


def listing(house: House, wanted: Filters) -> list[Json]:
    """All snapshots, oldest first."""
    filters.check(wanted, _FILTERS)
    found = []
    for row in house.db.snapshots():
        checks = {"name": filters.named(wanted.get("name", ()), row.name) if "name" in wanted else True,
                  "volume": row.volume in wanted.get("volume", (row.volume,)),
                  "driver": row.driver in wanted.get("driver", (row.driver,))}  # fmt: skip
        found += [_shape(row)] if all(checks.values()) else []
    return found


def remove(house: House, name: str, *, force: bool) -> None:
    """`volume snapshot rm`. Volumes made of it do not need it."""
    row = house.db.snapshot(name)
    if row is None:
        if not force:
            _get(house, name)
        return
    if row.driver == voloptions.LOCAL:
        house.db.remove_snapshot(name)
        house.volumes.remove(row.dir)
    else:
        from . import served

        served.remove_snapshot(house, row)
    events.emit(house, "volume", "snapshot-rm", row.volume, {"driver": row.driver, "snapshot": name})
