"""Everything of a start between the network side and the helper: user, mounts, devices, config.json, how to launch.

Decides where the container's cgroup lies, which namespaces it joins and what its monitor does.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, Json, Mount, RunOptions
from wherry.oci.how import LaunchHow, MonitorHow, Timer

from . import (
    codec,
    command,
    confine,
    devices,
    filling,
    health,
    imageusers,
    joining,
    limits,
    mounts,
    rootfs,
    security,
    specgen,
    users,
)
from .house import House
from .undo import Undo

if TYPE_CHECKING:
    from .db import Container
    from .notifying import Notify

__all__ = [
    "Ready", "cgroup_path", "inputs", "launch_how", "make_way", "monitor_how", "namespaces", "note_cgroup",
    "other", "prepare", "write_config",
]  # fmt: skip

MONITORS = "/wherry-monitors"


class Ready(NamedTuple):
    """What the launch takes. `fds` stay open as long as the caller's stack."""

    config: Json
    how: LaunchHow
    monitor: MonitorHow
    fds: dict[str, int]
    host_uid: int
    user_text: str
    degraded: tuple[str, ...]
    handler: str = ""  # the program of another OCI runtime, which makes the container


def cgroup_path(house: House, row_id: str, options: RunOptions) -> str:
    """The container's cgroup below the parent, "" where there is no cgroup v2."""
    facts = house.facts
    if not facts.cgroup_mount:
        return ""
    parent = options.cgroup_parent or house.settings.cgroup_parent
    if ".." in parent.split("/"):
        raise WherryError(Kind.INVALID, f'invalid --cgroup-parent "{parent}"')
    return f"{facts.cgroup_mount}/{parent.strip('/')}/{row_id}"


def namespaces(
    house: House, options: RunOptions, joined: joining.Joined, held: contextlib.ExitStack
) -> tuple[dict[str, str], dict[str, int]]:
    """Namespace types with what to join; and the descriptors of those that are another container's."""
    found: dict[str, str] = {"mount": ""}
    fds: dict[str, int] = {}
    if joined.namespace is not None:
        found["network"] = joined.namespace
    for kind, asked in (("pid", options.pid), ("ipc", options.ipc), ("uts", options.uts)):
        if asked != "host":
            found[kind] = asked if asked.startswith("container:") else ""
    if options.cgroupns != "host":
        found["cgroup"] = ""
    for kind, value in list(found.items()):
        if value.startswith("container:"):
            fds[f"ns_{kind}"], found[kind] = other(house, kind, value.partition(":")[2], held)
    return found, fds


def other(house: House, kind: str, ref: str, held: contextlib.ExitStack) -> tuple[int, str]:
    """Open another container's namespace while its pidfd proves that the pid is still its own: (descriptor, path)."""
    from wherry.kernel import process

    from .status import running

    row = house.db.find(ref)
    if kind == "ipc" and row.config["options"].get("ipc") != "shareable":
        hint = "start that container with --ipc shareable"
        raise WherryError(Kind.CONFLICT, f"cannot join IPC of container {row.name}: non-shareable IPC", hint=hint)
    _, state = running(house, row)
    assert state.init is not None
    name = {"network": "net"}.get(kind, kind)
    path = f"/proc/{state.init.pid}/ns/{name}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    held.callback(os.close, fd)
    if not process.alive(state.init):
        raise WherryError(Kind.CONFLICT, f"container {row.name} is not running")
    return fd, path


def _shm(house: House, row: Container, options: RunOptions, undo: Undo) -> str:
    """The host path of a /dev/shm that is shared, made for `shareable`, found for `container:X`."""
    if options.ipc == "host":
        return "/dev/shm"  # noqa: S108  # the host's, as asked
    if options.ipc.startswith("container:"):
        return f"{house.state_dir(house.db.find(options.ipc.partition(':')[2]).id)}/shm"
    if options.ipc != "shareable":
        return ""
    from wherry.kernel import mount, shim

    from . import cleanup

    path = f"{house.state_dir(row.id)}/shm"
    os.mkdir(path, 0o700)
    size = options.shm_size if options.shm_size is not None else 64 << 20
    undo.add(cleanup.unmount_shm, house, row.id)
    fd = mount.detached([Mount("tmpfs", "shm", "/", ("mode=1777", f"size={size}"))])
    try:
        shim.move_mount(fd, "", -100, path, 4)  # MOVE_MOUNT_F_EMPTY_PATH
    finally:
        os.close(fd)
    return path


def _user(house: House, row: Container, options: RunOptions, image: ImageConfig) -> users.User:
    return imageusers.lookup(house, row.id, options.user or image.user, options.group_add)


def _id_map(house: House, row: Container, options: RunOptions) -> tuple[int, int]:
    first, _, size = options.userns.partition(":")
    if first.isdigit() and size.isdigit():
        return int(first), int(size)
    if options.userns in ("", "auto", "host", "private"):
        return house.db.range(row.id)
    raise WherryError(Kind.INVALID, f'invalid --userns "{options.userns}"', hint="host, auto or FIRST:SIZE")


def _mounts(house: House, row: Container, user: users.User, id_map: tuple[int, int]) -> tuple[Json, ...]:
    found = []
    for mount in map(mounts.from_row, row.config["mounts"]):
        if mount.served and not os.path.isdir(mount.source):  # a block volume, which is a device
            continue
        if mount.kind != "tmpfs" and not os.path.lexists(mount.source):
            message = f"mount source {mount.source} of {mount.target} does not exist"
            raise WherryError(Kind.PRECONDITION, message, hint="was it removed since the container was made?")
        if "U" in mount.options:
            filling.own(mount.source, user, 0 if mount.kind == "volume" else id_map[0])
        if {"z", "Z"} & set(mount.options) and house.facts.selinux:
            confine.relabel(mount.source, row.id, shared="z" in mount.options)
        idmap = _maps(id_map) if id_map[1] and mount.kind == "volume" else None
        found.append(mounts.oci(mount, idmap))
    return tuple(found)


def _maps(id_map: tuple[int, int]) -> Json:
    entry = [{"containerID": 0, "hostID": id_map[0], "size": id_map[1]}]
    return {"uidMappings": entry, "gidMappings": entry}


def inputs(house: House, row: Container, options: RunOptions, image: ImageConfig) -> specgen.Inputs:
    """The inputs that need no effect: `explain` stops here."""
    chosen = security.parse(options)
    limits.check(options.limits, house.facts)
    resources = limits.resources(options.limits, house.facts, house.settings.pids_limit)
    found = devices.resolve(options.devices)
    if options.privileged:
        every = devices.everything()
        found.nodes = [*every.nodes, *found.nodes]
        found.rules = [*every.rules, *found.rules]
    caps = security.capabilities(options, house.facts.cap_bounding)
    return specgen.Inputs(
        row.id, options, image, chosen, house.facts, hostname=row.config["hostname"], devices=found,
        resources=resources, cgroup=cgroup_path(house, row.id, options),
        seccomp=confine.seccomp(chosen, caps, house.facts), apparmor=confine.apparmor(chosen, house),
        selinux=confine.selinux(chosen, row.id, house.facts), id_map=_id_map(house, row, options),
        init=_helper() if options.init else "",
    )  # fmt: skip


def _helper() -> str:
    from wherry.kernel import shim

    return str(shim.HELPER)


def prepare(  # noqa: PLR0917  # the stages of a start hand over to each other
    house: House, row: Container, options: RunOptions, joined: joining.Joined, undo: Undo, held: contextlib.ExitStack,
    notify: Notify | None = None,
) -> Ready:  # fmt: skip
    """Put it all together; writes config.json into the bundle."""
    image = codec.decode_image(row.config["image_config"])
    user = _user(house, row, options, image)
    made = _with_volumes(house, row, inputs(house, row, options, image), undo)
    if notify is not None:
        from . import notifying

        notifying.offer(house, row.id, notify, made.devices)
    spaces, fds = namespaces(house, options, joined, held)
    if made.id_map[1]:
        spaces = {"user": "", **spaces}
        _own_upper(house, row, made.id_map[0])
    made = made._replace(
        user=user, namespaces=spaces, files=joined.files, shm=_shm(house, row, options, undo),
        mounts=_mounts(house, row, user, made.id_map),
    )  # fmt: skip
    config = specgen.generate(made)
    write_config(house.container_dir(row.id), config)
    how = launch_how(house, row, options, config, fds)
    make_way(house, row.id, how)
    degraded = limits.degraded(options.limits, house.facts, house.settings.pids_limit)
    text = options.user or image.user
    return Ready(config, how, monitor_how(house, row), fds, made.id_map[0] + user.uid, text, degraded)


def _with_volumes(house: House, row: Container, made: specgen.Inputs, undo: Undo) -> specgen.Inputs:
    """Mount the volumes that drivers serve; most containers have none."""
    wanted = [mount for mount in map(mounts.from_row, row.config["mounts"]) if mount.served]
    if not wanted:
        return made
    from . import bringing

    brought = bringing.bring(house, row, wanted, undo)
    block = devices.resolve(brought.devices)
    made.devices.nodes += block.nodes
    made.devices.rules += block.rules
    limited = {"blockIO": brought.block_io} if brought.block_io else {}
    return made._replace(resources={**made.resources, **limited})


def write_config(directory: str, config: Json) -> None:
    """config.json into a bundle, whole or not at all."""
    with open(f"{directory}/config.json.new", "w", encoding="utf-8") as file:
        file.write(json.dumps(config))
    os.replace(f"{directory}/config.json.new", f"{directory}/config.json")


def make_way(house: House, cid: str, how: LaunchHow) -> None:
    """Note the cgroup before it exists, for a sweep must find it whatever dies when; then make its parents."""
    from wherry.kernel import cgroup

    if how.cgroup:
        note_cgroup(house, cid, how.cgroup)
        cgroup.prepare(house.facts, how.cgroup)  # every controller: an update may ask for what the start did not


def note_cgroup(house: House, cid: str, path: str) -> None:
    """Of a start that may never come to its record."""
    with open(f"{house.state_dir(cid)}/cgroup", "w", encoding="utf-8") as file:
        file.write(path)


def launch_how(
    house: House, row: Container, options: RunOptions, config: Json, fds: dict[str, int], *, dry: tuple[Mount, ...] = ()
) -> LaunchHow:
    """What config.json does not say. `dry`: the root's mounts of a container that is only talked about."""
    from wherry.oci import bpf, cgroup2

    resources = config["linux"]["resources"]
    streams = (("stdin",) if options.interactive else ()) + ("stdout", "stderr")
    asked = specgen.asked_rlimits(options) + (("oom_score_adj",) if options.oom_score_adj is not None else ())
    slots = {name.removeprefix("ns_"): name for name in fds}
    return LaunchHow(
        id=row.id,
        rootfs=_root(dry or tuple(rootfs.mounts(house, row.id)), config),
        root_dir=house.container_dir(row.id),
        cgroup=config["linux"]["cgroupsPath"],
        cgroup_writes=tuple(cgroup2.writes(resources)),
        device_bpf=bpf.program(resources["devices"]) if house.facts.cgroup_mount else b"",
        seccomp=_seccomp(house, config, dry=bool(dry)),
        stdio=() if options.tty else streams,
        namespace_slots=slots,
        asked=asked,
    )


def _root(mounts: tuple[Mount, ...], config: Json) -> tuple[Mount, ...]:
    """With a user namespace of its own, the layers are shown with the container's ids."""
    if not config["linux"].get("uidMappings"):
        return mounts
    return tuple(mount._replace(options=(*mount.options, "idmap")) for mount in mounts)


def _own_upper(house: House, row: Container, first: int) -> None:
    """The mounter, root of the user namespace, must be able to write: the upper directories are its own."""
    upper = house.snapshots.upper(row.id)
    for path in (upper, f"{os.path.dirname(upper)}/work"):
        if os.stat(path).st_uid < first:
            os.chown(path, first + os.stat(path).st_uid, first + os.stat(path).st_gid)


def _seccomp(house: House, config: Json, *, dry: bool) -> bytes:
    if dry:  # compiling writes the cache: a filter of one instruction stands for it
        return bytes(8) if config["linux"].get("seccomp") else b""
    return confine.compiled(house, config)


def monitor_how(house: House, row: Container) -> MonitorHow:
    """What the monitor does around the container."""
    log = row.config["log"]
    check = row.config.get("health")
    timers = (Timer(*health.intervals(check), command.argv("health", row.id)),) if check else ()
    fields = (f"CONTAINER_ID={row.id[:12]}", f"CONTAINER_ID_FULL={row.id}", f"CONTAINER_NAME={row.name}",
              f"CONTAINER_TAG={row.id[:12]}", f"IMAGE_NAME={row.config['image_name']}")  # fmt: skip
    return MonitorHow(
        log_driver=log["monitor"],
        log_path=os.path.join(house.container_dir(row.id), log["file"]) if log["file"] else "",
        log_bytes=log["bytes"],
        log_files=log["files"],
        log_fields=fields if log["monitor"] == "journald" else (),
        attach=True,
        exit_dir=house.state_dir(row.id),
        cleanup=command.argv("cleanup", row.id),
        cleanup_env=tuple(f"{key}={value}" for key, value in command.environment(house).items()),
        timers=timers,
        kill=bool(row.config["options"].get("pid")),
        cgroup=f"{house.facts.cgroup_mount}{MONITORS}" if house.facts.cgroup_mount else "",
    )
