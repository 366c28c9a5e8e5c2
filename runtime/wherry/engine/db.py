"""The relations: names, what a container was asked, who uses which image, volume and network. The only user of sqlite3.

Decides uniqueness and order. Refuses to know pids, status and anything else that a reboot makes untrue.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["Container", "Database", "Volume"]

_VERSION = 1
_LOG_PAGES = 256  # who opens the database while nobody else has it open reads the whole log
_BUSY_SECONDS = 30
_SCHEMA = """
CREATE TABLE containers (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL, image TEXT NOT NULL, config TEXT NOT NULL
) STRICT;
CREATE INDEX containers_image ON containers (image);
CREATE TABLE volumes (
  name TEXT PRIMARY KEY, dir TEXT NOT NULL UNIQUE, created REAL NOT NULL, anonymous INTEGER NOT NULL,
  labels TEXT NOT NULL, options TEXT NOT NULL
) STRICT;
CREATE TABLE container_volumes (
  container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  volume TEXT NOT NULL REFERENCES volumes (name) ON DELETE RESTRICT,
  PRIMARY KEY (container, volume)
) STRICT;
CREATE INDEX container_volumes_volume ON container_volumes (volume);
CREATE TABLE container_networks (
  container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
  network TEXT NOT NULL,
  PRIMARY KEY (container, network)
) STRICT;
CREATE INDEX container_networks_network ON container_networks (network);
CREATE TABLE ranges (
  container TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
  start INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL
) STRICT;
"""


class Container(NamedTuple):
    """One row: `config` is what `create` resolved (docs/state.md), never a status."""

    id: str
    name: str
    created: float
    image: str
    config: Json


class Volume(NamedTuple):
    """One row: `dir` is the minted id of its directory."""

    name: str
    dir: str
    created: float
    anonymous: bool = False
    labels: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


def _container(row: Sequence[Any]) -> Container:
    return Container(row[0], row[1], row[2], row[3], json.loads(row[4]))


def _volume(row: Sequence[Any]) -> Volume:
    return Volume(row[0], row[1], row[2], bool(row[3]), json.loads(row[4]), json.loads(row[5]))


_C = "SELECT id, name, created, image, config FROM containers"
_V = "SELECT name, dir, created, anonymous, labels, options FROM volumes"


class Database:
    """One connection, shared by the threads of this process under a lock; other processes wait by the busy timeout."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._kept = self  # a cycle: the end of a command does not close us, which would write the log back and sync
        old = os.umask(0o077)
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            os.umask(old)
        self._open()

    def _open(self) -> None:
        try:
            # A commit waits for no disk: after a power cut the last ones may be missing, what is there is whole.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if version == 0:
            self._create()
        elif version != _VERSION:
            self._db.close()
            raise WherryError(
                Kind.PRECONDITION,
                f"{self._path} has schema {version}, this wherry speaks {_VERSION}",
                hint="use the wherry that wrote it, or another --root",
            )

    def _create(self) -> None:
        with self.write():
            if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _failed(self, error: sqlite3.Error) -> WherryError:
        kind = Kind.EXHAUSTED if "full" in str(error) else Kind.INTERNAL
        kind = Kind.UNAVAILABLE if "locked" in str(error) else kind
        return WherryError(kind, f"database {self._path}: {error}")

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction of several statements; others wait. A failure undoes all of it."""
        with self._lock:
            nested = self._db.in_transaction
            try:
                if not nested:
                    self._db.execute("BEGIN IMMEDIATE")
                yield
                if not nested:
                    self._db.execute("COMMIT")
            except BaseException as error:
                if not nested and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                    raise self._failed(error) from error
                raise

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        said = [str(row[0]) for row in self._rows("PRAGMA quick_check")]
        broken = self._rows("PRAGMA foreign_key_check")
        said += [f"row {row} of {table} names what is not in {parent}" for table, row, parent, *_ in broken]
        return [line for line in said if line != "ok"]

    # ---- containers ----

    def add_container(
        self, row: Container, volumes: Sequence[str] = (), networks: Sequence[str] = (), size: int = 0, base: int = 0
    ) -> int:
        """Insert a container and what it uses. With `size`, gives it a range of host ids; returns the range's start."""
        try:
            with self.write():
                values = (row.id, row.name, row.created, row.image, json.dumps(row.config))
                self._db.execute("INSERT INTO containers VALUES (?, ?, ?, ?, ?)", values)
                self._db.executemany("INSERT INTO container_volumes VALUES (?, ?)", [(row.id, v) for v in volumes])
                self._db.executemany("INSERT INTO container_networks VALUES (?, ?)", [(row.id, n) for n in networks])
                return self._add_range(row.id, base, size) if size else 0
        except sqlite3.IntegrityError as error:
            raise self._refused(row, error) from error

    def _add_range(self, cid: str, base: int, size: int) -> int:
        top = self._db.execute("SELECT max(start + size) FROM ranges").fetchone()[0]
        start = max(base, top or 0)
        if start + size > 0xFFFF0000:
            start = self._gap(base, size)
        self._db.execute("INSERT INTO ranges VALUES (?, ?, ?)", (cid, start, size))
        return start

    def _gap(self, base: int, size: int) -> int:
        start = base
        for taken, length in self._db.execute("SELECT start, size FROM ranges ORDER BY start"):
            if start + size <= taken:
                return start
            start = max(start, taken + length)
        raise WherryError(Kind.EXHAUSTED, f"no {size} free host ids for a user namespace", hint="remove containers")

    def _refused(self, row: Container, error: sqlite3.IntegrityError) -> WherryError:
        if "containers.name" in str(error):
            holder = self._rows(_C + " WHERE name = ?", row.name)
            by = f" by container {holder[0][0]}" if holder else ""
            hint = "remove or rename that container, or choose another name"
            return WherryError(Kind.EXISTS, f'the container name "/{row.name}" is already in use{by}', hint=hint)
        if "FOREIGN KEY" in str(error):
            return WherryError(Kind.CONFLICT, "a volume of the container was removed meanwhile", hint="try again")
        return WherryError(Kind.INTERNAL, f"container {row.id}: {error}")

    def containers(self) -> list[Container]:
        """All containers, newest first."""
        return [_container(row) for row in self._rows(_C + " ORDER BY created DESC")]

    def container_ids(self) -> set[str]:
        """The ids of all containers, without their configurations."""
        return {row[0] for row in self._rows("SELECT id FROM containers")}

    def container(self, cid: str) -> Container | None:
        """The container of this exact id."""
        rows = self._rows(_C + " WHERE id = ?", cid)
        return _container(rows[0]) if rows else None

    def find(self, ref: str) -> Container:
        """The container of a name, an id, or a unique prefix of an id: in this order, as docker."""
        ref = ref.removeprefix("/")
        rows = self._rows(_C + " WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1", ref) if ref else []
        if not rows and ref and all(c in "0123456789abcdef" for c in ref):
            rows = self._rows(_C + " WHERE id >= ? AND id < ? LIMIT 2", ref, ref + "g")
        if len(rows) == 1:
            return _container(rows[0])
        if rows:
            hint = "give more of the id"
            raise WherryError(Kind.INVALID, f"multiple containers have ids that start with {ref}", hint=hint)
        raise WherryError(Kind.NOT_FOUND, f"no such container: {ref}")

    def named(self, name: str) -> str:
        """The id of the container of this name, "" if the name is free."""
        rows = self._rows("SELECT id FROM containers WHERE name = ?", name)
        return str(rows[0][0]) if rows else ""

    def rename(self, cid: str, name: str) -> None:
        """Change a name; EXISTS if another container has it."""
        try:
            with self.write():
                self._db.execute("UPDATE containers SET name = ? WHERE id = ?", (name, cid))
        except sqlite3.IntegrityError as error:
            raise self._refused(Container(cid, name, 0, "", {}), error) from error

    def set_config(self, cid: str, config: Json) -> None:
        """Replace what a container was asked (update)."""
        with self.write():
            self._db.execute("UPDATE containers SET config = ? WHERE id = ?", (json.dumps(config), cid))

    def remove_container(self, cid: str) -> list[Volume]:
        """Delete a container's row; returns its anonymous volumes that nothing else uses (rows still stand)."""
        with self.write():
            mine = [row[0] for row in self._rows("SELECT volume FROM container_volumes WHERE container = ?", cid)]
            self._db.execute("DELETE FROM containers WHERE id = ?", (cid,))
            found = [v for v in map(self.volume, mine) if v is not None and v.anonymous]
            return [v for v in found if not self.volume_users(v.name)]

    def connect(self, cid: str, network: str) -> bool:
        """Note that a container asks for a network; False: it does already."""
        with self.write():
            before = self._db.total_changes
            self._db.execute("INSERT OR IGNORE INTO container_networks VALUES (?, ?)", (cid, network))
            return self._db.total_changes > before

    def disconnect(self, cid: str, network: str) -> None:
        """Note that it does not any more."""
        with self.write():
            self._db.execute("DELETE FROM container_networks WHERE container = ? AND network = ?", (cid, network))

    def image_users(self, image: str) -> list[Container]:
        """The containers made from an image."""
        return [_container(row) for row in self._rows(_C + " WHERE image = ?", image)]

    def network_users(self, network: str) -> list[str]:
        """The ids of the containers that ask for a network."""
        return [row[0] for row in self._rows("SELECT container FROM container_networks WHERE network = ?", network)]

    def range(self, cid: str) -> tuple[int, int]:
        """The host ids of a container's private user namespace, (0, 0) if it has none."""
        rows = self._rows("SELECT start, size FROM ranges WHERE container = ?", cid)
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    # ---- volumes ----

    def add_volume(self, row: Volume) -> Volume:
        """Insert a volume; if the name exists, the existing one is returned and nothing changes."""
        with self.write():
            found = self.volume(row.name)
            if found is not None:
                return found
            values = (row.name, row.dir, row.created or time.time(), int(row.anonymous), json.dumps(row.labels))
            self._db.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?)", (*values, json.dumps(row.options)))
            return row

    def volume(self, name: str) -> Volume | None:
        """The volume of this name."""
        rows = self._rows(_V + " WHERE name = ?", name)
        return _volume(rows[0]) if rows else None

    def volumes(self) -> list[Volume]:
        """All volumes by name."""
        return [_volume(row) for row in self._rows(_V + " ORDER BY name")]

    def volume_users(self, name: str) -> list[str]:
        """The ids of the containers that mount a volume."""
        return [row[0] for row in self._rows("SELECT container FROM container_volumes WHERE volume = ?", name)]

    def remove_volume(self, name: str) -> None:
        """Delete a volume's row; CONFLICT while a container mounts it."""
        try:
            with self.write():
                self._db.execute("DELETE FROM volumes WHERE name = ?", (name,))
        except sqlite3.IntegrityError as error:
            users = ", ".join(u[:12] for u in self.volume_users(name))
            hint = "remove the containers that use it first"
            raise WherryError(Kind.CONFLICT, f"volume {name} is in use by [{users}]", hint=hint) from error
