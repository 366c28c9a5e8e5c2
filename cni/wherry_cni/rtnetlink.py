"""The messages of rtnetlink(7) that an interface needs; rtbridge.py has those of a bridge's ports.

Decides how links, addresses and routes are asked for. Refuses to know what a network is.
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

__all__ = ["DAD_FAILED", "IFF_PROMISC", "IFF_UP", "TENTATIVE", "Address", "Link", "Route", "address", "addresses",
           "bridge", "child", "default_link", "down", "drop_address", "find", "get", "given", "links", "marked",
           "moved", "removed", "renamed", "route", "routes", "told_addresses", "up", "veth", "wired"]

IFF_UP, IFF_PROMISC = 0x1, 0x100  # netdevice(7)
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 20, 21, 22, 24, 26
_MAC, _NAME, _MTU, _LINK, _MASTER, _LINKINFO, _ALIAS, _NET_NS_FD = 1, 3, 4, 5, 10, 18, 20, 28  # IFLA_*
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER, _VLAN_FILTERING = 1, 7  # VETH_INFO_PEER, IFLA_BR_VLAN_FILTERING
_ADDRESS, _LOCAL, _BROADCAST, _FLAGS = 1, 2, 4, 8  # IFA_*
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH, _TABLE = 1, 4, 5, 6, 7, 8, 9, 15  # RTA_*
_METRIC = {"mtu": 2, "advmss": 8}  # RTAX_*
_MAIN, _STATIC, _UNICAST, _UNIVERSE, _SCOPE_LINK = 254, 4, 1, 0, 253
_NODAD, DAD_FAILED, TENTATIVE, _NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x200  # IFA_F_*
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
    alias: str = ""
    data: bytes = b""  # attributes of its kind


class Address(NamedTuple):
    """One address of an interface, such as 10.1.0.2/24, with its IFA_F_* flags."""

    text: str
    flags: int


class Route(NamedTuple):
    """One route as the kernel tells it: `dst` is a network, `gw` "" where there is none."""

    dst: str
    gw: str
    link: int
    metric: int
    table: int


@contextmanager
def wired(netns: str = "") -> Iterator[Wire]:
    """A socket here, or in the network namespace at `netns`."""
    with nlwire.opened(socket.NETLINK_ROUTE, netns) as wire:
        yield wire


def find(wire: Wire, name: str) -> Link | None:
    """One link by name, None where there is none."""
    (answer,) = wire.do(f"asking for link {name}", get(name), but=errno.ENODEV)
    return given(answer)


def links(wire: Wire) -> list[Link]:
    """All links."""
    (answer,) = wire.do("asking for links", Message(_GETLINK, DUMP, _IFINFO.pack(0, 0, 0, 0, 0)))
    return [_link(body) for body in answer.told]


def addresses(wire: Wire, index: int = 0) -> list[str]:
    """A link's addresses, or all (index 0), with their prefix lengths."""
    return [found.text for found in told_addresses(wire, index)]


def told_addresses(wire: Wire, index: int) -> list[Address]:
    """A link's addresses with what the kernel thinks of them."""
    found = []
    for body in wire.do("asking for addresses", Message(_GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, index)))[0].told:
        _family, prefix, flags, _scope, owner = _IFADDR.unpack_from(body)
        have = dict(attributes(body[_IFADDR.size :]))
        plain = have.get(_LOCAL) or have.get(_ADDRESS)
        if index in (0, owner) and plain:
            found.append(Address(f"{ipaddress.ip_address(plain)}/{prefix}", _number(have.get(_FLAGS)) or flags))
    return found


def routes(wire: Wire) -> list[Route]:
    """All routes, IPv4 first."""
    found = []
    for family, everything in ((socket.AF_INET, ipaddress.IPv4Address(0)), (socket.AF_INET6, ipaddress.IPv6Address(0))):
        asked = Message(_GETROUTE, DUMP, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        (answer,) = wire.do("asking for routes", asked, but=errno.EOPNOTSUPP)  # a kernel without IPv6
        found += [_route(body, everything) for body in answer.told]
    return found


def default_link(wire: Wire) -> int:
    """The number of the link of the default route that is tried first, 0 where there is none."""
    ways = [way for way in routes(wire) if way.dst in ("0.0.0.0/0", "::/0") and way.table == _MAIN and way.link]
    return min(ways, key=lambda way: (":" in way.dst, way.metric)).link if ways else 0


def _route(body: bytes, everything: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Route:
    _family, length, _source, _tos, table, *_ = _RTMSG.unpack_from(body)
    have = dict(attributes(body[_RTMSG.size :]))
    to = ipaddress.ip_address(have[_DST]) if _DST in have else everything
    gateway = str(ipaddress.ip_address(have[_GATEWAY])) if _GATEWAY in have else ""
    link = _number(have.get(_OIF)) or _number(have.get(_MULTIPATH, b"")[4:8])  # rtnexthop: length, flags, hops, ifindex
    return Route(f"{to}/{length}", gateway, link, _number(have.get(_PRIORITY)), _number(have.get(_TABLE)) or table)


# ---- requests


def get(name: str) -> Message:
    """A link by name; `given` reads the answer."""
    return Message(_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _named(name))


def given(answer: Answer) -> Link | None:
    """The link that was told, None where there is none."""
    return next(map(_link, answer.told), None)


def _link(body: bytes) -> Link:
    _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
    have = dict(attributes(body[_IFINFO.size :]))
    info = dict(attributes(have.get(_LINKINFO, b"")))
    return Link(index, _text(have[_NAME]), have.get(_MAC, b"").hex(":"), _number(have.get(_MTU)), bool(flags & IFF_UP),
                _number(have.get(_MASTER)), _text(info.get(_INFO_KIND, b"")), _text(have.get(_ALIAS, b"")),
                info.get(_INFO_DATA, b""))


def bridge(name: str, mac: str, mtu: int = 0, *, vlans: bool = False) -> Message:
    """Make a bridge, down; EEXIST where the name is taken. With `vlans` it filters them."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + _mac(mac) + _sized(mtu)
    info = put(_INFO_KIND, b"bridge") + (nest(_INFO_DATA, put(_VLAN_FILTERING, b"\1")) if vlans else b"")
    return Message(_NEWLINK, CREATE | EXCL, body + nest(_LINKINFO, info))


def veth(name: str, master: int, peer: str, netns: int, *, mac: str = "", mtu: int = 0) -> Message:
    """Make a pair: this end up and a port of the bridge `master` (0: of none), its peer down in the namespace of
    `netns` (a descriptor)."""
    end = _IFINFO.pack(0, 0, 0, 0, 0) + _named(peer) + _u32(_NET_NS_FD, netns) + _mac(mac) + _sized(mtu)
    info = put(_INFO_KIND, b"veth") + nest(_INFO_DATA, nest(_VETH_PEER, end))
    owner = _u32(_MASTER, master) if master else b""
    body = _IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + _named(name) + owner + _sized(mtu)
    return Message(_NEWLINK, CREATE | EXCL, body + nest(_LINKINFO, info))


def child(kind: str, name: str, parent: int, netns: int, data: bytes, *, mac: str = "", mtu: int = 0) -> Message:
    """Make a link of a `kind` such as macvlan upon the link `parent`, down in the namespace of `netns`."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _named(name) + _u32(_LINK, parent) + _u32(_NET_NS_FD, netns)
    info = put(_INFO_KIND, kind.encode()) + nest(_INFO_DATA, data)
    return Message(_NEWLINK, CREATE | EXCL, body + _mac(mac) + _sized(mtu) + nest(_LINKINFO, info))


def renamed(index: int, name: str) -> Message:
    """Name a link that is down; EEXIST where the name is taken."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _named(name))


def marked(index: int, alias: str, name: str = "") -> Message:
    """Note an alias upon a link, "" for none; where it is `renamed`, too, no caller's end comes between."""
    body = _IFINFO.pack(0, 0, index, 0, 0) + (_named(name) if name else b"")
    return Message(_NEWLINK, 0, body + put(_ALIAS, os.fsencode(alias)))


def removed(index: int) -> Message:
    """Remove a link."""
    return Message(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def moved(index: int, netns: int, name: str) -> Message:
    """Move a link into the namespace of `netns` and name it there. It arrives down, without its addresses; its alias
    stays. EINVAL where it cannot be moved (a bridge, lo)."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + _u32(_NET_NS_FD, netns) + _named(name))


def down(index: int) -> Message:
    """Take a link down."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, IFF_UP))


def up(index: int, flags: int = IFF_UP) -> Message:
    """Set flags of a link."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, flags, flags))


def address(index: int, text: str, *, dad: bool = True, connected: bool = True) -> Message:
    """Give a link an address ("10.1.0.2/24"); EEXIST where it has it. Without `dad` no duplicate is looked for, without
    `connected` there is no route to its subnet."""
    flags = (0 if dad else _NODAD) | (0 if connected else _NOPREFIXROUTE)
    return Message(_NEWADDR, CREATE | EXCL, _address(index, text, flags))


def drop_address(index: int, text: str) -> Message:
    """Take an address from a link."""
    return Message(_DELADDR, 0, _address(index, text, 0))


def _address(index: int, text: str, flags: int) -> bytes:
    wanted = ipaddress.ip_interface(text)
    family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
    body = _IFADDR.pack(family, wanted.network.prefixlen, 0, _UNIVERSE, index)
    body += put(_LOCAL, wanted.packed) + put(_ADDRESS, wanted.packed) + (_u32(_FLAGS, flags) if flags else b"")
    near = wanted.version == 4 and wanted.network.prefixlen < 31  # RFC 3021: a /31 has no broadcast address
    return body + (put(_BROADCAST, wanted.network.broadcast_address.packed) if near else b"")


def route(index: int, wanted: Mapping[str, Any]) -> Message:
    """A route of a CNI result (dst, gw, priority, table, scope, mtu, advmss; and src, the address to send from) over a
    link; EEXIST where it is there."""
    to = ipaddress.ip_network(wanted["dst"], strict=False)
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    table, gateway = int(wanted.get("table") or _MAIN), wanted.get("gw")
    near = _SCOPE_LINK if to.version == 4 and not gateway else _UNIVERSE
    scope = int(wanted["scope"]) if wanted.get("scope") else near
    body = _RTMSG.pack(family, to.prefixlen, 0, 0, table if table < 256 else 0, _STATIC, scope, _UNICAST, 0)
    body += put(_DST, to.network_address.packed) if to.prefixlen else b""
    body += _u32(_OIF, index) + _u32(_TABLE, table)
    body += put(_GATEWAY, ipaddress.ip_address(gateway).packed) if gateway else b""
    body += put(_PREFSRC, ipaddress.ip_address(wanted["src"]).packed) if wanted.get("src") else b""
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
