"""What the CSI driver reads of the kernel: mount tables, FIEMAP, extents that differ; and trees by descriptor."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_csi import extents, kernel, mkfs, mounts, tree
from wherry_csi.backend import Extent, Shape
from wherry_csi.backend.all import BACKENDS, probe
from wherry_csi.errors import CsiError
from wherry_csi.extents import Piece

PATHS = st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw).map(lambda raw: b"/" + raw)


def escaped(raw: bytes) -> bytes:
    """As the kernel's seq_path does it, and the '#' of newer ones."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)


@given(root=PATHS, target=PATHS, source=PATHS, optional=st.lists(st.sampled_from(["shared:1", "master:7"]), max_size=3))
def test_mountinfo_is_read_back_as_it_was(root: bytes, target: bytes, source: bytes, optional: list[str]) -> None:
    fields = " ".join(["36 35 7:3", *(os.fsdecode(escaped(path)) for path in (root, target)), "ro,nodev", *optional])
    line = f"{fields} - ext4 {os.fsdecode(escaped(source))} rw,errors=remount-ro"
    mount = mounts.parse(line)
    assert (mount.id, mount.parent, mount.device, mount.fs) == (36, 35, "7:3", "ext4")
    assert [os.fsencode(text) for text in (mount.root, mount.target, mount.source)] == [root, target, source]
    assert mount.options == ("ro", "nodev")
    assert mount.super_options == ("rw", "errors=remount-ro")


def test_an_octal_escape_is_a_byte_and_no_backslash_is_lost() -> None:
    mount = mounts.parse(r"1 0 0:5 / /a\040b\134040\303\244 rw - tmpfs none rw")
    assert mount.target == "/a b\\040ä"


def test_this_process_sees_its_own_table() -> None:
    assert mounts.table()[0].target
    here = os.open("/", os.O_RDONLY)
    try:
        found = mounts.containing(here)
    finally:
        os.close(here)
    assert found in mounts.table()
    assert found
    assert found in mounts.of_device(found.device)


def test_attributes_are_told_from_options_of_the_file_system() -> None:
    words = ["ro", "noatime", "defaults", "_netdev", "x-systemd.automount", "data=journal", "rw"]
    bits, left = mounts.attributes(words)
    assert bits == kernel.ATTR_NOATIME
    assert left == ["data=journal"]
    assert mounts.attributes(["noatime", "strictatime"])[0] == kernel.ATTR_STRICTATIME


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("rw,nodev,relatime", kernel.ATTR_NODEV),
        ("rw,nodev", kernel.ATTR_NODEV | kernel.ATTR_STRICTATIME),
        ("ro,nosuid,noatime", kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NOATIME),
    ],
)
def test_strict_access_times_are_what_the_table_is_silent_about(options: str, bits: int) -> None:
    assert mounts.attributes_of(mounts.parse(f"1 0 0:5 / /a {options} - tmpfs none rw")) == bits


def test_a_symlink_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    with pytest.raises(OSError, match="symbolic"), mounts.handle(f"{tmp_path}/link/"):
        pass
    assert not mounts.at(f"{tmp_path}/nothing")


# -- FIEMAP -----------------------------------------------------------------------------------------------------------

EXTENTS = st.lists(st.tuples(*[st.integers(0, 1 << 60)] * 3, st.integers(0, 0xFFF)), max_size=8)


@given(found=EXTENTS, room=st.integers(0, 8))
def test_fiemap_is_parsed_and_never_beyond_its_buffer(found: list[tuple[int, int, int, int]], room: int) -> None:
    """struct fiemap as linux/fiemap.h has it, written here a second time."""
    body = b"".join(struct.pack("=QQQQQIIII", *where, 0, 0, flags, 0, 0, 0) for *where, flags in found[:room])
    header = struct.pack("=QQIIII", 0, 1 << 63, 1, len(found), room, 0)
    parsed, last = extents.parse(header + body)
    assert parsed == found[:room]
    assert last == (not parsed or bool(parsed[-1][3] & 1))


@st.composite
def layouts(draw: st.DrawFn) -> list[Piece]:
    """Ascending pieces of a small file; places are few, so that two layouts share some."""
    made, position = [], 0
    for gap, length, place in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.none() | st.integers(0, 12)), max_size=6)
    ):
        made.append(Piece(position + gap, position + gap + length, place))
        position += gap + length
    return made


def spelled(pieces: list[Piece]) -> list[object]:
    """What is at each byte: a place, None for a hole, or something equal to nothing."""
    cells: list[object] = [None] * 64
    for piece in pieces:
        for index in range(piece.start, piece.end):
            cells[index] = float("nan") if piece.place is None else piece.place + index - piece.start
    return cells


@given(old=layouts(), new=layouts())
def test_what_differs_is_exactly_what_is_not_at_the_same_place(old: list[Piece], new: list[Piece]) -> None:
    told = {index for start, end in extents.differing(old, new) for index in range(start, end)}
    pairs = zip(spelled(old), spelled(new), strict=True)
    assert told == {index for index, (left, right) in enumerate(pairs) if left != right}


@contextmanager
def two_files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    paths = tmp_path / "old", tmp_path / "new"
    fds = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    yield fds[0], fds[1]
    for fd, path in zip(fds, paths, strict=True):
        os.close(fd)
        path.unlink()


def blocks(ranges: Iterable[Extent]) -> set[int]:
    """Numbers of the blocks in them."""
    return {offset // 4096 for start, length in ranges for offset in range(start, start + length, 4096)}


WRITES = st.lists(st.tuples(st.integers(0, 63), st.binary(min_size=1, max_size=3)), max_size=6)


@settings(deadline=None)
@given(first=WRITES, second=WRITES)
def test_changes_of_real_files_are_told_by_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, first: list[tuple[int, bytes]], second: list[tuple[int, bytes]]
) -> None:
    size, block = 64 * 4096, 4096
    with two_files(tmp_path_factory.getbasetemp()) as (old, new):
        for fd, writes in ((old, first), (new, first + second)):
            os.ftruncate(fd, size)
            for index, data in writes:
                os.pwrite(fd, data, index * block)
        left, right = (
            [os.pread(fd, block, index * block).ljust(block, b"\0") for index in range(64)] for fd in (old, new)
        )
        changed = blocks(extents.changed(old, new, size))
        assert changed == {index for index in range(64) if left[index] != right[index]}
        assert {index for index in range(64) if right[index].strip(b"\0")} <= blocks(extents.allocated(new, size))


def test_a_copy_has_the_holes_of_its_source(tmp_path: Path) -> None:
    with two_files(tmp_path) as (source, target):
        os.pwrite(source, b"a" * 4096, 1 << 20)
        os.ftruncate(source, 1 << 30)
        extents.copy(source, target)
        assert os.fstat(target).st_size == 1 << 30
        assert os.pread(target, 4096, 1 << 20) == b"a" * 4096
        assert os.fstat(target).st_blocks * 512 < 1 << 20


# -- sizes ------------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 1 << 50), kind=st.sampled_from([("mount", "ext4"), ("mount", "xfs"), ("block", "")]))
def test_a_size_is_rounded_up_once(size: int, kind: tuple[str, str]) -> None:
    for name, backend in BACKENDS.items():
        if name == "directory" and kind[0] == "block":
            continue
        fitted = backend.fit(size, *kind)
        assert fitted >= size
        assert fitted % 4096 == 0
        assert backend.fit(fitted, *kind) == fitted
        assert fitted < size + 4096 or size < mkfs.FILE_SYSTEMS["xfs"].least


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    facts = probe(fd)
    os.close(fd)
    assert facts.fs == os.popen(f"stat -f -c %T {tmp_path}").read().strip().replace("ext2/ext3", "ext4")
    without = facts._replace(project_quota=False)
    assert "quota" in BACKENDS["directory"].problem(without, "mount", "")
    assert "block" in BACKENDS["directory"].problem(facts._replace(project_quota=True), "block", "")
    assert "ntfs" in BACKENDS["image"].problem(facts, "mount", "ntfs")
    assert not BACKENDS["image"].problem(facts, "block", "")


# -- trees ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_no_tree_is_too_deep_to_be_removed(tmp_path: Path, top: int) -> None:
    os.mkdir(tmp_path / "deep")
    here = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    tree.remove("deep", top)
    tree.remove("deep", top)
    assert not os.listdir(tmp_path)


def test_removal_follows_no_symlink(tmp_path: Path, top: int) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "direct").symlink_to(tmp_path / "kept")
    (tmp_path / "gone" / ".wherry-removing-1").mkdir()
    (tmp_path / "gone" / "a" / "b").mkdir(parents=True)
    for name in ("gone", "direct"):
        tree.remove(name, top)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_a_copied_tree_is_the_same_tree(tmp_path: Path) -> None:
    source, target, links = (tmp_path / name for name in ("source", "target", "links"))
    for path in (source, target, links):
        path.mkdir()
    deep = source / "/".join("d" * 3 for _ in range(300))
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 5000)
    os.link(deep / "file", source / "again")
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(source / "socket"))
    os.setxattr(source / "again", "user.note", b"\0\1")
    os.chmod(source / "again", 0o4751)
    os.utime(source / "ddd", ns=(1, 2))
    fds = [os.open(path, os.O_RDONLY) for path in (source, target, links)]
    tree.copy(*fds)
    for fd in fds:
        os.close(fd)
    shutil.rmtree(links)
    assert listing(target) == listing(source)
    assert os.stat(target / "again").st_ino == os.stat(deep.as_posix().replace("source", "target") + "/file").st_ino


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, but for inode numbers and changes of them."""
    found = {}
    for path in [top, *top.rglob("*")]:
        it = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(it.st_mode) else path.is_symlink() and os.readlink(path)
        marks = [(name, os.getxattr(path, name)) for name in os.listxattr(path, follow_symlinks=False)]
        links = it.st_nlink if not path.is_dir() else 0
        found[str(path.relative_to(top))] = it.st_mode, it.st_uid, it.st_gid, it.st_mtime_ns, links, content, marks
    return found


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "nothing"])
def test_what_is_no_image_is_not_opened(tmp_path: Path, top: int, kind: str) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    makers = {
        "symlink": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
        "nothing": str,
    }
    makers[kind](tmp_path / "image")
    backend, shape = BACKENDS["image"], Shape(1 << 20, "block")
    assert not backend.staged(top, shape)
    assert "image" in backend.trouble(top, shape)
    with pytest.raises(FileNotFoundError):
        list(backend.extents(top, shape))
    backend.make(top, shape)
    assert not backend.trouble(top, shape)
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


def test_a_tool_that_is_killed_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    for script, expected in (("kill -9 $$", errno.EIO), ("echo No space left >&2; exit 1", errno.ENOSPC)):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        file_system = mkfs.FILE_SYSTEMS["ext4"]._replace(command=(str(tool),))
        monkeypatch.setitem(mkfs.FILE_SYSTEMS, "ext4", file_system)
        with pytest.raises(OSError, match="tool failed") as caught:
            mkfs.make("ext4", 0)
        assert caught.value.errno == expected


def test_a_directory_has_no_blocks_to_tell_of(top: int) -> None:
    with pytest.raises(CsiError, match="image backend"):
        list(BACKENDS["directory"].extents(top, Shape(1 << 20, "mount")))
