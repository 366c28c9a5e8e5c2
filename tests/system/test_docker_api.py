"""wherryd's Docker API by plain requests and by both docker CLIs: containers' lives, errors, bounds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.dockerapi import CLIS, DockerD
from helpers.wherry import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str) -> Iterator[DockerD]:
    with DockerD(test_id, tmp_path) as made:
        made.load(busybox)
        yield made


@pytest.mark.parametrize("cli", CLIS)
def test_a_life_by_the_cli(docker: DockerD, cli: str) -> None:
    run = ["run", "-d", "--name", "web", "--network", "none", "-l", "a=b", "-e", "X=1", "busybox", "sleep", "600"]
    cid = docker.out(*run, cli=cli)
    assert docker.out("ps", "-q", "--no-trunc", cli=cli) == cid
    assert docker.out("inspect", "-f", "{{.State.Status}} {{.Config.Labels.a}}", "web", cli=cli) == "running b"
    docker.docker("pause", "web", cli=cli)
    assert "(Paused)" in docker.out("ps", "--format", "{{.Status}}", cli=cli)
    docker.docker("unpause", "web", cli=cli)
    docker.docker("rename", "web", "other", cli=cli)
    docker.docker("restart", "-t", "0", "other", cli=cli)
    docker.docker("kill", "other", cli=cli)
    again = docker.docker("kill", "other", cli=cli, check=False)
    assert "Error response from daemon: container other is not running" in again.stderr
    docker.docker("rm", "-f", "other", cli=cli)
    assert docker.out("ps", "-aq", cli=cli) == ""


def test_run_and_the_ends_of_it(docker: DockerD) -> None:
    docker_run = ("run", "--rm", "--network", "none", "busybox")
    done = docker.docker(*docker_run, "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    missing = docker.docker(*docker_run, "/no/such/thing", check=False)
    assert missing.returncode == 127, missing.stderr
    forbidden = docker.docker(*docker_run, "/etc", check=False)
    assert forbidden.returncode == 126, forbidden.stderr
    assert docker.out("ps", "-aq") == ""


def test_bodies_and_names_that_are_wrong(docker: DockerD) -> None:
    assert docker.post("/containers/create", b"{").status == 400
    assert docker.post("/containers/create", {"Image": "none/such"}).status == 404
    assert docker.post("/containers/create", {"Image": "none/such"}).message.startswith("No such image: none/such")
    assert docker.post("/containers/create?platform=s390x", {"Image": "busybox"}).status == 404  # and nothing is pulled
    assert docker.post("/containers/create", {"Image": "busybox", "Cmd": 1}).status == 400
    assert docker.post("/containers/create", {"Image": "busybox", "HostConfig": {"BlkioWeight": 9}}).status == 501
    assert docker.post("/containers/create", {"Image": "busybox", "HostConfig": {"Links": ["a:b"]}}).status == 404
    assert docker.post("/containers/create?name=a", {"Image": "busybox"}).status == 400
    assert docker.post("/containers/create?name=one", {"Image": "busybox", "Unknown": 1}).status == 201
    again = docker.post("/containers/create?name=one", {"Image": "busybox"})
    assert again.status == 409
    assert 'The container name "/one" is already in use by container' in again.message
    for method, path in (("GET", "json"), ("POST", "start"), ("POST", "stop"), ("POST", "kill"), ("GET", "top")):
        answer = docker.ask(method, f"/containers/none/{path}")
        assert (answer.status, answer.message) == (404, "No such container: none"), path
    assert docker.post("/containers/one/stop").status == 304
    assert docker.post("/containers/one/kill").status == 409
    assert docker.post("/containers/create", b" " * (5 << 20)).status == 413
    assert docker.get("/v1.21/containers/json").status == 400
    assert docker.get("/v1.99/containers/json").status == 400
    assert docker.get('/containers/json?filters={"status":["no"]}').status == 400
    assert docker.get('/containers/json?filters=["a"]').status == 400


def test_stats_top_update_info(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "600")
    found = docker.get("/containers/one/stats?stream=0").json()
    assert found["cpu_stats"]["system_cpu_usage"] > found["precpu_stats"]["system_cpu_usage"] > 0
    assert "one" in docker.out("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}}")
    assert "sleep 600" in docker.out("top", "one")
    docker.docker("update", "--restart", "always", "one")
    assert docker.out("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "one") == "always"
    assert docker.out("info", "-f", "{{.ContainersRunning}} {{.DefaultRuntime}}") == "1 wherry"
    assert docker.out("version", "-f", "{{.Server.APIVersion}}") == "1.51"
    assert docker.docker("system", "df").stdout.startswith("TYPE")
    assert docker.post("/containers/one/start").status == 304
    assert docker.post("/containers/one/resize?h=10&w=x").status == 400
    docker.docker("rm", "-f", "one")
    docker.docker("container", "prune", "-f")


def test_a_list_is_as_true_as_one_that_is_read_anew(docker: DockerD) -> None:
    def shown() -> list[str]:
        return docker.out("ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.State}} {{.Networks}}").split("\n")

    for name in ("a1", "b1"):
        docker.docker("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "600")
    assert shown() == ["b1 running none", "a1 running none"]
    docker.wherry("rename", "a1", "c1")  # others change things too
    docker.wherry("pause", "b1")
    assert shown() == ["b1 paused none", "c1 running none"]
    docker.wherry("unpause", "b1")
    os.kill(docker.wherry.pid("b1"), 9)
    until(lambda: shown() == ["b1 exited none", "c1 running none"], 5)
    docker.wherry("rm", "b1")
    assert shown() == ["c1 running none"]
    docker.wherry("rm", "-f", "c1")
    assert docker.get("/containers/json?all=1").json() == []


def test_ten_thousand_connections_that_ask_for_nothing(docker: DockerD) -> None:
    docker.get("/_ping")
    before, fds = docker.resident(), docker.descriptors()
    kept = [docker.raw()]
    kept[0].send(b"GET /_ping HTTP/1.1\r\n")  # and then no more
    for _ in range(20):
        some = [docker.raw() for _ in range(500)]  # at once: more than are kept
        assert docker.get("/_ping").body == b"OK"
        until(lambda: docker.descriptors() < fds + 400, 10)
        for one in some:
            one.close()
    with contextlib.suppress(ConnectionResetError):
        assert kept[0].recv(1) == b""  # it had to go: it was the oldest
    kept[0].close()
    assert docker.resident() < before + (16 << 20)
    until(lambda: docker.descriptors() <= fds + 8, 30)


def test_a_client_that_goes_leaves_nothing(docker: DockerD) -> None:
    docker.docker("run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "600")
    docker.get("/containers/json")
    fds = docker.descriptors()
    paths = ("POST /containers/one/wait", "GET /events", "GET /containers/one/logs?stdout=1&follow=1",
             "GET /containers/one/stats")  # fmt: skip
    clients = []
    for path in paths:
        clients.append(docker.raw())
        clients[-1].send(f"{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert clients[-1].recv(64).startswith(b"HTTP/1.1 200"), path
    for client in clients:
        client.close()
    until(lambda: docker.descriptors() <= fds + 2, 10)


def test_a_slow_client_holds_up_nobody_else(docker: DockerD) -> None:
    slow = docker.raw()
    slow.send(b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    began = time.monotonic()
    assert docker.get("/containers/json").status == 200
    assert time.monotonic() - began < 1
    slow.close()
