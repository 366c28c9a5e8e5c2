"""What docker gives a container that asks for nothing, as pieces of a runtime-spec config. Fresh values at every call.

Decides numbers and lists only; who uses which, and what a user changed of them, is the engine's.
"""

from __future__ import annotations

from typing import Final

from wherry.model import Json

__all__ = [
    "CAPABILITIES",
    "MASKED_PATHS",
    "READONLY_PATHS",
    "STRICT_CAPABILITIES",
    "capabilities",
    "device_rules",
    "masked_paths",
    "mounts",
    "namespaces",
]

#: docker's 14
CAPABILITIES: Final[tuple[str, ...]] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
#: CRI-O's 9, for the profile "strict"
STRICT_CAPABILITIES: Final[tuple[str, ...]] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
)

#: moby's list (oci/defaults.go), with what later advisories added
MASKED_PATHS: Final[tuple[str, ...]] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: Final[tuple[str, ...]] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def masked_paths(cpus: int = 0) -> list[str]:
    """The masked paths of a host with so many CPUs: per CPU the thermal counters too (a side channel:
    GHSA-6fw5-f8r9-fgfm)."""
    return [*MASKED_PATHS, *(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle" for cpu in range(cpus))]


def capabilities(names: tuple[str, ...] = CAPABILITIES) -> Json:
    """process.capabilities: nothing inheritable, nothing ambient (invariant 9, CVE-2022-24769)."""
    return {"bounding": list(names), "effective": list(names), "permitted": list(names)}


def mounts(shm_size: int = 64 << 20) -> list[Json]:
    """/proc, /dev and what lies below it, /sys, the cgroup. `shm_size` in bytes."""
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": list(quiet)},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*quiet, "ro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(quiet)},
        {
            "destination": "/dev/" + "shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", f"size={shm_size}"],
        },
    ]


def namespaces(*without: str) -> list[Json]:
    """New namespaces of docker's kinds, cgroup included, without the named ones."""
    return [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup") if kind not in without]


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> Json:
    rule: Json = {"allow": True, "type": kind, "access": access}
    return {**rule, **{key: value for key, value in (("major", major), ("minor", minor)) if value is not None}}


def device_rules() -> list[Json]:
    """linux.resources.devices: deny all; any node may be made, these may be used."""
    return [
        {"allow": False, "access": "rwm"},
        _rule("c", None, None, "m"),
        _rule("b", None, None, "m"),
        _rule("c", 1, 5, "rwm"),  # zero
        _rule("c", 1, 3, "rwm"),  # null
        _rule("c", 1, 7, "rwm"),  # full
        _rule("c", 1, 9, "rwm"),  # urandom
        _rule("c", 1, 8, "rwm"),  # random
        _rule("c", 5, 0, "rwm"),  # tty
        _rule("c", 5, 1, "rwm"),  # console
        _rule("c", 5, 2, "rwm"),  # ptmx
        _rule("c", 136, None, "rwm"),  # pts
    ]
