"""The directory of our own CNI plugins: one small launcher per plugin, made where it is missing or out of date.

Decides how a plugin is started without a daemon: an isolated interpreter (-I, -S) with the import path written down, so
that no site file, environment or working directory changes what root executes. Refuses to know the plugins: they are
other programs, which can be had without a process by what they promise, `main(argv, env, stdin, stdout)`. The directory
lies below ROOT, because /run is mounted noexec on many hosts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import IO

__all__ = ["PLUGINS", "Program", "called", "linked", "program", "provide"]

Program = Callable[[Sequence[str], Mapping[str, str], IO[bytes], IO[bytes]], int]

PLUGINS = ("bandwidth", "bridge", "firewall", "host-device", "host-local", "ipvlan", "loopback", "macvlan", "overlay",
           "portmap", "ptp", "sbr", "static", "tuning")
#: their modules, and that of what only we call
_PROGRAMS = {name: name.replace("-", "_") for name in (*PLUGINS, "restore")}
_TEXT = """#!{python} -IS
# Made by wherry; rewritten when the installation moves.
import sys
sys.path[:0] = {path!r}
from wherry_cni.{module} import entry
sys.exit(entry())
"""


def provide(directory: str, *, anew: bool = False) -> str | None:
    """`directory` with every launcher in it; None where wherry_cni is not installed. An empty file that is named after
    what they hold says that they are there: one look instead of one for each. `anew` looks at each."""
    texts = _texts()
    if not texts:
        return None
    stamp = os.path.join(directory, f".{_digest()}")
    if anew or not os.path.exists(stamp):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for other in os.listdir(directory):  # the stamps of other installations are not true any more
            if other.startswith("."):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, other))
        for name, text in texts.items():
            _put(os.path.join(directory, name), text)
        os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return directory


@cache
def _texts() -> dict[str, str]:
    """The launchers of this installation by their names."""
    path = _import_path()
    return {name: _TEXT.format(python=sys.executable, path=path, module=_PROGRAMS[name])
            for name in PLUGINS} if path is not None else {}


@cache
def _digest() -> str:
    return sha256("\0".join(f"{name}\0{text}" for name, text in _texts().items()).encode()).hexdigest()[:16]


def program(path: str) -> Program:
    """What the launcher at `path` starts, or "restore"."""
    found: Program = importlib.import_module(f"wherry_cni.{_PROGRAMS[os.path.basename(path)]}").main
    return found


def linked(path: str) -> Program | None:
    """What a link to this installation's front is called as, which `wherry cni install` puts; None for another's."""
    try:
        front = os.readlink(path)
    except OSError:
        return None
    ours = front == os.path.join(os.path.dirname(sys.executable), "wherry-cni")
    return program(path) if ours and os.path.basename(path) in PLUGINS else None


def called(name: str) -> Program | None:
    """The plugin that the front was called as, such as wherry-cni/bridge; None where that is none of ours."""
    front, _, plugin = name.partition("/")
    return program(plugin) if front == "wherry-cni" and plugin in PLUGINS else None


def _import_path() -> list[str] | None:
    """Where the plugins lie, without importing them; they need nothing beside the standard library."""
    spec = importlib.util.find_spec("wherry_cni")
    return [os.path.dirname(os.path.dirname(spec.origin))] if spec is not None and spec.origin else None


def _put(path: str, text: str) -> None:
    try:
        with open(path, encoding="utf-8") as stream:
            if stream.read() == text:
                return
    except OSError:
        pass
    temporary = f"{path}.{os.getpid()}.{threading.get_native_id()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o700)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, path)
