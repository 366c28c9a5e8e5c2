"""scripts/systemd/wherryd.service and wherry-cri.socket as they are: systemd keeps the socket, Ready means served, and
pods are not the daemon's to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from helpers.tools import run
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api
from wherry.daemon.cri.services import Stub

pytestmark = pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot")

SERVICE, SOCKET_UNIT = "wherryd.service", "wherry-cri.socket"
FILES = Path(__file__).resolve().parents[2] / "scripts" / "systemd"
UNITS = Path("/run/systemd/system")
SOCKET = Path("/run/wherry/cri.sock")
ALONE = api.NamespaceOption(network=api.NODE, pid=api.CONTAINER)


def systemctl(*words: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}{journal()}"
    return done.stdout.strip()


def journal() -> str:
    words = ["journalctl", "-u", SERVICE, "-n", "40", "--no-pager"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def state(unit: str = SERVICE) -> str:
    return systemctl("show", "-PActiveState", unit)


def main_pid() -> int:
    return int(systemctl("show", "-PMainPID", SERVICE))


@pytest.fixture
def units(tmp_path: Path, busybox: str) -> Iterator[Path]:
    """Both units, unchanged, with their data on a disk of the guest's; none is started. What they run is removed."""
    program = Path(sys.executable).parent
    for name in ("wherryd", "wherry"):
        Path("/usr/local/bin", name).unlink(missing_ok=True)
        Path("/usr/local/bin", name).symlink_to(program / name)
    for name in (SERVICE, SOCKET_UNIT):
        shutil.copy(FILES / name, UNITS / name)
    drop = UNITS / f"{SERVICE}.d"
    drop.mkdir()
    (drop / "test.conf").write_text(f"[Service]\nEnvironment=WHERRY_ROOT={tmp_path}/root\n")
    run(program / "wherry", "--root", tmp_path / "root", "pull", busybox)
    systemctl("daemon-reload")
    yield drop
    systemctl("start", SERVICE, check=False)
    if state() == "active":
        remove_pods()
    systemctl("stop", SERVICE, SOCKET_UNIT, check=False)
    shutil.rmtree(drop)
    for name in (SERVICE, SOCKET_UNIT):
        os.unlink(UNITS / name)
    systemctl("daemon-reload")


def call(method: str, *, seconds: float = 30, **fields: object) -> object:
    """One call on the socket that systemd keeps."""
    service = "ImageService" if "Image" in method else "RuntimeService"
    with grpc.insecure_channel(f"unix://{SOCKET}") as channel:
        request = getattr(api, f"{method}Request")(**fields)
        return getattr(Stub(channel, service), method)(request, timeout=seconds, wait_for_ready=True)


def remove_pods() -> None:
    for pod in call("ListPodSandbox").items:  # type: ignore[attr-defined]
        call("StopPodSandbox", pod_sandbox_id=pod.id)
        call("RemovePodSandbox", pod_sandbox_id=pod.id)


def pod_with_sleep(name: str) -> tuple[str, str]:
    """A running container; its pod and its id."""
    context = api.LinuxSandboxSecurityContext(namespace_options=ALONE)
    config = api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="units"),
        linux=api.LinuxPodSandboxConfig(security_context=context),
    )
    pod = call("RunPodSandbox", config=config).pod_sandbox_id  # type: ignore[attr-defined]
    image = call("ListImages").images[0].id  # type: ignore[attr-defined]
    asked = api.ContainerConfig(metadata=api.ContainerMetadata(name="c"), image=api.ImageSpec(image=image),
                                command=["sleep", "100000"])  # fmt: skip
    made = call("CreateContainer", pod_sandbox_id=pod, config=asked, sandbox_config=config)
    call("StartContainer", container_id=made.container_id)  # type: ignore[attr-defined]
    return pod, made.container_id  # type: ignore[attr-defined]


def running(container: str) -> bool:
    told = call("ContainerStatus", container_id=container).status.state  # type: ignore[attr-defined]
    return bool(told == api.CONTAINER_RUNNING)


def test_the_units_are_ones_that_systemd_knows(units: Path) -> None:
    said = run("systemd-analyze", "verify", *(str(UNITS / name) for name in (SERVICE, SOCKET_UNIT)), check=False)
    own = [line for line in (said.stdout + said.stderr).splitlines() if SERVICE in line or SOCKET_UNIT in line]
    assert not own, "\n".join(own)


def test_a_call_starts_it_and_systemd_keeps_the_socket(units: Path) -> None:
    systemctl("start", SOCKET_UNIT)
    assert state() == "inactive"
    assert SOCKET.stat().st_mode & 0o117 == 0, "its owner and its group"
    assert call("Version").runtime_name == "wherry"  # type: ignore[attr-defined]
    assert state() == "active"
    systemctl("stop", SERVICE)
    assert SOCKET.exists()
    call("Version")
    assert state() == "active", "started again by a call"


def test_active_means_served(units: Path) -> None:
    systemctl("start", SERVICE)
    assert state() == "active"
    call("Version", seconds=2)
    assert os.readlink(f"/proc/{main_pid()}/ns/mnt") == os.readlink("/proc/1/ns/mnt"), "a kubelet sees its mounts"


def test_pods_outlive_it(units: Path) -> None:
    """Restarted, killed, stopped and started: the container is the same process, and can be asked and entered."""
    systemctl("start", SOCKET_UNIT, SERVICE)
    _, container = pod_with_sleep("stays")
    first = main_pid()
    systemctl("restart", SERVICE)
    assert main_pid() != first
    assert running(container)
    os.kill(main_pid(), signal.SIGKILL)
    until(lambda: state() == "active" and main_pid() not in (0, first), 20, "systemd starts it again")
    assert running(container)
    systemctl("stop", SERVICE, SOCKET_UNIT)
    assert run("pgrep", "-f", "sleep 100000").stdout.split()
    systemctl("start", SERVICE)
    assert running(container)
    answer = call("ExecSync", container_id=container, cmd=["echo", "here"], timeout=10)
    assert answer.stdout == b"here\n"  # type: ignore[attr-defined]


def test_calls_under_way_end_before_it_stops(units: Path) -> None:
    systemctl("start", SERVICE)
    _, container = pod_with_sleep("waits")
    with grpc.insecure_channel(f"unix://{SOCKET}") as channel:
        request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "sleep 2; echo done"], timeout=20)
        under_way = Stub(channel, "RuntimeService").ExecSync.future(request, timeout=30)  # type: ignore[attr-defined]
        time.sleep(0.7)
        systemctl("stop", SERVICE)
        assert under_way.result().stdout == b"done\n"


def test_one_that_hangs_is_replaced(units: Path) -> None:
    """The watchdog of the unit, made shorter here."""
    with open(units / "test.conf", "a") as file:
        file.write("WatchdogSec=2\n")
    systemctl("daemon-reload")
    systemctl("start", SERVICE)
    assert systemctl("show", "-PWatchdogUSec", SERVICE) == "2s"
    time.sleep(3)
    first = main_pid()
    assert state() == "active", "it tells that it lives"
    os.kill(first, signal.SIGSTOP)
    until(lambda: main_pid() not in (0, first) and state() == "active", 40, "nobody noticed")
    call("Version")
