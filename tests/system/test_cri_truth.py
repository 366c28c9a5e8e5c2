"""What a kubelet is told is true, whatever happens beside wherryd or at the wrong moment: ends that nobody saw, calls
that nobody waits for any more, plugins that hang, pauses that die, events that a kubelet acts upon without a list."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, code_of
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root
Code = grpc.StatusCode
STUBBORN = ("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
SLEEPS = ("sleep", "1000")


@pytest.fixture
def kubelet(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Kubelet]:
    """One that asks a wherryd of the test's own, which has the image."""
    with Wherryd(test_id, tmp_path) as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox, "localhost/busybox:1"), tmp_path / "logs")
        yield made
        made.remove_everything()


# ---- ends that nobody saw


def alive(pid: int) -> bool:
    """A zombie is not."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def reboot(kubelet: Kubelet) -> None:
    """What a power cut leaves: no process, no mount, nothing of STATE."""
    wherryd = kubelet.wherryd
    states = [json.loads(path.read_text()) for path in wherryd.state.glob("c/*/state.json")]
    pids = [state[who]["pid"] for who in ("monitor", "init") for state in states]
    wherryd.kill()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if (path := line.split()[1]).startswith(f"{wherryd.state}/"):
            subprocess.run(["umount", "-l", path], check=True)
    shutil.rmtree(wherryd.state)
    wherryd.start()


def test_after_a_reboot_what_ran_has_not_completed(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    ran, created, done = kubelet.run(pod, "ran", *SLEEPS), kubelet.create(pod, "created", *SLEEPS), kubelet.run(
        pod, "done", "sh", "-c", "exit 3"
    )
    until(lambda: not (kubelet.wherryd.state / "c" / done).exists(), 15, "its end was not settled")
    before = kubelet.status(done)
    reboot(kubelet)
    assert kubelet.pods() == {pod: api.SANDBOX_NOTREADY}
    found = kubelet.status(ran)
    assert (found.state, found.reason) == (api.CONTAINER_EXITED, "Error")
    assert found.exit_code not in (0, 3), "a Job's pod would count as done"
    assert found.finished_at >= found.started_at > found.created_at, "a kubelet reckons its back-off from that"
    assert kubelet.status(created).state == api.CONTAINER_CREATED
    assert kubelet.status(done) == before
    kubelet.stop_pod(pod)
    assert kubelet.status(ran).exit_code == found.exit_code
    assert kubelet.status(ran).finished_at == found.finished_at, "an end does not move"


def test_the_start_of_a_run_is_one_moment_and_its_end_no_sooner(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *SLEEPS)
    running = kubelet.status(one)
    kubelet.stop(one)
    ended = kubelet.status(one)
    assert running.started_at == ended.started_at
    for number in range(12):
        short = kubelet.run(pod, f"short{number}", "true")
        told = at_end(kubelet, short)
        assert told.created_at <= told.started_at <= told.finished_at, told


def at_end(kubelet: Kubelet, container: str) -> Any:
    """Its status when it has ended."""
    until(lambda: kubelet.status(container).state == api.CONTAINER_EXITED)
    return kubelet.status(container)


def test_a_pod_whose_pause_died_is_not_ready(kubelet: Kubelet) -> None:
    config = kubelet.config("p")
    config.linux.security_context.namespace_options.pid = api.POD
    pod = kubelet("RunPodSandbox", config=config).pod_sandbox_id
    assert kubelet.pods() == {pod: api.SANDBOX_READY}
    told = json.loads(kubelet("PodSandboxStatus", pod_sandbox_id=pod, verbose=True).info["info"])
    os.kill(told["pid"], signal.SIGKILL)
    until(lambda: kubelet.pods() == {pod: api.SANDBOX_NOTREADY}, 5, "nobody saw its end")
    assert kubelet("PodSandboxStatus", pod_sandbox_id=pod).status.state == api.SANDBOX_NOTREADY


# ---- calls that nobody waits for any more


def test_a_told_end_is_an_end_although_a_stop_has_long_to_wait(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *STUBBORN)
    with pytest.raises(grpc.RpcError), suppress(ValueError):
        kubelet("StopContainer", container_id=one, timeout=600, seconds=1)
    process = kubelet.wherryd._process
    assert process is not None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.monotonic() - began < 14
    kubelet.wherryd.restart()
    assert kubelet.status(one).state == api.CONTAINER_RUNNING
    began = time.monotonic()
    kubelet.stop(one, 1)
    assert time.monotonic() - began < 8
    assert kubelet.status(one).exit_code == 137


def test_an_impatient_stop_overtakes_a_patient_one(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *STUBBORN)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(kubelet.stop, one, 50)
        time.sleep(0.5)
        began = time.monotonic()
        kubelet.stop(one, 1)
        assert time.monotonic() - began < 8
        patient.result(8)
    assert kubelet.status(one).exit_code == 137


def test_a_removal_of_what_is_being_stopped_patiently(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    one, two = kubelet.run(pod, "one", *STUBBORN), kubelet.run(pod, "two", *STUBBORN)
    with ThreadPoolExecutor(2) as pool:
        patient = [pool.submit(kubelet.stop, each, 50) for each in (one, two)]
        time.sleep(0.5)
        began = time.monotonic()
        kubelet.remove(one)
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
        assert time.monotonic() - began < 10
        for each in patient:
            each.result(8)
    assert not kubelet.containers()


def test_a_cancelled_exec_leaves_no_process(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *SLEEPS)
    for seconds in (0.002, 0.005, 0.01, 0.02, 0.05, 0.3):
        with code_of(Code.DEADLINE_EXCEEDED):
            kubelet("ExecSync", container_id=one, cmd=["sleep", "4711"], seconds=seconds)
    until(lambda: "4711" not in kubelet.output(one, "ps"), 10)


# ---- plugins that hang or fail


def plugin(kubelet: Kubelet, script: str) -> None:
    """In the place of the pods' network."""
    place = kubelet.wherryd.cni / "bin"
    place.mkdir()
    (place / "odd").write_text(f"#!/bin/sh\n{script}\n")
    (place / "odd").chmod(0o755)
    (kubelet.wherryd.cni / "10-pods.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": "odd"}]})
    )


@pytest.fixture
def odd(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Kubelet]:
    """A kubelet whose pods' network is what `plugin` says."""
    place = tmp_path / f"{test_id}-cni" / "bin"
    with Wherryd(test_id, tmp_path, f'cni_path = "{place}"\n') as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox, "localhost/busybox:1"), tmp_path / "logs")
        yield made
        plugin_ok(made)
        made.remove_everything()


ADDRESS = json.dumps({
    "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
    "ips": [{"address": "10.9.9.9/24", "interface": 0}],
})  # fmt: skip


def plugin_ok(kubelet: Kubelet) -> None:
    shutil.rmtree(kubelet.wherryd.cni / "bin", ignore_errors=True)
    plugin(kubelet, f"cat > /dev/null; [ $CNI_COMMAND = ADD ] && echo '{ADDRESS}'; exit 0")


def test_a_hanging_plugin_keeps_nobody_else_waiting(odd: Kubelet, tmp_path: Path) -> None:
    plugin(odd, f"[ $CNI_COMMAND = ADD ] && while [ ! -e {tmp_path}/go ]; do sleep 0.2; done; exit 1")
    pod = odd.pod("beside")
    with ThreadPoolExecutor(24) as pool:
        stuck = [pool.submit(odd.pod, f"stuck{number}", network=True) for number in range(24)]
        try:
            time.sleep(2)
            began = time.monotonic()
            one = odd.run(pod, "one", *SLEEPS)
            assert odd.output(one, "echo", "hi") == "hi\n"
            assert odd.containers() == {one: api.CONTAINER_RUNNING}
            assert odd("Status").status.conditions
            odd.stop(one)
            odd.remove(one)
            odd.stop_pod(pod)
            odd.remove_pod(pod)
            assert time.monotonic() - began < 15
        finally:
            (tmp_path / "go").touch()
        for each in stuck:
            with pytest.raises(grpc.RpcError):
                each.result()
    assert not odd.pods()


def test_a_stop_that_fails_half_way_is_told_as_it_is(odd: Kubelet) -> None:
    plugin_ok(odd)
    pod = odd.pod("p", network=True)
    one = odd.run(pod, "one", *SLEEPS)
    assert odd.pods() == {pod: api.SANDBOX_READY}
    shutil.rmtree(odd.wherryd.cni / "bin")
    plugin(odd, "echo '{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"no\"}'; exit 1")
    with code_of(Code.INTERNAL, Code.UNAVAILABLE):
        odd.stop_pod(pod)
    assert odd.pods() == {pod: api.SANDBOX_NOTREADY}
    assert odd.containers() == {one: api.CONTAINER_EXITED}
    plugin_ok(odd)
    odd.stop_pod(pod)
    odd.remove_pod(pod)


# ---- what is done beside wherryd


def test_verbs_of_an_operator_are_seen_and_prunes_leave_pods_alone(kubelet: Kubelet) -> None:
    pod = kubelet.pod("p", network=True)
    one, two, three = (kubelet.run(pod, name, *SLEEPS) for name in ("one", "two", "three"))
    ended, created = kubelet.run(pod, "ended", "true"), kubelet.create(pod, "created", *SLEEPS)
    until(lambda: kubelet.status(ended).state == api.CONTAINER_EXITED)
    wherry = kubelet.wherryd.wherry
    wherry("system", "prune", "-a", "-f")
    wherry("gc")
    assert set(kubelet.containers()) == {one, two, three, ended, created}
    assert kubelet.pods() == {pod: api.SANDBOX_READY}
    assert kubelet("ImageStatus", image=api.ImageSpec(image=kubelet.image)).image.id == kubelet.image
    kubelet.start(created)
    wherry("rm", "-f", one)
    assert one not in kubelet.containers()
    wherry("kill", two)
    until(lambda: kubelet.status(two).state == api.CONTAINER_EXITED)
    assert kubelet.status(two).exit_code == 137
    wherry("stop", "-t", "0", three)
    assert kubelet.containers()[three] == api.CONTAINER_EXITED


# ---- events


class Listener:
    """Events as they come, in a thread."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.events: list[Any] = []
        self._call = kubelet.wherryd.runtime.GetContainerEvents(api.GetEventsRequest())
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        time.sleep(0.5)

    def _listen(self) -> None:
        with suppress(grpc.RpcError):
            for event in self._call:
                self.events.append(event)

    def of(self, kind: int, ref: str) -> Any:
        """The first event of a kind about an object."""
        return until(lambda: self._all_of(kind, ref), 10, f"no event {kind} of {ref}")[0]

    def _all_of(self, kind: int, ref: str) -> list[Any]:
        return [event for event in self.events if (event.container_event_type, event.container_id) == (kind, ref)]

    def stop(self) -> None:
        self._call.cancel()
        self._thread.join()


def test_an_event_tells_what_it_is_about(kubelet: Kubelet) -> None:
    """A kubelet with evented PLEG takes the states in it for the truth: there is no list before minutes have gone."""
    listener = Listener(kubelet)
    try:
        pod = kubelet.pod("p", network=True)
        for number in range(8):
            one = kubelet.run(pod, f"c{number}", "sh", "-c", f"sleep 0.1; exit {number + 1}")
            told = listener.of(api.CONTAINER_STARTED_EVENT, one)
            assert told.pod_sandbox_status.metadata.uid == "uid-p"
            assert told.pod_sandbox_status.state == api.SANDBOX_READY
            died = listener.of(api.CONTAINER_STOPPED_EVENT, one)
            mine = next(status for status in died.containers_statuses if status.id == one)
            assert (mine.state, mine.exit_code) == (api.CONTAINER_EXITED, number + 1)
            assert mine.finished_at >= mine.started_at > 0
        kubelet.stop_pod(pod)
        stopped = listener.of(api.CONTAINER_STOPPED_EVENT, pod)
        assert stopped.pod_sandbox_status.state == api.SANDBOX_NOTREADY
        kubelet.remove_pod(pod)
        listener.of(api.CONTAINER_DELETED_EVENT, one)
        listener.of(api.CONTAINER_DELETED_EVENT, pod)
        kinds = [event.container_event_type for event in listener.events if event.container_id == one]
        assert kinds == [
            api.CONTAINER_CREATED_EVENT, api.CONTAINER_STARTED_EVENT, api.CONTAINER_STOPPED_EVENT,
            api.CONTAINER_DELETED_EVENT,
        ]  # fmt: skip
    finally:
        listener.stop()


# ---- images


def test_an_image_by_every_name(kubelet: Kubelet) -> None:
    def image(name: str) -> str:
        return str(kubelet("ImageStatus", image=api.ImageSpec(image=name)).image.id)

    kubelet.wherryd.wherry("tag", kubelet.image, "localhost/other/name:2")
    told = kubelet("ImageStatus", image=api.ImageSpec(image=kubelet.image)).image
    assert set(told.repo_tags) == {"localhost/busybox:1", "localhost/other/name:2", *told.repo_tags}
    for name in (*told.repo_tags, *told.repo_digests, told.id, told.id.removeprefix("sha256:"), told.id[7:19]):
        assert image(name) == told.id, name
    digest = told.repo_digests[0].partition("@")[2]
    assert image(f"localhost/busybox:1@{digest}") == told.id, "a name with both"
    assert image("localhost/busybox") == "", "no tag is latest"
    assert image(f"localhost/busybox@sha256:{'0' * 64}") == ""
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *SLEEPS)
    listed = kubelet("ListContainers").containers[0]
    status = kubelet.status(one)
    assert {listed.image_ref, listed.image_id, status.image_ref, status.image_id} == {told.id}


def test_the_image_of_a_running_container_can_go(kubelet: Kubelet) -> None:
    """A kubelet never asks for that; crictl rmi does, and containerd does it. What runs goes on running."""
    pod = kubelet.pod("p")
    one = kubelet.run(pod, "one", *SLEEPS)
    with suppress(grpc.RpcError):
        kubelet("RemoveImage", image=api.ImageSpec(image=kubelet.image))
    assert kubelet.output(one, "echo", "hi") == "hi\n"
    assert kubelet.status(one).image_id == kubelet.image
