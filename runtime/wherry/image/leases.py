"""Who counts on what in the store right now, so that a sweep can run beside pulls, loads, builds and commits.

Decides what a sweep must leave alone although no image names it yet: the digests that somebody said he uses, and
whatever came into being since the oldest of those began. Refuses to know what the digests are of.

    ROOT/leases/<random>    held (flock) as long as its work goes on: when it began, then a digest a line
    ROOT/images/.lease      the guard: shared while somebody says what he uses, alone while a sweep decides what goes

First say, then look: who has said it under the guard finds the thing there and keeps it, or finds it gone and gets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from wherry.image import disk

__all__ = ["InUse", "Lease", "Leases"]

_FILE_MAX = 64 << 20
_POLL = 0.02


class InUse(NamedTuple):
    """What living leases keep. `since`: change time in ns, from which on everything stays (none living: never)."""

    digests: frozenset[str]
    since: float = float("inf")

    def keeps(self, digest: str, status: os.stat_result) -> bool:
        """Whether this thing stays."""
        return digest in self.digests or status.st_ctime_ns >= self.since


class Lease:
    """One piece of work that uses the store."""

    def __init__(self, leases: Leases, fd: int) -> None:
        self._leases, self._fd = leases, fd
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def add(self, digests: tuple[str, ...]) -> None:
        """Say that these are used, before looking whether they are there."""
        with self._lock:
            new = [digest for digest in digests if digest not in self._said]
            if new:
                with self._leases.guard(shared=True):
                    os.write(self._fd, "".join(f"{digest}\n" for digest in new).encode())
                self._said.update(new)


class Leases:
    """The leases below `root`."""

    def __init__(self, root: str) -> None:
        self._place = os.path.join(root, "leases")
        self._images = os.path.join(root, "images")

    @contextlib.contextmanager
    def hold(self) -> Iterator[Lease]:
        """Begin to use the store. Nothing that is made meanwhile is swept before the end."""
        disk.make_private(self._place)
        path = os.path.join(self._place, disk.fresh_name(""))
        with self.guard(shared=True):  # a sweep sees it with its lock, or not at all
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, b"%d\n" % os.fstat(fd).st_ctime_ns)  # by the clock of the file system, as what is compared
        try:
            yield Lease(self, fd)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(fd)

    def guard(self, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """Held for moments only: never while something is fetched, unpacked or removed."""
        disk.make_private(self._images)
        return disk.locked(os.path.join(self._images, ".lease"), shared=shared)

    @contextlib.contextmanager
    def alone(self, patience: float) -> Iterator[bool]:
        """The guard for a sweep; False where others have it for longer than `patience` seconds."""
        disk.make_private(self._images)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(os.path.join(self._images, ".lease"), flags, 0o600)
        try:
            yield _locked_within(fd, patience)
        finally:
            os.close(fd)

    def in_use(self) -> InUse:
        """What the living say. Call it with the guard; what the dead left is removed."""
        digests: set[str] = set()
        since = float("inf")
        for name in _names(self._place):
            path = os.path.join(self._place, name)
            held = disk.try_lock(path)
            if held >= 0:
                with contextlib.suppress(FileNotFoundError):  # its owner ended between our two looks
                    os.unlink(path)
                os.close(held)
                continue
            with contextlib.suppress(FileNotFoundError):
                began, *said = _lines(path)
                digests.update(said)
                since = min(since, int(began))
        return InUse(frozenset(digests), since)


def _locked_within(fd: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _lines(path: str) -> list[str]:
    with open(path, "rb") as file:
        return file.read(_FILE_MAX).decode("ascii", "replace").splitlines()
