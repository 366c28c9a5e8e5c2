"""Directory trees by descriptor: remove and copy. No path is resolved twice, no mount is crossed, no depth is
too much: what a tree holds was written by somebody who may be hostile and may still be at it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from typing import NamedTuple

from . import extents, kernel

__all__ = ["DIRECTORY", "copy", "names", "opened", "remove", "subdirectory", "sync"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_AT_ONCE = 4096  # so that millions of names take no memory
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # ioctl_iflags(2)
_LOCKS = 0x10 | 0x20 | 0x20000000  # FS_IMMUTABLE_FL | FS_APPEND_FL | FS_PROJINHERIT_FL


@contextmanager
def opened(name: str, dirfd: int, flags: int = DIRECTORY, mode: int = 0) -> Iterator[int]:
    """`name` below `dirfd`, without symlinks, `..` or mounts on the way, while the context lasts."""
    fd = kernel.openat2(dirfd, name, flags, mode, _INSIDE)
    try:
        yield fd
    finally:
        os.close(fd)


def subdirectory(name: str, dirfd: int) -> int:
    """A descriptor of the directory `name` in `dirfd`; a mount point: EXDEV, a symlink: ELOOP."""
    return kernel.openat2(dirfd, name, DIRECTORY, 0, _INSIDE)


def sync(dirfd: int) -> None:
    """What was made, renamed and removed in this directory is on disk."""
    os.fsync(dirfd)


def remove(name: str, dirfd: int) -> None:
    """Remove `name` of `dirfd` and all below it; gone already is success. EBUSY or EXDEV if a mount is in the way.

    Deep trees are flattened: a directory that has subdirectories gets these moved up beside it, so only two
    descriptors are open and no recursion is made, however deep it is.
    """
    if _unlinked(name, dirfd):
        return
    top = subdirectory(name, dirfd)
    try:
        _empty(top)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dirfd)


def _unlinked(name: str, dirfd: int) -> bool:
    """Whether it is gone; False: it is a directory."""
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError):
        if stat.S_ISDIR(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode):
            return False
        _unlock(name, dirfd)
        os.unlink(name, dir_fd=dirfd)
    return True


def _unlock(name: str, dirfd: int) -> None:
    """Clear what chattr(1) may have set on a file and its directory."""
    _plain(dirfd)
    with suppress(OSError), opened(name, dirfd, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
        _plain(fd)


def _plain(fd: int) -> None:
    """Neither immutable nor append-only, and no project that a rename into it would need."""
    flags = ctypes.c_int()
    with suppress(OSError):  # ENOTTY: the file system has no such flags
        kernel.ioctl(fd, _GETFLAGS, flags)
        if flags.value & _LOCKS:
            kernel.ioctl(fd, _SETFLAGS, ctypes.c_int(flags.value & ~_LOCKS))


def names(fd: int, limit: int | None = None) -> list[str]:
    """Names in a directory as it is now; at most `limit`. Rewound first: btrfs shows a descriptor only what was there
    when it was opened or rewound."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as entries:
        return [entry.name for entry in islice(entries, limit)]


def _empty(top: int) -> None:
    """Remove everything in `top`; each directory's subdirectories come up into `top` under new names."""
    _plain(top)
    fresh = map(".wherry-removing-{}".format, count())
    while found := names(top, _AT_ONCE):
        for name in found:
            if not _unlinked(name, top):
                _hoist(name, top, fresh)
                with suppress(FileNotFoundError):
                    os.rmdir(name, dir_fd=top)


def _hoist(name: str, top: int, fresh: Iterator[str]) -> None:
    """Remove the files of top/name and move its subdirectories up."""
    with opened(name, top) as fd:
        _plain(fd)
        while found := names(fd, _AT_ONCE):
            for inner in found:
                if not _unlinked(inner, fd):
                    _move_up(inner, fd, top, fresh)


def _move_up(inner: str, fd: int, top: int, fresh: Iterator[str]) -> None:
    for name in fresh:
        try:
            os.rename(inner, name, src_dir_fd=fd, dst_dir_fd=top)
            return
        except PermissionError:  # a directory that is immutable itself
            _unlock(inner, fd)
            os.rename(inner, name, src_dir_fd=fd, dst_dir_fd=top)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # the name is taken
                raise


class _Level(NamedTuple):
    """A directory on the way down."""

    names: Iterator[str]  # that are still to be copied
    stat: os.stat_result


class _Copier:
    """A walk through two trees at once. Two directories are open, however deep it is: the way up is `..`, checked."""

    def __init__(self, source: int, target: int, links: int) -> None:
        self._source, self._target, self._links = os.dup(source), os.dup(target), links
        self._way: list[_Level] = []

    def run(self) -> None:
        try:
            self._enter()
            while self._way:
                name = next(self._way[-1].names, None)
                if name is None:
                    self._leave()
                else:
                    with suppress(FileNotFoundError):  # removed meanwhile: a live tree
                        self._entry(name)
        finally:
            os.close(self._source)
            os.close(self._target)

    def _enter(self) -> None:
        self._way.append(_Level(iter(names(self._source)), os.fstat(self._source)))

    def _leave(self) -> None:
        _dress(self._source, self._target, self._way.pop().stat)
        if self._way:
            self._go("..", "..")
            if not os.path.samestat(os.fstat(self._source), self._way[-1].stat):
                raise OSError(errno.EBUSY, "a directory was moved while its volume was copied; try again")

    def _go(self, source: str, target: str) -> None:
        there = os.open(source, DIRECTORY, dir_fd=self._source)
        os.close(self._source)
        self._source = there
        there = os.open(target, DIRECTORY, dir_fd=self._target)
        os.close(self._target)
        self._target = there

    def _entry(self, name: str) -> None:
        found = os.stat(name, dir_fd=self._source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            if found.st_dev != self._way[-1].stat.st_dev:
                raise OSError(errno.EXDEV, "a file system is mounted inside the tree that is copied", name)
            os.mkdir(name, 0o700, dir_fd=self._target)
            self._go(name, name)
            self._enter()
        elif not self._linked(name, found):
            self._made(name, found)
            if found.st_nlink > 1:
                os.link(name, str(found.st_ino), src_dir_fd=self._target, dst_dir_fd=self._links, follow_symlinks=False)

    def _linked(self, name: str, found: os.stat_result) -> bool:
        """Whether it is another name of a file that was copied before."""
        if found.st_nlink == 1:
            return False
        try:
            os.link(str(found.st_ino), name, src_dir_fd=self._links, dst_dir_fd=self._target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _made(self, name: str, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):
            self._file(name)
            return
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source), name, dir_fd=self._target)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=self._target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=self._target, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=self._target)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=self._target, follow_symlinks=False)

    def _file(self, name: str) -> None:
        with (
            opened(name, self._source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as source,
            opened(name, self._target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as target,
        ):
            found = os.fstat(source)
            if stat.S_ISREG(found.st_mode):
                extents.share(source, target)
                _dress(source, target, found)


def _dress(source: int, target: int, found: os.stat_result) -> None:
    """Owner, extended attributes (ACLs, capabilities), mode and times; in an order that loses none of them."""
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy(source: int, target: int, links: int) -> None:
    """Copy the tree of directory `source` into the empty directory `target`, hard links, owners, ACLs and times too.

    Each file is cloned, or its data copied. `links`: an empty directory on the same file system to note hard links
    in. The source may change meanwhile: what is removed is left out. Nothing is synced.
    """
    _Copier(source, target, links).run()
