"""A small file system of a test's own on a loop device: it can be filled up, and its power can be cut."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

from .tools import need, run

__all__ = ["LoopFs"]

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, linux/fs.h
_NO_LOG_FLUSH = 2  # what is not in the journal on disk is lost, as in a power cut
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-O", "has_journal"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


class LoopFs:
    """`with LoopFs(tmp_path, megabytes) as place: ...`; `place.cut()` loses whatever was not synced.

    ext4 unless another is named; btrfs cannot be cut. Several in one directory need names of their own.
    """

    def __init__(self, directory: Path, megabytes: int, fs: str = "ext4", name: str = "disk") -> None:
        need(_MKFS[fs][0], "mount", "umount")
        self._image, self.path = directory / f"{name}.img", directory / name
        self._size, self.fs = megabytes << 20, fs

    def __enter__(self) -> LoopFs:
        with open(self._image, "wb") as file:
            file.truncate(self._size)
        run(*_MKFS[self.fs], self._image)
        self.path.mkdir()
        if subprocess.run(["mount", "-o", "loop", self._image, self.path], check=False).returncode:
            pytest.skip("no loop device can be had here")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = time.monotonic() + 10
        while subprocess.run(["umount", self.path], check=False, capture_output=True).returncode:
            if time.monotonic() > end:  # somebody has a file open: out of sight at least
                subprocess.run(["umount", "--lazy", self.path], check=True)
                break
            time.sleep(0.1)
        self._image.unlink()

    def mount(self, *options: str) -> None:
        """Mount it (again): the journal is replayed."""
        run("mount", "-o", ",".join(("loop", *options)), self._image, self.path)

    def unmount(self) -> None:
        """Take it off; fails while anything on it is mounted, attached or open."""
        run("umount", self.path)

    def shutdown(self) -> None:
        """The power goes: nothing reaches the disk any more, every write fails."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def cut(self) -> None:
        """Cut the power, and start again: the journal is replayed."""
        self.shutdown()
        self.unmount()
        self.mount()

    def fill(self, leave: int) -> Path:
        """Take all room but `leave` bytes; the file that holds it."""
        path = self.path / "filler"
        with open(path, "wb", buffering=0) as file:  # no number tells how much: ext4 keeps some for itself
            size = 0
            for step in (1 << 20, 4096):
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            file.truncate(max(size - leave, 0))
        os.sync()
        return path
