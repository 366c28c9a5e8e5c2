"""Loop devices of image files: found by the file itself (device and inode), attached in one call, detached.

A device whose image is mounted has LO_FLAGS_AUTOCLEAR: the kernel detaches it with the last mount, also after a kill. A
block volume's device has not: nobody may have it open, and it is there until it is detached. Where the file
system takes it, io goes past its page cache (direct io), so that bytes are cached once. Source: loop(4), linux/loop.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple

from . import kernel, mounts

__all__ = ["MAJOR", "Device", "attach", "detach", "find", "grow", "one_look", "opened", "settle"]

MAJOR = 7
_CLR_FD, _GET_STATUS64, _SET_CAPACITY, _CONFIGURE = 0x4C01, 0x4C05, 0x4C07, 0x4C0A
_CTL_GET_FREE = 0x4C82
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_PATIENCE = 2.0  # seconds
_TRIES = 256  # each lost race means that somebody else got a device


class _Info(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = [
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("names", ctypes.c_uint8 * 160),
        ("init", ctypes.c_uint64 * 2),
    ]


class _Config(ctypes.Structure):
    """struct loop_config."""

    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _Info),
        ("reserved", ctypes.c_uint64 * 8),
    ]


class Device(NamedTuple):
    """An attached loop device."""

    number: int
    readonly: bool

    @property
    def path(self) -> str:
        """Its node."""
        return f"/dev/loop{self.number}"

    @property
    def id(self) -> str:
        """ "major:minor", as mount tables and cgroups have it."""
        return f"{MAJOR}:{self.number}"


def _open(number: int, flags: int) -> int:
    """The device node, made where no devtmpfs makes it."""
    path = f"/dev/loop{number}"
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(MAJOR, number))
        return os.open(path, flags | os.O_CLOEXEC)


def _status(fd: int) -> _Info:
    info = _Info()
    kernel.ioctl(fd, _GET_STATUS64, info)
    return info


def _file_of(info: _Info) -> tuple[int, int]:
    """st_dev and st_ino of its image; lo_device is in the kernel's own coding (new_encode_dev)."""
    major, minor = info.device >> 8 & 0xFFF, info.device & 0xFF | info.device >> 12 & 0xFFF00
    return os.makedev(major, minor), int(info.inode)


def _tail(path: str) -> str:
    """The last two components, HOME/image: the same in every mount namespace, and of one volume only."""
    return "/".join(path.rsplit("/", 2)[-2:])


def _attached() -> _Table:
    """Every attached device, by the tail of its image's path; none is opened for it: that would delay its end."""
    found: _Table = {}
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            with suppress(OSError), open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
                found.setdefault(_tail(os.fsdecode(file.read().rstrip(b"\n"))), []).append(int(name[4:]))
    return found


_Table = dict[str, list[int]]
_look: ContextVar[_Table | None] = ContextVar("look", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """While the context lasts `find` answers from one look at the devices: for who asks about a thousand volumes at
    once, and acts on none of them."""
    token = _look.set(_attached())
    try:
        yield
    finally:
        _look.reset(token)


def find(image: int) -> list[Device]:
    """The devices that are attached to the open file `image`; writable ones first. In doubt OSError: a file must never
    get a second writable device."""
    file, seen = os.fstat(image), _look.get()
    numbers = (_attached() if seen is None else seen).get(_tail(mounts.real_path(image)), [])
    found = [device for number in numbers if (device := _device_of(number, file))]
    return sorted(found, key=lambda device: (device.readonly, device.number))


def _device_of(number: int, file: os.stat_result) -> Device | None:
    """The device, if it is attached to the file."""
    try:
        with opened(number) as fd:
            info = _status(fd)
    except OSError as error:
        if error.errno != errno.ENXIO:  # detached meanwhile
            raise
        return None
    ours = _file_of(info) == (file.st_dev, file.st_ino)
    return Device(number, bool(info.flags & _READ_ONLY)) if ours else None


def settle(image: int) -> None:
    """Wait until the image has no device any more, if all that keeps it is somebody who looked at it (udev, losetup):
    it ends with their close. A mounted one stays, and after some seconds any other."""
    end = time.monotonic() + _PATIENCE
    while found := find(image):
        if time.monotonic() > end or any(map(_claimed, found)):
            return
        time.sleep(0.005)


def _claimed(device: Device) -> bool:
    """Whether a file system, or who opened it exclusively, has it."""
    try:
        with opened(device.number, os.O_RDONLY | os.O_EXCL):
            return False
    except OSError as error:
        return error.errno == errno.EBUSY


@contextmanager
def opened(number: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A device's descriptor while the context lasts; an attached one with AUTOCLEAR stays so long, too."""
    fd = _open(number, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def attach(image: int, *, readonly: bool = False, autoclear: bool = False, block: int = 0) -> tuple[Device, int]:
    """Attach the file `image` (open for writing unless `readonly`) to a free device; the device and a descriptor of it.

    `block`: its logical block size, 0 for the kernel's choice. With `autoclear` it lasts as long as the descriptor is
    open or its file system is mounted.
    """
    flags = (_READ_ONLY if readonly else 0) | (_AUTOCLEAR if autoclear else 0) | _DIRECT_IO
    config = _Config(fd=image, block_size=block, info=_Info(flags=flags))
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = kernel.ioctl(control, _CTL_GET_FREE, None, "/dev/loop-control")
            if (fd := _configured(number, config, readonly)) is not None:
                return Device(number, readonly), fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device could be had: others took every free one", "/dev/loop-control")


def _configured(number: int, config: _Config, readonly: bool) -> int | None:
    """The device's descriptor, or None if somebody was faster."""
    fd = _open(number, os.O_RDONLY if readonly else os.O_RDWR)
    try:
        kernel.ioctl(fd, _CONFIGURE, config, f"/dev/loop{number}")
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EBUSY, errno.ENXIO):  # taken, or being detached
            return None
        raise
    return fd


def detach(device: Device) -> None:
    """Detach it, now or, if somebody has it open, with the last close. What was written to it is in the image."""
    with suppress(FileNotFoundError), opened(device.number) as fd:
        try:
            try:
                os.fsync(fd)
            finally:  # a dead disk is told once, and does not hold the device for ever
                kernel.ioctl(fd, _CLR_FD, None, device.path)
        except OSError as error:
            if error.errno != errno.ENXIO:  # detached already
                raise


def grow(device: Device) -> None:
    """Let it see that its image has become larger."""
    with opened(device.number) as fd:
        kernel.ioctl(fd, _SET_CAPACITY, None, device.path)
