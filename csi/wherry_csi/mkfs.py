"""The file systems of images: made quickly, because nothing that is zero already gets written, and grown while mounted.

Decides what our file systems are like: blocks and sectors of 4096 bytes (whatever the disk below), no bytes set aside
for root, a journal in each. Refuses to know how they come to be mounted. Source: mke2fs(8), mkfs.xfs(8),
ext4's and XFS' ioctls (linux/ext4.h; xfs/xfs_fs.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from . import kernel, thaw
from .errors import CsiError

__all__ = ["BLOCK", "FILE_SYSTEMS", "FileSystem", "grow", "grow_offline", "make", "mend"]

BLOCK = 4096
_DEADLINE = 300  # seconds; a disk that takes longer is broken
_EXT4_RESIZE = 0x40086610  # EXT4_IOC_RESIZE_FS
_XFS_GEOMETRY, _XFS_GROW = 0x80705864, 0x4010586E  # XFS_IOC_FSGEOMETRY_V1, XFS_IOC_FSGROWFSDATA


class FileSystem(NamedTuple):
    """How one kind is made and mounted."""

    command: tuple[str, ...]
    least: int  # bytes: the smallest that mkfs makes with a journal
    options: tuple[str, ...]  # that every mount of one has
    grow: Callable[[int, int, int], None]  # root, device, bytes


def _grow_ext4(root: int, device: int, size: int) -> None:
    """The superblock is read from the device, whose page cache is what ext4 keeps it in."""
    block = os.pread(device, 1024, 1024)
    low, high = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x150)[0]
    if (high << 32 | low) < size // BLOCK:
        kernel.ioctl(root, _EXT4_RESIZE, ctypes.c_uint64(size // BLOCK))


def _grow_xfs(root: int, _device: int, size: int) -> None:
    """struct xfs_fsop_geom_v1 has the block size first, inode percentage eighth, then the number of blocks.

    Frozen for a moment after it, which empties the log: recovery after a power cut reads the size of old from disk, and
    fails at what was logged in the new part (Linux 6.18: xfs_buf_map_verify "out of range", EUCLEAN at mount).
    """
    geometry = (ctypes.c_uint8 * 112)()
    kernel.ioctl(root, _XFS_GEOMETRY, geometry)
    words = struct.unpack_from("=8IQ", bytes(geometry))
    if words[8] < size // words[0]:
        change = (ctypes.c_uint64 * 2)(size // words[0], words[7])
        kernel.ioctl(root, _XFS_GROW, change)
        with thaw.frozen([root]):
            pass


FILE_SYSTEMS = {
    "ext4": FileSystem(
        ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,assume_storage_prezeroed=1"),
        16 << 20,
        ("errors=remount-ro",),  # the superblock is the user's to write, it may say errors=panic
        _grow_ext4,
    ),
    "xfs": FileSystem(
        ("mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096"),
        300 << 20,
        ("nouuid",),  # clones have their source's
        _grow_xfs,
    ),
}


def make(fs: str, image: int) -> None:
    """Make an `fs` in the whole of the open file `image`, which must be all zeros. Ends with it on disk, or OSError."""
    _run([*FILE_SYSTEMS[fs].command, f"/proc/self/fd/{image}"], image)


def _run(command: list[str], fd: int) -> None:
    """Run a tool of the file system's with one descriptor of ours; what it complains of is the error's text."""
    try:
        done = subprocess.run(
            command, pass_fds=(fd,), stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE, check=False
        )
    except FileNotFoundError:
        sentence = f"there is no {command[0]} on PATH; install its package (e2fsprogs, xfsprogs)"
        raise CsiError("FAILED_PRECONDITION", sentence) from None
    except subprocess.TimeoutExpired:
        raise OSError(errno.EIO, f"{command[0]} took more than {_DEADLINE} s; is the pool's disk well?") from None
    if done.returncode not in ((0, 1) if command[0] == "e2fsck" else (0,)):  # 1: errors were corrected
        said = done.stderr.decode(errors="replace").strip()[-500:]
        full = "No space left" in said
        raise OSError(errno.ENOSPC if full else errno.EIO, f"{command[0]} failed: {said or done.returncode}")


def grow(fs: str, root: int, device: int, size: int) -> None:
    """Let the mounted file system with this root fill its device of `size` bytes; large enough already: nothing to do.

    It is the kernel that grows it, online; the mount must be writable (EROFS). For ext4 it asks CAP_SYS_RESOURCE
    (EPERM), see grow_offline.
    """
    FILE_SYSTEMS[fs].grow(root, device, size)


def mend(image: int) -> None:
    """Let e2fsck put right, in the open image of an ext4 that nobody has mounted, what it can without a person: such as
    what a resize2fs left that lost its power. OSError if there is more."""
    _run(["e2fsck", "-p", f"/proc/self/fd/{image}"], image)


def grow_offline(fs: str, device: int) -> None:
    """The same for a file system that is not mounted, on the open device; only ext4 needs it."""
    assert fs == "ext4"
    path = f"/proc/self/fd/{device}"
    _run(["e2fsck", "-f", "-p", path], device)
    _run(["resize2fs", path], device)
