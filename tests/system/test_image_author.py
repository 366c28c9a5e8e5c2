"""Layers and images made here: what an overlay shows before, the image shows after; the same bytes each time."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from image_support import Image, entry, folder, hardlink, need, needs_root, symlink, tar, tree
from wherry.errors import Kind, WherryError
from wherry.image.author import add_image, add_layer, layers_of
from wherry.image.layertar import write_layer, write_tree
from wherry.image.snapshot import Snapshotter
from wherry.image.store import ImageStore
from wherry.kernel.files import remove_tree
from wherry.kernel.mount import opened

pytestmark = [pytest.mark.root, needs_root]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
BASE = tar(
    folder("bin"), entry("bin/a", b"a"), hardlink("bin/b", "bin/a"), folder("gone"), entry("gone/x", b"x"),
    folder("masked"), entry("masked/old", b"old"), folder("deep/er", 0o700), entry("deep/er/file", b"1"),
    entry("file-to-dir", b""), folder("dir-to-file"), entry("dir-to-file/x"), symlink("link", "bin"),
    folder("touched", 0o1777), entry("plain", b"plain"),
)  # fmt: skip


@pytest.fixture
def base(store, tmp_path):
    return store.load(f"oci:{Image(BASE).layout(tmp_path / 'layout', 'base:1')}")


@contextmanager
def merged(snapshots: Snapshotter, key: str):
    with opened(snapshots.mounts(key)) as fd:
        yield Path(f"/proc/self/fd/{fd}")


def shown(snapshots: Snapshotter, key: str) -> dict:
    with merged(snapshots, key) as root:
        return {name: facts for name, facts in tree(root).items() if name != "."}


def change(root: Path) -> None:
    """One of everything that a container can do to its root."""
    (root / "bin/a").write_bytes(b"changed")
    (root / "gone/x").unlink()
    (root / "gone").rmdir()
    (root / "plain").unlink()
    (root / "file-to-dir").unlink()
    for name in ("masked", "dir-to-file"):
        shutil.rmtree(root / name)
    (root / "masked").mkdir(mode=0o750)
    (root / "masked/new").write_bytes(b"new")
    (root / "dir-to-file").write_bytes(b"file now")
    (root / "file-to-dir").mkdir()
    (root / "file-to-dir/in").write_bytes(b"")
    (root / "deep/er/file").chmod(0o4755)
    os.chown(root / "deep/er", 3_000_000, 2_100_000_000)  # beyond ustar's seven digits
    (root / "link").unlink()
    (root / "link").symlink_to("x" * 300)
    (root / "hard1").write_bytes(b"hard")
    os.link(root / "hard1", root / "touched/hard2")
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "device", 0o600 | stat.S_IFBLK, os.makedev(259, 70_000))
    (root / ("n" * 120)).write_bytes(b"long")
    (root / ("d" * 200)).mkdir()
    (root / ("d" * 200) / ("f" * 200)).write_bytes(b"longer")
    (root / "grüße").write_bytes(b"")
    with open(os.fsencode(root) + b"/bytes-\xff\xfe", "wb"):
        pass
    with open(root / "sparse", "wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"island")
    os.utime(root / "sparse", ns=(0, -1_500_000_001))
    os.utime(root / "hard1", ns=(0, 1_600_000_000_123_456_789))
    os.setxattr(root / "sparse", "user.colour", b"blue=\n\0green")
    os.setxattr(root / "bin/a", "security.capability", CAPABILITY)
    os.setxattr(root / "d".ljust(200, "d"), "trusted.mine", b"1")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{root}/touched/socket")


def listed(file: io.BytesIO) -> list[tarfile.TarInfo]:
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        return archive.getmembers()


def commit(store: ImageStore, key: str, record, *, compression: str = "gzip", epoch: int | None = None):
    snapshots = Snapshotter(store.root)
    with store.blobs.lease():
        layer = add_layer(
            store.blobs,
            lambda out: write_layer(snapshots.upper(key), snapshots.lower_paths(key), out, epoch=epoch),
            compression=compression,
        )
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]}}
        return add_image(store, config, [*layers_of(record), layer], [f"made/{key}:{compression}"])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_image_shows_what_the_overlay_showed(store, base, compression):
    snapshots = Snapshotter(store.root)
    snapshots.make("box", base.config.diff_ids)
    with merged(snapshots, "box") as root:
        change(root)
        (root / "touched/socket").unlink()
    before = shown(snapshots, "box")
    record = commit(store, "box", base, compression=compression)
    assert record.names == (f"docker.io/made/box:{compression}",)
    store.ensure_unpacked(record)
    snapshots.make("again", record.config.diff_ids)
    assert shown(snapshots, "again") == before
    assert store.get(f"made/box:{compression}").id == record.id


def test_umoci_unpacks_what_the_overlay_showed(store, base, tmp_path):
    """An independent reader of our layer: whiteouts, links, devices, long names, xattrs."""
    need("umoci")
    snapshots = Snapshotter(store.root)
    snapshots.make("box", base.config.diff_ids)
    with merged(snapshots, "box") as root:
        change(root)
        (root / "touched/socket").unlink()
        os.unlink(os.fsencode(root) + b"/bytes-\xff\xfe")  # umoci's manifest of files wants UTF-8
    before = shown(snapshots, "box")
    record = commit(store, "box", base)
    store.save([(record, record.names)], str(tmp_path / "saved"), "oci-dir")
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path}/saved:{record.names[0]}", tmp_path / "out"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert told(tree(tmp_path / "out")) == told(before)
    assert (tmp_path / "out/hard1").samefile(tmp_path / "out/touched/hard2")


def told(found: dict) -> dict:
    """Without what is no image's (mount points, how many links the overlay shows), and times as umoci keeps them: whole
    seconds, and those of directories change while it unpacks below them."""
    own = {
        name: facts for name, facts in found.items() if name.partition("/")[0] not in (".", "dev", "etc", "proc", "sys")
    }
    seconds = {name: 0 if facts[0].startswith("0o4") else facts[3] // 10**9 for name, facts in own.items()}
    return {name: (*facts[:3], seconds[name], *facts[4:-1]) for name, facts in own.items()}


def test_the_same_change_makes_the_same_bytes(store, base):
    snapshots = Snapshotter(store.root)
    made = []
    for key in ("one", "two"):
        snapshots.make(key, base.config.diff_ids)
        with merged(snapshots, key) as root:
            change(root)
        made.append(commit(store, key, base, epoch=1_000_000_000))
    assert made[0].layers == made[1].layers
    assert made[0].config.diff_ids == made[1].config.diff_ids
    with gzip.open(store.blobs.path(made[0].layers[-1].digest)) as file:
        members = listed(io.BytesIO(file.read()))
    assert max(member.mtime for member in members) == 1_000_000_000
    names = [member.name for member in members]
    assert "touched/socket" not in names
    assert "masked/.wh..wh..opq" in names  # something is hidden there
    assert "d" * 200 + "/.wh..wh..opq" not in names  # overlayfs marks it, but nothing is below
    assert names == sorted(names, key=lambda name: [os.fsencode(part) for part in name.replace(".wh.", "").split("/")])


def test_what_is_stored_is_what_gzip_and_tar_read(store, base, tmp_path):
    need("tar", "gzip")
    data = os.urandom(3_000_000) + bytes(5_000_000)

    def write(out):
        for at in range(0, len(data), 700_001):
            out(data[at : at + 700_001])

    for compression, unpack in (("gzip", ["gzip", "-dc"]), ("zstd", ["zstd", "-dc"]), ("none", ["cat"])):
        layer = add_layer(store.blobs, write, compression=compression)
        blob = Path(store.blobs.path(layer.descriptor.digest))
        assert layer.descriptor.size == blob.stat().st_size
        assert layer.descriptor.digest == "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest()
        assert layer.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
        need(unpack[0])
        with open(blob, "rb") as file:
            assert subprocess.run(unpack, stdin=file, capture_output=True, check=True, timeout=60).stdout == data
    assert not [name for name in os.listdir(store.blobs.ingest) if name.startswith(".tmp-")]
    with pytest.raises(WherryError) as caught:
        add_layer(store.blobs, write, compression="lz4")
    assert caught.value.kind is Kind.INVALID


def test_a_root_of_its_own_rights_is_kept_and_a_plain_one_left_out(store, base):
    snapshots = Snapshotter(store.root)
    snapshots.make("plain", base.config.diff_ids)
    snapshots.make("own", base.config.diff_ids)
    with merged(snapshots, "own") as root:
        root.chmod(0o711)
    for key, expected in (("plain", []), ("own", ["."])):
        out = io.BytesIO()
        write_layer(snapshots.upper(key), snapshots.lower_paths(key), out.write)
        assert [member.name for member in listed(out)] == expected


def test_a_deep_tree_and_a_tree_with_mounts(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1500):  # deeper than descriptors and PATH_MAX allow
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    out = io.BytesIO()
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    write_tree(top, out.write)
    os.close(top)
    remove_tree(str(tmp_path / "d"))  # pytest's own removal recurses
    assert len(listed(out)) == 1500
