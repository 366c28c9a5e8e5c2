"""`wherry-csi check`: records against files against the kernel. Says what is wrong, a sentence each; repairs nothing.

It works alone and beside a running driver. Beside one, calls come and go while it looks: it looks twice, and says what
it saw both times.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from . import mounts
from .backend.all import one_look
from .capacity import ledger
from .conditions import trouble
from .config import Config, PoolConfig
from .errors import CsiError
from .pools import ROOMS, TOP, Pool, PoolDown, Record
from .records import RECORD
from .trash import Reaper

__all__ = ["Complaint", "complaints", "report"]

_STALE = 600.0  # seconds after which what is half made or half removed beside a running driver is left over
_BETWEEN = 0.3  # seconds between two looks
_SLACK = 1 << 24  # bytes of the file system's own that are no overcommitment

_KNOWN = {*ROOMS, "lock", "lock.new", "pool.json"}


class Complaint(NamedTuple):
    """One thing that is wrong."""

    pool: str
    subject: str  # "volumes/ID", …; "" for the pool itself
    sentence: str


def report(config: Config, as_json: bool, out: TextIO) -> int:
    """Look at all pools and print; 0 if all is well, else 1."""
    found: list[Complaint] = []
    counts: list[str] = []
    for pool in config.pools:
        found += complaints(pool, counts.append)
    if as_json:
        print(json.dumps([one._asdict() for one in found], indent=1), file=out)
    else:
        for line in [f"pool {one.pool}: {one.subject + ': ' if one.subject else ''}{one.sentence}" for one in found]:
            print(line, file=out)
        for line in [] if found else counts:
            print(line, file=out)
    return 1 if found else 0


def complaints(config: PoolConfig, count: Callable[[str], None] = lambda _line: None) -> list[Complaint]:
    """What is wrong with one pool and all in it. `count` is told what was looked at."""
    if not os.path.isdir(config.path):
        return [Complaint(config.name, "", f"{config.path} is no directory")]
    if not os.path.exists(os.path.join(config.path, TOP)) and not config.mount:
        count(f"pool {config.name}: not used yet")
        return []
    alone = _alone(config)
    found = list(_look(config, alone, count))
    if found and not alone:
        time.sleep(_BETWEEN)
        again = set(_look(config, alone, lambda _line: None))
        found = [one for one in found if one in again]
    return found


def _alone(config: PoolConfig) -> bool:
    """Whether no driver is at work on the pool."""
    try:
        with open(os.path.join(config.path, TOP, "lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _look(config: PoolConfig, alone: bool, count: Callable[[str], None]) -> Iterator[Complaint]:
    pool = Pool(config, "", Reaper(), threading.RLock())
    try:
        pool.look()
    except (PoolDown, OSError) as error:
        yield Complaint(config.name, "", f"it cannot be looked at: {error}")
        return
    count(f"pool {config.name}: {len(pool.volumes)} volumes, {len(pool.snapshots)} snapshots: all is well")
    for subject, sentence in _all(pool, alone):
        yield Complaint(config.name, subject, sentence)


def _all(pool: Pool, alone: bool) -> Iterator[tuple[str, str]]:
    yield from pool.damaged.items()
    yield from _strangers(pool)
    for room in ("volumes", "snapshots"):
        kept: list[Record] = list(getattr(pool, room).values())
        with one_look():
            troubles = [(f"{room}/{record.id}", trouble(pool, record)) for record in kept]
        yield from ((subject, why) for subject, why in troubles if why)
        yield from _inside(pool, room, kept)
        for name, times in Counter(record.name for record in kept).items():
            if times > 1:
                yield room, f"{times} of them have the name {name!r}"
    yield from _growths(pool)
    yield from _groups(pool)
    yield from _projects(pool)
    yield from _leftovers(pool, alone)
    yield from _devices(pool)
    yield from _mounts(pool)
    yield from _books(pool)


def _strangers(pool: Pool) -> Iterator[tuple[str, str]]:
    for name in sorted(set(os.listdir(pool.place.top)) - _KNOWN):
        if not name.endswith(".new"):
            yield name, "nobody of this driver put it there"


def _inside(pool: Pool, room: str, kept: list[Record]) -> Iterator[tuple[str, str]]:
    """What lies beside the record and the backend's files."""
    for record in kept:
        with contextlib.suppress(OSError, CsiError), pool.home(record) as home:
            known = {RECORD, RECORD + ".new", *pool.backend(record).files}
            for name in sorted(set(os.listdir(home)) - known):
                yield f"{room}/{record.id}", f"{name!r} is in it, which nobody of this driver put there"


def _growths(pool: Pool) -> Iterator[tuple[str, str]]:
    for volume in pool.volumes.values():
        if volume.growing:
            yield f"volumes/{volume.id}", f"its growth to {volume.growing} bytes is unfinished: a start ends it"


def _groups(pool: Pool) -> Iterator[tuple[str, str]]:
    for group in pool.groups.values():
        for ident in group.snapshots:
            if ident not in pool.snapshots:
                yield f"groups/{group.id}.json", f"its snapshot {ident} is not there"
    for snapshot in pool.snapshots.values():
        if not snapshot.group:
            continue
        if (its := pool.groups.get(snapshot.group)) is None:
            yield f"snapshots/{snapshot.id}", f"its group {snapshot.group} is not there; the next start removes it"
        elif snapshot.id not in its.snapshots:
            yield f"snapshots/{snapshot.id}", f"its group {snapshot.group} does not know it"


def _projects(pool: Pool) -> Iterator[tuple[str, str]]:
    kept: list[Record] = [*pool.volumes.values(), *pool.snapshots.values()]
    for project, times in Counter(record.shape.project for record in kept if record.shape.project).items():
        if times > 1:
            yield "", f"{times} volumes or snapshots have the quota project {project}"


def _leftovers(pool: Pool, alone: bool) -> Iterator[tuple[str, str]]:
    for room, what in (("making", "half made"), ("trash", "deleted, but its bytes are still there")):
        for name in os.listdir(pool.place.rooms[room]):
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - os.stat(name, dir_fd=pool.place.rooms[room], follow_symlinks=False).st_ctime
                if alone or age > _STALE:
                    yield f"{room}/{name}", f"it is {what}; a start of the driver removes it"


def _devices(pool: Pool) -> Iterator[tuple[str, str]]:
    """Loop devices of images that no volume has."""
    top = mounts.real_path(pool.place.top) + "/"
    for name in os.listdir("/sys/block"):
        with contextlib.suppress(OSError), open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
            path = os.fsdecode(file.read()).rstrip("\n")
            if path.startswith(top) and not _of_volume(pool, path[len(top) :]):
                yield name, f"the device is attached to {path}, which no volume has: detach it (losetup -d /dev/{name})"


def _mounts(pool: Pool) -> Iterator[tuple[str, str]]:
    """Mounts of directories that no volume has."""
    if (under := mounts.containing(pool.place.top)) is None:
        return
    inside = os.path.relpath(mounts.real_path(pool.place.top), under.target)
    top = os.path.normpath(os.path.join(under.root, inside)) + "/"
    for mount in mounts.of_device(under.device):
        if mount.root.startswith(top) and not _of_volume(pool, mount.root[len(top) :]):
            yield mount.target, f"{mount.root} is mounted here, which no volume has: unmount it"


def _of_volume(pool: Pool, path: str) -> bool:
    room, _, rest = path.partition("/")
    return room == "volumes" and rest.partition("/")[0] in pool.volumes


def _books(pool: Pool) -> Iterator[tuple[str, str]]:
    books = ledger(pool)
    lacking = -(books.available + books.reserve)
    if books.overprovision == 1 and lacking > _SLACK:
        yield "", f"{lacking} bytes are promised that it no longer has: others use its file system; free some"
