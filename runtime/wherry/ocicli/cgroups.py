"""Where a bundle's cgroup lies, and what of its limits this host can set; both drivers.

Decides paths as runc does, and what a missing controller means here: a warning and a degraded state, since the callers
of this face always send limits (unless wherry.toml says missing_controllers = "error").
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

if TYPE_CHECKING:
    from wherry.oci.facts import HostFacts

    from .world import World

__all__ = ["Group", "Writes", "device_rules", "may_load_bpf", "path", "plan", "split"]

Writes = tuple[tuple[str, str], ...]


class Group(NamedTuple):
    """The cgroup of a start. `path` is "" where there is none; `degraded` names what could not be limited."""

    path: str = ""
    writes: Writes = ()
    device_bpf: bytes = b""
    degraded: tuple[str, ...] = ()


def path(config: Json, cid: str, facts: HostFacts) -> str:
    """The absolute path by linux.cgroupsPath: below the mount, or beside the caller's own cgroup where relative."""
    from wherry.kernel import cgroup

    wanted = config.get("linux", {}).get("cgroupsPath") or cid
    if ".." in wanted.split("/"):
        raise WherryError(Kind.INVALID, f'linux.cgroupsPath: "{wanted}" leads out of its place')
    if wanted.startswith("/"):
        return cgroup.locate(facts, wanted)
    return cgroup.locate(facts, os.path.dirname(facts.cgroup_own.rstrip("/")) if facts.cgroup_own else "/", wanted)


def plan(world: World, config: Json, cid: str, facts: HostFacts, made: str = "") -> Group:
    """The cgroup with its limits. `made`: it exists (a scope). Rootless without a cgroup of its own goes without."""
    resources = config.get("linux", {}).get("resources") or {}
    if world.driver == "disabled" or not facts.cgroup_mount:
        return _without(world, resources)
    from wherry.kernel import cgroup

    where = made or path(config, cid, facts)
    try:
        have = cgroup.prepare(facts, where)
        _empty(where)
    except WherryError as error:
        if not world.rootless or error.kind is not Kind.DENIED:
            raise
        return _without(world, resources)
    from wherry.oci import cgroup2

    writes, degraded = split(world, cgroup2.writes(resources), have, facts)
    return Group(where, writes, _devices(resources, facts), degraded)


def _without(world: World, resources: Json) -> Group:
    asked = tuple(key for key in resources if key != "devices")
    if asked:
        world.warn(f"no cgroup here: no limits of {', '.join(asked)}")
    return Group(degraded=asked)


def _empty(where: str) -> None:
    """Two containers in one cgroup would be killed and frozen together."""
    from wherry.kernel import cgroup

    if os.path.isdir(where) and cgroup.events(where).get("populated") and not _scope(where):
        raise WherryError(Kind.CONFLICT, f"the cgroup {where} has processes in it", hint="another linux.cgroupsPath")


def _scope(where: str) -> bool:
    return where.endswith(".scope")  # the holder of the unit lives there for the moment


def split(
    world: World, wanted: list[tuple[str, str]], have: frozenset[str], facts: HostFacts
) -> tuple[Writes, tuple[str, ...]]:
    """(what can be written, names of the controllers that are missing); a warning for those."""
    from wherry.oci import cgroup2

    lacking = tuple(sorted({controller for _, controller in cgroup2.missing(wanted, have)}))
    if not lacking:
        return tuple(wanted), ()
    from wherry.engine.config import settings

    holders = {name: facts.cgroup_holders.get(name) or facts.cgroup_v1.get(name) or "" for name in lacking}
    said = ", ".join(f"{name} (held by {holder})" if holder else name for name, holder in holders.items())
    hint = "boot with systemd.unified_cgroup_hierarchy=1"
    if settings(world.config).missing_controllers == "error":
        raise WherryError(Kind.PRECONDITION, f"cgroup v2 lacks the controllers {said}", hint=hint)
    world.warn(f"no limits of {said}: cgroup v2 lacks the controllers; {hint}")
    dropped = {file for file, _ in cgroup2.missing(wanted, have)}
    return tuple(write for write in wanted if write[0] not in dropped), lacking


def device_rules(resources: Json) -> list[Json]:
    """Default-deny: what the config allows, then what every container has (config-linux.md, default devices)."""
    from wherry.oci import defaults

    return [*(resources.get("devices") or []), *defaults.device_rules()[1:]]


def may_load_bpf(facts: HostFacts) -> bool:
    """BPF_PROG_LOAD of device rules is for root of the first user namespace."""
    return facts.has_cap("CAP_SYS_ADMIN") and facts.uid_map[0][2] == 2**32 - 1


def _devices(resources: Json, facts: HostFacts) -> bytes:
    from wherry.oci import bpf

    return bpf.program(device_rules(resources)) if may_load_bpf(facts) else b""
