"""The system calls that Python has not: mounts as descriptors, openat2, syncfs, quotactl and ioctls on whole files.

Decides nothing. Every call is made through one libc handle with the interpreter's lock released and fails with an
OSError that has the errno and what the call was about. Linux 5.12 or newer (mount_setattr); numbers from 424 on are the
same on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import Any, Final

__all__ = [
    "clone_file",
    "freeze",
    "fsconfig",
    "fsmount",
    "fsopen",
    "ioctl",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "quotactl",
    "syncfs",
    "thaw",
    "unmount",
    "unshare",
]

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
OPEN_TREE_CLONE: Final = 1
UMOUNT_NOFOLLOW: Final = 8

#: openat2(2): how a path may resolve
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

#: mount_setattr(2)
ATTR_RDONLY: Final = 0x1
ATTR_NOSUID: Final = 0x2
ATTR_NODEV: Final = 0x4
ATTR_NOEXEC: Final = 0x8
ATTR_ATIME: Final = 0x70  # the field; RELATIME is 0
ATTR_NOATIME: Final = 0x10
ATTR_STRICTATIME: Final = 0x20
ATTR_NODIRATIME: Final = 0x80
ATTR_NOSYMFOLLOW: Final = 0x200000

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR, _QUOTACTL_FD = 437, 442, 443
_MOVE_EMPTY_PATHS = 0x04 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
_PRJQUOTA = 2
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_FICLONE, _FIFREEZE, _FITHAW = 0x40049409, 0xC0045877, 0xC0045878  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _checked(result: int, about: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
    return result


def _call(about: str, number: int, *words: Any) -> int:
    """syscall(2); every integer is passed as a long."""
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *wide)), about)


def ioctl(fd: int, request: int, argument: Any, about: str = "") -> int:
    """ioctl(2) with an int, None, or a ctypes object or array that the kernel reads and fills."""
    plain = argument is None or isinstance(argument, int)
    pointer = ctypes.c_void_p(argument) if plain else ctypes.cast(ctypes.pointer(argument), ctypes.c_void_p)
    return _checked(_libc.ioctl(fd, request, pointer), about)


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), close-on-exec: a new descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _call(path, _OPENAT2, dirfd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2); the last component is never followed."""
    _checked(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def open_tree(path: str, dirfd: int = AT_FDCWD) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: a detached bind mount of `path`, which is not followed if it is a symlink."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_SYMLINK_NOFOLLOW | (0 if path else AT_EMPTY_PATH)
    return _call(path, _OPEN_TREE, dirfd, os.fsencode(path), flags)


def mount_setattr(fd: int, attributes: int) -> None:
    """mount_setattr(2) on a detached mount: set these; access times are a field and are as they say, or stay."""
    value = _MountAttr(attributes, ATTR_ATIME if attributes & ATTR_ATIME else 0, 0, 0)
    _call("", _MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, ctypes.byref(value), ctypes.sizeof(value))


def move_mount(fd: int, target: int) -> None:
    """move_mount(2): attach the mount `fd` on what the descriptor `target` is."""
    _call("", _MOVE_MOUNT, fd, b"", target, b"", _MOVE_EMPTY_PATHS)


def fsopen(fs: str) -> int:
    """fsopen(2): a context to configure; what the kernel has to say about it is read from it (`messages`)."""
    return _call(fs, _FSOPEN, fs.encode(), 1)


def fsconfig(context: int, key: str, value: str | None = None) -> None:
    """fsconfig(2): set a flag (no value) or a string."""
    text = None if value is None else os.fsencode(value)
    _config(context, key, _SET_FLAG if value is None else _SET_STRING, os.fsencode(key), text)


def fsmount(context: int, attributes: int) -> int:
    """fsconfig(FSCONFIG_CMD_CREATE) and fsmount(2): a detached mount of the superblock, made or found."""
    _config(context, "", _CMD_CREATE, None, None)
    return _call("", _FSMOUNT, context, 1, attributes)


def _config(context: int, about: str, command: int, key: bytes | None, value: bytes | None) -> None:
    try:
        _call(about, _FSCONFIG, context, command, key, value, 0)
    except OSError as error:
        raise OSError(error.errno, _messages(context) or error.strerror, about) from None


def _messages(context: int) -> str:
    """What the kernel logged to a context since the last read, warnings ("w …") and errors ("e …"), as one text."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # ENODATA: no more
        while len(found) < 16:
            found.append(os.read(context, 1024).decode(errors="replace").strip()[2:])
    return "; ".join(found)


def syncfs(fd: int) -> None:
    """syncfs(2): all of the file system that `fd` is on."""
    _checked(_libc.syncfs(fd), "")


def clone_file(target_fd: int, source_fd: int) -> None:
    """ioctl_ficlone(2): `target_fd` becomes the same bytes, shared until either is written."""
    ioctl(target_fd, _FICLONE, source_fd)


def unshare(fd: int, size: int) -> None:
    """fallocate(2) with FALLOC_FL_UNSHARE_RANGE: the first `size` bytes are allocated and nobody else's (XFS)."""
    _checked(_libc.fallocate(fd, 0x40, ctypes.c_int64(0), ctypes.c_int64(size)), "")


def freeze(fd: int) -> None:
    """FIFREEZE: everything written is on disk, and whoever writes waits. See thaw.py: never call it unguarded."""
    ioctl(fd, _FIFREEZE, None)


def thaw(fd: int) -> None:
    """FITHAW; EINVAL if it is not frozen."""
    ioctl(fd, _FITHAW, None)


def quotactl(fd: int, device: str, command: int, project: int, argument: Any) -> None:
    """quotactl_fd(2) about project quota; on a kernel before 5.14 quotactl(2) of the block device of the mount."""
    word = ctypes.c_int(command << 8 | _PRJQUOTA)
    pointer = ctypes.byref(argument)
    try:
        _call(device, _QUOTACTL_FD, fd, word.value & 0xFFFFFFFF, project, pointer)
    except OSError as error:
        if error.errno != errno.ENOSYS or not device:
            raise
        _checked(_libc.quotactl(word, os.fsencode(device), ctypes.c_int(project), pointer), device)
