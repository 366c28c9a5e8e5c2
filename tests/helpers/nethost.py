"""A host of its own for tests of the network: namespaces that only the test knows, links and rules listed on demand.

The calling thread stands in the host namespace while the fixture lives, so that whatever it starts does too.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from .tools import run
from .wherry import until

__all__ = ["NetHost"]

_CLONE_NEWNET = 0x40000000
HOST, OUTSIDE = "192.0.2.2", "192.0.2.1"
HOST6, OUTSIDE6 = "fd99::2", "fd99::1"


class NetHost:
    """`name` is the host, `name`o another machine one hop away, `name`-x containers' namespaces."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._spaces: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.space("h")
        self.space("o")
        run("ip", "-n", f"{name}h", "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", f"{name}o")
        for space, link, four, six in (("h", "up0", HOST, HOST6), ("o", "out0", OUTSIDE, OUTSIDE6)):
            run("ip", "-n", name + space, "addr", "add", f"{four}/24", "dev", link)
            run("ip", "-n", name + space, "addr", "add", f"{six}/64", "dev", link, "nodad")
            run("ip", "-n", name + space, "link", "set", link, "up")
        run("ip", "-n", f"{name}h", "route", "add", "default", "via", OUTSIDE)
        run("ip", "-n", f"{name}h", "route", "add", "default", "via", OUTSIDE6)
        self._enter(f"/run/netns/{name}h")
        until(lambda: "linkdown" not in run("ip", "route").stdout, 5, "up0 has no carrier")

    def space(self, suffix: str) -> str:
        """A new namespace with loopback up; its path."""
        run("ip", "netns", "add", self.name + suffix)
        self._spaces.append(self.name + suffix)
        run("ip", "-n", self.name + suffix, "link", "set", "lo", "up")
        return f"/run/netns/{self.name}{suffix}"

    def drop(self, suffix: str) -> None:
        """Remove a namespace."""
        run("ip", "netns", "del", self.name + suffix)
        self._spaces.remove(self.name + suffix)

    def quit(self, path: str) -> None:
        """End the servers in a namespace and remove it: the kernel takes down what is in it."""
        for process in self._processes:
            if f"--net={path}" in process.args:  # type: ignore[operator]
                process.kill()
                process.wait()
        self.drop(os.path.basename(path).removeprefix(self.name))

    def run(self, where: str, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in a namespace, by path or suffix."""
        path = where if where.startswith("/") else f"/run/netns/{self.name}{where}"
        return run("nsenter", f"--net={path}", *words, check=check)

    def serve(self, where: str, directory: os.PathLike[str], port: int = 80) -> None:
        """A busybox httpd in a namespace; it listens when this returns."""
        path = where if where.startswith("/") else f"/run/netns/{self.name}{where}"
        command = ["nsenter", f"--net={path}", "busybox", "httpd", "-f", "-p", f"[::]:{port}", "-h", str(directory)]
        self._processes.append(subprocess.Popen(command))
        for _ in range(200):
            if f":{port} " in run("nsenter", f"--net={path}", "ss", "-Hltn").stdout:
                return
        raise AssertionError("httpd does not listen")

    def fetch(self, where: str, url: str, seconds: int = 2) -> str:
        """What curl gets from there; "" when it gets nothing."""
        return self.run(where, "curl", "-s", "-g", "-m", seconds, url, check=False).stdout

    def state(self) -> tuple[Any, ...]:
        """Everything that a plugin could leave: links with addresses, routes, rules."""
        commands: Sequence[Sequence[str]] = (("ip", "-o", "link"), ("ip", "-o", "-4", "addr"), ("ip", "route"),
                                             ("nft", "list", "ruleset"))
        return tuple(run(*command).stdout for command in commands)

    def links(self) -> str:
        """The host's links."""
        return run("ip", "-br", "link").stdout

    def rules(self) -> str:
        """The host's nft rules."""
        return run("nft", "list", "ruleset").stdout

    def table(self) -> str:
        """The name of the one wherry table here."""
        (found,) = [line.split()[-1] for line in run("nft", "list", "tables").stdout.splitlines() if " wherry" in line]
        return found

    def close(self) -> None:
        """Back home; everything made here goes."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._enter(f"/proc/self/fd/{self._home}")
        os.close(self._home)
        for space in list(self._spaces):
            run("ip", "netns", "del", space)

    def _enter(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(fd)
