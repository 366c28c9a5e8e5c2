"""`wherry-oci` by its callers' contract: runtime-spec's operations and lifecycle, runc's command line and exit codes.

Each test ends with the audit of what is left (`boxed`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ocibundle import Box, boxed, hook
from helpers.wherry import until
from wherry.kernel import facts
from wherry.model import Json

pytestmark = [pytest.mark.root, pytest.mark.seconds(40)]


@pytest.fixture
def box(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Box]:
    with boxed(test_id, tmp_path) as made:
        yield made


# ---- runtime.md: lifecycle, state, operations


def test_a_life(box: Box) -> None:
    """created: the program has not run. start runs it; its end is "stopped"; delete leaves nothing."""
    box.config["annotations"] = {"org.example.key": "value"}
    done = box.create(script="echo ran; sleep 1000")
    state = box.state()
    assert {key: state[key] for key in ("ociVersion", "id", "status", "bundle", "annotations")} == {
        "ociVersion": "1.3.0", "id": "c", "status": "created", "bundle": str(box.bundle),
        "annotations": {"org.example.key": "value"},
    }  # fmt: skip
    assert (state["rootfs"], state["owner"]) == (str(box.rootfs), "root")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", state["created"])
    assert done.out_file.read_text() == ""
    assert os.stat(f"/proc/{state['pid']}").st_uid == 0
    box("start", "c")
    done.waits_for("ran\n")
    assert box.state() == {**state, "status": "running"}
    box("kill", "c", "KILL")
    box.ends()
    assert box.state() == {**state, "status": "stopped", "pid": 0}
    box("delete", "c")
    assert "does not exist" in box.refused("state", "c")
    assert not box.left()


@pytest.mark.parametrize(
    ("status", "verbs"),
    [
        ("created", ["resume", "create"]),
        ("running", ["start", "resume", "delete", "create"]),
        ("paused", ["start", "pause", "delete", "exec", "create"]),
        ("stopped", ["start", "kill", "pause", "resume", "exec", "ps", "create"]),
    ],
)
def test_a_verb_in_the_wrong_state_changes_nothing(box: Box, status: str, verbs: list[str]) -> None:
    """runtime.md, Errors: as if the operation were never attempted."""
    box.create(script="sleep 1000")
    if status != "created":
        box("start", "c")
    if status == "paused":
        box("pause", "c")
    if status == "stopped":
        box("kill", "c", "KILL")
        box.ends()
    before = box.state()
    assert before["status"] == status
    for verb in verbs:
        words = {"exec": ("c", "true"), "create": ("--bundle", box.bundle, "c")}.get(verb, ("c",))
        text = box.refused(verb, *words)
        assert "c " in text or " c" in text, text
        assert box.state() == before, verb
        if verb == "kill":
            assert "container not running" in text  # what containerd looks for
    if status == "paused":
        box("resume", "c")
        assert box.state()["status"] == "running"


def test_every_verb_says_that_a_container_is_absent(box: Box) -> None:
    for words in (["start"], ["state"], ["kill"], ["kill", "KILL"], ["delete"], ["exec", "true"], ["ps"], ["pause"],
                  ["resume"]):  # fmt: skip
        assert "container absent does not exist" in box.refused(words[0], "absent", *words[1:])
    box("delete", "--force", "absent")
    box("delete", "-f", "absent")


def test_delete_takes_created_and_with_force_anything(box: Box) -> None:
    box.create("one")
    box("delete", "one")
    for number, verb in enumerate(("start", "pause")):
        box.create(f"c{number}", script="trap '' TERM; sleep 1000")
        box("start", f"c{number}")
        if verb != "start":
            box(verb, f"c{number}")
        box("delete", "--force", f"c{number}")
    assert not box.left()
    box.create("one")  # the id may be used again


def test_what_the_config_becomes_after_create_has_no_effect(box: Box) -> None:
    box.process["env"] = ["PATH=/bin", "WHEN=before"]
    done = box.create(script="echo $WHEN; sleep 1000")
    box.process["env"] = ["PATH=/bin", "WHEN=after"]
    box.process["args"] = ["false"]
    box.write()
    box("start", "c")
    done.waits_for("before\n")
    (box.bundle / "config.json").unlink()
    assert box.exec("sh", "-c", "echo $WHEN").out == "before\n"
    box("delete", "--force", "c")


def test_list_and_ps(box: Box) -> None:
    assert json.loads(box("list", "--format", "json").out) == []
    assert box("list").out.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    box.started("sleep 1000 & echo up; wait", cid="a").waits_for("up\n")
    box.create("b")
    rows = json.loads(box("list", "-f", "json").out)
    assert [(row["id"], row["status"], row["pid"]) for row in rows] == [
        ("a", "running", box.pid("a")),
        ("b", "created", box.pid("b")),
    ]
    assert box("list", "--quiet").out == "a\nb\n"
    lines = box("list").out.splitlines()
    assert lines[1].split()[:4] == ["a", str(rows[0]["pid"]), "running", str(box.bundle)]
    pids = json.loads(box("ps", "--format", "json", "a").out)
    assert len(pids) == 2
    assert rows[0]["pid"] in pids
    table = box("ps", "a").out.splitlines()
    assert table[0].split()[:2] == ["UID", "PID"]
    assert {int(line.split()[1]) for line in table[1:]} == set(pids)
    assert box("ps", "a", "-o", "pid,comm").out.splitlines()[0].split() == ["PID", "COMMAND"]
    assert "PID" in box.refused("ps", "a", "-o", "comm")


def test_pause_stops_every_process(box: Box) -> None:
    done = box.started("sleep 1000 & while :; do echo x; sleep 0.01; done")
    done.waits_for("x\n")
    box("pause", "c")
    assert box.state()["status"] == "paused"
    size = done.out_file.stat().st_size
    time.sleep(0.1)
    assert done.out_file.stat().st_size == size
    with box.popen("exec", "--ignore-paused", "c", "echo", "thawed") as waits:  # frozen with the others
        time.sleep(0.2)
        assert waits.poll() is None
        box("resume", "c")
        assert waits.stdout
        assert waits.stdout.read() == "thawed\n"
    until(lambda: done.out_file.stat().st_size > size)


# ---- run: exit codes, detach, keep


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 1", 1), ("exit 126", 126), ("exit 255", 255), ("kill -9 $$", 137),
                         ("kill -USR1 $$", 138)],
)  # fmt: skip
def test_run_and_exec_end_with_the_code_of_the_process(box: Box, script: str, code: int) -> None:
    """128 + n of a signal; pid 1 is deaf to what it does not handle, so a child of it is what dies."""
    box.process["args"] = ["sh", "-c", f"sh -c '{script}'; exit $?"]
    assert box.run(check=False).code == code
    assert not box.left()
    box.started()
    assert box.exec("sh", "-c", script).code == code


def test_run_tells_of_the_signal_that_ended_it(box: Box) -> None:
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "pid"]
    assert box.run("kill -9 $$", check=False).code == 137


def test_a_command_that_cannot_run(box: Box) -> None:
    """runc's words, which engines look for; create already tells, as runc's does."""
    (box.rootfs / "text").write_text("no program\n")
    (box.rootfs / "dir").mkdir()
    for args, words in (
        (["nothing-of-it"], "executable file not found in $PATH"),
        (["/bin/nothing-of-it"], "no such file or directory"),
        (["/text"], "permission denied"),
        (["/dir"], "permission denied"),
    ):
        box.process["args"] = args
        box.write()
        for verb in ("run", "create"):
            text = box.refused(verb, "--bundle", box.bundle, "c")
            assert args[0] in text, text
            assert words in text, text
        assert not box.left()
    box.started()
    done = box.exec("nothing-of-it")
    assert (done.code, "executable file not found in $PATH" in done.err) == (255, True)
    assert box.exec("/text").code == 255


def test_run_detached(box: Box) -> None:
    done = box.run("echo here; sleep 1000", "--detach", "--pid-file", box.place / "pid")
    done.waits_for("here\n")
    assert box.state()["status"] == "running"
    assert int((box.place / "pid").read_text()) == box.pid()
    assert (box.place / "pid").read_text().isdigit()
    box("delete", "-f", "c")


def test_run_with_keep_leaves_it_stopped(box: Box) -> None:
    assert box.run("exit 3", "--keep", check=False).code == 3
    assert box.state()["status"] == "stopped"
    box("delete", "c")


def test_run_is_deleted_when_its_caller_is_told_to_end(box: Box) -> None:
    """Signals of the foreground go to the process, and its end is ours."""
    box.process["args"] = ["sh", "-c", "trap 'echo got; exit 7' TERM; trap 'echo usr' USR1; echo ready; while :; do sleep 0.02; done"]  # noqa: E501
    box.write()
    with box.popen("run", "--bundle", box.bundle, "c") as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGUSR1)
        assert running.stdout.readline() == "usr\n"
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "got\n"
        assert running.wait(10) == 7
    assert not box.left()


def test_exec_passes_signals_on(box: Box) -> None:
    box.started()
    script = "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.02; done"
    with box.popen("exec", "c", "sh", "-c", script) as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == "got\n"
        assert running.wait(10) == 9


def test_kill_by_name_number_and_all(box: Box) -> None:
    done = box.started("for s in HUP USR1 USR2 TERM; do trap \"echo $s\" $s; done; echo up; while :; do sleep 0.02; done")
    done.waits_for("up\n")
    for given, name in (("HUP", "HUP"), ("SIGUSR1", "USR1"), (str(int(signal.SIGUSR2)), "USR2"), ("", "TERM")):
        box("kill", "c", *([given] if given else []))
        done.waits_for(f"{name}\n")
    for bad in ("NONE", "0", "99", "SIG"):
        assert "signal" in box.refused("kill", "c", bad)
    box("kill", "--all", "c", "KILL")
    box.ends()
    box("kill", "--all", "c", "KILL")  # containerd sends it to what is stopped already
    box("delete", "c")


# ---- exec


def test_exec_lives_in_the_container_with_its_rights(box: Box) -> None:
    box.started()
    pid = box.pid()
    done = box.exec("sh", "-c", "for n in mnt net uts ipc pid cgroup; do readlink /proc/self/ns/$n; done")
    assert done.out.split() == [os.readlink(f"/proc/{pid}/ns/{n}") for n in ("mnt", "net", "uts", "ipc", "pid", "cgroup")]
    options = ("--env", "A=b c", "-e", "B=d", "--cwd", "/tmp", "--user", "12:34", "--additional-gids", "56", "-g", "78",
               "--cap", "CAP_SYS_TIME", "--no-new-privs")  # fmt: skip
    script = "echo $A,$B,$PATH; pwd; id -u; id -g; id -G; grep -E '^(CapBnd|CapInh|CapAmb|NoNewPrivs)' /proc/self/status"
    lines = box.exec("sh", "-c", script, options=options).out.splitlines()
    assert lines[:5] == ["b c,d,/bin", "/tmp", "12", "34", "34 56 78"]
    facts_of = dict(line.split(":\t") for line in lines[5:])
    assert int(facts_of["CapBnd"], 16) & 1 << 25  # CAP_SYS_TIME
    assert (int(facts_of["CapInh"], 16), int(facts_of["CapAmb"], 16), facts_of["NoNewPrivs"]) == (0, 0, "1")
    own = box.cgroup()
    if own.parent.parent.is_dir():
        assert str(own.relative_to(own.parent.parent)) in Path(f"/proc/{pid}/cgroup").read_text()


def test_exec_of_a_process_from_a_file(box: Box) -> None:
    box.started()
    process: Json = {"args": ["sh", "-c", "echo $A; id -u; pwd; umask"], "env": ["PATH=/bin", "A=file"], "cwd": "/tmp",
                     "user": {"uid": 5, "gid": 5, "umask": 0o77}}  # fmt: skip
    path = box.place / "process.json"
    path.write_text(json.dumps(process))
    assert box.exec(options=("--process", path)).out == "file\n5\n/tmp\n0077\n"
    path.write_text(json.dumps({**process, "user": {"uid": -1, "gid": 0}}))
    assert "user.uid" in box.exec(options=("--process", path)).err
    path.write_text("{")
    assert "not valid JSON" in box.exec(options=("--process", path)).err
    assert "--process" in box.exec(options=("--process", box.place / "none")).err
    assert "not both" in box.exec("true", options=("--process", path)).err
    assert "command" in box.exec().err


def test_exec_detached_with_a_pid_file(box: Box) -> None:
    box.started()
    done = box.exec("sh", "-c", "echo here; sleep 1000", options=("--detach", "--pid-file", box.place / "pid"))
    assert done.code == 0
    done.waits_for("here\n")
    pid = int((box.place / "pid").read_text())
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{box.pid()}/ns/pid")
    assert pid in json.loads(box("ps", "-f", "json", "c").out)


def test_exec_into_a_created_container(box: Box) -> None:
    """As runc: a sandbox is looked at before its start."""
    box.create()
    assert box.exec("echo", "early").out == "early\n"
    assert box.state()["status"] == "created"
