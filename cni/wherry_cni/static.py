"""The plugin static: the addresses, routes and resolver settings that the configuration says.

Decides who is heard: runtimeConfig.ips, else args.cni.ips, else the configuration's addresses and those of CNI_ARGS
(IP=, GATEWAY=, several by commas). It keeps nothing: two containers with one configuration get the same address.
Refuses to know links: it never touches the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from wherry_cni import skel
from wherry_cni.config import ipam_part, routes
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "delete", "entry", "main", "status"]


def add(call: Call) -> Json:
    """What is configured, as a result."""
    ipam = ipam_part(call.config)
    return {"ips": _ips(call, ipam), "routes": routes(ipam), "dns": _dns(ipam)}


def delete(_call: Call) -> None:
    """Nothing was kept."""


def check(call: Call) -> None:
    """Each configured address is in prevResult, with its gateway where one is configured."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "CHECK without prevResult")
    told = {ipaddress.ip_interface(part["address"]): part.get("gateway") for part in previous["ips"]}
    for part in _ips(call, ipam_part(call.config)):
        address = ipaddress.ip_interface(part["address"])
        if address not in told:
            raise CniError(IO_ERROR, f"static: {address} is configured, and prevResult has not got it")
        if part.get("gateway") and told[address] != part["gateway"]:
            raise CniError(IO_ERROR, f"static: {address} has the gateway {told[address]}, not {part['gateway']}")


def status(call: Call) -> None:
    """The configuration can be read; addresses may come with the ADD."""
    ipam = ipam_part(call.config)
    _ips(call, ipam)
    routes(ipam)


def _ips(call: Call, ipam: Mapping[str, Any]) -> list[Json]:
    asked: Any = call.runtime.get("ips") or call.given.get("ips")
    if asked:
        return [_ip({"address": address}) for address in _list(asked)]
    configured = [_ip(part) for part in _list(ipam.get("addresses") or [])]
    found = configured + [_ip({"address": address}) for address in _listed(call, "IP")]
    for gateway in _listed(call, "GATEWAY"):
        _give_gateway(found, gateway)
    return found


def _list(given: Any) -> Sequence[Any]:
    if not isinstance(given, list):
        raise CniError(BAD_CONFIG, f"addresses: a list, not {given!r}")
    return given


def _dns(ipam: Mapping[str, Any]) -> Json:
    found = ipam.get("dns") or {}
    if not isinstance(found, dict):
        raise CniError(BAD_CONFIG, "ipam.dns is not an object")
    return found


def _listed(call: Call, key: str) -> list[str]:
    return [part.strip() for part in call.args.get(key, "").split(",") if part.strip()]


def _give_gateway(ips: Sequence[Json], gateway: str) -> None:
    """To the addresses in whose subnet it is."""
    try:
        found = ipaddress.ip_address(gateway)
    except ValueError as problem:
        raise CniError(BAD_CONFIG, f"CNI_ARGS GATEWAY: {problem}") from None
    for part in ips:
        if found in ipaddress.ip_interface(part["address"]).network:
            part["gateway"] = str(found)


def _ip(part: Any) -> Json:
    try:
        address = str(part["address"])
        if "/" not in address:
            raise ValueError(f"{address} has no prefix length")
        made = {"address": str(ipaddress.ip_interface(address))}
        if part.get("gateway"):
            made["gateway"] = str(ipaddress.ip_address(part["gateway"]))
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"ipam.addresses: {problem}") from None
    return made


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status}
main, entry = skel.faces(VERBS)
