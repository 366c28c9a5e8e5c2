"""The peers file of an overlay network: who takes part, and which subnets lie behind whom.

Decides what a sound file is: every host once, every subnet behind one host, no host inside a subnet. Whatever is wrong
is told with the entry's number and what it says. Refuses to know the kernel: this host's addresses are given.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR

__all__ = ["IPNetwork", "Peer", "own", "parse", "read"]

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAX = 4 << 20  # bytes


class Peer(NamedTuple):
    """One host: its address in the underlay, and the subnets of its containers."""

    address: str
    subnets: tuple[str, ...]

    def nets(self) -> list[IPNetwork]:
        """The subnets, parsed."""
        return [ipaddress.ip_network(text) for text in self.subnets]


def read(path: str) -> list[Peer]:
    """The peers of a file; a CniError says what is wrong with which entry."""
    try:
        with open(path, "rb", opener=_at_once) as stream:
            data = stream.read(_MAX + 1) if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
    except OSError as problem:
        raise CniError(IO_ERROR, f"peers file {path}: {problem.strerror}") from None
    if data is None:
        raise CniError(BAD_CONFIG, f"peers file {path} is not a file")
    if len(data) > _MAX:
        raise CniError(BAD_CONFIG, f"peers file {path} is larger than {_MAX} bytes")
    try:
        return parse(data)
    except CniError as problem:
        raise CniError(problem.code, f"peers file {path}: {problem.msg}", problem.details) from None


def _at_once(path: str, flags: int) -> int:
    """A fifo would keep us, and whoever waits for our lock, until somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def parse(data: bytes) -> list[Peer]:
    """`{"peers": [{"address": ADDRESS, "subnets": [CIDR, ...]}, ...]}`."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise CniError(BAD_CONFIG, f"not JSON: {problem}") from None
    listed = given.get("peers") if isinstance(given, dict) else None
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, 'no list "peers"',
                       '{"peers": [{"address": "192.0.2.1", "subnets": ["10.244.1.0/24"]}, ...]}')
    peers = [_peer(number, part) for number, part in enumerate(listed, 1)]
    _distinct(peers)
    _disjoint(peers)
    return peers


def own(peers: Sequence[Peer], address: str, here: Collection[str]) -> Peer:
    """This host's entry: the one of `address`, else the one whose address is `here`."""
    if address:
        wanted = str(ipaddress.ip_address(address))
        if wanted not in here:
            raise CniError(BAD_CONFIG, f"address: this host has no address {wanted}")
        found = [peer for peer in peers if peer.address == wanted]
    else:
        found = [peer for peer in peers if peer.address in here]
    if not found:
        raise CniError(BAD_CONFIG, f"peers file: no entry for this host ({address or ', '.join(sorted(here))})",
                       "add one with this host's underlay address and its containers' subnets")
    if len(found) > 1:
        raise CniError(BAD_CONFIG, f"peers file: this host has several entries: {', '.join(p.address for p in found)}",
                       "keep one, or say which by the key address")
    return found[0]


def _peer(number: int, part: Any) -> Peer:
    if not isinstance(part, dict) or not isinstance(part.get("address"), str):
        raise CniError(BAD_CONFIG, f"entry {number}: no address")
    try:
        address = ipaddress.ip_address(part["address"])
    except ValueError as problem:
        raise CniError(BAD_CONFIG, f"entry {number}: address: {problem}") from None
    if address.is_unspecified or address.is_multicast or address.is_loopback or "%" in str(address):
        raise CniError(BAD_CONFIG, f"entry {number}: address {address} is no host's")
    subnets = part.get("subnets")
    if not isinstance(subnets, list) or not subnets:
        raise CniError(BAD_CONFIG, f"entry {number} ({address}): no list of subnets")
    return Peer(str(address), tuple(_subnet(f"entry {number} ({address})", text) for text in subnets))


def _subnet(where: str, text: object) -> str:
    try:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a text")
        subnet = ipaddress.ip_network(text)
    except ValueError as problem:
        raise CniError(BAD_CONFIG, f"{where}: subnet: {problem}") from None
    if not 0 < subnet.prefixlen <= subnet.max_prefixlen - 2 or subnet.is_multicast or subnet.is_link_local:
        raise CniError(BAD_CONFIG, f"{where}: subnet {subnet} holds no containers")
    return str(subnet)


def _distinct(peers: Sequence[Peer]) -> None:
    seen: dict[str, int] = {}
    for number, peer in enumerate(peers, 1):
        if peer.address in seen:
            raise CniError(BAD_CONFIG, f"entries {seen[peer.address]} and {number}: the same address {peer.address}")
        seen[peer.address] = number


def _disjoint(peers: Sequence[Peer]) -> None:
    """No subnet meets another, and no host is inside one: its own packets would go round in the overlay. Sorted, only
    neighbours can meet: a thousand hosts are no million comparisons."""
    named = [(net, f"entry {number} ({peer.address})") for number, peer in enumerate(peers, 1) for net in peer.nets()]
    named += [(ipaddress.ip_network(peer.address), f"the host of entry {at}") for at, peer in enumerate(peers, 1)]
    for (one, first), (two, second) in pairwise(sorted(named, key=_order)):
        if one.overlaps(two):
            raise CniError(BAD_CONFIG, f"{first}: {one} overlaps {two} of {second}")


def _order(named: tuple[IPNetwork, str]) -> tuple[int, int, int]:
    return named[0].version, int(named[0].network_address), named[0].prefixlen
