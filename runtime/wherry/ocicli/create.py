"""`create`: from a bundle to a process that waits for its start; `run` and `restore` begin the same way.

Decides the order and the undo. The steps of the container itself are the plan's.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import WherryError
from wherry.model import Json

from . import bundle, cgroups
from .world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wherry.container.launch import Launched
    from wherry.container.state import ContainerDir, State
    from wherry.oci.facts import HostFacts
    from wherry.oci.how import LaunchHow

    from .flags import Values

__all__ = ["Wish", "cgroup_of", "do_create", "keep", "launch", "quietly", "wish"]


class Wish(NamedTuple):
    """What a caller asked for beside the bundle. `console`: a connected socket of our own instead of a path."""

    bundle: str
    config: str = ""
    console_socket: str = ""
    pid_file: str = ""
    no_pivot: bool = False
    no_new_keyring: bool = False
    preserve_fds: int = 0
    console: int = -1
    waits: bool = True


def wish(world: World, values: Values) -> Wish:
    """The options that create, run and restore share."""
    return Wish(
        os.path.abspath(values["bundle"] or "."), values["config"], values["console_socket"],
        os.path.abspath(values["pid_file"]) if values["pid_file"] else "", values["no_pivot"],
        values["no_new_keyring"], bundle.preserved(values["preserve_fds"], world.env),
    )  # fmt: skip


def do_create(world: World, words: Sequence[str], values: Values) -> None:
    """The verb."""
    launch(world, words[0], wish(world, values))


def launch(world: World, cid: str, asked: Wish) -> tuple[ContainerDir, Launched]:
    """Make the container; nothing is left of it if any step fails."""
    from wherry.kernel import facts as kernel
    from wherry.model import Place

    config, text = bundle.read(asked.bundle, asked.config)
    root = bundle.rootfs(config, asked.bundle)
    _check_terminal(config, asked)
    config["process"] = _equipped(world, bundle.at_home(config["process"], root), asked)
    facts = kernel.measure(Place(state=world.state))
    folder = world.folder(cid)
    folder.make()
    with ExitStack() as undo:
        undo.callback(quietly, folder.remove)
        with ExitStack() as held, folder.lock():  # what is held may fail to be let go: that is undone, too
            keep(folder, text)
            launched = _start(world, folder, config, root, asked, facts, undo, held)
        undo.pop_all()
    return folder, launched


def _equipped(world: World, process: Json, asked: Wish) -> Json:
    """The process with what our own place gives it: sockets, and in the foreground the size of the terminal."""
    if asked.console >= 0 and process.get("terminal"):
        from . import foreground

        process = foreground.sized(process)
    return bundle.activated(process, world.env)


def _check_terminal(config: Json, asked: Wish) -> None:
    from wherry.errors import Kind

    terminal = bool(config["process"].get("terminal"))
    given = bool(asked.console_socket) or asked.console >= 0
    if terminal and not given:
        raise WherryError(Kind.INVALID, "process.terminal: a terminal needs --console-socket when nobody stays with it")
    if asked.console_socket and not terminal:
        raise WherryError(Kind.INVALID, "--console-socket: process.terminal is not true")


def keep(folder: ContainerDir, text: bytes) -> None:
    """The config as it is now: exec, update and the hooks of the end go by it, whatever becomes of the bundle."""
    from wherry.kernel import files

    files.atomic_write(folder.file("config.json"), text, 0o600)  # whole or not there: a killed create is deleted by it


def _start(  # noqa: PLR0917  # the stages of a start hand over to each other
    world: World, folder: ContainerDir, config: Json, root: str, asked: Wish, facts: HostFacts,
    undo: ExitStack, held: ExitStack,
) -> Launched:  # fmt: skip
    from wherry.container import launch as launcher
    from wherry.container.state import State
    from wherry.oci import compile as planner
    from wherry.oci import compile_sched

    from . import hostmount

    _warn(world, config, facts)
    group, extra = cgroup_of(world, folder.id, config, facts, held)
    if config.get("linux", {}).get("intelRdt"):
        extra["resctrl"] = compile_sched.made_groups(config, facts.resctrl, folder.id)
    if not any(entry["type"] == "mount" for entry in config.get("linux", {}).get("namespaces") or []):
        extra["root_mount"] = hostmount.identity(root)
        undo.callback(quietly, hostmount.release, root, extra["root_mount"])
    now = time.time()
    extra |= {"rootfs": root, "annotations": config.get("annotations") or {}, "owner": os.geteuid()}
    state = State(folder.id, asked.bundle, group.path, None, None, now, 0.0, group.degraded, extra)
    folder.save(state)  # before anything lives: a killed create is found by delete --force
    fds = _descriptors(config, asked, folder, held)
    how = _how(world, folder, config, asked, group)
    plan = planner.compile_create(_planned(config), asked.bundle, facts, how)
    try:
        launched = launcher.start(folder.path, plan, "launch", fds, name=folder.id, timeout=math.inf)
    except WherryError:
        _poststop(world, config, state)
        raise
    undo.callback(quietly, _kill, launched)
    folder.save(state._replace(init=launched.init, started=0.0 if asked.waits else now))
    return launched


def _warn(world: World, config: Json, facts: HostFacts) -> None:
    """What is asked and cannot be, where the spec wants a container all the same."""
    from wherry.oci import cgroup2, compile_process

    for field in cgroup2.ignored(config.get("linux", {}).get("resources") or {}):
        world.warn(f"linux.resources.{field}: cgroup v2 has nothing for it")
    if config.get("linux", {}).get("mountLabel") and not facts.selinux:
        world.warn("linux.mountLabel: SELinux is not enabled on this host")
    if lost := compile_process.lost_capabilities(config["process"], facts):
        world.warn(f"process.capabilities: {', '.join(lost)} cannot be granted here")


def _planned(config: Json) -> Json:
    """Without the hooks that `life.poststart` runs: a plan's come after its last report, when nobody hears of them."""
    hooks = config.get("hooks") or {}
    return {**config, "hooks": {kind: found for kind, found in hooks.items() if kind != "poststart"}}


def cgroup_of(world: World, cid: str, config: Json, facts: HostFacts, held: ExitStack) -> tuple[cgroups.Group, Json]:
    """The cgroup by the driver, and what is to be remembered of a systemd unit."""
    if world.driver != "systemd":
        group = cgroups.plan(world, config, cid, facts)
        return group, {}
    from . import units

    return units.make(world, cid, config, facts, held)


def _descriptors(config: Json, asked: Wish, folder: ContainerDir, held: ExitStack) -> dict[str, int]:
    """What the plan's slots may want, by name."""
    fds = {f"fd{number}": number for number in range(3, 3 + asked.preserve_fds)}
    if asked.waits:
        os.mkfifo(folder.fifo_path)
        os.chmod(folder.fifo_path, 0o644)  # init opens it as its user; no other passes the directory
        fds["fifo"] = os.open(folder.fifo_path, os.O_PATH | os.O_CLOEXEC)
        held.callback(os.close, fds["fifo"])
    if asked.console >= 0:
        fds["console_socket"] = asked.console
    elif asked.console_socket:
        fds["console_socket"] = bundle.connect(held, asked.console_socket, "--console-socket")
    listener = (config.get("linux", {}).get("seccomp") or {}).get("listenerPath")
    if listener:
        fds["seccomp_listener"] = bundle.connect(held, listener, "linux.seccomp.listenerPath")
    return fds


def _how(world: World, folder: ContainerDir, config: Json, asked: Wish, group: cgroups.Group) -> LaunchHow:
    from wherry.oci.how import LaunchHow

    return LaunchHow(
        id=folder.id, cgroup=group.path, cgroup_exists=True, cgroup_writes=group.writes, device_bpf=group.device_bpf,
        seccomp=compiled(world, config), seccomp_flags=filter_flags(config), wait_start=asked.waits,
        listener_payload=listener_payload(config, asked.bundle, folder.id),
        console_socket=bool(asked.console_socket) or asked.console >= 0, preserve_fds=asked.preserve_fds,
        pidfile=asked.pid_file, no_pivot=asked.no_pivot, no_new_keyring=asked.no_new_keyring,
        null_streams=bundle.null_streams(),
    )  # fmt: skip


def compiled(world: World, config: Json) -> bytes:
    """The seccomp filter, from the cache or through libseccomp; b"" without one."""
    rules = config.get("linux", {}).get("seccomp")
    if not rules:
        return b""
    from wherry.kernel import seccomp

    return seccomp.compiled(rules, f"{world.cache}/seccomp")


def filter_flags(config: Json) -> int:
    """SECCOMP_FILTER_FLAG_* of the config."""
    rules = config.get("linux", {}).get("seccomp")
    if not rules:
        return 0
    from wherry.oci import seccomp

    return seccomp.filter_flags(rules)


def listener_payload(config: Json, where: str, cid: str, *, status: str = "creating") -> str:
    """The container process state that a seccomp agent gets (config-linux.md); the helper writes the pid for %p."""
    rules = config.get("linux", {}).get("seccomp") or {}
    if not rules.get("listenerPath"):
        return ""
    state = {"ociVersion": config["ociVersion"], "id": cid, "status": status, "bundle": where,
             "annotations": config.get("annotations") or {}}  # fmt: skip
    document = {"ociVersion": config["ociVersion"], "fds": ["seccompFd"], "metadata": rules.get("listenerMetadata", "")}
    return '{"pid":%p,"state":{"pid":%p,' + json.dumps(state)[1:] + "," + json.dumps(document)[1:]


def _poststop(world: World, config: Json, state: State) -> None:
    """A create that failed is a container destroyed (runtime.md, lifecycle): its hooks of the end run."""
    from wherry.container import hooks

    for error in hooks.poststop(config, state):
        world.warn(error.message)


def _kill(launched: Launched) -> None:
    from wherry.kernel import process

    process.signal(launched.init, 9)
    process.wait_gone(launched.init, 5)


def quietly(action: object, *words: object) -> None:
    """An undo's own failure must not hide the first one."""
    with suppress(WherryError, OSError):
        action(*words)  # type: ignore[operator]
