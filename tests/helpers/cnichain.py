"""A list of CNI plugins, called as a runtime does (specification, section 3), by nothing of wherry's own runtime.

Ours run in this process by what the executables promise, `main(argv, env, stdin, stdout)`; others as programs.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from typing import Any

from wherry.net import launchers

__all__ = ["REFERENCE", "Chain", "Refused"]

REFERENCE = "/usr/lib/cni"
Json = dict[str, Any]


class Refused(Exception):
    """A plugin's error object."""

    def __init__(self, told: Json) -> None:
        super().__init__(str(told))
        self.code, self.msg, self.details = int(told["code"]), str(told["msg"]), str(told.get("details", ""))


class Chain:
    """One network: its plugins and where their programs lie."""

    def __init__(self, directory: str, plugins: list[Json], version: str = "1.1.0", name: str = "net") -> None:
        self.directory, self.plugins, self.version, self.name = directory, plugins, version, name
        self.own = directory != REFERENCE

    def add(self, container: str, space: str, ifname: str = "eth0", /, **capabilities: Any) -> Json:
        """The result of the last plugin. When one refuses, what was done is left to the caller's `delete`."""
        result: Json = {}
        for plugin in self.plugins:
            result = self.call("ADD", plugin, container, space, ifname, given=capabilities, previous=result) or {}
        return result

    def check(self, container: str, space: str, result: Json, ifname: str = "eth0", /, **capabilities: Any) -> None:
        for plugin in self.plugins:
            self.call("CHECK", plugin, container, space, ifname, given=capabilities, previous=result)

    def delete(self, container: str, space: str, result: Json | None = None, ifname: str = "eth0", /,
               **capabilities: Any) -> None:
        """In the reverse order; a runtime that remembers nothing gives neither result nor capabilities."""
        for plugin in reversed(self.plugins):
            assert self.call("DEL", plugin, container, space, ifname, given=capabilities, previous=result) is None

    def collect(self, *valid: tuple[str, str]) -> None:
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        for plugin in self.plugins:
            self.call("GC", {**plugin, "cni.dev/valid-attachments": listed}, "", "", "")

    def status(self) -> None:
        for plugin in self.plugins:
            self.call("STATUS", plugin, "", "", "")

    def record(self, container: str, space: str, result: Json, ifname: str = "eth0", /, **capabilities: Any) -> Json:
        """What wherry's runtime remembers of an attachment."""
        conflist = {"cniVersion": self.version, "name": self.name, "plugins": self.plugins}
        return {"conflist": conflist, "containerId": container, "netns": space, "ifname": ifname, "args": {},
                "capabilities": capabilities, "result": result}

    def call(self, verb: str, plugin: Json, container: str, space: str, ifname: str = "eth0", *,
             given: Json | None = None, previous: Json | None = None, **env: str) -> Json | None:
        """One call of one plugin; its answer, None where it printed nothing."""
        declared = plugin.get("capabilities") or {}
        told = {key: value for key, value in (given or {}).items() if declared.get(key)}
        config = {"cniVersion": self.version, "name": self.name, **plugin,
                  **({"runtimeConfig": told} if told else {}), **({"prevResult": previous} if previous else {})}
        code, out = self._run(plugin["type"], json.dumps(config).encode(), {
            "PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": space,
            "CNI_IFNAME": ifname, "CNI_PATH": f"{self.directory}:{REFERENCE}", **env})
        answer: Json | None = json.loads(out) if out.strip() else None
        if code:
            raise Refused(answer or {"code": -1, "msg": f"exit code {code} and no error object"})
        return answer

    def _run(self, kind: str, config: bytes, env: dict[str, str]) -> tuple[int, bytes]:
        program = os.path.join(self.directory, kind)
        if self.own and kind in launchers.PLUGINS:
            out = io.BytesIO()
            return launchers.program(program)([program], env, io.BytesIO(config), out), out.getvalue()
        done = subprocess.run([program], input=config, stdout=subprocess.PIPE, env=env, check=False, timeout=60)
        return done.returncode, done.stdout
