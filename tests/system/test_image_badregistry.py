"""A registry that misbehaves by script: what a pull does about it, and what it never does."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from helpers.badregistry import QUICK, Handler, Server, ask, on, serving
from helpers.wherry import COMMAND, until
from image_support import INDEX, MANIFEST, Image, entry, needs_root, sha, tar
from wherry.errors import Kind, WherryError
from wherry.image.auth import Credentials
from wherry.image.hosts import Reach
from wherry.image.reference import Reference
from wherry.image.registry import RegistrySource
from wherry.image.store import ImageStore
from wherry.image.unpack import LayerLimits

pytestmark = [pytest.mark.root, needs_root]


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


def test_bearer_tokens(store, server, monkeypatch, tmp_path):
    login(monkeypatch, tmp_path, server.address)
    server.rules += [
        ask(f'Bearer realm="http://{server.address}/token",service="reg",scope="repository:a/b:pull"'),
        on("/token", lambda h: h.reply(200, b'{"token":"abc","expires_in":300}')),
    ]
    pull(store, server)
    (asked,) = server.requests("/token")
    assert asked["Authorization"].startswith("Basic ")
    path = next(path for _, path, _ in server.log if path.startswith("/token"))
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
        assert not [headers for _, _, headers in other.log if "Authorization" in headers]


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
        assert not [headers for _, _, headers in other.log if "Authorization" in headers]


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


# ---- bombs


def manifest_is(server: Server, document: object, media_type: str = MANIFEST) -> None:
    """What the tag leads to."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    server.image.blobs[sha(data)] = data
    server.rules[:] = [on("/manifests/1", lambda h: h.reply(200, data, {"Content-Type": media_type}))]


def test_json_that_is_nested_too_deep(store, server):
    manifest_is(server, b'{"schemaVersion":2,"layers":' + b"[" * 900_000 + b"]" * 900_000 + b"}")
    refused(store, server, "not JSON|recursion", Kind.INVALID)


@pytest.mark.parametrize("count", [501, 20_000])
def test_more_layers_than_an_overlay_takes(store, server, image, count):
    """10^6 would not fit into the 4 MiB of a manifest: that is the endless manifest."""
    document = {**image.manifest_json, "layers": [{"mediaType": "x", "digest": sha(b""), "size": 0}] * count}
    manifest_is(server, document)
    refused(store, server, "at most 500", Kind.INVALID)


def test_a_million_layers(store, server, image):
    manifest_is(server, {**image.manifest_json, "layers": [image.layers[0]] * 1_000_000})
    refused(store, server, "more than", Kind.INVALID)


def test_an_index_that_goes_on_and_on(store, server, image):
    document, digests = image.manifest_json, []
    for depth in range(6):
        data = json.dumps(document).encode()
        kind = INDEX if depth else MANIFEST
        server.image.blobs[sha(data)] = data
        digests.append(sha(data))
        item = {"mediaType": kind, "digest": sha(data), "size": len(data), "platform": image.platform}
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [item]}
    indexes = [on(f"/manifests/{d}", lambda h, d=d: h.reply(200, server.image.blobs[d], {"Content-Type": INDEX}))
               for d in digests[1:]]  # fmt: skip
    manifest_is(server, document, INDEX)
    server.rules += indexes
    refused(store, server, "nested deeper", Kind.INVALID)
    with pytest.raises(WherryError, match="nested deeper"):
        store.pull(f"{server.address}/a/b:1", all_platforms=True)


def test_an_index_that_names_itself(store, server, image):
    """A digest cannot be in what it is of: whoever serves such a thing lies about one of them."""
    item = {"mediaType": INDEX, "digest": sha(b"me"), "size": 300, "platform": image.platform}
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item]}).encode()
    server.rules.append(on("/manifests/", lambda h: h.reply(200, data, {"Content-Type": INDEX})))
    refused(store, server, "instead of", Kind.INVALID)


def test_a_layer_that_inflates_without_end(server, tmp_path, helper, monkeypatch):
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    limited = ImageStore(str(tmp_path / "root"), helper=helper, limits=LayerLimits(total=1 << 20))
    server.image = Image(tar(entry("zeros", bytes(50 << 20))))
    refused(limited, server, "larger|more than|exceeds", Kind.INVALID)


@pytest.mark.parametrize(("document", "words"), [
    ({"artifactType": "application/spdx+json", "config": "application/vnd.oci.empty.v1+json"}, "spdx"),
    ({"config": "application/vnd.cncf.helm.config.v1+json"}, "helm"),
])  # fmt: skip
def test_an_artifact_is_no_image(store, server, image, document, words):
    changed = {**image.manifest_json, "config": {**image.config, "mediaType": document["config"]}}
    manifest_is(server, {**changed, **{k: v for k, v in document.items() if k != "config"}})
    error = refused(store, server, f"is an artifact .*{words}", Kind.UNSUPPORTED)
    assert "oras" in error.hint
    assert not server.requests("/blobs/")
    with pytest.raises(WherryError, match="is an artifact"):
        store.pull(f"{server.address}/a/b:1", all_platforms=True)
    assert store.list() == []


@pytest.mark.parametrize("kind", [
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
])  # fmt: skip
def test_foreign_layers_are_refused_with_the_reason(store, server, image, kind):
    layer = {**image.layers[0], "mediaType": kind, "urls": ["http://192.0.2.1/layer"]}
    manifest_is(server, {**image.manifest_json, "layers": [layer]})
    refused(store, server, "is foreign", Kind.UNSUPPORTED)
    assert not server.requests("/blobs/")


@pytest.mark.parametrize(("wrong", "words"), [(-1, "longer than"), (1, "has .* bytes of blob")])
def test_wrong_size_in_the_manifest(store, server, image, wrong, words):
    layer = {**image.layers[0], "size": image.layers[0]["size"] + wrong}
    manifest_is(server, {**image.manifest_json, "layers": [layer]})
    refused(store, server, words, Kind.INVALID)
    assert len(server.requests(layer["digest"])) == 1


# ---- waiting


@pytest.mark.parametrize("form", ["1", "date"])
def test_retry_after_is_waited_for(store, server, form):
    value = form if form != "date" else formatdate(time.time() + 2, usegmt=True)
    server.rules.append(on("/manifests/", lambda h: h.reply(429, headers={"Retry-After": value}), times=1))
    started = time.monotonic()
    pull(store, server)
    assert 0.9 < time.monotonic() - started < 5


def test_retry_after_that_nobody_waits_for(store, server):
    limit = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}'
    server.rules.append(on("/manifests/", lambda h: h.reply(429, limit, {"Retry-After": "21600"})))
    error = refused(store, server, "429 .*pull rate limit", Kind.UNAVAILABLE)
    assert "21600 seconds" in error.hint
    assert len(server.requests("/manifests/")) == 1


def test_a_redirect_that_would_tell_the_secret(store, server, image, monkeypatch, tmp_path):
    """To another host, to another port of this one, to a name of this one: each is another origin."""
    login(monkeypatch, tmp_path, server.address)
    with serving(image) as other:
        for n, host in enumerate((other.address, f"localhost:{other.server_port}")):
            server.rules[:] = [
                ask('Basic realm="x"'),
                on("/blobs/", lambda h, to=host: h.reply(307, headers={"Location": f"http://{to}{h.path}"})),
            ]
            ImageStore(f"{store.root}{n}", helper=store._helper).pull(f"{server.address}/a/b:1")
        assert len(other.log) >= 4
        assert not [headers for _, _, headers in other.log if "Authorization" in headers]


# ---- processes that die, and others at the same time


def test_kill_9_in_the_middle_and_on_from_there(store, server, tmp_path):
    server.image = image = Image(tar(entry("f", os.urandom(6 << 20))))
    digest, data = image.layers[0]["digest"], image.blobs[image.layers[0]["digest"]]
    half = threading.Event()

    def stop_half_way(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: 4 << 20])
        handler.wfile.flush()
        half.set()
        time.sleep(20)
        handler.close_connection = True

    server.rules.append(on(digest, stop_half_way, times=1))
    program = "import sys; from wherry.image.store import ImageStore; ImageStore(sys.argv[1]).pull(sys.argv[2])"
    child = subprocess.Popen([sys.executable, "-c", program, store.root, f"{server.address}/a/b:1"])
    partial = Path(store.root, "ingest", digest.replace(":", "-"))
    assert half.wait(20)
    until(lambda: partial.exists() and partial.stat().st_size == 4 << 20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert pull(store, server).names
    assert server.requests(digest)[-1]["Range"] == f"bytes={4 << 20}-"
    assert os.listdir(Path(store.root, "ingest")) == []


def test_two_pulls_at_once_fetch_a_blob_once(store, server, image):
    digest = image.layers[0]["digest"]

    def slowly(handler: Handler) -> None:
        time.sleep(0.5)
        handler.blob(image.blobs[digest])

    server.rules.append(on(digest, slowly))
    failures: list[WherryError] = []

    def one() -> None:
        try:
            ImageStore(store.root, helper=store._helper).pull(f"{server.address}/a/b:1")
        except WherryError as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(server.requests(digest)) == 1


# ---- mirrors


def mirrored(store: ImageStore, upstream: Server, mirror: Server, header: str = "") -> ImageStore:
    """The same store with a mirror before the registry."""
    place = Path(store.root).parent / "hosts.d" / upstream.address
    place.mkdir(parents=True)
    (place / "hosts.toml").write_text(
        f'server = "http://{upstream.address}"\n'
        f'[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]\nheader = {{{header}}}\n'
    )
    ImageStore.reach = Reach(str(place.parent), patience=QUICK)  # the fixture puts it back
    return store


def test_a_mirror_is_asked_first_and_told_whose_images(store, server, image):
    with serving(image) as mirror:
        pull(mirrored(store, server, mirror, 'x-team = "blue"'), server)
        assert server.log == []
        assert all(f"ns={server.address.replace(':', '%3A')}" in path for _, path, _ in mirror.log)
        assert {headers.get("x-team") for _, _, headers in mirror.log} == {"blue"}


@pytest.mark.parametrize("fault", ["404", "503", "wrong", "gone", "truncated", "401"])
def test_a_mirror_that_fails_is_left_for_the_registry(store, server, monkeypatch, tmp_path, fault):
    login(monkeypatch, tmp_path, server.address)
    server.rules.append(ask('Basic realm="x"'))
    image, digest = server.image, server.image.layers[0]["digest"]
    data = image.blobs[digest]
    with serving(image) as mirror:
        mirror.rules.append({
            "404": on("/v2/a/", lambda h: h.reply(404)),
            "503": on("/v2/a/", lambda h: h.reply(503)),
            "wrong": on(digest, lambda h: h.reply(200, b"x" * len(image.blobs[digest]))),
            "gone": on("/v2/a/", lambda h: h.break_off()),
            "truncated": on(digest, lambda h: h.reply(200, data[:100_000], length=len(data))),
            "401": on("/v2/a/", lambda h: h.reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})),
        }[fault])  # fmt: skip
        pull(mirrored(store, server, mirror), server)
        assert not [headers for _, _, headers in mirror.log if "Authorization" in headers]
        assert server.requests(digest)
        if fault == "truncated":
            assert server.requests(digest)[-1]["Range"] == "bytes=100000-"


def test_when_all_fail_each_is_named(store, server, image):
    with serving(image) as mirror:
        mirror.rules.append(on("/v2/a/", lambda h: h.reply(403)))
        server.rules.append(on("/v2/a/", lambda h: h.reply(404)))
        error = refused(mirrored(store, server, mirror), server, "not found", Kind.NOT_FOUND)
        assert mirror.address in error.hint
        assert server.address in error.message


def test_a_mirrors_header_is_for_the_mirror_alone(store, server, image):
    with serving(image) as mirror:
        mirror.rules.append(
            on("/blobs/", lambda h: h.reply(307, headers={"Location": f"http://{server.address}{h.path}"}))
        )
        pull(mirrored(store, server, mirror, 'authorization = "Bearer secret"'), server)
        assert len(server.log) == 2
        assert {headers.get("authorization") for _, _, headers in mirror.log} == {"Bearer secret"}
        assert not [headers for _, _, headers in server.log if "Bearer" in str(headers)]


def test_ctrl_c_ends_waiting_for_another_pull(store, server, image, tmp_path):
    digest = image.layers[0]["digest"]
    partial = Path(store.root, "ingest", digest.replace(":", "-"))
    partial.parent.mkdir(parents=True)
    with open(partial, "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        env = {**os.environ, "WHERRY_ROOT": store.root, "WHERRY_STATE": str(tmp_path / "state")}
        command = [*COMMAND, "pull", f"{server.address}/a/b:1"]
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert child.stdout is not None
        assert child.stdout.readline().endswith("Pulling fs layer\n")
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=5)
        assert child.returncode == 130
    pull(store, server)


# ---- tags


def test_tags_come_page_by_page(store, server):
    def page(handler: Handler) -> None:
        last = int(parse_qs(urlsplit(handler.path).query).get("last", ["0"])[0])
        body = {"tags": [f"t{last}", f"t{last + 1}", "no tag", "../x", 5, None]}
        link = {"Link": f'</v2/a/b/tags/list?last={last + 2}&n=2>; rel="next"'} if last < 6 else {}
        handler.reply(200, json.dumps(body).encode(), link)

    server.rules.append(on("/tags/list", page))
    assert store.tags(f"{server.address}/a/b") == [f"t{n}" for n in range(8)]


def test_tags_without_end_and_none_at_all(store, server):
    same = {"Link": '</v2/a/b/tags/list?last=1>; rel="next"'}
    server.rules.append(on("/tags/list", lambda h: h.reply(200, b'{"tags":["t"]}', same)))
    with pytest.raises(WherryError, match="or 100 pages"):
        store.tags(f"{server.address}/a/b")
    server.rules[:] = [on("/tags/list", lambda h: h.reply(200, b'{"tags":null}'))]
    assert store.tags(f"{server.address}/a/b") == []


# ---- an end that does not wait


def test_one_layer_s_failure_ends_the_others_at_once(store, server, monkeypatch):
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK._replace(read=30, connect=30)))
    server.image = image = Image(tar(entry("f", b"x")), tar(entry("g", b"y")))
    server.rules += [
        on(image.layers[0]["digest"], lambda _h: time.sleep(60)),
        on(image.layers[1]["digest"], lambda h: h.reply(404)),
    ]
    started = time.monotonic()
    refused(store, server, "not found", Kind.NOT_FOUND)
    assert time.monotonic() - started < 5


def test_ctrl_c_ends_at_once_and_keeps_what_came(store, server, tmp_path):
    server.image = image = Image(tar(entry("f", os.urandom(3 << 20))))
    digest, data = image.layers[0]["digest"], image.blobs[image.layers[0]["digest"]]

    def stall(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: 1 << 20])
        handler.wfile.flush()
        time.sleep(60)

    server.rules.append(on(digest, stall, times=1))
    env = {**os.environ, "WHERRY_ROOT": store.root, "WHERRY_STATE": str(tmp_path / "state")}
    command = [*COMMAND, "pull", f"{server.address}/a/b:1"]
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    partial = Path(store.root, "ingest", digest.replace(":", "-"))
    until(lambda: partial.exists() and partial.stat().st_size == 1 << 20)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=5)[0]
    assert child.returncode == 130
    assert "Traceback" not in said
    pull(store, server)
    assert server.requests(digest)[-1]["Range"] == f"bytes={1 << 20}-"
