"""What pods and containers use: one walk over the cgroups of all of them.

Decides what is read and what a figure means. Files of all cgroups are read in a few calls, for a node has a thousand.
What this host has no controller for is summed over the processes, as `wherry stats` does, or left None.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wherry.engine.house import House
from wherry.errors import WherryError
from wherry.model import Json

from . import mounts, records
from .values import Held, Usage

__all__ = ["of"]

_US = 1000  # ns
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLONE_NEWNET = 0x40000000
_STALE = 10.0  # seconds for which a walk of a writable layer counts, at least
_PATIENCE = 20  # times as long as it took
_LONGEST = 600.0  # seconds that one walk may take before another begins
_ROOM = 1 << 10  # bytes of one file, on an average: memory.stat has 2 KiB, the others tens
#: file -> the controller that it needs
_FILES = {
    "cpu.stat": "", "cpu.pressure": "", "memory.pressure": "", "io.pressure": "", "memory.current": "memory",
    "memory.stat": "memory", "memory.max": "memory", "memory.swap.current": "memory", "memory.swap.max": "memory",
    "pids.current": "pids",
}  # fmt: skip
_DETAILS = {"memory.peak": "memory", "memory.events": "memory", "pids.max": "pids", "io.stat": "io"}
_IO = {"rbytes": "read_bytes", "wbytes": "written_bytes", "rios": "reads", "wios": "writes"}

_PSI = re.compile(r"(some|full) avg10=([0-9.]+) avg60=([0-9.]+) avg300=([0-9.]+) total=([0-9]+)")

Files = Mapping[str, str]


class _Asked(NamedTuple):
    """One walk: containers by id with their cgroup, pods by id with what they hold."""

    house: House
    containers: dict[str, str]
    pods: dict[str, Held]
    owner: dict[str, str]  # container -> pod


def of(house: House, ids: Sequence[str], *, detailed: bool = False) -> dict[str, Usage]:
    """By id; () are all that run. `detailed` fills `Usage.details`, which costs a look at every process."""
    asked = _asked(house, ids)
    found = _read(asked, detailed=detailed)
    moment = time.time()
    links = _links({pod: held.netns for pod, held in asked.pods.items() if held.netns})
    place = mounts.propagation(house.place.root)[0] if asked.containers else ""
    made = {cid: _usage(files, moment, detailed=detailed) for cid, files in found.items()}
    if "memory" not in house.facts.cgroup_available:
        _estimate(asked, found, made)
    room = _room(place) if detailed and place else {}
    for cid in asked.containers.keys() & made.keys():
        made[cid] = made[cid]._replace(disk=_disk(house, cid), disk_at=place)
        if detailed:
            made[cid] = made[cid]._replace(details={**made[cid].details, **_descriptors(found[cid]), **room})
    for pod in asked.pods:
        made[pod] = _with_links(made.get(pod, Usage(moment)), links.get(pod, []))
    return made


def _asked(house: House, ids: Sequence[str]) -> _Asked:
    from wherry.container.state import cgroups

    owner = house.db.member_pods()
    pods = [pod for pod in house.db.pod_ids() if not ids or pod in ids]
    wanted = set(pods)
    mine = [cid for cid in owner if not ids or cid in ids or owner[cid] in wanted]
    return _Asked(house, cgroups(house.place.state, mine), records.load_many(house, pods), owner)


def _read(asked: _Asked, *, detailed: bool) -> dict[str, Files]:
    """The files of every cgroup that is there."""
    from wherry.kernel import shim

    paths = {**asked.containers, **{pod: held.cgroup for pod, held in asked.pods.items() if held.cgroup}}
    have = {"", *asked.house.facts.cgroup_available}
    table = {**_FILES, **(_DETAILS if detailed else {})}
    files = [name for name, controller in table.items() if controller in have]
    files += ["cgroup.procs"] if detailed or "pids" not in have or "memory" not in have else []
    names = [f"{path}/{name}"[1:] for path in paths.values() for name in files]
    texts = iter(shim.read_many("/", names, _ROOM * (len(names) + 8)) if names else ())
    found: dict[str, Files] = {}
    for ref in paths:
        mine = {name: text.decode("ascii", "replace") for name in files if (text := next(texts)) is not None}
        if "cpu.stat" in mine:
            found[ref] = mine
    return found


# ---- one cgroup


def _flat(text: str, *keys: str) -> list[int | None]:
    """The numbers after these words of a flat keyed file, of which most lines are not wanted."""
    text = f"\n{text}"
    starts = ((text.find(f"\n{key} "), len(key) + 2) for key in keys)
    return [int(text[at + skip :].partition("\n")[0]) if at >= 0 else None for at, skip in starts]


def _number(files: Files, name: str) -> int | None:
    text = files.get(name, "").strip()
    return int(text) if text.isdigit() else None


def _usage(files: Files, moment: float, *, detailed: bool = False) -> Usage:
    (used,) = _flat(files["cpu.stat"], "usage_usec")
    made = Usage(
        moment, None if used is None else used * _US, pids=_number(files, "pids.current"), pressure=_pressure(files),
        details=_details(files) if detailed else {}, devices=_devices(files),
    )  # fmt: skip
    current = _number(files, "memory.current")
    if current is None:
        return made
    keys = ("inactive_file", "anon", "pgfault", "pgmajfault")
    inactive, anon, faults, major = _flat(files.get("memory.stat", ""), *keys)
    swap, working = _number(files, "memory.swap.current"), max(0, current - (inactive or 0))
    return made._replace(
        memory=working, memory_usage=current, memory_rss=anon, memory_faults=((faults or 0) - (major or 0), major or 0),
        memory_available=_left(_number(files, "memory.max"), working), swap=swap,
        swap_available=_left(_number(files, "memory.swap.max"), swap or 0),
    )  # fmt: skip


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def _pressure(files: Files) -> Json:
    """{"cpu": {"some": {"avg10": 0.0, …, "total": us}, "full": …}, …} (Documentation/accounting/psi.rst)."""
    texts = ((what, files.get(f"{what}.pressure", "")) for what in ("cpu", "memory", "io"))
    return {what: _stalled(text) for what, text in texts if text}


@functools.lru_cache(maxsize=512)
def _stalled(text: str) -> Json:
    """One file; most say the same: nothing has waited."""
    return {
        kind: {"avg10": float(ten), "avg60": float(sixty), "avg300": float(long), "total": int(total)}
        for kind, ten, sixty, long, total in _PSI.findall(text)
    }


def _details(files: Files) -> dict[str, int]:
    """What only metrics tell; ns and bytes. What is not counted here is not in it."""
    cpu, memory, events = (files.get(name, "") for name in ("cpu.stat", "memory.stat", "memory.events"))
    user, system, throttled = (_ns(n) for n in _flat(cpu, "user_usec", "system_usec", "throttled_usec"))
    periods, throttled_periods = _flat(cpu, "nr_periods", "nr_throttled")
    cache, mapped, kernel = _flat(memory, "file", "file_mapped", "kernel")
    hits, kills = _flat(events, "max", "oom_kill")
    found = {
        "cpu_user_ns": user, "cpu_system_ns": system, "throttled_ns": throttled, "periods": periods,
        "throttled_periods": throttled_periods, "cache": cache, "mapped": mapped, "kernel": kernel,
        "limit_hits": hits, "oom_kills": kills, "memory_peak": _number(files, "memory.peak"),
        "threads_max": _threads_max(files), "processes": _count(files.get("cgroup.procs")),
    }  # fmt: skip
    if "io.stat" in files:
        words = [word.partition("=") for word in files["io.stat"].split() if "=" in word]
        found |= {ours: sum(int(n) for key, _, n in words if key == name) for name, ours in _IO.items()}
    return {name: value for name, value in found.items() if value is not None}


def _threads_max(files: Files) -> int | None:
    """Without a limit of its own, the kernel's (proc_sys_kernel(5), pid_max)."""
    if files.get("pids.max", "").strip() != "max":
        return _number(files, "pids.max")
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        return int(file.read())


def _devices(files: Files) -> dict[str, tuple[int, int]]:
    """Bytes read and written, by a device's MAJOR:MINOR."""
    found = {}
    for line in files.get("io.stat", "").splitlines():
        device, *words = line.split()
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        found[device] = int(pairs.get("rbytes", 0)), int(pairs.get("wbytes", 0))
    return found


def _count(text: str | None) -> int | None:
    return None if text is None else len(text.split())


def _ns(micro: int | None) -> int | None:
    return None if micro is None else micro * _US


def _descriptors(files: Files) -> dict[str, int]:
    """Open files of its processes, and how many of them are sockets."""
    links: list[str] = []
    for pid in files.get("cgroup.procs", "").split():
        with contextlib.suppress(OSError):
            links += (os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return {"descriptors": len(links), "sockets": sum(link.startswith("socket:") for link in links)}


# ---- without controllers


def _estimate(asked: _Asked, found: Mapping[str, Files], made: dict[str, Usage]) -> None:
    """Resident pages and tasks of the processes; a pod's are those of its containers."""
    of_pods: dict[str, tuple[int, int]] = {}
    mine = {cid: found[cid].get("cgroup.procs", "").split() for cid in asked.containers.keys() & made.keys()}
    sizes = _processes([pid for pids in mine.values() for pid in pids])
    for cid, pids in mine.items():
        each = [sizes[pid] for pid in pids if pid in sizes]
        resident, tasks = sum(one[0] for one in each), sum(one[1] for one in each)
        pod = asked.owner[cid]
        before = of_pods.get(pod, (0, 0))
        of_pods[pod] = before[0] + resident, before[1] + tasks
        made[cid] = _estimated(made[cid], resident, tasks)
    for pod in asked.pods.keys() & made.keys():
        made[pod] = _estimated(made[pod], *of_pods.get(pod, (0, 0)))


def _processes(pids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(resident bytes less the shared ones, tasks) of each that is there."""
    from wherry.kernel import shim

    names = [f"{pid}/{file}" for pid in pids for file in ("statm", "stat")]
    texts = shim.read_many("/proc", names, 512 * (len(names) + 8)) if names else []
    found = {}
    for pid, statm, stat in zip(pids, texts[::2], texts[1::2], strict=True):
        if statm and stat:
            pages = statm.split()
            resident = max(0, int(pages[1]) - int(pages[2])) * _PAGE
            found[pid] = resident, int(stat.rpartition(b")")[2].split()[17])
    return found


def _estimated(usage: Usage, resident: int, tasks: int) -> Usage:
    pids = tasks if usage.pids is None else usage.pids
    return usage._replace(memory=resident, memory_usage=resident, memory_rss=resident, pids=pids)


# ---- disk and network


def _disk(house: House, cid: str) -> tuple[int, int] | None:
    """Bytes and inodes of what it wrote. A walk: remembered for a while, and the longer the longer it took, for a
    container decides how many files there are and must not keep us busy with them."""
    moment = time.monotonic()
    until, known = house.measured.get(cid, (0.0, None))
    if moment < until:
        return known
    house.measured[cid] = moment + _LONGEST, known  # who asks meanwhile takes what was
    try:
        found = house.snapshots.usage(cid)
    except (OSError, WherryError):  # on its way out
        house.measured.pop(cid, None)
        return None
    end = time.monotonic()
    house.measured[cid] = end + max(_STALE, _PATIENCE * (end - moment)), found
    return found


def _room(place: str) -> dict[str, int]:
    """The file system that the writable layers are on."""
    found = os.statvfs(place)
    return {
        "disk_size": found.f_blocks * found.f_frsize, "disk_inodes": found.f_files, "disk_inodes_free": found.f_favail,
    }  # fmt: skip


def _with_links(usage: Usage, rows: Sequence[tuple[str, list[int]]]) -> Usage:
    """/proc/net/dev: bytes, packets, errors and drops received are columns 0 to 3, sent 8 to 11."""
    links = tuple((name, n[0], n[2], n[8], n[10]) for name, n in rows)
    packets = {name: (n[1], n[3], n[9], n[11]) for name, n in rows}
    return usage._replace(interfaces=links, packets=packets)


def _links(namespaces: Mapping[str, str]) -> dict[str, list[tuple[str, list[int]]]]:
    """Counters of the interfaces in each network namespace, lo left out: by a thread that goes from one to the next
    and ends with it."""
    found: dict[str, list[tuple[str, list[int]]]] = {}

    def walk() -> None:
        for pod, path in namespaces.items():
            found[pod] = _enter(path)

    if namespaces:
        walker = threading.Thread(target=walk)
        walker.start()
        walker.join()
    return found


def _enter(path: str) -> list[tuple[str, list[int]]]:
    from wherry.kernel import shim

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # its pod has just been stopped
        return []
    try:
        shim.setns(fd, _CLONE_NEWNET)
        with open("/proc/thread-self/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return []
    finally:
        os.close(fd)
    rows = (line.partition(":") for line in lines)
    return [(name.strip(), [*map(int, rest.split())]) for name, _, rest in rows if name.strip() != "lo"]
