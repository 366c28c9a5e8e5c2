"""--security-opt, --cap-add, --cap-drop, --privileged and --profile, as one value. Pure.

Decides what each option means, with docker's semantics. Refuses to know what the host has; that is checked where it
is applied. No value of an image comes here (invariant 2).
"""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import RunOptions
from wherry.oci import defaults
from wherry.oci.facts import CAPABILITIES

__all__ = ["PROFILES", "Security", "capabilities", "parse"]

PROFILES = ("default", "docker", "strict")
_TRUE = {"", "true", "1"}


class Security(NamedTuple):
    """The options' meaning. `seccomp`: "" the profile's own, "unconfined", a file's path, or a profile's JSON."""

    profile: str = "default"
    privileged: bool = False
    seccomp: str = ""
    no_new_privileges: bool = False
    apparmor: str = ""  # "" the default profile where there is AppArmor, "unconfined", or a name
    label: tuple[str, ...] = ()  # SELinux: type:..., level:..., user:..., role:..., disable, nested
    open_paths: bool = False  # systempaths=unconfined: nothing masked, nothing read-only
    mask: tuple[str, ...] = ()
    unmask: tuple[str, ...] = ()


def _bool(text: str, option: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in {"false", "0"}:
        return False
    raise WherryError(Kind.INVALID, f'invalid value "{text}" of security option {option}', hint="true or false")


def _paths(text: str) -> tuple[str, ...]:
    paths = tuple(text.split(":"))
    for path in paths:
        if not path.startswith("/") and path.upper() != "ALL":
            raise WherryError(Kind.INVALID, f'"{path}" is not an absolute path')
    return paths


def _systempaths(now: Security, text: str) -> Security:
    if text != "unconfined":
        raise WherryError(Kind.INVALID, f'invalid value "{text}" of security option systempaths', hint="unconfined")
    return now._replace(open_paths=True)


def _unmask(now: Security, text: str) -> Security:
    paths = _paths(text)
    everything = any(path.upper() == "ALL" for path in paths)
    return now._replace(open_paths=now.open_paths or everything, unmask=now.unmask + paths)


def _seccomp(now: Security, text: str) -> Security:
    if text in ("unconfined", "builtin", ""):
        return now._replace(seccomp="" if text == "builtin" else text)
    return now._replace(seccomp=text if text.startswith("{") else os.path.abspath(text))


_OPTIONS: dict[str, Callable[[Security, str], Security]] = {
    "seccomp": _seccomp,
    "no-new-privileges": lambda now, text: now._replace(no_new_privileges=_bool(text, "no-new-privileges")),
    "apparmor": lambda now, text: now._replace(apparmor=text),
    "label": lambda now, text: now._replace(label=(*now.label, text)),
    "systempaths": _systempaths,
    "mask": lambda now, text: now._replace(mask=now.mask + _paths(text)),
    "unmask": _unmask,
}


def parse(options: RunOptions) -> Security:
    """Read the security part of what was asked."""
    if options.profile not in PROFILES:
        raise WherryError(Kind.INVALID, f'unknown profile "{options.profile}"', hint=f"one of {', '.join(PROFILES)}")
    strict = options.profile == "strict"
    if strict and options.privileged:
        raise WherryError(Kind.INVALID, "--privileged and --profile strict contradict each other")
    found = Security(profile=options.profile, privileged=options.privileged, no_new_privileges=strict)
    if options.privileged:
        found = found._replace(seccomp="unconfined", apparmor="unconfined", label=("disable",), open_paths=True)
    for text in options.security_opt:
        found = _one(found, text)
    return found


def _one(now: Security, text: str) -> Security:
    cut = min((at for at in (text.find("="), text.find(":")) if at >= 0), default=len(text))
    name, value = text[:cut], text[cut + 1 :]
    if name not in _OPTIONS or (cut == len(text) and name != "no-new-privileges"):
        raise WherryError(Kind.INVALID, f'invalid --security-opt "{text}"', hint=f"one of {', '.join(_OPTIONS)}")
    return _OPTIONS[name](now, value)


def _names(texts: Iterable[str]) -> list[str]:
    found = []
    for text in texts:
        name = text.upper()
        name = name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"
        if name != "ALL" and name not in CAPABILITIES:
            raise WherryError(Kind.INVALID, f'unknown capability "{text}"')
        found.append(name)
    return found


def capabilities(options: RunOptions, available: int) -> tuple[str, ...]:
    """The container's capabilities by docker's rules, of those in the mask `available`; in the kernel's order."""
    everything = {name for bit, name in enumerate(CAPABILITIES) if available >> bit & 1}
    added, dropped = _names(options.cap_add), _names(options.cap_drop)
    base = everything if options.privileged or "ALL" in added else set(_base(options))
    if "ALL" in dropped:
        base = everything if "ALL" in added else set()
    explicit = {name for name in added if name != "ALL"}
    lacking = sorted(explicit - everything)
    if lacking:
        hint = "the host's bounding set does not hold it"
        raise WherryError(Kind.PRECONDITION, f"capability {lacking[0]} cannot be given", hint=hint)
    wanted = (base - (set(dropped) - explicit)) | explicit
    return tuple(name for name in CAPABILITIES if name in wanted and name in everything)


def _base(options: RunOptions) -> tuple[str, ...]:
    return defaults.STRICT_CAPABILITIES if options.profile == "strict" else defaults.CAPABILITIES
