"""RuntimeClass handlers: containers that another OCI runtime makes (crun, runc), in the same monitor's care.

Decides what that runtime is given: a bundle of its own below the run directory, and the container's root where only it
sees it. It stays in the foreground and makes the container; signals, exec, limits and the end are ours as with all
others, so it must make what runs on this kernel: nothing of a virtual machine's could be reached.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from wherry.engine.house import House
from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.facts import HostFacts

if TYPE_CHECKING:
    from wherry.container.launch import Launched
    from wherry.engine.db import Container
    from wherry.oci.how import LaunchHow
    from wherry.oci.plan import Plan

__all__ = ["OWN", "begun", "bundle", "path", "plan", "prepare"]

OWN = ("", "wherry")  # names of the default: this runtime itself
_PATIENCE = 60.0  # seconds for the other one to make a container
_MAX_LOG = 1 << 16


def path(house: House, name: str) -> str:
    """The program of a handler, "" for our own; PRECONDITION for one that is not configured."""
    if name in OWN and name not in house.settings.handlers:
        return ""
    found = house.settings.handlers.get(name)
    if not found:
        known = ", ".join(["wherry", *house.settings.handlers])
        hint = f"known: {known}; others are set in wherry.toml: handlers = {{{name} = \"/usr/bin/{name}\"}}"
        raise WherryError(Kind.PRECONDITION, f'no runtime for handler "{name}" is configured', hint=hint)
    return found


def bundle(house: House, cid: str) -> str:
    """STATE/c/<id>/bundle: config.json, rootfs, and the runtime's own state; goes with the run directory."""
    return f"{house.state_dir(cid)}/bundle"


def prepare(house: House, cid: str, config: Json) -> str:
    """Write the bundle; returns the directory that the root goes on."""
    where = bundle(house, cid)
    for name in ("", "/rootfs", "/state"):
        os.mkdir(f"{where}{name}", 0o700)
    with open(f"{where}/config.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(_foreign(config, house.facts)))
    return f"{where}/rootfs"


def _foreign(config: Json, facts: HostFacts) -> Json:
    """As other runtimes read it: the version that all of them know, a cgroup path below the mount, an oom_score_adj
    that the kernel would take from us."""
    process, linux = dict(config["process"]), dict(config["linux"])
    if "oomScoreAdj" in process and not facts.has_cap("CAP_SYS_RESOURCE"):
        process["oomScoreAdj"] = max(process["oomScoreAdj"], facts.oom_score_adj)
    linux["cgroupsPath"] = linux["cgroupsPath"].removeprefix(facts.cgroup_mount) if facts.cgroup_mount else ""
    changed = {"process": process, "linux": linux, "root": {**config["root"], "path": "rootfs"}}
    return {**config, **changed, "ociVersion": "1.0.2"}


def plan(house: House, row: Container, program: str, config: Json, how: LaunchHow) -> Plan:
    """What the helper carries out."""
    from wherry.oci import compile_handler

    where = bundle(house, row.id)
    words = [program, "--root", f"{where}/state", "--log", f"{where}/log", "--log-format", "json"]
    words += [] if config["linux"]["cgroupsPath"].startswith("/") else ["--systemd-cgroup"]
    words += ["run", "--bundle", where, "--pid-file", f"{where}/pid", row.id]
    env = [f"{key}={os.environ[key]}" for key in ("PATH", "DBUS_SYSTEM_BUS_ADDRESS") if key in os.environ]
    how = how._replace(cgroup="", cgroup_writes=(), device_bpf=b"", seccomp=b"", mount_slots={}, namespace_slots={})
    return compile_handler.delegate(words, env, config, house.facts, how)


def begun(house: House, row: Container, launched: Launched) -> tuple[Launched, str]:
    """Wait until the container runs: (with its first process instead of the runtime's, its cgroup)."""
    from wherry.kernel import process

    end = time.monotonic() + _PATIENCE
    while (pid := _pid(house, row.id)) is None:
        if not process.alive(launched.init) or time.monotonic() > end:
            raise _failure(house, row)
        time.sleep(0.002)
    found = process.identify(pid)
    return (launched._replace(init=found), _cgroup(house, pid)) if found else (launched, "")


def _pid(house: House, cid: str) -> int | None:
    from wherry.kernel import files

    try:
        return int(files.read_small(f"{bundle(house, cid)}/pid", 64))
    except (FileNotFoundError, ValueError):  # not there, or not written yet
        return None


def _cgroup(house: House, pid: int) -> str:
    from wherry.kernel import cgroup, files

    if not house.facts.cgroup_mount:
        return ""
    lines = files.read_capped(f"/proc/{pid}/cgroup", 1 << 16).decode().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return cgroup.locate(house.facts, own) if own != "/" else ""


def _failure(house: House, row: Container) -> WherryError:
    """What the runtime said in its log."""
    said = ""
    try:
        with open(f"{bundle(house, row.id)}/log", encoding="utf-8", errors="replace") as file:
            for line in file.read(_MAX_LOG).splitlines():
                said = str(json.loads(line).get("msg", said))
    except (OSError, ValueError, AttributeError):
        pass
    name = os.path.basename(row.config["handler"])
    return WherryError(Kind.INTERNAL, f"{name} could not make container {row.name}: {said or 'it said nothing'}")
