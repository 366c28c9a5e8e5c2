"""A container's cgroup as systemd names it: linux.cgroupsPath to a unit, limits and device rules to properties. Pure.

Decides what systemd is told. Refuses to judge values: one that systemd has no word for is left out, and the cgroup's
own file, which the plan writes as well, gives the kernel's verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import gvariant

__all__ = ["ANNOTATION", "INFINITY", "Properties", "Property", "Scope", "annotated", "device_properties", "direct",
           "properties", "scope", "slice_path"]  # fmt: skip

Writes = Sequence[tuple[str, str]]
#: name and variant (D-Bus signature, value)
Property = tuple[str, tuple[str, Any]]
Properties = list[Property]

INFINITY: Final = 2**64 - 1  # systemd's "no limit"
ANNOTATION: Final = "org.systemd.property."
_NUMBERS: Final = "ynqiuxtd"
_UNIT_MAX: Final = 255
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+")  # systemd.unit(5)


class Scope(NamedTuple):
    """A transient unit: what it is called and the slice that it lies in."""

    slice: str  # "machine.slice"
    unit: str  # "libpod-1234.scope"


# ---- names


def scope(cgroups_path: str, container_id: str, *, user: bool = False) -> Scope:
    """linux.cgroupsPath as runc and crun read it with this driver: "slice:prefix:name". Empty parts have defaults;
    `user` for the user's own instance. INVALID for any other form."""
    wanted = cgroups_path or f":wherry:{container_id}"
    parts = wanted.split(":")
    if len(parts) != 3 or not parts[2]:
        raise _bad(cgroups_path, 'is not of the form "slice:prefix:name", which the systemd cgroup driver wants')
    where, prefix, name = parts
    where = where or ("user.slice" if user else "system.slice")
    slice_path(where)
    if name.endswith(".slice"):
        raise _bad(cgroups_path, "names a slice, and processes live in scopes")
    unit = f"{prefix}-{name}.scope"
    if not _UNIT.fullmatch(unit) or len(unit) > _UNIT_MAX:
        raise _bad(cgroups_path, f'makes "{unit}", which is no name for a unit')
    return Scope(where, unit)


def _bad(cgroups_path: str, why: str) -> WherryError:
    return WherryError(Kind.INVALID, f'linux.cgroupsPath: "{cgroups_path}" {why}', hint="system.slice:wherry:NAME")


def slice_path(name: str) -> str:
    """Where a slice lies below the root, its dashes unfolded (systemd.slice(5)): "a-b.slice" is a.slice/a-b.slice."""
    stem = name.removesuffix(".slice")
    if stem == name or not _UNIT.fullmatch(name) or len(name) > _UNIT_MAX:
        raise _bad(name, "is no name for a slice")
    if stem == "-":
        return ""
    words = stem.split("-")
    if not all(words):
        raise _bad(name, "is no name for a slice: a dash stands between two levels")
    return "/".join("-".join(words[: level + 1]) + ".slice" for level in range(len(words)))


# ---- limits


def properties(writes: Writes, rules: Sequence[Json] | None = None) -> Properties:
    """What systemd is told of `writes` (oci/cgroup2.py: files and values, the last word counts) and of the device
    rules (None: nothing). With it a daemon-reload brings back what was asked, as far as systemd can say it."""
    single: dict[str, Property] = {}
    lists: dict[str, dict[str, int]] = {}
    for file, value in writes:
        for name, signature, found in _SINGLE[file](value) if file in _SINGLE else ():
            single[name] = (name, (signature, found))
        for name, device, number in _KEYED[file](value) if file in _KEYED else ():
            lists.setdefault(name, {})[device] = number
    result = list(single.values())
    for name, entries in lists.items():
        result += _replaced(name, "a(st)", list(entries.items()))
    return result if rules is None else result + device_properties(rules)


def annotated(annotations: Mapping[str, str]) -> Properties:
    """Properties that the caller gives by name, as with runc and crun: "org.systemd.property.TimeoutStopUSec":
    "uint64 5". A name in Sec becomes systemd's own in USec."""
    result: Properties = []
    for key, text in sorted(annotations.items()):
        name = key.removeprefix(ANNOTATION)
        if name == key:
            continue
        if not re.fullmatch(r"[A-Za-z]{3,}", name):
            raise WherryError(Kind.INVALID, f"annotations.{key}: no property of systemd has such a name")
        try:
            result.append(_in_usec(name, gvariant.parse(text)))
        except ValueError as error:
            hint = f"{ANNOTATION}TimeoutStopUSec = uint64 5, {ANNOTATION}CollectMode = 'inactive'"
            raise WherryError(Kind.INVALID, f'annotations.{key}: "{text}": {error}', hint=hint) from error
    return result


def _in_usec(name: str, value: tuple[str, Any]) -> Property:
    if not re.search(r"[a-z]Sec$", name):
        return name, value
    signature, number = value
    if signature not in _NUMBERS or not 0 <= number <= INFINITY // 1_000_000:
        raise ValueError("is no number of seconds")
    return f"{name[:-3]}USec", ("t", int(number * 1_000_000))


def direct(writes: Writes) -> list[tuple[str, str]]:
    """What the plan writes itself all the same: exact where systemd rounds (cpu.max), everything it has no word for,
    and the kernel's word on what it refuses. Only pids.max is systemd's alone: while the unit's holder lives there it
    is one more than asked (container/systemd.py)."""
    return [(file, value) for file, value in writes if file != "pids.max" or _amount(value, 1) is None]


def _replaced(name: str, signature: str, entries: list[Any]) -> Properties:
    """A list property is added to; the empty list clears it first."""
    return [(name, (signature, [])), (name, (signature, entries))]


Found = tuple[str, str, Any]


def _amount(text: str, least: int) -> int | None:
    """A size or count with the kernel's suffixes (memparse), or "max". systemd refuses what is below `least`."""
    match = re.fullmatch(r"([0-9]{1,20})([kmgtpe]?)", text.strip().lower())
    if not match:
        return INFINITY if text.strip() == "max" else None
    number = int(match[1]) << 10 * " kmgtpe".index(match[2] or " ")
    return min(number, INFINITY) if number >= least else None


def _limit(name: str, least: int = 1) -> Callable[[str], list[Found]]:
    def convert(text: str) -> list[Found]:
        found = _amount(text, least)
        return [] if found is None else [(name, "t", found)]

    return convert


def _share(text: str) -> int | None:
    """A weight, 1 to 10000."""
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text.strip()) and 1 <= int(text) <= 10000 else None


def _cpu_weight(text: str) -> list[Found]:
    share = _share(text)
    return [] if share is None else [("CPUWeight", "t", share)]


def _cpu_idle(text: str) -> list[Found]:
    """Weight 0 is systemd's word for idle (252); no longer idle is the kernel's default weight again."""
    weights = {"1": 0, "0": 100}
    return [("CPUWeight", "t", weights[text.strip()])] if text.strip() in weights else []


def _cpu_max(text: str) -> list[Found]:
    """"quota period" in us. systemd keeps whole percents of a CPU in the unit's file, so rounded up, as runc does: a
    reload must not take away what was granted."""
    match = re.fullmatch(r"([0-9]{1,18}|max)(?: ([0-9]{1,18}))?", text.strip())
    quota, period = (match[1], int(match[2] or 100000)) if match else ("", 0)
    if not period:
        return []
    granted = INFINITY if quota == "max" else -(-int(quota) * 100 // period) * 10000
    return [("CPUQuotaPeriodUSec", "t", period), ("CPUQuotaPerSecUSec", "t", min(granted, INFINITY))]


_MAX_CPU: Final = 8192  # CONFIG_NR_CPUS is no larger


def _set(name: str) -> Callable[[str], list[Found]]:
    """A list of numbers, "0-2,4", as a bit string, the lowest bit first."""

    def convert(text: str) -> list[Found]:
        bits = 0
        for part in text.split(","):
            match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
            low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not low <= high < _MAX_CPU:
                return []
            bits |= (1 << high + 1) - (1 << low)
        return [(name, "ay", bits.to_bytes((bits.bit_length() + 7) // 8, "little"))]

    return convert


def _io_default(text: str) -> list[Found]:
    key, _, value = text.strip().rpartition(" ")
    share = _share(value)
    return [] if share is None or key not in ("", "default") else [("IOWeight", "t", share)]


_SINGLE: Final[dict[str, Callable[[str], list[Found]]]] = {
    "memory.max": _limit("MemoryMax"),
    "memory.high": _limit("MemoryHigh"),
    "memory.low": _limit("MemoryLow", 0),
    "memory.min": _limit("MemoryMin", 0),
    "memory.swap.max": _limit("MemorySwapMax", 0),
    "pids.max": _limit("TasksMax"),
    "cpu.idle": _cpu_idle,
    "cpu.weight": _cpu_weight,
    "cpu.max": _cpu_max,
    "cpuset.cpus": _set("AllowedCPUs"),
    "cpuset.mems": _set("AllowedMemoryNodes"),
    "io.weight": _io_default,
}

# ---- limits of single block devices

_IO_MAX: Final = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}


def _device(text: str) -> tuple[str, list[str]]:
    """A line "8:0 WORD ..." as (path, words); systemd reads the numbers from the path, it need not exist."""
    key, *words = text.split() or [""]
    return (f"/dev/block/{key}", words) if re.fullmatch(r"[0-9]+:[0-9]+", key) else ("", [])


def _io_weight(text: str) -> Iterable[tuple[str, str, int]]:
    path, words = _device(text)
    share = _share(words[0]) if path and len(words) == 1 else None
    if share is not None:
        yield "IODeviceWeight", path, share


def _io_max(text: str) -> Iterable[tuple[str, str, int]]:
    path, words = _device(text)
    for key, _, value in (word.partition("=") for word in words):
        rate = _amount(value, 1) if key in _IO_MAX else None
        if rate is not None:
            yield _IO_MAX[key], path, rate


_KEYED: Final[dict[str, Callable[[str], Iterable[tuple[str, str, int]]]]] = {
    "io.weight": _io_weight,
    "io.max": _io_max,
}

# ---- devices

_GROUPS: Final = {"b": "block", "c": "char"}


def device_properties(rules: Sequence[Json]) -> Properties:
    """Device rules (those of oci/bpf.py, the last match wins) as a list of what is allowed: all that systemd has.

    Where it cannot say a rule (a denial that cuts into an allowance, any major with one minor) the list is wider. Our
    own program is attached beside systemd's and both must agree, so the cut is made there."""
    allowed: dict[str, set[str]] = {}
    for position, rule in enumerate(rules):
        for kind in _kinds(rule) if rule["allow"] else ():
            left = _access(rule).difference(*(_denied(rule, later, kind) for later in rules[position + 1 :]))
            if left:
                allowed.setdefault(_pattern(rule, kind), set()).update(left)
    if all(allowed.get(f"{group}-*") == set("rwm") for group in _GROUPS.values()):
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    entries = [(path, "".join(letter for letter in "rwm" if letter in access)) for path, access in allowed.items()]
    return [("DevicePolicy", ("s", "strict")), *_replaced("DeviceAllow", "a(ss)", entries)]


def _kinds(rule: Json) -> str:
    kind: str = rule.get("type") or "a"
    return "bc" if kind == "a" else kind


def _access(rule: Json) -> set[str]:
    return set(rule.get("access") or "rwm")


def _number(rule: Json, key: str) -> int | None:
    """None: any."""
    value = rule.get(key)
    return None if value is None or value < 0 else int(value)


def _denied(rule: Json, later: Json, kind: str) -> set[str]:
    """The letters that a later denial takes from all that `rule` allows."""
    covers = all(_number(later, key) in (None, _number(rule, key)) for key in ("major", "minor"))
    return _access(later) if not later["allow"] and kind in _kinds(later) and covers else set()


def _pattern(rule: Json, kind: str) -> str:
    """systemd.resource-control(5), DeviceAllow=; the numbers are read from the path (240)."""
    major, minor = _number(rule, "major"), _number(rule, "minor")
    if major is None:
        return f"{_GROUPS[kind]}-*"
    return f"{_GROUPS[kind]}-{major}" if minor is None else f"/dev/{_GROUPS[kind]}/{major}:{minor}"
