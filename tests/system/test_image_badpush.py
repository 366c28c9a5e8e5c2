"""Pushes to a registry that misbehaves by script: what is sent again, what is not, and what the user is told."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from helpers.badregistry import QUICK, Handler, Server, ask, on, serving
from helpers.wherry import COMMAND
from image_support import Image, entry, needs_root, tar
from wherry.errors import Kind, WherryError
from wherry.image import upload as upload_module
from wherry.image.hosts import Reach
from wherry.image.store import ImageStore
from wherry.model import ProgressEvent

pytestmark = [pytest.mark.root, needs_root]
SIZE = 3_000_000
REFUSALS = {
    400: (Kind.INVALID, "refuses"), 403: (Kind.DENIED, "denies access"), 404: (Kind.NOT_FOUND, "not found"),
    405: (Kind.UNSUPPORTED, "not offer"), 409: (Kind.CONFLICT, "in conflict"), 418: (Kind.UNAVAILABLE, "answers 418"),
    500: (Kind.UNAVAILABLE, "answers 500"), 507: (Kind.EXHAUSTED, "no space"),
}  # fmt: skip


@pytest.fixture(scope="module")
def image():
    return Image(tar(entry("f", os.urandom(SIZE))), tar(entry("g", b"small")))


@pytest.fixture
def server(image):
    with serving(image) as running:
        running.empty = True
        yield running


@pytest.fixture
def store(tmp_path, helper, image, server, monkeypatch):
    """The image is in it, named for the registry; what is large goes by chunks of 1 MiB."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    monkeypatch.setattr(upload_module, "_SMALL", 100_000)
    monkeypatch.setattr(upload_module, "_CHUNK", 1 << 20)
    store = ImageStore(str(tmp_path / "root"), helper=helper)
    store.load(f"oci:{image.layout(tmp_path / 'layout')}:latest")
    store.tag(image.config["digest"], f"{server.address}/a/b:1")
    return store


def push(store: ImageStore, server: Server, seen: list[ProgressEvent] | None = None):
    say = seen.append if seen is not None else lambda _event: None
    return list(store.push(f"{server.address}/a/b:1", say))


def arrived(server: Server, image: Image) -> bool:
    """Everything, as it was."""
    blobs = [image.config, *image.layers]
    there = all(server.uploaded.get(blob["digest"]) == image.blobs[blob["digest"]] for blob in blobs)
    return there and server.manifests["1"] == image.manifest


def refused(store: ImageStore, server: Server, words: str, kind: Kind) -> WherryError:
    with pytest.raises(WherryError, match=words) as caught:
        push(store, server)
    assert caught.value.kind is kind, caught.value
    assert server.manifests == {}, "a manifest names what is not there"
    return caught.value


def of_layer(server: Server, method: str) -> list[dict[str, str]]:
    """The large layer's requests: the only ones by PATCH, and of its session."""
    return server.requests("/blobs/uploads/", method)


def test_the_control_arrives(store, server, image):
    seen: list[ProgressEvent] = []
    (pushed,) = push(store, server, seen)
    assert arrived(server, image)
    assert pushed.descriptor.digest == image.descriptor["digest"]
    size, chunk = image.layers[0]["size"], 1 << 20
    spans = [f"{start}-{min(start + chunk, size) - 1}" for start in range(0, size, chunk)]
    assert [h["Content-Range"] for h in of_layer(server, "PATCH")] == spans
    assert [e.status for e in seen if image.layers[0]["digest"][7:].startswith(e.key)][-1] == "Pushed"
    order = [path for method, path, _ in server.log if method == "PUT"]
    assert "/manifests/1" in order[-1], "the name comes last"
    server.log.clear()
    seen.clear()
    push(store, server, seen)
    assert {event.status for event in seen} == {"Preparing", "Layer already exists"}
    assert {method for method, path, _ in server.log if "/blobs/" in path} == {"HEAD"}


def test_an_upload_that_breaks_half_way_goes_on_there(store, server, image):
    def half(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        server.sessions[name] += handler.body(300_000)
        handler.break_off()

    server.rules.append(on("/uploads/", half, times=1, method="PATCH"))
    push(store, server)
    assert arrived(server, image)
    assert [h["Content-Range"].partition("-")[0] for h in of_layer(server, "PATCH")][1] == "300000"


def test_an_answer_that_is_lost_costs_no_byte(store, server, image):
    def silent(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        server.sessions[name] += handler.body()
        handler.break_off()

    server.rules.append(on("/uploads/", silent, times=1, method="PATCH"))
    push(store, server)
    assert arrived(server, image)
    starts = [int(h["Content-Range"].partition("-")[0]) for h in of_layer(server, "PATCH")]
    assert starts[1] == 1 << 20


def test_bytes_of_a_broken_attempt_that_come_late_are_no_end(store, server, image):
    """The registry is still busy with what broke off when it is asked how far that is."""

    def half(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        server.sessions[name] += handler.body(300_000)
        handler.break_off()

    def late(handler: Handler) -> None:
        handler.upload()
        server.sessions[urlsplit(handler.path).path.rpartition("/")[2]] += b"late"

    server.rules += [
        on("/uploads/", half, times=1, method="PATCH"),
        on("/uploads/", late, times=1, method="GET"),
    ]
    push(store, server)
    assert arrived(server, image)


def test_a_lost_answer_to_the_end_is_found_to_have_arrived(store, server, image):
    def silent(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        data = server.sessions.pop(name) + handler.body()
        server.uploaded[parse_qs(urlsplit(handler.path).query)["digest"][0]] = data
        handler.break_off()

    server.rules.append(on("/uploads/", silent, times=3, method="PUT"))
    push(store, server)
    assert arrived(server, image)
    assert sum(int(h["Content-Length"]) for h in of_layer(server, "PATCH")) == image.layers[0]["size"]


def test_a_session_that_is_gone_begins_anew(store, server, image):
    lost = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown"}]}'
    server.rules.append(on("/uploads/", lambda h: h.reply(404, lost), times=1, method="PATCH"))
    push(store, server)
    assert arrived(server, image)
    server.uploaded.clear()
    server.manifests.clear()
    server.rules[:] = [on("/uploads/", lambda h: h.reply(404, lost), method="PATCH")]
    refused(store, server, "lost the upload .*BLOB_UPLOAD_UNKNOWN.*tried 3 times", Kind.UNAVAILABLE)


def test_a_server_that_always_breaks_off(store, server):
    server.rules.append(on("/uploads/", lambda h: h.break_off(), method="PATCH"))
    refused(store, server, "tried 3 times", Kind.UNAVAILABLE)


def test_a_registry_that_keeps_less_gets_the_rest(store, server, image):
    """Range in the answer is what counts, not what was sent."""

    def forgetful(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        server.sessions[name] += handler.body()[:500_000]
        handler.reply(202, headers={"Location": handler.path, "Range": f"0-{len(server.sessions[name]) - 1}"})

    server.rules.append(on("/uploads/", forgetful, method="PATCH"))
    push(store, server)
    assert arrived(server, image)


def test_larger_than_a_request_may_be(store, server, image, monkeypatch):
    monkeypatch.setattr(upload_module, "_CHUNK_MIN", 200_000)

    def limited(handler: Handler) -> bool:
        large = handler.command == "PATCH" and int(handler.headers["Content-Length"]) > 300_000
        return large and handler.reply(413)

    server.rules.append(limited)
    push(store, server)
    assert arrived(server, image)
    server.uploaded.clear()
    server.manifests.clear()
    server.rules[:] = [on("/uploads/", lambda h: h.reply(413), method="PATCH")]
    error = refused(store, server, "takes nothing as large", Kind.EXHAUSTED)
    assert "limit" in error.hint


@pytest.mark.parametrize("where", ["POST", "PATCH", "PUT", "HEAD"])
def test_busy_servers_are_asked_again(store, server, image, where):
    server.rules.append(on("/blobs/", lambda h: h.reply(429, headers={"Retry-After": "0"}), times=2, method=where))
    push(store, server)
    assert arrived(server, image)


def test_a_busy_server_at_the_manifest(store, server, image):
    server.rules.append(on("/manifests/", lambda h: h.reply(503), times=2))
    push(store, server)
    assert arrived(server, image)


def test_a_blob_that_is_collected_meanwhile_is_sent_again(store, server, image):
    unknown = b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'

    def collected(handler: Handler) -> None:
        handler.body()
        server.uploaded.pop(image.layers[1]["digest"])
        handler.reply(404, unknown)

    server.rules.append(on("/manifests/", collected, times=1))
    push(store, server)
    assert arrived(server, image)
    server.uploaded.clear()
    server.manifests.clear()
    server.rules.append(on("/manifests/", lambda h: h.reply(400, unknown)))
    refused(store, server, "misses what was there .*BLOB_UNKNOWN.*tried 3 times", Kind.UNAVAILABLE)


@pytest.mark.parametrize("where", ["blob", "manifest"])
def test_another_digest_than_ours(store, server, where):
    wrong = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    part = {"blob": "/uploads/", "manifest": "/manifests/"}[where]
    server.rules.append(on(part, lambda h: h.body() is not None and h.reply(201, headers=wrong), method="PUT"))
    refused(store, server, "instead", Kind.INVALID)


def test_what_the_registry_says_of_a_digest(store, server):
    """Something between us changes a byte."""

    def changed(handler: Handler) -> None:
        name = urlsplit(handler.path).path.rpartition("/")[2]
        server.sessions[name] += b"x" + handler.body()[1:]
        handler.reply(202, headers={"Location": handler.path, "Range": f"0-{len(server.sessions[name]) - 1}"})

    server.rules.append(on("/uploads/", changed, method="PATCH"))
    refused(store, server, "DIGEST_INVALID", Kind.INVALID)


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("where", ["/uploads/", "/manifests/"])
def test_each_refusal_has_its_kind(store, server, status, where):
    kind, words = REFUSALS[status]
    server.rules.append(on(where, lambda h: h.reply(status), method="POST" if where == "/uploads/" else "PUT"))
    refused(store, server, words, kind)


def test_a_stall_while_sending_and_before_the_answer(store, server):
    def stall(handler: Handler) -> None:
        handler.body()
        time.sleep(1.5)
        handler.break_off()

    server.rules.append(on("/uploads/", stall, method="PATCH"))
    started = time.monotonic()
    refused(store, server, "timed out|tried 3 times", Kind.UNAVAILABLE)
    assert time.monotonic() - started < 15


def test_redirected_uploads(store, server, image):
    """Sent again to where it says, without the secret; but never as another request than it was."""
    with serving(image) as other:
        other.empty = True

        def elsewhere(handler: Handler) -> None:
            name = urlsplit(handler.path).path.rpartition("/")[2]
            other.sessions[name] = server.sessions[name]
            handler.reply(307, headers={"Location": f"http://{other.address}{handler.path}"})

        server.rules.append(on("/uploads/", elsewhere, method="PATCH"))
        push(store, server)
        digest = image.layers[0]["digest"]
        assert other.uploaded == {digest: image.blobs[digest]}
    server.manifests.clear()
    server.rules[:] = [on("/uploads/", lambda h: h.reply(302, headers={"Location": "/x"}), method="PATCH")]
    refused(store, server, "with a redirect", Kind.INVALID)


@pytest.mark.parametrize("location", ["", "http://192.0.2.1/x", "file:///etc/passwd"])
def test_a_session_in_no_place(store, server, location):
    server.rules.append(on("/uploads/", lambda h: h.reply(202, headers={"Location": location} if location else {}),
                           method="POST"))  # fmt: skip
    kind = Kind.DENIED if "192" in location else Kind.INVALID
    refused(store, server, "names no place|plain http|not http or https", kind)


def test_credentials_do_not_follow_a_session_elsewhere(store, server, image, monkeypatch, tmp_path):
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(b"anna:s3cret").decode()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {server.address: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with serving(image) as other:
        other.empty = True

        def there(handler: Handler) -> bool:
            if handler.command != "POST" or handler.headers.get("Authorization") is None:
                return False
            name = os.urandom(8).hex()
            other.sessions[name] = b""
            place = f"http://{other.address}/v2/a/b/blobs/uploads/{name}?x=1"
            return handler.reply(202, headers={"Location": place})

        server.rules += [ask('Basic realm="x"'), there]
        push(store, server)
        assert len(other.uploaded) == 3
        assert not [headers for _, _, headers in other.log if "Authorization" in headers]


def test_a_token_is_asked_for_all_that_is_wanted(store, server, image):
    """pull and push of this repository, and pull of those that blobs may be mounted from."""
    store.tag(image.config["digest"], f"{server.address}/base/one:2")
    server.rules += [
        ask(f'Bearer realm="http://{server.address}/token",service="reg"'),
        on("/token", lambda h: h.reply(200, b'{"token":"abc","expires_in":300}')),
    ]
    push(store, server)
    asked = [path for _, path, _ in server.log if path.startswith("/token")]
    assert len(asked) == 1
    assert parse_qs(urlsplit(asked[0]).query)["scope"] == ["repository:a/b:pull,push", "repository:base/one:pull"]
    mounts = [path for method, path, _ in server.log if method == "POST" and "mount=" in path]
    assert len(mounts) == 3
    assert all("from=base%2Fone" in path for path in mounts)
    assert arrived(server, image), "a registry that mounts nothing gets the bytes"


def test_a_mount_that_is_denied_is_no_failure(store, server, image):
    store.tag(image.config["digest"], f"{server.address}/secret/one:2")
    server.rules.append(on("mount=", lambda h: h.reply(403)))
    push(store, server)
    assert arrived(server, image)


def test_a_right_that_is_missing(store, server):
    realm = f'Bearer realm="http://{server.address}/token",error="insufficient_scope"'
    server.rules += [
        on("/v2/a/", lambda h: h.reply(401, headers={"WWW-Authenticate": realm})),
        on("/token", lambda h: h.reply(200, b'{"token":"abc"}')),
    ]
    refused(store, server, "denies access", Kind.DENIED)
    assert len(server.log) < 30


def test_kill_9_in_the_middle_and_on_from_there(store, server, image):
    digest, third = image.layers[0]["digest"], threading.Event()

    def stall(handler: Handler) -> bool:
        at = handler.headers.get("Content-Range", "")
        if handler.command != "PATCH" or not at.startswith(f"{2 << 20}-") or third.is_set():
            return False
        third.set()
        time.sleep(20)
        return True

    server.rules.append(stall)
    program = (
        "import sys; from wherry.image import upload; from wherry.image.store import ImageStore\n"
        "upload._SMALL, upload._CHUNK = 100_000, 1 << 20\n"
        "list(ImageStore(sys.argv[1]).push(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, store.root, f"{server.address}/a/b:1"])
    assert third.wait(20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    ingest = Path(store.root, "ingest")
    (remembered,) = ingest.iterdir()
    assert stat.S_IMODE(remembered.stat().st_mode) == 0o600
    server.log.clear()
    push(store, server)
    assert arrived(server, image)
    assert [h["Content-Range"].partition("-")[0] for h in of_layer(server, "PATCH")] == [str(2 << 20)]
    assert list(ingest.iterdir()) == []
    # what was remembered may be nonsense, of a session that is gone, or refused
    server.rules.append(on("/uploads/old", lambda h: h.reply(401), method="GET"))
    place = f"http://{server.address}/v2/a/b/blobs/uploads"
    for text in (
        "",
        "http://",
        f"{place}/gone?x=1\n",
        f"{place}/old\n",
        "http://192.0.2.1/x\n",
        "file:///etc/passwd\n",
    ):
        server.uploaded.pop(digest)
        remembered.write_text(text)
        push(store, server)
        assert arrived(server, image)
        assert list(ingest.iterdir()) == []


def test_a_registry_that_lists_referrers_itself(store, server, image, tmp_path):
    signed = Image(tar(entry("s", b"s")))
    signed.manifest_json["subject"] = image.descriptor
    signed.seal()
    store.load(f"oci:{signed.layout(tmp_path / 'signed')}:latest")
    store.tag(signed.config["digest"], f"{server.address}/a/b:signed")
    subject = {"OCI-Subject": image.descriptor["digest"]}
    server.rules.append(on("/manifests/signed", lambda h: h.body() and h.reply(201, headers=subject), method="PUT"))
    list(store.push(f"{server.address}/a/b:signed"))
    tag = image.descriptor["digest"].replace(":", "-")
    assert not server.requests(tag)
    server.rules.clear()
    list(store.push(f"{server.address}/a/b:signed"))
    assert json.loads(server.manifests[tag])["manifests"][0]["digest"] == signed.descriptor["digest"]
    server.manifests[tag] = image.manifest
    with pytest.raises(WherryError, match="is something else") as caught:
        list(store.push(f"{server.address}/a/b:signed"))
    assert caught.value.kind is Kind.CONFLICT


def test_two_pushes_at_once(store, server, image):
    failures: list[WherryError] = []

    def one() -> None:
        try:
            push(store, server)
        except WherryError as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert arrived(server, image)


def test_what_cannot_be_pushed(store, server, image):
    name = f"{server.address}/a/b"
    for wrong, kind, words in [
        (f"{name}:2", Kind.NOT_FOUND, "does not exist locally with the tag"),
        (f"{name}@{image.descriptor['digest']}", Kind.INVALID, "cannot push a digest reference"),
        (f"{server.address}/A/b", Kind.INVALID, "lower-case"),
    ]:
        with pytest.raises(WherryError, match=words) as caught:
            list(store.push(wrong))
        assert caught.value.kind is kind
    assert server.log == []


def test_a_stored_blob_that_rots_or_goes(store, server, image):
    path = Path(store.blobs.path(image.layers[1]["digest"]))
    good = path.read_bytes()
    path.write_bytes(b"x" * len(good))
    refused(store, server, "DIGEST_INVALID", Kind.INVALID)
    path.unlink()
    refused(store, server, "is not in the store", Kind.NOT_FOUND)


def test_one_blob_s_failure_ends_the_others_at_once(store, server, image, monkeypatch):
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK._replace(read=30, connect=30, settle=30)))
    server.rules += [
        on("/uploads/", lambda _h: time.sleep(60), method="PATCH"),
        on(image.layers[1]["digest"], lambda h: h.reply(403), method="HEAD"),
    ]
    started = time.monotonic()
    refused(store, server, "denies access", Kind.DENIED)
    assert time.monotonic() - started < 5


def test_ctrl_c_ends_at_once(store, server, tmp_path):
    there = threading.Event()

    def stall(_handler: Handler) -> None:
        there.set()
        time.sleep(60)

    server.rules.append(on("/uploads/", stall, method="PUT"))
    env = {**os.environ, "WHERRY_ROOT": store.root, "WHERRY_STATE": str(tmp_path / "state")}
    command = [*COMMAND, "push", f"{server.address}/a/b:1"]
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert there.wait(20)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=5)[0]
    assert child.returncode == 130
    assert "Traceback" not in said
