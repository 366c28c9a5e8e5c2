"""CNI plugins called barely: environment and standard input, nothing else; and what they made, for comparisons.

`picture` tells links, addresses and routes of a namespace without what differs by chance: MACs, numbers, pairs' names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

from .nethost import NetHost

__all__ = ["REFERENCE", "Plugins", "picture", "plain"]

REFERENCE = "/usr/lib/cni"
_CHANCE = re.compile(r"veth[0-9a-f]{6,11}")


class Plugins:
    """The plugins of one directory, for one network; (exit code, answer) of each call."""

    def __init__(self, directory: str, version: str = "1.0.0", name: str = "links") -> None:
        self.directory, self.version, self.name = directory, version, name

    def __call__(self, verb: str, config: dict[str, Any], container: str = "one", netns: str = "",
                 previous: Any = None, **env: str) -> tuple[int, Any]:
        body = {"cniVersion": self.version, "name": self.name, **config,
                **({"prevResult": previous} if previous else {})}
        named = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0", **env}
        done = subprocess.run(
            [os.path.join(self.directory, env.pop("PLUGIN", config["type"]))], input=json.dumps(body).encode(),
            capture_output=True, check=False, timeout=60,
            env={"PATH": os.environ["PATH"], "CNI_PATH": f"{self.directory}:{REFERENCE}", **named})
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr.decode()

    def ok(self, verb: str, config: dict[str, Any], container: str = "one", netns: str = "",
           previous: Any = None, **env: str) -> Any:
        """The answer of a call that must succeed."""
        code, answer = self(verb, config, container, netns, previous, **env)
        assert code == 0, answer
        return answer

    def refused(self, verb: str, config: dict[str, Any], container: str = "one", netns: str = "",
                previous: Any = None, **env: str) -> Any:
        """The error object of a call that must fail."""
        code, answer = self(verb, config, container, netns, previous, **env)
        assert code == 1, answer
        assert answer["code"] > 0
        return answer


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs by chance."""
    text = _CHANCE.sub("veth", json.dumps({key: value for key, value in result.items() if value}))
    found: dict[str, Any] = json.loads(text)
    for link in found.get("interfaces", ()):
        link.pop("mac", None)
    return found


def picture(host: NetHost, where: str) -> dict[str, Any]:
    """Links, addresses and routes of a namespace (a path, or a suffix of the host)."""
    links = json.loads(host.run(where, "ip", "-d", "-j", "addr").stdout)
    names = {link["ifindex"]: _CHANCE.sub("veth", link["ifname"]) for link in links}
    told = sorted(
        (names[link["ifindex"]], link.get("linkinfo", {}).get("info_kind", ""), link["mtu"], "UP" in link["flags"],
         _CHANCE.sub("veth", link.get("master", "")),
         sorted((part["local"], part["prefixlen"], part["scope"]) for part in link["addr_info"]
                if part["scope"] != "link"))
        for link in links)
    ways = [(way["dst"], way.get("gateway", ""), _CHANCE.sub("veth", way.get("dev", "")), way.get("scope", ""),
             way.get("prefsrc", ""))
            for family in ("-4", "-6")
            for way in json.loads(host.run(where, "ip", family, "-j", "route").stdout or "[]")
            if not way["dst"].startswith(("fe80", "ff00"))]
    return {"links": told, "routes": sorted(ways)}
