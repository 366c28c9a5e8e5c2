"""What happens to one table of nftables, as the kernel tells it (netlink multicast, NFNLGRP_NFTABLES).

Decides whether a batch took something away from the table: our own batches that take rules out put others in their
place, or take out single elements, which is told apart. Refuses to know what the table holds.
Messages: linux/netfilter/nfnetlink.h and nf_tables.h; in each that matters here the table's name is attribute 1.
"""

from __future__ import annotations

import errno
import socket
import struct
from enum import IntEnum

__all__ = ["Loss", "Watch"]

_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 12, 270, 1, 7
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW = (0, 3, 6, 9, 12)  # NFT_MSG_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM
_NEW_GENERATION, _GET_TABLE = 15, 1
_ERROR, _REQUEST = 2, 1  # NLMSG_ERROR, NLM_F_REQUEST
_FAMILY_INET = struct.pack("=BBH", 1, 0, 0)  # struct nfgenmsg
_SECONDS = 10
_HEADER, _ATTRIBUTES = 16, 20  # nlmsghdr; and nfgenmsg behind it
_BUFFER = 1 << 20
_NAME = 1


class Loss(IntEnum):
    """What a batch, or several, took away: the most of it."""

    NOTHING = 0
    ELEMENTS = 1  # by a DEL of ours, as a rule
    PARTS = 2  # rules, chains, sets
    TABLE = 3  # all of it; or so much happened that the kernel could not tell us


_LOSSES = {2: Loss.TABLE, 5: Loss.PARTS, 8: Loss.PARTS, 11: Loss.PARTS, 14: Loss.ELEMENTS}  # NFT_MSG_DELTABLE, ...


class Watch:
    """A subscription. `fileno` is readable when there is news."""

    def __init__(self, table: str) -> None:
        self._table = table.encode()
        self._wire = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                   _NETLINK_NETFILTER)
        self._wire.bind((0, 0))  # without an address nothing is told, and no error says so
        self._wire.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        self._added, self._batch = False, Loss.NOTHING

    def fileno(self) -> int:
        """For a selector."""
        return self._wire.fileno()

    def news(self) -> Loss:
        """What was lost since the last call, in batches that are complete."""
        lost = Loss.NOTHING
        while True:
            try:
                data = self._wire.recv(_BUFFER)
            except BlockingIOError:
                return lost
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    raise
                lost = Loss.TABLE
                continue
            lost = max(lost, self.read(data))

    def read(self, data: bytes) -> Loss:
        """The same of one datagram."""
        lost = Loss.NOTHING
        while len(data) >= _ATTRIBUTES:
            size, kind = struct.unpack_from("=IH", data)
            if kind >> 8 == _SUBSYSTEM:
                lost = max(lost, self._message(kind & 0xFF, data[_ATTRIBUTES:size]))
            data = data[max(_HEADER, (size + 3) & ~3) :]
        return lost

    def _message(self, kind: int, attributes: bytes) -> Loss:
        if kind == _NEW_GENERATION:  # the end of a batch
            whole = self._batch is Loss.TABLE or not self._added
            lost, self._added, self._batch = self._batch if whole else Loss.NOTHING, False, Loss.NOTHING
            return lost
        if _table(attributes) == self._table:
            self._added |= kind in _NEW
            self._batch = max(self._batch, _LOSSES.get(kind, Loss.NOTHING))
        return Loss.NOTHING

    def there(self) -> bool:
        """Whether the table exists now."""
        name = self._table + b"\0"
        attribute = struct.pack("=HH", 4 + len(name), _NAME) + name + bytes(-len(name) % 4)
        size = _ATTRIBUTES + len(attribute)
        ask = struct.pack("=IHHII", size, _SUBSYSTEM << 8 | _GET_TABLE, _REQUEST, 1, 0) + _FAMILY_INET + attribute
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as wire:
            wire.settimeout(_SECONDS)
            wire.sendto(ask, (0, 0))
            answer = wire.recv(_BUFFER)
        return bool(struct.unpack_from("=H", answer, 4)[0] != _ERROR)

    def close(self) -> None:
        """End the subscription."""
        self._wire.close()


def _table(attributes: bytes) -> bytes:
    """The name that comes with a message; b"" without one."""
    while len(attributes) >= 4:
        size, kind = struct.unpack_from("=HH", attributes)
        if kind & 0x3FFF == _NAME:
            return attributes[4:size].rstrip(b"\0")
        attributes = attributes[max(4, (size + 3) & ~3) :]
    return b""
