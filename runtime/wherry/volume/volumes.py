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
from wherry.volume.copying import DEPTH, copy_directory

__all__ = ["Volumes"]

_ID = r"^[a-z0-9-]{1,64}$"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def create(self, source: int = -1) -> str:
        """Make a volume, empty or with the content of the directory `source`, whole; returns its minted id."""
        vid = os.urandom(16).hex()
        try:
            self._create(vid)
            if source >= 0:
                with self.data(vid) as target:
                    copy_directory(source, target, nodes=True)
        except BaseException:
            self.remove(vid)
            raise
        return vid

    def _create(self, vid: str) -> None:
        with self._open_pool() as pool:
            os.mkdir(vid, 0o700, dir_fd=pool)
            outer = os.open(vid, _DIR, dir_fd=pool)
            try:
                os.mkdir("_data", 0o755, dir_fd=outer)
                os.chmod("_data", 0o755, dir_fd=outer)  # noqa: S103  # as docker, whatever the umask is
            finally:
                os.close(outer)

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


def _checked(vid: str) -> str:
    if not re.match(_ID, vid):
        raise WherryError(Kind.INVALID, f"{vid!r} is no volume id")
    return vid


def _sizes(fd: int, seen: set[tuple[int, int]], depth: int = 0) -> Iterator[int]:
    """What lies deeper than DEPTH is not counted: a container's nesting must not break the host's `system df`."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield found.st_blocks * 512
        if stat.S_ISDIR(found.st_mode) and depth < DEPTH:
            inner = os.open(name, _DIR, dir_fd=fd)
            try:
                yield from _sizes(inner, seen, depth + 1)
            finally:
                os.close(inner)


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
