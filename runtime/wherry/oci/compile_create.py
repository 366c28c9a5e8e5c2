"""The order of a start, from nothing to exec: one page to read it on.

Host side: monitor's cgroup, the container's cgroup with limits and device rules, clone into it, id maps, oom score,
hooks
at the barrier, report. Child: namespaces, mounts, devices, terminal, barrier, pivot, limits, confinement, wait, exec.
"""

from __future__ import annotations

import json

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import compile_namespaces as nss
from wherry.oci import compile_process as proc
from wherry.oci import compile_sched as sched
from wherry.oci.compile_builder import Add, Builder, inside
from wherry.oci.compile_devices import devices
from wherry.oci.compile_job import Job
from wherry.oci.compile_mounts import Mounts, idmap_slots
from wherry.oci.compile_root import attach_root, prepare_root
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow
from wherry.oci.plan import Plan

__all__ = ["cgroups", "confine", "create", "created", "finished", "hook_state", "started"]

CREATED, STARTED = 1, 2  # WH_CREATED, WH_STARTED of native/plan.h
MAX_SLOTS, MAX_OPS = 512, 4096


def create(config: Json, bundle: str, facts: HostFacts, how: LaunchHow) -> Plan:
    """See compile.compile_create."""
    process = config["process"]
    b = Builder(
        (
            *proc.process_slots(process, config, how),
            *dict.fromkeys(how.namespace_slots.values()),
            *how.mount_slots.values(),
            *idmap_slots(config, how),
        )
    )
    ns = nss.namespaces(config, how, b)
    job = Job(config, bundle, facts, how, ns, b)
    mounts = Mounts(job)
    cgroup = cgroups(how, b)
    groups = sched.make_group(config, facts, how.id, b)
    mounts.host_trees()
    prepared = prepare_root(job) if nss.on_host(ns, facts) and "mount" in ns.new else -1
    nss.clone(ns, cgroup, b)
    proc.oom_score(process, facts, how, b)
    sched.join_group(groups, b)
    nss.write_maps(config, facts, ns, b)
    proc.guard(how, b)
    nss.enter(config, ns, b)
    nss.time_namespace(config, ns, b)
    _keyring(how, b)
    master = _root(job, mounts, prepared)
    _settle(job, mounts)
    _finish(job)
    proc.monitor(process, how, master, cgroup, b)
    return finished(b)


def finished(b: Builder) -> Plan:
    """The plan, within the helper's bounds."""
    plan = b.plan()
    if plan.slots > MAX_SLOTS or len(plan.ops) > MAX_OPS:
        raise WherryError(
            Kind.INVALID,
            f"the plan needs {len(plan.ops)} steps and {plan.slots} descriptors; at most {MAX_OPS} and {MAX_SLOTS} fit",
            hint="use fewer mounts",
        )
    return plan


def cgroups(how: LaunchHow, b: Builder) -> int:
    """The container's cgroup with its limits; the slot to clone into, -1 for none."""
    if how.monitor is not None and how.monitor.cgroup:
        b.host("CGROUP_JOIN", s0=how.monitor.cgroup)
    if not how.cgroup:
        return -1
    slot = b.slot()
    b.host("CGROUP_DIR", *(("EXIST_OK",) if how.cgroup_exists else ()), fd0=slot, s0=how.cgroup)
    for name, value in how.cgroup_writes:
        b.host("CGROUP_SET", fd0=slot, s0=name, s1=value)
    if how.device_bpf:
        b.host("DEVICE_BPF", fd0=slot, s0=how.device_bpf, n0=len(how.device_bpf) // 8)
    return slot


def _keyring(how: LaunchHow, b: Builder) -> None:
    """A session keyring of its own, or the process would see the caller's keys. The helper takes ENOSYS for
    success: a kernel without keyrings has none to see."""
    if not how.no_new_keyring:
        b.child("KEYRING", s0=f"_ses.{how.id}" if how.id else "_ses")


def _root(job: Job, mounts: Mounts, prepared: int) -> int:
    """Mounts, devices, terminal, working directory: all beneath the root slot. Returns the master's slot."""
    mounts.shared()
    if job.ns.has("mount"):  # else "/" is the host's: what is mounted there lasts until somebody unmounts the root
        mounts.propagate()
    mounts.trees()
    mounts.root = attach_root(job, prepared)
    mounts.all()
    devices(job.config, job.facts, job.ns, mounts.root, job.b)
    console = () if _has_devpts(job.config) else ("HOST_PTMX",)
    master = proc.stdio(job.process, job.how, mounts.root, job.b, *console)
    if job.process["cwd"] != "/":  # as docker: a missing working directory is made
        job.b.child("MAKE_DIR", fd1=mounts.root, s0=inside(job.process["cwd"]), n0=0o755)
    return master


def _has_devpts(config: Json) -> bool:
    return any(
        m.get("type") == "devpts" or (m["destination"].rstrip("/") in {"/dev", "/dev/pts"} and _is_host_dev(m))
        for m in config.get("mounts") or []
    )


def _is_host_dev(mount: Json) -> bool:
    return bool({"bind", "rbind"}.intersection([mount.get("type"), *(mount.get("options") or [])]))


def _settle(job: Job, mounts: Mounts) -> None:
    """Names, hooks at the barrier, kernel parameters, hidden paths, pivot."""
    config, b = job.config, job.b
    for key, name in (("hostname", "HOSTNAME"), ("domainname", "DOMAINNAME")):
        if config.get(key):
            b.child(name, s0=config[key])
    if "network" in job.ns.new:
        b.child("LOOPBACK")
    _net_devices(job)
    _runtime_hooks(job)
    procfs = _procfs(config, job.ns, b)
    for key, value in sorted((job.linux.get("sysctl") or {}).items()):
        b.child("SYSCTL", fd0=procfs, s0=sysctl_path(key), s1=value)
    proc.labels(job.process, job.facts, procfs, b)
    mounts.hide()
    mounts.pivot()


def _net_devices(job: Job) -> None:
    """Links of the host, once the child is in its network namespace and before a sysctl speaks of one."""
    devices = job.linux.get("netDevices") or {}
    if not devices:
        return
    if not job.facts.has_cap("CAP_NET_ADMIN"):
        raise WherryError(Kind.PRECONDITION, "linux.netDevices: to move a link of the host needs CAP_NET_ADMIN")
    job.b.sync("network")
    for name, device in devices.items():
        job.b.host("NET_DEVICE", s0=name, s1=device.get("name") or name)
    job.b.sync("networked")


def _procfs(config: Json, ns: nss.Namespaces, b: Builder) -> int:
    """Our own procfs, attached nowhere, for sysctls and labels; -1 where nothing needs it. With the host's pid
    namespace a
    user namespace may not make one: then the host's /proc, before the pivot."""
    if not config["linux"].get("sysctl") and not proc.needs_labels(config["process"]):
        return -1
    slot = b.slot()
    if ns.user and not ns.has("pid"):
        b.child("OPEN", fd0=slot, s0="/proc", n0=nss.O_PATH_DIRECTORY)
    else:
        b.child("FS_NEW", fd0=slot, s0="proc", s2="proc")
    return slot


def sysctl_path(name: str) -> str:
    """Path below /proc/sys: as sysctl(8), dots separate unless the first separator is a slash."""
    first = next((char for char in name if char in "./"), "/")
    return name if first == "/" else name.translate(str.maketrans("./", "/."))


# ---- hooks


def hook_state(config: Json, bundle: str, how: LaunchHow, status: str) -> str:
    """The state JSON; pid comes first, so that "%p" is found before any text of the config."""
    state = {
        "ociVersion": config["ociVersion"],
        "id": how.id,
        "status": status,
        "bundle": bundle,
        "annotations": config.get("annotations") or {},
    }
    return '{"pid":%p,' + json.dumps(state, separators=(",", ":"))[1:]


def _hooks(config: Json, *kinds: str) -> list[Json]:
    return [hook for kind in kinds for hook in (config.get("hooks") or {}).get(kind) or []]


def _run_hooks(job: Job, add: Add, status: str, hooks: list[Json]) -> None:
    """The hooks on one side, after the state that they read from standard input."""
    if hooks:
        add("HOOK_STATE", s0=hook_state(job.config, job.bundle, job.how, status))
    for hook in hooks:
        args, env = tuple(hook.get("args") or (hook["path"],)), tuple(hook.get("env") or ())
        timeout = 1000 * (hook.get("timeout") or 0)
        add("HOOK", s0=hook["path"], s1=args, n0=len(args), s2=env, n1=len(env), n2=timeout)


def _runtime_hooks(job: Job) -> None:
    """prestart and createRuntime on the host between two barriers, createContainer in the child before the pivot. For
    prestart, which belonged to the start once, the container is created (config.md, "Prestart")."""
    if _hooks(job.config, "prestart", "createRuntime"):
        job.b.sync("hooks")
        _run_hooks(job, job.b.host, "created", _hooks(job.config, "prestart"))
        _run_hooks(job, job.b.host, "creating", _hooks(job.config, "createRuntime"))
        job.b.sync("hooked")
    _run_hooks(job, job.b.child, "creating", _hooks(job.config, "createContainer"))


# ---- the process


def _finish(job: Job) -> None:
    """Limits, confinement, the barrier "created", the wait for start, exec; and the host's reports."""
    confine(job)
    created(job)
    _run_hooks(job, job.b.child, "created", _hooks(job.config, "startContainer"))
    proc.execute(job.process, job.config, job.how, job.b)
    started(job)
    if not job.how.wait_start:  # else `start` runs them: the launch role is gone by then
        _run_hooks(job, job.b.host, "running", _hooks(job.config, "poststart"))


def confine(job: Job, *, cpus: str = "") -> None:
    """Limits, scheduling, working directory, rights."""
    process, config, b = job.process, job.config, job.b
    proc.personality(config, b)
    proc.limits(process, job.facts, job.how, job.ns, b)
    proc.umask(process, b)
    sched.memory_policy(config, b)
    sched.schedule(process, b, cpus=cpus)
    b.child("CHDIR", s0=process["cwd"])
    denied = nss.setgroups_denied(config, job.facts, job.ns)
    proc.confine(process, config, job.how, job.facts, b, deny_groups=denied)
    proc.guard(job.how, b)


def created(job: Job) -> None:
    """Everything is done but the start: the pid file, the report, the wait. A command that is not there fails here."""
    if job.how.wait_start:
        env = proc.environment(job.process)
        job.b.child("FIND", s0=job.process["args"][0], s1=env, n0=len(env))
    job.b.sync("created")
    if job.how.pidfile:
        job.b.host("PIDFILE", s0=job.how.pidfile)
    job.b.host("REPORT", n0=CREATED, s0="created")
    if job.how.wait_start:
        job.b.child("WAIT_START", fd0=job.b.inherited_slot("fifo"))


def started(job: Job) -> None:
    """The report that the process runs. A child left waiting reports nothing more through this plan."""
    if not job.how.wait_start:
        job.b.host("REPORT", n0=STARTED, s0="started")
