"""wherryd's Docker API under systemd, by the units that `wherry system install-units` writes: what a call starts, what
a reload, a restart, a stop and a hang leave alone; and containers as units, that speak to systemd themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.dockerapi import CLIS, Clients
from helpers.tools import run
from helpers.wherry import until

pytestmark = [
    pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot"),
    pytest.mark.skipif(not CLIS, reason="no docker CLI is installed"),
]
SERVICE, SOCKET_UNIT = "wherryd.service", "wherryd.socket"
UNITS = Path("/run/systemd/system")
SOCKET = Path("/run/wherry/docker.sock")
NONE = ("--network", "none")
WHERRY = Path(sys.executable).parent / "wherry"
#: enough of the host to run its systemd-notify
HOSTS = ("-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro")


def systemctl(*words: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}{journal('-u', SERVICE)}"
    return done.stdout.strip()


def journal(*words: str) -> str:
    asked = ["journalctl", *words, "-n", "60", "--no-pager"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def state(unit: str = SERVICE) -> str:
    return systemctl("show", "-PActiveState", unit)


def main_pid() -> int:
    return int(systemctl("show", "-PMainPID", SERVICE))


class Docker(Clients):
    """The docker CLI on the socket that systemd keeps, and wherry's own on the same places."""

    def __init__(self, place: Path) -> None:
        self.root, self.config, self.log = place / "root", place / "wherry.toml", place / "none"
        self.log.write_text("")
        self.point_at(SOCKET, place / "docker")

    def wherry(self, *words: str) -> str:
        return run(WHERRY, "--root", self.root, "--config", self.config, *words).stdout.strip()


@pytest.fixture
def docker(tmp_path: Path, busybox: str) -> Iterator[Docker]:
    """The units as they are installed; none is started. What they run is removed."""
    made = Docker(tmp_path)
    made.config.write_text('log_level = "debug"\n')
    written = made.wherry("system", "install-units", str(UNITS)).split()
    drops = []
    for name in (SERVICE, "wherry@.service"):
        drops.append(UNITS / f"{name}.d")
        drops[-1].mkdir()
        lines = f"Environment=WHERRY_ROOT={made.root}\nEnvironment=WHERRY_CONFIG={made.config}\n"
        (drops[-1] / "test.conf").write_text(f"[Service]\n{lines}")
    made.wherry("pull", busybox)
    made.wherry("tag", made.wherry("images", "-q"), "busybox")
    systemctl("daemon-reload")
    yield made
    systemctl("stop", SERVICE, SOCKET_UNIT, check=False)
    if left := made.wherry("ps", "-aq").split():
        made.wherry("rm", "-f", *left)
    for path in [*drops, *map(Path, written)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    systemctl("daemon-reload")


def test_the_units_are_ones_that_systemd_knows(docker: Docker) -> None:
    names = [path.name for path in UNITS.glob("wherry*") if path.is_file()]
    assert len(names) == 7
    checked = [name.replace("@.", "@x.") for name in names]
    said = run("systemd-analyze", "verify", *checked, check=False)
    own = [line for line in (said.stdout + said.stderr).splitlines() if "wherry" in line]
    assert not own, "\n".join(own)


def test_a_call_starts_it(docker: Docker) -> None:
    systemctl("start", SOCKET_UNIT)
    assert state() == "inactive"
    assert SOCKET.stat().st_mode & 0o117 == 0, "its owner and its group"
    assert docker.out("run", "--rm", *NONE, "busybox", "echo", "well") == "well"
    until(lambda: state() == "active")  # docker's clients are served before all is
    systemctl("stop", SERVICE)
    assert SOCKET.exists()
    assert docker.out("ps", "-aq") == ""
    until(lambda: state() == "active", 20, "not started again by a call")


def test_a_reload_drops_nothing(docker: Docker) -> None:
    """A terminal, a follower and who waits stay; what is made from now on has the new settings; wrong ones are told."""
    systemctl("start", SOCKET_UNIT, SERVICE)
    first = main_pid()
    name = docker.out("run", "-d", *NONE, "busybox", "sh", "-c", "while sleep 0.1; do date; done")
    assert _driver(docker, name) == "json-file"
    logs = docker.docker_popen("logs", "-f", name, stdout=subprocess.PIPE)
    typed = docker.docker_popen("exec", "-i", name, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    waits = docker.docker_popen("wait", name, stdout=subprocess.PIPE)
    assert logs.stdout is not None
    assert typed.stdin is not None
    assert typed.stdout is not None
    assert logs.stdout.readline()
    docker.config.write_text('log_level = "debug"\ndocker_log_driver = "local"\n')
    systemctl("reload", SERVICE)
    assert (state(), main_pid()) == ("active", first)
    other = docker.out("create", *NONE, "busybox", "true")
    assert _driver(docker, other) == "local"
    docker.config.write_text("docker_log_driver = 7\n")
    systemctl("reload", SERVICE)
    assert (state(), main_pid()) == ("active", first)
    until(lambda: "settings stay as they were" in journal("-u", SERVICE))
    assert _driver(docker, docker.out("create", *NONE, "busybox", "true")) == "local"
    typed.stdin.write(b"still here\n")
    typed.stdin.close()
    assert typed.stdout.read() == b"still here\n"
    for _ in range(30):
        assert logs.stdout.readline()
    assert waits.poll() is None
    docker.docker("kill", name)
    assert waits.communicate(timeout=10)[0] == b"137\n"
    logs.communicate(timeout=10)
    docker.config.write_text("")


def _driver(docker: Docker, name: str) -> str:
    return str(docker.out("inspect", "-f", "{{.HostConfig.LogConfig.Type}}", name))


def test_containers_do_not_notice(docker: Docker) -> None:
    """Restarted, killed, hung, stopped and started: the container is the same process, its log and code are whole."""
    with open(UNITS / f"{SERVICE}.d" / "test.conf", "a") as file:
        file.write("WatchdogSec=2\n")
    systemctl("daemon-reload")
    systemctl("start", SOCKET_UNIT, SERVICE)
    script = "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 7"
    name = docker.out("run", "-d", "--name", "stays", *NONE, "busybox", "sh", "-c", script)
    inside = docker.out("inspect", "-f", "{{.State.Pid}}", name)

    def whole() -> None:
        assert docker.out("inspect", "-f", "{{.State.Pid}} {{.State.Running}}", name) == f"{inside} true"

    first = main_pid()
    systemctl("restart", SERVICE)
    assert main_pid() != first
    whole()
    second = main_pid()
    os.kill(second, signal.SIGKILL)
    until(lambda: state() == "active" and main_pid() not in {0, second}, 20, "systemd starts it again")
    whole()
    third = main_pid()
    os.kill(third, signal.SIGSTOP)  # it hangs: the watchdog
    until(lambda: main_pid() not in {0, third} and state() == "active", 40, "nobody noticed")
    whole()
    systemctl("stop", SERVICE, SOCKET_UNIT)
    assert docker.wherry("exec", "stays", "touch", "/tmp/end") == ""
    until(lambda: docker.wherry("inspect", "-f", "{{.State.Status}}", "stays") == "exited")
    systemctl("start", SOCKET_UNIT)
    assert docker.out("wait", name) == "7"
    told = docker.out("logs", name).split()
    assert told == [str(number) for number in range(1, len(told) + 1)], "no line is lost, none is told twice"


def test_the_journal_has_fields(docker: Docker) -> None:
    systemctl("start", SERVICE)
    docker.docker("create", "--name", "noted", *NONE, "busybox", "true")
    docker.docker("inspect", "noted")
    until(lambda: "/containers/{id}/json" in journal("CONTAINER=noted"))
    found: list[dict[str, Any]] = [json.loads(line) for line in journal("CONTAINER=noted", "-o", "json").splitlines()]
    assert {one["SYSLOG_IDENTIFIER"] for one in found} == {"wherryd"}
    assert {one["_SYSTEMD_UNIT"] for one in found} == {SERVICE}
    assert "200" in {one.get("STATUS") for one in found}
    docker.docker("rm", "noted")


def test_a_container_as_a_unit(docker: Docker) -> None:
    """Its status and its watchdog are systemd's to see; ready is when it says so; its end is the unit's."""
    script = ("sleep 1; systemd-notify --ready --status=up; trap 'exit 3' USR1; "
              "while [ ! -e /tmp/hang ]; do systemd-notify WATCHDOG=1; sleep 0.3; done; sleep 1000")  # fmt: skip
    docker.wherry("create", "--name", "web", "--init", *NONE, *HOSTS, "busybox", "sh", "-c", script)
    text = docker.wherry("generate", "systemd", "--notify", "web")
    assert "Type=notify" in text.splitlines()
    (UNITS / "web.service").write_text(text.replace("[Service]", "[Service]\nWatchdogSec=3"))
    systemctl("daemon-reload")
    try:
        began = time.monotonic()
        systemctl("start", "web.service")
        assert time.monotonic() - began > 0.9, "it was not ready before it said so"
        assert (state("web.service"), systemctl("show", "-PStatusText", "web.service")) == ("active", "up")
        time.sleep(4)
        assert state("web.service") == "active", "its watchdog is fed from inside"
        docker.wherry("exec", "web", "touch", "/tmp/hang")
        until(lambda: state("web.service") != "active", 20, "nobody noticed that it hangs")
        assert systemctl("show", "-PResult", "web.service") == "watchdog"
    finally:
        systemctl("stop", "web.service", check=False)
        (UNITS / "web.service").unlink()
    assert docker.wherry("ps", "-q") == ""
    assert not list(Path("/run/wherry/c").glob("*/notify"))


def test_the_template(docker: Docker) -> None:
    """Type=exec: it is up when it runs. What it says of its status is passed on; its code is the unit's."""
    script = "systemd-notify --status=working; while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3"
    docker.wherry("create", "--name", "job", "--init", *NONE, *HOSTS, "busybox", "sh", "-c", script)
    systemctl("start", "wherry@job")
    until(lambda: systemctl("show", "-PStatusText", "wherry@job") == "working")
    docker.wherry("exec", "job", "touch", "/tmp/end")
    until(lambda: systemctl("show", "-PNRestarts", "wherry@job") == "1", 20, "Restart=on-failure")
    until(lambda: state("wherry@job") == "active")
    systemctl("stop", "wherry@job")
    assert docker.wherry("ps", "-q") == ""
