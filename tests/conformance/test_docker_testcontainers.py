"""testcontainers: a redis of the distribution, as somebody's tests would use it, on wherryd and dockerd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from helpers import programs
from helpers.dockerapi import Clients

pytest.importorskip("testcontainers", reason="testcontainers is not installed")
pytest.importorskip("redis", reason="redis (its Python client) is not installed")
SERVER = shutil.which("redis-server") or shutil.which("redis-check-rdb")  # one program by its name, as it is packed
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not SERVER, reason="redis-tools is not installed"),
]


@pytest.fixture
def redis_image(daemon: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Built there; testcontainers' settings point at the daemon, without its reaper, whose image only the world has."""
    from testcontainers.core.config import testcontainers_config

    assert SERVER
    place = programs.context(tmp_path / "redis", SERVER, "redis-server", "--save", "", "--protected-mode", "no")
    daemon.docker("build", "-q", "-t", "redis:test", place, env={"DOCKER_BUILDKIT": "0"}, timeout=90)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(testcontainers_config, "max_tries", 30)  # seconds
    for key in ("DOCKER_HOST", "DOCKER_CONFIG"):
        monkeypatch.setenv(key, daemon.env[key])
    yield "redis:test"
    assert daemon.out("ps", "-aq") == "", "each container goes with its block"


def test_a_database(redis_image: str) -> None:
    from testcontainers.redis import RedisContainer

    with RedisContainer(redis_image) as database, RedisContainer(redis_image, password="secret") as other:
        client, second = database.get_client(decode_responses=True), other.get_client()
        assert client.set("key", "value")
        assert client.get("key") == "value"
        assert client.lpush("list", *range(1000)) == 1000
        assert second.get("key") is None, "each has its own"
        assert database.get_exposed_port(6379) != other.get_exposed_port(6379)
        assert database.exec("echo hi") == (0, b"hi\n")
        client.close()
        second.close()


def test_a_network_a_volume_and_logs(redis_image: str, tmp_path: Path) -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network
    from testcontainers.core.waiting_utils import wait_for_logs

    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("page\n")
    with Network() as network:
        database = DockerContainer(redis_image).with_network(network).with_network_aliases("db")
        script = "echo PING | nc db 6379; echo asked; exec httpd -f -p 80 -h /www"
        web: Any = DockerContainer("busybox").with_network(network).with_command(["sh", "-c", script])
        web = web.with_exposed_ports(80).with_volume_mapping(str(tmp_path / "www"), "/www", "ro").with_env("A", "b")
        with database:
            wait_for_logs(database, "Ready to accept connections", timeout=20)
            with web:
                wait_for_logs(web, "asked", timeout=20)
                assert web.get_logs()[0].split() == [b"+PONG", b"asked"]
                url = f"http://{web.get_container_host_ip()}:{web.get_exposed_port(80)}/"
                with urlopen(url, timeout=10) as found:
                    assert found.read() == b"page\n"
                assert web.exec(["sh", "-c", "echo $A; exit 3"]) == (3, b"b\n")


def test_an_image_that_is_built(redis_image: str, tmp_path: Path) -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.image import DockerImage
    from testcontainers.core.waiting_utils import wait_for_logs

    (tmp_path / "own").mkdir()
    text = "FROM busybox\nARG WORD\nENV WORD=$WORD\nCMD echo it says $WORD; sleep 60\n"
    (tmp_path / "own" / "Dockerfile").write_text(text)
    with DockerImage(path=tmp_path / "own", tag="own:1", buildargs={"WORD": "well"}) as image:  # noqa: SIM117
        with DockerContainer(str(image)) as own:
            wait_for_logs(own, "it says well", timeout=20)
