"""Is the caller's world ours? Only then may a fork of this process act for it.

Decides what must match: ids and groups, capabilities, no_new_privs, seccomp, CPUs, every namespace, the root directory,
limits, label, OOM score, v1 cgroups. What cannot be read counts as unlike. Uid 0 alone proves nothing: a container's
root has it too.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Final

__all__ = ["World", "cgroup", "pid_of", "still", "world"]

World = tuple[Any, ...]

_STATUS: Final = frozenset(
    ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapInh", "CapPrm", "CapEff", "CapBnd",
     "CapAmb", "Cpus_allowed", "Mems_allowed")
)  # fmt: skip
_SPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")
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
    here = f"/proc/{pid}"
    try:
        root = os.stat(f"{here}/root")
        return (
            _status(_read(f"{here}/status")),
            tuple(os.readlink(f"{here}/ns/{name}") for name in _SPACES if os.path.lexists(f"/proc/self/ns/{name}")),
            (root.st_dev, root.st_ino),
            _read(f"{here}/limits"),
            _label(f"{here}/attr/current"),
            _read(f"{here}/oom_score_adj"),
            [line for line in _read(f"{here}/cgroup").splitlines() if not line.startswith(b"0::")],
        )
    except OSError:
        return None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _READ_MAX)
    finally:
        os.close(fd)


def _status(text: bytes) -> tuple[str, ...]:
    return tuple(line for line in text.decode().splitlines() if line.partition(":")[0] in _STATUS)


def _label(path: str) -> bytes:
    """EINVAL without a security module that has labels."""
    try:
        return _read(path)
    except OSError:
        return b""


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
