"""Mounts that nobody else sees, and what is mounted where. Decides nothing about what is mounted for whom.

A detached mount dissolves with its descriptor: reading an image's /etc/passwd or copying out of a stopped container
leaves nothing to unmount, also not after a crash.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Mount

__all__ = ["MountPoint", "below", "detached", "mounted", "mounts", "opened", "settle", "unmount"]

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PATIENCE = 30.0  # seconds, for another that mounts the same
_VALUE = 256  # bytes that a value of fsconfig(2) must stay below
#: words for the mount, not for the file system
_MOUNT_WORDS = frozenset({"ro", "rw", "rbind", "bind", "nodev", "nosuid", "noexec"})


class MountPoint(NamedTuple):
    """One line of mountinfo (proc(5)). `root` is the part of the file system that is mounted on `target`."""

    id: int
    parent: int
    root: str
    target: str
    options: frozenset[str]
    type: str
    source: str
    super_options: str


def mounts(pid: int | str = "self") -> Iterator[MountPoint]:
    """Every mount of a process's namespace, in the kernel's order."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            yield _parse(line)


def _parse(line: bytes) -> MountPoint:
    front, _, back = line.rstrip(b"\n").partition(b" - ")
    mount_id, parent, _, root, target, options, *_ = front.split(b" ")
    kind, source, *extra = back.split(b" ", 2)
    return MountPoint(int(mount_id), int(parent), _text(root), _text(target), frozenset(options.decode().split(",")),
                      _text(kind), _text(source), _text(extra[0]) if extra else "")


def _text(field: bytes) -> str:
    r"""Undo the octal escapes of seq_file: \040 \011 \012 \134."""
    head, *parts = field.split(b"\\")
    return os.fsdecode(head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts))


def below(path: str) -> list[MountPoint]:
    """The mounts on `path` and beneath it, deepest and latest first: the order to unmount them in."""
    path = os.path.realpath(path)
    inside = path.rstrip("/") + "/"
    found = [mount for mount in mounts() if mount.target == path or mount.target.startswith(inside)]
    return found[::-1]


def mounted(path: str) -> bool:
    """Whether another file system is mounted on a directory: two calls, for every start asks."""
    return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev


def settle(wanted: Iterable[Mount]) -> None:
    """Mount what is shared and not mounted yet, each on its target, in this mount namespace, to stay."""
    for how in wanted:
        if not mounted(how.target):
            _settle(how)


def _settle(how: Mount) -> None:
    from wherry.kernel import shim

    place = os.path.dirname(how.target)
    with files.directory(place) as held:
        files.lock_fd(held, _PATIENCE, place)
        if mounted(how.target):  # by another, while we waited
            return
        fd = detached([how._replace(target="/")])
        try:
            shim.move_mount(fd, "", shim.AT_FDCWD, how.target, shim.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(fd)


def unmount(path: str, *, detach: bool = True) -> bool:
    """Unmount what is on `path` (a symbolic link is not followed); False if nothing was."""
    from wherry.kernel import shim

    try:
        shim.umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == 22:  # EINVAL: not a mount point
            return False
        raise
    return True


@contextmanager
def opened(how: Iterable[Mount], *, readonly: bool = False) -> Iterator[int]:
    """`detached` for a with statement."""
    fd = detached(how, readonly)
    try:
        yield fd
    finally:
        os.close(fd)


def detached(how: Iterable[Mount], readonly: bool = False) -> int:
    """The root that these mounts make: an O_PATH descriptor nobody else sees. The last is the root (a snapshotter's
    overlay or bind); those before it are layers that it names by their targets, mounted for it alone (Linux 6.15)."""
    *layers, top = how
    if top.target not in ("", "/"):
        raise WherryError(Kind.UNSUPPORTED, f"a detached mount on {top.target}")
    with ExitStack() as held:
        instead = {}
        for layer in layers:
            fd = detached([layer._replace(target="/")])
            held.callback(os.close, fd)
            instead[layer.target] = f"/proc/self/fd/{fd}"
        return _top(top, instead, readonly)


def _top(top: Mount, instead: Mapping[str, str], readonly: bool) -> int:
    fd = _bind(top, instead) if top.type in ("bind", "rbind") else _filesystem(top, instead)
    try:
        _restrict(fd, readonly=readonly or "ro" in top.options, noexec="noexec" in top.options)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _bind(how: Mount, instead: Mapping[str, str]) -> int:
    from wherry.kernel import shim

    recursive = shim.AT_RECURSIVE if how.type == "rbind" or "rbind" in how.options else 0
    source = instead.get(how.source, how.source)
    return shim.open_tree(-100, source, shim.OPEN_TREE_CLONE | os.O_CLOEXEC | recursive)


def _filesystem(how: Mount, instead: Mapping[str, str]) -> int:
    from wherry.kernel import shim

    try:
        return _create(shim, how, instead, layers=True)
    except OSError as error:
        if how.type != "overlay" or error.errno != 22:
            raise
    return _create(shim, how, instead, layers=False)  # EINVAL: a kernel before 6.5 knows no "lowerdir+"


def _create(shim: ModuleType, how: Mount, instead: Mapping[str, str], *, layers: bool) -> int:
    with ExitStack() as stack:
        context = shim.fsopen(how.type)
        stack.callback(os.close, context)
        shim.fsconfig_string(context, "source", _short(stack, how.source or how.type))
        for option in how.options:
            key, equals, value = option.partition("=")
            if key == "lowerdir" and how.type == "overlay":
                names = [instead.get(name, name) for name in value.split(":")]
                _lower(shim, stack, context, names, layers)
            elif option not in _MOUNT_WORDS:
                (shim.fsconfig_string(context, key, value) if equals else shim.fsconfig_flag(context, key))
        shim.fsconfig_create(context)
        return int(shim.fsmount(context, 0))


def _short(stack: ExitStack, path: str) -> str:
    """A path of any length as a value of fsconfig(2)."""
    if len(os.fsencode(path)) < _VALUE:
        return path
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _lower(shim: ModuleType, stack: ExitStack, context: int, names: list[str], layers: bool) -> None:
    """One "lowerdir+" a layer, or all in one value: fsconfig takes fewer than 256 bytes, so by descriptors."""
    if layers:
        for name in names:
            shim.fsconfig_string(context, "lowerdir+", name)
        return
    fds = [os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name in names]
    for fd in fds:
        stack.callback(os.close, fd)
    shim.fsconfig_string(context, "lowerdir", ":".join(f"/proc/self/fd/{fd}" for fd in fds))


def _restrict(fd: int, *, readonly: bool, noexec: bool) -> None:
    """Nothing is executed or opened as a device through a mount that only reads and copies (invariant 6)."""
    from wherry.kernel import shim

    flags = shim.MOUNT_ATTR_NODEV | shim.MOUNT_ATTR_NOSUID
    flags |= (shim.MOUNT_ATTR_RDONLY if readonly else 0) | (shim.MOUNT_ATTR_NOEXEC if noexec else 0)
    shim.mount_setattr(fd, "", shim.AT_EMPTY_PATH, attr_set=flags)
