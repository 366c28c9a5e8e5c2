"""The snapshot formats against each other and against tar, umoci and podman; when a layer is which.

That each does what an archive says is test_image_unpack.py; how long a layer stays mounted, test_layer_mounts.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import stat
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    write_layout,
)
from wherry.errors import Kind, WherryError
from wherry.image.snapshot import Snapshotter, layer_path
from wherry.image.store import ImageStore
from wherry.image.unpack import Unpacker
from wherry.kernel import mount

pytestmark = [pytest.mark.root, needs_root]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


class Layers:
    """A store for each format. `layers(form, tar)`: the directory of the layer; `drop()` when an example is done."""

    def __init__(self, place: Path, helper: Callable[[], int]) -> None:
        self.place, self.blob = place, place / "blob"
        place.mkdir(exist_ok=True)
        self.unpackers = {form: Unpacker(self.root(form), helper=helper, snapshot_format=form) for form in FORMATS}

    def root(self, form: str) -> str:
        return str(self.place / form)

    def __call__(self, form: str, data: bytes) -> Path:
        self.blob.write_bytes(data)
        diff_id = sha(data)
        self.unpackers[form].unpack(str(self.blob), diff_id, lambda _done, _total: None, threading.Event())
        mount.settle(Snapshotter(self.root(form)).below([diff_id]))
        return Path(layer_path(self.root(form), diff_id), "fs")

    def drop(self) -> None:
        for form in FORMATS:
            ImageStore(self.root(form)).unmount_layers()
            subprocess.run(["rm", "-rf", "--one-file-system", f"{self.root(form)}/layers"], check=True, timeout=60)


@pytest.fixture
def layers(tmp_path, helper) -> Iterator[Layers]:
    need_format("erofs", tmp_path, helper)
    made = Layers(tmp_path / "layers", helper)
    yield made
    made.drop()
    for unpacker in made.unpackers.values():
        unpacker.close()


def seen(layers: Layers, form: str, data: bytes) -> dict[str, Any] | Kind:
    """What an archive becomes, or that it is refused. Times of what no entry names are the clock's."""
    try:
        found = tree(layers(form, data))
    except WherryError as error:
        return error.kind
    return {name: (*facts[:3], _time(facts), *facts[4:]) for name, facts in found.items()}


def _time(facts: tuple[Any, ...]) -> int:
    """A directory's may be lost in `directory`, where a later link stands in the way to it."""
    return 0 if facts[0].startswith("0o4") or facts[3] > 1_700_000_000 * 10**9 else facts[3]


def same(layers: Layers, data: bytes) -> None:
    try:
        ours, theirs = (seen(layers, form, data) for form in ("erofs", "directory"))
        assert ours == theirs
        assert ours is not Kind.INTERNAL
    finally:
        layers.drop()


# ---- any archive


NAMES = [
    "a",
    "b",
    "a/b",
    "a/c",
    "b/a",
    "a/b/c",
    "l",
    "l/x",
    "m/y",
    "l/a/b",
    "d",
    "a/./b",
    "b/l",
    "b/l/z",
    "./",
    "-x",
    "a/+q",
    "n" * 100,
    "x" * 255,
    "b/" + "y" * 200,
    "d/e/f",
    "/abs/p",
    "a//b//d",
    "\u00e9/\u00fc",
]
SPECIAL = [
    ".wh.a",
    "a/.wh.b",
    "b/.wh..wh..opq",
    ".wh.l",
    ".wh..wh.x",
    ".wh..wh..opq",
    ".wh.d",
    "l/.wh.q",
    "../x",
    "x" * 256,
]
TARGETS = ["a", "b", "/a", "../b", "a/b", "l", "m", "../x", "b/l", "/nope/deep", "d/e", "l/a", ".", "/", "n" * 100]
MODES = [0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o7777]
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
OF_ROOTS = [struct.pack("<6I", 0x03000001, 1 << 10, 0, 0, 0, root) for root in (0, 1000, 0xFFFFFFFF)]


def ace(tag: int, perm: int, who: int = 0xFFFFFFFF) -> bytes:
    return struct.pack("<HHI", tag, perm, who)


def acl(perms: tuple[int, ...], *, extended: bool, version: int = 2) -> bytes:
    """An access control list as setfacl writes it."""
    user, one, group, other_group, mask, other = perms
    more = (ace(2, one, 5), ace(8, other_group, 9), ace(16, mask)) if extended else (b"", b"", b"")
    return struct.pack("<I", version) + ace(1, user) + more[0] + ace(4, group) + more[1] + more[2] + ace(32, other)


LISTS = st.builds(acl, st.tuples(*[st.integers(0, 7)] * 6), extended=st.booleans())
ATTRIBUTES = st.one_of(
    st.tuples(st.sampled_from(["user.a", "user.b", "trusted.z", "user." + "q" * 200]), st.binary(max_size=60)),
    st.tuples(st.just("security.capability"), st.sampled_from([CAPABILITY, *OF_ROOTS])),
    st.tuples(st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"]), LISTS),
    st.tuples(st.sampled_from(["user.", "security.capability", "system.posix_acl_access"]), st.binary(max_size=24)),
)


@st.composite
def archives(draw: Any) -> bytes:
    """Entries that meet: few names, many kinds."""
    out = io.BytesIO()
    archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # not always ended
    names: list[str] = []
    for _ in range(draw(st.integers(1, 16))):
        info = tarfile.TarInfo(draw(st.sampled_from(NAMES + NAMES + SPECIAL)))
        info.type = draw(
            st.sampled_from([b"0", b"0", b"0", b"5", b"5", b"5", b"2", b"2", b"1", b"3", b"4", b"6", b"7"])
        )
        if info.name == "./":
            info.type = tarfile.DIRTYPE
        info.mode, info.uid = draw(st.sampled_from(MODES)), draw(st.sampled_from([0, 5, 100000]))
        info.gid, info.mtime = draw(st.sampled_from([0, 7])), draw(st.sampled_from([0, 1, 1000000000, -5]))
        if info.type in (b"1", b"2"):
            info.linkname = draw(st.sampled_from(names or TARGETS) if info.type == b"1" else st.sampled_from(TARGETS))
        if info.type == b"3":
            info.devmajor, info.devminor = draw(st.sampled_from([(0, 0), (1, 3), (5, 70000)]))
        data = bytes([draw(st.integers(0, 255))]) * draw(st.sampled_from([0, 1, 511, 512, 513, 5000]))
        data = data if info.type in (b"0", b"7") else b""
        info.size = len(data)
        if draw(st.integers(0, 3)) == 0:
            pairs = draw(st.lists(ATTRIBUTES, min_size=1, max_size=3))
            info.pax_headers = {f"SCHILY.xattr.{k}": v.decode("utf-8", "surrogateescape") for k, v in pairs}
        names.append(info.name)
        archive.addfile(info, io.BytesIO(data))
    if draw(st.booleans()):
        archive.close()
    return out.getvalue()


@pytest.mark.seconds(1800)
@settings(max_examples=int(os.environ.get("WHERRY_FORMATS", "150")), deadline=None, suppress_health_check=QUIET)
@given(data=archives())
def test_any_archive_means_the_same_in_both(layers, data):
    same(layers, data)


@pytest.mark.seconds(1800)
@settings(max_examples=int(os.environ.get("WHERRY_FORMATS", "150")), deadline=None, suppress_health_check=QUIET)
@given(data=archives(), seed=st.integers(0, 1 << 30))
def test_damaged_archives_have_the_same_end(layers, data, seed):
    """Bytes changed at random, half of the time with checksums put right, so that what is behind them is read."""
    chance, damaged = random.Random(seed), bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    if chance.random() < 0.5:
        for at in range(0, len(damaged) - 511, 512):
            block = damaged[at : at + 512]
            if block[257:262] == b"ustar":
                damaged[at + 148 : at + 156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    if chance.random() < 0.1:
        del damaged[chance.randrange(len(damaged)) :]
    same(layers, bytes(damaged))


HARD = [
    [folder("a"), folder("a/b"), hardlink("a", "a/b")],
    [folder("a"), entry("a/f", b""), hardlink("a", "a/f")],
    [folder("a"), hardlink("c", "a")],
    [folder("a"), entry("c", b""), hardlink("c", "a")],
    [folder("a"), hardlink("a", "a")],
]


@pytest.mark.parametrize("entries", HARD, ids=range(len(HARD)))
def test_hard_links_and_directories(layers, entries):
    """To a directory, to what the link itself replaces, to itself."""
    same(layers, tar(*entries))


# ---- what the format has to hold


def test_huge_directories_and_names(layers):
    """Blocks of names are searched by halves: every name is found, and no other."""
    names = [f"d/{number:x}" for number in range(20000)] + [f"d/{'n' * 240}{number}" for number in range(300)]
    names += ["d/" + "".join(chr(33 + i) for i in range(90) if chr(33 + i) not in "/") + "z" * 100, "d/...", "d/..a"]
    random.Random(1).shuffle(names)
    fs = layers("erofs", tar(folder("d", mtime=1), *[entry(name, name.encode()) for name in names]))
    assert sorted(os.listdir(fs / "d")) == sorted(name[2:] for name in names)
    for name in [*names[::37], names[0], names[-1], "d/...", "d/..a"]:
        assert (fs / name).read_bytes() == name.encode()
    assert not [name for name in ("d/", "d/zz", "d/0x", "d/ ", "d/~~~", "d/4e2") if (fs / f"{name}~").exists()]


def test_names_that_are_no_text(layers):
    blocks = io.BytesIO()
    with tarfile.open(fileobj=blocks, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("\xff\xfe", "a\x01\x7f", "\xe9" * 250, "line\nend"):
            archive.addfile(tarfile.TarInfo(name))
    fs = layers("erofs", blocks.getvalue())
    assert sorted(os.listdir(os.fsencode(fs))) == sorted([b"\xff\xfe", b"a\x01\x7f", b"\xe9" * 250, b"line\nend"])


def test_symlinks_of_every_length(layers):
    """Short ones lie behind their inode, and must not cross a block; long ones have blocks of their own."""
    lengths = [*range(1, 600, 7), 447, 448, 449, 511, 512, 513, 1000, 1024, 4000, 4095]
    fs = layers("erofs", tar(*[symlink(f"l{length}", "t" * length) for length in lengths]))
    assert {length: len(os.readlink(fs / f"l{length}")) for length in lengths} == {length: length for length in lengths}
    with pytest.raises(WherryError):
        layers("erofs", tar(symlink("l", "t" * 4096)))


def test_extended_attributes_larger_than_blocks(layers):
    pax = {f"SCHILY.xattr.user.n{number}": "v" * (number * 151) for number in range(1, 40)}
    fs = layers("erofs", tar(entry("f", b"x", pax=pax), entry("g", b"y"), folder("d", pax=pax)))
    for name in ("f", "d"):
        assert {key: os.getxattr(fs / name, key) for key in os.listxattr(fs / name)} == {
            key[13:]: value.encode() for key, value in pax.items()
        }
    assert (fs / "g").read_bytes() == b"y"
    assert os.listxattr(fs / "g") == []


def test_access_control_lists_count(layers):
    """The kernel reads them from the layer when it decides who may."""
    closed = acl((7, 4, 0, 0, 7, 0), extended=True).decode("utf-8", "surrogateescape")
    archive = tar(
        folder("./", 0o755), entry("f", b"secret", mode=0o600, pax={"SCHILY.xattr.system.posix_acl_access": closed})
    )
    fs = layers("erofs", archive)
    for parent in fs.parents:
        with contextlib.suppress(OSError):
            parent.chmod(parent.stat().st_mode | 0o111)
    read = ["cat", str(fs / "f")]
    assert subprocess.run(read, capture_output=True, user=5, group=5, check=False, timeout=10).stdout == b"secret"
    assert subprocess.run(read, capture_output=True, user=6, group=6, check=False, timeout=10).stdout == b""


def test_nothing_of_the_archive_is_copied(layers):
    """A layer takes the room of its archive and a little more; sparse files come back as holes."""
    archive = tar(*[entry(f"f{number}", os.urandom(10000)) for number in range(100)])
    fs = layers("erofs", archive)
    kept = (fs.parent / "layer.erofs").stat()
    assert len(archive) < kept.st_size < len(archive) + 40_000
    assert (fs.parent / "layer.erofs").read_bytes()[4096 : 4096 + len(archive)] == archive
    assert stat.S_IMODE(kept.st_mode) == 0o600


def test_the_kernel_reads_all_of_it_without_a_word(layers, tmp_path):
    """There is no other checker for these blocks: every file, name and attribute of a real tree is read."""
    need("tar")
    source = "/usr/share" if Path("/usr/share/doc").is_dir() else "/etc"
    data = subprocess.run(
        ["tar", "--xattrs", "-C", source, "-cf", "-", "perl", "python3", "doc", "zoneinfo", "bash-completion"],
        check=False,
        capture_output=True,
        timeout=120,
    ).stdout
    (tmp_path / "theirs").mkdir()
    subprocess.run(["tar", "--xattrs", "-C", tmp_path / "theirs", "-xpf", "-"], input=data, check=True, timeout=120)
    ours, theirs = tree(layers("erofs", data)), tree(tmp_path / "theirs")
    assert {name: facts for name, facts in ours.items() if name != "."} == {n: f for n, f in theirs.items() if n != "."}


# ---- as the layer of an overlay


@contextlib.contextmanager
def merged(store: ImageStore, record: Any, target: Path) -> Iterator[Path]:
    """The image's layers as an overlay that can be written."""
    snapshots = Snapshotter(store.root)
    mount.settle(snapshots.below(record.config.diff_ids))
    (overlay,) = snapshots.prepare("test", record.config.diff_ids)
    target.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "-o", ",".join(overlay.options), "overlay", str(target)], check=True, timeout=30
    )
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True, timeout=30)
        snapshots.remove("test")
        store.remove(record.id)


@pytest.mark.parametrize("form", FORMATS)
def test_devices_set_id_and_capabilities_count_in_the_container(tmp_path, helper, form):
    """The mount of the layer itself has nodev, nosuid and noexec: what counts is the overlay's."""
    need_format(form, tmp_path, helper)
    need("python3")
    program = Path(os.path.realpath("/usr/bin/python3")).read_bytes()
    low = tar(
        entry("null", kind=b"3", devmajor=1, devminor=3, mode=0o666),
        entry("py", program, mode=0o4755),
        entry("cap", program, mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY.decode()}),
    )
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format=form)
    record = store.load(f"oci:{Image(low, tar(entry('f', b'up'))).layout(tmp_path / 'layout')}")
    for parent in tmp_path.parents:
        with contextlib.suppress(OSError):
            parent.chmod(parent.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    with merged(store, record, tmp_path / "merged") as root:
        assert (root / "null").write_bytes(b"gone") == 4
        assert (root / "f").read_bytes() == b"up"
        effective = "print([line for line in open('/proc/self/status') if line.startswith(('CapEff', 'Uid'))])"
        seen_by = {
            name: subprocess.run(
                [root / name, "-I", "-S", "-c", effective],
                user=1000,
                group=1000,
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout
            for name in ("py", "cap")
        }
        assert "1000\\t0\\t0\\t0" in seen_by["py"]
        assert f"{1 << 10:016x}" in seen_by["cap"]


# ---- independent readers of a layered image


def layered(place: Path) -> Path:
    """Three layers that replace, hide and mend each other."""
    low = tar(
        folder("./", 0o755, mtime=5),
        folder("etc", mtime=5),
        entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mtime=5),
        folder("d", mtime=5),
        *[entry(f"d/f{i}", b"x" * i, mtime=i, uid=i) for i in range(50)],
        folder("gone", mtime=5),
        entry("gone/x", b"1"),
        symlink("link", "d/f1"),
        entry("hard", kind=b"1", link="d/f2", mtime=2, uid=2),
        folder("op", mtime=5),
        entry("op/old", b"old"),
        entry("file", b"low", mtime=5),
        folder("swap", mtime=5),
        entry("swap/in", b"i"),
    )
    middle = tar(
        entry(".wh.gone", b""),
        entry("d/.wh.f3", b""),
        folder("op", 0o700, mtime=6),
        entry("op/.wh..wh..opq", b""),
        entry("op/new", b"new", mtime=6),
        entry("file", b"middle", mode=0o4711, mtime=6),
        entry("swap", b"a file now", mtime=6),
        folder("d", 0o711, uid=3, mtime=6),
    )
    high = tar(
        folder("gone", 0o750, mtime=7),
        entry("gone/again", b"2", mtime=7),
        entry(".wh.link", b""),
        entry("x", b"y", pax={"SCHILY.xattr.user.mine": "kept"}, mtime=7),
        entry("x2", kind=b"1", link="x", mtime=7),
    )
    return write_layout(place, [(Image(low, middle, high), "latest")])


def plain(root: Path) -> dict[str, Any]:
    """A tree without what the tools may differ in: the root, the mount points, counts of links, overlay's own marks."""
    found = {}
    for name, facts in tree(root).items():
        attributes = {key: value for key, value in facts[6].items() if "overlay" not in key}
        if name.split("/")[0] not in (".", "dev", "proc", "sys", "run"):
            found[name] = (*facts[:6], attributes)
    for name in ("etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"):
        found.pop(name, None)
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_umoci_sees_the_same_image(tmp_path, helper, form):
    need("umoci")
    need_format(form, tmp_path, helper)
    layout = layered(tmp_path / "layout")
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", tmp_path / "theirs"], check=True, timeout=60
    )
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format=form)
    with merged(store, store.load(f"oci:{layout}"), tmp_path / "merged") as root:
        assert plain(root) == plain(tmp_path / "theirs")


@pytest.mark.parametrize("form", FORMATS)
def test_podman_sees_the_same_image(tmp_path, helper, form):
    need("podman")
    need_format(form, tmp_path, helper)
    layout = layered(tmp_path / "layout")
    run = tempfile.mkdtemp(prefix="wt", dir="/run")  # podman wants a short one
    podman = [
        "podman",
        "--root",
        str(tmp_path / "p"),
        "--runroot",
        run,
        "--storage-driver",
        "overlay",
        "--events-backend",
        "none",
    ]
    image = subprocess.run(
        [*podman, "pull", "-q", f"oci:{layout}"], check=True, capture_output=True, text=True, timeout=60
    )
    where = subprocess.run(
        [*podman, "image", "mount", image.stdout.strip()], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format=form)
    try:
        with merged(store, store.load(f"oci:{layout}"), tmp_path / "merged") as root:
            assert plain(root) == plain(Path(where))
    finally:
        subprocess.run([*podman, "image", "umount", "-a"], check=False, capture_output=True, timeout=60)
        subprocess.run(["umount", str(tmp_path / "p/overlay")], check=False, capture_output=True, timeout=60)
        subprocess.run(["rm", "-rf", run], check=False, timeout=60)


# ---- which format


def test_auto_takes_erofs_where_it_can_be(tmp_path, helper):
    need_format("erofs", tmp_path, helper)
    assert Unpacker(str(tmp_path / "root"), helper=helper, snapshot_format="auto").format.name == "erofs"
    assert os.listdir(tmp_path / "root/ingest") == []


def test_a_file_system_that_cannot_back_it(tmp_path, helper):
    need_format("erofs", tmp_path, helper)
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", f"wherry-{tmp_path.name}", str(place)], check=True, timeout=30)
    try:
        assert Unpacker(str(place / "root"), helper=helper, snapshot_format="auto").format.name == "directory"
        with pytest.raises(WherryError, match="cannot be erofs here") as caught:
            _ = Unpacker(str(place / "root"), helper=helper, snapshot_format="erofs").format
        assert caught.value.kind is Kind.PRECONDITION
        assert caught.value.hint
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


def test_a_full_disk_leaves_no_half_layer(tmp_path, helper):
    need("mkfs.ext4")
    need_format("erofs", tmp_path, helper)
    place, disk = tmp_path / "small", tmp_path / "disk"
    place.mkdir()
    disk.write_bytes(b"")
    os.truncate(disk, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], check=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True, timeout=30)
    try:
        store = ImageStore(str(place / "root"), helper=helper, snapshot_format="erofs")
        layout = Image(tar(entry("a", os.urandom(500_000)), entry("b", bytes(20_000_000)))).layout(tmp_path / "layout")
        with pytest.raises(WherryError, match="No space left") as caught:
            store.load(f"oci:{layout}")
        assert caught.value.kind is Kind.EXHAUSTED
        assert store.list() == []
        assert os.listdir(place / "root/layers") == []
    finally:
        subprocess.run(["umount", place], check=True, timeout=30)


def test_user_namespaces_get_directories(tmp_path, helper):
    assert (
        Unpacker(str(tmp_path / "root"), helper=helper, snapshot_format="auto", userxattr=True).format.name
        == "directory"
    )


def test_an_unknown_format_is_told(tmp_path, helper):
    with pytest.raises(WherryError, match="invalid snapshot format"):
        _ = Unpacker(str(tmp_path / "root"), helper=helper, snapshot_format="squash").format


def sparse_header(real: int) -> bytes:
    """A GNU sparse file of `real` bytes, all of them a hole."""
    block = bytearray(512)
    block[0:4] = b"huge"
    for at, width, number in ((100, 8, 0o644), (108, 8, 0), (116, 8, 0), (124, 12, 0), (136, 12, 0)):
        block[at : at + width] = f"{number:0{width - 1}o}\0".encode()
    block[156:157] = b"S"
    block[257:265] = b"ustar  \0"
    block[483:495] = b"\x80" + real.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def test_a_layer_that_does_not_fit_becomes_a_directory(layers):
    """Blocks have numbers of 32 bits: 2 TiB. The layer is not at fault."""
    fs = layers("erofs", tar(entry("f", b"1"))[:1024] + sparse_header(3 << 40))
    assert (fs / "huge").stat().st_size == 3 << 40
    assert (fs / "f").read_bytes() == b"1"
    assert sorted(os.listdir(fs.parent)) == ["fs", "size.json"]
    same(layers, sparse_header(1 << 62))


def test_formats_stay_side_by_side(tmp_path, helper):
    """A layer is what its directory holds, whatever is asked for now."""
    need_format("erofs", tmp_path, helper)
    low, high = tar(entry("low", b"1"), entry("both", b"l")), tar(entry("high", b"2"), entry("both", b"h"))
    first = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format="directory")
    first.load(f"oci:{Image(low).layout(tmp_path / 'one')}")
    second = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format="erofs")
    record = second.load(f"oci:{Image(low, high).layout(tmp_path / 'two')}")
    assert len(list((tmp_path / "root/layers").glob("*/layer.erofs"))) == 1
    with merged(second, record, tmp_path / "merged") as root:
        assert [(root / name).read_bytes() for name in ("low", "high", "both")] == [b"1", b"2", b"h"]


def test_a_layer_that_is_not_mounted_is_not_taken_for_empty(tmp_path, helper):
    need_format("erofs", tmp_path, helper)
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format="erofs")
    record = store.load(f"oci:{Image(tar(entry('f', b'1'))).layout(tmp_path / 'layout')}")
    with pytest.raises(WherryError, match="is not mounted") as caught:
        Snapshotter(store.root).make("test", record.config.diff_ids)
    assert caught.value.kind is Kind.PRECONDITION
    assert Snapshotter(store.root).keys() == []


@pytest.mark.parametrize("at", [4096 + 700, 3])
def test_a_damaged_layer_is_found_and_mended(tmp_path, helper, at):
    """The archive is in it, and the layer has the archive's digest for a name."""
    need_format("erofs", tmp_path, helper)
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format="erofs")
    record = store.load(f"oci:{Image(tar(entry('f', b'data'))).layout(tmp_path / 'layout')}")
    assert store.check().findings == ()
    (file,) = (tmp_path / "root/layers").glob("*/layer.erofs")
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"X")
    report = store.check()
    assert [(finding.kind, finding.subject) for finding in report.findings] == [("layer", record.config.diff_ids[0])]
    store.repair(report)
    assert not file.exists()
    store.ensure_unpacked(record)
    assert store.check().findings == ()


# ---- the helper


class Waiting:
    """A helper at work in the directory `room`, with its standard input open."""

    def __init__(self, helper: Callable[[], int], room: Path, *options: str) -> None:
        room.mkdir()
        directory, program = os.open(room, os.O_RDONLY | os.O_DIRECTORY), helper()
        high = [os.dup(directory), os.dup(program)]
        (read, self.input), (self.output, write) = os.pipe(), os.pipe()
        words = ["wherry-helper", "unpack", "--format=erofs", *options]
        self.pid = os.posix_spawn(
            f"/proc/self/fd/{high[1]}",
            words,
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_DUP2, write, 1),
                (os.POSIX_SPAWN_DUP2, high[0], 3),
            ],
        )
        for fd in (directory, program, read, write, *high):
            os.close(fd)

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":\t") for line in lines)}

    def end(self) -> str:
        """Its report."""
        os.close(self.input)
        with open(self.output, encoding="utf-8") as file:
            said = file.read()
        os.waitpid(self.pid, 0)
        return said


def test_the_erofs_helper_can_nothing_but_write_its_file(tmp_path, helper):
    """Look at one that waits in the middle of a stream."""
    waiting, made = Waiting(helper, tmp_path / "layer"), tmp_path / "layer/layer.erofs"
    try:
        os.write(waiting.input, tar(entry("f", b"x" * 1000))[:700])
        deadline = time.monotonic() + 10
        while (not made.exists() or made.stat().st_size < 4096 + 700) and time.monotonic() < deadline:
            time.sleep(0.02)
        status = waiting.status()
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        assert os.readlink(f"/proc/{waiting.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert os.listdir(f"/proc/{waiting.pid}/root") == ["layer.erofs"]
        assert len(Path(f"/proc/{waiting.pid}/mountinfo").read_text().splitlines()) == 1
        assert len(os.listdir(f"/proc/{waiting.pid}/fd")) <= 6
    finally:
        said = waiting.end()
    assert said.startswith(f"fail {errno.EPROTO} 1\nthe archive ends inside a member"), said


def test_memory_is_bounded(tmp_path, helper):
    """Millions of entries that replace each other: the tree has a limit, and the caller is told by EOVERFLOW."""
    waiting, most = Waiting(helper, tmp_path / "layer", "--no-sync"), 0
    many = tar(entry("f", b""))[:512] * 2000
    with contextlib.suppress(BrokenPipeError):
        for _ in range(2000):
            view = memoryview(many)
            while view:
                view = view[os.write(waiting.input, view) :]
            most = max(most, int(waiting.status().get("VmRSS", "0 kB").split()[0]))
    assert waiting.end().split()[:2] == ["fail", str(errno.EOVERFLOW)]
    assert 40 << 10 < most < 90 << 10, f"{most} KiB"


def test_size_json_tells_the_same(layers):
    archive = tar(folder("d"), entry("d/f", b"x" * 1000), entry("g", b"y" * 24))
    sizes = [json.loads((layers(form, archive).parent / "size.json").read_text()) for form in FORMATS]
    assert sizes == [{"bytes": 1024, "entries": 3, "format": form} for form in FORMATS]


@pytest.mark.parametrize("capability", OF_ROOTS)
def test_a_capability_for_the_root_of_a_user_namespace(layers, capability):
    text = capability.decode("utf-8", "surrogateescape")
    same(layers, tar(entry("f", pax={"SCHILY.xattr.security.capability": text})))


def test_a_hard_link_in_the_place_of_the_directory_that_holds_its_target(layers):
    for target in (folder("b/t"), entry("b/t", b"x")):
        same(layers, tar(folder("b"), target, entry("b", kind=tarfile.LNKTYPE, link="b/t")))
