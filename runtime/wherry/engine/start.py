"""`run`, `start`, `attach`: from a container at rest to a running one, and back if any step fails.

Decides the order of a start and its undo. The steps themselves are the other modules'.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wherry.errors import Kind, WherryError
from wherry.model import ExitStatus, ProgressEvent, RunOptions

from . import cleanup, codec, events, health, joining, preparing, records
from .house import House
from .status import folder, look
from .streams import Stream
from .undo import Undo, container_lock

if TYPE_CHECKING:
    from wherry.container.attach import AttachStream
    from wherry.container.launch import Launched
    from wherry.container.state import ContainerDir

    from .db import Container
    from .notifying import Notify

__all__ = ["attach", "by_policy", "run", "start"]

Progress = Callable[[ProgressEvent], None]


def run(house: House, options: RunOptions, progress: Progress | None) -> Stream:
    """Create and start."""
    from . import create, gc

    gc.sweep(house, thorough=False)
    row = create.commit(house, create.draft(house, options, progress))
    try:
        return _start(house, row, attach=not options.detach)
    except BaseException:
        if options.remove:
            _discard(house, row)
        raise


def _discard(house: House, row: Container) -> None:
    from . import remove

    with contextlib.suppress(WherryError, OSError):
        remove.discard(house, row, volumes=True)
    if options := row.config["options"].get("cidfile"):
        with contextlib.suppress(OSError):
            os.unlink(options)


def start(house: House, ref: str, *, attach: bool, interactive: bool, notify: Notify | None = None) -> Stream:
    """Start one that is at rest. A running one is joined (attach) or left alone."""
    del interactive  # the face decides what it sends
    row = house.db.find(ref)
    if look(house, row.id).running:
        return _join(house, row) if attach else _detached(house, row)
    return _start(house, row, attach=attach, notify=notify)


def by_policy(house: House, cid: str) -> None:
    """The restart policy's start, after its back-off: only if the wish is still ours."""
    with contextlib.suppress(WherryError):
        row = house.db.find(cid)
        note = records.load(house.container_dir(row.id)).restarting
        if note is not None and note.pid == os.getpid():
            _start(house, row, attach=False, policy=True)


def attach(house: House, ref: str, *, stdin: bool) -> Stream:
    """Join a running container."""
    del stdin
    from .status import running

    row = house.db.find(ref)
    running(house, row)
    return _join(house, row)


def _join(house: House, row: Container) -> Stream:
    from wherry.container import attach as client

    stream = client.connect(folder(house, row.id).attach_path)
    tty = bool(row.config["options"].get("tty"))
    return Stream(house, row.id, stream, tty=tty, lost=lambda: _last(house, row))


def _detached(house: House, row: Container) -> Stream:
    from . import stop

    def gone() -> ExitStatus:
        return ExitStatus(stop.wait(house, row.id, "not-running"))

    return Stream(house, row.id, None, tty=bool(row.config["options"].get("tty")), lost=gone)


def _last(house: House, row: Container) -> ExitStatus:
    life = records.load(house.container_dir(row.id))
    return ExitStatus(life.code, life.oom, life.finished, life.error)


# ---- the start ----


def _start(
    house: House, row: Container, *, attach: bool, policy: bool = False, notify: Notify | None = None
) -> Stream:
    with contextlib.ExitStack() as locked:
        if row.pod:  # before the container's own lock, as a stop of the pod takes them
            from .pods import held

            locked.enter_context(held.using(house, row.pod))
        locked.enter_context(container_lock(house, row.id))
        if not look(house, row.id).running:
            cleanup.settle_now(house, row)  # an end, or a killed start, that nobody has cleaned up after
        row = house.db.find(row.id)  # as of now: it may have joined a network since the caller read it
        options = codec.decode_options(row.config["options"])
        before = records.load(house.container_dir(row.id))
        if look(house, row.id).running:
            return _join(house, row) if attach else _detached(house, row)
        if row.pod:
            _only_once(row, before)
        if policy and before.restarting is None:
            return _detached(house, row)  # a stop came in between
        try:
            stream = _launch(house, row, options, before, attach=attach, policy=policy, notify=notify)
        except Exception as error:  # whatever it is: what failed to start says so, it does not look as if nobody tried
            _failed(house, row, before, error)
            raise
    return _attached(house, row, options, stream) if stream else _detached(house, row)


def _only_once(row: Container, before: records.Life) -> None:
    """A container of a pod has one run: what is to run again is another one."""
    if before.started or before.error:
        raise WherryError(Kind.CONFLICT, f"container {row.name} has ended", hint="make another one of the same pod")


def _failed(house: House, row: Container, before: records.Life, error: Exception) -> None:
    code = error.code if isinstance(error, WherryError) and error.code is not None and not row.pod else 128
    why = error.message if isinstance(error, WherryError) else f"{type(error).__name__}: {error}"
    finished = time.time() if row.pod else before.finished  # whose only start that was
    life = before._replace(error=why, code=code, finished=finished, restarting=None, settled=True)
    with contextlib.suppress(OSError):
        records.store(house.container_dir(row.id), life)


def _attached(house: House, row: Container, options: RunOptions, stream: AttachStream) -> Stream:
    def settle() -> None:
        from . import restart

        life = cleanup.settle(house, row)
        if life is not None and restart.wanted(options.restart, life):
            cleanup.in_background(house, row.id)

    return Stream(house, row.id, stream, tty=options.tty, settle=settle, lost=lambda: _last(house, row))


def _launch(
    house: House, row: Container, options: RunOptions, before: records.Life, *, attach: bool, policy: bool,
    notify: Notify | None,
) -> AttachStream | None:  # fmt: skip
    place = folder(house, row.id)
    place.remove()
    with Undo() as undo, contextlib.ExitStack() as held:
        undo.add(place.remove)
        undo.add(joining.be_gone, house, row.id, options)
        place.make()
        ready, net = _prepared(house, row, options, undo, held, notify)
        undo.add(cleanup.remove_cgroup, house, row.id)  # whatever lives in it
        now = time.time()  # before it can end
        stream, launched = _spawn(house, row, place, ready, attach=attach, held=held)
        undo.add(_kill, house, row, launched)
        if ready.handler:
            from .pods import handlers

            launched, path = handlers.begun(house, row, launched)
            ready = ready._replace(how=ready.how._replace(cgroup=path))
        _write_life(house, row, before, now, policy=policy)  # first: a run without state.json is found and ended
        _write_state(house, row, place, ready, launched, net, now)
        if stream is not None:
            stream.claim()
    events.container(house, row, "start")
    return stream


def _prepared(  # noqa: PLR0917  # what a start is made of
    house: House, row: Container, options: RunOptions, undo: Undo, held: contextlib.ExitStack, notify: Notify | None
) -> tuple[preparing.Ready, Mapping[str, Any]]:
    """What the launch takes, and what is known of the network."""
    if row.pod:
        from .pods import starting

        return starting.prepare(house, row, held)
    joined = joining.join(house, row, options, undo)
    return preparing.prepare(house, row, options, joined, undo, held, notify), joined.facts


def _spawn(
    house: House,
    row: Container,
    place: ContainerDir,
    ready: preparing.Ready,
    *,
    attach: bool,
    held: contextlib.ExitStack,
) -> tuple[AttachStream | None, Launched]:
    from wherry.container import launch
    from wherry.oci import compile as planner

    how = ready.how._replace(monitor=ready.monitor._replace(client=attach))
    if ready.handler:
        from .pods import handlers

        plan = handlers.plan(house, row, ready.handler, ready.config, how)
    else:
        plan = planner.compile_create(ready.config, house.container_dir(row.id), house.facts, how)
    fds = dict(ready.fds)
    mine: dict[str, int] = launch.stdio_pipes(how.stdio, ready.host_uid)
    held.callback(launch.close_all, mine)
    mine["attach"] = launch.listen(place.attach_path)
    stream = None
    if attach:
        from wherry.container import attach as client

        stream, mine["client"] = client.pair()
    try:
        return stream, launch.start(place.path, plan, "monitor", {**fds, **mine}, name=row.name)
    except BaseException:
        if stream is not None:
            stream.close()
        raise


def _kill(house: House, row: Container, launched: Launched) -> None:
    """Undo of a launch: the monitor first, so that no cleanup command races with us."""
    from wherry.kernel import process

    for one in (launched.monitor, launched.init):
        if one is not None:
            process.signal(one, 9)
            process.wait_gone(one, 5)
    cleanup.remove_cgroup(house, row.id)


def _write_state(  # noqa: PLR0917  # what is known at this moment
    house: House,
    row: Container,
    place: ContainerDir,
    ready: preparing.Ready,
    launched: Launched,
    facts: Mapping[str, Any],
    now: float,
) -> None:
    from wherry.container.state import State

    extra = {"net": facts, "user": ready.user_text}
    place.save(
        State(row.id, house.container_dir(row.id), ready.how.cgroup, launched.init, launched.monitor, row.created, now,
              ready.degraded, extra)
    )  # fmt: skip
    if row.config.get("health"):
        health.initial(place.file("health.json"), now)


def _write_life(house: House, row: Container, before: records.Life, now: float, *, policy: bool) -> None:
    count = before.restarts + 1 if policy else 0
    pause = before.delay if policy else 0.0
    life = records.Life(started=now, finished=before.finished, restarts=count, delay=pause, settled=False)
    records.store(house.container_dir(row.id), life)
