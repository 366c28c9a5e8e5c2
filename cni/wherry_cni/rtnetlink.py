"""The dozen messages of rtnetlink(7) that a bridge attachment needs.

Decides how links, addresses and routes are asked for. Refuses to know what a bridge network is.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from wherry_cni import nlwire
from wherry_cni.nlwire import CREATE, DUMP, EXCL, Answer, Message, Wire, attributes, nest, put

__all__ = ["IFF_PROMISC", "IFF_UP", "Link", "address", "addresses", "bridge", "drop_address", "find", "get", "given",
           "hairpin", "route", "up", "veth", "wired"]

IFF_UP, IFF_PROMISC = 0x1, 0x100  # netdevice(7)
_NEWLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE = 16, 18, 20, 21, 22, 24
_MAC, _NAME, _MTU, _MASTER, _LINKINFO, _NET_NS_FD = 1, 3, 4, 10, 18, 28  # IFLA_*
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER, _PORT_MODE = 1, 4  # VETH_INFO_PEER, IFLA_BRPORT_MODE (hairpin)
_ADDRESS, _LOCAL, _BROADCAST, _FLAGS = 1, 2, 4, 8  # IFA_*
_DST, _OIF, _GATEWAY, _PRIORITY, _METRICS, _TABLE = 1, 4, 5, 6, 8, 15  # RTA_*
_METRIC = {"mtu": 2, "advmss": 8}  # RTAX_*
_MAIN, _STATIC, _UNICAST, _UNIVERSE, _SCOPE_LINK = 254, 4, 1, 0, 253
_NODAD = 0x02  # IFA_F_NODAD
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")


class Link(NamedTuple):
    """One interface as the kernel tells it."""

    number: int
    name: str
    mac: str
    mtu: int
    up: bool
    master: int
    kind: str


@contextmanager
def wired(netns: str = "") -> Iterator[Wire]:
    """A socket here, or in the network namespace at `netns`."""
    with nlwire.opened(socket.NETLINK_ROUTE, netns) as wire:
        yield wire


def find(wire: Wire, name: str) -> Link | None:
    """One link by name, None where there is none."""
    (answer,) = wire.do(f"asking for link {name}", get(name), but=errno.ENODEV)
    return given(answer)


def addresses(wire: Wire, index: int) -> list[str]:
    """A link's addresses with their prefix lengths."""
    found = []
    for body in wire.do("asking for addresses", Message(_GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, index)))[0].told:
        _family, prefix, _flags, _scope, owner = _IFADDR.unpack_from(body)
        have = dict(attributes(body[_IFADDR.size :]))
        plain = have.get(_LOCAL) or have.get(_ADDRESS)
        if owner == index and plain:
            found.append(f"{ipaddress.ip_address(plain)}/{prefix}")
    return found


# ---- requests


def get(name: str) -> Message:
    """A link by name; `given` reads the answer."""
    return Message(_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _named(name))


def given(answer: Answer) -> Link | None:
    """The link that was told, None where there is none."""
    for body in answer.told:
        _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
        have = dict(attributes(body[_IFINFO.size :]))
        info = dict(attributes(have.get(_LINKINFO, b"")))
        return Link(index, _text(have[_NAME]), have.get(_MAC, b"").hex(":"), _number(have.get(_MTU)),
                    bool(flags & IFF_UP), _number(have.get(_MASTER)), _text(info.get(_INFO_KIND, b"")))
    return None


def bridge(name: str, mac: str, mtu: int = 0) -> Message:
    """Make a bridge, down; EEXIST where the name is taken."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + _mac(mac) + _sized(mtu)
    return Message(_NEWLINK, CREATE | EXCL, body + nest(_LINKINFO, put(_INFO_KIND, b"bridge")))


def veth(name: str, master: int, peer: str, netns: int, *, mac: str = "", mtu: int = 0) -> Message:
    """Make a pair: this end up and a port of the bridge `master`, its peer down in the namespace of `netns` (a
    descriptor)."""
    end = _IFINFO.pack(0, 0, 0, 0, 0) + _named(peer) + _u32(_NET_NS_FD, netns) + _mac(mac) + _sized(mtu)
    info = put(_INFO_KIND, b"veth") + nest(_INFO_DATA, nest(_VETH_PEER, end))
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _named(name) + _u32(_MASTER, master) + _sized(mtu)
    return Message(_NEWLINK, CREATE | EXCL, body + nest(_LINKINFO, info))


def hairpin(name: str) -> Message:
    """Let a bridge send back what it hears from this port."""
    info = put(_INFO_SLAVE_KIND, b"bridge") + nest(_INFO_SLAVE_DATA, put(_PORT_MODE, b"\1"))
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + nest(_LINKINFO, info))


def up(index: int, flags: int = IFF_UP) -> Message:
    """Set flags of a link."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, flags, flags))


def address(index: int, text: str, *, dad: bool = True) -> Message:
    """Give a link an address ("10.1.0.2/24"); EEXIST where it has it. Without `dad` no duplicate is looked for."""
    return Message(_NEWADDR, CREATE | EXCL, _address(index, text, 0 if dad else _NODAD))


def drop_address(index: int, text: str) -> Message:
    """Take an address from a link."""
    return Message(_DELADDR, 0, _address(index, text, 0))


def _address(index: int, text: str, flags: int) -> bytes:
    wanted = ipaddress.ip_interface(text)
    family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
    body = _IFADDR.pack(family, wanted.network.prefixlen, 0, _UNIVERSE, index)
    body += put(_LOCAL, wanted.packed) + put(_ADDRESS, wanted.packed)
    if wanted.version == 4:
        return body + put(_BROADCAST, wanted.network.broadcast_address.packed)
    return body + (_u32(_FLAGS, flags) if flags else b"")


def route(index: int, wanted: Mapping[str, Any]) -> Message:
    """A route of a CNI result (dst, gw, priority, table, scope, mtu, advmss) over a link; EEXIST where it is there."""
    to = ipaddress.ip_network(wanted["dst"], strict=False)
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    table, gateway = int(wanted.get("table") or _MAIN), wanted.get("gw")
    near = _SCOPE_LINK if to.version == 4 and not gateway else _UNIVERSE
    scope = int(wanted["scope"]) if wanted.get("scope") else near
    body = _RTMSG.pack(family, to.prefixlen, 0, 0, table if table < 256 else 0, _STATIC, scope, _UNICAST, 0)
    body += put(_DST, to.network_address.packed) if to.prefixlen else b""
    body += _u32(_OIF, index) + _u32(_TABLE, table)
    body += put(_GATEWAY, ipaddress.ip_address(gateway).packed) if gateway else b""
    body += _u32(_PRIORITY, int(wanted["priority"])) if wanted.get("priority") else b""
    metrics = b"".join(_u32(number, int(wanted[name])) for name, number in _METRIC.items() if wanted.get(name))
    return Message(_NEWROUTE, CREATE | EXCL, body + (nest(_METRICS, metrics) if metrics else b""))


# ---- bytes


def _u32(kind: int, value: int) -> bytes:
    return put(kind, struct.pack("=I", value))


def _named(name: str) -> bytes:
    return put(_NAME, os.fsencode(name) + b"\0")


def _mac(mac: str) -> bytes:
    return put(_MAC, bytes.fromhex(mac.replace(":", ""))) if mac else b""


def _sized(mtu: int) -> bytes:
    return _u32(_MTU, mtu) if mtu else b""


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0
