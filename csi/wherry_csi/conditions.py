"""The condition of volumes: what is wrong with one, in a sentence.

Looking at one costs a fraction of a millisecond, which a list of thousands has not: it looks at as many as its time
allows, those first that were not looked at for longest, and answers for the others what was seen last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .backend.all import one_look
from .errors import CsiError
from .pools import Pool, Record

__all__ = ["Conditions", "trouble"]

_BUDGET = 0.03  # seconds that a list spends on looking: some hundred volumes


def trouble(pool: Pool, record: Record) -> str:
    """What is wrong with a volume or snapshot now; "" if nothing."""
    if pool.trouble:
        return pool.trouble
    try:
        with pool.home(record) as home:
            return pool.backend(record).trouble(home, record.shape)
    except OSError as error:
        return f"its files cannot be read: {error.strerror}"
    except CsiError as error:
        return str(error)


class Conditions:
    """What was seen last of each volume."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, str]] = {}

    def of(self, listed: Sequence[tuple[Pool, Record]]) -> dict[str, str]:
        """The trouble of each, by id. A pool's own is told at once, whatever was seen before."""
        end = time.monotonic() + _BUDGET
        pools = {pool.name: pool.trouble for pool, _ in listed}
        with one_look():
            for pool, record in sorted(listed, key=lambda one: self._seen.get(one[1].id, (0.0, ""))[0]):
                if time.monotonic() > end:
                    break
                self._seen[record.id] = time.monotonic(), trouble(pool, record)
        self._forget(len(listed))
        return {record.id: pools[pool.name] or self._seen.get(record.id, (0.0, ""))[1] for pool, record in listed}

    def _forget(self, listed: int) -> None:
        """Deleted volumes leave lines behind: now and then the oldest go."""
        if len(self._seen) > 2 * listed + 1000:
            for ident, _ in sorted(self._seen.items(), key=lambda one: one[1])[: len(self._seen) // 2]:
                self._seen.pop(ident, None)
