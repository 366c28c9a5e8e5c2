"""OCI seccomp rules (config-linux.md, "Seccomp") to a BPF program by libseccomp, compiled once and cached.

Compiling docker's list takes 13 ms, installing it 0.4: so a program is kept in a file named by the hash of its rules. A
cached program is verified by its own digest before use; anything odd is compiled anew. Which rules apply is decided in
`oci/seccomp.py`.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterable
from typing import Any

from wherry.digest import sha256
from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["OPERATORS", "compiled", "known_architectures", "translate"]

_VERSION = 1  # of the cache's form and of this translation
_MAX_BYTES = 1 << 20
_EPERM = 1
OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
            "SCMP_CMP_MASKED_EQ": 7}
_NEEDS_DATA = {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}


def compiled(rules: Json, cache_dir: str) -> bytes:
    """The program (struct sock_filter[]) of `linux.seccomp`; `cache_dir` is made 0700 when missing.

    WherryError(INVALID) for an action, architecture or operator that libseccomp does not know.
    """
    text = marshal.dumps(rules, 2)  # a tenth of JSON's time; newer forms depend on which objects are the same ones
    key = sha256(f"{_VERSION} {os.uname().machine} {_libraries()} ".encode() + text).hexdigest()
    path = os.path.join(cache_dir, key)
    program = _cached(path)
    if program is None:
        program = translate(rules)
        _keep(cache_dir, path, program)
    return program


def _libraries() -> int:
    """Changes with every library that is installed: a newer libseccomp knows more calls by name. Asking it would mean
    loading it, which is what the cache is to save."""
    try:
        return os.stat("/etc/ld.so.cache").st_mtime_ns
    except OSError:
        return 0


def _cached(path: str) -> bytes | None:
    """The program if the file is ours, whole and untouched: digest, then instructions of 8 bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            return None
        data = os.read(fd, min(found.st_size, _MAX_BYTES))
    finally:
        os.close(fd)
    digest, program = data[:32], data[32:]
    good = program and len(program) % 8 == 0 and sha256(program).digest() == digest
    return program if good else None


def _keep(directory: str, path: str, program: bytes) -> None:
    """Best effort: a cache that cannot be written costs time, not the start."""
    from wherry.kernel.files import atomic_write

    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        atomic_write(path, sha256(program).digest() + program)
    except OSError:
        pass


def translate(rules: Json) -> bytes:
    """Compile without a cache. A name that libseccomp does not know is left out, as runc does: newer profiles name
    newer calls, and what is not listed gets the default action."""
    from wherry.kernel import _seccomp

    lib, ffi = _seccomp.lib, _seccomp.ffi
    default = _action(lib, rules["defaultAction"], rules.get("defaultErrnoRet"))
    context = lib.seccomp_init(default)
    if context == ffi.NULL:
        raise WherryError(Kind.INVALID, f"linux.seccomp: libseccomp refuses to default to {rules['defaultAction']}")
    try:
        _prepare(lib, context, rules)
        for rule in rules.get("syscalls") or ():
            _add(lib, ffi, context, rule, default)
        return _export(lib, context)
    finally:
        lib.seccomp_release(context)


def _action(lib: Any, name: str, errno: int | None) -> int:
    data = (_EPERM if errno is None else errno) if name in _NEEDS_DATA else 0
    number: int = lib.wh_action(name.encode(), data)
    if number == 0xFFFFFFFF:
        raise WherryError(Kind.INVALID, f"linux.seccomp: unknown action {name}")
    return number


def _prepare(lib: Any, context: Any, rules: Json) -> None:
    lib.seccomp_attr_set(context, lib.wh_attr(b"no_new_privs"), 0)  # the plan's own step
    lib.seccomp_attr_set(context, lib.wh_attr(b"optimize"), 2)  # a binary tree: quicker to install and to run
    for name in rules.get("architectures") or ():
        token = _architecture(lib, name)
        if not token:
            raise WherryError(Kind.INVALID, f"linux.seccomp.architectures: libseccomp does not know {name}")
        if lib.seccomp_arch_exist(context, token) != 0:
            _check(lib.seccomp_arch_add(context, token), f"architecture {name}")


def _architecture(lib: Any, name: str) -> int:
    token: int = lib.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    return token


def known_architectures(names: Iterable[str]) -> list[str]:
    """Those of SCMP_ARCH_* that this libseccomp has."""
    from wherry.kernel import _seccomp

    return [name for name in names if _architecture(_seccomp.lib, name)]


def _add(lib: Any, ffi: Any, context: Any, rule: Json, default: int) -> None:
    action = _action(lib, rule["action"], rule.get("errnoRet"))
    if action == default:
        return  # libseccomp refuses rules that say the same as the default
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # __NR_SCMP_ERROR
            continue
        for conditions in _alternatives(rule.get("args") or ()):
            array = ffi.new("struct scmp_arg_cmp[]", len(conditions) or 1)
            for slot, condition in zip(array, conditions, strict=False):
                slot.arg, slot.op = condition["index"], _operator(condition["op"])
                slot.datum_a, slot.datum_b = condition["value"], condition.get("valueTwo") or 0
            _check(lib.seccomp_rule_add_array(context, action, number, len(conditions), array), f"rule for {name}")


def _alternatives(conditions: Any) -> list[list[Json]]:
    """Conditions on one argument twice cannot stand in one rule: runc makes them alternatives, so do we."""
    indexes = [condition["index"] for condition in conditions]
    if len(set(indexes)) == len(indexes):
        return [list(conditions)]
    return [[condition] for condition in conditions]


def _operator(name: str) -> int:
    if name not in OPERATORS:
        raise WherryError(Kind.INVALID, f"linux.seccomp: unknown operator {name}")
    return OPERATORS[name]


def _check(ret: int, what: str) -> None:
    if ret < 0:
        raise WherryError(Kind.INVALID, f"linux.seccomp: libseccomp refuses the {what}: {os.strerror(-ret)}")


def _export(lib: Any, context: Any) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(lib.seccomp_export_bpf(context, fd), "whole filter")
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
