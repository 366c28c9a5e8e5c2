"""The list of containers as it was last read, each entry encoded, for who asks again and again.

Decides what may have changed since: what an event names, what has ended, what the engine calls unsteady. A list is
always as true as one that is read anew; only the words with the time in them are made for each.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterable

from wherry.daemon.work import Work
from wherry.engine.engine import Engine
from wherry.engine.listing import Listed
from wherry.model import Json

__all__ = ["Roster"]

_ONE_BY_ONE = 50  # more than so many are read together


class _Entry:
    """One, its facts as JSON without the last brace."""

    def __init__(self, value: Listed) -> None:
        self.value = value
        self._head = json.dumps(value.facts, separators=(",", ":")).encode()[:-1]

    def told(self) -> bytes:
        return self._head + b',"Status":' + json.dumps(self.value.status()).encode() + b"}"


class Roster:
    """Of one engine. Its methods are the loop's; reading is done by the threads of `work`."""

    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine, self._work = engine, work
        self._entries: dict[str, _Entry] = {}
        self._newest: list[_Entry] = []
        self._stale: set[str] = set()
        self._known = False
        self._followed = False
        self._one = asyncio.Lock()
        self._watched: dict[str, tuple[int, int]] = {}  # container -> pid, pidfd

    async def told(self, *, all: bool, last: int) -> bytes:
        """`containers` of the engine as JSON."""
        async with self._one:
            await self._fresh()
            wanted = [entry for entry in self._newest if all or last or entry.value.alive]
            return b"[" + b",".join([entry.told() for entry in wanted[: last or None]]) + b"]"

    async def states(self) -> Counter[str]:
        """How many there are in each of docker's states."""
        async with self._one:
            await self._fresh()
            return Counter(str(entry.value.facts["State"]) for entry in self._newest)

    async def _fresh(self) -> None:
        if not self._followed:
            self._tail, self._followed = self._engine.changes(), True
        self._stale.update(_named(self._tail.more()))
        if self._tail.missed:  # more happened than is kept
            self._known = self._tail.missed = False
        stale = self._stale | {cid for cid, entry in self._entries.items() if not entry.value.steady}
        self._stale = set()
        whole = not self._known or len(stale) > _ONE_BY_ONE
        try:
            found, there = await self._work.look(self._engine.listed, None if whole else stale)
            if unknown := there - self._entries.keys() - {one.id for one in found}:
                found += (await self._work.look(self._engine.listed, unknown))[0]
        except BaseException:
            self._stale |= stale
            raise
        self._take(found, there, stale)
        self._known = True

    def _take(self, found: list[Listed], there: set[str], stale: set[str]) -> None:
        fresh = {one.id: _Entry(one) for one in found}
        gone = {cid for cid in self._entries if cid not in there or (cid in stale and cid not in fresh)}
        for cid in gone:
            del self._entries[cid]
        self._entries.update(fresh)
        if gone or fresh:
            self._newest = sorted(self._entries.values(), key=lambda entry: entry.value.created, reverse=True)
        self._watch(found)

    # ---- ends of processes, which no event need tell ----

    def _watch(self, found: Iterable[Listed]) -> None:
        for cid in [cid for cid in self._watched if cid not in self._entries]:
            self._unwatch(cid)
        for one in found:
            if self._watched.get(one.id, (0, 0))[0] != one.pid:
                self._unwatch(one.id)
                if one.pid:
                    self._begin(one.id, one.pid)

    def _begin(self, cid: str, pid: int) -> None:
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # it has ended meanwhile
            self._stale.add(cid)
            return
        self._watched[cid] = pid, fd
        asyncio.get_running_loop().add_reader(fd, self._ended, cid)

    def _ended(self, cid: str) -> None:
        self._unwatch(cid)
        self._stale.add(cid)

    def _unwatch(self, cid: str) -> None:
        if (watched := self._watched.pop(cid, None)) is not None:
            asyncio.get_running_loop().remove_reader(watched[1])
            os.close(watched[1])

    def stop(self) -> None:
        """Let go of all descriptors."""
        for cid in list(self._watched):
            self._unwatch(cid)


def _named(events: Iterable[Json]) -> set[str]:
    """The containers that events are about; those of networks name theirs beside."""
    found = set()
    for event in events:
        actor = event.get("Actor", {})
        inside = str(actor.get("Attributes", {}).get("container", ""))
        found.add(str(actor.get("ID", "")) if event.get("Type") == "container" else inside)
    return found - {""}
