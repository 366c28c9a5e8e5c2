"""Images, builds, networks and volumes by Docker's API: both docker CLIs, and plain requests for the rest."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.dockerapi import CLIS, Answer, DockerD
from helpers.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str) -> Iterator[DockerD]:
    with DockerD(test_id, tmp_path) as made:
        made.load(busybox)
        yield made


def _lines(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.body.splitlines()]


def _tar(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.mark.parametrize("cli", CLIS)
def test_images_by_the_cli(docker: DockerD, tmp_path: Path, cli: str) -> None:
    docker.docker("tag", "busybox", "one:1", cli=cli)
    docker.docker("tag", "busybox", "two:2", cli=cli)
    names = docker.out("images", "--format", "{{.Repository}}:{{.Tag}}", cli=cli)
    assert sorted(names.split()) == ["busybox:latest", "one:1", "two:2"]
    found = docker.out("images", "-q", "--filter", "reference=one", cli=cli)
    assert found == docker.out("images", "-q", "two", cli=cli)
    assert docker.out("history", "-q", "one:1", cli=cli)
    archive = tmp_path / "two.tar"
    docker.docker("save", "-o", archive, "one:1", "two:2", cli=cli)
    assert "Untagged: one:1" in docker.out("rmi", "one:1", "two:2", "busybox", cli=cli)
    assert docker.out("images", "-q", cli=cli) == ""
    loaded = docker.out("load", "-i", archive, cli=cli).splitlines()
    assert sorted(loaded) == ["Loaded image: one:1", "Loaded image: two:2"]
    assert docker.out("run", "--rm", "--network", "none", "two:2", "echo", "hi", cli=cli) == "hi"
    gone = docker.docker("rmi", "none", cli=cli, check=False)
    assert gone.returncode == 1
    assert "No such image: none" in gone.stderr


@pytest.mark.parametrize("cli", CLIS)
def test_an_image_of_a_container_and_of_a_tar(docker: DockerD, tmp_path: Path, cli: str) -> None:
    docker.docker("run", "--name", "one", "--network", "none", "busybox", "sh", "-c", "echo kept >/kept", cli=cli)
    commit = docker.out("commit", "-a", "me", "-m", "why", "-c", "ENV A=b", "one", "kept:1", cli=cli)
    assert commit == docker.out("inspect", "-f", "{{.Id}}", "kept:1", cli=cli)
    show = docker.out("run", "--rm", "--network", "none", "kept:1", "sh", "-c", "cat /kept; echo $A", cli=cli)
    assert show.split() == ["kept", "b"]
    docker.docker("export", "-o", tmp_path / "root.tar", "one", cli=cli)
    imported = docker.out("import", "-m", "flat", tmp_path / "root.tar", "flat:1", cli=cli)
    assert imported == docker.out("inspect", "-f", "{{.Id}}", "flat:1", cli=cli)
    assert docker.out("run", "--rm", "--network", "none", "flat:1", "/bin/busybox", "cat", "/kept", cli=cli) == "kept"
    docker.docker("rm", "one", cli=cli)


@pytest.mark.parametrize("cli", CLIS)
def test_a_build_by_the_cli(docker: DockerD, tmp_path: Path, cli: str) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "file").write_text("content\n")
    (tmp_path / "context" / "Dockerfile").write_text(
        "FROM busybox AS base\nARG WORD=none\nRUN echo said $WORD | tee /word\nFROM base AS end\nCOPY file /file\n"
    )
    classic, build = {"DOCKER_BUILDKIT": "0"}, ("build", "-t", "built:1", "--build-arg", "WORD=yes", "--label", "a=b")
    said = docker.docker(*build, "--network", "none", tmp_path / "context", cli=cli, env=classic)
    assert "said yes" in said.stdout
    assert "Successfully tagged built:1" in said.stdout
    show = docker.out("run", "--rm", "--network", "none", "built:1", "cat", "/word", "/file", cli=cli)
    assert show.split("\n") == ["said yes", "content"]
    assert docker.out("inspect", "-f", "{{.Config.Labels.a}}", "built:1", cli=cli) == "b"
    quiet = docker.out("build", "-q", "--target", "base", tmp_path / "context", cli=cli, env=classic)
    assert quiet.startswith("sha256:")
    (tmp_path / "context" / "Dockerfile").write_text("FROM busybox\nRUN exit 7\n")
    failed = docker.docker("build", "--network", "none", tmp_path / "context", cli=cli, env=classic, check=False)
    assert failed.returncode
    assert "returned a non-zero code: 7" in failed.stderr + failed.stdout or "exit code: 7" in failed.stderr
    docker.docker("builder", "prune", "-af", cli=cli)


def test_what_a_build_is_refused_for(docker: DockerD) -> None:
    tar = {"Content-Type": "application/x-tar"}
    assert docker.post("/build?remote=https://example.org/x.git", b"", headers=tar).status == 501
    assert docker.post("/build?version=2", b"", headers=tar).status == 501
    assert docker.post("/build?memory=33554432", b"", headers=tar).status == 501
    assert docker.post("/build?buildargs=[", _tar(Dockerfile="FROM busybox"), headers=tar).status == 400
    for context in (b"no tar", _tar(other="x"), _tar(Dockerfile="FRUM x"), _tar(Dockerfile="FROM 127.0.0.1:1/none:1")):
        answer = docker.post("/build", context, headers=tar)
        assert answer.status >= 400 or "error" in _lines(answer)[-1], (answer, context[:80])
        assert answer.status != 500, answer


def test_a_client_that_does_not_read_holds_up_its_own_build(docker: DockerD) -> None:
    """What is said meanwhile is not heaped up: the step waits."""
    said = "yes 0123456789012345678901234567890123456789012345678901234567890 | head -n 2000000"
    context = _tar(Dockerfile=f"FROM busybox\nRUN {said}\n")
    head = "POST /build?networkmode=none HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
    before = _resident(docker)
    with docker.raw() as client:
        client.sendall(f"{head}Content-Length: {len(context)}\r\nConnection: close\r\n\r\n".encode() + context)
        time.sleep(6)
        assert docker.get("/_ping").status == 200
        assert _resident(docker) < before + (48 << 20)
        heard = 0
        while chunk := client.recv(1 << 20):
            heard += chunk.count(b"\\n")
    assert heard >= 2_000_000


def _resident(docker: DockerD) -> int:
    with open(f"/proc/{docker.pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_bad_archives_leave_nothing(docker: DockerD) -> None:
    before = docker.get("/images/json").json()
    for body in (b"", b"no tar at all" * 100, _tar(**{"manifest.json": "[1]"}), _tar(**{"../../evil": "x"})):
        answer = docker.post("/images/load", body, headers={"Content-Type": "application/x-tar"})
        assert answer.status == 400, answer
    assert docker.get("/images/json").json() == before


def test_a_registry_by_the_cli(docker: DockerD, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/some/thing:1"
        for cli in CLIS:
            docker.docker("tag", "busybox", name, cli=cli)
            pushed = docker.out("push", name, cli=cli)
            assert "The push refers to repository" in pushed
            assert "1: digest: sha256:" in pushed
            docker.docker("rmi", name, cli=cli)
            pulled = docker.out("pull", name, cli=cli)
            assert f"Status: Downloaded newer image for {name}" in pulled or "Status: Image is up to date" in pulled
            docker.docker("rmi", name, cli=cli)
        found = docker.get(f"/distribution/{name}/json").json()
        assert found["Descriptor"]["digest"].startswith("sha256:")
        assert f"1: digest: {found['Descriptor']['digest']}" in pushed
        assert [one["os"] for one in found["Platforms"]] == ["linux"]
        assert docker.get(f"/distribution/{registry.host}/none:1/json").status == 404
        assert docker.post(f"/images/create?fromImage={registry.host}/none&tag=1").status == 404
    assert docker.get("/distribution/oci:%2Ftmp/json").status == 400
    assert docker.post("/images/create?fromImage=oci:/tmp/x").status == 400
    bad = {"X-Registry-Auth": "!!"}
    assert docker.post("/images/create?fromImage=127.0.0.1:1/x&tag=1", headers=bad).status == 400


def test_what_is_asked_of_no_image(docker: DockerD) -> None:
    for path in ("/images/none/json", "/images/none/history", "/images/none/get", "/images/get?names=none"):
        found = docker.get(path)
        assert (found.status, found.message.split(";")[0]) == (404, "No such image: none"), path
    assert docker.delete("/images/none").status == 404
    assert docker.post("/images/none/tag?repo=x").status == 404
    assert docker.post("/images/busybox/tag?repo=A_B!").status == 400
    assert docker.get("/images/search?term=x").status == 501
    assert docker.post("/auth", {"serveraddress": "http://[", "password": "x"}).status == 400
    made = docker.post("/containers/create?name=user", {"Image": "busybox", "HostConfig": {"NetworkMode": "none"}})
    assert made.status == 201
    assert docker.delete("/images/busybox").status == 409
    assert docker.post("/images/prune", None).json()["ImagesDeleted"] in ([], None)
    assert docker.delete("/containers/user").status == 204


@pytest.mark.parametrize("cli", CLIS)
def test_networks_by_the_cli(docker: DockerD, cli: str) -> None:
    subnet = ("--subnet", "10.213.7.0/24", "--gateway", "10.213.7.9")
    docker.docker("network", "create", *subnet, "--label", "a=b", "--internal", "first", cli=cli)
    docker.docker("network", "create", "second", cli=cli)
    assert docker.out("network", "ls", "-q", "--no-trunc", "--filter", "label=a=b", cli=cli) == docker.out(
        "network", "inspect", "-f", "{{.Id}}", "first", cli=cli
    )
    show = "{{.Internal}} {{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}}"
    assert docker.out("network", "inspect", "-f", show, "first", cli=cli) == "true 10.213.7.0/24 10.213.7.9"
    docker.docker("run", "-d", "--name", "one", "--network", "first", "--ip", "10.213.7.20", "busybox", "sleep", "600",
                  cli=cli)  # fmt: skip
    docker.docker("network", "connect", "--alias", "other", "second", "one", cli=cli)
    found = json.loads(docker.out("inspect", "-f", "{{json .NetworkSettings.Networks}}", "one", cli=cli))
    assert found["first"]["IPAddress"] == "10.213.7.20"
    assert set(found) == {"first", "second"}
    assert "eth1" in docker.out("exec", "one", "ls", "/sys/class/net", cli=cli)
    used = docker.docker("network", "rm", "first", cli=cli, check=False)
    assert used.returncode == 1
    docker.docker("network", "disconnect", "second", "one", cli=cli)
    assert "eth1" not in docker.out("exec", "one", "ls", "/sys/class/net", cli=cli)
    assert docker.out("network", "prune", "-f", cli=cli).split()[-1] == "second"
    docker.docker("rm", "-f", "one", cli=cli)
    docker.docker("network", "rm", "first", cli=cli)
    again = docker.docker("network", "rm", "first", cli=cli, check=False)
    assert "first not found" in again.stderr or "No such network: first" in again.stderr


@pytest.mark.parametrize("cli", CLIS)
def test_volumes_by_the_cli(docker: DockerD, cli: str) -> None:
    assert docker.out("volume", "create", "--label", "a=b", "data", cli=cli) == "data"
    docker.docker("volume", "create", cli=cli)
    assert len(docker.out("volume", "ls", "-q", cli=cli).split()) == 2
    assert docker.out("volume", "ls", "-q", "--filter", "label=a", cli=cli) == "data"
    run = ("run", "--rm", "--network", "none", "-v", "data:/d", "busybox")
    docker.docker(*run, "sh", "-c", "echo there >/d/file", cli=cli)
    assert docker.out(*run, "cat", "/d/file", cli=cli) == "there"
    docker.docker("create", "--name", "user", "--network", "none", "-v", "data:/d", "busybox", "true", cli=cli)
    used = docker.docker("volume", "rm", "data", cli=cli, check=False)
    assert used.returncode == 1
    assert "in use" in used.stderr
    docker.docker("rm", "user", cli=cli)
    docker.docker("volume", "prune", "-f", cli=cli)
    assert docker.get("/v1.41/volumes/none").message == "No such volume: none"
    docker.docker("volume", "rm", "-f", "data", "none", cli=cli)
    assert docker.out("volume", "ls", "-q", cli=cli) == ""


def test_bodies_of_networks_and_volumes_that_are_wrong(docker: DockerD) -> None:
    for body in ({}, {"Name": 1}, {"Name": "a", "IPAM": {"Config": [{"Subnet": "x"}]}}, {"Name": "a", "Options": [1]}):
        assert docker.post("/networks/create", body).status == 400, body
    for body in ({"Name": "../x"}, {"Name": 1}, {"Labels": "x"}, {"Driver": 3}):
        assert docker.post("/volumes/create", body).status == 400, body
    assert docker.post("/networks/nothing/connect", {"Container": "none"}).status == 404
    assert docker.get("/networks/nothing").status == 404
    assert docker.get('/networks?filters={"none":["x"]}').status == 400
    assert docker.get('/volumes?filters={"label":3}').status == 400
    assert docker.delete("/networks/bridge").status == 403
