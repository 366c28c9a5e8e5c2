"""What a link may be told after it was made: MAC, MTU, queue length, flags, and a bridge port's isolation.

Decides how these are read and set (rtnetlink(7), linux/if_link.h). Refuses to know why, and how links are made.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from wherry_cni.nlwire import Message, Wire, attributes, put

__all__ = ["ALLMULTI", "PROMISC", "Attrs", "changed", "isolated", "read"]

PROMISC, ALLMULTI = 0x100, 0x200  # IFF_*, netdevice(7)
_NEWLINK, _GETLINK = 16, 18
_MAC, _NAME, _MTU, _TXQLEN, _LINKINFO = 1, 3, 4, 13, 18  # IFLA_*
_INFO_SLAVE_DATA, _PORT_ISOLATED = 5, 33  # IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_ISOLATED
_IFINFO = struct.Struct("=BxHiII")


class Attrs(NamedTuple):
    """One link as it is. `promisc` and `allmulti` are what was asked for, not what a bridge does to its ports."""

    number: int
    mac: str
    mtu: int
    txqlen: int
    promisc: bool
    allmulti: bool


def read(wire: Wire, name: str) -> Attrs | None:
    """A link by name, None where there is none."""
    (answer,) = wire.do(f"asking for link {name}", _asked(name), but=errno.ENODEV)
    for body in answer.told:
        _family, _type, number, flags, _change = _IFINFO.unpack_from(body)
        have = dict(attributes(body[_IFINFO.size :]))
        mtu, queue = (int.from_bytes(have.get(kind, b""), sys.byteorder) for kind in (_MTU, _TXQLEN))
        return Attrs(number, have.get(_MAC, b"").hex(":"), mtu, queue, bool(flags & PROMISC), bool(flags & ALLMULTI))
    return None


def changed(number: int, *, mac: str = "", mtu: int = 0, txqlen: int | None = None,
            flags: Mapping[int, bool] | None = None) -> Message:
    """Change what is given, and nothing else; flags by bit."""
    asked = flags or {}
    on, mask = sum(bit for bit, value in asked.items() if value), sum(asked)
    body = _IFINFO.pack(0, 0, number, on, mask)
    body += put(_MAC, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    body += put(_MTU, struct.pack("=I", mtu)) if mtu else b""
    body += put(_TXQLEN, struct.pack("=I", txqlen)) if txqlen is not None else b""
    return Message(_NEWLINK, 0, body)


def isolated(wire: Wire, name: str) -> bool:
    """Whether a link is a bridge's isolated port."""
    (answer,) = wire.do(f"asking for link {name}", _asked(name), but=errno.ENODEV)
    for body in answer.told:
        info = dict(attributes(dict(attributes(body[_IFINFO.size :])).get(_LINKINFO, b"")))
        return dict(attributes(info.get(_INFO_SLAVE_DATA, b""))).get(_PORT_ISOLATED) == b"\1"
    return False


def _asked(name: str) -> Message:
    return Message(_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + put(_NAME, os.fsencode(name) + b"\0"))
