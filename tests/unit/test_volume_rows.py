"""The database's rows of volumes: an older schema goes on in place, snapshots, and what drivers hold without a row."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from wherry.engine import db as database
from wherry.engine.db import Container, Database, Leftover, Volume, VolumeSnapshot
from wherry.errors import Kind, WherryError


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(str(tmp_path / "w.db"))


def first_schema(path: Path) -> sqlite3.Connection:
    """A database as the first schema's wherry left it, in WAL mode as it does."""
    made = sqlite3.connect(path, isolation_level=None)
    made.execute("PRAGMA journal_mode = WAL")
    made.executescript(database._SCRIPTS[0])
    made.execute("PRAGMA user_version = 1")
    return made


def test_an_older_database_goes_on_in_place(tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    old = first_schema(path)
    old.execute("INSERT INTO volumes VALUES ('data', 'd1', 5.0, 0, '{\"a\": \"b\"}', '{}')")
    old.execute("INSERT INTO containers VALUES ('c1', 'web', 1.0, 'sha256:1', '{}')")
    old.execute("INSERT INTO container_volumes VALUES ('c1', 'data')")
    old.close()
    for _ in range(2):  # the second time there is nothing to do
        db = Database(str(path))
        assert db.volume("data") == Volume("data", "d1", 5.0, False, {"a": "b"}, {}, "local", {})
        assert db.volume_users("data") == ["c1"]
        assert db.container("c1") == Container("c1", "web", 1.0, "sha256:1", {})
        assert db.snapshots() == []
        assert db.problems() == []
        db.close()
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (len(database._SCRIPTS),)


def test_a_migration_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.db"
    first_schema(path).close()
    scripts = (*database._SCRIPTS, "CREATE TABLE more (x); CREATE TABLE volumes (x)")  # the last statement fails
    monkeypatch.setattr(database, "_SCRIPTS", scripts)
    monkeypatch.setattr(database, "_VERSION", len(scripts))
    with pytest.raises(WherryError):
        Database(str(path))
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA user_version").fetchone() == (1,)
    assert "leftovers" not in {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Database(str(tmp_path / "w.db")).close()
    raw = sqlite3.connect(tmp_path / "w.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(WherryError) as error:
        Database(str(tmp_path / "w.db"))
    assert error.value.kind is Kind.PRECONDITION


def test_a_row_takes_the_place_of_its_leftover(db: Database) -> None:
    wish = Leftover("d1", "csi.wherry.dev", "volume", {"wish": {"name": "wherry-d1"}})
    db.add_leftover(wish)
    assert db.leftovers() == [wish]
    made = wish._replace(handle={"id": "vol-1"})
    db.add_leftover(made)
    assert db.leftovers() == [made]
    row = Volume("data", "d1", 1.0, options={"size": "1g"}, driver="csi.wherry.dev", handle={"id": "vol-1", "size": 7})
    assert db.add_volume(row) == row
    assert db.volume("data") == row
    assert db.leftovers() == []
    db.set_volume_handle("data", {"id": "vol-1", "size": 9})
    assert db.volumes()[0].handle["size"] == 9


def test_who_was_slower_keeps_the_leftover(db: Database) -> None:
    db.add_volume(Volume("data", "d1", 1.0))
    db.add_leftover(Leftover("d2", "csi.wherry.dev", "volume", {"id": "vol-2"}))
    assert db.add_volume(Volume("data", "d2", 1.0, driver="csi.wherry.dev")).dir == "d1"
    assert [left.dir for left in db.leftovers()] == ["d2"]


def test_row_and_leftover_change_places_at_once(db: Database) -> None:
    db.add_volume(Volume("data", "d1", 1.0, driver="x", handle={"id": "v"}))
    db.add_container(Container("c" * 64, "web", 1.0, "i", {}), ["data"])

    def remove() -> None:
        with db.write():
            db.add_leftover(Leftover("d1", "x", "volume", {"id": "v"}))
            db.remove_volume("data")  # in use

    with pytest.raises(WherryError):
        remove()
    assert db.leftovers() == []
    assert db.volume("data") is not None


def test_snapshots(db: Database) -> None:
    row = VolumeSnapshot("monday", "d3", 2.0, "data", "local", {})
    db.add_leftover(Leftover("d3", "x", "snapshot", {}))
    db.add_snapshot(row)
    assert (db.snapshot("monday"), db.snapshots(), db.leftovers()) == (row, [row], [])
    with pytest.raises(WherryError) as error:
        db.add_snapshot(row._replace(dir="d4"))
    assert error.value.kind is Kind.EXISTS
    db.remove_snapshot("monday")
    assert db.snapshot("monday") is None
    db.sync()
