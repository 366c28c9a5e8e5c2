"""linux.resources.devices to an eBPF program of type cgroup/dev, as raw instructions. Pure.

Decides what a rule list means: for every single access (read, write, mknod) the last rule that matches the device and
that
access wins, and without one it is denied (invariant 9). That is what cgroup v1's devices.allow and devices.deny did,
without
their surprises: a request of "rw" needs both, whichever rules grant them.
"""

import struct
import sys
from functools import lru_cache
from typing import Any, Final, NamedTuple

from wherry.model import Json

__all__ = ["Insn", "assemble", "device_program", "program"]

# linux/bpf_common.h, linux/bpf.h
LDX_W, AND32_K, RSH32_K, MOV32_K, MOV32_X = 0x61, 0x54, 0x74, 0xB4, 0xBC
JEQ_K, JNE_K, EXIT = 0x16, 0x56, 0x95  # BPF_JMP32: 32-bit comparisons (5.1)
# struct bpf_cgroup_dev_ctx: access_type = access << 16 | type, major, minor
TYPES: Final[dict[str, int]] = {"b": 1, "c": 2}
ACCESS: Final[dict[str, int]] = {"m": 1, "r": 2, "w": 4}
ALL = 7
R0, R1, R_TYPE, R_ACCESS, R_MAJOR, R_MINOR = 0, 1, 2, 3, 4, 5


class Insn(NamedTuple):
    """One struct bpf_insn."""

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    def pack(self) -> bytes:
        """Eight bytes; the two register fields are C bit fields, so their order follows the machine's."""
        low, high = (self.dst, self.src) if sys.byteorder == "little" else (self.src, self.dst)
        return struct.pack("=BBhi", self.code, high << 4 | low, self.off, self.imm)


_PROLOGUE: Final = (
    Insn(LDX_W, R_TYPE, R1, 0),
    Insn(AND32_K, R_TYPE, imm=0xFFFF),
    Insn(LDX_W, R_ACCESS, R1, 0),
    Insn(RSH32_K, R_ACCESS, imm=16),
    Insn(LDX_W, R_MAJOR, R1, 4),
    Insn(LDX_W, R_MINOR, R1, 8),
)


def _verdict(allow: bool) -> tuple[Insn, ...]:
    return (Insn(MOV32_K, R0, imm=int(allow)), Insn(EXIT))


def device_program(rules: list[Json]) -> list[Insn]:
    """The program of `rules` (runtime-spec order: the last match wins, so they are tried from the last to the first).

    R_ACCESS holds the accesses that are not granted yet."""
    result = list(_PROLOGUE)
    for rule in reversed(rules):
        access = sum(ACCESS[letter] for letter in set(rule.get("access") or "rwm"))
        tests = _tests(rule)
        action = _allow(access) if rule["allow"] else _deny(access)
        for position, (register, value) in enumerate(tests):
            rest = len(tests) - position - 1 + len(action)
            result.append(Insn(JNE_K, register, off=rest, imm=_signed(value)))
        result += action
        if not tests and access == ALL:  # decides everything: more would be dead code, which the verifier refuses
            return result
    return [*result, *_verdict(False)]


def _tests(rule: Json) -> list[tuple[int, int]]:
    """(register, value) that must be equal for the rule to match the device."""
    tests = []
    kind = rule.get("type") or "a"
    if kind != "a":
        tests.append((R_TYPE, TYPES[kind]))
    for register, key in ((R_MAJOR, "major"), (R_MINOR, "minor")):
        value = rule.get(key)
        if value is not None and value >= 0:
            tests.append((register, value))
    return tests


def _allow(access: int) -> tuple[Insn, ...]:
    if access == ALL:
        return _verdict(True)
    return (Insn(AND32_K, R_ACCESS, imm=ALL & ~access), Insn(JNE_K, R_ACCESS, off=2, imm=0), *_verdict(True))


def _deny(access: int) -> tuple[Insn, ...]:
    if access == ALL:
        return _verdict(False)
    return (Insn(MOV32_X, R1, R_ACCESS), Insn(AND32_K, R1, imm=access), Insn(JEQ_K, R1, off=2, imm=0), *_verdict(False))


def _signed(value: int) -> int:
    """The immediate is a signed 32-bit field."""
    return value - 2**32 if value >= 2**31 else value


def assemble(instructions: list[Insn]) -> bytes:
    """The blob that DEVICE_BPF carries."""
    return b"".join(insn.pack() for insn in instructions)


_MEMBERS: Final = ("allow", "type", "major", "minor", "access")


def program(rules: list[Json]) -> bytes:
    """Rules to blob."""
    return _program(tuple(tuple((name, rule[name]) for name in _MEMBERS if name in rule) for rule in rules))


@lru_cache(maxsize=8)
def _program(rules: tuple[tuple[tuple[str, Any], ...], ...]) -> bytes:
    """Most containers have the same."""
    return assemble(device_program([dict(rule) for rule in rules]))
