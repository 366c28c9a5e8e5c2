"""Named volumes: names and users in the database, bytes in volume/ or with a driver (served.py).

Decides docker's shapes and what may be removed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import events, filters, voloptions
from .db import Volume
from .house import House
from .mounts import Resolved
from .undo import making

__all__ = [
    "check_name", "claim", "create", "discard", "empty", "fill", "get", "inspect", "is_empty", "listing", "opened",
    "options", "prune", "remove", "resize", "shape", "source", "store", "usage",
]  # fmt: skip

Filters = Mapping[str, Sequence[str]]
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}"
_FILTERS = ("name", "label", "dangling", "driver")


def claim(
    house: House, name: str, labels: Mapping[str, str], options: Mapping[str, str], *, anonymous: bool = False,
    driver: str = voloptions.LOCAL,
) -> tuple[Volume, bool]:  # fmt: skip
    """The volume of this name ("": a minted one), made if it is missing; and whether it is new."""
    found = house.db.volume(name) if name else None
    if found is not None:
        return found, False
    check_name(name, "volume")
    row = Volume(name or os.urandom(32).hex(), "", time.time(), anonymous, dict(labels), dict(options))
    request = voloptions.read(driver, options)
    with making(house):
        if request is not None:
            from . import served

            return store(house, served.make(house, row._replace(dir=os.urandom(16).hex()), request))
        return store(house, row._replace(dir=house.volumes.create()))


def check_name(name: str, what: str) -> None:
    """INVALID unless it is one that a volume, or a snapshot of one, may have; "" is left to us."""
    if name and not re.fullmatch(_NAME, name):
        hint = "names are 2 to 255 of [a-zA-Z0-9_.-] and begin with a letter or a digit"
        raise WherryError(Kind.INVALID, f'invalid {what} name "{name}"', hint=hint)


def store(house: House, row: Volume) -> tuple[Volume, bool]:
    """Give what was made its row; somebody may have been faster, then theirs it is."""
    try:
        stored = house.db.add_volume(row)
    except BaseException:
        _drop(house, row)
        raise
    if stored.dir != row.dir:
        _drop(house, row)
        return stored, False
    if row.driver != voloptions.LOCAL:
        house.db.sync()
    events.emit(house, "volume", "create", row.name, {"driver": row.driver})
    return row, True


def _drop(house: House, row: Volume) -> None:
    if row.driver == voloptions.LOCAL:
        house.volumes.remove(row.dir)
    else:
        from . import served

        served.drop(house, row)


def create(house: House, name: str, driver: str, labels: Mapping[str, str], options: Mapping[str, str]) -> Json:
    """`volume create`."""
    request = voloptions.read(driver, options)
    if request is None:
        _check_options(options)
    found = house.db.volume(name) if name else None
    wanted = request.driver if request else voloptions.LOCAL
    if found is not None and ((options and dict(found.options) != dict(options)) or found.driver != wanted):
        hint = f"wherry volume inspect {name} shows them; remove it first, or choose another name"
        what = "other options" if found.driver == wanted else f"the driver {found.driver}"
        raise WherryError(Kind.CONFLICT, f"volume {name} exists with {what}", hint=hint)
    return shape(house, claim(house, name, labels, options, anonymous=not name, driver=driver)[0])


_BIND_HINT = "a directory of the host: -o type=none -o o=bind -o device=/path; memory: --tmpfs when running; a volume \
with a size of its own: -o size=2G"


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


def source(house: House, row: Volume, cid: str) -> str:
    """What is mounted for a container: the volume's own directory, the host's that it stands for, or where its driver
    will mount it."""
    if row.driver != voloptions.LOCAL:
        from . import served

        return served.target(house, row, cid)
    return str(row.options["device"]) if row.options else house.volumes.path(row.dir)


def options(row: Volume, mount: Resolved) -> tuple[str, ...]:
    """The mount's options with what the volume's own add to each of its mounts."""
    ro = mount.writable and row.driver == voloptions.LOCAL and "ro" in row.options.get("o", "").split(",")
    return (*(o for o in mount.options if o != "rw"), "ro") if ro else mount.options


@contextmanager
def opened(house: House, row: Volume, *, readonly: bool = True) -> Iterator[int]:
    """The volume's top directory as a descriptor; a driver's is mounted for as long as that is held."""
    if row.driver == voloptions.LOCAL and not row.options:
        with house.volumes.data(row.dir) as fd:
            yield fd
    elif row.driver == voloptions.LOCAL:
        with _directory(row, str(row.options["device"])) as fd:
            yield fd
    else:
        from . import served

        if row.handle["access"] == "block":
            hint = "give it to a container, and read its device there"
            raise WherryError(Kind.UNSUPPORTED, f"volume {row.name} is a block volume: it has no files", hint=hint)
        with served.visiting(house, row, readonly=readonly) as path, _directory(row, path) as fd:
            yield fd


@contextmanager
def _directory(row: Volume, path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"volume {row.name}: {path} cannot be read: {error.strerror}"
        hint = "the directory was there when the volume was made"
        raise WherryError(Kind.PRECONDITION, message, hint=hint) from error
    try:
        yield fd
    finally:
        os.close(fd)


def empty(house: House, row: Volume) -> bool:
    """Whether nothing lies in it. A driver's is looked at when it is mounted: `fill`."""
    if row.driver != voloptions.LOCAL:
        return True
    with opened(house, row) as fd:
        return is_empty(fd)


def is_empty(where: str | int) -> bool:
    """Whether nothing lies in a directory but what its file system puts there."""
    with os.scandir(where) as entries:
        return all(entry.name == "lost+found" for entry in entries)


def fill(house: House, row: Volume, source: int) -> None:
    """Copy the content of the directory `source` into the volume if it is still empty."""
    from wherry.volume.copying import copy_directory

    with opened(house, row, readonly=False) as target:
        if is_empty(target):
            copy_directory(source, target)


def shape(house: House, row: Volume) -> Json:
    """docker's volume object."""
    from datetime import UTC, datetime

    labels = dict(row.labels)
    if row.anonymous:
        labels.setdefault("com.docker.volume.anonymous", "")
    return {
        "Name": row.name,
        "Driver": row.driver,
        "Mountpoint": _mountpoint(house, row),
        "CreatedAt": datetime.fromtimestamp(row.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "Labels": labels or None,
        "Options": dict(row.options) or None,
        "Scope": "local",
        **({"Status": {"size": row.handle["size"]}} if row.driver != voloptions.LOCAL else {}),
    }


def _mountpoint(house: House, row: Volume) -> str:
    if row.driver == voloptions.LOCAL:
        return house.volumes.path(row.dir)
    from . import served

    return served.mountpoint(house, row)


def get(house: House, name: str) -> Volume:
    row = house.db.volume(name)
    if row is None:
        raise WherryError(Kind.NOT_FOUND, f"no such volume: {name}")
    return row


def inspect(house: House, name: str) -> Json:
    """One volume; of a driver's, with what that says of it now."""
    row = get(house, name)
    if row.driver == voloptions.LOCAL:
        return shape(house, row)
    from . import served

    status = served.status(house, row)
    return shape(house, row) | {"Status": status}


def usage(house: House, row: Volume) -> int:
    """Bytes that it takes; 0 where its driver does not tell."""
    if row.driver == voloptions.LOCAL:
        return house.volumes.usage(row.dir)
    from . import served

    try:
        return served.usage(house, row).used
    except WherryError as error:
        house.warn(error.message)
        return 0


def resize(house: House, name: str, size: int, *, more: bool = False) -> int:
    """`volume resize`, to `size` bytes, or by so many `more`; the new size in bytes."""
    row = get(house, name)
    if row.driver == voloptions.LOCAL:
        hint = f"make one that has: wherry volume create -o size=..., and copy: wherry volume export {name}"
        raise WherryError(Kind.PRECONDITION, f"volume {name} is a directory: it has no size of its own", hint=hint)
    size += row.handle["size"] if more else 0
    if size < row.handle["size"]:
        hint = "volumes only grow; make a smaller one, and copy: wherry volume export, import"
        message = f"volume {name} cannot be made smaller than its {row.handle['size']} bytes"
        raise WherryError(Kind.INVALID, message, hint=hint)
    from . import served

    with making(house):
        larger = served.resize(house, row, size)
    events.emit(house, "volume", "resize", name, {"driver": row.driver, "size": str(larger)})
    return larger


def _matches(house: House, row: Volume, wanted: Filters) -> bool:
    filters.check(wanted, _FILTERS)
    checks = {
        "name": lambda v: filters.named(v, row.name),
        "label": lambda v: filters.labels(v, row.labels),
        "dangling": lambda v: (v[0].lower() in ("true", "1")) == (not house.db.volume_users(row.name)),
        "driver": lambda v: row.driver in v,
    }
    return all(checks[name](values) for name, values in wanted.items())


def listing(house: House, wanted: Filters) -> list[Json]:
    """All volumes by name."""
    return [shape(house, row) for row in house.db.volumes() if _matches(house, row, wanted)]


def discard(house: House, row: Volume) -> None:
    """Row first, then bytes."""
    if row.driver == voloptions.LOCAL:
        house.db.remove_volume(row.name)
        house.volumes.remove(row.dir)
    else:
        from . import served

        served.remove(house, row)
    events.emit(house, "volume", "destroy", row.name, {"driver": row.driver})


def remove(house: House, name: str, *, force: bool) -> None:
    """`volume rm`."""
    row = house.db.volume(name)
    if row is not None:
        discard(house, row)
    elif not force:
        get(house, name)


def prune(house: House, *, all: bool, filters: Filters) -> Json:
    """Remove unused anonymous volumes, or all unused ones."""
    every = all or any(value.lower() in ("1", "true") for value in filters.get("all", ()))
    wanted = {name: values for name, values in filters.items() if name == "label"}
    deleted, freed = [], 0
    for row in house.db.volumes():
        if (every or row.anonymous) and not house.db.volume_users(row.name) and _matches(house, row, wanted):
            size = usage(house, row)
            try:
                discard(house, row)
            except WherryError as error:
                if error.kind is not Kind.CONFLICT:
                    raise
                continue
            deleted.append(row.name)
            freed += size
    return {"VolumesDeleted": deleted, "SpaceReclaimed": freed}
