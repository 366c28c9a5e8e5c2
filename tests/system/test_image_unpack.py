"""Layers through the confined helper: what tars may say, what they may never do, whiteouts, limits, full disks.

This is the contract of a snapshot format: every test that unpacks runs once for each of them. What only one of them
has, and that they agree, is in test_image_formats.py.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from image_support import (
    FORMATS,
    Image,
    entry,
    folder,
    hardlink,
    need,
    need_format,
    needs_root,
    sha,
    symlink,
    tar,
    tree,
)
from wherry.errors import Kind, WherryError
from wherry.image.snapshot import Snapshotter, layer_path
from wherry.image.store import ImageStore
from wherry.image.unpack import LayerLimits, Unpacker
from wherry.kernel import mount

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(params=FORMATS)
def unpack(request, tmp_path, helper):
    """unpack(tar) -> the directory of the layer."""
    root = tmp_path / "store/root"
    need_format(request.param, tmp_path, helper)

    def run(data: bytes, limits: LayerLimits | None = None, userxattr: bool = False) -> Path:
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        diff_id = sha(data)
        root.mkdir(parents=True, exist_ok=True)
        # erofs is not for user namespaces
        how = {"userxattr": userxattr, "snapshot_format": "directory" if userxattr else request.param}
        with Unpacker(str(root), helper=helper, limits=limits, **how) as unpacker:
            unpacker.unpack(str(blob), diff_id, lambda _done, _total: None, threading.Event())
        mount.settle(Snapshotter(str(root)).below([diff_id]))
        return Path(layer_path(str(root), diff_id), "fs")

    yield run
    ImageStore(str(root)).unmount_layers()


@pytest.fixture
def outside(tmp_path):
    """A tree that no layer may touch; compared afterwards."""
    place = tmp_path / "store/outside"
    (place / "dir").mkdir(parents=True)
    (place / "secret").write_text("secret")
    (place / "dir/file").write_text("file")
    before = tree(place)
    yield place
    assert tree(place) == before


UP = "../../../../outside"  # from ROOT/layers/<temporary>/fs


def refused(unpack, data: bytes, words: str, kind: Kind = Kind.INVALID) -> WherryError:
    with pytest.raises(WherryError, match=words) as caught:
        unpack(data)
    assert caught.value.kind is kind
    return caught.value


# ---- hostile archives


@pytest.mark.parametrize("name", ["../x", "a/../../x", f"{UP}/secret", "/../x", "./../x", "..", "a/../.."])
def test_a_name_that_climbs_out_is_refused(unpack, outside, name, tmp_path):
    refused(unpack, tar(folder("a"), entry(name, b"evil")), "leaves the layer")
    assert not any((tmp_path / "store/root/layers").iterdir())


def test_absolute_names_stay_inside(unpack, outside):
    fs = unpack(tar(entry(f"{outside}/secret", b"evil"), entry("//etc//passwd", b"x"), entry("a/./b/../c", b"clean")))
    assert (fs / str(outside).lstrip("/") / "secret").read_bytes() == b"evil"
    assert (fs / "etc/passwd").read_bytes() == b"x"
    assert (fs / "a/c").read_bytes() == b"clean"


@pytest.mark.parametrize("target", ["{outside}", UP, "/proc/self/root{outside}", "/proc/self/cwd", "../" * 30 + "etc"])
def test_writing_through_symlinks_stays_inside(unpack, outside, target):
    target = target.format(outside=outside)
    fs = unpack(tar(symlink("link", target), entry("link/secret", b"evil"), entry("link/dir/file", b"evil"),
                    symlink("hop", "link"), entry("hop/third", b"evil"), folder("link/dir", 0o777)))  # fmt: skip
    assert os.readlink(fs / "link") == target
    assert len([path for path in fs.rglob("*") if path.is_file() and not path.is_symlink()]) == 3


def test_symlink_loops_end(unpack):
    refused(unpack, tar(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"")), "symlink|symbolic")


def test_a_final_symlink_is_replaced_not_followed(unpack, outside):
    fs = unpack(
        tar(symlink("x", f"{outside}/secret"), entry("x", b"new"), symlink("d", f"{outside}/dir"), folder("d", 0o700))
    )
    assert (fs / "x").read_bytes() == b"new"
    assert not (fs / "x").is_symlink()
    assert (fs / "d").is_dir()
    assert not (fs / "d").is_symlink()


@pytest.mark.parametrize("target", ["../../../../outside/secret", "/../x"])
def test_hard_links_to_climbing_names_are_refused(unpack, outside, target):
    refused(unpack, tar(hardlink("x", target)), "leaves the layer")


def test_hard_links_through_symlinks_stay_inside(unpack, outside):
    refused(unpack, tar(symlink("up", str(outside)), hardlink("x", "up/secret")), "hard link")
    refused(
        unpack,
        tar(symlink("s", f"{outside}/secret"), hardlink("x", "s"), entry("y", b""), hardlink("x2", "nothing")),
        "hard link",
    )


def test_a_hard_link_to_a_symlink_links_the_symlink(unpack, outside):
    fs = unpack(tar(symlink("s", f"{outside}/secret"), hardlink("x", "s")))
    assert os.readlink(fs / "x") == f"{outside}/secret"
    assert (fs / "x").lstat().st_nlink == 2


@pytest.mark.parametrize("bad", [entry(".", b"x"), symlink("./", "/etc"), hardlink(".", "x"), hardlink("x", ".")])
def test_the_root_is_a_directory_and_nothing_else(unpack, bad):
    with pytest.raises(WherryError, match="root"):
        unpack(tar(entry("x", b""), bad))


def test_the_root_takes_mode_owner_and_time(unpack):
    fs = unpack(tar(folder("./", 0o1750, uid=3, gid=4, mtime=77), entry("a", b"")))
    status = fs.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o1750, 3, 4, 77)


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh..."])
def test_whiteouts_without_a_name_are_refused(unpack, name):
    refused(unpack, tar(entry(name.decode(), b"")), "whiteout without a name")


def test_devices_arrive_with_numbers_and_zero_device_is_only_a_whiteout(unpack):
    fs = unpack(
        tar(
            entry("null", kind=b"3", devmajor=1, devminor=3, mode=0o666),
            entry("big", kind=b"4", devmajor=259, devminor=70000),
            entry("zero", kind=b"3", devmajor=0, devminor=0),
        )
    )
    assert (fs / "null").stat().st_rdev == os.makedev(1, 3)
    assert (fs / "big").lstat().st_rdev == os.makedev(259, 70000)
    assert stat.S_ISBLK((fs / "big").lstat().st_mode)
    assert (fs / "zero").stat().st_rdev == 0


def test_xattrs_of_overlay_and_of_the_host_are_left_out(unpack):
    pax = {
        "SCHILY.xattr.trusted.overlay.redirect": "/../../etc", "SCHILY.xattr.trusted.overlay.metacopy": "",
        "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "system_u:object_r:shadow_t:s0",
        "SCHILY.xattr.user.mine": "kept", "LIBARCHIVE.xattr.user.a%20b": "aGVsbG8",
    }  # fmt: skip
    fs = unpack(tar(folder("d", pax=pax), entry("f", b"x", pax={"SCHILY.xattr.trusted.mine": "t"})))
    assert {name: os.getxattr(fs / "d", name) for name in os.listxattr(fs / "d")} == {
        "user.mine": b"kept",
        "user.a b": b"hello",
    }
    assert os.getxattr(fs / "f", "trusted.mine") == b"t"


def test_file_capabilities_survive_the_owner(unpack):
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    body = _pax_block({b"SCHILY.xattr.security.capability": capability})
    fs = unpack(body + info_block("ping", b"x", mode=0o755, uid=5))
    assert os.getxattr(fs / "ping", "security.capability") == capability
    assert (fs / "ping").stat().st_uid == 5


def _record(key: bytes, value: bytes) -> bytes:
    total = len(key) + len(value) + 3
    total += len(str(total + len(str(total))))  # the number counts its own digits
    return f"{total} ".encode() + key + b"=" + value + b"\n"


def header(
    name: bytes, size: int, kind: bytes = b"0", *, mode: int = 0o644, uid: int = 0, raw: dict[int, bytes] | None = None
) -> bytes:
    """One ustar header by hand; `raw`: bytes at offsets."""
    block = bytearray(512)
    block[0 : len(name)] = name
    for at, width, number in ((100, 8, mode), (108, 8, uid), (116, 8, 0), (124, 12, size), (136, 12, 0)):
        block[at : at + width] = f"{number:0{width - 1}o}\0".encode()
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    for at, data in (raw or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def info_block(name: str, data: bytes, **more) -> bytes:
    return header(name.encode(), len(data), **more) + padded(data)


def _pax_block(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b"".join(_record(key, value) for key, value in records.items())
    return header(b"pax", len(body), kind) + padded(body)


# ---- forms of tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_give_the_same_tree(unpack, form):
    long_name = "/".join(["d" * 60, "e" * 60, "f" * 90]) if form == tarfile.USTAR_FORMAT else "n" * 250
    names = [folder("a"), entry("a/f", b"1" * 1000, uid=1000, gid=1001, mtime=1000000000), entry(long_name[:240], b"2"),
             symlink("s", "a/f" if form == tarfile.USTAR_FORMAT else "t" * 1000), hardlink("h", "a/f")]  # fmt: skip
    fs = unpack(tar(*names, form=form))
    assert (fs / "h").stat().st_nlink == 2
    assert (fs / long_name[:240]).read_bytes() == b"2"
    assert (fs / "a/f").stat().st_mtime == 1000000000
    assert (fs / "a/f").stat().st_uid == 1000


def test_binary_numbers_and_negative_times(unpack):
    big = header(
        b"f", 1, raw={108: b"\x80" + (70000).to_bytes(7, "big"), 136: b"\xff" + (-5).to_bytes(11, "big", signed=True)}
    )
    fs = unpack(big + padded(b"x") + _pax_block({b"mtime": b"-1.5"}) + info_block("g", b""))
    assert (fs / "f").stat().st_uid == 70000
    assert (fs / "f").stat().st_mtime == -5
    assert (fs / "g").stat().st_mtime_ns == -1500000000


def test_times_to_the_nanosecond_also_of_directories(unpack):
    fs = unpack(
        tar(
            folder("d", mtime=11, pax={"mtime": "1500000000.123456789"}),
            entry("d/f", b"", pax={"mtime": "1.000000001"}),
        )
    )
    assert (fs / "d").stat().st_mtime_ns == 1500000000123456789
    assert (fs / "d/f").stat().st_mtime_ns == 1000000001


def test_a_missing_trailer_and_padding_are_tolerated(unpack):
    assert (unpack(info_block("f", b"data")[: 512 + 4]) / "f").read_bytes() == b"data"
    assert (unpack(info_block("g", b"data") + bytes(512)) / "g").read_bytes() == b"data"
    assert list(unpack(b"").iterdir()) == []
    assert list(unpack(bytes(10240)).iterdir()) == []


def test_what_follows_the_end_is_ignored_but_hashed(unpack):
    fs = unpack(tar(entry("f", b"1")) + b"garbage" * 1000)
    assert (fs / "f").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (info_block("f", b"x" * 600)[:900], "inside a member"),
        (info_block("f", b"x")[:300], "inside a header"),
        (b"\0" * 300, "inside a header"),
        (b"not a tar" * 100, "checksum"),
        (header(b"pax", 10, b"x") + padded(b"99 path=x\n"), "malformed"),
        (header(b"pax", 12, b"x") + padded(b"12 pathxxxx\n") + info_block("f", b""), "malformed"),
        (header(b"pax", 1 << 30, b"x"), "too large"),
        (header(b"L", 5000, b"L") + padded(b"x" * 5000), "too large"),
        (_pax_block({b"path": b"a\0b"}) + info_block("f", b""), "NUL"),
        (_pax_block({b"size": b"18446744073709551617"}) + info_block("f", b""), "malformed"),
        (_pax_block({b"size": b"-1"}) + info_block("f", b""), "malformed"),
        (_pax_block({b"uid": b"4294967295"}) + info_block("f", b""), "out of range"),
        (_pax_block({b"path": b"x" * 4096}) + info_block("f", b""), "longer than 4095"),
        (_pax_block({b"path": b"f"}), "after an extended header"),
        (header(b"f", 0, b"Q"), "unknown type"),
        (header(b"", 0), "no name"),
        (info_block("a", b"") + info_block("a/b", b""), "parent is not a directory"),
        (header(b"f", 0, raw={124: b"\x80" + b"\xff" * 11}), "malformed|out of range"),
        (
            header(b"f", 5, b"S", raw={386: b"00000000000\x0000000000005\0", 483: b"00000000003\0"}) + padded(b"12345"),
            "outside",
        ),
    ],
)
def test_malformed_archives_are_refused_with_words(unpack, data, words):
    refused(unpack, data, words)


def test_component_longer_than_the_file_system_allows(unpack):
    refused(unpack, tar(entry("x" * 300, b"")), "too long")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_gnu_tar(unpack, tmp_path, arguments):
    need("tar")
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        for number in range(40):
            file.seek(number * 1000000)
            file.write(b"%d" % number * 5000)
        file.truncate(50_000_000)
    (source / "z").write_bytes(b"after")
    data = subprocess.run(
        ["tar", "-C", source, *arguments, "--sparse", "-cf", "-", "."], check=True, capture_output=True, timeout=60
    ).stdout
    assert len(data) < 5_000_000
    fs = unpack(data)
    assert (fs / "sparse").read_bytes() == (source / "sparse").read_bytes()
    kept = fs.parent / "layer.erofs" if (fs.parent / "layer.erofs").exists() else fs / "sparse"
    assert kept.stat().st_blocks * 512 < 5_000_000
    assert (fs / "z").read_bytes() == b"after"


def test_a_real_tree_is_as_tar_unpacks_it(unpack, tmp_path):
    need("tar")
    source = "/usr/share/doc" if Path("/usr/share/doc").is_dir() else "/etc"
    data = subprocess.run(
        ["tar", "--xattrs", "-C", source, "-cf", "-", "."], check=True, capture_output=True, timeout=120
    ).stdout
    (tmp_path / "theirs").mkdir()
    subprocess.run(["tar", "--xattrs", "-C", tmp_path / "theirs", "-xpf", "-"], input=data, check=True, timeout=120)
    assert tree(unpack(data)) == tree(tmp_path / "theirs")


# ---- entries that meet each other


def test_later_entries_replace_earlier_ones(unpack):
    fs = unpack(
        tar(
            entry("f", b"1"),
            entry("f", b"2"),
            folder("d"),
            entry("d/x", b""),
            folder("d/deep/er"),
            entry("d/deep/er/y", b""),
            entry("d", b"file now"),
            entry("g", b""),
            folder("g"),
            entry("g/in", b"x"),
            symlink("l", "f"),
            entry("l", b"l"),
            folder("e"),
            symlink("e", "f"),
            folder("k", 0o700),
            entry("k/stays", b""),
            folder("k", 0o755),
        )
    )
    assert (fs / "f").read_bytes() == b"2"
    assert (fs / "d").read_bytes() == b"file now"
    assert (fs / "g/in").read_bytes() == b"x"
    assert (fs / "l").read_bytes() == b"l"
    assert (fs / "f").read_bytes() == b"2"
    assert os.readlink(fs / "e") == "f"
    assert (fs / "k/stays").exists()
    assert stat.S_IMODE((fs / "k").stat().st_mode) == 0o755


def test_a_hard_link_onto_itself_keeps_the_file(unpack):
    fs = unpack(tar(entry("f", b"data"), hardlink("f", "f"), hardlink("g", "f"), hardlink("g", "./f")))
    assert (fs / "f").read_bytes() == (fs / "g").read_bytes() == b"data"


def test_missing_parents_are_made_through_dangling_links(unpack):
    fs = unpack(
        tar(
            symlink("var/run", "/run"),
            entry("var/run/app/pid", b"1"),
            symlink("x/rel", "../y/z"),
            entry("x/rel/f", b"2"),
        )
    )
    assert (fs / "run/app/pid").read_bytes() == b"1"
    assert (fs / "y/z/f").read_bytes() == b"2"


def test_whiteouts_hide_below_and_never_here(unpack):
    fs = unpack(
        tar(
            folder("both"),
            entry("both/f", b""),
            entry(".wh.both", b""),
            entry(".wh.later", b""),
            folder("later"),
            entry(".wh.implied", b""),
            entry("implied/f", b"x"),
            entry("file", b"x"),
            entry(".wh.file", b""),
            entry(".wh.gone", b""),
            entry("op/.wh..wh..opq", b""),
            entry(".wh..wh.plnk", b"aufs"),
            entry(".wh..wh.aufs", b""),
        )
    )
    for name in ("both", "later", "implied", "op"):
        assert os.getxattr(fs / name, "trusted.overlay.opaque") == b"y", name
    assert (fs / "implied/f").read_bytes() == b"x"
    assert (fs / "file").read_bytes() == b"x"
    assert (fs / "gone").stat().st_rdev == 0
    assert (fs / "gone").is_char_device()
    assert sorted(path.name for path in fs.iterdir()) == ["both", "file", "gone", "implied", "later", "op"]


def test_user_xattrs_for_user_namespaces(unpack):
    fs = unpack(tar(entry("d/.wh..wh..opq", b"")), userxattr=True)
    assert os.getxattr(fs / "d", "user.overlay.opaque") == b"y"


@pytest.mark.parametrize("form", FORMATS)
def test_whiteouts_work_in_a_real_overlay(tmp_path, helper, form):
    need_format(form, tmp_path, helper)
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format=form)
    low = tar(folder("d"), entry("d/old", b""), entry("f", b""), folder("sub/x"), entry("keep", b"k"))
    high = tar(entry("d/.wh..wh..opq", b""), entry("d/new", b""), entry(".wh.f", b""), entry(".wh.sub", b""))
    record = store.load(f"oci:{Image(low, high).layout(tmp_path / 'layout')}")
    snapshots = Snapshotter(store.root)
    mount.settle(snapshots.below(record.config.diff_ids))
    (overlay,) = snapshots.prepare("test", record.config.diff_ids)
    target = tmp_path / "merged"
    target.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "-o", ",".join(overlay.options), "overlay", str(target)], check=True, timeout=30
    )
    try:
        assert sorted({*os.listdir(target)} - {"dev", "etc", "proc", "sys"}) == ["d", "keep"]  # those are mounted on
        assert os.listdir(target / "d") == ["new"]
        assert list(snapshots.diff("test")) == []
        (target / "d/more").write_text("x")
        (target / "keep").write_text("changed")
        os.mkdir(target / "f")
        os.unlink(target / "d/new")
        assert list(snapshots.diff("test")) == [
            ("C", "/d"),
            ("A", "/d/more"),
            ("D", "/d/new"),
            ("A", "/f"),
            ("C", "/keep"),
        ]
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=30)
    assert snapshots.usage("test")[1] == 6  # the root, d, more, new (whiteout), f, keep
    with pytest.raises(WherryError, match="exists already"):
        snapshots.prepare("test", record.config.diff_ids)
    store.remove(record.id)
    assert len(os.listdir(tmp_path / "root/layers")) == 2, "a snapshot still uses them"
    snapshots.remove("test")
    store.gc()
    assert os.listdir(tmp_path / "root/layers") == []


# ---- limits


def test_a_decompression_bomb_is_stopped(tmp_path, helper):
    store = ImageStore(str(tmp_path / "root"), helper=helper, limits=LayerLimits(free=1 << 20))
    layout = Image(tar(entry("zeros", bytes(20 << 20)))).layout(tmp_path / "layout")
    with pytest.raises(WherryError, match=r"inflates to more|larger than"):
        store.load(f"oci:{layout}")
    assert os.listdir(tmp_path / "root/layers") == []


def test_too_many_entries(unpack):
    with pytest.raises(WherryError, match="more entries"):
        unpack(tar(*[entry(f"f{i}", b"") for i in range(50)]), LayerLimits(entries=20))


def test_a_wrong_diff_id_publishes_nothing(tmp_path, helper):
    image = Image(tar(entry("f", b"1")))
    other = Image(tar(entry("f", b"2")))
    image.manifest_json["layers"] = other.layers
    image.blobs |= other.blobs
    image.seal()
    store = ImageStore(str(tmp_path / "root"), helper=helper)
    with pytest.raises(WherryError, match="diff id") as caught:
        store.load(f"oci:{image.layout(tmp_path / 'layout')}")
    assert caught.value.kind is Kind.INVALID
    assert os.listdir(tmp_path / "root/layers") == []
    assert store.list() == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "zstd"])
def test_damaged_compression(tmp_path, helper, damage):
    layer = tar(entry("f", os.urandom(300000)))
    image = Image(layer)
    packed = gzip.compress(layer, 6, mtime=0)
    bad = {
        "truncate": packed[:-5000],
        "flip": packed[:1000] + b"\xff" * 50 + packed[1050:],
        "zstd": b"\x28\xb5\x2f\xfd" + packed,
    }[damage]
    image.manifest_json["layers"] = [image.put(bad) | {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}]
    image.seal()
    with pytest.raises(WherryError) as caught:
        ImageStore(str(tmp_path / "root"), helper=helper).load(f"oci:{image.layout(tmp_path / 'layout')}")
    assert caught.value.kind is Kind.INVALID
    assert os.listdir(tmp_path / "root/layers") == []


def test_multi_member_gzip_and_padding(tmp_path, helper):
    layer = tar(entry("f", b"x" * 100000))
    image = Image(layer)
    packed = gzip.compress(layer[:5000], mtime=0) + gzip.compress(layer[5000:], mtime=0) + bytes(700)
    image.manifest_json["layers"] = [image.put(packed) | {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}]
    image.seal()
    record = ImageStore(str(tmp_path / "root"), helper=helper).load(f"oci:{image.layout(tmp_path / 'layout')}")
    assert Path(layer_path(str(tmp_path / "root"), record.config.diff_ids[0]), "fs/f").stat().st_size == 100000


@pytest.mark.parametrize("size", ["300k", "1500k"])
def test_a_full_disk_is_one_clear_sentence(tmp_path, helper, size):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", f"wherry-{tmp_path.name}", str(place)], check=True, timeout=30
    )
    try:
        store = ImageStore(str(place / "root"), helper=helper)
        layout = Image(tar(entry("a", os.urandom(500_000)), entry("b", bytes(3_000_000)))).layout(tmp_path / "layout")
        with pytest.raises(WherryError, match="No space left") as caught:
            store.load(f"oci:{layout}")
        assert caught.value.kind is Kind.EXHAUSTED
        assert store.list() == []
        assert [name for name in _children(place / "root/layers") if not name.startswith(".tmp-")] == []
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


def _children(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() else []


def test_a_killed_helper_and_cancelling_leave_nothing(tmp_path, helper):
    layer = tar(*[entry(f"f{i}", b"x" * 2000) for i in range(3000)])
    blob = tmp_path / "blob"
    blob.write_bytes(layer)
    stop = threading.Event()
    stop.set()
    with pytest.raises(WherryError, match="cancelled"), Unpacker(str(tmp_path / "root"), helper=helper) as unpacker:
        unpacker.unpack(str(blob), sha(layer), lambda _a, _b: None, stop)
    assert os.listdir(tmp_path / "root/layers") == []
    assert os.listdir(tmp_path / "root/ingest") == []


def test_the_helper_has_no_network_no_other_root_and_few_rights(tmp_path, helper):
    """Look at a helper that waits in the middle of a stream."""
    root = tmp_path / "layer"
    root.mkdir()
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    program = helper()
    high = [os.dup(directory), os.dup(program)]
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    pid = os.posix_spawn(f"/proc/self/fd/{high[1]}", ["wherry-helper", "unpack"], {}, file_actions=[
        (os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_DUP2, out_write, 1), (os.POSIX_SPAWN_DUP2, high[0], 3),
    ])  # fmt: skip
    try:
        os.write(write, info_block("f", b"x") + header(b"g", 1000))
        deadline = time.monotonic() + 10
        while not (root / "g").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        assert re.search(r"^Max cpu time +3600 +3600 ", Path(f"/proc/{pid}/limits").read_text(), re.M)
        allowed = sum(1 << bit for bit in (0, 1, 3, 4, 21, 27, 31))
        assert int(status["CapEff"], 16) & ~allowed == 0
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert os.listdir(f"/proc/{pid}/root") == ["f", "g"] or sorted(os.listdir(f"/proc/{pid}/root")) == ["f", "g"]
        assert len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) == 1
        fds = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        assert len(fds) <= 6
    finally:
        os.close(write)
        os.waitpid(pid, 0)
        for fd in (read, out_read, out_write, directory, program, *high):
            os.close(fd)


def test_renames_elsewhere_spoil_nothing(unpack, tmp_path):
    """The kernel refuses ".." (EAGAIN) where any rename on the machine raced with it: an image is not bad for that."""
    storm = "import os, sys\nos.chdir(sys.argv[1])\nopen('a', 'w')\nwhile 1: os.rename('a', 'b'), os.rename('b', 'a')"
    other = subprocess.Popen([sys.executable, "-c", storm, tmp_path])
    links = (folder("d"), folder("e"), symlink("d/l", "../e"), symlink("d/m", "../d/../e/../e/../e/../e/../e"))
    try:
        layer = unpack(tar(*links, *[entry(f"d/{'lm'[i % 2]}/{i}") for i in range(20000)]))
    finally:
        other.kill()
        other.wait(10)
    assert len(os.listdir(layer / "e")) == 20000
