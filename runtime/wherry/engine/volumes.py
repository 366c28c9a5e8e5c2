"""Named volumes: names and users in the database, bytes in volume/. Decides docker's shapes and what may be removed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import events, filters
from .db import Volume
from .house import House
from .mounts import Resolved
from .undo import making

__all__ = [
    "claim", "create", "discard", "empty", "fill", "inspect", "listing", "options", "prune", "remove", "shape",
    "source",
]  # fmt: skip

Filters = Mapping[str, Sequence[str]]
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}"
_FILTERS = ("name", "label", "dangling", "driver")


def claim(
    house: House, name: str, labels: Mapping[str, str], options: Mapping[str, str], *, anonymous: bool = False
) -> tuple[Volume, bool]:
    """The volume of this name ("": a minted one), made if it is missing; and whether it is new."""
    found = house.db.volume(name) if name else None
    if found is not None:
        return found, False
    if name and not re.fullmatch(_NAME, name):
        hint = "names are 2 to 255 of [a-zA-Z0-9_.-] and begin with a letter or a digit"
        raise WherryError(Kind.INVALID, f'invalid volume name "{name}"', hint=hint)
    with making(house):
        directory = house.volumes.create()
        minted = name or os.urandom(32).hex()
        row = Volume(minted, directory, time.time(), anonymous, dict(labels), dict(options))
        stored = house.db.add_volume(row)
        if stored.dir != directory:  # somebody was faster
            house.volumes.remove(directory)
            return stored, False
    events.emit(house, "volume", "create", row.name, {"driver": "local"})
    return row, True


def create(house: House, name: str, driver: str, labels: Mapping[str, str], options: Mapping[str, str]) -> Json:
    """`volume create`."""
    if driver != "local":
        raise WherryError(Kind.NOT_FOUND, f'volume driver "{driver}" is not there', hint="the built-in driver is local")
    _check_options(options)
    found = house.db.volume(name) if name else None
    if found is not None and options and dict(found.options) != dict(options):
        hint = f"wherry volume inspect {name} shows them; remove it first, or choose another name"
        raise WherryError(Kind.CONFLICT, f"volume {name} exists with other options", hint=hint)
    return shape(house, claim(house, name, labels, options, anonymous=not name)[0])


_BIND_HINT = "a directory of the host: -o type=none -o o=bind -o device=/path; memory: --tmpfs when running"


def _check_options(options: Mapping[str, str]) -> None:
    """Of docker's local driver the bind form; nothing here could give a mount of our own back after a crash."""
    if not options:
        return
    unknown = sorted(set(options) - {"type", "o", "device"})
    if unknown:
        raise WherryError(Kind.INVALID, f'the local driver has no option "{unknown[0]}"', hint=_BIND_HINT)
    words = options.get("o", "").split(",")
    if options.get("type", "none") not in ("none", "bind") or not {"bind", "rbind"} & set(words):
        kind = options.get("type", "none")
        message = f"the local driver mounts no file systems (type={kind}, o={options.get('o', '')})"
        raise WherryError(Kind.UNSUPPORTED, message, hint=_BIND_HINT)
    stray = [word for word in words if word not in ("bind", "rbind", "ro", "rw")]
    if stray:
        raise WherryError(Kind.INVALID, f'o={options["o"]}: unknown option "{stray[0]}"', hint="bind, rbind, ro or rw")
    if not options.get("device", "").startswith("/"):
        raise WherryError(Kind.INVALID, "a bind volume needs device=/path", hint=_BIND_HINT)
    if not os.path.isdir(options["device"]):
        raise WherryError(Kind.NOT_FOUND, f"device={options['device']} is no directory of this host", hint="make it")


def source(house: House, row: Volume) -> str:
    """What is mounted for the volume: its own directory, or the host's that it stands for."""
    return str(row.options["device"]) if row.options else house.volumes.path(row.dir)


def options(row: Volume, mount: Resolved) -> tuple[str, ...]:
    """The mount's options with what the volume's own add to each of its mounts."""
    ro = mount.writable and "ro" in row.options.get("o", "").split(",")
    return (*(o for o in mount.options if o != "rw"), "ro") if ro else mount.options


def empty(house: House, row: Volume) -> bool:
    """Whether nothing lies in it."""
    if not row.options:
        return house.volumes.empty(row.dir)
    try:
        with os.scandir(row.options["device"]) as entries:
            return next(entries, None) is None
    except OSError as error:
        message = f"volume {row.name}: {row.options['device']} cannot be read: {error.strerror}"
        hint = "the directory was there when the volume was made"
        raise WherryError(Kind.PRECONDITION, message, hint=hint) from error


def fill(house: House, row: Volume, source: int) -> None:
    """Copy the content of the directory `source` into the volume if it is still empty."""
    if not empty(house, row):
        return
    if not row.options:
        house.volumes.copy_up(row.dir, source)
        return
    from wherry.volume.volumes import copy_directory

    target = os.open(row.options["device"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy_directory(source, target)
    finally:
        os.close(target)


def shape(house: House, row: Volume) -> Json:
    """docker's volume object."""
    from datetime import UTC, datetime

    labels = dict(row.labels)
    if row.anonymous:
        labels.setdefault("com.docker.volume.anonymous", "")
    return {
        "Name": row.name,
        "Driver": "local",
        "Mountpoint": house.volumes.path(row.dir),
        "CreatedAt": datetime.fromtimestamp(row.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "Labels": labels or None,
        "Options": dict(row.options) or None,
        "Scope": "local",
    }


def _get(house: House, name: str) -> Volume:
    row = house.db.volume(name)
    if row is None:
        raise WherryError(Kind.NOT_FOUND, f"no such volume: {name}")
    return row


def inspect(house: House, name: str) -> Json:
    """One volume."""
    return shape(house, _get(house, name))


def _matches(house: House, row: Volume, wanted: Filters) -> bool:
    filters.check(wanted, _FILTERS)
    checks = {
        "name": lambda v: filters.named(v, row.name),
        "label": lambda v: filters.labels(v, row.labels),
        "dangling": lambda v: (v[0].lower() in ("true", "1")) == (not house.db.volume_users(row.name)),
        "driver": lambda v: "local" in v,
    }
    return all(checks[name](values) for name, values in wanted.items())


def listing(house: House, wanted: Filters) -> list[Json]:
    """All volumes by name."""
    return [shape(house, row) for row in house.db.volumes() if _matches(house, row, wanted)]


def discard(house: House, row: Volume) -> None:
    """Row first, then bytes."""
    house.db.remove_volume(row.name)
    house.volumes.remove(row.dir)
    events.emit(house, "volume", "destroy", row.name, {"driver": "local"})


def remove(house: House, name: str, *, force: bool) -> None:
    """`volume rm`."""
    row = house.db.volume(name)
    if row is not None:
        discard(house, row)
    elif not force:
        _get(house, name)


def prune(house: House, *, all: bool, filters: Filters) -> Json:
    """Remove unused anonymous volumes, or all unused ones."""
    every = all or any(value.lower() in ("1", "true") for value in filters.get("all", ()))
    wanted = {name: values for name, values in filters.items() if name == "label"}
    deleted, freed = [], 0
    for row in house.db.volumes():
        if (every or row.anonymous) and not house.db.volume_users(row.name) and _matches(house, row, wanted):
            size = house.volumes.usage(row.dir)
            try:
                discard(house, row)
            except WherryError as error:
                if error.kind is not Kind.CONFLICT:
                    raise
                continue
            deleted.append(row.name)
            freed += size
    return {"VolumesDeleted": deleted, "SpaceReclaimed": freed}
