"""A pool: a directory of ours on somebody's file system, its layout, its lock, what is in it, and what went wrong.

Decides when a pool can be used and what a crash left to finish or to sweep. Knows no requests and no capacity. All
work goes through descriptors that were opened once: a pool that is unmounted or replaced under us is noticed, and
nothing is ever written to what took its place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from . import mounts, records, tree
from .backend import Backend, PoolFacts
from .backend.all import BACKENDS, one_look, probe
from .config import PoolConfig
from .errors import CsiError
from .records import RECORD, Group, Snapshot, Unreadable, Volume
from .trash import Reaper

__all__ = ["NODE_KEY", "POOL_KEY", "ROOMS", "TOP", "Claim", "Pool", "PoolDown", "PoolHeld", "Record", "matches", "mint"]

NODE_KEY = "topology.csi.wherry.dev/node"
POOL_KEY = "pool.csi.wherry.dev/"
TOP: Final = ".wherry-csi"

Record = Volume | Snapshot
ROOMS = ("making", "volumes", "snapshots", "groups", "trash")
_VERSION = 1
_HOME = re.compile(r"[a-z0-9-]{1,64}")
_GROUP_FILE = re.compile(r"([a-z0-9-]{1,64})\.json")
_PROJECTS = (1 << 20, 1 << 31)  # below are those of administrators, above those that some tools take as negative


class Claim(NamedTuple):
    """Bytes reserved for what is being made."""

    size: int
    apart: bool  # what it takes in making/ is taken from the free bytes: not so for a copy by reflink


class PoolDown(Exception):
    """The pool cannot be used now; the message says why."""


class PoolHeld(PoolDown):
    """Another driver has it."""


def mint(kind: str) -> str:
    """A new id: vol-, snap- or group- and 32 random hex digits."""
    return f"{kind}-{uuid.uuid4().hex}"


class _Place:
    """The descriptors of a pool that is open; closed when the last call that uses them has ended."""

    def __init__(self, config: PoolConfig) -> None:
        self._fds: list[int] = []
        self.root = self._keep(os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        status = os.fstat(self.root)
        self.key = (status.st_dev, status.st_ino)
        mount = mounts.containing(self.root)
        #: the file system's device, of which a btrfs subvolume's st_dev tells nothing
        self.disk = mount.device if mount else str(status.st_dev)
        if config.mount and not mounts.at(mounts.real_path(self.root)):
            raise PoolDown(f"{config.path} is not a mount point: is its disk mounted?")

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def enter(self, get: Callable[[int, str], int]) -> None:
        """Open the rooms: `_made` makes those that are missing, `_found` does not."""
        self.top = self._keep(get(self.root, TOP))
        self.rooms = {name: self._keep(get(self.top, name)) for name in ROOMS}

    def lock(self, path: str, patience: float) -> None:
        """The pool is ours until this process ends; a driver that is just leaving is waited for."""
        fd, end = self._keep(_lock_file(self.top)), time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > end:
                    sentence = f"another driver is at work on {path}: stop it, or give this one a pool of its own"
                    raise PoolHeld(sentence) from error
                time.sleep(0.05)

    def __del__(self) -> None:
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)


def _found(directory: int, name: str) -> int:
    return tree.subdirectory(name, directory)


def _made(directory: int, name: str) -> int:
    with suppress(FileExistsError):
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
            os.fsync(directory)
        except OSError as error:
            if error.errno != errno.EROFS or not _exists(directory, name):
                raise
    fd = tree.subdirectory(name, directory)
    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _exists(directory: int, name: str) -> bool:
    return name in os.listdir(directory)


def _lock_file(top: int) -> int:
    try:
        return os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=top)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open("lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)


class Pool:
    """One pool of the configuration, open or down. The tables are the index: filled from the records at its opening,
    and changed with them."""

    def __init__(self, config: PoolConfig, node: str, reaper: Reaper, changing: threading.RLock) -> None:
        self.config, self.name = config, config.name
        #: held to change a table or to reserve capacity; one for all pools: two may be on one file system
        self.changing = changing
        self.siblings: Sequence[Pool] = (self,)
        self.topology = {NODE_KEY: node, POOL_KEY + config.name: "true"}
        self._reaper = reaper
        self._place: _Place | None = None
        self._why = "it was not opened yet"
        self._freed = float("-inf")
        self._forget()

    def _forget(self) -> None:
        self.id, self.facts = "", PoolFacts("", False, False, 0)
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.groups: dict[str, Group] = {}
        self.damaged: dict[str, str] = {}  # "volumes/NAME" -> why it is not in the index
        self.claims: dict[str, Claim] = {}  # by the id of what is being made

    # --- open, watch, close ---------------------------------------------------------------------------------------

    def open(self, patience: float = 0.0) -> None:
        """Open it, finish and sweep what a crash left, and read the index. PoolDown says why it cannot be used.

        A pool that was seen once must come back as what it was: an empty directory below its unmounted disk is none.
        """
        try:
            place = _Place(self.config)
            place.enter(_found if self.id else _made)
            place.lock(self.config.path, patience)
            if (ident := _identity(place.top)) != (self.id or ident):
                raise PoolDown(f"{self.config.path} is another pool than it was: was another disk mounted there?")
            self._forget()
            self.id, self.facts = ident, probe(place.top)
            self._place, self._why = place, ""
            self._recover()
        except PoolDown as error:
            self._down(str(error))
            raise
        except OSError as error:
            self._down(f"{self.config.path} cannot be used: {error.strerror or error}")
            raise PoolDown(self._why) from error

    def look(self) -> None:
        """Read the index only: without the lock, and with nothing made, finished or swept. PoolDown or OSError."""
        place = _Place(self.config)
        place.enter(_found)
        self._forget()
        self.id, self.facts = _known(place.top), probe(place.top)
        self._place, self._why = place, ""
        self._read_groups()
        self._read("volumes", Volume)
        self._read("snapshots", Snapshot)

    def _down(self, why: str) -> None:
        """Out of use; what was in it is remembered, so that it is not taken for deleted."""
        self._place, self._why = None, why

    def watch(self) -> str:
        """Whether it is still there, in one stat(2); one that was down is tried again. "" or why it is down."""
        place = self._place
        why = self._gone(place) if place is not None else ""  # a disk may hang: no lock is held meanwhile
        if place is not None and not why:
            return ""
        with self.changing:
            if why and self._place is place:
                self._down(why)
            if self._place is None:
                with suppress(PoolDown):
                    self.open()
            return self._why

    def _gone(self, place: _Place) -> str:
        try:
            status = os.stat(self.config.path)
        except OSError as error:
            return f"{self.config.path} vanished: {error.strerror}"
        if (status.st_dev, status.st_ino) != place.key:
            return f"{self.config.path} is another directory than it was: was its disk unmounted?"
        return "" if os.fstat(place.top).st_nlink else f"{self.config.path}/{TOP} was removed"

    @property
    def trouble(self) -> str:
        """Why it is not fully usable, in a sentence; "" if it is."""
        if self._place is None:
            return f"pool {self.name}: {self._why}"
        try:
            found = os.fstatvfs(self._place.top)
        except OSError as error:
            return f"pool {self.name}: {self.config.path}: {error.strerror}"
        return f"pool {self.name}: {self.config.path} is read-only" if found.f_flag & os.ST_RDONLY else ""

    def probe(self) -> str:
        """`trouble`, and whether its disk still takes what is written: a dead one may go on answering from memory."""
        if self._place is not None and not self.trouble:
            try:
                os.fsync(self._place.top)
            except OSError as error:
                return f"pool {self.name}: {self.config.path}: {error.strerror}"
        return self.trouble

    @property
    def place(self) -> _Place:
        """Its descriptors; UNAVAILABLE if it is down."""
        if (place := self._place) is None:
            raise CsiError("UNAVAILABLE", f"pool {self.name}: {self._why}")
        return place

    @property
    def disk(self) -> str:
        """The device of its file system, as mount tables have it."""
        return self.place.disk

    @property
    def up(self) -> bool:
        """Whether it is open."""
        return self._place is not None

    # --- homes ----------------------------------------------------------------------------------------------------

    @contextmanager
    def home(self, record: Record) -> Iterator[int]:
        """The directory of a volume or snapshot as a descriptor, while the context lasts."""
        place = self.place  # the descriptors last as long as somebody has it
        try:
            fd = tree.subdirectory(record.id, place.rooms[_room(record)])
        except FileNotFoundError as error:
            sentence = f"{_room(record)}/{record.id} is gone from pool {self.name}: somebody removed it"
            raise CsiError("INTERNAL", sentence) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def has_home(self, record: Record) -> bool:
        """Whether its directory is there: somebody may have removed it."""
        try:
            os.stat(record.id, dir_fd=self.place.rooms[_room(record)], follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def backend(self, record: Record) -> Backend:
        """The backend of a record."""
        return BACKENDS[record.backend]

    @contextmanager
    def making(self, ident: str) -> Iterator[int]:
        """A new home in making/, which counts from `finish` on; whatever fails takes it away again."""
        place = self.place
        os.mkdir(ident, 0o700, dir_fd=place.rooms["making"])
        try:
            with tree.opened(ident, place.rooms["making"]) as home:
                yield home
        except BaseException:
            with suppress(OSError, CsiError):
                self.discard(ident, "making")
            raise

    def finish(self, record: Record) -> None:
        """What was made and recorded becomes a volume or snapshot, durably: this is the moment of its creation."""
        place, room = self.place, _room(record)
        os.rename(record.id, record.id, src_dir_fd=place.rooms["making"], dst_dir_fd=place.rooms[room])
        os.fsync(place.rooms[room])
        self._index(record)

    def _index(self, record: Record) -> None:
        with self.changing:
            self.claims.pop(record.id, None)  # the record promises it from now on
            if isinstance(record, Volume):
                self.volumes[record.id] = record
            else:
                self.snapshots[record.id] = record

    def update(self, record: Record, home: int) -> None:
        """Write a record anew, durably."""
        records.save(home, RECORD, records.write(record))
        self._index(record)

    def discard(self, ident: str, room: str) -> threading.Event:
        """Move a home to trash/, durably: this is the moment of its end. Its bytes go soon after: see the event."""
        place = self.place
        with suppress(FileNotFoundError):
            os.rename(ident, ident, src_dir_fd=place.rooms[room], dst_dir_fd=place.rooms["trash"])
        os.fsync(place.rooms[room])
        with self.changing:
            if room == "volumes":
                self.volumes.pop(ident, None)
            elif room == "snapshots":
                self.snapshots.pop(ident, None)
        return self._reaper.add(self, ident)

    def removed(self, ident: str) -> None:
        """Remove what lies in trash/ under this name."""
        place = self.place
        tree.remove(ident, place.rooms["trash"])
        self._freed = time.monotonic()

    def freed_since(self, moment: float) -> bool:
        """Whether bytes were given back since a moment of time.monotonic()."""
        return self._freed > moment

    def save_group(self, group: Group) -> None:
        """Write a group's file: with it, its snapshots are one."""
        place = self.place
        records.save(place.rooms["groups"], group.id + ".json", records.write(group))
        with self.changing:
            self.groups[group.id] = group

    def drop_group(self, group: Group) -> None:
        """Remove a group's file, durably: its snapshots are to be discarded now."""
        place = self.place
        with suppress(FileNotFoundError):
            os.unlink(group.id + ".json", dir_fd=place.rooms["groups"])
        os.fsync(place.rooms["groups"])
        with self.changing:
            self.groups.pop(group.id, None)

    def project(self) -> int:
        """A quota project that nothing in the pool has."""
        kept: list[Record] = [*self.volumes.values(), *self.snapshots.values()]
        taken = {record.shape.project for record in kept}
        low, high = _PROJECTS
        while (found := low + uuid.uuid4().int % (high - low)) in taken:
            pass
        return found

    # --- after a crash --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Groups that were decided on are completed, growths finished, all else that was half done goes to trash/."""
        readonly = bool(os.fstatvfs(self.place.top).f_flag & os.ST_RDONLY)
        self._read_groups()
        if not readonly:
            self._complete_groups()
        self._read("volumes", Volume)
        self._read("snapshots", Snapshot)
        self._settle()
        if not readonly:
            self._drop_orphans()
            self._finish_growths()
            self._sweep()

    def _read(self, room: str, kind: type[Volume] | type[Snapshot]) -> None:
        fd = self.place.rooms[room]
        for name in os.listdir(fd):
            try:
                record = load_home(fd, name, kind)
            except (Unreadable, OSError) as error:
                self.damaged[f"{room}/{name}"] = str(error)
            else:
                self._index(record)

    def _read_groups(self) -> None:
        room = self.place.rooms["groups"]
        for name in os.listdir(room):
            if name.endswith(".new"):
                continue
            try:
                group = load_group(room, name)
            except (Unreadable, OSError) as error:
                self.damaged[f"groups/{name}"] = str(error)
            else:
                self.groups[group.id] = group

    def _complete_groups(self) -> None:
        """A group's file was written when all its snapshots were whole: those still in making/ come out of it."""
        place = self.place
        waiting = set(os.listdir(place.rooms["making"]))
        for ident in waiting & {one for group in self.groups.values() for one in group.snapshots}:
            os.rename(ident, ident, src_dir_fd=place.rooms["making"], dst_dir_fd=place.rooms["snapshots"])
        os.fsync(place.rooms["snapshots"])

    def _drop_orphans(self) -> None:
        for snapshot in list(self.snapshots.values()):
            if snapshot.group and snapshot.group not in self.groups and "groups/" not in "".join(self.damaged):
                self.discard(snapshot.id, "snapshots")

    def _settle(self) -> None:
        """What a killed driver may have left of volumes in the kernel."""
        with one_look():
            for volume in self.volumes.values():
                with suppress(OSError, CsiError), self.home(volume) as home:
                    self.backend(volume).recover(home, volume.shape)

    def _finish_growths(self) -> None:
        for volume in list(self.volumes.values()):
            if volume.growing:
                with suppress(OSError, CsiError), self.home(volume) as home:
                    grown = volume.shape._replace(size=volume.growing)
                    self.backend(volume).grow(home, volume.shape, grown)
                    self.update(volume._replace(shape=grown, growing=0), home)

    def _sweep(self) -> None:
        groups = self.place.rooms["groups"]
        for name in os.listdir(groups):
            if name.endswith(".new"):
                os.unlink(name, dir_fd=groups)
        for name in os.listdir(self.place.rooms["making"]):
            with suppress(OSError):  # somebody's mount, say: `check` tells of it
                self.discard(name, "making")
        for name in os.listdir(self.place.rooms["trash"]):
            self._reaper.add(self, name)


def _room(record: Record) -> str:
    return "volumes" if isinstance(record, Volume) else "snapshots"


def load_home(room: int, name: str, kind: type[Volume] | type[Snapshot]) -> Record:
    """The record in the home `name` of a room; Unreadable says what is wrong with it."""
    if not _HOME.fullmatch(name):
        raise Unreadable("its name is no id: somebody else put it there")
    home = tree.subdirectory(name, room)
    try:
        record = records.read(kind, records.load(home, RECORD))  # type: ignore[type-var]
    except FileNotFoundError as error:
        raise Unreadable(f"it has no {RECORD}") from error
    finally:
        os.close(home)
    if record.id != name:
        raise Unreadable(f"its record is of {record.id!r}")
    if record.backend not in BACKENDS:
        raise Unreadable(f"its backend {record.backend!r} is not known")
    return record


def load_group(room: int, name: str) -> Group:
    """The group in a file of groups/."""
    found = _GROUP_FILE.fullmatch(name)
    if not found:
        raise Unreadable("its name is no id: somebody else put it there")
    group = records.read(Group, records.load(room, name))
    if group.id != found[1]:
        raise Unreadable(f"its record is of {group.id!r}")
    return group


def _identity(top: int) -> str:
    """The pool's id, minted when it is first opened."""
    try:
        return _known(top)
    except FileNotFoundError:
        ident = uuid.uuid4().hex
        records.save(top, "pool.json", json.dumps({"version": _VERSION, "id": ident}).encode() + b"\n")
        return ident


def _known(top: int) -> str:
    """The id of a pool that has one; a pool of a later version is left alone."""
    try:
        found = json.loads(records.load(top, "pool.json"))
        if found["version"] != _VERSION:
            sentence = f"its pool.json is of version {found['version']}; this driver knows {_VERSION}: use a newer one"
            raise PoolDown(sentence)
        return str(found["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PoolDown(f"its pool.json is damaged ({error}): if its volumes are in order, remove that file") from error


def matches(pool: Pool, asked: Mapping[str, str]) -> bool:
    """Whether what is in the pool is accessible from a topology: all it says is true, of pools it names this one."""
    named = [key for key in asked if key.startswith(POOL_KEY)]
    others = {key: value for key, value in asked.items() if key not in named}
    here = not named or asked.get(POOL_KEY + pool.name) == "true"
    return here and all(pool.topology.get(key) == value for key, value in others.items())
