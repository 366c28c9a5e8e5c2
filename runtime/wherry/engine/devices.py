"""--device: host device nodes and CDI names, as OCI devices, cgroup rules and CDI edits.

Decides what a device string means. Reads the host's nodes and the CDI directories, nothing else.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["Devices", "add", "everything", "resolve"]

_CDI = r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_.-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*"
_CDI_DIRS = ("/etc/cdi", "/var/run/cdi")
_MAX_CDI = 4 << 20
_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}


class Devices:
    """What the spec gets: nodes, cgroup rules, and CDI's env, mounts and hooks. Filled step by step."""

    __slots__ = ("env", "hooks", "mounts", "nodes", "rules")

    def __init__(self) -> None:
        self.nodes: list[Json] = []
        self.rules: list[Json] = []
        self.env: list[str] = []
        self.mounts: list[Json] = []
        self.hooks: list[tuple[str, Json]] = []


NONE: Final = Devices()


def resolve(asked: Sequence[str]) -> Devices:
    """Read every --device."""
    found = Devices()
    for text in asked:
        if re.fullmatch(_CDI, text):
            _cdi(text, found)
        else:
            _plain(text, found)
    return found


def _plain(text: str, found: Devices) -> None:
    parts = text.split(":")
    if len(parts) > 3 or not parts[0].startswith("/"):
        raise WherryError(Kind.INVALID, f'invalid --device "{text}"', hint="/dev/host[:/dev/inside[:rwm]]")
    source, access = parts[0], "rwm"
    target = source
    if len(parts) == 2:
        target, access = (source, parts[1]) if _is_access(parts[1]) else (parts[1], access)
    elif len(parts) == 3:
        target, access = parts[1] or source, parts[2]
    if not target.startswith("/") or not _is_access(access):
        raise WherryError(Kind.INVALID, f'invalid --device "{text}"', hint="/dev/host[:/dev/inside[:rwm]]")
    add(source, target, access, found)


def _is_access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm")


def add(source: str, target: str, access: str, found: Devices) -> None:
    """A node of the host, or all below a directory."""
    try:
        kind = os.stat(source)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"no device {source} on the host: {error.strerror}") from error
    if not stat.S_ISDIR(kind.st_mode):
        _add_node(source, target, access, kind, found)
        return
    before = len(found.nodes)
    for base, _, names in os.walk(source):
        for name in sorted(names):
            path = f"{base}/{name}"
            inside = target + path[len(source) :]
            here = os.lstat(path)
            if stat.S_IFMT(here.st_mode) in _KINDS:
                _add_node(path, inside, access, here, found)
    if len(found.nodes) == before:
        raise WherryError(Kind.INVALID, f"no device node lies in {source}", hint="-v gives a directory of files")


def _add_node(source: str, target: str, access: str, kind: os.stat_result, found: Devices) -> None:
    letter = _KINDS.get(stat.S_IFMT(kind.st_mode))
    if letter is None:
        raise WherryError(Kind.INVALID, f"{source} is not a device node")
    node = _node(target, letter, kind)
    found.nodes.append(node)
    found.rules.append(_rule(letter, node["major"], node["minor"], access))


def _node(target: str, letter: str, kind: os.stat_result) -> Json:
    return {
        "path": target,
        "type": letter,
        "major": os.major(kind.st_rdev),
        "minor": os.minor(kind.st_rdev),
        "fileMode": stat.S_IMODE(kind.st_mode),
        "uid": kind.st_uid,
        "gid": kind.st_gid,
    }


def _rule(letter: str, major: int, minor: int, access: str) -> Json:
    return {"allow": True, "type": letter, "major": major, "minor": minor, "access": access}


def everything() -> Devices:
    """Every device node below /dev, and the rule that allows all: --privileged."""
    found = Devices()
    found.rules.append({"allow": True, "access": "rwm"})
    skip = {"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console"}  # noqa: S108  # names, not files of ours
    for base, folders, names in os.walk("/dev"):
        folders[:] = [name for name in folders if f"{base}/{name}" not in skip]
        for name in sorted(names):
            path = f"{base}/{name}"
            here = os.lstat(path)
            if path not in skip and (letter := _KINDS.get(stat.S_IFMT(here.st_mode))):
                found.nodes.append(_node(path, letter, here))
    return found


# ---- CDI (container device interface, spec 0.8) ----


def _cdi(text: str, found: Devices) -> None:
    kind, _, name = text.partition("=")
    for spec in _cdi_specs():
        if spec.get("kind") == kind:
            for device in spec.get("devices") or []:
                if device.get("name") == name:
                    _edit(spec.get("containerEdits") or {}, found)
                    _edit(device.get("containerEdits") or {}, found)
                    return
    hint = f"no such device in the JSON files of {' or '.join(_CDI_DIRS)}; YAML is not read"
    raise WherryError(Kind.NOT_FOUND, f"unresolvable CDI device {text}", hint=hint)


def _cdi_specs() -> Iterator[Json]:
    """Later directories win (CDI spec, precedence), so they come first."""
    for folder in reversed(_CDI_DIRS):
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if name.endswith(".json"):
                yield _cdi_file(f"{folder}/{name}")


def _cdi_file(path: str) -> Json:
    with open(path, "rb") as file:
        text = file.read(_MAX_CDI)
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"{path} is not valid JSON: {error}") from error
    return spec if isinstance(spec, dict) else {}


def _edit(edits: Json, found: Devices) -> None:
    found.env += edits.get("env") or []
    for node in edits.get("deviceNodes") or []:
        add(node.get("hostPath") or node["path"], node["path"], node.get("permissions") or "rwm", found)
    for mount in edits.get("mounts") or []:
        options = mount.get("options") or ["ro", "nosuid", "nodev", "bind"]
        found.mounts.append(
            {
                "destination": mount["containerPath"],
                "type": mount.get("type") or "bind",
                "source": mount["hostPath"],
                "options": options,
            }
        )
    for hook in edits.get("hooks") or []:
        members = {key: hook[key] for key in ("path", "args", "env", "timeout") if key in hook}
        found.hooks.append((hook["hookName"], members))
