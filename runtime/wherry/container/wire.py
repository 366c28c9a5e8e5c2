"""A plan in the form that the helper reads (native/plan.h). Only packs: what the numbers mean is decided elsewhere.

Pure but for the numbers, which come from the shim that was compiled with the helper.
"""

from __future__ import annotations

import struct

from wherry.kernel import shim
from wherry.oci.plan import Op, Plan, Text

__all__ = ["encode"]

_HEADER = struct.Struct("=6I")
_RECORD = struct.Struct("=HHIiiIIIIQQQ")
_WORD = (1 << 64) - 1


class _Arena:
    """Strings and blobs, each distinct one once. Offset 0 is a NUL: the empty string. Every entry ends in a NUL."""

    def __init__(self) -> None:
        self.bytes = bytearray(8)
        self.known: dict[bytes, int] = {b"": 0}

    def put(self, text: Text) -> int:
        data = _bytes(text)
        offset = self.known.get(data)
        if offset is None:
            offset = self.known[data] = len(self.bytes)
            self.bytes += data + bytes(8 - len(data) % 8)  # blobs are arrays of up to 8-byte elements
        return offset


def _bytes(text: Text) -> bytes:
    if isinstance(text, bytes):
        return text
    if isinstance(text, tuple):
        return b"".join(_plain(item) + b"\0" for item in text)
    return _plain(text)


def _plain(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError(f"a NUL byte in {text!r}")
    return data


def encode(plan: Plan) -> bytes:
    """Header, records, arena. ValueError for a string with a NUL byte inside."""
    arena = _Arena()
    records = b"".join(_record(op, arena) for op in plan.ops)
    header = _HEADER.pack(shim.WH_MAGIC, shim.WH_VERSION, len(plan.ops), len(arena.bytes), len(plan.inherited),
                          max(plan.slots, len(plan.inherited)))
    return header + records + bytes(arena.bytes)


def _record(op: Op, arena: _Arena) -> bytes:
    flags = sum({shim.FLAGS[flag] for flag in op.flags})
    texts = (arena.put(op.s0), arena.put(op.s1), arena.put(op.s2))
    numbers = (op.n0 & _WORD, op.n1 & _WORD, op.n2 & _WORD)
    return _RECORD.pack(shim.OPS[op.name], shim.SIDES[op.side], flags, op.fd0, op.fd1, *texts, 0, *numbers)
