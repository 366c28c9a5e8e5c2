"""Volumes that take what the image has at their place: copy-up, and :U. By descriptors of both sides."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from wherry.errors import Kind, WherryError

from . import rootfs
from . import volumes as verbs
from .house import House
from .mounts import Resolved
from .users import User

__all__ = ["copy_up", "own"]

_DEPTH = 200  # levels: each holds two descriptors open
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def copy_up(house: House, cid: str, volumes: Sequence[Resolved]) -> None:
    """Fill the empty volumes from the image's directories at their targets."""
    from wherry.kernel import files

    with rootfs.at_rest(house, cid) as root:
        for mount in volumes:
            try:
                source = files.open_in_root(root, mount.target, _DIR)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                row = house.db.volume(mount.name)
                if row is not None:
                    verbs.fill(house, row, source)
            except OSError as error:
                message = f"cannot copy {mount.target} of the image into volume {mount.name}: {error.strerror}"
                raise WherryError(Kind.EXHAUSTED if error.errno == 28 else Kind.INTERNAL, message) from error
            finally:
                os.close(source)


def own(path: str, user: User, base: int = 0) -> None:
    """Give a mount's source, and all below it on the same file system, to the container's user (:U)."""
    top = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        device = os.fstat(top).st_dev
        _own(top, device, user.uid + base, user.gid + base)
    finally:
        os.close(top)


def _own(fd: int, device: int, uid: int, gid: int, depth: int = 0) -> None:
    if depth > _DEPTH:
        raise WherryError(Kind.UNSUPPORTED, f"directories nested deeper than {_DEPTH} cannot be given an owner by :U")
    found = os.fstat(fd)
    if found.st_dev != device or stat.S_ISLNK(found.st_mode):
        return
    os.chown(f"/proc/self/fd/{fd}", uid, gid)
    if not stat.S_ISDIR(found.st_mode):
        return
    readable = os.open(f"/proc/self/fd/{fd}", _DIR)
    try:
        for name in os.listdir(readable):
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=readable)
            try:
                _own(inner, device, uid, gid, depth + 1)
            finally:
                os.close(inner)
    finally:
        os.close(readable)
