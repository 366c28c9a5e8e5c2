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
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from wherry_cni import conntrack, netlink, nft, skel
from wherry_cni.config import boolean, refuse, table_name, text
from wherry_cni.errors import BAD_CONFIG, PORT_TAKEN, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "rules", "status"]

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_UNSUPPORTED = dict.fromkeys(("markMasqBit", "externalSetMarkChain", "conditionsV4", "conditionsV6"),
                             "iptables only; this plugin speaks nftables")
_SETS = ("any4", "any6", "exact4", "exact6", "hairpin4", "hairpin6", "localnet")
_PROTOCOLS = ("tcp", "udp", "sctp")
_EVERYBODY = {"4": "0.0.0.0/0", "6": "::/0"}
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
        for bridge in {element.key for element in wanted if element.where == "localnet"}:
            netlink.sysctl(f"net/ipv4/conf/{bridge}/route_localnet", "1")
        try:
            nft.add(table_name(call.config), wanted)
        except CniError as problem:
            if problem.code != PORT_TAKEN:
                raise
            _replace_own(call, wanted)
        udp = {mapping.host_port for mapping in mappings if mapping.protocol == "udp"}
        if udp:
            conntrack.forget_udp(udp)
    return previous


def delete(call: Call) -> None:
    """Everything that this container owns here; nothing is success. prevResult is not needed."""
    nft.remove(table_name(call.config), _owner(call), _SETS)


def check(call: Call) -> None:
    """Every element is in place."""
    wanted = rules(call)
    held = {(found.where, found.key) for found in nft.elements(table_name(call.config))}
    for element in wanted:
        if element.value and (element.where, element.key) not in held:
            raise CniError(IO_ERROR, f"the port mapping {element.key} is gone")


def collect(call: Call) -> None:
    """GC: elements of attachments that the runtime no longer knows."""
    nft.remove_others(table_name(call.config), call.network, skel.valid_attachments(call), _SETS)


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and nft answers."""
    _mappings(call)
    nft.elements(table_name(call.config))


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult."""
    return _elements(call, _mappings(call), call.previous or {})


def _mappings(call: Call) -> list[_Mapping]:
    refuse(call.config, _UNSUPPORTED)
    if text(call.config, "backend") not in ("", "nftables"):
        raise CniError(UNSUPPORTED, 'unsupported field "backend"', "this plugin speaks nftables only")
    listed = call.runtime.get("portMappings") or []
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, "portMappings is not a list")
    return [_mapping(part) for part in listed if not isinstance(part, dict) or part.get("hostPort") != 0]


def _mapping(part: Any) -> _Mapping:
    try:
        made = _Mapping(int(part["hostPort"]), int(part["containerPort"]), str(part.get("protocol") or "tcp").lower(),
                        str(ipaddress.ip_address(part["hostIP"])) if part.get("hostIP") else "")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: {problem}") from None
    if made.protocol not in _PROTOCOLS:
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: unknown protocol")
    if made.host_ip == "::1":
        raise CniError(UNSUPPORTED, "a port cannot be published on ::1", "the kernel has no route_localnet for IPv6")
    if not (0 < made.host_port < 65536 and 0 < made.container_port < 65536):
        raise CniError(BAD_CONFIG, f"port mapping {part!r}: ports are 1 to 65535")
    return made


def _elements(call: Call, mappings: Sequence[_Mapping], previous: Json) -> list[nft.Element]:
    """Maps for every mapping and family, then what brings answers back."""
    found: list[nft.Element] = []
    inside = _container_addresses(previous)
    for mapping in mappings:
        wanted = nft.family(mapping.host_ip) if mapping.host_ip else ""
        targets = [address for suffix, address in inside.items() if wanted in ("", suffix)]
        if not targets:
            raise CniError(BAD_CONFIG, f"port {mapping.host_port}: the container has no IPv{wanted or '4'} address")
        found += [_translation(mapping, address, _owner(call)) for address in targets]
    if mappings and boolean(call.config, "snat", True):
        for suffix, address in inside.items():
            found += _way_back(call, suffix, address)
    return found


def _translation(mapping: _Mapping, address: Interface, name: str) -> nft.Element:
    suffix = str(address.version)
    value = f"{address.ip} . {mapping.container_port}"
    key = f"{mapping.protocol} . {mapping.host_port}"
    if mapping.host_ip in ("", "0.0.0.0", "::"):  # noqa: S104
        return nft.Element(f"any{suffix}", key, name, value)
    return nft.Element(f"exact{suffix}", f"{mapping.host_ip} . {key}", name, value)


def _way_back(call: Call, suffix: str, address: Interface) -> list[nft.Element]:
    """Who must be masqueraded to be answered: a neighbour on the bridge, and the host speaking from its loopback."""
    clients = [_EVERYBODY[suffix]] if boolean(call.config, "masqAll") else [str(address.network), *_LOCAL[suffix]]
    found = [nft.Element(f"hairpin{suffix}", f"{client} . {address.ip}", _owner(call)) for client in clients]
    if suffix == "4":
        bridge, bits = _way_to(address.ip)
        if bridge:  # a route to the one address is that of a link of the container's own (ptp), which goes with it
            owner = _owner(call) if bits == 32 else nft.owner_of_network(call.network)
            found.append(nft.Element("localnet", bridge, owner))
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


def _container_addresses(previous: Json) -> dict[str, Interface]:
    """The container's first address of each family."""
    interfaces = previous.get("interfaces") or []
    found: dict[str, Interface] = {}
    for part in previous.get("ips") or []:
        index = part.get("interface")
        inside = index is None or (0 <= index < len(interfaces) and interfaces[index].get("sandbox"))
        if inside:
            address = ipaddress.ip_interface(part["address"])
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


def main(argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """One call with injected streams."""
    return skel.main(VERBS, argv, env, stdin, stdout)


def entry() -> int:
    """The executable."""
    return skel.process_main(VERBS)
