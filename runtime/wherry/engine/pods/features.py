"""What pods can be on this host, as it is set. Decides nothing that a pod is asked."""

from __future__ import annotations

from typing import NamedTuple

from wherry.engine.house import House

from . import cgroups, network

__all__ = ["Features", "of"]

class Features(NamedTuple):
    """Facts for a kubelet."""

    cgroup_driver: str  # cgroupfs or systemd
    network: str  # "" ready, else why it is not
    userns: bool  # pods in user namespaces, with idmapped mounts
    userns_host_network: bool
    recursive_readonly: bool
    handlers: tuple[str, ...]  # RuntimeClass handlers by name


def of(house: House) -> Features:
    """All of it."""
    facts = house.facts
    return Features(
        cgroup_driver=cgroups.driver(house),
        network=network.ready(house),
        userns=facts.user_namespaces and facts.idmap,
        userns_host_network=False,
        recursive_readonly=facts.kernel >= (5, 12),  # mount_setattr(2)
        handlers=("wherry", *sorted(house.settings.handlers)),
    )
