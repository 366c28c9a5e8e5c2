"""What crashes left: containers that ended without a witness, files of containers and pods without a row, networks of
the dead.

Decides what is garbage. The quick sweep runs before every create and run and only looks at STATE/c and a few names; the
thorough one (`wherry gc`) looks everywhere. Files without a row are swept only while nothing is being made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.model import Json

from . import cleanup, codec, fence, joining, keeping, members, records, restart
from .house import House
from .status import look
from .undo import container_lock, sweeping

if TYPE_CHECKING:
    from .db import Container

__all__ = ["half_made", "half_stopped", "sweep"]


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def sweep(house: House, *, thorough: bool) -> Json:
    """Sweep; returns what was swept. The quick sweep never fails: what it cannot do now, the next one does."""
    found: Json = {"containers": [], "orphans": [], "netns": [], "networks": [], "volumes": [], "snapshots": []}
    if not os.path.isdir(house.place.root) and not thorough:
        return found
    if thorough:
        _everything(house, found)
    else:
        with contextlib.suppress(WherryError, OSError):
            _quick(house, found)
            keeping.wake(house)
    return {key: value for key, value in found.items() if value}


def _builds(house: House, found: Json) -> None:
    if os.path.isdir(f"{house.place.root}/cache/build/work"):
        from .build import work

        found["builds"] = list(work.sweep(house))


def _quick(house: House, found: Json) -> None:
    _builds(house, found)
    present, pods = _names(f"{house.place.state}/c"), _pods(house)
    if not (present or pods or _names(f"{house.place.root}/containers")):
        return
    rows = house.db.container_ids()
    _thaw(house, [cid for cid in present if cid in rows], found)
    _settle(house, [cid for cid in present if cid in rows], found)
    if pods:
        _pods_without_row(house, found, alone=False)
    mine = set(present) | set(_names(f"{house.place.root}/containers"))
    if mine - rows or (pods and _pods(house) - house.db.pod_ids()):
        _orphans(house, found, wait=False)
    if found["containers"] or found["orphans"]:  # a crash: what it left of a plugin's own, no DEL takes away
        house.networks.collect()
        members.refresh_all(house)


def _everything(house: House, found: Json) -> None:
    house.prepare()
    cleanup.await_rest(house)
    _builds(house, found)
    rows = house.db.container_ids()
    _thaw(house, sorted(rows), found)
    _settle(house, sorted(rows), found, all_of_them=True)
    found["pods"] = half_stopped(house)
    _pods_without_row(house, found, alone=False)
    _orphans(house, found, wait=True)
    _volumes(house, found)
    _served(house, found)
    _network(house, found)
    members.refresh_all(house)
    keeping.wake(house)
    house.snapshots.sweep()
    _images(house, found)


def _images(house: House, found: Json) -> None:
    from . import images

    freed = images.sweep(house)
    if freed:
        found["images"] = [f"{freed} bytes that nothing used"]


def _thaw(house: House, ids: Sequence[str], found: Json) -> None:
    """Containers that a killed `commit` froze."""
    from . import frozen

    found["frozen"] = [cid for cid in ids if frozen.thaw(house, cid)]


def _settle(house: House, ids: Sequence[str], found: Json, *, all_of_them: bool = False) -> None:
    cared_for = set() if all_of_them else _monitored(house, ids)
    for cid in ids:
        if cid in cared_for:
            continue
        row = house.db.container(cid)
        if row is not None and fence.readable(house, row):
            with contextlib.suppress(WherryError):
                _settle_one(house, row, found)


def _monitored(house: House, ids: Sequence[str]) -> set[str]:
    """Cheap: a living monitor takes care of its container by itself."""
    from wherry.container import state

    try:
        return state.monitored(house.place.state, ids)
    except OSError:  # larger records than anybody has
        return set()


def _settle_one(house: House, row: Container, found: Json) -> None:
    seen = look(house, row.id)
    if seen.running:
        if seen.state is not None and not process.alive(seen.state.monitor):
            _end(house, row, found)  # init outlived its monitor: decision 2
        return
    if seen.unsettled:
        _end(house, row, found)
    elif seen.status != "restarting" and seen.life.restarting is not None:
        _restart(house, row, seen.life)
    elif os.path.isdir(house.state_dir(row.id)):
        _unmake(house, row)


def _end(house: House, row: Container, found: Json) -> None:
    from .status import folder

    with contextlib.suppress(WherryError):  # killed between its two records: there is no state.json
        folder(house, row.id).settle()
    life = cleanup.settle(house, row)
    found["containers"].append(row.id)
    if life is not None:
        _restart(house, row, life)


def _restart(house: House, row: Container, life: records.Life) -> None:
    """The process that should have started it again is gone: another one takes over."""
    if restart.wanted(codec.decode_options(row.config["options"]).restart, life):
        cleanup.in_background(house, row.id)


def _unmake(house: House, row: Container) -> None:
    """A start that was killed before it wrote down anything but its run directory."""
    with container_lock(house, row.id, 0):
        cleanup.settle_now(house, row)


def _orphans(house: House, found: Json, *, wait: bool) -> None:
    """They are told while nothing is being made, and stay what they are. Taken they are afterwards, each with its own
    lock held: a plugin may hang, and nobody who makes something else shall wait for that."""
    from . import remove

    for cid in _rowless(house, found, wait=wait):
        with contextlib.suppress(WherryError, OSError), _nobody_at(house, cid):
            cleanup.remove_cgroup(house, cid)
            _release(house, cid)
            cleanup.leave_volumes(house, cid)
            remove.files_of(house, cid)
            found["orphans"].append(cid)


def _rowless(house: House, found: Json, *, wait: bool) -> list[str]:
    with sweeping(house, wait) as alone:
        if not alone:
            return []
        _pods_without_row(house, found, alone=True)
        rows = house.db.container_ids() | house.db.pod_ids()
        everywhere = {
            *_names(f"{house.place.state}/c"),
            *_names(f"{house.place.root}/containers"),
            *house.snapshots.keys(),
            *_names(f"{house.place.state}/netns"),
        }
        return sorted(everywhere - rows)


def _pods(house: House) -> set[str]:
    """The pods that have files."""
    return {*_names(f"{house.place.state}/pods"), *_names(f"{house.place.root}/pods")}


def _pods_without_row(house: House, found: Json, *, alone: bool) -> None:
    there = _pods(house)  # before the rows: one that is being made is then seen as that
    for pod in sorted(there - house.db.pod_ids()) if there else ():
        from .pods import sandbox

        with contextlib.suppress(WherryError, OSError):
            if sandbox.clear(house, pod, alone=alone):
                found["orphans"].append(pod)


def half_made(house: House) -> list[str]:
    """Sweep what was killed while it made or removed a snapshot; returns what that is. Never fails."""
    left = house.snapshots.leftovers()
    if left:
        with contextlib.suppress(WherryError, OSError):
            house.snapshots.sweep()
    return left


def half_stopped(house: House) -> list[str]:
    """Finish the stops of pods that failed or were killed; returns those pods. One that is not ready for another reason
    is for its owner to stop. Never fails, but a plugin of CNI may take its time."""
    done: list[str] = []
    for pod in _names(f"{house.place.state}/pods"):
        from .pods import sandbox

        with contextlib.suppress(WherryError, OSError):
            if sandbox.finish(house, pod):
                done.append(pod)
    return done


@contextlib.contextmanager
def _nobody_at(house: House, cid: str) -> Iterator[None]:
    """CONFLICT while somebody holds its lock: a command that has answered and does the rest of a removal."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(container_lock(house, cid, 0, create=False))
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:  # without a lock, or gone between our two looks: what is left is ours
                raise
        yield


def _release(house: House, cid: str) -> None:
    path = joining.netns_path(house, cid)
    if os.path.lexists(path):
        from wherry.net import netns

        with contextlib.suppress(WherryError):  # `wherry gc` tries again, and tells
            house.networks.drop(cid)
        netns.remove(path)


def _living(house: House) -> set[str]:
    """Containers and pods with a run directory that was not taken down."""
    run = {*_names(f"{house.place.state}/c"), *_names(f"{house.place.state}/pods")}
    return run & (house.db.container_ids() | house.db.pod_ids())


def _volumes(house: House, found: Json) -> None:
    with sweeping(house, True):
        known = {row.dir for row in house.db.volumes()} | {row.dir for row in house.db.snapshots()}
        for vid in house.volumes.ids():
            if vid not in known:
                house.volumes.remove(vid)
                found["volumes"].append(vid)


def _served(house: House, found: Json) -> None:
    """What drivers hold: only where one was ever used."""
    if house.db.leftovers() or any(os.path.isdir(f"{top}/csi") for top in (house.place.root, house.place.state)):
        from . import served

        with sweeping(house, True):
            found["driver"] = served.sweep(house)


def _network(house: House, found: Json) -> None:
    if not os.path.isdir(f"{house.place.root}/networks"):
        return
    with sweeping(house, True):
        try:
            found["networks"] = house.networks.sweep(_living(house))
        except WherryError as error:
            house.warn(f"what a crash left on a network is still there: {error.message}")
        for name, why in house.networks.collect().items():
            house.warn(f"network {name} could not be cleared of what is not known any more: {why}")
