"""Directory trees by descriptor: remove, sync and count. No path is resolved twice, no mount is crossed, no depth is
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

from . import kernel

__all__ = ["DIRECTORY", "opened", "remove", "subdirectory", "sync"]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
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


def _some(fd: int) -> list[str]:
    """Names in a directory, so many at a time that millions take no memory."""
    with os.scandir(fd) as entries:
        return [entry.name for entry in islice(entries, 4096)]


def _empty(top: int) -> None:
    """Remove everything in `top`; each directory's subdirectories come up into `top` under new names."""
    _plain(top)
    fresh = map(".wherry-removing-{}".format, count())
    while names := _some(top):
        for name in names:
            if not _unlinked(name, top):
                _hoist(name, top, fresh)
                with suppress(FileNotFoundError):
                    os.rmdir(name, dir_fd=top)


def _hoist(name: str, top: int, fresh: Iterator[str]) -> None:
    """Remove the files of top/name and move its subdirectories up."""
    with opened(name, top) as fd:
        _plain(fd)
        while names := _some(fd):
            for inner in names:
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
