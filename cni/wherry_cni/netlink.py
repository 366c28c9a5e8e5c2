"""Network namespaces by a thread that joins them, links by name, sysctls.

Decides how the kernel is asked. Refuses to know what a bridge network is. setns(2) is per thread: whatever happens in
the container's namespace happens in a short-lived thread, so the caller never stands in the wrong place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from wherry_cni.errors import IO, KERNEL, UNKNOWN_CONTAINER, CniError

__all__ = ["beside", "delete_link", "explained", "if_there", "in_namespace", "links", "sysctl", "there"]

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_RTM_DELLINK, _IFLA_IFNAME, _REQUEST_ACK = 17, 3, 5
_GLANCE = 0.0005  # seconds


def in_namespace(path: str, work: Callable[[], _T]) -> _T:
    """What `work` returns, done in the network namespace at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise CniError(UNKNOWN_CONTAINER, f"network namespace {path}: {problem.strerror}") from None
    results: list[_T] = []
    problems: list[BaseException] = []

    def inside() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                code = ctypes.get_errno()
                if code == errno.EINVAL:  # the file outlives the namespace that was mounted on it
                    raise CniError(UNKNOWN_CONTAINER, f"{path} is not a network namespace")
                raise explained(f"entering {path}", code)
            results.append(work())
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=inside, name="netns")
    try:
        thread.start()
        thread.join()
    finally:
        os.close(fd)
    if problems:
        raise problems[0]
    return results[0]


@contextmanager
def if_there() -> Iterator[None]:
    """For DEL: a namespace that is gone took along what was in it. That its file is there says nothing: the mount may
    have gone alone, or both a moment ago."""
    try:
        yield
    except CniError as problem:
        if problem.code != UNKNOWN_CONTAINER:
            raise


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """`work` in a thread of its own meanwhile; its failure is raised at the end, unless there was one here."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="beside")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if problems:
        raise problems[0]


def links() -> set[str]:
    """The names of all links here."""
    return {name for _, name in socket.if_nameindex()}


def delete_link(name: str) -> bool:
    """Remove one link by name. False: it was not there. Back as soon as nobody finds it any more: what the kernel waits
    for after that, some 15 ms, it waits for in a thread of its own."""
    if not there(name):
        return False
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(_ask_to_delete(name)), name="delete", daemon=True)
    thread.start()
    while thread.is_alive() and there(name):
        thread.join(_GLANCE)
    code = answers[0] if answers else 0
    if code in (0, errno.ENODEV):
        return code == 0
    raise explained(f"removing link {name}", code)


def there(name: str) -> bool:
    """Whether there is a link of that name here."""
    try:
        return bool(socket.if_nametoindex(name))
    except OSError:
        return False


def _ask_to_delete(name: str) -> int:
    """0 or an errno. Written out, because DEL needs nothing else of a library."""
    header = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    attribute = struct.pack("=HH16s", 20, _IFLA_IFNAME, name.encode())
    size = 16 + len(header) + len(attribute)
    body = struct.pack("=IHHII", size, _RTM_DELLINK, _REQUEST_ACK, 1, 0) + header + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as wire:
        wire.settimeout(30)
        try:
            wire.sendto(body, (0, 0))
            answer = wire.recv(65536)
        except OSError as problem:
            return problem.errno or errno.EIO
    return -int(struct.unpack_from("=i", answer, 16)[0])  # NLMSG_ERROR: what NLM_F_ACK asks for, and nothing else comes


def sysctl(name: str, value: str) -> None:
    """Write /proc/sys/NAME unless it says so already (a read-only /proc with the right value is fine)."""
    path = f"/proc/sys/{name}"
    try:
        with open(path, encoding="ascii") as stream:
            if stream.read().strip() == value:
                return
        with open(path, "w", encoding="ascii") as stream:
            stream.write(value)
    except OSError as problem:
        raise CniError(IO, f"sysctl {name.replace('/', '.')} = {value}: {problem.strerror}") from None


def explained(what: str, code: int) -> CniError:
    """An errno of the kernel in words."""
    hint = "the plugin needs CAP_NET_ADMIN (and CAP_SYS_ADMIN to enter a namespace)" if code == errno.EPERM else ""
    return CniError(KERNEL, f"{what}: {os.strerror(code)}", hint)
