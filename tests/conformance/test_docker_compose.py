"""The distribution's docker-compose (1.29, in Python): a project from build to end, on wherryd and on dockerd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from helpers.dockerapi import Clients
from helpers.registry import free_port
from helpers.wherry import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed"),
]
PROJECT = """
version: "3.8"
services:
  db:
    image: busybox
    command: sh -c "echo db up; nc -ll -p 5432 -e echo pong"
    volumes: [data:/data]
    healthcheck: {{test: ["CMD", "true"], interval: 1s}}
  web:
    build: ctx
    depends_on: [db]
    ports: ["{port}:80"]
    environment: {{A: b}}
    networks: {{default: {{aliases: [www]}}, back: {{}}}}
    ulimits: {{nofile: {{soft: 100, hard: 200}}}}
    tmpfs: [/run]
networks: {{back: {{}}}}
volumes: {{data: {{}}}}
"""
DOCKERFILE = """FROM busybox
RUN mkdir /www && echo page > /www/index.html
CMD ["httpd","-f","-p","80","-h","/www"]
"""
Compose = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def compose(daemon: Clients, test_id: str, tmp_path: Path, port: int) -> Iterator[Compose]:
    """`compose(words)`: in the project's directory; the project is taken down at the end."""
    place = tmp_path / test_id
    (place / "ctx").mkdir(parents=True)
    (place / "docker-compose.yml").write_text(PROJECT.format(port=port))
    (place / "ctx" / "Dockerfile").write_text(DOCKERFILE)

    def call(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker-compose", "--no-ansi", *words], cwd=place, env=daemon.env, capture_output=True, text=True,
            check=False, timeout=90, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    yield call
    call("down", "-v", "-t", "0", "--rmi", "local")


@pytest.mark.seconds(300)
def test_a_project(compose: Compose, daemon: Clients, port: int) -> None:
    compose("up", "-d", "--build")
    script = "wget -qO- http://www/; echo x | nc db 5432; echo $A; awk '/open files/{print $4}' /proc/1/limits"
    assert compose("exec", "-T", "web", "sh", "-c", script).stdout.split() == ["page", "pong", "b", "100"]
    compose("exec", "-T", "web", "sh", "-c", "exit 9", code=9)
    with urlopen(f"http://127.0.0.1:{port}/", timeout=10) as found:
        assert found.read() == b"page\n"
    assert "db up" in compose("logs", "db").stdout
    assert "up-to-date" in compose("up", "-d").stderr, "nothing has changed"
    assert compose("run", "--rm", "-T", "web", "echo", "ran").stdout == "ran\n"
    compose("up", "-d", "--scale", "db=2")
    until(lambda: len(daemon.out("ps", "-q").split()) == 3)
    compose("restart", "-t", "0", "web")
    compose("pause", "db")
    compose("unpause", "db")
    assert "httpd" in compose("top", "web").stdout
    assert compose("port", "web", "80").stdout.strip().endswith(f":{port}")
    compose("stop", "-t", "0")
    assert daemon.out("ps", "-q") == ""
    compose("start")
    compose("kill")
    compose("down", "-v", "--rmi", "local")
    assert daemon.out("ps", "-aq") == ""
    assert daemon.out("volume", "ls", "-q") == ""
    names = set(daemon.out("network", "ls", "--format", "{{.Name}}").split())
    assert not any(name.endswith(("_back", "_default")) for name in names)
