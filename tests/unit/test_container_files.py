"""kernel/files: atomic writes, capped reads, trees removed by descriptor; kernel/mount: mountinfo."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from wherry.errors import Kind, WherryError
from wherry.kernel import files, mount


def test_atomic_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.atomic_write(str(path), b"one", 0o600)
    files.atomic_write(str(path), b"two", 0o640, sync=True)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["f"]


def test_atomic_write_replaces_a_link_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("safe")
    (tmp_path / "f").symlink_to("other")
    files.atomic_write(str(tmp_path / "f"), b"new")
    assert (tmp_path / "other").read_text() == "safe"
    assert (tmp_path / "f").read_text() == "new"


def test_failed_atomic_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.atomic_write(str(tmp_path / "f"), b"x")
    assert os.listdir(tmp_path) == ["f"]


def test_readers_see_one_or_the_other(tmp_path: Path) -> None:
    path, stop = str(tmp_path / "f"), threading.Event()
    files.atomic_write(path, b"a" * 100000)

    def write() -> None:
        while not stop.is_set():
            for letter in (b"a", b"b"):
                files.atomic_write(path, letter * 100000)

    thread = threading.Thread(target=write)
    thread.start()
    seen = {files.read_capped(path, 1 << 20) for _ in range(200)}
    stop.set()
    thread.join()
    assert seen <= {b"a" * 100000, b"b" * 100000}


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_capped_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"x" * size)
    assert len(files.read_capped(str(tmp_path / "f"), 100)) == size


def test_capped_read_refuses_more(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 101)
    with pytest.raises(WherryError, match="larger than 100 bytes"):
        files.read_capped(str(tmp_path / "f"), 100)
    with pytest.raises(WherryError, match="larger"):
        files.read_capped("/dev/zero", 100)


def test_flock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with files.flock(path, 1), pytest.raises(WherryError) as caught, files.flock(path, 0.05):
        pass
    assert caught.value.kind is Kind.CONFLICT
    with files.flock(path, 0), pytest.raises(WherryError), files.flock(path, 0, shared=True):
        pass
    with files.flock(path, 0, shared=True), files.flock(path, 0, shared=True):
        pass


def test_open_beneath_refuses_ways_out(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (tmp_path / "in/up").symlink_to("../secret")
    (tmp_path / "in/abs").symlink_to("/etc/passwd")
    (tmp_path / "in/f").write_text("f")
    with files.directory(str(tmp_path / "in")) as root:
        os.close(files.open_beneath(root, "f"))
        for path in ("up", "abs", "../secret", "sub/../../secret", "/etc/passwd"):
            with pytest.raises(OSError, match=path):
                files.open_beneath(root, path)
        for path in ("up", "abs", "../secret", "/etc/passwd"):
            with pytest.raises(FileNotFoundError):
                files.open_in_root(root, path)
        os.close(files.open_in_root(root, "/../f"))


# --- trees ---


def test_remove_tree(tmp_path: Path) -> None:
    tree, outside = tmp_path / "t", tmp_path / "outside"
    (tree / "a/b").mkdir(parents=True)
    outside.mkdir()
    (outside / "keep").write_text("x")
    (tree / "a/file").write_text("x")
    (tree / "a/link").symlink_to(outside)
    (tree / "b").symlink_to(tree)
    os.mkfifo(tree / "a/b/fifo")
    files.remove_tree(str(tree))
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert (outside / "keep").exists()


def test_remove_tree_takes_what_comes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever: who makes files all the time is told of."""
    tree, rmdir, left = tmp_path / "t", os.rmdir, [2]
    (tree / "a").mkdir(parents=True)

    def late(path: str, *, dir_fd: int | None = None) -> None:
        if path == str(tree) and left[0]:
            left[0] -= 1
            (tree / "lock").touch()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late)
    files.remove_tree(str(tree))
    assert os.listdir(tmp_path) == []
    tree.mkdir()
    left[0] = 100
    with pytest.raises(OSError, match="not empty"):
        files.remove_tree(str(tree))


def test_remove_tree_of_a_link_removes_the_link(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("d")
    files.remove_tree(str(tmp_path / "l"))
    assert os.listdir(tmp_path) == ["d"]
    files.remove_tree(str(tmp_path / "l"))
    files.remove_tree(str(tmp_path / "none/none"))


def test_remove_tree_of_any_depth(tmp_path: Path) -> None:
    """Deeper than a path can be written and than descriptors may be open."""
    top = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("t", dir_fd=top)
    fd = os.open("t", os.O_RDONLY, dir_fd=top)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    files.remove_tree("t", top)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(top)
    assert os.listdir(tmp_path) == []


def test_remove_tree_against_a_racer(tmp_path: Path) -> None:
    """Directories become links to a precious one and back: nothing outside may go."""
    precious, tree = tmp_path / "precious", tmp_path / "t"
    precious.mkdir()
    (precious / "keep").write_text("x")
    for _ in range(30):
        for name in ("a", "b", "c", "d"):
            (tree / name / "sub").mkdir(parents=True)
            (tree / name / "sub/f").write_text("x")
        stop = threading.Event()

        def race(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                for name in ("a", "b", "c", "d"):
                    try:
                        os.rename(tree / name / "sub", tree / name / "was")
                        os.symlink(precious, tree / name / "sub")
                    except OSError:
                        continue

        thread = threading.Thread(target=race)
        thread.start()
        try:
            for _ in range(20):
                try:
                    files.remove_tree(str(tree))
                except (WherryError, OSError):
                    continue
        finally:
            stop.set()
            thread.join()
        files.remove_tree(str(tree))
        assert (precious / "keep").exists()
    assert os.listdir(tmp_path) == ["precious"]


# --- mountinfo ---


def test_mountinfo_lines() -> None:
    line = rb"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue" + b"\n"
    point = mount._parse(line)
    assert (point.id, point.parent, point.root, point.target) == (36, 35, "/mnt1", "/mnt 2\\x")
    assert point.options == {"rw", "noatime"}
    assert (point.type, point.source, point.super_options) == ("ext3", "/dev/root", "rw,errors=continue")


def test_mountinfo_without_source_or_options() -> None:
    assert mount._parse(b"1 2 0:1 / /a rw - tmpfs  rw\n").source == ""


def test_own_mounts() -> None:
    targets = [point.target for point in mount.mounts()]
    assert "/" in targets
    assert "/proc" in targets
    assert mount.below("/proc")[-1].target == "/proc"
    assert mount.below("/nowhere") == []
