"""The life of volumes, snapshots and groups: the verbs in steps that can be cut off anywhere.

What is made is made in making/ and becomes real by one rename; what is deleted ends by one rename into trash/. Between
the two, a record says what is true. So after a crash there is nothing that is half there, and a call that was not
answered can be repeated. Decides compatibility and placement; knows no gRPC.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, TypeVar

from .backend import Shape
from .backend.all import BACKENDS
from .capacity import available, claim
from .config import Config
from .errors import CsiError
from .locks import Locks
from .pools import Pool, PoolDown, PoolHeld, Record, matches, mint
from .records import RECORD, Group, Published, Snapshot, Volume, save, write
from .requests import Capability, Range, Wish
from .trash import Reaper

__all__ = ["DEFAULT_SIZE", "Draft", "Life", "Topology"]

DEFAULT_SIZE = 1 << 30  # bytes, of a volume whose size nobody asks for
_SIZE_MAX = 2**63 - 1  # int64 of the spec
_REAP_WAIT = 5.0  # seconds that a delete waits for its bytes to be gone, so that the next create finds them free
_PATIENCE = 2.0  # seconds that a call waits for another on the same volume or name, before it is ABORTED

Topology = Mapping[str, str]
R = TypeVar("R")


class Draft(NamedTuple):
    """A volume as CreateVolume asks for it."""

    name: str
    range: Range
    capabilities: Sequence[Capability]
    wish: Wish
    source: tuple[str, str] | None = None
    requisite: Sequence[Topology] = ()
    preferred: Sequence[Topology] = ()

    @property
    def access(self) -> str:
        """Mount or block."""
        return self.capabilities[0].access

    @property
    def fs(self) -> str:
        """The file system that is asked for, or ""."""
        return next((one.fs for one in self.capabilities if one.fs), "")

    @property
    def modes(self) -> tuple[str, ...]:
        """Access modes, each once."""
        return tuple(sorted({one.mode for one in self.capabilities}))

    @property
    def limits(self) -> dict[str, int]:
        """Limits that limit."""
        return {key: value for key, value in self.wish.limits.items() if value}


class Life:
    """All pools of the configuration and what can be done in them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.locks = Locks()
        self.reaper = Reaper()
        self._told: set[str] = set()
        changing = threading.RLock()
        self.pools = [Pool(pool, config.node_id, self.reaper, changing) for pool in config.pools]
        for pool in self.pools:
            pool.siblings = self.pools

    # --- pools and what is in them --------------------------------------------------------------------------------

    def open(self, patience: float) -> None:
        """Open all pools. One that is down is tried again later; one that another driver has is an error."""
        for pool in self.pools:
            try:
                pool.open(patience)
            except PoolHeld:
                raise
            except PoolDown:
                continue
        self.reaper.drain(1.0)

    def close(self) -> None:
        """End of work: let deletions end. The locks go with the process: the socket must be gone before them."""
        self.reaper.drain(10.0)

    def watch(self) -> None:
        """See which pools are there; those that came back are open again."""
        for pool in self.pools:
            pool.watch()

    def probe(self) -> list[str]:
        """What is wrong with the pools, a sentence each; what is new in it goes to the log."""
        self.watch()
        troubles = [trouble for pool in self.pools if (trouble := pool.probe())]
        for line in sorted(set(troubles) ^ self._told):
            print(line if line in troubles else f"no longer: {line}", file=sys.stderr, flush=True)
        self._told = set(troubles)
        return troubles

    def volume(self, ident: str) -> tuple[Pool, Volume]:
        """The volume of this id and its pool; NOT_FOUND, or UNAVAILABLE if it might be in a pool that is down."""
        return self._found("volume", ident, lambda pool: pool.volumes.get(ident))

    def snapshot(self, ident: str) -> tuple[Pool, Snapshot]:
        """The snapshot of this id and its pool."""
        return self._found("snapshot", ident, lambda pool: pool.snapshots.get(ident))

    def group(self, ident: str) -> tuple[Pool, Group]:
        """The group snapshot of this id and its pool."""
        return self._found("group snapshot", ident, lambda pool: pool.groups.get(ident))

    def _found(self, what: str, ident: str, look: Callable[[Pool], R | None]) -> tuple[Pool, R]:
        """Whatever `look` finds, in a pool as it is now: one that comes back is read before it is asked."""
        self.watch()
        for pool in self.pools:
            with pool.changing:  # nobody looks into a table that is being filled
                if (record := look(pool)) is not None:
                    return pool, record
        raise self._missing(what, ident)

    def _missing(self, what: str, ident: str) -> CsiError:
        if down := [pool.trouble for pool in self.pools if not pool.up]:
            return CsiError("UNAVAILABLE", f"whether {what} {ident!r} is there cannot be told: {down[0]}")
        room = {"volume": "volumes", "snapshot": "snapshots"}.get(what, "groups")
        for pool in self.pools:
            if why := pool.damaged.get(f"{room}/{ident}", pool.damaged.get(f"{room}/{ident}.json", "")):
                return CsiError("INTERNAL", f"{what} {ident!r} in pool {pool.name} cannot be used: {why}")
        return CsiError("NOT_FOUND", f"there is no {what} {ident!r}")

    def named(self, room: str, name: str) -> tuple[Pool, Record | Group] | None:
        """What has this name in `volumes`, `snapshots` or `groups` of any pool."""
        self.watch()
        for pool in self.pools:
            with pool.changing:
                for record in getattr(pool, room).values():
                    if record.name == name:
                        return pool, record
        return None

    def volumes(self) -> list[tuple[Pool, Volume]]:
        """All of them."""
        self.watch()
        found: list[tuple[Pool, Volume]] = []
        for pool in self.pools:
            with pool.changing:
                found += [(pool, record) for record in pool.volumes.values()]
        return found

    def snapshots(self) -> list[Snapshot]:
        """All of them."""
        self.watch()
        found: list[Snapshot] = []
        for pool in self.pools:
            with pool.changing:
                found += pool.snapshots.values()
        return found

    def held(self, *alone: str, shared: tuple[str, ...] = ()) -> AbstractContextManager[None]:
        """Ids and names for one call, after a short wait for others."""
        return self.locks.hold(*alone, shared=shared, patience=_PATIENCE)

    # --- volumes --------------------------------------------------------------------------------------------------

    def create(self, draft: Draft) -> tuple[Pool, Volume]:
        """CreateVolume: the volume of this name, made if it is not there."""
        shared = (draft.source[1],) if draft.source else ()
        with self.held(f"volume name {draft.name}", shared=shared):
            if found := self.named("volumes", draft.name):
                return self._same(found, draft)
            origin = self._origin(draft)
            chosen = [origin[0]] if origin else self._candidates(draft)
            return self._create_in(chosen, draft, origin)

    def _create_in(
        self, chosen: Sequence[Pool], draft: Draft, origin: tuple[Pool, Record] | None
    ) -> tuple[Pool, Volume]:
        """In the first of the pools that has room."""
        for last, pool in zip([*[False] * (len(chosen) - 1), True], chosen, strict=True):
            try:
                return pool, self._make(pool, draft, origin)
            except CsiError as error:
                if last or error.code != "RESOURCE_EXHAUSTED":
                    raise
        raise AssertionError("no pool was chosen")

    def _make(self, pool: Pool, draft: Draft, origin: tuple[Pool, Record] | None) -> Volume:
        source = origin[1] if origin else None
        backend, shape = self._shape(pool, draft, source)
        ident = mint("vol")
        volume = Volume(
            ident, draft.name, time.time_ns(), backend, shape, draft.modes, draft.limits, draft.source, _family(source)
        )
        with claim(pool, ident, shape.size, f"volume {draft.name!r}"), self._making(pool, ident) as home:
            if source is None:
                BACKENDS[backend].make(home, shape)
            else:
                with pool.home(source) as old:
                    BACKENDS[backend].copy(old, source.shape, home, shape)
                    volume = volume._replace(shared=self._shared(pool, source, old, volume, home))
            save(home, RECORD, write(volume))
            pool.finish(volume)
        return volume

    @contextmanager
    def _making(self, pool: Pool, ident: str) -> Iterator[int]:
        """A home in making/; whatever fails takes it away again."""
        pool.begin(ident)
        try:
            with pool.half_made(ident) as home:
                yield home
        except BaseException:
            with contextlib.suppress(OSError, CsiError):
                pool.discard(ident, "making")
            raise

    @staticmethod
    def _shared(pool: Pool, source: Record, old: int, copy: Record, home: int) -> int:
        """Bytes that a copy shares with what it was made from, at its making."""
        if not pool.facts.reflink:
            return 0
        backend = pool.backend(source)
        return min(backend.allocated(old, source.shape), backend.allocated(home, copy.shape))

    def _shape(self, pool: Pool, draft: Draft, source: Record | None) -> tuple[str, Shape]:
        """The backend and the shape of a new volume in this pool."""
        backend = source.backend if source else self._backend(pool, draft)[0]
        thick = (draft.wish.provisioning == "thick") if draft.wish.provisioning or not source else source.shape.thick
        fs = source.shape.fs if source else _fs(backend, draft)
        least = source.shape.size if source else 0
        size = _size(draft.range, lambda size: BACKENDS[backend].fit(size, draft.access, fs), least)
        project = pool.project() if backend == "directory" else 0
        return backend, Shape(size, draft.access, fs, thick, project)

    def _backend(self, pool: Pool, draft: Draft) -> tuple[str, str]:
        """(backend, "") or ("", why there is none) for an empty volume in this pool."""
        only_images = draft.access == "block" or draft.fs or draft.limits or draft.wish.provisioning == "thick"
        auto = ["image"] if only_images else ["directory", "image"]
        fixed = draft.wish.backend or (pool.config.backend if pool.config.backend != "auto" else "")
        why = ""
        for name in [fixed] if fixed else [name for name in auto if name in BACKENDS]:
            why = _mismatch(name, draft, pool) or BACKENDS[name].problem(pool.facts, draft.access, _fs(name, draft))
            if not why:
                return name, ""
        return "", why

    def _candidates(self, draft: Draft) -> list[Pool]:
        """The pools that such a volume may lie in, best first: as preferred, then by what is left."""
        self.watch()
        pools = [pool for pool in self.pools if draft.wish.pool in ("", pool.name)]
        if not pools:
            names = ", ".join(pool.name for pool in self.pools)
            raise CsiError("INVALID_ARGUMENT", f"parameters: there is no pool {draft.wish.pool!r}; there are: {names}")
        near = [pool for pool in pools if _accessible(pool, draft)]
        if not near:
            raise CsiError("RESOURCE_EXHAUSTED", "no pool of this node is within the topology that is required")
        if down := [pool.trouble for pool in near if not pool.up]:
            # a volume of this name may be in there: a second one must not be made
            raise CsiError("UNAVAILABLE", f"{down[0]}; or name another pool in the parameters")
        able = [pool for pool in near if self._backend(pool, draft)[0]]
        if not able:
            raise CsiError("INVALID_ARGUMENT", f"pool {near[0].name}: {self._backend(near[0], draft)[1]}")
        return able if len(able) == 1 else sorted(able, key=lambda pool: (_rank(pool, draft), -available(pool)))

    def pools_for(self, draft: Draft) -> list[tuple[Pool, str]]:
        """GetCapacity: the pools that such volumes may be made in, each with the backend."""
        try:
            return [(pool, self._backend(pool, draft)[0]) for pool in self._candidates(draft)]
        except CsiError as error:
            if error.code == "INVALID_ARGUMENT" and draft.wish.pool not in ("", *[pool.name for pool in self.pools]):
                raise
            return []

    def _origin(self, draft: Draft) -> tuple[Pool, Record] | None:
        """What the volume is filled from, if it can be."""
        if draft.source is None:
            return None
        kind, ident = draft.source
        pool, record = self.snapshot(ident) if kind == "snapshot" else self.volume(ident)
        if why := _unlike(pool, record, draft):
            raise CsiError("INVALID_ARGUMENT", f"{kind} {ident!r} cannot be the source: {why}")
        if not _accessible(pool, draft):
            raise CsiError("RESOURCE_EXHAUSTED", f"{kind} {ident!r} is in pool {pool.name}, outside the topology")
        if why := pool.backend(record).problem(pool.facts, record.shape.access, record.shape.fs):
            raise CsiError("INVALID_ARGUMENT", f"pool {pool.name}: {why}")
        return pool, record

    def _same(self, found: tuple[Pool, Record | Group], draft: Draft) -> tuple[Pool, Volume]:
        """The volume that has the name already, if it is what is asked for."""
        pool, volume = found
        assert isinstance(volume, Volume)
        if why := _incompatible(pool, volume, draft):
            raise CsiError("ALREADY_EXISTS", f"volume {draft.name!r} exists as {volume.id}, but {why}")
        return pool, volume

    def delete(self, ident: str) -> None:
        """DeleteVolume: gone already is success; in use it is refused."""
        with self.held(ident):
            try:
                pool, volume = self.volume(ident)
            except CsiError as error:
                if error.code == "NOT_FOUND":
                    return
                raise
            if volume.published:
                raise CsiError("FAILED_PRECONDITION", f"volume {ident!r} is published to {', '.join(volume.published)}")
            if pool.has_home(volume):
                self._refuse_in_use(pool, volume)
            gone = pool.discard(ident, "volumes")
        gone.wait(_REAP_WAIT)

    @staticmethod
    def _refuse_in_use(pool: Pool, volume: Volume) -> None:
        with pool.home(volume) as home:
            if pool.backend(volume).staged(home, volume.shape):
                raise CsiError(
                    "FAILED_PRECONDITION",
                    f"volume {volume.id!r} is in use on this node: unpublish and unstage it everywhere first",
                )

    def expand(self, ident: str, wanted: Range, capability: Capability | None) -> tuple[Volume, bool]:
        """ControllerExpandVolume: (the volume as it is then, whether the node has to expand it)."""
        with self.held(ident):
            pool, volume = self.volume(ident)
            if capability and (why := unfit(pool, volume, capability)):
                raise CsiError("INVALID_ARGUMENT", f"volume {ident!r}: {why}")
            return self.grow(pool, volume, wanted)

    def grow(self, pool: Pool, volume: Volume, wanted: Range) -> tuple[Volume, bool]:
        """A volume that the caller holds, at least as large as wanted; (as it is then, whether its node has to act)."""
        ident, backend, old = volume.id, pool.backend(volume), volume.shape
        if wanted.holds(old.size):
            return volume, self._behind(pool, volume)
        if wanted.limit and wanted.limit < old.size:
            raise CsiError("OUT_OF_RANGE", f"volume {ident!r} has {old.size} bytes; it cannot shrink to {wanted.limit}")
        size = _size(wanted, lambda size: backend.fit(size, old.access, old.fs), old.size)
        with claim(pool, ident, size - old.size, f"growing volume {ident!r}"), pool.home(volume) as home:
            growing = volume._replace(growing=size)
            pool.update(growing, home)
            return self._grow(pool, growing, home)

    @staticmethod
    def _grow(pool: Pool, volume: Volume, home: int) -> tuple[Volume, bool]:
        """The growth that the record announces; if it fails the volume is what it was."""
        new = volume.shape._replace(size=volume.growing)
        try:
            on_node = pool.backend(volume).grow(home, volume.shape, new)
        except (OSError, CsiError):
            with contextlib.suppress(OSError, CsiError):
                pool.update(volume._replace(growing=0), home)
            raise
        grown = volume._replace(shape=new, growing=0)
        pool.update(grown, home)
        return grown, on_node

    @staticmethod
    def _behind(pool: Pool, volume: Volume) -> bool:
        """A repeated call cannot know whether the node has followed: it may ask again, which does no harm."""
        with pool.home(volume) as home:
            return volume.backend == "image" and pool.backend(volume).staged(home, volume.shape)

    def modify(self, ident: str, limits: Mapping[str, int]) -> tuple[Pool, Volume]:
        """ControllerModifyVolume: the keys that are given change, others stay (0: no limit)."""
        pool, volume = self.volume(ident)
        if volume.backend == "directory" and any(limits.values()):
            raise CsiError("INVALID_ARGUMENT", f"volume {ident!r} is a directory: it has no device to limit the io of")
        merged = {**volume.limits, **limits}
        changed = volume._replace(limits={key: value for key, value in merged.items() if value})
        if changed != volume:
            with pool.home(volume) as home:
                pool.update(changed, home)
        return pool, changed

    # --- publishing by the controller -----------------------------------------------------------------------------

    def publish(self, ident: str, readonly: bool, capability: Capability) -> None:
        """ControllerPublishVolume to this node, kept in the record."""
        with self.held(ident, "publishing"):
            pool, volume = self.volume(ident)
            if why := unfit(pool, volume, capability):
                raise CsiError("INVALID_ARGUMENT", f"volume {ident!r}: {why}")
            wanted = Published(readonly, capability.access, capability.mode)
            there = volume.published.get(self.config.node_id)
            if there == wanted:
                return
            if there:
                raise CsiError("ALREADY_EXISTS", f"volume {ident!r} is published to this node already, as {there}")
            self._refuse_too_many()
            with pool.home(volume) as home:
                pool.update(volume._replace(published={**volume.published, self.config.node_id: wanted}), home)

    def _refuse_too_many(self) -> None:
        most, node = self.config.max_volumes, self.config.node_id
        if most and sum(node in one.published for pool in self.pools for one in list(pool.volumes.values())) >= most:
            raise CsiError("RESOURCE_EXHAUSTED", f"node {node!r} has {most} volumes already, its maximum")

    def unpublish(self, ident: str, node: str) -> None:
        """ControllerUnpublishVolume; node "": from all."""
        with self.held(ident):
            try:
                pool, volume = self.volume(ident)
            except CsiError as error:
                if error.code == "NOT_FOUND":  # it was deleted, so it is published nowhere
                    return
                raise
            left = {name: how for name, how in volume.published.items() if node not in ("", name)}
            if left != volume.published:
                with pool.home(volume) as home:
                    pool.update(volume._replace(published=left), home)

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snap(self, name: str, source: str) -> tuple[Pool, Snapshot]:
        """CreateSnapshot: the snapshot of this name, made if it is not there."""
        with self.held(f"snapshot name {name}", shared=(source,)):
            if found := self.named("snapshots", name):
                pool, snapshot = found
                assert isinstance(snapshot, Snapshot)
                if snapshot.volume != source:
                    raise CsiError("ALREADY_EXISTS", f"snapshot {name!r} exists, of volume {snapshot.volume!r}")
                return pool, snapshot
            pool, volume = self.volume(source)
            with contextlib.ExitStack() as stack:
                snapshot = self._cut(stack, pool, volume, mint("snap"), name)
                pool.finish(snapshot)
            return pool, snapshot

    def _cut(
        self, stack: contextlib.ExitStack, pool: Pool, volume: Volume, ident: str, name: str, *, group: str = ""
    ) -> Snapshot:
        """A snapshot, whole and recorded, but still in making/ while the stack is open."""
        backend = pool.backend(volume)
        old = stack.enter_context(pool.home(volume))
        need = backend.allocated(old, volume.shape)
        stack.enter_context(claim(pool, ident, need, f"snapshot {name!r}"))
        home = stack.enter_context(self._making(pool, ident))
        project = pool.project() if volume.backend == "directory" else 0
        shape = volume.shape._replace(thick=False, project=project)
        created = time.time_ns()
        backend.copy(old, volume.shape, home, shape)
        snapshot = Snapshot(ident, name, created, volume.backend, shape, volume.id, 0, _family(volume), 0, group)
        taken, shared = backend.allocated(home, shape), self._shared(pool, volume, old, snapshot, home)
        snapshot = snapshot._replace(taken=taken, shared=shared)
        save(home, RECORD, write(snapshot))
        return snapshot

    def unsnap(self, ident: str) -> None:
        """DeleteSnapshot: gone already is success; a member of a group goes with the group."""
        with self.held(ident):
            try:
                pool, snapshot = self.snapshot(ident)
            except CsiError as error:
                if error.code == "NOT_FOUND":
                    return
                raise
            if snapshot.group:
                raise CsiError(
                    "INVALID_ARGUMENT",
                    f"snapshot {ident!r} is part of group snapshot {snapshot.group!r}: delete the group instead",
                )
            gone = pool.discard(ident, "snapshots")
        gone.wait(_REAP_WAIT)

    # --- groups ---------------------------------------------------------------------------------------------------

    def snap_group(self, name: str, sources: Sequence[str]) -> tuple[Pool, Group]:
        """CreateVolumeGroupSnapshot: all or nothing, of one instant."""
        with self.held(f"group name {name}", shared=tuple(sorted(set(sources)))):
            if found := self.named("groups", name):
                pool, group = found
                assert isinstance(group, Group)
                if sorted(group.volumes) != sorted(sources):
                    raise CsiError("ALREADY_EXISTS", f"group snapshot {name!r} exists, of other volumes")
                return pool, group
            volumes = [self.volume(source) for source in sources]
            if len({pool.name for pool, _ in volumes}) > 1:
                names = ", ".join(sorted({pool.name for pool, _ in volumes}))
                raise CsiError("FAILED_PRECONDITION", f"a group must lie in one pool; these volumes are in {names}")
            return volumes[0][0], self._cut_group(volumes[0][0], [volume for _, volume in volumes], name)

    def _cut_group(self, pool: Pool, volumes: Sequence[Volume], name: str) -> Group:
        """Every snapshot whole in making/, then the group's file, which makes them real, then their renames."""
        ident, idents = mint("group"), [mint("snap") for _ in volumes]
        with contextlib.ExitStack() as stack:
            with self._quiesced(pool, volumes):
                created = time.time_ns()
                cuts = [
                    self._cut(stack, pool, volume, snap, f"{ident}/{volume.id}", group=ident)
                    for volume, snap in zip(volumes, idents, strict=True)
                ]
            group = Group(ident, name, created, tuple(volume.id for volume in volumes), tuple(idents))
            pool.save_group(group)
            try:
                for snapshot in cuts:
                    pool.finish(snapshot)
            except BaseException:
                self._drop(pool, group)
                raise
        return group

    @staticmethod
    @contextmanager
    def _quiesced(pool: Pool, volumes: Sequence[Volume]) -> Iterator[None]:
        """Nothing is written to any of the volumes meanwhile."""
        with contextlib.ExitStack() as stack:
            for name in sorted({volume.backend for volume in volumes}):
                mine = [volume for volume in volumes if volume.backend == name]
                homes = [(stack.enter_context(pool.home(volume)), volume.shape) for volume in mine]
                stack.enter_context(BACKENDS[name].quiesced(homes))
            yield

    def unsnap_group(self, ident: str, snapshots: Sequence[str]) -> None:
        """DeleteVolumeGroupSnapshot with its snapshots; gone already is success."""
        with self.held(ident):
            try:
                pool, group = self.group(ident)
            except CsiError as error:
                if error.code == "NOT_FOUND":
                    return
                raise
            check_members(group, snapshots)
            with self.held(*group.snapshots):
                gone = self._drop(pool, group)
        for one in gone:
            one.wait(_REAP_WAIT / len(gone))

    @staticmethod
    def _drop(pool: Pool, group: Group) -> list[threading.Event]:
        pool.drop_group(group)
        return [pool.discard(ident, "snapshots") for ident in group.snapshots]


def check_members(group: Group, snapshots: Sequence[str]) -> None:
    """The ids that a call gives must be those of the group."""
    if set(snapshots) != set(group.snapshots):
        raise CsiError("INVALID_ARGUMENT", f"snapshot_ids are not those of group snapshot {group.id!r}")


def unfit(pool: Pool, volume: Volume, capability: Capability) -> str:
    """Why a volume cannot be used in this way; "" if it can."""
    if capability.access != volume.shape.access:
        return f"it is a {volume.shape.access} volume, not a {capability.access} volume"
    if capability.fs and capability.fs != (there := volume.shape.fs or pool.facts.fs):
        return f"its file system is {there}, not {capability.fs}"
    return ""


def _fs(backend: str, draft: Draft) -> str:
    """The file system of a new volume: images have ext4 if nobody asks for another, directories what the pool has."""
    return (draft.fs or "ext4") if backend == "image" and draft.access == "mount" else ""


def _mismatch(name: str, draft: Draft, pool: Pool) -> str:
    """Why a backend cannot be what the parameters ask for."""
    if pool.config.backend not in ("auto", name):
        return f"it keeps {pool.config.backend} volumes only, not {name}"
    if name != "directory":
        return ""
    if draft.fs and draft.fs != pool.facts.fs:
        return f"a directory has the pool's file system {pool.facts.fs}, not {draft.fs}"
    if draft.limits:
        return "a directory has no device whose io could be limited"
    return "a directory cannot be thick" if draft.wish.provisioning == "thick" else ""


def _size(wanted: Range, fit: Callable[[int], int], least: int) -> int:
    """The bytes of a volume in this range; at least those of its source."""
    if (wanted.required and wanted.required < least) or (wanted.limit and wanted.limit < least):
        raise CsiError("OUT_OF_RANGE", f"the source has {least} bytes; a volume with its content cannot be smaller")
    ask = wanted.required or least or min(DEFAULT_SIZE, wanted.limit or DEFAULT_SIZE)
    size = fit(ask)
    if wanted.limit and size > wanted.limit and not wanted.required:
        size = fit(max(2 * wanted.limit - size, 0))  # the limit is no multiple: one step less
    if wanted.limit and size > wanted.limit:
        raise CsiError("OUT_OF_RANGE", f"the least size for {ask} bytes is {size}, more than the limit {wanted.limit}")
    if size > _SIZE_MAX:
        raise CsiError("OUT_OF_RANGE", f"{ask} bytes are more than any volume can have")
    return size


def _family(source: Record | None) -> str:
    """The volume that a copy of `source` descends from."""
    if source is None:
        return ""
    return source.family or (source.volume if isinstance(source, Snapshot) else source.id)


def _accessible(pool: Pool, draft: Draft) -> bool:
    wanted = draft.requisite or draft.preferred
    return not wanted or any(matches(pool, one) for one in wanted)


def _rank(pool: Pool, draft: Draft) -> int:
    return next((n for n, one in enumerate(draft.preferred) if matches(pool, one)), len(draft.preferred))


def _unlike(pool: Pool, record: Record, draft: Draft) -> str:
    """Why a source cannot become such a volume."""
    if draft.access != record.shape.access:
        return f"it is a {record.shape.access} volume, not a {draft.access} volume"
    if draft.fs and draft.fs != (there := record.shape.fs or pool.facts.fs):
        return f"its file system is {there}, not {draft.fs}"
    if draft.wish.pool not in ("", pool.name):
        return f"it is in pool {pool.name}, not in {draft.wish.pool}"
    if draft.wish.backend not in ("", record.backend):
        return f"its backend is {record.backend}, not {draft.wish.backend}"
    return _mismatch(record.backend, draft, pool) if record.backend == "directory" else ""


def _incompatible(pool: Pool, volume: Volume, draft: Draft) -> str:
    """Why an existing volume is not what is asked for under its name."""
    thick = draft.wish.provisioning == "thick"
    reasons = (
        (not draft.range.holds(volume.shape.size), f"it has {volume.shape.size} bytes"),
        (volume.source != draft.source, "its content comes from elsewhere"),
        (draft.wish.provisioning and thick != volume.shape.thick, "its provisioning is the other one"),
        (draft.wish.limits and draft.limits != volume.limits, "its io limits are others"),
        (exclusive(volume) != exclusive(volume._replace(modes=draft.modes)), "it is for other access modes"),
        (not _accessible(pool, draft), "it is not within the topology that is required"),
    )
    return _unlike(pool, volume, draft) or next((why for wrong, why in reasons if wrong), "")


def exclusive(volume: Volume) -> bool:
    """Whether it was made for one single workload (ReadWriteOncePod): it is published once, whatever a call says."""
    return volume.modes == ("SINGLE_NODE_SINGLE_WRITER",)
