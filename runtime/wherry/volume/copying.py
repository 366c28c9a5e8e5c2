"""Copies of directory trees, entry by entry by descriptor: an image's content into a volume, a volume into another.

Decides what is kept (owner, mode, times, xattrs, hard links, holes) and that blocks are shared (FICLONE) where the file
system can. Resolves nothing as a path: either side may belong to a running container.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

from wherry.errors import Kind, WherryError

__all__ = ["DEPTH", "copy_directory"]

DEPTH = 200  # levels of a tree that is copied or measured: each holds up to two descriptors open
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY)
_NO_XATTR = (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL)


def copy_directory(source: int, target: int, *, nodes: bool = False) -> None:
    """Copy the content of a directory into another, and the directory's own owner, mode, times and xattrs. What is
    mounted in it stays out, as do the target and what lies in it: of these come empty directories.

    `nodes`: device nodes and sockets too; those of an image have no place in a volume, which is mounted nodev.
    """
    _Copy(target, nodes=nodes).directory(source, target, ())


class _Copy:
    def __init__(self, top: int, *, nodes: bool) -> None:
        self._top, self._own = top, os.fstat(top)
        self._links: dict[tuple[int, int], str] = {}  # files with several names, and the first that was made here
        self._clones = True
        self._makers: dict[int, Callable[[int, int, str, os.stat_result], None]] = {
            stat.S_IFREG: self._file,
            stat.S_IFLNK: _symlink,
            stat.S_IFIFO: _node,
            **(dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK), _node) if nodes else {}),
        }

    def directory(self, source: int, target: int, parts: tuple[str, ...]) -> None:
        """One level and all below it."""
        if len(parts) > DEPTH:
            raise WherryError(Kind.UNSUPPORTED, f"directories nested deeper than {DEPTH} cannot be copied")
        for name in os.listdir(source):
            try:
                self._entry(source, target, (*parts, name))
            except FileNotFoundError:  # a container that runs has removed it meanwhile
                continue
        _meta(source, target)

    def _entry(self, source: int, target: int, parts: tuple[str, ...]) -> None:
        name = parts[-1]
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            self._below(source, target, parts)
        elif kind in self._makers and not self._linked(target, parts, found):
            self._makers[kind](source, target, name, found)

    def _below(self, source: int, target: int, parts: tuple[str, ...]) -> None:
        one, mine = self._opened(source, parts[-1])
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=target)
            two = os.open(parts[-1], _DIR, dir_fd=target)
            try:
                if mine:
                    self.directory(one, two, parts)
                else:
                    _meta(one, two)
            finally:
                os.close(two)
        finally:
            os.close(one)

    def _opened(self, source: int, name: str) -> tuple[int, bool]:
        """A directory, and whether what lies in it is copied."""
        from wherry.kernel import files

        try:
            fd = files.open_beneath(source, name, _DIR)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return os.open(name, _DIR, dir_fd=source), False
        return fd, not os.path.samestat(os.fstat(fd), self._own)

    def _linked(self, target: int, parts: tuple[str, ...], found: os.stat_result) -> bool:
        """Whether it is one more name of a file that was copied, and so was made."""
        if found.st_nlink == 1:
            return False
        first = self._links.setdefault((found.st_dev, found.st_ino), "/".join(parts))
        if first == "/".join(parts):
            return False
        from wherry.kernel import files

        handle = files.open_beneath(self._top, first, os.O_PATH | os.O_NOFOLLOW)
        try:
            os.link(f"/proc/self/fd/{handle}", parts[-1], dst_dir_fd=target, follow_symlinks=True)
        finally:
            os.close(handle)
        return True

    def _file(self, source: int, target: int, name: str, found: os.stat_result) -> None:
        from wherry.kernel import files

        one = files.open_regular(source, name, follow=False)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            two = os.open(name, flags, 0o600, dir_fd=target)
            try:
                if not self._cloned(one, two):
                    _data(one, two, found.st_size)
                _meta(one, two)
            finally:
                os.close(two)
        finally:
            os.close(one)

    def _cloned(self, one: int, two: int) -> bool:
        try:
            if self._clones:
                fcntl.ioctl(two, _FICLONE, one)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._clones = False
        return self._clones


def _symlink(source: int, target: int, name: str, found: os.stat_result) -> None:
    os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _node(source: int, target: int, name: str, found: os.stat_result) -> None:
    del source
    os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _data(source: int, target: int, size: int) -> None:
    """The pieces that hold data: a sparse file of an image may claim more than any disk has."""
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole is left
                raise
            break
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            if not (sent := os.sendfile(target, source, at, min(end - at, _CHUNK))):
                return  # it was cut off meanwhile
            at += sent
    os.ftruncate(target, size)


def _meta(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in _NO_XATTR:  # the target cannot hold it
                    raise
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
