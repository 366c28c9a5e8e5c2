"""How the process is scheduled: process.scheduler, ioPriority and execCPUAffinity, linux.memoryPolicy and intelRdt.

Decides the kernel's numbers and the order: everything here needs rights (CAP_SYS_NICE), so it comes before they go, and
a deadline policy comes before the CPUs, since the kernel grants it only to a process that may run on all of them
(sched(7)).
"""

from __future__ import annotations

import posixpath
import struct
from typing import Final

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.compile_builder import Add, Builder
from wherry.oci.facts import HostFacts

__all__ = [
    "FLAGS",
    "IO_CLASSES",
    "MAX_CPU",
    "MAX_NODE",
    "MEMORY_FLAGS",
    "MEMORY_MODES",
    "POLICIES",
    "first_cpus",
    "group_path",
    "join_group",
    "made_groups",
    "make_group",
    "members",
    "memory_policy",
    "open_group",
    "own_cpus",
    "schedule",
]

#: linux/sched.h
POLICIES: Final[dict[str, int]] = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS: Final[dict[str, int]] = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
#: linux/ioprio.h
IO_CLASSES: Final[dict[str, int]] = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
#: linux/mempolicy.h
MEMORY_MODES: Final[dict[str, int]] = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: Final[dict[str, int]] = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
MAX_CPU, MAX_NODE = 8191, 1023  # of the largest kernel: CONFIG_NR_CPUS, CONFIG_NODES_SHIFT
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")  # struct sched_attr of 5.3, 56 bytes


def members(text: str, most: int) -> int:
    """A list of the kernel's form ("0-3,7") as a mask, bit n for n. ValueError with the reason, for numbers above
    `most` too."""
    mask = 0
    for part in text.replace(" ", "").split(","):
        if not part:
            continue
        low, dash, high = part.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)):
            raise ValueError(f'"{part}" is not a number or a range')
        first, last = int(low), int(high or low)
        if not first <= last <= most:
            raise ValueError(f'"{part}" does not go up' if first > last else f'"{part}" is above {most}')
        mask |= (2 << last) - (1 << first)
    return mask


def _words(mask: int) -> bytes:
    """A mask as the kernel's array of 64-bit words."""
    count = -(-mask.bit_length() // 64)
    return struct.pack(f"={count}Q", *(mask >> 64 * word & 2**64 - 1 for word in range(count)))


def schedule(process: Json, b: Builder, *, cpus: str = "") -> None:
    """Policy, I/O priority, then the final CPUs (of an exec only)."""
    if process.get("scheduler"):
        _scheduler(process["scheduler"], b)
    if process.get("ioPriority"):
        wanted = process["ioPriority"]
        level = wanted.get("priority") or 0
        b.child("IO_PRIORITY", s1=f"{wanted['class']} {level}", n0=IO_CLASSES[wanted["class"]] << 13 | level)
    if cpus:
        _cpus(b.child, cpus)


def _scheduler(wanted: Json, b: Builder) -> None:
    policy, names = wanted["policy"], wanted.get("flags") or []
    if policy == "SCHED_ISO":
        raise WherryError(Kind.UNSUPPORTED, "process.scheduler.policy: SCHED_ISO exists in no Linux kernel")
    nice, priority = wanted.get("nice") or 0, wanted.get("priority") or 0
    times = [wanted.get(key) or 0 for key in ("runtime", "deadline", "period")]
    flags = sum(FLAGS[name] for name in set(names))
    attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, POLICIES[policy], flags, nice, priority, *times, 0, 0)
    words = [policy, *(f"{key} {wanted[key]}" for key in _TOLD if wanted.get(key)), *names]
    b.child("SCHEDULER", s0=attr, n0=len(attr) // 8, s1=" ".join(words))


_TOLD: Final = ("nice", "priority", "runtime", "deadline", "period")


def first_cpus(process: Json, b: Builder) -> None:
    """execCPUAffinity.initial: the helper's own CPUs, which the clone inherits."""
    wanted = (process.get("execCPUAffinity") or {}).get("initial")
    if wanted:
        _cpus(b.host, wanted)


def own_cpus(process: Json, b: Builder) -> None:
    """After the clone: a monitor goes on where it was."""
    if (process.get("execCPUAffinity") or {}).get("initial"):
        b.host("CPUS", s1="of before")


def _cpus(add: Add, wanted: str) -> None:
    words = _words(members(wanted, MAX_CPU))
    add("CPUS", s0=words, n0=len(words) // 8, s1=wanted)


def memory_policy(config: Json, b: Builder) -> None:
    """linux.memoryPolicy: survives the exec and is inherited by every fork (set_mempolicy(2))."""
    wanted = config.get("linux", {}).get("memoryPolicy")
    if not wanted:
        return
    names, nodes = wanted.get("flags") or [], wanted.get("nodes") or ""
    words = _words(members(nodes, MAX_NODE))
    value = MEMORY_MODES[wanted["mode"]] | sum(MEMORY_FLAGS[name] for name in set(names))
    b.child("MEM_POLICY", s0=words, n0=len(words) // 8, n1=value, s1=" ".join([wanted["mode"], *names, nodes]).strip())


# ---- linux.intelRdt


def group_path(config: Json, facts: HostFacts, cid: str) -> str:
    """The directory of the container's class of service; "" where the config asks for none."""
    wanted = config.get("linux", {}).get("intelRdt")
    if wanted is None:
        return ""
    if not facts.resctrl:
        raise WherryError(
            Kind.PRECONDITION,
            "linux.intelRdt is asked for and the resctrl file system is not mounted on this host",
            hint="on a CPU that has it: mount -t resctrl resctrl /sys/fs/resctrl",
        )
    return posixpath.join(facts.resctrl, (wanted.get("closID") or cid).strip("/")).rstrip("/")


def _schemata(wanted: Json) -> list[tuple[str, bool]]:
    """(line, whether it is written into a group that was there before), in the order that the runtime-spec wants."""
    first = [(wanted[key], False) for key in ("l3CacheSchema", "memBwSchema") if wanted.get(key)]
    return first + [(line, True) for line in wanted.get("schemata") or []]


def make_group(config: Json, facts: HostFacts, cid: str, b: Builder) -> tuple[int, ...]:
    """Before the clone: the slots of the groups to join. A group named by closID alone must exist; one named after the
    container must not."""
    path = group_path(config, facts, cid)
    if not path:
        return ()
    wanted, slot = config["linux"]["intelRdt"], b.slot()
    lines = _schemata(wanted)
    if wanted.get("closID") and (not lines or path == facts.resctrl):
        b.host("OPEN", fd0=slot, s0=path, n0=_O_DIRECTORY)
    else:
        b.host("RDT_DIR", *(("EXIST_OK",) if wanted.get("closID") else ()), fd0=slot, s0=path)
    for line, always in lines:
        b.host("RDT_SCHEMA", *(("EXIST_OK",) if always else ()), fd0=slot, s0=line)
    if not wanted.get("enableMonitoring"):
        return (slot,)
    monitored = b.slot()
    b.host("RDT_DIR", fd0=monitored, s0=f"{path}/mon_groups/{cid}")
    return slot, monitored


_O_DIRECTORY: Final = 0o200000


def made_groups(config: Json, resctrl: str, cid: str) -> tuple[str, ...]:
    """The directories to remove (rmdir, in this order) when the container is deleted: those that are its own. `resctrl`
    is where the file system is mounted."""
    wanted = config.get("linux", {}).get("intelRdt")
    if wanted is None or not resctrl:
        return ()
    path = posixpath.join(resctrl, (wanted.get("closID") or cid).strip("/")).rstrip("/")
    monitored = (f"{path}/mon_groups/{cid}",) if wanted.get("enableMonitoring") else ()
    return monitored if wanted.get("closID") else (*monitored, path)


def open_group(config: Json, facts: HostFacts, cid: str, b: Builder) -> tuple[int, ...]:
    """The same for a process that comes later: the groups are there."""
    path = group_path(config, facts, cid)
    if not path:
        return ()
    paths = [path]
    if config["linux"]["intelRdt"].get("enableMonitoring"):
        paths.append(f"{path}/mon_groups/{cid}")
    slots = tuple(b.slot() for _ in paths)
    for slot, directory in zip(slots, paths, strict=True):
        b.host("OPEN", fd0=slot, s0=directory, n0=_O_DIRECTORY)
    return slots


def join_group(slots: tuple[int, ...], b: Builder) -> None:
    """After the clone, before the child is let into anything."""
    for slot in slots:
        b.host("RDT_JOIN", fd0=slot)
