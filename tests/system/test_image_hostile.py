"""What a hostile registry, archive or image may not bring about, and what two commands at once may not."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest

from helpers.badregistry import QUICK, Handler, Server, on, serving
from helpers.wherry import COMMAND, Wherry
from image_support import Certificates, Image, entry, needs_root, sha, tar
from wherry.cli.table import aligned
from wherry.errors import Kind, WherryError
from wherry.image import logins, members
from wherry.image.auth import Credentials
from wherry.image.hosts import Reach
from wherry.image.snapshot import Snapshotter
from wherry.image.store import ImageStore
from wherry.image.streams import Stream
from wherry.kernel import mount

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture
def store(tmp_path, helper, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    return ImageStore(str(tmp_path / "root"), helper=helper)


@pytest.fixture
def image():
    return Image(tar(entry("f", os.urandom(40_000))))


def refused(store: ImageStore, server: Server, within: float) -> WherryError:
    """The pull's failure, which must come in time."""
    caught: list[WherryError] = []

    def pull() -> None:
        try:
            store.pull(f"{server.address}/a/b:1")
        except WherryError as error:
            caught.append(error)

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()
    thread.join(within)
    assert caught, "it waits for ever, or succeeded"
    return caught[0]


# ---- whom credentials reach


@pytest.mark.parametrize("form", ["http://{other}\\@{own}/x", "http://{own}@{other}/x", "http://u:p@{other}/x"])
def test_an_address_with_two_readings_is_not_followed(store, image, monkeypatch, form):
    with serving(image) as own, serving(image) as other:
        reach = Reach(patience=QUICK, credentials=lambda _name: Credentials("user", "secret"))
        monkeypatch.setattr(ImageStore, "reach", reach)
        target = form.format(own=own.address, other=other.address)
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        own.rules.append(lambda h: "Authorization" not in h.headers and h.reply(401, headers=challenge))
        own.rules.append(on("blobs/", lambda h: h.reply(307, headers={"Location": target})))
        assert refused(store, own, 10).kind is Kind.INVALID
        assert own.log[-1][2]["Authorization"]  # the control: it had something to give away
        assert other.log == []


class Both(Server):
    """Speaks TLS and plain http on one port, as who sits in the middle could."""

    context: ssl.SSLContext

    def finish_request(self, request, client_address) -> None:
        if request.recv(1, socket.MSG_PEEK) == b"\x16":
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)


def test_who_is_marked_insecure_is_asked_by_tls_first(store, image, tmp_path, monkeypatch):
    server = Both(image)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(*Certificates(tmp_path / "tls").sign("server", "IP:127.0.0.1"))
    plain: list[str] = []
    server.rules.append(lambda h: not isinstance(h.request, ssl.SSLSocket) and bool(plain.append(h.path)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    host = f"0.0.0.0:{server.server_port}"  # reaches this machine, and is not loopback by its name
    try:
        monkeypatch.setattr(ImageStore, "reach", Reach(insecure=frozenset({host}), patience=QUICK))
        assert store.pull(f"{host}/a/b:1").id == image.config["digest"]
    finally:
        server.shutdown()
        server.server_close()
    assert plain == []


# ---- what never ends, or grows


def _drip(body: bytes, start: int):
    def reply(handler: Handler) -> bool:
        span = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        at = int(span[1]) if span else 0
        handler.send_response(206 if span else 200)
        if span:
            handler.send_header("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - at))
        handler.end_headers()
        return _slowly(handler, body[at:])

    return reply if start else (lambda handler: _slowly(handler, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000))


def _slowly(handler: Handler, data: bytes) -> bool:
    try:
        for at in range(len(data)):
            handler.wfile.write(data[at : at + 1])
            handler.wfile.flush()
            time.sleep(0.2)
    except OSError:
        pass
    handler.close_connection = True
    return True


def _chunk_sizes(handler: Handler) -> bool:
    """A chunked body whose first size never ends."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    return _slowly(handler, b"0" * 1000)


@pytest.mark.parametrize("where", ["headers", "body", "chunks"])
def test_a_drip_does_not_hold_a_pull_for_ever(store, image, where):
    layer = image.layers[0]["digest"]
    with serving(image) as server:
        reply = _chunk_sizes if where == "chunks" else _drip(image.blobs[layer], int(where == "body"))
        server.rules.append(on(layer, reply))
        assert refused(store, server, 15).kind is Kind.UNAVAILABLE


def test_tags_without_end_are_refused_early(store, image):
    body = json.dumps({"tags": [f"{number:07}" for number in range(60_000)]}).encode()
    with serving(image) as server:
        link = {"Link": '</v2/a/b/tags/list?last=x>; rel="next"'}
        server.rules.append(on("tags/list", lambda h: h.reply(200, body, link)))
        with pytest.raises(WherryError, match="more than"):
            store.tags(f"{server.address}/a/b")
        assert len(server.requests("tags/list")) == 2


def _long_names(count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(count):
            archive.addfile(tarfile.TarInfo(f"{number:08}" + "n" * 1_000_000))
    return out.getvalue()


def test_names_of_an_archive_have_a_limit():
    packed = io.BytesIO(gzip.compress(_long_names(40), 1))
    with pytest.raises(WherryError, match="names of more than"):
        list(members.members(Stream(packed, "archive"), "archive"))
    assert len(list(members.members(Stream(io.BytesIO(_long_names(2)), "archive"), "archive"))) == 2


def test_pax_records_that_mean_nothing_are_not_kept():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("f")
        info.pax_headers = {"comment": "x" * 1000, "path": "long/f"}
        archive.addfile(info)
    reader = members._Reader(Stream(io.BytesIO(out.getvalue()), "archive"), "archive")
    reader.step()
    reader._source.skip(-reader._source.at % 512)
    assert set(reader._next) == {"path"}


# ---- what an archive says of itself


def _docker_archive(place: Path, image: Image, name: str) -> Path:
    layer = gzip.decompress(image.blobs[image.layers[0]["digest"]])
    listed = [{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]}]
    config = entry("c.json", image.blobs[image.config["digest"]])
    place.write_bytes(tar(config, entry("l.tar", layer), entry("manifest.json", json.dumps(listed).encode())))
    return place


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_an_archive_cannot_take_the_name_of_another_digest(store, image, tmp_path, form):
    pinned = f"docker.io/library/alpine@{sha(b'the manifest that somebody pinned')}"
    place = tmp_path / "source"
    place = image.layout(place, pinned) if form == "oci" else _docker_archive(place, image, pinned)
    assert store.load_found(str(place))[0].names == ()
    with pytest.raises(WherryError) as caught:
        store.get(pinned)
    assert caught.value.kind is Kind.NOT_FOUND


def test_an_archive_may_name_the_digest_that_it_has(store, image, tmp_path):
    name = f"docker.io/library/alpine@{image.descriptor['digest']}"
    assert store.load_found(str(image.layout(tmp_path / "source", name)))[0].names == (name,)


def test_load_tells_the_names_that_came(store, image, tmp_path):
    source = str(image.layout(tmp_path / "source", "x/one:1"))
    store.load_found(source)
    store.tag("x/one:1", "x/two:2")
    assert store.load_found(source)[0].names == ("docker.io/x/one:1",)
    assert set(store.get("x/one:1").names) == {"docker.io/x/one:1", "docker.io/x/two:2"}


def test_one_layer_packed_in_two_ways_is_kept_in_both(store, tmp_path):
    layer = tar(entry("f", b"x" * 1000))
    image = Image(layer, layer)
    second = image.put(gzip.compress(layer, 1, mtime=5)) | {"mediaType": image.layers[0]["mediaType"]}
    image.manifest_json["layers"] = [image.layers[0], second]
    image.seal()
    with serving(image) as server:
        record = store.pull(f"{server.address}/a/b:1")
    assert store.check(quick=False).findings == ()
    store.save([(record, record.names)], str(tmp_path / "saved.tar"))


# ---- two at once


def test_repair_leaves_alone_what_a_pull_mended_meanwhile(store, image, tmp_path):
    source = str(image.layout(tmp_path / "source", "x/y:1"))
    record = store.load_found(source)[0]
    os.unlink(store.blobs.path(record.layers[0].digest))
    report = store.check(quick=False)
    assert report.findings
    store.load_found(source)  # acknowledged
    store.repair(report)
    assert store.get("x/y:1").id == record.id
    assert store.check(quick=False).findings == ()


def test_an_image_that_goes_meanwhile_is_not_found(store, image, tmp_path, monkeypatch):
    record = store.load_found(str(image.layout(tmp_path / "source", "x/y:1")))[0]
    store.remove("x/y:1")
    monkeypatch.setattr(store, "get", lambda _name: record)
    wanted, target = [(record, record.names)], str(tmp_path / "saved.tar")
    for late in (lambda: store.tag("x/y:1", "x/z:1"), lambda: store.save(wanted, target)):
        with pytest.raises(WherryError) as caught:
            late()
        assert caught.value.kind is Kind.NOT_FOUND
    monkeypatch.setattr(store, "list", lambda: [record])
    assert store.disk_usage().of([record.id]) == 0


# ---- where output goes


def test_save_appends_to_a_file_that_holds_something(store, tmp_path):
    image = Image(tar(entry("f", os.urandom(3_000_000))))  # more than one piece
    record = store.load_found(str(image.layout(tmp_path / "source", "x/y:1")))[0]
    fd = os.open(tmp_path / "out.tar", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        store.save([(record, record.names)], fd)
    finally:
        os.close(fd)
    assert store.load_found(str(tmp_path / "out.tar"))[0].id == record.id


def test_export_writes_to_a_pipe_and_never_replaces_it(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    wherry("load", "-q", busybox)
    box = wherry.name("box")
    wherry("create", "--name", box, "busybox", "true")
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "got.tar", "wb") as got:
        reader = subprocess.Popen(["timeout", "60", "cat", tmp_path / "pipe"], stdout=got)
        wherry("export", "-o", tmp_path / "pipe", box)
        assert (tmp_path / "pipe").is_fifo()
        assert reader.wait(60) == 0
    with tarfile.open(tmp_path / "got.tar") as archive:
        assert "bin/busybox" in archive.getnames()
    (tmp_path / "link").symlink_to("real.tar")
    wherry("export", "-o", tmp_path / "link", box)
    assert (tmp_path / "link").is_symlink()
    assert tarfile.is_tarfile(tmp_path / "real.tar")


def test_words_of_an_image_do_no_harm(wherry: Wherry, tmp_path: Path) -> None:
    image = Image(tar(entry("f", b"1")))
    body = json.loads(image.blobs[image.config["digest"]])
    body["history"] = [{"created": "2020-01-01T00:00:00Z", "created_by": "half a pair: \ud800"}]
    image.config = image.put(json.dumps(body).encode()) | {"mediaType": image.config["mediaType"]}
    image.manifest_json["config"] = image.config
    image.seal()
    wherry("load", "-q", image.layout(tmp_path / "source", "x/y:1"))
    assert "half a pair: ? " in wherry.out("history", "--no-trunc", "x/y:1")
    assert "half a pair: \\ud800" in wherry.out("history", "--format", "{{.CreatedBy}}", "x/y:1")


def test_an_error_does_not_move_the_cursor(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    bad.write_bytes(tar(entry("\x1b[2Jname", b"x" * 5000), form=tarfile.USTAR_FORMAT)[:1000])
    command = [*COMMAND, "--root", tmp_path / "root", "load", "-i", bad]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"ends inside ?[2Jname" in done.stderr


def test_what_an_image_says_moves_no_cursor_in_a_table():
    assert aligned([["A", "B"], ["\x1b[2Jx", "\u202ey"]])[1] == "?[2Jx     ?y"


def test_a_snapshot_that_a_power_cut_spoilt_stops_no_sweep(store, image, tmp_path):
    """Its layers cannot be told, so all stay; the rest goes, and once it is removed so do the layers."""
    record = store.load(f"oci:{image.layout(tmp_path / 'layout')}")
    views = Snapshotter(store.root)
    mount.settle(views.below(record.config.diff_ids))
    views.make("spoilt", record.config.diff_ids)
    Path(store.root, "snapshots/spoilt/lower.json").write_bytes(b"")
    store.remove(record.names[0])
    assert os.listdir(Path(store.root, "layers"))
    assert not os.listdir(Path(store.root, "images/blobs/sha256"))
    views.remove("spoilt")
    store.gc()
    assert not os.listdir(Path(store.root, "layers"))


def test_logins_that_a_user_cannot_read_are_not_written_over():
    """A config.json of somebody else's in a directory of one's own: a rename could replace it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        config = Path(place, "config.json")
        config.write_text('{"auths": {"kept": {}}}')
        config.chmod(0o600)
        os.chown(place, 65534, 65534)
        pid = os.fork()
        if pid == 0:
            try:
                os.setresuid(65534, 65534, 65534)
                logins.store("localhost:1", Credentials("u", "s"), {"DOCKER_CONFIG": place})
            except WherryError as error:
                os._exit(error.kind is not Kind.DENIED)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert config.read_text() == '{"auths": {"kept": {}}}'
