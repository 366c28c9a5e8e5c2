"""The root filesystem: the snapshotter's mount or root.path, made detached and attached on a host directory.

Decides how an overlay's layers reach the kernel: fsconfig(2) takes no value of 256 bytes or more. Since 6.5 each
layer is a
value of its own ("lowerdir+"); before, long lists go through a private directory in which the layers have short names.
"""

from __future__ import annotations

import posixpath
from typing import Final

from wherry.errors import Kind, WherryError
from wherry.model import Json, Mount
from wherry.oci import options as opt
from wherry.oci.compile_builder import Add, Builder
from wherry.oci.compile_job import Job
from wherry.oci.compile_namespaces import O_PATH_DIRECTORY, map_slot
from wherry.oci.options import MountOptions

__all__ = ["attach_root", "overlay_options", "prepare_root", "root_directory", "split_layers"]

FSCONFIG_VALUE: Final = 256  # strndup_user in fs/fsopen.c, the NUL counted
_PATHS: Final = frozenset({"upperdir", "workdir", "lowerdir+", "datadir+"})
#: a directory that every id can reach, to attach a prepared root on; seen so in the child's own mount namespace only
_REACHABLE: Final = "/tmp"  # noqa: S108
_SHORT: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def root_directory(config: Json, bundle: str) -> str:
    """The host path of root.path; the bundle's rootfs where the config has none."""
    return posixpath.normpath(posixpath.join(bundle, config.get("root", {}).get("path") or "rootfs"))


def prepare_root(job: Job) -> int:
    """For a new user namespace: the root made by the host side before the clone, since below a directory of root's
    own the
    child reaches nothing. Returns the detached mount."""
    return _detached(job, job.b.host, root_directory(job.config, job.bundle), "")


def attach_root(job: Job, prepared: int = -1) -> int:
    """Attach the root (on how.root_dir, else where root.path is), made here unless prepared. Returns the root slot."""
    path = root_directory(job.config, job.bundle)
    directory = job.how.root_dir or path
    detached = prepared
    if prepared < 0:
        detached = _detached(job, job.b.child, path, directory)
    root = job.b.slot()
    job.b.child("ROOT", fd0=detached, fd1=root, s0=directory if prepared < 0 else _REACHABLE)
    return root


def _detached(job: Job, add: Add, path: str, directory: str) -> int:
    if len(job.how.rootfs) > 1:
        raise WherryError(Kind.UNSUPPORTED, "a root filesystem of several mounts is not supported")
    if not job.how.rootfs:
        return _bound(job.b, add, path, MountOptions())
    mount = job.how.rootfs[0]
    options = opt.parse(mount.options, "root filesystem")
    if options.bind or mount.type in {"bind", "rbind"}:
        return _bound(job.b, add, mount.source, options)
    if mount.type == "overlay":
        return _overlay(job, add, mount, options, directory)
    return _new(job.b, add, mount, options, options.data)


def _overlay(job: Job, add: Add, mount: Mount, options: MountOptions, directory: str) -> int:
    if options.idmap:
        return _idmapped(job, mount, options)
    if job.facts.overlay_lowerdir_add:
        return _new(job.b, add, mount, options, _long_paths(job.b, add, overlay_options(options.data)))
    if all(_fits(word) for word in options.data) or not directory:
        return _new(job.b, add, mount, options, options.data)
    return _staged(job.b, mount, options, directory)


def _bound(b: Builder, add: Add, path: str, options: MountOptions) -> int:
    slot = b.slot()
    add("TREE", "RECURSIVE", fd0=slot, s0=path)
    if options.attr_set or options.attr_clr:
        add("ATTR", fd0=slot, n0=options.attr_set, n1=options.attr_clr)
    return slot


def _new(b: Builder, add: Add, mount: Mount, options: MountOptions, data: tuple[str, ...]) -> int:
    slot = b.slot()
    add("FS_NEW", fd0=slot, s0=mount.type, s1=data, n0=len(data), n1=options.attr_set, s2=mount.source)
    return slot


def _idmapped(job: Job, mount: Mount, options: MountOptions) -> int:
    """Layers of root's own ids, shown with the container's: an overlay cannot be mapped itself, its lower layers can
    (their
    detached trees by slot, 6.15). The upper directory is not mapped, since the mounter itself must be able to write in
    it: whoever makes it gives it to the container's root, and what the container writes has the ids of the host."""
    if job.facts.kernel < (6, 15):
        raise WherryError(
            Kind.UNSUPPORTED,
            "this kernel cannot show an image's layers with other ids",
            hint="Linux 6.15 can; or use no --userns",
        )
    users = job.b.inherited_slot(map_slot(job.linux))
    data: list[str] = []
    for word in overlay_options(options.data):
        key, _, value = word.partition("=")
        data.append(f"{key}=slot:{_mapped_tree(job.b, value, users)}" if key == "lowerdir+" else word)
    return _new(job.b, job.b.host, mount, options, _long_paths(job.b, job.b.host, tuple(data)))


def _mapped_tree(b: Builder, path: str, users: int) -> int:
    slot = b.slot()
    b.host("TREE", fd0=slot, s0=path)
    b.host("ATTR", fd0=slot, fd1=users, n0=opt.IDMAP)
    return slot


def _fits(word: str) -> bool:
    return len(word.partition("=")[2].encode("utf-8", "surrogateescape")) < FSCONFIG_VALUE


def overlay_options(data: tuple[str, ...]) -> tuple[str, ...]:
    """One "lowerdir+" per layer. Data-only layers ("::") keep the old form, which can say it."""
    result: list[str] = []
    for word in data:
        key, _, value = word.partition("=")
        if key == "lowerdir" and "::" not in value:
            result += [f"lowerdir+={layer}" for layer in split_layers(value)]
        else:
            result.append(word)
    return tuple(result)


def _long_paths(b: Builder, add: Add, data: tuple[str, ...]) -> tuple[str, ...]:
    """A directory whose path is too long is opened and named by its slot."""
    result = []
    for word in data:
        key, _, value = word.partition("=")
        if key in _PATHS and not _fits(word):
            slot = b.slot()
            add("OPEN", fd0=slot, s0=value, n0=O_PATH_DIRECTORY)
            result.append(f"{key}=slot:{slot}")
        else:
            result.append(word)
    return tuple(result)


def _staged(b: Builder, mount: Mount, options: MountOptions, directory: str) -> int:
    """Before 6.5: a private tmpfs on the root's directory, each layer bound in it under a short name, and lowerdir
    relative
    to it. Only this mount namespace sees it, and it goes with the old root."""
    stage, stage_slot = _new(b, b.child, Mount("tmpfs", "tmpfs", "/"), MountOptions(), ("mode=700",)), b.slot()
    b.child("ROOT", fd0=stage, fd1=stage_slot, s0=directory)
    data = []
    for word in options.data:
        key, _, value = word.partition("=")
        if key != "lowerdir":
            data.append(word)
            continue
        layers = split_layers(value)
        for name, layer in zip(_names(len(layers)), layers, strict=True):
            slot = b.slot()
            b.child("TREE", fd0=slot, s0=layer)
            b.child("ATTACH", "MAKE_DIR", fd0=slot, fd1=stage_slot, s0=f"/{name}")
        data.append("lowerdir=" + ":".join(_names(len(layers))))
    if not all(_fits(word) for word in data):
        raise WherryError(
            Kind.UNSUPPORTED,
            "this kernel cannot stack so many layers, or their paths are too long",
            hint="Linux 6.5 can",
        )
    b.child("CHDIR", s0=directory)
    slot = _new(b, b.child, mount, options, tuple(data))
    b.child("CHDIR", s0="/")
    return slot


def _names(count: int) -> list[str]:
    """Short names for layers: one character, then two."""
    names = [*_SHORT, *(a + b for a in _SHORT for b in _SHORT)]
    return names[:count]


def split_layers(value: str) -> list[str]:
    """The paths of a lowerdir: colons separate, a backslash takes the next character as it is (overlayfs.rst)."""
    layers, current, escaped = [], "", False
    for char in value:
        if char == ":" and not escaped:
            layers.append(current)
            current = ""
        elif char == "\\" and not escaped:
            escaped = True
            continue
        else:
            current += char
        escaped = False
    return [*layers, current]
