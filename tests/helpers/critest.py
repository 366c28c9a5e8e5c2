"""critest, the CRI's upstream conformance program: run against a socket, its report read; and containerd to judge the
judge by."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import criimages
from .csisanity import Report, read
from .gotools import tool
from .ociruntime import Space

__all__ = ["DIGEST", "containerd", "critest", "network"]

#: pulls an image by a digest that nobody can make again: the one case that needs the world's registry
DIGEST = "public image with digest"
SECONDS = 420

_NETWORK = {
    "cniVersion": "1.0.0", "name": "critest",
    "plugins": [
        {"type": "bridge", "bridge": "crit0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
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
bin_dir = "{plugins}"
conf_dir = "{place}/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
"""


def network(directory: Path) -> Path:
    """A CNI directory with a bridge whose pods reach the host and may have ports of it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10-critest.conflist").write_text(json.dumps(_NETWORK))
    return directory


def containerd(space: Space, place: Path, program: str, registry: str, plugins: str = "/usr/lib/cni") -> Path:
    """A containerd in there, its shims beside it; the socket. Its sandboxes hold one of the registry's images."""
    network(place / "net.d")
    hosts = criimages.hosts(place / "hosts.d", registry)
    (place / "containerd.toml").write_text(
        _CONTAINERD.format(place=place, pause=criimages.PAUSE, plugins=plugins, hosts=hosts)
    )
    space.env["PATH"] = f"{Path(program).parent}:{os.environ['PATH']}"
    socket = place / "cri.sock"
    ready = (tool("crictl"), "--runtime-endpoint", f"unix://{socket}", "version")
    space.daemon(place / "containerd.log", ready, program, "--config", place / "containerd.toml")
    return socket


def critest(space: Space, socket: Path, place: Path, *words: str, skip: str = DIGEST, focus: str = "") -> Report:
    """Run it all, or what `focus` (a regular expression) names, as the socket's only user. `place`: for its report."""
    place.mkdir(parents=True, exist_ok=True)
    report = place / "junit.xml"
    chosen = [f"--ginkgo.skip={skip}"] * bool(skip) + [f"--ginkgo.focus={focus}"] * bool(focus)
    done = space.run(
        tool("critest"), f"--runtime-endpoint=unix://{socket}", f"--ginkgo.junit-report={report}",
        "--ginkgo.no-color", "--ginkgo.seed=1", *chosen, *words, timeout=SECONDS, check=False,
    )  # fmt: skip
    (place / "critest.log").write_text(done.stdout + done.stderr)
    assert report.exists(), f"critest: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    return read(report)
