"""A plan's wire form: layout, packing, and that every list of the vocabulary ends where its count says."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.oci._ops import FLAGS, OPS
from wherry.oci.plan import Op, Plan

NATIVE = Path(__file__).resolve().parents[2] / "runtime" / "native"
shim = pytest.importorskip("wherry.kernel.shim", reason="the shim is not built")
from wherry.container import wire  # noqa: E402

HEADER, RECORD = struct.Struct("=6I"), struct.Struct("=HHIiiIIIIQQQ")


def decoded(data: bytes) -> tuple[tuple[int, ...], list[tuple[int, ...]], bytes]:
    header = HEADER.unpack_from(data)
    records = [RECORD.unpack_from(data, HEADER.size + i * RECORD.size) for i in range(header[2])]
    return header, records, data[HEADER.size + header[2] * RECORD.size :]


def test_sizes_are_those_of_plan_h() -> None:
    assert (HEADER.size, RECORD.size) == (24, 56)


def test_strings_lists_blobs_and_numbers() -> None:
    op = Op("EXEC", "C", ("INIT",), s0="x", s1=("a", "", "bc"), n0=3, n1=(1 << 64) - 1, fd1=2)
    header, records, arena = decoded(wire.encode(Plan((op,), ("stdin",), 7)))
    assert header == (shim.WH_MAGIC, 1, 1, len(arena), 1, 7)
    number, side, flags, fd0, fd1, s0, s1, s2, reserved, *numbers = records[0]
    assert (number, side, flags) == (shim.OPS["EXEC"], shim.SIDES["C"], shim.FLAGS["INIT"])
    assert (fd0, fd1, s2, reserved) == (-1, 2, 0, 0)
    assert numbers == [3, (1 << 64) - 1, 0]
    assert arena[s0:].startswith(b"x\0")
    assert arena[s1:].startswith(b"a\0\0bc\0")
    assert arena[0] == arena[-1] == 0


def test_blobs_keep_their_bytes_and_texts_refuse_nul() -> None:
    blob = bytes(range(256))
    _, records, arena = decoded(wire.encode(Plan((Op("SECCOMP", "C", s0=blob, n0=32),), (), 0)))
    assert arena[records[0][5] :].startswith(blob)
    with pytest.raises(ValueError, match="NUL"):
        wire.encode(Plan((Op("OPEN", "H", s0="a\0b"),), (), 0))


def test_equal_texts_are_stored_once() -> None:
    ops = tuple(Op("OPEN", "H", s0="/a/rather/long/path") for _ in range(100))
    assert wire.encode(Plan(ops, (), 0)).count(b"/a/rather/long/path") == 1


def test_the_planners_vocabulary_is_the_helpers() -> None:
    """oci/_ops.py is generated; the compiler's numbers go up in the same order."""
    assert subprocess.run([sys.executable, NATIVE / "gen_ops.py", "--check"], check=False).returncode == 0
    numbers = [shim.OPS[name] for name in OPS]
    assert numbers == list(range(1, len(OPS) + 1))
    assert set(shim.FLAGS) == FLAGS


def test_every_shape_names_a_real_operation() -> None:
    text = (NATIVE / "shapes.def").read_text()
    named = re.findall(r"^(?:LIST|BLOB|SLOT)\((\w+),", text, re.MULTILINE)
    assert named
    assert set(named) <= set(OPS)
