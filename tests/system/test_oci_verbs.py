"""The verbs of `wherry-oci` beside the lifecycle: update, events, spec, features, checkpoint, restore."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ocibundle import Box, boxed
from wherry.errors import WherryError
from wherry.kernel import facts, seccomp
from wherry.model import Json
from wherry.oci import spec

pytestmark = pytest.mark.root



@pytest.fixture
def box(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Box]:
    if not facts.measure().cgroup_mount:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    with boxed(test_id, tmp_path) as made:
        yield made


def kept(box: Box, cid: str = "c") -> Json:
    """The config that the runtime remembers."""
    found: Json = json.loads((box.root / cid / "config.json").read_text())
    return found


# ---- update


def test_update_replaces_device_rules(box: Box) -> None:
    """A device that was not allowed is, then is not again; what every container has stays. No driver has this number:
    whoever may open it hears so."""
    box.started("mknod /tmp/none c 10 254; sleep 1000")
    look = ("sh", "-c", "exec 4</dev/zero 3</tmp/none")
    assert "not permitted" in box.exec(*look).err
    deny: Json = {"allow": False, "access": "rwm"}
    allowed = [deny, {"allow": True, "type": "c", "major": 10, "minor": 254, "access": "r"}]
    given = box.place / "resources.json"
    given.write_text(json.dumps({"devices": allowed}))
    box("update", "--resources", given, "c")
    assert "No such device" in box.exec(*look).err
    assert "not permitted" in box.exec("sh", "-c", "exec 3>/tmp/none").err
    assert kept(box)["linux"]["resources"]["devices"] == allowed
    given.write_text(json.dumps({"devices": allowed[:1]}))
    box("update", "-r", given, "c")
    assert "zero" not in (said := box.exec(*look).err), said
    assert "none: Operation not permitted" in said


def test_update_reads_standard_input(box: Box, tmp_path: Path) -> None:
    box.started()
    (tmp_path / "in").write_text('{"unified": {"cgroup.max.depth": "7"}}')
    with open(tmp_path / "in", "rb") as file:
        box("update", "-r", "-", "c", stdin=file.fileno())
    assert (box.cgroup() / "cgroup.max.depth").read_text() == "7\n"
    assert kept(box)["linux"]["resources"]["unified"] == {"cgroup.max.depth": "7"}


def test_update_is_all_or_nothing(box: Box, tmp_path: Path) -> None:
    """The second value is refused: the first is taken back, and the config is as before."""
    box.started()
    before = kept(box)
    (tmp_path / "r").write_text('{"unified": {"cgroup.max.depth": "7", "cgroup.max.descendants": "many"}}')
    assert "cgroup.max.descendants" in box.refused("update", "-r", tmp_path / "r", "c")
    assert (box.cgroup() / "cgroup.max.depth").read_text() == "max\n"
    assert kept(box) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resources", "nothing.json"], "--resources nothing.json: No such file"),
        (["--memory", "much"], '--memory "much": not a size'),
        (["--cpu-share", "1k"], '--cpu-share "1k": not a number'),
        (["--blkio-weight", "5000"], "linux.resources.blockIO.weight: must be between"),
        (["--cpu-idle", "2"], "linux.resources.cpu.idle: must be between"),
        (["--l3-cache-schema", "L3:0=f"], "has no linux.intelRdt"),
    ],
)
def test_update_refuses(box: Box, words: list[str], said: str) -> None:
    box.started()
    before = kept(box)
    assert said in box.refused("update", *words, "c")
    assert kept(box) == before


def test_update_wants_a_container_that_lives(box: Box) -> None:
    assert "container absent does not exist" in box.refused("update", "--cpu-share", "100", "absent")
    box.started()
    box("kill", "c", "KILL")
    box.ends()
    assert "not running" in box.refused("update", "--cpu-share", "100", "c")


def test_update_without_the_controller_is_a_warning(box: Box) -> None:
    if "pids" in facts.measure().cgroup_available:
        pytest.skip("cgroup v2 has the pids controller here: nothing is missing")
    box.started()
    done = box("update", "--pids-limit", "77", "c")
    assert "no limits of pids" in done.err
    assert "pids" in box.state()["degraded"]
    assert kept(box)["linux"]["resources"]["pids"] == {"limit": 77}


# ---- events


def test_stats_once(box: Box) -> None:
    """The names that go-runc and containerd's shim read; nanoseconds."""
    box.started("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000").waits_for("done\n")
    event = json.loads(box("events", "--stats", "c").out)
    assert (event["type"], event["id"]) == ("stats", "c")
    data = event["data"]
    assert set(data) == {
        "cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces",
    }  # fmt: skip
    usage = data["cpu"]["usage"]
    assert usage["total"] > 1_000_000
    assert abs(usage["total"] - usage["kernel"] - usage["user"]) < 10_000_000
    assert set(data["cpu"]["throttling"]) == {"periods", "throttledPeriods", "throttledTime"}
    assert {"limit", "usage", "failcnt"} <= set(data["memory"]["usage"])


def test_events_come_at_each_interval_until_the_end(box: Box) -> None:
    box.started("while :; do sleep 0.01; done")
    with box.popen("events", "--interval", "50ms", "c") as running:
        assert running.stdout
        rows = [json.loads(running.stdout.readline()) for _ in range(3)]
        assert [row["type"] for row in rows] == ["stats"] * 3
        totals = [row["data"]["cpu"]["usage"]["total"] for row in rows]
        assert totals == sorted(totals)
        box("kill", "c", "KILL")
        assert running.wait(5) == 0
    assert "not running" in box.refused("events", "c")
    assert "--interval" in box.refused("events", "--interval", "5", "c")


def test_events_sleep_between(box: Box) -> None:
    """An event file that was read says nothing until it changes: no loop that spins."""
    box.started()
    with box.popen("events", "c") as running:
        time.sleep(1.0)
        before = _ticks(running.pid)
        time.sleep(0.5)
        assert _ticks(running.pid) - before <= 1
        box("kill", "c", "KILL")
        assert running.wait(5) == 0


def _ticks(pid: int) -> int:
    """CPU time in 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


# ---- spec


@pytest.mark.parametrize("flags", [(), ("--rootless",)])
def test_a_spec_runs(box: Box, flags: tuple[str, ...]) -> None:
    """With a command for its shell and no terminal it is a container."""
    (box.bundle / "config.json").unlink(missing_ok=True)
    box("spec", "--bundle", box.bundle, *flags)
    box.config = json.loads((box.bundle / "config.json").read_text())
    assert box.process["terminal"] is True
    assert box.process["args"] == ["sh"]
    spec.validate(box.config)
    box.process.update({"terminal": False, "env": ["PATH=/bin"]})
    script = "cat /proc/self/uid_map; touch /x; hostname; grep NoNewPrivs /proc/self/status; ls /sys/firmware | wc -l"
    done = box.run(script)
    lines = done.out.split()
    assert lines[:3] == ["0", "0", "1" if flags else "4294967295"]
    assert lines[3:] == ["wherry", "NoNewPrivs:", "1", "0"]
    assert "Read-only file system" in done.err


def test_a_spec_overwrites_nothing(box: Box) -> None:
    file = box.bundle / "config.json"
    file.write_text("mine")
    assert f"{file} is there already" in box.refused("spec", "-b", box.bundle)
    assert file.read_text() == "mine"
    assert "cannot write" in box.refused("spec", "-b", box.place / "nowhere")


# ---- features


@contextlib.contextmanager
def suppress_foreign() -> Iterator[None]:
    """libseccomp knows architectures that it does not mix with the machine's: another byte order."""
    try:
        yield
    except WherryError as error:
        if "refuses the architecture" not in error.message:
            raise


def test_features_say_what_a_config_may_ask(box: Box) -> None:
    """Every word of the lists is taken by the reader of configs and, for mounts and seccomp, by what carries it out."""
    found = json.loads(box("features").out)
    linux = found["linux"]
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", "1.3.0")
    assert linux["cgroup"] == {"v1": False, "v2": True, "systemd": True, "systemdUser": True, "rdma": True}
    for action in linux["seccomp"]["actions"]:
        for operator in linux["seccomp"]["operators"]:
            if action != "SCMP_ACT_NOTIFY":
                argument = {"index": 0, "value": 1, "valueTwo": 1, "op": operator}
                rule = {"names": ["getcwd"], "action": action, "args": [argument]}
                assert seccomp.translate({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    for flag in set(linux["seccomp"]["supportedFlags"]) - {"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}:  # for a listener
        box.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "flags": [flag], "syscalls": [
            {"names": ["getpgrp"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
        assert box.run("true").code == 0
    assert {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"} <= set(linux["seccomp"]["archs"])
    for arch in linux["seccomp"]["archs"]:
        rules = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch], "syscalls": []}
        with suppress_foreign():
            seccomp.translate(rules)
    assert {"ro", "rro", "rbind", "tmpcopyup", "idmap", "rslave"} <= set(found["mountOptions"])
    assert linux["namespaces"] == ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
    assert linux["memoryPolicy"]["modes"][:2] == ["MPOL_DEFAULT", "MPOL_PREFERRED"]


# ---- checkpoint and restore: what they refuse before trying (that they work: tests/testbed/test_oci_criu.py)


def _criu(path: Path, script: str) -> dict[str, str]:
    """An environment in which criu is this script."""
    path.mkdir()
    (path / "criu").write_text(f"#!/bin/sh\n{script}\n")
    (path / "criu").chmod(0o755)
    return {"PATH": f"{path}:{os.environ['PATH']}"}


def test_checkpoint_says_why_it_cannot(box: Box, tmp_path: Path) -> None:
    """A sentence before anything is tried; the container goes on."""
    box.started("while :; do date +%s%N >/tmp/n; sleep 0.02; done")
    images = tmp_path / "images"
    words = ("checkpoint", "--image-path", images, "c")
    assert "the program criu is not installed" in box.refused(*words, env={"PATH": str(tmp_path)})
    env = _criu(tmp_path / "old", 'echo "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds" >&2; exit 1')
    text = box.refused(*words, env=env)
    assert "criu check says that it does not work on this kernel: vdso: Unexpected rt vDSO area bounds" in text
    assert not images.exists()
    env = _criu(tmp_path / "new", '[ "$1" = check ] && exit 0; echo "Error (criu/x.c:1): too late" >"$LOG"; exit 1')
    text = box.refused(*words, env={**env, "LOG": str(images / "dump.log")})
    assert f"cannot checkpoint container c: criu: too late (its log is {images}/dump.log)" in text
    box("pause", "c")
    box("resume", "c")
    assert box.state()["status"] == "running"


def test_checkpoint_refuses_what_criu_cannot_hand_over(box: Box, tmp_path: Path) -> None:
    env = _criu(tmp_path / "fine", "exit 0")
    assert "does not exist" in box.refused("checkpoint", "absent", env=env)
    box.create()
    assert "it is created" in box.refused("checkpoint", "c", env=env)
    box("delete", "c")
    mapping = [{"containerID": 0, "hostID": 0, "size": 65536}]
    box.linux["namespaces"].append({"type": "user"})
    box.linux.update({"uidMappings": mapping, "gidMappings": mapping})
    box.started()
    assert "user namespace is not supported" in box.refused("checkpoint", "c", env=env)
    box("delete", "--force", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-path", "nowhere"], "--image-path"),
        (["--image-path", ".", "--manage-cgroups-mode", "hard"], "--manage-cgroups-mode"),
        (["--image-path", "."], "descriptors.json"),
    ],
)
def test_restore_refuses(box: Box, tmp_path: Path, words: list[str], said: str) -> None:
    box.write()
    env = _criu(tmp_path / "fine", "exit 0")
    text = box.refused("restore", "--detach", "--bundle", box.bundle, *words, "c", env=env)
    assert said in text
    assert not box.left()


def test_checkpoint_and_restore_by_the_criu_of_this_host(box: Box, tmp_path: Path) -> None:
    """Whatever it says: the container is gone into images and comes back, or it runs on and there was a reason."""
    if not shutil.which("criu"):
        pytest.skip("criu is not installed")
    box.started("exec </dev/zero >/dev/null 2>&1; while :; do sleep 0.02; done")
    images = tmp_path / "images"
    done = box("checkpoint", "--image-path", images, "c", check=False, timeout=120)
    if done.code:
        assert re.match(r"wherry-oci: cannot checkpoint container c: criu( check says .*)?: \S", done.err), done.err
        assert box.state()["status"] == "running"
    else:
        assert "does not exist" in box.refused("state", "c")
        box("restore", "--detach", "--bundle", box.bundle, "--image-path", images, "c", timeout=120)
        assert box.state()["status"] == "running"
