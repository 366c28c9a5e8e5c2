"""What the planner wants to know of the host, as data. kernel/facts.py measures it; nothing here touches a kernel."""


from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CAPABILITIES", "CAPABILITY_SET", "HostFacts", "cap_mask", "cap_names"]

_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST
NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
#: capability names by their number (linux/capability.h, up to 6.18)
CAPABILITIES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _NAMES.split())
CAPABILITY_SET = frozenset(CAPABILITIES)


def cap_mask(names: tuple[str, ...] | list[str] | frozenset[str]) -> int:
    """The bit mask of capability names ("CAP_CHOWN"); an unknown name is a KeyError-like ValueError."""
    return sum(1 << CAPABILITIES.index(name) for name in set(names))


def cap_names(mask: int) -> tuple[str, ...]:
    """The names of the set bits, lowest first; bits that have no name here are left out."""
    return tuple(name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1)


class HostFacts(NamedTuple):
    """Facts of one boot, as this process sees them. Defaults describe an ordinary pure cgroup v2 host run by root."""

    kernel: tuple[int, int] = (6, 1)
    machine: str = "x86_64"  # uname -m
    boot_id: str = ""
    euid: int = 0
    egid: int = 0

    cgroup_mount: str = "/sys/fs/cgroup"  # the cgroup2 mount; "" where none is mounted
    cgroup_own: str = "/"  # our own cgroup below that mount (/proc/self/cgroup, "0::")
    cgroup_available: tuple[str, ...] = (
        "cpuset",
        "cpu",
        "io",
        "memory",
        "hugetlb",
        "pids",
    )  # cgroup.controllers of the root
    cgroup_enabled: tuple[str, ...] = ()  # cgroup.subtree_control of the root
    cgroup_holders: Mapping[str, str] = {}  # missing controller -> who holds it, "" nobody knows
    resctrl: str = ""  # where the resctrl file system is mounted; "" nowhere
    cgroup_v1: Mapping[str, str] = {}  # v1 controller -> its mount point

    cap_effective: int = (1 << 41) - 1
    cap_permitted: int = (1 << 41) - 1
    cap_inheritable: int = 0
    cap_bounding: int = (1 << 41) - 1
    cap_ambient: int = 0
    cap_last: int = 40
    rlimits: Mapping[str, tuple[int, int]] = {}  # "RLIMIT_NOFILE" -> own (soft, hard), -1 unlimited
    oom_score_adj: int = 0  # our own
    no_new_privs: bool = False

    lsms: tuple[str, ...] = ()
    apparmor: bool = False
    selinux: bool = False
    seccomp: bool = True
    seccomp_actions: tuple[str, ...] = ()
    overlay: bool = True
    overlay_lowerdir_add: bool = False  # fsconfig "lowerdir+" (6.5)
    overlay_userxattr: bool = True  # 5.11
    idmap: bool = True  # mount_setattr with MOUNT_ATTR_IDMAP (5.12)
    user_namespaces: bool = True
    time_namespaces: bool = True
    uid_map: tuple[tuple[int, int, int], ...] = ((0, 0, 4294967295),)  # own /proc/self/uid_map
    gid_map: tuple[tuple[int, int, int], ...] = ((0, 0, 4294967295),)
    newuidmap: str = ""  # path of the set-id helper, "" where absent
    newgidmap: str = ""
    thermal_cpus: int = 0  # CPUs that may have thermal counters; 0 where the first has none
    hugepages: tuple[str, ...] = ()  # sizes as cgroup file names have them: "2MB", "1GB"

    def has_cap(self, name: str) -> bool:
        """Whether the capability is effective in this process."""
        return bool(self.cap_effective >> CAPABILITIES.index(name) & 1)

    @property
    def hybrid(self) -> bool:
        """Some controllers live in cgroup v1 hierarchies."""
        return bool(self.cgroup_v1)
