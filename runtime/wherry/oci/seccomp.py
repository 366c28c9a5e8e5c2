"""Seccomp profiles: by name or as a document, resolved for one container into the runtime-spec's linux.seccomp. Pure.

Decides which calls are allowed under which capabilities, architecture and kernel. Refuses to know libseccomp:
compiling is
kernel/seccomp.py's.

Profiles: "docker" (docker's own, exactly), "default" (docker's, tighter where no image notices), "strict" (native ABI
and four
socket families), "unconfined" (none).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import seccomp_data as data
from wherry.oci.seccomp_data import Row

__all__ = ["PROFILES", "filter_flags", "resolve"]

EPERM: Final = 1
ENOSYS: Final = 38
PROFILES: Final = ("default", "strict", "docker", "unconfined")

#: uname -m -> GOARCH, the names that docker's profile files use
_MACHINES: Final[dict[str, str]] = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "s390x": "s390x",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
    "mips64": "mips64",
}
#: other names of the same in profile files (libseccomp's own)
_ALIASES: Final[dict[str, tuple[str, ...]]] = {"386": ("x86",), "mips64le": ("mipsel64",), "loong64": ("loongarch64",)}
#: SECCOMP_FILTER_FLAG_* of linux/seccomp.h
_FLAGS: Final[dict[str, int]] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
#: type characters into the caller's terminal: TIOCSTI, TIOCLINUX (asm-generic/ioctls.h)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_U32: Final = 0xFFFFFFFF


def resolve(
    profile: str | Json, caps: Iterable[str], arch: str = "x86_64", kernel: tuple[int, int] = (6, 1)
) -> Json | None:
    """linux.seccomp for a container with the bounding set `caps`; None where nothing is to be filtered. A constant: who
    wants it changed makes a copy.

    `profile` is a name of PROFILES, or a document in docker's or in the runtime-spec's form. `arch` as uname -m or
    GOARCH."""
    if profile == "unconfined":
        return None
    goarch = _MACHINES.get(arch, arch)
    if isinstance(profile, str):
        return _named(profile, frozenset(caps), goarch, kernel)
    return _document(profile, frozenset(caps), goarch, kernel)


def filter_flags(seccomp: Json) -> int:
    """`flags` as SECCOMP_FILTER_FLAG_* bits (LaunchHow.seccomp_flags)."""
    return sum(_FLAGS[flag] for flag in set(seccomp.get("flags") or []))


# ---- our own profiles


@lru_cache(maxsize=8)
def _named(profile: str, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> Json:
    if profile not in PROFILES:
        raise WherryError(
            Kind.INVALID,
            f'seccomp profile "{profile}" is not known',
            hint=f"use one of {', '.join(PROFILES)}, or a file",
        )
    if arch not in data.ARCHITECTURES:
        raise WherryError(
            Kind.UNSUPPORTED,
            f"there is no seccomp profile for the architecture {arch}",
            hint="use --security-opt seccomp=unconfined",
        )
    architectures = data.ARCHITECTURES[arch]
    rows = [row for row in (*data.DEFAULT_ROWS, *_SPECIAL[profile]()) if _holds(row, caps, arch, kernel)]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": list(architectures[:1] if profile == "strict" else architectures),
        "syscalls": [_syscall(row) for row in rows],
    }


def _holds(row: Row, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
    return (
        caps.issuperset(row.caps)
        and not caps.intersection(row.not_caps)
        and (not row.arches or arch in row.arches)
        and arch not in row.not_arches
        and kernel >= row.kernel
    )


def _syscall(row: Row) -> Json:
    result: Json = {"names": list(row.names), "action": "SCMP_ACT_ERRNO" if row.errno else "SCMP_ACT_ALLOW"}
    if row.errno:
        result["errnoRet"] = row.errno
    if row.args:
        result["args"] = [
            {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}
            for index, value, two, op in row.args
        ]
    return result


def _docker() -> tuple[Row, ...]:
    return (Row(("ioctl", "socketcall")), *_families())


def _default() -> tuple[Row, ...]:
    return (*_families(), _NO_SOCKETCALL, *_ioctl_without_typing())


def _strict() -> tuple[Row, ...]:
    families = (Row(("socket",), args=((0, family, 0, "EQ"),)) for family in data.STRICT_FAMILIES)
    return (*families, _NO_SOCKETCALL, *_ioctl_without_typing())


#: The arguments of socketcall(2) lie behind a pointer: it would open the families that socket(2) refuses. Leaving it
#: out is
#: not enough, since libseccomp lets a rule for socket stand for socketcall(SYS_SOCKET) too where the architecture has
#: that; an
#: unconditional rule overrides it. ENOSYS, because a rule with the default action would be dropped
_NO_SOCKETCALL: Final = Row(("socketcall",), errno=ENOSYS)
_SPECIAL: Final[dict[str, Any]] = {"docker": _docker, "default": _default, "strict": _strict}


def _families() -> tuple[Row, ...]:
    """Allow-lists only: a list of what is denied would fall to a family with high bits set, which the kernel
    ignores."""
    first = Row(("socket",), args=((0, data.FAMILIES_BELOW, 0, "LT"),))
    return (first, *(Row(("socket",), args=((0, family, 0, "EQ"),)) for family in data.FAMILIES))


def _ioctl_without_typing() -> tuple[Row, ...]:
    """ioctl(2) for every request but TIOCSTI and TIOCLINUX.

    The kernel reads the low 32 bits of the request, a filter sees 64: comparing for inequality could be passed by a
    high bit
    (CVE-2019-7303), and C libraries differ in how they extend it. So: "some low bit differs from both", as rules of
    one bit
    each, and for the bits in which the two differ from each other, the combinations that neither has.
    """
    common = [1 << bit for bit in range(32) if not (_TIOCSTI ^ _TIOCLINUX) >> bit & 1]
    rows = [Row(("ioctl",), args=((1, bit, ~_TIOCSTI & bit & _U32, "MASKED_EQ"),)) for bit in common]
    differing = [1 << bit for bit in range(32) if (_TIOCSTI ^ _TIOCLINUX) >> bit & 1]
    for bit, other in zip(differing, [*differing[1:], differing[0]], strict=True):
        # the first has bit as in TIOCSTI and other as in TIOCLINUX: no request of the two
        rows.append(Row(("ioctl",), args=((1, bit | other, _TIOCSTI & bit | _TIOCLINUX & other, "MASKED_EQ"),)))
    return tuple(rows)


# ---- documents


def _document(profile: Json, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> Json | None:
    """A profile file: docker's (archMap, includes, excludes, name) or the runtime-spec's, which lacks those."""
    if not isinstance(profile, dict):
        raise WherryError(Kind.INVALID, "a seccomp profile must be a JSON object")
    if not profile.get("defaultAction"):
        if profile.get("syscalls"):
            raise WherryError(Kind.INVALID, "the seccomp profile has no defaultAction")
        return None  # as docker: an empty document filters nothing
    if profile.get("architectures") and profile.get("archMap"):
        raise WherryError(Kind.INVALID, "the seccomp profile has both architectures and archMap")
    result = {key: value for key, value in profile.items() if key in _KEPT and value is not None}
    if profile.get("archMap"):
        result["architectures"] = _arch_map(profile["archMap"], arch)
    result["syscalls"] = [_plain(call) for call in profile.get("syscalls") or [] if _included(call, caps, arch, kernel)]
    return result


_KEPT: Final = frozenset(
    {"defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata"}
)


def _arch_map(entries: list[Json], arch: str) -> list[str]:
    native = data.ARCHITECTURES.get(arch, ("",))[0]
    for entry in entries:
        if entry.get("architecture") == native:
            return [native, *(entry.get("subArchitectures") or [])]
    return [native] if native else []


def _plain(call: Json) -> Json:
    """One entry without docker's additions."""
    names = [call["name"]] if call.get("name") else call.get("names")
    if not names or (call.get("name") and call.get("names")):
        raise WherryError(Kind.INVALID, "an entry of the seccomp profile must have either name or names")
    if not call.get("action"):
        raise WherryError(Kind.INVALID, f"the seccomp profile's entry for {names[0]} has no action")
    result: Json = {"names": list(names), "action": call["action"]}
    if call.get("errnoRet") is not None:
        result["errnoRet"] = call["errnoRet"]
    if call.get("args"):
        result["args"] = [{"valueTwo": 0, **arg} for arg in call["args"]]
    return result


def _included(call: Json, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
    """includes: all of its conditions; excludes: none of them."""
    includes, excludes = call.get("includes") or {}, call.get("excludes") or {}
    names = {arch, *_ALIASES.get(arch, ())}
    if names.intersection(excludes.get("arches") or []) or caps.intersection(excludes.get("caps") or []):
        return False
    if excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]):
        return False
    if includes.get("arches") and not names.intersection(includes["arches"]):
        return False
    if not caps.issuperset(includes.get("caps") or []):
        return False
    return not includes.get("minKernel") or kernel >= _version(includes["minKernel"])


def _version(text: Any) -> tuple[int, int]:
    """ "4.8" to (4, 8)."""
    major, _, minor = str(text).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise WherryError(Kind.INVALID, f'minKernel "{text}" of the seccomp profile is not MAJOR.MINOR')
    return int(major), int(minor)
