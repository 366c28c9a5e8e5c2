"""What a container is doing now, put together from its processes, its records and its back-off. Never stored.

Decides docker's words for it: created, running, paused, restarting, exited.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Json

from . import records
from .house import House
from .records import Life

if TYPE_CHECKING:
    from wherry.container.state import ContainerDir, State

    from .db import Container

__all__ = ["Seen", "folder", "look", "look_many", "running"]

_HEALTH_MAX = 1 << 20  # bytes
_KILLED = 137


class Seen:
    """One look at a container. `state` is None unless its processes were there; `life` and `health` are read when they
    are asked for, which a list of running containers does not."""

    __slots__ = ("_cid", "_health", "_house", "_life", "state", "status", "unsettled")

    def __init__(
        self, house: House, cid: str, status: str, state: State | None = None, life: Life | None = None,
        *, unsettled: bool = False,
    ) -> None:  # fmt: skip
        self._house, self._cid, self._life = house, cid, life
        self._health: list[Json | None] = []
        self.status, self.state = status, state
        self.unsettled = unsettled  # it has ended and nobody has cleaned up yet

    @property
    def life(self) -> Life:
        """Its past."""
        if self._life is None:
            self._life = records.load(self._house.container_dir(self._cid))
        return self._life

    @property
    def health(self) -> Json | None:
        """What its checks found; None where there were none."""
        if not self._health:
            self._health.append(_health(self._house, self._cid) if self.state is not None else None)
        return self._health[0]

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
    place = folder(house, cid)
    try:
        return _with_state(house, cid, place, place.load())
    except WherryError as error:  # also what is given back while we look
        if error.kind is not Kind.NOT_FOUND:
            raise
    life = records.load(house.container_dir(cid))
    if life.settled or life.told:
        return Seen(house, cid, _past(life), None, life, unsettled=not life.settled)
    if place.exists():  # its start is being written down, unless that was killed: the next sweep ends it then
        return Seen(house, cid, "created", None, life, unsettled=True)
    return Seen(house, cid, "exited", None, records.lost(life), unsettled=True)


def look_many(house: House, rows: Sequence[Container]) -> list[Seen]:
    """Look at each: those that run, with a pid namespace of their own, together."""
    from wherry.container.state import look_many as running_of

    plain = [row.id for row in rows if not row.config["options"].get("pid")]
    try:
        found = dict(zip(plain, running_of(house.place.state, plain), strict=True))
    except OSError:  # no STATE/c, or larger records than anybody has
        found = {}
    return [
        Seen(house, row.id, "running", state) if (state := found.get(row.id)) else look(house, row.id)
        for row in rows
    ]


def _with_state(house: House, cid: str, place: ContainerDir, state: State) -> Seen:
    from wherry.container.state import Status

    now = place.status(state)
    if now in (Status.RUNNING, Status.PAUSED):
        return Seen(house, cid, now.value, state)
    if now in (Status.CREATING, Status.CREATED):
        return Seen(house, cid, "created", state)
    ending = _ending(place, state)  # before the life is read: who settles an end tells it there, then takes exit.json
    life = records.load(house.container_dir(cid))
    if life.settled:
        return Seen(house, cid, _past(life), state, life)
    if life.told:  # exit.json may have gone before the rest
        return Seen(house, cid, "exited", state, life, unsettled=True)
    if ending:
        return Seen(house, cid, "running", state)
    return Seen(house, cid, "exited", state, _ended(house, life, place, state), unsettled=True)


def _ending(place: ContainerDir, state: State) -> bool:
    """Its init is gone, but its monitor has still to say how: nobody shall read an exit code that is not there yet."""
    from wherry.kernel import process

    return state.monitor is not None and place.exit_status() is None and process.alive(state.monitor)


def _ended(house: House, life: Life, place: ContainerDir, state: State) -> Life:
    """The end as the monitor wrote it, or as decision 2 has it for a killed monitor; nobody has settled it yet."""
    end = place.settle(state)
    if end is not None and end.code == _KILLED:  # or exit.json has gone since we read of no end
        now = records.load(house.container_dir(place.id))
        if now.told or now.settled:
            return now
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
