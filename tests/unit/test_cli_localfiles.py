"""cp's host side: what is packed comes back the same, and a hostile stream writes nothing outside."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli.commands.cp import name_in, side
from wherry.cli.localfiles import Stream, pack, unpack
from wherry.errors import WherryError


def tree(path: Path) -> dict[str, tuple[int, bytes | str]]:
    found: dict[str, tuple[int, bytes | str]] = {}
    for item in sorted(path.rglob("*")):
        mode = item.lstat().st_mode
        content: bytes | str = os.readlink(item) if item.is_symlink() else item.read_bytes() if item.is_file() else b""
        found[str(item.relative_to(path))] = (mode, content)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "d/e").mkdir(parents=True)
    (top / "d/file").write_bytes(b"x" * 1000)
    (top / "d/run").write_bytes(b"#!")
    (top / "d/run").chmod(0o751)
    (top / "d/e/empty").touch()
    (top / "d/link").symlink_to("/etc/passwd")
    os.link(top / "d/file", top / "d/same")
    (top / ("n" * 120)).write_bytes(b"long name")
    (top / "ünïcode").write_bytes(b"u")
    os.mkfifo(top / "fifo")
    (top / "d/e").chmod(0o500)
    return top


def test_there_and_back(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    unpack(pack(str(source), "copy", False), str(target), "copy", keep_owner=False, contents=False)
    assert tree(target / "copy") == tree(source)
    assert (target / "copy/d/file").stat().st_ino == (target / "copy/d/same").stat().st_ino
    assert int((target / "copy/d/file").stat().st_mtime) == int((source / "d/file").stat().st_mtime)


def test_tar_reads_what_is_packed(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(str(source), "x", False)))) as tar:
        names = tar.getnames()
    assert names[0] == "x"
    assert "x/d/e/empty" in names


def test_content_only_and_follow(source: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    unpack(pack(str(source), "ignored", False), str(tmp_path / "t"), "ignored", keep_owner=False, contents=True)
    assert tree(tmp_path / "t") == tree(source)
    (tmp_path / "to-file").symlink_to(source / "d/run")
    unpack(pack(str(tmp_path / "to-file"), "f", True), str(tmp_path), "f", keep_owner=False, contents=False)
    assert (tmp_path / "f").read_bytes() == b"#!"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), 0o755
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE: list[tuple[str, list[bytes]]] = [
    ("dot-dot", [member("r", DIR), member("r/../../evil", data=b"x")]),
    ("through a symlink", [member("r", DIR), member("r/l", LINK, "../.."), member("r/l/evil", data=b"x")]),
    ("through an absolute symlink", [member("r", DIR), member("r/l", LINK, "/"), member("r/l/tmp/evil")]),
    ("root is a symlink", [member("r", LINK, ".."), member("r/evil", data=b"x")]),
    ("hard link out", [member("r", DIR), member("r/h", HARD, "../../secret")]),
    ("hard link to what is not there", [member("r", DIR), member("r/h", HARD, "r/secret")]),
]


@pytest.mark.parametrize(("name", "members"), HOSTILE, ids=lambda v: v if isinstance(v, str) else "")
def test_hostile_streams_stay_inside(name: str, members: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "in/target"
    target.mkdir(parents=True)
    with pytest.raises(WherryError):
        unpack([*members, bytes(1024)], str(target), "r", keep_owner=False, contents=False)
    assert not list(tmp_path.rglob("evil"))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_devices_are_left_out_and_absolute_names_are_inside(tmp_path: Path) -> None:
    stream = [member("/r", tarfile.DIRTYPE), member("/r/dev", tarfile.CHRTYPE), member("/r/f", data=b"x"), bytes(1024)]
    unpack(stream, str(tmp_path), "r", keep_owner=False, contents=False)
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["f"]


def test_an_existing_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/f").symlink_to(tmp_path / "victim")
    unpack([member("f", data=b"new"), bytes(1024)], str(tmp_path / "t"), "f", keep_owner=False, contents=False)
    assert (tmp_path / "victim").read_text() == "old"
    assert stat.S_ISREG((tmp_path / "t/f").lstat().st_mode)


@pytest.mark.parametrize("broken", [b"garbage" * 100, member("f", data=b"x" * 600)[:700], b""])
def test_broken_streams_are_an_error_or_empty(broken: bytes, tmp_path: Path) -> None:
    failure = None
    try:
        unpack([broken], str(tmp_path), "f", keep_owner=False, contents=False)
    except WherryError as error:
        failure = error
    assert failure is not None or not list(tmp_path.iterdir())


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 60), max_size=10))
def test_a_stream_reads_as_a_file(chunks: list[bytes], sizes: list[int]) -> None:
    ours, theirs = Stream(chunks), io.BytesIO(b"".join(chunks))
    for size in [*sizes, -1]:
        assert ours.read(size) == theirs.read(size)
        assert ours.tell() == theirs.tell()


SIDES = [
    ("web:/etc", ("web", "/etc")),
    ("/a:b", ("", "/a:b")),
    ("./a:b", ("", "./a:b")),
    ("file", ("", "file")),
    ("-", ("", "-")),
    (":x", ("", ":x")),
]


@pytest.mark.parametrize(("text", "found"), SIDES)
def test_sides(text: str, found: tuple[str, str]) -> None:
    assert side(text) == found


NAMES: list[tuple[tuple[str, bool, bool, str], tuple[str, str]]] = [
    (("/t/dir", True, True, "src"), ("/t/dir", "src")),
    (("/t/new", False, False, "src"), ("/t", "new")),
    (("/t/file", True, False, "src"), ("/t", "file")),
    (("/t/new/", False, False, "src"), ("/t/new/", "")),
    (("new", False, False, "src"), (".", "new")),
]


@pytest.mark.parametrize(("given_values", "found"), NAMES)
def test_names(given_values: tuple[str, bool, bool, str], found: tuple[str, str]) -> None:
    place: Callable[..., tuple[str, str]] = name_in
    assert place(*given_values) == found
