"""`stats`: what containers use, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from wherry.cli import human
from wherry.cli.app import App, is_terminal, verb
from wherry.cli.options import Values, switch
from wherry.cli.table import FORMAT, NO_TRUNC, Column, Look, show
from wherry.errors import Kind, WherryError
from wherry.model import Json

INTERVAL = 1.0
HOME_AND_CLEAR = "\033[H\033[J"


def _at(found: Json, *path: str) -> float:
    for key in path:
        found = (found or {}).get(key) or {}
    return float(found) if isinstance(found, (int, float)) else 0.0


def cpu_percent(now: Json, before: Json) -> float:
    """docker's: the share of the host's CPU time between two samples, times the CPUs."""
    used = _at(now, "cpu_stats", "cpu_usage", "total_usage") - _at(before, "cpu_stats", "cpu_usage", "total_usage")
    host = _at(now, "cpu_stats", "system_cpu_usage") - _at(before, "cpu_stats", "system_cpu_usage")
    return used / host * (_at(now, "cpu_stats", "online_cpus") or 1) * 100 if host > 0 and used > 0 else 0.0


def memory_used(sample: Json) -> float:
    """Without the page cache that can go, as docker counts on cgroup v2."""
    usage = _at(sample, "memory_stats", "usage")
    inactive = _at(sample, "memory_stats", "stats", "inactive_file")
    return usage - inactive if inactive < usage else usage


def _network(sample: Json, key: str) -> float:
    return sum(_at(one, key) for one in (sample.get("networks") or {}).values())


def _blocks(sample: Json, operation: str) -> float:
    rows = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return float(sum(row["value"] for row in rows if str(row["op"]).lower() == operation))


def row_of(now: Json, before: Json) -> Json:
    """The cells of one container."""
    used, limit = memory_used(now), _at(now, "memory_stats", "limit")
    return {
        "ID": str(now.get("id", "")),
        "Name": str(now.get("name", "")).removeprefix("/"),
        "CPUPerc": f"{cpu_percent(now, before):.2f}%",
        "MemUsage": f"{human.memory(used)} / {human.memory(limit)}",
        "MemPerc": f"{used / limit * 100 if limit else 0:.2f}%",
        "NetIO": f"{human.size(_network(now, 'rx_bytes'))} / {human.size(_network(now, 'tx_bytes'))}",
        "BlockIO": f"{human.size(_blocks(now, 'read'))} / {human.size(_blocks(now, 'write'))}",
        "PIDs": str(int(_at(now, "pids_stats", "current"))),
    }


def _cell(name: str, header: str) -> Column:
    return Column(name, header, lambda row, _: str(row[name]))


def _id(row: Json, look: Look) -> str:
    return str(row["ID"]) if look.full else str(row["ID"])[:12]


COLUMNS = (
    Column("ID", "CONTAINER ID", _id),
    _cell("Name", "NAME"),
    _cell("CPUPerc", "CPU %"),
    _cell("MemUsage", "MEM USAGE / LIMIT"),
    _cell("MemPerc", "MEM %"),
    _cell("NetIO", "NET I/O"),
    _cell("BlockIO", "BLOCK I/O"),
    _cell("PIDs", "PIDS"),
    Column("Container", "CONTAINER", _id),
)
DEFAULT = tuple(column.name for column in COLUMNS[:-1])


def samples(app: App, refs: Sequence[str], everything: bool) -> dict[str, Json]:
    """One sample of each container; without names of those that run (or with -a of all)."""
    if refs:
        return {ref: app.engine.stats(ref) for ref in refs}
    found = {}
    for row in app.engine.containers(all=everything):
        try:
            found[row["Id"]] = app.engine.stats(row["Id"])
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:  # it has just gone
                raise
    return found


@verb(
    "stats",
    "[CONTAINER...]",
    switch("-a --all", "show stopped containers too"),
    FORMAT,
    switch("--no-stream", "print once and end"),
    NO_TRUNC,
    aliases="wherry container stats, wherry stats",
    examples='wherry stats --no-stream\nwherry stats --format "table {{.Name}}\\t{{.CPUPerc}}\\t{{.MemUsage}}" web db',
)
def stats(app: App, values: Values) -> None:
    """Show what containers use: CPU, memory, network, disk, processes. Ends with ctrl-c."""
    refs, terminal = values["container"], is_terminal(app.stdio.stdout)
    before: Mapping[str, Json] = samples(app, refs, values["all"])
    while True:
        time.sleep(INTERVAL)
        now = samples(app, refs, values["all"])
        if terminal and not values["no_stream"]:
            app.out(HOME_AND_CLEAR, end="")
        rows = [row_of(sample, before.get(ref, {})) for ref, sample in now.items()]
        show(app, rows, COLUMNS, DEFAULT, values)
        app.stdio.stdout.flush()
        if values["no_stream"]:
            return
        before = now
