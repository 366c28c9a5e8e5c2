"""linux.resources to cgroup v2 files: ordered (file, value) pairs. Pure.

Decides the conversions from the v1 numbers that the runtime-spec speaks; refuses to know which controllers are there:
`missing` tells what would not find its controller, and the caller decides whether that is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["check_usage", "controller", "ignored", "io_weight", "missing", "swap_max", "weight", "writes"]

Writes = list[tuple[str, str]]
#: fields of linux.resources that cgroup v2 has no file for
_V1_ONLY: Final[tuple[tuple[str, str], ...]] = (
    ("memory", "kernel"),
    ("memory", "kernelTCP"),
    ("memory", "swappiness"),
    ("memory", "disableOOMKiller"),
    ("cpu", "realtimeRuntime"),
    ("cpu", "realtimePeriod"),
    ("blockIO", "leafWeight"),
    ("network", "classID"),
    ("network", "priorities"),
)
_THROTTLES: Final[tuple[tuple[str, str], ...]] = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def writes(resources: Json) -> Writes:
    """What to write into a new cgroup, in an order that the kernel takes (limits of memory before swap, idle before
    weight, quota before burst); `unified` comes last and so has the last word."""
    result: Writes = []
    for section, convert in _SECTIONS:
        value = resources.get(section)
        if value:
            result += convert(value)
    return result


def controller(file: str) -> str:
    """The controller that owns a file; "" for the core's own (cgroup.*)."""
    prefix = file.partition(".")[0]
    return "" if prefix == "cgroup" else prefix


def missing(wanted: Writes, controllers: Iterable[str]) -> Writes:
    """(file, controller) for each write whose controller is not among `controllers`."""
    have = {"", *controllers}
    return [(file, controller(file)) for file, _ in wanted if controller(file) not in have]


def ignored(resources: Json) -> list[str]:
    """Fields given that cgroup v2 cannot express, for a warning."""
    found = [f"{section}.{key}" for section, key in _V1_ONLY if (resources.get(section) or {}).get(key)]
    devices = (resources.get("blockIO") or {}).get("weightDevice") or []
    return found + [
        f"blockIO.weightDevice[{i}].leafWeight" for i, entry in enumerate(devices) if entry.get("leafWeight")
    ]


def check_usage(resources: Json, usage: int) -> None:
    """memory.checkBeforeUpdate: a new limit below what is used (bytes of memory.current) is refused, where v2 would
    kill."""
    memory = resources.get("memory") or {}
    limit = memory.get("limit") or 0
    if memory.get("checkBeforeUpdate") and 0 < limit < usage:
        raise WherryError(
            Kind.PRECONDITION,
            f"linux.resources.memory.limit: {limit} is below the {usage} bytes in use",
            hint="leave out memory.checkBeforeUpdate to let the kernel reclaim or kill",
        )


# ---- memory


def _limit(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(memory: Json) -> Writes:
    limit, reservation, swap = memory.get("limit"), memory.get("reservation"), memory.get("swap")
    result: Writes = []
    if limit:
        result.append(("memory.max", _limit(limit)))
    swap_value = swap_max(limit or 0, swap or 0)
    if swap_value is not None:
        result.append(("memory.swap.max", _limit(swap_value)))
    if reservation:
        result.append(("memory.low", _limit(reservation)))
    return result


def swap_max(limit: int, swap: int) -> int | None:
    """v1's memory+swap to v2's swap alone; None: leave it. Unlimited memory unlocks the swap too, as in v1."""
    if swap < 0 or (limit < 0 and swap == 0):
        return -1
    if swap == 0:
        return None
    if limit <= 0:
        raise WherryError(Kind.INVALID, "linux.resources.memory.swap: needs memory.limit as well")
    if swap < limit:
        raise WherryError(
            Kind.INVALID,
            f"linux.resources.memory.swap: {swap} is memory and swap together and must not be below "
            f"memory.limit {limit}",
        )
    return swap - limit


# ---- cpu


def weight(shares: int) -> int:
    """cpu.shares (2..262144, default 1024) to cpu.weight (1..10000, default 100), the curve that meets all three
    points: log10(weight) = (l^2 + 125 l) / 612 - 7/34 with l = log2(shares). New runc and crun use it too."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(round(10 ** ((log * log + 125 * log) / 612 - 7 / 34), 9))


def _cpu(cpu: Json) -> Writes:
    result: Writes = []
    if cpu.get("idle") is not None:
        result.append(("cpu.idle", str(cpu["idle"])))
    if cpu.get("shares") and not cpu.get("idle"):
        result.append(("cpu.weight", str(weight(cpu["shares"]))))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if quota or period:
        result.append(("cpu.max", f"{quota if quota > 0 else 'max'} {period or 100000}"))
    if cpu.get("burst") is not None:
        result.append(("cpu.max.burst", str(cpu["burst"])))
    result += [(f"cpuset.{key}", cpu[key]) for key in ("cpus", "mems") if cpu.get(key)]
    return result


# ---- the others


def _pids(pids: Json) -> Writes:
    """-1 is no limit. 0 is one: nothing more may be forked. But the container is born in its cgroup, so it is 1 there;
    the systemd of runc's other driver knows no 0 either."""
    limit = pids.get("limit")
    return [] if limit is None else [("pids.max", str(max(limit, 1)) if limit >= 0 else "max")]


def io_weight(value: int) -> int:
    """blkio.weight (10..1000) to io.weight (1..10000), linear as in crun and runc."""
    return 1 + (value - 10) * 9999 // 990


def _block(block: Json) -> Writes:
    result: Writes = []
    if block.get("weight"):
        result.append(("io.weight", f"default {io_weight(block['weight'])}"))
    for device in block.get("weightDevice") or []:
        if device.get("weight"):
            result.append(("io.weight", f"{device['major']}:{device['minor']} {io_weight(device['weight'])}"))
    for key, word in _THROTTLES:
        for device in block.get(key) or []:
            result.append(("io.max", f"{device['major']}:{device['minor']} {word}={device['rate'] or 'max'}"))
    return result


def _hugepages(limits: list[Json]) -> Writes:
    """Usage and reservations (5.7), as the runtime-spec prefers the latter and older programs look at the former."""
    return [
        (f"hugetlb.{entry['pageSize']}.{file}", str(entry["limit"])) for entry in limits for file in ("max", "rsvd.max")
    ]


def _rdma(rdma: Json) -> Writes:
    result: Writes = []
    for device, limits in sorted(rdma.items()):
        words = [
            f"{word}={limits[key]}"
            for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limits.get(key) is not None
        ]
        if words:
            result.append(("rdma.max", " ".join([device, *words])))
    return result


def _unified(unified: dict[str, str]) -> Writes:
    """Files by name; a value of several lines is several writes, since the kernel reads one line of a keyed file a
    write."""
    result: Writes = []
    for file, value in unified.items():
        if "/" in file or "." not in file:
            raise WherryError(Kind.INVALID, f'linux.resources.unified: "{file}" is not a file of a cgroup')
        result += [(file, line) for line in value.split("\n") if line] or [(file, value)]
    return result


_SECTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("cpu", _cpu),
    ("memory", _memory),
    ("pids", _pids),
    ("blockIO", _block),
    ("hugepageLimits", _hugepages),
    ("rdma", _rdma),
    ("unified", _unified),
)
