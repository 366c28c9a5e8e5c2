"""Files by descriptor: open beneath a directory, write atomically, remove trees without ever crossing a mount.

Decides how a path that came from outside becomes a handle (invariant 1). Refuses to know what the files mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wherry.errors import Kind, WherryError

__all__ = [
    "atomic_write", "directory", "flock", "lock_fd", "open_beneath", "open_in_root", "open_regular", "read_capped",
    "read_small", "remove_tree", "sync_dir",
]


# linux/openat2.h
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 1 << 13
_CHUNK = 1 << 16  # bytes of one read: a larger buffer would be mapped and unmapped
_DEPTH_MAX = 48  # levels of a tree held open at once while it is removed
_TRIES = 4  # to remove a directory in which somebody makes a file meanwhile


def open_beneath(root: int, path: str, flags: int = os.O_RDONLY, mode: int = 0, *, cross: bool = False) -> int:
    """Open `path` below the directory `root`; any symbolic link, any ".." that leads out of it and, unless to `cross`,
    any mount is an error."""
    stay = 0 if cross else _NO_XDEV
    return _openat2(root, path, flags, mode, _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS | stay)


def open_in_root(root: int, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open `path` as a process would whose root directory is `root`: links resolve, none leads out."""
    return _openat2(root, path, flags, mode, _IN_ROOT | _NO_MAGICLINKS)


def open_regular(root: int, path: str, flags: int = os.O_RDONLY, *, follow: bool = True) -> int:
    """Open a regular file below `root` (`follow`: as `open_in_root`); anything else is OSError EINVAL.

    What it is is looked at before it is opened: to open a device node that a container made can be an act of its own
    (a watchdog, a tape), and here no device rules of a cgroup stop it.
    """
    handle = _openat2(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW), 0, _IN_ROOT | _NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{handle}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _openat2(root: int, path: str, flags: int, mode: int, resolve: int) -> int:
    from wherry.kernel import shim

    return shim.openat2(root, path, flags | os.O_CLOEXEC, mode, resolve)


@contextmanager
def directory(path: str, dir_fd: int | None = None) -> Iterator[int]:
    """A directory's descriptor for a with statement; a symbolic link is an error."""
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def read_capped(path: str | int, limit: int) -> bytes:
    """The whole of a file (a path or a descriptor that stays open); one larger than `limit` bytes is an error."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if isinstance(path, str) else path
    try:
        parts, left = [], limit + 1
        while left and (part := os.read(fd, min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
    finally:
        if isinstance(path, str):
            os.close(fd)
    if not left:
        raise WherryError(Kind.INVALID, f"{path} is larger than {limit} bytes")
    return b"".join(parts)


def read_small(path: str, limit: int) -> bytes:
    """`read_capped` by one read where that is enough, for what comes whole: a regular file, one value of the kernel."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _SMALL)
    finally:
        os.close(fd)
    return data if len(data) < min(_SMALL, limit) else read_capped(path, limit)


def atomic_write(path: str, data: bytes, mode: int = 0o644, *, sync: bool = False) -> None:
    """Replace `path`: readers see the old content or the new. `sync` makes it last through a power cut."""
    folder, name = os.path.split(path)
    with directory(folder or ".") as parent:
        temporary = f".{name}.{os.getpid():x}.{time.monotonic_ns():x}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=parent)
        try:
            try:
                os.fchmod(fd, mode)
                _write_all(fd, data)
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise
        if sync:
            os.fsync(parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def sync_dir(path: str) -> None:
    """Make the names in a directory last."""
    with directory(path) as fd:
        os.fsync(fd)


@contextmanager
def flock(path: str, timeout: float, *, shared: bool = False, create: bool = True) -> Iterator[int]:
    """Hold a lock file (made 0600, unless not to `create` it); CONFLICT after `timeout` seconds."""
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        lock_fd(fd, timeout, path, shared=shared)
        yield fd
    finally:
        os.close(fd)


def lock_fd(fd: int, timeout: float, what: str, *, shared: bool = False) -> None:
    """flock(2) with a deadline; CONFLICT naming `what`."""
    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise WherryError(Kind.CONFLICT, f"{what} is busy",
                                  hint="another wherry command holds it; try again") from None
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def remove_tree(path: str, dir_fd: int | None = None) -> None:
    """Remove a file or a whole tree; absent is fine. Symbolic links are removed, not followed.

    A mount point inside stops it with CONFLICT: what is mounted there is not ours to delete. Works by descriptors held
    open level by level; what lies deeper than some levels is first moved up, so depth costs no descriptors.
    """
    try:
        try:
            os.unlink(path, dir_fd=dir_fd)
        except (IsADirectoryError, PermissionError):  # EISDIR on Linux; EPERM by POSIX and for immutable files
            _remove_root(path, dir_fd)
    except FileNotFoundError:
        return


def _remove_root(path: str, dir_fd: int | None) -> None:
    for left in reversed(range(_TRIES)):
        with directory(path, dir_fd) as top:
            remover = _Remover(top, path)
            remover.empty(top, 0)
            while remover.moved:
                remover.child(top, remover.moved.pop(), 0)
        try:
            return os.rmdir(path, dir_fd=dir_fd)
        except OSError as error:  # somebody has put something in meanwhile: a lock, of one who waits for another's
            if error.errno != errno.ENOTEMPTY or not left:
                raise
    return None


class _Remover:
    def __init__(self, top: int, path: str) -> None:
        self.top, self.path = top, path
        self.moved: list[str] = []
        self._count = 0

    def empty(self, fd: int, depth: int) -> None:
        """Remove all that is in a directory."""
        for name in os.listdir(fd):
            try:
                os.unlink(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except (IsADirectoryError, PermissionError):
                if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    raise
                if depth < _DEPTH_MAX:
                    self.child(fd, name, depth + 1)
                else:
                    self._move_up(fd, name)

    def child(self, fd: int, name: str, depth: int) -> None:
        """Remove a directory that lies in another one."""
        try:
            child = _openat2(fd, name, _DIRECTORY, 0, _BENEATH | _NO_SYMLINKS | _NO_XDEV)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refuse(name, error) from error
        try:
            self.empty(child, depth)
        finally:
            os.close(child)
        try:
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refuse(name, error) from error

    def _move_up(self, fd: int, name: str) -> None:
        self._count += 1
        moved = f".wherry-removed-{os.getpid():x}-{self._count:x}"
        os.rename(name, moved, src_dir_fd=fd, dst_dir_fd=self.top)
        self.moved.append(moved)

    def _refuse(self, name: str, error: OSError) -> WherryError:
        return WherryError(Kind.CONFLICT, f"cannot remove {self.path}: {name!r} in it: {error.strerror}",
                           hint="something is mounted there, or it is in use" if error.errno in (16, 18) else "")
