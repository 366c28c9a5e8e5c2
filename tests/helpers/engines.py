"""Engines that call our programs: podman, containerd by ctr and by CRI, each with places of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import gotools, hostile, tools
from .ociruntime import Space
from .wherry import until

__all__ = ["IMAGE", "PAUSE", "Containerd", "Crictl", "Podman", "kubernetes", "packed"]

IMAGE, PAUSE = "localhost/busybox:latest", "localhost/pause:latest"


def packed(image: str, place: Path, name: str) -> Path:
    """The image of a layout as docker's archive, under this name."""
    tools.need("skopeo")
    archive = place / f"{time.monotonic_ns()}.tar"
    words = ("skopeo", "--insecure-policy", "copy", "-q", f"{image}:busybox:latest", f"docker-archive:{archive}:{name}")
    tools.run(*words)
    return archive


class Podman:
    """`podman("run", ...)` with a store, settings and a runtime of its own."""

    def __init__(
        self, space: Space, directory: Path, runtime: Path, name: str, *, plugins: Path | None = None
    ) -> None:
        """`plugins`: a directory of CNI plugins, called for the lists in `directory`/networks."""
        self.space, self.name = space, name
        cni = f'network_backend = "cni"\ncni_plugin_dirs = ["{plugins}"]\n' if plugins else ""
        settings = directory / "containers.conf"
        settings.write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'runtime_supports_json = ["{runtime.name}"]\n[network]\nnetwork_config_dir = "{directory}/networks"\n{cni}'
        )
        space.env["CONTAINERS_CONF"] = str(settings)
        self.words = (
            "podman", "--runtime", runtime, "--root", directory / "store", "--runroot", directory / "run",
            "--tmpdir", directory / "tmp", "--storage-driver", "vfs", "--log-level", "error",
        )  # fmt: skip
        #: without CAP_SYS_RESOURCE podman's default limits can't be set
        self.flags = ("--cgroup-parent", f"/{name}", "--ulimit", "nofile=1000:1000",
                      "--ulimit", "nproc=10000:10000", "--log-driver", "k8s-file")  # fmt: skip
        self.network = "none"

    def __call__(self, *words: object, **options: Any) -> Any:
        return self.space.run(*self.words, *words, **options)

    def run(self, *words: object, **options: Any) -> Any:
        return self("run", "--network", self.network, *self.flags, *words, **options)

    def out(self, *words: object) -> str:
        return str(self(*words).stdout.strip())

    def inspect(self, ref: str) -> Any:
        return json.loads(self.out("container", "inspect", ref))[0]

    def load(self, image: str) -> None:
        """The image of a layout as IMAGE."""
        self("pull", "-q", f"{image}:busybox:latest")
        self("tag", self.out("images", "-q"), IMAGE)


CRI_PLUGIN = '"io.containerd.grpc.v1.cri"'
CRI = """[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "ours"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ours]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ours.options]
BinaryName = "{runtime}"
Root = "{place}/state"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{place}/cni/bin"
conf_dir = "{place}/cni/net.d"
"""


class Containerd:
    """`containerd("run", ...)` is ctr at a containerd of its own; `task` the verbs of running containers."""

    def __init__(self, space: Space, runtime: Path, name: str, *, cri: bool = False) -> None:
        place = runtime.parent
        self.space, self.place, self.name = space, place, name
        self.socket = place / "containerd.sock"
        settings, more = place / "containerd.toml", CRI.format(place=place, runtime=runtime, pause=PAUSE) if cri else ""
        settings.write_text(
            f'version = 2\nroot = "{place}/containerd"\nstate = "{place}/containerd-run"\n'
            f"disabled_plugins = [{'' if cri else CRI_PLUGIN}]\n"
            f'[grpc]\naddress = "{self.socket}"\n{more}'
        )
        self.words = ("ctr", "--address", self.socket, "--namespace", name)
        #: ctr and docker give the runtime a --root; containerd adds the namespace to it
        self.flags = ("--snapshotter", "native", "--runc-binary", runtime, "--runc-root", place / "state",
                      "--fifo-dir", place / "fifo")  # fmt: skip
        space.daemon(place / "containerd.log", (*self.words, "version"), "containerd", "--config", settings)

    def __call__(self, *words: object, **options: Any) -> Any:
        return self.space.run(*self.words, *words, **options)

    def run(self, *words: object, name: str, **options: Any) -> Any:
        """`run` of the flags, then IMAGE, then the command."""
        at = words.index(IMAGE) + 1
        return self("run", *self.flags, *self.cgroup(name), *words[:at], f"{self.name}-{name}", *words[at:], **options)

    def load(self, image: str, name: str) -> None:
        self("image", "import", "--snapshotter", "native", packed(image, self.place, name))

    def cgroup(self, name: str) -> tuple[str, str]:
        return "--cgroup", f"/{self.name}/{name}"

    def exec(self, *words: object, **options: Any) -> Any:
        unique = f"e{time.monotonic_ns()}"
        return self("task", "exec", "--fifo-dir", self.place / "fifo", "--exec-id", unique, *words, **options)


class Crictl:
    """`crictl("runp", ...)` at a containerd whose default runtime is ours, and one pod."""

    def __init__(self, containerd: Containerd, program: Path, *, network: int, **more: object) -> None:
        """`network`: 2 for a pod in the host's, 0 for one of its own; `more` of the pod's configuration."""
        self.space, self.place = containerd.space, containerd.place
        self.words = (program, "--runtime-endpoint", f"unix://{containerd.socket}", "--image-endpoint",
                      f"unix://{containerd.socket}", "--timeout", "20s")  # fmt: skip
        context = {"namespace_options": {"network": network}}
        pod = {
            "metadata": {"name": "pod", "namespace": "default", "uid": containerd.name, "attempt": 0},
            "log_directory": str(self.place / "logs"),
            "linux": {"cgroup_parent": f"/{containerd.name}", "security_context": context},
            **more,
        }
        self.pod_file, self.pod = self.write("pod", pod), ""

    def start_pod(self) -> None:
        """Once CRI has seen the images, which came in beside it."""
        for image in (IMAGE, PAUSE):
            until(lambda name=image: self("inspecti", name, check=False).returncode == 0)
        self.pod = self.out("runp", self.pod_file)

    def next_pod(self) -> None:
        """Remove the pod; another takes its place."""
        self("stopp", self.pod)
        self("rmp", self.pod)
        self.pod = self.out("runp", self.pod_file)

    def __call__(self, *words: object, **options: Any) -> Any:
        return self.space.run(*self.words, *words, **options)

    def out(self, *words: object) -> str:
        return str(self(*words).stdout.strip())

    def write(self, name: str, value: object) -> Path:
        file = self.place / f"{name}.json"
        file.write_text(json.dumps(value))
        return file

    def create(self, name: str, *command: str, **more: object) -> str:
        config = {"metadata": {"name": name, "attempt": 0}, "image": {"image": IMAGE}, "command": command,
                  "log_path": f"{name}.log", "linux": {}, **more}  # fmt: skip
        return self.out("create", self.pod, self.write(name, config), self.pod_file)

    def status(self, ref: str) -> Any:
        return json.loads(self.out("inspect", ref))["status"]


@contextlib.contextmanager
def kubernetes(runtime: Path, image: str, name: str, scratch: Path, *, network: int = 2, **more: object
               ) -> Iterator[Crictl]:  # fmt: skip
    """A containerd with CRI, and a pod in it, which is removed at the end. Its CNI directories are `cni/bin` and
    `cni/net.d` beside the runtime."""
    tools.need("containerd", "ctr", "containerd-shim-runc-v2")
    program = gotools.tool("crictl")
    with Space(private=("/run/containerd", "/run/netns", "/var/lib/cni")) as space:
        containerd = Containerd(space, runtime, "k8s.io", cri=True)
        containerd.load(image, IMAGE)
        containerd.load(hostile.image(image, scratch, Cmd=["sleep", "100000"]), PAUSE)
        containerd.name = name
        own = Crictl(containerd, program, network=network, **more)
        own.start_pod()
        yield own
        own("stopp", own.pod)
        own("rmp", own.pod)
