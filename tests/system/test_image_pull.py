"""Pull from the distribution's own registry; images made by skopeo and by the test; read back by skopeo and umoci."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from image_support import (
    INDEX,
    TAR_PLAIN,
    TAR_ZSTD,
    Image,
    entry,
    folder,
    need,
    needs_root,
    real_registry,
    skopeo_push,
    symlink,
    tar,
    tree,
    write_layout,
)
from wherry.errors import Kind, WherryError
from wherry.image.snapshot import layer_path
from wherry.image.store import ImageStore
from wherry.model import Platform, ProgressEvent

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with real_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def sample(**more):
    first = tar(
        folder("bin"),
        entry("bin/tool", b"tool" * 1000, mode=0o4755),
        symlink("bin/alias", "tool"),
        folder("gone"),
        entry("gone/file", b"x"),
    )
    second = tar(entry("bin/.wh.alias"), folder("gone"), entry("gone/.wh..wh..opq"), entry("gone/new", b"y"))
    return Image(first, second, **more)


@pytest.mark.parametrize("media_type", ["", TAR_ZSTD, TAR_PLAIN])
def test_pull_gives_the_image_and_reports_progress(registry, store, tmp_path, media_type):
    image = sample(**({"media_type": media_type} if media_type else {}))
    name = f"{registry}/made:{media_type[-3:] or 'gzip'}"
    skopeo_push(image.layout(tmp_path / "layout"), "latest", name)
    seen: list[ProgressEvent] = []
    record = store.pull(name, progress=seen.append)
    assert record.id == image.config["digest"]
    assert record.names == (name,)
    if media_type != TAR_PLAIN:  # skopeo compresses on its way
        assert [layer.digest for layer in record.layers] == [layer["digest"] for layer in image.layers]
    assert {event.status for event in seen} >= {"Pulling fs layer", "Download complete", "Pull complete"}
    first, second = (Path(layer_path(store.root, d), "fs") for d in record.config.diff_ids)
    assert (first / "bin/tool").stat().st_mode & 0o7777 == 0o4755
    assert os.readlink(first / "bin/alias") == "tool"
    assert (second / "bin/alias").stat().st_rdev == 0
    assert (second / "bin/alias").is_char_device()
    assert os.getxattr(second / "gone", "trusted.overlay.opaque") == b"y"
    assert store.get(name).id == store.get(record.id[7:20]).id == record.id


def test_second_pull_fetches_nothing_again(registry, store, tmp_path):
    skopeo_push(sample().layout(tmp_path / "layout"), "latest", f"{registry}/twice:1")
    store.pull(f"{registry}/twice:1")
    seen: list[ProgressEvent] = []
    store.pull(f"{registry}/twice:1", progress=seen.append)
    assert seen == []


def test_index_by_platform_with_fallback(registry, store, tmp_path):
    layers = [tar(entry("which", which.encode())) for which in ("amd64", "v6", "v8")]
    images = [Image(layers[0]), Image(layers[1], architecture="arm", variant="v6"),
              Image(layers[2], architecture="arm64", variant="v8")]  # fmt: skip
    layout = write_layout(tmp_path / "layout", [(image, "") for image in images])
    index = {"schemaVersion": 2, "mediaType": INDEX,
             "manifests": [{**image.descriptor, "platform": image.platform} for image in images]}  # fmt: skip
    blob = json.dumps(index).encode()
    descriptor = images[0].put(blob) | {"mediaType": INDEX}
    (layout / "blobs/sha256" / descriptor["digest"][7:]).write_bytes(blob)
    top = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": "multi"}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    skopeo_push(layout, "multi", f"{registry}/multi:1", "--multi-arch=all")
    for platform, expected in [
        (Platform(), "amd64"),
        (Platform("linux", "arm", "v7"), "v6"),
        (Platform("linux", "arm64"), "v8"),
    ]:
        record = store.pull(f"{registry}/multi:1", platform)
        assert Path(layer_path(store.root, record.config.diff_ids[0]), "fs/which").read_text() == expected
    with pytest.raises(WherryError, match=r"no image for linux/s390x") as caught:
        store.pull(f"{registry}/multi:1", Platform("linux", "s390x"))
    assert caught.value.kind is Kind.NOT_FOUND
    assert "linux/arm64" in caught.value.hint
    by_digest = f"{registry}/multi@{descriptor['digest']}"
    assert store.pull(by_digest).names[0].endswith(descriptor["digest"])
    assert store.get(by_digest).config.platform.architecture == "amd64"


def test_the_store_is_a_layout_that_skopeo_and_umoci_read(registry, store, tmp_path):
    need("skopeo", "umoci")
    skopeo_push(sample().layout(tmp_path / "layout"), "latest", f"{registry}/read/back:v1")
    name = store.pull(f"{registry}/read/back:v1").names[0]
    subprocess.run(
        ["skopeo", "inspect", f"oci:{store.root}/images:{name}"], check=True, capture_output=True, timeout=60
    )
    assert name in subprocess.run(["umoci", "ls", "--layout", f"{store.root}/images"], check=True, capture_output=True,
                                  text=True, timeout=60).stdout  # fmt: skip
    copied = tmp_path / "copied"
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", f"oci:{store.root}/images:{name}", f"oci:{copied}:x"],
                   check=True, timeout=60)  # fmt: skip
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{copied}:x", str(tmp_path / "out")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert sorted(os.listdir(tmp_path / "out/gone")) == ["new"]


def test_basic_authentication(tmp_path, helper, monkeypatch):
    with real_registry(tmp_path / "registry", "anna", "s3cret") as address:
        skopeo_push(sample().layout(tmp_path / "layout"), "latest", f"{address}/private:1", "--dest-creds=anna:s3cret")
        config = tmp_path / "docker"
        config.mkdir()
        monkeypatch.setenv("DOCKER_CONFIG", str(config))
        store = ImageStore(str(tmp_path / "root"), helper=helper)
        with pytest.raises(WherryError, match="denies access") as caught:
            store.pull(f"{address}/private:1")
        assert caught.value.kind is Kind.DENIED
        for secret, good in (("wrong", False), ("s3cret", True)):
            auth = base64.b64encode(f"anna:{secret}".encode()).decode()
            (config / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
            if good:
                assert store.pull(f"{address}/private:1").names
            else:
                with pytest.raises(WherryError, match="denies access"):
                    store.pull(f"{address}/private:1")
        (config / "config.json").write_text(json.dumps({"credHelpers": {address: "wherrytest"}}))
        program = tmp_path / "bin/docker-credential-wherrytest"
        program.parent.mkdir()
        program.write_text('#!/bin/sh\nread server\necho "{\\"Username\\":\\"anna\\",\\"Secret\\":\\"s3cret\\"}"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        assert ImageStore(str(tmp_path / "other"), helper=helper).pull(f"{address}/private:1").names


def test_two_stores_in_two_processes_pull_at_once(registry, tmp_path, helper):
    layers = [tar(folder("d"), *[entry(f"d/{n}-{i}", os.urandom(2000)) for i in range(500)]) for n in range(3)]
    image = Image(*layers)
    skopeo_push(image.layout(tmp_path / "layout"), "latest", f"{registry}/race:1")
    root = str(tmp_path / "root")
    failures: list[BaseException] = []

    def thread() -> None:
        try:
            ImageStore(root, helper=helper).pull(f"{registry}/race:1")
        except BaseException as error:
            failures.append(error)

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                ImageStore(root, helper=helper).pull(f"{registry}/race:1")
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    threads = [threading.Thread(target=thread) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert not failures
    assert sorted(os.listdir(tmp_path / "root/layers")) == sorted(
        d[7:] for d in ImageStore(root).list()[0].config.diff_ids
    )
    assert os.listdir(tmp_path / "root/ingest") == []


def test_content_is_what_umoci_unpacks(registry, store, tmp_path):
    need("umoci")
    body = tar(
        folder("d", 0o1777, uid=5, gid=6, mtime=1000), entry("d/f", b"data", uid=1000, gid=100000, mtime=1234567890),
        entry("d/" + "n" * 200, b"long"), symlink("d/s", "/" + "t" * 300), entry("d/cap", b"c", pax={
            "SCHILY.xattr.user.note": "hello", "mtime": "1500000000.123456789"}),
        entry("d/fifo", kind=b"6", mode=0o600), entry("d/dev", kind=b"3", devmajor=1, devminor=3, mode=0o666),
    )  # fmt: skip
    layout = Image(body).layout(tmp_path / "layout")
    record = store.load(f"oci:{layout}:latest")
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(tmp_path / "out")], check=True,
                   capture_output=True, timeout=60)  # fmt: skip
    ours, theirs = tree(Path(layer_path(store.root, record.config.diff_ids[0]), "fs")), tree(tmp_path / "out")
    ours.pop(".")
    theirs.pop(".")
    assert ours == theirs


def test_unknown_names_and_hosts(registry, store):
    with pytest.raises(WherryError, match="not found") as caught:
        store.pull(f"{registry}/no/such:1")
    assert caught.value.kind is Kind.NOT_FOUND
    assert store.list() == []
