"""Pushes to the distribution's own registry: what wherry sends, others read back byte by byte, and wherry theirs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from image_support import (
    INDEX,
    TAR_GZIP,
    TAR_PLAIN,
    TAR_ZSTD,
    Image,
    entry,
    folder,
    need,
    needs_root,
    real_registry,
    sha,
    skopeo_push,
    symlink,
    tar,
)
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.image import upload as upload_module
from wherry.image.snapshot import layer_path
from wherry.image.store import ImageStore
from wherry.model import Place, ProgressEvent

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with real_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second registry: nothing can be mounted there."""
    with real_registry(tmp_path_factory.mktemp("other")) as address:
        yield address


def sample(**more: Any) -> Image:
    first = tar(folder("bin"), entry("bin/tool", b"tool" * 1000, mode=0o4755), symlink("bin/alias", "tool"))
    second = tar(entry("bin/.wh.alias"), folder("etc"), entry("etc/new", os.urandom(100)))
    return Image(first, second, **more)


def raw(name: str) -> bytes:
    """The manifest or index as skopeo gets it."""
    need("skopeo")
    words = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"]
    return subprocess.run(words, check=True, capture_output=True, timeout=60).stdout


def blobs_of(name: str, place: Path) -> dict[str, str]:
    """Every blob and manifest that skopeo copies, for all platforms: the digest that names it, and the true one."""
    words = ["skopeo", "--insecure-policy", "copy", "-q", "--all", "--src-tls-verify=false"]
    subprocess.run([*words, f"docker://{name}", f"dir:{place}"], check=True, timeout=60)
    found = [path for path in place.iterdir() if path.name not in ("version", "manifest.json")]
    return {path.name[:64]: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def multi(place: Path) -> tuple[str, bytes]:
    """An index with two platforms, an attestation as BuildKit makes it, and an annotation; its layout and bytes."""
    images = [sample(), sample(architecture="arm64", variant="v8")]
    statement = Image()
    layer = statement.put(b'{"_type":"https://in-toto.io/Statement/v0.1"}')
    statement.manifest_json["layers"] = [{**layer, "mediaType": "application/vnd.in-toto+json"}]
    statement.seal()
    unknown = {"os": "unknown", "architecture": "unknown"}
    notes = {"vnd.docker.reference.type": "attestation-manifest"}
    (place / "blobs/sha256").mkdir(parents=True)
    manifests = [{**image.descriptor, "platform": image.platform} for image in images]
    manifests.append({**statement.descriptor, "platform": unknown, "annotations": notes})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": {"kept": "yes"}}
    data = json.dumps(index, indent=3).encode()
    for image in (*images, statement):
        for digest, blob in image.blobs.items():
            (place / "blobs/sha256" / digest[7:]).write_bytes(blob)
    (place / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
    top = {"mediaType": INDEX, "digest": sha(data), "size": len(data)}
    top["annotations"] = {"org.opencontainers.image.ref.name": "multi"}
    (place / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return f"oci:{place}:multi", data


def copy(source: str, target: str, *options: str) -> None:
    need("skopeo")
    words = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", *options]
    subprocess.run([*words, source, f"docker://{target}"], check=True, timeout=60)


@pytest.mark.parametrize("media_type", [TAR_GZIP, TAR_ZSTD, TAR_PLAIN, "schema2"])
def test_what_others_pushed_comes_back_byte_by_byte(registry, other, store, tmp_path, media_type):
    """skopeo → registry → wherry → another registry → skopeo."""
    name = f"there/and/back:{media_type[-3:]}"
    image = sample(**({} if media_type == "schema2" else {"media_type": media_type}))
    image.manifest_json["annotations"] = {"org.example.note": "kept"}
    image.seal()
    options = ["--format", "v2s2"] if media_type == "schema2" else ["--preserve-digests"]
    skopeo_push(image.layout(tmp_path / "layout"), "latest", f"{registry}/{name}", *options)
    store.pull(f"{registry}/{name}")
    store.tag(f"{registry}/{name}", f"{other}/{name}")
    (pushed,) = store.push(f"{other}/{name}")
    assert raw(f"{other}/{name}") == raw(f"{registry}/{name}")
    assert sha(raw(f"{other}/{name}")) == pushed.descriptor.digest
    if media_type != "schema2":
        assert raw(f"{other}/{name}") == image.manifest
    blobs = blobs_of(f"{other}/{name}", tmp_path / "copied")
    assert all(digest == actual for digest, actual in blobs.items())
    assert {layer.digest[7:] for layer in store.get(f"{other}/{name}").layers} <= set(blobs)


def test_an_index_with_all_its_platforms(registry, other, store, tmp_path):
    source, data = multi(tmp_path / "layout")
    copy(source, f"{registry}/multi:1", "--all", "--preserve-digests")
    record = store.pull(f"{registry}/multi:1", all_platforms=True)
    assert record.target == sha(data)
    assert record.config.platform.architecture == "amd64"
    assert Path(layer_path(store.root, record.config.diff_ids[0]), "fs/bin/tool").exists()
    store.tag(f"{registry}/multi:1", f"{other}/multi:2")
    (pushed,) = store.push(f"{other}/multi:2")
    assert pushed.descriptor.digest == sha(data)
    assert raw(f"{other}/multi:2") == data
    blobs = blobs_of(f"{other}/multi:2", tmp_path / "copied")
    assert len(blobs) == 10  # of two images, which share a layer, and a statement what they consist of
    assert all(digest == actual for digest, actual in blobs.items())
    words = ["skopeo", "inspect", f"oci:{store.root}/images:{other}/multi:2"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    # everything is used: nothing goes before the last name does
    assert store.gc() == 0
    store.remove(f"{registry}/multi:1")
    list(store.push(f"{other}/multi:2"))
    assert store.remove(f"{other}/multi:2")[-1].startswith("Deleted")
    assert not os.listdir(Path(store.root, "images/blobs/sha256"))


def test_damage_of_another_platform_is_no_end_of_this_one(registry, store, tmp_path):
    """The image is there and stays; what the damaged document named cannot be told, so no blob goes."""
    source, data = multi(tmp_path / "layout")
    copy(source, f"{registry}/multi:3", "--all", "--preserve-digests")
    record = store.pull(f"{registry}/multi:3", all_platforms=True)
    other = next(one["digest"] for one in json.loads(data)["manifests"] if one["digest"] != record.manifest)
    blobs = Path(store.root, "images/blobs/sha256")
    (blobs / other[7:]).write_bytes(b"rot")
    before = set(os.listdir(blobs))
    (blobs / ("f" * 64)).write_bytes(b"nobody's")
    store.gc()
    assert store.get(f"{registry}/multi:3").manifest == record.manifest
    assert before < set(os.listdir(blobs))
    assert any(finding.subject == sha(data) for finding in store.check().findings)
    assert store.disk_usage().layers
    store.repair(store.check())
    store.gc()
    assert not os.listdir(blobs)


def test_an_index_that_lacks_this_platform_is_kept_all_the_same(registry, other, store, tmp_path):
    image = sample(architecture="s390x")
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**image.descriptor, "platform": image.platform}]}
    data = json.dumps(index).encode()
    place = image.layout(tmp_path / "layout")
    (place / "blobs/sha256" / sha(data)[7:]).write_bytes(data)
    top = {"mediaType": INDEX, "digest": sha(data), "size": len(data)}
    top["annotations"] = {"org.opencontainers.image.ref.name": "far"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    copy(f"oci:{place}:far", f"{registry}/far:1", "--all", "--preserve-digests")
    assert store.pull(f"{registry}/far:1", all_platforms=True).config.platform.architecture == "s390x"
    store.tag(f"{registry}/far:1", f"{other}/far:1")
    list(store.push(f"{other}/far:1"))
    assert raw(f"{other}/far:1") == data


def test_nothing_is_sent_that_is_there_or_can_be_mounted(registry, store, tmp_path):
    store.load(f"oci:{sample().layout(tmp_path / 'layout')}:latest")
    (image,) = store.list()
    names = [f"{registry}/{repository}:1" for repository in ("base/one", "team/two")]
    seen: list[ProgressEvent] = []

    def words() -> set[str]:
        found = {event.status for event in seen} - {"Preparing", "Pushing"}
        seen.clear()
        return found

    for name in names:
        store.tag(image.id, name)
    list(store.push(names[0], seen.append))
    assert words() == {"Pushed"}
    list(store.push(names[0], seen.append))
    assert words() == {"Layer already exists"}
    list(store.push(names[1], seen.append))
    assert words() == {"Mounted from base/one"}
    assert raw(names[0]) == raw(names[1])


def test_what_refers_to_another_image_is_listed(registry, store, tmp_path):
    """The distribution's registry has no referrers API: the tag that stands for it is written."""
    base, signed = sample(), sample()
    store.load(f"oci:{base.layout(tmp_path / 'base')}:latest")
    store.tag(base.config["digest"], f"{registry}/signed:base")
    list(store.push(f"{registry}/signed:base"))
    signed.manifest_json |= {"subject": base.descriptor, "artifactType": "application/x", "annotations": {"a": "b"}}
    signed.seal()
    store.load(f"oci:{signed.layout(tmp_path / 'signed')}:latest")
    store.tag(signed.config["digest"], f"{registry}/signed:by")
    for _ in range(2):  # once in the list, however often it is pushed
        list(store.push(f"{registry}/signed:by"))
        assert store.referrers(f"{registry}/signed:base") == [
            {**signed.descriptor, "artifactType": "application/x", "annotations": {"a": "b"}}
        ]


def test_all_tags(registry, store, tmp_path):
    for n in range(3):
        image = sample()
        store.load(f"oci:{image.layout(tmp_path / f'layout{n}')}:latest")
        store.tag(image.config["digest"], f"{registry}/tags:{n}")
    assert [pushed.tag for pushed in store.push(f"{registry}/tags", all_tags=True)] == ["0", "1", "2"]
    for n in range(3):
        assert sha(raw(f"{registry}/tags:{n}")) == store.get(f"{registry}/tags:{n}").manifest
    engine = Engine(Place(str(tmp_path / "other"), str(tmp_path / "state"), str(tmp_path / "wherry.toml")))
    records = list(engine.pull_tags(f"{registry}/tags"))
    assert sorted(record.names for record in records) == [(f"{registry}/tags:{n}",) for n in range(3)]
    with pytest.raises(WherryError, match="tag can't be used with"):
        list(engine.pull_tags(f"{registry}/tags:1"))


def test_large_blobs_by_chunks(registry, store, tmp_path, monkeypatch):
    monkeypatch.setattr(upload_module, "_SMALL", 1 << 20)
    monkeypatch.setattr(upload_module, "_CHUNK", 3 << 20)
    image = Image(tar(entry("f", os.urandom(10 << 20))), media_type=TAR_PLAIN)
    store.load(f"oci:{image.layout(tmp_path / 'layout')}:latest")
    store.tag(image.config["digest"], f"{registry}/chunks:1")
    list(store.push(f"{registry}/chunks:1"))
    blobs = blobs_of(f"{registry}/chunks:1", tmp_path / "copied")
    assert all(digest == actual for digest, actual in blobs.items())
    assert (
        ImageStore(str(tmp_path / "again"), helper=store._helper).pull(f"{registry}/chunks:1").id
        == image.config["digest"]
    )


def test_killed_and_pushed_again_by_three_at_once(registry, store, tmp_path):
    """At random moments; the distribution's registry forgets an upload that broke off, so it begins anew."""
    image = Image(tar(entry("f", os.urandom(60 << 20))), media_type=TAR_PLAIN)
    store.load(f"oci:{image.layout(tmp_path / 'layout')}:latest")
    name = f"{registry}/killed:1"
    store.tag(image.config["digest"], name)
    program = (
        "import sys; from wherry.image import upload; from wherry.image.store import ImageStore\n"
        "upload._CHUNK = 8 << 20\nprint(flush=True)\nlist(ImageStore(sys.argv[1]).push(sys.argv[2]))"
    )
    words = [sys.executable, "-c", program, store.root, name]
    for _ in range(6):
        with subprocess.Popen(words, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(random.uniform(0.05, 0.5))
            child.kill()
    children = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    blobs = blobs_of(name, tmp_path / "copied")
    assert image.layers[0]["digest"][7:] in blobs
    assert all(digest == actual for digest, actual in blobs.items())
    assert os.listdir(Path(store.root, "ingest")) == []


def test_memory_is_bounded(registry, store, tmp_path):
    """300 MB go through a process that never holds them."""
    image = Image(tar(entry("f", os.urandom(1 << 20) * 300)), media_type=TAR_PLAIN)
    store.load(f"oci:{image.layout(tmp_path / 'layout')}:latest")
    store.tag(image.config["digest"], f"{registry}/large:1")
    image.blobs.clear()
    program = (
        "import re, sys; from wherry.image.store import ImageStore\n"
        "list(ImageStore(sys.argv[1]).push(sys.argv[2]))\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"  # ru_maxrss begins at its parent's
    )
    words = [sys.executable, "-c", program, store.root, f"{registry}/large:1"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 100 << 10, "KiB"


def test_what_buildah_pushes_is_pulled(registry, store, tmp_path, busybox):
    need("buildah")
    words = ["buildah", "--root", tmp_path / "b", "--runroot", tmp_path / "br", "--storage-driver", "vfs"]

    def buildah(*more: str) -> str:
        return subprocess.run([*words, *more], check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    container = buildah("from", "--pull", f"{busybox}:busybox:latest")
    (tmp_path / "file").write_text("of buildah")
    buildah("copy", container, str(tmp_path / "file"), "/file")
    buildah("config", "--label", "by=buildah", "--cmd", "cat /file", container)
    for form, compression in (("oci", "gzip"), ("oci", "zstd"), ("docker", "gzip")):
        name = f"{registry}/buildah/{form}:{compression}"
        image = buildah("commit", "--format", form, container)
        buildah("push", "--tls-verify=false", "--compression-format", compression, "--format", form, image, name)
        record = store.pull(name)
        assert record.config.labels["by"] == "buildah"
        files = [Path(layer_path(store.root, diff_id), "fs/file") for diff_id in record.config.diff_ids]
        assert [file.read_text() for file in files if file.exists()] == ["of buildah"]
    buildah("rm", "--all")


def test_a_registry_that_only_gives(tmp_path, helper):
    """A pull-through cache: the distribution's registry refuses to be written to."""
    store = ImageStore(str(tmp_path / "root"), helper=helper)
    store.load(f"oci:{sample().layout(tmp_path / 'layout')}:latest")
    with (
        real_registry(tmp_path / "upstream") as upstream,
        real_registry(tmp_path / "cache", more={"proxy": {"remoteurl": f"http://{upstream}"}}) as cache,
    ):
        for address in (upstream, cache):
            store.tag(store.list()[0].id, f"{address}/app:1")
        list(store.push(f"{upstream}/app:1"))
        with pytest.raises(WherryError, match="does not offer this") as caught:
            list(store.push(f"{cache}/app:1"))
        assert caught.value.kind is Kind.UNSUPPORTED
        assert ImageStore(str(tmp_path / "two"), helper=helper).pull(f"{cache}/app:1").names
