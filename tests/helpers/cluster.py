"""A kubelet, and a cluster of one node around it, on a runtime that is told by its socket.

Decides the settings that this kind of machine needs (cgroups without controllers, no CAP_SYS_RESOURCE) and where all of
it lives: one directory, the mounts and processes of one Space, the network of the session. Refuses to know the runtime.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .gotools import KUBERNETES, tool
from .network import Outside
from .ociruntime import Space
from .runtimes import SPEAKING
from .tools import need, run

__all__ = ["NODE", "Cluster", "Kubelet", "eventually", "space"]

Json = dict[str, Any]
NODE, TOKEN = "node", "a-token-of-the-tests"
PODS, SERVICES = "10.88.0.0/16", "10.96.0.0/16"
#: verbs of kubectl that speak through the runtime
_STREAMS = {"attach", "cp", "debug", "exec", "logs"}
#: what programs know by these paths only
_PRIVATE = ("/var/lib", "/var/log", "/run/containerd", "/run/netns", "/opt")


def eventually(look: Callable[[], Any], seconds: float = 90, what: str = "") -> Any:
    """Wait until it tells something true; the answer."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds} s: {what or look}"
        time.sleep(0.2)
    return found


def space() -> Space:
    """Mounts and processes for a node: what is mounted in there is seen by all in there, as on a host."""
    need("openssl", "nft")
    return Space(private=_PRIVATE)


class Kubelet:
    """The kubelet alone (`api` is empty), which runs the manifests in `manifests`, or of a cluster.

    `driver`: of cgroups, on a host whose cgroup v2 has its controllers; "": no cgroups of the kubelet's.
    """

    def __init__(self, where: Space, place: Path, socket: Path, api: str = "", *, driver: str = "") -> None:
        self._space, self.place, self.log = where, place, place / "kubelet.log"
        self.manifests = place / "manifests"
        for directory in (self.manifests, place / "root", place / "logs", place / "plugins"):
            directory.mkdir(parents=True)
        where.run("mount", "--make-rshared", "/")
        (place / "resolv.conf").write_text("nameserver 192.0.2.1\n")
        (place / "kubelet.json").write_text(json.dumps({**self._settings(socket), **self._cgroups(driver)}))
        words = (f"--root-dir={place}/root", f"--cert-dir={place}/pki", f"--node-ip={Outside.own}", "--v=2",
                 f"--hostname-override={NODE}", f"--config={place}/kubelet.json")  # fmt: skip
        self._words = (tool("kubelet", KUBERNETES), *words, *([f"--kubeconfig={api}"] if api else []))

    def start(self) -> None:
        ready = ("curl", "-sf", "http://127.0.0.1:10248/healthz")
        self._space.daemon(self.log, ready, *self._words, seconds=120)

    def put(self, name: str, *containers: Json, **spec: Any) -> Path:
        """A pod's manifest, there at once as a whole; its file, whose end is the pod's."""
        value = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
                 "spec": {"terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}}  # fmt: skip
        written = self.place / f"{name}.json"
        written.write_text(json.dumps(value))
        return written.rename(self.manifests / written.name)

    def status(self, name: str) -> Json:
        """What it thinks of the pod; empty until it knows of it."""
        told = json.loads(run("curl", "-sf", "http://127.0.0.1:10255/pods").stdout)["items"] or []
        found: list[Json] = [pod["status"] for pod in told if pod["metadata"]["name"] == f"{name}-{NODE}"]
        return found[0] if found else {}

    def ready(self, name: str) -> Json:
        """Its status, once it is Ready."""
        def look() -> Json | None:
            told = self.status(name)
            ready = any(item["type"] == "Ready" and item["status"] == "True" for item in told.get("conditions", []))
            return told if ready else None

        found: Json = eventually(look, 120, f"{name} is ready: {self.log}")
        return found

    def _settings(self, socket: Path) -> Json:
        return {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "containerRuntimeEndpoint": f"unix://{socket}", "staticPodPath": str(self.manifests),
            "oomScoreAdj": 0, "failSwapOn": False, "protectKernelDefaults": False, "makeIPTablesUtilChains": False,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"}, "readOnlyPort": 10255, "address": "0.0.0.0",
            "podLogsDir": str(self.place / "logs"), "volumePluginDir": str(self.place / "plugins"),
            "resolvConf": str(self.place / "resolv.conf"), "fileCheckFrequency": "1s", "syncFrequency": "2s",
            "nodeStatusUpdateFrequency": "2s", "serializeImagePulls": False, "shutdownGracePeriod": "0s",
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                             "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
        }  # fmt: skip


    def _cgroups(self, driver: str) -> Json:
        """Beside cgroup v1, which has the controllers, there are no trees of the kubelet's, and no limits."""
        if driver:
            return {"cgroupDriver": driver, "cgroupsPerQOS": True, "enforceNodeAllocatable": ["pods"]}
        return {"failCgroupV1": False, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": False, "enforceNodeAllocatable": [],
                "cgroupRoot": f"/{self.place.parent.name}"}  # fmt: skip


class Cluster:
    """`cluster.kubectl("get", "pods")`; everything runs as system:masters, by one token."""

    def __init__(self, where: Space, place: Path, socket: Path) -> None:
        need("etcd")
        self.space, self.place = where, place
        place.mkdir(parents=True, exist_ok=True)
        self.config = place / "kubeconfig"
        self._certify()
        self.config.write_text(json.dumps(self._access()))
        self.kubelet = Kubelet(where, place / "kubelet", socket, str(self.config))

    def start(self) -> None:
        """Each once the one before it answers; returns when the node is Ready."""
        self._etcd()
        self._apiserver()
        self._others()
        self.kubelet.start()
        self.daemon("kube-proxy", f"--kubeconfig={self.config}", "--proxy-mode=nftables", f"--hostname-override={NODE}",
                    f"--cluster-cidr={PODS}", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
                    "--conntrack-tcp-timeout-close-wait=0s",
                    ready=("curl", "-sf", "http://127.0.0.1:10256/livez"))  # fmt: skip
        eventually(lambda: self.condition("node", NODE, "Ready") == "True", 120, "the node is Ready")
        eventually(lambda: self.kubectl("get", "serviceaccount", "default", check=False).returncode == 0)

    def kubectl(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run kubectl; its output is in the failure's message."""
        with SPEAKING if _STREAMS & set(words) else contextlib.nullcontext():
            return run(*self.command(*words), **options)

    def command(self, *words: object) -> list[str]:
        """kubectl's command line."""
        return [str(word) for word in (tool("kubectl", KUBERNETES), f"--kubeconfig={self.config}", *words)]

    def apply(self, *objects: Json) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def get(self, *words: object) -> Any:
        """One object, or the items of a list."""
        told = json.loads(self.kubectl("get", *words, "-o", "json").stdout)
        return told.get("items", told)

    def condition(self, kind: str, name: str, wanted: str, *words: object) -> str:
        """The status of one of its conditions, "" where it has none."""
        done = self.kubectl("get", kind, name, *words, "-o", "json", check=False)
        listed = json.loads(done.stdout)["status"].get("conditions", []) if done.returncode == 0 else []
        return next((str(item["status"]) for item in listed if item["type"] == wanted), "")

    def daemon(self, program: str, *words: object, ready: tuple[object, ...]) -> None:
        self.space.daemon(self.place / f"{program}.log", ready, tool(program, KUBERNETES), *words, seconds=120)

    def _etcd(self) -> None:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self.space.daemon(
            self.place / "etcd.log", ("curl", "-sf", f"{client}/health"), "etcd", "--data-dir", self.place / "etcd",
            "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        )  # fmt: skip

    def _apiserver(self) -> None:
        key = self.place / "key.pem"
        (self.place / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        self.daemon(
            "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--service-cluster-ip-range={SERVICES}",
            "--secure-port=6443", f"--advertise-address={Outside.own}", f"--tls-cert-file={self.place}/cert.pem",
            f"--tls-private-key-file={key}", f"--token-auth-file={self.place}/tokens.csv", "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}", "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true", ready=self._ready(6443, "/readyz"),
        )  # fmt: skip

    def _others(self) -> None:
        self.daemon(
            "kube-controller-manager", f"--kubeconfig={self.config}", "--leader-elect=false",
            f"--service-account-private-key-file={self.place}/key.pem", f"--root-ca-file={self.place}/cert.pem",
            f"--cert-dir={self.place}/pki", ready=self._ready(10257, "/healthz"),
        )  # fmt: skip
        self.daemon("kube-scheduler", f"--kubeconfig={self.config}", "--leader-elect=false",
                    f"--cert-dir={self.place}/pki", ready=self._ready(10259, "/healthz"))  # fmt: skip

    def _ready(self, port: int, path: str) -> tuple[object, ...]:
        return ("curl", "-sfk", "-H", f"Authorization: Bearer {TOKEN}", f"https://127.0.0.1:{port}{path}")

    def _certify(self) -> None:
        """One key and one certificate that is its own authority: of the API server and of service accounts' tokens."""
        names = f"subjectAltName=DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{Outside.own},IP:10.96.0.1"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kubernetes",
            "-addext", names, "-keyout", self.place / "key.pem", "-out", self.place / "cert.pem")  # fmt: skip

    def _access(self) -> Json:
        server = {"server": "https://127.0.0.1:6443", "certificate-authority": str(self.place / "cert.pem")}
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": server}], "users": [{"name": "it", "user": {"token": TOKEN}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }  # fmt: skip
