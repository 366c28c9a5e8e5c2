"""CRI runtimes in a Space, with the images of criimages and pods on a bridge: wherryd, and containerd to judge judges.

Each is told by its socket, and can be killed and started again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from audit import cgroup_mounts
from wherry.engine import cni

from . import criimages
from .gotools import tool
from .ociruntime import Space
from .tools import run
from .wherry import until

__all__ = ["Runtime", "chosen", "containerd", "network", "wherryd"]

PODS = "10.88.0.0/16"
_BRIDGE = "crit0"
#: held by who speaks through a runtime, or kills it
SPEAKING = threading.RLock()
SEED = int(os.environ.get("WHERRY_SEED") or time.time())
_NETWORK = {
    "cniVersion": "1.0.0", "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": _BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip

_CONTAINERD = """version = 2
root = "{place}/root"
state = "{place}/state"
[grpc]
address = "{place}/cri.sock"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{pause}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{place}/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
"""


class Runtime:
    """A program with a CRI socket: `kill()` is the power cut of it alone, `start()` its return."""

    def __init__(self, where: Space, place: Path, socket: Path, *words: object, outside: Sequence[Path] = ()) -> None:
        self.space, self.place, self.socket, self._words, self._outside = where, place, socket, words, outside
        self.log = place / "runtime.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with open(self.log, "ab") as log:
            self._process = self.space.popen(*self._words, stdout=log, stderr=log)
        self.space.daemons.append(self._process)
        until(self._answers, 60, f"{self._words[0]} does not answer: {self.log}")

    def kill(self) -> None:
        """SIGKILL to the program itself."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(20)

    @property
    def pid(self) -> int:
        """As it is seen from outside of the space: its parent is the nsenter that brought it in."""
        assert self._process is not None
        own = self._process.pid
        inner = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return int(inner[0]) if Path(f"/proc/{own}/comm").read_text() == "nsenter\n" else own

    @contextlib.contextmanager
    def killed_over_and_over(self, seconds: float) -> Iterator[list[float]]:
        """SIGKILL and a new start about every so many seconds (the moments are given), but not in the midst of a call
        that speaks through it: whose stream breaks has lost it, and nobody else is to blame."""
        over, moments, chance = threading.Event(), list[float](), random.Random(SEED)

        def kill() -> None:
            while not over.wait(chance.uniform(0.5, 1.5) * seconds):
                with SPEAKING:
                    self.kill()
                    moments.append(time.time())
                    self.start()
                    over.wait(2)  # until a kubelet has its connection again (gRPC's backoff is a second)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield moments
        finally:
            over.set()
            thread.join()

    def crictl(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        with SPEAKING:
            return self._crictl(*words, **options)

    def _crictl(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return run(*self.command(*words), **options)

    def command(self, *words: object) -> list[str]:
        """crictl's command line."""
        return [str(word) for word in (tool("crictl"), "--timeout=30s", f"--runtime-endpoint=unix://{self.socket}",
                                       f"--image-endpoint=unix://{self.socket}", *words)]  # fmt: skip

    def end(self) -> None:
        """Every pod goes, then the program, told to, and what it had outside of `place`."""
        if pods := self.crictl("pods", "-q").stdout.split():
            self.crictl("rmp", "-f", *pods, timeout=120)
        os.kill(self.pid, signal.SIGTERM)
        self.wait()
        for words in (("ip", "link", "del", _BRIDGE), ("nft", "delete", "table", "inet", "wherry")):
            run(*words, check=False)  # a network stays when its last pod goes; what comes after may flush all rules
        for directory in self._outside:
            until(functools.partial(_removed, directory), 10, f"{directory} stays")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        return self.crictl("version", check=False).returncode == 0


def chosen(where: Space, place: Path, registry: str, test_id: str) -> Runtime:
    """wherryd; WHERRY_TEST_CRI (containerd or a path of it) puts another in its place: is a failure ours?"""
    other = os.environ.get("WHERRY_TEST_CRI")
    return containerd(where, place, other, registry) if other else wherryd(where, place, registry, test_id)


def wherryd(where: Space, place: Path, registry: str, test_id: str, settings: str = "") -> Runtime:
    """One with places of its own; its plugins are wherry's."""
    place.mkdir(parents=True, exist_ok=True)
    criimages.hosts(place / "hosts.d", registry)
    config, state = place / "wherry.toml", Path(f"/run/{test_id}-state")
    (place / "cni-bin").mkdir(exist_ok=True)
    cni.install(str(place / "cni-bin"))  # else the host's own would be taken, where there are any
    lines = f'cgroup_parent = "/{test_id}"\ncni_conf = "{network(place / "net.d")}"\nnri_socket = "{state}/nri.sock"\n'
    config.write_text(f'{lines}cni_path = "{place / "cni-bin"}"\n{settings}')
    program = Path(sys.executable).with_name("wherryd")
    outside = (state, *(Path(mount) / test_id for mount, _ in cgroup_mounts()))
    return Runtime(where, place, state / "cri.sock", program, "--root", place / f"{test_id}-root", "--state", state,
                   "--config", config, outside=outside)  # fmt: skip


def _removed(directory: Path) -> bool:
    """Whether it is gone now: state is files, a cgroup is directories only."""
    if not directory.is_relative_to("/sys/fs/cgroup"):
        shutil.rmtree(directory)
        return True
    for inner, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(inner)
    return not directory.exists()


def containerd(where: Space, place: Path, program: str, registry: str) -> Runtime:
    """One with places of its own, its shims beside it, the reference plugins."""
    network(place / "net.d")
    hosts = criimages.hosts(place / "hosts.d", registry)
    settings = place / "containerd.toml"
    settings.write_text(_CONTAINERD.format(place=place, pause=criimages.PAUSE, hosts=hosts))
    where.env["PATH"] = f"{Path(program).parent}:{os.environ['PATH']}"
    return Runtime(where, place, place / "cri.sock", program, "--config", settings)


def network(directory: Path) -> Path:
    """A CNI directory with a bridge whose pods reach the host and may have ports of it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10-pods.conflist").write_text(json.dumps(_NETWORK))
    return directory
