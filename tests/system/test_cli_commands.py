"""The commands as processes: streams, exit codes, what they print, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest

from helpers.wherry import COMMAND, Wherry, until

IMAGE = "busybox"
NONE = ("--network", "none")


@pytest.fixture
def own(wherry: Wherry, busybox: str) -> Wherry:
    """A wherry with the image in it."""
    wherry("pull", "-q", busybox)
    return wherry


def sleeper(own: Wherry, *flags: str, suffix: str = "c") -> str:
    name = own.name(suffix)
    own("run", "-d", *NONE, "--name", name, *flags, IMAGE, "sleep", "1000")
    return name


def test_streams_and_exit_codes(own: Wherry) -> None:
    done = own("run", "--rm", *NONE, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    missing = own("run", "--rm", *NONE, IMAGE, "no-such-program", check=False)
    assert missing.returncode == 127
    assert missing.stderr.startswith("wherry: ")
    assert "no-such-program" in missing.stderr
    assert own("run", "--rm", *NONE, IMAGE, "/etc", check=False).returncode == 126
    assert own("ps", "-aq").stdout == ""


def test_input_flows_without_deadlock(own: Wherry) -> None:
    text = "line of input\n" * 200_000
    assert own("run", "--rm", "-i", *NONE, IMAGE, "cat", stdin=text).stdout == text
    assert own("run", "--rm", *NONE, IMAGE, "cat", stdin=text).stdout == ""  # without -i there is none
    name = sleeper(own)
    assert own("exec", "-i", name, "wc", "-c", stdin=text).stdout.split() == [str(len(text))]


def test_a_reader_that_goes_is_no_noise(own: Wherry) -> None:
    command = f"{' '.join(map(repr, COMMAND))} run --rm --network none {IMAGE} sh -c 'yes | head -c 300000' | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=own.env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("y\n", "")


def test_detached_prints_the_id_and_lives_on(own: Wherry) -> None:
    found = own(
        "run", "-d", *NONE, "--name", own.name(), "--cidfile", str(own.root.parent / "id"), IMAGE, "sleep", "1000"
    )
    cid = found.stdout.strip()
    assert len(cid) == 64
    assert (own.root.parent / "id").read_text().strip() == cid
    row = json.loads(own("ps", "--format", "json", "--no-trunc").stdout)
    assert (row["ID"], row["Names"], row["State"], row["Command"]) == (cid, own.name(), "running", '"sleep 1000"')
    assert own("ps", "-q").stdout == cid[:12] + "\n"
    table = own("ps").stdout.splitlines()
    assert table[0].split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert own("inspect", "-f", "{{.State.Running}} {{.Name}}", own.name()).stdout == f"true /{own.name()}\n"


def test_signals_are_passed_on(own: Wherry) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    process = own.popen("run", "--rm", *NONE, IMAGE, "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 3
    assert process.stdout.read() == b"got\n"
    process.stdout.close()


def test_a_client_that_goes_leaves_the_container(own: Wherry) -> None:
    name = own.name()
    script = "echo ready; exec sleep 1000"
    process = own.popen(
        "run", *NONE, "--name", name, "--sig-proxy=false", IMAGE, "sh", "-c", script, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()
    assert own("inspect", "-f", "{{.State.Status}}", name).stdout == "running\n"


def test_exec(own: Wherry) -> None:
    name = sleeper(own, "-e", "A=1")
    assert own("exec", name, "echo", "-n", "x").stdout == "x"
    assert (
        own("exec", "-e", "B=2", "-w", "/tmp", "-u", "1:1", name, "sh", "-c", "echo $A $B $PWD; id -u").stdout
        == "1 2 /tmp\n1\n"
    )
    assert own("exec", name, "sh", "-c", "exit 5", check=False).returncode == 5
    assert own("exec", name, "nope", check=False).returncode == 127
    assert own("exec", "-it", name, "sh", check=False).returncode == 1
    assert own("exec", "-d", name, "touch", "/made").stdout == ""
    until(lambda: own("exec", name, "ls", "/made", check=False).returncode == 0)
    assert own("exec", own.name("none"), "true", check=False).returncode == 1


def test_life(own: Wherry) -> None:
    name = own.name()
    own("create", *NONE, "--name", name, "-i", IMAGE, "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done")
    assert own("start", name).stdout == f"{name}\n"
    assert own("pause", name).stdout == f"{name}\n"
    assert "Paused" in own("ps").stdout
    own("unpause", name)
    own("rename", name, own.name("new"))
    name = own.name("new")
    assert own("stop", "-t", "5", name).stdout == f"{name}\n"
    assert own("wait", name).stdout == "4\n"
    own("restart", "-t", "2", name)
    own("kill", name)
    assert own("wait", name).stdout == "137\n"
    assert own("rm", name, own.name("none"), check=False).returncode == 1
    assert own("ps", "-aq").stdout == ""


def test_start_attached_gives_the_output_and_the_code(own: Wherry) -> None:
    own("create", *NONE, "--name", own.name(), "-i", IMAGE, "sh", "-c", "read x; echo got $x; exit 6")
    done = own("start", "-ai", own.name(), stdin="word\n", check=False)
    assert (done.returncode, done.stdout) == (6, "got word\n")


def test_logs(own: Wherry) -> None:
    name = own.name()
    own("run", "-d", *NONE, "--name", name, IMAGE, "sh", "-c", "echo one; echo two >&2; sleep 1; echo three")
    followed = own("logs", "-f", name)
    assert (followed.stdout, followed.stderr) == ("one\nthree\n", "two\n")
    assert own("logs", "-n", "1", name).stdout == "three\n"
    stamped = own("logs", "-t", name).stdout.splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["one", "three"]
    assert own("logs", "--since", stamped[1].split()[0], name).stdout == "three\n"
    assert own("logs", "--until", stamped[0].split()[0].replace("20", "19", 1), name).stdout == ""


def test_looking(own: Wherry) -> None:
    name = sleeper(own)
    assert "sleep 1000" in own("top", name).stdout
    own("exec", name, "sh", "-c", "echo x > /new; rm /bin/yes || true")
    assert "A /new" in own("diff", name).stdout.splitlines()
    stats = json.loads(own("stats", "--no-stream", "--format", "json", name).stdout)
    assert stats["Name"] == name
    assert own("port", name).stdout == ""
    found = json.loads(own("inspect", name).stdout)
    assert found[0]["Name"] == f"/{name}"
    missing = own("inspect", own.name("none"), check=False)
    assert (missing.returncode, missing.stdout) == (1, "[]\n")


def test_cp_both_ways(own: Wherry, tmp_path: Path) -> None:
    name = sleeper(own)
    source = tmp_path / "site"
    (source / "sub").mkdir(parents=True)
    (source / "index").write_text("hello")
    (source / "sub/run").write_text("#!/bin/sh\necho ran\n")
    (source / "sub/run").chmod(0o755)
    own("cp", source, f"{name}:/srv")
    assert own("exec", name, "/srv/sub/run").stdout == "ran\n"
    own("cp", f"{source}/.", f"{name}:/tmp")
    assert own("exec", name, "cat", "/tmp/index").stdout == "hello"
    own("cp", source / "index", f"{name}:/tmp/renamed")
    assert own("exec", name, "cat", "/tmp/renamed").stdout == "hello"
    own("cp", f"{name}:/srv", tmp_path / "back")
    assert (tmp_path / "back/index").read_text() == "hello"
    assert os.access(tmp_path / "back/sub/run", os.X_OK)
    own("cp", f"{name}:/srv/index", tmp_path / "one")
    assert (tmp_path / "one").read_text() == "hello"
    command = [*COMMAND, "cp", f"{name}:/srv", "-"]
    stream = subprocess.run(command, env=own.env, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(stream)) as tar:
        assert "srv/sub/run" in tar.getnames()
    wrong = own("cp", f"{name}:/nothing", tmp_path, check=False)
    assert wrong.returncode == 1
    assert "/nothing" in wrong.stderr
    assert own("cp", source, f"{name}:/no/such/dir/x", check=False).returncode == 1


def test_events(own: Wherry) -> None:
    start = f"{time.time() - 1:.3f}"
    own("run", "--rm", *NONE, "--name", own.name(), IMAGE, "true")
    lines = own("events", "--since", start, "--until", "0s", "--filter", "type=container").stdout.splitlines()
    actions = [line.split()[2] for line in lines]
    assert [a for a in actions if a in ("create", "start", "die", "destroy")] == ["create", "start", "die", "destroy"]
    form = own("events", "--since", start, "--until", "0s", "--filter", "event=die", "--format", "{{.Action}}")
    assert form.stdout == "die\n"


def test_images_and_volumes(own: Wherry) -> None:
    assert own("images").stdout.splitlines()[1].split()[:2] == ["busybox", "latest"]
    own("tag", IMAGE, "other:1")
    names = own("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    assert sorted(names) == ["busybox:latest", "other:1"]
    assert "Untagged: " in own("rmi", "other:1").stdout
    assert own("volume", "create", own.name("v")).stdout == own.name("v") + "\n"
    own("run", "--rm", *NONE, "-v", f"{own.name('v')}:/data", IMAGE, "sh", "-c", "echo kept > /data/x")
    assert own("run", "--rm", *NONE, "-v", f"{own.name('v')}:/data:ro", IMAGE, "cat", "/data/x").stdout == "kept\n"
    assert own.name("v") in own("volume", "ls", "-q").stdout
    assert own("system", "df").stdout.splitlines()[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    own("volume", "rm", own.name("v"))


def test_explain_does_nothing(own: Wherry) -> None:
    text = own("run", "--explain", *NONE, IMAGE, "true").stdout
    assert text.strip()
    assert own("ps", "-aq").stdout == ""


WRONG = [
    (("run", "no-such-image-here:1", "--pull"), 125, "no-such-image-here"),
    (("run", "--pull", "never", "no-such-image-here:1"), 125, "no-such-image-here"),
    (("run", "--pull", "never", "--platform", "s390x", IMAGE), 125, "for s390x\n  hint: here it is for linux/"),
    (("run", "-v", "/no/such/dir/x:rel", IMAGE), 125, "--volume"),
    (("run", *NONE, "--mount", "type=bind,src=/no/such/source,dst=/x", IMAGE, "true"), 125, "/no/such/source"),
    (("run", "--frobnicate", IMAGE), 125, "--frobnicate"),
    (("run", "--network", "no-such-network", IMAGE, "true"), 125, "no-such-network"),
    (("stop", "no-such-container"), 1, "no-such-container"),
    (("logs", "no-such-container"), 1, "no-such-container"),
    (("volume", "inspect", "no-such-volume"), 1, "no-such-volume"),
]


@pytest.mark.parametrize(("words", "code", "says"), WRONG[1:])
def test_bad_input_is_one_sentence_and_leaves_nothing(
    own: Wherry, words: tuple[str, ...], code: int, says: str
) -> None:
    done = own(*words, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("wherry: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert own("ps", "-aq").stdout == ""


def test_a_name_in_use_is_refused(own: Wherry) -> None:
    name = sleeper(own)
    done = own("run", *NONE, "--name", name, IMAGE, "true", check=False)
    assert done.returncode == 125
    assert name in done.stderr
    assert len(own("ps", "-aq").stdout.split()) == 1
