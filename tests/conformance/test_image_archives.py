"""Archives between wherry and its peers: what `save` writes they load, what they save `load` takes; ids stay."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import tools
from helpers.ociruntime import Space
from helpers.wherry import Wherry

pytestmark = pytest.mark.root
NAMES = ("docker.io/library/busybox:latest", "localhost/made:v1")
ARCHIVES = ("docker", "docker-archive", "oci-archive")


@pytest.fixture
def made(wherry: Wherry, busybox: str) -> dict[str, str]:
    """Two images that share a layer: ids by name."""
    wherry("load", "-q", busybox)
    box = wherry.name("box")
    wherry("run", "--name", box, "busybox", "sh", "-c", "rm /bin/ls; echo new > /new; ln /new /hard")
    wherry("commit", "-m", "changed", box, NAMES[1])
    return {name: wherry.inspect(name)["Id"] for name in NAMES}


def save(wherry: Wherry, path: Path, form: str, *names: str) -> Path:
    wherry("save", "--format", form, "-o", path, *names)
    return path


def removed(wherry: Wherry) -> None:
    """No image, no blob, no layer: what is loaded next comes from the archive."""
    for box in wherry.containers():
        wherry("rm", "-f", box)
    wherry("image", "prune", "-a", "-f")
    assert wherry.out("images", "-q") == ""


def loaded(wherry: Wherry) -> dict[str, str]:
    found = {}
    for line in wherry.out("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines():
        name, _, identity = line.partition(" ")
        found[name if "/" in name else f"docker.io/library/{name}"] = identity
    return found


# ---- ours, read by them


@pytest.mark.parametrize("form", ARCHIVES)
def test_own_archives_come_back(wherry: Wherry, made: dict[str, str], tmp_path: Path, form: str) -> None:
    archive = save(wherry, tmp_path / "saved.tar", form, *NAMES)
    assert wherry("save", "--format", form, "-o", tmp_path / "again.tar", *NAMES).returncode == 0
    assert archive.read_bytes() == (tmp_path / "again.tar").read_bytes()
    digests = {name: wherry.inspect(name)["RepoDigests"] for name in NAMES}
    for way in ("file", "pipe", "gzip", "zstd"):
        removed(wherry)
        if way == "file":
            wherry("load", "-q", "-i", archive)
        else:
            command = {"pipe": "cat", "gzip": "gzip -1", "zstd": "zstd -q"}[way]
            tools.need(command.split()[0])
            with open(archive, "rb") as file:
                packer = subprocess.Popen(command.split(), stdin=file, stdout=subprocess.PIPE)
            assert wherry.popen("load", "-q", stdin=packer.stdout, stdout=subprocess.DEVNULL).wait(60) == 0
            packer.wait(10)
        assert loaded(wherry) == made, way
        if form != "docker-archive":  # which holds no manifest
            assert {name: wherry.inspect(name)["RepoDigests"] for name in NAMES} == digests
        done = wherry("run", "--rm", NAMES[1], "sh", "-c", "cat /hard; test -e /bin/ls || echo gone")
        assert done.stdout == "new\ngone\n"


@pytest.mark.parametrize("form", ["oci-dir", "docker-dir"])
def test_own_directories_come_back(wherry: Wherry, made: dict[str, str], tmp_path: Path, form: str) -> None:
    place = save(wherry, tmp_path / "saved", form, NAMES[1])
    assert wherry("save", "--format", form, "-o", place, NAMES[1], check=False).returncode == 1  # it is not empty
    removed(wherry)
    said = wherry("load", "-q", "-i", place).stdout
    assert made[NAMES[1]] in (loaded(wherry).get(NAMES[1]), said.split()[-1])
    tools.need("skopeo")
    source = f"oci:{place}:{NAMES[1]}" if form == "oci-dir" else f"dir:{place}"
    tools.run("skopeo", "inspect", "--config", source)


@pytest.mark.parametrize("form", ARCHIVES)
def test_skopeo_reads(wherry: Wherry, made: dict[str, str], tmp_path: Path, form: str) -> None:
    tools.need("skopeo")
    archive = save(wherry, tmp_path / "saved.tar", form, *NAMES)
    for kind in ("docker-archive", "oci-archive") if form == "docker" else (form,):
        tag = "v1" if kind == "oci-archive" and form == "docker" else NAMES[1]
        copied = tmp_path / f"copied-{kind}"
        tools.run("skopeo", "--insecure-policy", "copy", "-q", f"{kind}:{archive}:{tag}", f"dir:{copied}")
        assert json.loads((copied / "manifest.json").read_text())["config"]["digest"] == made[NAMES[1]]


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    tools.need("podman")
    with Space() as space, tempfile.TemporaryDirectory(prefix="p-", dir="/run") as run:  # at most 50 characters
        words = ("podman", "--root", tmp_path / "podman", "--runroot", run, "--storage-driver", "vfs")
        yield lambda *more, **options: space.run(*words, *more, **options)


def podman_images(podman: Callable[..., Any]) -> dict[str, str]:
    lines = podman("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout.splitlines()
    return dict(line.split(" ") for line in lines)


@pytest.mark.parametrize("form", ["docker", "docker-archive"])
def test_podman_loads(
    wherry: Wherry, made: dict[str, str], tmp_path: Path, podman: Callable[..., Any], form: str
) -> None:
    podman("load", "-q", "-i", save(wherry, tmp_path / "saved.tar", form, *NAMES))
    assert podman_images(podman) == made


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_saves(
    wherry: Wherry, made: dict[str, str], tmp_path: Path, podman: Callable[..., Any], form: str
) -> None:
    for name in NAMES:
        podman("load", "-q", "-i", save(wherry, tmp_path / f"{made[name][7:19]}.tar", "oci-archive", name))
    assert podman_images(podman) == made
    several = ("-m",) if form == "docker-archive" else ()
    names = NAMES if several else NAMES[1:]
    podman("save", "-q", *several, "--format", form, "-o", tmp_path / "theirs.tar", *names)
    removed(wherry)
    wherry("load", "-q", "-i", tmp_path / "theirs.tar")
    assert loaded(wherry) == {name: made[name] for name in names}
    assert wherry("run", "--rm", NAMES[1], "cat", "/hard").stdout == "new\n"


def test_ctr_imports_and_exports(wherry: Wherry, made: dict[str, str], tmp_path: Path) -> None:
    tools.need("containerd", "ctr")
    settings, socket = tmp_path / "containerd.toml", tmp_path / "c.sock"
    settings.write_text(
        f'version = 2\nroot = "{tmp_path}/containerd"\nstate = "{tmp_path}/containerd-run"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
    )
    with Space(private=("/run/containerd",)) as space:
        words = ("ctr", "--address", socket)
        space.daemon(tmp_path / "containerd.log", (*words, "version"), "containerd", "--config", settings)
        archive = save(wherry, tmp_path / "saved.tar", "docker", *NAMES)
        space.run(*words, "image", "import", "--snapshotter", "native", archive)
        assert set(space.run(*words, "image", "ls", "-q").stdout.split()) >= set(NAMES)
        space.run(*words, "image", "export", tmp_path / "theirs.tar", *NAMES)
    removed(wherry)
    wherry("load", "-q", "-i", tmp_path / "theirs.tar")
    assert loaded(wherry) == made


def test_docker_loads_and_saves(wherry: Wherry, made: dict[str, str], tmp_path: Path) -> None:
    tools.need("dockerd", "docker", "containerd")
    with Space(private=("/run/docker", "/run/containerd")) as space:
        words = ("docker", "--host", f"unix://{tmp_path}/d.sock")
        flags = ("--iptables=false", "--bridge=none", "--storage-driver=vfs", "--pidfile", tmp_path / "pid")
        space.daemon(
            tmp_path / "docker.log", (*words, "version"), "dockerd", "--host", f"unix://{tmp_path}/d.sock", *flags,
            "--data-root", tmp_path / "docker", "--exec-root", tmp_path / "exec",
        )  # fmt: skip
        space.run(*words, "load", "-q", "-i", save(wherry, tmp_path / "saved.tar", "docker", *NAMES))
        shown = space.run(*words, "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout
        assert dict(line.split() for line in shown.splitlines()) == {
            name.removeprefix("docker.io/library/"): identity for name, identity in made.items()
        }
        space.run(*words, "save", "-o", tmp_path / "theirs.tar", "busybox:latest", NAMES[1])
    removed(wherry)
    wherry("load", "-q", "-i", tmp_path / "theirs.tar")
    assert loaded(wherry) == made
