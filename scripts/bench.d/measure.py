"""Runs the same workloads on several container runtimes, interleaved (A B A B), and prints medians, ratios and bars.

Started by scripts/bench inside the peers' namespaces. Times are milliseconds of wall time; CPU is the whole machine's
(daemons included), so nothing else should run; PSS is the growth per running container outside of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundle
import report

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
PAYLOAD = """sh -c "trap exit TERM; sleep 100000 & wait" """
LINE = "0123456789" * 7
LOG_PAYLOAD = f"""sh -c "yes {LINE} | head -c {{bytes}}" """
CONTAINERS, PARALLEL = 50, 4
PAUSE = 0.1  # seconds after each sample: what a runtime does after its answer is not in the way of the next one


@dataclass(frozen=True)
class Workload:
    """Steps are template names of peers.toml. Only `timed` is timed; `once` is done before and after all samples."""

    timed: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    once_after: tuple[str, ...] = ()
    most: int = 1000  # samples: those that take seconds are few


WORKLOADS = {
    "run_nonet": Workload("run_nonet"),
    "run": Workload("run"),
    "exec": Workload("exec", once=("start_any",), once_after=("remove_running",)),
    "stop": Workload("stop", before=("start_any",), after=("remove_running",)),
    "remove_running": Workload("remove_running", before=("start_any",)),
    "parallel_50": Workload("start_many", after=("remove_many",), most=6),
    "memory_50": Workload("list", once=("start_many",), once_after=("remove_many",)),
    "inspect": Workload("inspect", once=("start_any",), once_after=("remove_running",)),
    "log_attached": Workload("log_attached", most=5),
    "log_detached": Workload("log_detached", after=("remove_running",), most=5),
    "cni_version": Workload("cni_version"),
    "oci_run": Workload("oci_run"),
    "oci_life": Workload("oci_life"),
}
VIRTUAL = {"start_any": ("start", "start_nonet"), "start_many": ("start_nonet",), "remove_many": ("remove_running",)}
unique_numbers = itertools.count()


class Peer:
    """One runtime: its templates, filled in and run."""

    def __init__(self, name: str, templates: dict[str, str], common: dict[str, str]) -> None:
        self.name = name
        self.templates = {**common, **templates}
        self.env = dict(os.environ)
        for key in [key for key in templates if key.startswith("env_")]:
            self.env[key.removeprefix("env_")] = self.filled(key)
        self.pss: dict[str, float] | None = None

    def has(self, step: str) -> bool:
        """Whether this runtime has the step."""
        return any(name in self.templates for name in VIRTUAL.get(step, (step,)))

    def command(self, step: str, name: str) -> list[str]:
        """The step's command line."""
        return shlex.split(self.filled(step, name))

    def filled(self, step: str, name: str = "") -> str:
        """A template without a {word} left."""
        words = {**self.templates, "name": name, "unique": f"u{next(unique_numbers)}"}
        text, before = "{" + step + "}", ""
        while text != before:
            before, text = text, re.sub(r"\{(\w+)\}", lambda match: str(words[match[1]]), text)
        return text

    def do(self, step: str, name: str) -> None:
        """Run a step and wait for its end."""
        if step == "start_any":
            step = "start" if "start" in self.templates else "start_nonet"
        if step in ("start_many", "remove_many"):
            self._many(VIRTUAL[step][0])
        else:
            run_command(self.command(step, name), self.env)

    def _many(self, step: str) -> None:
        """By xargs: starting each command from here would take more of the CPUs than some of them do."""
        lines = [shlex.join(self.command(step, f"bench-many-{number}")) for number in range(CONTAINERS)]
        with tempfile.NamedTemporaryFile("w") as listed:
            listed.write("\0".join(lines))
            listed.flush()
            run_command(["xargs", "-0", "-a", listed.name, "-P", str(PARALLEL), "-n", "1", "sh", "-c"], self.env)

    def version(self) -> str:
        """What runs, in one line."""
        words, null = self.command("version", ""), subprocess.DEVNULL
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=self.env, stdin=null)
        return (done.stdout or done.stderr).strip().splitlines()[0]


class Warm:
    """The warm process of the peer `wherry`, inside of the bench's namespaces."""

    def __init__(self, peer: Peer) -> None:
        """A copy of the front with no Python beside it: it does what is served, and nothing else."""
        self._peer, self._state = peer, Path(peer.env["WHERRY_STATE"])
        self._front = Path(peer.filled("home") + "-front") / "wherry"
        self._front.parent.mkdir()
        shutil.copy(peer.command("program", "")[0], self._front)

    def ready(self) -> None:
        """There is one, and the pages that the workloads write to are known."""
        for _ in range(6):
            run_command([*self._peer.command("cli", ""), "run", "--rm", "--network", "none",
                         *self._peer.command("wherry_image", ""), "true"], self._peer.env)  # fmt: skip
            time.sleep(0.7)
        self.check()

    def check(self) -> None:
        """RuntimeError unless commands from here are served by it."""
        run_command([str(self._front), "ps"], self._peer.env)

    def resident_mib(self) -> float:
        """VmRSS."""
        pid = (self._state / "warm/lock").read_text().strip()
        found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0

    def stop(self) -> None:
        """End it."""
        run_command([*self._peer.command("program", ""), "warm", "stop"], self._peer.env)


def run_command(command: list[str], env: dict[str, str]) -> None:
    """Run it; a failure carries what it said."""
    with tempfile.TemporaryFile("w+") as errors:
        status = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=env)
        if status:
            errors.seek(0)
            raise RuntimeError(f"{shlex.join(command)}: exit {status}\n{errors.read()}")


def peak_mib(peer: Peer, step: str) -> float:
    """The largest process of one command, by time(1): a child of ours would count our own pages before its exec."""
    with tempfile.NamedTemporaryFile("r") as said:
        words = peer.command(step, f"bench-{next(unique_numbers)}")
        run_command(["time", "-f", "%M", "-o", said.name, *words], peer.env)
        return int(said.read()) / 1024


def machine_cpu_ms() -> float:
    """CPU time that the whole machine has used."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) * 1000 / os.sysconf("SC_CLK_TCK")


def pss_by_program() -> Counter[str]:
    """MiB of proportional memory of every process of the bench outside the containers, by program name."""
    sizes: Counter[str] = Counter()
    own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "mnt")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(pid) != os.getpid() and [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt")] == own:
                found = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
                sizes[Path(f"/proc/{pid}/comm").read_text().strip()] += int(found[1]) / 1024 if found else 0
        except OSError:
            continue
    return sizes


def busy_percent() -> float:
    """How long tasks waited for a CPU in the last ten seconds: times taken beside other work are worth little."""
    found = re.search(r"avg10=([\d.]+)", Path("/proc/pressure/cpu").read_text())
    return float(found[1]) if found else 0.0


def take_sample(peer: Peer, workload: Workload, name: str) -> dict[str, float]:
    """One timed step with what goes before and after."""
    for step in workload.before:
        peer.do(step, name)
    cpu, start = machine_cpu_ms(), time.perf_counter()
    peer.do(workload.timed, name)
    sample = {"wall_ms": (time.perf_counter() - start) * 1000, "cpu_ms": machine_cpu_ms() - cpu}
    for step in workload.after:
        peer.do(step, name)
    time.sleep(PAUSE)
    return sample


def prepare_once(peer: Peer, workload: Workload) -> None:
    """Start what is kept during all samples; with many containers, see what memory they cost."""
    memory = pss_by_program()
    for step in workload.once:
        peer.do(step, "bench-kept")
    if "start_many" in workload.once:
        time.sleep(2)
        growth = pss_by_program()
        growth.subtract(memory)
        peer.pss = {name: round(value / CONTAINERS, 3) for name, value in growth.items() if value > 1}


def measure(name: str, peers: list[Peer], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Samples by peer, of those that have every step of this workload."""
    workload = WORKLOADS[name]
    steps = [workload.timed, *workload.before, *workload.after, *workload.once]
    samples: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in peers if all(map(peer.has, steps))}

    def attempt(peer: Peer, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:
            print(f"{name}: {peer.name} left out: {error}", file=sys.stderr)
            samples.pop(peer, None)
            return None

    for peer in list(samples):
        attempt(peer, lambda peer=peer: prepare_once(peer, workload))  # type: ignore[misc]
    deadline = time.monotonic() + options.seconds
    for number in range(-options.warmup, min(options.runs, workload.most)):
        for peer in list(samples):
            container = "bench-kept" if workload.once else f"bench-{next(unique_numbers)}"
            sample = attempt(peer, lambda peer=peer, at=container: take_sample(peer, workload, at))  # type: ignore[misc]
            if sample and number >= 0:
                samples[peer].append(sample)
        if number >= 2 and time.monotonic() > deadline:
            break
    for peer in list(samples):
        attempt(peer, lambda peer=peer: [peer.do(step, "bench-kept") for step in workload.once_after])  # type: ignore[misc]
    return {peer.name: rows for peer, rows in samples.items() if rows}


def installed(tables: dict[str, dict[str, str]], wanted: list[str], common: dict[str, str]) -> list[Peer]:
    """The peers that can run here; the others are named."""
    found = []
    for name in wanted:
        peer = Peer(name, {**tables.get(tables[name].get("like", ""), {}), **tables[name]}, common)
        if shutil.which(peer.command("program", "")[0]):
            found.append(peer)
        else:
            print(f"{name}: not installed", file=sys.stderr)
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--peers", default="", help="wherry,docker,podman,ctr (default: all that are installed)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="stop a workload after this long")
    parser.add_argument("--log-bytes", type=int, default=200_000_000)
    parser.add_argument("--json", help="write every sample here; workloads that are there already stay")
    parser.add_argument("--markdown", help="write the report here")
    return parser.parse_args()


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {
        "cpu": f"{os.cpu_count()} x {model[1] if model else os.uname().machine}", "kernel": os.uname().release,
        "system": release.get("PRETTY_NAME", "").strip('"'), "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def prepare(peers: list[Peer]) -> list[Peer]:
    """Load the image into each peer; one that cannot is left out and named."""
    ready = []
    for peer in peers:
        try:
            if peer.has("prepare"):
                peer.do("prepare", "none")
            ready.append(peer)
        except RuntimeError as error:
            print(f"{peer.name} left out: {error}", file=sys.stderr)
    return ready


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    scratch = os.environ["BENCH_HOME"]
    common = {
        "image": "busybox:test", "registry": os.environ.get("REGISTRY", "127.0.0.1:5000"), "scratch": scratch,
        "payload": PAYLOAD, "log_payload": LOG_PAYLOAD.replace("{bytes}", str(options.log_bytes)), "top": str(TOP),
        "bundle": f"{scratch}/bundle",
    }  # fmt: skip
    config = bundle.make(Path(common["bundle"]))
    tables = tomllib.loads((HERE / "peers.toml").read_text())
    wanted = list(dict.fromkeys(["wherry", *options.peers.split(",")])) if options.peers else list(tables)
    peers = prepare(installed(tables, wanted, common))
    warm = next((Warm(peer) for peer in peers if peer.name == "wherry"), None)
    try:
        result = measured(peers, options, config, warm)
    finally:
        if warm:
            warm.stop()
    print(report.bars(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    if options.markdown:
        Path(options.markdown).write_text(report.document(result))
    return 0


def measured(
    peers: list[Peer], options: argparse.Namespace, config: dict[str, Any], warm: Warm | None
) -> dict[str, Any]:
    """All that the report is made of."""
    result: dict[str, Any] = {
        "machine": machine(), "busy_percent": busy_percent(), "versions": {peer.name: peer.version() for peer in peers},
        "log_bytes": options.log_bytes, "workloads": {}, "pss_mib": {},
    }  # fmt: skip
    if "oci_run" in options.workloads:
        able = [peer for peer in peers if peer.has("oci_run")]
        result["oci_peak_mib"] = {peer.name: peak_mib(peer, "oci_run") for peer in able}
        result["helper_ms"] = bundle.helper(config, Path(os.environ["BENCH_HOME"]) / "bundle", 5 * options.runs)
    for name in options.workloads.split(","):
        if warm:
            warm.ready()
        samples = measure(name, peers, options)
        if warm:
            warm.check()
        if samples:
            result["workloads"][name] = samples
            print(report.table(name, samples), flush=True)
    if warm:
        result["warm_mib"] = warm.resident_mib()
    result["busy_percent_after"] = busy_percent()
    result["pss_mib"] = {peer.name: peer.pss for peer in peers if peer.pss is not None}
    if options.json and Path(options.json).exists():
        result = merged(json.loads(Path(options.json).read_text()), result)
    return result


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both; of what is in both the new one."""
    inner = {key: {**old.get(key, {}), **new[key]} for key in ("versions", "workloads", "pss_mib")}
    return {**old, **new, **inner}


if __name__ == "__main__":
    sys.exit(main())
