"""The plugin static: the addresses, routes and resolver settings that the configuration says.

Decides who is heard: runtimeConfig.ips, else args.cni.ips, else the configuration's addresses and those of CNI_ARGS
(IP=, GATEWAY=, several by commas). It keeps nothing: two containers with one configuration get the same address.
Refuses to know links: it never touches the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import IO, Any

from wherry_cni import skel
from wherry_cni.config import text
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "delete", "entry", "main", "status"]


def add(call: Call) -> Json:
    """What is configured, as a result."""
    ipam = _ipam(call)
    return {"ips": _ips(call, ipam), "routes": _routes(ipam), "dns": dict(ipam.get("dns") or {})}


def delete(_call: Call) -> None:
    """Nothing was kept."""


def check(call: Call) -> None:
    """Each configured address is in prevResult, with its gateway where one is configured."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "CHECK without prevResult")
    told = {ipaddress.ip_interface(part["address"]): part.get("gateway") for part in previous["ips"]}
    for part in _ips(call, _ipam(call)):
        address = ipaddress.ip_interface(part["address"])
        if address not in told:
            raise CniError(IO_ERROR, f"static: {address} is configured, and prevResult has not got it")
        if part.get("gateway") and told[address] != part["gateway"]:
            raise CniError(IO_ERROR, f"static: {address} has the gateway {told[address]}, not {part['gateway']}")


def status(call: Call) -> None:
    """The configuration can be read; addresses may come with the ADD."""
    ipam = _ipam(call)
    _ips(call, ipam)
    _routes(ipam)


def _ips(call: Call, ipam: Mapping[str, Any]) -> list[Json]:
    in_args: Any = (call.config.get("args") or {}).get("cni") or {}
    asked: Any = call.runtime.get("ips") or in_args.get("ips")
    if asked:
        return [_ip({"address": address}) for address in asked]
    configured = [_ip(part) for part in ipam.get("addresses") or []]
    found = configured + [_ip({"address": address}) for address in _listed(call, "IP")]
    for gateway in _listed(call, "GATEWAY"):
        _give_gateway(found, gateway)
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


def _routes(ipam: Mapping[str, Any]) -> list[Json]:
    routes = ipam.get("routes") or []
    try:
        for route in routes:
            ipaddress.ip_network(route["dst"], strict=False)
    except (KeyError, TypeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"ipam.routes: {problem}") from None
    return [dict(route) for route in routes]


def _ipam(call: Call) -> Mapping[str, Any]:
    ipam = call.config.get("ipam")
    if not isinstance(ipam, dict):
        raise CniError(BAD_CONFIG, "the configuration has no ipam part")
    text(ipam, "type")
    return ipam


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status}


def main(argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """One call with injected streams."""
    return skel.main(VERBS, argv, env, stdin, stdout)


def entry() -> int:
    """The executable."""
    return skel.process_main(VERBS)
