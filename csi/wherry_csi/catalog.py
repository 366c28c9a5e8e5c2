"""All pools of the configuration and what is in them: opened, watched, looked up, held for one call at a time.

Decides what NOT_FOUND may be said of: nothing that might be in a pool that is down. Changes nothing in a pool.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from .config import Config
from .errors import CsiError
from .locks import Locks
from .pools import Pool, PoolDown, PoolHeld, Record
from .records import Group, Snapshot, Volume
from .trash import Reaper

__all__ = ["Catalog"]

_PATIENCE = 2.0  # seconds that a call waits for another on the same volume or name, before it is ABORTED

R = TypeVar("R")


class Catalog:
    """The pools, and who works on what is in them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.locks = Locks()
        self.reaper = Reaper()
        self._told: set[str] = set()
        changing = threading.RLock()
        self.pools = [Pool(pool, config.node_id, self.reaper, changing) for pool in config.pools]
        for pool in self.pools:
            pool.siblings = self.pools

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
