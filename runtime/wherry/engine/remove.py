"""`rm`: row first, then files; a crash in between leaves garbage that a sweep finds, never a row without files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError

from . import cleanup, events, fence
from .house import House
from .status import folder, look
from .undo import container_lock

if TYPE_CHECKING:
    from .db import Container, Volume

__all__ = ["discard", "files_of", "forget", "remove"]

Step = Callable[[], object]


def remove(house: House, ref: str, *, force: bool, volumes: bool) -> None:
    """`rm`."""
    row = house.db.find(ref)
    seen = look(house, row.id)
    if seen.running and not force:
        state = "paused" if seen.status == "paused" else "running"
        hint = "stop it first, or use --force"
        message = f"cannot remove container {row.name} ({row.id[:12]}): container is {state}"
        raise WherryError(Kind.CONFLICT, message, hint=hint)
    try:
        if not fence.readable(house, row):
            _scrap(house, row)
            return
        with _ended(house, row, force=seen.running):
            _remove(house, row, volumes=volumes or bool(row.config["options"].get("remove")))
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:  # --rm, or another rm, was faster
            raise


def _scrap(house: House, row: Container) -> None:
    """One whose row cannot be read: as a sweep takes what has none."""
    with container_lock(house, row.id):
        cleanup.remove_cgroup(house, row.id)
        house.db.remove_container(row.id)
    events.emit(house, "container", "destroy", row.id, {"name": row.name}, pod=row.pod)
    from . import gc

    gc.sweep(house, thorough=False)


def _ended(house: House, row: Container, *, force: bool) -> contextlib.AbstractContextManager[object]:
    from . import stop

    return stop.ended(house, row, 0, "KILL") if force else contextlib.nullcontext()


def _remove(house: House, row: Container, *, volumes: bool) -> None:
    with contextlib.ExitStack() as held:
        held.enter_context(container_lock(house, row.id))
        if look(house, row.id).running:
            raise WherryError(Kind.CONFLICT, f"container {row.name} was started meanwhile", hint="try again")
        end = cleanup.settle_locked(house, row, doomed=True)
        cleanup.put_off(house, held, forget(house, row, end.rest, volumes=volumes))


def forget(house: House, row: Container, before: Sequence[Step], *, volumes: bool) -> tuple[Step, ...]:
    """The row goes; what is left to do is told: `before`, then the files, which nobody misses. Volumes that go along
    are looked for by name: then all of it is done at once. The caller holds the lock, or nobody sees the container."""
    if house.db.container(row.id) is None:
        return tuple(before)
    orphans = house.db.remove_container(row.id)
    events.container(house, row, "destroy")
    steps: tuple[Step, ...] = (*before, lambda: files_of(house, row.id))
    if not (volumes and orphans):
        return steps
    for step in steps:
        step()
    _drop(house, orphans)
    return ()


def discard(house: House, row: Container, *, volumes: bool) -> None:
    """Row, files, volumes, all at once."""
    for step in forget(house, row, (), volumes=volumes):
        step()


def _drop(house: House, orphans: Sequence[Volume]) -> None:
    from . import volumes

    for orphan in orphans:
        try:
            volumes.discard(house, orphan)
        except WherryError as error:
            if error.kind is not Kind.CONFLICT:  # another container took it meanwhile
                raise


def files_of(house: House, cid: str) -> None:
    """Everything on disk of a container that has no row any more, and what is remembered of that; all of it is
    tried."""
    from wherry.kernel import files

    house.measured.pop(cid, None)
    steps: tuple[Callable[[], object], ...] = (
        lambda: cleanup.unmount_shm(house, cid),
        lambda: folder(house, cid).remove(),
        lambda: house.snapshots.remove(cid),
        lambda: files.remove_tree(house.container_dir(cid)),
    )
    failed = [error for step in steps if (error := _tried(step)) is not None]
    if failed:
        raise failed[0]


def _tried(step: Callable[[], object]) -> Exception | None:
    try:
        step()
    except (WherryError, OSError) as error:
        return error
    return None
