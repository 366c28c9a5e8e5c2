"""Further tools that find a daemon by DOCKER_HOST: tox-docker and skopeo, against wherryd and against dockerd."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tools
from helpers.dockerapi import Clients
from helpers.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
TOX = """
[tox]
env_list = it
skipsdist = true
[testenv:it]
skip_install = true
docker = web
commands = python -c "import os, urllib.request as r; \
    host, port = os.environ['WEB_HOST'], os.environ['WEB_80_TCP_PORT']; \
    print('got', r.urlopen(f'http://\\{host\\}:\\{port\\}/').read())"
[docker:web]
dockerfile = {place}/Dockerfile
expose = WEB_80_TCP_PORT=80/tcp
environment = PAGE=page
volumes = bind:ro:{place}:/context
healthcheck_cmd = wget -qO- http://127.0.0.1/
healthcheck_interval = 1
healthcheck_timeout = 5
healthcheck_retries = 10
healthcheck_start_period = 1
"""


@pytest.mark.skipif(importlib.util.find_spec("tox_docker") is None, reason="tox-docker is not installed")
def test_tox_docker(daemon: Clients, tmp_path: Path) -> None:
    """It builds and pulls, starts with a published port, waits for health, and removes what it started."""
    place = tmp_path / "project"
    place.mkdir()
    with Registry(tmp_path / "registry") as registry:  # tox-docker's builds always pull
        base = f"{registry.host}/busybox:test"
        daemon.docker("tag", "busybox", base)
        daemon.docker("push", base)
        (place / "Dockerfile").write_text(
            f"FROM {base}\nCMD test -e /context/tox.ini && echo $PAGE >/index.html && exec httpd -f -p 80 -h /\n"
        )
        (place / "tox.ini").write_text(TOX.replace("{place}", str(place)))
        words = [sys.executable, "-m", "tox", "run", "--workdir", str(tmp_path / "tox")]
        done = subprocess.run(words, cwd=place, env=daemon.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert r"got b'page\n'" in done.stdout
        assert daemon.out("ps", "-aq") == ""


def test_a_registry_by_the_cli(daemon: Clients, tmp_path: Path) -> None:
    """push, rmi, pull, manifests by digest; and what is not there."""
    with Registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/some/thing:1"
        daemon.docker("tag", "busybox", name)
        pushed = daemon.out("push", name)
        digest = next(word for word in pushed.split() if word.startswith("sha256:"))
        daemon.docker("rmi", name)
        pulled = daemon.out("pull", name)
        assert f"Digest: {digest}" in pulled
        assert f"Status: Downloaded newer image for {name}" in pulled
        assert f"Status: Image is up to date for {name}" in daemon.out("pull", name)
        at = f"{registry.host}/some/thing@{digest}"
        assert at in daemon.out("inspect", "-f", "{{.RepoDigests}}", name)
        assert daemon.out("run", "--rm", "--network", "none", at, "echo", "hi") == "hi"
        missing = daemon.docker("pull", f"{registry.host}/some/other", check=False)
        assert missing.returncode == 1
        assert "not found" in missing.stderr or "manifest unknown" in missing.stderr


def test_skopeo(daemon: Clients, tmp_path: Path) -> None:
    """Out of the daemon and into it; what comes back runs."""
    tools.need("skopeo")
    at = ("--daemon-host", daemon.host)
    words = ("skopeo", "--insecure-policy")
    shown = tools.run(*words, "inspect", *at, "docker-daemon:busybox:latest")
    assert json.loads(shown.stdout)["Architecture"] == "amd64"
    tools.run(*words, "copy", "--src-daemon-host", daemon.host, "docker-daemon:busybox:latest", f"oci:{tmp_path}/out:a")
    tools.run(*words, "copy", "--dest-daemon-host", daemon.host, f"oci:{tmp_path}/out:a", "docker-daemon:back:1")
    assert daemon.out("run", "--rm", "--network", "none", "back:1", "echo", "hi") == "hi"
