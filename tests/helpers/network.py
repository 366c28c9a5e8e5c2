"""A second host for the tests: a network namespace behind a veth pair, with a default route that leads to it."""

from __future__ import annotations

import subprocess

from .tools import run

__all__ = ["Outside"]


class Outside:
    """192.0.2.1 is the world, 192.0.2.2 is us. The namespace lives as long as its one sleeping process."""

    address, own = "192.0.2.1", "192.0.2.2"

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--net",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
                "ip link set lo up && echo ready && exec sleep infinity",
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        run("ip", "link", "add", "wt-up", "type", "veth", "peer", "name", "wt-out", "netns", self._holder.pid)
        run("ip", "link", "set", "wt-up", "addrgenmode", "none")
        run("ip", "addr", "add", f"{self.own}/24", "dev", "wt-up")
        run("ip", "link", "set", "wt-up", "up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "wt-out")
        self.run("ip", "link", "set", "wt-out", "up")
        run("ip", "route", "add", "default", "via", self.address)

    def command(self, *words: object) -> list[str]:
        """The command line that runs there."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *map(str, words)]

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in the outside world."""
        return run(*self.command(*words), check=check)

    def close(self) -> None:
        """End it; the kernel takes the links along."""
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()
