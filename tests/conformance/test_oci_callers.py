"""Engines that call an OCI runtime by its command line, with wherry-oci as that runtime.

Each test has a caller of its own: daemons on sockets below the test's directory, images made on the spot, mounts and
processes apart from the host's, no network beside the session's. WHERRY_TEST_RUNTIME=runc runs the same with another.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import tools
from helpers.bundles import make_root
from helpers.engines import IMAGE, Containerd, Crictl, Podman, kubernetes, packed
from helpers.ociruntime import Space
from helpers.registry import Registry
from helpers.wherry import until
from wherry.image.store import ImageStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# ---- podman: every container through conmon ----


@pytest.fixture
def podman(runtime: Path, busybox: str, place: Path, test_id: str) -> Iterator[Podman]:
    tools.need("podman", "conmon")
    with Space() as space:
        own = Podman(space, place, runtime, test_id)
        own.load(busybox)
        yield own
        own("rm", "-a", "-f", "-t", "0")


def test_podman_run(podman: Podman) -> None:
    done = podman.run("--rm", "--env", "A=b c", "-w", "/tmp", IMAGE, "sh", "-c", "echo $A; pwd; echo no >&2")
    assert done.stdout == "b c\n/tmp\n"
    assert done.stderr == "no\n"
    assert podman.run("--rm", "-i", IMAGE, "cat", stdin="through\n").stdout == "through\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 7"), 7), (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137), (("no",), 127), (("/etc",), 126)],
)
def test_podman_exit_codes(podman: Podman, command: tuple[str, ...], code: int) -> None:
    """126 and 127 are read by podman out of the runtime's JSON log."""
    assert podman.run("--rm", IMAGE, *command, check=False).returncode == code


def test_podman_life(podman: Podman) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    ref = podman.run("-d", IMAGE, "sh", "-c", script).stdout.strip()
    state = podman.inspect(ref)["State"]
    assert state["Status"] == "running"
    assert state["Pid"] > 1
    until(lambda: podman.out("logs", ref) == "hello")
    assert podman("exec", ref, "cat", "/proc/1/comm").stdout == "sh\n"
    podman("exec", "-d", ref, "touch", "/tmp/here")
    until(lambda: podman("exec", ref, "test", "-e", "/tmp/here", check=False).returncode == 0)
    assert podman("exec", ref, "sh", "-c", "exit 9", check=False).returncode == 9
    assert podman("exec", ref, "no-such", check=False).returncode == 127
    flags = ("--user", "33:33", "-e", "B=1", "-w", "/tmp")
    assert podman("exec", *flags, ref, "sh", "-c", "id -u; echo $B; pwd").stdout == "33\n1\n/tmp\n"
    podman("stop", "-t", "10", ref)
    assert podman.inspect(ref)["State"]["ExitCode"] == 3
    assert podman.out("logs", ref).splitlines() == ["hello", "bye"]
    podman("start", ref)
    assert podman.inspect(ref)["State"]["Status"] == "running"
    podman("kill", "-s", "KILL", ref)
    assert podman.out("wait", ref) == "137"


def test_podman_terminal(podman: Podman) -> None:
    """conmon hands the runtime a --console-socket."""
    done = podman.run("--rm", "-t", IMAGE, "sh", "-c", "tty; test -t 1 && echo terminal")
    assert re.fullmatch(r"/dev/\S+\nterminal\n", done.stdout)
    ref = podman.run("-d", IMAGE, "sleep", "100").stdout.strip()
    assert podman("exec", "-t", ref, "sh", "-c", "test -t 0 && echo terminal").stdout == "terminal\n"


def test_podman_pause(podman: Podman) -> None:
    ref = podman.run("-d", IMAGE, "sleep", "100").stdout.strip()
    podman("pause", ref)
    assert podman.inspect(ref)["State"]["Status"] == "paused"
    podman("unpause", ref)
    assert podman.inspect(ref)["State"]["Status"] == "running"


def test_podman_init(podman: Podman) -> None:
    tools.need("tini-static")
    command = ("sh", "-c", "cat /proc/1/comm; exit 4")
    done = podman.run("--rm", "--init", "--init-path", "/usr/bin/tini-static", IMAGE, *command, check=False)
    assert (done.stdout, done.returncode) == ("podman-init\n", 4)


def test_podman_user_namespace(podman: Podman) -> None:
    maps = ("--uidmap", "0:200000:1000", "--gidmap", "0:300000:1000")
    script = "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /root/mine"
    done = podman.run("--rm", *maps, IMAGE, "sh", "-c", script)
    assert done.stdout.split() == ["0", "0", "200000", "1000", "0", "300000", "1000"]


def test_podman_confinement(podman: Podman) -> None:
    flags = ("--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges",
             "--user", "33", "--hostname", "box", "--tmpfs", "/scratch:size=1m", "--sysctl", "kernel.msgmax=4096")
    script = "touch /x 2>&1; hostname; df -k /scratch | tail -1 | awk '{print $2}'; cat /proc/sys/kernel/msgmax"
    script += "; grep -E '^(CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status"
    done = podman.run("--rm", *flags, IMAGE, "sh", "-c", script)
    assert done.stdout.split("\n")[:4] == ["touch: /x: Read-only file system", "box", "1024", "4096"]
    assert done.stdout.split()[-6:] == ["CapBnd:", f"{1:016x}", "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_podman_pulls_and_runs_what_we_push(podman: Podman, busybox: str, tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path / "store"))
    record = store.load(f"{busybox}:busybox:latest")
    with Registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/ours/busybox:1"
        store.tag(record.id, name)
        list(store.push(name))
        podman("pull", "-q", "--tls-verify=false", name)
        assert podman.run("--rm", name, "echo", "hello").stdout == "hello\n"
        assert podman.out("image", "inspect", "--format", "{{.Id}}", name) == record.id.removeprefix("sha256:")


def test_podman_inspect(podman: Podman, runtime: Path) -> None:
    ref = podman.run("-d", IMAGE, "sleep", "100").stdout.strip()
    found = podman.inspect(ref)
    assert found["OCIRuntime"] == str(runtime)
    assert found["State"]["OciVersion"].startswith("1.")
    assert podman.out("top", ref, "args").splitlines() == ["COMMAND", "sleep 100"]


# ---- containerd: its shim calls the runtime, for ctr and for dockerd ----


@pytest.fixture
def containerd(runtime: Path, busybox: str, place: Path, test_id: str) -> Iterator[Containerd]:
    tools.need("containerd", "ctr", "containerd-shim-runc-v2")
    with Space(private=("/run/containerd", "/run/docker")) as space:
        own = Containerd(space, runtime, test_id)
        own.load(busybox, IMAGE)
        yield own


def test_ctr_run(containerd: Containerd) -> None:
    script = "echo $A; exit 5"
    done = containerd.run("--rm", "--seccomp", "--env", "A=b c", IMAGE, "sh", "-c", script, name="a", check=False)
    assert (done.stdout, done.returncode) == ("b c\n", 5)
    failed = containerd.run("--rm", IMAGE, "no-such", name="b", check=False)
    assert failed.returncode != 0
    assert "no-such" in failed.stderr


def test_ctr_life(containerd: Containerd) -> None:
    pid_file, script = containerd.place / "pid", "trap 'exit 3' TERM; while :; do sleep 0.1; done"
    containerd.run("-d", "--pid-file", pid_file, IMAGE, "sh", "-c", script, name="a")
    ref = f"{containerd.name}-a"
    assert containerd.exec(ref, "cat", "/proc/1/comm").stdout == "sh\n"
    assert containerd.exec("--cwd", "/tmp", "--user", "33", ref, "sh", "-c", "id -u; pwd").stdout == "33\n/tmp\n"
    assert containerd.exec(ref, "sh", "-c", "exit 9", check=False).returncode == 9
    assert containerd.exec(ref, "no-such", check=False).returncode != 0
    assert "RUNNING" in containerd("task", "ls").stdout
    assert pid_file.read_text() in containerd("task", "ps", ref).stdout.split()
    containerd("task", "pause", ref)
    assert "PAUSED" in containerd("task", "ls").stdout
    containerd("task", "resume", ref)
    assert "RUNNING" in containerd("task", "ls").stdout
    assert ref in containerd("task", "metrics", ref).stdout
    containerd("task", "kill", "-s", "TERM", ref)
    until(lambda: "STOPPED" in containerd("task", "ls").stdout)
    assert "exit code 3" in containerd("task", "rm", ref, check=False).stderr
    containerd("container", "rm", ref)


def test_ctr_ends_all(containerd: Containerd) -> None:
    """`kill --all` reaches what was left to the container's first process; `rm --force` a running task."""
    containerd.run("-d", IMAGE, "sh", "-c", "sleep 1000 & trap : TERM; while :; do sleep 0.1; done", name="a")
    ref = f"{containerd.name}-a"
    containerd("task", "kill", "--all", "-s", "KILL", ref)
    until(lambda: "STOPPED" in containerd("task", "ls").stdout)
    containerd("task", "rm", ref, check=False)
    containerd("container", "rm", ref)
    containerd.run("-d", IMAGE, "sleep", "1000", name="b")
    containerd("task", "rm", "--force", f"{containerd.name}-b", check=False)
    containerd("container", "rm", f"{containerd.name}-b")


def test_ctr_terminal(containerd: Containerd) -> None:
    """The shim hands the runtime a --console-socket, and the client's size comes through."""
    ref, shown = f"{containerd.name}-a", containerd.space.terminal
    command = ("-t", IMAGE, ref, "sh", "-c", "sleep 0.3; stty size; tty; exit 4")
    said = shown(*containerd.words, "run", "--rm", *containerd.flags, *containerd.cgroup("a"), *command)
    assert re.search(r"33 77\s+/dev/", said), said
    containerd.run("-d", IMAGE, "sleep", "1000", name="a")
    exec_flags = ("--fifo-dir", containerd.place / "fifo", "--exec-id", "x", "-t", ref)
    said = shown(*containerd.words, "task", "exec", *exec_flags, "sh", "-c", "sleep 0.3; stty size")
    assert "33 77" in said, said
    containerd("task", "rm", "--force", ref, check=False)
    containerd("container", "rm", ref)


# ---- containerd's CRI ----


@pytest.fixture
def crictl(runtime: Path, busybox: str, place: Path, test_id: str, tmp_path: Path) -> Iterator[Crictl]:
    with kubernetes(runtime, busybox, test_id, tmp_path) as own:
        yield own


@pytest.mark.seconds(900)
def test_crictl(crictl: Crictl) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    ref = crictl.create("a", "sh", "-c", script)
    assert crictl.status(ref)["state"] == "CONTAINER_CREATED"
    crictl("start", ref)
    assert crictl.status(ref)["state"] == "CONTAINER_RUNNING"
    until(lambda: crictl.out("logs", ref) == "hello")
    assert crictl.out("exec", "--sync", ref, "cat", "/proc/1/comm") == "sleep", "the pod's processes are shared"
    assert crictl("exec", ref, "sh", "-c", "echo streamed").stdout == "streamed\n"
    assert crictl("exec", "--sync", ref, "sh", "-c", "exit 9", check=False).returncode != 0
    crictl("update", "--cpu-share", "512", ref)
    crictl("stop", "--timeout", "10", ref)
    status = crictl.status(ref)
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 3)
    assert crictl.out("logs", ref).split() == ["hello", "bye"]
    crictl("rm", ref)


@pytest.mark.seconds(900)
def test_crictl_security(crictl: Crictl) -> None:
    context = {
        "run_as_user": {"value": 33}, "readonly_rootfs": True, "no_new_privs": True,
        "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"]},
        "seccomp": {"profile_type": 0}, "namespace_options": {"network": 2, "pid": 1},
    }  # fmt: skip
    script = "touch /x 2>&1; id -u; grep -E '^(CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status"
    ref = crictl.create("a", "sh", "-c", script, linux={"security_context": context})
    crictl("start", ref)
    until(lambda: crictl.status(ref)["state"] == "CONTAINER_EXITED")
    wanted = ["touch: /x: Read-only file system", "33", f"CapBnd:\t{1:016x}", "NoNewPrivs:\t1", "Seccomp:\t2"]
    assert crictl.out("logs", ref).splitlines() == wanted
    crictl("rm", ref)


# ---- docker ----


class Docker:
    """`docker("run", ...)`: the client, a dockerd with our runtime added, its containerd."""

    def __init__(self, containerd: Containerd, runtime: Path, place: Path) -> None:
        self.space, self.socket = containerd.space, f"unix://{place}/docker.sock"
        self.words = ("docker", "--host", self.socket, "--config", place / "docker-config")
        settings = place / "dockerd.json"
        settings.write_text(json.dumps({"runtimes": {"ours": {"path": str(runtime)}}}))
        off = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none")
        self.space.daemon(
            place / "dockerd.log", (*self.words, "info"),
            "dockerd", "--config-file", settings, "--containerd", containerd.socket, "--host", self.socket,
            "--data-root", place / "docker", "--exec-root", "/run/docker", "--pidfile", place / "dockerd.pid",
            "--storage-driver", "vfs", "--cgroup-parent", f"/{containerd.name}", *off,
        )  # fmt: skip

    def __call__(self, *words: object, **options: Any) -> Any:
        return self.space.run(*self.words, *words, **options)

    def run(self, *words: object, **options: Any) -> Any:
        return self("run", "--runtime", "ours", "--network", "none", *words, **options)

    def out(self, *words: object) -> str:
        return str(self(*words).stdout.strip())


@pytest.fixture
def docker(containerd: Containerd, runtime: Path, busybox: str, place: Path) -> Iterator[Docker]:
    tools.need("dockerd", "docker")
    own = Docker(containerd, runtime, place)
    own("load", "-q", "-i", packed(busybox, place, IMAGE))
    yield own
    if ids := own.out("ps", "-a", "-q").split():
        own("rm", "-f", *ids)


def test_docker_run(docker: Docker) -> None:
    script = "echo $A; cat >&2; exit 5"
    done = docker.run("--rm", "-i", "--env", "A=b c", IMAGE, "sh", "-c", script, check=False, stdin="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("b c\n", "in\n", 5)
    assert docker.run("--rm", IMAGE, "no-such", check=False).returncode == 127
    assert docker.run("--rm", IMAGE, "/etc", check=False).returncode == 126


def test_docker_life(docker: Docker) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    ref = docker.run("-d", IMAGE, "sh", "-c", script).stdout.strip()
    assert docker.out("inspect", "-f", "{{.State.Status}} {{.HostConfig.Runtime}}", ref) == "running ours"
    until(lambda: docker.out("logs", ref) == "hello")
    assert docker("exec", ref, "cat", "/proc/1/comm").stdout == "sh\n"
    flags = ("-u", "33:33", "-e", "B=1", "-w", "/tmp")
    assert docker("exec", *flags, ref, "sh", "-c", "id -u; echo $B; pwd").stdout == "33\n1\n/tmp\n"
    assert docker("exec", ref, "sh", "-c", "exit 9", check=False).returncode == 9
    assert docker("exec", ref, "no-such", check=False).returncode in (126, 127)  # 126 of dockerd 20.10
    docker("pause", ref)
    assert docker.out("inspect", "-f", "{{.State.Status}}", ref) == "paused"
    docker("unpause", ref)
    assert "hello" in docker.out("top", ref)
    docker("stop", ref)
    assert docker.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", ref) == "exited 3"
    docker("start", ref)
    docker("kill", ref)
    assert docker.out("wait", ref) == "137"


def test_docker_flags(docker: Docker) -> None:
    flags = ("--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges", "--user",
             "33", "--hostname", "box", "--tmpfs", "/scratch:size=1m", "--init")
    script = "touch /x 2>&1; hostname; cat /proc/1/comm; grep -E '^(CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status"
    done = docker.run("--rm", *flags, IMAGE, "sh", "-c", script)
    assert done.stdout.split("\n")[:3] == ["touch: /x: Read-only file system", "box", "docker-init"]
    assert done.stdout.split()[-6:] == ["CapBnd:", f"{1:016x}", "NoNewPrivs:", "1", "Seccomp:", "2"]
    device = ("--device", "/dev/zero:/dev/ours")
    assert docker.run("--rm", *device, IMAGE, "sh", "-c", "head -c 3 /dev/ours | wc -c").stdout == "3\n"
    asked = ("--runtime", "ours", "--network", "none", "--rm", "-it")
    said = docker.space.terminal(*docker.words, "run", *asked, IMAGE, "sh", "-c", "sleep 0.3; stty size")
    assert "33 77" in said, said


# ---- conmon alone, as CRI-O calls it ----


class Conmon:
    """A bundle, and conmon to watch it: the runtime's `create` and its --pid-file, then `start` by hand."""

    def __init__(self, space: Space, runtime: Path, name: str, command: list[str], *, terminal: bool) -> None:
        self.space, self.place, self.runtime, self.name = space, runtime.parent, runtime, name
        place, bundle = self.place, self.place / "bundle"
        make_root(bundle / "rootfs")
        space.run(runtime, "spec", "--bundle", bundle)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(args=command, terminal=terminal)
        config["linux"]["cgroupsPath"] = f"/{name}/{name}"
        (bundle / "config.json").write_text(json.dumps(config))
        (place / "exits").mkdir()
        space.run(
            "conmon", "--api-version", "1", "-c", name, "-u", name, "-n", name, "-r", runtime, "-b", bundle,
            "-p", place / "pid", "-P", place / "conmon.pid", "-l", f"k8s-file:{place}/log",
            "--exit-dir", place / "exits", "--runtime-arg", "--log-format=json",
            "--socket-dir-path", place, *(["-t"] if terminal else []),
        )  # fmt: skip

    def exit_code(self) -> int:
        file = self.place / "exits" / self.name
        return int(until(lambda: file.exists() and file.read_text()))

    def state(self) -> Any:
        return json.loads(self.space.run(self.runtime, "state", self.name).stdout)


@pytest.mark.parametrize("terminal", [False, True])
def test_conmon(runtime: Path, place: Path, test_id: str, terminal: bool) -> None:
    tools.need("conmon")
    with Space() as space:
        script = "test -t 1 && echo terminal || echo none; exit 6"
        own = Conmon(space, runtime, test_id, ["sh", "-c", script], terminal=terminal)
        until(lambda: (place / "pid").exists() and own.state()["status"] == "created")
        assert own.state()["pid"] == int((place / "pid").read_text())
        space.run(runtime, "start", test_id)
        assert own.exit_code() == 6
        assert (place / "log").read_text().split()[-1] == ("terminal" if terminal else "none")
        assert own.state()["status"] == "stopped"
        space.run(runtime, "delete", test_id)
