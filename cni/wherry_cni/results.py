"""CNI results between versions: inside, every result has the shape of 1.1.0; what a caller reads is of his version.

Decides what each version lacks (specification, section 5, and the older texts). Refuses to know where results go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from wherry_cni.errors import BAD_CONFIG, INCOMPATIBLE, CniError

__all__ = ["NEWEST", "VERSIONS", "Json", "from_previous", "to_version", "version_of"]

Json = dict[str, Any]
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
_PARTS = {"interfaces": "", "ips": "address", "routes": "dst"}
_NEW_IN_1_1 = {"interfaces": ("mtu", "socketPath", "pciID"), "routes": ("mtu", "advmss", "priority", "table", "scope")}


def version_of(config: Mapping[str, Any]) -> str:
    """The version that the configuration speaks, or why we do not."""
    version = config.get("cniVersion") or "0.1.0"  # what the reference assumes of a configuration that says nothing
    if version not in VERSIONS:
        raise CniError(INCOMPATIBLE, f"incompatible CNI version {version}", f"supported: {', '.join(VERSIONS)}")
    return str(version)


def to_version(result: Json, version: str) -> Json:
    """A result as the caller's version writes it."""
    told: Json = {"cniVersion": version, **{key: value for key, value in result.items() if key != "cniVersion"}}
    if version < "1.1.0":
        for key, fields in _NEW_IN_1_1.items():
            told[key] = [{name: part[name] for name in part if name not in fields} for part in told.get(key, [])]
    if version < "1.0.0":
        told["ips"] = [{"version": "6" if ":" in part["address"] else "4", **part} for part in told.get("ips", [])]
    return {key: value for key, value in told.items() if value or key in ("cniVersion", "ips")}


def from_previous(config: Mapping[str, Any]) -> Json | None:
    """The prevResult of a configuration in the shape of 1.1.0; None where there is none."""
    previous = config.get("prevResult")
    if previous is None:
        return None
    if not isinstance(previous, dict) or not all(_sound(previous.get(key) or [], word) for key, word in _PARTS.items()):
        raise CniError(BAD_CONFIG, "prevResult is not a CNI result")
    result = {key: value for key, value in previous.items() if key != "cniVersion"}
    result["ips"] = [{name: part[name] for name in part if name != "version"} for part in previous.get("ips") or []]
    return result


def _sound(parts: object, word: str) -> bool:
    """Whether this is a list of objects, each with an address under the `word`, if there is one."""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return False
    with suppress(ValueError):
        return not word or all(ipaddress.ip_interface(str(part.get(word))) for part in parts)
    return False
