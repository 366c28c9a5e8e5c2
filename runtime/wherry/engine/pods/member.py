"""Containers of pods: the verbs, and what is told of one.

Decides what a container's past means to a kubelet (reason, code, message). The work is the engine's that all containers
share, but for the beginning (building.py, starting.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wherry.engine import cleanup, fence
from wherry.engine import stop as stopping
from wherry.engine.house import House
from wherry.engine.status import Seen, look, look_many
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import rows
from .values import Member, MemberOptions

if TYPE_CHECKING:
    from wherry.engine.db import Container

__all__ = ["checkpoint", "create", "every", "get", "remove", "reopen_log", "stop", "update"]


def create(house: House, pod: str, options: MemberOptions) -> str:
    """Make it; its id."""
    from . import building

    return building.create(house, pod, options)


def _find(house: House, ref: str) -> Container:
    """By its id or an unambiguous prefix. NOT_FOUND also for a container of no pod: it is not the kubelet's."""
    row = house.db.find(ref)
    if not row.pod or not row.id.startswith(ref):
        raise WherryError(Kind.NOT_FOUND, f"no such container: {ref[:80]}")
    return row


def stop(house: House, container: str, timeout: int) -> None:
    """The stop signal, `timeout` seconds, KILL; with 0 KILL at once. What is not there, or has ended, is success."""
    with _gone_is_fine():
        row = _find(house, container)
        if fence.readable(house, row):
            stopping.stop_row(house, row, max(0, timeout), "KILL" if timeout <= 0 else "")
        else:  # how it wants to be stopped is not known any more
            cleanup.remove_cgroup(house, row.id)


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise


def remove(house: House, container: str) -> None:
    """Stop it at once and forget it. What is not there is success."""
    from wherry.engine import remove as removing

    with _gone_is_fine():
        removing.remove(house, _find(house, container).id, force=True, volumes=False)


def update(house: House, container: str, resources: Json, annotations: Mapping[str, str]) -> None:
    """Change limits. The annotations are the request's: nothing here reads them."""
    from . import limiting

    del annotations
    limiting.update(house, _find(house, container), resources)


def reopen_log(house: House, container: str) -> None:
    """Its monitor goes on in a new file. CONFLICT unless it runs."""
    from wherry.container import attach
    from wherry.engine.status import folder, running

    row = _find(house, container)
    running(house, row, paused=True)
    with attach.connect(folder(house, row.id).attach_path) as stream:
        code = stream.reopen_log()
    if code < 0:
        raise WherryError(Kind.CONFLICT, f"container {row.name} has just ended")
    if code:
        message = f"log {row.config['log']['file']} cannot be opened anew: {os.strerror(code)}"
        raise WherryError(Kind.PRECONDITION, message, hint="it goes on in the old file")


def checkpoint(house: House, container: str, location: str, timeout: int) -> None:
    """Write an archive of its processes and of what it changed; it goes on."""
    from . import checkpoint as checkpoints

    checkpoints.checkpoint(house, _find(house, container), location, timeout)


# ---- what is told


def get(house: House, container: str) -> Member:
    """One; NOT_FOUND."""
    row = _find(house, container)
    return _now(fence.one(house, row, rows.told), look(house, row.id))


def every(house: House) -> list[Member]:
    """All, newest first."""
    found = fence.each(house, house.db.members(), lambda row: (row, rows.told(row)))
    looks = look_many(house, [row for row, _ in found])
    return [_now(told, seen) for (_, told), seen in zip(found, looks, strict=True)]


def _now(told: Member, seen: Seen) -> Member:
    state = seen.state
    made = told._replace(pid=seen.pid, cgroup=state.cgroup if state is not None else "")
    if seen.running:
        return made._replace(state="running", started=state.started if state is not None else 0.0)
    return made if seen.status == "created" else _ended(made, seen)


def _ended(made: Member, seen: Seen) -> Member:
    """Its end: a start that failed, or how its first process ended."""
    life = seen.life
    reason = "OOMKilled" if life.oom else "Completed" if life.code == 0 else "Error"
    if not life.started:
        reason = "StartError"
    finished = max(life.finished, life.started)  # what ends at once may end before its start is written down
    return made._replace(
        state="exited", started=life.started, finished=finished, code=life.code, reason=reason, message=life.error
    )
