"""Project quota of ext4 and XFS: which project a directory belongs to, its limits and its use.

Both are asked in XFS' format (Q_X*), which the kernel translates for ext4. Decides nothing. A process in the first user
namespace that owns a file may give it another project; that is the kernel's rule, not ours. Source: quotactl(2),
linux/dqblk_xfs.h, linux/fs.h (struct fsxattr).
"""

from __future__ import annotations

import ctypes
import errno
from typing import NamedTuple

from . import kernel, mounts

__all__ = ["Quota", "assign", "enforced", "limit", "project", "report"]

_GETXATTR, _SETXATTR = 0x801C581F, 0x401C5820  # FS_IOC_FS[GS]ETXATTR
_PROJINHERIT = 0x200
_SETQLIM, _GETQUOTA, _GETQSTATV = 0x5804, 0x5803, 0x5808
_SECTOR = 512  # XFS counts basic blocks
_HARD = 0x2 | 0x8  # FS_DQ_IHARD | FS_DQ_BHARD
_ACCOUNTED_ENFORCED = 0x10 | 0x20  # FS_QUOTA_PDQ_ACCT | FS_QUOTA_PDQ_ENFD


class _Fsxattr(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint32),
        ("extent_size", ctypes.c_uint32),
        ("extents", ctypes.c_uint32),
        ("project", ctypes.c_uint32),
        ("cow_extent_size", ctypes.c_uint32),
        ("pad", ctypes.c_uint8 * 8),
    ]


class _DiskQuota(ctypes.Structure):
    """struct fs_disk_quota."""

    _fields_ = [
        ("version", ctypes.c_int8),
        ("kind", ctypes.c_int8),
        ("fields", ctypes.c_uint16),
        ("id", ctypes.c_uint32),
        ("blocks_hard", ctypes.c_uint64),
        ("blocks_soft", ctypes.c_uint64),
        ("inodes_hard", ctypes.c_uint64),
        ("inodes_soft", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("inodes", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 56),
    ]


class _Statv(ctypes.Structure):
    """struct fs_quota_statv."""

    _fields_ = [
        ("version", ctypes.c_int8),
        ("pad", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("rest", ctypes.c_uint8 * 156),
    ]


class Quota(NamedTuple):
    """One project's; bytes. A limit of 0 is none."""

    limit: int
    used: int
    inode_limit: int
    inodes: int


def _ask(fd: int, command: int, project: int, argument: object) -> None:
    """quotactl(2) of the file system that `fd` is on."""
    try:
        kernel.quotactl(fd, "", command, project, argument)
    except OSError as error:
        mount = mounts.containing(fd) if error.errno == errno.ENOSYS else None
        if not mount:
            raise
        kernel.quotactl(fd, mount.source, command, project, argument)


def enforced(fd: int) -> bool:
    """Whether the file system accounts and enforces project quota now."""
    state = _Statv(version=1)
    try:
        _ask(fd, _GETQSTATV, 0, state)
    except OSError:  # ENOSYS, EINVAL, EOPNOTSUPP, ESRCH: it has none, or it is off
        return False
    return bool(state.flags & _ACCOUNTED_ENFORCED == _ACCOUNTED_ENFORCED)


def assign(fd: int, project: int) -> None:
    """The directory `fd`, and what will be made in it, belongs to the project."""
    value = _Fsxattr()
    kernel.ioctl(fd, _GETXATTR, value)
    value.flags |= _PROJINHERIT
    value.project = project
    kernel.ioctl(fd, _SETXATTR, value)


def project(fd: int) -> int:
    """The project that new files in the directory get; 0 if they inherit none."""
    value = _Fsxattr()
    kernel.ioctl(fd, _GETXATTR, value)
    return int(value.project) if value.flags & _PROJINHERIT else 0


def limit(fd: int, project: int, size: int, inodes: int) -> None:
    """Set a project's hard limits: bytes (whole KiB, as ext4 keeps them) and inodes."""
    value = _DiskQuota(version=1, kind=2, fields=_HARD, id=project, blocks_hard=size // _SECTOR, inodes_hard=inodes)
    _ask(fd, _SETQLIM, project, value)


def report(fd: int, project: int) -> Quota:
    """A project's limits and use; all 0 if it was never seen."""
    value = _DiskQuota()
    try:
        _ask(fd, _GETQUOTA, project, value)
    except FileNotFoundError:
        return Quota(0, 0, 0, 0)
    return Quota(value.blocks_hard * _SECTOR, value.blocks * _SECTOR, value.inodes_hard, value.inodes)
