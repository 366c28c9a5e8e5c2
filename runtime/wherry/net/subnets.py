"""Which subnet a new network gets, and the few host facts that the choice needs.

Decides: no overlap with a route of the host or with another network. Refuses to know conflists beyond their subnets.
Routes are read from /proc, so that choosing costs no netlink library.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["checked", "choose", "choose_v6", "conflist_networks", "conflist_subnets",
           "delete_idle_bridge", "delete_link", "delete_table", "drop_leases", "host_networks", "link_exists"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_DEFAULTS = tuple(f"10.{second}.0.0/16" for second in range(87, 79, -1))  # podman's is 10.88, docker's 172.17
_POOL = "10.64.0.0/12"  # /24s for networks that users make
_RTF_UP = 1


def checked(subnet: str, gateway: str, ip_range: str, taken: Sequence[Network],
            aux: Mapping[str, str] | None = None) -> Json:
    """A subnet as the user asked for it, gateway filled in, or the reason why not. `aux`: addresses, by names of the
    user's own, that no container is given."""
    try:
        network = ipaddress.ip_network(subnet)
    except ValueError as problem:
        raise WherryError(Kind.INVALID, f"subnet: {problem}") from None
    if network.num_addresses < 4:
        raise WherryError(Kind.INVALID, f"subnet {network} has no room for a gateway and a container")
    other = next((net for net in taken if net.version == network.version and net.overlaps(network)), None)
    if other is not None:
        raise WherryError(Kind.CONFLICT, f"subnet {network} overlaps with {other}, which the host or a network uses")
    if gateway and not _inside(gateway, network):
        raise WherryError(Kind.INVALID, f"gateway {gateway} is not in subnet {network}")
    if gateway and network.version == 4 and ipaddress.ip_address(gateway) in (network[0], network[-1]):
        raise WherryError(Kind.INVALID, f"gateway {gateway} is the address of subnet {network} itself, or of all in it")
    outside = next((address for address in (aux or {}).values() if not _inside(address, network)), "")
    if outside:
        raise WherryError(Kind.INVALID, f"auxiliary address {outside} is not in subnet {network}")
    part: Json = {"subnet": str(network), "gateway": gateway or str(network.network_address + 1)}
    return part | (_range_part(ip_range, network) if ip_range else {}) | ({"aux": dict(aux)} if aux else {})


def choose(taken: Sequence[Network], tag: str, *, default: bool) -> Json:
    """A free IPv4 subnet. `tag` (of the instance) turns the order round, so that two wherrys do not race for one."""
    pool = [ipaddress.ip_network(text) for text in _DEFAULTS]
    candidates: Iterable[Network] = pool if default else ipaddress.ip_network(_POOL).subnets(new_prefix=24)
    ordered = list(candidates)
    start = int(tag, 16) % len(ordered) if tag else 0
    for network in ordered[start:] + ordered[:start]:
        if not any(net.version == 4 and net.overlaps(network) for net in taken):
            return checked(str(network), "", "", ())
    raise WherryError(Kind.EXHAUSTED, "every subnet that wherry would choose is in use", hint="give one with --subnet")


def choose_v6(seed: str) -> Json:
    """A unique local /64 (RFC 4193) drawn from the network's identity."""
    digest = hashlib.sha256(seed.encode()).digest()
    network = ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64))
    return checked(str(network), "", "", ())


def conflist_subnets(conflist: Json) -> list[Json]:
    """The subnets that a CNI list names in the way of host-local; others are unknown to us."""
    found = []
    for plugin in conflist.get("plugins", []):
        ipam = plugin.get("ipam") if isinstance(plugin, dict) else None
        if isinstance(ipam, dict):
            groups = ipam.get("ranges") or []
            flat = [part for group in groups if isinstance(group, list) for part in group] + [ipam]
            found += [{"subnet": str(part["subnet"]), "gateway": str(part.get("gateway", ""))}
                      for part in flat if isinstance(part, dict) and part.get("subnet")]
    return found


def conflist_networks(conflist: Json) -> list[Network]:
    """The same as networks."""
    found = []
    for part in conflist_subnets(conflist):
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(part["subnet"], strict=False))
    return found


def host_networks() -> list[Network]:
    """Every destination that the host routes, default and link-local aside."""
    return list(_routes4()) + list(_routes6())


@contextlib.contextmanager
def _wired() -> Iterator[Any]:
    """pyroute2's socket; a refusal of the kernel ends the block. Its package is left empty, if we are the first to ask
    for it: its __init__ would import a hundred modules that we never use."""
    if "pyroute2" not in sys.modules and (spec := PathFinder.find_spec("pyroute2")) is not None:
        sys.modules["pyroute2"] = module_from_spec(spec)
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route, contextlib.suppress(NetlinkError):
        yield route


def link_exists(name: str) -> bool:
    """Whether the host has a link of this name."""
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def delete_link(name: str) -> None:
    """Remove a link of the host. Absent is success."""
    if not link_exists(name):
        return
    with _wired() as route:
        route.link("del", ifname=name)


def delete_idle_bridge(name: str) -> None:
    """Remove a link of the host unless it is the master of another. Absent is success."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    with _wired() as route:
        if not any(link.get_attr("IFLA_MASTER") == index for link in route.get_links()):
            route.link("del", index=index)


def delete_table(name: str) -> None:
    """Remove the firewall table of an instance. Absent, or no nft at all, is success."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["nft", "delete", "table", "inet", name], capture_output=True, check=False, timeout=30)


def drop_leases(directory: str) -> None:
    """Remove the address files of a network that is gone."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _range_part(ip_range: str, network: Network) -> dict[str, str]:
    try:
        part = ipaddress.ip_network(ip_range)
    except ValueError as problem:
        raise WherryError(Kind.INVALID, f"ip-range: {problem}") from None
    if part.version != network.version or not part.subnet_of(network):  # type: ignore[arg-type]
        raise WherryError(Kind.INVALID, f"ip-range {part} is not in subnet {network}")
    first, last = part.network_address, part.broadcast_address
    return {"ip_range": str(part), "rangeStart": str(first + (first == network.network_address)),
            "rangeEnd": str(last - (last == network.broadcast_address))}


def _inside(text: str, network: Network) -> bool:
    try:
        return ipaddress.ip_address(text) in network
    except ValueError:
        return False


def _routes4() -> Iterator[Network]:
    for words in _rows("/proc/thread-self/net/route"):
        if len(words) > 7 and words[3].isalnum() and words[1] != "Destination" and int(words[3], 16) & _RTF_UP:
            destination, mask = (int.from_bytes(bytes.fromhex(words[i]), sys.byteorder) for i in (1, 7))
            network = ipaddress.IPv4Network((destination, mask.bit_count()), strict=False)
            if network.prefixlen:
                yield network


def _routes6() -> Iterator[Network]:
    for words in _rows("/proc/thread-self/net/ipv6_route"):
        network = ipaddress.IPv6Network((bytes.fromhex(words[0]), int(words[1], 16)), strict=False)
        if 0 < network.prefixlen < 128 and not network.is_link_local and not network.is_multicast:
            yield network


def _rows(path: str) -> Iterator[Sequence[str]]:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as stream:
        for line in stream:
            yield line.split()
