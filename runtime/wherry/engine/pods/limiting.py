"""The cgroup of a container of a pod, and its limits: OCI linux.resources to files.

Decides where the cgroup lies, and what becomes of a limit that this host has no controller for: a kubelet sends limits
with every container, so by default they are dropped and told (setting missing_controllers).
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from wherry.engine import codec, events, limits, preparing
from wherry.engine.house import House
from wherry.engine.status import folder, look
from wherry.engine.undo import container_lock
from wherry.model import Json
from wherry.oci import cgroup2

from . import checking, rows
from .values import Held

if TYPE_CHECKING:
    from wherry.engine.db import Container

__all__ = ["cgroup", "check", "merged", "scope_name", "split", "update"]

Writes = list[tuple[str, str]]


def scope_name(cid: str) -> str:
    """The unit of a container with the systemd driver."""
    return f"wherry-{cid}.scope"


def cgroup(pod: Held, cid: str) -> str:
    """linux.cgroupsPath: an absolute path, with the systemd driver "slice:prefix:name", "" without cgroup v2."""
    if not pod.cgroup:
        return ""
    return f"{pod.slice}:wherry:{cid}" if pod.slice else f"{pod.cgroup}/wherry-{cid}"


def split(house: House, resources: Json) -> tuple[Writes, tuple[str, ...]]:
    """(what can be written, the controllers that others would need)."""
    wanted = cgroup2.writes(resources)
    lacking = cgroup2.missing(wanted, house.facts.cgroup_available)
    names = {file for file, _ in lacking}
    return [(file, value) for file, value in wanted if file not in names], tuple(dict.fromkeys(c for _, c in lacking))


def check(house: House, resources: Json) -> None:
    """Values that no cgroup takes are refused; what this host lacks only where the setting says so."""
    checking.check_unified(resources)
    _, lacking = split(house, resources)
    if lacking and house.settings.missing_controllers == "error":
        raise limits.missing("a limit", lacking[0], house.facts)


# ---- update


def merged(old: Json, new: Json) -> Json:
    """What is absent stays; of what is given, each member replaces its own."""
    found = dict(old)
    for key, value in new.items():
        found[key] = {**(old.get(key) or {}), **value} if isinstance(value, dict) else value
    return found


def update(house: House, row: Container, new: Json) -> None:
    """Change limits: in the cgroup of a running one at once, and in what is kept."""
    with container_lock(house, row.id):
        row = house.db.container(row.id) or row
        asked = rows.options(row)
        check(house, new)
        after = merged(asked.resources, new)
        before, _ = split(house, asked.resources)
        wanted, _ = split(house, after)
        _apply(house, row, [pair for pair in wanted if pair not in before])
        house.db.set_config(row.id, {**row.config, "member": codec.encode(asked._replace(resources=after))})
        _rewrite(house, row, after)
    events.container(house, row, "update")


def _apply(house: House, row: Container, changed: Writes) -> None:
    from wherry.container import lifecycle
    from wherry.kernel import cgroup as kernel

    seen = look(house, row.id)
    if not changed or not seen.running or seen.state is None or not seen.state.cgroup:
        return
    kernel.prepare(house.facts, seen.state.cgroup)  # the parents may have lost a controller meanwhile
    lifecycle.set_resources(folder(house, row.id), changed)
    if unit := ((seen.state.extra.get("net") or {}).get("unit")):
        from wherry.container import systemd as units
        from wherry.oci import systemd

        scope = systemd.Scope(unit["slice"], unit["unit"])
        units.set_properties(scope, systemd.properties(changed), path=seen.state.cgroup)


def _rewrite(house: House, row: Container, resources: Json) -> None:
    path = f"{house.container_dir(row.id)}/config.json"
    with contextlib.suppress(FileNotFoundError):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        devices = config["linux"]["resources"]["devices"]
        config["linux"]["resources"] = {**resources, "devices": devices}
        preparing.write_config(house.container_dir(row.id), config)
