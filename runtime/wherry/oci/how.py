"""How a plan is to be carried out: what the bundle's config does not say. Plain values made by the engine or the OCI
face.

Slots that the launcher fills are named; which of them a plan wants is in `Plan.inherited`:
stdin stdout stderr (the process's ends), stdin_w stdout_r stderr_r (the monitor's ends), attach (listening socket),
client (connected socket), fifo (start fifo), pidfd (target of an exec), console_socket, seccomp_listener, and those
named by `LaunchHow.namespace_slots`.
"""


from collections.abc import Mapping
from typing import NamedTuple

from wherry.model import Json, Mount

__all__ = ["LaunchHow", "MonitorHow", "Target", "Timer"]


class Timer(NamedTuple):
    """A command that the monitor starts every `interval_ms`, first after `first_ms`: health checks."""

    interval_ms: int
    first_ms: int
    argv: tuple[str, ...]


class MonitorHow(NamedTuple):
    """What the monitor role does around the container. Empty fields leave the declaration out."""

    log_driver: str = "none"  # none, cri, json, journald
    log_path: str = ""
    log_bytes: int = 0  # a file; 0: unbounded
    log_files: int = 1
    log_fields: tuple[str, ...] = ()  # journald: FIELD=value
    attach: bool = False  # slot "attach"
    client: bool = False  # slot "client"
    exit_dir: str = ""  # exit.json is written there
    cleanup: tuple[str, ...] = ()
    cleanup_env: tuple[str, ...] = ()
    timers: tuple[Timer, ...] = ()
    oom: bool = True  # read memory.events at the exit (needs a cgroup)
    stdin_once: bool = False  # the first client that sends input is the only one: its end is the end of the input
    kill: bool = False  # cgroup.kill once init is gone: for containers that share the host's pid namespace
    tied: bool = False  # init is killed when the client hangs up
    cgroup: str = ""  # leaf cgroup that the monitor itself enters before the clone


class LaunchHow(NamedTuple):
    """Everything of one start that is not in config.json."""

    id: str = ""
    rootfs: tuple[Mount, ...] = ()  # from a snapshotter (overlay or bind); empty: root.path is bound
    #   with the option "idmap" the layers are shown with the container's id maps; upper must be its root's
    root_dir: str = ""  # existing host directory that the root is attached on; "": bundle/rootfs or root.path
    cgroup: str = ""  # absolute path of the container's cgroup; "": stay in the caller's
    cgroup_exists: bool = False  # it may exist already (exec, shared pods)
    cgroup_writes: tuple[tuple[str, str], ...] = ()
    device_bpf: bytes = b""
    seccomp: bytes = b""  # compiled sock_filter array
    seccomp_flags: int = 0  # SECCOMP_FILTER_FLAG_*
    listener_payload: str = ""  # container process state sent with the seccomp listener
    wait_start: bool = False  # slot "fifo"
    stdio: tuple[str, ...] = ()  # of "stdin", "stdout", "stderr": the ends given by slot. Not given: /dev/null for the
    #   monitor role, the caller's own descriptor for the launch role. The monitor gets the other ends by name
    null_streams: tuple[str, ...] = ()  # launch role: of stdin, stdout, stderr, those that get the root's own /dev/null
    console_socket: bool = False  # launch role with a terminal: the master goes to slot "console_socket"
    preserve_fds: int = 0  # descriptors 3..3+n-1 stay open (runc's --preserve-fds)
    pidfile: str = ""
    no_pivot: bool = False
    init: bool = False  # --init: the helper stays as pid 1, reaps, and passes signals on
    no_new_keyring: bool = False
    namespace_slots: Mapping[str, str] = {}  # namespace type -> slot name, instead of its path
    mount_slots: Mapping[str, str] = {}  # mounts[].destination -> slot name: a detached mount instead of its source
    asked: tuple[str, ...] = ()  # rlimits and "oom_score_adj" that must not be clamped: asked for by name
    monitor: MonitorHow | None = None  # None: role launch


class Target(NamedTuple):
    """A running container, for compile_exec. The caller opens and checks the pidfd (slot "pidfd")."""

    namespaces: tuple[str, ...]  # runtime-spec types in which the container differs from the host
    config: Json  # its config.json: what a process leaves out is taken from there
    id: str = ""
