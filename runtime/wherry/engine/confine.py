"""The confinement that needs the host: seccomp profiles from files and their compiled form, AppArmor, SELinux.

Decides which profile and label a container gets. The rules themselves are oci/seccomp's; the compiling is the kernel's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .security import Security

if TYPE_CHECKING:
    from wherry.oci.facts import HostFacts

    from .house import House

__all__ = ["apparmor", "compiled", "relabel", "seccomp", "selinux"]

_MAX_PROFILE = 4 << 20
APPARMOR_DEFAULT = "wherry-default"


def seccomp(chosen: Security, caps: Iterable[str], facts: HostFacts) -> Json | None:
    """linux.seccomp of the container, None for unconfined."""
    from wherry.oci import seccomp as rules

    if chosen.seccomp == "unconfined" or not facts.seccomp:
        return None
    profile: str | Json = _file(chosen.seccomp) if chosen.seccomp else chosen.profile
    return rules.resolve(profile, caps, facts.machine, facts.kernel)


def _file(path: str) -> Json:
    """A profile's file, or its text: clients of the API read files on their own side."""
    if path.startswith("{"):
        return _profile("given", path.encode())
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_PROFILE + 1)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"opening seccomp profile ({path}) failed: {error.strerror}") from error
    return _profile(path, text)


def _profile(path: str, text: bytes) -> Json:
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WherryError(Kind.INVALID, f"decoding seccomp profile {path} failed: {error}") from error
    if not isinstance(profile, dict):
        raise WherryError(Kind.INVALID, f"decoding seccomp profile {path} failed: it is no object")
    return profile


def compiled(house: House, config: Json) -> bytes:
    """The filter of a config.json, from the cache or through libseccomp; b"" without one."""
    rules = config["linux"].get("seccomp")
    if not rules:
        return b""
    from wherry.kernel import seccomp as kernel

    return kernel.compiled(rules, f"{house.place.root}/cache/seccomp")


def apparmor(chosen: Security, house: House) -> str:
    """The profile's name, "" for none. The default one is loaded when it is first needed."""
    if not house.facts.apparmor:
        if chosen.apparmor not in ("", "unconfined"):
            hint = "this kernel runs without AppArmor"
            raise WherryError(Kind.PRECONDITION, f"AppArmor profile {chosen.apparmor} cannot be applied", hint=hint)
        return ""
    if chosen.apparmor:
        return chosen.apparmor
    from . import apparmor as profiles

    return profiles.ensure(APPARMOR_DEFAULT, house)


def selinux(chosen: Security, cid: str, facts: HostFacts) -> tuple[str, str]:
    """The process label and the mount label; empty where there is no SELinux or it is disabled for the container."""
    if not facts.selinux or "disable" in chosen.label or chosen.privileged:
        return "", ""
    parts = {"user": "system_u", "role": "system_r", "type": "container_t", "level": level(cid)}
    for text in chosen.label:
        key, found, value = text.partition(":")
        if not found or key not in (*parts, "filetype"):
            hint = "user:, role:, type:, level:, filetype: or disable"
            raise WherryError(Kind.INVALID, f'invalid --security-opt label="{text}"', hint=hint)
        parts[key] = value
    file_type = parts.get("filetype", "container_file_t")
    process = f"{parts['user']}:{parts['role']}:{parts['type']}:{parts['level']}"
    return process, f"{parts['user']}:object_r:{file_type}:{parts['level']}"


def level(cid: str) -> str:
    """Two categories of a container's own, from its id."""
    one, two = int(cid[:4], 16) % 1024, int(cid[4:8], 16) % 1024
    two = (two + 1) % 1024 if one == two else two
    return f"s0:c{min(one, two)},c{max(one, two)}"


def relabel(path: str, cid: str, *, shared: bool) -> None:
    """:z and :Z: label a bind's source, and all below it on its file system, for all containers or for this one."""
    label = f"system_u:object_r:container_file_t:{'s0' if shared else level(cid)}".encode() + b"\0"
    top = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _relabel(top, os.fstat(top).st_dev, label)
    finally:
        os.close(top)


def _relabel(fd: int, device: int, label: bytes) -> None:
    if os.fstat(fd).st_dev != device:
        return
    here = f"/proc/self/fd/{fd}"
    os.setxattr(here, "security.selinux", label)
    try:
        readable = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        return
    try:
        for name in os.listdir(readable):
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=readable)
            try:
                _relabel(inner, device, label)
            finally:
                os.close(inner)
    finally:
        os.close(readable)
