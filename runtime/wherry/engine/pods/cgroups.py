"""The cgroup of a pod, in the words of the driver that the kubelet is told of.

Decides which directory, or slice, the containers of a pod lie in, and that only a cgroup that we made gets limits from
us: the kubelet keeps those of its own, and knows more than the sums that it tells a runtime. Refuses to know the
containers' own cgroups.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from wherry.engine.house import House
from wherry.errors import Kind, WherryError
from wherry.kernel import cgroup
from wherry.model import Json
from wherry.oci import cgroup2, systemd

from .values import PodOptions

__all__ = ["Place", "absent", "driver", "locate", "make", "remove", "set_limits"]

_SUMS = {"memory": ("limit", "reservation"), "cpu": ("shares", "quota"), "pids": ("limit",)}


class Place(NamedTuple):
    """`path`: absolute, "" where there is no cgroup v2. `slice`: with the systemd driver. `own`: nobody but us."""

    path: str = ""
    slice: str = ""
    own: bool = False


def driver(house: House) -> str:
    """cgroupfs or systemd."""
    wanted = house.settings.pod_cgroup_driver
    if wanted != "auto":
        return wanted
    from wherry.container import systemd as bus

    return "systemd" if bus.available() else "cgroupfs"


def locate(house: House, pod: str, options: PodOptions) -> Place:
    """Where a pod's cgroup is, or would be. Without a parent in the request: one of its own below the setting's."""
    if not house.facts.cgroup_mount:
        return Place()
    own = not options.cgroup_parent
    if driver(house) == "systemd":
        name = _own_slice(house, pod) if own else os.path.basename(options.cgroup_parent.rstrip("/"))
        return Place(cgroup.locate(house.facts, systemd.slice_path(name)), name, own)
    parts = (house.settings.cgroup_parent, f"pod-{pod}") if own else (options.cgroup_parent,)
    return Place(cgroup.locate(house.facts, *parts), "", own)


def _own_slice(house: House, pod: str) -> str:
    stem = "".join(char if char.isalnum() else "_" for char in house.settings.cgroup_parent.strip("/"))
    return f"{stem or 'wherry'}-pod{pod}.slice"


def absent(place: Place) -> int:
    """How many directories `make` would make for it, on the way and at its end. A unit of systemd comes and goes by
    itself: none."""
    path, count = place.path, 0
    while path and not place.slice and not os.path.isdir(path):
        path, count = os.path.dirname(path), count + 1
    return count


def make(house: House, place: Place, options: PodOptions) -> None:
    """Make it where it is missing, with its limits where it is ours. A slice without limits comes with its first
    scope."""
    limits = _writes(house, _sum(options.resources, options.overhead)) if place.own else []
    if place.slice:
        if limits:
            from wherry.container import systemd as bus

            bus.start_slice(place.slice, systemd.properties(limits))
    elif absent(place):
        cgroup.prepare(house.facts, f"{place.path}/any")
        if limits:
            cgroup.update(place.path, limits)


def set_limits(house: House, place: Place, options: PodOptions) -> None:
    """Change those of a cgroup of our own."""
    limits = _writes(house, _sum(options.resources, options.overhead)) if place.own and place.path else []
    if limits and place.slice:
        from wherry.container import systemd as bus

        bus.start_slice(place.slice, systemd.properties(limits))
    elif limits:
        cgroup.update(place.path, limits)


def remove(place: Place, *, made: int) -> None:
    """Our own goes with all that is in it; the directories that were `made` for a parent of the request's (as `absent`
    counts them) only as far as they are empty, for other pods may be in them by now. Gone is success."""
    if not place.path:
        return
    if place.own and place.slice:
        if os.path.isdir(place.path):
            from wherry.container import systemd as bus

            bus.stop_slice(place.slice)
    elif place.own:
        cgroup.kill(place.path)
        cgroup.remove(place.path)
    else:
        _remove_way(place.path, made)


def _remove_way(path: str, made: int) -> None:
    for _ in range(made):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:  # in use, and so is what is above
            return
        path = os.path.dirname(path)


def _sum(resources: Json, overhead: Json) -> Json:
    """What its containers may have, and what the pod itself takes beside them."""
    return {**overhead, **{section: _added(section, values, overhead.get(section) or {})
                           for section, values in resources.items()}}  # fmt: skip


def _added(section: str, values: Json, more: Json) -> Json:
    if section not in _SUMS or not isinstance(values, Mapping):
        return values
    both = {key: values[key] + more[key] for key in _SUMS[section]
            if (values.get(key) or 0) > 0 and (more.get(key) or 0) > 0}  # fmt: skip
    return {**more, **values, **both}


def _writes(house: House, resources: Json) -> list[tuple[str, str]]:
    """What the host can do of it; what it cannot is told, or refused, by the setting."""
    writes = cgroup2.writes(resources)
    absent = cgroup2.missing(writes, house.facts.cgroup_available)
    if not absent:
        return writes
    lacking = ", ".join(sorted({controller for _, controller in absent}))
    message = f"limits of the pod: this host has no controller {lacking} in cgroup v2"
    if house.settings.missing_controllers == "error":
        hint = 'missing_controllers = "degrade" runs pods without these limits'
        raise WherryError(Kind.PRECONDITION, message, hint=hint)
    house.warn(message)
    without = {file for file, _ in absent}
    return [write for write in writes if write[0] not in without]
