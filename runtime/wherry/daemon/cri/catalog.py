"""All pods and containers as messages, kept serialized: a list is a join of bytes, whatever the number.

The engine's files are the truth. Decides which objects are read again before an answer: those that an event names, that
a call of ours has changed, or whose process has ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from wherry.engine.db import Unreadable
from wherry.engine.engine import Engine
from wherry.engine.pods.values import Member, Pod
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import answers

__all__ = ["Catalog", "Entry", "framed"]

_ONE_BY_ONE = 32  # more than that, and all are read at once
_T = TypeVar("_T", Pod, Member)


def framed(number: int, message: bytes) -> bytes:
    """A message as the value of a field of another (protobuf's wire form: the tag, the length, the bytes)."""
    size, length = len(message), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((number << 3 | 2, *length, size)) + message


class Entry(Generic[_T]):
    """One pod or container as it was when it was read."""

    def __init__(self, value: _T, listed: Callable[[_T], Message]) -> None:
        self.value: _T = value
        self._listed: Callable[[_T], Message] = listed

    @cached_property
    def item(self) -> bytes:
        """It in a list: field 1 of the answer."""
        return framed(1, self._listed(self.value).SerializeToString())

    @cached_property
    def attributes(self) -> bytes:
        """Of a container, whose figures they are: field 1 of its stats."""
        assert isinstance(self.value, Member)
        return framed(1, answers.attributes(self.value).SerializeToString())


class Catalog:
    """What is there. Its methods are the loop's; reading is done by the threads of `look`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pods: dict[str, Entry[Pod]] = {}
        self._members: dict[str, Entry[Member]] = {}
        self._stale: set[str] = set()
        self._known = False
        self._one = asyncio.Lock()
        self._watched: dict[str, tuple[int, int]] = {}  # container, or pod with a pause -> pid, pidfd
        self.poked = asyncio.Event()  # something may have happened: for who tells of it

    def start(self) -> None:
        """Follow what happens from now on."""
        self._tail = self._engine.changes()

    def stop(self) -> None:
        """Let go of all descriptors."""
        for ref in list(self._watched):
            self._unwatch(ref)

    def touch(self, *ids: str) -> None:
        """These may have changed."""
        self._stale.update(ids)
        self.poked.set()

    async def fresh(self) -> None:
        """Be as true as the engine's files are now."""
        async with self._one:
            if self._known:
                self._stale.update(_named(self._tail.more(), self._members))
                if self._tail.missed:  # more happened than is kept
                    self._known = self._tail.missed = False
            if self._known and not self._stale:
                return
            stale, self._stale = self._stale, set()
            try:
                found = await asyncio.get_running_loop().run_in_executor(None, self._read, stale)
            except BaseException:
                self._stale |= stale
                raise
            self._take(stale, *found)

    def _read(self, stale: set[str]) -> tuple[list[Pod], list[Member]]:
        if not self._known or len(stale) > _ONE_BY_ONE:
            return self._engine.pods(), self._engine.members()
        pods = [pod for ref in stale if ref not in self._members and (pod := _got(self._engine.pod, ref))]
        members = [member for ref in stale if ref not in self._pods and (member := _got(self._engine.member, ref))]
        return pods, members

    def _take(self, stale: set[str], pods: list[Pod], members: list[Member]) -> None:
        whole = not self._known or len(stale) > _ONE_BY_ONE
        for table, found in ((self._pods, pods), (self._members, members)):
            gone = (set(table) if whole else stale) - {one.id for one in found}
            for ref in gone:
                table.pop(ref, None)
        self._pods.update({pod.id: Entry(pod, answers.pod) for pod in pods})
        self._members.update({member.id: Entry(member, answers.container) for member in members})
        self._known = True
        self._watch(_processes(pods, members))

    # ---- ends of processes, which no event need tell ----

    def _watch(self, processes: Mapping[str, int]) -> None:
        for ref in [ref for ref in self._watched if ref not in self._members and ref not in self._pods]:
            self._unwatch(ref)
        for ref, pid in processes.items():
            if self._watched.get(ref, (0, 0))[0] != pid:
                self._unwatch(ref)
                if pid:
                    self._begin(ref, pid)

    def _begin(self, ref: str, pid: int) -> None:
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # it has ended meanwhile
            self._stale.add(ref)
            return
        self._watched[ref] = pid, fd
        asyncio.get_running_loop().add_reader(fd, self._ended, ref)

    def _ended(self, ref: str) -> None:
        self._unwatch(ref)
        self.touch(ref)

    def _unwatch(self, ref: str) -> None:
        if (watched := self._watched.pop(ref, None)) is not None:
            asyncio.get_running_loop().remove_reader(watched[1])
            os.close(watched[1])

    # ---- looking, after `fresh` ----

    def pods(self) -> Iterator[Entry[Pod]]:
        """All pods."""
        return iter(self._pods.values())

    def members(self) -> Iterator[Entry[Member]]:
        """All containers."""
        return iter(self._members.values())

    def members_of(self, pod: str) -> list[Member]:
        """The containers of a pod."""
        return [entry.value for entry in self._members.values() if entry.value.pod == pod]

    def pod(self, ref: str) -> Pod:
        """One by its id or an unambiguous prefix; NOT_FOUND."""
        return _one(self._pods, ref, "pod").value

    def member(self, ref: str) -> Entry[Member]:
        """One by its id or an unambiguous prefix; NOT_FOUND."""
        return _one(self._members, ref, "container")


def _one(table: Mapping[str, Entry[_T]], ref: str, what: str) -> Entry[_T]:
    if ref in table:
        return table[ref]
    found = [key for key in table if ref and key.startswith(ref)]
    if len(found) == 1:
        return table[found[0]]
    if found:
        raise WherryError(Kind.INVALID, f"{ref[:80]} is the beginning of several {what}s' ids")
    raise WherryError(Kind.NOT_FOUND, f"no such {what}: {ref[:80]}")


def _processes(pods: Iterable[Pod], members: Iterable[Member]) -> dict[str, int]:
    """Whose ends change what is told; 0: there is none."""
    pauses = {pod.id: pod.held.pause.pid if pod.held and pod.held.pause else 0 for pod in pods}
    return pauses | {member.id: member.pid if member.state == "running" else 0 for member in members}


def _named(events: Iterable[Json], members: Mapping[str, Any]) -> Iterator[str]:
    """The ids that events are about, as far as they are pods or of pods."""
    for event in events:
        kind, actor = event.get("Type"), event.get("Actor", {})
        if kind == "pod" or (kind == "container" and (actor.get("ID") in members or "pod" in event)):
            yield str(actor["ID"])


def _got(get: Callable[[str], _T], ref: str) -> _T | None:
    try:
        return get(ref)
    except Unreadable:  # left out, as a list leaves it out, which tells of it
        return None
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        return None
