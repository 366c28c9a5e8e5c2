"""How much of a pool can still be promised. Decides what a volume or a snapshot costs; the books are recomputed from
the records and the file system each time, so nothing can drift.

    available = free - reserve + allocated - shared - promised

Free is f_bavail of the file system, allocated what volumes and snapshots take of it now, shared what of that is counted
twice because a copy by reflink shares it, promised the sizes of volumes and what snapshots took at their making. It
adds up on a file system that the pool has to itself and on one that it has not.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from .errors import CsiError
from .pools import Pool, Record

__all__ = ["Ledger", "available", "claim", "ledger"]


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
    near = [other for other in pool.siblings if other is not pool and other.up]
    others = [_own(other) for other in near if other.disk == pool.disk]
    return books._replace(elsewhere=sum(max(one.promised - one.allocated + one.shared, 0) for one in others))


def _own(pool: Pool) -> Ledger:
    with pool.changing:
        kept: list[Record] = [*pool.volumes.values(), *pool.snapshots.values()]
        claims = dict(pool.claims)
    sizes = {record.id: _allocated(pool, record) for record in kept}
    found = os.fstatvfs(pool.place.top)
    making = sum(min(claimed, _making(pool, ident)) for ident, claimed in claims.items())
    return Ledger(
        found.f_bavail * found.f_frsize,
        pool.config.reserve,
        sum(sizes.values()) + making,
        _shared(kept, sizes),
        sum(record.promised for record in kept) + sum(claims.values()),
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


def _shared(kept: list[Record], sizes: dict[str, int]) -> int:
    """Bytes that `allocated` counts more than once: in each family of copies, one holds what the others share."""
    families: dict[str, list[int]] = defaultdict(list)
    roots = {record.id for record in kept}
    for record in kept:
        if record.shared:
            families[record.family].append(min(record.shared, sizes[record.id]))
    return sum(sum(parts) - (0 if family in roots else max(parts)) for family, parts in families.items())


def available(pool: Pool) -> int:
    """Bytes that can still be promised, not negative."""
    return max(ledger(pool).available, 0)


@contextmanager
def claim(pool: Pool, ident: str, size: int, what: str) -> Iterator[None]:
    """Reserve `size` bytes for what is being made as `ident`; two creates cannot have the same bytes."""
    with pool.changing:
        if size > (left := available(pool)):
            sentence = f"pool {pool.name} has {left} bytes left to promise; {what} needs {size}"
            raise CsiError("RESOURCE_EXHAUSTED", sentence)
        pool.claims[ident] = size
    try:
        yield
    finally:
        with pool.changing:
            pool.claims.pop(ident, None)
