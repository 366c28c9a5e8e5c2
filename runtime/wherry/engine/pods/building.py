"""`create`: from what was asked of a container of a pod to a bundle that could start: files, then the row.

Decides the order, and how each step is taken back. All that can be wrong with a request is found here: its start opens
what the pod holds and goes.
"""

from __future__ import annotations

import os
import time

from wherry.engine import devices, events, imageusers, names, preparing, rootfs, users
from wherry.engine.db import Container
from wherry.engine.house import House
from wherry.engine.undo import Undo, making
from wherry.errors import Kind, WherryError
from wherry.model import ImageRecord, Json

from . import handlers, limiting, logs, mounts, records, rows, security, spec, starting
from .values import Held, Member, MemberOptions, Pod, PodOptions

__all__ = ["create"]

_NAME_MAX = 253  # as of a pod


def create(house: House, pod: str, asked: MemberOptions) -> str:
    """The verb. The same container again is the same id."""
    from . import held

    owner = house.db.find_pod(pod)
    options = records.decode(owner.config["options"])
    name = rows.name(options, asked)
    if known := house.db.named(name):
        return _same(house, known, owner.id)
    held.of(house, owner.id)
    _check(house, options, owner.id, asked)
    handler = handlers.path(house, options.handler)
    if handler and any(mount.image for mount in asked.mounts):
        message = f"handler {options.handler}: images as volumes are only mounted by wherry itself"
        raise WherryError(Kind.UNSUPPORTED, message)
    record = house.images.get(asked.image)
    house.images.ensure_unpacked(record)  # may take long, and a stop of the pod shall not wait for it
    for mount in asked.mounts:
        if mount.image:
            house.images.ensure_unpacked(house.images.get(mount.image))
    with held.using(house, owner.id) as ready:
        return _make(house, options, ready, name, record, asked, handler)


def _same(house: House, known: str, pod: str) -> str:
    row = house.db.container(known)
    if row is not None and row.pod == pod:
        return row.id
    raise WherryError(Kind.EXISTS, f"the container name is in use by {known[:12]}", hint="remove that container first")


def _check(house: House, pod: PodOptions, pod_id: str, asked: MemberOptions) -> None:
    if not 0 < len(asked.name) <= _NAME_MAX or not asked.name.isprintable() or "/" in asked.name:
        raise WherryError(Kind.INVALID, f"{asked.name[:80]!r} is no name of a container")
    if asked.security.privileged and not pod.privileged:
        message = "a privileged container needs a pod that was made as privileged"
        raise WherryError(Kind.INVALID, message, hint="what admits pods looks at the pod")
    log = asked.log
    if log and (not log.startswith("/") or os.path.normpath(log) != log or not log.isprintable()):
        raise WherryError(Kind.INVALID, f"log path {log[:300]!r} is not a plain absolute path")
    how, _, target = asked.security.pid.partition(":")
    if how not in ("container", "pod", "host", "target"):
        raise WherryError(Kind.INVALID, f'unknown pid namespace "{asked.security.pid[:80]}"')
    if how == "target" and house.db.find(target).pod != pod_id:
        raise WherryError(Kind.INVALID, f"container {target[:80]} is of another pod", hint="target one of the same")
    limiting.check(house, asked.resources)


def _make(  # noqa: PLR0917  # the stages of a create hand over to each other
    house: House, pod: PodOptions, ready: Held, name: str, record: ImageRecord, asked: MemberOptions, handler: str
) -> str:
    cid = names.mint()
    with making(house), Undo() as undo:
        os.mkdir(house.container_dir(cid), 0o700)
        undo.add(_remove_folder, house, cid)
        rootfs.settle(house, record.config.diff_ids)
        house.snapshots.make(cid, record.config.diff_ids)
        undo.add(house.snapshots.remove, cid)
        privileged = asked.security.privileged
        made = mounts.make(house, ready.id, asked.mounts, undo, relabel=house.facts.selinux and not privileged)
        starting.rehearse(house, made.images)
        user = security.user(asked.security, record.config.user, lambda text: imageusers.lookup(house, cid, text, ()))
        config = spec.generate(_inputs(house, cid, pod, ready, record, asked, made, user))
        undo.add(house.hooks.lost_member, cid)
        asked, config = _hooked(house, Pod(ready.id, pod, 0, ready, ready.ips), cid, record, asked, config)
        preparing.write_config(house.container_dir(cid), config)
        if config["linux"].get("uidMappings"):
            _own_upper(house, cid, config["linux"])
        signal = _stop_signal(asked, record)
        file = logs.locate(asked.log, pod.log_directory)
        kept = rows.config(ready.id, asked, record, made, user, ready.hostname, signal, file)
        kept["handler"] = handler
        row = Container(cid, name, time.time(), record.id, kept, ready.id)
        house.db.add_container(row)
    events.container(house, row, "create")
    return cid


def _hooked(  # noqa: PLR0917  # all that there is of it
    house: House, pod: Pod, cid: str, record: ImageRecord, asked: MemberOptions, config: Json
) -> tuple[MemberOptions, Json]:
    """What becomes of it by who has a say in it; judged as what was asked in the first place."""
    before = Member(cid, pod.id, asked, record.id, time.time(), "creating")
    after, changed = house.hooks.create_member(pod, before, config)
    if changed is not config:
        from wherry.oci import spec as oci

        oci.validate(changed)
        limiting.check(house, after.options.resources)
    return after.options, changed


def _remove_folder(house: House, cid: str) -> None:
    from wherry.kernel import files

    files.remove_tree(house.container_dir(cid))


def _inputs(  # noqa: PLR0917  # all that a config.json is made of
    house: House, cid: str, pod: PodOptions, ready: Held, record: ImageRecord, asked: MemberOptions,
    made: mounts.Made, user: users.User,
) -> spec.Inputs:  # fmt: skip
    caps = security.capabilities(asked.security, house.facts, house.warn)
    return spec.Inputs(
        cid, asked, pod, ready, record.config, house.facts, user, caps,
        mounts=made.oci,
        devices=_devices(asked),
        confinement=security.confinement(house, ready.id, asked.security, caps["bounding"]),
        cgroup=limiting.cgroup(ready, cid),
    )  # fmt: skip


def _devices(asked: MemberOptions) -> devices.Devices:
    found = devices.resolve(asked.cdi)
    for source, target, access in asked.devices:
        devices.add(source, target or source, access or "rwm", found)
    if asked.security.privileged:
        every = devices.everything()
        found.nodes = [*every.nodes, *found.nodes]
        found.rules = [*every.rules, *found.rules]
    return found


def _own_upper(house: House, cid: str, linux: Json) -> None:
    """The mounter, root of the user namespace, must be able to write: the upper directories are its own."""
    upper = house.snapshots.upper(cid)
    uid, gid = (starting.host_id(linux[key], 0) for key in ("uidMappings", "gidMappings"))
    for path in (upper, f"{os.path.dirname(upper)}/work"):
        os.chown(path, uid, gid)


def _stop_signal(asked: MemberOptions, record: ImageRecord) -> int:
    from wherry.kernel import process

    return process.signal_number(asked.stop_signal or record.config.stop_signal or "TERM")
