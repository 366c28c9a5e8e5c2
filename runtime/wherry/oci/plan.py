"""A plan as a value: operations by name, slots by number. Decides nothing; says what an operation means to people.

Refuses to know numbers of operations (the C compiler owns them) and the wire form (container/wire.py).
"""


from typing import NamedTuple

from wherry.oci._ops import OPS

__all__ = ["CHILD", "HOST", "MONITOR", "Op", "Plan", "Text", "sentence"]

HOST, CHILD, MONITOR = "H", "C", "M"

#: a string, a blob, or a list of strings (packed NUL-terminated by the wire)
Text = str | bytes | tuple[str, ...]


class Op(NamedTuple):
    """One record before it has numbers. Names and flags are those of native/ops.def and native/plan.h."""

    name: str
    side: str
    flags: tuple[str, ...] = ()
    fd0: int = -1
    fd1: int = -1
    s0: Text = ""
    s1: Text = ""
    s2: Text = ""
    n0: int = 0
    n1: int = 0
    n2: int = 0


class Plan(NamedTuple):
    """Operations in order. `inherited` names the slots that the launcher fills, in slot order from 0."""

    ops: tuple[Op, ...]
    inherited: tuple[str, ...] = ()
    slots: int = 0

    def describe(self) -> list[str]:
        """Numbered sentences, for --explain and for errors."""
        width = len(str(len(self.ops)))
        return [f"{i:>{width}} {op.side} {sentence(op)}" for i, op in enumerate(self.ops, 1)]


def sentence(op: Op) -> str:
    """What `op` does, by the template of ops.def, with the flags in brackets."""
    text = OPS[op.name][1].format(
        s0=_words(op.s0), s1=_words(op.s1), s2=_words(op.s2), n0=op.n0, n1=op.n1, n2=op.n2, fd0=op.fd0, fd1=op.fd1
    )
    return f"{text} [{' '.join(f.lower().replace('_', ' ') for f in op.flags)}]" if op.flags else text


def _words(value: Text) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return " ".join(value) if isinstance(value, tuple) else value.strip().replace("\n", ", ")
