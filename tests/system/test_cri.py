"""wherryd as a kubelet sees it: every call of the CRI, what it says to requests that are wrong, and its end."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers import gotools
from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, code_of
from helpers.registry import Registry
from helpers.tools import run
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api
from wherry.daemon.cri.services import Stub

pytestmark = pytest.mark.root
Code = grpc.StatusCode
UNKNOWN = "f" * 64


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, busybox: str, private_network: object) -> Iterator[Kubelet]:
    """One wherryd for all tests of this file that leave no trace in it."""
    place = tmp_path_factory.mktemp("cri")
    with Wherryd(f"wt{os.getpid()}cri", place) as wherryd:
        yield Kubelet(wherryd, wherryd.load(busybox, "localhost/busybox:1"), place / "logs")


@pytest.fixture
def kubelet(shared: Kubelet) -> Iterator[Kubelet]:
    """It, without pods."""
    yield shared
    shared.remove_everything()
    assert not shared.pods()
    assert not shared.containers()


@pytest.fixture
def own(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Wherryd]:
    """A wherryd of the test's own."""
    with Wherryd(test_id, tmp_path) as made:
        yield made


def sleeper(kubelet: Kubelet, name: str = "p", **more: Any) -> tuple[str, str]:
    """A pod with a container that sleeps."""
    pod = kubelet.pod(name, **more)
    return pod, kubelet.run(pod, "c", "sleep", "1000")


# ---- about the runtime


def test_who_it_is_and_how_it_is(kubelet: Kubelet) -> None:
    version = kubelet("Version", version="v1")
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "wherry", "v1")
    status = kubelet("Status", verbose=True)
    assert {found.type: found.status for found in status.status.conditions} == {
        "RuntimeReady": True, "NetworkReady": True,
    }, status  # fmt: skip
    assert [found.name for found in status.runtime_handlers] == ["", "wherry"]
    assert all(found.features.recursive_read_only_mounts for found in status.runtime_handlers)
    assert status.features.supplemental_groups_policy
    assert json.loads(status.info["config"])["place"]["root"] == str(kubelet.wherryd.root)
    assert not kubelet("Status").info
    driver = kubelet.wherryd.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=10).linux.cgroup_driver
    assert driver == api.CGROUPFS


def test_the_pod_cidr_is_checked(kubelet: Kubelet) -> None:
    def told(cidr: str) -> None:
        network = api.NetworkConfig(pod_cidr=cidr)
        kubelet("UpdateRuntimeConfig", runtime_config=api.RuntimeConfig(network_config=network))

    told("10.244.0.0/24,fd00::/64")
    told("")
    with code_of(Code.INVALID_ARGUMENT):
        told("10.244.0.0/99")


def test_without_a_cni_list_the_network_is_not_ready(test_id: str, tmp_path: Path, private_network: object) -> None:
    with Wherryd(test_id, tmp_path, network=False) as wherryd:
        kubelet = Kubelet(wherryd, "", tmp_path)
        network = kubelet("Status").status.conditions[1]
        assert (network.type, network.status, network.reason) == ("NetworkReady", False, "NetworkPluginNotReady")
        assert str(wherryd.cni) in network.message
        with code_of(Code.UNAVAILABLE):
            kubelet.pod("p", network=True)
        assert not kubelet.pods()


# ---- pods and containers


def test_a_life(kubelet: Kubelet) -> None:
    pod = kubelet.pod("web", network=True)
    told = kubelet("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)
    assert (told.status.state, told.status.metadata.name) == (api.SANDBOX_READY, "web")
    assert told.status.network.ip.startswith("10.97.")
    assert json.loads(told.info["info"])["held"]["ips"] == [told.status.network.ip]
    container = kubelet.create(pod, "c", "sh", "-c", "echo out; echo err >&2; sleep 1000", labels={"app": "x"})
    assert kubelet.status(container).state == api.CONTAINER_CREATED
    kubelet.start(container)
    status = kubelet("ContainerStatus", container_id=container, verbose=True)
    assert status.status.state == api.CONTAINER_RUNNING
    assert status.status.image_id == status.status.image_ref == kubelet.image
    info = json.loads(status.info["info"])
    assert Path(f"/proc/{info['pid']}/cmdline").read_bytes() == b"sleep\x001000\0"
    assert info["runtimeSpec"]["process"]["args"][0] == "sh"
    log = Path(status.status.log_path)
    assert log == kubelet.logs / "web" / "c.log"
    until(lambda: len(log.read_text().splitlines()) == 2, 10)
    kubelet.stop(container)
    ended = kubelet.status(container)
    assert (ended.state, ended.exit_code) == (api.CONTAINER_EXITED, 137)
    kubelet.remove(container)
    kubelet.stop_pod(pod)
    assert kubelet("PodSandboxStatus", pod_sandbox_id=pod).status.state == api.SANDBOX_NOTREADY
    kubelet.remove_pod(pod)
    with code_of(Code.NOT_FOUND):
        kubelet("PodSandboxStatus", pod_sandbox_id=pod)


def test_who_is_not_there(kubelet: Kubelet) -> None:
    """NOT_FOUND where something was to be told or done; success where it was to be gone."""
    kubelet.stop(UNKNOWN)
    kubelet.remove(UNKNOWN)
    kubelet.stop_pod(UNKNOWN)
    kubelet.remove_pod(UNKNOWN)
    config = api.ContainerConfig(metadata=api.ContainerMetadata(name="c"), image=api.ImageSpec(image=kubelet.image))
    limits = api.LinuxContainerResources(cpu_shares=2)
    for method, fields in (
        ("ContainerStatus", {"container_id": UNKNOWN}), ("StartContainer", {"container_id": UNKNOWN}),
        ("ExecSync", {"container_id": UNKNOWN, "cmd": ["true"]}), ("ContainerStats", {"container_id": UNKNOWN}),
        ("Exec", {"container_id": UNKNOWN, "cmd": ["true"], "stdout": True}),
        ("Attach", {"container_id": UNKNOWN, "stdout": True}), ("ReopenContainerLog", {"container_id": UNKNOWN}),
        ("UpdateContainerResources", {"container_id": UNKNOWN, "linux": limits}),
        ("PodSandboxStatus", {"pod_sandbox_id": UNKNOWN}), ("PodSandboxStats", {"pod_sandbox_id": UNKNOWN}),
        ("PortForward", {"pod_sandbox_id": UNKNOWN, "port": [80]}),
        ("CreateContainer", {"pod_sandbox_id": UNKNOWN, "config": config}),
        ("UpdatePodSandboxResources", {"pod_sandbox_id": UNKNOWN}),
    ):  # fmt: skip
        with code_of(Code.NOT_FOUND):
            kubelet(method, **fields)


def test_requests_that_can_never_be(kubelet: Kubelet) -> None:
    pod, container = sleeper(kubelet)
    for method, fields in (
        ("RunPodSandbox", {}), ("RunPodSandbox", {"config": api.PodSandboxConfig()}),
        ("CreateContainer", {"pod_sandbox_id": pod}), ("CreateContainer", {}),
        ("ContainerStatus", {}), ("StopContainer", {}), ("RemovePodSandbox", {"pod_sandbox_id": "../x"}),
        ("ExecSync", {"container_id": container}), ("ExecSync", {"container_id": container, "cmd": [""]}),
        ("ExecSync", {"container_id": container, "cmd": ["true"], "timeout": -1}),
        ("Exec", {"container_id": container, "cmd": ["true"]}),
        ("Exec", {"container_id": container, "cmd": ["true"], "tty": True, "stdout": True, "stderr": True}),
        ("Attach", {"container_id": container}),
        ("PortForward", {"pod_sandbox_id": pod, "port": [0]}),
        ("PortForward", {"pod_sandbox_id": pod, "port": [65536]}),
        ("UpdateContainerResources", {"container_id": container}),
        ("ImageStatus", {}), ("PullImage", {}), ("RemoveImage", {}),
    ):  # fmt: skip
        with code_of(Code.INVALID_ARGUMENT):
            kubelet(method, **fields)


def test_hostile_paths_of_a_log(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    for bad in ("../../outside.log", "/etc/outside.log", "a/../../x.log"):
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name="c"), image=api.ImageSpec(image=kubelet.image), log_path=bad
        )
        with code_of(Code.INVALID_ARGUMENT):
            kubelet("CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=kubelet.configs[pod])
    assert not kubelet.containers()


def test_values_that_would_harm(kubelet: Kubelet) -> None:
    pod, made = kubelet.pod("p"), itertools.count()

    def refused(name: str = "", **more: Any) -> None:
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name or f"c{next(made)}"), image=api.ImageSpec(image=kubelet.image),
            log_path="c.log", **{"command": ["true"], **more},
        )  # fmt: skip
        with code_of(Code.INVALID_ARGUMENT):
            asked = {"config": config, "sandbox_config": kubelet.configs[pod]}
            kubelet.start(kubelet("CreateContainer", pod_sandbox_id=pod, **asked).container_id)

    for name in ("a/b", "a\x1b[2J", "a\nb", "a" * 1000):
        refused(name)
    privileged = api.LinuxContainerSecurityContext(privileged=True)
    refused(linux=api.LinuxContainerConfig(security_context=privileged))
    refused(command=["true\0"])
    refused(devices=[api.Device(host_path="/dev/null\0", container_path="/dev/x")])
    masks = api.LinuxContainerSecurityContext(masked_paths=["/x\0y"])
    refused(linux=api.LinuxContainerConfig(security_context=masks))
    for unified in ({"cgroup.kill": "1"}, {"../x.y": "1"}):
        limits = api.LinuxContainerResources(unified=unified)
        with code_of(Code.INVALID_ARGUMENT):
            kubelet.pod("q", resources=limits)
        with code_of(Code.INVALID_ARGUMENT):
            kubelet("UpdatePodSandboxResources", pod_sandbox_id=pod, resources=limits)
    for parent in ("/a\nb", "/a\0b", "/../x"):
        with code_of(Code.INVALID_ARGUMENT):
            kubelet.pod("q", cgroup=parent)
    assert b"Traceback" not in kubelet.wherryd.log.read_bytes()
    assert list(kubelet.pods()) == [pod]


def test_calls_that_do_not_fit_the_state(kubelet: Kubelet) -> None:
    pod, container = sleeper(kubelet)
    with code_of(Code.FAILED_PRECONDITION):
        kubelet.start(container)
    created = kubelet.create(pod, "other", "true")
    for method, fields in (
        ("ExecSync", {"container_id": created, "cmd": ["true"]}),
        ("Exec", {"container_id": created, "cmd": ["true"], "stdout": True}),
        ("Attach", {"container_id": created, "stdout": True}), ("ReopenContainerLog", {"container_id": created}),
    ):  # fmt: skip
        with code_of(Code.FAILED_PRECONDITION):
            kubelet(method, **fields)
    kubelet.stop_pod(pod)
    with code_of(Code.FAILED_PRECONDITION):
        kubelet.create(pod, "late", "true")
    with code_of(Code.FAILED_PRECONDITION):
        kubelet("PortForward", pod_sandbox_id=pod, port=[80])
    kubelet.stop_pod(pod)
    kubelet.stop(container)


def test_the_same_again_is_the_same(kubelet: Kubelet) -> None:
    """At once, eight times: one pod, one container."""
    config = kubelet.config("twin")
    with ThreadPoolExecutor(8) as pool:
        pods = set(pool.map(lambda _: kubelet("RunPodSandbox", config=config).pod_sandbox_id, range(8)))
        assert len(pods) == 1
        pod = pods.pop()
        kubelet.configs[pod] = config
        containers = set(pool.map(lambda _: kubelet.create(pod, "c", "sleep", "1000"), range(8)))
    assert len(containers) == 1
    assert set(kubelet.pods()) == {pod}
    assert set(kubelet.containers()) == containers


def test_a_caller_who_goes_away_ends_nothing(kubelet: Kubelet) -> None:
    """His next call finds what the first one made."""
    config = kubelet.config("slow", network=True)
    under_way = kubelet.wherryd.runtime.RunPodSandbox.future(api.RunPodSandboxRequest(config=config), timeout=60)
    time.sleep(0.005)
    under_way.cancel()
    pod = kubelet("RunPodSandbox", config=config).pod_sandbox_id
    assert set(kubelet.pods()) == {pod}


def test_a_start_that_fails_is_told(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    container = kubelet.create(pod, "c", "/no/such/program")
    with pytest.raises(grpc.RpcError) as raised:
        kubelet.start(container)
    assert "/no/such/program" in raised.value.details()
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (api.CONTAINER_EXITED, 128, "StartError")
    assert status.message


# ---- lists


def test_lists_and_their_filters(kubelet: Kubelet) -> None:
    first, one = sleeper(kubelet, "first")
    second, two = sleeper(kubelet, "second")
    kubelet.stop(two)
    kubelet.stop_pod(second)

    def pods(**wanted: Any) -> set[str]:
        found = kubelet("ListPodSandbox", filter=api.PodSandboxFilter(**wanted)).items
        stream = kubelet.wherryd.runtime.StreamPodSandboxes(
            api.StreamPodSandboxesRequest(filter=api.PodSandboxFilter(**wanted)), timeout=10
        )
        streamed = [pod for answer in stream for pod in answer.pod_sandboxes]
        assert list(found) == streamed
        return {pod.id for pod in found}

    def containers(**wanted: Any) -> set[str]:
        found = kubelet("ListContainers", filter=api.ContainerFilter(**wanted)).containers
        stream = kubelet.wherryd.runtime.StreamContainers(
            api.StreamContainersRequest(filter=api.ContainerFilter(**wanted)), timeout=10
        )
        assert list(found) == [container for answer in stream for container in answer.containers]
        return {container.id for container in found}

    assert pods() == {first, second}
    assert pods(id=first) == {first}
    assert pods(id=first[:13]) == {first}
    assert pods(state=api.PodSandboxStateValue(state=api.SANDBOX_READY)) == {first}
    assert pods(state=api.PodSandboxStateValue(state=api.SANDBOX_NOTREADY)) == {second}
    assert pods(label_selector={"test": "second"}) == {second}
    assert pods(label_selector={"test": "second"}, id=first) == set()
    assert containers() == {one, two}
    assert containers(pod_sandbox_id=second) == {two}
    assert containers(state=api.ContainerStateValue(state=api.CONTAINER_RUNNING)) == {one}
    assert containers(state=api.ContainerStateValue(state=api.CONTAINER_CREATED)) == set()


def test_an_end_is_told_at_once_and_by_whomever(kubelet: Kubelet) -> None:
    """Of itself, and by the command line, which writes the same files."""
    pod, container = sleeper(kubelet)
    other = kubelet.run(pod, "other", "sh", "-c", "sleep 0.3; exit 7")
    until(lambda: kubelet.containers()[other] == api.CONTAINER_EXITED, 10)
    assert kubelet.status(other).exit_code == 7
    kubelet.wherryd.wherry("kill", container)
    until(lambda: kubelet.containers()[container] == api.CONTAINER_EXITED, 10)


def test_events(kubelet: Kubelet) -> None:
    found: list[tuple[str, int]] = []
    answers: list[Any] = []
    stream = kubelet.wherryd.runtime.GetContainerEvents(api.GetEventsRequest(), timeout=30)

    def listen() -> None:
        try:
            for event in stream:
                found.append((event.container_id, event.container_event_type))
                answers.append(event)
        except grpc.RpcError:
            pass

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(0.3)
    pod = kubelet.pod("p")
    container = kubelet.run(pod, "c", "sh", "-c", "sleep 0.2; exit 4")
    until(lambda: (container, api.CONTAINER_STOPPED_EVENT) in found, 10)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    until(lambda: (pod, api.CONTAINER_DELETED_EVENT) in found, 10)
    stream.cancel()
    listener.join()
    wanted = [api.CONTAINER_CREATED_EVENT, api.CONTAINER_STARTED_EVENT, api.CONTAINER_STOPPED_EVENT,
              api.CONTAINER_DELETED_EVENT]  # fmt: skip
    for ref in (pod, container):
        assert [kind for who, kind in found if who == ref] == wanted, found
    ended = answers[found.index((container, api.CONTAINER_STOPPED_EVENT))]
    assert ended.pod_sandbox_status.id == pod
    assert [one.exit_code for one in ended.containers_statuses] == [4]


# ---- processes


def test_exec_sync(kubelet: Kubelet) -> None:
    _, container = sleeper(kubelet)
    done = kubelet.exec(container, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
    with pytest.raises(grpc.RpcError) as raised:
        kubelet.exec(container, "/no/such")
    assert "/no/such" in raised.value.details()


def test_exec_sync_ends_what_is_late(kubelet: Kubelet) -> None:
    """The command, and also that of a caller who has gone."""
    _, container = sleeper(kubelet)
    began = time.monotonic()
    with code_of(Code.DEADLINE_EXCEEDED):
        kubelet.exec(container, "sh", "-c", "sleep 12345", timeout=1)
    assert time.monotonic() - began < 6
    under_way = kubelet.wherryd.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container, cmd=["sleep", "12345"]), timeout=60
    )
    until(lambda: "12345" in kubelet.output(container, "ps"), 10)
    under_way.cancel()
    until(lambda: "12345" not in kubelet.output(container, "ps"), 10)


def test_a_container_that_holds_up_what_begins_in_it_holds_up_nobody_else(kubelet: Kubelet) -> None:
    """It may send signals to whatever is in there, also to what has not become the command yet."""
    evil = "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != 1 ] && kill -STOP $p 2>/dev/null; done; done"
    pod = kubelet.pod("p")
    bad, good = kubelet.run(pod, "bad", "sh", "-c", evil), kubelet.run(pod, "good", "sleep", "1000")

    def probe(_: int) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.exec(bad, "sleep", "100", timeout=4)
        return caught.value.code()

    with ThreadPoolExecutor(100) as pool:
        probes = [pool.submit(probe, number) for number in range(100)]
        time.sleep(1.5)
        began = time.monotonic()
        assert kubelet.output(good, "echo", "hi") == "hi\n"
        assert kubelet.create(pod, "other", "true")
        assert time.monotonic() - began < 3
        assert {done.result() for done in probes} == {Code.DEADLINE_EXCEEDED}
        assert time.monotonic() - began < 10
    kubelet.stop(bad)


def test_exec_sync_takes_16_mib_and_no_more(kubelet: Kubelet) -> None:
    _, container = sleeper(kubelet)
    done = kubelet.exec(container, "sh", "-c", "head -c 40000000 /dev/zero; head -c 20 /dev/zero >&2")
    assert (len(done.stdout), len(done.stderr), done.exit_code) == (16 << 20, 20, 0)
    assert kubelet.wherryd.resident() < 200 << 20


def test_urls_of_connections(kubelet: Kubelet) -> None:
    pod, container = sleeper(kubelet, network=True)
    urls = [
        kubelet("Exec", container_id=container, cmd=["true"], stdout=True).url,
        kubelet("Attach", container_id=container, stdout=True).url,
        kubelet("PortForward", pod_sandbox_id=pod, port=[80]).url,
    ]
    assert len({url.rsplit("/", 1)[1] for url in urls}) == 3
    assert all(url.startswith("http://127.0.0.1:") for url in urls)


# ---- what is used


def test_figures(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p", network=True)
    container = kubelet.run(pod, "c", "sh", "-c", "head -c 1000000 /dev/zero > /file; sleep 1000")
    until(lambda: kubelet.output(container, "stat", "-c", "%s", "/file").strip() == "1000000", 10)
    stats = kubelet("ContainerStats", container_id=container).stats
    assert (stats.attributes.id, stats.attributes.metadata.name) == (container, "c")
    assert stats.cpu.timestamp > 0
    assert stats.writable_layer.used_bytes.value >= 1_000_000
    listed = kubelet("ListContainerStats").stats
    assert [one.attributes.id for one in listed] == [container]
    assert not kubelet("ListContainerStats", filter=api.ContainerStatsFilter(pod_sandbox_id=UNKNOWN)).stats
    streamed = list(kubelet.wherryd.runtime.StreamContainerStats(api.StreamContainerStatsRequest(), timeout=10))
    assert [one.container_stats[0].attributes.id for one in streamed] == [container]
    told = kubelet("PodSandboxStats", pod_sandbox_id=pod).stats
    assert told.attributes.metadata.name == "p"
    assert told.linux.network.default_interface.name == "eth0"
    assert [one.attributes.id for one in told.linux.containers] == [container]
    assert [one.attributes.id for one in kubelet("ListPodSandboxStats").stats] == [pod]
    streamed = list(kubelet.wherryd.runtime.StreamPodSandboxStats(api.StreamPodSandboxStatsRequest(), timeout=10))
    assert [one.pod_sandbox_stats[0].attributes.id for one in streamed] == [pod]


def test_metrics_are_described(kubelet: Kubelet) -> None:
    pod, container = sleeper(kubelet, network=True)
    kinds = {one.name: one for one in kubelet("ListMetricDescriptors").descriptors}
    found = kubelet("ListPodSandboxMetrics").pod_metrics
    assert [one.pod_sandbox_id for one in found] == [pod]
    assert [one.container_id for one in found[0].container_metrics] == [container]
    for metric in [*found[0].metrics, *found[0].container_metrics[0].metrics]:
        assert len(metric.label_values) == len(kinds[metric.name].label_keys)
    assert "container_network_receive_bytes_total" in {metric.name for metric in found[0].metrics}
    assert "container_start_time_seconds" in {metric.name for metric in found[0].container_metrics[0].metrics}
    request = api.StreamPodSandboxMetricsRequest()
    streamed = list(kubelet.wherryd.runtime.StreamPodSandboxMetrics(request, timeout=10))
    assert [one.pod_sandbox_metrics[0].pod_sandbox_id for one in streamed] == [pod]


def test_limits_are_kept(kubelet: Kubelet) -> None:
    pod, container = sleeper(kubelet)
    limits = api.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 << 20)
    kubelet("UpdateContainerResources", container_id=container, linux=limits)
    told = kubelet.status(container).resources.linux
    assert (told.cpu_shares, told.memory_limit_in_bytes) == (512, 64 << 20)
    kubelet("UpdatePodSandboxResources", pod_sandbox_id=pod, resources=limits)


def test_a_log_goes_on_in_a_new_file(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    container = kubelet.run(pod, "c", "sh", "-c", "while :; do echo x; sleep 0.02; done")
    log = Path(kubelet.status(container).log_path)
    until(lambda: log.exists() and log.stat().st_size, 10)
    log.rename(log.with_suffix(".1"))
    kubelet("ReopenContainerLog", container_id=container)
    until(lambda: log.exists() and log.stat().st_size, 10)


def test_what_is_not_built_says_so(kubelet: Kubelet) -> None:
    with code_of(Code.UNIMPLEMENTED):
        kubelet("CheckpointPod", pod_sandbox_id=UNKNOWN)
    with code_of(Code.UNIMPLEMENTED):
        kubelet("RestorePod", checkpoint_path="/x")


def test_a_checkpoint_is_refused_in_time(kubelet: Kubelet, tmp_path: Path) -> None:
    """Where criu cannot, it says so; made it is in tests/testbed/test_oci_criu.py."""
    _, container = sleeper(kubelet)
    for location in ("", "x", f"{tmp_path}/none/x", f"{tmp_path}/"):
        with code_of(Code.INVALID_ARGUMENT):
            kubelet("CheckpointContainer", container_id=container, location=location)
    with code_of(Code.NOT_FOUND):
        kubelet("CheckpointContainer", container_id=UNKNOWN, location=f"{tmp_path}/x")
    if not works():
        with code_of(Code.UNIMPLEMENTED):
            kubelet("CheckpointContainer", container_id=container, location=f"{tmp_path}/x")
    assert not list(tmp_path.glob("x*"))
    kubelet.stop(container)
    with code_of(Code.FAILED_PRECONDITION):
        kubelet("CheckpointContainer", container_id=container, location=f"{tmp_path}/x")


def works() -> bool:
    """Whether criu does, on this kernel."""
    return bool(shutil.which("criu")) and run("criu", "check", check=False).returncode == 0


# ---- images


def test_images(own: Wherryd, busybox: str, tmp_path: Path) -> None:
    image = own.load(busybox, "localhost/busybox:1")
    kubelet = Kubelet(own, image, tmp_path / "logs")
    found = kubelet("ListImages").images
    assert [one.id for one in found] == [image]
    assert "localhost/busybox:1" in found[0].repo_tags
    assert all("@sha256:" in name for name in found[0].repo_digests)
    assert found[0].repo_digests
    streamed = list(own.images.StreamImages(api.StreamImagesRequest(), timeout=10))
    assert [one.images[0] for one in streamed] == list(found)
    for name in (image, image.removeprefix("sha256:"), "localhost/busybox:1", found[0].repo_digests[0]):
        spec = api.ImageSpec(image=name)
        assert kubelet("ImageStatus", image=spec).image == found[0], name
        assert list(kubelet("ListImages", filter=api.ImageFilter(image=spec)).images) == list(found), name
    told = kubelet("ImageStatus", image=api.ImageSpec(image=image), verbose=True)
    assert json.loads(told.info["info"])["Id"] == image
    assert told.image.size > 0
    fs = kubelet("ImageFsInfo")
    assert fs.image_filesystems[0].fs_id.mountpoint == str(own.root)
    assert fs.image_filesystems[0].used_bytes.value > 500_000
    assert fs.image_filesystems[0].inodes_used.value > 3
    # by one of its names it goes with all of them
    kubelet("RemoveImage", image=api.ImageSpec(image="localhost/busybox:1"))
    kubelet("RemoveImage", image=api.ImageSpec(image="localhost/busybox:1"))
    assert not kubelet("ListImages").images
    assert not kubelet("ImageStatus", image=api.ImageSpec(image=image)).HasField("image")
    assert kubelet("ImageFsInfo").image_filesystems[0].used_bytes.value < 100_000


def test_an_image_is_pulled_by_its_node_id(own: Wherryd, busybox: str, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/team/app:1"
    image = own.load(busybox, name)
    own.wherry("push", name)
    kubelet = Kubelet(own, image, tmp_path / "logs")
    kubelet("RemoveImage", image=api.ImageSpec(image=image))
    assert kubelet("PullImage", image=api.ImageSpec(image=name)).image_ref == image
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: kubelet("PullImage", image=api.ImageSpec(image=name)).image_ref, range(4))
        assert set(again) == {image}
    digest = kubelet("ImageStatus", image=api.ImageSpec(image=name)).image.repo_digests[0]
    assert kubelet("PullImage", image=api.ImageSpec(image=digest)).image_ref == image
    with code_of(Code.NOT_FOUND, Code.PERMISSION_DENIED):
        kubelet("PullImage", image=api.ImageSpec(image=f"{registry.host}/team/none:1"))
    with code_of(Code.INVALID_ARGUMENT):
        kubelet("PullImage", image=api.ImageSpec(image="UPPER CASE"))
    with code_of(Code.INVALID_ARGUMENT):
        kubelet("PullImage", image=api.ImageSpec(image=name, runtime_handler="none"))
    with code_of(Code.INVALID_ARGUMENT):
        kubelet("PullImage", image=api.ImageSpec(image=busybox))


# ---- its life


def test_it_ends_when_it_is_told_and_calls_end_first(own: Wherryd, busybox: str, tmp_path: Path) -> None:
    kubelet = Kubelet(own, own.load(busybox), tmp_path / "logs")
    _, container = sleeper(kubelet)
    events = own.runtime.GetContainerEvents(api.GetEventsRequest(), timeout=60)
    under_way = own.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "sleep 1; echo done"]), timeout=30
    )
    time.sleep(0.4)
    os.kill(own.pid, signal.SIGTERM)
    assert under_way.result().stdout == b"done\n"
    assert list(events) == [], "whoever listens is let go"
    assert own.stop() == 0
    assert not own.socket.exists()
    own.start()
    assert kubelet.status(container).state == api.CONTAINER_RUNNING


def test_a_second_one_is_refused_and_the_first_goes_on(own: Wherryd) -> None:
    second = own.popen(stderr=subprocess.PIPE)
    _, said = second.communicate(timeout=20)
    assert second.returncode == 1
    assert b"another wherryd serves" in said
    reset = own.wherry("system", "reset", "--force", check=False)
    assert reset.returncode == 1
    assert "wherryd serves" in reset.stderr
    own.runtime.Version(api.VersionRequest(), timeout=10)


def test_settings_are_read_again(own: Wherryd) -> None:
    kubelet = Kubelet(own, "", own.root)
    good = own.wherry.config.read_text()
    own.wherry.config.write_text(good.replace("cni_conf", "cni_confusion"))
    os.kill(own.pid, signal.SIGHUP)
    until(lambda: "settings stay as they were" in own.log.read_text(), 10)
    assert kubelet("Status").status.conditions[1].status
    own.wherry.config.write_text(good.replace(str(own.cni), f"{own.cni}-none"))
    os.kill(own.pid, signal.SIGHUP)
    until(lambda: not kubelet("Status").status.conditions[1].status, 10)
    own.wherry.config.write_text(good)
    os.kill(own.pid, signal.SIGHUP)
    until(lambda: kubelet("Status").status.conditions[1].status, 10)


def test_a_socket_that_is_handed_over(own: Wherryd, tmp_path: Path) -> None:
    """As systemd does it: the listener stays, and a caller who came before wherryd is served."""
    own.stop()
    path = tmp_path / "handed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        channel = grpc.insecure_channel(f"unix://{path}")
        early = Stub(channel, "RuntimeService").Version.future(api.VersionRequest(), timeout=30)
        time.sleep(0.2)
        program = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); me = str(os.getpid());"
            "os.environ.update(LISTEN_PID=me, LISTEN_FDS='1', LISTEN_FDNAMES='cri');"
            "from wherry.daemon.main import main; sys.exit(main([]))"
        )
        words = [sys.executable, "-c", program, str(listener.fileno())]
        with subprocess.Popen(words, env=own.wherry.env, pass_fds=[listener.fileno()]) as process:
            try:
                assert early.result().runtime_name == "wherry"
                assert not own.socket.exists()
                stub = Stub(channel, "ImageService")
                assert not stub.ListImages(api.ListImagesRequest(), timeout=10).images
            finally:
                channel.close()
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        assert path.exists(), "it is systemd's"
    own.start()


# ---- by hand


def test_crictl(kubelet: Kubelet, tmp_path: Path) -> None:
    program = gotools.tool("crictl")
    address = f"unix://{kubelet.wherryd.socket}"

    def crictl(*words: object) -> str:
        done = subprocess.run([program, "-r", address, "-i", address, *map(str, words)], capture_output=True, text=True,
                              timeout=60, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    pod_file, container_file = tmp_path / "pod.json", tmp_path / "container.json"
    pod_file.write_text(json.dumps({
        "metadata": {"name": "hand", "namespace": "made", "uid": "by"}, "log_directory": str(tmp_path / "logs"),
        "linux": {},
    }))  # fmt: skip
    container_file.write_text(json.dumps({
        "metadata": {"name": "c"}, "image": {"image": "localhost/busybox:1"}, "log_path": "c.log", "linux": {},
        "command": ["sh", "-c", "echo hello; sleep 1000"],
    }))  # fmt: skip
    assert "wherry" in crictl("version")
    assert json.loads(crictl("info"))["status"]["conditions"]
    assert "localhost/busybox" in crictl("images")
    pod = crictl("runp", pod_file)
    container = crictl("create", pod, container_file, pod_file)
    crictl("start", container)
    assert container[:13] in crictl("ps")
    assert "hand" in crictl("pods", "--name", "hand")
    assert crictl("exec", "-s", container, "echo", "sync") == "sync"
    assert crictl("exec", container, "echo", "streamed") == "streamed"
    until(lambda: "hello" in crictl("logs", container), 10)
    inspected = json.loads(crictl("inspect", container))
    assert inspected["info"]["runtimeSpec"]["process"]["args"][0] == "sh"
    assert json.loads(crictl("inspectp", pod))["status"]["network"]["ip"]
    assert container[:13] in crictl("stats")
    assert pod[:13] in crictl("statsp")
    assert "imageFilesystems" in crictl("imagefsinfo")
    crictl("update", "--cpu-share", "512", container)
    crictl("stop", "-t", "0", container)
    crictl("rm", container)
    crictl("stopp", pod)
    crictl("rmp", pod)
    assert pod[:13] not in crictl("pods")
