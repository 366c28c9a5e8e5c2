"""docker-py, the library of testcontainers, ansible and others: one script, against wherryd and against dockerd."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.dockerapi import Clients

docker = pytest.importorskip("docker", reason="docker-py is not installed")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ALONE = {"network_mode": "none"}


@pytest.fixture
def client(daemon: Clients) -> Iterator[Any]:
    made = docker.DockerClient(base_url=daemon.host, timeout=60)
    yield made
    for one in made.containers.list(all=True):
        one.remove(force=True, v=True)
    made.networks.prune()
    made.close()


def test_runs_and_their_ends(client: Any) -> None:
    assert client.ping()
    assert client.containers.run("busybox", ["echo", "hi"], remove=True, **ALONE) == b"hi\n"
    with pytest.raises(docker.errors.ContainerError) as failed:
        client.containers.run("busybox", "sh -c 'echo no >&2; exit 3'", remove=True, **ALONE)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"no\n")
    with pytest.raises(docker.errors.ImageNotFound):
        client.containers.create("no/such:1")
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("nope")
    assert client.containers.list(all=True) == []


def test_a_life(client: Any) -> None:
    words = ["sh", "-c", "while :; do echo tick; sleep 0.1; done"]
    one = client.containers.run("busybox", words, detach=True, name="one", environment={"A": "1"}, labels={"x": "y"},
                                stop_signal="SIGKILL", tmpfs={"/t": "size=1m"}, **ALONE)  # fmt: skip
    assert [each.name for each in client.containers.list(filters={"label": "x=y"})] == ["one"]
    assert one.exec_run("sh -c 'echo $A; exit 4'") == (4, b"1\n")
    assert one.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True).output == (b"o\n", b"e\n")
    assert b"".join(one.exec_run(["echo", "s"], stream=True).output) == b"s\n"
    lines = one.logs(stream=True, follow=True)
    assert b"".join(next(lines) for _ in range(3)).startswith(b"tick\n")
    lines.close()
    assert next(iter(one.attach(stream=True, logs=True))).startswith(b"tick\n")
    assert one.stats(stream=False)["name"] == "/one"
    assert any("tick" in " ".join(row) for row in one.top()["Processes"])
    one.pause()
    one.reload()
    assert one.status == "paused"
    one.unpause()
    one.rename("two")
    one.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    one.restart(timeout=0)
    one.stop(timeout=1)
    assert one.wait()["StatusCode"] == 137
    one.remove(v=True)
    with pytest.raises(docker.errors.NotFound):
        one.reload()


def test_a_terminal_by_its_socket(client: Any) -> None:
    one = client.containers.create("busybox", "sh", tty=True, stdin_open=True, **ALONE)
    sock = one.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    one.start()
    one.resize(10, 20)
    sock._sock.send(b"stty size; echo a$((1+1))b; exit 7\n")
    assert one.wait()["StatusCode"] == 7
    said = b""
    while part := sock._sock.recv(1000):
        said += part
    assert b"10 20" in said
    assert b"a2b" in said
    sock.close()


def test_archives(client: Any) -> None:
    one = client.containers.run("busybox", ["sleep", "600"], detach=True, **ALONE)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert one.put_archive("/tmp", packed.getvalue())
    chunks, what = one.get_archive("/tmp/file")
    assert (what["name"], what["size"]) == ("file", 3)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        found = tar.extractfile("file")
        assert found is not None
        assert found.read() == b"abc"
    assert {"Path": "/tmp/file", "Kind": 1} in one.diff()
    with pytest.raises(docker.errors.NotFound):
        one.get_archive("/none")


def test_images(client: Any) -> None:
    text = b"FROM busybox\nARG A=1\nRUN echo hi $A >/x\nCMD cat /x\n"
    built, lines = client.images.build(fileobj=io.BytesIO(text), tag="wt-built", buildargs={"A": "2"})
    assert any("Successfully tagged wt-built:latest" in line.get("stream", "") for line in lines)
    assert client.containers.run("wt-built", remove=True, **ALONE) == b"hi 2\n"
    with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 3"):
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 3\n"))
    assert built.tag("wt-other", "2")
    assert built.history()[0]["CreatedBy"].removeprefix("/bin/sh -c #(nop)  ").startswith("CMD")
    saved = b"".join(client.images.get("wt-other:2").save(named="wt-other:2"))
    client.images.remove("wt-other:2")
    assert "wt-other:2" in client.images.load(saved)[0].tags
    one = client.containers.run("busybox", ["touch", "/made"], detach=True, **ALONE)
    one.wait()
    one.commit("wt-committed", "1")
    assert client.containers.run("wt-committed:1", ["ls", "/made"], remove=True, **ALONE) == b"/made\n"
    with pytest.raises(docker.errors.APIError):
        client.images.search("busybox")


def test_networks_and_volumes(client: Any) -> None:
    pool = docker.types.IPAMPool(subnet="10.99.0.0/24")
    network = client.networks.create("wt-net", ipam=docker.types.IPAMConfig(pool_configs=[pool]), labels={"a": "b"})
    assert [each.name for each in client.networks.list(filters={"label": "a=b"})] == ["wt-net"]
    one = client.containers.run("busybox", "sleep 600", detach=True, network="wt-net")
    network.disconnect(one)
    network.connect(one, aliases=["alias"], ipv4_address="10.99.0.77")
    one.reload()
    assert one.attrs["NetworkSettings"]["Networks"]["wt-net"]["IPAddress"] == "10.99.0.77"
    done = client.containers.run("busybox", "ping -c 1 alias", network="wt-net", remove=True)
    assert b"1 packets received" in done
    with pytest.raises(docker.errors.APIError):
        network.remove()
    one.remove(force=True)
    network.remove()
    volume = client.volumes.create("wt-vol", labels={"a": "b"})
    mount = [docker.types.Mount("/v", "wt-vol")]
    client.containers.run("busybox", ["sh", "-c", "echo kept >/v/x"], mounts=mount, remove=True, **ALONE)
    kept = client.containers.run("busybox", ["cat", "/v/x"], volumes={"wt-vol": {"bind": "/v", "mode": "ro"}},
                                 remove=True, **ALONE)  # fmt: skip
    assert kept == b"kept\n"
    volume.remove()
    with pytest.raises(docker.errors.NotFound):
        client.volumes.get("wt-vol")


def test_events(client: Any) -> None:
    events = client.events(decode=True, filters={"type": "container"})
    time.sleep(0.2)
    client.containers.run("busybox", "true", remove=True, **ALONE)
    seen: list[str] = []
    while "die" not in seen:
        seen.append(next(events)["Action"])
    assert [action for action in seen if action in ("create", "start", "die")] == ["create", "start", "die"]
    events.close()
