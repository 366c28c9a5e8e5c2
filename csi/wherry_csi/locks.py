"""Who works on what: one call at a time on a volume, a snapshot, a group or a name. In memory only: the pool's flock
keeps a second driver out, and a call that was killed holds nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import CsiError

__all__ = ["Locks"]


class Locks:
    """`with locks.hold("vol-…"): …`; what is held by another call already is ABORTED (spec, Error Scheme).

    Sources of a copy are `shared`: several copies may be made of one, while nobody changes it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[str, int] = {}  # key -> -1 (alone) or how many share it

    @contextmanager
    def hold(self, *alone: str, shared: tuple[str, ...] = (), patience: float = 0.0) -> Iterator[None]:
        """Hold all of them or none; `patience` in seconds is how long a call waits for another to end."""
        self._take(alone, shared, time.monotonic() + patience)
        try:
            yield
        finally:
            self._give(alone, shared)

    def _take(self, alone: tuple[str, ...], shared: tuple[str, ...], end: float) -> None:
        with self._changed:
            while (busy := self._busy(alone, shared)) is not None:
                if (left := end - time.monotonic()) <= 0:
                    raise CsiError("ABORTED", f"another call is at work on {busy!r}; ask again when it has ended")
                self._changed.wait(left)
            for key in alone:
                self._held[key] = -1
            for key in shared:
                self._held[key] = self._held.get(key, 0) + 1

    def _busy(self, alone: tuple[str, ...], shared: tuple[str, ...]) -> str | None:
        held = [key for key in alone if key in self._held] + [key for key in shared if self._held.get(key, 0) < 0]
        return held[0] if held else None

    def _give(self, alone: tuple[str, ...], shared: tuple[str, ...]) -> None:
        with self._changed:
            for key in alone:
                self._held.pop(key, None)
            for key in shared:
                self._held[key] -= 1
                if not self._held[key]:
                    del self._held[key]
            self._changed.notify_all()
