"""The process side of a plan: stdio, terminal, limits, labels, ids, capabilities, seccomp, exec. Shared by create and
exec.

The one order that works is in `confine`: what needs rights comes before they go; the filter goes in last where
no_new_privs allows it, else while CAP_SYS_ADMIN is still there (seccomp(2)).
"""

from __future__ import annotations

import struct
from typing import Final

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.compile_builder import Builder
from wherry.oci.compile_namespaces import Namespaces
from wherry.oci.facts import CAPABILITY_SET, HostFacts, cap_mask, cap_names
from wherry.oci.how import LaunchHow, MonitorHow

__all__ = [
    "RLIMITS",
    "confine",
    "execute",
    "labels",
    "limits",
    "lost_capabilities",
    "oom_score",
    "process_slots",
    "seccomp",
    "stdio",
]

_RLIMITS = """
CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME
"""
#: by their number (asm-generic/resource.h)
RLIMITS: Final[tuple[str, ...]] = tuple(f"RLIMIT_{name}" for name in _RLIMITS.split())
RLIM_INFINITY: Final = (1 << 64) - 1
_STREAMS: Final = ("stdin", "stdout", "stderr")
_MONITOR_END: Final = {"stdin": "stdin_w", "stdout": "stdout_r", "stderr": "stderr_r"}
NEW_LISTENER: Final = 1 << 3
O_RDWR: Final = 2
NULL_DEVICE: Final = 1 << 8 | 3  # makedev(1, 3)
_SIGKILL: Final = 9


def process_slots(process: Json, config: Json, how: LaunchHow) -> tuple[str, ...]:
    """Names of the slots that the launcher fills for one process, in order."""
    terminal = bool(process.get("terminal"))
    names: list[str] = [] if terminal else [stream for stream in _STREAMS if stream in how.stdio]
    monitor = how.monitor
    if monitor is not None:
        names += [_MONITOR_END[stream] for stream in names]
        names += ["attach"] if monitor.attach else []
        names += ["client"] if monitor.client else []
    names += ["console_socket"] if terminal and how.console_socket else []
    names += ["fifo"] if how.wait_start else []
    names += ["seccomp_listener"] if listener_path(config) else []
    return (*names, *(f"fd{number}" for number in range(3, 3 + how.preserve_fds)))


def listener_path(config: Json) -> str:
    """linux.seccomp.listenerPath where some rule notifies; "" otherwise."""
    profile = config.get("linux", {}).get("seccomp") or {}
    path: str = profile.get("listenerPath") or ""
    notifies = any(rule.get("action") == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls") or [])
    return path if notifies else ""


def stdio(process: Json, how: LaunchHow, root: int, b: Builder, *console: str) -> int:
    """Descriptors 0, 1, 2 and the session; `console` are flags of CONSOLE. Returns the slot where the host side finds
    the
    pty's master, else -1."""
    if process.get("terminal"):
        return _terminal(process, how, root, b, console)
    null = -1
    for number, stream in enumerate(_STREAMS):
        if stream in how.stdio:
            b.child("STDIO", fd0=b.inherited_slot(stream), n0=number)
        elif how.monitor is not None or stream in how.null_streams:
            if null < 0:
                null = b.slot()
                # the container's own: by a descriptor of the host's it could change that one's mode and owner
                b.child("OPEN", fd0=null, fd1=root, s0="/dev/null", n0=O_RDWR, n1=NULL_DEVICE)
            b.child("STDIO", fd0=null, n0=number)
    b.child("SESSION")
    return -1


def _terminal(process: Json, how: LaunchHow, root: int, b: Builder, console: tuple[str, ...]) -> int:
    size = process.get("consoleSize") or {}
    uid = process.get("user", {}).get("uid", 0)
    b.child("CONSOLE", *console, fd1=root, n0=size.get("height", 0), n1=size.get("width", 0), n2=uid)
    b.child("SESSION", "TTY")
    master = b.slot()
    b.host("RECV_FD", fd0=master)
    if how.monitor is None and how.console_socket:
        b.host("SEND_FD", fd0=master, fd1=b.inherited_slot("console_socket"), s0="/dev/ptmx")
    return master


def monitor(process: Json, how: LaunchHow, master: int, cgroup: int, b: Builder) -> None:
    """The monitor's declarations. `master`: slot of the pty, -1 without a terminal."""
    if how.monitor is None:
        return
    _monitor_stdio(process, how, master, b)
    _monitor_log(how.monitor, b)
    if how.monitor.attach:
        b.monitor("MON_ATTACH", fd0=b.inherited_slot("attach"))
    if how.monitor.client:
        b.monitor("MON_CLIENT", fd0=b.inherited_slot("client"), n0=int(how.monitor.tied))
    _monitor_end(how.monitor, how.cgroup_exists, cgroup, b)


def _monitor_stdio(process: Json, how: LaunchHow, master: int, b: Builder) -> None:
    if process.get("terminal"):
        b.monitor("MON_STDIO", "TTY", fd0=master, n0=1)
        return
    for number, stream in enumerate(_STREAMS):
        if stream in how.stdio:
            once = how.monitor is not None and how.monitor.stdin_once and stream == "stdin"
            b.monitor("MON_STDIO", fd0=b.inherited_slot(_MONITOR_END[stream]), n0=number, n1=int(once))


def _monitor_log(mon: MonitorHow, b: Builder) -> None:
    """MON_LOG's n1: bytes a file, for journald the number of fields."""
    if mon.log_driver != "none":
        size = len(mon.log_fields) if mon.log_driver == "journald" else mon.log_bytes
        b.monitor(
            "MON_LOG", s0=mon.log_path, s1=mon.log_fields, n0=_LOG[mon.log_driver], n1=size, n2=max(1, mon.log_files)
        )


def _monitor_end(mon: MonitorHow, scope: bool, cgroup: int, b: Builder) -> None:
    """What happens at the exit, and the timers until then. `scope`: the cgroup is systemd's to remove."""
    if mon.exit_dir:
        b.monitor("MON_EXIT", s0=mon.exit_dir)
    if mon.cleanup or mon.timers:
        b.monitor("MON_CLEANUP", s0=mon.cleanup, s1=mon.cleanup_env, n0=len(mon.cleanup), n1=len(mon.cleanup_env))
    for timer in mon.timers:
        b.monitor("MON_TIMER", s0=timer.argv, n0=timer.interval_ms, n1=timer.first_ms, n2=len(timer.argv))
    if mon.oom and cgroup >= 0:
        b.monitor("MON_OOM", fd0=cgroup, n0=int(scope))
    if mon.kill and cgroup >= 0:
        b.monitor("MON_KILL", fd0=cgroup)


#: WH_LOG_* of native/plan.h
_LOG: Final[dict[str, int]] = {"none": 0, "cri": 1, "json": 2, "journald": 3}


def oom_score(process: Json, facts: HostFacts, how: LaunchHow, b: Builder) -> None:
    """oom_score_adj by the host side. Lowering it below our own needs CAP_SYS_RESOURCE: clamped unless asked by
    name."""
    wanted = process.get("oomScoreAdj")
    if wanted is None:
        return
    value = wanted if facts.has_cap("CAP_SYS_RESOURCE") else max(wanted, facts.oom_score_adj)
    if value != wanted and "oom_score_adj" in how.asked:
        raise WherryError(
            Kind.PRECONDITION,
            f"oom_score_adj {wanted} is below the caller's {facts.oom_score_adj} and CAP_SYS_RESOURCE is missing",
            hint=f"ask for {facts.oom_score_adj} or more",
        )
    b.host("PROC_WRITE", s0="oom_score_adj", s1=str(value))


def limits(process: Json, facts: HostFacts, how: LaunchHow, ns: Namespaces, b: Builder) -> None:
    """rlimits in the child. A hard limit above our own needs CAP_SYS_RESOURCE in the first user namespace."""
    raise_allowed = facts.has_cap("CAP_SYS_RESOURCE") and not ns.user
    for entry in process.get("rlimits") or []:
        name, soft, hard = entry["type"], entry["soft"], entry["hard"]
        ceiling = _ceiling(facts, name)
        if hard > ceiling and not raise_allowed:
            if name in how.asked:
                raise WherryError(
                    Kind.PRECONDITION,
                    f"{name}: hard limit {hard} is above the caller's {ceiling} and CAP_SYS_RESOURCE is missing",
                    hint=f"ask for {ceiling} or less",
                )
            soft, hard = min(soft, ceiling), ceiling
        b.child("RLIMIT", s0=name, n0=RLIMITS.index(name), n1=soft, n2=hard)


def _ceiling(facts: HostFacts, name: str) -> int:
    hard = facts.rlimits.get(name, (-1, -1))[1]
    return RLIM_INFINITY if hard < 0 else hard


def needs_labels(process: Json) -> bool:
    """The process wants an AppArmor profile or an SELinux label."""
    return _apparmor(process) != "" or bool(process.get("selinuxLabel"))


def _apparmor(process: Json) -> str:
    profile: str = process.get("apparmorProfile") or ""
    return "" if profile == "unconfined" else profile


def labels(process: Json, facts: HostFacts, procfs: int, b: Builder) -> None:
    """The label that takes effect at exec, written through our own procfs (CVE-2019-16884)."""
    profile, label = _apparmor(process), process.get("selinuxLabel") or ""
    if profile and not facts.apparmor:
        raise WherryError(
            Kind.PRECONDITION,
            f'AppArmor profile "{profile}" is asked for and AppArmor is not enabled on this host',
            hint="leave out process.apparmorProfile, or boot with apparmor=1",
        )
    if label and not facts.selinux:
        raise WherryError(
            Kind.PRECONDITION,
            f'SELinux label "{label}" is asked for and SELinux is not enabled on this host',
            hint="leave out process.selinuxLabel",
        )
    if profile:
        b.child("LSM_EXEC", fd0=procfs, s0="attr/apparmor/exec", s1=f"exec {profile}")
    if label:
        b.child("LSM_EXEC", fd0=procfs, s0="attr/exec", s1=label)


def seccomp(how: LaunchHow, config: Json, b: Builder) -> None:
    """The filter; with a listener its descriptor goes to the agent with the state as payload."""
    if not how.seccomp:
        return
    listener = bool(listener_path(config))
    b.child(
        "SECCOMP", s0=how.seccomp, n0=len(how.seccomp) // 8, n1=how.seccomp_flags | (NEW_LISTENER if listener else 0)
    )
    if listener:
        slot = b.slot()
        b.host("RECV_FD", fd0=slot)
        b.host("SEND_FD", fd0=slot, fd1=b.inherited_slot("seccomp_listener"), s0=how.listener_payload or "{}")


def confine(
    process: Json, config: Json, how: LaunchHow, facts: HostFacts, b: Builder, *, deny_groups: bool = False
) -> None:
    """From root with all capabilities to what the process may be. Everything after this runs with its rights."""
    caps = _capabilities(process, facts)
    user = process.get("user", {})
    early = not process.get("noNewPrivileges") or bool(listener_path(config))
    if process.get("noNewPrivileges"):
        b.child("NO_NEW_PRIVS")
    b.child("BOUNDING", s0=_cap_text(caps["bounding"]), n0=caps["bounding"])
    if early:
        seccomp(how, config, b)
    gids = tuple(user.get("additionalGids") or ())
    b.child(
        "GROUPS",
        *(("MAY_FAIL",) if deny_groups else ()),
        s0=struct.pack(f"={len(gids)}I", *gids),
        n0=len(gids),
        s1=" ".join(map(str, gids)) or "none",
    )
    b.child("GID", n0=user.get("gid", 0))
    b.child("UID", n0=user.get("uid", 0))
    b.child("CAPS", s0=_cap_text(caps["permitted"]), n0=caps["effective"], n1=caps["permitted"], n2=caps["inheritable"])
    b.child("AMBIENT", s0=_cap_text(caps["ambient"]), n0=caps["ambient"])


def late_seccomp(process: Json, config: Json, how: LaunchHow, b: Builder) -> None:
    """The filter as the last step before exec, where confine left it out."""
    if process.get("noNewPrivileges") and not listener_path(config):
        seccomp(how, config, b)


def _capabilities(process: Json, facts: HostFacts) -> dict[str, int]:
    """The five sets as masks. Names that this kernel lacks are left out; ambient needs permitted and inheritable."""
    known = (1 << (facts.cap_last + 1)) - 1
    given = process.get("capabilities") or {}
    sets = {
        name: cap_mask(CAPABILITY_SET.intersection(given.get(name) or ())) & known & facts.cap_bounding
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    sets["effective"] &= sets["permitted"]  # capset(2) refuses more
    sets["ambient"] &= sets["permitted"] & sets["inheritable"]  # capabilities(7)
    return sets


def lost_capabilities(process: Json, facts: HostFacts) -> list[str]:
    """Names asked for that cannot be granted here, for a warning (runtime-spec, capabilities)."""
    given = process.get("capabilities") or {}
    granted = set(cap_names(facts.cap_bounding & (1 << (facts.cap_last + 1)) - 1))
    return sorted({name for names in given.values() for name in names or ()} - granted)


def _cap_text(mask: int) -> str:
    return " ".join(name.removeprefix("CAP_").lower() for name in cap_names(mask)) or "none"


#: linux/personality.h, names of the runtime-spec
_PERSONALITIES: Final[dict[str, int]] = {"LINUX": 0x0000, "LINUX32": 0x0008}


def personality(config: Json, b: Builder) -> None:
    """linux.personality, for 32-bit userlands."""
    wanted = config.get("linux", {}).get("personality")
    if wanted:
        b.child("PERSONALITY", n0=_PERSONALITIES[wanted["domain"]])


def umask(process: Json, b: Builder) -> None:
    """022 where the process names none, as runc and docker: the caller's own is an accident."""
    wanted = process.get("user", {}).get("umask")
    b.child("UMASK", n0=0o022 if wanted is None else wanted)


def guard(how: LaunchHow, b: Builder) -> None:
    """A container must not outlive its monitor (docs/decisions/0002). Cleared by each change of ids: hence set
    twice."""
    if how.monitor is not None:
        b.child("PDEATHSIG", n0=_SIGKILL)


def environment(process: Json) -> tuple[str, ...]:
    """process.env with each variable once: the last word counts, as in runc (getenv(3) would take the first)."""
    return tuple({entry.partition("=")[0]: entry for entry in process.get("env") or ()}.values())


def execute(process: Json, config: Json, how: LaunchHow, b: Builder) -> None:
    """The last operations of the child. The filter comes last: it need allow no call of ours but execve."""
    for number in range(3, 3 + how.preserve_fds):
        b.child("STDIO", fd0=b.inherited_slot(f"fd{number}"), n0=number)
    b.child("CLOSE_FROM", n0=3 + how.preserve_fds)
    late_seccomp(process, config, how, b)
    args, env = tuple(process["args"]), environment(process)
    b.child("EXEC", *(("INIT",) if how.init else ()), s0=args[0], s1=args, n0=len(args), s2=env, n1=len(env))
