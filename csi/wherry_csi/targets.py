"""Where a volume is on this node, read from the kernel: its staging mount, and the targets that it is published on.

There are no state files of the node to be lost or to lie. A volume is known by what it is mounted from: an image by its
loop device, a directory by its place in the pool's file system, a block volume by the device that was bound. Decides
what is ours; mounts and unmounts nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import loop, mounts
from .backend import Shape
from .errors import CsiError
from .mounts import Mount
from .pools import TOP, Pool
from .records import RECORD, Volume

__all__ = ["Places", "apart", "blind", "blind_devices", "devices", "find", "is_readonly", "real", "stack"]

_LOOP = re.compile(r".*/loop(\d+)")
_DEV = ("devtmpfs", "tmpfs")  # what a /dev is


class Places(NamedTuple):
    """The mounts of one volume, the table in the kernel's order."""

    found: list[Mount]

    def at(self, path: str) -> Mount | None:
        """The volume's topmost mount on a path as `real` gives it."""
        return next((mount for mount in reversed(self.found) if mount.target == path), None)

    def beside(self, *paths: str) -> list[str]:
        """Other paths that it is mounted on.

        Where the directory that holds a path is mounted a second time, and propagates, what is mounted on it is there
        twice: a copy is no other path.
        """
        others = [mount for mount in self.found if mount.target not in paths]
        if not others or len(others) == len(self.found):
            return sorted({mount.target for mount in others})
        spots = mounts.spots(self.found)
        here = {spots[mount.id] for mount in self.found if mount.target in paths}
        return sorted({mount.target for mount in others if spots[mount.id] not in here})


def real(path: str) -> str:
    """The path as the mount table writes it; its last component is not followed."""
    head, tail = os.path.split(path)
    return os.path.join(os.path.realpath(head), tail)


def apart(path: str, pools: Iterable[Pool]) -> None:
    """Refuse a path at which a mount would cover what a pool keeps: in its directory of ours, or above that."""
    there = real(path) + "/"
    for pool in pools:
        home = os.path.join(os.path.realpath(pool.config.path), TOP) + "/"
        if there.startswith(home) or home.startswith(there):
            raise CsiError("INVALID_ARGUMENT", f"{path[:200]} would cover what pool {pool.name} keeps: choose another")


def find(pool: Pool, volume: Volume, home: int) -> Places:
    """All mounts of a volume in this mount namespace."""
    if volume.shape.access == "block":
        return Places(_of_block(home))
    if (device := pool.backend(volume).device(home, volume.shape)) is not None:
        return Places(mounts.of_device(f"{device[0]}:{device[1]}"))
    return Places(_of_directory(home, volume.shape) if volume.backend == "directory" else [])


def devices(home: int) -> list[tuple[int, int]]:
    """major, minor of the loop devices of images in the home: one, and another for read-only block publishes.

    By device and inode: paths of their files are those of the mount namespace that attached them.
    """
    found: set[int] = set()
    for name in os.listdir(home):
        if not name.startswith(RECORD):
            found |= _attached(home, name)
    return [(loop.MAJOR, number) for number in sorted(found)]


def _attached(home: int, name: str) -> set[int]:
    """Numbers of the loop devices of a file, if it is one."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=home)
    try:
        return {device.number for device in loop.find(fd)} if stat.S_ISREG(os.fstat(fd).st_mode) else set()
    finally:
        os.close(fd)


def blind(ident: str) -> Places:
    """`find` without a home: of a volume whose pool is dead or gone, known by its id in the path of what is mounted."""
    part = f"/{TOP}/volumes/{ident}/"
    return Places([mount for mount in mounts.table() if any(part in path for path in _origins(mount))])


def blind_devices(ident: str) -> list[loop.Device]:
    """`devices` without a home."""
    part = f"/{TOP}/volumes/{ident}/"
    numbers = [int(name[4:]) for name in os.listdir("/sys/block") if _LOOP.fullmatch("/" + name)]
    return [loop.Device(number, False) for number in sorted(numbers) if part in _backing(number)]


def stack(target: str) -> list[Mount]:
    """The mounts on a path as `real` gives it, bottom to top; asks nothing of what is mounted, which may be dead."""
    return [mount for mount in mounts.table() if mount.target == target]


def _origins(mount: Mount) -> Iterator[str]:
    """Paths that a mount may come from: in its file system, and the image of the device that it is of or is."""
    yield mount.root + "/"
    if found := _LOOP.fullmatch(mount.source):
        yield _backing(int(found[1]))
    if (number := _bound(mount)) is not None:
        yield _backing(number)


def _bound(mount: Mount) -> int | None:
    """The number of the loop device whose node is mounted; None if something else is."""
    found = _LOOP.fullmatch(mount.root)
    if not found or mount.fs not in _DEV:
        return None
    return None if os.path.isdir(mount.target) else int(found[1])


def _of_directory(home: int, _shape: Shape) -> list[Mount]:
    """Mounts of what lies in the home."""
    if (under := mounts.containing(home)) is None:
        return []
    inside = os.path.relpath(mounts.real_path(home), under.target)
    root = os.path.normpath(os.path.join(under.root, inside)) + "/"
    return [mount for mount in mounts.of_device(under.device) if mount.root.startswith(root)]


def _of_block(home: int) -> list[Mount]:
    """Files on which a loop device of an image in the home is bound; writable and read-only ones are two devices."""
    if not (mine := {number for _, number in devices(home)}):
        return []
    return [mount for mount in mounts.table() if _bound(mount) in mine]


def _backing(number: int) -> str:
    """The file of an attached loop device, as who attached it called it; "" if it has none."""
    try:
        with open(f"/sys/block/loop{number}/loop/backing_file", "rb") as file:
            return os.fsdecode(file.read()).rstrip("\n")
    except OSError:
        return ""


def is_readonly(mount: Mount) -> bool:
    """Whether nothing can be written through this mount; a bound device by the device, which mounts do not protect."""
    if (number := _bound(mount)) is None:
        return "ro" in mount.options
    with open(f"/sys/block/loop{number}/ro", encoding="ascii") as file:
        return file.read().strip() == "1"
