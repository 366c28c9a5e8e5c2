"""Device nodes and the links of /dev: runtime-spec's default devices, linux.devices, and docker's symlinks.

Where nodes cannot be made (another user namespace, no CAP_MKNOD), the host's nodes are bound instead.
"""

from __future__ import annotations

import posixpath
from typing import Final

from wherry.model import Json
from wherry.oci import options as opt
from wherry.oci.compile_builder import Builder, inside
from wherry.oci.compile_namespaces import Namespaces, mapped
from wherry.oci.facts import HostFacts

__all__ = ["DEFAULT_DEVICES", "SYMLINKS", "device_numbers", "devices"]

#: runtime-spec, config-linux.md "Default Devices": path -> (major, minor)
DEFAULT_DEVICES: Final[dict[str, tuple[int, int]]] = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
#: link -> its text ("Dev symbolic links" of runtime-linux.md, and ptmx of the default devices)
SYMLINKS: Final[dict[str, str]] = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/core": "/proc/kcore",
    "/dev/ptmx": "pts/ptmx",
}
_TYPES: Final[dict[str, int]] = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def device_numbers(major: int, minor: int) -> int:
    """dev_t as glibc's makedev: 12 + 20 bits, interleaved."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def _wanted(config: Json) -> list[Json]:
    """The default devices, each replaced by the config's entry of the same path, then the config's others."""
    wanted: dict[str, Json] = {
        path: {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
        for path, (major, minor) in DEFAULT_DEVICES.items()
    }
    for device in config.get("linux", {}).get("devices") or []:
        if inside(device["path"]) != "/dev/ptmx":  # as runc: the container's own terminals, whatever a node would open
            wanted[inside(device["path"])] = device
    return list(wanted.values())


def _dev_is_bound(config: Json) -> bool:
    """/dev comes from the host as it is: nothing may be made in it."""
    for mount in config.get("mounts") or []:
        if inside(mount["destination"]) == "/dev":
            return mount.get("type") in {"bind", "rbind"} or opt.parse(mount.get("options") or []).bind
    return False


def devices(config: Json, facts: HostFacts, ns: Namespaces, root: int, b: Builder) -> None:
    """Nodes (or binds of the host's) and symlinks, beneath the root slot."""
    if _dev_is_bound(config):
        return
    make = not ns.user and facts.has_cap("CAP_MKNOD")
    made: set[str] = {"/", "/dev"}
    for device in _wanted(config):
        parent = posixpath.dirname(inside(device["path"]))
        if parent not in made:
            b.child("MAKE_DIR", fd1=root, s0=parent, n0=0o755)
            made.add(parent)
        _node(device, config, root, b) if make or device["type"] == "p" else _bind(device, root, b)
    for link, text in SYMLINKS.items():
        b.child("SYMLINK", fd1=root, s0=text, s1=link)


def _node(device: Json, config: Json, root: int, b: Builder) -> None:
    uid, gid = device.get("uid") or 0, device.get("gid") or 0
    if device["type"] == "p" and not (mapped(config, uid) and mapped(config, gid, "gidMappings")):
        uid = gid = 0
    mode = device.get("fileMode")
    b.child(
        "NODE",
        fd1=root,
        s0=inside(device["path"]),
        n0=_TYPES[device["type"]] | ((0o666 if mode is None else mode) & 0o7777),
        n1=0 if device["type"] == "p" else device_numbers(device["major"], device["minor"]),
        n2=uid << 32 | gid,
    )


def _bind(device: Json, root: int, b: Builder) -> None:
    slot, path = b.slot(), inside(device["path"])
    b.child("TREE", fd0=slot, s0=path)
    b.child("ATTACH", "MAKE_FILE", fd0=slot, fd1=root, s0=path)
