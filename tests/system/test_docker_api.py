"""wherryd's Docker API by plain requests and by both docker CLIs: containers' lives, errors, bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.dockerapi import CLIS, DockerD

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
