"""The directories of local volumes. Decides where their bytes lie and how they are filled, measured and deleted.

Knows no names and no users: the engine's database does. Ids are minted here, every operation starts from the pool's
descriptor, and deletion walks by descriptor and never crosses a mount (invariant 12).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from wherry.errors import Kind, WherryError

__all__ = ["Volumes", "copy_directory"]

_ID = r"^[a-z0-9-]{1,64}$"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_DEPTH = 200  # levels of a tree that is copied or measured: each holds up to two descriptors open


class Volumes:
    """The pool ROOT/volumes, one directory `<id>/_data` a volume."""

    def __init__(self, root: str) -> None:
        self._pool = f"{root}/volumes"

    @contextmanager
    def _open_pool(self) -> Iterator[int]:
        try:
            pool = os.open(self._pool, _DIR)
        except FileNotFoundError:
            os.makedirs(self._pool, 0o700, exist_ok=True)
            pool = os.open(self._pool, _DIR)
        try:
            yield pool
        finally:
            os.close(pool)

    def create(self) -> str:
        """Make an empty volume; returns its minted id."""
        vid = os.urandom(16).hex()
        with self._open_pool() as pool:
            os.mkdir(vid, 0o700, dir_fd=pool)
            outer = os.open(vid, _DIR, dir_fd=pool)
            try:
                os.mkdir("_data", 0o755, dir_fd=outer)
                os.chmod("_data", 0o755, dir_fd=outer)  # noqa: S103  # as docker, whatever the umask is
            finally:
                os.close(outer)
        return vid

    def path(self, vid: str) -> str:
        """Return the path of a volume's data, for a mount."""
        return f"{self._pool}/{_checked(vid)}/_data"

    def exists(self, vid: str) -> bool:
        """Tell whether the volume's directory is there."""
        return os.path.isdir(self.path(vid))

    def ids(self) -> list[str]:
        """Return the ids of all directories of the pool."""
        try:
            return sorted(name for name in os.listdir(self._pool) if re.match(_ID, name))
        except FileNotFoundError:
            return []

    @contextmanager
    def data(self, vid: str) -> Iterator[int]:
        """Open a volume's data directory, beneath the pool."""
        with self._open_pool() as pool:
            outer = os.open(_checked(vid), _DIR, dir_fd=pool)
            try:
                inner = os.open("_data", _DIR, dir_fd=outer)
            finally:
                os.close(outer)
        try:
            yield inner
        finally:
            os.close(inner)

    def empty(self, vid: str) -> bool:
        """Tell whether nothing lies in the volume."""
        with self.data(vid) as fd, os.scandir(fd) as entries:
            return next(entries, None) is None

    def remove(self, vid: str) -> None:
        """Delete a volume's bytes. Gone already is success; a mount below it stops the walk."""
        from wherry.kernel import files

        with self._open_pool() as pool:
            files.remove_tree(_checked(vid), pool)

    def usage(self, vid: str) -> int:
        """Return the bytes on disk; hard links count once."""
        seen: set[tuple[int, int]] = set()
        try:
            with self.data(vid) as fd:
                return sum(_sizes(fd, seen))
        except FileNotFoundError:
            return 0

    def copy_up(self, vid: str, source: int) -> None:
        """Fill the empty volume with the content of the directory `source`, owner, mode, times and xattrs included."""
        with self.data(vid) as target:
            _copy_directory(source, target)

    def own(self, vid: str, uid: int, gid: int) -> None:
        """Give the volume's data directory to an owner (`:U` of an empty volume)."""
        with self.data(vid) as fd:
            os.fchown(fd, uid, gid)


def copy_directory(source: int, target: int) -> None:
    """Copy the content of a directory into another, owner, mode, times and xattrs included; by descriptors."""
    _copy_directory(source, target)


def _checked(vid: str) -> str:
    if not re.match(_ID, vid):
        raise WherryError(Kind.INVALID, f"{vid!r} is no volume id")
    return vid


def _sizes(fd: int, seen: set[tuple[int, int]], depth: int = 0) -> Iterator[int]:
    """What lies deeper than _DEPTH is not counted: a container's nesting must not break the host's `system df`."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield found.st_blocks * 512
        if stat.S_ISDIR(found.st_mode) and depth < _DEPTH:
            inner = os.open(name, _DIR, dir_fd=fd)
            try:
                yield from _sizes(inner, seen, depth + 1)
            finally:
                os.close(inner)


def _copy_directory(source: int, target: int, depth: int = 0) -> None:
    """Copy entry by entry by descriptor; nothing is resolved as a path."""
    if depth > _DEPTH:
        raise WherryError(Kind.UNSUPPORTED, f"directories nested deeper than {_DEPTH} cannot be copied into a volume")
    with os.scandir(source) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        _copy_entry(source, target, name, depth)
    _copy_meta(source, target)


def _copy_entry(source: int, target: int, name: str, depth: int) -> None:
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=target)
        one, two = os.open(name, _DIR, dir_fd=source), os.open(name, _DIR, dir_fd=target)
        try:
            _copy_directory(one, two, depth + 1)
        finally:
            os.close(one)
            os.close(two)
    elif kind == stat.S_IFREG:
        _copy_file(source, target, name, found)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    elif kind == stat.S_IFIFO:
        os.mkfifo(name, 0o600, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    # Device nodes and sockets of an image have no place in a volume (mounted nodev).


def _copy_file(source: int, target: int, name: str, found: os.stat_result) -> None:
    one = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        two = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_data(one, two, found.st_size)
            _copy_meta(one, two)
        finally:
            os.close(two)
    finally:
        os.close(one)


def _copy_data(source: int, target: int, size: int) -> None:
    """The pieces that hold data: a sparse file of an image may claim more than any disk has."""
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != 6:  # ENXIO: nothing but a hole is left
                raise
            break
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            if not (sent := os.sendfile(target, source, at, min(end - at, _CHUNK))):
                return  # it was cut off meanwhile
            at += sent
    os.ftruncate(target, size)


def _copy_meta(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in (95, 1, 22):  # EOPNOTSUPP, EPERM, EINVAL: the target cannot hold it
                    raise
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def lock_pool(root: str, exclusive: bool) -> int:
    """Lock ROOT/volumes against a sweep (shared) or for one (exclusive, BlockingIOError if busy); close to unlock."""
    os.makedirs(f"{root}/volumes", 0o700, exist_ok=True)
    fd = os.open(f"{root}/volumes", _DIR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return fd
