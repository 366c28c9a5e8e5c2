"""The end of a container: what it used is given back, its end is written down, its restart policy applied, --rm obeyed.

Decides the order (facts first, so that a crash at any point leaves something a second call finishes) and who does
what: the attached CLI, `internal cleanup ID`, or a sweep, whichever holds the lock first. Idempotent.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import ExitStatus, RunOptions

from . import codec, events, records, restart, undo
from .house import House
from .records import Life
from .status import folder, look
from .undo import container_lock

if TYPE_CHECKING:
    from .db import Container

__all__ = ["Settled", "await_rest", "finish", "put_off", "settle", "settle_locked", "settle_now", "teardown"]

Step = Callable[[], object]


class Settled(NamedTuple):
    """An end that is told: the life after it (None: it runs, never ran, or is gone with --rm), and what is left."""

    life: Life | None
    rest: tuple[Step, ...] = ()


def finish(house: House, ref: str) -> None:
    """`internal cleanup ID`: settle, then wait out the back-off and start again if the policy says so."""
    try:
        row = house.db.find(ref)
        life = settle(house, row)
    except WherryError as error:
        if error.kind is Kind.NOT_FOUND:
            _sweep(house)
            return
        raise
    options = codec.decode_options(row.config["options"])
    if life is not None and restart.wanted(options.restart, life):
        _again(house, row, options)


def _sweep(house: House) -> None:
    """Its row is gone, but who removed it may have been killed before the rest."""
    from . import gc

    gc.sweep(house, thorough=False)


def settle(house: House, row: Container) -> Life | None:
    """Settle one container if it has ended; its life after that, None if it still runs or is gone with --rm.

    Gone it may be before we look: a command that ends at once is over before its client could claim the cleanup.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(container_lock(house, row.id))
        except WherryError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        if house.db.container(row.id) is None:
            return None
        end = settle_locked(house, row)
        put_off(house, held, end.rest)
        return end.life


def put_off(house: House, held: contextlib.ExitStack, rest: Sequence[Step]) -> None:
    """What nobody waits for, under the lock in `held`: who wants it meanwhile waits, or leaves it to us."""
    if not rest:
        return
    kept = held.pop_all()

    def work() -> None:
        with kept:
            _all_of(rest)

    house.later(work)


def settle_now(house: House, row: Container) -> Life | None:
    """Like `settle`, to its end, for a holder of the lock."""
    end = settle_locked(house, row)
    _all_of(end.rest)
    return end.life


def _all_of(steps: Iterable[Step]) -> None:
    for step in steps:
        step()


def settle_locked(house: House, row: Container, *, doomed: bool = False) -> Settled:
    """Like `settle`, up to what nobody waits for, for a holder of the lock, who removes a `doomed` one next."""
    seen = look(house, row.id)
    if seen.running:
        return Settled(None)
    row = house.db.container(row.id) or row  # it may have joined a network since the caller read it
    if not seen.unsettled:
        _clear(house, row)
        return Settled(None if seen.status == "created" else seen.life)
    life = seen.life if seen.life.told else _end_now(house, row, seen.life)
    options = codec.decode_options(row.config["options"])
    again = restart.wanted(options.restart, life)
    life = life._replace(settled=True, told=False, restarting=_me() if again else None)
    gone = options.remove and not again
    if not (gone or doomed):  # who looks before all is done sees how it ended, and so does who finishes it for us
        records.store(house.container_dir(row.id), life._replace(settled=False, told=True))
    rest: tuple[Step, ...] = (lambda: teardown(house, row),)
    if again or _wanted_by_others(house, row, options):
        _all_of(rest)
        rest = ()
    if gone:
        from . import remove

        return Settled(None, remove.forget(house, row, rest, volumes=True))
    if doomed:
        return Settled(life, rest)
    if again:
        records.store(house.container_dir(row.id), life)
        return Settled(life)
    return Settled(life, (*rest, lambda: records.store(house.container_dir(row.id), life)))


def _end_now(house: House, row: Container, before: Life) -> Life:
    status = _exit_status(house, row)
    life = records.lost(before)
    if status is not None:
        when = status.time or time.time()
        life = before._replace(finished=when, code=status.code, oom=status.oom, error=status.error)
    _tell(house, row, life)
    return life


def _wanted_by_others(house: House, row: Container, options: RunOptions) -> bool:
    """Whether the next container may ask for what this one has: a port of the host, an address of its network, or
    whatever a network of the host's own lists gives out."""
    from . import joining

    if row.config["ports"] or joining.mode(options):
        return bool(row.config["ports"])
    return any(a.ip or a.mac or not house.networks.is_own(a.network) for a in options.network)


def await_rest(house: House, but: str = "") -> None:
    """Until what commands before us put off is done: networks and layers that the dead hold cannot go before. `but`: a
    container that is ours."""
    house.catch_up()
    rows = house.db.container_ids()
    for cid in _present(house):
        with contextlib.suppress(WherryError, OSError, TypeError):
            if cid != but and (cid not in rows or look(house, cid).unsettled):
                undo.wait_for(house, cid)


def _present(house: House) -> list[str]:
    try:
        return os.listdir(f"{house.place.root}/containers")
    except FileNotFoundError:
        return []


def _clear(house: House, row: Container) -> None:
    """What a start left that was killed before it wrote its run down: even a running container, found by its cgroup.

    A start holds the lock from its first directory to its record, so a directory that we can see is nobody's.
    """
    if os.path.isdir(house.state_dir(row.id)):
        teardown(house, row)


def _exit_status(house: House, row: Container) -> ExitStatus | None:
    place = folder(house, row.id)
    with contextlib.suppress(WherryError):
        status = place.settle()
        if status is not None:
            return status
    return place.exit_status()


def _tell(house: House, row: Container, life: Life) -> None:
    if life.oom:
        events.container(house, row, "oom")
    took = max(0, round(life.finished - life.started))
    events.container(house, row, "die", exitCode=str(life.code), execDuration=str(took))


def teardown(house: House, row: Container) -> None:
    """Give back what a run used. Every part is tried; the first failure is raised at the end."""
    from . import joining

    options = codec.decode_options(row.config["options"])
    first: Exception | None = None
    for step in (
        lambda: remove_cgroup(house, row.id),
        lambda: joining.leave(house, row, options),
        lambda: joining.be_gone(house, row.id, options),
        lambda: unmount_shm(house, row.id),
        lambda: leave_volumes(house, row.id),
        lambda: folder(house, row.id).remove(),  # last: as long as it is there, a sweep knows that we were killed
    ):
        first = _tried(step) or first
    if first is not None:
        raise first


def _tried(step: Callable[[], object]) -> Exception | None:
    try:
        step()
    except (WherryError, OSError) as error:
        return error
    return None


def remove_cgroup(house: House, cid: str) -> None:
    """Kill what is left in the container's cgroup and remove it."""
    from wherry.container import lifecycle

    try:
        path = folder(house, cid).load().cgroup
    except WherryError:
        path = _cgroup_note(house, cid)
    if path:
        lifecycle.remove_cgroup(path)


def _cgroup_note(house: House, cid: str) -> str:
    """The cgroup of a start that never came to state.json."""
    try:
        with open(f"{house.state_dir(cid)}/cgroup", encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def unmount_shm(house: House, cid: str) -> None:
    """Take away the shared /dev/shm of an `--ipc shareable` container."""
    path = f"{house.state_dir(cid)}/shm"
    if os.path.isdir(path):
        from wherry.kernel import mount

        mount.unmount(path)


def leave_volumes(house: House, cid: str) -> None:
    """Take down what drivers mounted for it; where there is nothing, nothing of them is loaded."""
    if os.path.isdir(f"{house.place.state}/csi"):
        from . import served

        served.release(house, cid)


# ---- restart ----


def _again(house: House, row: Container, options: RunOptions) -> None:
    pause = _announce(house, row, options)
    if pause is None:
        return
    time.sleep(pause)
    from . import start

    start.by_policy(house, row.id)


def _announce(house: House, row: Container, options: RunOptions) -> float | None:
    """Write down that this process restarts it; None if somebody else does, or the wish is gone."""
    with container_lock(house, row.id):
        seen = look(house, row.id)
        note = _me()
        mine = seen.status == "exited" or (seen.status == "restarting" and seen.life.restarting == note)
        if not mine or not restart.wanted(options.restart, seen.life):
            return None
        pause = restart.delay(seen.life)
        records.store(house.container_dir(row.id), seen.life._replace(restarting=note, delay=pause))
        return pause


def _me() -> records.Restarting:
    from wherry.kernel import process

    me = process.identify(os.getpid())
    assert me is not None
    return records.Restarting(me.pid, me.start_time)


def in_background(house: House, cid: str) -> None:
    """Let `internal cleanup ID` of its own do the restart: the caller wants to go home.

    The restart is handed over by name: while the caller's own name stands in the record, and the caller lives, the
    other one would take the restart for somebody else's and leave it.
    """
    with contextlib.suppress(WherryError), container_lock(house, cid):
        life = records.load(house.container_dir(cid))
        if life.restarting is None:  # started, stopped or given up meanwhile
            return
        heir = _spawn_cleanup(house, cid)
        records.store(house.container_dir(cid), life._replace(restarting=heir))


def _spawn_cleanup(house: House, cid: str) -> records.Restarting:
    import subprocess

    from wherry.kernel import process

    from . import command

    child = subprocess.Popen(
        command.argv("cleanup", cid), env=command.environment(house), cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    found = process.identify(child.pid)  # not reaped by anyone yet, so it is there
    assert found is not None
    return records.Restarting(found.pid, found.start_time)
