"""The plugin ptp: a veth pair between container and host, with a route to each address; no bridge.

Decides that all that a container sends, to its own subnet too, goes by the host: the subnet is reached by the gateway,
and only the gateway over the link. The host's end carries the gateway's address, alone (/32, /128), so that many pairs
may share it. Keys are the reference plugin's, and `nftTable` (the table of this instance).
Refuses to know ports (portmap) and how addresses are chosen (IPAM).
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wherry_cni import interface, masquerade, netlink, nft, rtnetlink, skel
from wherry_cni.config import integer, table_name
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.interface import Steps, Style
from wherry_cni.ipam import delegate
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "rules", "status"]

_BITS = {"4": "32", "6": "128"}
_SCOPE_HOST = 254  # what the reference's routes to containers have


class _Wish(NamedTuple):
    """The configuration, typed."""

    masquerade: bool
    mtu: int
    mac: str
    table: str


def add(call: Call) -> Json:
    """Address, pair, routes, rules; whatever fails, what was done before is undone."""
    wish = _wish(call)
    with interface.undoing() as undo:
        with rtnetlink.wired() as wire:
            interface.refuse_second(wire, call)
        leased = interface.leased(call, undo)
        _need_gateways(leased["ips"])
        ips = [{**part, "interface": 1} for part in leased["ips"]]
        if wish.masquerade:
            undo.append(lambda: masquerade.forget(call, []))
            nft.add(wish.table, masquerade.rules(call, ips))
        interfaces = _join(call, wish, ips, leased.get("routes") or [], undo)
        interface.forwarding([part["address"] for part in ips])
    return {"interfaces": interfaces, "ips": ips, "routes": leased.get("routes") or [],
            "dns": interface.dns(call, leased)}


def delete(call: Call) -> None:
    """Link, rules, address; absent is success. The host end's going takes its routes, and the container's end."""
    first = netlink.delete_link(interface.host_ifname(call))
    if not first:
        interface.delete(call)
    masquerade.forget(call, (call.previous or {}).get("ips", []) if first else [])
    if interface.has_ipam(call):
        delegate(call, "DEL")


def check(call: Call) -> None:
    """The attachment is as ADD left it."""
    wish = _wish(call)
    delegate(call, "CHECK")
    interface.check(call, "veth")
    ips = (call.previous or {}).get("ips", [])
    with rtnetlink.wired() as wire:
        host, ways = rtnetlink.find(wire, interface.host_ifname(call)), rtnetlink.routes(wire)
    if host is None:
        raise CniError(IO_ERROR, f"the host's end of the pair, {interface.host_ifname(call)}, is missing")
    for part in ips:
        if not any(way.link == host.number and way.dst == _alone(part["address"]) for way in ways):
            raise CniError(IO_ERROR, f"the host has lost its route to {part['address']}")
    if wish.masquerade:
        masquerade.check(call, wish.table, ips)


def collect(call: Call) -> None:
    """GC: rules and leases of attachments that the runtime no longer knows."""
    wish = _wish(call)
    if wish.masquerade:
        nft.remove_others(wish.table, call.network, skel.valid_attachments(call), masquerade.SETS,
                          removed=skel.removed(call))
    delegate(call, "GC")


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and so is IPAM."""
    _wish(call)
    delegate(call, "STATUS")


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult."""
    return masquerade.rules(call, (call.previous or {}).get("ips", [])) if _wish(call).masquerade else []


def _join(call: Call, wish: _Wish, ips: Sequence[Json], routes: Sequence[Json], undo: Steps) -> list[Json]:
    with rtnetlink.wired() as wire:
        host = interface.pair(wire, call, 0, wish.mac, wish.mtu)
        undo.append(lambda: netlink.delete_link(host.name))
        interface.own_ipv6(host.name)
        ours = [rtnetlink.address(host.number, gateway, dad=False)
                for gateway in dict.fromkeys(_alone(part["gateway"]) for part in ips)]
        ways = [rtnetlink.route(host.number, {"dst": _alone(part["address"]), "scope": _SCOPE_HOST}) for part in ips]
        wire.do("the host's end of the pair", *ours)
        wire.do("the host's routes to the container", *ways, but=errno.EEXIST)
    wanted = [*_by_gateway(ips), *interface.resolved(routes, ips)]
    inner = interface.configure(call, ips, wanted, Style(connected=False, notify=bool(wish.mac)))
    return [interface.told(host), interface.told(inner, call.netns)]


def _by_gateway(ips: Sequence[Json]) -> list[Json]:
    """The routes that make a point-to-point link of a veth: to each gateway over the link, to each subnet by it."""
    near = [{"dst": _alone(part["gateway"]), "src": part["address"].partition("/")[0]} for part in ips]
    far = [{"dst": str(ipaddress.ip_interface(part["address"]).network), "gw": part["gateway"],
            "src": part["address"].partition("/")[0]} for part in ips]
    return [*near, *far]


def _need_gateways(ips: Sequence[Json]) -> None:
    for part in ips:
        if not part.get("gateway"):
            raise CniError(BAD_CONFIG, f"IPAM gave no gateway for {part['address']}",
                           "the host's end of the pair needs an address of its own")


def _alone(address: str) -> str:
    return f"{address.partition('/')[0]}/{_BITS[nft.family(address)]}"


def _wish(call: Call) -> _Wish:
    if not interface.has_ipam(call):
        raise CniError(BAD_CONFIG, "ptp needs ipam: without an address nothing is routed to the container")
    return _Wish(masquerade.wished(call.config), integer(call.config, "mtu", 68, 65535), interface.wished_mac(call),
                 table_name(call.config))


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
