"""How much of a pool can still be promised. Decides what a volume or a snapshot costs; the books are recomputed from
the records and the file system each time, so nothing can drift.

    available = free - reserve + allocated - shared - promised

Free is f_bavail of the file system, allocated what volumes and snapshots take of it now, shared what of that is counted
twice because a copy by reflink shares it, promised the sizes of volumes and what snapshots took at their making. It
adds up on a file system that the pool has to itself and on one that it has not. What was shared at a copy's making
counts as shared until one of the two is deleted: as they are written apart, less is promised than could be, never more.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import kernel
from .errors import CsiError
from .pools import Claim, Pool, Record
from .records import Snapshot

__all__ = ["Ledger", "available", "claim", "ledger", "shared_bytes", "shared_with"]

#: XFS and btrfs give back in the background what was deleted: so soon after it, so long a claim asks again (seconds)
_RECENT, _SETTLE = 30.0, 1.0


class Ledger(NamedTuple):
    """The books of one pool, in bytes."""

    free: int
    reserve: int
    allocated: int
    shared: int
    promised: int
    elsewhere: int  # promised, but not yet taken, by other pools on the same file system
    overprovision: float

    @property
    def available(self) -> int:
        """What may still be promised; negative if others took what volumes were promised."""
        whole = self.free - self.reserve + self.allocated - self.shared - self.elsewhere
        return (int(max(whole, 0) * self.overprovision) if self.overprovision > 1 else whole) - self.promised


def ledger(pool: Pool) -> Ledger:
    """The books as they stand, with what is being made, and with what pools beside it on the same disk still need."""
    books = _own(pool)
    others = [_own(other) for other in _near(pool)]
    return books._replace(elsewhere=sum(max(one.promised - one.allocated + one.shared, 0) for one in others))


def _near(pool: Pool) -> list[Pool]:
    """The other pools on the same file system."""
    return [other for other in pool.siblings if other is not pool and other.up and other.disk == pool.disk]


def _least(pool: Pool) -> int:
    """What is left at the least, from the index alone: as if nothing that was promised were taken yet. Shared bytes are
    among the allocated ones, so the books never say less."""
    found = os.fstatvfs(pool.place.top)
    elsewhere = sum(map(_promised, _near(pool)))
    books = Ledger(found.f_bavail * found.f_frsize, pool.config.reserve, 0, 0, _promised(pool), elsewhere,
                   pool.config.overprovision)  # fmt: skip
    return books.available


def _promised(pool: Pool) -> int:
    with pool.changing:
        kept: list[Record] = [*pool.volumes.values(), *pool.snapshots.values()]
        return sum(record.promised for record in kept) + sum(claim.size for claim in pool.claims.values())


def _own(pool: Pool) -> Ledger:
    with pool.changing:
        kept: list[Record] = [*pool.volumes.values(), *pool.snapshots.values()]
        claims = dict(pool.claims)
    sizes = {record.id: _allocated(pool, record) for record in kept}
    found = os.fstatvfs(pool.place.top)
    making = sum(min(claim.size, _making(pool, ident)) for ident, claim in claims.items() if claim.apart)
    return Ledger(
        found.f_bavail * found.f_frsize,
        pool.config.reserve,
        sum(sizes.values()) + making,
        shared_bytes(kept, sizes),
        sum(record.promised for record in kept) + sum(claim.size for claim in claims.values()),
        0,
        pool.config.overprovision,
    )


def _allocated(pool: Pool, record: Record) -> int:
    with suppress(OSError, CsiError), pool.home(record) as home:
        return pool.backend(record).allocated(home, record.shape)
    return 0


def _making(pool: Pool, ident: str) -> int:
    """Bytes of the files of a home in making/."""
    total = 0
    with suppress(OSError):
        home = os.open(ident, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=pool.place.rooms["making"])
        try:
            with os.scandir(home) as entries:
                total = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
        finally:
            os.close(home)
    return total


def shared_bytes(kept: Sequence[Record], sizes: Mapping[str, int]) -> int:
    """Bytes that `allocated` counts more than once, at most."""
    families: dict[str, list[Record]] = defaultdict(list)
    for record in kept:
        families[record.family or record.id].append(record)
    return sum(_shared_in(family, members, sizes) for family, members in families.items() if len(members) > 1)


def _shared_in(family: str, members: Sequence[Record], sizes: Mapping[str, int]) -> int:
    """Of copies that descend from the volume `family`: each shares with what it was made from, while that is there.

    Copies of what was deleted share with one another: one of them counts as the holder, if all are of the same volume,
    which was no copy itself. Of longer chains with gaps nothing is known, so all is counted.
    """
    parts = {record.id: min(record.shared, sizes[record.id]) for record in members}
    orphans = [record for record in members if _parent(record) not in parts]
    if len(orphans) == 1 or {_parent(record) for record in orphans} == {family}:
        return sum(parts.values()) - max(parts[record.id] for record in orphans)
    return sum(parts.values())


def _parent(record: Record) -> str:
    """What it was copied from; "" if it is no copy."""
    if isinstance(record, Snapshot):
        return record.volume
    return record.source[1] if record.source else ""


def _claimed(pool: Pool, ident: str, claim: Claim) -> int | None:
    """None if the bytes are reserved now, else how many there are. Every home is asked only where that decides."""
    with pool.changing:
        if claim.size > _least(pool) and claim.size > (left := available(pool)):
            return left
        pool.claims[ident] = claim
        return None


def shared_with(pool: Pool, source: Record, old: int, copy: Record, home: int) -> int:
    """Bytes that a copy in `home` shares with its source in `old`, when it has just been made."""
    if not pool.facts.reflink:
        return 0
    backend = pool.backend(source)
    return min(backend.allocated(old, source.shape), backend.allocated(home, copy.shape))


def available(pool: Pool) -> int:
    """Bytes that can still be promised, not negative."""
    return max(ledger(pool).available, 0)


@contextmanager
def claim(pool: Pool, ident: str, size: int, what: str, *, copy: bool = False) -> Iterator[None]:
    """Reserve `size` bytes for what is being made as `ident`; two creates cannot have the same bytes."""
    wanted = Claim(size, not (copy and pool.facts.reflink))
    end = time.monotonic() + _SETTLE
    while (left := _claimed(pool, ident, wanted)) is not None:
        if time.monotonic() > end or not pool.freed_since(time.monotonic() - _RECENT):
            sentence = f"pool {pool.name} has {left} bytes left to promise; {what} needs {size}"
            raise CsiError("RESOURCE_EXHAUSTED", sentence)
        kernel.syncfs(pool.place.top)
        time.sleep(_SETTLE / 20)
    try:
        yield
    finally:
        with pool.changing:
            pool.claims.pop(ident, None)
