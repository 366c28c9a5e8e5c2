"""The start of a container of a pod, up to the launch: what its pod holds is opened, its cgroup and images prepared.

Decides what passes to the helper as descriptors: namespaces, opened once and checked, and images as detached mounts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.engine import confine, preparing, rootfs
from wherry.engine.house import House
from wherry.errors import Kind, WherryError
from wherry.model import Json, Mount
from wherry.oci.how import LaunchHow, MonitorHow

from . import handlers, held, limiting, logs, rows
from .mounts import ImageVolume
from .values import MemberOptions

if TYPE_CHECKING:
    from wherry.engine.db import Container

__all__ = ["host_id", "prepare", "rehearse"]

_NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2)
_CLONE_EMPTY = 0x1 | 0x1000 | os.O_CLOEXEC  # OPEN_TREE_CLONE | AT_EMPTY_PATH


def prepare(
    house: House, row: Container, stack: contextlib.ExitStack
) -> tuple[preparing.Ready, Mapping[str, Any]]:
    """What the launch takes, and what is noted of the network. The pod is held by the caller, ready."""
    asked, pod = rows.options(row), held.of(house, row.pod)
    config = _config(house, row)
    fds = _namespaces(house, row, asked, config, stack)
    images, slots = _images(house, rows.volumes(row), stack)
    handler = row.config["handler"]
    group, unit, degraded = _cgroup(house, row, config, stack)
    how = group._replace(
        id=row.id,
        rootfs=_root(house, row, config),
        root_dir=group.root_dir or house.container_dir(row.id),
        seccomp=b"" if handler else confine.compiled(house, config),
        stdio=() if asked.tty else (("stdin",) if asked.stdin else ()) + ("stdout", "stderr"),
        namespace_slots={name.removeprefix("ns_"): name for name in fds},
        mount_slots=slots,
    )
    user = config["process"]["user"]
    uid = host_id(config["linux"].get("uidMappings"), user["uid"])
    ready = preparing.Ready(
        config, how, _monitor(house, row, asked), {**fds, **images}, uid, str(user["uid"]),
        degraded, handler,
    )  # fmt: skip
    return ready, {"mode": "pod" if pod.netns else "host", "networks": [], **unit}


def _config(house: House, row: Container) -> Json:
    with open(f"{house.container_dir(row.id)}/config.json", encoding="utf-8") as file:
        config: Json = json.load(file)
    return config


def host_id(maps: Sequence[Json] | None, number: int) -> int:
    """What an id of the container is on the host, by the runtime-spec's mappings; None has the same ids."""
    for part in maps or ():
        if 0 <= number - part["containerID"] < part["size"]:
            return int(part["hostID"] + number - part["containerID"])
    return number


def _root(house: House, row: Container, config: Json) -> tuple[Mount, ...]:
    """With a user namespace, the layers are shown with the container's ids."""
    found = rootfs.mounts(house, row.id)
    if config["linux"].get("uidMappings"):
        found = [mount._replace(options=(*mount.options, "idmap")) for mount in found]
    return tuple(found)


def _monitor(house: House, row: Container, asked: MemberOptions) -> MonitorHow:
    if asked.log:
        logs.make_way(row.config["log"]["file"])
    return preparing.monitor_how(house, row)._replace(stdin_once=asked.stdin and asked.stdin_once)


# ---- namespaces


def _namespaces(
    house: House, row: Container, asked: MemberOptions, config: Json, stack: contextlib.ExitStack
) -> dict[str, int]:
    """A descriptor for each that is joined, by the name of its slot."""
    found = {}
    kind, _, target = asked.security.pid.partition(":")
    if kind == "target":
        fd, path = preparing.other(house, "pid", target, stack)
        entries = config["linux"]["namespaces"]
        entries[:] = [entry for entry in entries if entry["type"] != "pid"] + [{"type": "pid", "path": path}]
        found["ns_pid"] = fd
    for entry in config["linux"]["namespaces"]:
        slot = f"ns_{entry['type']}"
        if entry.get("path") and slot not in found:
            found[slot] = _open(entry["path"], entry["type"], row.pod, stack)
    return found


def _open(path: str, kind: str, pod: str, stack: contextlib.ExitStack) -> int:
    from wherry.oci.compile_namespaces import CLONE_BITS

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_BITS[kind][0]:
            return fd
    except OSError:
        pass
    hint = "stop and remove the pod, and run it again"
    raise WherryError(Kind.CONFLICT, f"the {kind} namespace of pod {pod[:12]} has gone", hint=hint)


# ---- cgroup


def _cgroup(
    house: House, row: Container, config: Json, stack: contextlib.ExitStack
) -> tuple[LaunchHow, Json, tuple[str, ...]]:
    """(what the helper does about it, the unit where systemd made it, controllers that are missing)."""
    from wherry.oci import bpf

    if row.config["handler"]:
        return _delegated(house, row, config), {}, ()
    path = config["linux"]["cgroupsPath"]
    if not path:
        return LaunchHow(), {}, ()
    resources = config["linux"]["resources"]
    writes, lacking = limiting.split(house, resources)
    rules = bpf.program(resources["devices"])
    if not path.startswith("/"):
        return *_scope(house, row, config, writes, rules, stack), lacking
    how = LaunchHow(cgroup=path, cgroup_writes=tuple(writes), device_bpf=rules)
    preparing.make_way(house, row.id, how)
    return how, {}, lacking


def _delegated(house: House, row: Container, config: Json) -> LaunchHow:
    """Another runtime makes it, by the path in config.json; where it lies is noted for a sweep."""
    path = config["linux"]["cgroupsPath"]
    if path.startswith("/"):
        preparing.make_way(house, row.id, LaunchHow(cgroup=path))
    return LaunchHow(root_dir=handlers.prepare(house, row.id, config))


def _scope(  # noqa: PLR0917  # what a unit is made of
    house: House, row: Container, config: Json, writes: limiting.Writes, rules: bytes, stack: contextlib.ExitStack
) -> tuple[LaunchHow, Json]:
    """A transient scope, kept by a process that waits until the container is born in it."""
    from wherry.container import systemd as units
    from wherry.oci import systemd

    linux = config["linux"]
    scope = systemd.scope(linux["cgroupsPath"], row.id)
    wanted = systemd.properties(writes, linux["resources"]["devices"])
    holder = units.start(scope, wanted, house.facts, description=f"wherry container {row.name}")
    stack.enter_context(holder)
    preparing.note_cgroup(house, row.id, holder.path)
    how = LaunchHow(
        cgroup=holder.path, cgroup_exists=True, cgroup_writes=tuple(systemd.direct(writes)), device_bpf=rules
    )
    return how, {"unit": {"slice": scope.slice, "unit": scope.unit}}


# ---- images as volumes


def rehearse(house: House, volumes: Sequence[ImageVolume]) -> None:
    """NOT_FOUND where the part of an image that is to be mounted is not there."""
    with contextlib.ExitStack() as stack:
        for volume in volumes:
            if volume.inside:
                _tree(house, volume, stack)


def _images(
    house: House, volumes: Sequence[ImageVolume], stack: contextlib.ExitStack
) -> tuple[dict[str, int], dict[str, str]]:
    """Descriptors by slot, slots by target."""
    fds = {f"image{number}": _tree(house, volume, stack) for number, volume in enumerate(volumes)}
    return fds, {volume.target: f"image{number}" for number, volume in enumerate(volumes)}


def _tree(house: House, volume: ImageVolume, stack: contextlib.ExitStack) -> int:
    from wherry.kernel import files, mount, shim

    rootfs.settle(house, volume.layers)
    whole = mount.detached(house.snapshots.shown(volume.layers), True)
    stack.callback(os.close, whole)
    # a layer alone may be mounted noexec, for us; what a kubelet mounts is to be run
    shim.mount_setattr(whole, "", shim.AT_EMPTY_PATH, attr_clr=shim.MOUNT_ATTR_NOEXEC)
    if not volume.inside:
        return whole
    try:
        part = files.open_in_root(whole, volume.inside, os.O_PATH)
        stack.callback(os.close, part)
        tree = shim.open_tree(part, "", _CLONE_EMPTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is no {volume.inside[:300]} in image {volume.image[7:19]}, which is to be mounted"
        raise WherryError(Kind.NOT_FOUND, message, hint="look at the volume's subPath") from error
    except OSError as error:
        message = f"this kernel cannot mount a part of an image: {error.strerror}"
        raise WherryError(Kind.UNSUPPORTED, message, hint="Linux 6.15 can; or mount all of it") from error
    stack.callback(os.close, tree)
    return tree
