"""Reading a configuration: typed values by key, and a refusal by name of what this plugin does not do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from wherry_cni.errors import BAD_CONFIG, UNSUPPORTED, CniError

__all__ = ["boolean", "has_table", "integer", "ipam_part", "refuse", "routes", "table_name", "text"]

_TABLE = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")


def boolean(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A boolean key."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CniError(BAD_CONFIG, f"{key}: true or false, not {value!r}")
    return value


def integer(config: Mapping[str, Any], key: str, low: int, high: int, default: int = 0) -> int:
    """A number between `low` and `high`; 0 and absent are the default."""
    value = config.get(key)
    if value in (None, 0) and not isinstance(value, bool):
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CniError(BAD_CONFIG, f"{key}: a number from {low} to {high}, not {value!r}")
    return value


def text(config: Mapping[str, Any], key: str, default: str = "") -> str:
    """A text key; empty and absent are the default."""
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise CniError(BAD_CONFIG, f"{key}: a text, not {value!r}")
    return value or default


def refuse(config: Mapping[str, Any], unsupported: Mapping[str, str]) -> None:
    """Say no, by name and with the reason, to each key of `unsupported` that is set to anything."""
    for key, reason in unsupported.items():
        if config.get(key) not in (None, False, "", 0, [], {}):
            raise CniError(UNSUPPORTED, f'unsupported field "{key}"', reason)


def ipam_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an address plugin."""
    found = config.get("ipam")
    if not isinstance(found, dict):
        raise CniError(BAD_CONFIG, "the configuration has no ipam part")
    return found


def routes(ipam: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The key routes of an address plugin's part."""
    listed = ipam.get("routes") or []
    try:
        for route in listed:
            ipaddress.ip_network(str(route["dst"]), strict=False)
            ipaddress.ip_address(str(route.get("gw") or "::"))
        return [dict(route) for route in listed]
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"ipam.routes: {problem}") from None


def has_table(config: Mapping[str, Any]) -> bool:
    """Whether nftTable is sound. Where it is not, ADD made nothing, and DEL has nothing to take."""
    name = config.get("nftTable") or "wherry"
    return isinstance(name, str) and bool(_TABLE.fullmatch(name))


def table_name(config: Mapping[str, Any]) -> str:
    """The nft table of this instance (key nftTable)."""
    name = text(config, "nftTable", "wherry")
    if not _TABLE.fullmatch(name):
        raise CniError(BAD_CONFIG, f'nftTable: "{name}" is not a table name')
    return name
