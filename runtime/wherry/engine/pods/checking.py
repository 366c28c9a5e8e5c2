"""What of a pod can be refused before anything is made. Pure: decides by the request and the settings alone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .values import IdMap, PodOptions

__all__ = ["check", "check_unified"]

_CHOICES = {"network": ("pod", "host"), "pid": ("pod", "container", "host"), "ipc": ("pod", "host")}
_PROTOCOLS = ("tcp", "udp", "sctp")
_NAME_MAX = 253  # RFC 1123, as Kubernetes takes its names
_HOSTNAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?"  # 64 bytes: uname(2), __NEW_UTS_LEN
_ID_MAX = 1 << 32


def check(options: PodOptions) -> None:
    """INVALID with what is wrong."""
    for field in ("name", "namespace", "uid"):
        _check_name(field, getattr(options, field))
    for field, known in _CHOICES.items():
        if getattr(options, field) not in known:
            raise _bad(f"{field} namespace {_shown(getattr(options, field))} is not one of {', '.join(known)}")
    if options.hostname and not re.fullmatch(_HOSTNAME, options.hostname):
        raise _bad(f"hostname {_shown(options.hostname)} is no host name of at most 64 letters, digits, - and .")
    _check_path("log directory", options.log_directory)
    if not options.cgroup_parent.isprintable():
        raise _bad(f"cgroup parent {_shown(options.cgroup_parent)} has characters that no path of a cgroup has")
    check_unified(options.resources)
    check_unified(options.overhead)
    _check_ports(options)
    _check_sysctls(options)
    if options.uids or options.gids:
        for field in ("uids", "gids"):
            _check_map(field, getattr(options, field))


def _bad(message: str, hint: str = "") -> WherryError:
    return WherryError(Kind.INVALID, f"the pod cannot be: {message}", hint=hint)


def _shown(text: str) -> str:
    return f'"{text.encode("unicode_escape").decode()[:80]}"'


def _check_name(field: str, text: str) -> None:
    if not text:
        raise _bad(f"it has no {field}")
    if len(text) > _NAME_MAX or not text.isprintable() or any(char in text for char in "/;= "):
        raise _bad(f"{field} {_shown(text)} is not of at most {_NAME_MAX} characters without blanks and / ; =")


def _check_path(what: str, path: str) -> None:
    if path and (not path.startswith("/") or "\0" in path or ".." in path.split("/")):
        raise _bad(f"{what} {_shown(path)} is not an absolute path without ..")


def _check_ports(options: PodOptions) -> None:
    for port in options.ports:
        if port.protocol not in _PROTOCOLS:
            raise _bad(f"port protocol {_shown(port.protocol)} is not one of {', '.join(_PROTOCOLS)}")
        if not (0 < port.container_port < 1 << 16 and 0 <= port.host_port < 1 << 16):
            raise _bad(f"port {port.container_port} on {port.host_port} is out of range")


def _check_sysctls(options: PodOptions) -> None:
    if not options.sysctls:
        return
    from wherry.oci.spec import sysctl_owner

    private = {kind for kind, mode in (("network", options.network), ("ipc", options.ipc)) if mode == "pod"}
    for key, value in options.sysctls.items():
        owner = sysctl_owner(key)
        if owner not in ("network", "ipc"):
            raise _bad(f"sysctl {_shown(key)} is not of a pod's namespaces: it would change the host")
        if owner not in private:
            raise _bad(f"sysctl {_shown(key)} is not allowed in the host's {owner} namespace")
        if "\0" in value or "\n" in value or len(value) > 4096:
            raise _bad(f"sysctl {_shown(key)} has no value of one line")


def check_unified(resources: Json) -> None:
    """Files of controllers alone: what is the core's own (cgroup.kill, cgroup.procs) is no limit."""
    for file in resources.get("unified") or {}:
        if "/" in file or file.startswith(("cgroup.", ".")) or "." not in file:
            raise WherryError(Kind.INVALID, f"unified: {_shown(file)} is no file of a controller")


def _check_map(field: str, lines: Sequence[IdMap]) -> None:
    """What user_namespaces(7) asks for, and an id 0, whose the pod's files and mounts are."""
    for one in lines:
        if one.size < 1 or min(one.inside, one.host) < 0 or max(one.inside, one.host) + one.size > _ID_MAX:
            raise _bad(f"{field} {one.inside}:{one.host}:{one.size} is no range of ids")
    for side in ("inside", "host"):
        starts = sorted((getattr(one, side), one.size) for one in lines)
        if any(first + size > second for (first, size), (second, _) in itertools.pairwise(starts)):
            raise _bad(f"{field} overlap")
    if not any(one.inside == 0 for one in lines):
        raise _bad(f"{field} map no id 0", "a user namespace takes maps of uids and of gids, both with a 0")
