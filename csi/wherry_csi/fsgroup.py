"""volume_mount_group: give a volume to a group, as the kubelet does it for drivers that leave it to the kubelet.

Every file gets the group and its owner's rights for it, every directory also setgid. By descriptors, never through a
symlink, never into another mount: the tree was written by containers, which may be at it. The root comes last, so a
walk that was cut off is made again, and one that was not is never repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from . import tree

__all__ = ["apply", "wanted"]

_READ_WRITE = 0o660
_SEARCH = 0o110


def apply(path: str, group: int) -> bool:
    """Give the volume mounted at `path` to the group, unless its root says that it has it. Whether that was done."""
    root = os.open(path, tree.DIRECTORY)
    try:
        status = os.fstat(root)
        if status.st_gid == group and status.st_mode == wanted(status.st_mode):
            return False
        _below(root, group, status.st_dev)
        os.fchown(root, -1, group)
        os.fchmod(root, stat.S_IMODE(wanted(status.st_mode)))
        return True
    finally:
        os.close(root)


def wanted(mode: int) -> int:
    """The mode of a file or directory of the group."""
    return mode | _READ_WRITE | (stat.S_ISGID | _SEARCH if stat.S_ISDIR(mode) else 0)


def _below(root: int, group: int, device: int) -> None:
    """All entries below a directory, depth first, with one descriptor for each level."""
    levels: list[tuple[int, Iterator[str]]] = [(os.dup(root), iter(os.listdir(root)))]
    try:
        while levels:
            fd, names = levels[-1]
            name = next(names, None)
            if name is None:
                os.close(levels.pop()[0])
                continue
            with suppress(FileNotFoundError):  # its owner was faster
                if (inner := _entry(fd, name, group, device)) is not None:
                    levels.append((inner, iter(os.listdir(inner))))
    finally:
        for fd, _ in levels:
            os.close(fd)


def _entry(directory: int, name: str, group: int, device: int) -> int | None:
    """One entry; a directory of the same file system is returned opened."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if status.st_dev != device:
            return None
        os.chown(name, -1, group, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(wanted(status.st_mode)))
        if not stat.S_ISDIR(status.st_mode):
            return None
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)
