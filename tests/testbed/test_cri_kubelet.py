"""A real kubelet with trees of cgroups of its own, on wherryd: pods and containers lie in them with the limits that
their manifests say, by both drivers, and what is used comes back as the kubelet's summary. Skips where no kubelet is
built (scripts/test-kubernetes builds it)."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from helpers import criimages, runtimes
from helpers.cluster import Kubelet, eventually
from helpers.criimages import BUSYBOX
from helpers.ociruntime import Space
from helpers.registry import Registry
from helpers.runtimes import Runtime
from helpers.tools import run
from helpers.wherry import until

pytestmark = pytest.mark.seconds(300)
DRIVER = "systemd" if Path("/run/systemd/system").exists() else "cgroupfs"
CGROUPS = Path("/sys/fs/cgroup")


class Guest(Space):
    """No space: systemd knows processes by the guest's own numbers, and what is mounted ends with the guest."""

    _enter = ()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory, private_network: object) -> Iterator[Runtime]:
    place = tmp_path_factory.mktemp("node")
    with Guest() as space, Registry(place / "registry") as registry:
        criimages.publish(registry.host, place)
        made = runtimes.wherryd(space, place / "runtime", registry.host, "wtnode")
        made.start()
        yield made
        made.end()
    if DRIVER == "systemd":
        run("systemctl", "stop", "kubepods.slice", check=False)  # else it would make the tree again
    for top in CGROUPS.glob("kubepods*"):  # a kubelet leaves its trees, which other tests in this guest have, too
        (top / "cgroup.kill").write_text("1")
        until(functools.partial(emptied, top), 10, f"{top} stays")


def emptied(top: Path) -> bool:
    """Whether it is gone now, with all below."""
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not top.exists()


@pytest.fixture(scope="module")
def kubelet(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Kubelet:
    place = tmp_path_factory.mktemp("kubelet")
    made = Kubelet(runtime.space, place / "kubelet", runtime.socket, driver=DRIVER)
    # user-mode Linux does not tell its clock's speed, without which no kubelet starts
    (place / "cpuinfo").write_text(Path("/proc/cpuinfo").read_text().rstrip("\n") + "\ncpu MHz\t\t: 1000.000\n\n")
    runtime.space.run("mount", "--bind", place / "cpuinfo", "/proc/cpuinfo")
    made.start()
    return made


def test_limits_of_a_manifest_are_the_kernels(kubelet: Kubelet, runtime: Runtime) -> None:
    limits = {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"memory": "32Mi", "cpu": "100m"}}
    kubelet.put("limited", {"name": "main", "image": BUSYBOX, "command": ["sleep", "1000"], "resources": limits})
    told = kubelet.ready("limited")
    assert told["qosClass"] == "Burstable"
    own = group(runtime)
    assert (own / "memory.max").read_text() == f"{64 << 20}\n"
    assert (own / "cpu.max").read_text() == "50000 100000\n"
    parent = own.parent
    assert "burstable" in str(parent)
    assert (parent / "memory.max").read_text() == f"{64 << 20}\n"
    assert own.name.startswith("wherry-") if DRIVER == "systemd" else "kubepods" in str(own)


def test_what_is_used_is_in_the_summary(kubelet: Kubelet) -> None:
    """By the CRI's statistics or by cgroups: the pod is there, with its memory."""
    def used() -> Any:
        told = json.loads(run("curl", "-sfk", "https://127.0.0.1:10250/stats/summary", check=False).stdout or "{}")
        found = [pod for pod in told.get("pods", []) if pod["podRef"]["name"] == "limited-node"]
        return found and found[0].get("memory", {}).get("workingSetBytes")

    assert 0 < eventually(used, 90, "the summary has the pod") < 64 << 20


def group(runtime: Runtime) -> Path:
    """The cgroup of the one container, by its process, which is one of the space's."""
    told = json.loads(runtime.crictl("inspect", runtime.crictl("ps", "-q").stdout.split()[0]).stdout)
    line = Path(f"/proc/{told['info']['pid']}/cgroup").read_text().strip()
    return CGROUPS / line.removeprefix("0::").lstrip("/")
