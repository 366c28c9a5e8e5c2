"""What an overlay network is in the kernel: a VXLAN device with its neighbours and forwarding entries, and routes.

Decides how these are asked for, and which of those that are there are ours: everything on our device; of the routes
those of our protocol number with the network's own metric. No other is touched; one to a peer's subnet is an error.
Refuses to know peers and files: it makes the kernel equal to what it is given.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wherry_cni import netlink, rtnetlink
from wherry_cni.errors import BAD_CONFIG, KERNEL, UNSUPPORTED, CniError
from wherry_cni.nlwire import CREATE, DUMP, EXCL, Answer, Message, Wire, attributes, nest, put

__all__ = ["LOOPBACK", "PROTOCOL", "Route", "Vtep", "Way", "differences", "local_addresses", "remove", "set_device",
           "set_routes", "set_ways", "underlay_mtu"]

PROTOCOL = 87  # rtnetlink(7): above RTPROT_STATIC a number is a program's own
_NEWLINK, _GETLINK, _GETADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 16, 18, 22, 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_MAC, _NAME, _MTU, _LINKINFO, _ALIAS = 1, 3, 4, 18, 20  # IFLA_*
_KIND, _DATA = 1, 2  # IFLA_INFO_*
_VNI, _VTEP4, _LEARNING, _PORT, _VTEP6 = 1, 4, 7, 15, 17  # IFLA_VXLAN_*
_ADDRESS, _LOCAL = 1, 2  # IFA_*
_DST, _OIF, _GATEWAY, _PRIORITY, _TABLE, _VIA = 1, 4, 5, 6, 15, 18  # RTA_*
_MAIN, _UNICAST, _ONLINK = 254, 1, 4  # RT_TABLE_MAIN, RTN_UNICAST, RTNH_F_ONLINK
_NEIGH_DST, _NEIGH_MAC, _NEIGH_IFINDEX = 1, 2, 8  # NDA_*
_PERMANENT, _SELF, _REPLACE = 0x80, 0x02, 0x100  # NUD_PERMANENT, NTF_SELF, NLM_F_REPLACE
LOOPBACK = 1  # the index of lo in every namespace
_IFINFO, _IFADDR, _RTMSG, _NDMSG = (struct.Struct(form) for form in ("=BxHiII", "=BBBBI", "=BBBBBBBBI", "=BxxxiHBB"))
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)


class Vtep(NamedTuple):
    """Our end of the tunnels (RFC 7348): the device, this host's underlay address, what tells networks apart, and an
    alias for people."""

    name: str
    address: str
    vni: int
    port: int
    mac: str
    mtu: int
    alias: str


class Way(NamedTuple):
    """How a VTEP finds another: the next hops that stand for it, its MAC, its underlay address."""

    hops: tuple[str, ...]
    mac: str
    address: str


class Route(NamedTuple):
    """A subnet by a next hop on `link`; 0: the kernel finds the link, and the hop must be a neighbour there."""

    subnet: str
    hop: str
    link: int = 0


# ---- this host


def local_addresses(wire: Wire) -> dict[str, int]:
    """Address to link index, of every address here but the loopback's own network."""
    found = {}
    for body in wire.do("asking for addresses", Message(_GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, 0)))[0].told:
        index, have = _IFADDR.unpack_from(body)[4], dict(attributes(body[_IFADDR.size :]))
        address = ipaddress.ip_address(have.get(_LOCAL) or have[_ADDRESS])
        if not address.is_loopback and not address.is_link_local:
            found[str(address)] = index
    return found


def underlay_mtu(wire: Wire, index: int) -> int:
    """The MTU of the link that carries the underlay address."""
    (answer,) = wire.do("asking for a link", Message(_GETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0)))
    found = rtnetlink.given(answer)
    if found is None or index == LOOPBACK:
        raise CniError(BAD_CONFIG, "the underlay address is on the loopback: the MTU of the way is not known",
                       "give the network an mtu")
    return found.mtu


# ---- the device


def set_device(wire: Wire, wanted: Vtep, addresses: Sequence[str]) -> int:
    """The VXLAN device as wanted, up, with these addresses; its index. One that differs is made anew."""
    found = rtnetlink.find(wire, wanted.name)
    if found is not None and (found.mac != wanted.mac or _identity(wire, wanted.name) != _identity_of(wanted)):
        netlink.delete_link(wanted.name)
        found = None
    if found is None:
        _make(wire, wanted)
        found = rtnetlink.find(wire, wanted.name)
        if found is None:
            raise CniError(KERNEL, f"{wanted.name} vanished while it was made")
        _quiet(wanted.name, any(":" in address for address in addresses))
    if found.mtu != wanted.mtu:
        size = _u32(_MTU, wanted.mtu)
        wire.do(f"the MTU of {wanted.name}", Message(_NEWLINK, 0, _IFINFO.pack(0, 0, found.number, 0, 0) + size))
    _give(wire, found.number, addresses)
    if not found.up:
        wire.do(wanted.name, rtnetlink.up(found.number))
    return found.number


def _make(wire: Wire, wanted: Vtep) -> None:
    address = ipaddress.ip_address(wanted.address)
    data = _u32(_VNI, wanted.vni) + put(_LEARNING, b"\0") + put(_PORT, struct.pack("!H", wanted.port))
    data += put(_VTEP4 if address.version == 4 else _VTEP6, address.packed)
    info = nest(_LINKINFO, put(_KIND, b"vxlan") + nest(_DATA, data))
    body = put(_NAME, wanted.name.encode() + b"\0") + put(_MAC, _bytes(wanted.mac)) + _u32(_MTU, wanted.mtu)
    body += put(_ALIAS, wanted.alias.encode()[:255])
    (answer,) = wire.ask(Message(_NEWLINK, CREATE | EXCL, _IFINFO.pack(0, 0, 0, 0, 0) + body + info))
    if answer.code == errno.EEXIST:
        raise CniError(BAD_CONFIG, f"VNI {wanted.vni} on port {wanted.port} belongs to another device of this host",
                       "`ip -d link show type vxlan` shows it; choose another vni")
    if answer.code == errno.EOPNOTSUPP:
        raise CniError(UNSUPPORTED, "the kernel has no VXLAN (CONFIG_VXLAN)", "mode host-gw needs none")
    if answer.code:
        raise netlink.explained(f"making {wanted.name}", answer.code)


def _quiet(name: str, six: bool) -> None:
    """No address that the kernel makes up, and no router solicitations: the tunnel carries what has a route."""
    if six and os.path.exists(f"/proc/sys/net/ipv6/conf/{name}"):
        for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")):
            netlink.sysctl(f"net/ipv6/conf/{name}/{key}", value)


def _identity(wire: Wire, name: str) -> tuple[str, ...]:
    """What cannot be changed in a device: VNI, port and address; () where it is no VXLAN device."""
    for body in wire.do(f"asking for {name}", rtnetlink.get(name))[0].told:
        info = dict(attributes(dict(attributes(body[_IFINFO.size :])).get(_LINKINFO, b"")))
        data = dict(attributes(info.get(_DATA, b"")))
        address = data.get(_VTEP4) or data.get(_VTEP6)
        if info.get(_KIND, b"").rstrip(b"\0") == b"vxlan" and address:
            port = int.from_bytes(data[_PORT], "big")
            return str(_number(data[_VNI])), str(port), str(ipaddress.ip_address(address))
    return ()


def _identity_of(wanted: Vtep) -> tuple[str, ...]:
    return (str(wanted.vni), str(wanted.port), wanted.address)


def _give(wire: Wire, index: int, wanted: Sequence[str]) -> None:
    """The device's addresses: what this host speaks from when it speaks to a peer's container."""
    present = rtnetlink.addresses(wire, index)
    gone = [rtnetlink.drop_address(index, old) for old in present if old not in wanted]
    new = [rtnetlink.address(index, text, dad=False) for text in wanted if text not in present]
    if gone or new:
        wire.do("the device's addresses", *gone, *new, but=errno.EEXIST)


# ---- neighbours and forwarding entries


def set_ways(wire: Wire, index: int, wanted: Sequence[Way]) -> None:
    """The device's neighbours and forwarding entries become those of `wanted`; everything on it is ours."""
    gone, new = _ways(wire, index, wanted)
    messages = [Message(_DELNEIGH, 0, body) for body in gone] + [Message(_NEWNEIGH, CREATE | _REPLACE, b) for b in new]
    if messages:
        wire.do("the peers' entries", *messages, but=errno.ENOENT)


def _ways(wire: Wire, index: int, wanted: Sequence[Way]) -> tuple[list[bytes], list[bytes]]:
    """Entries to remove and to make."""
    hops = {(hop, way.mac) for way in wanted for hop in way.hops}
    forward = {(way.address, way.mac) for way in wanted}
    near, far = _entries(wire, index, socket.AF_UNSPEC), _entries(wire, index, socket.AF_BRIDGE)
    gone = [_neighbour(index, *old) for old in near - hops] + [_forward(index, *old) for old in far - forward]
    return gone, ([_neighbour(index, *new) for new in hops - near] + [_forward(index, *new) for new in forward - far])


def _entries(wire: Wire, index: int, family: int) -> set[tuple[str, str]]:
    """The permanent (address, MAC) pairs of a device: neighbours, or for AF_BRIDGE forwarding entries."""
    asked = Message(_GETNEIGH, DUMP, _NDMSG.pack(family, 0, 0, 0, 0) + _u32(_NEIGH_IFINDEX, index))
    found = set()
    for body in wire.do("asking for neighbours", asked)[0].told:
        _family, owner, state, _flags, _type = _NDMSG.unpack_from(body)
        have = dict(attributes(body[_NDMSG.size :]))
        if owner == index and state & _PERMANENT and _NEIGH_DST in have and _NEIGH_MAC in have:
            found.add((str(ipaddress.ip_address(have[_NEIGH_DST])), have[_NEIGH_MAC].hex(":")))
    return found


def _neighbour(index: int, hop: str, mac: str) -> bytes:
    address = ipaddress.ip_address(hop)
    head = _NDMSG.pack(_FAMILY[address.version], index, _PERMANENT, 0, 0)
    return head + put(_NEIGH_DST, address.packed) + put(_NEIGH_MAC, _bytes(mac))


def _forward(index: int, address: str, mac: str) -> bytes:
    head = _NDMSG.pack(socket.AF_BRIDGE, index, _PERMANENT, _SELF, 0)
    return head + put(_NEIGH_DST, ipaddress.ip_address(address).packed) + put(_NEIGH_MAC, _bytes(mac))


# ---- routes


def set_routes(wire: Wire, metric: int, wanted: Sequence[Route], named: Callable[[str], str]) -> None:
    """The network's routes become `wanted`. One that cannot be keeps no other from its place; the first refusal is
    raised at the end, with what `named` says of its next hop."""
    gone, new, foreign = _routes(wire, metric, wanted)
    wire.do("removing routes", *(Message(_DELROUTE, 0, _route(old, metric)) for old in gone), but=errno.ESRCH)
    answers = wire.ask(*(Message(_NEWROUTE, CREATE | EXCL, _route(route, metric)) for route in new))
    for route, answer in zip(new, answers, strict=True):
        if answer.code not in (0, errno.EEXIST):
            raise _refused(route, named(route.hop), answer)
    for route in wanted:
        if route.subnet in foreign:
            raise CniError(BAD_CONFIG, f"{named(route.hop)}: this host has another route to {route.subnet} already",
                           f"`ip route show {route.subnet}` shows it; it is left alone")


def _routes(wire: Wire, metric: int, wanted: Sequence[Route]) -> tuple[list[Route], list[Route], set[str]]:
    """Routes to remove, routes to make, and wanted subnets that somebody else has a route to."""
    asked = {(route.subnet, route.hop): route for route in wanted}
    told = list(_told(wire, metric))
    mine = {(route.subnet, route.hop) for route, owned in told if owned}
    foreign = {route.subnet for route, owned in told if not owned} & {route.subnet for route in wanted}
    gone = [Route(*key) for key in mine - asked.keys()]
    return gone, [route for key, route in asked.items() if key not in mine and route.subnet not in foreign], foreign


def _told(wire: Wire, metric: int) -> Iterator[tuple[Route, bool]]:
    """The unicast routes of the main table, and whether they are this network's."""
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = Message(_GETROUTE, DUMP, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        for body in wire.do("asking for routes", asked)[0].told:
            _f, length, _s, _tos, table, protocol, _scope, kind, _flags = _RTMSG.unpack_from(body)
            have = dict(attributes(body[_RTMSG.size :]))
            if kind != _UNICAST or _DST not in have or (_number(have.get(_TABLE)) or table) != _MAIN:
                continue
            via = have.get(_GATEWAY) or have.get(_VIA, b"")[2:]
            hop = str(ipaddress.ip_address(via)) if via else ""
            owned = bool(hop) and protocol == PROTOCOL and _number(have.get(_PRIORITY)) == metric
            yield Route(f"{ipaddress.ip_address(have[_DST])}/{length}", hop), owned


def _route(route: Route, metric: int) -> bytes:
    """A route's message; an IPv4 subnet behind an IPv6 hop goes by RTA_VIA."""
    subnet, hop = ipaddress.ip_network(route.subnet), ipaddress.ip_address(route.hop)
    flags = _ONLINK if route.link else 0
    body = _RTMSG.pack(_FAMILY[subnet.version], subnet.prefixlen, 0, 0, _MAIN, PROTOCOL, 0, _UNICAST, flags)
    body += put(_DST, subnet.network_address.packed) + _u32(_PRIORITY, metric)
    if hop.version == subnet.version:
        body += put(_GATEWAY, hop.packed)
    else:
        body += put(_VIA, struct.pack("=H", _FAMILY[hop.version]) + hop.packed)
    return body + (_u32(_OIF, route.link) if route.link else b"")


def _refused(route: Route, name: str, answer: Answer) -> CniError:
    if not route.link and answer.code in _UNREACHABLE:
        return CniError(BAD_CONFIG, f"host-gw: {name} is not on a link of this host: no direct route to {route.subnet}",
                        "mode vxlan joins hosts that are routers apart")
    return netlink.explained(f"the route to {route.subnet} by {name}", answer.code)


# ---- all of it


def differences(wire: Wire, index: int, metric: int, ways: Sequence[Way], routes: Sequence[Route]) -> int:
    """How many entries differ from what is wanted; `index` 0: there is no device."""
    gone, new, foreign = _routes(wire, metric, routes)
    lost = sum(map(len, _ways(wire, index, ways))) if index else 0
    return len(gone) + len(new) + len(foreign) + lost


def remove(wire: Wire, name: str, metric: int) -> None:
    """Device and routes of a network; absent is success."""
    set_routes(wire, metric, (), str)
    netlink.delete_link(name)


def _u32(kind: int, value: int) -> bytes:
    return put(kind, struct.pack("=I", value))


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
