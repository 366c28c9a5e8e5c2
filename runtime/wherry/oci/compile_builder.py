"""Collects operations and hands out slots while a plan is being compiled. Decides no order and no value."""

from __future__ import annotations

import posixpath
from typing import Protocol, TypedDict, Unpack

from wherry.oci.plan import CHILD, HOST, MONITOR, Op, Plan, Text

__all__ = ["Add", "Builder", "inside"]


class Fields(TypedDict, total=False):
    """What an operation may carry (plan.Op); what is left out has its default."""

    fd0: int
    fd1: int
    s0: Text
    s1: Text
    s2: Text
    n0: int
    n1: int
    n2: int


class Add(Protocol):
    """Builder.host or Builder.child, for steps that either side can take."""

    def __call__(self, name: str, *flags: str, **fields: Unpack[Fields]) -> None: ...


def inside(path: str) -> str:
    """A container's path in its plain form: absolute, one slash, no dots. Text only: the helper resolves it in the
    root."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


class Builder:
    """A plan in the making. Inherited slots come first (they are the descriptors that the launcher passes), then
    ours."""

    def __init__(self, inherited: tuple[str, ...]) -> None:
        self.inherited = inherited
        self._slots = {name: slot for slot, name in enumerate(inherited)}
        self._next = len(inherited)
        self._ops: list[Op] = []

    def inherited_slot(self, name: str) -> int:
        """The slot that the launcher fills under `name`."""
        return self._slots[name]

    def slot(self) -> int:
        """A fresh slot."""
        self._next += 1
        return self._next - 1

    def host(self, name: str, *flags: str, **fields: Unpack[Fields]) -> None:
        """Append an operation of the helper itself."""
        self._ops.append(Op(name, HOST, flags, **fields))

    def child(self, name: str, *flags: str, **fields: Unpack[Fields]) -> None:
        """Append an operation of the container to be."""
        self._ops.append(Op(name, CHILD, flags, **fields))

    def monitor(self, name: str, *flags: str, **fields: Unpack[Fields]) -> None:
        """Append a declaration for the monitor."""
        self._ops.append(Op(name, MONITOR, flags, **fields))

    def sync(self, name: str) -> None:
        """A barrier: one record for each side."""
        self.host("SYNC", s0=name)
        self.child("SYNC", s0=name)

    def plan(self) -> Plan:
        """The finished plan."""
        return Plan(tuple(self._ops), self.inherited, self._next)
