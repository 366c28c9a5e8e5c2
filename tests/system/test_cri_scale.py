"""A full node: 110 pods, all running; lists stay quick, wherryd small, a pod cheap. Hundreds of containers listed."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root

PODS = int(os.environ.get("WHERRY_CRI_PODS", "110"))
ROOM = 3  # times a bar of time, on a machine that does other things too
LIST_MS, RSS_MIB, POD_MIB = 50, 150, 1.0


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def pss_mib(mark: tuple[str, ...]) -> float:
    """Proportional memory of all processes of ours outside containers, found by their command lines."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes() + (path / "cgroup").read_bytes()
            if any(word.encode() in words for word in mark):
                total += int(re.findall(r"^Pss:\s+(\d+)", (path / "smaps_rollup").read_text(), re.MULTILINE)[0])
        except (OSError, IndexError):
            continue
    return total / 1024


def middle_ms(call: Callable[[], Any], times: int = 9) -> float:
    """Milliseconds, the median."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        took.append((time.perf_counter() - begin) * 1000)
    return statistics.median(took)


@pytest.fixture
def kubelet(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Kubelet]:
    with Wherryd(test_id, tmp_path) as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox), tmp_path / "logs")
        yield made
        made.remove_everything()


@pytest.mark.seconds(300)
def test_a_full_node(kubelet: Kubelet) -> None:
    """Made four at a time as a kubelet does; found again by a new wherryd; gone at the end."""
    begin = time.monotonic()
    pods = kubelet.several([f"n{number}" for number in range(PODS)], "sleep", "100000", network=True)
    print(f"{PODS} pods: {time.monotonic() - begin:.1f} s")
    assert list(kubelet.pods().values()) == [api.SANDBOX_READY] * PODS
    assert list(kubelet.containers().values()) == [api.CONTAINER_RUNNING] * PODS
    addresses = {kubelet("PodSandboxStatus", pod_sandbox_id=pod).status.network.ip for pod in pods}
    assert len(addresses) == PODS
    for wherryd in ("the same", "a new"):
        figures(kubelet, wherryd)
        kubelet.wherryd.kill()
        begin = time.monotonic()
        kubelet.wherryd.restart()
        print(f"back after {time.monotonic() - begin:.2f} s")
    begin = time.monotonic()
    kubelet.remove_everything()
    print(f"removed: {time.monotonic() - begin:.1f} s")
    assert kubelet.pods() == kubelet.containers() == {}


def figures(kubelet: Kubelet, who: str) -> None:
    """Lists and memory, held against their bars."""
    for method in ("ListPodSandbox", "ListContainers", "ListContainerStats", "ListPodSandboxStats"):
        took = middle_ms(lambda method=method: kubelet(method))  # type: ignore[misc]
        print(f"{who} wherryd: {method} {took:.1f} ms")
        assert took < LIST_MS * ROOM
    resident = rss_mib(kubelet.wherryd.pid)
    print(f"{who} wherryd: RSS {resident:.0f} MiB")
    assert resident < RSS_MIB


@pytest.mark.seconds(300)
def test_what_a_pod_costs(kubelet: Kubelet) -> None:
    """Memory of what runs for it outside of its container, the daemon's growth included."""
    kubelet.several(["warm"], "sleep", "100000")
    mark = (kubelet.wherryd.id, "wherry-monitor")
    before, count = pss_mib(mark), 20
    kubelet.several([f"n{number}" for number in range(count)], "sleep", "100000", network=True)
    each = (pss_mib(mark) - before) / count
    print(f"{each:.2f} MiB a pod")
    assert 0 < each < POD_MIB


@pytest.mark.seconds(300)
def test_many_containers_of_one_pod(kubelet: Kubelet) -> None:
    """They are listed whole, filtered and streamed, and counted by their cgroups where there are controllers."""
    pod, count = kubelet.pod("many"), 60
    made = {kubelet.run(pod, f"c{number}", "sleep", "100000", labels={"odd": str(number % 2)})
            for number in range(count)}  # fmt: skip
    listed = kubelet.containers()
    assert set(listed) == made
    odd = api.ContainerFilter(label_selector={"odd": "1"})
    assert len(kubelet("ListContainers", filter=odd).containers) == count // 2
    running = api.ContainerFilter(state=api.ContainerStateValue(state=api.CONTAINER_RUNNING), pod_sandbox_id=pod)
    assert len(kubelet("ListContainers", filter=running).containers) == count
    assert {one.attributes.id for one in kubelet("ListContainerStats").stats} == made
    gone = made.pop()
    kubelet.stop(gone)
    kubelet.remove(gone)
    assert set(kubelet.containers()) == made
