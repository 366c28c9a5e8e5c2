"""Which address comes next: ranges and round robin, pure.

Decides the order in which addresses are offered. Refuses to know which are taken (store.py tries to take them).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wherry_cni.errors import BAD_CONFIG, CniError

__all__ = ["Range", "parse_ranges", "walk"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Range(NamedTuple):
    """Addresses `start` to `end` of `subnet`; `gateway` is never given out."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    def holds(self, address: IPAddress) -> bool:
        """True when the address may be given out from here."""
        return address.version == self.subnet.version and int(self.start) <= int(address) <= int(self.end)

    def interface(self, address: IPAddress) -> str:
        """The address with the subnet's prefix length."""
        return f"{address}/{self.subnet.prefixlen}"


def parse_ranges(ipam: Mapping[str, Any]) -> list[list[Range]]:
    """The range sets of a host-local configuration: one address is given from each set."""
    groups = ipam.get("ranges") or []
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        raise CniError(BAD_CONFIG, "ipam.ranges is not a list of non-empty lists")
    flat = [[ipam]] if ipam.get("subnet") else []  # the short form of one range
    sets = [[_range(part) for part in group] for group in flat + groups]
    if not sets:
        raise CniError(BAD_CONFIG, "ipam: no IP ranges given")
    _refuse_mixed(sets)
    return sets


def walk(group: Sequence[Range], last: IPAddress | None) -> Iterator[tuple[Range, IPAddress]]:
    """Every address of a set once, beginning after `last`, gateways left out."""
    at = next((index for index, part in enumerate(group) if last is not None and part.holds(last)), None)
    if at is None or last is None:
        yield from _straight(group)
        return
    here = group[at]
    yield from _span(here, int(last) + 1, int(here.end))
    yield from _straight(group[at + 1:])
    yield from _straight(group[:at])
    yield from _span(here, int(here.start), int(last))


def _straight(group: Sequence[Range]) -> Iterator[tuple[Range, IPAddress]]:
    for part in group:
        yield from _span(part, int(part.start), int(part.end))


def _span(part: Range, low: int, high: int) -> Iterator[tuple[Range, IPAddress]]:
    make = type(part.subnet.network_address)
    gateway = int(part.gateway)
    for number in range(low, high + 1):
        if number != gateway:
            yield part, make(number)


def _range(part: Mapping[str, Any]) -> Range:
    try:
        subnet = ipaddress.ip_network(str(part["subnet"]))
        low, high = _bounds(subnet)
        gateway = ipaddress.ip_address(part["gateway"]) if part.get("gateway") else low
        start = ipaddress.ip_address(part["rangeStart"]) if part.get("rangeStart") else low
        end = ipaddress.ip_address(part["rangeEnd"]) if part.get("rangeEnd") else high
    except (KeyError, TypeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"ipam range {part!r}: {problem}") from None
    made = Range(subnet, start, end, gateway)
    if start not in subnet or end not in subnet or int(start) > int(end):
        raise CniError(BAD_CONFIG, f"ipam range: {start} to {end} is not a range in {subnet}")
    return made


def _bounds(subnet: IPNetwork) -> tuple[IPAddress, IPAddress]:
    """First and last address that may be given; a /31 or /127 and smaller is refused, as the reference does."""
    if subnet.num_addresses < 4:
        raise ValueError("network too small to allocate from")
    last = subnet.network_address + (subnet.num_addresses - (2 if subnet.version == 4 else 1))
    return subnet.network_address + 1, last


def _refuse_mixed(sets: Sequence[Sequence[Range]]) -> None:
    seen: list[Range] = []
    for group in sets:
        if len({part.subnet.version for part in group}) > 1:
            raise CniError(BAD_CONFIG, "ipam: one range set mixes IPv4 and IPv6")
        for part in group:
            other = next((old for old in seen if _overlap(old, part)), None)
            if other is not None:
                raise CniError(BAD_CONFIG, f"ipam: {other.start}-{other.end} and {part.start}-{part.end} overlap")
            seen.append(part)


def _overlap(one: Range, two: Range) -> bool:
    return (one.subnet.version == two.subnet.version and int(one.start) <= int(two.end)
            and int(two.start) <= int(one.end))
