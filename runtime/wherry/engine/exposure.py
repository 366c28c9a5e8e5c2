"""`ports`: every published port of the containers that run, and who can reach it at which of the host's addresses.

Decides it by what is there: the host's addresses with their links, whose bridge a link is, and what the network's own
rules let through. Refuses to guess: neither other tables of the firewall nor what lies beyond the host's links is
looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import WherryError
from wherry.model import Json

from . import members
from .house import House
from .status import look_many

if TYPE_CHECKING:
    from wherry.net.links import Host

    from .db import Container

__all__ = ["ports"]

_SCOPE_LINK = 253  # rtnetlink(7)
_WILD = {"": (".", ":"), "0.0.0.0": (".",), "::": (":",)}  # noqa: S104


class _View(NamedTuple):
    """What one answer looks at: the host's addresses, and the networks of ours by the names of their bridges."""

    hosts: Sequence[Host]
    bridges: dict[str, Json]


def ports(house: House) -> list[Json]:
    """The verb: rows by container, then port."""
    from wherry.net import links

    rows = [row for row in house.db.containers() if row.config["ports"]]
    if not rows:
        return []
    networks = [house.networks.settings(network["Name"]) for network in house.networks.list()
                if network["Name"] not in ("none", "host")]  # fmt: skip
    view = _View(links.addresses(), {net["bridge"]: net for net in networks if net["bridge"]})
    found = [line for row, seen in zip(rows, look_many(house, rows), strict=True) if seen.running
             for line in _published(house, row, view)]  # fmt: skip
    return sorted(found, key=lambda line: (line["Name"], line["HostPort"], line["HostIp"], line["Type"]))


def _published(house: House, row: Container, view: _View) -> Iterator[Json]:
    for fact in members.load(house, row.id).get("networks", ()):
        network = _network(house, fact["network"])
        for port in fact["ports"]:
            for address in _shown(port.get("host_ip", ""), members.addresses(fact)):
                yield {
                    "Container": row.id, "Name": row.name, "Network": fact["network"], "HostIp": address,
                    "HostPort": port["host_port"], "PrivatePort": port["container_port"],
                    "Type": port.get("protocol", "tcp"),
                    "Reach": [*_by_host(address, network, view), *_directly(address, port, fact, network)],
                }  # fmt: skip


def _network(house: House, name: str) -> Json:
    """A list of the host's that was taken away meanwhile is one that we know nothing of."""
    try:
        return house.networks.settings(name)
    except WherryError:
        return {"name": name, "icc": True, "isolate": True}


def _shown(host_ip: str, own: Sequence[str]) -> list[str]:
    """Every address is one of each family that the container has: nothing translates between them."""
    if host_ip:
        return [host_ip]
    return [text for text, mark in (("0.0.0.0", "."), ("::", ":")) if any(mark in a for a in own)]  # noqa: S104


def _by_host(address: str, network: Json, view: _View) -> Iterator[Json]:
    """By the host's addresses, and whoever comes to them."""
    for host in view.hosts:
        who = _who(host, network, view.bridges.get(host.link)) if _is_at(address, host) else ""
        if who and not (host.scope == _SCOPE_LINK and host.link in view.bridges):
            yield _reach(who, host.address, host.link)


def _is_at(published: str, host: Host) -> bool:
    """Whether it is published on this address. ::1 cannot be: the kernel has no route_localnet for IPv6."""
    if host.port or host.address == "::1":
        return False
    marks = _WILD.get(published)
    return any(mark in host.address for mark in marks) if marks else host.address == published


def _who(host: Host, network: Json, bridge: Json | None) -> str:
    """"" for nobody. What an internal network sends never leaves it, and nothing else comes in: not even we at another
    address than its gateway, for its members have no route back. (127.0.0.1 is masqueraded.)"""
    if host.address.startswith("127."):
        return "this host"
    if bridge is not None and bridge["name"] == network["name"]:
        return f"network {bridge['name']}"
    if network.get("internal"):
        return ""
    if bridge is not None:
        return "this host" if bridge.get("internal") else f"network {bridge['name']}"
    return f"neighbours on {host.link}" if host.scope == _SCOPE_LINK else "anyone"


def _directly(address: str, port: Json, fact: Json, network: Json) -> Iterator[Json]:
    """By the container's own address, past what is published."""
    who = "anyone with a route" if not network["isolate"] and not network.get("internal") else ""
    who = who or (f"network {network['name']}" if network["icc"] else "")
    for own in members.addresses(fact) if who else ():
        if (":" in own) is (":" in address):
            yield _reach(who, own, fact["ifname"], port["container_port"])


def _reach(who: str, address: str, interface: str, port: int = 0) -> Json:
    return {"Who": who, "Address": address, "Interface": interface} | ({"Port": port} if port else {})
