"""What was asked of the cgroup, as OCI resources; and whether this host has the controllers for it. Pure.

Decides docker's conversions and which controller a limit needs. A limit that was asked for and cannot be is an error
that names the controller, its holder and the cure; a default that cannot be is dropped and told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wherry.errors import Kind, WherryError
from wherry.model import Json, Limits
from wherry.oci.facts import HostFacts

__all__ = ["check", "degraded", "missing", "resources", "shape"]

_NEEDS = {
    "memory": "memory",
    "memory_reservation": "memory",
    "memory_swap": "memory",
    "cpus": "cpu",
    "cpu_shares": "cpu",
    "cpuset_cpus": "cpuset",
    "cpuset_mems": "cpuset",
    "pids": "pids",
}
_FLAGS = {"pids": "--pids-limit"}
_MIN_MEMORY = 6 << 20  # docker's floor
_PERIOD = 100_000


def _asked(limits: Limits) -> list[str]:
    return [name for name in _NEEDS if getattr(limits, name) is not None]


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def check(limits: Limits, facts: HostFacts) -> None:
    """Refuse what can never be, and what this host cannot do."""
    _check_values(limits)
    for name in _asked(limits):
        if _NEEDS[name] not in facts.cgroup_available:
            raise missing(_flag(name), _NEEDS[name], facts)


def missing(flag: str, controller: str, facts: HostFacts) -> WherryError:
    """That a limit cannot be: for want of which controller, who holds it, and the cure."""
    if not facts.cgroup_mount:
        hint = "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"
        return WherryError(Kind.PRECONDITION, f"{flag} needs cgroup v2, which is not mounted", hint=hint)
    holder = facts.cgroup_holders.get(controller) or facts.cgroup_v1.get(controller) or "this kernel does not offer it"
    by = f"it is held by {holder}" if controller in {**facts.cgroup_holders, **facts.cgroup_v1} else holder
    hint = f"boot with systemd.unified_cgroup_hierarchy=1 (or cgroup_no_v1={controller}), or leave {flag} out"
    return WherryError(Kind.PRECONDITION, f"{flag} needs the cgroup v2 controller {controller}: {by}", hint=hint)


def _check_values(limits: Limits) -> None:
    if limits.memory is not None and 0 < limits.memory < _MIN_MEMORY:
        raise WherryError(Kind.INVALID, f"minimum memory limit is {_MIN_MEMORY >> 20} MiB, not {limits.memory} bytes")
    swap, memory = limits.memory_swap, limits.memory
    if swap is not None and swap > 0 and not memory:
        raise WherryError(Kind.INVALID, "--memory-swap needs --memory")
    if swap is not None and swap > 0 and memory and swap < memory:
        raise WherryError(Kind.INVALID, "--memory-swap is memory and swap together: it cannot be below --memory")
    if limits.memory_reservation and memory and limits.memory_reservation > memory:
        raise WherryError(Kind.INVALID, "--memory-reservation cannot be above --memory")
    if limits.cpus is not None and limits.cpus < 0.01:
        raise WherryError(Kind.INVALID, f"--cpus {limits.cpus} is below the least share of 0.01")
    _check_sets(limits)


def _check_sets(limits: Limits) -> None:
    for name in ("cpuset_cpus", "cpuset_mems"):
        text = getattr(limits, name)
        if text and not set(text) <= set("0123456789,-"):
            raise WherryError(Kind.INVALID, f'{_flag(name)} "{text}" is not a list such as 0-2,4')


def degraded(limits: Limits, facts: HostFacts, default_pids: int) -> tuple[str, ...]:
    """Name the defaults that this host makes us drop."""
    wanted = default_pids > 0 and limits.pids is None
    return ("pids",) if wanted and "pids" not in facts.cgroup_available else ()


def _swap(limits: Limits) -> int | None:
    if limits.memory_swap is not None and limits.memory_swap != 0:
        return limits.memory_swap
    return limits.memory * 2 if limits.memory else None


_CPU: dict[str, Callable[[Limits], Any]] = {
    "shares": lambda given: given.cpu_shares,
    "quota": lambda given: round(given.cpus * _PERIOD) if given.cpus else None,
    "period": lambda given: _PERIOD if given.cpus else None,
    "cpus": lambda given: given.cpuset_cpus or None,
    "mems": lambda given: given.cpuset_mems or None,
}
_MEMORY: dict[str, Callable[[Limits], Any]] = {
    "limit": lambda given: given.memory or None,
    "reservation": lambda given: given.memory_reservation or None,
    "swap": _swap,
}


def _part(table: dict[str, Callable[[Limits], Any]], limits: Limits) -> Json:
    return {key: value for key, get in table.items() if (value := get(limits)) is not None}


def resources(limits: Limits, facts: HostFacts, default_pids: int) -> Json:
    """Return linux.resources without devices."""
    pids = limits.pids if limits.pids is not None else default_pids
    if limits.pids is None and "pids" not in facts.cgroup_available:
        pids = 0
    found = {"cpu": _part(_CPU, limits), "memory": _part(_MEMORY, limits), "pids": {"limit": pids} if pids else {}}
    return {key: value for key, value in found.items() if value}


def shape(limits: Limits) -> Json:
    """docker's HostConfig members."""
    return {
        "Memory": limits.memory or 0,
        "MemoryReservation": limits.memory_reservation or 0,
        "MemorySwap": _swap(limits) or 0,
        "NanoCpus": round((limits.cpus or 0) * 1_000_000_000),
        "CpuShares": limits.cpu_shares or 0,
        "CpusetCpus": limits.cpuset_cpus or "",
        "CpusetMems": limits.cpuset_mems or "",
        "PidsLimit": limits.pids,
    }
