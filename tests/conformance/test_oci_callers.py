"""Engines that call an OCI runtime by its command line, with wherry-oci as that runtime.

Each test has a caller of its own: daemons on sockets below the test's directory, images made on the spot, mounts and
processes apart from the host's, no network beside the session's. WHERRY_TEST_RUNTIME=runc runs the same with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers import tools
from helpers.ociruntime import RUNTIME, Space, wrapper
from helpers.wherry import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(test_id: str, private_network: object, host_canary: None) -> Iterator[Path]:
    """A directory with a short path, as sockets need it; neither processes nor mounts, cgroups or run state are left."""
    directory = Path(f"/run/{test_id}")
    directory.mkdir(mode=0o711)
    mark = audit.Mark(paths=(str(directory),), cgroup=f"/{test_id}")
    before = audit.take(mark)
    yield directory
    remove_parents(test_id)
    leaks = audit.settle(before, mark)
    leaks += [f"left files: {path}" for path in (directory / "state").glob("*")]
    tools.run("rm", "-rf", "--one-file-system", directory)
    assert not leaks, "\n".join(leaks)


def remove_parents(name: str) -> None:
    """The callers leave the group that they were told to use, and podman conmon's: not the runtime's to remove."""
    end = time.monotonic() + 5  # conmon ends after the engine's command
    for mount, _ in audit.cgroup_mounts():
        for path in (f"{mount}/{name}/conmon", f"{mount}/{name}"):
            while not removed(path) and time.monotonic() < end:
                time.sleep(0.05)


def removed(path: str) -> bool:
    """Whether an empty group is gone, or was not there."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return not os.path.exists(path)


@pytest.fixture
def runtime(place: Path) -> Path:
    """The runtime under test with a --root of this test's own."""
    return wrapper(place)


# ---- podman: every container through conmon ----


class Podman:
    """`podman("run", ...)` with a store, settings and a runtime of its own."""

    def __init__(self, space: Space, directory: Path, runtime: Path, name: str) -> None:
        self.space, self.name = space, name
        settings = directory / "containers.conf"
        settings.write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'runtime_supports_json = ["{runtime.name}"]\n[network]\nnetwork_config_dir = "{directory}/networks"\n'
        )
        space.env["CONTAINERS_CONF"] = str(settings)
        self.words = (
            "podman", "--runtime", runtime, "--root", directory / "store", "--runroot", directory / "run",
            "--tmpdir", directory / "tmp", "--storage-driver", "vfs", "--log-level", "error",
        )  # fmt: skip
        #: without CAP_SYS_RESOURCE podman's default limits can't be set
        self.flags = ("--network", "none", "--cgroup-parent", f"/{name}", "--ulimit", "nofile=1000:1000",
                      "--ulimit", "nproc=10000:10000", "--log-driver", "k8s-file")  # fmt: skip

    def __call__(self, *words: object, **options: Any) -> Any:
        return self.space.run(*self.words, *words, **options)

    def run(self, *words: object, **options: Any) -> Any:
        return self("run", *self.flags, *words, **options)

    def out(self, *words: object) -> str:
        return str(self(*words).stdout.strip())

    def inspect(self, ref: str) -> Any:
        return json.loads(self.out("container", "inspect", ref))[0]


IMAGE = "localhost/busybox:latest"


@pytest.fixture
def podman(runtime: Path, busybox: str, place: Path, test_id: str) -> Iterator[Podman]:
    tools.need("podman", "conmon")
    with Space() as space:
        own = Podman(space, place, runtime, test_id)
        own("pull", "-q", f"{busybox}:busybox:latest")
        own("tag", own.out("images", "-q"), IMAGE)
        yield own
        own("rm", "-a", "-f", "-t", "0")


def test_podman_run(podman: Podman) -> None:
    done = podman.run("--rm", "--env", "A=b c", "-w", "/tmp", IMAGE, "sh", "-c", "echo $A; pwd; echo no >&2")
    assert done.stdout == "b c\n/tmp\n"
    assert done.stderr == "no\n"
    assert podman.run("--rm", "-i", IMAGE, "cat", stdin="through\n").stdout == "through\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 7"), 7), (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137), (("no-such",), 127), (("/etc",), 126)],
)
def test_podman_exit_codes(podman: Podman, command: tuple[str, ...], code: int) -> None:
    """126 and 127 are read by podman out of the runtime's JSON log."""
    assert podman.run("--rm", IMAGE, *command, check=False).returncode == code


def test_podman_life(podman: Podman) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    ref = podman.run("-d", IMAGE, "sh", "-c", script).stdout.strip()
    state = podman.inspect(ref)["State"]
    assert state["Status"] == "running"
    assert Path(f"/proc/{state['Pid']}") or state["Pid"] > 0
    until(lambda: podman.out("logs", ref) == "hello")
    assert podman("exec", ref, "cat", "/proc/1/comm").stdout == "sh\n"
    podman("exec", "-d", ref, "touch", "/tmp/here")
    until(lambda: podman("exec", ref, "test", "-e", "/tmp/here", check=False).returncode == 0)
    assert podman("exec", ref, "sh", "-c", "exit 9", check=False).returncode == 9
    assert podman("exec", ref, "no-such", check=False).returncode == 127
    assert podman("exec", "--user", "33:33", "-e", "B=1", "-w", "/tmp", ref, "sh", "-c", "id -u; echo $B; pwd").stdout == (
        "33\n1\n/tmp\n"
    )
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
    done = podman.run("--rm", "--init", "--init-path", "/usr/bin/tini-static", IMAGE, "sh", "-c", "cat /proc/1/comm; exit 4",
                      check=False)  # fmt: skip
    assert (done.stdout, done.returncode) == ("podman-init\n", 4)


def test_podman_user_namespace(podman: Podman) -> None:
    maps = ("--uidmap", "0:200000:1000", "--gidmap", "0:300000:1000")
    done = podman.run("--rm", *maps, IMAGE, "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /root/mine")
    assert done.stdout.split() == ["0", "0", "200000", "1000", "0", "300000", "1000"]


def test_podman_confinement(podman: Podman) -> None:
    flags = ("--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges", "--user", "33",
             "--hostname", "box", "--tmpfs", "/scratch:size=1m", "--sysctl", "kernel.msgmax=4096")  # fmt: skip
    script = "touch /x 2>&1; hostname; df -k /scratch | tail -1 | awk '{print $2}'; cat /proc/sys/kernel/msgmax"
    script += "; grep -E '^(CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status"
    done = podman.run("--rm", *flags, IMAGE, "sh", "-c", script)
    assert done.stdout.split("\n")[:4] == ["touch: /x: Read-only file system", "box", "1024", "4096"]
    assert done.stdout.split()[-6:] == ["CapBnd:", f"{1:016x}", "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_podman_inspect(podman: Podman, runtime: Path) -> None:
    ref = podman.run("-d", IMAGE, "sleep", "100").stdout.strip()
    found = podman.inspect(ref)
    assert found["OCIRuntime"] == str(runtime)
    assert found["State"]["OciVersion"].startswith("1.")
    assert podman.out("top", ref, "args").splitlines() == ["COMMAND", "sleep 100"]
