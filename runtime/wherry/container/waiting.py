"""A child that waits and never goes on, in namespaces of its own where asked: it holds them, or a place in a cgroup,
for a moment.

Decides that it ends with us: when our end of the pipe is closed, also by our death. Refuses to know what it is for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from wherry.kernel import process
from wherry.kernel.process import Process
from wherry.oci.plan import Op, Plan

__all__ = ["Waiting"]

_CREATED = 1  # WH_CREATED of native/plan.h
_SIGKILL = 9


class Waiting:
    """`name` is what sentences call it. `namespaces`: CLONE_NEW* that it gets; `before`: operations of either side that
    come between its birth and its wait, `slots` of their own (from 1 on)."""

    def __init__(self, name: str, namespaces: int = 0, before: Sequence[Op] = (), slots: int = 0) -> None:
        from wherry.container import launch

        reader, self._pipe = os.pipe2(os.O_CLOEXEC)
        plan = _plan(namespaces, before, slots)
        try:
            self.process: Process = launch.start("/", plan, "launch", {"fifo": reader}, name=name).init
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reader)

    @property
    def open(self) -> bool:
        """Not ended by us yet."""
        return self._pipe >= 0

    def end(self) -> bool:
        """Whether it still waited."""
        waited = process.alive(self.process) and process.signal(self.process, _SIGKILL)
        if self.open:
            os.close(self._pipe)
            self._pipe = -1
        process.wait_gone(self.process, 5)
        return waited


def _plan(namespaces: int, before: Sequence[Op], slots: int) -> Plan:
    first = [op for op in before if op.name == "FS_NEW"]  # what the child is given, is made before it is born
    return Plan(
        ops=(
            *first,
            Op("CLONE", "H", n0=namespaces, s0="a process that waits"),
            *(op for op in before if op not in first),
            Op("REPORT", "H", n0=_CREATED, s0="created"),
            Op("WAIT_START", "C", fd0=0),
            Op("EXEC", "C", s0="/", s1=("/",), n0=1),
        ),
        inherited=("fifo",),
        slots=1 + slots,
    )
