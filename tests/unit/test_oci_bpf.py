"""The device program, run by a small interpreter of the instructions that it uses, against the rules' plain meaning."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.model import Json
from wherry.oci import bpf, defaults
from wherry.oci.bpf import Insn

ACCESSES = {"m": 1, "r": 2, "w": 4}


def run(program: list[Insn], kind: str, major: int, minor: int, access: int) -> int:
    """The kernel's view of one open or mknod: struct bpf_cgroup_dev_ctx in r1."""
    context = struct.pack("=III", access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers: dict[int, int | None] = dict.fromkeys(range(11))
    registers[1] = 0
    at = steps = 0
    while True:
        insn, at, steps = program[at], at + 1, steps + 1
        assert steps < 10000
        dst, src = registers[insn.dst], registers[insn.src]
        if insn.code == bpf.LDX_W:
            assert src == 0, "r1 must still be the context"
            registers[insn.dst] = struct.unpack_from("=I", context, insn.off)[0]
        elif insn.code == bpf.MOV32_K:
            registers[insn.dst] = insn.imm & 0xFFFFFFFF
        elif insn.code == bpf.MOV32_X:
            registers[insn.dst] = src
        elif insn.code == bpf.EXIT:
            assert registers[0] is not None
            return registers[0]
        else:
            assert dst is not None, "a register is read before it is written"
            if insn.code == bpf.AND32_K:
                registers[insn.dst] = dst & insn.imm & 0xFFFFFFFF
            elif insn.code == bpf.RSH32_K:
                registers[insn.dst] = dst >> insn.imm
            elif insn.code in (bpf.JEQ_K, bpf.JNE_K):
                immediate = insn.imm & 0xFFFFFFFF
                at += insn.off if (dst == immediate) == (insn.code == bpf.JEQ_K) else 0
            else:
                raise AssertionError(f"unknown instruction {insn}")


def meaning(rules: list[Json], kind: str, major: int, minor: int, access: int) -> bool:
    """For each bit of the access: the last rule that matches device and bit decides; without one it is denied."""

    def matches(rule: Json, bit: str) -> bool:
        return (
            rule.get("type", "a") in ("a", kind)
            and rule.get("major", -1) in (-1, major)
            and rule.get("minor", -1) in (-1, minor)
            and bit in (rule.get("access") or "rwm")
        )

    for letter, bit in ACCESSES.items():
        if access & bit:
            found = [rule["allow"] for rule in rules if matches(rule, letter)]
            if not found or not found[-1]:
                return False
    return True


RULE = st.fixed_dictionaries(
    {"allow": st.booleans()},
    optional={
        "type": st.sampled_from(["a", "b", "c"]),
        "major": st.integers(-1, 3),
        "minor": st.integers(-1, 3),
        "access": st.text(st.sampled_from("rwm"), max_size=3),
    },
)


@given(st.lists(RULE, max_size=8), st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 7))
def test_the_program_means_what_the_rules_mean(
    rules: list[Json], kind: str, major: int, minor: int, access: int
) -> None:
    program = bpf.device_program(rules)
    assert run(program, kind, major, minor, access) == meaning(rules, kind, major, minor, access)


@given(st.lists(RULE, max_size=20))
def test_the_verifier_would_take_it(rules: list[Json]) -> None:
    """Jumps go forward and stay inside, every instruction is reachable, no path runs off the end."""
    program = bpf.device_program(rules)
    reachable, queue = set(), [0]
    while queue:
        at = queue.pop()
        assert at < len(program)
        if at in reachable:
            continue
        reachable.add(at)
        insn = program[at]
        if insn.code == bpf.EXIT:
            continue
        if insn.code in (bpf.JEQ_K, bpf.JNE_K):
            assert insn.off >= 0
            queue.append(at + 1 + insn.off)
        queue.append(at + 1)
    assert reachable == set(range(len(program)))


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        ("c", 1, 3, 6, True),
        ("c", 1, 3, 7, True),
        ("c", 136, 77, 6, True),
        ("c", 5, 2, 6, True),
        ("b", 8, 0, 1, True),
        ("b", 8, 0, 2, False),
        ("b", 8, 0, 3, False),
        ("c", 10, 229, 6, False),
        ("c", 1, 1, 2, False),
        ("c", 10, 229, 1, True),
    ],
)
def test_dockers_rules(kind: str, major: int, minor: int, access: int, allowed: bool) -> None:
    assert run(bpf.device_program(defaults.device_rules()), kind, major, minor, access) == allowed


def test_no_rules_deny() -> None:
    assert run(bpf.device_program([]), "c", 1, 3, 2) == 0


def test_two_rules_grant_together() -> None:
    rules = [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": letter} for letter in "rw"]
    assert run(bpf.device_program(rules), "c", 1, 3, 6) == 1
    assert run(bpf.device_program(rules), "c", 1, 3, 7) == 0


def test_packing() -> None:
    assert Insn(0x61, 2, 1, 4, -1).pack().hex() == "6112040" + "0ffffffff"
    blob = bpf.program(defaults.device_rules())
    assert len(blob) == 8 * len(bpf.device_program(defaults.device_rules()))
