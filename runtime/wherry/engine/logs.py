"""`logs`: a container's log files read in order of time, through rotation, with since, until, tail and follow.

Decides nothing of the format (the monitor writes it); reads files with a cap a line (invariant 3).
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from wherry.errors import Kind, WherryError

from .house import House
from .status import look
from .values import LogLine

if TYPE_CHECKING:
    from .db import Container

__all__ = ["Follower", "follow", "read"]

_LINE_MAX = 1 << 20
_POLL = 0.05


def _cri(line: bytes) -> LogLine | None:
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    text = parts[3] if parts[2] == b"P" else parts[3] + b"\n"
    return LogLine(parts[1].decode(), parts[0].decode("ascii", "replace"), text)


def _json(line: bytes) -> LogLine | None:
    try:
        value = json.loads(line)
        data = str(value["log"]).encode("utf-8", "surrogateescape")
        return LogLine(str(value["stream"]), str(value["time"]), data)
    except (ValueError, KeyError, TypeError):
        return None


_PARSERS: dict[str, Callable[[bytes], LogLine | None]] = {"local": _cri, "json-file": _json}


def _rotated(path: str, files: int) -> list[str]:
    """Oldest first."""
    names = [f"{path}.{number}" for number in range(files, 0, -1)] + [path]
    return [name for name in names if os.path.exists(name)]


def _open(path: str) -> BinaryIO | None:
    try:
        return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        return None


def read(
    house: House,
    ref: str,
    *,
    stdout: bool,
    stderr: bool,
    since: float,
    until: float,
    tail: int | None,
    follow: bool,
) -> Iterator[LogLine]:
    """The verb. Checks at once, yields later."""
    row = house.db.find(ref)
    wanted = _wanted(stdout, stderr)
    if row.config["log"]["driver"] == "journald":
        return _journal(row.id, wanted, (_bound(since), _bound(until)), tail, follow)
    return _lines(Follower(house, row, wanted, (_bound(since), _bound(until)), tail), follow)


def follow(
    house: House, ref: str, *, stdout: bool, stderr: bool, since: float, until: float, tail: int | None
) -> Follower:
    """The same for who looks again and again. UNSUPPORTED for a log of the journal's, which only its own program
    reads."""
    return Follower(house, house.db.find(ref), _wanted(stdout, stderr), (_bound(since), _bound(until)), tail)


def _wanted(stdout: bool, stderr: bool) -> set[str]:
    return {name for name, on in (("stdout", stdout), ("stderr", stderr)) if on}


def _bound(moment: float) -> str:
    """Unix seconds as the text that the log's times compare with; "" for none."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") if moment else ""


class Follower:
    """A log, looked at again and again. `more` does not wait."""

    def __init__(
        self, house: House, row: Container, wanted: set[str], bounds: tuple[str, str], tail: int | None
    ) -> None:
        log = row.config["log"]
        if log["driver"] not in _PARSERS:
            hint = "the container was made with another --log-driver"
            raise WherryError(Kind.UNSUPPORTED, "configured logging driver does not support reading", hint=hint)
        path = os.path.join(house.container_dir(row.id), log["file"])  # that of a pod's container lies elsewhere
        self._reader = _Reader(path, log["files"], _PARSERS[log["driver"]])
        self._house, self._id, self._wanted, self._bounds, self._tail = house, row.id, wanted, bounds, tail
        self._began = False

    def past(self) -> Iterator[LogLine]:
        """What is there at the first look."""
        self._began = True
        lines = (line for line in self._reader.more() if self._fits(line))
        return lines if self._tail is None else _last(lines, self._tail)

    def more(self) -> list[LogLine] | None:
        """The lines since the last look. None: there are no more, and no more will come."""
        if not self._began:
            return list(self.past())
        alive = look(self._house, self._id).status in ("running", "paused", "restarting")
        fresh = list(self._reader.more())
        if not fresh and (not alive or (self._bounds[1] and _bound(time.time()) > self._bounds[1])):
            return None
        return [line for line in fresh if self._fits(line)]

    def _fits(self, line: LogLine) -> bool:
        late = self._bounds[1] and line.time > self._bounds[1]
        return line.stream in self._wanted and line.time >= self._bounds[0] and not late


def _lines(log: Follower, follow: bool) -> Iterator[LogLine]:
    yield from log.past()
    while follow and (fresh := log.more()) is not None:
        yield from fresh
        if not fresh:
            time.sleep(_POLL)


def _last(lines: Iterator[LogLine], count: int) -> Iterator[LogLine]:
    """The last lines; a partial record counts with the record that ends it."""
    kept: deque[list[LogLine]] = deque(maxlen=max(count, 0))
    group: list[LogLine] = []
    for line in lines:
        group.append(line)
        if line.data.endswith(b"\n"):
            kept.append(group)
            group = []
    if group:
        kept.append(group)
    for some in kept:
        yield from some


class _Reader:
    """The files of one log as one stream; goes on where it stopped, over a rotation too."""

    def __init__(self, path: str, files: int, parse: Callable[[bytes], LogLine | None]) -> None:
        self._path, self._files, self._parse = path, files, parse
        self._file: BinaryIO | None = None
        self._started = False
        self._torn = b""

    def more(self) -> Iterator[LogLine]:
        """What is there and was not yet told."""
        if not self._started:
            self._started = True
            for name in _rotated(self._path, self._files)[:-1]:
                with _open(name) or open(os.devnull, "rb") as file:
                    yield from self._parsed(file)
        if self._file is None:
            self._file = _open(self._path)
        while self._file is not None:
            yield from self._parsed(self._file)
            if not self._rotated_away():
                return
            self._file.close()
            self._file = _open(self._path)

    def _rotated_away(self) -> bool:
        assert self._file is not None
        try:
            return os.stat(self._path).st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _parsed(self, file: BinaryIO) -> Iterator[LogLine]:
        while line := file.readline(_LINE_MAX):
            line, self._torn = self._torn + line, b""  # the line, whole now
            if not line.endswith(b"\n"):
                self._torn = line
                return
            found = self._parse(line[:-1])
            if found is not None:
                yield found


def _journal(
    cid: str, wanted: set[str], bounds: tuple[str, str], tail: int | None, follow: bool
) -> Iterator[LogLine]:
    """Through journalctl: the journal's own reader."""
    import shutil
    import subprocess

    if not shutil.which("journalctl"):
        raise WherryError(Kind.PRECONDITION, "journalctl is not installed", hint="apt-get install systemd")
    words = ["journalctl", "-q", "-o", "json", "--all", f"CONTAINER_ID_FULL={cid}"]
    words += [f"--since={bounds[0].replace('T', ' ')} UTC"] if bounds[0] else []
    words += [f"--until={bounds[1].replace('T', ' ')} UTC"] if bounds[1] else []
    words += ["-n", str(tail) if tail is not None else "all"] + (["-f"] if follow else [])
    return _journal_lines(subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL), wanted)


def _journal_lines(process: object, wanted: set[str]) -> Iterator[LogLine]:
    import subprocess

    assert isinstance(process, subprocess.Popen)
    assert process.stdout is not None
    with process:
        try:
            for text in process.stdout:
                found = _journal_line(json.loads(text))
                if found.stream in wanted:
                    yield found
        finally:
            process.terminate()


def _journal_line(entry: dict[str, object]) -> LogLine:
    message = entry.get("MESSAGE", "")
    data = bytes(message) if isinstance(message, list) else str(message).encode()
    stream = "stderr" if entry.get("PRIORITY") == "3" else "stdout"
    micro = int(str(entry.get("__REALTIME_TIMESTAMP", "0")))
    when = datetime.fromtimestamp(micro / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    return LogLine(stream, when, data + b"\n")
