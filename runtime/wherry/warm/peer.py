"""Is the caller's world ours? Only then may a fork of this process act for it.

Decides what must match: ids and groups, capabilities, no_new_privs, seccomp, CPUs, every namespace, the root directory,
limits, label, OOM score, v1 cgroups. What cannot be read counts as unlike. Uid 0 alone proves nothing: a container's
root has it too.
"""

from __future__ import annotations

import os
import socket
import struct
from functools import lru_cache
from typing import Any, Final

from wherry.kernel import shim

__all__ = ["World", "cgroup", "pid_of", "still", "world"]

World = tuple[Any, ...]

_STATUS: Final = frozenset(
    (b"Uid", b"Gid", b"Groups", b"NoNewPrivs", b"Seccomp", b"Seccomp_filters", b"CapInh", b"CapPrm", b"CapEff",
     b"CapBnd", b"CapAmb", b"Cpus_allowed", b"Mems_allowed")
)  # fmt: skip
_SPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")
_FILES: Final = ("status", "limits", "oom_score_adj", "cgroup", "attr/current")
_READ_MAX: Final = 1 << 16
_SO_PEERPIDFD: Final = 77  # Linux 6.5


def pid_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of who connected."""
    pid, uid, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def still(sock: socket.socket, pid: int) -> bool:
    """Whether `pid` is, after all that was read of it, still who connected: by a pidfd from the socket."""
    try:
        pidfd = struct.unpack("=i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError:  # before 6.5, or one that has ended: nothing else binds the number to who connected
        return False
    try:
        text = _read(f"/proc/self/fdinfo/{pidfd}")
    finally:
        os.close(pidfd)
    return f"\nPid:\t{pid}\n".encode() in text


def world(pid: int | str) -> World | None:
    """Everything that must match, None where some of it cannot be read."""
    try:
        root = os.stat(f"/proc/{pid}/root")
        status, limits, score, groups, label, *spaces = shim.read_many(f"/proc/{pid}", (*_FILES, *_spaces()))
    except OSError:
        return None
    if status is None or limits is None or score is None or groups is None or None in spaces:
        return None
    return (
        _status(status),
        tuple(spaces),
        (root.st_dev, root.st_ino),
        limits,
        label or b"",  # EINVAL without a security module that has labels
        score,
        [line for line in groups.splitlines() if not line.startswith(b"0::")],
    )


@lru_cache(maxsize=1)
def _spaces() -> tuple[str, ...]:
    """The links of the kinds of namespaces that this kernel has."""
    return tuple(f"ns/{name}@" for name in _SPACES if os.path.lexists(f"/proc/self/ns/{name}"))


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _READ_MAX)
    finally:
        os.close(fd)


def _status(text: bytes) -> tuple[bytes, ...]:
    return tuple(line for line in text.splitlines() if line.partition(b":")[0] in _STATUS)


def cgroup(pid: int, mount: str) -> int | None:
    """A descriptor of the v2 cgroup of a process; None where it cannot be had."""
    try:
        lines = _read(f"/proc/{pid}/cgroup").decode().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        if "/.." in path:
            return None
        return os.open(mount + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, StopIteration):
        return None
