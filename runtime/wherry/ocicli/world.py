"""What every verb of `wherry-oci` gets: the caller's world, and the log in the two formats that callers parse.

Decides where state lives and what a line of the log looks like. Knows no verb.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from wherry.container.state import ContainerDir, State
from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["Log", "World"]

_LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Lines as logrus writes them, which containerd's shim, conmon and podman read back."""

    def __init__(self, path: str = "", form: str = "text", level: str = "warning") -> None:
        if form not in ("", "text", "json"):
            raise WherryError(Kind.INVALID, f'unknown --log-format "{form}"', hint="text or json")
        if level not in _LEVELS:
            raise WherryError(Kind.INVALID, f'unknown --log-level "{level}"', hint=", ".join(_LEVELS))
        self.path, self.json, self.level = path, form == "json", _LEVELS.index(level)

    def write(self, level: str, text: str) -> None:
        """One line, appended to the file or printed on standard error; below the level nothing."""
        if _LEVELS.index(level) < self.level:
            return
        line = self._line(level, text)
        if not self.path:
            sys.stderr.write(line)
            return
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            sys.stderr.write(f"cannot open the log {self.path}: {error.strerror}\n{line}")
            return
        try:
            os.write(fd, line.encode("utf-8", "surrogateescape"))  # one write: lines of two runtimes do not mix
        finally:
            os.close(fd)

    def _line(self, level: str, text: str) -> str:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.json:
            return json.dumps({"level": level, "msg": text, "time": now}) + "\n"
        return f'time="{now}" level={level} msg={json.dumps(text)}\n'


class World(NamedTuple):
    """One call. `root` holds a directory for each container; `driver` is cgroupfs, systemd or disabled."""

    root: str
    state: str  # wherry's own: facts of the host are cached there
    cache: str
    config: str  # wherry.toml
    driver: str
    rootless: bool
    log: Log
    env: Mapping[str, str]
    debug: bool = False

    def folder(self, cid: str) -> ContainerDir:
        """The directory of one container."""
        return ContainerDir(self.root, cid, below="")

    def load(self, cid: str) -> tuple[ContainerDir, State]:
        """One container that is there; NOT_FOUND in the words that callers look for."""
        folder = self.folder(cid)
        try:
            return folder, folder.load()
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            raise absent(cid) from None

    def warn(self, text: str) -> None:
        """A warning for the log."""
        self.log.write("warning", text)


def absent(cid: str) -> WherryError:
    """Callers take "does not exist" for gone."""
    return WherryError(Kind.NOT_FOUND, f"container {cid} does not exist")


def config_of(folder: ContainerDir) -> Json:
    """The config that the container was made with."""
    from wherry.kernel import files

    config: Json = json.loads(files.read_capped(folder.file("config.json"), CONFIG_MAX))
    return config


CONFIG_MAX = 16 << 20
