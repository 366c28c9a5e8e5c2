"""The main job on this other kernel: a network, a published port, a crash; systemd's tree left in order."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from helpers.wherry import Wherry, until


def test_a_published_port_answers(wherry: Wherry, busybox: str) -> None:
    name = wherry.name("web")
    wherry("run", "-d", "--name", name, "-p", "18080:80", busybox, "httpd", "-f", "-p", "80", "-h", "/etc")

    def fetch() -> str:
        try:
            with urllib.request.urlopen("http://127.0.0.1:18080/passwd", timeout=2) as answer:
                return str(answer.read())
        except OSError:
            return ""

    assert "root" in until(fetch)


def test_a_killed_monitor_takes_its_container_along(wherry: Wherry, busybox: str) -> None:
    name = wherry.name("victim")
    wherry("run", "-d", "--network", "none", "--name", name, busybox, "sleep", "1000")
    pid = wherry.pid(name)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    os.kill(parent, 9)
    until(lambda: not Path(f"/proc/{pid}").exists(), message="the container outlived its monitor")
    state = wherry.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 137)


@pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot")
def test_systemd_is_still_in_charge_of_its_tree(wherry: Wherry, busybox: str) -> None:
    wherry("run", "--rm", "--network", "none", "-m", "64m", busybox, "true")
    state = subprocess.run(["systemctl", "is-active", "vm-run.service"], capture_output=True, text=True, check=False)
    assert state.stdout.strip() in ("active", "activating")
    assert Path("/sys/fs/cgroup/init.scope/cgroup.procs").read_text().split() == ["1"]


@pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot")
def test_the_journal_gets_the_log(wherry: Wherry, busybox: str) -> None:
    name = wherry.name("talker")
    wherry("run", "--network", "none", "--name", name, "--log-driver", "journald", busybox,
           "sh", "-c", "echo said; echo wrong >&2")  # fmt: skip

    def journal() -> list[dict[str, str]]:
        command = ["journalctl", "-o", "json", f"CONTAINER_NAME={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [json.loads(line) for line in done.stdout.splitlines()]

    entries = until(lambda: len(journal()) == 2 and journal())
    assert {(entry["MESSAGE"], entry["PRIORITY"]) for entry in entries} == {("said", "6"), ("wrong", "3")}
    assert {line.rstrip() for line in wherry("logs", name, check=False).stdout.splitlines()} == {"said"}
