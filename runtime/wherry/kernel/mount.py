"""Mounts that nobody else sees, and what is mounted where. Decides nothing about what is mounted for whom.

A detached mount dissolves with its descriptor: reading an image's /etc/passwd or copying out of a stopped container
leaves nothing to unmount, also not after a crash.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Mount

__all__ = ["MountPoint", "below", "detached", "mounts", "opened", "unmount"]

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
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
    """The root that these mounts (a snapshotter's: one overlay or bind) make: an O_PATH descriptor nobody else sees."""
    first, *rest = how
    if rest or first.target not in ("", "/"):
        raise WherryError(Kind.UNSUPPORTED, "a detached root of more than one mount")
    fd = _bind(first) if first.type in ("bind", "rbind") else _filesystem(first)
    try:
        _restrict(fd, readonly or "ro" in first.options)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _bind(how: Mount) -> int:
    from wherry.kernel import shim

    recursive = shim.AT_RECURSIVE if how.type == "rbind" or "rbind" in how.options else 0
    return shim.open_tree(-100, how.source, shim.OPEN_TREE_CLONE | os.O_CLOEXEC | recursive)


def _filesystem(how: Mount) -> int:
    from wherry.kernel import shim

    try:
        return _create(shim, how, layers=True)
    except OSError as error:
        if how.type != "overlay" or error.errno != 22:
            raise
    return _create(shim, how, layers=False)  # EINVAL: a kernel before 6.5 knows no "lowerdir+"


def _create(shim: ModuleType, how: Mount, *, layers: bool) -> int:
    with ExitStack() as stack:
        context = shim.fsopen(how.type)
        stack.callback(os.close, context)
        shim.fsconfig_string(context, "source", how.source or how.type)
        for option in how.options:
            key, equals, value = option.partition("=")
            if key == "lowerdir" and how.type == "overlay":
                _lower(shim, stack, context, value, layers)
            elif option not in _MOUNT_WORDS:
                (shim.fsconfig_string(context, key, value) if equals else shim.fsconfig_flag(context, key))
        shim.fsconfig_create(context)
        return int(shim.fsmount(context, 0))


def _lower(shim: ModuleType, stack: ExitStack, context: int, value: str, layers: bool) -> None:
    """One "lowerdir+" a layer, or all in one value: fsconfig takes fewer than 256 bytes, so by descriptors."""
    names = value.split(":")
    if layers:
        for name in names:
            shim.fsconfig_string(context, "lowerdir+", name)
        return
    fds = [os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name in names]
    for fd in fds:
        stack.callback(os.close, fd)
    shim.fsconfig_string(context, "lowerdir", ":".join(f"/proc/self/fd/{fd}" for fd in fds))


def _restrict(fd: int, readonly: bool) -> None:
    """Nothing is executed or opened as a device through a mount that only reads and copies (invariant 6)."""
    from wherry.kernel import shim

    flags = shim.MOUNT_ATTR_NODEV | shim.MOUNT_ATTR_NOSUID | (shim.MOUNT_ATTR_RDONLY if readonly else 0)
    shim.mount_setattr(fd, "", shim.AT_EMPTY_PATH, attr_set=flags)
