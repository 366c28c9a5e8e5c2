"""`doctor`: what the host lacks, and the command that mends it. Decides what is a failure and what only a warning."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from wherry.errors import WherryError
from wherry.oci.facts import HostFacts

from .house import House
from .values import Check

__all__ = ["checks"]

_PURE_V2 = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel command line"
_CAPS = {
    "CAP_SYS_ADMIN": "no container can be made without it",
    "CAP_NET_ADMIN": "only --network none and host work without it",
    "CAP_SYS_RESOURCE": "default rlimits and oom_score_adj are clamped without it",
    "CAP_MKNOD": "images with device nodes cannot be unpacked whole without it",
}


def _kernel(house: House, facts: HostFacts) -> list[Check]:
    del house
    release = os.uname().release
    if facts.kernel >= (5, 15):
        return [Check("kernel", "ok", f"Linux {release}")]
    return [Check("kernel", "fail", f"Linux {release} is older than 5.15", "install a kernel of 5.15 or newer")]


def _cgroup(house: House, facts: HostFacts) -> list[Check]:
    del house
    if not facts.cgroup_mount:
        cure = "mount -t cgroup2 none /sys/fs/cgroup"
        return [Check("cgroup v2", "fail", "no cgroup2 hierarchy is mounted", cure)]
    found = [Check("cgroup v2", "ok", f"mounted on {facts.cgroup_mount}")]
    for name in ("memory", "cpu", "pids", "cpuset", "io"):
        if name in facts.cgroup_available:
            found.append(Check(f"controller {name}", "ok", "available"))
        else:
            holder = facts.cgroup_holders.get(name) or facts.cgroup_v1.get(name) or "not offered by this kernel"
            found.append(Check(f"controller {name}", "warn", f"limits on it cannot be set: {holder}", _PURE_V2))
    return found


def _capabilities(house: House, facts: HostFacts) -> list[Check]:
    del house
    found = []
    for name, why in _CAPS.items():
        if facts.has_cap(name):
            found.append(Check(name, "ok", "held"))
        else:
            status = "fail" if name == "CAP_SYS_ADMIN" else "warn"
            found.append(Check(name, status, why, "run as root, with the full bounding set"))
    return found


def _kernel_parts(house: House, facts: HostFacts) -> list[Check]:
    del house
    wanted = (
        ("overlay", facts.overlay, "fail", "modprobe overlay"),
        ("seccomp", facts.seccomp, "warn", "a kernel with CONFIG_SECCOMP_FILTER"),
        ("user namespaces", facts.user_namespaces, "warn", "sysctl -w user.max_user_namespaces=65536"),
        ("idmapped mounts", facts.idmap, "warn", "a kernel of 5.12 or newer"),
    )
    return [
        Check(name, "ok" if there else status, "available" if there else "missing", "" if there else cure)
        for name, there, status, cure in wanted
    ]


def _programs(house: House, facts: HostFacts) -> list[Check]:
    del house
    wanted = [("nft", "nftables", "ports and masquerade need it"), ("ps", "procps", "`top` needs it")]
    if facts.apparmor:
        wanted.append(("apparmor_parser", "apparmor", "the default AppArmor profile needs it"))
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = []
    for name, package, why in wanted:
        where = shutil.which(name, path=path)
        cure = "" if where else f"apt-get install {package}"
        found.append(Check(name, "ok" if where else "warn", where or f"not installed: {why}", cure))
    return found


def _lsm(house: House, facts: HostFacts) -> list[Check]:
    del house
    if facts.apparmor or facts.selinux:
        return [Check("LSM", "ok", "AppArmor" if facts.apparmor else "SELinux")]
    return [Check("LSM", "warn", "neither AppArmor nor SELinux confines containers here", "boot with apparmor=1")]


def _helper(house: House, facts: HostFacts) -> list[Check]:
    del house, facts
    from wherry.kernel import shim

    try:
        os.close(shim.helper_memfd())
    except (WherryError, OSError) as error:
        cure = "pip install --force-reinstall wherry"
        return [Check("helper", "fail", f"the static helper cannot be started: {error}", cure)]
    return [Check("helper", "ok", "built and sealed")]


def _forwarding(house: House, facts: HostFacts) -> list[Check]:
    del house, facts
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        if file.read().strip() == "1":
            return [Check("ip_forward", "ok", "on")]
    cure = "sysctl -w net.ipv4.ip_forward=1"
    return [Check("ip_forward", "warn", "off: it is switched on with the first bridge", cure)]


def _place(house: House, facts: HostFacts) -> list[Check]:
    del facts
    try:
        house.prepare()
        room = os.statvfs(house.place.root)
    except OSError as error:
        cure = "choose another place with --root and --state"
        return [Check("root", "fail", f"{house.place.root}: {error.strerror}", cure)]
    free = room.f_bavail * room.f_frsize
    status = "ok" if free > 1 << 30 else "warn"
    cure = "" if status == "ok" else "wherry system prune"
    return [Check("root", status, f"{house.place.root}: {free >> 20} MiB free", cure)]


def _names(house: House, facts: HostFacts) -> list[Check]:
    """Whether containers can ask DNS."""
    del facts
    from wherry.net import kept, roster

    state = house.place.state
    served = [one.network for one in roster.load_all(state) if one.gateways]
    found = [_keeper(network, kept.port(state, network)) for network in served]
    for chain in kept.shut():
        cure = f"nft insert rule {chain} iifname BRIDGE meta l4proto {{ tcp, udp }} th dport 53 accept"
        found.append(Check("firewall", "warn", f"chain {chain} drops by default: containers may get no DNS", cure))
    return found


def _keeper(network: str, port: int) -> Check:
    what = f"names on {network}"
    if port == 0:
        return Check(what, "warn", "nobody answers DNS", "wherry gc")
    if port != 53:
        return Check(what, "ok", f"answered at port {port}, where nft leads questions: another program has port 53")
    return Check(what, "ok", "answered")


def _layers(house: House, facts: HostFacts) -> list[Check]:
    del facts
    name, why = house.images.layer_format()
    return [Check("layers", "ok", f"{name}: {why}" if why else name)]


def _volumes(house: House, facts: HostFacts) -> list[Check]:
    """Drivers that volumes need, and what is left with them."""
    del facts
    if not os.path.exists(f"{house.place.root}/wherry.db"):
        return []
    from . import served

    found = [_driver(name, why) for name, why in served.silent(house)]
    left = served.orphans(house)
    return found + ([Check("volumes", "warn", f"left over: {', '.join(left)}", "wherry gc")] if left else [])


def _driver(name: str, why: str) -> Check:
    found = ("warn", why, "start it") if why else ("ok", "answers")
    return Check(f"volume driver {name}", *found)


_CHECKS: tuple[Callable[[House, HostFacts], list[Check]], ...] = (
    _kernel, _capabilities, _cgroup, _kernel_parts, _lsm, _helper, _programs, _forwarding, _place, _layers,
    _names, _volumes,
)  # fmt: skip


def checks(house: House) -> list[Check]:
    """The verb. A check that fails to look is itself a finding."""
    found: list[Check] = []
    for check in _CHECKS:
        try:
            found += check(house, house.facts)
        except (WherryError, OSError) as error:
            found.append(Check(check.__name__.strip("_"), "warn", f"could not be checked: {error}"))
    return found
