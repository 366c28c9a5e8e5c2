"""The docker CLI, as people use it: each script runs against wherryd and against dockerd, with the same asserts."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from helpers.dockerapi import CLIS, Clients, Terminal
from helpers.registry import free_port
from helpers.wherry import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not CLIS, reason="the docker CLI is not installed"),
]
ALONE = ("--network", "none")
SLEEP = ("busybox", "sleep", "600")
CLASSIC = {"DOCKER_BUILDKIT": "0"}


@pytest.fixture(params=CLIS)
def docker(request: pytest.FixtureRequest, daemon: Clients) -> Clients:
    """The daemon, with one of the CLIs that are installed as the one that is called."""
    daemon.cli = request.param
    return daemon


def inspect(docker: Clients, ref: str, form: str) -> str:
    return docker.out("inspect", "-f", form, ref)


# ---- run, and what comes of it


def test_run(docker: Clients) -> None:
    run = ("run", "--rm", *ALONE)
    done = docker.docker(*run, "-e", "A=b c", "-w", "/tmp", "-u", "33:34", "-h", "box", "busybox", "sh", "-c",
                         "echo $A; pwd; id -u; id -g; hostname; echo err >&2; exit 3", check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "b c\n/tmp\n33\n34\nbox\n", "err\n")
    assert docker.out(*run, "-i", "busybox", "cat", stdin="through\n") == "through"
    for command, code in (("/no/such", 127), ("/etc", 126)):
        failed = docker.docker(*run, "busybox", command, check=False)
        assert failed.returncode == code, failed.stderr
        assert "Error response from daemon" in failed.stderr
    flags = ("--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges",
             "--tmpfs", "/scratch:size=1m", "--init", "--ulimit", "nofile=100:200")  # fmt: skip
    script = "touch /x 2>&1; touch /scratch/y; ulimit -n; grep -E '^(CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status"
    shown = docker.out(*run, *flags, "busybox", "sh", "-c", script).split("\n")
    wanted = ["touch: /x: Read-only file system", "100", f"CapBnd:\t{1:016x}", "NoNewPrivs:\t1", "Seccomp:\t2"]
    assert shown == wanted
    assert docker.out("ps", "-aq") == ""


def test_a_terminal(docker: Clients) -> None:
    seen = Terminal(docker, "run", "-it", "--name", "one", *ALONE, "busybox", "sh")
    seen.see("# ")
    seen.type(b"stty size; echo first-$((1+1))\n")
    seen.see("first-2")
    assert "31 91" in seen.shown
    seen.resize(40, 100)
    time.sleep(0.5)
    seen.type(b"stty size\n")
    seen.see("40 100")
    seen.type(b"\x10\x11")
    assert seen.end() == 0
    assert inspect(docker, "one", "{{.State.Running}} {{.Config.Tty}}") == "true true"
    inner = Terminal(docker, "exec", "-it", "one", "sh")
    inner.see("# ")
    inner.type(b"tty; exit 4\n")
    inner.see("/dev/pts/")
    assert inner.end() == 4
    again = Terminal(docker, "attach", "one")
    again.type(b"\n")
    again.see("# ")
    again.type(b"exit 5\n")
    assert again.end() == 5
    more = Terminal(docker, "start", "-ai", "one")
    more.see("# ")
    more.type(b"exit 6\n")
    assert more.end() == 6
    assert inspect(docker, "one", "{{.State.ExitCode}}") == "6"


def test_exec(docker: Clients) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, *SLEEP)
    done = docker.docker("exec", "-e", "A=b", "-w", "/tmp", "-u", "33", "one", "sh", "-c",
                         "echo $A; id -u; pwd >&2; exit 9", check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (9, "b\n33\n", "/tmp\n")
    assert docker.out("exec", "-i", "one", "sh", "-c", "cat | wc -c", stdin="x" * 300_000) == "300000"
    docker.docker("exec", "-d", "one", "touch", "/tmp/here")
    until(lambda: docker.docker("exec", "one", "test", "-e", "/tmp/here", check=False).returncode == 0)
    assert docker.docker("exec", "one", "no-such", check=False).returncode in (126, 127)
    docker.docker("stop", "-t", "0", "one")
    stopped = docker.docker("exec", "one", "true", check=False)
    assert stopped.returncode == 1
    assert "is not running" in stopped.stderr


# ---- a life


def test_a_life(docker: Clients) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done"
    cid = docker.out("run", "-d", "--name", "one", "-l", "a=b", *ALONE, "busybox", "sh", "-c", script)
    assert re.fullmatch("[0-9a-f]{64}", cid)
    until(lambda: docker.out("logs", "one") == "hello")
    assert inspect(docker, "one", "{{.State.Status}} {{.Name}} {{.Config.Labels.a}}") == "running /one b"
    docker.docker("pause", "one")
    assert "(Paused)" in docker.out("ps", "--format", "{{.Status}}")
    assert docker.docker("exec", "one", "true", check=False).returncode == 1
    docker.docker("unpause", "one")
    docker.docker("rename", "one", "two")
    docker.docker("update", "--restart", "on-failure:2", "two")
    policy = "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}"
    assert inspect(docker, "two", policy) == "on-failure 2"
    docker.docker("update", "--restart", "no", "two")
    assert "sleep" in docker.out("top", "two")
    waiter = docker.docker_popen("wait", "two", stdout=subprocess.PIPE)
    time.sleep(0.5)
    assert docker.out("stop", "-t", "10", "two") == "two"
    assert waiter.communicate(timeout=20)[0] == b"3\n"
    assert inspect(docker, "two", "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert docker.out("logs", "two").split() == ["hello", "bye"]
    docker.docker("start", "two")
    docker.docker("restart", "-t", "0", "two")
    until(lambda: docker.out("logs", "two").split()[-1] == "hello")
    running = docker.docker("rm", "two", check=False)
    assert running.returncode == 1
    assert "cannot remove" in running.stderr.lower()
    docker.docker("kill", "-s", "TERM", "two")
    assert docker.out("wait", "two") == "3"
    docker.docker("start", "two")
    docker.docker("kill", "two")
    assert docker.out("wait", "two") == "137"
    assert docker.out("rm", "two") == "two"


def test_names_that_are_not_there_or_taken(docker: Clients) -> None:
    docker.docker("create", "--name", "one", *ALONE, *SLEEP)
    table: tuple[tuple[tuple[str, ...], int, str], ...] = (
        (("start", "nope"), 1, "No such container: nope"),
        (("stop", "nope"), 1, "No such container: nope"),
        (("logs", "nope"), 1, "No such container: nope"),
        (("exec", "nope", "true"), 1, "No such container: nope"),
        (("rm", "nope"), 1, "No such container: nope"),
        (("wait", "nope"), 1, "No such container: nope"),
        (("inspect", "nope"), 1, "No such object: nope"),
        (("cp", "nope:/x", "/tmp"), 1, "No such container"),
        (("rmi", "nope"), 1, "No such image: nope"),
        (("volume", "inspect", "nope"), 1, "no such volume"),
        (("volume", "rm", "nope"), 1, "no such volume"),
        (("network", "inspect", "nope"), 1, "network"),
        (("network", "rm", "nope"), 1, "network"),
        (("kill", "one"), 1, "is not running"),
        (("pause", "one"), 1, "is not running"),
        (("create", "--name", "one", "busybox"), 1, 'The container name "/one" is already in use by container'),
        (("create", "--name", "/", "busybox"), 1, "Invalid container name"),
        (("run", "--pull", "never", "none/such:1"), 125, "No such image: none/such:1"),
        (("run", "--rm", "--network", "nope", "busybox"), 125, "network nope not found"),
        (("network", "rm", "bridge"), 1, "is a pre-defined network and cannot be removed"),
        (("update", "--restart", "odd", "one"), 1, "odd"),
    )
    for words, code, text in table:
        done = docker.docker(*words, check=False)
        assert done.returncode == code, (words, done)
        assert text.lower() in done.stderr.lower(), (words, done)


def test_what_restarts_and_what_is_healthy(docker: Clients) -> None:
    docker.docker("run", "-d", "--name", "fails", "--restart", "on-failure:2", *ALONE, "busybox", "sh", "-c", "exit 4")
    ended = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}"
    until(lambda: inspect(docker, "fails", ended) == "exited 2 4", 30)
    checks = ("--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "2",
              "--health-timeout", "5s")  # fmt: skip
    docker.docker("run", "-d", "--name", "one", *checks, *ALONE, *SLEEP)
    assert inspect(docker, "one", "{{.State.Health.Status}}") == "starting"
    until(lambda: inspect(docker, "one", "{{.State.Health.Status}}") == "unhealthy", 30)
    docker.docker("exec", "one", "touch", "/tmp/well")
    until(lambda: inspect(docker, "one", "{{.State.Health.Status}}") == "healthy", 30)
    assert "(healthy)" in docker.out("ps", "--format", "{{.Status}}")


# ---- what is said


def test_logs(docker: Clients) -> None:
    script = "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.2; done; echo end >&2"
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sh", "-c", script)
    followed = docker.docker("logs", "-f", "one")
    assert followed.stdout.splitlines() == [f"line {number}" for number in range(1, 7)]
    assert followed.stderr == "end\n"
    last = docker.docker("logs", "--tail", "2", "one")
    assert (last.stdout, last.stderr) == ("line 6\n", "end\n")
    assert docker.out("logs", "--tail", "0", "one") == ""
    stamped = docker.docker("logs", "-t", "one").stdout.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line \d$", line) for line in stamped)
    third = stamped[2].split()[0]
    assert docker.docker("logs", "--since", third, "one").stdout.splitlines()[0] == "line 3"
    assert docker.docker("logs", "--until", third, "one").stdout.splitlines()[-1] in ("line 2", "line 3")


def test_lists(docker: Clients) -> None:
    for name, label in (("one", "a=b"), ("two", "a=c")):
        docker.docker("run", "-d", "--name", name, "-l", label, "--expose", "80", *ALONE, *SLEEP)
    docker.docker("run", "--name", "over", *ALONE, "busybox", "sh", "-c", "exit 7", check=False)

    def names(*filters: str, all_: bool = True) -> list[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return docker.out("ps", *["-a"] * all_, *words, "--format", "{{.Names}}").split()

    assert names() == ["over", "two", "one"]
    assert names(all_=False) == ["two", "one"]
    assert names("label=a") == ["two", "one"]
    assert names("label=a=c") == ["two"]
    assert names("name=^o") == ["over", "one"]
    assert names("status=exited") == ["over"]
    assert names("exited=7") == ["over"]
    assert names("ancestor=busybox", "status=running") == ["two", "one"]
    assert names("before=two") == ["one"]
    assert names("since=one") == ["over", "two"]
    assert names("network=none") == ["over", "two", "one"]
    assert names("volume=none") == []
    last = docker.out("ps", "-l", "--format", "{{.Names}} {{.Image}} {{.Command}}")
    assert last == """over busybox "sh -c 'exit 7'\""""
    assert docker.out("ps", "-n", "2", "--format", "{{.Names}}").split() == ["over", "two"]
    assert re.fullmatch(r"Exited \(7\) .* ago", docker.out("ps", "-l", "--format", "{{.Status}}"))
    assert docker.out("ps", "-s", "--filter", "name=one", "--format", "{{.Size}}").startswith("0B (virtual ")
    row = json.loads(docker.out("ps", "--filter", "name=one", "--format", "{{json .}}"))
    assert (row["Labels"], row["State"], row["Networks"], row["LocalVolumes"]) == ("a=b", "running", "none", "0")
    odd = docker.docker("ps", "--filter", "odd=1", check=False)
    assert odd.returncode == 1
    assert "invalid" in odd.stderr.lower()


def test_figures(docker: Clients) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, *SLEEP)
    row = json.loads(docker.out("stats", "--no-stream", "--format", "{{json .}}"))
    assert (row["Name"], row["ID"]) == ("one", docker.out("ps", "-q"))
    assert re.fullmatch(r"\d+\.\d\d%", row["CPUPerc"])
    assert "/" in row["MemUsage"]
    assert "sleep 600" in docker.out("top", "one", "-o", "pid,args")
    assert docker.out("info", "-f", "{{.ContainersRunning}} {{.Images}} {{.OSType}}") == "1 1 linux"
    assert docker.out("version", "-f", "{{.Server.Os}}") == "linux"
    rows = docker.out("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}").splitlines()
    assert rows[:3] == ["Images 1 1", "Containers 1 1", "Local Volumes 0 0"]
    assert "one" in docker.out("system", "df", "-v")


def test_events(docker: Clients) -> None:
    client = docker.docker_popen("events", "--filter", "type=container", "--format", "{{json .}}",
                                 stdout=subprocess.PIPE)  # fmt: skip
    time.sleep(1)
    docker.docker("run", "--rm", "--name", "one", "-l", "a=b", *ALONE, "busybox", "sh", "-c", "exit 2", check=False)
    seen = []
    assert client.stdout
    while not seen or seen[-1]["Action"] != "destroy":
        seen.append(json.loads(client.stdout.readline()))
    client.kill()
    client.wait()
    client.stdout.close()
    actions = [event["Action"] for event in seen]
    assert [word for word in actions if word != "attach"] == ["create", "start", "die", "destroy"]
    about = next(event for event in seen if event["Action"] == "die")["Actor"]["Attributes"]
    assert (about["name"], about["image"], about["exitCode"], about["a"]) == ("one", "busybox", "2", "b")
    time.sleep(1.1)  # the CLI's "now" is a whole second
    past = docker.out("events", "--since", "60s", "--until", "0s", "--filter", "event=die", "--format", "{{.Action}}")
    assert past == "die"


# ---- files


def test_copies(docker: Clients, tmp_path: Path) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, *SLEEP)
    tree = tmp_path / "from"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_text("well")
    (tree / "deep" / "file").chmod(0o640)
    (tree / "link").symlink_to("deep/file")
    docker.docker("cp", tree, "one:/tmp")
    docker.docker("cp", f"{tree}/.", "one:/tmp/there")
    show = "cat /tmp/from/link /tmp/there/deep/file; stat -c %a /tmp/there/deep/file"
    assert docker.out("exec", "one", "sh", "-c", show).split() == ["wellwell640"]
    docker.docker("cp", "one:/tmp/from/deep", tmp_path / "back")
    assert (tmp_path / "back" / "file").read_text() == "well"
    docker.docker("cp", "-L", "one:/tmp/from/link", tmp_path / "followed")
    assert (tmp_path / "followed").read_text() == "well"
    packed = subprocess.run([docker.cli, "cp", "one:/tmp/from", "-"], env=docker.env, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        assert sorted(tar.getnames()) == ["from", "from/deep", "from/deep/file", "from/link"]
    subprocess.run([docker.cli, "cp", "-", "one:/var"], input=packed.stdout, env=docker.env, check=True)
    assert docker.out("exec", "one", "cat", "/var/from/link") == "well"
    missing = docker.docker("cp", "one:/no/such", tmp_path, check=False)
    assert missing.returncode == 1
    assert re.search("No such container:path|Could not find the file /no/such in container one", missing.stderr)
    assert {"A /tmp/from", "C /var", "A /var/from/deep/file"} <= set(docker.out("diff", "one").splitlines())
    docker.docker("stop", "-t", "0", "one")
    docker.docker("cp", "one:/tmp/from/deep/file", tmp_path / "stopped")
    assert (tmp_path / "stopped").read_text() == "well"


def test_images(docker: Clients, tmp_path: Path) -> None:
    docker.docker("run", "--name", "one", *ALONE, "busybox", "sh", "-c", "echo kept >/kept")
    made = docker.out("commit", "-a", "me", "-m", "why", "-c", "ENV A=b", "-c", "CMD cat /kept", "one", "kept:1")
    assert made == inspect(docker, "kept:1", "{{.Id}}")
    assert inspect(docker, "kept:1", "{{.Author}} {{.Comment}} {{.Config.Cmd}}") == "me why [/bin/sh -c cat /kept]"
    assert docker.out("run", "--rm", *ALONE, "kept:1") == "kept"
    docker.docker("tag", "kept:1", "kept:2")
    assert sorted(docker.out("images", "kept", "--format", "{{.Tag}}").split()) == ["1", "2"]
    assert docker.out("images", "-q", "--filter", "reference=kept:2", "--no-trunc") == made
    assert docker.out("history", "-q", "--no-trunc", "kept:1").split()[0] == made
    docker.docker("save", "-o", tmp_path / "kept.tar", "kept:1", "kept:2")
    assert "Untagged: kept:1" in docker.out("rmi", "kept:1")
    assert "Deleted: " in docker.out("rmi", "kept:2")
    loaded = docker.out("load", "-i", tmp_path / "kept.tar").splitlines()
    assert sorted(loaded) == ["Loaded image: kept:1", "Loaded image: kept:2"]
    assert inspect(docker, "kept:2", "{{.Id}}") == made
    docker.docker("export", "-o", tmp_path / "root.tar", "one")
    flat = docker.out("import", "-c", "CMD [\"cat\",\"/kept\"]", tmp_path / "root.tar", "flat:1")
    assert flat == inspect(docker, "flat:1", "{{.Id}}")
    assert docker.out("run", "--rm", *ALONE, "flat:1", "/bin/busybox", "cat", "/kept") == "kept"
    used = docker.docker("rmi", "busybox", check=False)
    assert used.returncode == 1
    assert "conflict" in used.stderr


def test_build(docker: Clients, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("content\n")
    (context / "left-out").write_text("secret\n")
    (context / ".dockerignore").write_text("left-out\n")
    (context / "Dockerfile").write_text(
        "FROM busybox AS base\nARG WORD=none\nRUN echo said $WORD | tee /word\nFROM base AS end\nCOPY . /in/\n"
        "ENV A=b\nUSER 33\nCMD cat /word /in/file; ls /in; id -u; echo $A\n"
    )
    build = ("build", "--network", "none", "-t", "built:1", "--build-arg", "WORD=yes", "--label", "a=b", context)
    said = docker.out(*build, env=CLASSIC, timeout=90)
    assert "said yes" in said
    assert "Successfully tagged built:1" in said
    shown = docker.out("run", "--rm", *ALONE, "built:1").split("\n")
    assert shown == ["said yes", "content", "Dockerfile", "file", "33", "b"]
    assert inspect(docker, "built:1", "{{.Config.Labels.a}} {{.Config.User}}") == "b 33"
    assert "Using cache" in docker.out(*build, env=CLASSIC, timeout=90)
    quiet = docker.out("build", "-q", "--target", "base", context, env=CLASSIC, timeout=90)
    assert re.fullmatch("sha256:[0-9a-f]{64}", quiet)
    by_input = docker.out("build", "-q", "-", env=CLASSIC, stdin="FROM busybox\nENV X=1\n", timeout=90)
    assert inspect(docker, by_input, "{{index .Config.Env 1}}") == "X=1"
    (context / "Dockerfile").write_text("FROM busybox\nRUN exit 7\n")
    failed = docker.docker("build", "--network", "none", context, env=CLASSIC, check=False, timeout=90)
    assert failed.returncode == 7
    assert "The command '/bin/sh -c exit 7' returned a non-zero code: 7" in failed.stderr


# ---- volumes and networks


def test_volumes(docker: Clients, tmp_path: Path) -> None:
    assert docker.out("volume", "create", "--label", "a=b", "kept") == "kept"
    run = ("run", "--rm", *ALONE)
    docker.docker(*run, "-v", "kept:/v", "busybox", "sh", "-c", "echo well >/v/x")
    assert docker.out(*run, "--mount", "type=volume,src=kept,dst=/v,readonly", "busybox", "cat", "/v/x") == "well"
    denied = docker.docker(*run, "-v", "kept:/v:ro", "busybox", "touch", "/v/y", check=False)
    assert (denied.returncode, denied.stderr) == (1, "touch: /v/y: Read-only file system\n")
    (tmp_path / "file").write_text("bound\n")
    assert docker.out(*run, "-v", f"{tmp_path}:/host:ro", "busybox", "cat", "/host/file") == "bound"
    missing = docker.docker(*run, "--mount", f"type=bind,src={tmp_path}/none,dst=/x", "busybox", check=False)
    assert missing.returncode == 125
    assert "bind source path does not exist" in missing.stderr
    assert docker.out("volume", "ls", "--filter", "label=a=b", "--format", "{{.Name}} {{.Driver}}") == "kept local"
    assert docker.out("volume", "inspect", "-f", "{{.Labels.a}} {{.Scope}}", "kept") == "b local"
    docker.docker("run", "-d", "--name", "one", "-v", "kept:/v", "-v", "/nameless", *ALONE, *SLEEP)
    mounts = inspect(docker, "one", "{{range .Mounts}}{{.Type}}:{{.Destination}} {{end}}")
    assert sorted(mounts.split()) == ["volume:/nameless", "volume:/v"]
    used = docker.docker("volume", "rm", "kept", check=False)
    assert used.returncode == 1
    assert "volume is in use" in used.stderr
    docker.docker("rm", "-f", "-v", "one")
    assert docker.out("volume", "ls", "-q") == "kept"
    assert docker.out("volume", "rm", "kept") == "kept"
    docker.docker("volume", "prune", "-f")


def test_networks(docker: Clients) -> None:
    docker.docker("network", "create", "--subnet", "10.99.0.0/24", "--label", "a=b", "net")
    listed = docker.out("network", "ls", "--filter", "label=a=b", "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
    assert listed == "net bridge local"
    assert docker.out("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "net") == "10.99.0.0/24"
    there = ("--network", "net", "--ip", "10.99.0.77", "--network-alias", "www")
    docker.docker("run", "-d", "--name", "one", *there, *SLEEP)
    assert inspect(docker, "one", "{{.NetworkSettings.Networks.net.IPAddress}}") == "10.99.0.77"
    for name in ("one", "www", "10.99.0.77"):
        assert "1 packets received" in docker.out("run", "--rm", "--network", "net", "busybox", "ping", "-c", "1", name)
    members = "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}"
    assert docker.out("network", "inspect", "-f", members, "net") == "one 10.99.0.77/24"
    used = docker.docker("network", "rm", "net", check=False)
    assert used.returncode == 1
    assert "has active endpoints" in used.stderr
    docker.docker("network", "create", "back")
    docker.docker("network", "connect", "--alias", "db", "back", "one")
    assert docker.out("exec", "one", "sh", "-c", "ls /sys/class/net").split() == ["eth0", "eth1", "lo"]
    assert "1 packets received" in docker.out("run", "--rm", "--network", "back", "busybox", "ping", "-c", "1", "db")
    docker.docker("network", "disconnect", "back", "one")
    assert docker.out("exec", "one", "sh", "-c", "ls /sys/class/net").split() == ["eth0", "lo"]
    docker.docker("rm", "-f", "one")
    assert sorted(docker.out("network", "rm", "net", "back").split()) == ["back", "net"]


def test_ports(docker: Clients) -> None:
    port = free_port()
    docker.docker("run", "-d", "--name", "web", "-p", f"127.0.0.1:{port}:80", "--add-host", "other:192.0.2.9",
                  "busybox", "sh", "-c", "echo page >/index.html; exec httpd -f -p 80 -h /")  # fmt: skip
    assert docker.out("port", "web") == f"80/tcp -> 127.0.0.1:{port}"
    assert docker.out("ps", "--format", "{{.Ports}}") == f"127.0.0.1:{port}->80/tcp"

    def page() -> bytes:
        try:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as found:
                return bytes(found.read())
        except OSError:
            return b""

    until(page)
    assert page() == b"page\n"
    assert "192.0.2.9" in docker.out("exec", "web", "grep", "other", "/etc/hosts")
    joined = docker.out("run", "--rm", "--network", "container:web", "busybox", "wget", "-qO-", "http://127.0.0.1/")
    assert joined == "page"
    taken = docker.docker("run", "-d", "--name", "late", "-p", f"127.0.0.1:{port}:80", *SLEEP, check=False)
    assert taken.returncode == 125
    assert "already" in taken.stderr


def test_prunes(docker: Clients) -> None:
    docker.docker("run", "--name", "over", *ALONE, "busybox", "true")
    docker.docker("network", "create", "idle")
    docker.docker("volume", "create", "idle")
    docker.docker("tag", "busybox", "spare:1")
    pruned = docker.out("container", "prune", "-f")
    assert pruned.startswith("Deleted Containers:\n")
    assert "Deleted Networks:\nidle" in docker.out("network", "prune", "-f")
    docker.docker("system", "prune", "-f")
    assert docker.out("ps", "-aq") == ""
    assert docker.out("images", "-q", "spare:1")
