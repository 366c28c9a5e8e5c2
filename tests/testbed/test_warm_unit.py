"""The units of `wherry warm install`: systemd keeps the socket, and the warm process for as long as it is used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import wherry as package
from helpers.wherry import Wherry, until

pytestmark = pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot")

UNITS = Path("/run/systemd/system")


def systemctl(*words: str, check: bool = True) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def main_pid() -> int:
    return int(systemctl("show", "-PMainPID", "wherry-warm.service"))


@pytest.fixture
def front(wherry: Wherry, tmp_path: Path) -> Iterator[Path]:
    """A front without a Python beside it, and the socket of this test's STATE with systemd."""
    wherry.env["WHERRY_WARM"] = "on"
    made = wherry("warm", "install", UNITS).stdout.split()
    assert made == [str(UNITS / "wherry-warm.socket"), str(UNITS / "wherry-warm.service")]
    systemctl("daemon-reload")
    systemctl("start", "wherry-warm.socket")
    shutil.copy(Path(package.__path__[0]) / "_native/wherry-helper", tmp_path / "wherry")
    yield tmp_path / "wherry"
    wherry.env["WHERRY_WARM"] = "off"
    systemctl("stop", "wherry-warm.socket", "wherry-warm.service")
    for path in made:
        os.unlink(path)
    systemctl("daemon-reload")


def answered(wherry: Wherry, front: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """From process 1's network namespace, as the service is: the tests have one of their own."""
    command, null = ["nsenter", "--target", "1", "--net", front, *words], subprocess.DEVNULL
    return subprocess.run(command, env=wherry.env, stdin=null, capture_output=True, text=True, check=False)


def served(wherry: Wherry, front: Path) -> bool:
    return answered(wherry, front, "version").returncode == 0


def test_a_call_starts_it_and_systemd_keeps_the_socket(wherry: Wherry, front: Path) -> None:
    assert main_pid() == 0
    assert wherry.state.stat().st_mode & 0o777 == 0o711
    assert (wherry.state / "warm").stat().st_mode & 0o777 == 0o700
    assert "Version" in wherry("version").stdout  # who calls first is not kept waiting: it is answered cold
    until(lambda: served(wherry, front))
    assert f"pid {main_pid()}," in wherry("warm", "status").stdout
    group = Path(f"/proc/{main_pid()}/cgroup").read_text()
    assert "wherry-warm.service" in group
    first = main_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: main_pid() != first)
    wherry("version")
    until(lambda: served(wherry, front))
    assert main_pid() not in (0, first)


def test_a_container_outlives_it(wherry: Wherry, front: Path, busybox: str) -> None:
    wherry("pull", "-q", busybox)
    until(lambda: served(wherry, front))
    name = wherry.name("kept")
    done = answered(wherry, front, "run", "-d", "--network", "none", "--name", name, busybox, "sleep", "1000")
    assert done.returncode == 0, done.stderr
    systemctl("stop", "wherry-warm.service")
    assert wherry.inspect(name)["State"]["Running"]
    own = Path(f"/proc/{wherry.pid(name)}/cgroup").read_text()
    assert "wherry-warm.service" not in own
    wherry("rm", "-f", name)


def test_one_of_before_gives_way(wherry: Wherry, front: Path) -> None:
    """A warm process that a command had left held the lock when the socket came."""
    systemctl("stop", "wherry-warm.socket")
    wherry("ps")
    until(lambda: "pid " in wherry("warm", "status", check=False).stdout)
    systemctl("start", "wherry-warm.socket")
    wherry("version")
    until(lambda: main_pid() != 0 and served(wherry, front))
    assert f"pid {main_pid()}," in wherry("warm", "status").stdout
