"""Records: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_csi import records
from wherry_csi.backend import Shape
from wherry_csi.records import Group, Published, Snapshot, Unreadable, Volume

NUMBERS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
ACCESS, FS = st.sampled_from(["mount", "block"]), st.sampled_from(["", "ext4"])
SHAPES = st.builds(Shape, NUMBERS, ACCESS, FS, st.booleans(), NUMBERS)
VOLUMES = st.builds(
    Volume,
    id=TEXT, name=TEXT, created=NUMBERS, backend=TEXT, shape=SHAPES, modes=st.lists(TEXT).map(tuple),
    limits=st.dictionaries(TEXT, NUMBERS), source=st.none() | st.tuples(st.sampled_from(["snapshot", "volume"]), TEXT),
    family=TEXT, shared=NUMBERS, growing=NUMBERS,
    published=st.dictionaries(TEXT, st.builds(Published, st.booleans(), TEXT, TEXT)),
)  # fmt: skip
SNAPSHOTS = st.builds(Snapshot, TEXT, TEXT, NUMBERS, TEXT, SHAPES, TEXT, NUMBERS, TEXT, NUMBERS, TEXT)
GROUPS = st.builds(Group, TEXT, TEXT, NUMBERS, st.lists(TEXT).map(tuple), st.lists(TEXT).map(tuple))


@given(VOLUMES | SNAPSHOTS | GROUPS)
def test_what_is_written_is_read(record: Any) -> None:
    assert records.read(type(record), records.write(record)) == record


def plain() -> dict[str, Any]:
    volume = Volume("vol-1", "a", 1, "image", Shape(4096, "mount", "ext4"), source=("volume", "vol-0"))
    return json.loads(records.write(volume))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"kind": "snapshot"}, {"id": 1}, {"name": None}, {"created": -1}, {"created": True}, {"x": 1},
        {"shape": {}}, {"shape": {**plain()["shape"], "size": "1"}}, {"shape": {**plain()["shape"], "thick": 1}},
        {"modes": "x"}, {"modes": [1]}, {"source": ["volume"]}, {"source": "volume"}, {"limits": []},
        {"limits": {"a": -1}}, {"published": {"n": {}}}, {"published": {"n": 5}},
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_record_is_no_record(change: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        records.read(Volume, json.dumps({**plain(), **change}).encode())


@pytest.mark.parametrize("key", [key for key in plain() if key not in ("version",)])
def test_every_field_is_needed(key: str) -> None:
    with pytest.raises(Unreadable):
        records.read(Volume, json.dumps({name: value for name, value in plain().items() if name != key}).encode())


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b'{"version":1,"kind":"volume"}'))
def test_other_bytes_are_no_record(text: bytes) -> None:
    with pytest.raises(Unreadable):
        records.read(Volume, text)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        records.save(fd, "record.json", b"one")
        records.save(fd, "record.json", b"two")
        assert records.load(fd, "record.json") == b"two"
        assert os.listdir(tmp_path) == ["record.json"]
        os.symlink("record.json", tmp_path / "link")
        with pytest.raises(OSError):
            records.load(fd, "link")
        with pytest.raises(OSError):
            records.load(fd, "none")
    finally:
        os.close(fd)


def test_a_symlink_in_the_way_of_a_record_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "canary").write_text("canary")
    os.symlink(tmp_path / "canary", tmp_path / "home" / "record.json.new")
    fd = os.open(tmp_path / "home", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError):
            records.save(fd, "record.json", b"x")
    finally:
        os.close(fd)
    assert (tmp_path / "canary").read_text() == "canary"
