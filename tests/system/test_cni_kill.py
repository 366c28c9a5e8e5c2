"""kill -9 of CNI plugins at any moment of ADD and DEL: the runtime's DEL or GC puts things right, nothing is left.

Rounds by WHERRY_CNI_KILLS (scripts/soak: 2000): two fifths by executables that start cold, two fifths by those that a
warm process serves, one fifth by `wherry run`. WHERRY_SEED repeats a run's moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers import tools
from helpers.nethost import OUTSIDE, NetHost
from helpers.warm import Warm
from helpers.wherry import Wherry, until
from wherry.engine import cni

KILLS = int(os.environ.get("WHERRY_CNI_KILLS", "40"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
Json = dict[str, Any]
#: the calls of one life in their order, any of which is the one that is cut
LIFE = (("bridge", "ADD"), ("portmap", "ADD"), ("portmap", "DEL"), ("bridge", "DEL"))


class Runtime:
    """A CNI runtime that calls two plugins by their executables, and forgets what it has not been told."""

    def __init__(self, directory: Path, leases: Path, **env: str) -> None:
        self.directory, self.leases = directory, leases / "killed"
        self.env = {"PATH": os.environ["PATH"], "CNI_PATH": str(directory), "CNI_IFNAME": "eth0", **env}
        ipam = {"type": "host-local", "dataDir": str(leases), "ranges": [[{"subnet": "10.37.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
        self.config: dict[str, Json] = {
            "bridge": {"bridge": "killed0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
            "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 8092, "containerPort": 80}]}},
        }
        self.took: dict[tuple[str, str], float] = {}

    def start(self, plugin: str, verb: str, name: str, space: str, **more: Any) -> subprocess.Popen[bytes]:
        """One call, in a session of its own; it has its configuration."""
        head = {"cniVersion": "1.1.0", "name": "killed", "type": plugin, "nftTable": "t_killed"}
        env = {**self.env, "CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": space}
        pipe = subprocess.PIPE
        process = subprocess.Popen([self.directory / plugin], stdin=pipe, stdout=pipe, stderr=pipe, env=env,
                                   start_new_session=True)  # fmt: skip
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps({**head, **self.config[plugin], **more}).encode())
        process.stdin = None
        return process

    def __call__(self, plugin: str, verb: str, name: str, space: str, **more: Any) -> Json:
        """One call that must succeed."""
        begin = time.monotonic()
        process = self.start(plugin, verb, name, space, **more)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (plugin, verb, name, out, err)
        self.took[plugin, verb] = time.monotonic() - begin
        return json.loads(out) if out else {}

    def life(self, name: str, space: str) -> None:
        """All of it, uncut; tells how long each call takes."""
        result = self("bridge", "ADD", name, space)
        self("portmap", "ADD", name, space, prevResult=result)
        for plugin in ("portmap", "bridge"):
            self(plugin, "DEL", name, space, prevResult=result)

    def cut_life(self, name: str, space: str, at: int, cut: Callable[[subprocess.Popen[bytes]], None]) -> Json:
        """A life up to the call `at`, which is cut; the result that the runtime has of it, {} for none."""
        result: Json = {}
        for plugin, verb in LIFE[:at]:
            before = {"prevResult": result} if result else {}
            result = self(plugin, verb, name, space, **before) or result
        process = self.start(*LIFE[at], name, space, **({"prevResult": result} if result else {}))
        cut(process)
        out, _ = process.communicate(timeout=60)
        with suppress(ValueError):  # it was over when the blow fell
            result = result or json.loads(out)
        return result if "ips" in result else {}

    def recover(self, name: str, space: str, result: Json) -> None:
        """DEL of every plugin, backward, as a runtime does for an attachment that it is not sure of."""
        for plugin in ("portmap", "bridge"):
            self(plugin, "DEL", name, space, **({"prevResult": result} if result else {}))

    def collect(self, *valid: str) -> None:
        """GC of every plugin."""
        known = [{"containerID": name, "ifname": "eth0"} for name in valid]
        for plugin in ("portmap", "bridge"):
            self(plugin, "GC", "", "", **{"cni.dev/valid-attachments": known})

    def leased(self) -> set[str]:
        """Whose leases there are."""
        return {path.read_text().split()[0] for path in self.leases.glob("10.*")}


@pytest.fixture
def host(wherry: Wherry, test_id: str) -> Iterator[NetHost]:
    made = NetHost(test_id)
    yield made
    made.close()


@pytest.fixture
def directory(wherry: Wherry, host: NetHost, tmp_path: Path) -> Path:
    """Our plugins as any runtime finds them."""
    found = tmp_path / "bin"
    found.mkdir()
    cni.install(str(found))
    return found


def strays(host: NetHost, call: Runtime, valid: set[str], links: set[str]) -> list[str]:
    """What is here beside what belongs to those that live."""
    names = {line.split()[0].partition("@")[0] for line in host.links().splitlines()}
    left = [f"link {name}" for name in names ^ links]
    left += [f"lease of {name}" for name in call.leased() ^ valid]
    elements = json.loads(tools.run("nft", "-j", "list", "table", "inet", "t_killed").stdout)
    owners = {word for word in json.dumps(elements).split('"') if "/eth0@killed" in word}
    left += [f"rule of {owner}" for owner in owners ^ {f"{name}/eth0@killed" for name in valid}]
    return left


def rounds(host: NetHost, call: Runtime, count: int, blow: Callable[[random.Random, subprocess.Popen[bytes]], None]
           ) -> None:  # fmt: skip
    """Lives that are cut, each put right by DEL or GC; somebody who stays is not harmed."""
    chance = random.Random(SEED)
    stays = host.space("stays")
    call("bridge", "ADD", "stays", stays)
    for number in range(3):
        call.life("warm", host.space(f"w{number}"))
        host.drop(f"w{number}")
    links = {line.split()[0].partition("@")[0] for line in host.links().splitlines()}
    for number in range(count):
        at = chance.randrange(len(LIFE))
        moment = chance.uniform(0, 1.1 * call.took[LIFE[at]])
        name, space = f"k{number}", host.space(f"k{number}")

        def cut(process: subprocess.Popen[bytes], moment: float = moment) -> None:
            time.sleep(moment)
            blow(chance, process)

        result = call.cut_life(name, space, at, cut)
        way = chance.choice(("DEL", "DEL without prevResult", "DEL, the namespace gone", "GC"))
        if way in ("GC", "DEL, the namespace gone"):
            host.drop(f"k{number}")
        if way == "GC":
            call.collect("stays")
        else:
            call.recover(name, space, {} if "without" in way else result)
        story = f"{LIFE[at]} cut after {moment * 1000:.1f} ms, {way} (round {number}, WHERRY_SEED={SEED})"
        settle(lambda: strays(host, call, {"stays"}, links), story)
        if way not in ("GC", "DEL, the namespace gone"):
            host.drop(f"k{number}")
    host.run(stays, "busybox", "ping", "-c1", "-W2", OUTSIDE)
    call("bridge", "DEL", "stays", stays)


def settle(left: Callable[[], list[str]], story: str) -> None:
    """Nothing is left, after a second in which the kernel may end what it ends by itself; nor comes back."""
    end = time.monotonic() + 1
    while found := left():
        assert time.monotonic() < end, f"{story}: " + ", ".join(found)
        time.sleep(0.02)


def kill(chance: random.Random, process: subprocess.Popen[bytes]) -> None:
    """The plugin alone, as the OOM killer does, or with what it has started, as a runtime does."""
    with suppress(ProcessLookupError):
        (os.kill if chance.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)


@pytest.mark.seconds(120 + 3 * KILLS)
def test_killing_executables(host: NetHost, directory: Path, tmp_path: Path) -> None:
    call = Runtime(directory, tmp_path / "leases", WHERRY_WARM="off")
    rounds(host, call, KILLS * 2 // 5, kill)


@pytest.mark.seconds(120 + 3 * KILLS)
def test_killing_executables_that_a_warm_process_serves(
    wherry: Wherry, host: NetHost, directory: Path, tmp_path: Path
) -> None:
    """The front dies, and what serves it must not go on beside the next call; or the one at work dies."""
    if wherry.warm:
        wherry.warm.stop()
    process = Warm({"WHERRY_STATE": str(wherry.state)})

    def blow(chance: random.Random, front: subprocess.Popen[bytes]) -> None:
        at_work = process.children()
        if at_work and chance.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(at_work), signal.SIGKILL)
        else:
            kill(chance, front)

    try:
        call = Runtime(directory, tmp_path / "leases", WHERRY_STATE=str(wherry.state), WHERRY_WARM="on")
        rounds(host, call, KILLS * 2 // 5, blow)
    finally:
        until(lambda: not process.children(), 5)
        process.stop()


#: what the command line is killed in: `{new}` is to be made, `{old}` runs
VERBS = (
    ("run", "-d", "-p", "8093:80", "--name", "{new}", "{image}", "sleep", "1000"),
    ("run", "--rm", "-p", "8093:80", "--name", "{new}", "{image}", "true"),
    ("rm", "-f", "{old}"),
    ("restart", "-t", "0", "{old}"),
)


@pytest.mark.seconds(120 + 10 * KILLS)
def test_killing_wherry_with_a_published_port(wherry: Wherry, busybox: str) -> None:
    """After the next sweep no attachment, lease, port, link, rule or namespace is left."""
    chance = random.Random(SEED)
    kept = wherry.name("kept")
    wherry("run", "-d", "--name", kept, busybox, "sleep", "100000")
    wherry("run", "--rm", "-p", "8093:80", busybox, "true")
    before, files = audit.take(wherry.mark), audit.files_below(wherry.root, wherry.state)
    for number in range(KILLS // 5):
        verb, names = chance.choice(VERBS), {"image": busybox, "old": f"{kept}o{number}", "new": f"{kept}n{number}"}
        if "{old}" in verb:
            wherry("run", "-d", "-p", "8093:80", "--name", names["old"], busybox, "sleep", "1000")
        moment = chance.uniform(0, 0.35)
        killed = wherry.popen(
            *(word.format(**names) for word in verb), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        killed.kill()
        killed.wait()
        wherry("gc")
        if gone := set(wherry.containers()) - {wherry.inspect(kept)["Id"]}:
            wherry("rm", "-f", *gone)
        left = audit.settle(before, wherry.mark)
        left += sorted(f"left file: {path}" for path in audit.files_below(wherry.root, wherry.state) - files)
        assert not left, f"{verb[0]} killed after {moment:.3f} s (round {number}, WHERRY_SEED={SEED}):\n" + "\n".join(
            left
        )
    wherry("exec", kept, "ping", "-c", "1", "-W", "2", "192.0.2.1")
    wherry("rm", "-f", kept)
