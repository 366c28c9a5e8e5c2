"""Several hosts on one segment: network namespaces behind a switch, containers' namespaces behind them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cnichain import Refused
from .tools import run

__all__ = ["Host", "Segment", "eventually", "watchers"]

Json = dict[str, Any]
_SERVER = """
import socket, sys
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64) as server:
    print("ready", flush=True)
    while True:
        client, peer = server.accept()
        with client:
            client.settimeout(5)
            try:
                client.sendall(peer[0].removeprefix("::ffff:").encode() + b"\\n" + bytes(int(sys.argv[2])))
            except OSError:
                pass
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as wire:
    data = b"".join(iter(lambda: wire.recv(65536), b""))
seen, _, rest = data.partition(b"\\n")
print(seen.decode(), len(rest))
"""
SIZE = 300_000  # bytes of an answer: more than one segment, so that packets are as big as they get


class Segment:
    """A switch, and the hosts on it: 192.0.2.N and fd99::N."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._spaces: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self.hosts: list[Host] = []
        self.space("sw")
        run("ip", "-n", f"{name}sw", "link", "add", "sw", "type", "bridge")
        run("ip", "-n", f"{name}sw", "link", "set", "sw", "up")

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

    def host(self, directory: str, work: Path, mtu: int = 1500) -> Host:
        """One more host on the switch. `directory` has the plugins, below `work` the host keeps its files."""
        made = Host(self, len(self.hosts) + 1, directory, work / f"host{len(self.hosts) + 1}")
        link, port = f"{self.name}sw", f"p{made.number}"
        run("ip", "-n", link, "link", "add", port, "mtu", mtu, "type", "veth", "peer", "eth0", "netns", made.name)
        run("ip", "-n", link, "link", "set", port, "master", "sw", "up")
        run("ip", "-n", made.name, "link", "set", "eth0", "mtu", mtu, "up")
        for address in (f"{made.four}/24", f"{made.six}/64"):
            run("ip", "-n", made.name, "addr", "add", address, "dev", "eth0", "nodad")
        self.hosts.append(made)
        return made

    def serve(self, space: str, port: int = 80) -> None:
        """A server in a namespace that answers with the address that it sees and SIZE bytes."""
        process = subprocess.Popen(["nsenter", f"--net={space}", sys.executable, "-c", _SERVER, str(port), str(SIZE)],
                                   stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def ask(self, space: str, address: str, port: int = 80, seconds: float = 3) -> str:
        """The address that the server saw; "" when there was no whole answer."""
        done = run("nsenter", f"--net={space}", sys.executable, "-c", _CLIENT, address, port, seconds, check=False)
        seen, _, size = done.stdout.strip().partition(" ")
        return seen if size == str(SIZE) else ""

    def close(self) -> None:
        """Everything made here goes."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        for host in self.hosts:
            for pid in host.watchers():  # a test that failed left it
                held = [os.path.realpath(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
                os.kill(pid, 9)
                for path in held:
                    if path.endswith("/watch"):
                        shutil.rmtree(os.path.dirname(path))
        for space in list(self._spaces):
            run("ip", "netns", "del", space)


class Host:
    """One host: it calls plugins by their programs, with what the specification says and nothing else."""

    def __init__(self, segment: Segment, number: int, directory: str, work: Path) -> None:
        self.segment, self.number, self.directory, self.work = segment, number, directory, work
        self.name = f"{segment.name}h{number}"
        self.path = segment.space(f"h{number}")
        self.four, self.six = f"192.0.2.{number}", f"fd99::{number}"
        self.peers = work / "etc" / "peers.json"
        self.peers.parent.mkdir(parents=True)

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A program on this host."""
        return run("nsenter", f"--net={self.path}", *words, check=check)

    def command(self, verb: str, config: Json, container: str, space: str, **env: str) -> tuple[list[str], bytes, Json]:
        """Words, standard input and environment of a plugin's call."""
        body = {"cniVersion": "1.1.0", "name": "net", **config}
        words = ["nsenter", f"--net={self.path}", os.path.join(self.directory, config["type"])]
        return words, json.dumps(body).encode(), {
            "PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": space,
            "CNI_IFNAME": "eth0", "CNI_PATH": self.directory, **env}

    def call(self, verb: str, config: Json, container: str = "", space: str = "", **env: str) -> Json:
        """What a plugin printed, and as "stderr" what it noted; Refused where it failed."""
        words, body, whole = self.command(verb, config, container, space, **env)
        done = subprocess.run(words, input=body, capture_output=True, env=whole, check=False, timeout=60)
        answer: Json = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            raise Refused(answer or {"code": -1, "msg": done.stderr.decode()})
        return {**answer, **({"stderr": done.stderr.decode()} if done.stderr else {})}

    def watchers(self) -> list[int]:
        """The processes that watch an overlay network here."""
        return watchers(self.name)

    def state(self) -> tuple[str, ...]:
        """Links, addresses and routes."""
        asked = ("-br", "link"), ("-4", "-br", "addr"), ("-4", "route"), ("-6", "route")
        return tuple(run("ip", "-n", self.name, *words).stdout for words in asked)


def watchers(space: str) -> list[int]:
    """The processes that watch an overlay network in a namespace."""
    found = run("ip", "netns", "pids", space).stdout.split()
    return [int(pid) for pid in found if b"overlay_watch" in _command(int(pid))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def eventually(true: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
