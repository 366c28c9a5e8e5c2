"""Streams of the Docker API, by the docker CLI and by hand: attach, exec, logs, wait, events, archives; and ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from helpers.dockerapi import CLIS, DockerD, Terminal
from helpers.wherry import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not CLIS, reason="needs the docker CLI"),
]
ABORTS = int(os.environ.get("WHERRY_DOCKER_ABORTS") or 60)
ALONE = ("--network", "none")


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str) -> Iterator[DockerD]:
    with DockerD(test_id, tmp_path) as made:
        made.load(busybox)
        yield made


@pytest.mark.parametrize("cli", CLIS)
def test_a_terminal(docker: DockerD, cli: str) -> None:
    """Its size, a new size, keys that detach, and joining again."""
    words = ("run", "-it", "--name", "one", *ALONE, "busybox", "sh")
    seen = Terminal(docker, *words)
    seen.see("# ")
    seen.type(b"stty size; echo first-$((1+1))\n")
    seen.see("first-2")
    assert "31 91" in seen.shown
    seen.resize(40, 100)
    time.sleep(0.3)
    seen.type(b"stty size\n")
    seen.see("40 100")
    seen.type(b"\x10\x11")
    assert seen.end() == 0
    assert docker.out("inspect", "-f", "{{.State.Running}}", "one", cli=cli) == "true"
    again = Terminal(docker, "attach", "one")
    again.type(b"\n")
    again.see("# ")
    again.type(b"exit 5\n")
    assert again.end() == 5


def test_what_comes_is_what_was_written(docker: DockerD) -> None:
    """From the first byte to the last, both streams told apart; input to its end and beyond."""
    script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    done = docker.docker("run", "--rm", *ALONE, "busybox", "sh", "-c", script)
    assert done.stdout == "".join(f"out {number}\n" for number in range(3000))
    assert done.stderr == "".join(f"err {number}\n" for number in range(3000))
    data = "0123456789abcdef" * (1 << 16)
    assert docker.docker("run", "-i", "--rm", *ALONE, "busybox", "cat", stdin=data).stdout == data
    words = ("run", "-i", "--rm", *ALONE, "busybox", "sh", "-c", "cat | wc -c; sleep 0.3; echo later")
    assert docker.docker(*words, stdin=data).stdout == f"{len(data)}\nlater\n"


def _attached(docker: DockerD, cid: str) -> socket.socket:
    """A connection whose answer's head has been read, and not a byte more."""
    link = docker.raw()
    head = f"POST /containers/{cid}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n"
    link.sendall(f"{head}Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += link.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return link


def _created(docker: DockerD, *command: str) -> str:
    asked = {"Image": "busybox", "Cmd": command, "HostConfig": {"NetworkMode": "none"}}
    return str(docker.post("/containers/create", asked).json()["Id"])


def test_who_has_the_answer_is_attached(docker: DockerD) -> None:
    """A start that comes at once, on a connection that stands: it is the start of what was attached to."""
    for _ in range(20):
        cid = _created(docker, "echo", "hi")
        with docker.raw() as starter, _attached(docker, cid) as link:
            starter.sendall(f"POST /containers/{cid}/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            link.settimeout(5)
            heard = b"".join(iter(lambda: link.recv(4096), b""))
        assert heard == b"\x01\0\0\0\0\0\0\x03hi\n"


def test_who_waits_for_a_start_hears_of_any(docker: DockerD) -> None:
    """Of one by wherry's own CLI, too; and of a removal."""
    cid = _created(docker, "sh", "-c", "while [ ! -e /tmp/end ]; do echo tick; sleep 0.1; done")
    gone = _created(docker, "true")
    with _attached(docker, cid) as link, _attached(docker, gone) as other:
        for one in (link, other):
            one.settimeout(10)
        docker.wherry("start", cid)
        assert b"tick\n" in link.recv(4096)
        docker.wherry("exec", cid, "touch", "/tmp/end")
        assert b"".join(iter(lambda: link.recv(4096), b"")).count(b"tick") < 100
        time.sleep(1.5)
        docker.wherry("rm", gone)
        assert other.recv(10) == b""


def test_who_takes_nothing_is_dropped_where_others_listen(docker: DockerD) -> None:
    """It holds them back for a while, and loses its connection; who is alone holds its container only."""
    size = 4_000_000
    cid = _created(docker, "sh", "-c", f"head -c {size} /dev/zero; exit 3")
    with _attached(docker, cid) as mute, _attached(docker, cid) as link:
        docker.post(f"/containers/{cid}/start")
        assert sum(len(data) for data in iter(lambda: link.recv(1 << 16), b"")) >= size
        assert docker.post(f"/containers/{cid}/wait").json() == {"StatusCode": 3}
        mute.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert sum(len(data) for data in iter(lambda: mute.recv(1 << 16), b"")) < size
    alone = _created(docker, "sh", "-c", f"head -c {size} /dev/zero")
    with _attached(docker, alone):
        docker.post(f"/containers/{alone}/start")
        assert docker.post(f"/containers/{alone}/kill").status == 204
        assert docker.post(f"/containers/{alone}/wait").json() == {"StatusCode": 137}


def test_exec(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sleep", "600")
    done = docker.docker("exec", "-e", "A=b", "-w", "/tmp", "one", "sh", "-c", "echo $A; pwd >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "b\n", "/tmp\n")
    assert docker.docker("exec", "-i", "one", "cat", stdin="to it\n").stdout == "to it\n"
    assert docker.docker("exec", "one", "nosuch", check=False).returncode in (126, 127)
    seen = Terminal(docker, "exec", "-it", "one", "sh")
    seen.see("# ")
    seen.type(b"stty size; exit 4\n")
    seen.see("31 91")
    assert seen.end() == 4
    made = docker.post("/containers/one/exec", {"Cmd": ["sh", "-c", "exit 6"]}).json()["Id"]
    assert docker.post(f"/exec/{made}/start", {"Detach": True}).status == 200
    until(lambda: docker.get(f"/exec/{made}/json").json()["ExitCode"] == 6)
    assert docker.get(f"/exec/{made}/json").json()["Running"] is False
    assert docker.post(f"/exec/{made}/start", {"Detach": True}).status == 409
    assert docker.get("/exec/none/json").status == 404
    assert docker.post("/containers/one/exec", {"Cmd": []}).status == 400
    docker.docker("stop", "-t", "0", "one")
    assert docker.post("/containers/one/exec", {"Cmd": ["true"]}).status == 409


def test_a_client_that_is_killed_leaves_its_process_alone(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sleep", "600")
    client = docker.docker_popen("exec", "one", "sh", "-c", "sleep 2; echo well >/tmp/x", stdout=subprocess.PIPE)
    until(lambda: "sleep 2" in docker.out("top", "one"))
    client.kill()
    client.wait()
    until(lambda: docker.docker("exec", "one", "cat", "/tmp/x", check=False).stdout == "well\n")


def test_logs(docker: DockerD) -> None:
    script = "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.2; done; echo end >&2"
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sh", "-c", script)
    followed = docker.docker("logs", "-f", "one")
    assert followed.stdout.splitlines() == [f"line {number}" for number in range(1, 7)]
    assert followed.stderr == "end\n"
    assert docker.docker("logs", "--tail", "2", "one").stdout == "line 6\n"
    stamped = docker.docker("logs", "-t", "one").stdout.splitlines()
    third = stamped[2].split()[0]
    assert docker.docker("logs", "--since", third, "one").stdout.splitlines()[0] == "line 3"
    assert docker.docker("logs", "--until", third, "one").stdout.splitlines()[-1] in ("line 2", "line 3")
    assert docker.get("/containers/one/logs").status == 400


def test_waits(docker: DockerD) -> None:
    docker.docker("create", "--name", "one", *ALONE, "busybox", "sh", "-c", "sleep 0.5; exit 3")
    assert docker.post("/containers/one/wait").json()["StatusCode"] == 0, "one that does not run"
    told: dict[str, int] = {}

    def wait(condition: str) -> None:
        told[condition] = docker.post(f"/containers/one/wait?condition={condition}").json()["StatusCode"]

    threads = [threading.Thread(target=wait, args=(word,)) for word in ("next-exit", "removed")]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    docker.docker("start", "one")
    threads[0].join(10)
    assert told == {"next-exit": 3}
    docker.docker("rm", "one")
    threads[1].join(10)
    assert told == {"next-exit": 3, "removed": 3}
    assert docker.post("/containers/one/wait").status == 404
    assert docker.post("/containers/one/wait?condition=odd").status in (400, 404)


def test_wherryd_is_killed_and_nothing_is_lost(docker: DockerD) -> None:
    """What runs goes on, what ends meanwhile has its code, who waits anew is told, of what another began too."""
    docker.docker("run", "-d", "--name", "long", *ALONE, "busybox", "sh", "-c", "sleep 3; echo well; exit 7")
    docker.docker("run", "-d", "--name", "short", *ALONE, "busybox", "sh", "-c", "sleep 0.5; exit 6")
    docker.docker("run", "-d", "--rm", "--name", "gone", *ALONE, "busybox", "sleep", "0.5")
    docker.kill()
    time.sleep(1.5)
    docker.start()
    assert docker.out("wait", "short") == "6"
    assert docker.out("wait", "long") == "7"
    assert docker.out("logs", "long") == "well"
    until(lambda: docker.out("ps", "-a", "--format", "{{.Names}}").split() in (["short", "long"], ["long", "short"]))


def test_a_web_socket(docker: DockerD) -> None:
    docker.docker("run", "-di", "--name", "one", *ALONE, "busybox", "cat")

    async def spoken() -> bytes:
        connector = aiohttp.UnixConnector(str(docker.socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = "http://localhost/v1.41/containers/one/attach/ws?stream=1&stdin=1&stdout=1"
            async with session.ws_connect(url) as link:
                await link.send_bytes(b"over the wire\n")
                message = await link.receive(10)
                return bytes(message.data)

    assert asyncio.run(spoken()) == b"over the wire\n"


def test_archives(docker: DockerD, tmp_path: Path) -> None:
    """Both ways; what a path or a member of a tar would reach outside of the container, it does not."""
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sleep", "600")
    source = tmp_path / "from"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("well")
    docker.docker("cp", source, "one:/tmp")
    docker.docker("cp", "one:/tmp/from/deep/file", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "well"
    docker.docker("exec", "one", "ln", "-s", "/../../../../../../../etc", "/tmp/out")
    (tmp_path / "canary").write_text("mine")
    docker.docker("cp", tmp_path / "canary", "one:/tmp/out/canary")
    assert docker.out("exec", "one", "cat", "/etc/canary") == "mine"
    assert not Path("/etc/canary").exists()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        member = tarfile.TarInfo("../../../../../../tmp/wt-escaped")
        member.size = 1
        made.addfile(member, io.BytesIO(b"x"))
    docker.ask("PUT", "/containers/one/archive?path=/tmp", tar.getvalue())
    assert not Path("/tmp/wt-escaped").exists()
    assert docker.get("/containers/one/archive?path=/no/such").status == 404
    assert docker.get("/containers/one/archive").status == 400
    assert "A /etc/canary" in docker.out("diff", "one").splitlines()
    exported = docker.get("/containers/one/export").body
    with tarfile.open(fileobj=io.BytesIO(exported)) as made:
        assert "etc/canary" in made.getnames()


def test_an_archive_that_is_broken_off_lets_go_of_the_container(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sh", "-c", "head -c 9000000 /dev/zero >/big; cat")
    docker.docker("wait", "one")
    assert docker.get("/containers/one/archive?path=/big").status == 200
    before = docker.descriptors()
    for _ in range(10):
        with docker.raw() as link:
            link.sendall(b"GET /containers/one/archive?path=/big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert link.recv(1000).startswith(b"HTTP/1.1 200 ")
    until(lambda: docker.descriptors() <= before, 5, "descriptors stay")


def test_events(docker: DockerD) -> None:
    client = docker.docker_popen("events", "--filter", "event=die", "--format", "{{json .}}", stdout=subprocess.PIPE)
    time.sleep(1)
    docker.docker("run", "--rm", "--name", "one", *ALONE, "busybox", "sh", "-c", "exit 2", check=False)
    assert client.stdout
    event = json.loads(client.stdout.readline())
    assert (event["Action"], event["Actor"]["Attributes"]["exitCode"]) == ("die", "2")
    client.kill()
    client.wait()
    time.sleep(1.1)  # the CLI's "now" is a whole second
    past = docker.docker("events", "--since", "60s", "--until", "0s", "--filter", "container=one").stdout
    assert [line.split()[2] for line in past.splitlines()][:3] == ["create", "start", "die"]
    assert docker.get('/events?until=1&filters={"odd":["x"]}').status == 400


@pytest.mark.seconds(600)
def test_clients_that_break_off_leave_nothing(docker: DockerD) -> None:
    """Attaches before and during a life, execs with and without input, at any moment: all comes back."""
    docker.docker("run", "-di", "--name", "one", *ALONE, "busybox", "cat")
    docker.docker("create", "-i", "--name", "two", *ALONE, "busybox", "cat")
    upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    execs: list[str] = []

    def abort(number: int) -> None:
        path = ("/containers/one/attach?stream=1&stdin=1&stdout=1&stderr=1", "/containers/two/attach?stream=1&stdout=1",
                "exec", "/containers/one/attach?stream=1&stdout=1")[number % 4]  # fmt: skip
        body = b""
        if path == "exec":
            asked = {"Cmd": ["sleep", "0.2"], "AttachStdout": True, "AttachStdin": number % 8 == 2}
            execs.append(docker.post("/containers/one/exec", asked).json()["Id"])
            path = f"/exec/{execs[-1]}/start"
            body = b'{"Detach":false}'
        with docker.raw() as link:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{upgrade}Content-Type: application/json\r\n"
            link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if number % 3:
                link.recv(64)
            if number % 5 == 1:
                link.sendall(b"x" * 1000)
            if number % 7 == 2:
                link.shutdown(socket.SHUT_WR)

    for number in range(64):
        abort(number)
    time.sleep(8)  # when it is quiet, memory goes back
    fds, resident = docker.descriptors(), docker.resident()
    for number in range(ABORTS):
        abort(number)
    until(lambda: docker.descriptors() <= fds + 4, 30, "descriptors stay")

    def ends() -> set[tuple[bool, int | None]]:
        told = [docker.get(f"/exec/{one}/json").json() for one in execs]
        return {(one["Running"], one["ExitCode"]) for one in told}

    until(lambda: ends() == {(False, 0)}, 30, "nobody saw to some ends")
    remembered = 2048 * len(execs)  # for five minutes, as docker does
    until(lambda: docker.resident() <= resident + (1 << 20) + remembered, 30, "memory stays")
    assert docker.out("inspect", "-f", "{{.State.Running}}", "one") == "true"


def test_metrics_and_health(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", *ALONE, "busybox", "sleep", "600")
    assert (docker.get("/healthz").status, docker.get("/readyz").status) == (200, 200)
    found = docker.get("/metrics")
    lines = found.body.decode().splitlines()
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'wherry_containers{state="running"} 1' in lines
    assert "wherry_images 1" in lines
    assert 'wherry_docker_requests_total{method="POST",route="/containers/create",code="201"} 1' in lines
    assert any(row.startswith("process_resident_memory_bytes ") for row in lines)
