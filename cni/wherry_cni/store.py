"""Address leases on disk, in the reference plugin's layout: both can serve the same directory.

DIR/NETWORK/ADDRESS holds "containerid\\r\\nifname"; last_reserved_ip.N the latest address of range set N; lock is
taken (flock) round every change. Decides nothing about which address; refuses to know configurations.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["Store", "opened"]

_LINE = "\r\n"  # the reference's LineBreak
_MAX = 4096
_NEW = ".new"  # a lease before it counts


class Store:
    """The leases of one network, under its lock."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def take(self, address: str, container_id: str, ifname: str) -> bool:
        """Lease an address; False when somebody has it."""
        path = self._path(address)
        if os.path.exists(path) and os.path.getsize(path):
            return False  # an empty one was left by a power cut or a killed plugin: we hold the lock, nobody writes it
        with open(os.path.join(self._directory, _NEW), "w", encoding="ascii", opener=_private) as stream:
            stream.write(f"{container_id}{_LINE}{ifname}")
        os.replace(stream.name, path)  # whole or not at all, whenever we are killed and however full the disk is
        return True

    def remember(self, index: int, address: str) -> None:
        """The latest address of a range set, for the round robin."""
        with open(os.path.join(self._directory, f"last_reserved_ip.{index}"), "w", encoding="ascii") as stream:
            stream.write(address)

    def last(self, index: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The latest address of a range set; None where none is known."""
        with suppress(OSError, ValueError):
            return ipaddress.ip_address(self._bytes(f"last_reserved_ip.{index}").decode("ascii").strip())
        return None

    def leases(self) -> list[tuple[str, str, str]]:
        """All (address, container id, ifname). The ifname is "" in leases of very old plugins."""
        found: list[tuple[str, str, str]] = []
        for name in os.listdir(self._directory):
            with suppress(OSError, ValueError):
                found.append(self._lease(name, self._bytes(name)))
        return found

    def held(self, container_id: str, ifname: str) -> list[str]:
        """The addresses that an interface has. Of another's lease only the beginning is looked at: there may be
        thousands."""
        owner, found = container_id.encode(), []
        for name in os.listdir(self._directory):
            with suppress(OSError, ValueError):
                data = self._bytes(name)
                if data.lstrip().startswith(owner) and self._lease(name, data)[1:] in (
                        (container_id, ifname), (container_id, "")):
                    found.append(self._lease(name, data)[0])
        return found

    def drop(self, addresses: Iterable[str]) -> None:
        """End leases. Absent is success."""
        for address in addresses:
            with suppress(FileNotFoundError):
                os.unlink(self._path(address))

    def _path(self, address: str) -> str:
        return os.path.join(self._directory, str(ipaddress.ip_address(address)))

    @staticmethod
    def _lease(name: str, data: bytes) -> tuple[str, str, str]:
        """ValueError where the file is no address's."""
        address = name.replace("_", ":")
        ipaddress.ip_address(address)
        container_id, _, ifname = data.decode("utf-8", "replace").strip().partition(_LINE)
        return address, container_id.strip(), ifname.strip()

    def _bytes(self, name: str) -> bytes:
        fd = os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(fd, _MAX)
        finally:
            os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextmanager
def opened(data_dir: str, network: str) -> Iterator[Store]:
    """The store of a network, locked until the block is left; made where it is missing."""
    directory = os.path.join(data_dir, network)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield Store(directory)
    finally:
        os.close(fd)
