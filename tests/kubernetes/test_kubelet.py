"""A kubelet without a cluster runs static pods: what it made of a manifest is what the process finds; it follows the
manifest's changes, probes, restarts, and the runtime's death in between."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cluster import Kubelet, eventually
from helpers.criimages import BUSYBOX, NGINX
from helpers.runtimes import Runtime
from helpers.tools import run

Json = dict[str, Any]
pytestmark = pytest.mark.seconds(300)


@pytest.fixture(scope="module")
def kubelet(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Kubelet:
    made = Kubelet(runtime.space, tmp_path_factory.mktemp("kubelet") / "kubelet", runtime.socket)
    made.start()
    return made


def container(runtime: Runtime, pod: str, name: str, *words: str) -> str:
    """The id of a pod's container, running unless words say else."""
    told = runtime.crictl("ps", "-q", "--name", f"^{name}$", "--label", f"io.kubernetes.pod.name={pod}-node", *words)
    return told.stdout.split()[0]


def test_a_web_server_with_a_probe_answers_and_goes_with_its_manifest(kubelet: Kubelet, runtime: Runtime) -> None:
    probe = {"httpGet": {"port": 80, "path": "/"}, "periodSeconds": 1}
    ports = [{"containerPort": 80, "hostPort": 18080}]
    file = kubelet.put("web", {"name": "web", "image": NGINX, "ports": ports, "readinessProbe": probe})
    told = kubelet.ready("web")
    assert told["podIP"].startswith("10.88.")
    for address in (f"{told['podIP']}:80", "127.0.0.1:18080"):
        assert run("curl", "-sf", f"http://{address}/").stdout == "nginx 1.14 web-node\n"
    assert told["containerStatuses"][0]["containerID"].startswith(f"{name_of(runtime)}://")
    file.unlink()
    eventually(lambda: not kubelet.status("web"), 60, "the pod goes")
    eventually(lambda: "web-node" not in runtime.crictl("pods", "--state", "ready").stdout, 30, "it stops")


def name_of(runtime: Runtime) -> str:
    """The runtime's own name of itself."""
    return runtime.crictl("version").stdout.partition("RuntimeName:")[2].split()[0]


def test_what_the_manifest_says_is_what_the_process_finds(kubelet: Kubelet, runtime: Runtime, place: Path) -> None:
    (place / "given").write_text("of the host\n")
    security = {"runAsUser": 1000, "runAsGroup": 100, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}, "allowPrivilegeEscalation": False}  # fmt: skip
    script = "id -u; id -g; id -G; cat /h/given; hostname; echo $WHO; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status"
    one = {"name": "one", "image": BUSYBOX, "command": ["sh", "-c", f"{script}; touch /x; exec sleep 1000"],
           "env": [{"name": "WHO", "value": "me"}], "securityContext": security, "volumeMounts": [
               {"name": "host", "mountPath": "/h", "readOnly": True}, {"name": "own", "mountPath": "/e"}]}  # fmt: skip
    first = {"name": "first", "image": BUSYBOX, "command": ["sh", "-c", "echo made >/e/by-first"],
             "volumeMounts": [{"name": "own", "mountPath": "/e"}]}  # fmt: skip
    volumes = [{"name": "host", "hostPath": {"path": str(place)}}, {"name": "own", "emptyDir": {"medium": "Memory"}}]
    kubelet.put("facts", one, volumes=volumes, initContainers=[first],
                securityContext={"supplementalGroups": [4242], "fsGroup": 4343})  # fmt: skip
    kubelet.ready("facts")
    own = container(runtime, "facts", "one")
    eventually(lambda: "/x" in runtime.crictl("logs", own).stderr, 30, "it has said all")
    said = runtime.crictl("logs", own)
    assert said.stdout.split("\n")[:2] == ["1000", "100"]
    assert {"100", "4242", "4343"} <= set(said.stdout.split("\n")[2].split())
    assert said.stdout.split("\n")[3:6] == ["of the host", "facts-node", "me"]
    assert "CapEff:\t0000000000000000" in said.stdout
    assert "NoNewPrivs:\t1" in said.stdout
    assert said.stderr.endswith("touch: /x: Read-only file system\n")
    assert runtime.crictl("exec", own, "cat", "/e/by-first").stdout == "made\n"


def test_a_failing_liveness_probe_restarts_it(kubelet: Kubelet, runtime: Runtime) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 1,
             "initialDelaySeconds": 2}  # fmt: skip
    command = ["sh", "-c", "echo life; touch /tmp/well; sleep 4; rm /tmp/well; exec sleep 1000"]
    kubelet.put("ill", {"name": "ill", "image": BUSYBOX, "command": command, "livenessProbe": probe})

    def restarted() -> Any:
        states = kubelet.status("ill").get("containerStatuses") or [{}]
        return states[0].get("restartCount", 0) >= 1 and states[0]

    told = eventually(restarted, 120, f"it is restarted: {kubelet.log}")
    assert told["lastState"]["terminated"]["exitCode"] == 137
    logs = next(kubelet.place.glob("logs/default_ill-node_*/ill"))
    assert sorted(file.name for file in logs.iterdir())[:2] == ["0.log", "1.log"]


def identity(runtime: Runtime, container: str) -> tuple[Any, ...]:
    """What stays while the same process runs."""
    told = json.loads(runtime.crictl("inspect", container).stdout)
    return told["status"]["state"], told["status"]["startedAt"], told["info"]["pid"]


@pytest.mark.calm
def test_the_runtime_is_killed_and_nothing_is_lost(kubelet: Kubelet, runtime: Runtime) -> None:
    """Containers run on, as the same processes; a manifest that comes while it is away is run when it is back."""
    command = ["sh", "-c", "while :; do date +%s; sleep 0.2; done"]
    kubelet.put("stays", {"name": "stays", "image": BUSYBOX, "command": command})
    kubelet.ready("stays")
    own = container(runtime, "stays", "stays")
    before = identity(runtime, own)
    runtime.kill()
    kubelet.put("late", {"name": "late", "image": BUSYBOX, "command": command})
    runtime.start()
    assert identity(runtime, own) == before
    kubelet.ready("late")
    assert kubelet.status("stays")["containerStatuses"][0]["restartCount"] == 0
    times = [int(line) for line in runtime.crictl("logs", own).stdout.split()]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 2, "its log has no hole"
