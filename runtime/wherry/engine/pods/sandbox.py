"""The life of a pod: made, told about, stopped, removed.

Decides the order in which what a pod holds comes to be and goes: files before the row, pod.json last, for it says that
the pod is ready; back in the other order, every step idempotent, so that a verb that was killed is finished by the next
one. Decides too that one verb at a time is at a pod.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from wherry.engine import events, fence, names
from wherry.engine.db import PodRow, Unreadable
from wherry.engine.house import House
from wherry.engine.undo import Undo, making
from wherry.errors import Kind, WherryError
from wherry.kernel import files as kernel
from wherry.model import Json

from . import cgroups, checking, files, namespaces, network, records
from .values import Held, Pod, PodOptions

__all__ = ["clear", "every", "finish", "get", "remove", "run", "stop", "update"]


# ---- making ----


def run(house: House, options: PodOptions) -> str:
    """The verb. Its id; the same pod again is the same id while it is ready, else EXISTS."""
    checking.check(options)
    _check_handler(house, options.handler)
    known = house.db.pod_of(options.namespace, options.name, options.uid, options.attempt)
    if known is not None:
        return _again(house, known)
    try:
        return _run(house, options)
    except WherryError as error:
        known = house.db.pod_of(options.namespace, options.name, options.uid, options.attempt)
        if error.kind is not Kind.EXISTS or known is None:
            raise
    return _again(house, known)  # another process was faster


def _check_handler(house: House, name: str) -> None:
    known = ("wherry", *sorted(house.settings.handlers))
    if name and name not in known:
        message = f"RuntimeClass handler {name[:80]!r} is not configured"
        raise WherryError(Kind.INVALID, message, hint=f"known: {', '.join(known)}; others are set as handlers")


def _again(house: House, row: PodRow) -> str:
    if records.load(house, row.id) is None:
        message = f"pod {row.namespace}/{row.name} (attempt {row.attempt}) exists and is not ready any more"
        raise WherryError(Kind.EXISTS, message, hint=f"remove it ({row.id[:12]}), or ask for the next attempt")
    return row.id


def _run(house: House, options: PodOptions) -> str:
    pod = names.mint()
    with making(house):
        _make_directory(house, pod)
        with records.lock(house, pod, create=True), Undo() as undo:  # a lock that is free, of no row's: who had it died
            undo.add(kernel.remove_tree, records.directory(house, pod))
            held, config = _hold(house, pod, options, undo)
            row = PodRow(pod, options.namespace, options.name, options.uid, options.attempt, time.time(), config)
            told = Pod(pod, options, row.created, held, held.ips)
            undo.add(house.hooks.lost_pod, told)
            house.hooks.run_pod(told)
            house.db.add_pod(row)
            undo.add(house.db.remove_pod, pod)
            records.store(house, held)
    for action in ("create", "start"):
        _tell(house, row, action)
    return pod


def _make_directory(house: House, pod: str) -> None:
    for top in (house.place.root, house.place.state):
        os.makedirs(f"{top}/pods", 0o700, exist_ok=True)
    os.mkdir(records.directory(house, pod), 0o700)


class _Making(NamedTuple):
    """A pod on its way."""

    house: House
    id: str
    options: PodOptions
    undo: Undo
    place: cgroups.Place


def _hold(house: House, pod: str, options: PodOptions, undo: Undo) -> tuple[Held, Json]:
    """Everything that it holds, and what its row says."""
    it = _Making(house, pod, options, undo, cgroups.locate(house, pod, options))
    hostname = os.uname().nodename if options.network == "host" else options.hostname or pod[:12]
    undo.add(namespaces.release, house, pod)
    paths = namespaces.make(house, pod, options, hostname)
    shm = namespaces.shm(house, pod, options)
    ips = _join(it, paths)
    texts = files.write(house, pod, options, hostname, ips)
    made = cgroups.absent(it.place)
    undo.add(partial(cgroups.remove, it.place, made=made))
    cgroups.make(house, it.place, options)
    held = Held(
        pod, paths.get("net", ""), paths.get("ipc", ""), paths.get("uts", ""), user=paths.get("user", ""),
        uids=options.uids, gids=options.gids, shm=shm, files=texts, cgroup=it.place.path, slice=it.place.slice,
        hostname=hostname, ips=ips, **_pause(it, paths),
    )  # fmt: skip
    return held, {"options": records.encode(options), "ips": list(ips), "cgroup_made": made}


def _join(it: _Making, paths: Mapping[str, str]) -> tuple[str, ...]:
    if "net" not in paths:
        return ()
    it.undo.add(network.leave, it.house, it.id)
    below = it.place.path.removeprefix(it.house.facts.cgroup_mount.rstrip("/"))  # as CNI's conventions write it
    ips = network.join(it.house, it.id, it.options, below)
    namespaces.set_sysctls(paths["net"], it.options)  # with the links there, as some speak of one
    return ips


def _pause(it: _Making, paths: Mapping[str, str]) -> dict[str, Any]:
    if it.options.pid != "pod":
        return {}
    from . import pause

    it.undo.add(pause.end, it.house, it.id)
    made = pause.start(it.house, it.id, it.options, paths, it.place)
    return {"pid": f"{records.run_directory(it.house, it.id)}/ns/pid", "pause": made}


def _tell(house: House, row: PodRow, action: str) -> None:
    attributes = {"name": row.name, "namespace": row.namespace, "uid": row.uid}
    events.emit(house, "pod", action, row.id, attributes)


# ---- telling ----


def get(house: House, pod: str) -> Pod:
    """One by its id or an unambiguous prefix; NOT_FOUND."""
    row = house.db.find_pod(pod)
    held = records.load(house, row.id)
    return fence.one(house, row, lambda row: _pod(row, held))


def every(house: House) -> list[Pod]:
    """All, newest first."""
    rows = house.db.pods()
    held = records.load_many(house, [row.id for row in rows])
    return fence.each(house, rows, lambda row: _pod(row, held.get(row.id)))


def _pod(row: PodRow, held: Held | None) -> Pod:
    return Pod(row.id, fence.pod(row), row.created, held, tuple(row.config["ips"]))


# ---- ending ----


def stop(house: House, pod: str) -> None:
    """The verb. Not there, not ready, stopped by another at this moment: success."""
    with contextlib.ExitStack() as held:
        row = _own(house, pod, held)
        if row is not None:
            _stop(house, row)


def remove(house: House, pod: str) -> None:
    """The verb. Not there: success."""
    with contextlib.ExitStack() as held:
        row = _own(house, pod, held)
        if row is None:
            return
        _stop(house, row)
        _forget(house, row)
        _tell(house, row, "destroy")
        kernel.remove_tree(records.directory(house, row.id))


def _own(house: House, pod: str, held: contextlib.ExitStack) -> PodRow | None:
    """The pod's row, its lock in `held`; None if there is none, any more."""
    try:
        row = house.db.find_pod(pod)
        damaged = not os.path.isdir(records.directory(house, row.id))
        if damaged:
            os.makedirs(records.directory(house, row.id), 0o700)
        held.enter_context(records.lock(house, row.id, create=damaged))
    except WherryError as error:
        if error.kind is Kind.NOT_FOUND:
            return None
        raise
    found = house.db.pod(row.id)
    if found is None:  # removed meanwhile; a directory that we made is nobody's
        kernel.remove_tree(records.directory(house, row.id))
    return found


def _stop(house: House, row: PodRow) -> None:
    """From "not ready any more" to nothing held. What was begun before shows by what is still there."""
    held = records.load(house, row.id) if house.hooked else None
    ready = records.forget(house, row.id)
    if not (ready or os.path.isdir(records.run_directory(house, row.id)) or network.owed(house, row.id)):
        return
    from . import member, pause

    try:
        options, made = fence.one(house, row, fence.pod), int(row.config["cgroup_made"])
    except Unreadable:  # then only what is ours alone can be given back
        options, made = PodOptions("", "", ""), 0
    place = cgroups.locate(house, row.id, options)
    _all_of([
        *(partial(member.stop, house, one.id, 0) for one in house.db.members(row.id)),
        *[partial(house.hooks.stop_pod, _pod(row, held))] * ready,
        partial(pause.end, house, row.id),
        partial(network.leave, house, row.id),
        partial(cgroups.remove, place, made=made),
    ])  # fmt: skip
    namespaces.release(house, row.id)  # last: as long as its run directory is there, it is known that we were killed
    _tell(house, row, "stop")  # by whoever comes to the end of it


def _all_of(steps: Sequence[Callable[[], object]]) -> None:
    """Each has its turn; then the first failure is raised."""
    problems: list[Exception] = []
    for step in steps:
        try:
            step()
        except (WherryError, OSError) as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


def _forget(house: House, row: PodRow) -> None:
    """Its containers, then its row. One more container may come while we are at it: no new one after the row."""
    from . import member

    for last in (False, False, True):
        for one in house.db.members(row.id):
            member.remove(house, one.id)
        try:
            house.db.remove_pod(row.id)
        except WherryError as error:
            if error.kind is not Kind.CONFLICT or last:
                raise
        else:
            return


def clear(house: House, pod: str, *, alone: bool) -> bool:
    """What a killed command left of a pod that has no row; False if it has one. For a sweep. CONFLICT while somebody
    makes it, or is at the rest of a removal; NOT_FOUND where it has no lock. A sweep that is `alone`, so that nothing
    is being made, clears those without: they had no network yet, so that no plugin keeps others waiting."""
    from . import pause

    with contextlib.ExitStack() as held:
        if not alone:
            held.enter_context(records.lock(house, pod, 0))
        elif os.path.exists(f"{records.directory(house, pod)}/lock"):  # it has had its turn
            return False
        if house.db.pod(pod) is not None:  # it was just made
            return False
        place = cgroups.locate(house, pod, PodOptions("", "", ""))
        _all_of([
            partial(pause.end, house, pod),
            partial(network.leave, house, pod),
            partial(cgroups.remove, place, made=0),
        ])  # fmt: skip
        namespaces.release(house, pod)
        kernel.remove_tree(records.directory(house, pod))
    return True


def finish(house: House, pod: str) -> bool:
    """The rest of a stop that failed or was killed; False if there is none. For a sweep: CONFLICT while somebody is at
    the pod."""
    note = f"{records.run_directory(house, pod)}/pod.json"
    if os.path.exists(note):
        return False
    with records.lock(house, pod, 0):
        row = house.db.pod(pod)
        if row is None or os.path.exists(note):  # removed meanwhile; made meanwhile
            return False
        _stop(house, row)
    return True


# ---- changing ----


def update(house: House, pod: str, resources: Json, overhead: Json) -> None:
    """Change the limits; what is absent stays."""
    row = house.db.find_pod(pod)
    checking.check_unified(resources)
    checking.check_unified(overhead)
    with records.lock(house, row.id):
        found = house.db.pod(row.id)
        if found is None:
            raise WherryError(Kind.NOT_FOUND, f"no such pod: {pod[:80]}")
        before = records.decode(found.config["options"])
        after = before._replace(resources=_over(before.resources, resources), overhead=_over(before.overhead, overhead))
        if records.load(house, row.id) is not None:
            cgroups.set_limits(house, cgroups.locate(house, row.id, after), after)
        house.db.set_pod(row.id, {**found.config, "options": records.encode(after)})
    _tell(house, row, "update")


def _over(before: Json, change: Json) -> Json:
    """`change` over `before`, section by section."""
    return {**before, **{key: {**before.get(key, {}), **value} if isinstance(value, dict) else value
                         for key, value in change.items()}}  # fmt: skip
