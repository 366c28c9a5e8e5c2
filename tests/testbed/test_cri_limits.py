"""What a kubelet asks of cgroups, on a host that has every controller: limits of containers and pods, both drivers,
resizing in place, and what is counted. Plain boot: cgroupfs; under systemd: scopes in kubepods slices."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api

CGROUPS = Path("/sys/fs/cgroup")
SYSTEMD = Path("/run/systemd/system").exists()
DRIVER = "systemd" if SYSTEMD else "cgroupfs"
MIB = 1 << 20
LIMITS: dict[str, Any] = {
    "memory_limit_in_bytes": 64 * MIB, "memory_swap_limit_in_bytes": 96 * MIB,
    "cpu_period": 50_000, "cpu_quota": 25_000, "cpu_shares": 512, "cpuset_cpus": "0", "cpuset_mems": "0",
    "unified": {"memory.high": str(60 * MIB), "pids.max": "30"},
}  # fmt: skip
#: the file of a container's cgroup, and what it says of LIMITS
HELD = {"memory.max": str(64 * MIB), "memory.swap.max": str(32 * MIB), "cpu.max": "25000 50000", "cpuset.cpus": "0",
        "cpuset.mems": "0", "memory.high": str(60 * MIB), "pids.max": "30"}  # fmt: skip


@pytest.fixture
def kubelet(test_id: str, tmp_path: Path, busybox: str, private_network: object, parent: str) -> Iterator[Kubelet]:
    """It is gone before the cgroup that a kubelet would remove then."""
    with Wherryd(test_id, tmp_path, settings=f'pod_cgroup_driver = "{DRIVER}"\n') as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox), tmp_path / "logs")
        yield made
        made.remove_everything()


@pytest.fixture
def parent(test_id: str) -> Iterator[str]:
    """The cgroup of a pod as a kubelet names and makes it, with the driver of this boot."""
    top, pod = f"kubepods{test_id}", f"poduid{test_id}"
    if SYSTEMD:
        yield f"{top}-burstable-{pod}.slice"
        for name in (f"{top}-burstable-{pod}.slice", f"{top}-burstable.slice", f"{top}.slice"):
            subprocess.run(["systemctl", "stop", name], check=False, capture_output=True)
        return
    path = CGROUPS / top / "burstable" / pod
    path.mkdir(parents=True)
    for each in (CGROUPS, CGROUPS / top, CGROUPS / top / "burstable", path):
        (each / "cgroup.subtree_control").write_text("+cpu +cpuset +memory +pids")
    yield f"/{top}/burstable/{pod}"
    until(lambda: not any(path.iterdir()) or [one for one in path.iterdir() if one.is_dir()] == [], 5)
    for each in (path, path.parent, path.parent.parent):
        each.rmdir()


def held(kubelet: Kubelet, container: str) -> Path:
    """The cgroup that the container's first process is in, as the host sees it."""
    pid = pid_of(kubelet, container)
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def pid_of(kubelet: Kubelet, container: str) -> int:
    """By the name of its only long sleep."""
    answer = kubelet("ContainerStatus", container_id=container, verbose=True)
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/cgroup")
             if container in _text(path) and _text(path.parent / "comm") in ("sleep\n", "sh\n", "tail\n")]  # fmt: skip
    assert found, answer
    return min(map(int, found))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def limited(**more: Any) -> Any:
    """A container's part of Linux."""
    return api.LinuxContainerConfig(resources=api.LinuxContainerResources(**{**LIMITS, **more}))


def test_what_was_asked_is_what_the_kernel_holds(kubelet: Kubelet, parent: str) -> None:
    """In the container's cgroup, inside of it, and in what the runtime tells."""
    pod = kubelet.pod("limits", cgroup=parent)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited())
    group = held(kubelet, container)
    there = {name: value for name, value in HELD.items() if (group / name).exists()}
    assert {"memory.max", "cpu.max", "pids.max", "cpuset.cpus"} <= set(there)
    assert {name: (group / name).read_text().strip() for name in there} == there
    assert 15 <= int((group / "cpu.weight").read_text()) <= 60, "512 shares of 1024, where 100 is the whole"
    inside = kubelet.output(container, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max")
    assert inside.split("\n")[:2] == [HELD["memory.max"], HELD["cpu.max"]]
    told = kubelet.status(container).resources.linux
    for name in ("memory_limit_in_bytes", "cpu_quota", "cpu_period", "cpuset_cpus"):
        assert getattr(told, name) == LIMITS[name]


def test_it_is_where_the_kubelet_looks_for_it(kubelet: Kubelet, parent: str) -> None:
    """Below the pod's cgroup; with systemd a scope in the pod's slice, which a daemon-reload leaves as it is."""
    pod = kubelet.pod("where", cgroup=parent)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited())
    group = held(kubelet, container)
    if not SYSTEMD:
        assert group.is_relative_to(CGROUPS / parent.lstrip("/"))
        return
    assert group.suffix == ".scope"
    assert group.parent.name == parent
    shown = show(group.name, "Slice", "MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuotaPerSecUSec", "AllowedCPUs")
    assert shown == {"Slice": parent, "MemoryMax": str(64 * MIB), "MemorySwapMax": str(32 * MIB), "TasksMax": "30",
                     "CPUQuotaPerSecUSec": "500ms", "AllowedCPUs": "0"}  # fmt: skip
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert {name: (group / name).read_text().strip() for name in ("memory.max", "cpu.max")} == {
        name: HELD[name] for name in ("memory.max", "cpu.max")
    }
    kubelet.stop_pod(pod)
    until(lambda: show(group.name, "LoadState")["LoadState"] == "not-found")


def show(unit: str, *names: str) -> dict[str, str]:
    out = subprocess.check_output(["systemctl", "show", unit, *(f"-p{name}" for name in names)], text=True)
    return dict(line.split("=", 1) for line in out.splitlines())


def test_a_container_is_resized_where_it_runs(kubelet: Kubelet, parent: str) -> None:
    """UpdateContainerResources: other limits of the same process; what was not named stays; wherryd's death too."""
    pod = kubelet.pod("resize", cgroup=parent)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(unified={}))
    group, process = held(kubelet, container), pid_of(kubelet, container)
    for memory, quota in ((128 * MIB, 40_000), (48 * MIB, 10_000)):
        wanted = api.LinuxContainerResources(memory_limit_in_bytes=memory, memory_swap_limit_in_bytes=memory,
                                             cpu_quota=quota, cpu_period=50_000)  # fmt: skip
        kubelet("UpdateContainerResources", container_id=container, linux=wanted)
        assert (group / "memory.max").read_text().strip() == str(memory)
        assert (group / "cpu.max").read_text().strip() == f"{quota} 50000"
        assert (group / "cpuset.cpus").read_text().strip() == "0"
        told = kubelet.status(container).resources.linux
        assert (told.memory_limit_in_bytes, told.cpu_quota, told.cpuset_cpus) == (memory, quota, "0")
        if SYSTEMD:
            subprocess.run(["systemctl", "daemon-reload"], check=True)
            assert show(group.name, "MemoryMax")["MemoryMax"] == str(memory)
            assert (group / "memory.max").read_text().strip() == str(memory)
    assert pid_of(kubelet, container) == process
    kubelet.wherryd.kill()
    kubelet.wherryd.restart()
    assert kubelet.status(container).resources.linux.memory_limit_in_bytes == 48 * MIB


def test_room_that_was_added_can_be_used(kubelet: Kubelet, parent: str) -> None:
    """What would have ended at the old limit lives with the new one."""
    pod = kubelet.pod("room", cgroup=parent)
    small = {"memory_limit_in_bytes": 24 * MIB, "memory_swap_limit_in_bytes": 24 * MIB, "unified": {}}
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(**small))
    fill = ("sh", "-c", "head -c 40000000 /dev/zero | tail | wc -c")  # tail keeps one line: all of it
    assert kubelet.exec(container, *fill).stdout.strip() != b"40000000"
    wanted = api.LinuxContainerResources(memory_limit_in_bytes=200 * MIB, memory_swap_limit_in_bytes=200 * MIB)
    kubelet("UpdateContainerResources", container_id=container, linux=wanted)
    assert kubelet.exec(container, *fill, timeout=60).stdout.strip() == b"40000000"


def test_a_container_that_is_not_started_yet_is_resized_too(kubelet: Kubelet, parent: str) -> None:
    pod = kubelet.pod("early", cgroup=parent)
    container = kubelet.create(pod, "c", "sleep", "1000", linux=limited(unified={}))
    wanted = api.LinuxContainerResources(memory_limit_in_bytes=80 * MIB, memory_swap_limit_in_bytes=80 * MIB)
    kubelet("UpdateContainerResources", container_id=container, linux=wanted)
    kubelet.start(container)
    assert (held(kubelet, container) / "memory.max").read_text().strip() == str(80 * MIB)


def test_a_pod_is_resized(kubelet: Kubelet) -> None:
    """UpdatePodSandboxResources: the limits of the pod's own cgroup, which its containers share."""
    pod = kubelet.pod("whole", resources=api.LinuxContainerResources(memory_limit_in_bytes=128 * MIB))
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(unified={}))
    above = held(kubelet, container).parent
    assert pod in above.name
    assert (above / "memory.max").read_text().strip() == str(128 * MIB)
    for memory in (256 * MIB, 96 * MIB):
        wanted = api.LinuxContainerResources(memory_limit_in_bytes=memory, cpu_quota=60_000, cpu_period=100_000)
        kubelet("UpdatePodSandboxResources", pod_sandbox_id=pod, resources=wanted)
        assert (above / "memory.max").read_text().strip() == str(memory)
        assert (above / "cpu.max").read_text().strip() == "60000 100000"
    assert kubelet.status(container).state == api.CONTAINER_RUNNING


def test_limits_of_a_kubelets_cgroup_are_the_kubelets(kubelet: Kubelet, parent: str) -> None:
    """It has changed them when it tells us."""
    pod = kubelet.pod("theirs", cgroup=parent)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(unified={}))
    above = held(kubelet, container).parent
    wanted = api.LinuxContainerResources(memory_limit_in_bytes=96 * MIB)
    kubelet("UpdatePodSandboxResources", pod_sandbox_id=pod, resources=wanted)
    assert (above / "memory.max").read_text().strip() == "max"


def test_what_the_oom_killer_ended_says_so(kubelet: Kubelet, parent: str) -> None:
    pod = kubelet.pod("oom", cgroup=parent)
    small = {"memory_limit_in_bytes": 24 * MIB, "memory_swap_limit_in_bytes": 24 * MIB, "unified": {}}
    container = kubelet.run(pod, "c", "tail", "/dev/zero", linux=limited(**small))
    until(lambda: kubelet.status(container).state == api.CONTAINER_EXITED)
    status = kubelet.status(container)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    by_hand = kubelet.run(pod, "d", "sh", "-c", "exit 3", linux=limited(unified={}))
    until(lambda: kubelet.status(by_hand).state == api.CONTAINER_EXITED)
    assert kubelet.status(by_hand).reason == "Error"


def test_what_is_counted_is_what_the_kernel_counts(kubelet: Kubelet, parent: str) -> None:
    """Processor time grows with work, memory is the cgroup's without inactive file pages; of the pod all together."""
    pod = kubelet.pod("stats", cgroup=parent)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(unified={}, cpu_quota=0, cpu_period=0))
    before = kubelet("ContainerStats", container_id=container).stats

    def worked() -> bool:  # a user-mode kernel counts by ticks, and may miss what is short
        kubelet.exec(container, "sh", "-c", "n=0; while [ $n -lt 60000 ]; do n=$((n + 1)); done")
        now = kubelet("ContainerStats", container_id=container).stats
        return now.cpu.usage_core_nano_seconds.value > before.cpu.usage_core_nano_seconds.value

    until(worked, 30, "no processor time is counted")
    after = kubelet("ContainerStats", container_id=container).stats
    group = held(kubelet, container)
    flat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    current = int((group / "memory.current").read_text())
    assert abs(after.memory.usage_bytes.value - current) < 4 * MIB
    assert after.memory.working_set_bytes.value <= max(0, current - int(flat["inactive_file"])) + 4 * MIB
    assert 0 < after.memory.available_bytes.value <= 64 * MIB
    whole = kubelet("PodSandboxStats", pod_sandbox_id=pod).stats.linux
    assert whole.cpu.usage_core_nano_seconds.value >= after.cpu.usage_core_nano_seconds.value
    assert whole.process.process_count.value >= 1
    assert [one.attributes.id for one in whole.containers] == [container]


def test_the_kubelet_is_told_the_driver(kubelet: Kubelet) -> None:
    wanted = api.SYSTEMD if SYSTEMD else api.CGROUPFS
    assert kubelet("RuntimeConfig").linux.cgroup_driver == wanted


def test_huge_pages_are_limited(kubelet: Kubelet, parent: str) -> None:
    pod = kubelet.pod("huge", cgroup=parent)
    if not list(CGROUPS.glob("*/hugetlb.2MB.max")):
        pytest.skip("this kernel has no hugetlb controller")
    limit = api.HugepageLimit(page_size="2MB", limit=8 * MIB)
    container = kubelet.run(pod, "c", "sleep", "1000", linux=limited(unified={}, hugepage_limits=[limit]))
    assert (held(kubelet, container) / "hugetlb.2MB.max").read_text().strip() == str(8 * MIB)


def test_the_quota_is_felt(kubelet: Kubelet, parent: str) -> None:
    """A tenth of a processor: throttled while it works."""
    pod = kubelet.pod("felt", cgroup=parent)
    slow = limited(cpu_quota=10_000, cpu_period=100_000, unified={})
    container = kubelet.run(pod, "c", "sh", "-c", "while :; do :; done", linux=slow)
    group = held(kubelet, container)
    time.sleep(1.5)
    counted = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    assert int(counted["nr_throttled"]) >= 3
    assert os.path.exists(group / "cpu.max")
