"""Whose default route a container on several networks has: docker's rule, made true in its network namespace.

Decides: of the networks whose gateway leads out, the one of the highest priority; among equals the first by name; for
IPv4 and IPv6 each for itself. Knows no netlink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.model import Json

if TYPE_CHECKING:
    from wherry.net.links import Way

__all__ = ["apply", "chosen"]


def chosen(facts: Sequence[Json], six: bool) -> tuple[str, str] | None:
    """(gateway, interface) of the default route of a family, by what the networks gave (net.json)."""
    for fact in sorted(facts, key=lambda fact: (-fact.get("priority", 0), fact["network"])):
        for interface in fact["interfaces"] if fact.get("routed", True) else ():
            for _, gateway in interface["addresses"]:
                if gateway and (":" in gateway) is six:
                    return gateway, interface["name"]
    return None


def apply(path: str, facts: Sequence[Json]) -> None:
    """Make it so in the namespace at `path`."""
    from wherry.net import links

    def way(six: bool) -> Way | None:
        found = chosen(facts, six)
        return links.Way(*found) if found else None

    links.set_default(path, way(False), way(True))
