"""Our CNI plugins beside the reference's, interleaved: ADD, DEL, VERSION; what a bridge carries; a run's share.

Started by `scripts/bench network` inside the peers' namespaces, where it makes and removes namespaces of its own.
The reference is the distribution's build, with iptables as that has it; a call is one process of the plugin, timed from
its start to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import measure
import report

from wherry_cni import bridge, nft, portmap, skel

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
REFERENCE = Path("/usr/lib/cni")
OURS, COLD, THEIRS = "wherry", "wherry-cold", "reference"
CROWD = 1000
Json = dict[str, Any]
Samples = dict[str, dict[str, list[float]]]  # by what was done, by whom

WHAT = {
    "bridge ADD": "bridge + host-local with ipMasq, ADD", "bridge DEL": "bridge + host-local with ipMasq, DEL",
    "portmap ADD": "portmap, ADD", "portmap DEL": "portmap, DEL",
    "crowd bridge ADD": f"bridge, ADD beside {CROWD} containers", "crowd bridge DEL": f"bridge, DEL beside {CROWD}",
    "crowd portmap ADD": f"portmap, ADD beside {CROWD}", "crowd portmap DEL": f"portmap, DEL beside {CROWD}",
    "VERSION": "VERSION", "run": "`run --rm IMAGE true`",
    "throughput, container to container": "TCP, container to container, Gbit/s",
    "throughput, host to container": "TCP, host to container, Gbit/s",
    "latency, container to container": "TCP, one byte there and back, container to container, us",
    "latency, host to container": "TCP, one byte there and back, host to container, us",
}  # fmt: skip
#: (what, the most that ours may take of the reference's)
BARS = (("bridge ADD", 0.5), ("bridge DEL", 0.25), ("portmap ADD", 0.4), ("portmap DEL", 0.2))
VERSION_BAR_MS, SHARE_BAR_MS = 5, 12


class Plugins:
    """One directory of plugins as a runtime calls it, with a bridge, leases and a namespace of its own."""

    def __init__(self, name: str, directory: Path, number: int, scratch: Path, **env: str) -> None:
        self.name, self.directory, self.space = name, directory, f"wb{os.getpid()}-{name}"
        self.leases = scratch / f"leases-{name}"
        self.port = 9000 + number
        self.env = {"PATH": os.environ["PATH"], "CNI_PATH": str(directory), "CNI_IFNAME": "eth0", **env}
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": f"10.{60 + number}.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
        table = {} if name == THEIRS else {"nftTable": f"bench_{number}"}
        self.config: dict[str, Json] = {
            "bridge": {"bridge": f"bench{number}", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam,
                       **table},
            "portmap": {"snat": True, **table,
                        "runtimeConfig": {"portMappings": [{"hostPort": self.port, "containerPort": 80,
                                                           "protocol": "tcp"}]}},
        }  # fmt: skip

    def call(self, plugin: str, verb: str, container: str = "one", space: str = "", **more: Any) -> tuple[float, Json]:
        """One call: milliseconds, and its answer."""
        body = {"cniVersion": "1.0.0", "name": f"n-{self.name}", "type": plugin, **self.config[plugin], **more}
        env = {**self.env, "CNI_COMMAND": verb, "CNI_CONTAINERID": container,
               "CNI_NETNS": f"/run/netns/{space or self.space}"}  # fmt: skip
        words, given = [str(self.directory / plugin)], json.dumps(body).encode()
        start = time.perf_counter()
        done = subprocess.run(words, input=given, capture_output=True, env=env, check=False)
        took = (time.perf_counter() - start) * 1000
        if done.returncode:
            raise SystemExit(f"{self.name}: {plugin} {verb}: {done.stdout.decode()}{done.stderr.decode()}")
        return took, json.loads(done.stdout) if done.stdout.strip() else {}

    def life(self) -> dict[str, float]:
        """Milliseconds of each call of an attachment's life."""
        took: dict[str, float] = {}
        took["bridge ADD"], result = self.call("bridge", "ADD")
        took["portmap ADD"], _ = self.call("portmap", "ADD", prevResult=result)
        took["portmap DEL"], _ = self.call("portmap", "DEL", prevResult=result)
        took["bridge DEL"], _ = self.call("bridge", "DEL", prevResult=result)
        return took

    def join(self, container: str, space: str) -> str:
        """An attachment that stays; its address."""
        _, result = self.call("bridge", "ADD", container, space)
        return str(result["ips"][0]["address"]).partition("/")[0]

    def leave(self, container: str, space: str) -> None:
        self.call("bridge", "DEL", container, space)


# ---- a crowd: what one real container has in the firewall and in the leases, a thousand times


def crowd(plugins: Plugins) -> None:
    """What one real attachment has is written again for others."""
    _, result = plugins.call("bridge", "ADD")
    plugins.call("portmap", "ADD", prevResult=result)
    address = str(result["ips"][0]["address"]).partition("/")[0]
    (crowd_of_reference if plugins.name == THEIRS else crowd_of_ours)(plugins, address)
    plugins.call("portmap", "DEL", prevResult=result)
    plugins.call("bridge", "DEL", prevResult=result)
    for other in others(address):
        (plugins.leases / f"n-{plugins.name}" / other).write_text(f"crowd-{other}\r\neth0")


def others(address: str) -> list[str]:
    """Addresses of the crowd: the same subnet, further up."""
    first, second = address.split(".")[:2]
    return [f"{first}.{second}.{100 + number // 250}.{1 + number % 250}" for number in range(CROWD)]


def crowd_of_reference(plugins: Plugins, address: str) -> None:
    """iptables-save's lines with this container's chains, address, id and port changed."""
    saved = run("iptables-save", "-t", "nat").splitlines()
    own = [line for line in saved if address in line or '"one"' in line or "id: \\\"one\\\"" in line]
    chains = sorted({word for line in own for word in re.findall(r"CNI-(?:DN-)?[0-9a-f]{15,}", line)})
    lines = [line for line in saved if line.startswith("-A") and any(word in line for word in [*chains, address])]
    text = ["*nat"]
    for number, other in enumerate(others(address)):
        names = {chain: f"{chain[: -len(f'{number:05x}')]}{number:05x}"[: len(chain)] for chain in chains}
        text += [f":{name} - [0:0]" for name in names.values()]
        changed = {**names, address: other, '\\"one\\"': f'\\"crowd-{other}\\"', str(plugins.port): str(20000 + number)}
        text += [replaced(line, changed) for line in lines]
    run("iptables-restore", "--noflush", stdin="\n".join([*text, "COMMIT", ""]))


def crowd_of_ours(plugins: Plugins, address: str) -> None:
    """What the plugins' own functions say that such containers have."""
    wanted: list[nft.Element] = []
    for number, other in enumerate(others(address)):
        result = {"interfaces": [{"name": "eth0", "sandbox": "/"}], "ips": [{"address": f"{other}/16", "interface": 0}]}
        given = {"portMappings": [{"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}]}
        for module, name in ((bridge, "bridge"), (portmap, "portmap")):
            head = {"cniVersion": "1.0.0", "name": f"n-{plugins.name}", "runtimeConfig": given, "prevResult": result}
            config = {**plugins.config[name], **head}
            wanted += module.rules(skel.Call("ADD", f"crowd-{other}", "/", "eth0", {}, (), config, {}, ""))
    nft.add(plugins.config["bridge"]["nftTable"], wanted)


def replaced(text: str, words: dict[str, str]) -> str:
    """The text with each of these words (and not parts of longer ones) changed."""
    for old, new in words.items():
        text = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.])", lambda _, new=new: new, text)  # type: ignore[misc]
    return text


def run(*words: object, stdin: str | None = None) -> str:
    """A program's output; its failure ends the bench."""
    done = subprocess.run([str(word) for word in words], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stderr}")
    return done.stdout


SPACES: set[str] = set()


def make(space: str) -> None:
    """A network namespace, to be removed at the end at the latest."""
    run("ip", "netns", "add", space)
    SPACES.add(space)
    run("ip", "-n", space, "link", "set", "lo", "up")


def drop(space: str) -> None:
    """Remove it."""
    SPACES.remove(space)
    run("ip", "netns", "del", space)


# ---- what a bridge carries


@contextmanager
def servers(space: str, program: str) -> Iterator[None]:
    """iperf3 and pingpong in a namespace."""
    enter = ("ip", "netns", "exec", space)
    null: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    running = [subprocess.Popen([*enter, "iperf3", "-s"], **null),
               subprocess.Popen([*enter, program, "serve", "5300"], **null)]  # fmt: skip
    try:
        while run(*enter, "ss", "-Hltn").count("LISTEN") < 2:
            time.sleep(0.05)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def traffic(sides: list[Plugins], options: argparse.Namespace, samples: Samples, program: str) -> None:
    """Throughput and latency over both bridges, interleaved, from a neighbour and from the host."""
    for side in sides:
        for end in ("server", "client"):
            make(f"{side.space}-{end}")
    addresses = {side.name: side.join("server", f"{side.space}-server") for side in sides}
    for side in sides:
        side.join("client", f"{side.space}-client")
    with servers(f"{sides[0].space}-server", program), servers(f"{sides[1].space}-server", program):
        for number in range(options.runs):
            for side in sides if number % 2 else sides[::-1]:
                neighbour = ("ip", "netns", "exec", f"{side.space}-client")
                for whence, enter in (("container", neighbour), ("host", ())):
                    for what, value in carried(enter, addresses[side.name], program).items():
                        rows = samples.setdefault(f"{what}, {whence} to container", {})
                        rows.setdefault(side.name, []).append(value)
    for side in sides:
        for end in ("server", "client"):
            side.leave(end, f"{side.space}-{end}")
            drop(f"{side.space}-{end}")


def carried(enter: tuple[str, ...], address: str, program: str) -> dict[str, float]:
    """Gbit/s of a second, and the median round trip of 3,000."""
    told = json.loads(run(*enter, "iperf3", "-J", "-t", "1", "-c", address))
    trip = float(run(*enter, program, address, "5300", "3000"))
    return {"throughput": told["end"]["sum_received"]["bits_per_second"] / 1e9, "latency": trip}


# ---- all of it


def measured(options: argparse.Namespace) -> tuple[Samples, str]:
    """Samples, and the version of wherry."""
    scratch = Path(os.environ["BENCH_HOME"])
    registry = os.environ.get("REGISTRY", "127.0.0.1:5000")
    common = {"image": "busybox:test", "registry": registry, "scratch": str(scratch), "payload": "true",
              "log_payload": "true", "top": str(TOP), "bundle": ""}  # fmt: skip
    peer = measure.Peer("wherry", tomllib.loads((HERE / "peers.toml").read_text())["wherry"], common)
    peer.do("prepare", "none")
    warm, samples = measure.Warm(peer), {}
    try:
        warm.ready()
        sides = plugins_of(peer, scratch)
        for side in sides:
            make(side.space)
        lives(sides, options, samples, "")
        versions(sides, options, samples)
        runs(peer, options, samples)
        program = str(scratch / "pingpong")
        run("cc", "-O2", "-o", program, HERE / "pingpong.c")
        traffic([side for side in sides if side.name != COLD], options, samples, program)
        for side in sides:
            crowd(side)
        lives(sides, options, samples, "crowd ")
        warm.check()
        return samples, peer.version()
    finally:
        warm.stop()
        for space in list(SPACES):
            with suppress(SystemExit):
                drop(space)


def plugins_of(peer: measure.Peer, scratch: Path) -> list[Plugins]:
    """Ours by links to a front that has no Python beside it: what is not served fails, instead of going cold."""
    home = Path(peer.filled("home") + "-cni")
    alone = scratch / "front-alone"
    alone.mkdir()
    for link in home.iterdir():
        (alone / link.name).symlink_to("wherry-cni")
    shutil.copy(home.joinpath("bridge").resolve(), alone / "wherry-cni")
    return [Plugins(OURS, alone, 1, scratch, WHERRY_STATE=peer.env["WHERRY_STATE"]),
            Plugins(COLD, home, 2, scratch, WHERRY_WARM="off"), Plugins(THEIRS, REFERENCE, 3, scratch)]  # fmt: skip


def lives(sides: list[Plugins], options: argparse.Namespace, samples: Samples, prefix: str) -> None:
    """Attachments of all sides in turn."""
    for number in range(-options.warmup, options.runs):
        for side in sides:
            took = side.life()
            time.sleep(measure.PAUSE / 2)
            for what, value in took.items() if number >= 0 else ():
                samples.setdefault(prefix + what, {}).setdefault(side.name, []).append(value)


def versions(sides: list[Plugins], options: argparse.Namespace, samples: Samples) -> None:
    for _ in range(options.runs):
        for side in sides:
            samples.setdefault("VERSION", {}).setdefault(side.name, []).append(side.call("bridge", "VERSION")[0])


def runs(peer: measure.Peer, options: argparse.Namespace, samples: Samples) -> None:
    """`run --rm` on the bridge and without a network, warm, in turn."""
    steps = {"on the bridge": "run", "with a port published": "run_port", "--network none": "run_nonet"}
    peer.templates["run_port"] = peer.templates["run"].replace("run --rm", "run --rm -p 9090:80")
    for number in range(-options.warmup - 3, options.runs):
        for name, step in steps.items():
            took = measure.take_sample(peer, measure.Workload(step), "none")["wall_ms"]
            if number >= 0:
                samples.setdefault("run", {}).setdefault(name, []).append(took)


def middle(samples: Samples, what: str) -> dict[str, float]:
    return {name: statistics.median(rows) for name, rows in samples.get(what, {}).items()}


def bars(samples: Samples) -> str:
    """What was asked for, and what was reached."""
    lines = ["| work | bar | reached | cold | |", "|---|---|---|---|---|"]
    for what, most in BARS:
        for prefix in ("", "crowd "):
            found = middle(samples, prefix + what)
            warm, cold = (found[own] / found[THEIRS] for own in (OURS, COLD))
            line = f"| {WHAT[prefix + what]} | at most {most} of the reference's | {warm:.2f} | {cold:.2f} "
            lines.append(f"{line}| {report.verdict(warm <= most)} |")
    took = middle(samples, "VERSION")
    lines.append(f"| VERSION | at most {VERSION_BAR_MS} ms | {took[OURS]:.1f} ms | {took[COLD]:.1f} ms | "
                 f"{report.verdict(took[OURS] <= VERSION_BAR_MS)} |")  # fmt: skip
    found = middle(samples, "run")
    share = found["on the bridge"] - found["--network none"]
    lines.append(f"| the network's share of `run --rm` on the bridge | at most {SHARE_BAR_MS} ms | {share:.1f} ms | | "
                 f"{report.verdict(share <= SHARE_BAR_MS)} |")  # fmt: skip
    for what, rows in samples.items():
        if what.startswith(("throughput", "latency")):
            ratio = statistics.median(rows[OURS]) / statistics.median(rows[THEIRS])
            end = report.verdict(noise(rows[OURS], rows[THEIRS]))
            lines.append(f"| {WHAT[what]} | the reference's within noise | {ratio:.2f} | | {end} |")
    return "\n".join(lines)


def noise(ours: list[float], theirs: list[float]) -> bool:
    """Whether the middle halves of both overlap."""
    one, two = (statistics.quantiles(rows, n=4) for rows in (ours, theirs))
    return one[0] <= two[2] and two[0] <= one[2]


def tables(samples: Samples) -> str:
    """Medians and spread of everything."""
    lines: list[str] = []
    for what, rows in samples.items():
        lines += ["", f"### {WHAT[what]}", "", "| | runs | median | quartiles | min to max |", "|---|---|---|---|---|"]
        for name, values in rows.items():
            low, half, high = statistics.quantiles(values, n=4)
            lines.append(f"| {name} | {len(values)} | {half:.2f} | {low:.2f} to {high:.2f} "
                         f"| {min(values):.2f} to {max(values):.2f} |")  # fmt: skip
    return "\n".join(lines)


PAGE = """# Benchmarks of networks

Written by `scripts/bench network --markdown docs/benchmarks-network.md` on {date}:
{cpu}, {system}, kernel {kernel}, Python {python}.
Tasks waited for a CPU {before:.0f} % of the ten seconds before and {after:.0f} % of those at the end.

A call is one process of a plugin, from its start to its end, as a CNI runtime makes it; milliseconds. `wherry` is
served by a warm process, by links to a front that cannot do without; `wherry-cold` starts Python for each call. All are
interleaved, in namespaces of the bench's own. The crowd are {crowd} other containers' rules and leases, as those of
a real one are. The reference uses iptables, as the distribution builds it. Both bridges are the kernel's own:
the bar is that the middle halves of both samples overlap.

- wherry: {wherry}
- reference: containernetworking-plugins {reference}, {iptables}
- {nft}; {iperf}

{bars}

## Figures
{tables}
"""


def document(samples: Samples, wherry: str, before: float) -> str:
    """The whole page."""
    host = measure.machine()
    told = run("dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins")
    return PAGE.format(
        **host, before=before, after=measure.busy_percent(), wherry=wherry, reference=told, crowd=CROWD,
        iptables=run("iptables", "--version").strip(), nft=run("nft", "--version").strip(),
        iperf=run("iperf3", "--version").splitlines()[0], bars=bars(samples), tables=tables(samples),
    )  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench network", description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every sample here")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    options = parser.parse_args()
    before = measure.busy_percent()
    samples, version = measured(options)
    text = document(samples, version, before)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(samples))
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
