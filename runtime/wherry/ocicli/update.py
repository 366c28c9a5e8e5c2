"""`update`: other limits for a container that is there, all or nothing; its config remembers them.

Decides how what is asked and what was asked before come together: fields that are not given stay, as runc's do. The
conversions are oci/cgroup2.py's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .world import CONFIG_MAX, World, config_of

if TYPE_CHECKING:
    from wherry.container.state import ContainerDir, State
    from wherry.oci.facts import HostFacts

    from .cgroups import Writes
    from .flags import Values

__all__ = ["asked", "do_update", "merged"]

Merge = Callable[[Any, Any], Any]


def do_update(world: World, words: Sequence[str], values: Values) -> None:
    """The verb."""
    from wherry.oci import spec

    found = _read(values["resources"]) if values["resources"] else asked(values)
    spec.validate_resources(found)
    folder, _ = world.load(words[0])
    with folder.lock():
        config = config_of(folder)
        resources = config["linux"].get("resources") or {}
        after = merged(resources, found)
        degraded = _apply(world, folder, resources, {key: after[key] for key in found if key in after})
        if values["l3_cache_schema"] or values["mem_bw_schema"]:
            _resctrl(world, folder, config, values)
        config["linux"]["resources"] = after
        _remember(folder, config, degraded)


# ---- what is asked


def _read(path: str) -> Json:
    """linux.resources as JSON from a file or, for "-", from standard input."""
    from wherry.kernel import files

    from . import bundle

    try:
        text = sys.stdin.buffer.read(CONFIG_MAX + 1) if path == "-" else files.read_capped(path, CONFIG_MAX)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"--resources {path}: {error.strerror or error}") from error
    if len(text) > CONFIG_MAX:
        raise WherryError(Kind.INVALID, f"--resources {path}: more than {CONFIG_MAX} bytes")
    return bundle.parse(text, "--resources" if path == "-" else path)


def _number(flag: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII):
        raise WherryError(Kind.INVALID, f'--{flag} "{text}": not a number')
    return int(text)


def _size(flag: str, text: str) -> int:
    """Bytes, with the suffixes of Go's units package: k, m, g, t, p, binary, a b or ib behind them."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([kmgtp]?)(?:i?b)?", text.lower(), re.ASCII)
    if text != "-1" and not match:
        raise WherryError(Kind.INVALID, f'--{flag} "{text}": not a size', hint="bytes, or such as 64m; -1: no limit")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2] or " ")) if match else -1


def _text(_flag: str, text: str) -> str:
    return text


#: flag -> section and field of linux.resources, and how its text is read
_FLAGS: Final[dict[str, tuple[str, str, Callable[[str, str], int | str]]]] = {
    "memory": ("memory", "limit", _size),
    "memory-reservation": ("memory", "reservation", _size),
    "memory-swap": ("memory", "swap", _size),
    "kernel-memory": ("memory", "kernel", _size),
    "kernel-memory-tcp": ("memory", "kernelTCP", _size),
    "cpu-share": ("cpu", "shares", _number),
    "cpu-quota": ("cpu", "quota", _number),
    "cpu-period": ("cpu", "period", _number),
    "cpu-burst": ("cpu", "burst", _number),
    "cpu-idle": ("cpu", "idle", _number),
    "cpu-rt-period": ("cpu", "realtimePeriod", _number),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime", _number),
    "cpuset-cpus": ("cpu", "cpus", _text),
    "cpuset-mems": ("cpu", "mems", _text),
    "pids-limit": ("pids", "limit", _number),
    "blkio-weight": ("blockIO", "weight", _number),
}


def asked(values: Values) -> Json:
    """linux.resources by the single flags."""
    found: Json = {}
    for flag, (section, field, read) in _FLAGS.items():
        text = values[flag.replace("-", "_")]
        if text:
            found.setdefault(section, {})[field] = read(flag, text)
    return found


# ---- what was asked before


def merged(before: Json, new: Json) -> Json:
    """`new` over `before`. Null, "" and 0 leave a field as it is: Go's callers send them for what they do not mean.
    Where 0 is a value (cpu.idle, cpu.burst) it counts."""
    result = dict(before)
    for key, value in new.items():
        merge = _MERGES.get(key, _replaced)
        if value is not None:
            result[key] = merge(before.get(key), value)
    return result


def _replaced(_before: Any, new: Any) -> Any:
    return new


def _fields(before: Json | None, new: Json) -> Json:
    given = {key: value for key, value in new.items() if value or (value == 0 and key in ("idle", "burst"))}
    return {**(before or {}), **given}


def _memory(before: Json | None, new: Json) -> Json:
    """Memory without a limit takes the limit of swap along, as v1 demanded (runc's update)."""
    result = _fields(before, new)
    if (new.get("limit") or 0) < 0 and not new.get("swap"):
        result["swap"] = -1
    return result


def _named(before: Json | None, new: Json) -> Json:
    return {**(before or {}), **new}


def _pages(before: list[Json] | None, new: list[Json]) -> list[Json]:
    sizes = {entry["pageSize"]: entry for entry in [*(before or []), *new]}
    return list(sizes.values())


_MERGES: Final[dict[str, Merge]] = {
    "memory": _memory, "cpu": _fields, "pids": _fields, "blockIO": _fields, "network": _fields,
    "hugepageLimits": _pages, "rdma": _named, "unified": _named,
}  # fmt: skip

# ---- carried out


class _Change(NamedTuple):
    """One update of a container's cgroup: its files as they were, and as they shall be."""

    folder: ContainerDir
    state: State
    before: Writes
    after: Writes


def _apply(world: World, folder: ContainerDir, before: Json, wanted: Json) -> tuple[str, ...]:
    """Set `wanted`; names of controllers that are missing for it. Nothing is changed by an error."""
    from wherry.container import lifecycle
    from wherry.kernel import cgroup
    from wherry.kernel import facts as kernel
    from wherry.model import Place
    from wherry.oci import cgroup2

    from . import cgroups

    for field in cgroup2.ignored(wanted):
        world.warn(f"linux.resources.{field}: cgroup v2 has nothing for it")
    facts, state = kernel.measure(Place(state=world.state)), folder.load()
    lifecycle.set_resources(folder, ())  # the errors of a container that has ended, or has no cgroup
    cgroup2.check_usage(wanted, _usage(state.cgroup))
    have = cgroup.prepare(facts, state.cgroup)
    writes, lacking = cgroups.split(world, _ordered(cgroup2.writes(wanted), before), have, facts)
    found = cgroup.limits(state.cgroup, tuple(file for file, _ in writes))
    _write(world, _Change(folder, state, tuple(found.items()), writes), wanted, facts)
    return lacking


def _usage(path: str) -> int:
    from wherry.kernel import cgroup

    return int(cgroup.limits(path, ("memory.current",)).get("memory.current", 0))


def _ordered(writes: list[tuple[str, str]], before: Json) -> list[tuple[str, str]]:
    """A burst must never be above the quota (kernel/sched/core.c): a lower one goes first."""
    old = (before.get("cpu") or {}).get("burst") or 0
    lower = [write for write in writes if write[0] == "cpu.max.burst" and write[1].isdigit() and int(write[1]) < old]
    return lower + [write for write in writes if write not in lower]


def _write(world: World, change: _Change, wanted: Json, facts: HostFacts) -> None:
    """Files first, for the kernel's verdict, then what else knows of them; if that refuses, the files go back."""
    from wherry.container import lifecycle

    from . import cgroups, units

    rules = cgroups.device_rules(wanted) if "devices" in wanted and cgroups.may_load_bpf(facts) else None
    unit = change.state.extra.get("unit")
    lifecycle.set_resources(change.folder, change.after)
    try:
        if unit:
            units.change(world, unit, change.after, rules, change.state.cgroup)
        if rules is not None:
            _devices(change.state.cgroup, rules)
    except WherryError:
        with suppress(WherryError):
            lifecycle.set_resources(change.folder, [(file, line) for file, line in change.before if "\n" not in line])
        raise


def _devices(path: str, rules: list[Json]) -> None:
    """Another device program in the place of ours."""
    from wherry.kernel import shim
    from wherry.oci import bpf

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shim.attach_device_program(fd, bpf.program(rules), replace=True)
    except OSError as error:
        raise WherryError(Kind.PRECONDITION, f"linux.resources.devices: {error.strerror}") from error
    finally:
        os.close(fd)


def _resctrl(world: World, folder: ContainerDir, config: Json, values: Values) -> None:
    """Lines for the container's class of service, which the config must have asked for: a running container does not
    change its class."""
    from wherry.kernel import facts as kernel
    from wherry.model import Place
    from wherry.oci import compile_sched

    if config["linux"].get("intelRdt") is None:
        text = "--l3-cache-schema, --mem-bw-schema: the container has no linux.intelRdt"
        raise WherryError(Kind.PRECONDITION, text, hint="create it with one")
    group = compile_sched.group_path(config, kernel.measure(Place(state=world.state)), folder.id)
    for key, field in (("l3_cache_schema", "l3CacheSchema"), ("mem_bw_schema", "memBwSchema")):
        if values[key]:
            try:
                with open(f"{group}/schemata", "wb", buffering=0) as file:
                    file.write(values[key].encode() + b"\n")
            except OSError as error:
                text = f"cannot set {values[key]} on {group}: {error.strerror}"
                raise WherryError(Kind.INVALID, text, hint=f"{group}/../info/last_cmd_status says more") from error
            config["linux"]["intelRdt"][field] = values[key]


def _remember(folder: ContainerDir, config: Json, degraded: tuple[str, ...]) -> None:
    from wherry.kernel import files

    files.atomic_write(folder.file("config.json"), json.dumps(config).encode(), 0o600)
    state = folder.load()
    if not set(degraded) <= set(state.degraded):
        folder.save(state._replace(degraded=tuple(sorted({*state.degraded, *degraded}))))
