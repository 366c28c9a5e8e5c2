"""Where a volume is on this node, read from the kernel: its staging mount, and the targets that it is published on.

There are no state files of the node to be lost or to lie. A volume is known by what it is mounted from: an image by its
loop device, a directory by its place in the pool's file system, a block volume by the device that was bound. Decides
what is ours; mounts and unmounts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from . import loop, mounts
from .backend import Shape
from .mounts import Mount
from .pools import TOP, Pool
from .records import Volume

__all__ = ["Places", "blind", "blind_devices", "devices", "find", "is_readonly", "real", "stack"]


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


def find(pool: Pool, volume: Volume, home: int) -> Places:
    """All mounts of a volume in this mount namespace."""
    if volume.shape.access == "block":
        return Places(_of_block(home))
    if (device := pool.backend(volume).device(home, volume.shape)) is not None:
        return Places(mounts.of_device(f"{device[0]}:{device[1]}"))
    return Places(_of_directory(home, volume.shape) if volume.backend == "directory" else [])


def devices(home: int) -> list[tuple[int, int]]:
    """major, minor of the loop devices of images in the home: one, and another for read-only block publishes."""
    prefix = mounts.real_path(home) + "/"
    names = [name for name in os.listdir("/sys/block") if name.startswith("loop") and _backing(name).startswith(prefix)]
    return [(loop.MAJOR, int(name.removeprefix("loop"))) for name in sorted(names)]


def blind(ident: str) -> Places:
    """`find` without a home: of a volume whose pool is dead or gone, known by its id in the path of what is mounted."""
    part = f"/{TOP}/volumes/{ident}/"
    return Places([mount for mount in mounts.table() if any(part in path for path in _origins(mount))])


def blind_devices(ident: str) -> list[loop.Device]:
    """`devices` without a home."""
    part = f"/{TOP}/volumes/{ident}/"
    names = [name for name in os.listdir("/sys/block") if name.startswith("loop") and part in _backing(name)]
    return [loop.Device(int(name.removeprefix("loop")), False) for name in sorted(names)]


def stack(target: str) -> list[Mount]:
    """The mounts on a path as `real` gives it, bottom to top; asks nothing of what is mounted, which may be dead."""
    return [mount for mount in mounts.table() if mount.target == target]


def _origins(mount: Mount) -> Iterator[str]:
    """Paths that a mount may come from: in its file system, and the image of the device that it is of or is."""
    yield mount.root + "/"
    for path in (mount.source, mount.root):
        if (name := os.path.basename(path)).startswith("loop"):
            yield _backing(name)


def _of_directory(home: int, _shape: Shape) -> list[Mount]:
    """Mounts of what lies in the home."""
    if (under := mounts.containing(home)) is None:
        return []
    inside = os.path.relpath(mounts.real_path(home), under.target)
    root = os.path.normpath(os.path.join(under.root, inside)) + "/"
    return [mount for mount in mounts.of_device(under.device) if mount.root.startswith(root)]


def _of_block(home: int) -> list[Mount]:
    """Files on which a loop device of an image in the home is bound; writable and read-only ones are two devices."""
    prefix = mounts.real_path(home) + "/"
    bound = [mount for mount in mounts.table() if os.path.basename(mount.root).startswith("loop")]
    mine = {name for name in {os.path.basename(mount.root) for mount in bound} if _backing(name).startswith(prefix)}
    return [mount for mount in bound if os.path.basename(mount.root) in mine]


def _backing(name: str) -> str:
    """The file of an attached loop device; "" if it has none or is no loop device."""
    try:
        with open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
            return os.fsdecode(file.read()).rstrip("\n")
    except OSError:
        return ""


def is_readonly(mount: Mount) -> bool:
    """Whether nothing can be written through this mount; a bound device by the device, which mounts do not protect."""
    name = os.path.basename(mount.root)
    if mount.root != "/" and _backing(name):
        with open(f"/sys/block/{name}/ro", encoding="ascii") as file:
            return file.read().strip() == "1"
    return "ro" in mount.options
