"""Volumes that a CSI driver keeps: made, deleted, mounted for containers, measured.

Decides where they are mounted (STATE/csi/<dir>/staging, STATE/csi/<dir>/<container>) and what is noted before a driver
is asked, so that whoever dies leaves nothing that `gc` does not know. What is mounted is read from these directories:
there is no other record of it. Knows drivers by `driver` of a row: our own, which starts on demand, or a unix socket.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .db import Leftover, Volume, VolumeSnapshot
from .house import House
from .voloptions import OWN, Request, limits

if TYPE_CHECKING:
    from wherry.volume.csi import Client, Handle, Usage

__all__ = [
    "abandon", "attach", "detach", "drop", "is_served", "make", "mountpoint", "orphans", "release", "remove",
    "remove_snapshot", "resize", "silent", "status", "sweep", "take", "target", "throttles", "usage", "visiting",
]  # fmt: skip

_STAGING = "staging"
_VISIT = "visit-"
_LOCK_SECONDS = 120.0
_MONITORS = "/wherry-monitors"
#: failures of a driver after which it may have made what was asked; all others are refusals
_DOUBT = (Kind.UNAVAILABLE, Kind.INTERNAL)
#: those after which it may delete it later
_LATER = (*_DOUBT, Kind.EXHAUSTED)


def is_served(row: Volume | VolumeSnapshot | Leftover) -> bool:
    """Whether a driver has it."""
    return row.driver != "local"


def _client(house: House, driver: str) -> Client:
    if driver not in house.drivers:
        house.drivers[driver] = _connect(house, driver)
    return house.drivers[driver]


def _connect(house: House, driver: str) -> Client:
    from wherry.volume import csi
    from wherry.volume import driver as own

    if driver != OWN:
        return csi.Client(driver.removeprefix("unix://"), driver)
    place = house.place

    def ensure() -> None:
        from . import command

        house.prepare()
        mount = house.facts.cgroup_mount
        cgroup = f"{mount}{_MONITORS}" if mount else ""
        own.ensure(place.root, place.state, house.settings.volume_driver_idle, command.environment(house), cgroup)

    return csi.Client(own.endpoint(place.state), OWN, ensure)


def _handle(row: Volume | Leftover) -> Handle:
    from wherry.volume.csi import Handle

    return Handle(**row.handle)


def _about(row: Volume) -> str:
    return f"volume {row.name}"


# ---- made and deleted ----


def make(house: House, row: Volume, request: Request, source: tuple[str, str] | None = None) -> Volume:
    """Let the driver make what the row describes; the row with its handle. The row is not stored yet: until it is, a
    leftover stands for it."""
    from wherry.volume.csi import Wish

    about = _about(row)
    client = _client(house, request.driver)
    client.must_answer(about)
    parameters, mutable = dict(request.parameters), dict(request.mutable)
    wish = Wish(f"wherry-{row.dir}", request.size, request.access, request.fs, parameters, mutable, source)
    house.db.add_leftover(Leftover(row.dir, request.driver, "volume", {"wish": wish._asdict()}))
    try:
        made = client.create(wish, about)
    except WherryError as error:
        if error.kind not in _DOUBT:
            house.db.remove_leftover(row.dir)
        raise
    handle = made._asdict()
    house.db.add_leftover(Leftover(row.dir, request.driver, "volume", handle))
    return row._replace(driver=request.driver, handle=handle)


def take(house: House, row: Volume, name: str) -> VolumeSnapshot:
    """Let the driver take a snapshot; its row, not stored yet."""
    minted = os.urandom(16).hex()
    wish = {"volume": row.handle["id"], "name": f"wherry-{minted}"}
    client = _client(house, row.driver)
    client.must_answer(_about(row))
    house.db.add_leftover(Leftover(minted, row.driver, "snapshot", {"wish": wish}))
    try:
        made = client.snapshot(row.handle["id"], wish["name"], _about(row))
    except WherryError as error:
        if error.kind not in _DOUBT:
            house.db.remove_leftover(minted)
        raise
    kept = {key: row.handle[key] for key in ("access", "fs")}
    handle = {"id": made.id, "size": made.size or row.handle["size"], "options": dict(row.options), **kept}
    house.db.add_leftover(Leftover(minted, row.driver, "snapshot", handle))
    return VolumeSnapshot(name, minted, made.created or time.time(), row.name, row.driver, handle)


def remove(house: House, row: Volume) -> None:
    """Row first, then bytes; what a driver cannot do now is left for `gc`, what it refuses stays a volume."""
    left = Leftover(row.dir, row.driver, "volume", row.handle)
    _remove(house, left, _about(row), lambda: house.db.remove_volume(row.name), lambda: house.db.add_volume(row))


def remove_snapshot(house: House, row: VolumeSnapshot) -> None:
    """As `remove`."""
    left, about = Leftover(row.dir, row.driver, "snapshot", row.handle), f"volume snapshot {row.name}"
    _remove(house, left, about, lambda: house.db.remove_snapshot(row.name), lambda: house.db.add_snapshot(row))


def _remove(
    house: House, left: Leftover, about: str, forget: Callable[[], object], keep: Callable[[], object]
) -> None:  # fmt: skip
    """The row becomes a leftover, and that goes with the bytes; if the driver refuses, the row comes back."""
    with house.db.write():
        forget()
        house.db.add_leftover(left)
    house.db.sync()  # a row must not come back after what it names
    try:
        _delete(house, left, about)
    except WherryError as error:
        if error.kind not in _LATER:
            keep()
            raise
        house.warn(f"{error.message}: `wherry gc` will try again to delete it")


def _delete(house: House, left: Leftover, about: str) -> None:
    """What a leftover names, or may name, goes."""
    client = _client(house, left.driver)
    if name := left.handle.get("id") or _made_after_all(client, left, about):
        if left.kind == "snapshot":
            client.delete_snapshot(name, about)
        else:
            _be_unused(house, left.dir, client, name, about)
            client.delete(name, about)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_lock_path(house, left.dir))
    house.db.remove_leftover(left.dir)


def _be_unused(house: House, vid: str, client: Client, name: str, about: str) -> None:
    """No container has it, for the row is gone; a command that exports it, say, still may."""
    from . import cleanup

    if _attached(house, vid):
        cleanup.await_rest(house)  # of a container that has just ended
    for who in [*_attached(house, vid), ""]:
        if who and not _is_stale(house, who):
            raise WherryError(Kind.CONFLICT, f"{about} is in use by another command", hint="try again")
        _leave(house, vid, who, client, (name, about))


def drop(house: House, row: Volume | VolumeSnapshot) -> None:
    """Delete what was made for a row that is not stored after all."""
    kind = "volume" if isinstance(row, Volume) else "snapshot"
    _delete(house, Leftover(row.dir, row.driver, kind, row.handle), f"{kind} {row.name}")


def _made_after_all(client: Client, left: Leftover, about: str) -> str:
    """The id of what a killed command may have made: the same request gives the same thing. "" where it is refused, for
    then there is nothing; and of our own driver, all of whose volumes can be listed (`_unknown`)."""
    from wherry.volume.csi import Wish

    if left.driver == OWN:
        return ""
    wish = left.handle["wish"]
    try:
        if left.kind == "snapshot":
            return client.snapshot(wish["volume"], wish["name"], about).id
        source = tuple(wish["source"]) if wish["source"] else None
        return client.create(Wish(**{**wish, "source": source}), about).id
    except WherryError as error:
        if error.kind in _DOUBT:
            raise
        return ""


# ---- mounted ----


def _folder(house: House, vid: str) -> str:
    return f"{house.place.state}/csi/{vid}"


def target(house: House, row: Volume, who: str) -> str:
    """Where the volume is for a container."""
    return f"{_folder(house, row.dir)}/{who}"


def mountpoint(house: House, row: Volume) -> str:
    """Where it is mounted now, "" if it is not."""
    return f"{_folder(house, row.dir)}/{_STAGING}" if _attached(house, row.dir) else ""


def _lock_path(house: House, vid: str) -> str:
    return f"{_folder(house, vid)}.lock"


@contextlib.contextmanager
def _locked(house: House, vid: str) -> Iterator[None]:
    """One at a time mounts a volume or takes it down: who is the last one is decided under it."""
    from wherry.kernel import files

    os.makedirs(f"{house.place.state}/csi", 0o700, exist_ok=True)
    with files.flock(_lock_path(house, vid), _LOCK_SECONDS):
        yield


def _attached(house: House, vid: str) -> list[str]:
    """Who has the volume, or had when it was killed."""
    try:
        return sorted(name for name in os.listdir(_folder(house, vid)) if name != _STAGING)
    except FileNotFoundError:
        return []


def attach(house: House, row: Volume, who: str, *, readonly: bool = False) -> str:
    """Mount the volume for a container (`who`); its path. Mounted already is success."""
    client, place = _client(house, row.driver), _folder(house, row.dir)
    path = f"{place}/{who}"
    with _locked(house, row.dir):
        try:
            os.makedirs(place, 0o700, exist_ok=True)
            client.attach(_handle(row), f"{place}/{_STAGING}", path, readonly=readonly, about=_about(row))
            _must_be_here(row, place, path)
        except BaseException:
            with contextlib.suppress(WherryError, OSError):
                _leave_locked(house, row.dir, who, client, (row.handle["id"], _about(row)))
            with contextlib.suppress(OSError):
                os.rmdir(place)  # if the driver was never asked
            raise
    return path


def _must_be_here(row: Volume, place: str, path: str) -> None:
    """A driver in another mount namespace mounts where nobody of us sees it: a container would write into the empty
    directory, or beside it."""
    if not os.path.exists(path) or _mount_id(path) == _mount_id(place):
        message = f"{_about(row)}: the driver {row.driver} says that it is mounted, but nothing is at {path}"
        hint = "the driver runs in another mount namespace: start it in the host's, or let its mounts come out of there"
        raise WherryError(Kind.PRECONDITION, message, hint=hint)


def _mount_id(path: str) -> str:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def detach(house: House, row: Volume, who: str) -> None:
    """Undo `attach`; not mounted is success."""
    _leave(house, row.dir, who, _client(house, row.driver), (row.handle["id"], _about(row)))


def _leave(house: House, vid: str, who: str, client: Client, called: tuple[str, str]) -> None:
    """`called`: what the driver calls the volume, and what failures do."""
    if os.path.isdir(_folder(house, vid)):
        with _locked(house, vid):
            _leave_locked(house, vid, who, client, called)


def _leave_locked(house: House, vid: str, who: str, client: Client, called: tuple[str, str]) -> None:
    place, (name, about) = _folder(house, vid), called
    if who and os.path.lexists(f"{place}/{who}"):
        client.unpublish(name, f"{place}/{who}", about)
    if os.path.isdir(place) and not _attached(house, vid):
        client.release(name, f"{place}/{_STAGING}", about)
        os.rmdir(place)


def release(house: House, who: str) -> None:
    """Take down all that a container had. What a driver cannot do now is told, and left for `gc`."""
    for vid in _volumes_in_use(house):
        if os.path.lexists(f"{_folder(house, vid)}/{who}"):
            try:
                _leave_by_id(house, vid, who)
            except (WherryError, OSError) as error:
                house.warn(f"what container {who[:12]} had mounted is left for `wherry gc`: {error}")


def _volumes_in_use(house: House) -> list[str]:
    try:
        found = os.listdir(f"{house.place.state}/csi")
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.endswith(".lock"))


def _leave_by_id(house: House, vid: str, who: str) -> None:
    """By the row, or by the leftover; without either by the kernel alone."""
    known: Mapping[str, Volume | Leftover] = {
        **{left.dir: left for left in house.db.leftovers() if "id" in left.handle},
        **{row.dir: row for row in house.db.volumes() if is_served(row)},
    }
    if (found := known.get(vid)) is None:
        _unmount(house, vid)
        return
    name = found.handle["id"]
    about = _about(found) if isinstance(found, Volume) else f"volume {name}"
    _leave(house, vid, who, _client(house, found.driver), (name, about))


def _unmount(house: House, vid: str) -> None:
    from wherry.kernel import files, mount

    for found in mount.below(_folder(house, vid)):
        mount.unmount(found.target)
    files.remove_tree(_folder(house, vid))
    files.remove_tree(_lock_path(house, vid))


def abandon(house: House) -> None:
    """Take down by the kernel alone what is still mounted: its driver is away, and we will not ask again."""
    for vid in _volumes_in_use(house):
        _unmount(house, vid)


@contextlib.contextmanager
def visiting(house: House, row: Volume, *, readonly: bool = False) -> Iterator[str]:
    """The volume, mounted for this command while the with block lasts. A killed one's is found by its name."""
    from wherry.kernel import process

    me = process.start_time(os.getpid())
    who = f"{_VISIT}{os.getpid()}-{me}-{os.urandom(4).hex()}"
    path = attach(house, row, who, readonly=readonly)
    try:
        yield path
    finally:
        detach(house, row, who)


def _is_stale(house: House, who: str) -> bool:
    """Whether nobody has any use for this mount: containers have a run directory, visitors live."""
    if not who.startswith(_VISIT):
        return not os.path.isdir(house.state_dir(who))
    from wherry.kernel import process

    pid, start = who.removeprefix(_VISIT).split("-")[:2]
    return process.start_time(int(pid)) != int(start)


# ---- looked at, made larger ----


def usage(house: House, row: Volume) -> Usage:
    """df, exact; mounts what is not mounted."""
    client, place = _client(house, row.driver), _folder(house, row.dir)
    if there := _attached(house, row.dir):
        with contextlib.suppress(WherryError):  # it may just have ended
            return client.usage(_handle(row), f"{place}/{_STAGING}", f"{place}/{there[0]}", _about(row))
    with visiting(house, row, readonly=True) as path:
        return client.usage(_handle(row), f"{place}/{_STAGING}", path, _about(row))


def status(house: House, row: Volume) -> Json:
    """docker's Status: the driver's own name, sizes in bytes, the condition in words; what cannot be told is why."""
    found: Json = {"size": row.handle["size"]}
    try:
        seen = usage(house, row)
    except WherryError as error:
        return found | {"condition": error.message}
    df = {"size": seen.total, "used": seen.used, "available": seen.available}
    return found | df | {"capacity": row.handle["size"], "condition": seen.condition or "ok"}


def resize(house: House, row: Volume, size: int) -> int:
    """Make it larger, in use or not; the new size."""
    client, place, about = _client(house, row.driver), _folder(house, row.dir), _about(row)
    done = client.expand(_handle(row), size, about)
    larger = {**row.handle, "size": max(done.size, row.handle["size"])}
    house.db.set_volume_handle(row.name, larger)
    if done.node:
        with visiting(house, row) as path:
            client.grow_on_node(_handle(row), done.size, f"{place}/{_STAGING}", path, about)
    return int(larger["size"])


def throttles(row: Volume, path: str) -> Json:
    """The volume's io limits as linux.resources.blockIO of a container that has it at `path`."""
    wanted = limits(row.options) if row.driver == OWN else {}
    found = os.stat(path)
    device = found.st_rdev if row.handle["access"] == "block" else found.st_dev
    where = {"major": os.major(device), "minor": os.minor(device)}
    return {key: [{**where, "rate": rate}] for key, rate in wanted.items()}


# ---- swept ----


def sweep(house: House) -> list[str]:
    """What crashes and absent drivers left: mounts that nobody uses, and what no row names. What still cannot be done
    is told. To be called while nothing is being made."""
    found = []
    for vid, who in _stale(house):
        found += _tried(house, partial(_leave_by_id, house, vid, who), f"mount {vid}/{who or _STAGING}")
    for left in house.db.leftovers():
        what = f"{left.kind} {left.handle.get('id', left.dir)}"
        found += _tried(house, partial(_delete, house, left, what), what)
    return found + _unknown(house)


def _tried(house: House, step: Callable[[], object], what: str) -> list[str]:
    try:
        step()
    except (WherryError, OSError) as error:
        house.warn(f"{what} is still there: {error}")
        return []
    return [what]


def _stale(house: House) -> list[tuple[str, str]]:
    """(volume's dir, who had it), who "" where only the staging is left."""
    found = []
    for vid in _volumes_in_use(house):
        attached = _attached(house, vid)
        found += [(vid, who) for who in attached if _is_stale(house, who)] if attached else [(vid, "")]
    return found


def _unknown(house: House) -> list[str]:
    """What our own driver has and no row names: its pool is ours alone, and rows are on disk before they are told."""
    if not os.path.isdir(f"{house.place.root}/csi"):
        return []
    client, found = _client(house, OWN), []
    rows: list[Volume | VolumeSnapshot | Leftover] = [*house.db.volumes(), *house.db.snapshots(), *house.db.leftovers()]
    known = {row.handle.get("id") for row in rows}
    listed = (("volume", client.volumes, client.delete), ("snapshot", client.snapshots, client.delete_snapshot))
    for kind, names, delete in listed:
        try:
            unknown = sorted(set(names(f"listing {kind}s")) - known)
        except WherryError as error:
            house.warn(error.message)
            continue
        for name in unknown:
            what = f"{kind} {name}"
            found += _tried(house, partial(delete, name, what), what)
    return found


def silent(house: House) -> list[tuple[str, str]]:
    """(driver, why it cannot serve its volumes, "" if it can) of every driver by a socket."""
    found = []
    for name in sorted({row.driver for row in house.db.volumes() if row.driver not in ("local", OWN)}):
        try:
            found.append((name, "" if _client(house, name).ready() else "it is not ready"))
        except WherryError as error:
            found.append((name, error.message))
    return found


def orphans(house: House) -> list[str]:
    """What `sweep` would take, as far as the rows and the directories of this wherry tell."""
    mounts = [f"{house.place.state}/csi/{vid}/{who or _STAGING}" for vid, who in _stale(house)]
    return mounts + [f"{left.kind} {left.handle.get('id', left.dir)} of {left.driver}" for left in house.db.leftovers()]
