"""After a boot: restart policies; and the units for systemd that come with wherry, or are made for a container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from helpers.wherry import Wherry, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def power_cut(wherry: Wherry, *names: str) -> None:
    """Everything that runs dies at once, what is in memory only is gone, and it was long ago."""
    for name in names:
        info = json.loads(wherry.out("inspect", name))[0]
        directory = Path(wherry.root, "containers", info["Id"])
        state = Path(wherry.state, "c", info["Id"], "state.json")
        if state.exists():
            found = json.loads(state.read_text())
            for who in ("monitor", "init"):
                os.kill(found[who]["pid"], signal.SIGKILL)
            until(lambda who=found["init"]["pid"]: dead(who))
            shutil.rmtree(state.parent)
            Path(found["cgroup"]).rmdir()
        life = json.loads((directory / "life.json").read_text())
        (directory / "life.json").write_text(json.dumps({**life, "started": 1000.0}))


def dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def running(wherry: Wherry) -> set[str]:
    return set(wherry.out("ps", "--format", "{{.Names}}").split())


def test_policies_are_kept_over_a_boot(wherry: Wherry, busybox: str) -> None:
    names = {"always": "always", "hand": "always", "unless": "unless-stopped", "stopped": "unless-stopped",
             "failure": "on-failure", "plain": "no"}  # fmt: skip
    for name, policy in names.items():
        wherry("run", "-d", "--name", name, "--network", "none", "--restart", policy, busybox, "sleep", "600")
    wherry("create", "--name", "never", "--network", "none", "--restart", "always", busybox, "sleep", "600")
    wherry("stop", "-t", "0", "hand", "stopped")
    power_cut(wherry, *names)
    assert running(wherry) == set()
    assert wherry.out("system", "boot").split() == ["always", "hand", "unless"], "oldest first"
    assert running(wherry) == {"always", "hand", "unless"}
    wherry("stop", "-t", "0", "always")
    assert wherry.out("system", "boot") == "", "once a boot"


def test_all_stop_before_the_host_does(wherry: Wherry, busybox: str) -> None:
    """Side by side, each with its grace, and nobody's hand did it: all that ran are wanted again."""
    listens = "trap 'exit 5' TERM; while :; do sleep 0.1; done"
    for name, policy in (("one", "always"), ("two", "unless-stopped"), ("three", "no")):
        words = ("run", "-d", "--name", name, "--network", "none", "--stop-timeout", "2", "--restart", policy, busybox)
        wherry(*words, "sh", "-c", listens if name == "one" else "sleep 600")
    wherry("run", "-d", "--rm", "--name", "gone", "--network", "none", "--stop-timeout", "2", busybox, "sleep", "600")
    wherry("run", "-d", "--name", "hand", "--restart", "unless-stopped", "--network", "none", busybox, "sleep", "600")
    wherry("stop", "-t", "0", "hand")
    began = time.monotonic()
    assert set(wherry.out("system", "halt").split()) == {"one", "two", "three", "gone"}
    assert time.monotonic() - began < 5, "one after the other"
    assert running(wherry) == set()
    codes = wherry.out("ps", "-a", "--format", "{{.Names}} {{.Status}}")
    assert "one Exited (5)" in codes
    assert "two Exited (137)" in codes
    assert "gone" not in codes
    assert wherry.out("system", "halt") == ""
    for path in Path(wherry.root, "containers").glob("*/life.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1000.0}))
    assert wherry.out("system", "boot").split() == ["one", "two"]


def test_one_that_cannot_start_keeps_nobody(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    source = tmp_path / "gone"
    source.mkdir()
    words = ("run", "-d", "--network", "none", "--restart", "always")
    wherry(*words, "--name", "bad", "--mount", f"type=bind,src={source},dst=/x", busybox, "sleep", "600")
    wherry(*words, "--name", "good", busybox, "sleep", "600")
    power_cut(wherry, "bad", "good")
    source.rmdir()
    done = wherry("system", "boot", check=False)
    assert (done.returncode, done.stdout) == (1, "good\n")
    assert "cannot start bad: " in done.stderr


def test_units(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    """Programs by their whole paths; all that come with wherry; one for a container, with its own grace and policy."""
    written = wherry.out("system", "install-units", tmp_path / "units").split()
    assert {Path(path).name for path in written} == {
        "wherry-cri.socket", "wherry-csi.service", "wherry-halt.service",
        "wherry-restart.service", "wherry@.service", "wherryd.service", "wherryd.socket",
    }  # fmt: skip
    for path in written:
        for line in Path(path).read_text().splitlines():
            if line.startswith("Exec") and "wherry" in line:
                program = line.partition("=")[2].split()[0]
                assert os.access(program, os.X_OK), line
    wherry("create", "--name", "web", "--restart", "on-failure", "--stop-timeout", "7", busybox, "true")
    text = wherry.out("generate", "systemd", "web")
    assert "\nRestart=on-failure\n" in text
    assert "\nTimeoutStopSec=27\n" in text
    assert f"--root {wherry.root} --state {wherry.state}" in text
    assert wherry("generate", "systemd", "none", check=False).returncode == 1
