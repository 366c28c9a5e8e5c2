"""`stats` and `top`: one reading of a container's cgroup, network namespace and processes. Decides docker's shapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .house import House
from .status import look, running

if TYPE_CHECKING:
    from wherry.container.state import State

    from .db import Container

__all__ = ["sample", "top"]

_NS_PER_US = 1000


def sample(house: House, ref: str) -> Json:
    """The verb."""
    row = house.db.find(ref)
    seen = look(house, row.id)
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    made: Json = {"read": now, "name": f"/{row.name}", "id": row.id, "precpu_stats": {}, "preread": ""}
    if not seen.running or seen.state is None:
        return made | {"cpu_stats": {}, "memory_stats": {}, "pids_stats": {}, "networks": {}, "blkio_stats": {}}
    return made | _read(row, seen.state)


def _read(_row: Container, state: State) -> Json:
    from wherry.kernel import cgroup

    found = cgroup.stats(state.cgroup)
    memory = {
        "usage": found.memory,
        "limit": found.memory_limit if found.memory_limit > 0 else _total_memory(),
        "stats": {"cache": found.memory_cache, "swap": found.swap},
    }
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": found.cpu_usec * _NS_PER_US,
                "usage_in_usermode": found.cpu_user_usec * _NS_PER_US,
                "usage_in_kernelmode": found.cpu_system_usec * _NS_PER_US,
            },
            "system_cpu_usage": _system_cpu(),
            "online_cpus": os.cpu_count() or 1,
            "throttling_data": {
                "periods": found.periods,
                "throttled_periods": found.throttled_periods,
                "throttled_time": found.throttled_usec * _NS_PER_US,
            },
        },
        "memory_stats": memory,
        "pids_stats": {"current": found.pids, **({"limit": found.pids_limit} if found.pids_limit > 0 else {})},
        "networks": _networks(state),
        "blkio_stats": {
            "io_service_bytes_recursive": [
                {"major": 0, "minor": 0, "op": "read", "value": found.io_read},
                {"major": 0, "minor": 0, "op": "write", "value": found.io_write},
            ]
        },
        "estimated": list(found.estimated),
    }


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _system_cpu() -> int:
    """All CPU time of the host in nanoseconds, as docker counts it."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()[1:8]
    return sum(map(int, fields)) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _networks(state: State) -> Json:
    """Counters of every interface of the container's network namespace, by its init's /proc/PID/net/dev."""
    if state.init is None or "network" not in _private(state):
        return {}
    try:
        with open(f"/proc/{state.init.pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        if name.strip() != "lo":
            found[name.strip()] = {
                "rx_bytes": numbers[0], "rx_packets": numbers[1], "rx_errors": numbers[2], "rx_dropped": numbers[3],
                "tx_bytes": numbers[8], "tx_packets": numbers[9], "tx_errors": numbers[10], "tx_dropped": numbers[11],
            }  # fmt: skip
    return found


def _private(state: State) -> set[str]:
    mode = (state.extra.get("net") or {}).get("mode", "")
    return set() if mode == "host" else {"network"}


# ---- top ----


def top(house: House, ref: str, ps_args: Sequence[str]) -> Json:
    """The verb: the host's ps on the container's processes."""
    import subprocess

    _, state = running(house, house.db.find(ref), paused=True)
    words = list(ps_args) or ["-ef"]
    pids = _members(state)
    try:
        made = subprocess.run(["ps", *words], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        raise WherryError(Kind.PRECONDITION, "ps is not installed", hint="apt-get install procps") from None
    if made.returncode:
        raise WherryError(Kind.INVALID, f"ps: {made.stderr.strip()[:300]}")
    return _table(made.stdout, pids)


def _members(state: State) -> set[int]:
    from wherry.kernel import cgroup

    found = set(cgroup.processes(state.cgroup)) if state.cgroup else set()
    return found | ({state.init.pid} if state.init else set())


def _table(text: str, pids: set[int]) -> Json:
    lines = text.splitlines()
    titles = lines[0].split()
    if "PID" not in titles:
        raise WherryError(Kind.INVALID, "couldn't find PID field in ps output", hint="add pid to -o")
    column = titles.index("PID")
    rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
    return {"Titles": titles, "Processes": [row for row in rows if len(row) > column and int(row[column]) in pids]}
