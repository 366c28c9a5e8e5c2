"""Who a container of a pod is and what it may: its security context, read as the CRI wants it.

Decides users and groups (merge, strict), capabilities, and which seccomp, AppArmor and SELinux confinement that means.
Refuses to know how it is applied. No value of an image comes here but its user (invariant 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from wherry.engine import confine
from wherry.engine.house import House
from wherry.engine.security import Security
from wherry.engine.users import User
from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import defaults
from wherry.oci.facts import CAPABILITIES, HostFacts

from .values import PodSecurity

__all__ = ["Confinement", "capabilities", "confinement", "mount_label", "user"]

Lookup = Callable[[str], User]
_SELINUX = ("user", "role", "type", "level")


class Confinement(NamedTuple):
    """What config.json gets. `selinux`: process label, mount label."""

    seccomp: Json | None = None
    apparmor: str = ""
    selinux: tuple[str, str] = ("", "")


def user(asked: PodSecurity, image: str, lookup: Lookup) -> User:
    """The ids of the first process. `lookup` resolves "user[:group]" by the passwd and group files of the image.

    Groups, as SupplementalGroupsPolicy: the primary one and those given; merged, also those that the image's group
    file has the user in, whichever primary group was asked.
    """
    if asked.group is not None and not asked.user:
        message = f"group {asked.group} is given without a user"
        raise WherryError(Kind.INVALID, message, hint="run_as_group needs run_as_user or run_as_username")
    for number in (*asked.groups, *(() if asked.group is None else (asked.group,))):
        _check_id(number)
    text = asked.user or image or "0"
    name = text.partition(":")[0] or "0"
    known = lookup(name)
    gid = asked.group if asked.group is not None else known.gid if text == name else lookup(text).gid
    own = () if asked.groups_policy == "strict" else known.groups[1:]
    return known._replace(gid=gid, groups=tuple(dict.fromkeys((gid, *own, *asked.groups))))


def _check_id(number: int) -> None:
    if not 0 <= number < 1 << 31:
        raise WherryError(Kind.INVALID, f"group {number} is out of range: 0 to {(1 << 31) - 1}")


# ---- capabilities


def capabilities(asked: PodSecurity, facts: HostFacts, warn: Callable[[str], None]) -> Json:
    """process.capabilities: docker's 14, ALL before single names, drops last. Nothing is inheritable but what is to be
    ambient. What this host or this kernel lacks is left out and told, as the callers of the CRI expect."""
    have = {name for bit, name in enumerate(CAPABILITIES) if facts.cap_bounding >> bit & 1}
    added, dropped, ambient = (_named(names) for names in (asked.cap_add, asked.cap_drop, asked.cap_ambient))
    if asked.privileged:
        wanted = set(have)
    else:
        wanted = set(have) if "ALL" in added else set(defaults.CAPABILITIES)
        wanted = set() if "ALL" in dropped else wanted
        wanted = (wanted | added - {"ALL"}) - dropped
    lacking = sorted((added | ambient) - {"ALL"} - have)
    if lacking:
        warn(f"capabilities that cannot be given here are left out: {', '.join(lacking)}")
    raised = have if "ALL" in ambient else ambient & have
    names = [name for name in CAPABILITIES if name in (wanted | raised) & have]
    kept = [name for name in names if name in raised]
    return {"bounding": names, "effective": names, "permitted": names, "inheritable": kept, "ambient": kept}


def _named(texts: Iterable[str]) -> set[str]:
    names = (text.upper() for text in texts)
    return {name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in names}


# ---- seccomp, AppArmor, SELinux


def confinement(house: House, pod: str, asked: PodSecurity, caps: Iterable[str]) -> Confinement:
    """What applies. The containers of one pod share their SELinux level, and so their volumes."""
    chosen = Security(
        privileged=asked.privileged,
        seccomp=_seccomp(asked),
        apparmor="unconfined" if asked.privileged and not asked.apparmor else asked.apparmor,
        label=_label(asked.selinux),
    )
    return Confinement(
        confine.seccomp(chosen, caps, house.facts),
        confine.apparmor(chosen, house),
        confine.selinux(chosen, pod, house.facts),
    )


def mount_label(pod: str, asked: Iterable[str], facts: HostFacts) -> str:
    """Of what the containers of a pod share, also where the pod is privileged: those that are not must reach it.
    `asked`: user, role, type and level of the pod's process, "" what it has anyway. "" without SELinux."""
    return confine.selinux(Security(label=_label(asked)), pod, facts)[1]


def _label(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{key}:{value}" for key, value in zip(_SELINUX, parts, strict=True) if value)


def _seccomp(asked: PodSecurity) -> str:
    if asked.privileged or asked.seccomp in ("unconfined", ""):
        return "unconfined"
    if asked.seccomp == "default":
        return ""
    if not asked.seccomp.startswith("/"):
        raise WherryError(Kind.INVALID, f'seccomp profile "{asked.seccomp[:300]}" is no absolute path')
    return asked.seccomp
