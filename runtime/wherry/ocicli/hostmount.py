"""The root of a container in the host's mount namespace: its mounts are the host's, until somebody unmounts it.

Decides whether what is mounted on the root directory is ours: the mount there is another one than before the start.
"""

from __future__ import annotations

import os

__all__ = ["identity", "release"]

_DETACH, _NOFOLLOW = 2, 8  # MNT_DETACH, UMOUNT_NOFOLLOW


def identity(path: str) -> int:
    """The id of the mount that a directory is on (proc(5), fdinfo)."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return int(next(line.split()[1] for line in file if line.startswith("mnt_id:")))
    finally:
        os.close(fd)


def release(path: str, before: int) -> None:
    """Unmount the root with all beneath it; nothing of ours there is fine."""
    from wherry.kernel import shim

    if identity(path) != before:
        shim.umount2(path, _DETACH | _NOFOLLOW)
