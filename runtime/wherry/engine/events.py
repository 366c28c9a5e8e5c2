"""What happened, in docker's event objects: one line of JSON each below STATE, kept to a few megabytes.

Decides the shape and the bound. An event is told best-effort: losing one never fails a verb.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from wherry.model import Json

from .house import House

if TYPE_CHECKING:
    from .db import Container

__all__ = ["Tail", "container", "emit", "read", "tail", "test"]

_MAX_BYTES = 4 << 20
_POLL_SECONDS = 0.1
Filters = Mapping[str, Sequence[str]]


def _path(house: House) -> str:
    return f"{house.place.state}/events.jsonl"


def emit(
    house: House, kind: str, action: str, actor: str, attributes: Mapping[str, str], *, pod: str = ""
) -> None:
    """Append one event. A single write of one line: readers never see half of it. `pod`: whose container it is of,
    beside the attributes, for among those are the labels of images."""
    now = time.time_ns()
    event = {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": actor, "Attributes": dict(attributes)},
        "scope": "local",
        "time": now // 1_000_000_000,
        "timeNano": now,
    }
    if pod:
        event["pod"] = pod
    if kind == "container":
        event |= {"status": action, "id": actor, "from": attributes.get("image", "")}
    try:
        _append(_path(house), json.dumps(event).encode() + b"\n")
    except OSError as error:
        house.warn(f"event {action} could not be recorded: {error}")


def _append(path: str, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, line)
        full = os.fstat(fd).st_size > _MAX_BYTES
    finally:
        os.close(fd)
    if full:
        os.replace(path, f"{path}.1")


def container(house: House, row: Container, action: str, **attributes: str) -> None:
    """Tell an event of a container, with the attributes docker adds: image, name, labels; and whose pod's it is."""
    labels = row.config.get("labels", {})
    image = row.config.get("image_name", row.image)
    pod = {"pod": row.pod} if row.pod else {}
    told = {**labels, "image": image, "name": row.name, **pod, **attributes}
    emit(house, "container", action, row.id, told, pod=row.pod)


def _lines(path: str) -> Iterator[Json]:
    try:
        with open(path, "rb") as file:
            yield from _parsed(file.read())
    except FileNotFoundError:
        return


def _parsed(data: bytes) -> Iterator[Json]:
    for line in data.split(b"\n"):
        if line:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _actor(event: Json, key: str) -> str:
    attributes: dict[str, str] = event["Actor"]["Attributes"]
    return str(attributes.get(key, ""))


_FILTERS: dict[str, Callable[[Json, str], bool]] = {
    "event": lambda e, v: e["Action"].split(":")[0] == v or e["Action"] == v,
    "type": lambda e, v: e["Type"] == v,
    "container": lambda e, v: e["Type"] == "container" and (e["Actor"]["ID"].startswith(v) or _actor(e, "name") == v),
    "image": lambda e, v: v in (_actor(e, "image"), *_image_names(e)),
    "volume": lambda e, v: e["Type"] == "volume" and e["Actor"]["ID"] == v,
    "network": lambda e, v: e["Type"] == "network" and v in (e["Actor"]["ID"], _actor(e, "name")),
    "label": lambda e, v: _label(e["Actor"]["Attributes"], v),
}


def _image_names(event: Json) -> tuple[str, ...]:
    return (event["Actor"]["ID"], _actor(event, "name")) if event["Type"] == "image" else ()


def _label(attributes: Json, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in attributes and (not equals or attributes[key] == value)


def _matches(event: Json, filters: Filters) -> bool:
    return all(any(_FILTERS[name](event, value) for value in values) for name, values in filters.items())


def test(filters: Filters) -> Callable[[Json], bool]:
    """What lets an event through; INVALID for a filter that is not known."""
    from .filters import check

    check(filters, _FILTERS)
    return lambda event: _matches(event, filters)


def read(house: House, *, since: float, until: float, filters: Filters, follow: bool) -> Iterator[Json]:
    """Yield events: those since `since` (0: none of the past, unless not following), then what comes, up to `until`."""
    from .filters import check

    check(filters, _FILTERS)
    house.prepare()
    return _stream(house, since, until, filters, follow)


def _stream(house: House, since: float, until: float, filters: Filters, follow: bool) -> Iterator[Json]:
    path = _path(house)
    follower = Tail(path)
    past = [*_lines(f"{path}.1"), *follower.more()]
    wanted = bool(since or until or not follow)
    for event in past if wanted else ():
        when = event["timeNano"] / 1e9
        if when >= since and (not until or when <= until) and _matches(event, filters):
            yield event
    while follow and (not until or time.time() < until):
        for event in follower.more():
            if _matches(event, filters):
                yield event
        time.sleep(_POLL_SECONDS)


def tail(house: House) -> Tail:
    """Follow from now on."""
    house.prepare()
    made = Tail(_path(house))
    made.more()
    return made


def _is(path: str, known: os.stat_result) -> bool:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (found.st_ino, found.st_dev) == (known.st_ino, known.st_dev)


class Tail:
    """Reads a growing file on, over its replacement too: the rest of the old one first."""

    def __init__(self, path: str) -> None:
        self._path, self._file, self._rest = path, -1, b""
        self.missed = False  # the file was replaced twice since a look: its reader knows no more, and resets this

    def more(self) -> list[Json]:
        """What was added since; a look that finds nothing new is two system calls."""
        found: list[Json] = []
        while True:
            found += self._read()
            if not self._replaced():
                return found

    def _read(self) -> list[Json]:
        data = b""
        while self._file >= 0 and (part := os.read(self._file, 1 << 20)):
            data += part
        if not data:
            return []
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        return list(_parsed(whole)) if newline else []

    def _replaced(self) -> bool:
        """Go over to the file that has the name now, if it is another than ours."""
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return False
        if self._file >= 0:
            have = os.fstat(self._file)
            if (have.st_ino, have.st_dev) == (now.st_ino, now.st_dev):
                return False
            self.missed |= not _is(f"{self._path}.1", have)
        self.close()
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._rest = -1, b""

    def __del__(self) -> None:
        self.close()
