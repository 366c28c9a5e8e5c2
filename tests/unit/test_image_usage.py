"""What a writable layer takes: counted without remembering every file of a container that makes millions."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.engine.pods import usage
from wherry.image.snapshot import tree_usage


def test_a_hard_link_counts_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(bytes(8192))
    for number in range(3):
        os.link(tmp_path / "d/file", tmp_path / f"link{number}")
    (tmp_path / "symlink").symlink_to("/")
    alone = (tmp_path / "d/file").stat().st_blocks * 512
    found, inodes = tree_usage(str(tmp_path))
    assert inodes == 4  # two directories, the file, the symlink
    assert alone <= found < 2 * alone + (1 << 15)
    assert tree_usage(str(tmp_path / "absent")) == (0, 0)


def test_many_files_are_counted_and_not_kept(tmp_path: Path) -> None:
    for number in range(20_000):
        os.close(os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    assert tree_usage(str(tmp_path))[1] == 20_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 10


def test_a_long_walk_is_made_seldom_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, walks = [1000.0], []
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    house: Any = SimpleNamespace(measured={})

    def walk(cid: str) -> tuple[int, int]:
        walks.append(cid)
        assert usage._disk(house, cid) == (None if len(walks) == 1 else (1, 1))  # somebody asks meanwhile
        clock[0] += 5
        return len(walks), len(walks)

    house.snapshots = SimpleNamespace(usage=walk)
    assert usage._disk(house, "c") == (1, 1)
    clock[0] += 99
    assert usage._disk(house, "c") == (1, 1)
    clock[0] += 2
    assert usage._disk(house, "c") == (2, 2)
    assert len(walks) == 2
