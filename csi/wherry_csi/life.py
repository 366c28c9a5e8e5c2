"""The life of volumes: the verbs in steps that can be cut off anywhere.

What is made is made in making/ and becomes real by one rename; what is deleted ends by one rename into trash/. Between
the two, a record says what is true. So after a crash there is nothing that is half there, and a call that was not
answered can be repeated. Knows no gRPC; snapshots have a room of their own (snapshots.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from .backend.all import BACKENDS
from .capacity import claim, shared_with
from .catalog import Catalog
from .errors import CsiError
from .placement import Draft, accessible, backend_in, candidates, incompatible, shape_in, size_in, unfit, unlike
from .pools import Pool, Record, mint
from .records import RECORD, Group, Published, Volume, family, save, write
from .requests import Capability, Range
from .trash import REAP_WAIT

__all__ = ["Life"]


class Life(Catalog):
    """All pools, and what can be done with the volumes in them."""

    def create(self, draft: Draft) -> tuple[Pool, Volume]:
        """CreateVolume: the volume of this name, made if it is not there."""
        shared = (draft.source[1],) if draft.source else ()
        with self.held(f"volume name {draft.name}", shared=shared):
            if found := self.named("volumes", draft.name):
                return self._same(found, draft)
            origin = self._origin(draft)
            chosen = [origin[0]] if origin else candidates(self.pools, draft)
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
        backend, shape = shape_in(pool, draft, source)
        ident = mint("vol")
        volume = Volume(
            ident, draft.name, time.time_ns(), backend, shape, draft.modes, draft.limits, draft.source, family(source)
        )
        reserved = claim(pool, ident, shape.size, f"volume {draft.name!r}", copy=source is not None)
        with reserved, pool.making(ident) as home:
            if source is None:
                BACKENDS[backend].make(home, shape)
            else:
                with pool.home(source) as old:
                    BACKENDS[backend].copy(old, source.shape, home, shape)
                    volume = volume._replace(shared=shared_with(pool, source, old, volume, home))
            save(home, RECORD, write(volume))
            pool.finish(volume)
        return volume

    def pools_for(self, draft: Draft) -> list[tuple[Pool, str]]:
        """GetCapacity: the pools that such volumes may be made in, each with the backend."""
        self.watch()
        try:
            return [(pool, backend_in(pool, draft)[0]) for pool in candidates(self.pools, draft)]
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
        if why := unlike(pool, record, draft):
            raise CsiError("INVALID_ARGUMENT", f"{kind} {ident!r} cannot be the source: {why}")
        if not accessible(pool, draft):
            raise CsiError("RESOURCE_EXHAUSTED", f"{kind} {ident!r} is in pool {pool.name}, outside the topology")
        if why := pool.backend(record).problem(pool.facts, record.shape.access, record.shape.fs):
            raise CsiError("INVALID_ARGUMENT", f"pool {pool.name}: {why}")
        return pool, record

    def _same(self, found: tuple[Pool, Record | Group], draft: Draft) -> tuple[Pool, Volume]:
        """The volume that has the name already, if it is what is asked for."""
        pool, volume = found
        assert isinstance(volume, Volume)
        if why := incompatible(pool, volume, draft):
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
        gone.wait(REAP_WAIT)

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
        size = size_in(wanted, lambda size: backend.fit(size, old.access, old.fs), old.size)
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
