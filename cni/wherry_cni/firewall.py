"""The plugin firewall: who may open a connection to a container, chained behind what made its interface.

Decides what an ingress policy is in the instance's nft table: elements of sets for the bridge, or for the host's end of
a point-to-point link. `open` (the default) is nothing at all. `same-bridge` keeps containers of one such network from
those of another; `isolated` keeps them from their neighbours on the bridge, too. What is published stays reachable.
Refuses to know ports and links, and iptables: nothing here can overrule another table's drop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wherry_cni import linkattrs, nft, rtbridge, rtnetlink, skel
from wherry_cni.config import has_table, refuse, table_name, text
from wherry_cni.errors import BAD_CONFIG, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "rules", "status"]

_UNSUPPORTED = {
    "iptablesAdminChainName": "iptables only; this plugin speaks nftables: put administrators' rules into a table of "
                              "their own, at a priority before this one's",
    "firewalldZone": "firewalld only; this plugin speaks nftables",
}
_OPEN, _SAME_BRIDGE, _ISOLATED = "open", "same-bridge", "isolated"
_POLICIES = (_OPEN, _SAME_BRIDGE, _ISOLATED)
_SETS = ("fenced", "friends")


def add(call: Call) -> Json:
    """The policy's elements, one batch, and the port's isolation. prevResult is passed on."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "firewall must be called as a chained plugin: no prevResult")
    wanted = rules(call)
    if wanted:
        nft.add(table_name(call.config), wanted)
    for port in _ports(call):
        with rtnetlink.wired() as wire:
            wire.do(f"isolating the bridge port {port}", rtbridge.port(port, isolated=True))
    return previous


def delete(call: Call) -> None:
    """A container's own elements; nothing is success. The bridge's belong to all that are on it and stay until GC."""
    if not has_table(call.config):
        return
    links = _host_links(call.previous or {})
    if len(links) == 1:
        nft.drop(table_name(call.config), [("fenced", links[0]), ("friends", f"{links[0]} . {links[0]}")])
    elif not links and call.config.get("ingressPolicy") in _POLICIES[1:]:
        nft.remove(table_name(call.config), _owner(call), _SETS)


def check(call: Call) -> None:
    """Every element is in place, and the port is still isolated."""
    held = {(found.where, found.key) for found in nft.elements(table_name(call.config))} if rules(call) else set()
    for element in rules(call):
        if (element.where, element.key) not in held:
            raise CniError(IO_ERROR, f"{element.key} is no longer behind the ingress policy")
    for port in _ports(call):
        with rtnetlink.wired() as wire:
            if not linkattrs.isolated(wire, port):
                raise CniError(IO_ERROR, f"the bridge port {port} is no longer isolated")


def collect(call: Call) -> None:
    """GC: elements of attachments that the runtime no longer knows."""
    nft.remove_others(table_name(call.config), call.network, skel.valid_attachments(call), _SETS,
                      removed=skel.removed(call))


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and nft answers."""
    _policy(call)
    nft.elements(table_name(call.config), _SETS[0])


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult: its link is fenced, and under same-bridge it is its own
    friend, for packets that its own containers send by way of the host. A bridge's VLAN has a link of its own there."""
    policy = _policy(call)
    if policy == _OPEN:
        return []
    links = _host_links(call.previous or {})
    if not links:
        raise CniError(BAD_CONFIG, f"ingressPolicy {policy}: prevResult has no interface of the host",
                       "chain it behind bridge or ptp; what macvlan and ipvlan carry does not pass the host's rules")
    holder = _owner(call) if len(links) == 1 else nft.owner_of_network(call.network)
    routed = links[:1] + links[2:]
    wanted = [nft.Element("fenced", link, holder) for link in routed]
    friends = routed if policy == _SAME_BRIDGE else []
    return [*wanted, *(nft.Element("friends", f"{link} . {link}", holder) for link in friends)]


def _ports(call: Call) -> Sequence[str]:
    """The bridge ports that must not speak to each other."""
    return _host_links(call.previous or {})[1:2] if _policy(call) == _ISOLATED else ()


def _host_links(previous: Json) -> list[str]:
    """The host's interfaces: a bridge, its port and more of the bridge's, or the one end of a point-to-point link. What
    bandwidth adds to a result is neither."""
    names = [str(part["name"]) for part in previous.get("interfaces") or [] if not part.get("sandbox")]
    if any('"' in name or not name.isprintable() or not 0 < len(name) < 16 for name in names):
        raise CniError(BAD_CONFIG, f"prevResult: {names!r} are no link names")
    return [name for name in names if not name.startswith("bwp")]


def _policy(call: Call) -> str:
    refuse(call.config, _UNSUPPORTED)
    table_name(call.config)
    if text(call.config, "backend") not in ("", "nftables"):
        raise CniError(UNSUPPORTED, 'unsupported field "backend"', "this plugin speaks nftables only")
    policy = text(call.config, "ingressPolicy", _OPEN)
    if policy not in _POLICIES:
        raise CniError(BAD_CONFIG, f'ingressPolicy: "{policy}" is none of {", ".join(_POLICIES)}')
    return policy


def _owner(call: Call) -> str:
    return nft.owner(call.network, call.container_id, call.ifname)


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
