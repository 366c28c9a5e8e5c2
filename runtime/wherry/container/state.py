"""What is written down of a running container: STATE/c/<id>/, and the status that follows from it.

    STATE/c/<id>/state.json  ours: who the processes are      exit.json  the monitor's: how it ended
                 lock        flock, one verb at a time        attach     the monitor's listening socket
                 start       fifo of a created container

Decides the layout and what each status means. A status is never stored: it follows from the processes, the cgroup and
exit.json. Refuses to know images, names, policies: callers keep theirs in `State.extra`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.kernel.process import Process
from wherry.model import ExitStatus, Json

__all__ = ["ContainerDir", "State", "Status", "cgroups", "ids", "look_many", "monitored"]

_ID = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}"  # runc's letters: it names a directory and a cgroup, hence NAME_MAX
_FILE_MAX = 1 << 20
_ROOM = 1 << 11  # bytes for one of many records, on an average
_KILLED = "monitor was killed"


class Status(str, Enum):
    """The runtime-spec's statuses, and paused."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


#: cgroup.events of what runs (Documentation/admin-guide/cgroup-v2.rst)
_RUNS = b"populated 1\nfrozen 0\n"


class State(NamedTuple):
    """state.json. `cgroup` is an absolute path; "" without one. Times in unix seconds."""

    id: str
    bundle: str = ""
    cgroup: str = ""
    init: Process | None = None
    monitor: Process | None = None  # None: no monitor (role launch), somebody else waits for init
    created: float = 0.0
    started: float = 0.0
    degraded: tuple[str, ...] = ()  # limits that could not be set
    extra: Mapping[str, Any] = {}

    def to_json(self) -> Json:
        """As stored."""
        members = self._asdict()
        for name in ("init", "monitor"):
            members[name] = members[name] and members[name]._asdict()
        return members

    @staticmethod
    def from_json(data: Json) -> State:
        """As read; unknown members of a newer version are dropped."""
        known = {name: data[name] for name in State._fields if name in data}
        for name in ("init", "monitor"):
            known[name] = Process(**known[name]) if known.get(name) else None
        known["degraded"] = tuple(known.get("degraded", ()))
        return State(**known)


def ids(state_root: str, below: str = "c") -> list[str]:
    """The ids below STATE/c, sorted."""
    try:
        return sorted(os.listdir(os.path.join(state_root, below)))
    except FileNotFoundError:
        return []


class ContainerDir:
    """STATE/c/<id>: paths, the lock, and the facts in it. The OCI face keeps its own right `below` its root: ""."""

    def __init__(self, state_root: str, container_id: str, below: str = "c") -> None:
        if not re.fullmatch(_ID, container_id):
            raise WherryError(Kind.INVALID, f"invalid container id {container_id!r}")
        self.id = container_id
        self.path = os.path.join(state_root, below, container_id)

    def __repr__(self) -> str:
        return f"ContainerDir({self.path!r})"

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return f"{self.path}/{name}"

    @property
    def attach_path(self) -> str:
        """The monitor's listening socket."""
        return self.file("attach")

    @property
    def fifo_path(self) -> str:
        """The start fifo of a created container."""
        return self.file("start")

    def exists(self) -> bool:
        """Whether the directory is there."""
        return os.path.isdir(self.path)

    def make(self) -> None:
        """Make the directory, and STATE and STATE/c above it; EXISTS if it is there."""
        top = os.path.dirname(self.path)
        os.makedirs(os.path.dirname(top), mode=0o711, exist_ok=True)
        for path, last in ((top, False), (self.path, True)):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if last:
                    raise WherryError(Kind.EXISTS, f"container {self.id} exists already") from None

    def remove(self) -> None:
        """Remove the directory with all in it; absent is fine. The lock goes with it.

        A monitor whose container was just killed may still put its exit.json in while we empty the directory.
        """
        for pause in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            try:
                return files.remove_tree(self.path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            time.sleep(pause)
        return files.remove_tree(self.path)

    @contextmanager
    def lock(self, timeout: float = 30.0) -> Iterator[None]:
        """Hold the container for one verb. NOT_FOUND if it has gone meanwhile, CONFLICT after `timeout` seconds."""
        fd = self._lock(time.monotonic() + timeout)
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self, deadline: float) -> int:
        while True:
            try:
                fd = os.open(self.file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                raise self._unknown() from None
            try:
                files.lock_fd(fd, deadline - time.monotonic(), f"container {self.id}")
                if _same_file(fd, self.file("lock")):  # else: removed, and perhaps made anew, while we waited
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _unknown(self) -> WherryError:
        return WherryError(Kind.NOT_FOUND, f"no such container: {self.id}")

    def save(self, state: State) -> None:
        """Write state.json; the caller holds the lock."""
        files.atomic_write(self.file("state.json"), json.dumps(state.to_json()).encode(), 0o600)

    def load(self) -> State:
        """Read state.json; NOT_FOUND if there is none."""
        try:
            return State.from_json(json.loads(files.read_small(self.file("state.json"), _FILE_MAX).decode()))
        except (FileNotFoundError, NotADirectoryError):
            raise self._unknown() from None
        except ValueError as error:
            raise WherryError(Kind.INTERNAL, f"{self.file('state.json')} is damaged: {error}") from error

    def change(self, **members: object) -> State:
        """`load`, replace, `save`; the caller holds the lock."""
        state = self.load()._replace(**members)  # type: ignore[arg-type]
        self.save(state)
        return state

    def exit_status(self) -> ExitStatus | None:
        """What exit.json says, None while there is none."""
        try:
            data = json.loads(files.read_capped(self.file("exit.json"), _FILE_MAX))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ExitStatus(int(data["code"]), bool(data["oom"]), float(data["time"]), str(data.get("error", "")))

    def write_exit(self, status: ExitStatus) -> None:
        """Write exit.json in the monitor's place."""
        data = {"code": status.code, "signal": max(0, status.code - 128), "oom": status.oom, "time": status.time,
                "error": status.error}
        files.atomic_write(self.file("exit.json"), json.dumps(data).encode() + b"\n", 0o600)

    def status(self, state: State | None = None) -> Status:
        """What the container is doing now."""
        state = state or self.load()
        if state.init is None:
            return Status.CREATING if self.exit_status() is None else Status.STOPPED
        if not process.alive(state.init):
            return Status.STOPPED
        if not state.started and os.path.exists(self.fifo_path):
            return Status.CREATED
        return Status.PAUSED if frozen(state.cgroup) else Status.RUNNING

    def settle(self, state: State | None = None) -> ExitStatus | None:
        """Give a container whose monitor was killed its end: kill what is left, record 137. Else what exit.json says.

        None: it still runs, or nobody of ours knows its code (no monitor). NOT_FOUND: settled by another meanwhile.
        """
        state = state or self.load()
        status = self.exit_status()
        if status is not None or state.monitor is None or process.alive(state.monitor):
            return status
        kill_cgroup(state.cgroup)
        if state.init is not None:
            process.wait_gone(state.init, 10)
        # once more: the monitor may have written it between our two looks
        status = self.exit_status() or ExitStatus(137, False, time.time(), _KILLED)
        if status.error == _KILLED:
            try:
                self.write_exit(status)
            except FileNotFoundError:
                raise self._unknown() from None
        return status


def look_many(state_root: str, ids: Sequence[str], below: str = "c") -> list[State | None]:
    """The state of each that runs, None where a closer look (`load`, `status`) is due. Only for containers with a pid
    namespace of their own: its end is the end of all of them, and the end of what is in the cgroup."""
    from wherry.kernel import shim

    states = _states(state_root, ids, below)
    names = [f"{state.cgroup}/cgroup.events"[1:] if state and state.cgroup else "" for state in states]
    events = shim.read_many("/", names, 64 * (len(ids) + 8))
    return [
        state if state and state.started and event == _RUNS else None
        for state, event in zip(states, events, strict=True)
    ]


def cgroups(state_root: str, ids: Sequence[str], below: str = "c") -> dict[str, str]:
    """The cgroups of those that have one; whether anything runs there is the cgroup's to tell."""
    states = _states(state_root, ids, below) if ids and os.path.isdir(os.path.join(state_root, below)) else []
    return {state.id: state.cgroup for state in states if state and state.cgroup}


def monitored(state_root: str, ids: Sequence[str], below: str = "c") -> set[str]:
    """Those whose monitor lives."""
    states = _states(state_root, ids, below)
    lives = process.alive_many([state and state.monitor for state in states])
    return {name for name, alive in zip(ids, lives, strict=True) if alive}


def _states(state_root: str, ids: Sequence[str], below: str) -> list[State | None]:
    from wherry.kernel import shim

    records = [f"{name}/state.json" for name in ids]
    texts = shim.read_many(os.path.join(state_root, below), records, _ROOM * (len(ids) + 8))
    return [_plain_state(text) for text in texts]


def _plain_state(text: bytes | None) -> State | None:
    try:
        return State.from_json(json.loads(text.decode())) if text else None
    except (ValueError, TypeError):
        return None


def frozen(cgroup: str) -> bool:
    """Whether the cgroup is frozen."""
    try:
        return bool(cgroup) and files.read_small(f"{cgroup}/cgroup.freeze", 64).strip() == b"1"
    except OSError:
        return False


def kill_cgroup(cgroup: str) -> bool:
    """KILL every process of the cgroup, forks on the way too; False if it has none of that file (or is gone)."""
    if not cgroup:
        return False
    try:
        with open(os.path.join(cgroup, "cgroup.kill"), "wb", buffering=0) as file:
            file.write(b"1")
    except OSError:
        return False
    return True


def _same_file(fd: int, path: str) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
