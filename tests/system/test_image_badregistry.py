"""A registry that misbehaves by script: what a pull does about it, and what it never does."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from image_support import INDEX, MANIFEST, Image, entry, helper_factory, needs_root, sha, tar
from wherry.errors import Kind, WherryError
from wherry.image.auth import Credentials
from wherry.image.hosts import Reach
from wherry.image.reference import Reference
from wherry.image.registry import RegistrySource
from wherry.image.store import ImageStore
from wherry.image.transport import Patience

pytestmark = [pytest.mark.root, needs_root]
QUICK = Patience(connect=2, read=1, document=3, window=1, window_bytes=4096, attempts=3, pause=0.01, longest_pause=0.1)
Reply = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Serves the blobs of server.image; server.rules get every request first and may answer it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.log.append((self.path, dict(self.headers)))
        for rule in server.rules:
            if rule(self):
                return
        if self.path == "/v2/":
            self.reply(200, b"{}")
            return
        match = re.fullmatch(r"/v2/.+/(manifests|blobs)/(.+)", urlsplit(self.path).path)
        data = server.image.blobs.get(match[2]) if match else None
        if match and match[2] == "1":
            data = server.image.manifest
        if data is None:
            self.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown \\u001b[31m"}]}')
        elif match[1] == "manifests":
            self.reply(200, data, {"Content-Type": MANIFEST})
        else:
            self.blob(data)

    do_POST = do_GET

    def blob(self, data: bytes) -> None:
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span:
            start = int(span[1])
            self.reply(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.reply(200, data)

    def reply(
        self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None
    ) -> bool:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)
            self.wfile.flush()
        if length is not None:
            self.close_connection = True
        return True

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, image: Image) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.image = image
        self.rules: list[Reply] = []
        self.log: list[tuple[str, dict[str, str]]] = []
        self.address = f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        return

    def requests(self, part: str) -> list[dict[str, str]]:
        return [headers for path, headers in self.log if part in path]


@contextlib.contextmanager
def serving(image: Image) -> Iterator[Server]:
    server = Server(image)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    return helper_factory(tmp_path_factory.mktemp("helper"))


@pytest.fixture
def image():
    return Image(tar(entry("f", os.urandom(400_000))))


@pytest.fixture
def server(image):
    with serving(image) as running:
        yield running


@pytest.fixture
def store(tmp_path, helper, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    return ImageStore(str(tmp_path / "root"), helper=helper)


def pull(store: ImageStore, server: Server):
    return store.pull(f"{server.address}/a/b:1")


def refused(store: ImageStore, server: Server, words: str, kind: Kind) -> WherryError:
    with pytest.raises(WherryError, match=words) as caught:
        pull(store, server)
    assert caught.value.kind is kind, caught.value
    assert store.list() == []
    layers = Path(store.root, "layers")
    assert not layers.is_dir() or not os.listdir(layers)
    return caught.value


def on(part: str, reply: Callable[[Handler], object], times: int = 10**6) -> Reply:
    """A rule for paths that contain `part`, for some times."""
    left = [times]

    def rule(handler: Handler) -> bool:
        if part not in handler.path or left[0] <= 0:
            return False
        left[0] -= 1
        reply(handler)
        return True

    return rule


def test_the_control_pulls(store, server, image):
    assert pull(store, server).id == image.config["digest"]


@pytest.mark.parametrize("which", ["config", "layer"])
def test_wrong_bytes_are_not_believed(store, server, image, which):
    digest = (image.config if which == "config" else image.layers[0])["digest"]
    server.rules.append(on(digest, lambda h: h.reply(200, b"x" * len(image.blobs[digest]))))
    refused(store, server, "has the digest", Kind.INVALID)
    assert os.listdir(os.path.join(store.root, "ingest")) == []


def test_longer_than_said(store, server, image):
    digest = image.layers[0]["digest"]
    server.rules.append(on(digest, lambda h: h.reply(200, image.blobs[digest] + b"more")))
    refused(store, server, "longer than", Kind.INVALID)


def test_a_truncated_blob_is_resumed(store, server, image):
    digest = image.layers[0]["digest"]
    data = image.blobs[digest]
    server.rules.append(on(digest, lambda h: h.reply(200, data[:100_000], length=len(data)), times=1))
    pull(store, server)
    assert [h.get("Range") for h in server.requests(digest)] == [None, "bytes=100000-"]


def test_always_truncated_ends_and_keeps_the_part(store, server, image):
    digest = image.layers[0]["digest"]
    data = image.blobs[digest]
    server.rules.append(on(digest, lambda h: h.reply(200, data[:50_000], length=len(data))))
    refused(store, server, "tried 3 times", Kind.UNAVAILABLE)
    server.rules.clear()
    pull(store, server)
    assert server.requests(digest)[-1]["Range"] == "bytes=50000-"


def test_a_poisoned_partial_is_fetched_again(store, server, image):
    digest = image.layers[0]["digest"]
    ingest = Path(store.root, "ingest")
    ingest.mkdir(parents=True)
    (ingest / digest.replace(":", "-")).write_bytes(b"poison" * 1000)
    pull(store, server)
    assert [h.get("Range") for h in server.requests(digest)] == ["bytes=6000-", None]


@pytest.mark.parametrize("answer", ["ignored", "416", "other"])
def test_servers_without_ranges(store, server, image, answer):
    digest = image.layers[0]["digest"]
    data = image.blobs[digest]
    first = on(digest, lambda h: h.reply(200, data[:70_000], length=len(data)), times=1)
    second = {
        "ignored": lambda h: h.reply(200, data),
        "416": lambda h: h.reply(416),
        "other": lambda h: h.reply(206, data[5:], {"Content-Range": f"bytes 5-{len(data) - 1}/{len(data)}"}),
    }[answer]
    server.rules += [first, on(digest, second, times=1)]
    pull(store, server)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_busy_servers_are_asked_again(store, server, status):
    server.rules.append(on("/manifests/", lambda h: h.reply(status, headers={"Retry-After": "0"}), times=2))
    pull(store, server)
    assert len(server.requests("/manifests/")) == 3


def test_a_server_that_stays_busy(store, server):
    server.rules.append(on("/manifests/", lambda h: h.reply(503)))
    refused(store, server, "answers 503", Kind.UNAVAILABLE)


def test_404_and_403_are_not_repeated_and_words_are_harmless(store, server, image):
    server.image = Image(tar())
    server.rules.append(
        on("/manifests/1", lambda h: h.reply(404, b'{"errors":[{"code":"X","message":"\\u001b[31mred"}]}'))
    )
    error = refused(store, server, "not found", Kind.NOT_FOUND)
    assert "\x1b" not in error.message
    assert len(server.requests("/manifests/")) == 1
    server.rules[:] = [on("/manifests/", lambda h: h.reply(403))]
    refused(store, server, "denies access", Kind.DENIED)


@pytest.mark.parametrize("where", ["manifests", "blobs"])
def test_a_server_that_stalls(store, server, where):
    def stall(handler: Handler) -> None:
        handler.reply(200, b"{", length=1000) if False else handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        time.sleep(1.6)
        handler.close_connection = True

    server.rules.append(on(f"/{where}/", stall))
    started = time.monotonic()
    refused(store, server, "timed out|Read timed out|broke off", Kind.UNAVAILABLE)
    assert time.monotonic() - started < 15


def test_a_server_that_drips(store, server, image):
    digest = image.layers[0]["digest"]

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image.blobs[digest])))
        handler.end_headers()
        with contextlib.suppress(OSError):
            for byte in image.blobs[digest][:40]:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.1)
        handler.close_connection = True

    server.rules.append(on(digest, drip, times=1))
    pull(store, server)


def test_an_endless_manifest(store, server):
    server.rules.append(on("/manifests/", lambda h: h.reply(200, b" " * (5 << 20), {"Content-Type": MANIFEST})))
    refused(store, server, "more than", Kind.INVALID)


@pytest.mark.parametrize("header", [INDEX, "application/vnd.docker.distribution.manifest.list.v2+json", "text/html"])
def test_header_and_body_must_agree(store, server, image, header):
    server.rules.append(on("/manifests/", lambda h: h.reply(200, image.manifest, {"Content-Type": header})))
    refused(store, server, "disagree or are unknown", Kind.INVALID)


def test_a_manifest_that_is_also_an_index(store, server, image):
    both = json.dumps({**image.manifest_json, "mediaType": "", "manifests": []}).encode()
    server.rules.append(on("/manifests/", lambda h: h.reply(200, both, {"Content-Type": "application/json"})))
    refused(store, server, "both a manifest and an index", Kind.INVALID)


def test_the_descriptor_of_an_index_must_agree(store, server, image):
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {**image.descriptor, "mediaType": INDEX, "platform": image.platform}]}).encode()  # fmt: skip
    server.rules.append(on("/manifests/1", lambda h: h.reply(200, index, {"Content-Type": INDEX})))
    refused(store, server, "disagree", Kind.INVALID)


def test_another_manifest_than_the_digest_asked_for(store, server, image):
    other = Image(tar(entry("evil", b"")))
    server.rules.append(on("/manifests/sha256", lambda h: h.reply(200, other.manifest, {"Content-Type": MANIFEST})))
    with pytest.raises(WherryError, match="instead of"):
        store.pull(f"{server.address}/a/b@{sha(image.manifest)}")
    server.rules[:] = [on("/manifests/1", lambda h: h.reply(200, image.manifest, {
        "Content-Type": MANIFEST, "Docker-Content-Digest": sha(b"other")}))]  # fmt: skip
    refused(store, server, "instead of", Kind.INVALID)


def test_redirects_to_nowhere_and_in_circles(store, server):
    server.rules.append(on("/manifests/", lambda h: h.reply(302, headers={"Location": h.path})))
    refused(store, server, "redirects in a loop", Kind.UNAVAILABLE)
    for target in ("file:///etc/passwd", "http://192.0.2.1/x", "gopher://x/"):
        server.rules[:] = [on("/manifests/", lambda h, to=target: h.reply(307, headers={"Location": to}))]
        refused(store, server, "not http or https|plain http", Kind.INVALID if "192" not in target else Kind.DENIED)


# ---- credentials


def login(monkeypatch, tmp_path, address: str) -> None:
    (tmp_path / "docker").mkdir(exist_ok=True)
    auth = base64.b64encode(b"anna:s3cret").decode()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def ask(scheme: str) -> Callable[[Handler], bool]:
    """A rule: 401 without the right Authorization."""

    def rule(handler: Handler) -> bool:
        if not handler.path.startswith("/v2/a/"):
            return False
        if handler.headers.get("Authorization", "").split(" ")[0] == scheme.split(" ", maxsplit=1)[0]:
            return False
        return handler.reply(401, headers={"WWW-Authenticate": scheme})

    return rule


def test_bearer_tokens(store, server, monkeypatch, tmp_path):
    login(monkeypatch, tmp_path, server.address)
    server.rules += [
        ask(f'Bearer realm="http://{server.address}/token",service="reg",scope="repository:a/b:pull"'),
        on("/token", lambda h: h.reply(200, b'{"token":"abc","expires_in":300}')),
    ]
    pull(store, server)
    (asked,) = server.requests("/token")
    assert asked["Authorization"].startswith("Basic ")
    path = next(path for path, _ in server.log if path.startswith("/token"))
    assert parse_qs(urlsplit(path).query) == {"service": ["reg"], "scope": ["repository:a/b:pull"]}
    assert {h.get("Authorization") for h in server.requests("/blobs/")} == {"Bearer abc"}


def test_an_expired_token_is_renewed(store, server):
    tokens = iter(range(1000))

    def gate(handler: Handler) -> bool:
        wanted = "Bearer t0" if "/manifests/" in handler.path else "Bearer t1"
        if handler.path.startswith("/v2/a/") and handler.headers.get("Authorization") != wanted:
            realm = f'Bearer realm="http://{server.address}/token",error="invalid_token"'
            return handler.reply(401, headers={"WWW-Authenticate": realm})
        return False

    server.rules += [
        gate,
        on("/token", lambda h: h.reply(200, json.dumps({"access_token": f"t{next(tokens)}"}).encode())),
    ]
    pull(store, server)


def test_credentials_stay_with_their_origin(store, server, image, monkeypatch, tmp_path):
    login(monkeypatch, tmp_path, server.address)
    with serving(image) as other:
        server.rules += [
            ask('Basic realm="x"'),
            on("/blobs/", lambda h: h.reply(307, headers={"Location": f"http://{other.address}{h.path}"})),
        ]
        pull(store, server)
        assert len(other.log) >= 2
        assert not [headers for _, headers in other.log if "Authorization" in headers]


def test_credentials_go_to_no_foreign_realm(store, server, image, monkeypatch, tmp_path):
    login(monkeypatch, tmp_path, server.address)
    with serving(image) as other:
        realm = f"http://localhost:{other.server_port}/token"
        server.rules += [ask(f'Bearer realm="{realm}"')]
        refused(store, server, "may not see their credentials", Kind.DENIED)
        assert other.log == []


def test_a_redirected_token_request_loses_the_secret(store, server, image, monkeypatch, tmp_path):
    login(monkeypatch, tmp_path, server.address)
    with serving(image) as other:
        other.rules.append(on("/token", lambda h: h.reply(200, b'{"token":"abc"}')))
        server.rules += [
            ask(f'Bearer realm="http://{server.address}/token"'),
            on("/token", lambda h: h.reply(302, headers={"Location": f"http://{other.address}/token"})),
        ]
        pull(store, server)
        assert not [headers for _, headers in other.log if "Authorization" in headers]


def test_identity_tokens_are_exchanged(server, image):
    forms: list[bytes] = []

    def token(handler: Handler) -> None:
        forms.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        handler.reply(200, b'{"access_token":"abc"}')

    server.rules += [ask(f'Bearer realm="http://{server.address}/token",service="s"'), on("/token", token)]
    reach = Reach(patience=QUICK, credentials=lambda _name: Credentials("<token>", "refresh", identity=True))
    source = RegistrySource(Reference.parse(f"{server.address}/a/b:1"), reach)
    assert source.top().data == image.manifest
    source.close()
    assert parse_qs(forms[0].decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh"],
        "service": ["s"],
        "scope": ["repository:a/b:pull"],
        "client_id": ["wherry"],
    }


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token":5}', b'{"token":"a\\r\\nX-Evil: 1"}', b'{"token":""}'])
def test_tokens_that_are_none(store, server, answer):
    server.rules += [ask(f'Bearer realm="http://{server.address}/token"'), on("/token", lambda h: h.reply(200, answer))]
    refused(store, server, "no token", Kind.INVALID)


def test_endless_401(store, server):
    server.rules += [
        on(
            "/v2/a/",
            lambda h: h.reply(401, headers={"WWW-Authenticate": f'Bearer realm="http://{server.address}/token"'}),
        ),
        on("/token", lambda h: h.reply(200, b'{"token":"abc"}')),
    ]
    refused(store, server, "denies access", Kind.DENIED)
    assert len(server.log) < 12


def test_no_server_at_all(store):
    with pytest.raises(WherryError) as caught:
        store.pull("127.0.0.1:1/a/b:1")
    assert caught.value.kind is Kind.UNAVAILABLE
