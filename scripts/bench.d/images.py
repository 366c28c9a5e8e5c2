"""Images beside the peers: pull, save, load, push, rmi of one large image, interleaved by round, each on a fresh ext4.

Started by `scripts/bench images` inside the peers' namespaces. A round makes for each peer a new file system on a loop
device, starts its daemon there, and goes through the steps; wall seconds of each command, CPU seconds of the whole
machine, peak memory of the command. ROOT of wherry is synced by it before it answers; the peers sync as they like.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
REGISTRY = os.environ.get("REGISTRY", "127.0.0.1:5000")
EMPTY = "127.0.0.1:5057"
SILENT: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
IMAGE = f"{REGISTRY}/big:test"
SIZE = 12 << 30  # of the sparse file; what is written is less
#: in their order; those of one name twice are two states
STEPS = ("pull", "present", "save", "push", "upload", "rmi", "again", "first_read", "warm_read", "rmi_used",
         "watched", "rmi_watched", "load", "rmi_load")  # fmt: skip
WHAT = {
    "pull": "`pull`, fresh file system", "present": "`pull` when the image is there", "save": "`save` to a file",
    "upload": "`push` to an empty registry", "push": "`push` to a registry that has the blobs elsewhere",
    "rmi": "`rmi`", "rmi_used": "`rmi` again; the layers of wherry were mounted and read meanwhile",
    "again": "`pull` right after the image was removed",
    "load": "`load` of what was saved", "first_read": "first read of all files, caches dropped",
    "warm_read": "the same again", "watched": "memory of a `pull`: all its processes, RSS every 10 ms",
}  # fmt: skip
#: (step, whose, the most of the fastest peer's, of whom if not of the fastest)
BARS = (
    ("pull", "wherry-directory", 0.4, ""), ("pull", "wherry-erofs", 0.3, ""), ("again", "wherry-directory", 0.7, ""),
    ("again", "wherry-erofs", 0.25, ""), ("rmi", "wherry-directory", 1.0, "ctr"), ("rmi", "wherry-erofs", 0.1, "ctr"),
    ("present", "wherry-erofs", 0.5, "podman"), ("save", "wherry-erofs", 0.7, ""), ("load", "wherry-erofs", 0.7, ""),
    ("upload", "wherry-erofs", 0.7, ""), ("push", "wherry-erofs", 0.7, ""),
)  # fmt: skip
WHERRY = {
    "cli": f"{TOP}/.venv/bin/wherry --root {{fs}}/root --state {{run}}/wherry-images --config {{fs}}/wherry.toml",
    "pull": f"{{cli}} pull -q {IMAGE}", "save": f"{{cli}} save -o {{fs}}/saved {IMAGE}",
    "tag": f"{{cli}} tag {IMAGE} {{target}}", "push": "{cli} push -q {target}", "untag": "{cli} rmi {target}",
    "rmi": f"{{cli}} rmi {IMAGE}", "load": "{cli} load -q -i {fs}/saved", "watched": f"{{cli}} pull -q {IMAGE}",
    "use": f"{{cli}} run --rm --network none {IMAGE} /nothing",
    "warm_read": "sh -c 'find {fs}/root/layers/*/fs -type f -print0 | xargs -0 cat | wc -c'",
}  # fmt: skip
CTR = {
    "cli": "ctr --address {run}/images-containerd.sock",
    "pull": f"{{cli}} images pull --plain-http {IMAGE}", "save": f"{{cli}} images export {{fs}}/saved {IMAGE}",
    "tag": f"{{cli}} images tag {IMAGE} {{target}}", "push": "{cli} images push --plain-http {target}",
    "untag": "{cli} images rm --sync {target}", "rmi": f"{{cli}} images rm --sync {IMAGE}",
    "load": "{cli} images import {fs}/saved",
    "daemon": "containerd --config {fs}/containerd.toml", "ready": "{cli} version",
}  # fmt: skip
DOCKER = {
    "cli": "docker --host unix://{run}/images-docker.sock",
    "pull": f"{{cli}} pull -q {IMAGE}", "save": f"{{cli}} save -o {{fs}}/saved {IMAGE}",
    "tag": f"{{cli}} tag {IMAGE} {{target}}", "push": "{cli} push -q {target}", "untag": "{cli} rmi {target}",
    "rmi": f"{{cli}} rmi {IMAGE}", "load": "{cli} load -q -i {fs}/saved",
    "daemon": "dockerd --containerd {scratch}/containerd.sock --host unix://{run}/images-docker.sock"
    " --data-root {fs}/docker --exec-root {run}/images-docker"
    " --pidfile {run}/images-docker.pid --config-file {scratch}/dockerd.json"
    " --bridge none --iptables=false",
    "ready": "{cli} info",
}  # fmt: skip
PODMAN = {
    "cli": "env CONTAINERS_CONF={scratch}/containers.conf podman --root {fs}/podman --runroot {run}/images-podman",
    "pull": f"{{cli}} pull -q --tls-verify=false {IMAGE}", "save": f"{{cli}} save -q -o {{fs}}/saved {IMAGE}",
    "tag": f"{{cli}} tag {IMAGE} {{target}}", "push": "{cli} push -q --tls-verify=false {target}",
    "untag": "{cli} rmi {target}", "rmi": f"{{cli}} rmi {IMAGE}", "load": "{cli} load -q -i {fs}/saved",
}  # fmt: skip
PEERS: dict[str, dict[str, str]] = {
    "wherry-directory": {**WHERRY, "env": "WHERRY_SNAPSHOT_FORMAT=directory"},
    "wherry-erofs": {**WHERRY, "env": "WHERRY_SNAPSHOT_FORMAT=erofs"},
    "ctr": CTR, "docker": DOCKER, "podman": PODMAN,
}  # fmt: skip
HEAD = "| | runs | median s | min to max | CPU s | peak MiB |"
SAME = {
    "first_read": "warm_read", "upload": "push", "rmi_used": "rmi", "rmi_watched": "rmi", "present": "pull",
    "again": "pull", "rmi_load": "rmi",
}  # fmt: skip


def busy_seconds() -> float:
    """CPU seconds that the whole machine has worked since boot."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _wait, irq, soft, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """MiB of a process and all below it; what they share counts once for each."""
    with contextlib.suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in os.listdir(f"/proc/{pid}/task"):
            if task != str(pid):
                below += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 + sum(resident(int(child)) for child in below)
    return 0.0


class Peer:
    """One runtime on one fresh file system."""

    def __init__(self, name: str, templates: dict[str, str], scratch: Path, fs: Path, number: int) -> None:
        self.name, self._templates = name, templates
        # a repository that the registry does not know; the registry may know its blobs from others, for all alike
        self._target = f"pushed-{name}-{number}-{os.getpid()}:test"
        self._words = {"scratch": scratch, "run": scratch / "run", "fs": fs, "target": f"{REGISTRY}/{self._target}"}
        key, _, value = templates.get("env", "").partition("=")
        self._env = {**os.environ, **({key: value} if key else {})}

    def command(self, step: str) -> list[str]:
        """A template, filled in."""
        text = self._templates[step].replace("{cli}", self._templates["cli"])
        return shlex.split(text.format(**self._words))

    @contextlib.contextmanager
    def pushing(self, step: str) -> Iterator[None]:
        """The image has its name of another place meanwhile; for `upload` in a registry that has nothing yet."""
        with contextlib.ExitStack() as held:
            if step == "upload":
                held.enter_context(empty_registry(Path(str(self._words["fs"]))))
                self._words["target"] = f"{EMPTY}/{self._target}"
            self.do("tag")
            yield
            self.do("untag")

    def has(self, step: str) -> bool:
        """Whether this runtime has the step."""
        return step in self._templates

    def do(self, step: str) -> dict[str, float]:
        """Run a step: seconds of wall, of the machine's CPUs, and MiB at its peak."""
        peak, command = 0.0, SAME.get(step, step)
        if step == "first_read":  # a container that cannot start has its layers mounted all the same
            subprocess.run(self.command("use"), env=self._env, capture_output=True, check=False)
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        before, start = busy_seconds(), time.perf_counter()
        with open(Path(str(self._words["fs"])) / "output", "wb") as output:
            process = subprocess.Popen(self.command(command), env=self._env, stdout=output, stderr=output)
            while step == "watched" and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                peak = max(peak, resident(process.pid))
                time.sleep(0.01)
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        if status:
            words = (Path(str(self._words["fs"])) / "output").read_text(errors="replace")[-1000:]
            raise SystemExit(f"{self.name}: {step} failed: {words}")
        return {"wall": wall, "cpu": busy_seconds() - before, "rss": peak or usage.ru_maxrss / 1024}

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        """Its daemon, where it has one."""
        if not self.has("daemon"):
            yield
            return
        log = Path(str(self._words["scratch"])) / f"images-{self.name}.log"
        with started(self.command("daemon"), log, lambda: not subprocess.call(self.command("ready"), **SILENT)):
            yield


@contextlib.contextmanager
def started(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """A server, from when it answers until the end of the block."""
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not ready():
            if time.monotonic() > end:
                raise SystemExit(f"{command[0]} does not answer: see {log}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)


def listens(address: str) -> bool:
    """Whether somebody does."""
    host, _, port = address.partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


@contextlib.contextmanager
def empty_registry(fs: Path) -> Iterator[None]:
    """Another registry of the distribution's, with nothing in it."""
    config = fs / "empty-registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {fs}/registry}}}}\n"
        f"http: {{addr: {EMPTY}}}\n"
    )
    with started(["docker-registry", "serve", str(config)], fs / "registry.log", lambda: listens(EMPTY)):
        yield


@contextlib.contextmanager
def used(scratch: Path) -> Iterator[Path]:
    """A directory on the file system of `scratch`, as it is."""
    place = Path(tempfile.mkdtemp(dir=scratch))
    try:
        yield place
    finally:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(f"{place}/"):
                subprocess.run(["umount", line.split()[4]], check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", str(place)], check=True)


@contextlib.contextmanager
def fresh(scratch: Path) -> Iterator[Path]:
    """A new ext4 on a loop device."""
    image, place = scratch / "fresh.img", scratch / "fresh"
    place.mkdir(exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        for left in range(50, -1, -1):  # what a runtime does after its last answer may still be going on
            done = subprocess.run(["umount", "--recursive", str(place)], check=not left, capture_output=True)
            if not done.returncode:
                break
            time.sleep(0.1)
        image.unlink()


def write_configs(scratch: Path, fs: Path) -> None:
    """What the daemons read."""
    (fs / "containerd.toml").write_text(
        f'version = 2\nroot = "{fs}/containerd"\nstate = "{scratch}/run/images-containerd"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\n  address = "{scratch}/run/images-containerd.sock"\n'
    )
    (fs / "wherry.toml").write_text("")


def one_round(scratch: Path, name: str, number: int, steps: list[str], place: Any) -> dict[str, dict[str, float]]:
    """All steps of one peer at a place of its own."""
    found: dict[str, dict[str, float]] = {}
    with place(scratch) as fs:
        write_configs(scratch, fs)
        peer = Peer(name, PEERS[name], scratch, fs, number)
        with peer.daemon():
            for step in steps:
                if not peer.has(SAME.get(step, step)) or (step == "rmi_watched" and "watched" not in found):
                    continue
                with peer.pushing(step) if step in ("push", "upload") else contextlib.nullcontext():
                    found[step] = peer.do(step)
    return found


def report(samples: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Tables and bars in markdown."""
    lines: list[str] = []
    for step, what in WHAT.items():
        rows = samples.get(step)
        if not rows:
            continue
        lines += ["", f"### {what}", "", HEAD, "|---|---|---|---|---|---|"]
        for name, runs in rows.items():
            walls = sorted(run["wall"] for run in runs)
            cpu, rss = (statistics.median(run[key] for run in runs) for key in ("cpu", "rss"))
            spread = f"{statistics.median(walls):.2f} | {walls[0]:.2f} to {walls[-1]:.2f}"
            lines.append(f"| {name} | {len(runs)} | {spread} | {cpu:.2f} | {rss:.0f} |")
    return "\n".join(["| work | bar | wall | CPU | |", "|---|---|---|---|---|", *bars(samples), *lines]) + "\n"


def bars(samples: dict[str, dict[str, list[dict[str, float]]]]) -> list[str]:
    """A line for each bar; the fastest peer by wall time is the measure of both."""
    lines = []
    for step, ours, most, whom in BARS:
        rows = samples.get(step, {})
        peers = [name for name in rows if not name.startswith("wherry") and whom in ("", name)]
        if ours not in rows or not peers:
            continue
        middle = {
            key: {name: statistics.median(run[key] for run in runs) for name, runs in rows.items()}
            for key in ("wall", "cpu")
        }
        best = min(peers, key=middle["wall"].__getitem__)
        wall, cpu = (middle[key][ours] / middle[key][best] for key in ("wall", "cpu"))
        met = "met" if wall <= most and (step != "pull" or cpu <= most) else "**missed**"
        lines.append(f"| {WHAT[step]}, {ours} | at most {most} of {best}'s | {wall:.2f} | {cpu:.2f} | {met} |")
    return lines


def versions() -> str:
    """What was measured, a line each."""
    commands = ([f"{TOP}/.venv/bin/wherry", "--version"], ["ctr", "--version"], ["dockerd", "--version"],
                ["podman", "--version"], ["uname", "-sr"])  # fmt: skip
    told = [subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() for words in commands]
    return "\n".join(f"- {one}" for one in told)


PAGE = """# Benchmarks of images

Written by `scripts/bench images --markdown docs/benchmarks-images.md` on {date}. One image: three gzip layers of
this machine's own files, from the distribution's registry on loopback. Each runtime has a new ext4 on a loop device
of its own in every round, and its daemon there; the rounds are interleaved. wherry syncs what it pulled before it
answers; the peers leave that to the kernel. CPU is the whole machine's, the registry's and the daemons' part included.

{versions}

{text}
`pull` runs cold unless the image is there; `rmi` has removed the files when it answers, as ctr's with `--sync`. The
peak of ctr and docker is their client's; the daemon does the work. `push` goes to a new repository of a registry that
has the blobs from another one: who knows that mounts them.
"""


def main() -> None:
    """Rounds of all peers; prints tables, keeps samples."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--used", action="store_true", help="on the file system of the scratch, not on new ones")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    scratch, place = Path(os.environ["BENCH_HOME"]), used if args.used else fresh
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number in range(args.rounds):
        for name in args.peers.split(","):
            for step, sample in one_round(scratch, name, number, args.steps.split(","), place).items():
                samples.setdefault(step, {}).setdefault(name, []).append(sample)
                words = (f"{key} {value:.2f}" for key, value in sample.items())
                print(f"{number} {name:17} {step:9}", *words, flush=True)
    text: Any = report(samples)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(samples))
    if args.markdown:
        args.markdown.write_text(PAGE.format(date=time.strftime("%Y-%m-%d"), versions=versions(), text=text))


if __name__ == "__main__":
    main()
