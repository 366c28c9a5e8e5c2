"""A process in a running container: join by pidfd, enter the cgroup by the clone, confine, exec."""

from __future__ import annotations

from wherry.model import Json
from wherry.oci import compile_namespaces as nss
from wherry.oci import compile_process as proc
from wherry.oci import compile_sched as sched
from wherry.oci.compile_builder import Builder
from wherry.oci.compile_create import cgroups, confine, created, finished, started
from wherry.oci.compile_job import Job
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow, Target
from wherry.oci.plan import Plan

__all__ = ["execute"]

#: what a process leaves out is taken from the container's (as runc exec --process does)
_INHERITED = (
    "capabilities",
    "apparmorProfile",
    "selinuxLabel",
    "noNewPrivileges",
    "rlimits",
    "oomScoreAdj",
    "scheduler",
    "ioPriority",
    "execCPUAffinity",
)


def execute(process: Json, target: Target, facts: HostFacts, how: LaunchHow) -> Plan:
    """See compile.compile_exec."""
    process = _complete(process, target.config)
    config = {"linux": target.config.get("linux", {}), "process": process}
    b = Builder(("pidfd", *proc.process_slots(process, config, how)))
    pidfd = b.inherited_slot("pidfd")
    joined = dict.fromkeys((kind for kind in nss.CLONE_BITS if kind in target.namespaces), pidfd)
    ns = nss.Namespaces(frozenset(), joined, {}, "user" in joined and not facts.has_cap("CAP_SYS_ADMIN"))
    cgroup = cgroups(how, b)
    groups = sched.open_group(config, facts, target.id, b)
    sched.first_cpus(process, b)
    nss.clone(ns, cgroup, b)
    sched.own_cpus(process, b)
    proc.oom_score(process, facts, how, b)
    sched.join_group(groups, b)
    proc.guard(how, b)
    procfs = _procfs(process, b)
    _enter(config, ns, pidfd, b)
    if not how.no_new_keyring:
        b.child("KEYRING", s0=f"_ses.{target.id}" if target.id else "_ses")
    root = b.slot()
    b.child("OPEN", fd0=root, s0="/", n0=nss.O_PATH_DIRECTORY)
    master = proc.stdio(process, how, root, b, "NO_BIND")
    proc.labels(process, facts, procfs, b)
    job = Job(config, "", facts, how, ns, b)
    confine(job, cpus=(process.get("execCPUAffinity") or {}).get("final") or "")
    created(job)
    proc.execute(process, config, how, b)
    started(job)
    proc.monitor(process, how, master, cgroup, b)
    return finished(b)


def _complete(process: Json, config: Json) -> Json:
    own = config.get("process") or {}
    return {**{key: own[key] for key in _INHERITED if key in own}, **process}


def _procfs(process: Json, b: Builder) -> int:
    """Before the namespaces are joined: in a user namespace a masked /proc would forbid a new one."""
    if not proc.needs_labels(process):
        return -1
    slot = b.slot()
    b.child("FS_NEW", fd0=slot, s0="proc", s2="proc")
    return slot


def _enter(config: Json, ns: nss.Namespaces, pidfd: int, b: Builder) -> None:
    """All namespaces at once: setns(2) with a pidfd orders them itself."""
    kinds = [kind for kind in ns.joined if kind != "pid" or ns.powerless]
    if kinds:
        b.child("SETNS", fd0=pidfd, n0=sum(nss.CLONE_BITS[kind][0] for kind in kinds), s0=" ".join(kinds))
    nss.become_root(config, ns, b)
    if ns.powerless and "pid" in ns.joined:
        b.child("REBORN", s0="pid")
