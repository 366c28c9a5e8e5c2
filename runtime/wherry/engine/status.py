"""What a container is doing now, put together from its processes, its records and its back-off. Never stored.

Decides docker's words for it: created, running, paused, restarting, exited.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Json

from . import records
from .house import House
from .records import Life

if TYPE_CHECKING:
    from wherry.container.state import ContainerDir, State

    from .db import Container

__all__ = ["Seen", "folder", "look", "running"]

_HEALTH_MAX = 1 << 20  # bytes


class Seen(NamedTuple):
    """One look at a container. `state` is None unless its processes are there."""

    status: str
    life: Life
    state: State | None = None
    health: Json | None = None
    unsettled: bool = False  # it has ended and nobody has cleaned up yet

    @property
    def running(self) -> bool:
        """Running or paused."""
        return self.status in ("running", "paused")

    @property
    def pid(self) -> int:
        """The init's pid, 0 if there is none."""
        return self.state.init.pid if self.state and self.state.init and self.running else 0


def folder(house: House, cid: str) -> ContainerDir:
    """STATE/c/<id> as container/ sees it."""
    from wherry.container.state import ContainerDir

    return ContainerDir(house.place.state, cid)


def look(house: House, cid: str) -> Seen:
    """Look once."""
    life = records.load(house.container_dir(cid))
    place = folder(house, cid)
    try:
        state = place.load()
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        return Seen(_past(life), life, unsettled=not life.settled)
    return _with_state(house, cid, life, place, state)


def _with_state(house: House, cid: str, life: Life, place: ContainerDir, state: State) -> Seen:
    from wherry.container.state import Status

    now = place.status(state)
    if now in (Status.RUNNING, Status.PAUSED):
        return Seen(now.value, life, state, _health(house, cid))
    if now in (Status.CREATING, Status.CREATED):
        return Seen("created", life, state)
    if life.settled:
        return Seen(_past(life), life, state, _health(house, cid))
    return Seen("exited", _ended(life, place, state), state, _health(house, cid), unsettled=True)


def _ended(life: Life, place: ContainerDir, state: State) -> Life:
    """The end as the monitor wrote it, or as decision 2 has it for a killed monitor; nobody has settled it yet."""
    end = place.settle(state)
    return life if end is None else life._replace(finished=end.time, code=end.code, oom=end.oom, error=end.error)


def _past(life: Life) -> str:
    from wherry.kernel import process

    if life.restarting and process.alive(process.Process(life.restarting.pid, life.restarting.start_time)):
        return "restarting"
    return "exited" if life.started or life.error else "created"


def _health(house: House, cid: str) -> Json | None:
    try:
        value = json.loads(files.read_capped(f"{house.state_dir(cid)}/health.json", _HEALTH_MAX))
    except (FileNotFoundError, ValueError, WherryError):
        return None
    return value if isinstance(value, dict) else None


def running(house: House, row: Container, *, paused: bool = False) -> tuple[Seen, State]:
    """Look, and insist that it runs; CONFLICT in docker's words if not, or if it is paused and may not be."""
    seen = look(house, row.id)
    if not seen.running or seen.state is None or seen.state.init is None:
        raise WherryError(Kind.CONFLICT, f"container {row.name} is not running", hint=f"wherry start {row.name}")
    if seen.status == "paused" and not paused:
        raise WherryError(Kind.CONFLICT, f"container {row.name} is paused", hint=f"wherry unpause {row.name}")
    return seen, seen.state
