"""`system prune`, `info`, `version`, and `container prune`. Decides docker's shapes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import filters, images, networks, remove, warm
from .house import House
from .status import look

__all__ = ["VERSION", "container_prune", "info", "prune", "reset", "version"]

Filters = Mapping[str, Sequence[str]]
VERSION = "0.1.0"
_API = "1.43"


def container_prune(house: House, wanted: Filters) -> Json:
    """Remove every container that does not run."""
    filters.check(wanted, ("label", "until"))
    deleted, freed = [], 0
    for row in house.db.containers():
        if row.config.get("build") or row.pod:  # a step's, whose build takes it away; a pod's, which is the kubelet's
            continue
        seen = look(house, row.id)
        old = "until" not in wanted or row.created < images.moment(wanted["until"][0])
        fits = old and filters.labels(wanted.get("label", ()), row.config["labels"])
        if fits and not seen.running and seen.status != "restarting":
            size = house.snapshots.usage(row.id)[0]
            remove.remove(house, row.id, force=False, volumes=False)
            deleted.append(row.id)
            freed += size
    return {"ContainersDeleted": deleted, "SpaceReclaimed": freed}


def prune(house: House, *, all: bool, volumes: bool, filters: Filters) -> Json:
    """Containers, networks, volumes if asked, images: in the order in which one frees the next."""
    from . import gc
    from . import volumes as volume_verbs
    from .build import pruning

    gc.sweep(house, thorough=True)
    result = container_prune(house, filters)
    result |= networks.prune(house, {key: values for key, values in filters.items() if key == "label"})
    freed = result["SpaceReclaimed"]
    if volumes:
        part = volume_verbs.prune(house, all=False, filters=filters)
        result["VolumesDeleted"] = part["VolumesDeleted"]
        freed += part["SpaceReclaimed"]
    part = images.prune(house, all=all, filters=filters)
    result["ImagesDeleted"] = part["ImagesDeleted"]
    freed += part["SpaceReclaimed"]
    part = pruning.prune(house, all=all, filters={key: values for key, values in filters.items() if key == "until"})
    return result | {"CachesDeleted": part["CachesDeleted"], "SpaceReclaimed": freed + part["SpaceReclaimed"]}


# What a wherry writes below its two directories; what somebody else put there stays.
_OF_ROOT = ("cache", "cni-bin", "csi", "containers", "images", "ingest", "layers", "leases", "making.lock",
            "mountpoints", "networks", "pods", "snapshots", "volumes", "wherry.db", "wherry.db-journal",
            "wherry.db-shm", "wherry.db-wal")  # fmt: skip
_OF_STATE = ("build", "c", "cni", "csi", "csi-own.sock", "csi-own.sock.aside", "csi.lock", "csi.log",
             "events.jsonl", "facts.json", "names", "netns", "peers.lock", "pods", "ports", "warm", "wherryd.lock")


def reset(house: House) -> Json:
    """Take this wherry back to its first day: nothing of it stays on the host but its settings."""
    if not os.path.isdir(house.place.root) and not os.path.isdir(house.place.state):
        return {}
    _refuse_served(house)
    from . import gc
    from .pods import sandbox

    gc.sweep(house, thorough=True)
    for pod in house.db.pods():
        sandbox.remove(house, pod.id)
    gone = [row.id for row in house.db.containers()]
    for cid in gone:
        remove.remove(house, cid, force=True, volumes=True)
    gc.sweep(house, thorough=True)  # what a remove could not finish is a failure now, before the images go
    result = {
        "ContainersDeleted": gone,
        "NetworksDeleted": networks.prune(house, {})["NetworksDeleted"],
        "VolumesDeleted": [row.name for row in house.db.volumes()],
        "ImagesDeleted": [{"Deleted": record.id} for record in house.images.list()],
    }
    _drop_volumes(house)
    house.networks.teardown()
    _drop_cgroup(house)
    house.images.unmount_layers()
    house.close()
    warm.stop(house.place.state)
    _drop_files(house.place.root, _OF_ROOT)
    _drop_files(house.place.state, _OF_STATE)
    return result


def _refuse_served(house: House) -> None:
    """A wherryd at work would go on with a database that nobody else sees (daemon/sockets.py holds the lock)."""
    try:
        fd = os.open(f"{house.place.state}/wherryd.lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "stop it first (systemctl stop wherryd)"
        raise WherryError(Kind.CONFLICT, f"wherryd serves {house.place.state}", hint=hint) from error
    finally:
        os.close(fd)


def _drop_volumes(house: House) -> None:
    """Those that drivers have; our own driver ends after them."""
    from wherry.volume import driver

    from . import served

    for row in filter(served.is_served, house.db.volumes()):
        served.remove(house, row)
    for snapshot in filter(served.is_served, house.db.snapshots()):
        served.remove_snapshot(house, snapshot)
    driver.stop(house.place.state)
    served.abandon(house)


def _drop_cgroup(house: House) -> None:
    """The parent of the containers' cgroups, as far as nobody else has one there."""
    mount, parent = house.facts.cgroup_mount, house.settings.cgroup_parent.strip("/")
    while mount and parent:
        try:
            os.rmdir(f"{mount}/{parent}")
        except OSError:
            return
        parent = os.path.dirname(parent)


def _drop_files(top: str, names: Sequence[str]) -> None:
    """Never across a mount: what is mounted below is an error that names it, and stays."""
    from wherry.kernel import files

    for name in names:
        files.remove_tree(f"{top}/{name}")
    with contextlib.suppress(OSError):  # somebody else's files, or a mount point
        os.rmdir(top)


def _os_name() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            for line in file:
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip().strip('"')
    except OSError:
        pass
    return "Linux"


def info(house: House) -> Json:
    """docker's info, as far as it means something here."""
    facts = house.facts
    statuses = [look(house, row.id).status for row in house.db.containers() if not row.config.get("build")]
    running, paused = statuses.count("running"), statuses.count("paused")
    security = ["name=seccomp,profile=default"] if facts.seccomp else []
    security += ["name=apparmor"] if facts.apparmor else []
    security += ["name=selinux"] if facts.selinux else []
    warnings = [
        f"No {name} limit support: the controller is held by {facts.cgroup_holders.get(name) or 'cgroup v1'}"
        for name in ("memory", "cpu", "pids")
        if name not in facts.cgroup_available
    ]
    return {
        "ID": facts.boot_id,
        "Containers": len(statuses),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(statuses) - running - paused,
        "Images": len(house.images.list()),
        "Driver": "overlay",
        "DockerRootDir": house.place.root,
        "StateDir": house.place.state,
        "LoggingDriver": house.settings.log_driver,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2",
        "CgroupMount": facts.cgroup_mount,
        "CgroupControllers": list(facts.cgroup_available),
        "KernelVersion": os.uname().release,
        "OperatingSystem": _os_name(),
        "OSType": "linux",
        "Architecture": facts.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "Name": os.uname().nodename,
        "ServerVersion": VERSION,
        "SecurityOptions": security,
        "DefaultRuntime": "wherry",
        "Plugins": {"Volume": ["local", "csi.wherry.dev"], "Network": ["bridge", "host", "none"],
                    "Log": ["local", "json-file", "journald", "none"]},
        "Warnings": warnings,
    }  # fmt: skip


def version(house: House) -> Json:
    """docker's version."""
    del house
    name = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "Platform": {"Name": "wherry"},
        "Version": VERSION,
        "ApiVersion": _API,
        "MinAPIVersion": "1.24",
        "Os": "linux",
        "Arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(name.machine, name.machine),
        "KernelVersion": name.release,
        "PythonVersion": python,
        "OciVersion": "1.3.0",
        "CniVersion": "1.1.0",
    }
