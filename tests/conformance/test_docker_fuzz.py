"""Requests that schemathesis makes of docs/api.yaml, sound ones and unsound ones, against a running wherryd: it answers
each with a status that is declared for it, never with a failure of its own, and has the declared shape.

WHERRY_DOCKER_FUZZ: requests for each operation (12).
"""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from helpers.dockerapi import DockerD

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
transport = pytest.importorskip("docker.transport", reason="docker-py is not installed")
requests = pytest.importorskip("requests")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

COUNT = int(os.environ.get("WHERRY_DOCKER_FUZZ", "12"))
DESCRIPTION = Path(__file__).resolve().parents[2] / "docs" / "api.yaml"
HOST = "http://localhost"
#: what there is, so that not every name is one of nothing
KNOWN = {"id": ("fuzzed", "fuzzed-net"), "name": ("busybox", "kept:1", "fuzzed-volume")}
BESIDE = {"Image": "busybox", "Container": "fuzzed", "container": "fuzzed", "names": ["busybox"], "Driver": "",
          "IPAM": {}, "repo": "kept"}  # in bodies and queries
REGISTRY = "127.0.0.1:1"  # where nobody listens
#: their answers last as long as the container or the client: only of names that nobody has
ENDLESS = ("/wait", "/attach", "/attach/ws", "/logs", "/stats")


@schemathesis.serializer("application/x-tar")  # type: ignore[untyped-decorator]
def _tar(_context: object, value: object) -> bytes:
    """What is no archive at all, or one whose Dockerfile can be built."""
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    if zlib.crc32(raw) % 2:
        return raw
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(text := f"FROM {REGISTRY}/kept\nLABEL a=b\n".encode())
        tar.addfile(member, io.BytesIO(text))
    return out.getvalue()


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str) -> Iterator[DockerD]:
    with DockerD(test_id, tmp_path) as made:
        made.load(busybox)
        yield made


def _seeded(docker: DockerD) -> None:
    """What an operation before this one may have removed."""
    none = {"HostConfig": {"NetworkMode": "none"}}
    docker.post("/images/busybox/tag?repo=kept&tag=1")
    docker.post(f"/images/busybox/tag?repo={REGISTRY}/kept")
    docker.post("/containers/create?name=fuzzed", {"Image": "busybox", "Cmd": ["true"], **none})
    docker.post("/networks/create", {"Name": "fuzzed-net", "IPAM": {"Config": [{"Subnet": "10.214.9.0/24"}]}})
    docker.post("/volumes/create", {"Name": "fuzzed-volume"})


def _aimed(case: Any) -> None:
    """Half of the names become those of things. No registry of the world is asked, whose name takes long to be looked
    up where there is no network."""
    if case.path == "/auth" and isinstance(case.body, dict):
        case.body["serveraddress"] = f"{REGISTRY}{case.body.get('serveraddress') or ''}"
    if case.path == "/images/create" and isinstance(case.query, dict) and case.query.get("fromImage"):
        case.query["fromImage"] = f"{REGISTRY}/{case.query['fromImage']}"
    for place in (case.body, case.query):
        for key in BESIDE.keys() & set(place if isinstance(place, dict) else ()):
            if zlib.crc32(f"{key}{place}".encode("utf-8", "replace")) % 2:
                place[key] = BESIDE[key]
    for key, names in KNOWN.items():
        value = str(case.path_parameters.get(key, ""))
        if value and case.path.startswith("/distribution/"):
            case.path_parameters[key] = f"{REGISTRY}/{value}"
            continue
        if value and case.path.endswith("/push"):
            case.path_parameters[key] = f"{REGISTRY}/kept"
            continue
        chosen = zlib.crc32(value.encode("utf-8", "replace"))
        if value and case.path.endswith(ENDLESS):
            case.path_parameters[key] = f"nobody{value}"  # a digit alone may be the beginning of an id
        elif value and chosen % 2:
            case.path_parameters[key] = names[chosen // 2 % len(names)]


def _wrong(case: Any, session: Any) -> str:
    """What is wrong with the answer to a request; "" for nothing."""
    answer = case.call(base_url=HOST + "/v1.51", session=session, timeout=20)
    declared = case.operation.definition.raw["responses"]
    if str(answer.status_code) not in declared:
        return f"{answer.status_code} is not declared: {answer.text[:300]}"
    if answer.status_code >= 400 and case.method != "HEAD" and not isinstance(answer.json().get("message"), str):
        return f"a failure without a message: {answer.text[:300]}"
    return ""


def _fuzz(operation: Any, session: Any) -> str:
    found: list[str] = []

    @seed(9)
    @settings(max_examples=COUNT, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy())
    def one(case: Any) -> None:
        _aimed(case)
        if wrong := _wrong(case, session):
            found.append(f"{wrong}\n    {case.as_curl_command()[:600]}")

    one()
    return f"{operation.label}: {found[0]}" if found else ""


def test_every_operation(docker: DockerD) -> None:
    session = requests.Session()
    session.mount(HOST, transport.UnixHTTPAdapter(f"http+unix://{docker.socket}", timeout=20))
    wrong = []
    for result in schemathesis.openapi.from_path(str(DESCRIPTION)).get_all_operations():
        operation = result.ok()
        if operation.path != "/events":  # endless without `until`
            _seeded(docker)
            wrong.append(_fuzz(operation, session))
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert docker.get("/_ping").status == 200
