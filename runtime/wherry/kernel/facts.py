"""Measures HostFacts. What holds for a whole boot is cached below STATE under the boot's id; what belongs to this
process
(capabilities, limits, cgroup) and what a mount can change is read anew, from /proc alone.

Decides nothing from the facts; asks no question that it could answer by being root.
"""

from __future__ import annotations

import itertools
import json
import os

from wherry.model import Json, Place
from wherry.oci.facts import HostFacts

__all__ = ["cgroup_facts", "measure", "read", "v2_mount"]

#: v1's name of a controller where v2 has another
_V1_NAMES = {"blkio": "io"}
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma")
#: column of /proc/self/limits -> constant
_LIMITS = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}
_CHUNK = 1 << 14
_CACHE = "facts.json"
_CACHE_VERSION = 1


def measure(place: Place | None = None) -> HostFacts:
    """The facts of this host, as this process sees them."""
    place = place or Place()
    boot = read("/proc/sys/kernel/random/boot_id").strip()
    lasting = _cached(place, boot) or _lasting(place, boot)
    mountinfo = read("/proc/self/mountinfo")
    return HostFacts(
        **_tuples(lasting),
        **_own(),
        **cgroup_facts(mountinfo, read("/proc/self/cgroup")),
        resctrl=next((point for _, point, kind, _ in mounts(mountinfo, "resctrl")), ""),
    )


def read(path: str, default: str = "") -> str:
    """A small kernel file as text; `default` where it is not there or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return default
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b"")).decode("utf-8", "surrogateescape")
    except OSError:
        return default
    finally:
        os.close(fd)


# ---- of the boot


def _cached(place: Place, boot: str) -> Json | None:
    try:
        found = json.loads(read(os.path.join(place.state, _CACHE)) or "null")
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("version") != _CACHE_VERSION or not boot:
        return None
    facts = found.get("facts")
    return facts if isinstance(facts, dict) and facts.get("boot_id") == boot and set(facts) == _LASTING else None


def _lasting(place: Place, boot: str) -> Json:
    facts = _measure_boot(boot)
    _store(place, facts)
    return facts


def _store(place: Place, facts: Json) -> None:
    """Atomic, best effort: without a STATE to write to, the next command measures again."""
    path = os.path.join(place.state, _CACHE)
    temporary = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"version": _CACHE_VERSION, "facts": facts}, file)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)


def _measure_boot(boot: str) -> Json:
    name = os.uname()
    kernel = _version(name.release)
    filesystems = read("/proc/filesystems").split()
    return {
        "boot_id": boot,
        "kernel": kernel,
        "machine": name.machine,
        "cap_last": int(read("/proc/sys/kernel/cap_last_cap", "40")),
        "lsms": [word for word in read("/sys/kernel/security/lsm").strip().split(",") if word],
        "apparmor": read("/sys/module/apparmor/parameters/enabled").startswith("Y"),
        "selinux": os.path.exists("/sys/fs/selinux/enforce"),
        "seccomp": os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        "seccomp_actions": read("/proc/sys/kernel/seccomp/actions_avail").split(),
        "overlay": "overlay" in filesystems or _module("overlay", name.release),
        "overlay_lowerdir_add": kernel >= (6, 5),
        "overlay_userxattr": kernel >= (5, 11),
        "idmap": kernel >= (5, 12),
        "user_namespaces": os.path.exists("/proc/self/ns/user"),
        "time_namespaces": os.path.exists("/proc/self/ns/time"),
        "newuidmap": _program("newuidmap"),
        "newgidmap": _program("newgidmap"),
        "hugepages": _hugepages(),
        "thermal_cpus": _thermal_cpus(),
    }


_LASTING = frozenset(
    {
        "boot_id",
        "kernel",
        "machine",
        "cap_last",
        "lsms",
        "apparmor",
        "selinux",
        "seccomp",
        "seccomp_actions",
        "overlay",
        "overlay_lowerdir_add",
        "overlay_userxattr",
        "idmap",
        "user_namespaces",
        "time_namespaces",
        "newuidmap",
        "newgidmap",
        "hugepages",
        "thermal_cpus",
    }
)


def _tuples(facts: Json) -> Json:
    """JSON's lists as the tuples that HostFacts has."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def _version(release: str) -> tuple[int, int]:
    """ "6.18.44-x" to (6, 18)."""
    major, _, rest = release.partition(".")
    minor = "".join(itertools.takewhile(str.isdigit, rest))
    return int(major), int(minor or 0)


def _module(name: str, release: str) -> bool:
    """The filesystem is a module that mounting would load."""
    return f"/{name}.ko" in read(f"/lib/modules/{release}/modules.dep")


def _program(name: str) -> str:
    for directory in ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"):
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return ""


def _hugepages() -> list[str]:
    """Sizes as the cgroup's file names have them ("2MB", "1GB")."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return []
    kib = sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) for name in names)
    return [_size(value) for value in kib]


def _thermal_cpus() -> int:
    """One more than the highest possible CPU, where CPUs have thermal counters."""
    if not os.path.isdir("/sys/devices/system/cpu/cpu0/thermal_throttle"):
        return 0
    last = read("/sys/devices/system/cpu/possible", "0").strip().rpartition(",")[2].rpartition("-")[2]
    return min(int(last) + 1, 1024) if last.isdigit() else 0


def _size(kib: int) -> str:
    for unit, factor in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"


# ---- of this process

_OWN = ("status", "limits", "oom_score_adj", "uid_map", "gid_map")


def _own() -> Json:
    from wherry.kernel import shim

    found = shim.read_many("/proc/self", _OWN)
    status_text, limits, score, uid_map, gid_map = ((data or b"").decode("utf-8", "surrogateescape") for data in found)
    status = dict(line.partition(":")[::2] for line in status_text.splitlines())
    caps = {
        field: int(status.get(key, "0").strip() or "0", 16)
        for field, key in (
            ("cap_effective", "CapEff"),
            ("cap_permitted", "CapPrm"),
            ("cap_inheritable", "CapInh"),
            ("cap_bounding", "CapBnd"),
            ("cap_ambient", "CapAmb"),
        )
    }
    return {
        **caps,
        "euid": os.geteuid(),
        "egid": os.getegid(),
        "rlimits": _rlimits(limits),
        "no_new_privs": status.get("NoNewPrivs", "0").strip() == "1",
        "oom_score_adj": int(score or "0"),
        "uid_map": _id_map(uid_map),
        "gid_map": _id_map(gid_map),
    }


def _rlimits(text: str) -> dict[str, tuple[int, int]]:
    result = {}
    for line in text.splitlines():
        name = _LIMITS.get(line[:26].strip())
        if name:
            soft, hard = (-1 if word == "unlimited" else int(word) for word in line[26:].split()[:2])
            result[name] = (soft, hard)
    return result


def _id_map(text: str) -> tuple[tuple[int, int, int], ...]:
    rows = (tuple(map(int, line.split())) for line in text.splitlines())
    return tuple((row[0], row[1], row[2]) for row in rows if len(row) == 3)


# ---- cgroups


def mounts(mountinfo: str, kind: str) -> list[tuple[str, str, str, str]]:
    """(root, mount point, filesystem type, superblock options) of the lines of one type (proc_pid_mountinfo(5))."""
    result = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith(f"{kind} "):
            fields, tail = left.split(), right.split()
            result.append((_unquote(fields[3]), _unquote(fields[4]), tail[0], tail[-1]))
    return result


def _unquote(field: str) -> str:
    """Space, tab, newline and backslash are octal in mountinfo."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def v2_mount(mountinfo: str) -> tuple[str, str]:
    """(mount point, root within the hierarchy) of the cgroup2 mount to use; ("", "/") without one. The usual places
    first."""
    found = {point: root for root, point, _, _ in mounts(mountinfo, "cgroup2")}
    for point in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", *found):
        if point in found:
            return point, found[point]
    return "", "/"


def cgroup_facts(mountinfo: str, own: str) -> Json:
    """The cgroup part of HostFacts, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    point, root = v2_mount(mountinfo)
    held = _v1_controllers(mountinfo)
    available = tuple(read(f"{point}/cgroup.controllers").split()) if point else ()
    enabled = tuple(read(f"{point}/cgroup.subtree_control").split()) if point else ()
    by_v2_name = {_V1_NAMES.get(name, name): where for name, where in held.items()}
    return {
        "cgroup_mount": point,
        "cgroup_own": _below(root, _own_path(own)),
        "cgroup_available": available,
        "cgroup_enabled": enabled,
        "cgroup_v1": held,
        "cgroup_holders": {
            name: by_v2_name[name] for name in _CONTROLLERS if name in by_v2_name and name not in available
        },
    }


def _v1_controllers(mountinfo: str) -> dict[str, str]:
    known = {*_CONTROLLERS, "blkio", "cpuacct", "devices", "freezer", "net_cls", "net_prio", "perf_event"}
    return {
        word: point
        for _, point, _, options in mounts(mountinfo, "cgroup")
        for word in options.split(",")
        if word in known
    }


def _own_path(own: str) -> str:
    """Our path in the v2 hierarchy: the line "0::/path"."""
    return next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")


def _below(root: str, path: str) -> str:
    """`path` of the hierarchy as seen from a mount of its subtree `root`."""
    if root == "/" or not (path == root or path.startswith(root + "/")):
        return path
    return path[len(root) :] or "/"
