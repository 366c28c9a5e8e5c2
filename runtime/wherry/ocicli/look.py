"""state, list, ps: what is there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.container.state import ContainerDir, State, Status, ids
from wherry.errors import Kind, WherryError
from wherry.model import Json

from .world import World

if TYPE_CHECKING:
    from .flags import Values

__all__ = ["do_list", "do_ps", "do_state", "document"]


def document(folder: ContainerDir, state: State) -> Json:
    """The runtime-spec's state, with runc's additions (rootfs, created, owner); pid 0 once it is stopped."""
    status = folder.status(state)
    pid = state.init.pid if state.init is not None and status is not Status.STOPPED else 0
    extra = state.extra
    found: Json = {
        "ociVersion": "1.3.0", "id": state.id, "pid": pid, "status": status.value, "bundle": state.bundle,
        "rootfs": extra.get("rootfs", ""), "created": _stamp(state.created),
    }  # fmt: skip
    if extra.get("annotations"):
        found["annotations"] = extra["annotations"]
    if state.degraded:
        found["degraded"] = list(state.degraded)
    return {**found, "owner": _owner(int(extra.get("owner", 0)))}


def _stamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1e9):09d}Z"


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def do_state(world: World, words: Sequence[str], _values: Values) -> None:
    """The state as JSON."""
    sys.stdout.write(json.dumps(document(*world.load(words[0])), indent=2) + "\n")


def do_list(world: World, _words: Sequence[str], values: Values) -> None:
    """All containers below the root: a table as runc's, JSON, or ids."""
    _check_format(values["format"])
    rows = []
    for cid in ids(world.root, ""):
        try:
            rows.append(document(*world.load(cid)))
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND and error.kind is not Kind.INVALID:
                world.warn(error.message)
    if values["quiet"]:
        sys.stdout.write("".join(f"{row['id']}\n" for row in rows))
    elif values["format"] == "json":
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        keys = ("id", "pid", "status", "bundle", "created", "owner")
        sys.stdout.write(_table([[key.upper() for key in keys], *([str(row[key]) for key in keys] for row in rows)]))


def _table(rows: list[list[str]]) -> str:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(f"{cell:{size}}" for cell, size in zip(row, wide, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _check_format(name: str) -> None:
    if name not in ("", "table", "json"):
        raise WherryError(Kind.INVALID, f'--format "{name}": not table or json')


def do_ps(world: World, words: Sequence[str], values: Values) -> None:
    """The container's processes: ps(1)'s table, narrowed to them, or their pids as JSON."""
    from wherry.kernel import cgroup

    _check_format(values["format"])
    folder, state = world.load(words[0])
    if folder.status(state) is Status.STOPPED:
        raise WherryError(Kind.CONFLICT, f"container {folder.id} is stopped: container not running")
    pids = cgroup.processes(state.cgroup) if state.cgroup else _descendants(state)
    if values["format"] == "json":
        sys.stdout.write(json.dumps(pids) + "\n")
        return
    sys.stdout.write(_narrowed(list(words[1:]) or ["-ef"], set(pids)))


def _descendants(state: State) -> list[int]:
    """Without a cgroup: init and what descends from it."""
    import os

    from wherry.kernel import process

    assert state.init is not None
    parents = {int(name): process.parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = {state.init.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _narrowed(options: list[str], pids: set[int]) -> str:
    import subprocess

    done = subprocess.run(["ps", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WherryError(Kind.INVALID, f"ps {' '.join(options)}: {done.stderr.strip().splitlines()[0]}")
    lines = done.stdout.splitlines(keepends=True)
    heads = lines[0].split() if lines else []
    if "PID" not in heads:
        raise WherryError(Kind.INVALID, f"ps {' '.join(options)}: no PID column in it", hint="-o pid,...")
    column = heads.index("PID")
    return lines[0] + "".join(line for line in lines[1:] if int(line.split()[column]) in pids)
