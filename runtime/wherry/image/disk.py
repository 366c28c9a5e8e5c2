"""How files of the store become visible, stay, and go: durable writes, claims by flock, removal by descriptor.

Decides the order of write, fsync and rename (docs/state.md). Refuses to know what the files mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from wherry.errors import Kind, WherryError

__all__ = [
    "Walker",
    "claim",
    "dump_json",
    "fresh_name",
    "fsync_dir",
    "load_json",
    "locked",
    "make_private",
    "mount_id",
    "os_failure",
    "try_lock",
    "write_atomic",
]

_JSON_MAX = 64 << 20
_POLL = 0.02

_KINDS = {
    errno.ENOSPC: (Kind.EXHAUSTED, "free space on this file system, or remove images with `wherry rmi`"),
    errno.EDQUOT: (Kind.EXHAUSTED, "the quota of this file system is used up"),
    errno.EMFILE: (Kind.EXHAUSTED, "raise the limit of open files (ulimit -n)"),
    errno.EACCES: (Kind.DENIED, "run as root, or choose another place with --root"),
    errno.EPERM: (Kind.DENIED, "run as root, or choose another place with --root"),
    errno.EROFS: (Kind.PRECONDITION, "choose a writable place with --root"),
    errno.ENOENT: (Kind.NOT_FOUND, ""),
    errno.ENOTDIR: (Kind.NOT_FOUND, ""),
}


def os_failure(what: str, error: OSError) -> WherryError:
    """An OSError in the store's words."""
    kind, hint = _KINDS.get(error.errno or 0, (Kind.INTERNAL, ""))
    return WherryError(kind, f"{what}: {error.strerror or error}", hint=hint)


def fresh_name(prefix: str) -> str:
    """A name that no other process or thread uses."""
    return f"{prefix}{os.urandom(8).hex()}"


def make_private(path: str) -> None:
    """A directory of ours: 0700 from its first moment (invariant 10)."""
    if not os.path.isdir(path):  # os.makedirs would give only the last one this mode
        make_private(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def fsync_dir(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str, data: bytes, mode: int = 0o600, *, scratch: str = "") -> None:
    """`path` holds either its old content or all of `data`, also after a power cut. `scratch`: where to write it first,
    beside `path` without."""
    temporary = os.path.join(scratch, fresh_name(".tmp-")) if scratch else f"{path}.{fresh_name('tmp-')}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_dir(os.path.dirname(path))


def dump_json(path: str, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def load_json(path: str, limit: int = _JSON_MAX) -> Any:
    """A JSON file of at most `limit` bytes; FileNotFoundError passes through."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WherryError(Kind.INVALID, f"{path} is larger than {limit} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WherryError(Kind.INVALID, f"{path} is not JSON: {error}") from None


@contextlib.contextmanager
def locked(path: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`; it is never removed. Threads exclude each other as processes do."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(path: str) -> int:
    """A descriptor that holds `path` (file or directory) alone, or -1 while another holds it or when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _open_claim(path: str, deadline: float, stop: threading.Event | None) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):  # not renamed or removed by the one that held it before
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise WherryError(Kind.UNAVAILABLE, f"{path} is held by another process for too long") from None
            if stop and stop.is_set():
                os.close(fd)
                raise WherryError(Kind.CONFLICT, "cancelled") from None
            time.sleep(_POLL)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextlib.contextmanager
def claim(path: str, *, unlink: bool, timeout: float = 3600.0, stop: threading.Event | None = None) -> Iterator[int]:
    """Create or open `path`, hold it alone, and know that it is still the file of that name.

    With `unlink` the name goes when the claim ends (the file is only a lock); a crash leaves it for gc. `stop` ends the
    waiting.
    """
    fd = _open_claim(path, time.monotonic() + timeout, stop)
    try:
        yield fd
    finally:
        if unlink and _is_at(fd, path):
            os.unlink(path)
        os.close(fd)


def mount_id(fd: int) -> int:
    """The mount that a descriptor lives on: st_dev cannot tell a bind mount of the same file system."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise WherryError(Kind.UNSUPPORTED, "this kernel does not tell mnt_id in /proc/self/fdinfo")


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Walker:
    """Goes down and up a tree that someone else may have made as deep as they liked, with one descriptor open.

    The way up is "..", believed only when it is the directory that we came from.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._mount = mount_id(fd)
        self._trail: list[tuple[int, int]] = []

    def down(self, name: str, *, quiet: bool = False) -> bool:
        """Enter `name`; False when it is gone or no directory any more. A mount: CONFLICT, or False if `quiet`."""
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if mount_id(fd) != self._mount:
            os.close(fd)
            if quiet:
                return False
            raise WherryError(Kind.CONFLICT, f"{name} is a mount point: it is left alone", hint=f"umount {name}")
        here = os.fstat(self.fd)
        self._trail.append((here.st_dev, here.st_ino))
        self._replace(fd)
        return True

    def up(self) -> None:
        """Back to the directory that `down` came from."""
        fd = os.open("..", _DIRECTORY, dir_fd=self.fd)
        there = os.fstat(fd)
        if (there.st_dev, there.st_ino) != self._trail.pop():
            os.close(fd)
            raise WherryError(Kind.CONFLICT, "a directory was moved while it was being walked")
        self._replace(fd)

    def close(self) -> None:
        os.close(self.fd)

    def _replace(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd
