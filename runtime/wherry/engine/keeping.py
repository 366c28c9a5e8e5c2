"""Names on a network: its roster, as the engine's records have it, and its keeper, the process that answers DNS.

Decides what a container is called and when a keeper is wanted: while a network of ours, whose gateway this host is, has
members. Refuses to know how it serves (net/keeper.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.model import Json, PortMapping

from . import command
from .house import House

if TYPE_CHECKING:
    from wherry.net.roster import Roster

    from .db import Container

_PATIENCE = 30  # seconds for others that change who is on a network

__all__ = ["names", "nameserver", "publish", "room_for", "serve", "wake"]


def names(row: Container, aliases: Iterable[str], domain: str = "") -> tuple[str, ...]:
    """What peers may call a container; the first is what its address is called. The whole id is none: no label of the
    DNS has 64 octets (RFC 1035, 2.3.4)."""
    host = row.config["hostname"]
    return (row.name, *aliases, row.id[:12], host, *([f"{host}.{domain}"] if domain else []))


def nameserver(house: House, network: str, gateways: Sequence[str]) -> str:
    """Where a member asks, IPv4 first; "" where nobody answers."""
    if not gateways or house.networks.responder(network) is None:
        return ""
    return min(gateways, key=lambda address: ":" in address)


def publish(house: House, network: str, members: Sequence[tuple[Container, Json]]) -> None:
    """Write the network's roster, and see to its keeper. Under the peers' lock. `members` with their net.json."""
    from wherry.net import roster

    served = house.networks.responder(network)
    entries: list[roster.Member] = []
    gateways: dict[str, None] = {}
    for row, facts in members:
        for fact in facts["networks"]:
            if fact["network"] == network:
                found = [(a.partition("/")[0], gateway) for i in fact["interfaces"] for a, gateway in i["addresses"]]
                known = names(row, fact["aliases"], facts.get("domain", ""))
                upstreams = tuple(facts.get("upstreams", ()))
                entries.append(roster.Member(row.id, known, tuple(a for a, _ in found), upstreams))
                gateways |= dict.fromkeys(gateway for _, gateway in found if gateway)
    table, internal = served or ("", False)
    whole = roster.Roster(network, tuple(entries), tuple(gateways) if served else (), table, internal)
    roster.store(house.place.state, whole)
    _ensure(house, whole)


def _ensure(house: House, roster: Roster) -> None:
    if not (roster.members and roster.gateways):
        return
    from wherry.net import kept

    if kept.there(house.place.state, roster.network):
        return
    from .preparing import MONITORS

    argv, env = command.argv("network", roster.network), command.environment(house)
    cgroup = f"{house.facts.cgroup_mount}{MONITORS}" if house.facts.cgroup_mount else ""
    try:
        kept.ensure(house.place.state, roster, argv, env, cgroup)
    except OSError as error:
        house.warn(f"network {roster.network}: nobody answers DNS on it: {error.strerror or error}")


def wake(house: House) -> None:
    """Start the keepers that were killed."""
    state = house.place.state
    if not os.path.isdir(f"{state}/names"):
        return
    from wherry.kernel import files
    from wherry.net import kept, roster

    for network in roster.networks(state):
        if not kept.there(state, network) and (found := roster.load(roster.path(state, network))) and found.gateways:
            with files.flock(kept.gate(state), _PATIENCE):
                if (now := roster.load(roster.path(state, network))) is not None:
                    _ensure(house, now)


@contextlib.contextmanager
def room_for(house: House, ports: Iterable[PortMapping]) -> Iterator[None]:
    """While port 53 is given to a container: the keepers that have it make room, and come back at other ports."""
    from wherry.net import kept, roster

    if not any(port.host_port <= kept.PORT <= max(port.host_port, port.host_port_end) for port in ports):
        yield
        return
    state = house.place.state
    for network in roster.networks(state):
        if kept.port(state, network) == kept.PORT and (served := house.networks.responder(network)):
            kept.stop(state, network, served[0])
    try:
        yield
    finally:
        wake(house)


def serve(house: House, network: str) -> None:
    """`internal network NAME`: be the keeper."""
    from wherry.net import keeper

    keeper.main(house.place, network, os.environ)
