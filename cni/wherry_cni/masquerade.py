"""Masquerading of a container's addresses, as elements of the instance's nft table (key ipMasq).

Decides which elements an attachment has: what leaves for its own subnet or for multicast keeps its address, all else
takes the host's. Refuses to know links.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from wherry_cni import nft
from wherry_cni.config import boolean, table_name, text
from wherry_cni.errors import IO, UNSUPPORTED, CniError
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["SETS", "check", "forget", "rules", "wished"]

SETS = ("masq4", "masq6", "inside4", "inside6")
_MULTICAST = {"4": "224.0.0.0/4", "6": "ff00::/8"}


def wished(config: Mapping[str, object]) -> bool:
    """Whether the configuration asks for it, by the one backend that there is."""
    if text(config, "ipMasqBackend") not in ("", "nftables"):
        raise CniError(UNSUPPORTED, 'unsupported field "ipMasqBackend"', "this plugin speaks nftables only")
    return boolean(config, "ipMasq")


def rules(call: Call, ips: Sequence[Json]) -> list[nft.Element]:
    """The elements of an attachment with these addresses."""
    wanted: list[nft.Element] = []
    own, whole = nft.owner(call.network, call.container_id, call.ifname), nft.owner_of_network(call.network)
    for part in ips:
        address = ipaddress.ip_interface(part["address"])
        suffix, subnet = nft.family(part["address"]), address.network
        wanted.append(nft.Element(f"masq{suffix}", str(address.ip), own))
        wanted += [nft.Element(f"inside{suffix}", f"{subnet} . {other}", whole)
                   for other in (subnet, _MULTICAST[suffix])]
    return wanted


def forget(call: Call, ips: Sequence[Json]) -> None:
    """Drop the container's addresses. `ips` names them only for the DEL that took the link: from then on the lease may
    be another's, and the elements are told by their owner. A configuration that ADD refused has none."""
    try:
        table = table_name(call.config) if call.config.get("ipMasq") is True else ""
    except CniError:
        return
    if not table:
        return
    addresses = [str(ipaddress.ip_interface(part["address"]).ip) for part in ips]
    if addresses:
        nft.drop(table, [(f"masq{nft.family(address)}", address) for address in addresses])
    else:
        nft.remove(table, nft.owner(call.network, call.container_id, call.ifname), ("masq4", "masq6"))


def check(call: Call, table: str, ips: Sequence[Json]) -> None:
    """Every address is masqueraded still."""
    name = nft.owner(call.network, call.container_id, call.ifname)
    held = {found.key for found in nft.elements(table) if found.owner == name}
    for part in ips:
        if part["address"].partition("/")[0] not in held:
            raise CniError(IO, f"{part['address']} is no longer masqueraded")
