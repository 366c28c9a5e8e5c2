"""Snapshots, one by one and in groups: taken in making/, real by one rename; a group by its file. See life.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .backend.all import BACKENDS
from .capacity import claim, shared_with
from .catalog import Catalog
from .errors import CsiError
from .pools import Pool, mint
from .records import RECORD, Group, Snapshot, Volume, family, save, write
from .trash import REAP_WAIT

__all__ = ["Snapshots", "check_members"]


class Snapshots:
    """What can be done with the snapshots of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def take(self, name: str, source: str) -> tuple[Pool, Snapshot]:
        """CreateSnapshot: the snapshot of this name, made if it is not there."""
        with self._catalog.held(f"snapshot name {name}", shared=(source,)):
            if found := self._catalog.named("snapshots", name):
                pool, snapshot = found
                assert isinstance(snapshot, Snapshot)
                if snapshot.volume != source:
                    raise CsiError("ALREADY_EXISTS", f"snapshot {name!r} exists, of volume {snapshot.volume!r}")
                return pool, snapshot
            pool, volume = self._catalog.volume(source)
            with ExitStack() as stack:
                snapshot = self._cut(stack, pool, volume, mint("snap"), name)
                pool.finish(snapshot)
            return pool, snapshot

    def _cut(
        self, stack: ExitStack, pool: Pool, volume: Volume, ident: str, name: str, *, group: str = ""
    ) -> Snapshot:
        """A snapshot, whole and recorded, but still in making/ while the stack is open."""
        backend = pool.backend(volume)
        old = stack.enter_context(pool.home(volume))
        need = backend.allocated(old, volume.shape)
        stack.enter_context(claim(pool, ident, need, f"snapshot {name!r}", copy=True))
        home = stack.enter_context(pool.making(ident))
        project = pool.project() if volume.backend == "directory" else 0
        shape = volume.shape._replace(thick=False, project=project)
        created = time.time_ns()
        backend.copy(old, volume.shape, home, shape)
        snapshot = Snapshot(ident, name, created, volume.backend, shape, volume.id, 0, family(volume), 0, group)
        taken, shared = backend.allocated(home, shape), shared_with(pool, volume, old, snapshot, home)
        snapshot = snapshot._replace(taken=taken, shared=shared)
        save(home, RECORD, write(snapshot))
        return snapshot

    def delete(self, ident: str) -> None:
        """DeleteSnapshot: gone already is success; a member of a group goes with the group."""
        with self._catalog.held(ident):
            try:
                pool, snapshot = self._catalog.snapshot(ident)
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
        gone.wait(REAP_WAIT)

    # --- groups ---------------------------------------------------------------------------------------------------

    def take_group(self, name: str, sources: Sequence[str]) -> tuple[Pool, Group]:
        """CreateVolumeGroupSnapshot: all or nothing, of one instant."""
        with self._catalog.held(f"group name {name}", shared=tuple(sorted(set(sources)))):
            if found := self._catalog.named("groups", name):
                pool, group = found
                assert isinstance(group, Group)
                if sorted(group.volumes) != sorted(sources):
                    raise CsiError("ALREADY_EXISTS", f"group snapshot {name!r} exists, of other volumes")
                return pool, group
            volumes = [self._catalog.volume(source) for source in sources]
            if len({pool.name for pool, _ in volumes}) > 1:
                names = ", ".join(sorted({pool.name for pool, _ in volumes}))
                raise CsiError("FAILED_PRECONDITION", f"a group must lie in one pool; these volumes are in {names}")
            return volumes[0][0], self._cut_group(volumes[0][0], [volume for _, volume in volumes], name)

    def _cut_group(self, pool: Pool, volumes: Sequence[Volume], name: str) -> Group:
        """Every snapshot whole in making/, then the group's file, which makes them real, then their renames."""
        ident, idents = mint("group"), [mint("snap") for _ in volumes]
        with ExitStack() as stack:
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
        with ExitStack() as stack:
            for name in sorted({volume.backend for volume in volumes}):
                mine = [volume for volume in volumes if volume.backend == name]
                homes = [(stack.enter_context(pool.home(volume)), volume.shape) for volume in mine]
                stack.enter_context(BACKENDS[name].quiesced(homes))
            yield

    def delete_group(self, ident: str, snapshots: Sequence[str]) -> None:
        """DeleteVolumeGroupSnapshot with its snapshots; gone already is success."""
        with self._catalog.held(ident):
            try:
                pool, group = self._catalog.group(ident)
            except CsiError as error:
                if error.code == "NOT_FOUND":
                    return
                raise
            check_members(group, snapshots)
            with self._catalog.held(*group.snapshots):
                gone = self._drop(pool, group)
        for one in gone:
            one.wait(REAP_WAIT / len(gone))

    @staticmethod
    def _drop(pool: Pool, group: Group) -> list[threading.Event]:
        pool.drop_group(group)
        return [pool.discard(ident, "snapshots") for ident in group.snapshots]


def check_members(group: Group, snapshots: Sequence[str]) -> None:
    """The ids that a call gives must be those of the group."""
    if set(snapshots) != set(group.snapshots):
        raise CsiError("INVALID_ARGUMENT", f"snapshot_ids are not those of group snapshot {group.id!r}")
