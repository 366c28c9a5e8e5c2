"""start, kill, delete, pause, resume: the short verbs on a container that is there."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from wherry.container import lifecycle
from wherry.container.state import ContainerDir, State, Status
from wherry.errors import Kind, WherryError

from .world import World, absent, config_of

if TYPE_CHECKING:
    from .flags import Values

__all__ = ["destroy", "do_delete", "do_kill", "do_pause", "do_resume", "do_start", "poststart"]


def do_start(world: World, words: Sequence[str], _values: Values) -> None:
    """Let the process run; whatever fails from then on ends the container (runtime.md, lifecycle)."""
    folder, _ = world.load(words[0])
    with folder.lock():
        ran = lifecycle.start_created(folder)
        try:
            if not ran:
                text = f"cannot start container {folder.id}: a startContainer hook failed, or its command could not run"
                raise WherryError(Kind.PRECONDITION, text)
            poststart(folder)
        except WherryError:
            destroy(world, folder, force=True)
            raise


def poststart(folder: ContainerDir) -> None:
    """The hooks that come once the process runs."""
    text = folder.file("config.json")
    with open(text, "rb") as file:
        if b'"poststart"' not in file.read():
            return
    from wherry.container import hooks

    hooks.poststart(config_of(folder), folder.load())


def do_kill(world: World, words: Sequence[str], values: Values) -> None:
    """Send a signal. containerd takes "container not running" for gone."""
    from wherry.kernel import process

    folder, state = world.load(words[0])
    if words[1:] == ["0"]:  # kill(2): is it there?
        if not process.alive(state.init):
            raise WherryError(Kind.CONFLICT, f"{folder.id}: container not running")
        return
    signal = process.signal_number(words[1] if len(words) > 1 else "TERM")
    if values["all"] and folder.status(state) is Status.STOPPED:
        _kill_left(state, signal)
        return
    try:
        lifecycle.kill(folder, signal, everyone=values["all"])
    except WherryError as error:
        if error.kind is not Kind.CONFLICT:
            raise
        text = f"cannot send the signal to {folder.id}: container not running"
        raise WherryError(Kind.CONFLICT, text) from None


def _kill_left(state: State, signal: int) -> None:
    """Processes that outlived init, in a container that shares its pid namespace."""
    from wherry.kernel import cgroup, process

    for pid in cgroup.processes(state.cgroup) if state.cgroup else ():
        found = process.identify(pid)
        if found is not None:
            process.signal(found, signal)


def do_delete(world: World, words: Sequence[str], values: Values) -> None:
    """Remove what is left; with --force whatever state it is in, and absent is fine."""
    folder = world.folder(words[0])
    try:
        with folder.lock():
            destroy(world, folder, force=values["force"])
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        if not values["force"]:
            raise absent(folder.id) from None


def destroy(world: World, folder: ContainerDir, *, force: bool) -> None:
    """Cgroup, unit and directory; then the poststop hooks, whose failures are only told."""
    try:
        state = folder.load()
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:  # damaged: what it says of processes and cgroups would be left behind
            raise
        state = State(folder.id)  # a create that was killed before it wrote anything
    found = config_of(folder) if os.path.exists(folder.file("config.json")) else {}
    if not force and state.init is None and time.time() - state.created < 2:
        raise WherryError(Kind.CONFLICT, f"container {folder.id} is still being created", hint="or use --force")
    lifecycle.delete(folder, force=force, before=lambda: _release(world, state))
    if found.get("hooks"):
        from wherry.container import hooks

        for failure in hooks.poststop(found, state):
            world.warn(failure.message)


def _release(world: World, state: State) -> None:
    """What only the record tells of, hence before it goes: the unit, mounts of the host's, resctrl groups."""
    if "unit" in state.extra:
        from .units import stop

        stop(world, state.extra["unit"])
    if "root_mount" in state.extra:
        from . import hostmount

        with suppress(FileNotFoundError):  # the bundle went first
            hostmount.release(state.extra["rootfs"], state.extra["root_mount"])
    for group in state.extra.get("resctrl", ()):
        with suppress(OSError):  # made by us and empty now, or never made
            os.rmdir(group)


def do_pause(world: World, words: Sequence[str], _values: Values) -> None:
    """Freeze every process."""
    folder, _ = world.load(words[0])
    with folder.lock():
        lifecycle.pause(folder)


def do_resume(world: World, words: Sequence[str], _values: Values) -> None:
    """Let them go on."""
    folder, _ = world.load(words[0])
    with folder.lock():
        lifecycle.resume(folder)
