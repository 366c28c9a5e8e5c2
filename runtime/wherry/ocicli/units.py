"""The systemd driver of this face: a scope for each container, asked for before the container is born in it.

Decides which instance of systemd is meant and what is remembered of the unit. The D-Bus side is container/systemd.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.systemd import Scope

from . import cgroups
from .world import World

if TYPE_CHECKING:
    from wherry.container.systemd import Manager
    from wherry.oci.facts import HostFacts

__all__ = ["change", "make", "stop"]


def make(
    world: World, cid: str, config: Json, facts: HostFacts, held: ExitStack
) -> tuple[cgroups.Group, dict[str, Any]]:
    """(the scope's cgroup with its limits, what State.extra keeps of the unit). `held` lets go of the scope: after an
    error the unit goes too."""
    from wherry.container import systemd as units
    from wherry.oci import cgroup2, systemd

    manager = _manager(world)
    if not units.available(manager):
        hint = "leave --systemd-cgroup out: cgroups by cgroupfs need no systemd"
        raise WherryError(Kind.PRECONDITION, "--systemd-cgroup: systemd does not run here", hint=hint)
    linux = config.get("linux", {})
    scope = systemd.scope(linux.get("cgroupsPath") or "", cid, user=world.rootless)
    resources = linux.get("resources") or {}
    writes, _ = cgroups.split(world, cgroup2.writes(resources), frozenset(facts.cgroup_available), facts)
    rules = cgroups.device_rules(resources) if cgroups.may_load_bpf(facts) else None
    wanted = [*systemd.properties(list(writes), rules), *systemd.annotated(config.get("annotations") or {})]
    holder = units.start(scope, wanted, facts, manager=manager)
    held.enter_context(holder)
    group = cgroups.plan(world, config, cid, facts, made=holder.path)
    group = group._replace(writes=tuple(systemd.direct(group.writes)))
    return group, {"unit": {"slice": scope.slice, "unit": scope.unit, "user": manager.user}}


def _manager(world: World) -> Manager:
    from wherry.container.systemd import Manager

    return Manager(user=world.rootless, env=world.env)


def stop(world: World, unit: Mapping[str, Any]) -> None:
    """End the unit; absent is fine."""
    from wherry.container import systemd as units

    units.stop(Scope(unit["slice"], unit["unit"]), _manager(world)._replace(user=unit["user"]))


def change(
    world: World, unit: Mapping[str, Any], writes: cgroups.Writes, rules: list[Json] | None, path: str
) -> None:
    """Tell the unit of new limits and device rules (None: as they are): a daemon-reload would put the old ones back."""
    from wherry.container import systemd as units
    from wherry.oci import systemd

    manager = _manager(world)._replace(user=unit["user"])
    properties = systemd.properties(list(writes), rules)
    units.set_properties(Scope(unit["slice"], unit["unit"]), properties, manager, path=path)
