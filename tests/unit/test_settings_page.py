"""docs/settings.md: every key with its true default, and no other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from wherry.engine.config import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
ROW = re.compile(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", re.MULTILINE)


def told() -> dict[str, object]:
    found: dict[str, object] = {}
    for keys, default in ROW.findall(PAGE):
        names = re.findall(r"`(\w+)`", keys)
        values = re.findall(r"`([^`]+)`", default)
        values = values * len(names) if len(values) == 1 else values
        for name, value in zip(names, values or ["{}"], strict=True):
            assert name not in found, f"{name} is told twice"
            found[name] = tomllib.loads(f"x = {value}")["x"]
    return found


def test_every_key_with_its_default() -> None:
    assert told() == Settings()._asdict()
