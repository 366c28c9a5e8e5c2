"""The relations: uniqueness, look-up, references, and twenty processes at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.engine.db import Container, Database, Volume
from wherry.errors import Kind, WherryError

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(str(tmp_path / "w.db"))


def row(cid: str, name: str, image: str = "sha256:1") -> Container:
    return Container(cid.ljust(64, "0"), name, 1.0, image, {"options": {}})


def test_names_and_prefixes(db: Database) -> None:
    db.add_container(row("abc1", "one"))
    db.add_container(row("abc2", "abc1"))  # a name that is another's prefix wins
    assert db.find("one").name == "one"
    assert db.find("/abc1").name == "abc1"
    assert db.find("abc2").name == "abc1"
    for ref, kind in (("abc", Kind.INVALID), ("zzz", Kind.NOT_FOUND), ("", Kind.NOT_FOUND), ("%", Kind.NOT_FOUND)):
        with pytest.raises(WherryError) as error:
            db.find(ref)
        assert error.value.kind is kind
    with pytest.raises(WherryError) as taken:
        db.add_container(row("abc3", "one"))
    assert taken.value.kind is Kind.EXISTS
    assert row("abc1", "").id in taken.value.message
    with pytest.raises(WherryError):
        db.rename(row("abc2", "").id, "one")
    assert len(db.containers()) == 2


def test_references(db: Database) -> None:
    db.add_volume(Volume("v", "d1", 1.0))
    db.add_volume(Volume("anon", "d2", 1.0, True))
    assert db.add_volume(Volume("v", "d9", 2.0)).dir == "d1"
    db.add_container(row("a", "one"), ["v", "anon"], ["net"])
    with pytest.raises(WherryError) as used:
        db.remove_volume("v")
    assert used.value.kind is Kind.CONFLICT
    assert db.network_users("net") == [row("a", "").id]
    with pytest.raises(WherryError):
        db.add_container(row("b", "two"), ["gone"])
    assert db.named("two") == ""  # all or nothing
    assert [v.name for v in db.remove_container(row("a", "").id)] == ["anon"]
    db.remove_volume("v")
    assert db.network_users("net") == []


def test_ranges_of_host_ids(db: Database) -> None:
    starts = [db.add_container(row(f"{n}", f"n{n}"), size=65536, base=1 << 28) for n in range(3)]
    assert starts == [1 << 28, (1 << 28) + 65536, (1 << 28) + 131072]
    db.remove_container(row("2", "").id)
    assert db.add_container(row("9", "n9"), size=65536, base=1 << 28) == starts[2]
    assert db.range(row("9", "").id) == (starts[2], 65536)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "w.db")
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(WherryError) as error:
        Database(path)
    assert error.value.kind is Kind.PRECONDITION


_WORKER = """
import sys
from wherry.engine.db import Container, Database
from wherry.errors import WherryError
path, number = sys.argv[1], int(sys.argv[2])
won = 0
for turn in range(10):
    db = Database(path)
    cid = f"{number:02x}{turn:02x}".ljust(64, "0")
    db.add_container(Container(cid, f"own-{number}-{turn}", 1.0, "i", {}))
    try:
        db.rename(cid, f"race-{turn}")
        won += 1
    except WherryError:
        pass
    db.close()
print(won)
"""


def test_twenty_processes(tmp_path: Path) -> None:
    path = str(tmp_path / "w.db")
    env = {**os.environ, "PYTHONPATH": f"{TOP}/runtime"}
    words = [sys.executable, "-c", _WORKER, path]
    running = [subprocess.Popen([*words, str(n)], env=env, stdout=subprocess.PIPE, text=True) for n in range(20)]
    answers = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 20
    assert sum(map(int, answers)) == 10  # each name was given once
    assert len(Database(path).containers()) == 200
