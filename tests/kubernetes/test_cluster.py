"""A whole cluster of one node: what kubectl shows and does, what pods find of what the API says, traffic by services, a
rolling update, a volume of wherry-csi; and the runtime killed over and over in the middle of it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.cluster import NODE, Cluster, eventually
from helpers.criimages import BUSYBOX, NGINX, NGINX_NEXT
from helpers.csi import residue
from helpers.csinode import CsiNode
from helpers.network import Outside
from helpers.registry import free_port
from helpers.runtimes import Runtime
from helpers.tools import run

Json = dict[str, Any]
pytestmark = pytest.mark.seconds(420)


@pytest.fixture(scope="module")
def cluster(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    made = Cluster(runtime.space, tmp_path_factory.mktemp("cluster") / "c", runtime.socket)
    made.start()
    return made


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the test's own; with it goes what is in it, at once."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    cluster.kubectl("create", "namespace", name)
    eventually(lambda: cluster.kubectl("-n", name, "get", "serviceaccount", "default", check=False).returncode == 0)
    yield name
    cluster.kubectl("-n", name, "delete", "deployment,pod,pvc", "--all", "--now", timeout=120)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def named(kind: str, name: str, namespace: str, version: str = "v1", **more: Any) -> Json:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **more}


def container(*command: str, name: str = "main", image: str = BUSYBOX, **more: Any) -> Json:
    words: Json = {"command": list(command)} if command else {}
    return {"name": name, "image": image, **words, **more}


def pod(name: str, namespace: str, *containers: Json, **spec: Any) -> Json:
    settings = {"terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}
    return named("Pod", name, namespace, spec=settings)


def web(namespace: str, replicas: int = 3, **more: Any) -> Json:
    """A Deployment `web` of the web server, whose readiness is probed."""
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    server = container(name="web", image=NGINX, readinessProbe=probe, ports=[{"containerPort": 80}], **more)
    template = {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [server], "terminationGracePeriodSeconds": 2}}  # fmt: skip
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return named("Deployment", "web", namespace, "apps/v1", spec=spec)


def service(namespace: str, **more: Any) -> Json:
    return named("Service", "web", namespace, spec={"selector": {"app": "web"}, "ports": [{"port": 80}], **more})


def available(cluster: Cluster, namespace: str, name: str = "web") -> None:
    cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=120s", timeout=130)


def ready(cluster: Cluster, namespace: str, *pods: str) -> None:
    for name in pods:
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s", timeout=100)


def ended(cluster: Cluster, namespace: str, name: str) -> Json:
    """The pod's status once it has ended."""
    def look() -> Json | None:
        told: Json = cluster.get("-n", namespace, "pod", name)["status"]
        return told if told.get("phase") in ("Succeeded", "Failed") else None

    found: Json = eventually(look, 90, f"{name} ends")
    return found


def execute(cluster: Cluster, namespace: str, where: str, *words: str) -> str:
    """`where`: a pod, or pod/container."""
    name, _, inner = where.partition("/")
    return cluster.kubectl("-n", namespace, "exec", name, *(["-c", inner] if inner else []), "--", *words).stdout


def fetch(url: str) -> str:
    """What a web server says; "" for nothing within 2 s."""
    return run("curl", "-sf", "-m", "2", url, check=False).stdout


# ---- what the API says, and what is found


def test_the_node_tells_its_runtime_and_is_ready(cluster: Cluster, runtime: Runtime) -> None:
    told = cluster.get("node", NODE)["status"]
    name = runtime.crictl("version").stdout.partition("RuntimeName:")[2].split()[0]
    assert told["nodeInfo"]["containerRuntimeVersion"].startswith(f"{name}://")
    assert {item["type"]: item["status"] for item in told["conditions"]} == {
        "Ready": "True", "MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False"}  # fmt: skip
    assert {item["type"]: item["address"] for item in told["addresses"]}["InternalIP"] == Outside.own


def test_a_pod_finds_what_its_api_objects_say(cluster: Cluster, namespace: str, place: Path) -> None:
    (place / "file").write_text("of the host\n")
    configured = named("ConfigMap", "settings", namespace, data={"colour": "green", "file.txt": "first\n"})
    secret = named("Secret", "keys", namespace, stringData={"password": "hunter2"})
    downward = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
    volumes: dict[str, Json] = {
        "settings": {"configMap": {"name": "settings"}},
        "keys": {"secret": {"secretName": "keys", "defaultMode": 0o400}},
        "own": {"emptyDir": {}}, "memory": {"emptyDir": {"medium": "Memory"}},
        "host": {"hostPath": {"path": str(place), "type": "Directory"}}, "downward": {"downwardAPI": downward},
    }  # fmt: skip
    env = [
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
    ]
    one = container("sleep", "1000", env=env, resources={"limits": {"cpu": "250m", "memory": "64Mi"}},
                    volumeMounts=[{"name": name, "mountPath": f"/v/{name}"} for name in volumes])  # fmt: skip
    whole = pod("facts", namespace, one, volumes=[{"name": name, **value} for name, value in volumes.items()])
    whole["metadata"]["labels"] = {"who": "me"}
    cluster.apply(configured, secret, whole)
    ready(cluster, namespace, "facts")
    status = cluster.get("-n", namespace, "pod", "facts")["status"]
    script = """echo $COLOUR $PASSWORD $IP $CPU; cat /v/settings/file.txt /v/keys/password /v/host/file; echo
                cat /v/downward/labels; echo; ls -lL /v/keys/password; hostname"""
    lines = execute(cluster, namespace, "facts", "sh", "-c", script).splitlines()
    assert lines[:5] == [f"green hunter2 {status['podIP']} 250", "first", "hunter2of the host", "", 'who="me"']
    assert lines[5].startswith("-r--------")
    assert lines[6] == "facts"
    assert "tmpfs" in execute(cluster, namespace, "facts", "grep", " /v/memory ", "/proc/mounts")
    execute(cluster, namespace, "facts", "sh", "-c", "echo back >/v/host/back; echo x >/v/own/x; echo x >/v/memory/x")
    assert (place / "back").read_text() == "back\n"
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert execute(cluster, namespace, "facts", "cat", token).count(".") == 2
    assert f"{status['podIP']}\tfacts" in execute(cluster, namespace, "facts", "cat", "/etc/hosts")


def test_an_image_is_a_volume(cluster: Cluster, namespace: str) -> None:
    """Read-only, whole and in part."""
    mounts = [{"name": "i", "mountPath": "/whole"}, {"name": "i", "mountPath": "/part", "subPath": "usr/sbin"}]
    volumes = [{"name": "i", "image": {"reference": NGINX}}]
    cluster.apply(pod("looks", namespace, container("sleep", "1000", volumeMounts=mounts), volumes=volumes))
    ready(cluster, namespace, "looks")
    assert "nginx" in execute(cluster, namespace, "looks", "ls", "/whole/usr/sbin").split()
    assert "nginx" in execute(cluster, namespace, "looks", "ls", "/part").split()
    said = execute(cluster, namespace, "looks", "sh", "-c", "touch /whole/x 2>&1 || true")
    assert said == "touch: /whole/x: Read-only file system\n"


def test_settings_that_change_are_seen_inside(cluster: Cluster, namespace: str) -> None:
    """The kubelet swaps a link in the volume; the mount must not be a copy."""
    cluster.apply(
        named("ConfigMap", "settings", namespace, data={"n": "1"}),
        pod("sees", namespace, container("sleep", "1000", volumeMounts=[{"name": "c", "mountPath": "/c"}]),
            volumes=[{"name": "c", "configMap": {"name": "settings"}}]),
    )  # fmt: skip
    ready(cluster, namespace, "sees")
    assert execute(cluster, namespace, "sees", "cat", "/c/n") == "1"
    cluster.apply(named("ConfigMap", "settings", namespace, data={"n": "2"}))
    eventually(lambda: execute(cluster, namespace, "sees", "cat", "/c/n") == "2", 150, "the new value is seen")


def test_ends_are_told_with_code_message_and_order(cluster: Cluster, namespace: str) -> None:
    """Init containers in their order, a sidecar beside them, exit code, termination message, the log of each."""
    volumes = [{"name": "v", "emptyDir": {}}]
    mounts = [{"name": "v", "mountPath": "/v"}]
    first = container("sh", "-c", "echo 1 >>/v/o", name="first", volumeMounts=mounts)
    started = {"exec": {"command": ["grep", "-q", "side", "/v/o"]}, "periodSeconds": 1}
    side = container("sh", "-c", "trap 'exit 0' TERM; echo side >>/v/o; while :; do sleep 0.1; done", name="side",
                     restartPolicy="Always", volumeMounts=mounts, startupProbe=started)
    second = container("sh", "-c", "echo 2 >>/v/o", name="second", volumeMounts=mounts)
    script = "cat /v/o; echo to err >&2; echo why >/dev/termination-log; exit 3"
    main = container("sh", "-c", script, volumeMounts=mounts)
    spec = {"volumes": volumes, "restartPolicy": "Never", "initContainers": [first, side, second]}
    cluster.apply(pod("ends", namespace, main, **spec))
    status = ended(cluster, namespace, "ends")
    assert status["phase"] == "Failed"
    told = status["containerStatuses"][0]["state"]["terminated"]
    assert (told["exitCode"], told["reason"], told["message"]) == (3, "Error", "why\n")
    assert cluster.kubectl("-n", namespace, "logs", "ends", "-c", "main").stdout == "1\nside\n2\nto err\n"


def test_hooks_and_grace_are_kept(cluster: Cluster, namespace: str, place: Path) -> None:
    """postStart before Ready; preStop, then TERM, then the grace period, then KILL."""
    hooks = {"postStart": {"exec": {"command": ["sh", "-c", "echo post >>/h/o"]}},
             "preStop": {"exec": {"command": ["sh", "-c", "echo pre >>/h/o"]}}}  # fmt: skip
    main = container("sh", "-c", "trap 'echo term >>/h/o' TERM; while :; do sleep 0.1; done", lifecycle=hooks,
                     volumeMounts=[{"name": "h", "mountPath": "/h"}])  # fmt: skip
    cluster.apply(pod("hooked", namespace, main, terminationGracePeriodSeconds=3,
                      volumes=[{"name": "h", "hostPath": {"path": str(place)}}]))  # fmt: skip
    ready(cluster, namespace, "hooked")
    started = time.monotonic()
    cluster.kubectl("-n", namespace, "delete", "pod", "hooked", timeout=60)
    assert 2.5 < time.monotonic() - started < 20
    assert (place / "o").read_text().split() == ["post", "pre", "term"]


def test_namespaces_are_shared_as_asked(cluster: Cluster, namespace: str) -> None:
    """hostNetwork, one pid namespace for a pod, localhost between its containers, a user namespace."""
    server = container(name="web", image=NGINX)
    other = container("sleep", "1000", name="other")
    cluster.apply(
        pod("host", namespace, other, hostNetwork=True),
        pod("shared", namespace, server, other, shareProcessNamespace=True),
        pod("mapped", namespace, other, hostUsers=False),
    )  # fmt: skip
    ready(cluster, namespace, "host", "shared", "mapped")
    assert cluster.get("-n", namespace, "pod", "host")["status"]["podIP"] == Outside.own
    said = execute(cluster, namespace, "shared/other", "sh", "-c", "wget -qO- localhost; pidof nginx sleep")
    assert said.startswith("nginx 1.14 shared\n")
    assert len(said.split("\n")[1].split()) == 2
    assert execute(cluster, namespace, "mapped", "cat", "/proc/self/uid_map").split()[1] != "0"
    assert execute(cluster, namespace, "mapped", "id", "-u") == "0\n"


# ---- kubectl


def test_kubectl_shows_runs_and_copies(cluster: Cluster, namespace: str, place: Path) -> None:
    talks = container("sh", "-c", "echo here; cat; echo gone", stdin=True, stdinOnce=True)
    cluster.apply(pod("one", namespace, talks, restartPolicy="Never"))
    ready(cluster, namespace, "one")
    address = cluster.get("-n", namespace, "pod", "one")["status"]["podIP"]
    shown = cluster.kubectl("-n", namespace, "get", "pods", "-o", "wide").stdout.splitlines()[1].split()
    assert shown[:4] == ["one", "1/1", "Running", "0"]
    assert address in shown
    assert NODE in shown
    assert execute(cluster, namespace, "one", "sh", "-c", "echo out; echo err >&2") == "out\n"
    failed = cluster.kubectl("-n", namespace, "exec", "one", "--", "sh", "-c", "exit 7", check=False)
    assert failed.returncode == 7
    given = cluster.kubectl("-n", namespace, "exec", "-i", "one", "--", "sha256sum", stdin="x" * 3_000_000)
    assert given.stdout.startswith(run("sha256sum", stdin="x" * 3_000_000).stdout.split()[0])
    (place / "file").write_bytes(bytes(range(256)) * 1000)
    cluster.kubectl("-n", namespace, "cp", place / "file", "one:/tmp/file")
    cluster.kubectl("-n", namespace, "cp", "one:/tmp/file", place / "back")
    assert (place / "back").read_bytes() == (place / "file").read_bytes()
    attached = cluster.kubectl("-n", namespace, "attach", "-i", "one", stdin="to it\n", timeout=30)
    assert attached.stdout.endswith("to it\ngone\n")
    assert ended(cluster, namespace, "one")["phase"] == "Succeeded"
    assert cluster.kubectl("-n", namespace, "logs", "one").stdout == "here\nto it\ngone\n"


@pytest.mark.calm
def test_a_terminal_has_its_size(cluster: Cluster, namespace: str, runtime: Runtime) -> None:
    cluster.apply(pod("one", namespace, container("sleep", "1000")))
    ready(cluster, namespace, "one")
    words = cluster.command("-n", namespace, "exec", "-it", "one", "--", "sh", "-c", "sleep 0.5; stty size; tty")
    shown = runtime.space.terminal(*words, rows=31, columns=91)
    assert "31 91" in shown
    assert "/dev/pts/" in shown


def test_logs_are_followed_to_their_end_and_kept_of_the_life_before(cluster: Cluster, namespace: str) -> None:
    command = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.3; done; exit 1"
    cluster.apply(pod("talks", namespace, container("sh", "-c", command)))
    ready(cluster, namespace, "talks")
    followed = cluster.kubectl("-n", namespace, "logs", "-f", "talks", timeout=60).stdout
    assert followed == "".join(f"line {number}\n" for number in range(1, 9))

    def again() -> bool:
        return bool(cluster.get("-n", namespace, "pod", "talks")["status"]["containerStatuses"][0]["restartCount"] > 0)

    eventually(again, 60, "it is started again")
    assert cluster.kubectl("-n", namespace, "logs", "--previous", "talks").stdout.startswith("line 1\n")
    last = cluster.kubectl("-n", namespace, "logs", "--previous", "--tail=2", "talks").stdout
    assert last == "line 7\nline 8\n"


def test_an_ephemeral_container_joins_a_running_pod(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("one", namespace, container(name="web", image=NGINX)))
    ready(cluster, namespace, "one")
    cluster.kubectl("-n", namespace, "debug", "one", f"--image={BUSYBOX}", "--target=web", "-c", "look", "--",
                    "sh", "-c", "pidof nginx && wget -qO- localhost; sleep 1000")  # fmt: skip
    words = ("-n", namespace, "logs", "one", "-c", "look")
    eventually(lambda: "nginx 1.14 one" in cluster.kubectl(*words, check=False).stdout)


@pytest.mark.calm
def test_port_forward_carries_many_connections(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("one", namespace, container(name="web", image=NGINX)))
    ready(cluster, namespace, "one")
    with forwarded(cluster, namespace, "pod/one") as port:
        assert {fetch(f"http://127.0.0.1:{port}/") for _ in range(20)} == {"nginx 1.14 one\n"}


@contextmanager
def forwarded(cluster: Cluster, namespace: str, what: str) -> Iterator[int]:
    """The local port that leads to port 80 of it."""
    port = free_port()
    command = cluster.command("-n", namespace, "port-forward", what, f"{port}:80")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert "Forwarding from" in process.stdout.readline()
        yield port
        process.terminate()


# ---- deployments and services


def test_a_service_spreads_over_a_deployment(cluster: Cluster, namespace: str) -> None:
    started = time.monotonic()
    cluster.apply(web(namespace), service(namespace, type="NodePort"))
    available(cluster, namespace)
    print(f"Available after {time.monotonic() - started:.1f} s")
    told = cluster.get("-n", namespace, "service", "web")["spec"]
    pods = {item["metadata"]["name"] for item in cluster.get("-n", namespace, "pods", "-l", "app=web")}
    inner, outer = f"http://{told['clusterIP']}/", f"http://{Outside.own}:{told['ports'][0]['nodePort']}/"

    def answering(url: str) -> set[str]:
        return {fetch(url).removeprefix("nginx 1.14 ").strip() for _ in range(12)} - {""}

    eventually(lambda: answering(inner) == pods, 60, f"all answer at {inner}")
    eventually(lambda: answering(outer) == pods, 60, f"all answer at {outer}")
    cluster.apply(pod("asks", namespace, container("sleep", "1000")))
    ready(cluster, namespace, "asks")
    assert "nginx 1.14" in execute(cluster, namespace, "asks", "wget", "-qO-", inner)
    address = cluster.get("-n", namespace, "pods", "-l", "app=web")[0]["status"]["podIP"]
    assert "nginx 1.14" in execute(cluster, namespace, "asks", "wget", "-qO-", f"http://{address}/")
    with forwarded(cluster, namespace, "service/web") as port:
        assert "nginx 1.14" in fetch(f"http://127.0.0.1:{port}/")


def test_a_rolling_update_never_lets_the_service_down(cluster: Cluster, namespace: str) -> None:
    cluster.apply(web(namespace, lifecycle={"preStop": {"sleep": {"seconds": 1}}}), service(namespace))
    available(cluster, namespace)
    url = f"http://{cluster.get('-n', namespace, 'service', 'web')['spec']['clusterIP']}/"
    eventually(lambda: fetch(url), 60)
    with asked(url) as answers:
        cluster.kubectl("-n", namespace, "set", "image", "deployment/web", f"web={NGINX_NEXT}")
        available(cluster, namespace)
        time.sleep(1)
    assert answers.count("") == 0, f"{answers.count('')} of {len(answers)} requests had no answer"
    assert {answer.rpartition(" ")[0] for answer in answers} == {"nginx 1.14", "nginx 1.15"}
    assert fetch(url).startswith("nginx 1.15 ")
    cluster.kubectl("-n", namespace, "rollout", "undo", "deployment/web")
    available(cluster, namespace)
    eventually(lambda: fetch(url).startswith("nginx 1.14 "), 30)


@contextmanager
def asked(url: str) -> Iterator[list[str]]:
    """What a web server says, over and over."""
    answers: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.05):
            answers.append(fetch(url))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def test_limits_defaults_and_quotas(cluster: Cluster, namespace: str) -> None:
    """A LimitRange's defaults reach the runtime; what a ResourceQuota refuses never does."""
    limits = {"type": "Container", "default": {"memory": "48Mi", "cpu": "200m"},
              "defaultRequest": {"memory": "16Mi", "cpu": "10m"}}  # fmt: skip
    cluster.apply(
        named("LimitRange", "usual", namespace, spec={"limits": [limits]}),
        named("ResourceQuota", "most", namespace, spec={"hard": {"pods": "2", "limits.memory": "128Mi"}}),
    )
    eventually(lambda: "hard" in cluster.get("-n", namespace, "resourcequota", "most").get("status", {}))
    cluster.apply(pod("small", namespace, container("sleep", "1000")))
    ready(cluster, namespace, "small")
    found = cluster.get("-n", namespace, "pod", "small")
    assert found["spec"]["containers"][0]["resources"]["limits"] == {"memory": "48Mi", "cpu": "200m"}
    assert found["status"]["qosClass"] == "Burstable"
    large = json.dumps(pod("large", namespace, container("true", resources={"limits": {"memory": "100Mi"}})))
    refused = cluster.kubectl("apply", "-f", "-", stdin=large, check=False)
    assert refused.returncode
    assert "exceeded quota" in refused.stderr


# ---- storage


@pytest.mark.calm
def test_a_claim_is_bound_by_wherry_csi_and_kept(
    cluster: Cluster, namespace: str, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Provisioned where the pod is, mounted at its own size, kept from pod to pod and over the runtime's death."""
    pool = tmp_path_factory.mktemp("pool")
    claim = {"accessModes": ["ReadWriteOnce"], "storageClassName": "wherry",
             "resources": {"requests": {"storage": "64Mi"}}}  # fmt: skip
    with CsiNode(cluster, pool):
        cluster.apply(named("PersistentVolumeClaim", "data", namespace, spec=claim))
        cluster.apply(holder("first", namespace))
        ready(cluster, namespace, "first")
        execute(cluster, namespace, "first", "sh", "-c", "echo kept >/data/file; sync")
        blocks = int(execute(cluster, namespace, "first", "df", "-k", "/data").splitlines()[-1].split()[1])
        assert 40 << 10 < blocks <= 64 << 10
        runtime.kill()
        runtime.start()
        assert execute(cluster, namespace, "first", "cat", "/data/file") == "kept\n"
        cluster.kubectl("-n", namespace, "delete", "pod", "first", timeout=60)
        cluster.apply(holder("second", namespace))
        ready(cluster, namespace, "second")
        assert execute(cluster, namespace, "second", "cat", "/data/file") == "kept\n"
        cluster.kubectl("-n", namespace, "delete", "pod", "second", timeout=60)
        cluster.kubectl("-n", namespace, "delete", "pvc", "data", timeout=60)
        eventually(lambda: not cluster.get("persistentvolume"), 90, "the volume goes with its claim")
    assert residue(pool) == []


def holder(name: str, namespace: str) -> Json:
    """A pod with the claim `data` at /data."""
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    return pod(name, namespace, container("sleep", "1000", volumeMounts=mounts), volumes=volumes)


# ---- wherryd dies


@pytest.mark.calm
def test_the_runtime_is_killed_in_the_middle_of_everything(cluster: Cluster, namespace: str, runtime: Runtime) -> None:
    """While a Deployment is made, updated and scaled: all comes out as asked; what ran goes on, as the same process."""
    cluster.apply(pod("stays", namespace, container("sh", "-c", "while :; do date +%s; sleep 0.2; done")))
    ready(cluster, namespace, "stays")
    before = cluster.get("-n", namespace, "pod", "stays")["status"]["containerStatuses"][0]
    kills = 0

    def kill(times: int) -> None:
        nonlocal kills
        for _ in range(times):
            time.sleep(0.7)
            runtime.kill()
            kills += 1
            time.sleep(0.2)
            runtime.start()

    cluster.apply(web(namespace, replicas=4), service(namespace))
    kill(3)
    available(cluster, namespace)
    cluster.kubectl("-n", namespace, "set", "image", "deployment/web", f"web={NGINX_NEXT}")
    kill(3)
    available(cluster, namespace)
    cluster.kubectl("-n", namespace, "scale", "deployment/web", "--replicas=2")
    kill(2)
    eventually(lambda: len(cluster.get("-n", namespace, "pods", "-l", "app=web")) == 2, 120, "two are left")
    after = cluster.get("-n", namespace, "pod", "stays")["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"], after["state"]) == (before["containerID"], 0, before["state"])
    times = [int(line) for line in cluster.kubectl("-n", namespace, "logs", "stays").stdout.split()]
    assert max(times[i + 1] - times[i] for i in range(len(times) - 1)) <= 2, "its log has no hole"
    assert execute(cluster, namespace, "stays", "echo", "well") == "well\n"
    assert kills == 8
    eventually(lambda: left_over(cluster, runtime) == set(), 120, "the runtime has no pod that the API has not")


def left_over(cluster: Cluster, runtime: Runtime) -> set[str]:
    """Names of ready pods of the runtime that the API knows nothing of."""
    listed = json.loads(runtime.crictl("pods", "--state", "ready", "-o", "json").stdout)["items"]
    known = {item["metadata"]["uid"] for item in cluster.get("pods", "-A")}
    return {item["metadata"]["name"] for item in listed if item["metadata"]["uid"] not in known}
