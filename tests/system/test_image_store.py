"""Sources on this machine, names, removal, sweeping; the busybox layout that the demo uses."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from image_support import Image, entry, folder, need, needs_root, tar, tree, write_layout
from wherry.errors import Kind, WherryError
from wherry.image.snapshot import Snapshotter, layer_path
from wherry.image.store import ImageStore

pytestmark = [pytest.mark.root, needs_root]
HERE = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def image():
    return Image(tar(folder("d"), entry("d/f", b"one")), tar(entry("g", b"two")))


def content(store, record) -> list[dict]:
    """The layers' trees, without the time of a root directory that no entry describes."""
    trees = [tree(Path(layer_path(store.root, diff_id), "fs")) for diff_id in record.config.diff_ids]
    return [{name: facts for name, facts in layer.items() if name != "."} for layer in trees]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "oci"])
@pytest.mark.parametrize("packed", [False, True])
def test_sources_made_by_skopeo(store, helper, tmp_path, image, kind, packed):  # noqa: PLR0917
    need("skopeo")
    if kind == "oci" and packed:
        return
    layout = image.layout(tmp_path / "layout", "some/app:v1")
    target = tmp_path / "made"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:some/app:v1", f"{kind}:{target}:some/app:v1"],
        check=True,
        timeout=60,
    )
    if packed:
        subprocess.run(["gzip", target], check=True, timeout=60)
        target = Path(f"{target}.gz")
    record = store.load(f"{kind}:{target}")
    assert record.names == ("docker.io/some/app:v1",)
    assert store.load(f"{kind}:{target}:some/app:v1").id == record.id == store.load(f"{kind}:{target}:v1").id
    other = ImageStore(str(tmp_path / "other"), helper=helper)
    assert content(store, record) == content(other, other.load(f"oci:{layout}"))
    with pytest.raises(WherryError, match="has no image"):
        store.load(f"{kind}:{target}:nothere")
    subprocess.run(
        ["skopeo", "inspect", f"oci:{store.root}/images:{record.names[0]}"], check=True, capture_output=True, timeout=60
    )


def test_bare_tags_become_local_names_and_many_images_need_a_tag(store, tmp_path, image):
    other = Image(tar(entry("x", b"")))
    layout = write_layout(tmp_path / "My.Layout", [(image, "a"), (other, "b")])
    with pytest.raises(WherryError, match="several images") as caught:
        store.load(f"oci:{layout}")
    assert "a, b" in caught.value.hint
    assert store.load(f"oci:{layout}:b").names == ("localhost/my-layout:b",)
    assert len(store.load_all(f"oci:{layout}")) == 2
    assert {name for record in store.list() for name in record.names} == {
        "localhost/my-layout:a",
        "localhost/my-layout:b",
    }


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("oci:/no/such", Kind.NOT_FOUND),
        ("oci:", Kind.INVALID),
        ("oci-archive:/etc/passwd", Kind.INVALID),
        ("oci:/etc/passwd", Kind.INVALID),
        ("docker-archive:/etc", Kind.INVALID),
        ("oci:/etc", Kind.NOT_FOUND),
        ("docker-archive:/no/such.tar:x", Kind.NOT_FOUND),
    ],
)
def test_bad_sources_are_one_sentence(store, source, kind):
    with pytest.raises(WherryError) as caught:
        store.load(source)
    assert caught.value.kind is kind, caught.value
    assert "\n" not in str(caught.value)
    assert store.list() == []


def test_hostile_archives_read_nothing_of_the_host(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    from image_support import symlink

    body = tar(
        entry("manifest.json", json.dumps([{"Config": "c", "RepoTags": [], "Layers": []}]).encode()),
        symlink("c", str(secret)),
    )
    (tmp_path / "evil.tar").write_bytes(body)
    with pytest.raises(WherryError, match="has no c"):
        store.load(f"docker-archive:{tmp_path / 'evil.tar'}")


def test_names(store, tmp_path, image):
    record = store.load(f"oci:{image.layout(tmp_path / 'layout', 'x/app:1')}")
    assert store.tag("x/app:1", "other:2") == "docker.io/library/other:2"
    assert store.get("other:2").id == record.id == store.get(record.id).id == store.get(record.id[7:]).id
    assert len(store.list()) == 1
    with pytest.raises(WherryError, match="several names") as caught:
        store.remove(record.id)
    assert caught.value.kind is Kind.CONFLICT
    assert store.remove("other:2") == ["Untagged: other:2"]
    newer = Image(tar(entry("new", b"")))
    store.load(f"oci:{newer.layout(tmp_path / 'newer', 'x/app:1')}")
    assert store.get("x/app:1").id == newer.config["digest"]
    assert store.get(record.id).names == ()
    with pytest.raises(WherryError, match="no such image") as caught:
        store.get("x/none")
    assert caught.value.kind is Kind.NOT_FOUND
    with pytest.raises(WherryError, match="has a digest"):
        store.tag("x/app:1", f"y@{record.manifest}")


def test_removal_takes_only_what_nobody_uses(store, tmp_path):
    base = tar(entry("base", b"b" * 10000))
    one, two = Image(base, tar(entry("1", b""))), Image(base, tar(entry("2", b"")))
    first = store.load(f"oci:{one.layout(tmp_path / 'one', 'x/one:1')}")
    second = store.load(f"oci:{two.layout(tmp_path / 'two', 'x/two:1')}")
    assert len(os.listdir(f"{store.root}/layers")) == 3
    snapshots = Snapshotter(store.root)
    snapshots.prepare("used", second.config.diff_ids)
    done = store.remove("x/one:1")
    assert done == ["Untagged: x/one:1", f"Deleted: {first.id}"]
    assert sorted(os.listdir(f"{store.root}/layers")) == sorted(d[7:] for d in second.config.diff_ids)
    assert len(store.disk_usage().layers) == 2
    store.remove("x/two:1", keep=second.config.diff_ids)
    snapshots.remove("used")
    assert store.gc(keep=second.config.diff_ids[:1]) == 0
    assert os.listdir(f"{store.root}/layers") == [second.config.diff_ids[0][7:]]
    assert store.gc() == 10000
    assert os.listdir(f"{store.root}/layers") == os.listdir(f"{store.root}/images/blobs/sha256") == []


def test_ensure_unpacked_brings_layers_back(store, tmp_path, image):
    record = store.load(f"oci:{image.layout(tmp_path / 'layout')}")
    before = content(store, record)
    shutil.rmtree(layer_path(store.root, record.config.diff_ids[0]))
    store.ensure_unpacked(record)
    assert content(store, record) == before
    assert record.size == 6


def test_a_damaged_blob_is_said_and_gc_forgets_the_image(store, tmp_path, image):
    record = store.load(f"oci:{image.layout(tmp_path / 'layout')}")
    blob = Path(store.blobs.path(record.id))
    blob.write_bytes(b"{}")
    with pytest.raises(WherryError, match="damaged"):
        store.get(record.names[0])
    assert store.list() == []
    store.gc()
    assert store.blobs.entries() == []
    assert os.listdir(f"{store.root}/layers") == []


def test_places_are_private(store, tmp_path, image):
    store.load(f"oci:{image.layout(tmp_path / 'layout')}")
    for name in ("images", "layers", "ingest", "images/blobs/sha256"):
        assert Path(store.root, name).stat().st_mode & 0o777 == 0o700, name
    for layer in Path(store.root, "layers").iterdir():
        assert layer.stat().st_mode & 0o777 == 0o700
        assert (layer / "fs").stat().st_mode & 0o777 == 0o755


def test_kill_at_any_moment_leaves_a_store_that_works(tmp_path, helper):
    """SIGKILL at different moments of a load: names are whole images, gc leaves nothing else."""
    layers = [tar(folder("d"), *[entry(f"d/{n}-{i}", os.urandom(3000)) for i in range(150)]) for n in range(3)]
    layout = Image(*layers).layout(tmp_path / "layout", "x/app:1")
    root = str(tmp_path / "root")
    killed = 0
    for step in range(14):
        pid = os.fork()
        if pid == 0:
            try:
                ImageStore(root, helper=helper).load(f"oci:{layout}")
            finally:
                os._exit(0)
        time.sleep(0.012 * step)
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        store = ImageStore(root, helper=helper)
        for record in store.list():
            assert all(os.path.isdir(layer_path(root, d)) for d in record.config.diff_ids)
    assert killed
    time.sleep(0.3)  # helpers whose writer died read the end of their stream
    store = ImageStore(root, helper=helper)
    record = store.load(f"oci:{layout}")
    store.gc()
    assert sorted(os.listdir(f"{root}/layers")) == sorted(d[7:] for d in record.config.diff_ids)
    assert not [name for name in os.listdir(f"{root}/ingest") if name.startswith((".tmp-", "layer-"))]
    store.remove("x/app:1")
    store.gc()
    assert os.listdir(f"{root}/layers") == []


def test_make_image_is_a_real_and_repeatable_layout(store, tmp_path):
    need("busybox", "umoci")
    for name in ("one", "two"):
        subprocess.run([sys.executable, HERE / "scripts/make_image.py", tmp_path / name], check=True, timeout=60)
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()
    again = subprocess.run(
        [sys.executable, HERE / "scripts/make_image.py", tmp_path / "one"], check=True, capture_output=True, timeout=60
    )
    assert again.stdout == b""
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path}/one:busybox:latest", tmp_path / "out"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    record = store.load(f"oci:{tmp_path / 'one'}")
    assert record.names == ("docker.io/library/busybox:latest",)
    fs = Path(layer_path(store.root, record.config.diff_ids[0]), "fs")
    assert (fs / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "root:x:0:0" in (fs / "etc/passwd").read_text()
    assert (
        subprocess.run(
            ["chroot", fs, "/bin/sh", "-c", "echo hello"], check=True, capture_output=True, timeout=30
        ).stdout
        == b"hello\n"
    )


def test_a_layer_that_comes_twice_packed_differently_is_stored_twice(store, tmp_path):
    """What comes once is unpacked once, but the manifest names both blobs."""
    layer = tar(folder("d"), entry("d/f", b"one"))
    twice = Image(layer, layer)
    twice.layers[1] = twice.put(gzip.compress(layer, 1, mtime=5)) | {"mediaType": twice.layers[0]["mediaType"]}
    twice.seal()
    record = store.load(f"oci:{twice.layout(tmp_path / 'layout')}")
    assert len(set(record.config.diff_ids)) == 1
    assert [store.blobs.read(blob["digest"], 1 << 20) for blob in twice.layers] == [
        twice.blobs[blob["digest"]] for blob in twice.layers
    ]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a file system that cannot hold erofs layers")
def test_a_format_that_cannot_be_leaves_nothing(helper, tmp_path, image):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        with pytest.raises(WherryError) as caught:
            ImageStore(root, helper=helper, snapshot_format="erofs").load(f"oci:{image.layout(tmp_path / 'layout')}")
        assert caught.value.kind is Kind.PRECONDITION
        assert os.listdir(f"{root}/layers") == []


@pytest.mark.parametrize("which", ["unpack", "image.worker"])
def test_ctrl_c_ends_a_pull_whose_parts_hang(tmp_path, which):
    """Stopped as by a disk that does not answer; nothing of it stays."""
    layout = Image(tar(entry("big", os.urandom(24 << 20)))).layout(tmp_path / "layout")
    command = (sys.executable, "-m", "wherry", "--root", tmp_path / "root", "--state", tmp_path / "state", "pull", "-q")
    pull = subprocess.Popen([*command, f"oci:{layout}"], start_new_session=True)
    try:
        hung = _stop_part(pull.pid, which)
        time.sleep(0.5)
        pull.send_signal(signal.SIGINT)
        pull.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pull.pid, signal.SIGKILL)
        pull.wait(20)
    assert pull.returncode == 130
    assert not os.path.exists(f"/proc/{hung}")
    assert [name for name in os.listdir(tmp_path / "root/layers") if name.startswith(".tmp-")] == []


def _stop_part(pid: int, which: str) -> int:
    """Stop the child of a process that has a word on its command line, once it works."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a task or a child that has just gone
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    words = Path(f"/proc/{child}/cmdline").read_bytes().decode()
                    if which in words and (which == "unpack" or len(os.listdir(f"/proc/{child}/task")) > 1):
                        os.kill(int(child), signal.SIGSTOP)
                        return int(child)
    raise AssertionError(f"no child {which}")
