"""What pods can be on this host, as it is set. Decides nothing that a pod is asked."""

from __future__ import annotations

import os
from typing import NamedTuple

from wherry.engine.config import networking
from wherry.engine.house import House

__all__ = ["Features", "of"]

_SYSTEMD = "/run/systemd/system"  # sd_booted(3)


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
    driver = house.settings.pod_cgroup_driver
    if driver == "auto":
        driver = "systemd" if os.path.isdir(_SYSTEMD) else "cgroupfs"
    facts = house.facts
    return Features(
        cgroup_driver=driver,
        network=_network(house),
        userns=facts.user_namespaces and facts.idmap,
        userns_host_network=False,
        recursive_readonly=facts.kernel >= (5, 12),  # mount_setattr(2)
        handlers=("wherry", *sorted(house.settings.handlers)),
    )


def _network(house: House) -> str:
    place = networking(house.place, house.settings)
    try:
        lists = [name for name in os.listdir(place.cni_conf) if name.endswith((".conflist", ".conf", ".json"))]
    except FileNotFoundError:
        lists = []
    return "" if lists else f"no CNI network is configured in {place.cni_conf}"
