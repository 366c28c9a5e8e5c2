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

__all__ = ["Container", "Database", "Leftover", "PodRow", "Unreadable", "Volume", "VolumeSnapshot"]

_LOG_PAGES = 256  # who opens the database while nobody else has it open reads the whole log
_BUSY_SECONDS = 30
#: what makes a schema of the one before; how many of them a database has seen is its version
_SCRIPTS = (
    """
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
""",
    """
ALTER TABLE volumes ADD COLUMN driver TEXT NOT NULL DEFAULT 'local';
ALTER TABLE volumes ADD COLUMN handle TEXT NOT NULL DEFAULT '{}';
CREATE TABLE volume_snapshots (
  name TEXT PRIMARY KEY, dir TEXT NOT NULL UNIQUE, created REAL NOT NULL, volume TEXT NOT NULL, driver TEXT NOT NULL,
  handle TEXT NOT NULL
) STRICT;
CREATE TABLE leftovers (
  dir TEXT PRIMARY KEY, driver TEXT NOT NULL, kind TEXT NOT NULL, handle TEXT NOT NULL
) STRICT;
""",
    """
CREATE TABLE pods (
  id TEXT PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL, attempt INTEGER NOT NULL,
  created REAL NOT NULL, config TEXT NOT NULL,
  UNIQUE (namespace, name, uid, attempt)
) STRICT;
ALTER TABLE containers ADD COLUMN pod TEXT REFERENCES pods (id) ON DELETE RESTRICT;
CREATE INDEX containers_pod ON containers (pod) WHERE pod IS NOT NULL;
""",
)
_VERSION = len(_SCRIPTS)


class Container(NamedTuple):
    """One row: `config` is what `create` resolved (docs/state.md), never a status. `pod`: the id of the pod that it is
    a member of, or ""."""

    id: str
    name: str
    created: float
    image: str
    config: Json
    pod: str = ""


class PodRow(NamedTuple):
    """One row: `config` is what was asked and what was given for good (engine/pods/sandbox.py), never a status."""

    id: str
    namespace: str
    name: str
    uid: str
    attempt: int
    created: float
    config: Json


class Volume(NamedTuple):
    """One row: `dir` is the minted id of its directory. `driver`: "local", or who serves it (engine/served.py), and
    then `handle` is what that driver calls it and needs to hear."""

    name: str
    dir: str
    created: float
    anonymous: bool = False
    labels: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    driver: str = "local"
    handle: Mapping[str, Any] = {}


class VolumeSnapshot(NamedTuple):
    """One row: what `volume`, which may be gone, held at `created`. `dir`, `driver` and `handle` as of a volume."""

    name: str
    dir: str
    created: float
    volume: str
    driver: str = "local"
    handle: Mapping[str, Any] = {}


class Leftover(NamedTuple):
    """What a driver holds, or may hold, and no row names: it is being made, or could not be deleted yet.

    `kind`: volume or snapshot. A `handle` without an id is the request that was to make it.
    """

    dir: str
    driver: str
    kind: str
    handle: Mapping[str, Any]


class Unreadable(WherryError):
    """A row whose configuration is not what anybody wrote: a disk's damage, or a hand's."""

    def __init__(self, what: str, ref: str, why: str) -> None:
        message = f"the row of {what} {ref[:12]} in the database cannot be read: {why}"
        super().__init__(Kind.INTERNAL, message, hint="wherry system check tells how it is taken away")


class _Damaged(dict[str, Any]):
    """A configuration that is no JSON. It tells whoever looks into it, for nobody shall take it for an empty one."""

    def __init__(self, error: Unreadable) -> None:
        super().__init__()
        self._error = error

    def __getitem__(self, _key: str) -> Any:
        raise self._error

    def get(self, _key: str, _default: Any = None) -> Any:
        raise self._error


def _config(what: str, ref: str, text: str) -> Json:
    try:
        found = json.loads(text)
    except ValueError as error:
        return _Damaged(Unreadable(what, ref, str(error)))
    return found if isinstance(found, dict) else _Damaged(Unreadable(what, ref, "it is no object"))


def _container(row: Sequence[Any]) -> Container:
    return Container(row[0], row[1], row[2], row[3], _config("container", row[0], row[4]), row[5] or "")


def _pod(row: Sequence[Any]) -> PodRow:
    pod, namespace, name, uid, attempt, created, config = row
    return PodRow(pod, namespace, name, uid, attempt, created, _config("pod", pod, config))


def _volume(row: Sequence[Any]) -> Volume:
    anonymous, labels, options = bool(row[3]), json.loads(row[4]), json.loads(row[5])
    return Volume(row[0], row[1], row[2], anonymous, labels, options, row[6], json.loads(row[7]))


def _snapshot(row: Sequence[Any]) -> VolumeSnapshot:
    return VolumeSnapshot(row[0], row[1], row[2], row[3], row[4], json.loads(row[5]))


def _is_hex(text: str) -> bool:
    return bool(text) and all(c in "0123456789abcdef" for c in text)


_C = "SELECT id, name, created, image, config, pod FROM containers"
_P = "SELECT id, namespace, name, uid, attempt, created, config FROM pods"
_V = "SELECT name, dir, created, anonymous, labels, options, driver, handle FROM volumes"
_S = "SELECT name, dir, created, volume, driver, handle FROM volume_snapshots"


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
        if version < _VERSION:
            self._migrate()
        elif version > _VERSION:
            self._db.close()
            raise WherryError(
                Kind.PRECONDITION,
                f"{self._path} has schema {version}, this wherry speaks {_VERSION}",
                hint="use the wherry that wrote it, or another --root",
            )

    def _migrate(self) -> None:
        """To the schema of today, from none or from an older one: whole, or not at all."""
        with self.write():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]  # another may have been faster
            for script in _SCRIPTS[version:]:
                for statement in script.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {max(version, _VERSION)}")

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
                values = (row.id, row.name, row.created, row.image, json.dumps(row.config), row.pod or None)
                self._db.execute("INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?)", values)
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
            what = "the pod or a volume" if row.pod else "a volume"
            return WherryError(Kind.CONFLICT, f"{what} of the container was removed meanwhile", hint="try again")
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
        if not rows and _is_hex(ref):
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

    # ---- pods ----

    def add_pod(self, row: PodRow) -> None:
        """Insert a pod; EXISTS if there is one of the same namespace, name, uid and attempt."""
        try:
            with self.write():
                values = (*row[:6], json.dumps(row.config))
                self._db.execute("INSERT INTO pods VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.IntegrityError as error:
            message = f"pod {row.namespace}/{row.name} (uid {row.uid}, attempt {row.attempt}) exists already"
            raise WherryError(Kind.EXISTS, message, hint="remove it first, or ask for the next attempt") from error

    def pod(self, pod: str) -> PodRow | None:
        """The pod of this exact id."""
        rows = self._rows(_P + " WHERE id = ?", pod)
        return _pod(rows[0]) if rows else None

    def pod_of(self, namespace: str, name: str, uid: str, attempt: int) -> PodRow | None:
        """The pod that is called so."""
        sql = _P + " WHERE namespace = ? AND name = ? AND uid = ? AND attempt = ?"
        rows = self._rows(sql, namespace, name, uid, attempt)
        return _pod(rows[0]) if rows else None

    def find_pod(self, ref: str) -> PodRow:
        """The pod of an id or a unique prefix of one."""
        rows = self._rows(_P + " WHERE id >= ? AND id < ? LIMIT 2", ref, ref + "g") if _is_hex(ref) else []
        if not rows:
            raise WherryError(Kind.NOT_FOUND, f"no such pod: {ref[:80]}")
        if len(rows) > 1:
            raise WherryError(Kind.INVALID, f"multiple pods have ids that start with {ref}", hint="give more of the id")
        return _pod(rows[0])

    def pods(self) -> list[PodRow]:
        """All pods, newest first."""
        return [_pod(row) for row in self._rows(_P + " ORDER BY created DESC")]

    def pod_ids(self) -> set[str]:
        """The ids of all pods."""
        return {row[0] for row in self._rows("SELECT id FROM pods")}

    def set_pod(self, pod: str, config: Json) -> None:
        """Replace what a pod was asked (update)."""
        with self.write():
            self._db.execute("UPDATE pods SET config = ? WHERE id = ?", (json.dumps(config), pod))

    def remove_pod(self, pod: str) -> None:
        """Delete a pod's row; absent is success, CONFLICT while it has containers."""
        try:
            with self.write():
                self._db.execute("DELETE FROM pods WHERE id = ?", (pod,))
        except sqlite3.IntegrityError as error:
            raise WherryError(Kind.CONFLICT, f"pod {pod[:12]} has containers", hint="remove them first") from error

    def members(self, pod: str = "") -> list[Container]:
        """The containers of a pod, or of all pods; newest first."""
        if pod:
            return [_container(row) for row in self._rows(_C + " WHERE pod = ? ORDER BY created DESC", pod)]
        return [_container(row) for row in self._rows(_C + " WHERE pod IS NOT NULL ORDER BY created DESC")]

    def member_pods(self) -> dict[str, str]:
        """The pod of each container that is of one, without their configurations."""
        return {row[0]: row[1] for row in self._rows("SELECT id, pod FROM containers WHERE pod IS NOT NULL")}

    # ---- who uses what ----

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
        """Insert a volume; if the name exists, the existing one is returned and nothing changes. What the row names is
        no leftover any more."""
        with self.write():
            found = self.volume(row.name)
            if found is not None:
                return found
            values = (row.name, row.dir, row.created or time.time(), int(row.anonymous), json.dumps(row.labels))
            more = (json.dumps(row.options), row.driver, json.dumps(row.handle))
            self._db.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, *more))
            self.remove_leftover(row.dir)
            return row

    def sync(self) -> None:
        """What was committed is on disk: a lost row would let a sweep take what it names."""
        self._rows("PRAGMA wal_checkpoint(FULL)")

    def set_volume_handle(self, name: str, handle: Mapping[str, Any]) -> None:
        """Replace what a volume's driver needs to hear (resize)."""
        with self.write():
            self._db.execute("UPDATE volumes SET handle = ? WHERE name = ?", (json.dumps(handle), name))

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

    # ---- snapshots of volumes, and what drivers hold without a row ----

    def add_snapshot(self, row: VolumeSnapshot) -> None:
        """Insert a snapshot; EXISTS if the name is taken."""
        values = (row.name, row.dir, row.created, row.volume, row.driver, json.dumps(row.handle))
        try:
            with self.write():
                self._db.execute("INSERT INTO volume_snapshots VALUES (?, ?, ?, ?, ?, ?)", values)
                self.remove_leftover(row.dir)
        except sqlite3.IntegrityError as error:
            hint = "choose another name, or remove that snapshot first"
            raise WherryError(Kind.EXISTS, f"a volume snapshot {row.name} exists", hint=hint) from error

    def snapshot(self, name: str) -> VolumeSnapshot | None:
        """The volume snapshot of this name."""
        rows = self._rows(_S + " WHERE name = ?", name)
        return _snapshot(rows[0]) if rows else None

    def snapshots(self) -> list[VolumeSnapshot]:
        """All volume snapshots, oldest first."""
        return [_snapshot(row) for row in self._rows(_S + " ORDER BY created, name")]

    def remove_snapshot(self, name: str) -> None:
        """Delete a snapshot's row."""
        with self.write():
            self._db.execute("DELETE FROM volume_snapshots WHERE name = ?", (name,))

    def add_leftover(self, left: Leftover) -> None:
        """Note, before a driver is asked, what it may hold then; the same again replaces."""
        values = (left.dir, left.driver, left.kind, json.dumps(left.handle))
        with self.write():
            self._db.execute("INSERT OR REPLACE INTO leftovers VALUES (?, ?, ?, ?)", values)

    def leftovers(self) -> list[Leftover]:
        """All of them."""
        rows = self._rows("SELECT dir, driver, kind, handle FROM leftovers ORDER BY dir")
        return [Leftover(row[0], row[1], row[2], json.loads(row[3])) for row in rows]

    def remove_leftover(self, dir: str) -> None:
        """It is gone, or a row names it; absent is fine."""
        with self.write():
            self._db.execute("DELETE FROM leftovers WHERE dir = ?", (dir,))
