"""What a copy of a tree takes, and what it leaves out."""

from __future__ import annotations

import os
from pathlib import Path

from wherry.volume.copying import copy_directory


def copied(source: Path, target: Path) -> None:
    one, two = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target))
    try:
        copy_directory(one, two)
    finally:
        os.close(one)
        os.close(two)


def test_a_copy_that_lies_in_its_source_does_not_hold_itself(tmp_path: Path) -> None:
    target = tmp_path / "pool/copy"
    target.mkdir(parents=True)
    (tmp_path / "pool/other").write_text("x")
    copied(tmp_path, target)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert found == ["pool", "pool/copy", "pool/other"]
