"""CNI results between versions: inside, every result has the shape of 1.1.0; a plugin reads and writes its list's own.

Decides which version a list is spoken in, and what each version's result looks like (the specifications 0.1.0 to 1.1.0,
section "Result"). Refuses to know where results come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.model import Json

__all__ = ["NEWEST", "VERSIONS", "candidates", "number", "read", "usable", "written"]

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
_UNSAID = "0.1.0"  # what the reference takes a configuration for that says nothing
_NEW_IN_1_1 = {"interfaces": ("mtu", "socketPath", "pciID"), "routes": ("mtu", "advmss", "priority", "table", "scope")}
_FAMILIES = (("ip4", False), ("ip6", True))
_PARTS: Mapping[str, Mapping[str, type]] = {  # of each list in a result, what we read of its members
    "interfaces": {"name": str, "mac": str, "sandbox": str},
    "ips": {"address": str, "gateway": str, "interface": int},
    "routes": {"dst": str, "gw": str},
}
_NEEDED = {"interfaces": (), "ips": ("address",), "routes": ("dst",)}


def number(version: str) -> tuple[int, ...]:
    """A version for comparing; what is no number counts as 0."""
    return tuple(int(word) if word.isdecimal() and len(word) < 10 else 0 for word in version.split("."))


def candidates(conflist: Json) -> list[str]:
    """The versions that a list may be spoken in, the newest first: cniVersion and cniVersions (1.1.0, "Version
    considerations"). Those that nobody here speaks are left out; [] where none is left."""
    given = conflist.get("cniVersions")
    told = [str(conflist.get("cniVersion") or _UNSAID)] + ([str(v) for v in given] if isinstance(given, list) else [])
    return sorted({version for version in told if version in VERSIONS}, key=number, reverse=True)


def read(result: Json, version: str) -> Json:
    """Any result in the shape of 1.1.0. `version` is its list's, for a result that does not say its own."""
    spoken = number(str(result.get("cniVersion") or version))
    made = _from_families(result) if spoken < number("0.3.0") else dict(result)
    if isinstance(made.get("ips"), list):
        made["ips"] = [{key: part[key] for key in part if key != "version"} if isinstance(part, dict) else part
                       for part in made["ips"]]
    return {**{key: made[key] for key in made if made[key] is not None}, "cniVersion": NEWEST}


def usable(result: Json) -> bool:
    """Whether what we read of a result in 1.1.0's shape has the types that it should; a value may be null."""
    lists = {key: result.get(key, []) for key in _PARTS}
    return all(isinstance(found, list) and all(_is_part(part, key) for part in found)
               for key, found in lists.items()) and _is_dns(result.get("dns", {}))


def _is_part(part: Any, key: str) -> bool:
    return isinstance(part, dict) and all(part.get(name) is not None for name in _NEEDED[key]) and all(
        part.get(name) is None or isinstance(part[name], kind) for name, kind in _PARTS[key].items())


def _is_dns(dns: Any) -> bool:
    lists = [dns.get(key) or [] for key in ("nameservers", "search", "options")] if isinstance(dns, dict) else [None]
    return all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists)


def written(result: Json, version: str) -> Json:
    """A result of 1.1.0's shape as `version` writes it."""
    spoken = number(version)
    told: Json = {**result, "cniVersion": version}
    if spoken < number("1.1.0"):
        for key, fields in _NEW_IN_1_1.items():
            if key in told:
                told[key] = [{name: part[name] for name in part if name not in fields} for part in told[key]]
    if spoken < number("1.0.0"):
        told["ips"] = [{"version": "6" if ":" in part["address"] else "4", **part} for part in told.get("ips", [])]
    return _to_families(told) if spoken < number("0.3.0") else told


def _from_families(result: Json) -> Json:
    """0.1.0 and 0.2.0 know one address of each family, with its routes beside it, and no interface."""
    ips: list[Json] = []
    routes: list[Json] = []
    for key, _ in _FAMILIES:
        part = result.get(key)
        if isinstance(part, dict) and part.get("ip"):
            ips.append({"address": part["ip"], **({"gateway": part["gateway"]} if part.get("gateway") else {})})
            routes += part.get("routes") or []
    kept = {key: result[key] for key in result if key not in ("ip4", "ip6")}
    return {**kept, "ips": ips, "routes": routes} if ips else kept


def _to_families(told: Json) -> Json:
    made: Json = {"cniVersion": told["cniVersion"]}
    for key, six in _FAMILIES:
        part = next((ip for ip in told["ips"] if (":" in ip["address"]) is six), None)
        if part is not None:
            ways = [_plain(route) for route in told.get("routes") or [] if (":" in route["dst"]) is six]
            made[key] = {"ip": part["address"], **({"gateway": part["gateway"]} if part.get("gateway") else {}),
                         **({"routes": ways} if ways else {})}
    return made | ({"dns": told["dns"]} if told.get("dns") else {})


def _plain(route: Mapping[str, Any]) -> Json:
    return {key: route[key] for key in ("dst", "gw") if route.get(key)}
