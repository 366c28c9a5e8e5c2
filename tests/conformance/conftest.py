"""Fixtures of the callers' tests: a short directory with an audit of its own, and the OCI runtime that they call."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import audit
from helpers import tools
from helpers.dockerapi import Clients, DockerD
from helpers.dockerd import Dockerd
from helpers.ociruntime import wrapper


@pytest.fixture
def place(test_id: str, private_network: object, host_canary: None) -> Iterator[Path]:
    """A directory with a path as short as sockets need it; nothing is left of what ran in it."""
    directory = Path(f"/run/{test_id}")
    directory.mkdir(mode=0o711)
    mark = audit.Mark(paths=(str(directory),), cgroup=f"/{test_id}")
    before = audit.take(mark)
    yield directory
    remove_parents(test_id)
    leaks = audit.settle(before, mark)
    namespaces = (test_id, "moby", "k8s.io")  # containerd's directory of all containers
    leaks += [f"left files: {path}" for path in (directory / "state").rglob("*") if path.name not in namespaces]
    tools.run("rm", "-rf", "--one-file-system", directory)
    assert not leaks, "\n".join(leaks)


def remove_parents(name: str) -> None:
    """The callers leave the group that they were told to use, and podman conmon's: not the runtime's to remove."""
    end = time.monotonic() + 5  # conmon ends after the engine's command
    for mount, _ in audit.cgroup_mounts():
        for path in (f"{mount}/{name}/conmon", f"{mount}/{name}"):
            while not removed(path) and time.monotonic() < end:
                time.sleep(0.05)


def removed(path: str) -> bool:
    """Whether an empty group is gone, or was not there."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return not os.path.exists(path)


@pytest.fixture
def runtime(place: Path) -> Path:
    """The runtime under test with a --root of this test's own."""
    return wrapper(place)


@pytest.fixture(params=["wherryd", "dockerd"])
def daemon(request: pytest.FixtureRequest, test_id: str, tmp_path: Path, busybox: str) -> Iterator[Clients]:
    """What has a Docker API, with busybox: ours, and the distribution's dockerd as the judge of what is asked."""
    if request.param == "dockerd":
        made: DockerD | Dockerd = Dockerd(request.getfixturevalue("place"), tmp_path, test_id)
    else:
        request.getfixturevalue("private_network")
        made = DockerD(test_id, tmp_path)
    with made as running:
        running.load(busybox)
        yield running
