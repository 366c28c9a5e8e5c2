"""A plan that lets another OCI runtime make the container: the root on a directory that only it sees, then its command.

Decides what the monitor supervises: the runtime in the foreground, whose end is the container's. Refuses to know which
runtime that is and what it makes of config.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from wherry.model import Json
from wherry.oci import compile_namespaces as nss
from wherry.oci import compile_process as proc
from wherry.oci import options as opt
from wherry.oci.compile_builder import Builder
from wherry.oci.compile_create import cgroups, created, finished, started
from wherry.oci.compile_job import Job
from wherry.oci.compile_mounts import idmap_slots
from wherry.oci.compile_root import attach_root
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow
from wherry.oci.plan import Plan

__all__ = ["delegate"]


def delegate(argv: Sequence[str], env: Sequence[str], config: Json, facts: HostFacts, how: LaunchHow) -> Plan:
    """Run `argv` with `how.rootfs` attached on `how.root_dir`. Its terminal and streams are the container's."""
    process: Json = {
        "terminal": bool(config["process"].get("terminal")), "args": list(argv), "env": list(env), "cwd": "/",
    }  # fmt: skip
    maps = {key: config["linux"][key] for key in ("uidMappings", "gidMappings") if config["linux"].get(key)}
    own: Json = {"process": process, "linux": maps, "mounts": []}
    b = Builder((*proc.process_slots(process, own, how), *idmap_slots(own, how)))
    ns = nss.Namespaces(frozenset({"mount"}), {}, {})
    job = Job(own, how.root_dir, facts, how, ns, b)
    cgroups(how, b)
    nss.clone(ns, -1, b)
    proc.guard(how, b)
    b.child("PROPAGATE", s0="/", s1="rslave", n0=opt.PROPAGATION["rslave"])
    attach_root(job)
    host = b.slot()
    b.child("OPEN", fd0=host, s0="/", n0=nss.O_PATH_DIRECTORY)
    master = proc.stdio(process, how, host, b, "NO_BIND")
    created(job)
    proc.execute(process, own, how, b)
    started(job)
    proc.monitor(process, how, master, -1, b)
    return finished(b)
