"""`run --explain`: what a run would do, in sections, with no effect on the host: nothing is made, pulled or written."""

from __future__ import annotations

import contextlib
import json
import os
import time

from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, Json, Mount, RunOptions

from . import create, joining, mounts, preparing, rootfs, specgen, users
from .db import Container
from .house import House
from .values import Section

__all__ = ["run"]

_VOLUME = "<new volume>"
_DETACHED_LAYERS = (6, 15)  # overlayfs takes layers that are mounted nowhere


def run(house: House, options: RunOptions) -> list[Section]:
    """The verb."""
    if not os.path.isdir(house.place.root):
        hint = "--explain pulls nothing: pull it first"
        raise WherryError(Kind.NOT_FOUND, f"no such image: {options.image}", hint=hint)
    house.leave_no_traces()
    draft = create.draft(house, options, None, dry=True)
    draft.config["mounts"] = [mounts.inspect_row(_found(house, draft.id, mount)) for mount in draft.mounts]
    row = Container(draft.id, draft.name or "<a name>", time.time(), draft.record.id, draft.config)
    asked = options._replace(network=draft.networks)
    root = _root(house, row, draft.record.config.diff_ids)
    config = _config(house, row, asked, draft.record.config)
    how = preparing.launch_how(house, row, asked, config, {}, dry=(root,))
    how = how._replace(monitor=preparing.monitor_how(house, row))
    return [
        Section("Image", (f"{options.image} is {draft.record.id}", *_layers(draft.record.config.diff_ids))),
        Section("Network", tuple(_network(house, row, asked))),
        Section("Cgroup", (how.cgroup or "none", *(f"{name} = {value}" for name, value in how.cgroup_writes))),
        Section("Mounts", tuple(_mount_line(mount) for mount in config["mounts"])),
        Section("Plan", tuple(_plan(house, row, config, how))),
        Section("OCI config", tuple(json.dumps(config, indent=2).splitlines())),
    ]


def _layers(diff_ids: tuple[str, ...]) -> list[str]:
    return [f"layer {diff_id}" for diff_id in diff_ids]


def _found(house: House, cid: str, mount: mounts.Resolved) -> mounts.Resolved:
    if mount.kind != "volume":
        return mount
    row = house.db.volume(mount.name) if mount.name else None
    if row is None:
        return mount._replace(source=f"{house.place.root}/volumes/{_VOLUME}/_data", name=mount.name or _VOLUME)
    from . import volumes

    return mount._replace(source=volumes.source(house, row, cid), options=volumes.options(row, mount),
                          driver=row.driver)  # fmt: skip


def _root(house: House, row: Container, diff_ids: tuple[str, ...]) -> Mount:
    from wherry.image.snapshot import mount_points

    place = f"{house.place.root}/snapshots/{row.id}"
    lower = ":".join([*_layers_of(house, diff_ids), mount_points(house.place.root)])
    options = (f"lowerdir={lower}", f"upperdir={place}/upper", f"workdir={place}/work")
    return Mount("overlay", "overlay", "/", options)


def _layers_of(house: House, diff_ids: tuple[str, ...]) -> list[str]:
    """The layers' directories, highest first."""
    from wherry.image.snapshot import layer_path

    return [f"{layer_path(house.place.root, diff_id)}/fs" for diff_id in reversed(diff_ids)]


def _user(house: House, options: RunOptions, image: ImageConfig) -> users.User:
    """Looked up in the image through a detached mount, which nobody sees; so are its layers, if not mounted yet."""
    from wherry.kernel import mount

    if house.facts.kernel < _DETACHED_LAYERS:
        rootfs.settle(house, image.diff_ids)
    below = house.snapshots.below(image.diff_ids)
    with mount.opened([*below, _view(_layers_of(house, image.diff_ids))], readonly=True) as fd:
        return users.lookup(fd, options.user or image.user, options.group_add)


def _view(layers: list[str]) -> Mount:
    if not layers:
        return Mount("tmpfs", "tmpfs", "/", ())
    if len(layers) == 1:  # an overlay wants two
        return Mount("bind", layers[0], "/", ("ro",))
    return Mount("overlay", "overlay", "/", (f"lowerdir={':'.join(layers)}", "ro"))


def _config(house: House, row: Container, options: RunOptions, image: ImageConfig) -> Json:
    made = preparing.inputs(house, row, options, image)
    kind = joining.mode(options)
    where = {"host": None, "none": ""}.get(kind, joining.netns_path(house, row.id))
    with contextlib.ExitStack() as held:
        namespaces, _ = preparing.namespaces(house, options, joining.Joined(where), held)
    names = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    files = {name: f"{house.container_dir(row.id)}/{name.rpartition('/')[2]}" for name in names}
    own = tuple(mounts.oci(mounts.from_row(fact)) for fact in row.config["mounts"])
    user = _user(house, options, image)
    return specgen.generate(made._replace(user=user, namespaces=namespaces, files=files, mounts=own))


def _network(house: House, row: Container, options: RunOptions) -> list[str]:
    kind = joining.mode(options)
    words = {"none": "a network namespace with loopback only", "host": "the host's network namespace"}
    if kind:
        return [words.get(kind, f"the network namespace of {kind.partition(':')[2][:12]}")]
    lines = [f"make network namespace {joining.netns_path(house, row.id)}"]
    for attachment in options.network:
        wish = f" with address {attachment.ip}" if attachment.ip else ""
        lines.append(f"CNI ADD {attachment.network} as {attachment.interface}{wish}")
    for port in row.config["ports"]:
        first, last = port.get("host_port"), port.get("host_port_end")
        host = f"a free port of {first}-{last}" if last else first or "a free port"
        protocol = port.get("protocol", "tcp")
        lines.append(f"publish {port.get('host_ip', '')}:{host} to port {port['container_port']}/{protocol}")
    return lines


def _mount_line(mount: Json) -> str:
    return f"{mount['type']} {mount['source']} on {mount['destination']} ({','.join(mount['options'])})"


def _plan(house: House, row: Container, config: Json, how: object) -> list[str]:
    from wherry.oci import compile as planner
    from wherry.oci.how import LaunchHow

    assert isinstance(how, LaunchHow)
    return planner.compile_create(config, house.container_dir(row.id), house.facts, how).describe()
