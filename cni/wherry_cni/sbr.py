"""The plugin sbr: source based routing, for a container with several interfaces.

Decides that packets from an address of this interface leave by this interface: each address has a routing table of its
own (free ones from 100 up, or from the key `table`), a rule that leads there, and in it a default route by its gateway
and the interface's routes, which are moved out of the main table. So each interface answers for itself, and the main
table's default route is the first interface's.
Refuses to know how the interface was made. DEL takes what it finds in the namespace: rules from this interface's
addresses to tables that only they lead to; the tables go with the interface.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from wherry_cni import netlink, rtnetlink, skel
from wherry_cni.config import integer
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.nlwire import CREATE, DUMP, EXCL, Message, Wire, attributes, put
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "delete", "entry", "main", "status"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_FIRST = 100  # the reference's
_MOST = (1 << 31) - 1
_RESERVED = range(253, 256)  # default, main, local
_MAIN = 254
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWRULE, _DELRULE, _GETRULE = 24, 25, 26, 32, 33, 34
_RTM = struct.Struct("=BBBBBBBBI")  # struct rtmsg, and struct fib_rule_hdr, which has its shape
_DST, _OIF, _GATEWAY, _CACHEINFO, _TABLE = 1, 4, 5, 12, 15  # RTA_*
_SRC, _FRA_TABLE = 2, 15  # FRA_*
_KERNEL, _STATIC, _UNICAST, _TO_TABLE, _ONLINK = 2, 4, 1, 1, 4  # RTPROT_*, RTN_UNICAST, FR_ACT_TO_TBL, RTNH_F_ONLINK
_REPLACE = 0x100
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class _Route(NamedTuple):
    """A route as the kernel tells it: its header's fields, and its attributes."""

    head: tuple[int, ...]
    have: dict[int, bytes]

    @property
    def table(self) -> int:
        return _number(self.have.get(_TABLE)) or self.head[4]


class _Rule(NamedTuple):
    """A rule that leads from one address to a table."""

    source: Address
    table: int


class _Source(NamedTuple):
    """One address of the interface, and its gateway."""

    address: Interface
    gateway: Address | None


def add(call: Call) -> Json:
    """Tables, then rules, so that no packet is led to an empty table. What fails is undone."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "sbr must be called as a chained plugin: no prevResult")
    sources = _sources(call, previous)
    if not sources:
        raise CniError(BAD_CONFIG, f"prevResult has no address of {call.ifname}", "sbr routes by source addresses")
    first = integer(call.config, "table", 1, _MOST, _FIRST)
    with _locked(call.netns), rtnetlink.wired(call.netns) as wire:
        link = rtnetlink.find(wire, call.ifname)
        if link is None:
            raise CniError(IO_ERROR, f"the container has no interface {call.ifname}")
        _take_rules(wire, [source.address.ip for source in sources])  # what a killed ADD left
        _route_by_source(wire, link.number, dict(zip(_free_tables(wire, first), sources, strict=False)))
    return previous


def delete(call: Call) -> None:
    """The rules of this interface's addresses; absent is success."""
    if not call.netns or not os.path.exists(call.netns):
        return
    with netlink.if_there(), _locked(call.netns), rtnetlink.wired(call.netns) as wire:
        link = rtnetlink.find(wire, call.ifname)
        there = rtnetlink.addresses(wire, link.number) if link else []
        known = [ipaddress.ip_interface(text).ip for text in there]
        _take_rules(wire, [*known, *(source.address.ip for source in _sources(call, call.previous or {}))])


def check(call: Call) -> None:
    """Each address has its rule, and the table that it leads to has a route."""
    with rtnetlink.wired(call.netns) as wire:
        tables = {rule.source: rule.table for rule in _rules(wire)}
        routed = {route.table for route in _routes(wire)}
    for source in _sources(call, call.previous or {}):
        if tables.get(source.address.ip) not in routed:
            raise CniError(IO_ERROR, f"packets from {source.address.ip} have no routing table of their own any more")


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound."""
    integer(call.config, "table", 1, _MOST, _FIRST)


def _route_by_source(wire: Wire, link: int, tables: Mapping[int, _Source]) -> None:
    """The moves, all in one datagram each: the kernel takes the messages one by one, so what fails is taken back."""
    mine = [route for route in _routes(wire) if _number(route.have.get(_OIF)) == link and route.table == _MAIN]
    copies = {table: [route for route in mine if _belongs(route, source)] for table, source in tables.items()}
    moved = [route for route in mine if any(route in copied for copied in copies.values())]
    made = [_default(link, table, source.gateway) for table, source in tables.items() if source.gateway]
    # those with a gateway come last: it must be reached in the table by then
    made += [_request(_NEWROUTE, route, table) for table, copied in copies.items()
             for route in sorted(copied, key=lambda route: _GATEWAY in route.have)]
    led = [_rule(_NEWRULE, source.address.ip, table) for table, source in tables.items()]
    try:
        wire.do("routing by source", *made, *led)
        wire.do("routing by source", *(_request(_DELROUTE, route, _MAIN) for route in moved), but=errno.ESRCH)
    except BaseException:
        _take_rules(wire, [source.address.ip for source in tables.values()])
        wire.ask(*(_request(_NEWROUTE, route, _MAIN) for route in sorted(moved, key=lambda r: _GATEWAY in r.have)))
        wire.ask(*(_request(_DELROUTE, route, route.table) for route in _routes(wire) if route.table in tables))
        raise


def _belongs(route: _Route, source: _Source) -> bool:
    """Whether a route of the interface is this address's: by its gateway, or as a way to his own subnet; what has
    neither is everybody's."""
    if route.head[0] != _FAMILY[source.address.version]:
        return False
    if _GATEWAY in route.have:
        return ipaddress.ip_address(route.have[_GATEWAY]) in source.address.network
    to = ipaddress.ip_address(route.have[_DST]) if _DST in route.have else None
    return to is None or to in source.address.network or not _is_subnet(route)


def _is_subnet(route: _Route) -> bool:
    """The kernel's own route to an address's subnet (RTPROT_KERNEL)."""
    return route.head[5] == _KERNEL


def _default(link: int, table: int, gateway: Address) -> Message:
    """Its gateway is on the link, whatever the table says (RTNH_F_ONLINK)."""
    head = _RTM.pack(_FAMILY[gateway.version], 0, 0, 0, 0, _STATIC, 0, _UNICAST, _ONLINK)
    have = {_OIF: struct.pack("=I", link), _GATEWAY: gateway.packed, _TABLE: struct.pack("=I", table)}
    return Message(_NEWROUTE, CREATE | _REPLACE, head + b"".join(put(*pair) for pair in have.items()))


def _request(kind: int, route: _Route, table: int) -> Message:
    """The same route in a table; what the kernel thinks of the next hop is not for it to hear."""
    family, to, source, tos, _table, protocol, scope, form, flags = route.head
    head = _RTM.pack(family, to, source, tos, table if table < 256 else 0, protocol, scope, form, flags & _ONLINK)
    have = {**route.have, _TABLE: struct.pack("=I", table)}
    have.pop(_CACHEINFO, None)
    flags = CREATE | _REPLACE if kind == _NEWROUTE else 0
    return Message(kind, flags, head + b"".join(put(*pair) for pair in have.items()))


def _rule(kind: int, source: Address, table: int) -> Message:
    head = _RTM.pack(_FAMILY[source.version], 0, source.max_prefixlen, 0, table if table < 256 else 0, 0, 0,
                     _TO_TABLE, 0)
    have = put(_SRC, source.packed) + put(_FRA_TABLE, struct.pack("=I", table))
    return Message(kind, CREATE | EXCL if kind == _NEWRULE else 0, head + have)


def _take_rules(wire: Wire, sources: Sequence[Address]) -> None:
    gone = [_rule(_DELRULE, rule.source, rule.table) for rule in _rules(wire) if rule.source in sources]
    if gone:
        wire.do("removing rules", *gone, but=errno.ENOENT)


def _free_tables(wire: Wire, first: int) -> Iterator[int]:
    """Tables that no rule leads to and no route is in, from `first` up."""
    taken = {rule.table for rule in _rules(wire)} | {route.table for route in _routes(wire)} | set(_RESERVED)
    return (number for number in range(first, _MOST) if number not in taken)


def _rules(wire: Wire) -> list[_Rule]:
    found = []
    for body in _told(wire, _GETRULE):
        have = dict(attributes(body[_RTM.size :]))
        length, table = body[2], _number(have.get(_FRA_TABLE)) or body[4]
        if _SRC in have and length == 8 * len(have[_SRC]):
            found.append(_Rule(ipaddress.ip_address(have[_SRC]), table))
    return found


def _routes(wire: Wire) -> list[_Route]:
    """All, but those that the kernel makes for its own addresses (table local)."""
    told = [_Route(_RTM.unpack_from(body), dict(attributes(body[_RTM.size :]))) for body in _told(wire, _GETROUTE)]
    return [route for route in told if route.head[7] == _UNICAST]


def _told(wire: Wire, kind: int) -> list[bytes]:
    found: list[bytes] = []
    for family in _FAMILY.values():
        (answer,) = wire.do("asking for routes", Message(kind, DUMP, _RTM.pack(family, *[0] * 8)), but=errno.EOPNOTSUPP)
        found += answer.told
    return found


def _sources(call: Call, previous: Json) -> list[_Source]:
    """The addresses of this interface; one without an index counts as its."""
    links = previous.get("interfaces") or []
    found = []
    for part in previous.get("ips") or []:
        index = part.get("interface")
        if index is None or not 0 <= index < len(links) or links[index].get("name") == call.ifname:
            gateway = ipaddress.ip_address(part["gateway"]) if part.get("gateway") else None
            found.append(_Source(ipaddress.ip_interface(part["address"]), gateway))
    return found


@contextmanager
def _locked(netns: str) -> Iterator[None]:
    """One at a time in a namespace: two would choose the same free table."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status}
main, entry = skel.faces(VERBS)
