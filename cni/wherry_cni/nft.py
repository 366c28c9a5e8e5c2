"""The firewall table of one wherry: its fixed rules, and elements keyed by address that carry their owner's name.

Decides the layout. All containers share a handful of rules; a container is only elements of sets and maps, so that
ADD and DEL are one small atomic batch each, and a packet meets hash lookups instead of a rule per container.
Every element's comment is its owner ("ID/IFNAME@NETWORK", or "@NETWORK"; nft allows 128 bytes): DEL finds what is its
own even when nothing is remembered. Refuses to know why an element is wanted (bridge and portmap say so).

- masq4/6      addresses masqueraded when they leave for anything not in inside4/6 (their own subnet, multicast)
- any/exact    host port to container, for every local address or for one; a port that is taken is a key that exists
- nearby4/6    containers whose published connections from their own network and from the host's loopback are answered
               through us (such pairs are in inside4/6, too); everybody4/6: those from anywhere are (masqAll)
- published    one element per container with ports, by the digest of what it has: a DEL that takes exactly that needs
               no listing, which grows with all the others; an interval set is slow to take from, so none of a container
- localnet     bridges that carry 127.0.0.0/8 for published ports (route_localnet): from them nobody may send to it
- same, isolated, internal   bridge isolation in the forward hook; `same` is the pair (bridge, bridge)
- peers4/6     (bridge, subnet) pairs: who belongs to an isolated bridge's network on other hosts
- fenced, friends            links between which nothing is forwarded; pairs of them that are let through (firewall)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from wherry_cni import netlink
from wherry_cni.errors import FIREWALL, PORT_TAKEN, CniError
from wherry_cni.libnft import run

__all__ = ["TRIES", "Element", "add", "drop", "elements", "family", "owner", "owner_of_network", "remove",
           "remove_others", "restore", "take"]

TRIES = 5  # to take out what was listed, while others take out theirs
_LAYOUT = "layout_2"  # changes with the rules below: another layout is put in place by the first ADD
_SETS = {
    "masq4": "ipv4_addr", "masq6": "ipv6_addr",
    "inside4": "ipv4_addr . ipv4_addr; flags interval", "inside6": "ipv6_addr . ipv6_addr; flags interval",
    "nearby4": "ipv4_addr", "nearby6": "ipv6_addr", "everybody4": "ipv4_addr", "everybody6": "ipv6_addr",
    "published": "ipv6_addr", "fenced": "ifname", "friends": "ifname . ifname",
    "localnet": "ifname", "same": "ifname . ifname", "isolated": "ifname", "internal": "ifname",
    "peers4": "ifname . ipv4_addr; flags interval", "peers6": "ifname . ipv6_addr; flags interval",
    _LAYOUT: "mark",
}
_MAPS = {
    "any4": "inet_proto . inet_service : ipv4_addr . inet_service",
    "any6": "inet_proto . inet_service : ipv6_addr . inet_service",
    "exact4": "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "exact6": "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
}
_CHAINS = {  # name: (hook, rules); a jump's target stands before the chain that jumps
    "publish": ("", (
        "dnat ip to ip daddr . meta l4proto . th dport map @exact4",
        "dnat ip to meta l4proto . th dport map @any4",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @exact6",
        "dnat ip6 to meta l4proto . th dport map @any6",
    )),
    # A neighbour on the wire may address 127.0.0.1 to our MAC: a port published on loopback is not for him.
    "prerouting": ("type nat hook prerouting priority dstnat;", (
        "ip daddr 127.0.0.0/8 return",
        "ip6 daddr ::1 return",
        "fib daddr type local jump publish",
    )),
    "output": ("type nat hook output priority -100;", (
        "ip6 daddr ::1 return",  # no route_localnet in IPv6: the kernel would drop the answers, so refuse at once
        "fib daddr type local jump publish",
    )),
    "postrouting": ("type nat hook postrouting priority srcnat;", (
        "ip saddr @masq4 ip saddr . ip daddr != @inside4 masquerade",
        "ip6 saddr @masq6 ip6 saddr . ip6 daddr != @inside6 masquerade",
        "ct status dnat ip daddr @nearby4 ip saddr . ip daddr @inside4 masquerade",
        "ct status dnat ip6 daddr @nearby6 ip6 saddr . ip6 daddr @inside6 masquerade",
        "ct status dnat ip daddr @everybody4 masquerade",
        "ct status dnat ip6 daddr @everybody6 masquerade",
    )),
    "loopback_guard": ("type filter hook prerouting priority raw;", (  # CVE-2020-8558
        "iifname @localnet ip daddr 127.0.0.0/8 drop",
        "iifname @localnet ip saddr 127.0.0.0/8 drop",
    )),
    "isolation": ("", (
        "ct state established,related return",
        "iifname . oifname @same return",
        "iifname . ip daddr @peers4 return",
        "oifname . ip saddr @peers4 return",
        "iifname . ip6 daddr @peers6 return",
        "oifname . ip6 saddr @peers6 return",
        "iifname @internal drop",
        "oifname @internal drop",
        "oifname @isolated ct status dnat return",
        "oifname @isolated drop",
    )),
    "fence": ("", (
        "ct state established,related return",
        "iifname . oifname @friends return",
        "ct status dnat return",
        "drop",
    )),
    "forward": ("type filter hook forward priority filter;", (
        "iifname @fenced oifname @fenced jump fence",
        "iifname @internal jump isolation",
        "oifname @internal jump isolation",
        "oifname @isolated jump isolation",
    )),
}


_HANDED_ON = ("masq4", "masq6", "nearby4", "nearby6", "everybody4", "everybody6")  # one container's: by his address


class Element(NamedTuple):
    """One element of a set, or of a map where `value` is given. Keys and values are as nft writes them."""

    where: str
    key: str
    owner: str
    value: str = ""


def owner(network: str, container_id: str, ifname: str) -> str:
    """The comment of a container's elements; names too long for nft are stood for by their digests."""
    known = container_id if len(container_id) <= 64 else sha256(container_id.encode()).hexdigest()
    plain = ifname if '"' not in ifname else sha256(ifname.encode()).hexdigest()[:15]  # nft has no escape for it
    return f"{known}/{plain}{owner_of_network(network)}"


def owner_of_network(network: str) -> str:
    """The comment of elements that belong to a network as a whole; a container's comment ends with it."""
    return f"@{network if len(network) <= 39 else sha256(network.encode()).hexdigest()[:32]}"


def family(address: str) -> str:
    """The suffix of the sets for an address: "4" or "6"."""
    return "6" if ":" in address else "4"


def add(table: str, wanted: Sequence[Element]) -> None:
    """Put the elements in place, all or none; the table is made first where it is missing.

    A map's key must be new (it is somebody's port). A container's address is new, too, as a rule: one whose last owner
    left no DEL changes hands in a second batch, for a batch that takes something out waits for an RCU grace period.
    """
    flush, lines = f"flush set inet {table} {_LAYOUT}", _put(table, wanted)
    code, _, err = run("\n".join([flush, *lines]))
    if code and "No such file" in err:
        code, _, err = run("\n".join([*_layout(table), *lines]))
    if code and "File exists" in err and any(element.where in _HANDED_ON for element in wanted):
        handed = [line for e in wanted if e.where in _HANDED_ON for line in _gone(table, e.where, e.key)]
        code, _, err = run("\n".join([*handed, *lines]))
    if code and "File exists" in err:
        raise CniError(PORT_TAKEN, "a key of the batch is taken", err)
    if code:
        raise CniError(FIREWALL, "nft refuses the batch", err)


def restore(table: str, wanted: Sequence[Element]) -> None:
    """Put the elements in place, whatever of the table is there; a key that another has changes hands. One batch."""
    lines = _put(table, wanted, "add")
    code, _, err = run("\n".join([*_layout(table), *lines]))
    if code and "File exists" in err:
        keys = {(element.where, element.key) for element in wanted if _has_owner(element)}
        handed = [found for found in elements(table) if (found.where, found.key) in keys]
        code, _, err = run("\n".join([*_layout(table), *_take(table, handed), *lines]))
    if code:
        raise CniError(FIREWALL, f"nft refuses to restore the table {table}", err)


def take(table: str, wanted: Sequence[Element]) -> bool:
    """Take these elements out, all or none; False: not all of them are there."""
    code, _, err = run("\n".join(_take(table, wanted)))
    if code and "No such file" not in err:
        raise CniError(FIREWALL, "nft refuses to remove elements", err)
    return not code


def _has_owner(element: Element) -> bool:
    """Whether it is one container's alone: it must be new, or its comment would not be ours."""
    return bool(element.value) or element.where in _HANDED_ON


def elements(table: str, only: str = "") -> list[Element]:
    """Every element that has an owner, or those of one set; none when there is no table. Map values are not told."""
    what = f"set inet {table} {only}" if only else f"table inet {table}"
    code, out, err = run(f"list {what}", as_json=True)
    if code:
        if "No such file" in err:
            return []
        raise CniError(FIREWALL, "nft cannot list the table", err)
    found = []
    for item in json.loads(out)["nftables"]:
        body = item.get("set") or item.get("map") or {}
        for entry in body.get("elem", ()):
            part = (entry[0] if isinstance(entry, list) else entry)
            if isinstance(part, dict) and "comment" in part.get("elem", {}):
                found.append(Element(body["name"], _key(part["elem"]["val"]), part["elem"]["comment"]))
    return found


def drop(table: str, keys: Iterable[tuple[str, str]]) -> None:
    """Drop elements by (set, key), whoever's they are; absent is success. One nft instead of the two of `remove`."""
    code, _, err = run("\n".join(line for where, key in keys for line in _gone(table, where, key)))
    if code and "No such file" not in err:
        raise CniError(FIREWALL, "nft refuses to remove elements", err)


def _put(table: str, wanted: Sequence[Element], verb: str = "") -> list[str]:
    """One line a set: a container may have a thousand ports, and nft takes its time for each line."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for e in wanted:
        key = (verb or ("create" if _has_owner(e) else "add"), e.where)
        text = f'{_written(e)} comment "{e.owner}"' + (f" : {e.value}" if e.value else "")
        grouped.setdefault(key, []).append(text)
    return [f"{how} element inet {table} {where} {{ {', '.join(texts)} }}" for (how, where), texts in grouped.items()]


def _take(table: str, wanted: Sequence[Element]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for e in wanted:
        grouped.setdefault(e.where, []).append(_written(e))
    return [f"delete element inet {table} {where} {{ {', '.join(keys)} }}" for where, keys in grouped.items()]


def _written(element: Element) -> str:
    """The key with its link names in quotes, once: one may begin with a digit, or be a word of nft's."""
    kind = _SETS.get(element.where, "")
    if "ifname" not in kind:
        return element.key
    kinds = kind.partition(";")[0].split(" . ")
    return " . ".join('"' + part.strip('"') + '"' if one == "ifname" else part
                      for one, part in zip(kinds, element.key.split(" . "), strict=True))


def _gone(table: str, where: str, key: str) -> list[str]:
    """Lines after which the element is not there, whether it was or not."""
    bare = f"inet {table} {where} {{ {_written(Element(where, key, ''))} }}"
    return [f"add element {bare}", f"delete element {bare}"]


def remove(table: str, name: str, only: Sequence[str]) -> None:
    """Drop the elements of one owner in the sets `only`. None there is success."""
    _remove(table, lambda found: found.owner == name and found.where in only)


def remove_others(table: str, network: str, valid: Iterable[tuple[str, str]], only: Sequence[str], *,
                  removed: bool = False) -> None:
    """GC: drop what containers of the network own who are not `valid`. What the network itself owns goes when none is
    valid and its links are gone, or when it is being `removed`: a bridge without containers keeps its walls."""
    kept, tail = {owner(network, *pair) for pair in valid}, owner_of_network(network)
    held = [found for found in elements(table) if found.owner.endswith(tail)]
    whole = removed or not (kept or any(_has_link(found) for found in held if found.owner == tail))
    _remove(table, lambda found: found.where in only and found.owner.endswith(tail)
            and (found.owner not in kept if found.owner != tail else whole), held)


def _has_link(element: Element) -> bool:
    """Whether it is about a link that exists."""
    name = element.key.split(" . ")[0].strip('"')
    return "ifname" in _SETS.get(element.where, "") and netlink.there(name)


def _remove(table: str, chosen: Callable[[Element], bool], known: Sequence[Element] | None = None) -> None:
    for again in range(TRIES):
        gone = _take(table, list(filter(chosen, elements(table) if known is None or again else known)))
        if not gone:
            return
        code, _, err = run("\n".join(gone))
        if not code:
            return
        if "No such file" not in err:  # somebody else removed one between listing and batch: list again
            break
    raise CniError(FIREWALL, "nft refuses to remove elements", err)


def _layout(table: str) -> list[str]:
    lines = [f"add table inet {table}"]
    lines += [f"add set inet {table} {name} {{ type {kind}; }}" for name, kind in _SETS.items()]
    lines += [f"add map inet {table} {name} {{ type {kind}; }}" for name, kind in _MAPS.items()]
    for name, (hook, rules) in _CHAINS.items():
        lines.append(f"add chain inet {table} {name}" + (f" {{ {hook} }}" if hook else ""))
        lines.append(f"flush chain inet {table} {name}")
        lines += [f"add rule inet {table} {name} {rule}" for rule in rules]
    return lines


def _key(value: Any) -> str:
    """An element's key, from nft's JSON to nft's text."""
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(_key(part) for part in value["concat"])
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, dict) and "range" in value:
        return "-".join(_key(part) for part in value["range"])
    return str(value)
