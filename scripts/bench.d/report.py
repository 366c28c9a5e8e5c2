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
    "cni_version": "a CNI plugin's VERSION",
}
#: (workload, whose, the peer that the bar is held against, the most that ours may take of its time)
BARS = (
    ("run_nonet", "wherry", "ctr", 0.8), ("exec", "wherry", "ctr", 1.5), ("stop", "wherry", "docker", 1.2),
    ("remove_running", "wherry", "docker", 1.2), ("parallel_50", "wherry", "ctr", 0.8),
    ("log_detached", "wherry", "podman", 1.0), ("oci_run", "wherry-cold", "runc", 1.5),
    ("oci_run", "wherry", "crun", 0.45), ("oci_run", "wherry-cold", "crun", 2.0), ("oci_life", "wherry", "crun", 0.5),
    ("run_nonet", "wherry", "ctr", 0.15), ("run", "wherry", "docker", 0.1), ("exec", "wherry", "ctr", 0.15),
    ("stop", "wherry", "docker", 0.25), ("remove_running", "wherry", "ctr", 0.25), ("memory_50", "wherry", "ctr", 0.4),
    ("parallel_50", "wherry", "ctr", 0.25),
)  # fmt: skip
#: what no sample tells, written by hand
NOTES = Path(__file__).with_name("notes.md")
PSS_BAR_MIB = 0.4
HELPER_BAR_MS = 8
VERSION_BAR_MS = 5
WARM_BAR_MIB = 64
OURS = ("wherry", "wherry-cold")
#: they are as large with one container as with fifty; what grows meanwhile are pages that commands wrote to
WARM = ("wherry-warm", "wherry-spare", "wherry-command")


def medians(samples: Samples) -> dict[str, float]:
    """Median wall time by peer."""
    return {peer: statistics.median(row["wall_ms"] for row in rows) for peer, rows in samples.items()}


def table(name: str, samples: Samples) -> str:
    """One workload: medians, spread, what part of a peer's time ours takes."""
    middle = medians(samples)
    lines = [
        f"\n### {name}: {WHAT.get(name, name)}\n",
        "| | runs | median ms | p10 | quartiles | min to max | wherry's part of it, warm | cold | CPU ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for peer, rows in samples.items():
        walls = sorted(row["wall_ms"] for row in rows)
        low, _, high = statistics.quantiles(walls, n=4) if len(walls) > 1 else (walls * 3)
        parts = " | ".join(f"{middle[own] / middle[peer]:.2f}" if own in middle else "-" for own in OURS)
        cpu = statistics.mean(row["cpu_ms"] for row in rows)
        lines.append(
            f"| {peer} | {len(rows)} | {middle[peer]:.1f} | {walls[len(walls) // 10]:.1f} | {low:.1f} to {high:.1f} "
            f"| {walls[0]:.1f} to {walls[-1]:.1f} | {parts} | {cpu:.0f} |"
        )
    return "\n".join(lines)


def bars(result: dict[str, Any]) -> str:
    """What was wished for and what was reached."""
    lines = ["\n### Bars\n", "| work | bar | reached | |", "|---|---|---|---|"]
    for name, own, peer, most in BARS:
        middle = medians(result["workloads"].get(name, {}))
        what = WHAT[name] + (", cold" if own == "wherry-cold" else "")
        if peer in middle and own in middle:
            ratio = middle[own] / middle[peer]
            lines.append(f"| {what} | at most {most} of {peer}'s | {ratio:.2f} | {verdict(ratio <= most)} |")
        else:
            lines.append(f"| {what} | at most {most} of {peer}'s | not measured | |")
    if (version := medians(result["workloads"].get("cni_version", {})).get("wherry")) is not None:
        end = verdict(version <= VERSION_BAR_MS)
        lines.append(f"| {WHAT['cni_version']} | at most {VERSION_BAR_MS} ms | {version:.1f} ms | {end} |")
    if (held := result.get("warm_mib")) is not None:
        end = verdict(held <= WARM_BAR_MIB)
        lines.append(f"| the warm process (RSS) | at most {WARM_BAR_MIB} MiB | {held:.0f} MiB | {end} |")
    own = result["pss_mib"].get("wherry")
    if own is not None:
        held = sum(size for program, size in own.items() if program not in WARM)
        end = verdict(held <= PSS_BAR_MIB)
        what = "memory per running container (PSS), without the warm process"
        lines.append(f"| {what} | at most {PSS_BAR_MIB} MiB | {held:.3f} MiB | {end} |")
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
{host["kernel"]}, Python {host["python"]}. Tasks waited for a CPU {result["busy_percent"]:.0f} % of the ten seconds
before and {result["busy_percent_after"]:.0f} % of those at the end.

`wherry` is as a user has it: a warm process answers. `wherry-cold` starts Python for each command (`WHERRY_WARM=off`).

All runtimes do the same work interleaved in one run, on one image, in the same network and mount namespace; their run
states are on a tmpfs, as /run is one. ctr sets up no network: it is compared with `--network none`. All seccomp
profiles are on. Log lines: {result["log_bytes"] / 1e6:.0f} MB in lines of 71 bytes.

{versions}
{bars(result)}

## Figures
{tables}
{memory(result) if result["pss_mib"] else ""}
{peaks(result) if result.get("oci_peak_mib") else ""}

{NOTES.read_text()}"""


if __name__ == "__main__":
    sys.stdout.write(document(json.loads(Path(sys.argv[1]).read_text())))
