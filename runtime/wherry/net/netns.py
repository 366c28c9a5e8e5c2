"""Network namespaces pinned by a bind mount: made, removed, nothing more.

Decides how a namespace comes to be without moving the caller: unshare(2) is per thread, so a short-lived thread does it
(no process, no netlink library). Refuses to know what goes into the namespace, except that loopback is up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from wherry.errors import Kind, WherryError

__all__ = ["apart", "create", "exists", "in_thread", "inside", "remove"]

_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x1000, 2, 8
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)


def create(path: str, source: str = "") -> str:
    """A network namespace at `path` (its directory is made 0700 where missing). Returns `path`. A new one, loopback up;
    or that which `source` names, as it is (/proc/PID/ns/net of one that a user namespace owns)."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    except FileExistsError:
        raise WherryError(Kind.EXISTS, f"network namespace {path} exists already") from None
    try:
        _pin(source, path) if source else apart(lambda: _pin("/proc/thread-self/ns/net", path))
    except OSError as problem:
        remove(path)
        raise _explained(problem, path) from problem
    return path


def apart(work: Callable[[], _T]) -> _T:
    """What `work` returns, done in a new network namespace with loopback up, which goes with the last handle on it."""
    def enter() -> None:
        _check(_libc().unshare(_CLONE_NEWNET))
        _loopback_up()

    return in_thread(enter, work)


def inside(path: str, work: Callable[[], _T]) -> _T:
    """What `work` returns, done in the network namespace at `path`. OSError where it cannot be entered."""
    def enter() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc().setns(fd, _CLONE_NEWNET))
        finally:
            os.close(fd)

    return in_thread(enter, work)


def in_thread(enter: Callable[[], None], work: Callable[[], _T]) -> _T:
    """What `work` returns after `enter`. A namespace is a thread's (setns(2), unshare(2)): one of its own, which ends
    with the work."""
    results: list[_T] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            enter()
            results.append(work())
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return results[0]


def remove(path: str) -> None:
    """Unpin; the kernel takes the namespace down by itself when the last process has left. Absent is success."""
    if _libc().umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise _explained(OSError(code, os.strerror(code)), path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def exists(path: str) -> bool:
    """True when `path` is a pinned network namespace, not only the empty file of a half-made one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
    finally:
        os.close(fd)


def _pin(source: str, path: str) -> None:
    _check(_libc().mount(os.fsencode(source), os.fsencode(path), None, ctypes.c_ulong(_MS_BIND), None))


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        flags = struct.unpack_from("h", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0)), 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _explained(problem: OSError, path: str) -> WherryError:
    kind = Kind.DENIED if problem.errno == errno.EPERM else Kind.INTERNAL
    hint = "making a network namespace needs CAP_SYS_ADMIN" if problem.errno == errno.EPERM else ""
    return WherryError(kind, f"network namespace {path}: {problem.strerror}", hint=hint)
