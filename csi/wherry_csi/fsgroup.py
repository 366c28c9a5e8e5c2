"""volume_mount_group: give a volume to a group, as the kubelet does it for drivers that leave it to the kubelet.

Every file gets the group and its owner's rights for it, every directory also setgid. By descriptors, never through a
symlink, never into another mount: the tree was written by containers, which may be at it. The root comes last, so a
walk that was cut off is made again, and one that was not is never repeated.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from . import tree

__all__ = ["apply", "wanted"]

_READ_WRITE = 0o660
_SEARCH = 0o110
#: what a directory is that was exchanged meanwhile, or that something is mounted on
_PASSED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}


def apply(path: str, group: int) -> bool:
    """Give the volume mounted at `path` to the group, unless its root says that it has it. Whether that was done."""
    root = os.open(path, tree.DIRECTORY)
    try:
        status = os.fstat(root)
        if status.st_gid == group and status.st_mode == wanted(status.st_mode):
            return False
        _Walk(root, group).run()
        _give(root, group)
        return True
    finally:
        os.close(root)


def wanted(mode: int) -> int:
    """The mode of a file or directory of the group."""
    return mode | _READ_WRITE | (stat.S_ISGID | _SEARCH if stat.S_ISDIR(mode) else 0)


def _give(fd: int, group: int) -> None:
    status = os.fstat(fd)
    os.fchown(fd, -1, group)
    os.fchmod(fd, stat.S_IMODE(wanted(status.st_mode)))


class _Level(NamedTuple):
    """A directory on the way down."""

    stat: os.stat_result
    names: list[str]  # directories in it that are still to be walked


class _Walk:
    """All below a directory, depth first. One descriptor is open, however deep it is: the way up is `..`, checked."""

    def __init__(self, root: int, group: int) -> None:
        self._here, self._group, self._device = os.dup(root), group, os.fstat(root).st_dev
        self._way: list[_Level] = []

    def run(self) -> None:
        """Once."""
        try:
            self._enter()
            while self._way:
                if not (names := self._way[-1].names):
                    self._leave()
                elif (inner := self._inner(names.pop())) is not None:
                    self._go(inner)
                    _give(inner, self._group)
                    self._enter()
        finally:
            os.close(self._here)

    def _go(self, fd: int) -> None:
        os.close(self._here)
        self._here = fd

    def _enter(self) -> None:
        with os.scandir(self._here) as entries:
            names = [entry.name for entry in entries if self._entry(entry.name)]
        self._way.append(_Level(os.fstat(self._here), names))

    def _leave(self) -> None:
        self._way.pop()
        if self._way:
            self._go(os.open("..", tree.DIRECTORY, dir_fd=self._here))
            if not os.path.samestat(os.fstat(self._here), self._way[-1].stat):
                raise OSError(errno.EBUSY, "a directory was moved while its volume was given to a group; try again")

    def _inner(self, name: str) -> int | None:
        try:
            return tree.subdirectory(name, self._here)
        except OSError as error:
            if error.errno not in _PASSED:
                raise
            return None

    def _entry(self, name: str) -> bool:
        """Whether it is a directory, which gets the group when it is walked; all else gets it here."""
        with suppress(FileNotFoundError):  # its owner was faster
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._here)
            try:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    return True
                if status.st_dev == self._device:
                    self._file(f"/proc/self/fd/{fd}", status.st_mode)
            finally:
                os.close(fd)
        return False

    def _file(self, handle: str, mode: int) -> None:
        """By the handle, so that no name is resolved twice; of a symlink it is the link itself."""
        os.chown(handle, -1, self._group)
        if not stat.S_ISLNK(mode):
            os.chmod(handle, stat.S_IMODE(wanted(mode)))
