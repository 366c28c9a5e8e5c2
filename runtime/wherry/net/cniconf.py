"""Network configurations as files: what each kind means as a list, and directories of them, read as they change.

Decides what is a configuration (specification 1.1.0, section 1; `.conf` of one plugin, `.conflist` of many), and what
of it comes from DIR/NAME/*.conf. A file that is none is nobody's network, and `problems` says why. Refuses to know
plugins.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from typing import Any, NamedTuple

from wherry.model import Json

__all__ = ["ENDINGS", "Directory", "as_list", "flag", "parsed"]

ENDINGS = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")  # section 1, "name"
_MAX_BYTES = 1 << 20
_FRESH = 50_000_000  # ns; a file as young as that may change again without its times telling (a tick of the clock)
Signature = tuple[int, int, int, int]


class _Kept(NamedTuple):
    """What was read, of files that looked so; None: they were too young to be known by their looks."""

    looks: tuple[Signature, ...] | None
    conflist: Json | None
    problem: str


class Directory:
    """The lists of one directory. A file is read once for each inode, change time and size that it has, so neither a
    directory that is made anew nor a file that is replaced is mistaken for the one before."""

    def __init__(self, path: str, endings: tuple[str, ...] = ENDINGS) -> None:
        self.path = path
        self._endings = endings
        self._kept: dict[str, _Kept] = {}

    def lists(self) -> list[Json]:
        """Every good list, by file name; of several with one name the first (what runtimes do)."""
        self._kept = {path: self._look(path) for path in self._files()}
        found: dict[str, Json] = {}
        for kept in self._kept.values():
            if kept.conflist is not None:
                found.setdefault(str(kept.conflist["name"]), kept.conflist)
        return [*found.values()]

    def get(self, name: str) -> Json | None:
        """The list in the file `name`; None where there is none, or no good one."""
        path = f"{self.path}/{name}"
        if not os.path.exists(path):
            return None
        self._kept[path] = self._look(path)
        return self._kept[path].conflist

    def problems(self) -> dict[str, str]:
        """The files that are no configuration, and why, as `lists` last found them."""
        return {path: kept.problem for path, kept in self._kept.items() if kept.problem}

    def looks(self) -> tuple[object, ...]:
        """Equal as long as nothing in the directory has changed."""
        return tuple((path, _looks(path)) for path in self._files())

    def _files(self) -> list[str]:
        try:
            names = sorted(os.listdir(self.path))
        except OSError:
            return []
        return [f"{self.path}/{name}" for name in names if name.endswith(self._endings)]

    def _look(self, path: str) -> _Kept:
        kept, now = self._kept.get(path), _looks(path)
        beside = _beside(self.path, kept.conflist) if kept is not None and kept.conflist is not None else []
        if kept is not None and kept.looks == (now, *map(_looks, beside)):
            return kept
        return self._read(path, now)

    def _read(self, path: str, now: Signature) -> _Kept:
        start = time.time_ns()
        beside: list[str] = []
        try:
            conflist = as_list(parsed(path))
            beside = _beside(self.path, conflist)
            looks = (now, *map(_looks, beside))
            plugins = [*conflist["plugins"], *(_plugin(parsed(other)) for other in beside)]
            if not plugins:
                raise ValueError("it lists no plugins")
        except (OSError, ValueError) as problem:
            return _Kept(None if beside else _settled((now,), start), None, str(problem))
        return _Kept(_settled(looks, start), {**conflist, "plugins": plugins}, "")


def as_list(config: Any) -> Json:
    """A configuration as a list; a single plugin's becomes a list of one. ValueError says what is wrong with it."""
    if not isinstance(config, dict):
        raise ValueError("it is not an object")
    if "plugins" not in config and "type" in config:
        one = _plugin(config)
        config = {"cniVersion": config.get("cniVersion", ""), "name": config.get("name", ""), "plugins": [one],
                  "loadOnlyInlinedPlugins": True}
    name, plugins = config.get("name"), config.get("plugins", [])
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a network's name" if name else "it has no name")
    if not isinstance(config.get("cniVersion", ""), str):
        raise ValueError("cniVersion is not a text")
    if not isinstance(plugins, list):
        raise ValueError("plugins is not a list")
    return {**config, "plugins": [_plugin(plugin) for plugin in plugins]}


def flag(conflist: Json, key: str) -> bool:
    """A boolean of a list; the reference takes texts too."""
    value = conflist.get(key, False)
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _plugin(config: Any) -> Json:
    if not isinstance(config, dict) or not isinstance(config.get("type"), str) or not config["type"]:
        raise ValueError("a plugin has no type")
    if not isinstance(config.get("capabilities") or {}, dict):
        raise ValueError(f'capabilities of plugin {config["type"]} is not an object')
    return config


def _beside(directory: str, conflist: Json) -> list[str]:
    """The files of plugins that a list does not hold itself (loadOnlyInlinedPlugins)."""
    if flag(conflist, "loadOnlyInlinedPlugins"):
        return []
    own = f"{directory}/{conflist['name']}"
    try:
        return [f"{own}/{name}" for name in sorted(os.listdir(own)) if name.endswith(".conf")]
    except OSError:
        return []


def parsed(path: str) -> Any:
    """What a file of JSON says. ValueError: why it is none; it need not be a file."""
    with open(path, "rb", opener=_at_once) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError(f"{os.path.basename(path)} is not a file")
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{os.path.basename(path)} is not JSON: {problem}") from None


def _at_once(path: str, flags: int) -> int:
    """A fifo has no writer to wait for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _looks(path: str) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _settled(looks: tuple[Signature, ...], now: int) -> tuple[Signature, ...] | None:
    return looks if all(now - max(mtime, ctime) > _FRESH for _, mtime, ctime, _ in looks) else None
