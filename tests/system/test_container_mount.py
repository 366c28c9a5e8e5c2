"""Detached mounts: nobody else sees them, they end with their descriptor. No tree with a mount inside is removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from wherry.errors import Kind, WherryError
from wherry.kernel import files, mount
from wherry.model import Mount


def overlay(tmp_path: Path, layers: int, *, upper: bool = False, name: str = "l") -> Mount:
    lower = []
    for i in range(layers):
        path = tmp_path / f"{name}{i}"
        (path / "etc").mkdir(parents=True)
        (path / "etc/name").write_text(f"layer {i}")
        (path / f"only{i}").write_text("x")
        lower.append(str(path))
    options = ["lowerdir=" + ":".join(lower)]
    if upper:
        for part in ("upper", "work"):
            (tmp_path / part).mkdir()
        options += [f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    return Mount("overlay", "overlay", "/", tuple(options))


def names(root: int) -> list[str]:
    fd = files.open_in_root(root, "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("layers", "name"), [(2, "l"), (40, "l"), (3, "x" * 200)])
def test_detached_overlay(tmp_path: Path, layers: int, name: str) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with mount.opened([overlay(tmp_path, layers, name=name)], readonly=True) as root:
        assert Path("/proc/self/mountinfo").read_text() == before
        fd = files.open_in_root(root, "/etc/name")
        assert files.read_capped(fd, 100) == b"layer 0"
        os.close(fd)
        assert len(names(root)) == layers + 1
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("new", dir_fd=root)


def test_detached_overlay_for_writing(tmp_path: Path) -> None:
    with mount.opened([overlay(tmp_path, 1, upper=True)]) as root:
        os.mkdir("new", dir_fd=root)
        os.mknod("null", 0o666 | 0o020000, os.makedev(1, 3), dir_fd=root)
        with pytest.raises(PermissionError):
            os.open("null", os.O_RDONLY, dir_fd=root)  # nodev
    assert (tmp_path / "upper/new").is_dir()


def test_detached_bind(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with mount.opened([Mount("bind", str(tmp_path), "/", ("rbind", "ro"))]) as root:
        assert names(root) == ["f"]
        with pytest.raises(OSError, match="Read-only"):
            os.unlink("f", dir_fd=root)


def test_a_bad_overlay_says_why(tmp_path: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such file"):
        mount.detached([Mount("overlay", "overlay", "/", (f"lowerdir={tmp_path}/no:{tmp_path}/nope",))])
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_remove_tree_never_crosses_a_mount(tmp_path: Path, kind: str) -> None:
    precious, tree = tmp_path / "precious", tmp_path / "t"
    (tree / "a/mnt").mkdir(parents=True)
    precious.mkdir()
    (precious / "keep").write_text("x")
    source = ["-t", "tmpfs", "tmpfs"] if kind == "tmpfs" else ["--bind", str(precious)]
    subprocess.run(["mount", *source, str(tree / "a/mnt")], check=True)
    try:
        (tree / "a/mnt/file").write_text("x")
        assert [point.target for point in mount.below(str(tree))] == [str(tree / "a/mnt")]
        with pytest.raises(WherryError, match="'mnt'") as caught:
            files.remove_tree(str(tree))
        assert caught.value.kind is Kind.CONFLICT
        assert (tree / "a/mnt/file").exists()
    finally:
        assert mount.unmount(str(tree / "a/mnt"))
    assert not mount.unmount(str(tree / "a/mnt"))
    assert not mount.unmount(str(tmp_path / "nowhere"))
    files.remove_tree(str(tree))
    assert not tree.exists()
    assert (precious / "keep").exists()
