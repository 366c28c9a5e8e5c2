"""`wherry-oci` by its callers' contract: runtime-spec's operations and lifecycle, runc's command line and exit codes.

Each test ends with the audit of what is left (`boxed`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ocibundle import Box, boxed, hook
from helpers.tools import need, run
from helpers.wherry import until
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
        assert "container absent does not exist" in box.refused_here(words[0], "absent", *words[1:])
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


def test_without_a_mount_namespace_the_host_gets_its_mounts_back(box: Box) -> None:
    """The spec: a type that is not listed is inherited. What was mounted goes with the container, also a failed one."""

    def mounted() -> bool:
        return str(box.rootfs) in Path("/proc/self/mountinfo").read_text()

    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "mount"]
    done = box.run("readlink /proc/self/ns/mnt; ls -d /proc/self /dev/null")
    assert os.readlink("/proc/self/ns/mnt") in done.out
    assert "/dev/null" in done.out
    assert not mounted()
    box.create(script="sleep 100")
    assert mounted()
    box("delete", "--force", "c")
    assert not mounted()
    box.process["args"] = ["nosuch"]
    assert box.run(check=False).code == 1
    assert not mounted()


def test_home_is_the_container_s(box: Box) -> None:
    """By its own passwd, for callers rely on it as runc has it; given ones stay, and of two words the last counts."""
    (box.rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nu:x:7:7::/home/u:/bin/sh\n")
    assert box.run("echo $HOME").out == "/root\n"
    box.process.update(env=["PATH=/bin", "A=1", "A=2"], user={"uid": 7, "gid": 7})
    assert box.run("env | grep -c ^A=; echo $A $HOME").out == "1\n2 /home/u\n"
    box.process["env"].append("HOME=/given")
    assert box.run("echo $HOME").out == "/given\n"


def test_a_start_that_is_killed_after_its_write_has_started_it(box: Box) -> None:
    box.create(script="sleep 100")
    state = json.loads((box.root / "c/state.json").read_text())
    (box.root / "c/state.json").write_text(json.dumps({**state, "started": 1.0}))
    with open(box.root / "c/start", "w") as fifo:
        fifo.write("11")
    until(lambda: "sleep" in Path(f"/proc/{box.pid()}/cmdline").read_text())
    assert box.state()["status"] == "running"
    assert "running" in box.refused("delete", "c")
    box("kill", "c", "0")
    box("delete", "-f", "c")


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
    done = box.started('for s in HUP USR1 USR2 TERM; do trap "echo $s" $s; done; echo up; while :; do sleep 0.02; done')
    done.waits_for("up\n")
    for given, name in (("HUP", "HUP"), ("SIGUSR1", "USR1"), (str(int(signal.SIGUSR2)), "USR2"), ("", "TERM")):
        box("kill", "c", *([given] if given else []))
        done.waits_for(f"{name}\n")
    for bad in ("NONE", "99", "SIG"):
        assert "signal" in box.refused("kill", "c", bad)
    box("kill", "--all", "c", "KILL")
    box.ends()
    box("kill", "--all", "c", "KILL")  # containerd sends it to what is stopped already
    box("delete", "c")


# ---- exec


def test_exec_lives_in_the_container_with_its_rights(box: Box) -> None:
    box.started()
    pid = box.pid()
    kinds = ("mnt", "net", "uts", "ipc", "pid", "cgroup")
    done = box.exec("sh", "-c", f"for n in {' '.join(kinds)}; do readlink /proc/self/ns/$n; done")
    assert done.out.split() == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds]
    options = ("--env", "A=b c", "-e", "B=d", "--cwd", "/tmp", "--user", "12:34", "--additional-gids", "56", "-g", "78",
               "--cap", "CAP_SYS_TIME", "--no-new-privs")  # fmt: skip
    script = "echo $A,$B,$PATH; pwd; id -u; id -g; id -G; grep -E '^(CapBnd|CapInh|CapAmb|NoNew)' /proc/self/status"
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


# ---- hooks (config.md, POSIX-platform Hooks; runtime.md, Lifecycle)

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
#: prestart belongs to the start operation by its words (config.md), though it runs at create
STATUSES = dict(zip(KINDS, ("created", "creating", "creating", "created", "running", "stopped"), strict=True))


class Hooks:
    """All six write into the container's root, each its name and the state that it got."""

    def __init__(self, box: Box, failing: str = "", script: str = "exit 3") -> None:
        self.box, self.log = box, box.rootfs / "hooks"
        box.config["hooks"] = {kind: [hook(box.place, self.log, kind, script * (kind == failing))] for kind in KINDS}
        inside = hook(box.rootfs, Path("/hooks"), "startContainer", script * (failing == "startContainer"))
        box.config["hooks"]["startContainer"] = [{**inside, "path": "/hook-startContainer"}]

    @property
    def ran(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def states(self) -> dict[str, Json]:
        lines = self.log.read_text().splitlines()
        return {line.split()[0]: json.loads(line.split(maxsplit=1)[1]) for line in lines}


def test_the_six_hooks_in_their_order_with_the_state(box: Box) -> None:
    hooks = Hooks(box)
    box.config["annotations"] = {"key": "value"}
    box.create(script="echo program >> /hooks; sleep 1000")
    assert hooks.ran == list(KINDS[:3])
    pid = box.pid()
    box("start", "c")
    until(lambda: "program" in hooks.ran)
    assert hooks.ran[3] == "startContainer"
    assert sorted(hooks.ran[4:]) == ["poststart", "program"]
    box("kill", "c", "KILL")
    box.ends()
    assert "poststop" not in hooks.ran
    box("delete", "c")
    assert hooks.ran[6:] == ["poststop"]
    text = hooks.log.read_text().replace("program\n", "")
    hooks.log.write_text(text)
    for kind, state in hooks.states.items():
        assert {key: state[key] for key in ("ociVersion", "id", "status", "bundle", "annotations")} == {
            "ociVersion": "1.3.0", "id": "c", "status": STATUSES[kind], "bundle": str(box.bundle),
            "annotations": {"key": "value"},
        }, kind  # fmt: skip
        assert state.get("pid", 0) == {"poststop": 0}.get(kind, pid), kind


def test_poststart_waits_for_the_program(box: Box) -> None:
    """After the user-specified process is executed, but before start returns; startContainer ends before that."""
    hooks = Hooks(box, "startContainer", "sleep 0.3; echo done >> /hooks")
    box.create(script="sleep 1000")
    box("start", "c")
    assert hooks.ran[3:] == ["startContainer", "done", "poststart"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["fails", "is not there", "hangs"])
def test_a_hook_that_fails(box: Box, kind: str, how: str) -> None:
    """Of a create: an error, the container destroyed, poststop. Of poststop: a warning, and the others still run."""
    hooks = Hooks(box, kind, "sleep 1000" if how == "hangs" else "echo the cause; exit 3")
    own = box.config["hooks"][kind]
    if how == "is not there":
        own[0]["path"] = "/none"
    if how == "hangs":
        own[0]["timeout"] = 1
    last = KINDS.index(kind)
    box.process["args"] = ["sh", "-c", "sleep 1000"]
    box.write()
    words = ("create", "--bundle", box.bundle, "c")
    if last < 3:
        text = box.refused(*words)
        assert kind == "createContainer" or "hook" in text, text
        assert own[0]["path"] in text, text
    else:
        box(*words)
        if last < 5:
            text = box.refused("start", "c")
            assert f"{kind} hook" in text, text
            assert "does not exist" in box.refused("state", "c")  # destroyed: step 12 of the lifecycle
        else:
            box("start", "c")
            log = box.place / "log"
            box("delete", "--force", "c", options=("--log", log, "--log-format", "json"))
            assert [json.loads(line)["level"] for line in log.read_text().splitlines()] == ["warning"]
    told = [] if how == "is not there" else [kind]
    assert hooks.ran == [*KINDS[:last], *told, *(["poststop"] if kind != "poststop" else [])]
    assert not box.left()


# ---- standard streams, descriptors, terminals


def test_a_stream_that_is_null_is_the_container_s_own(box: Box) -> None:
    """Through the host's /dev/null root of a container could change its mode (CVE-2025-31133's kin)."""
    before = os.stat("/dev/null")
    box.run("chmod 600 /proc/self/fd/0; chown 5 /proc/self/fd/0; stat -c %a /dev/null > /mode")
    assert (box.rootfs / "mode").read_text() == "600\n"
    box.started()
    box.exec("sh", "-c", "chmod 601 /proc/self/fd/0")
    now = os.stat("/dev/null")
    assert (now.st_mode, now.st_uid) == (before.st_mode, before.st_uid)


def test_streams_that_the_caller_closed_are_null(box: Box) -> None:
    """Else the next file of ours would be the container's: its lock, its config, the log."""
    script = "for n in 0 1 2; do all=\"$all $(readlink /proc/$$/fd/$n)\"; done; echo $all > /fds"
    box.process["args"] = ["sh", "-c", script]
    box.write()
    run("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *box.argv("run", "--bundle", box.bundle, "c"), env=box.env)
    assert (box.rootfs / "fds").read_text() == "/dev/null /dev/null /dev/null\n"
    (box.rootfs / "fds").unlink()
    box.started()
    words = box.argv("exec", "c", "sh", "-c", script)
    run("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words, env=box.env)
    assert (box.rootfs / "fds").read_text() == "/dev/null /dev/null /dev/null\n"


def with_descriptors(box: Box, before: str, *words: object) -> str:
    """`wherry-oci` with two open files from a shell that does `before`."""
    for name in ("one", "two"):
        (box.place / name).write_text(f"{name}\n")
    text = f'{before} exec "$@" 3<{box.place}/one 4<{box.place}/two'
    return run("sh", "-c", text, "sh", *box.argv(*words), env=box.env, check=False).stdout


def test_descriptors_that_are_kept_and_that_are_not(box: Box) -> None:
    look = "ls /proc/self/fd | tr '\\n' ' '; cat <&3; cat <&4; echo ${LISTEN_FDS-none} ${LISTEN_PID-none}"
    box.process["args"] = ["sh", "-c", look]
    box.write()
    words = ("run", "--bundle", box.bundle)
    assert with_descriptors(box, "", *words, "a").split() == ["0", "1", "2", "3", "none", "none"]
    kept = with_descriptors(box, "", *words, "--preserve-fds", 2, "b").split()
    assert kept == ["0", "1", "2", "3", "4", "5", "one", "two", "none", "none"]
    listen = with_descriptors(box, "LISTEN_FDS=2 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID;", *words, "c").split()
    assert listen == ["0", "1", "2", "3", "4", "5", "one", "two", "2", "1"]
    others = with_descriptors(box, "LISTEN_FDS=2 LISTEN_PID=1; export LISTEN_FDS LISTEN_PID;", *words, "d").split()
    assert others == ["0", "1", "2", "3", "none", "none"]  # sd_listen_fds(3): meant for another process
    box.started()
    assert with_descriptors(box, "", "exec", "--preserve-fds", 2, "c", "sh", "-c", look).split() == kept
    for count in ("-1", "x", "99", "100000"):
        assert "preserve-fds" in box.refused("run", "--bundle", box.bundle, "--preserve-fds", count, "e")


@pytest.fixture
def console() -> Iterator[tuple[str, socket.socket]]:
    """A listening socket with a short path."""
    place = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/s")
        listener.listen()
        listener.settimeout(10)
        yield f"{place}/s", listener
    shutil.rmtree(place)


def master_of(listener: socket.socket) -> int:
    with listener.accept()[0] as peer:
        peer.settimeout(10)
        _, fds, _, _ = socket.recv_fds(peer, 4096, 4)
    assert len(fds) == 1
    return fds[0]


def reads(fd: int, text: str) -> str:
    """What a terminal shows until `text` has come."""
    seen = ""
    deadline = time.monotonic() + 10
    while text not in seen:
        assert time.monotonic() < deadline, f"{text!r} did not come: {seen!r}"
        if select.select([fd], [], [], 0.5)[0]:
            try:
                seen += os.read(fd, 4096).decode()
            except OSError:
                raise AssertionError(f"{text!r} did not come before the end: {seen!r}") from None
    return seen


CONTROLLED = "echo tty=$(tty); stty size; trap 'echo int' INT; echo up; while :; do sleep 0.05; done"


def test_a_terminal_by_the_console_socket(box: Box, console: tuple[str, socket.socket]) -> None:
    path, listener = console
    box.process.update(terminal=True, consoleSize={"width": 101, "height": 33})
    box.create("c", "--console-socket", path, script=CONTROLLED)
    master = master_of(listener)
    box("start", "c")
    seen = reads(master, "up")
    assert "33 101" in seen
    assert re.search(r"tty=/dev/(console|pts/0)", seen)
    os.write(master, b"\x03")
    reads(master, "int")
    options = ("--tty", "--console-socket", path, "--detach")
    assert box.exec("sh", "-c", CONTROLLED, options=options).code == 0
    second = master_of(listener)
    reads(second, "up")
    os.write(second, b"\x03")
    reads(second, "int")
    os.close(master)
    os.close(second)
    box("delete", "-f", "c")


def test_a_terminal_needs_somebody_who_takes_it(box: Box, console: tuple[str, socket.socket]) -> None:
    box.process["terminal"] = True
    box.write()
    words = ("create", "--bundle", box.bundle)
    assert "--console-socket" in box.refused(*words, "c")
    assert "--console-socket" in box.refused(*words, "--console-socket", "/none", "c")
    assert "--console-socket" in box.refused("run", "--detach", "--bundle", box.bundle, "c")
    box.process["terminal"] = False
    box.write()
    assert "terminal" in box.refused(*words, "--console-socket", console[0], "c")
    assert not box.left()


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_terminal_in_the_foreground(box: Box, verb: str) -> None:
    """Raw while it lasts, resized with ours, keys and ctrl-c for the process; afterwards as it was."""
    script = "trap 'echo int' INT; stty size; echo up; until read line && [ $line ]; do :; done; echo got=$line"
    script += "; stty size; exit 5"
    if verb == "exec":
        box.started()
        words: tuple[object, ...] = ("exec", "--tty", "c", "sh", "-c", script)
    else:
        box.process.update(terminal=True, args=["sh", "-c", script])
        box.write()
        words = ("run", "--bundle", box.bundle, "c")
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (20, 70))
    before = termios.tcgetattr(slave)
    with box.popen(*words, stdin=slave, stdout=slave, stderr=slave, before=("setsid", "--ctty")) as running:
        assert "20 70" in reads(master, "up")
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON)
        os.write(master, b"\x03")
        reads(master, "int")
        termios.tcsetwinsize(master, (30, 90))
        time.sleep(0.2)
        os.write(master, b"word\r")
        assert "30 90" in reads(master, "30 90")
        assert running.wait(10) == 5
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


# ---- the log that callers read


def test_log_lines(box: Box) -> None:
    log = box.place / "log"
    for form in ((), ("--log-format", "text")):
        box("state", "absent", check=False, options=("--log", log, *form))
    line = r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=error msg="container absent does not exist"'
    assert all(re.fullmatch(line, found) for found in log.read_text().splitlines())
    assert len(log.read_text().splitlines()) == 2
    log.unlink()
    quoted = box.place / 'a "quoted"\nname'
    done = box("create", "--bundle", quoted, "c", check=False, options=("--log", log, "--log-format=json"))
    assert done.code == 1
    (found,) = map(json.loads, log.read_text().splitlines())
    assert set(found) == {"level", "msg", "time"}
    assert found["level"] == "error"
    assert str(quoted) in found["msg"]
    assert "log-format" in box.refused("list", options=("--log-format", "xml"))
    assert box("list", options=("--log", "/none/log")).code == 0


# ---- bad input: one sentence, non-zero, nothing left


IDS = ["", ".", "..", "a/b", "../x", "/abs", "a b", "é", "a\n", "a:b", "x" * 256, "x" * 1025]


def test_ids_that_are_none(box: Box) -> None:
    box.write()
    for cid in IDS:
        for words in (("create", "--bundle", box.bundle), ("run", "--bundle", box.bundle), ("state",), ("start",),
                      ("delete",), ("delete", "--force"), ("kill",)):  # fmt: skip
            assert "container id" in box.refused_here(*words, cid)
    assert not box.left(0)
    box.create("x" * 255)
    box("delete", "x" * 255)


def test_bundles_that_are_none(box: Box) -> None:
    path = box.bundle / "config.json"
    words = ("create", "--bundle", box.bundle, "c")
    assert str(box.bundle / "none") in box.refused_here("create", "--bundle", box.bundle / "none", "c")
    assert "config.json" in box.refused_here(*words)
    for text, why in ((b"", "JSON"), (b"{", "JSON"), (b"[]", "object"), (b"[" * 100000, "JSON"), (b"\xff{}", "JSON"),
                      (b"{}", "ociVersion"), (b" " * (17 << 20), "config.json")):  # fmt: skip
        path.write_bytes(text)
        assert why in box.refused_here(*words)
    path.unlink()
    path.mkdir()
    assert "config.json" in box.refused_here(*words)
    path.rmdir()
    box.write()
    box.rootfs.rename(box.place / "elsewhere")
    assert "root.path" in box.refused_here(*words)
    box.rootfs.write_text("a file\n")
    assert "root.path" in box.refused_here(*words)
    assert not box.left()


BREACHES: list[tuple[str, Json]] = [
    ("ociVersion", {"ociVersion": 5}),
    ("ociVersion", {"ociVersion": "9.9.9"}),
    ("process", {"process": None}),
    ("process.args", {"process": {"args": []}}),
    ("process.args[0]", {"process": {"args": [1]}}),
    ("process.cwd", {"process": {"cwd": "relative"}}),
    ("process.env[0]", {"process": {"env": ["A=\0"]}}),
    ("process.user.uid", {"process": {"user": {"uid": -1}}}),
    ("process.user.uid", {"process": {"user": {"uid": "root"}}}),
    ("process.user.uid", {"process": {"user": {"uid": 4294967295}}}),
    ("process.user.uid", {"process": {"user": {"uid": 1000000000000}}}),
    ("process.user.gid", {"process": {"user": {"gid": 1.5}}}),
    ("process.user.additionalGids[1]", {"process": {"user": {"additionalGids": [1, -1]}}}),
    ("process.rlimits[0].type", {"process": {"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}}),
    ("mounts[0].destination", {"mounts": [{"type": "tmpfs"}]}),
    ("nofs", {"mounts": [{"destination": "/x", "type": "nofs", "source": "x"}]}),
    ("hooks.prestart[0].path", {"hooks": {"prestart": [{"path": "relative"}]}}),
    ("hooks.prestart[0].timeout", {"hooks": {"prestart": [{"path": "/bin/true", "timeout": 0}]}}),
    ("linux.namespaces[0].type", {"linux": {"namespaces": [{"type": "none"}]}}),
    ("linux.namespaces", {"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}),
    ("/none", {"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/none"}]}}),
    ("linux.resources.memory.limit", {"linux": {"resources": {"memory": {"limit": "1g"}}}}),
    ("linux.seccomp.defaultAction", {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NONE"}}}),
    ("linux.devices[0].path", {"linux": {"devices": [{"type": "c", "major": 1, "minor": 3}]}}),
    ("linux.rootfsPropagation", {"linux": {"rootfsPropagation": "none"}}),
    ("linux.cgroupsPath", {"linux": {"cgroupsPath": "/../../x"}}),
]


def merged(own: Json, more: Json) -> Json:
    """`more` over `own`, objects member by member."""
    both = {key: merged(own[key], value) for key, value in more.items() if isinstance(value, dict) and key in own}
    return {**own, **more, **both}


def test_configs_that_break_the_schema(box: Box) -> None:
    """The sentence has the field's path."""
    for field, change in BREACHES:
        (box.bundle / "config.json").write_text(json.dumps(merged(box.config, change)))
        text = box.refused_here("create", "--bundle", box.bundle, "c")
        assert field in text, text
        assert not box.left(0), field


def test_command_lines_that_are_none(box: Box) -> None:
    box.write()
    for words in (["none"], ["create"], ["create", "a", "b"], ["state"], ["list", "x"], ["create", "--none", "c"],
                  ["create", "--bundle"], ["list", "--format", "xml"], ["delete", "--force=maybe", "c"], ["exec"],
                  ["--rootless=perhaps", "list"], ["--cgroup-manager=x", "list"]):  # fmt: skip
        box.refused_here(*words)
    assert "spec: 1.3.0" in box("--version").out
    assert "create" in box("--help").out
    assert "--bundle" in box("create", "--help").out


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_link_where_the_kernel_s_mount_point_should_be(box: Box, name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (box.rootfs / name).rmdir()
    for target in (str(victim), "/tmp", "../../../../../" + str(victim)):
        (box.rootfs / name).symlink_to(target)
        box.write()
        assert f"/{name}" in box.refused("create", "--bundle", box.bundle, "c")
        (box.rootfs / name).unlink()
    assert not list(victim.iterdir())
    assert not box.left()


def test_files_that_cannot_be_written(box: Box) -> None:
    """What fails late undoes what came before it."""
    box.write()
    words = ("--bundle", box.bundle, "--pid-file", "/none/pid")
    for verb in ("create", "run"):
        assert "/none/pid" in box.refused(verb, *words, "c")
        assert not box.left()
    box.started()
    done = box.exec("true", options=("--pid-file", "/none/pid"))
    assert (done.code, "/none/pid" in done.err) == (255, True)
    assert len(json.loads(box("ps", "-f", "json", "c").out)) == 1
    sealed = box.place / "sealed"
    sealed.touch()
    argv = box.argv("create", "--bundle", box.bundle, "c")
    argv[argv.index(str(box.root))] = str(sealed)
    assert run(*argv, env=box.env, check=False).stderr.startswith("wherry-oci: ")


def test_a_run_that_is_killed_leaves_a_container_that_can_be_deleted(box: Box) -> None:
    box.process["args"] = ["sleep", "1000"]
    box.write()
    with open(box.place / "said.txt", "w") as said, box.popen("run", "--bundle", box.bundle, "c", stdout=said) as front:
        until(lambda: (box.root / "c").exists() and box.state()["status"] == "running")
        front.kill()
    assert box.state()["status"] == "running"
    box("delete", "--force", "c")
    assert not box.left()


# ---- a pid that is another's, and many at once


def test_a_pid_that_is_gone_or_another_s(box: Box) -> None:
    """state.json names a process by its start time too: nobody else is ever signalled."""
    box.started()
    os.kill(box.pid(), signal.SIGKILL)
    box.ends()
    file = box.root / "c" / "state.json"
    stored = json.loads(file.read_text())
    with subprocess.Popen(["sleep", "1000"]) as other:
        stored["init"]["pid"] = other.pid  # recycled: the start time is another
        file.write_text(json.dumps(stored))
        assert box.state()["status"] == "stopped"
        for words in (("kill", "c", "KILL"), ("start", "c"), ("exec", "c", "true"), ("ps", "c")):
            box.refused(*words)
        box("kill", "--all", "c", "KILL")
        box("delete", "--force", "c")
        assert other.poll() is None
        other.kill()
    box.create()
    whole = file.read_text()
    file.write_text("{")
    for words in (("state", "c"), ("delete", "--force", "c")):  # to drop what it names would be to leave it behind
        assert "state.json" in box.refused(*words)
    assert box("list").code == 0
    file.write_text(whole)
    box("delete", "--force", "c")


def test_twenty_creates_at_once(box: Box) -> None:
    names = [f"c{number}" for number in range(20)]
    for name in names:
        box.write(name)
        (box.bundle / "config.json").rename(box.bundle / f"{name}.json")
    words = [("create", "--bundle", box.bundle, "--config", f"{name}.json", name) for name in names]
    running = [box.popen(*each, stdout=subprocess.DEVNULL) for each in words]
    assert [each.wait(60) for each in running] == [0] * 20
    assert {row["status"] for row in json.loads(box("list", "-f", "json").out)} == {"created"}
    running = [box.popen("delete", name, stdout=subprocess.DEVNULL) for name in names]
    assert [each.wait(60) for each in running] == [0] * 20
    assert not box.left()


def test_one_id_wanted_by_many(box: Box) -> None:
    box.write()
    for _ in range(3):
        words = ("create", "--bundle", box.bundle, "c")
        running = [box.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(6)]
        assert sorted(each.wait(60) for each in running) == [0, 1, 1, 1, 1, 1]
        assert box.state()["status"] == "created"
        box("delete", "c")
    assert not box.left()


def test_create_and_delete_of_one_id_in_a_race(box: Box) -> None:
    """Whoever wins: no crash, and after a last delete nothing is left."""
    box.write()
    for _ in range(8):
        words = [("create", "--bundle", box.bundle, "c"), ("delete", "--force", "c"), ("delete", "--force", "c")]
        with open(box.place / "said.txt", "a+") as said:
            running = [box.popen(*each, stdout=said, stderr=said) for each in words]
            codes = [each.wait(30) for each in running]
        assert codes[0] in (0, 1)
        assert codes[1:] == [0, 0]  # gone is what they wanted
        assert "Error" not in (box.place / "said.txt").read_text()
    box("delete", "--force", "c")
    assert not box.left()


# ---- seccomp's listener (config-linux.md, The Container Process State)

RECV, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND


def test_the_seccomp_agent_gets_the_listener_and_the_state(box: Box, console: tuple[str, socket.socket]) -> None:
    path, listener = console
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "meta",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    }  # fmt: skip
    done = box.create(script="mkdir /made || echo refused; ls -d /made; sleep 1000")
    with listener.accept()[0] as peer:
        data, fds, _, _ = socket.recv_fds(peer, 1 << 16, 4)
    sent = json.loads(data)
    assert (sent["fds"], sent["metadata"], sent["pid"]) == (["seccompFd"], "meta", box.pid())
    assert (sent["state"]["id"], sent["state"]["status"], sent["state"]["pid"]) == ("c", "creating", box.pid())
    assert sent["state"]["bundle"] == str(box.bundle)
    (fd,) = fds
    box("start", "c")
    request = bytearray(80)
    fcntl.ioctl(fd, RECV, request)
    number, pid = struct.unpack_from("=QI", request)
    assert pid > 0
    fcntl.ioctl(fd, SEND, struct.pack("=QqiI", number, 0, -1, 0))  # EPERM
    os.close(fd)
    assert "/made" not in done.waits_for("refused\n")
    box("delete", "-f", "c")


# ---- another user


@pytest.fixture
def user_box(test_id: str) -> Iterator[Box]:
    """A box that uid 54321 owns, where it can reach it."""
    place = Path(tempfile.mkdtemp(prefix=test_id))
    place.chmod(0o755)
    with boxed(test_id, place) as box:
        box.env["XDG_RUNTIME_DIR"] = str(box.place / "run")
        run("chown", "-R", "54321:54321", place)
        yield box
        for pid in box.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(box.root)
        box.root.mkdir()
    shutil.rmtree(place)


def as_user(box: Box, *words: object, before: str = "", check: bool = True) -> str:
    """`wherry-oci` of uid 54321; `before` is done by root in a mount namespace of its own."""
    # executed by setpriv itself, which still may: the interpreter can lie where only root comes
    program = (sys.executable, "-m", "wherry.ocicli.main", *box.argv(*words)[1:])
    user = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *program)
    said = box.place / "said.txt"  # a pipe would be kept open by what goes on
    said.write_text("")
    text = f'{before}\nexec "$@" </dev/null >{said} 2>&1'
    done = run("unshare", "--mount", "sh", "-ec", text, "sh", *user, env=box.env, check=False)
    assert not check or not done.returncode, said.read_text()
    return said.read_text()


def test_a_user_without_rights_with_one_id(user_box: Box) -> None:
    box = user_box
    box.linux["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        box.linux[key] = [{"containerID": 0, "hostID": 54321, "size": 1}]
    box.process["args"] = ["sh", "-c", "id -u; cat /proc/self/uid_map; touch /made; exit 4"]
    box.write()
    text = as_user(box, "run", "--bundle", box.bundle, "c", check=False)
    assert text.split()[:4] == ["0", "0", "54321", "1"], text
    assert (box.rootfs / "made").stat().st_uid == 54321
    box.process["args"] = ["sleep", "1000"]
    box.write()
    as_user(box, "run", "--detach", "--bundle", box.bundle, "c")
    assert json.loads(as_user(box, "state", "c"))["status"] == "running"
    assert as_user(box, "exec", "c", "id", "-u") == "0\n"
    assert str(box.pid()) in as_user(box, "ps", "c")
    as_user(box, "kill", "c", "KILL")
    box.ends()
    as_user(box, "delete", "c")
    assert not box.left()


def test_a_user_without_rights_with_ids_of_its_own(user_box: Box) -> None:
    need("newuidmap")
    box = user_box
    (box.place / "passwd").write_text(Path("/etc/passwd").read_text() + "wtuser:x:54321:54321::/:/bin/sh\n")
    (box.place / "ids").write_text("wtuser:600000:1000\n")
    (box.place / "empty").touch()
    mounts = f"touch /etc/subuid /etc/subgid; mount --bind {box.place}/passwd /etc/passwd; "
    mounts += "".join(f"mount --bind {box.place}/ids /etc/{name}; " for name in ("subuid", "subgid"))
    box.linux["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        box.linux[key] = [{"containerID": 0, "hostID": 54321, "size": 1},
                          {"containerID": 1, "hostID": 600000, "size": 1000}]  # fmt: skip
    box.process["user"] = {"uid": 33, "gid": 33, "additionalGids": [44]}
    box.process["args"] = ["sh", "-c", "id -u; id -G; cat /proc/self/uid_map"]
    box.write()
    text = as_user(box, "run", "--bundle", box.bundle, "c", before=mounts).split()
    assert text == ["33", "33", "44", "0", "54321", "1", "1", "600000", "1000"]
    box.linux["uidMappings"][1]["hostID"] = 700000
    box.write()
    said = as_user(box, "run", "--bundle", box.bundle, "c", before=mounts, check=False)
    assert "newuidmap" in said, said
    assert not box.left()


def test_a_user_without_rights_needs_a_user_namespace(user_box: Box) -> None:
    user_box.write()
    text = as_user(user_box, "run", "--bundle", user_box.bundle, "c", check=False)
    assert len(text.splitlines()) <= 2, text
    assert "Error" not in text
    assert not user_box.left()
