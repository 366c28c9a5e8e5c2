"""The backends by name, and what a pool's file system can do: asked of the kernel, never guessed from its name."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from wherry_csi import kernel, mounts, quota
from wherry_csi.loop import one_look

from . import Backend, PoolFacts
from .directory import Directory
from .image import Image

__all__ = ["BACKENDS", "one_look", "probe"]

BACKENDS: Final[dict[str, Backend]] = {backend.name: backend for backend in (Directory(), Image())}


def probe(pool: int) -> PoolFacts:
    """The facts of the file system that the directory `pool` is on. A read-only or full one raises OSError."""
    mount = mounts.containing(pool)
    return PoolFacts(mount.fs if mount else "", _reflink(pool), quota.enforced(pool), os.fstatvfs(pool).f_frsize)


def _reflink(pool: int) -> bool:
    """Tried with two files that have no name."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    with suppress(OSError):
        source = os.open(".", flags, 0o600, dir_fd=pool)
        target = os.open(".", flags, 0o600, dir_fd=pool)
        try:
            os.write(source, bytes(4096))
            kernel.clone_file(target, source)
            return True
        finally:
            os.close(source)
            os.close(target)
    return False
