"""The bench's samples as tables, bars and the page docs/benchmarks.md.

report.py FILE.json > docs/benchmarks.md
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

Samples = dict[str, list[dict[str, float]]]

WHAT = {
    "run_nonet": "`run --rm --network none IMAGE true`",
    "run": "`run --rm IMAGE true` on the default bridge, masquerade and all",
    "exec": "`exec NAME true`",
    "stop": "`stop` of a container that handles TERM",
    "remove_running": "`rm -f` of a running container",
    "parallel_50": "50 detached containers, 4 at a time",
    "memory_50": "`ps -a` with 50 running",
    "inspect": "`inspect` of a running container",
    "log_attached": "log lines through an attached `run`",
    "log_detached": "log lines through the monitor, detached",
    "oci_run": "OCI `run` of true: docker's seccomp profile, all namespaces",
    "oci_life": "OCI `create`, `start`, `delete --force`",
}
#: workload: (the peer that the bar is held against, the most that wherry may take of its time)
BARS = {
    "run_nonet": ("ctr", 0.8), "exec": ("ctr", 1.5), "stop": ("docker", 1.2), "remove_running": ("docker", 1.2),
    "parallel_50": ("ctr", 0.8), "log_detached": ("podman", 1.0), "oci_run": ("runc", 1.5),
}  # fmt: skip
PSS_BAR_MIB = 0.4
HELPER_BAR_MS = 8


def medians(samples: Samples) -> dict[str, float]:
    """Median wall time by peer."""
    return {peer: statistics.median(row["wall_ms"] for row in rows) for peer, rows in samples.items()}


def table(name: str, samples: Samples) -> str:
    """One workload: medians, spread, ratio to wherry's."""
    middle = medians(samples)
    own = middle.get("wherry")
    lines = [
        f"\n### {name}: {WHAT.get(name, name)}\n",
        "| | runs | median ms | quartiles | min to max | wherry's part of it | CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, rows in samples.items():
        walls = sorted(row["wall_ms"] for row in rows)
        low, _, high = statistics.quantiles(walls, n=4) if len(walls) > 1 else (walls * 3)
        part = f"{own / middle[peer]:.2f}" if own else "-"
        cpu = statistics.mean(row["cpu_ms"] for row in rows)
        lines.append(
            f"| {peer} | {len(rows)} | {middle[peer]:.1f} | {low:.1f} to {high:.1f} "
            f"| {walls[0]:.1f} to {walls[-1]:.1f} | {part} | {cpu:.0f} |"
        )
    return "\n".join(lines)


def bars(result: dict[str, Any]) -> str:
    """The issue's bars and what was reached."""
    lines = ["\n### Bars\n", "| work | bar | reached | |", "|---|---|---|---|"]
    for name, (peer, most) in BARS.items():
        middle = medians(result["workloads"].get(name, {}))
        if peer in middle and "wherry" in middle:
            ratio = middle["wherry"] / middle[peer]
            lines.append(f"| {WHAT[name]} | at most {most} of {peer}'s | {ratio:.2f} | {verdict(ratio <= most)} |")
        else:
            lines.append(f"| {WHAT[name]} | at most {most} of {peer}'s | not measured | |")
    own = result["pss_mib"].get("wherry")
    if own is not None:
        held = sum(own.values())
        end = verdict(held <= PSS_BAR_MIB)
        lines.append(f"| memory per running container (PSS) | at most {PSS_BAR_MIB} MiB | {held:.3f} MiB | {end} |")
    if result.get("helper_ms"):
        middle_ms = statistics.median(result["helper_ms"])
        end = verdict(middle_ms <= HELPER_BAR_MS)
        what = "the helper's share of an OCI `run`"
        lines.append(f"| {what} | at most {HELPER_BAR_MS} ms | {middle_ms:.1f} ms | {end} |")
    return "\n".join(lines)


def verdict(good: bool) -> str:
    """A word for the last column."""
    return "met" if good else "**missed**"


def memory(result: dict[str, Any]) -> str:
    """PSS by program."""
    lines = [
        "\n### Memory per running container, MiB (PSS outside the container, 50 running)\n",
        "| | total | of it |",
        "|---|---|---|",
    ]
    for peer, sizes in result["pss_mib"].items():
        parts = ", ".join(f"{program} {size:.2f}" for program, size in sorted(sizes.items(), key=lambda item: -item[1]))
        lines.append(f"| {peer} | {sum(sizes.values()):.2f} | {parts} |")
    return "\n".join(lines)


def peaks(result: dict[str, Any]) -> str:
    """The largest process of an OCI run."""
    said = ", ".join(f"{peer} {size:.1f}" for peer, size in result["oci_peak_mib"].items())
    return f"\nPeak memory of the caller's process in an OCI `run`, MiB: {said}."


def document(result: dict[str, Any]) -> str:
    """The whole page."""
    host = result["machine"]
    versions = "\n".join(f"- {peer}: {text}" for peer, text in result["versions"].items())
    tables = "\n".join(table(name, samples) for name, samples in result["workloads"].items())
    return f"""# Benchmarks

Written by `scripts/bench --markdown docs/benchmarks.md` on {host["date"]}: {host["cpu"]}, {host["system"]}, kernel
{host["kernel"]}, Python {host["python"]} (started cold by each command). Tasks waited for a CPU
{result["busy_percent"]:.0f} % of the ten seconds before and {result["busy_percent_after"]:.0f} % of those at the end.

All runtimes do the same work interleaved in one run, on one image, in the same network and mount namespace. ctr sets up
no network: it is compared with `--network none`. All seccomp profiles are on.
Log lines: {result["log_bytes"] / 1e6:.0f} MB in lines of 71 bytes.

{versions}
{bars(result)}

## Figures
{tables}
{memory(result) if result["pss_mib"] else ""}
{peaks(result) if result.get("oci_peak_mib") else ""}
"""


if __name__ == "__main__":
    sys.stdout.write(document(json.loads(Path(sys.argv[1]).read_text())))
