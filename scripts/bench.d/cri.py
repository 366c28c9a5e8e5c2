"""A kubelet's calls on containerd and on wherryd, interleaved (A B A B): a pod's life, 110 pods, 1,000 containers.

Started by `scripts/bench cri` inside the bench's namespaces, where it starts and ends the runtimes itself. Each is
there twice: with the reference's CNI plugins and with ours, by the same list. Times are a gRPC client's on the socket.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import measure
import report

from wherry.daemon.cri import api_pb2 as api

TOP = Path(__file__).resolve().parents[2]
GROUPS = Path("/sys/fs/cgroup")
REFERENCE_PLUGINS = "/usr/lib/cni"
PAYLOAD = ("sleep", "100000")
PODS, CONTAINERS, PER_POD = 110, 1000, 100
DEADLINE_SECONDS = 120
THEIRS, OURS = "containerd", "wherryd"
NEWER = f"{THEIRS} (newer)"
Json = dict[str, Any]
Samples = dict[str, dict[str, list[float]]]  # by what was done, by whom

START = "RunPodSandbox + CreateContainer + StartContainer"
END = "StopPodSandbox + RemovePodSandbox"
#: (what, whose plugins, the most that ours may take of containerd's)
BARS = ((START, "reference", 0.4), (START, "own", 0.4), (END, "reference", 0.5), (END, "own", 0.5))
LISTS = ("ListContainers", "ListContainerStats", "ListPodSandbox")
MEMORY = "110 pods: memory of each, MiB of PSS"
LIST_RATIO, LIST_MS, RSS_MIB, POD_MIB = 1.0, 50, 150, 1.0

PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
CONTAINERD = """version = 2
root = "{home}/root"
state = "{run}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{registry}/pause:test"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{home}/net.d"
"""


class Kind(NamedTuple):
    """A program and whose CNI plugins it calls."""

    name: str
    program: str
    plugins: str  # reference, own

    @property
    def title(self) -> str:
        """As the tables call it."""
        return f"{self.name}, {self.plugins} plugins"


class Runtime:
    """One runtime that runs: its sockets, its process, what a kubelet asks of it."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], socket: Path) -> None:
        self.kind, self.process = kind, process
        options = [("grpc.max_receive_message_length", 1 << 26)]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=options)
        self.image = f"{os.environ.get('REGISTRY', '127.0.0.1:5000')}/busybox:test"

    def call(self, method: str, request: Any, answer: Any) -> Any:
        """One unary call of the CRI."""
        service = "ImageService" if "Image" in method else "RuntimeService"
        name = f"/runtime.v1.{service}/{method}"
        ask = self._channel.unary_unary(name, request_serializer=type(request).SerializeToString,
                                        response_deserializer=answer.FromString)  # fmt: skip
        return ask(request, timeout=DEADLINE_SECONDS)

    def ready(self) -> bool:
        """Whether it answers and its network is ready."""
        with suppress(grpc.RpcError):
            conditions = self.call("Status", api.StatusRequest(), api.StatusResponse).status.conditions
            return {"RuntimeReady", "NetworkReady"} <= {one.type for one in conditions if one.status}
        return False

    def version(self) -> str:
        """Its name and version."""
        said = self.call("Version", api.VersionRequest(version="v1"), api.VersionResponse)
        return f"{said.runtime_name} {said.runtime_version}"

    def pull(self) -> None:
        """Fetch the payload's image."""
        spec = api.ImageSpec(image=self.image)
        self.call("PullImage", api.PullImageRequest(image=spec), api.PullImageResponse)

    def run_pod(self, config: api.PodSandboxConfig) -> str:
        """RunPodSandbox; its id."""
        return str(self.call("RunPodSandbox", api.RunPodSandboxRequest(config=config),
                             api.RunPodSandboxResponse).pod_sandbox_id)  # fmt: skip

    def create(self, pod: str, config: api.PodSandboxConfig, name: str) -> str:
        """CreateContainer of the payload; its id."""
        own = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name), image=api.ImageSpec(image=self.image), command=PAYLOAD,
            log_path=f"{name}.log", linux=api.LinuxContainerConfig(security_context=security()),
        )  # fmt: skip
        request = api.CreateContainerRequest(pod_sandbox_id=pod, config=own, sandbox_config=config)
        return str(self.call("CreateContainer", request, api.CreateContainerResponse).container_id)

    def start(self, container: str) -> None:
        """StartContainer."""
        self.call("StartContainer", api.StartContainerRequest(container_id=container), api.StartContainerResponse)

    def stop_pod(self, pod: str) -> None:
        """StopPodSandbox."""
        self.call("StopPodSandbox", api.StopPodSandboxRequest(pod_sandbox_id=pod), api.StopPodSandboxResponse)

    def remove_pod(self, pod: str) -> None:
        """RemovePodSandbox."""
        self.call("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=pod), api.RemovePodSandboxResponse)

    def listed(self, method: str) -> int:
        """One of the lists; how many it told."""
        request, answer = getattr(api, f"{method}Request")(), getattr(api, f"{method}Response")
        (entries,) = (value for _, value in self.call(method, request, answer).ListFields())
        return len(entries)

    def pods(self) -> list[str]:
        """Ids of the pods that are ready."""
        ready = api.PodSandboxFilter(state=api.PodSandboxStateValue(state=api.SANDBOX_READY))
        request = api.ListPodSandboxRequest(filter=ready)
        return [one.id for one in self.call("ListPodSandbox", request, api.ListPodSandboxResponse).items]

    def resident_mib(self) -> float:
        """VmRSS of the daemon."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def clear(self) -> None:
        """Remove all pods that are there, some at a time."""
        found = self.call("ListPodSandbox", api.ListPodSandboxRequest(), api.ListPodSandboxResponse).items
        several([lambda pod=one.id: (self.stop_pod(pod), self.remove_pod(pod)) for one in found])

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def security() -> Any:
    """What most pods ask: the runtime's default seccomp profile."""
    profile = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    return api.LinuxContainerSecurityContext(seccomp=profile)


def pod_config(name: str, *, host: bool = False) -> api.PodSandboxConfig:
    """A pod as a kubelet asks for it; `host`: on the host's network."""
    options = api.NamespaceOption(network=api.NODE if host else api.POD, pid=api.CONTAINER)
    context = api.LinuxSandboxSecurityContext(
        namespace_options=options, seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    )
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="bench"), hostname="" if host else name,
        log_directory=f"{os.environ['BENCH_HOME']}/logs/{name}", labels={"app": "bench"},
        dns_config=api.DNSConfig(servers=["10.96.0.10"], searches=["bench.svc.cluster.local"]),
        linux=api.LinuxPodSandboxConfig(security_context=context),
    )  # fmt: skip


def several(work: Sequence[Callable[[], Any]], threads: int = 4) -> None:
    """Do it, four at a time, as a kubelet has several workers."""
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(one) for one in work]:
            done.result()


# ---- the runtimes


def conflist(number: int, home: Path) -> Json:
    """The same list for all, each with a bridge and a subnet of its own."""
    ipam = {"type": "host-local", "dataDir": str(home / "leases"), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": f"10.{70 + number}.0.0/16"}]]}  # fmt: skip
    bridge = {"type": "bridge", "bridge": f"benchcri{number}", "isGateway": True, "ipMasq": True, "hairpinMode": True,
              "ipam": ipam}  # fmt: skip
    return {"cniVersion": "1.0.0", "name": f"bench{number}",
            "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}  # fmt: skip


def own_plugins(scratch: Path) -> str:
    """The directory of our plugins, made by the command that a node uses."""
    directory = scratch / "own-cni"
    directory.mkdir()
    words = (TOP / ".venv/bin/wherry", "--root", scratch / "own-root", "--state", scratch / "run/own")
    measure.run_command([*map(str, words), "cni", "install", str(directory)], {**os.environ, "WHERRY_WARM": "off"})
    return str(directory)


def pause_image(scratch: Path, registry: str) -> None:
    """What holds a pod's namespaces for containerd: a static program that waits; pushed to the bench's registry."""
    source, program, layout = scratch / "pause.c", scratch / "pause", scratch / "pause-image"
    source.write_text(PAUSE)
    image, env = f"{layout}:pause", dict(os.environ)
    for words in (
        ["gcc", "-Os", "-static", "-s", "-o", str(program), str(source)],
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", image],
        ["umoci", "insert", "--image", image, str(program), "/pause"],
        ["umoci", "config", "--image", image, "--config.entrypoint", "/pause"],
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{image}",
         f"docker://{registry}/pause:test"],
    ):  # fmt: skip
        measure.run_command(words, env)


def containerd(kind: Kind, home: Path, run: Path, plugins: str) -> tuple[list[str], Path]:
    """Its command line and socket."""
    registry, socket = os.environ.get("REGISTRY", "127.0.0.1:5000"), run / "cri.sock"
    text = CONTAINERD.format(home=home, run=run / "state", socket=socket, plugins=plugins, registry=registry)
    (home / "config.toml").write_text(text)
    return [kind.program, "--config", str(home / "config.toml"), "--log-level", "error"], socket


def wherryd(kind: Kind, home: Path, run: Path, plugins: str) -> tuple[list[str], Path]:
    """Its command line and socket."""
    settings = {"cni_conf": str(home / "net.d"), "cni_path": plugins, "pod_cgroup_driver": "cgroupfs"}
    (home / "wherry.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    words = (kind.program, "--root", home / "root", "--state", run / "state", "--config", home / "wherry.toml")
    return [str(word) for word in words], run / "state/cri.sock"


PROGRAMS = {THEIRS: containerd, OURS: wherryd}


@contextmanager
def groups_as_before() -> Iterator[None]:
    """containerd leaves the parents of its pods' cgroups behind."""
    found = set(GROUPS.glob("*/k8s.io"))
    yield
    for directory in set(GROUPS.glob("*/k8s.io")) - found:
        with suppress(OSError):
            directory.rmdir()


@contextmanager
def running(kind: Kind, number: int, scratch: Path, plugins: str) -> Iterator[Runtime]:
    """One runtime, from its start to its end; what it says is in a file beside its data."""
    home, run = scratch / f"cri{number}", scratch / f"run/cri{number}"
    for directory in (home / "net.d", run):
        directory.mkdir(parents=True)
    (home / "net.d/10-bench.conflist").write_text(json.dumps(conflist(number, home)))
    words, socket = PROGRAMS[kind.name.partition(" ")[0]](kind, home, run, plugins)
    env = {**os.environ, "PATH": f"{Path(kind.program).parent}:{os.environ['PATH']}"}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
    runtime = Runtime(kind, process, socket)
    try:
        deadline = time.monotonic() + 30
        while not runtime.ready():
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{kind.title} did not become ready:\n{(home / 'log').read_text()[-4000:]}")
            time.sleep(0.1)
        runtime.pull()
        yield runtime
        runtime.clear()
    finally:
        runtime.close()


def kinds(options: argparse.Namespace) -> list[Kind]:
    """Which runtimes there are here, with whose plugins."""
    programs = {THEIRS: shutil.which("containerd") or "", OURS: str(TOP / ".venv/bin/wherryd")}
    if options.containerd:
        programs[NEWER] = options.containerd
    wanted = options.peers.split(",")
    return [Kind(name, program, plugins) for name, program in programs.items() if program
            for plugins in options.plugins.split(",") if name.partition(" ")[0] in wanted]  # fmt: skip


# ---- what is measured


def lives(runtimes: list[Runtime], options: argparse.Namespace, samples: Samples) -> None:
    """A pod with one container, from nothing to nothing."""
    for host in (False, True):
        for number in range(-options.warmup, options.runs):
            for runtime in runtimes:
                took = life(runtime, f"life-{int(host)}-{number + options.warmup}", host=host)
                if number >= 0:
                    keep(samples, runtime, {f"{what}{', host network' * host}": ms for what, ms in took.items()})
                time.sleep(measure.PAUSE)


def life(runtime: Runtime, name: str, *, host: bool) -> dict[str, float]:
    """Milliseconds of each call of it, and of the two sums that a kubelet waits for."""
    config = pod_config(name, host=host)
    took: dict[str, float] = {}

    def timed(what: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = action()
        took[what] = (time.perf_counter() - start) * 1000
        return result

    pod = timed("RunPodSandbox", lambda: runtime.run_pod(config))
    container = timed("CreateContainer", lambda: runtime.create(pod, config, "one"))
    timed("StartContainer", lambda: runtime.start(container))
    time.sleep(measure.PAUSE)
    timed("StopPodSandbox", lambda: runtime.stop_pod(pod))
    timed("RemovePodSandbox", lambda: runtime.remove_pod(pod))
    sums = {what: sum(took[part] for part in what.split(" + ")) for what in (START, END)}
    return {**sums, **took}


def keep(samples: Samples, runtime: Runtime, took: dict[str, float]) -> None:
    """One row of figures."""
    for what, value in took.items():
        samples.setdefault(what, {}).setdefault(runtime.kind.title, []).append(value)


def node(runtimes: list[Runtime], options: argparse.Namespace, samples: Samples) -> None:
    """A full node: 110 pods with a container each."""
    for runtime in runtimes:
        before, start = measure.pss_by_program(), time.perf_counter()
        several([partial(one_pod, runtime, f"node-{number}", 1) for number in range(options.pods)])
        keep(samples, runtime, {"110 pods: all running, s": time.perf_counter() - start})
        time.sleep(2)
        growth = measure.pss_by_program()
        growth.subtract(before)
        keep(samples, runtime, {
            "110 pods: ready": len(runtime.pods()), "110 pods: daemon's RSS, MiB": runtime.resident_mib(),
            MEMORY: sum(growth.values()) / options.pods,
        })  # fmt: skip
        growing = ", ".join(f"{name} {size:.1f}" for name, size in growth.most_common(5) if size > 1)
        print(f"{runtime.kind.title}: grew by MiB of PSS: {growing}", file=sys.stderr)
    lists(runtimes, options, samples, "110 pods: ")
    for runtime in runtimes:
        start = time.perf_counter()
        runtime.clear()
        keep(samples, runtime, {"110 pods: all removed, s": time.perf_counter() - start})


def one_pod(runtime: Runtime, name: str, containers: int) -> None:
    """A pod with as many containers, all running."""
    config = pod_config(name)
    pod = runtime.run_pod(config)
    for number in range(containers):
        runtime.start(runtime.create(pod, config, f"c{number}"))


def crowd(runtimes: list[Runtime], options: argparse.Namespace, samples: Samples) -> None:
    """1,000 running containers in ten pods, for each runtime at the same time."""
    for runtime in runtimes:
        per = min(PER_POD, options.containers)
        start = time.perf_counter()
        several([partial(one_pod, runtime, f"crowd-{number}", per) for number in range(options.containers // per)])
        keep(samples, runtime, {"1,000 containers: all running, s": time.perf_counter() - start,
                                "1,000 containers: daemon's RSS, MiB": runtime.resident_mib()})  # fmt: skip
    lists(runtimes, options, samples, "1,000 containers: ")
    for runtime in runtimes:
        runtime.clear()


def lists(runtimes: list[Runtime], options: argparse.Namespace, samples: Samples, prefix: str) -> None:
    """Milliseconds of each list."""
    for what in LISTS:
        for number in range(-options.warmup, options.runs):
            for runtime in runtimes:
                start = time.perf_counter()
                runtime.listed(what)
                if number >= 0:
                    keep(samples, runtime, {f"{prefix}{what}": (time.perf_counter() - start) * 1000})


PARTS = {"life": lives, "node": node, "crowd": crowd}


# ---- the report


def middle(samples: Samples, what: str, name: str, plugins: str = "reference") -> float | None:
    """The median of a row."""
    rows = samples.get(what, {}).get(Kind(name, "", plugins).title)
    return statistics.median(rows) if rows else None


def bars(samples: Samples) -> str:
    """What was wished for and what was reached."""
    lines = ["### Bars", "", "| work | bar | reached | |", "|---|---|---|---|"]

    def ratio(work: str, what: str, plugins: str, most: float, peer: str) -> None:
        ours, theirs = middle(samples, what, OURS, plugins), middle(samples, what, peer, plugins)
        if ours and theirs:
            part = ours / theirs
            lines.append(f"| {work} | at most {most} of {peer}'s | {part:.2f} | {report.verdict(part <= most)} |")

    def most(work: str, what: str, limit: float, unit: str) -> None:
        ours = middle(samples, what, OURS)
        if ours is not None:
            lines.append(f"| {work} | at most {limit:g} {unit} | {ours:.2f} {unit} | {report.verdict(ours <= limit)} |")

    for peer in (THEIRS, NEWER):
        for what, plugins, limit in BARS:
            ratio(f"{what}, with CNI, {plugins} plugins on both sides", what, plugins, limit, peer)
        for what in LISTS[:2]:
            ratio(f"{what} with 1,000 containers", f"1,000 containers: {what}", "reference", LIST_RATIO, peer)
    if (ready := middle(samples, "110 pods: ready", OURS)) is not None:
        lines.append(f"| pods that run on one node | {PODS} | {ready:g} | {report.verdict(ready >= PODS)} |")
    most("110 pods: ListPodSandbox", "110 pods: ListPodSandbox", LIST_MS, "ms")
    most("110 pods: ListContainers", "110 pods: ListContainers", LIST_MS, "ms")
    most("110 pods: wherryd's RSS", "110 pods: daemon's RSS, MiB", RSS_MIB, "MiB")
    most("110 pods: cost of each (PSS of all but the containers)", MEMORY, POD_MIB, "MiB")
    return "\n".join(lines)


def tables(samples: Samples) -> str:
    """Medians and spread of everything."""
    lines: list[str] = []
    for what, rows in samples.items():
        unit = "" if what.startswith("110 pods: ready") or what.endswith(("MiB", ", s", "PSS")) else ", ms"
        lines += ["", f"### {what}{unit}", "", "| | runs | median | quartiles | min to max |", "|---|---|---|---|---|"]
        for name, values in rows.items():
            low, half, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            lines.append(f"| {name} | {len(values)} | {half:.2f} | {low:.2f} to {high:.2f} "
                         f"| {min(values):.2f} to {max(values):.2f} |")  # fmt: skip
    return "\n".join(lines)


PAGE = """# Benchmarks of the CRI

Written by `scripts/bench cri --markdown docs/benchmarks-cri.md` on {date}:
{cpu}, {system}, kernel {kernel}, Python {python}.
Tasks waited for a CPU {before:.0f} % of the ten seconds before and {after:.0f} % of those at the end.

One gRPC client calls each runtime in turn (A B A B), in the same network and mount namespace; run states are on a
tmpfs. The pod asks what most ask: namespaces of its own, DNS, a log, the runtime's default seccomp profile; its
container is `sleep`, of an image that is there. CNI: bridge with host-local and ipMasq, portmap, by the same list; once
the reference's plugins on both sides, once ours on both. The end of a pod includes killing its running container.
The 1,000 containers are in ten pods, running on both sides at once while the lists are asked in turn. Memory is what
all processes outside the pods grew by (PSS), the daemon's own growth included; containerd's pause process is inside.

{versions}

{bars}

## Figures
{tables}
"""


def document(samples: Samples, versions: dict[str, str], before: float) -> str:
    """The whole page."""
    listed = "\n".join(f"- {name}: {text}" for name, text in versions.items())
    return PAGE.format(**measure.machine(), before=before, after=measure.busy_percent(), versions=listed,
                       bars=bars(samples), tables=tables(samples))  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench cri", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--peers", default=f"{THEIRS},{OURS}", help="default: %(default)s")
    parser.add_argument("--plugins", default="reference,own", help="default: %(default)s")
    parser.add_argument("--containerd", default="", help="a further containerd (its shim beside it)")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--pods", type=int, default=PODS)
    parser.add_argument("--containers", type=int, default=CONTAINERS)
    parser.add_argument("--json", type=Path, help="write every sample here; parts that are there already stay")
    parser.add_argument("--markdown", type=Path, help="write the report here")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    before, scratch = measure.busy_percent(), Path(os.environ["BENCH_HOME"])
    pause_image(scratch, os.environ.get("REGISTRY", "127.0.0.1:5000"))
    plugins = {"reference": REFERENCE_PLUGINS, "own": own_plugins(scratch)}
    old = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    samples: Samples = {}
    with ExitStack() as stack:
        stack.enter_context(groups_as_before())
        runtimes = [stack.enter_context(running(kind, number, scratch, plugins[kind.plugins]))
                    for number, kind in enumerate(kinds(options))]  # fmt: skip
        versions = {**old.get("versions", {}), **{one.kind.title: one.version() for one in runtimes}}
        for part in options.parts.split(","):
            # the plugins are measured by a pod's life; a full node and lists do not depend on them
            first = runtimes if part == "life" else [one for one in runtimes if one.kind.plugins == "reference"]
            PARTS[part](first, options, samples)
    samples = {what: {**old.get("samples", {}).get(what, {}), **samples.get(what, {})}
               for what in {**old.get("samples", {}), **samples}}  # fmt: skip
    text = document(samples, versions, before)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"samples": samples, "versions": versions}))
    if options.markdown:
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
