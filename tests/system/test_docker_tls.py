"""The Docker API by TCP: the docker CLI and docker-py with certificates on both sides; nobody comes in without one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.cri import Stub, api
from helpers.dockerapi import CLIS, DockerD, Terminal
from helpers.wherry import until
from image_support import Certificates

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not CLIS, reason="no docker CLI is installed"),
]
NONE = ("--network", "none")
SERVED = re.compile(r"serving the Docker API on 127\.0\.0\.1 port (\d+)")


class Secure(DockerD):
    """wherryd with docker_tcp; `docker(...)` speaks TLS to it, `plain` the socket."""

    def __init__(self, test_id: str, tmp_path: Path) -> None:
        self.certificates = Certificates(tmp_path / "certificates")
        cert, key = self.certificates.sign("server", "IP:127.0.0.1")
        key.chmod(0o600)
        lines = (f'docker_tcp = "127.0.0.1:0"\ntls_ca = "{self.certificates.bundle}"\n'
                 f'tls_cert = "{cert}"\ntls_key = "{key}"\n')  # fmt: skip
        super().__init__(test_id, tmp_path, lines)
        self.plain = self.host

    def secure(self, directory: Path) -> None:
        """From now on the CLI dials by TCP, with what `directory` has."""
        self.port = int(SERVED.findall(self.log.read_text())[-1])
        self.env |= {"DOCKER_HOST": f"tcp://127.0.0.1:{self.port}", "DOCKER_TLS_VERIFY": "1",
                     "DOCKER_CERT_PATH": str(directory)}  # fmt: skip

    def client(self, name: str, authority: Certificates | None = None) -> Path:
        """A directory as DOCKER_CERT_PATH wants it."""
        cert, key = (authority or self.certificates).sign(name)
        place = self.certificates.place / f"of-{name}"
        place.mkdir()
        (place / "ca.pem").write_bytes(self.certificates.bundle.read_bytes())
        cert.rename(place / "cert.pem")
        key.rename(place / "key.pem")
        return place


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str) -> Iterator[Secure]:
    made = Secure(test_id, tmp_path)
    with made:
        made.load(busybox)
        made.secure(made.client("me"))
        yield made


@pytest.mark.parametrize("cli", CLIS)
def test_the_cli_by_tcp(docker: Secure, cli: str) -> None:
    run = ("run", "--rm", *NONE)
    assert docker.out(*run, "busybox", "echo", "well", cli=cli) == "well"
    sent = "line\n" * 100_000
    counted = docker.docker(*run, "-i", "busybox", "wc", "-l", stdin=sent, cli=cli)  # the end of input is told
    assert counted.stdout.strip() == "100000"
    assert docker.docker(*run, "-i", "busybox", "cat", stdin=sent, cli=cli).stdout == sent
    assert docker.docker(*run, "busybox", "sh", "-c", "exit 7", cli=cli, check=False).returncode == 7
    terminal = Terminal(docker, *run, "-it", "busybox", "sh", cli=cli)
    terminal.see("/ #")
    terminal.type(b"stty size; exit 5\n")
    terminal.see("31 91")
    assert terminal.end() == 5
    name = docker.out("run", "-d", *NONE, "busybox", "sleep", "1000", cli=cli)
    assert docker.docker("exec", "-i", name, "cat", stdin="here\n", cli=cli).stdout == "here\n"
    docker.docker("rm", "-f", name, cli=cli)


def test_docker_py_by_tcp(docker: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests would take these in the place of ours
        monkeypatch.delenv(name, raising=False)
    sdk = pytest.importorskip("docker", reason="docker-py is not installed")
    place = docker.env["DOCKER_CERT_PATH"]
    how = sdk.tls.TLSConfig(
        client_cert=(f"{place}/cert.pem", f"{place}/key.pem"), ca_cert=f"{place}/ca.pem", verify=True
    )
    client = sdk.DockerClient(f"tcp://127.0.0.1:{docker.port}", tls=how)
    try:
        box = client.containers.run("busybox", ["sleep", "1000"], detach=True, network_mode="none")
        assert box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True) == (3, (b"out\n", b"err\n"))
        assert sorted(one["Type"] for one in _some(client.events(since=0, until=int(time.time()) + 1, decode=True)))
        bits, about = box.get_archive("/bin/busybox")
        assert sum(map(len, bits)) > about["size"] > 0
        box.remove(force=True)
    finally:
        client.close()


def _some(events: Any) -> list[Any]:
    return list(events)


def test_nobody_without_a_certificate(docker: Secure, tmp_path: Path) -> None:
    other = docker.client("stranger", Certificates(tmp_path / "other"))
    refused = docker.docker("ps", check=False, env={"DOCKER_CERT_PATH": str(other)})
    assert refused.returncode != 0
    assert "tls: " in refused.stderr
    bare = subprocess.run(
        ["curl", "-sS", "--max-time", "5", "--cacert", str(docker.certificates.bundle),
         f"https://127.0.0.1:{docker.port}/_ping"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bare.returncode != 0
    assert bare.stdout == ""
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{docker.port}/_ping", timeout=5)
    until(lambda: docker.log.read_text().count("a client of docker_tcp was let go") >= 3)
    assert docker.out("ps", "-q") == ""


def test_new_certificates_at_a_reload(docker: Secure) -> None:
    """Who is at work stays at work; the next ones show what is wanted from now on."""
    name = docker.out("run", "-d", *NONE, "busybox", "sleep", "1000")
    follower = docker.docker_popen("exec", "-i", name, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert follower.stdin is not None
    assert follower.stdout is not None
    follower.stdin.write(b"before\n")
    follower.stdin.flush()
    assert follower.stdout.readline() == b"before\n"
    new = Certificates(docker.certificates.place / "new")
    for made, kept in zip(new.sign("server", "IP:127.0.0.1"), ("server.crt", "server.key"), strict=True):
        (docker.certificates.place / kept).write_bytes(made.read_bytes())
    old = docker.certificates.bundle.read_bytes()
    docker.certificates.bundle.write_bytes(new.bundle.read_bytes())
    os.kill(docker.pid, signal.SIGHUP)
    until(lambda: "settings are read again" in docker.log.read_text())
    assert docker.docker("ps", check=False).returncode != 0
    place = docker.client("again", new)
    assert docker.out("ps", "-q", "--no-trunc", env={"DOCKER_CERT_PATH": str(place)}) == name
    follower.stdin.write(b"after\n")
    follower.stdin.close()
    assert follower.stdout.read() == b"after\n"
    assert follower.wait(10) == 0
    docker.certificates.bundle.write_bytes(old + b"-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n")
    os.kill(docker.pid, signal.SIGHUP)
    until(lambda: "settings stay as they were" in docker.log.read_text())
    assert docker.out("ps", "-q", "--no-trunc", env={"DOCKER_CERT_PATH": str(place)}) == name
    docker.docker("rm", "-f", name, env={"DOCKER_CERT_PATH": str(place)})


def test_what_is_measured(docker: Secure) -> None:
    """Calls of both faces, pulls and failures, as Prometheus reads them."""
    docker.docker("run", "--rm", *NONE, "busybox", "true")
    docker.docker("pull", "127.0.0.1:1/none", check=False)
    docker.docker("inspect", "nothing", check=False)
    with grpc.insecure_channel(f"unix://{docker.cri}") as channel:
        Stub(channel, "RuntimeService").Version(api.VersionRequest(), timeout=10)
    text = docker.get("/metrics").body.decode()
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert found['wherry_cri_calls_total{method="Version",code="OK"}'] == 1
    assert found['wherry_image_pulls_total{face="docker",code="unavailable"}'] == 1
    assert found['wherry_docker_requests_total{method="POST",route="/containers/create",code="201"}'] == 1
    assert found['wherry_errors_total{face="docker",kind="not_found"}'] >= 1
    assert found["wherry_images"] == 1
