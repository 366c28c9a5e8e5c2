"""Plugins of the Node Resource Interface and true containers: what they are told, and what they make of them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers import gotools
from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, code_of
from helpers.nriplugin import NriPlugin, Refusal
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api
from wherry.daemon.nri import api_pb2 as nri

pytestmark = pytest.mark.root
Code = grpc.StatusCode
WATCHED = sum(1 << (event - 1) for event in range(1, nri.VALIDATE_CONTAINER_ADJUSTMENT))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, busybox: str, private_network: object) -> Iterator[Kubelet]:
    """One wherryd with a socket for plugins."""
    place = tmp_path_factory.mktemp("nri")
    with Wherryd(f"wt{os.getpid()}nri", place, f'nri_socket = "{place}/nri/nri.sock"\n') as wherryd:
        yield Kubelet(wherryd, wherryd.load(busybox, "localhost/busybox:1"), place / "logs")


@pytest.fixture
def kubelet(shared: Kubelet) -> Iterator[Kubelet]:
    """It, without pods."""
    yield shared
    shared.remove_everything()
    assert not shared.pods()


def plugin(kubelet: Kubelet, index: str = "10", events: int = WATCHED, **handlers: Any) -> NriPlugin:
    return NriPlugin(socket_of(kubelet), "test", index, handlers, events)


def socket_of(kubelet: Kubelet) -> Path:
    """As it is set."""
    lines = kubelet.wherryd.wherry.config.read_text().splitlines()
    return Path(next(line for line in lines if line.startswith("nri_socket")).split('"')[1])


def there(one: NriPlugin, kubelet: Kubelet) -> NriPlugin:
    """It is synchronized, and among those that are told."""
    one.joined()
    time.sleep(0.1)  # it has answered; that is read and noted
    return one


def names(one: NriPlugin, about: str = "") -> list[str]:
    """What it was told, of one container."""
    return [method for method, request in one.events
            if not about or getattr(getattr(request, "container", None), "id", "") == about]  # fmt: skip


def test_the_socket_is_roots_alone(kubelet: Kubelet) -> None:
    found = os.lstat(socket_of(kubelet))
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)


def test_a_life_is_told(kubelet: Kubelet) -> None:
    with plugin(kubelet) as one:
        there(one, kubelet)
        pod = kubelet.pod("web", network=True)
        container = kubelet.run(pod, "app", "sleep", "1000")
        kubelet.stop(container)
        kubelet.stop(container)
        kubelet.remove(container)
        kubelet.stop_pod(pod)
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
        assert names(one) == [
            "RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
            "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
        ]  # fmt: skip
        ran, created = one.told("RunPodSandbox")[0].pod, one.told("CreateContainer")[0]
        assert (ran.id, ran.name) == (pod, "web")
        assert ran.ips[0].startswith("10.97.")
        assert {space.type for space in ran.linux.namespaces} >= {"network", "ipc", "uts"}
        assert (created.container.id, created.container.name, created.pod.id) == (container, "app", pod)
        assert list(created.container.args) == ["sleep", "1000"]
        assert one.told("PostStartContainer")[0].container.pid > 0
        stopped = one.told("StopContainer")[0].container
        assert (stopped.state, stopped.exit_code) == (nri.CONTAINER_STOPPED, 137)
        assert any(space.type == "network" for space in one.told("StopPodSandbox")[0].pod.linux.namespaces)


def test_an_end_by_itself_and_with_the_pod(kubelet: Kubelet) -> None:
    with plugin(kubelet) as one:
        there(one, kubelet)
        pod = kubelet.pod("p")
        short = kubelet.run(pod, "short", "false")
        until(lambda: "StopContainer" in names(one, short), 10)
        assert one.told("StopContainer")[0].container.exit_code == 1
        long = kubelet.run(pod, "long", "sleep", "1000")
        kubelet.remove_pod(pod)
        assert names(one, short)[-2:] == ["StopContainer", "RemoveContainer"]
        assert names(one, long)[-2:] == ["StopContainer", "RemoveContainer"]
        order = [method for method, _ in one.events]
        assert order.index("StopPodSandbox") > max(at for at, name in enumerate(order) if name == "StopContainer")
        assert order[-1] == "RemovePodSandbox"


def test_what_a_plugin_makes_of_a_container_is_what_runs(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("by the plugin\n")

    def adjust(_: object) -> Any:
        made = nri.ContainerAdjustment(
            annotations={"by": "plugin"},
            env=[nri.KeyValue(key="ADDED", value="1"), nri.KeyValue(key="-DROPPED")],
            mounts=[nri.Mount(destination="/mnt", source=str(tmp_path), type="bind", options=["rbind", "ro"])],
            rlimits=[nri.POSIXRlimit(type="RLIMIT_NOFILE", hard=77, soft=66)],
        )
        made.linux.devices.add(path="/dev/second", type="c", major=1, minor=3)
        made.linux.oom_score_adj.value = 555
        made.linux.resources.unified["pids.max"] = "99"
        return nri.CreateContainerResponse(adjust=made)

    with plugin(kubelet, CreateContainer=adjust) as one:
        there(one, kubelet)
        pod = kubelet.pod("p")
        container = kubelet.run(
            pod, "c", "sleep", "1000", envs=[api.KeyValue(key="DROPPED", value=b"x"), api.KeyValue(key="K", value=b"2")]
        )
        told = kubelet.output(
            container, "sh", "-c",
            "cat /mnt/file; echo $ADDED,$DROPPED,$K; cat /proc/1/oom_score_adj; ls -l /dev/second; "
            "grep 'open files' /proc/1/limits; touch /mnt/x || true",
        ).splitlines()  # fmt: skip
        assert told[:3] == ["by the plugin", "1,,2", "555"]
        assert told[3].startswith("crw")
        assert told[4].split()[3:5] == ["66", "77"]
        assert not (tmp_path / "x").exists()
        info = json.loads(kubelet("ContainerStatus", container_id=container, verbose=True).info["info"])
        assert info["runtimeSpec"]["annotations"]["by"] == "plugin"
        assert info["runtimeSpec"]["linux"]["resources"]["unified"] == {"pids.max": "99"}
        assert one.told("PostCreateContainer")[0].container.annotations["by"] == "plugin"


def test_a_plugin_by_nris_own_library(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("by go\n")
    words = [gotools.nri_plugin(), socket_of(kubelet), "go", "30", tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(0.1)
        pod = kubelet.pod("p")
        dropped = [api.KeyValue(key="DROPPED", value=b"x")]
        container = kubelet.run(pod, "c", "sleep", "1000", envs=dropped)
        told = kubelet.output(
            container, "sh", "-c",
            "cat /plugin/file; echo $FROM,$DROPPED; cat /proc/1/oom_score_adj; grep 'open files' /proc/1/limits",
        ).splitlines()  # fmt: skip
        assert told[:3] == ["by go", "go,", "777"]
        assert told[3].split()[3:5] == ["66", "77"]
        assert kubelet.status(container).resources.linux.cpu_shares == 1234
        kubelet("UpdateContainerResources", container_id=container, linux=api.LinuxContainerResources(cpu_shares=100))
        assert kubelet.status(container).resources.linux.cpu_shares == 200
        kubelet.remove_pod(pod)
        process.terminate()
        lines += process.stdout.readlines()
    assert [line.split() for line in lines] == [
        ["Synchronize", "0", "0"], ["RunPodSandbox", "p"], ["CreateContainer", "c"], ["PostCreateContainer", "c", "go"],
        ["StartContainer", "c"], ["PostStartContainer", "c"], ["UpdateContainer", "c"], ["StopContainer", "c"],
        ["StopPodSandbox", "p"], ["RemoveContainer", "c"], ["RemovePodSandbox", "p"],
    ]  # fmt: skip


def test_what_can_never_be_is_refused_and_leaves_nothing(kubelet: Kubelet) -> None:
    answers: list[Any] = []

    def adjust(_: object) -> Any:
        return nri.CreateContainerResponse(adjust=answers[-1])

    with plugin(kubelet, CreateContainer=adjust) as one:
        there(one, kubelet)
        pod = kubelet.pod("p")
        wrong = nri.ContainerAdjustment()
        wrong.linux.sysctl["kernel.panic"] = "1"
        cgroup = nri.ContainerAdjustment()
        cgroup.linux.resources.unified["cgroup.kill"] = "1"
        for answer in (wrong, cgroup, nri.ContainerAdjustment(CDI_devices=[nri.CDIDevice(name="no.such/device=x")])):
            answers.append(answer)
            with code_of(Code.INVALID_ARGUMENT, Code.NOT_FOUND):
                kubelet.create(pod, "c", "true")
        assert not kubelet.containers()
        answers.append(nri.ContainerAdjustment())
        kubelet.create(pod, "c", "true")
        assert len(list((kubelet.wherryd.root / "containers").iterdir())) == 1


def test_refusals_fail_calls(kubelet: Kubelet) -> None:
    def refuse(_: object) -> None:
        raise Refusal("not here")

    with plugin(kubelet, RunPodSandbox=refuse) as one:
        there(one, kubelet)
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.pod("p", network=True)
        assert "10-test refuses RunPodSandbox: not here" in caught.value.details()
        assert not kubelet.pods()
        one.handlers.clear()
        pod = kubelet.pod("p", network=True)
        one.handlers["CreateContainer"] = refuse
        with code_of(Code.FAILED_PRECONDITION):
            kubelet.create(pod, "c", "true")
        assert not kubelet.containers()
        one.handlers.clear()
        kubelet.run(pod, "c", "true")


def test_nothing_is_seen_while_plugins_are_asked(kubelet: Kubelet) -> None:
    reached, release = threading.Event(), threading.Event()

    def block(_: object) -> None:
        reached.set()
        release.wait(10)

    with plugin(kubelet, RunPodSandbox=block) as one:
        there(one, kubelet)
        maker = threading.Thread(target=kubelet.pod, args=("p",))
        maker.start()
        assert reached.wait(10)
        assert not kubelet.pods()
        with code_of(Code.NOT_FOUND):
            kubelet("PodSandboxStatus", pod_sandbox_id=one.told("RunPodSandbox")[0].pod.id)
        release.set()
        maker.join()
        assert list(kubelet.pods().values()) == [api.SANDBOX_READY]


def test_a_plugin_that_hangs_stops_nobody(kubelet: Kubelet) -> None:
    release = threading.Event()
    with plugin(kubelet, CreateContainer=lambda _: release.wait(30) and None) as bad, plugin(kubelet, "20") as good:
        there(bad, kubelet)
        there(good, kubelet)
        pod = kubelet.pod("p")
        began = time.monotonic()
        container = kubelet.run(pod, "c", "sleep", "1000")
        assert 1.9 < time.monotonic() - began < 10
        assert "StartContainer" in names(good, container)
        until(bad.gone.is_set, 5)
        release.set()
        began = time.monotonic()
        kubelet.run(pod, "d", "sleep", "1000")
        assert time.monotonic() - began < 1.9


def test_limits_by_plugins(kubelet: Kubelet) -> None:
    """Of an update, of others with it, and unasked."""

    def limits(ref: str, shares: int) -> Any:
        made = nri.ContainerUpdate(container_id=ref)
        made.linux.resources.cpu.shares.value = shares
        return made

    def shares(ref: str) -> int:
        return int(kubelet.status(ref).resources.linux.cpu_shares)

    with plugin(kubelet) as one:
        there(one, kubelet)
        pod = kubelet.pod("p")
        first, second = (kubelet.run(pod, name, "sleep", "1000") for name in ("a", "b"))
        one.handlers["UpdateContainer"] = lambda asked: nri.UpdateContainerResponse(
            update=[limits(first, asked.linux_resources.cpu.shares.value * 2), limits(second, 300)]
        )
        kubelet("UpdateContainerResources", container_id=first, linux=api.LinuxContainerResources(cpu_shares=100))
        assert (shares(first), shares(second)) == (200, 300)
        wanted = nri.UpdateContainersRequest(update=[limits(second, 400), limits("f" * 64, 1)])
        told = one.call("UpdateContainers", wanted, nri.UpdateContainersResponse)
        assert [update.container_id for update in told.failed] == ["f" * 64]
        until(lambda: shares(second) == 400, 5)
        evict = nri.UpdateContainersRequest(evict=[nri.ContainerEviction(container_id=first, reason="test")])
        one.call("UpdateContainers", evict, nri.UpdateContainersResponse)
        until(lambda: kubelet.containers()[first] == api.CONTAINER_EXITED, 15)


def test_who_comes_late_and_who_comes_again(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    running, created = kubelet.run(pod, "r", "sleep", "1000"), kubelet.create(pod, "c", "true")
    with plugin(kubelet) as one:
        there(one, kubelet)
        assert [found.id for found in one.synchronized.pods] == [pod]
        states = {found.id: found.state for found in one.synchronized.containers}
        assert states == {running: nri.CONTAINER_RUNNING, created: nri.CONTAINER_CREATED}
        config = next(found for found in one.synchronized.containers if found.id == running)
        assert "sleep" in config.args
        kubelet.wherryd.restart()
        until(one.gone.is_set, 10)
    with plugin(kubelet, "11") as again:
        again.joined()
        assert {found.id for found in again.synchronized.containers} == {running, created}
        time.sleep(0.1)
        kubelet.stop(running)
        assert names(again, running) == ["StopContainer"]


def test_a_socket_that_somebody_serves_is_left_alone(
    kubelet: Kubelet, test_id: str, tmp_path: Path
) -> None:
    with Wherryd(test_id, tmp_path, network=False) as other:
        other.stop()
        other.wherry.config.write_text(f'{other.wherry.config.read_text()}nri_socket = "{socket_of(kubelet)}"\n')
        process = other.popen()
        assert process.wait(30) == 1
        assert f"somebody serves {socket_of(kubelet)} already" in other.log.read_text()
        text = other.wherry.config.read_text().replace("nri_socket", "# nri_socket")
        other.wherry.config.write_text(text)
    with plugin(kubelet, "12") as one:
        one.joined()
