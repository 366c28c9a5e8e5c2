"""The plugin portmap: host ports to container ports, as elements of the instance's nft maps.

Decides which elements a container's port mappings are. DNAT happens for addresses of this host only, and for the exact
address where one was asked (invariant 11). Ports are reached from other machines, from the host by any of its addresses
and 127.0.0.1, and from containers on the same network; no process stands in between.
Refuses to know links; it takes the container's addresses from prevResult.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from wherry_cni import conntrack, netlink, nft, skel
from wherry_cni.config import boolean, has_table, refuse, table_name, text
from wherry_cni.errors import BAD_CONFIG, PORT_TAKEN, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "rules", "status"]

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_UNSUPPORTED = dict.fromkeys(("markMasqBit", "externalSetMarkChain", "conditionsV4", "conditionsV6"),
                             "iptables only; this plugin speaks nftables")
_SETS = ("published", "any4", "any6", "exact4", "exact6", "nearby4", "nearby6", "everybody4", "everybody6",
         "inside4", "inside6", "localnet")
_TRANSLATIONS = _SETS[1:5]
_PROTOCOLS = ("tcp", "udp", "sctp")
_LOCAL = {"4": ("127.0.0.0/8",), "6": ()}  # IPv6 has no route_localnet: ::1 cannot speak to another link


class _Mapping(NamedTuple):
    host_port: int
    container_port: int
    protocol: str
    host_ip: str


def add(call: Call) -> Json:
    """The elements of this container, one batch. prevResult is passed on."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "portmap must be called as a chained plugin: no prevResult")
    mappings = _mappings(call)
    if mappings:
        wanted = _elements(call, mappings, previous)
        try:
            nft.add(table_name(call.config), wanted)
        except CniError as problem:
            if problem.code != PORT_TAKEN:
                raise
            _replace_own(call, wanted)
        _let_loopback_in(call, wanted)
        _forget(f"{mapping.protocol} . {mapping.host_port}" for mapping in mappings)
    return previous


def delete(call: Call) -> None:
    """Everything that this container owns here; nothing is success. Told what ADD was told, it lists nothing: what it
    takes is what is there, or the digest of it is not there. A runtime that says there are no ports has none."""
    if not has_table(call.config):
        return
    mine, table = _owner(call), table_name(call.config)
    told = _told(call)
    if told == [] or (told and nft.take(table, told)):
        _forget(element.key for element in told)
    elif any(found.owner == mine for found in nft.elements(table, "published")):
        gone = [found for found in nft.elements(table) if found.owner == mine]
        nft.remove(table, mine, _SETS)
        _forget(found.key for found in gone if found.where in _TRANSLATIONS)


def _let_loopback_in(call: Call, wanted: Sequence[nft.Element]) -> None:
    """Last: from here on only the table keeps a bridge's neighbours away from 127.0.0.0/8."""
    try:
        for bridge in (element.key for element in wanted if element.where == "localnet"):
            netlink.sysctl(f"net/ipv4/conf/{bridge}/route_localnet", "1")
    except CniError:
        nft.remove(table_name(call.config), _owner(call), _SETS)
        raise


def _told(call: Call) -> list[nft.Element] | None:
    """The container's own elements as ADD made them; None where the runtime does not give all that ADD was given."""
    try:
        if "portMappings" not in call.runtime:
            return None
        return [element for element in rules(call) if element.owner == _owner(call)]
    except CniError:  # no prevResult before 0.4.0; and a DEL is no place to find fault with a configuration
        return None


def _forget(keys: Iterable[str]) -> None:
    """The kernel's memory of UDP flows to these ports, each at the end of its key."""
    udp = {int(key.rpartition(" ")[2]) for key in keys if "udp . " in key}
    if udp:
        conntrack.forget_udp(udp)


def check(call: Call) -> None:
    """Every element is in place."""
    wanted = rules(call)
    held = {(found.where, found.key) for found in nft.elements(table_name(call.config))}
    for element in wanted:
        if element.value and (element.where, element.key) not in held:
            raise CniError(IO_ERROR, f"the port mapping {element.key} is gone")


def collect(call: Call) -> None:
    """GC: elements of attachments that the runtime no longer knows."""
    nft.remove_others(table_name(call.config), call.network, skel.valid_attachments(call), _SETS,
                      removed=skel.removed(call))


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and nft answers."""
    _mappings(call)
    nft.elements(table_name(call.config))


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult."""
    return _elements(call, _mappings(call), call.previous or {})


def _mappings(call: Call) -> list[_Mapping]:
    refuse(call.config, _UNSUPPORTED)
    table_name(call.config)
    if text(call.config, "backend") not in ("", "nftables"):
        raise CniError(UNSUPPORTED, 'unsupported field "backend"', "this plugin speaks nftables only")
    listed = call.runtime.get("portMappings") or []
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, "portMappings is not a list")
    found = dict.fromkeys(_mapping(part) for part in listed if not isinstance(part, dict) or part.get("hostPort") != 0)
    taken: dict[tuple[str, ...], int] = {}
    for one in found:
        other = taken.setdefault((one.protocol, str(one.host_port), one.host_ip), one.container_port)
        if other != one.container_port:
            raise CniError(BAD_CONFIG, f"host port {one.host_port}/{one.protocol} is asked for twice, for the ports "
                                       f"{other} and {one.container_port}")
    return list(found)


def _mapping(part: Any) -> _Mapping:
    try:
        made = _Mapping(int(part["hostPort"]), int(part["containerPort"]), str(part.get("protocol") or "tcp").lower(),
                        str(ipaddress.ip_address(part["hostIP"])) if part.get("hostIP") else "")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: {problem}") from None
    if made.protocol not in _PROTOCOLS:
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: unknown protocol")
    if "%" in made.host_ip:
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: a host address has no zone here")
    if made.host_ip == "::1":
        raise CniError(UNSUPPORTED, "a port cannot be published on ::1", "the kernel has no route_localnet for IPv6")
    if not (0 < made.host_port < 65536 and 0 < made.container_port < 65536):
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: ports are 1 to 65535")
    return made


def _elements(call: Call, mappings: Sequence[_Mapping], previous: Json) -> list[nft.Element]:
    """Maps for every mapping and family, what brings answers back, and the digest of it all."""
    found: list[nft.Element] = []
    inside, mine = _container_addresses(previous, call.ifname), _owner(call)
    for mapping in mappings:
        wanted = nft.family(mapping.host_ip) if mapping.host_ip else ""
        targets = [address for suffix, address in inside.items() if wanted in ("", suffix)]
        if not targets:
            raise CniError(BAD_CONFIG, f"port {mapping.host_port}: the container has no IPv{wanted or '4'} address")
        found += [_translation(mapping, address, mine) for address in targets]
    if mappings and boolean(call.config, "snat", True):
        for suffix, address in inside.items():
            found += _way_back(call, suffix, address)
    return [*found, _digest(mine, found)] if found else []


def _digest(mine: str, found: Sequence[nft.Element]) -> nft.Element:
    text = "\n".join(sorted(f"{e.where} {e.key}" for e in found if e.owner == mine))
    return nft.Element("published", str(ipaddress.IPv6Address(sha256(f"{mine}\n{text}".encode()).digest()[:16])), mine)


def _translation(mapping: _Mapping, address: Interface, name: str) -> nft.Element:
    suffix = str(address.version)
    value = f"{address.ip} . {mapping.container_port}"
    key = f"{mapping.protocol} . {mapping.host_port}"
    if mapping.host_ip in ("", "0.0.0.0", "::"):  # noqa: S104
        return nft.Element(f"any{suffix}", key, name, value)
    return nft.Element(f"exact{suffix}", f"{mapping.host_ip} . {key}", name, value)


def _way_back(call: Call, suffix: str, address: Interface) -> list[nft.Element]:
    """Who must be masqueraded to be answered: a neighbour on the bridge, and the host speaking from its loopback."""
    plain, whole = str(address.ip), nft.owner_of_network(call.network)
    who = "everybody" if boolean(call.config, "masqAll") else "nearby"
    found = [nft.Element(f"{who}{suffix}", plain, _owner(call))]
    if who == "nearby":
        found += [nft.Element(f"inside{suffix}", f"{client} . {address.network}", whole)
                  for client in (address.network, *_LOCAL[suffix])]
    link, bits = _way_to(address.ip) if suffix == "4" else ("", 0)
    if link:  # a route to the one address is that of a link of the container's own (ptp), which goes with it
        found.append(nft.Element("localnet", link, _owner(call) if bits == 32 else whole))
    return found


def _replace_own(call: Call, wanted: Sequence[nft.Element]) -> None:
    """A key is taken: by ourselves (an ADD that was killed): replaced; by somebody else: he is named."""
    table, mine = table_name(call.config), _owner(call)
    keys = {(element.where, element.key) for element in wanted if element.value}
    for found in nft.elements(table):
        if (found.where, found.key) in keys and found.owner != mine:
            holder = found.owner.partition("/")[0]
            port = found.key.rpartition(" . ")[2]
            raise CniError(PORT_TAKEN, f"host port {port} is published by container {holder}")
    nft.remove(table, mine, _SETS)
    nft.add(table, wanted)


def _container_addresses(previous: Json, ifname: str) -> dict[str, Interface]:
    """The container's first address of each family, of this attachment's interface before any other."""
    interfaces = previous.get("interfaces") or []
    inside: list[tuple[bool, Interface]] = []
    for part in previous.get("ips") or []:
        index = part.get("interface")
        link = interfaces[index] if index is not None and 0 <= index < len(interfaces) else {}
        if index is None or link.get("sandbox"):
            inside.append((link.get("name", ifname) != ifname, ipaddress.ip_interface(part["address"])))
    found: dict[str, Interface] = {}
    for _, address in sorted(inside, key=lambda pair: pair[0]):
        found.setdefault(str(address.version), address)
    return found


def _way_to(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[str, int]:
    """The link that the host's main table takes to the container (longest prefix), and the prefix's bits."""
    best, name = -1, ""
    with open("/proc/thread-self/net/route", encoding="ascii") as stream:
        for row in list(stream)[1:]:
            words = row.split()
            network, mask = (int.from_bytes(bytes.fromhex(words[i]), sys.byteorder) for i in (1, 7))
            if int(address) & mask == network and mask.bit_count() > best and mask:
                best, name = mask.bit_count(), words[0]
    return (name, best) if os.path.exists(f"/proc/sys/net/ipv4/conf/{name}/route_localnet") else ("", 0)


def _owner(call: Call) -> str:
    return nft.owner(call.network, call.container_id, call.ifname)


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
