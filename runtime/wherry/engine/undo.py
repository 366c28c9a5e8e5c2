"""Undo beside do, and the locks that keep a sweep and two verbs off each other's feet.

Decides the order of going back (last made, first unmade) and what a failing undo says. Knows nothing of containers.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from wherry.errors import Kind, WherryError

from .house import House

__all__ = ["Undo", "container_lock", "making", "wait_for"]


class Undo:
    """Collects undos; runs them, last first, if the block fails. Each is idempotent; a failing one is told too."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def add(self, step: Callable[..., object], *values: object) -> None:
        """Remember how to take back what was just made."""
        self._steps.append((step, values))

    def keep(self) -> None:
        """All is well: forget the undos."""
        self._steps.clear()

    def back(self) -> list[str]:
        """Take everything back; returns what could not be."""
        failed = []
        while self._steps:
            step, values = self._steps.pop()
            try:
                step(*values)
            except Exception as error:
                failed.append(f"{getattr(step, '__name__', step)}: {error}")
        return failed

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = self.back() if error is not None else []
        self._steps.clear()
        if failed and isinstance(error, WherryError):
            told = f"taking back failed too: {'; '.join(failed)}"
            error.hint = f"{error.hint}; {told}" if error.hint else told
        elif failed and error is not None:
            error.add_note("taking back failed too: " + "; ".join(failed))


@contextmanager
def _flocked(path: str, operation: int) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, operation)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def making(house: House) -> Iterator[None]:
    """Held (shared) while something has files but no row yet: a sweep of rowless files stays out."""
    house.prepare()
    with _flocked(f"{house.place.root}/making.lock", fcntl.LOCK_SH):
        yield


@contextmanager
def sweeping(house: House, wait: bool) -> Iterator[bool]:
    """Held (alone) by a sweep of rowless files; yields False at once where something is being made."""
    house.prepare()
    try:
        with _flocked(f"{house.place.root}/making.lock", fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
            yield True
    except BlockingIOError:
        yield False


@contextmanager
def container_lock(house: House, cid: str, timeout: float = 60, *, create: bool = True) -> Iterator[None]:
    """One verb at a time on a container; NOT_FOUND if it has gone while we waited, CONFLICT after `timeout`. Who only
    wants to know whether somebody is at it does not `create` the lock, which is in the way of its removal."""
    from wherry.kernel import files

    house.catch_up()
    try:
        with files.flock(f"{house.container_dir(cid)}/lock", timeout, create=create) as fd:
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError
            yield
    except FileNotFoundError as error:
        if create and os.path.isdir(house.container_dir(cid)):
            raise
        raise WherryError(Kind.NOT_FOUND, f"no such container: {cid[:12]}") from error


def wait_for(house: House, cid: str) -> None:
    """Until nobody holds the container's lock."""
    with suppress(WherryError), container_lock(house, cid, create=False):
        pass
