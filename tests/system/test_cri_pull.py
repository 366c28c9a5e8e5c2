"""Pulls that a kubelet asks for with credentials: each form of them reaches the registry of the image, and nobody else.

A registry on loopback tells what it was shown.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from helpers.badregistry import Handler, Server, ask, on, serving
from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, code_of
from image_support import Image, entry, tar
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root
BASIC = "Basic " + base64.b64encode(b"anna:s3cret").decode()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Image(tar(entry("f", os.urandom(1000))))) as running:
        yield running


@pytest.fixture
def kubelet(
    test_id: str, tmp_path: Path, private_network: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kubelet]:
    """On a wherryd whose user has credentials of his own, for every registry."""
    docker = tmp_path / "docker"
    docker.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(docker))
    with Wherryd(test_id, tmp_path) as wherryd:
        yield Kubelet(wherryd, "", tmp_path / "logs")


def pull(kubelet: Kubelet, server: Server, **auth: str) -> str:
    spec = api.ImageSpec(image=f"{server.address}/a/b:1")
    return str(kubelet("PullImage", image=spec, auth=api.AuthConfig(**auth)).image_ref)


def shown(server: Server, path: str = "/v2/") -> set[str]:
    """The Authorization headers of requests below a path."""
    return {headers.get("Authorization", "") for headers in server.requests(path)}


@pytest.mark.parametrize("address", ["", "here"])
@pytest.mark.parametrize("form", ["words", "auth"])
def test_a_name_and_a_password(kubelet: Kubelet, server: Server, form: str, address: str) -> None:
    server.rules.append(ask('Basic realm="x"'))
    auth = {"words": {"username": "anna", "password": "s3cret"}, "auth": {"auth": BASIC.removeprefix("Basic ")}}[form]
    pull(kubelet, server, **auth, **({"server_address": server.address} if address else {}))
    assert shown(server, "/blobs/") == {BASIC}


def test_a_registry_token_is_shown_as_it_is(kubelet: Kubelet, server: Server) -> None:
    server.rules.append(ask(f'Bearer realm="http://{server.address}/token",service="reg"'))
    pull(kubelet, server, registry_token="tok")
    assert shown(server, "/blobs/") == {"Bearer tok"}
    assert not server.requests("/token")


def test_an_identity_token_is_exchanged(kubelet: Kubelet, server: Server) -> None:
    def exchange(handler: Handler) -> bool:
        wanted = b"refresh_token=ident"
        return handler.reply(200 if wanted in handler.body() else 403, b'{"access_token":"abc"}')

    server.rules += [ask(f'Bearer realm="http://{server.address}/token",service="reg"'), on("/token", exchange)]
    pull(kubelet, server, username="anna", identity_token="ident")
    assert shown(server, "/blobs/") == {"Bearer abc"}


def test_credentials_of_another_registry_are_not_shown(kubelet: Kubelet, server: Server) -> None:
    server.rules.append(ask('Basic realm="x"'))
    with code_of(grpc.StatusCode.PERMISSION_DENIED):
        pull(kubelet, server, username="anna", password="s3cret", server_address="https://registry.example.com")
    assert shown(server) == {""}


def test_what_the_nodes_user_has_stored_is_not_a_pods(kubelet: Kubelet, server: Server) -> None:
    auth = BASIC.removeprefix("Basic ")
    config = Path(os.environ["DOCKER_CONFIG"]) / "config.json"
    config.write_text(json.dumps({"auths": {server.address: {"auth": auth}}}))
    server.rules.append(ask('Basic realm="x"'))
    with code_of(grpc.StatusCode.PERMISSION_DENIED):
        pull(kubelet, server)
    assert shown(server) == {""}
    kubelet.wherryd.wherry("pull", f"{server.address}/a/b:1")  # he himself may
    assert BASIC in shown(server)


def test_no_secret_is_in_the_log(test_id: str, tmp_path: Path, server: Server, private_network: object) -> None:
    with Wherryd(test_id, tmp_path, 'log_level = "debug"\n') as wherryd:
        kubelet = Kubelet(wherryd, "", tmp_path)
        server.rules.append(ask('Basic realm="x"'))
        pull(kubelet, server, username="anna", password="s3cret")
        with code_of(grpc.StatusCode.INVALID_ARGUMENT):
            pull(kubelet, server, auth="s3cret")
        told = wherryd.log.read_text()
    assert "PullImage" in told
    assert "s3cret" not in told
    assert BASIC.removeprefix("Basic ") not in told
