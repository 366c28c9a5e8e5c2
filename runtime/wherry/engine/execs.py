"""`exec`: one more process in a running container. Decides its environment, user and capabilities, as docker does."""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT, ExitStatus, Json

from . import codec, confine, events, rootfs, specgen, users
from .house import House
from .status import folder, running
from .streams import Stream
from .values import ExecOptions

if TYPE_CHECKING:
    from wherry.container.exec import Session
    from wherry.container.state import State

    from .db import Container

__all__ = ["capture", "start"]

_TOLD = 4096  # characters of a command in an event: there is room for few megabytes of them all


def start(house: House, ref: str, options: ExecOptions) -> Stream:
    """The verb."""
    if not options.command or not options.command[0]:
        raise WherryError(Kind.INVALID, "exec needs a command", code=125)
    row = house.db.find(ref)
    session = _session(house, row, options)
    command = " ".join(options.command)[:_TOLD]
    events.container(house, row, f"exec_create: {command}")
    events.container(house, row, f"exec_start: {command}")

    def ended(code: int) -> None:  # of a detached one nobody here sees the end
        events.container(house, row, "exec_die", exitCode=str(code))

    def lost() -> ExitStatus:
        return ExitStatus(0 if options.detach else 137)

    def kill() -> None:
        from wherry.kernel import process

        process.kill_group(session.launched.init)

    pid = session.launched.init.pid if session.launched.init else 0
    return Stream(house, row.id, session.stream, tty=options.tty, lost=lost, ended=ended, kill=kill, pid=pid)


def _session(house: House, row: Container, options: ExecOptions) -> Session:
    from wherry.container import exec as sessions
    from wherry.oci import compile as planner
    from wherry.oci.how import LaunchHow, MonitorHow, Target

    _, state = running(house, row)
    config = _config(house, row)
    process = _process(house, row, state, config, options)
    streams = (("stdin",) if options.interactive else ()) + ("stdout", "stderr")
    monitor = MonitorHow(
        client=not options.detach, tied=options.tied, oom=False,
        cgroup=f"{house.facts.cgroup_mount}/wherry-monitors" if house.facts.cgroup_mount else "",
    )  # fmt: skip
    how = LaunchHow(
        id=row.id, cgroup=state.cgroup, cgroup_exists=True, monitor=monitor,
        seccomp=b"" if options.privileged else confine.compiled(house, config),
        stdio=() if options.tty or options.detach else streams,
    )  # fmt: skip
    kinds = tuple(ns["type"] for ns in config["linux"]["namespaces"])
    plan = planner.compile_exec(process, Target(kinds, config, row.id), house.facts, how)
    uid = _host_id(config, process["user"]["uid"])
    return sessions.start(folder(house, row.id), plan, uid=uid, timeout=options.patience)


def _host_id(config: Json, uid: int) -> int:
    """What the container's `uid` is on the host."""
    from .pods.starting import host_id

    return host_id(config["linux"].get("uidMappings"), uid)


def _config(house: House, row: Container) -> Json:
    with open(f"{house.container_dir(row.id)}/config.json", encoding="utf-8") as file:
        config: Json = json.load(file)
    return config


def _process(house: House, row: Container, state: State, config: Json, options: ExecOptions) -> Json:
    if row.pod and not (options.user or options.privileged):
        return _of_member(config, options)
    asked = codec.decode_options(row.config["options"])
    image = codec.decode_image(row.config["image_config"])
    who = options.user or asked.user or image.user
    extra = () if options.user else asked.group_add
    with rootfs.live(state) as root:
        user = users.lookup(root, who, extra)
    combined = asked._replace(env=(*asked.env, *options.env), tty=options.tty)
    env = specgen.environment(combined, image, row.config["hostname"], user)
    process: Json = {
        **config["process"],
        "terminal": options.tty,
        "args": list(options.command),
        "env": env,
        "cwd": _cwd(options, config),
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
    }
    if options.privileged:
        full = asked._replace(privileged=True, cap_drop=(), cap_add=())
        process["capabilities"] = specgen.capability_sets(full, house.facts)
        process["noNewPrivileges"] = False
        process.pop("apparmorProfile", None)
    return process


def _of_member(config: Json, options: ExecOptions) -> Json:
    """In a container of a pod all is as for its first process, whose user may be of nobody's passwd file."""
    first = config["process"]
    env = [*first["env"], *(["TERM=xterm"] if options.tty else []), *options.env]
    changed = {"terminal": options.tty, "args": list(options.command), "env": env, "cwd": _cwd(options, config)}
    return {**first, **changed}


def _cwd(options: ExecOptions, config: Json) -> str:
    if options.workdir and not options.workdir.startswith("/"):
        raise WherryError(Kind.INVALID, f"cwd must be an absolute path, not {options.workdir}", code=125)
    return options.workdir or str(config["process"]["cwd"])


def capture(
    house: House, row: Container, argv: tuple[str, ...], timeout: float, limit: int
) -> tuple[int | None, bytes]:
    """Run a command: (exit code, output of at most `limit` bytes); code None: killed after `timeout` seconds."""
    from wherry.container.attach import decode_exit

    session = _session(house, row, ExecOptions(argv))
    stream = session.stream
    assert stream is not None
    output, end = bytearray(), time.monotonic() + timeout
    try:
        while _ready(stream.fileno(), end):
            if not stream.fill():
                return -1, bytes(output)
            while (frame := stream.take()) is not None:
                if frame[0] == ATTACH_EXIT:
                    return decode_exit(frame[1]).code, bytes(output)
                if frame[0] in (ATTACH_STDOUT, ATTACH_STDERR):
                    output += frame[1][: max(0, limit - len(output))]
    finally:
        stream.close()
    _end(session)
    return None, bytes(output)


def _ready(fd: int, end: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, end - time.monotonic()) * 1000))


def _end(session: Session) -> None:
    from wherry.kernel import process

    process.signal(session.launched.init, 9)
