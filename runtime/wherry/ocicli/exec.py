"""`exec`: one more process in a running container, from a file or from options."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from wherry.container.state import ContainerDir, State, Status
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import bundle, create
from .world import CONFIG_MAX, World, config_of

if TYPE_CHECKING:
    from wherry.container.launch import Launched
    from wherry.oci.facts import HostFacts
    from wherry.oci.how import LaunchHow

    from .flags import Values

__all__ = ["do_exec"]


def do_exec(world: World, words: Sequence[str], values: Values) -> int:
    """The process's exit code; 0 with --detach."""
    folder, state = world.load(words[0])
    config = config_of(folder)
    process = bundle.activated(_process(config, words[1:], values), world.env)
    _check_state(folder, state, ignore_paused=values["ignore_paused"])
    if state.init is not None:
        process = bundle.at_home(process, f"/proc/{state.init.pid}/root")
    with ExitStack() as held:
        if values["detach"]:
            _launch(world, folder, state, config, process, values, held)
            return 0
        from . import foreground

        front = foreground.Foreground(held)
        alone = process.get("terminal") and not values["console_socket"]
        console = foreground.Console(held) if alone else None
        own = console.theirs.fileno() if console is not None else -1
        process = foreground.sized(process) if console is not None else process
        launched = _launch(world, folder, state, config, process, values, held, own)
        return front.stay(launched.init, console.master() if console is not None else -1)


def _check_state(folder: ContainerDir, state: State, *, ignore_paused: bool) -> None:
    status = folder.status(state)
    if status is Status.PAUSED and not ignore_paused:
        raise WherryError(Kind.CONFLICT, f"container {folder.id} is paused", hint="resume it, or use --ignore-paused")
    if status not in (Status.CREATED, Status.RUNNING, Status.PAUSED):
        raise WherryError(Kind.CONFLICT, f"cannot exec in container {folder.id}: it is {status.value}")


def _process(config: Json, argv: Sequence[str], values: Values) -> Json:
    """The process as the spec has it, checked."""
    from wherry.oci import spec

    if values["process"]:
        if argv:
            raise WherryError(Kind.INVALID, "exec takes a command or --process, not both")
        found = _from_file(values["process"])
    else:
        found = _from_options(config["process"], argv, values)
    if values["tty"]:
        found["terminal"] = True
    spec.validate_process(found)
    return found


def _from_file(path: str) -> Json:
    from wherry.kernel import files

    try:
        text = files.read_capped(path, CONFIG_MAX)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"--process {path}: {error.strerror}") from error
    return bundle.parse(text, path)


def _from_options(own: Json, argv: Sequence[str], values: Values) -> Json:
    """The container's own process with another command; options change the rest."""
    if not argv:
        raise WherryError(Kind.INVALID, "exec takes a command, or --process FILE")
    found = {**own, "args": list(argv), "terminal": values["tty"]}
    found["env"] = [*(own.get("env") or []), *values["env"]]
    found["user"] = _user(own.get("user") or {}, values)
    for key, field in (("cwd", "cwd"), ("apparmor", "apparmorProfile"), ("process_label", "selinuxLabel")):
        if values[key]:
            found[field] = values[key]
    if values["no_new_privs"]:
        found["noNewPrivileges"] = True
    if values["cap"]:
        found["capabilities"] = _capabilities(own.get("capabilities") or {}, values["cap"])
    return found


def _user(own: Json, values: Values) -> Json:
    user = {**own}
    if values["user"]:
        uid, colon, gid = values["user"].partition(":")
        user["uid"] = _number("--user", uid)
        if colon:
            user["gid"] = _number("--user", gid)
    if values["additional_gids"]:
        groups = [_number("--additional-gids", text) for text in values["additional_gids"]]
        user["additionalGids"] = [*(own.get("additionalGids") or []), *groups]
    return user


def _number(flag: str, text: str) -> int:
    """An id is digits in range or an error, never a name (CVE-2024-40635)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise WherryError(Kind.INVALID, f'{flag} "{text}": not a number', hint="names are the caller's to look up")
    return int(text)


def _capabilities(own: Json, more: Sequence[str]) -> Json:
    """In every set but the ambient and inheritable ones (invariant 9)."""
    names = [name if name.startswith("CAP_") else f"CAP_{name}" for name in map(str.upper, more)]
    kept = {key: list(value or []) for key, value in own.items()}
    for key in ("bounding", "effective", "permitted"):
        kept[key] = [*dict.fromkeys([*kept.get(key, []), *names])]
    return kept


def _launch(  # noqa: PLR0917  # what is known at this moment
    world: World, folder: ContainerDir, state: State, config: Json, process: Json, values: Values, held: ExitStack,
    console: int = -1,
) -> Launched:  # fmt: skip
    from wherry.container import launch
    from wherry.kernel import facts as kernel
    from wherry.kernel import process as processes
    from wherry.model import Place
    from wherry.oci import compile as planner
    from wherry.oci.how import Target

    facts = kernel.measure(Place(state=world.state))
    count = bundle.preserved(values["preserve_fds"], world.env)
    how = _how(world, folder, state, config, values, facts, console=console >= 0)._replace(preserve_fds=count)
    plan = planner.compile_exec(process, Target(_namespaces(config), config, folder.id), facts, how)
    fds = {f"fd{number}": number for number in range(3, 3 + count)}
    pidfd = processes.open_pidfd(state.init) if state.init is not None else None
    if pidfd is None:
        raise WherryError(Kind.CONFLICT, f"cannot exec in container {folder.id}: it is stopped")
    held.callback(os.close, pidfd)
    fds["pidfd"] = pidfd
    if console >= 0:
        fds["console_socket"] = console
    elif values["console_socket"]:
        fds["console_socket"] = bundle.connect(held, values["console_socket"], "--console-socket")
    if "seccomp_listener" in plan.inherited:
        path = config["linux"]["seccomp"]["listenerPath"]
        fds["seccomp_listener"] = bundle.connect(held, path, "linux.seccomp.listenerPath")
    return launch.start(folder.path, plan, "launch", fds, name=folder.id, timeout=math.inf)


def _namespaces(config: Json) -> tuple[str, ...]:
    return tuple(entry["type"] for entry in config.get("linux", {}).get("namespaces") or [])


def _how(  # noqa: PLR0917  # what is known at this moment
    world: World, folder: ContainerDir, state: State, config: Json, values: Values, facts: HostFacts, *, console: bool
) -> LaunchHow:
    from wherry.oci.how import LaunchHow

    return LaunchHow(
        id=folder.id, cgroup=_cgroup(state, values["cgroup"], facts), cgroup_exists=True,
        seccomp=create.compiled(world, config), seccomp_flags=create.filter_flags(config),
        listener_payload=create.listener_payload(config, state.bundle, folder.id, status="running"),
        console_socket=console or bool(values["console_socket"]),
        pidfile=os.path.abspath(values["pid_file"]) if values["pid_file"] else "",
        null_streams=bundle.null_streams(),
    )  # fmt: skip


def _cgroup(state: State, below: Sequence[str], facts: HostFacts) -> str:
    """The container's own, or with --cgroup one below it that is there."""
    if not below:
        return state.cgroup
    from wherry.kernel import cgroup

    path = cgroup.locate(facts, state.cgroup.removeprefix(facts.cgroup_mount), below[-1].rpartition(":")[2])
    if not state.cgroup or not os.path.isdir(path):
        raise WherryError(Kind.NOT_FOUND, f"--cgroup {below[-1]}: {path} is not there")
    return path
