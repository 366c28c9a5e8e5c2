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
        if not text:
            return 0
        data = _bytes(text)
        offset = self.known.get(data)
        if offset is None:
            offset = self.known[data] = len(self.bytes)
            self.bytes += data + bytes(8 - len(data) % 8)  # blobs are arrays of up to 8-byte elements
        return offset


def _bytes(text: Text) -> bytes:
    if isinstance(text, str):
        return _plain(text)
    if isinstance(text, tuple):
        return b"".join(_plain(item) + b"\0" for item in text)
    return text


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
    name, side, flags, fd0, fd1, s0, s1, s2, n0, n1, n2 = op
    put = arena.put
    return _RECORD.pack(
        shim.OPS[name], shim.SIDES[side], _flags(flags) if flags else 0, fd0, fd1, put(s0), put(s1), put(s2), 0,
        n0 & _WORD, n1 & _WORD, n2 & _WORD,
    )  # fmt: skip


def _flags(names: tuple[str, ...]) -> int:
    return sum({shim.FLAGS[flag] for flag in names})
