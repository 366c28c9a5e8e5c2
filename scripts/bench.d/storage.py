"""The CSI driver on its own socket: a volume's life, snapshots of much data, fio in a volume and beside it, a thousand
volumes; and volumes of wherry beside those of podman and docker.

Started by `scripts/bench storage` inside the peers' namespaces. Every pool is a file system of the bench's own on a
loop device, but for fio's, which is a directory of the file system that the scratch lies on. Times are a client's, over
the socket; both sides of a comparison are interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import measure
import report

from csi_spec import csi_pb2 as pb
from csi_spec.services import SERVICES, Stub
from wherry_csi.backend.all import probe

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
MIB, GIB = 1 << 20, 1 << 30
CROWD = 1000
Samples = dict[str, dict[str, list[float]]]  # by what was done, by whom

#: steps of a volume's life that the bar is on, all together
LIFE = ("CreateVolume", "NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume",
        "DeleteVolume")  # fmt: skip
TOTAL = "all of it"
LIFE_BAR_MS, COPY_BAR_MS, LIST_BAR_MS, RESTART_BAR_MS = 150, 100, 100, 2000
FIO_BARS = {"image": 0.9, "directory": 1.0}
POOL = "the pool's file system"
#: fio's jobs; MiB/s of those with large blocks, operations a second of the others
FIO = {
    "write 1 MiB, sequential": ("--rw=write", "--bs=1M", "--iodepth=4"),
    "read 1 MiB, sequential": ("--rw=read", "--bs=1M", "--iodepth=4"),
    "write 4 KiB, random": ("--rw=randwrite", "--bs=4k", "--iodepth=16"),
    "read 4 KiB, random": ("--rw=randread", "--bs=4k", "--iodepth=16"),
    "write 4 KiB and fsync": ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"),
}
WHAT = {
    "create": f"create {CROWD} volumes of 64 MiB, one after the other, ms each", "list": f"ListVolumes of {CROWD}, ms",
    "pages": f"ListVolumes of {CROWD} in pages of 100, ms",
    "restart": f"restart with {CROWD} volumes, to its first answer, ms",
    "delete": f"delete {CROWD} volumes, ms each", "volume": "`volume create` and `volume rm`, ms",
    "run": "`run --rm --network none -v VOLUME:/data IMAGE true`, ms",
}  # fmt: skip


def run(*words: object) -> str:
    """A program's output; its failure ends the bench."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def disk(scratch: Path, fs: str, size: int) -> Iterator[Path]:
    """A file system of its own on a sparse file."""
    image, path = scratch / f"{fs}.img", scratch / f"disk-{fs}"
    with open(image, "wb") as file:
        file.truncate(size)
    run(f"mkfs.{fs}", "-q", image)
    path.mkdir()
    run("mount", "-o", "loop", image, path)
    try:
        yield path
    finally:
        run("umount", path)
        path.rmdir()
        image.unlink()


class Driver:
    """wherry-csi with one pool, and its client."""

    def __init__(self, scratch: Path, pool: Path) -> None:
        self._home = scratch / f"csi-{pool.name}"
        self._home.mkdir(exist_ok=True)
        self._socket = self._home / "csi.sock"
        self._words = [sys.executable, "-m", "wherry_csi", "serve", "--endpoint", f"unix://{self._socket}",
                       "--node-id", "bench", "--pool", f"bench={pool}"]  # fmt: skip
        self._volumes: list[str] = []

    def __enter__(self) -> Driver:
        self.start()
        return self

    def start(self) -> float:
        """Milliseconds until the first answer."""
        start = time.perf_counter()
        with open(self._home / "log", "ab") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        # a new channel shares the old one's back-off otherwise
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1),
                   ("grpc.initial_reconnect_backoff_ms", 10), ("grpc.max_reconnect_backoff_ms", 20))  # fmt: skip
        self._channel = grpc.insecure_channel(f"unix:{self._socket}", options=options)
        stubs = [Stub(self._channel, service) for service in SERVICES]
        self._methods = {name: method for stub in stubs for name, method in vars(stub).items()}
        self._methods["Probe"](pb.ProbeRequest(), timeout=60, wait_for_ready=True)
        return (time.perf_counter() - start) * 1000

    def stop(self) -> None:
        self._channel.close()
        self._process.terminate()
        if self._process.wait(60):
            raise SystemExit(f"the driver failed: {(self._home / 'log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        for volume in self._volumes:
            with suppress(grpc.RpcError):
                self.leave(volume)
                self.call("DeleteVolume", volume_id=volume)
        self.stop()

    def call(self, method: str, **fields: Any) -> tuple[float, Any]:
        """One call: milliseconds, and its answer."""
        request = getattr(pb, f"{method}Request")(**fields)
        start = time.perf_counter()
        answer = self._methods[method](request, timeout=300)
        return (time.perf_counter() - start) * 1000, answer

    def create(self, name: str, size: int, fs: str = "ext4", source: Any = None, backend: str = "image"
               ) -> tuple[float, str]:  # fmt: skip
        fields = {"capacity_range": {"required_bytes": size}, "parameters": {"backend": backend}}
        took, answer = self.call("CreateVolume", name=name, volume_capabilities=[mounted(fs)], **fields,
                                 volume_content_source=source)  # fmt: skip
        self._volumes.append(answer.volume.volume_id)
        return took, answer.volume.volume_id

    def paths(self, volume: str) -> tuple[Path, Path]:
        return self._home / "staging" / volume, self._home / "pods" / volume

    def use(self, volume: str, fs: str = "ext4") -> dict[str, float]:
        """Stage and publish: milliseconds of each."""
        staging, target = self.paths(volume)
        staging.mkdir(parents=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        same = {"volume_id": volume, "volume_capability": mounted(fs), "staging_target_path": str(staging)}
        return {"NodeStageVolume": self.call("NodeStageVolume", **same)[0],
                "NodePublishVolume": self.call("NodePublishVolume", **same, target_path=str(target))[0]}  # fmt: skip

    def leave(self, volume: str) -> dict[str, float]:
        """Unpublish and unstage."""
        staging, target = self.paths(volume)
        took = {"NodeUnpublishVolume": self.call("NodeUnpublishVolume", volume_id=volume, target_path=str(target))[0],
                "NodeUnstageVolume": self.call("NodeUnstageVolume", volume_id=volume,
                                               staging_target_path=str(staging))[0]}  # fmt: skip
        if staging.exists():
            staging.rmdir()
        return took

    def delete(self, volume: str) -> float:
        took, _ = self.call("DeleteVolume", volume_id=volume)
        self._volumes.remove(volume)
        return took


def mounted(fs: str) -> pb.VolumeCapability:
    """A mounted volume with one writer."""
    mode = pb.VolumeCapability.AccessMode.Mode.Value("SINGLE_NODE_WRITER")
    return pb.VolumeCapability(mount={"fs_type": fs}, access_mode={"mode": mode})


def keep(samples: Samples, what: str, who: str, value: float) -> None:
    samples.setdefault(what, {}).setdefault(who, []).append(value)


# ---- a volume's life


def lives(scratch: Path, options: argparse.Namespace, samples: Samples) -> None:
    """1 GiB, both file systems in an image, pools with reflink and without; every step by itself."""
    with ExitStack() as stack:
        sides = {fs: stack.enter_context(Driver(scratch, stack.enter_context(disk(scratch, fs, 8 * GIB))))
                 for fs in ("xfs", "ext4")}  # fmt: skip
        for number in range(-options.warmup, options.runs):
            for (pool, driver), fs in itertools.product(sides.items(), ("ext4", "xfs")):
                took = life(driver, f"life-{number}-{fs}", fs)
                for step, value in took.items() if number >= 0 else ():
                    keep(samples, f"life: {step}", f"{fs} on {pool}", value)


def life(driver: Driver, name: str, fs: str) -> dict[str, float]:
    """Milliseconds by call, and of all."""
    took: dict[str, float] = {}
    took["CreateVolume"], volume = driver.create(name, GIB, fs)
    took |= driver.use(volume, fs) | driver.leave(volume)
    took["DeleteVolume"] = driver.delete(volume)
    took[TOTAL] = sum(took.values())
    return took


# ---- copies of much data


def copies(scratch: Path, options: argparse.Namespace, samples: Samples) -> None:
    """Snapshot, restore and clone of 10 GiB with 2 GiB of data, in few pieces and in many, the volume in use."""
    with disk(scratch, "xfs", 40 * GIB) as pool, Driver(scratch, pool) as driver:
        volumes = {}
        for shape, flags in (("2 GiB in one file", ("--rw=write", "--bs=1M")),
                             ("2 GiB, 64 KiB pieces at random", ("--rw=randwrite", "--bs=64k"))):  # fmt: skip
            _, volume = driver.create(f"data-{len(volumes)}", 10 * GIB)
            driver.use(volume)
            run("fio", "--name=fill", f"--filename={driver.paths(volume)[1]}/data", f"--size={options.data}M",
                "--direct=1", "--ioengine=libaio", "--iodepth=8", "--fallocate=none", *flags)  # fmt: skip
            volumes[shape] = volume
        for number in range(options.runs):
            for shape, volume in volumes.items():
                copied(driver, volume, f"{number}", lambda what, value, shape=shape: keep(samples, what, shape, value))  # type: ignore[misc]


def copied(driver: Driver, volume: str, name: str, told: Any) -> None:
    """One snapshot, a volume of it, and a clone; all removed."""
    with open(driver.paths(volume)[1] / "more", "ab") as file:
        file.write(os.urandom(MIB))  # something to flush, as there is in a volume that is used
    took, answer = driver.call("CreateSnapshot", source_volume_id=volume, name=f"s-{volume[-6:]}-{name}")
    told("copy: snapshot", took)
    snapshot = answer.snapshot.snapshot_id
    sources = {"restore": {"snapshot": {"snapshot_id": snapshot}}, "clone": {"volume": {"volume_id": volume}}}
    for what, source in sources.items():
        took, made = driver.create(f"{what}-{volume[-6:]}-{name}", 10 * GIB, source=pb.VolumeContentSource(**source))
        told(f"copy: {what}", took)
        driver.delete(made)
    driver.call("DeleteSnapshot", snapshot_id=snapshot)


# ---- fio


def has_quotas(place: Path) -> bool:
    """Whether a directory's size can be kept there."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return probe(fd).project_quota
    finally:
        os.close(fd)


def disks(scratch: Path, options: argparse.Namespace, samples: Samples) -> None:
    """The same job in a volume and beside it, in turn: direct io, so that the cache is not measured."""
    pool = scratch / "fio"
    (pool / "beside").mkdir(parents=True)
    with Driver(scratch, pool) as driver:
        places = {POOL: pool / "beside"}
        for backend, fs in {"image": "ext4", **({"directory": ""} if has_quotas(pool) else {})}.items():
            _, volume = driver.create(f"fio-{backend}", 3 * options.file * MIB // 2, fs, backend=backend)
            driver.use(volume, fs)
            places[backend] = driver.paths(volume)[1]
        for place in places.values():  # laid out before: the pool's file system would be measured twice otherwise
            fio(place, options.file, 0, "--rw=write", "--bs=1M", "--iodepth=4")
        for number in range(options.fio_runs):
            for job, flags in FIO.items():
                for name, place in list(places.items())[:: 1 if number % 2 else -1]:
                    keep(samples, f"fio: {job}", name, fio(place, options.file, options.fio_seconds, *flags))


def fio(place: Path, megabytes: int, seconds: int, *flags: str) -> float:
    """MiB a second, or operations a second of small blocks."""
    timed = ("--time_based", f"--runtime={seconds}") if seconds else ()
    told = json.loads(run("fio", "--name=bench", f"--filename={place}/data", f"--size={megabytes}M", "--direct=1",
                          "--ioengine=libaio", "--overwrite=1", "--output-format=json", *timed, *flags))  # fmt: skip
    side = told["jobs"][0]["read" if "read" in flags[0] else "write"]
    return float(side["bw_bytes"]) / MIB if "--bs=1M" in flags else float(side["iops"])


# ---- a thousand


def crowd(scratch: Path, options: argparse.Namespace, samples: Samples) -> None:
    """Create, list, restart, and see that nothing is lost."""
    with disk(scratch, "xfs", 100 * GIB) as pool, Driver(scratch, pool) as driver:
        made = set()
        for number in range(CROWD):
            took, volume = driver.create(f"crowd-{number}", 64 * MIB)
            made.add(volume)
            keep(samples, "create", "image", took)
        for _ in range(options.runs):
            took, answer = driver.call("ListVolumes")
            keep(samples, "list", "in one answer", took)
            told(made, [entry.volume.volume_id for entry in answer.entries])
            start = time.perf_counter()
            told(made, list(pages(driver)))
            keep(samples, "pages", "all pages", (time.perf_counter() - start) * 1000)
        for _ in range(min(options.runs, 10)):
            driver.stop()
            keep(samples, "restart", "from its start", driver.start())
            told(made, [entry.volume.volume_id for entry in driver.call("ListVolumes")[1].entries])
        for volume in made:
            keep(samples, "delete", "image", driver.delete(volume))


def pages(driver: Driver) -> Iterator[str]:
    token = ""
    while True:
        _, answer = driver.call("ListVolumes", max_entries=100, starting_token=token)
        yield from (entry.volume.volume_id for entry in answer.entries)
        if not (token := answer.next_token):
            return


def told(made: set[str], listed: Sequence[str]) -> None:
    if sorted(made) != sorted(listed):
        raise SystemExit(f"{len(made)} volumes were made, {len(listed)} are listed")


# ---- wherry and its peers


def peers(options: argparse.Namespace, samples: Samples, versions: dict[str, str]) -> None:
    """Volumes by the command line, warm and cold, beside podman's and docker's; a run with one."""
    scratch = os.environ["BENCH_HOME"]
    common = {"image": "busybox:test", "registry": os.environ.get("REGISTRY", "127.0.0.1:5000"), "scratch": scratch,
              "payload": "true", "log_payload": "true", "top": str(TOP), "bundle": ""}  # fmt: skip
    tables = tomllib.loads((HERE / "peers.toml").read_text())
    found = measure.prepare(measure.installed(tables, ["wherry", "wherry-cold", "podman", "docker"], common))
    versions |= {peer.name: peer.version() for peer in found if peer.name != "wherry-cold"}
    ours = next(peer for peer in found if peer.name == "wherry")
    warm = measure.Warm(ours)
    try:
        warm.ready()
        work = [("volume", "volume_life", peer.name, peer) for peer in found if peer.has("volume_life")]
        work.append(("volume", "csi_life", "wherry, size=64M by CSI", ours))
        for kind in ("plain", "csi"):
            ours.do(f"make_{kind}", "none")
            work.append(("run", f"run_{kind}", {"plain": "a plain volume", "csi": "size=64M by CSI"}[kind], ours))
        for number in range(-options.warmup, options.runs):
            for what, step, who, peer in work:
                took = measure.take_sample(peer, measure.Workload(step), f"bench-{number + 100}")["wall_ms"]
                if number >= 0:
                    keep(samples, what, who, took)
        warm.check()
    finally:
        for step in ("drop_plain", "drop_csi"):
            with suppress(RuntimeError):
                ours.do(step, "none")
        warm.stop()
        end_drivers(ours.filled("state"))


def end_drivers(state: str) -> None:
    """The driver that wherry started on demand leaves by itself in half a minute: now."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if f"unix://{state}/csi-own.sock".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(int(pid), signal.SIGTERM)


# ---- the page


def title(what: str) -> str:
    kind, _, rest = what.partition(": ")
    names = {"life": "a 1 GiB volume: {}, ms", "copy": "{} of 10 GiB with 2 GiB of data, xfs with reflink, ms"}
    if kind == "fio":
        return f"fio: {rest}, {'MiB/s' if '1 MiB' in rest else 'operations a second'}"
    return names[kind].format(rest) if kind in names else WHAT[what]


def bars(samples: Samples) -> str:
    """What was asked for, and what was reached, by medians; the worst of several."""
    lines = ["| work | bar | reached | |", "|---|---|---|---|"]

    def add(work: str, bar: str, reached: str, good: bool) -> None:
        lines.append(f"| {work} | {bar} | {reached} | {report.verdict(good)} |")

    for name, rows in samples.get(f"life: {TOTAL}", {}).items():
        took = statistics.median(rows)
        work = f"create + publish + unpublish + delete of 1 GiB, image, {name}"
        add(work, f"at most {LIFE_BAR_MS} ms", f"{took:.0f} ms", took <= LIFE_BAR_MS)
    for what in ("snapshot", "restore", "clone"):
        for name, rows in samples.get(f"copy: {what}", {}).items():
            took = statistics.median(rows)
            add(f"{what} of 10 GiB, {name}", f"under {COPY_BAR_MS} ms", f"{took:.0f} ms", took < COPY_BAR_MS)
    for what, rows in samples.items():
        if what.startswith("fio: "):
            for name, least in FIO_BARS.items():
                if name in rows:
                    share = statistics.median(rows[name]) / statistics.median(rows[POOL])
                    add(title(what), f"{name} at least {least} of {POOL}", f"{share:.2f}", share >= least)
    for what, most in (("list", LIST_BAR_MS), ("restart", RESTART_BAR_MS)):
        for rows in samples.get(what, {}).values():
            took = statistics.median(rows)
            add(WHAT[what].removesuffix(", ms"), f"under {most} ms", f"{took:.0f} ms", took < most)
    return "\n".join(lines)


def tables(samples: Samples) -> str:
    """Medians and spread of everything."""
    lines: list[str] = []
    for what, rows in samples.items():
        lines += ["", f"### {title(what)}", "", "| | runs | median | quartiles | min to max |", "|---|---|---|---|---|"]
        for name, values in rows.items():
            low, half, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            lines.append(f"| {name} | {len(values)} | {half:.2f} | {low:.2f} to {high:.2f} "
                         f"| {min(values):.2f} to {max(values):.2f} |")  # fmt: skip
    return "\n".join(lines)


PAGE = """# Benchmarks of storage

Written by `scripts/bench storage --markdown docs/benchmarks-storage.md` on {date}:
{cpu}, {system}, kernel {kernel}, Python {python}.
Tasks waited for a CPU {before:.0f} % of the ten seconds before and {after:.0f} % of those at the end.

A call is timed by a client on the driver's socket. Pools are file systems of the bench's own on loop devices over
{under}, so an image volume's bytes pass two loop devices there; fio's pool is a directory of {under} itself, its volume
an image with ext4 on one loop device, direct io, {file} MiB of file, both sides in turn. The directory backend needs
project quotas, which that file system {quota}; a volume of it is a directory of the pool's own file system.

{versions}

{bars}

Other CSI drivers are not here: none could be had as a program that runs without a cluster, and LVM needs a device
mapper, which this kernel has not.

## Figures
{tables}
"""


def document(samples: Samples, versions: dict[str, str], before: float, options: argparse.Namespace) -> str:
    """The whole page."""
    scratch = os.environ["BENCH_HOME"]
    ext4 = run("sh", "-c", "mkfs.ext4 -V 2>&1").splitlines()[0]
    tools = {"e2fsprogs": ext4, "xfsprogs": run("mkfs.xfs", "-V").strip(), "fio": run("fio", "--version").strip()}
    listed = "\n".join(f"- {name}: {text}" for name, text in {**versions, **tools}.items())
    return PAGE.format(
        **measure.machine(), before=before, after=measure.busy_percent(), versions=listed, file=options.file,
        under=run("stat", "-f", "-c", "%T", scratch).strip().replace("ext2/ext3", "ext4"), bars=bars(samples),
        tables=tables(samples), quota="has" if has_quotas(Path(scratch)) else "has not",
    )  # fmt: skip


PARTS = {"life": lives, "copies": copies, "fio": disks, "crowd": crowd}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench storage", description=__doc__)
    parser.add_argument("--parts", default=",".join([*PARTS, "peers"]), help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--data", type=int, default=2048, help="MiB of data in the volume that is copied")
    parser.add_argument("--file", type=int, default=1024, help="MiB of fio's file")
    parser.add_argument("--fio-runs", type=int, default=5)
    parser.add_argument("--fio-seconds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write every sample here; parts that are there already stay")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    options = parser.parse_args()
    before, scratch = measure.busy_percent(), Path(os.environ["BENCH_HOME"])
    old = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    samples: Samples = {}
    versions: dict[str, str] = dict(old.get("versions", {}))
    for part in options.parts.split(","):
        if part == "peers":
            peers(options, samples, versions)
        else:
            PARTS[part](scratch, options, samples)
    samples = {**old.get("samples", {}), **samples}
    text = document(samples, versions, before, options)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"samples": samples, "versions": versions}))
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
