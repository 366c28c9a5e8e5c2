"""`events`: statistics and out-of-memory kills as JSON lines, in the shape of runc's (types/events.go), which go-runc
and containerd's shim read.

Decides what of cgroup v2 stands for which v1 name, as runc does. Knows no container beyond its cgroup.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from wherry.container.state import Status
from wherry.errors import Kind, WherryError
from wherry.model import Json

from .world import World

if TYPE_CHECKING:
    from .flags import Values

__all__ = ["do_events", "duration", "statistics"]

_UNLIMITED: Final = 2**64 - 1  # what "max" is to runc
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def do_events(world: World, words: Sequence[str], values: Values) -> None:
    """Once with --stats; else at each interval, and at each kill, until the container has ended."""
    seconds = duration(values["interval"] or "5s")
    folder, state = world.load(words[0])
    if folder.status(state) is Status.STOPPED:
        raise WherryError(Kind.CONFLICT, f"container {folder.id} is stopped: container not running")
    if not state.cgroup:
        raise WherryError(Kind.PRECONDITION, f"container {folder.id} has no cgroup: nothing counts for it")
    if values["stats"]:
        _say("stats", folder.id, statistics(state.cgroup))
    else:
        _follow(folder.id, state.cgroup, seconds)


def duration(text: str) -> float:
    """Seconds of a Go duration above 0, such as 5s, 1m30s, 1.5h or 100ms (time.ParseDuration)."""
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", text, re.ASCII)
    if "".join(map("".join, parts)) != text or not parts:
        raise WherryError(Kind.INVALID, f'--interval "{text}": not a time', hint="such as 5s, 1m30s or 100ms")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e9:
        raise WherryError(Kind.INVALID, f'--interval "{text}": must be above 0')
    return seconds


def _say(kind: str, cid: str, data: Json | None = None) -> None:
    event = {"type": kind, "id": cid, **({} if data is None else {"data": data})}
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _follow(cid: str, path: str, seconds: float) -> None:
    """The event files of a cgroup give POLLPRI at each change (cgroup-v2.rst)."""
    from wherry.kernel import cgroup

    with ExitStack() as held:
        names = [name for name in ("cgroup.events", "memory.events") if os.path.exists(f"{path}/{name}")]
        files = [held.enter_context(open(f"{path}/{name}", "rb")) for name in names]
        kills, due = cgroup.oom_kills(path), time.monotonic() + seconds
        while _lives(path):
            _changed(files, due - time.monotonic())
            before, kills = kills, max(kills, cgroup.oom_kills(path))
            for _ in range(kills - before):
                _say("oom", cid)
            if time.monotonic() >= due:
                due += seconds
                if _lives(path):
                    _say("stats", cid, statistics(path))


def _changed(files: Sequence[BinaryIO], seconds: float) -> None:
    """Wait for a change; one that has been read gives no POLLPRI any more."""
    poll = select.poll()
    for file in files:
        with suppress(OSError):  # ENODEV: the cgroup has gone
            os.pread(file.fileno(), 4096, 0)
        poll.register(file, select.POLLPRI)
    poll.poll(max(0.0, seconds) * 1000)


def _lives(path: str) -> bool:
    from wherry.kernel import cgroup

    return bool(cgroup.events(path).get("populated"))


# ---- statistics


def statistics(path: str) -> Json:
    """One reading of a cgroup. Times are nanoseconds, sizes bytes. What has no controller here is left at 0."""
    return {
        "cpu": _cpu(path), "cpuset": _cpuset(path), "memory": _memory(path), "pids": _pids(path),
        "blkio": _block(path), "hugetlb": _hugepages(path), "intel_rdt": {}, "network_interfaces": None,
    }  # fmt: skip


def _text(path: str, name: str) -> str:
    from wherry.kernel.facts import read

    return read(f"{path}/{name}")


def _pairs(path: str, name: str) -> dict[str, int]:
    """A flat keyed file."""
    rows = (line.split() for line in _text(path, name).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _number(path: str, name: str) -> int:
    text = _text(path, name).strip()
    return _UNLIMITED if text == "max" else int(text) if text.isdigit() else 0


def _pressure(path: str, name: str) -> Json:
    """{"psi": {"some": {"avg10": ..., "total": us}, "full": ...}}; {} without the file, or where it cannot be read."""
    found: Json = {}
    for line in _text(path, name).splitlines():
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        found[kind] = {key: int(value) if key == "total" else float(value) for key, value in values.items()}
    return {"psi": found} if found else {}


def _cpu(path: str) -> Json:
    stat = _pairs(path, "cpu.stat")
    times = (("total", "usage_usec"), ("kernel", "system_usec"), ("user", "user_usec"))
    throttling = {
        "periods": stat.get("nr_periods", 0),
        "throttledPeriods": stat.get("nr_throttled", 0),
        "throttledTime": stat.get("throttled_usec", 0) * 1000,
    }
    usage = {key: stat.get(name, 0) * 1000 for key, name in times}
    return {"usage": usage, "throttling": throttling, **_pressure(path, "cpu.pressure")}


def _cpuset(path: str) -> Json:
    return {key: _members(_text(path, f"cpuset.{key}.effective")) for key in ("cpus", "mems")}


def _members(text: str) -> list[int]:
    """ "0-2,4" as numbers."""
    bounds = [part.partition("-") for part in text.strip().split(",") if part]
    return [number for low, _, high in bounds for number in range(int(low), int(high or low) + 1)]


def _memory(path: str) -> Json:
    """`swap` is memory and swap together, as v1 counted and runc still tells."""
    stat = _pairs(path, "memory.stat")
    usage, swap = _amount(path, "memory"), _amount(path, "memory.swap")
    if swap["limit"] != _UNLIMITED:
        swap["limit"] = min(swap["limit"] + usage["limit"], _UNLIMITED)
    swap["usage"] += usage["usage"]
    return {
        "cache": stat.get("file", 0), "usage": usage, "swap": swap,
        "kernel": {"limit": 0, "usage": stat.get("kernel", 0), "failcnt": 0},
        "kernelTCP": {"limit": 0, "usage": stat.get("sock", 0), "failcnt": 0},
        "raw": stat, "event_count": _pairs(path, "memory.events"), **_pressure(path, "memory.pressure"),
    }  # fmt: skip


def _amount(path: str, what: str) -> Json:
    """`failcnt` is how often the limit was hit; `max` the most that was ever used."""
    return {
        "limit": _number(path, f"{what}.max"), "usage": _number(path, f"{what}.current"),
        "max": _number(path, f"{what}.peak"), "failcnt": _pairs(path, f"{what}.events").get("max", 0),
    }  # fmt: skip


def _pids(path: str) -> Json:
    """No limit is 0, as runc tells it."""
    limit = _number(path, "pids.max")
    return {"current": _number(path, "pids.current"), "limit": 0 if limit == _UNLIMITED else limit}


_BLOCK: Final = {
    "rbytes": ("ioServiceBytesRecursive", "Read"), "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"), "wios": ("ioServicedRecursive", "Write"),
}  # fmt: skip


def _block(path: str) -> Json:
    found: Json = {}
    for line in _text(path, "io.stat").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        for key, _, value in (word.partition("=") for word in words):
            if key in _BLOCK:
                name, what = _BLOCK[key]
                entry = {"major": int(major), "minor": int(minor), "op": what, "value": int(value)}
                found.setdefault(name, []).append(entry)
    return {**found, **_pressure(path, "io.pressure")}


def _hugepages(path: str) -> Json:
    names = [name for name in os.listdir(path) if re.fullmatch(r"hugetlb\.\w+\.current", name)]
    sizes = sorted(name.split(".")[1] for name in names)
    return {
        size: {
            "usage": _number(path, f"hugetlb.{size}.current"),
            "failcnt": _pairs(path, f"hugetlb.{size}.events").get("max", 0),
        }
        for size in sizes
    }
