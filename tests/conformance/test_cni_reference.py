"""The distribution's reference plugins under wherry: lists in the host's CNI directory, used by `run --network`.

Each list is lived through twice. What the reference's first ADD makes for all containers (a bridge, iptables' tables
and the plugins' own chains) stays there by its design; after the second life nothing else may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers import network, tools
from helpers.network import Outside
from helpers.wherry import Wherry, until

REFERENCE = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="containernetworking-plugins is not installed"),
    tools.needs("iptables", "ip", "tc", "nft", "curl"),
]
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SUBNET = "10.35.0.0/24"
PORT = 8091
SERVE = ("httpd", "-f", "-p", "80", "-h", "/etc")
Json = dict[str, Any]


class House:
    """A wherry whose host has lists of the reference's plugins, and no others."""

    def __init__(self, wherry: Wherry, outside: Outside, place: Path) -> None:
        self.wherry, self.outside, self.leases = wherry, outside, place / "leases"
        self.lists = place / "net.d"
        self.lists.mkdir()
        own = wherry.config.read_text()
        wherry.config.write_text(f'{own}cni_conf = "{self.lists}"\ncni_path = "{REFERENCE}"\n')
        self.tables, self.links = tables(), links()

    def write(self, *plugins: Json, version: str = "1.0.0", name: str = "ref") -> str:
        """A list of these plugins; its name."""
        chain = {"cniVersion": version, "name": name, "plugins": plugins}
        (self.lists / f"{name}.conflist").write_text(json.dumps(chain))
        return name

    def ipam(self) -> Json:
        """host-local with a default route and leases of this test's own."""
        return {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": SUBNET}]],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip

    def bridge(self, **more: Any) -> Json:
        return {"type": "bridge", "bridge": "wt-ref0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
                "ipam": self.ipam(), **more}  # fmt: skip

    def start(self, name: str, image: str, *flags: object) -> str:
        """A container that serves /etc; its id."""
        flags = ("--network", name, *flags, "--hostname", "there")
        return self.wherry.out("run", "-d", "--name", self.wherry.name("c"), *flags, image, *SERVE)

    def inside(self, ref: str, *words: object) -> str:
        """What a program of the host says in the container's network."""
        return tools.run("nsenter", "--net", "--target", self.wherry.pid(ref), *words).stdout

    def fetch(self, url: str, *where: str) -> str:
        """What curl gets from there; "" when it gets nothing."""
        return tools.run(*where, "curl", "-s", "-m", "2", f"http://{url}/hostname", check=False).stdout

    def lives(self, image: str, look: Callable[[str], None], name: str, *flags: object, lives: int = 2) -> None:
        """Start, look, remove; the last life leaves nothing."""
        for number in range(lives):
            before = audit.take(self.wherry.mark)
            ref = self.start(name, image, *flags)
            look(ref)
            self.wherry("stop", "-t", "0", ref)
            self.wherry("rm", ref)
            assert self.leased() == []
            assert ref not in tools.run("nft", "list", "ruleset").stdout
            assert number == 0 or audit.settle(before, self.wherry.mark) == []

    def leased(self) -> list[str]:
        """Addresses that host-local keeps for somebody."""
        return [path.name for path in self.leases.glob("*/*") if path.name[0].isdigit()]

    def clean(self) -> None:
        """What the reference leaves for its next containers."""
        if ids := self.wherry.containers():
            self.wherry("rm", "-f", *ids)
        for link in links() - self.links:
            tools.run("ip", "link", "del", link, check=False)
        for table in tables() - self.tables:
            tools.run("nft", "delete", "table", *table.split())


def tables() -> set[str]:
    """Family and name of each nft table; iptables' are among them."""
    return {line.removeprefix("table ") for line in tools.run("nft", "list", "tables").stdout.splitlines()}


def links() -> set[str]:
    """Names of the links here that can be removed."""
    lines = tools.run("ip", "-o", "link", "show").stdout.splitlines()
    names = (line.split(": ")[1].partition("@")[0] for line in lines)
    return {name for name in names if not name.startswith(audit.KEPT_LINKS)}


def speaks(version: str) -> bool:
    """Whether the installed reference knows this version of the specification."""
    done = subprocess.run([REFERENCE / "bridge"], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True,
                          check=True)  # fmt: skip
    return version in json.loads(done.stdout)["supportedVersions"]


@pytest.fixture
def house(wherry: Wherry, outside: Outside, tmp_path: Path) -> Iterator[House]:
    made = House(wherry, outside, tmp_path)
    yield made
    made.clean()


PORTMAP: Json = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_published_port_in_every_version(house: House, busybox: str, kind: str, version: str) -> None:
    first = house.bridge() if kind == "bridge" else {"type": "ptp", "ipMasq": True, "ipam": house.ipam()}
    name = house.write(first, PORTMAP, version=version)
    flags = ("-p", f"{PORT}:80")
    if not speaks(version):
        done = house.wherry("run", "--rm", "--network", name, *flags, busybox, "true", check=False)
        assert done.returncode == 125
        assert version in done.stderr
        assert "Traceback" not in done.stderr
        assert house.leased() == []
        return

    def look(ref: str) -> None:
        until(lambda: house.fetch(f"{network.Outside.own}:{PORT}", *house.outside.command()), 5)
        assert house.fetch(f"127.0.0.1:{PORT}") == "there\n"
        house.wherry("exec", ref, "ping", "-c", "1", "-W", "2", network.Outside.address)
        shown = house.wherry.inspect(ref)["NetworkSettings"]
        assert shown["Networks"][name]["IPAddress"].startswith("10.35.0.")
        assert house.wherry.out("port", ref, "80/tcp").split()[0].endswith(f":{PORT}")

    house.lives(busybox, look, name, *flags)
    assert house.fetch(f"127.0.0.1:{PORT}") == ""


def test_two_containers_on_the_references_bridge(house: House, busybox: str) -> None:
    name = house.write(house.bridge(), PORTMAP)
    one = house.start(name, busybox)
    two = house.wherry.out("run", "-d", "--name", house.wherry.name("two"), "--network", name, busybox, *SERVE)
    address = house.wherry.inspect(one)["NetworkSettings"]["Networks"][name]["IPAddress"]
    until(lambda: house.wherry("exec", two, "wget", "-qO-", f"http://{address}/hostname", check=False).stdout, 5)
    assert len(house.leased()) == 2
    house.wherry("rm", "-f", one, two)
    assert house.leased() == []


def test_macvlan_with_a_static_address_and_source_routing(house: House, busybox: str) -> None:
    """On the host's own wire: the world sees the container itself; sbr gives what it sends a table of its own."""
    world = network.Outside.address
    static = {"type": "static", "addresses": [{"address": "192.0.2.77/24", "gateway": world}],
              "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": [world]}}  # fmt: skip
    macvlan = {"type": "macvlan", "master": "wt-up", "mode": "bridge", "ipam": static}
    name = house.write(macvlan, {"type": "sbr"})

    def look(ref: str) -> None:
        until(lambda: house.fetch("192.0.2.77", *house.outside.command()), 5)
        house.wherry("exec", ref, "ping", "-I", "192.0.2.77", "-c", "1", "-W", "2", world)
        assert "from 192.0.2.77 lookup" in house.inside(ref, "ip", "rule")

    house.lives(busybox, look, name)


def test_a_firewall_that_drops_lets_them_out(house: House, busybox: str) -> None:
    """With the plugin firewall, and only with it, does a container pass a forward chain of policy drop."""
    ping = ("ping", "-c", "1", "-W", "1", network.Outside.address)
    tools.run("iptables", "-P", "FORWARD", "DROP")  # the table goes with what `clean` takes away
    ref = house.start(house.write(house.bridge()), busybox)
    assert house.wherry("exec", ref, *ping, check=False).returncode != 0
    house.wherry("rm", "-f", ref)
    name = house.write(house.bridge(), {"type": "firewall", "backend": "iptables"}, name="walled")
    house.lives(busybox, lambda ref: house.wherry("exec", ref, *ping) and None, name)


def test_bandwidth_tuning_and_loopback_in_one_chain(house: House, busybox: str) -> None:
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 800_000}
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "mac": "02:11:22:33:44:55",
              "mtu": 1400}  # fmt: skip
    name = house.write(house.bridge(), {"type": "bandwidth", **limits}, tuning, {"type": "loopback"})

    def look(ref: str) -> None:
        shaped = tools.run("tc", "qdisc", "show").stdout
        assert "rate 8Mbit" in shaped, shaped
        assert "rate 4Mbit" in shaped, shaped
        assert house.wherry.out("exec", ref, "cat", "/proc/sys/net/ipv4/conf/all/log_martians") == "1"
        shown = house.inside(ref, "ip", "-o", "link", "show", "eth0")
        assert "mtu 1400" in shown
        assert "02:11:22:33:44:55" in shown
        house.wherry("exec", ref, "ping", "-c", "1", "-W", "2", network.Outside.address)

    house.lives(busybox, look, name)


def test_a_device_of_the_host_comes_back(house: House, busybox: str) -> None:
    tools.run("ip", "link", "add", "wt-hd", "type", "veth", "peer", "name", "wt-hd-peer")
    static = {"type": "static", "addresses": [{"address": "10.36.0.2/24"}]}
    name = house.write({"type": "host-device", "device": "wt-hd", "ipam": static})

    def look(ref: str) -> None:
        assert "10.36.0.2/24" in house.inside(ref, "ip", "-o", "addr", "show", "eth0")
        assert "wt-hd" not in links()

    house.lives(busybox, look, name)
    assert "wt-hd" in links()


def test_a_subnet_that_is_full(house: House, busybox: str) -> None:
    """The reference's error reaches the user, and the refused container leaves nothing."""
    small = {**house.ipam(), "ranges": [[{"subnet": SUBNET, "rangeStart": "10.35.0.9", "rangeEnd": "10.35.0.9"}]]}
    name = house.write(house.bridge(ipam=small), PORTMAP)
    ref = house.start(name, busybox)
    for number in range(2):
        before = audit.take(house.wherry.mark)
        done = house.wherry("run", "--rm", "--network", name, "-p", f"{PORT}:80", busybox, "true", check=False)
        assert done.returncode == 125
        assert "no IP addresses available" in done.stderr
        assert house.leased() == ["10.35.0.9"]
        assert number == 0 or audit.settle(before, house.wherry.mark) == []
    house.wherry("rm", "-f", ref)


def test_the_hosts_plugin_goes_before_ours_of_the_same_name(house: House, busybox: str) -> None:
    """A list of the host is written for the plugins that are installed there: ours refuse what iptables alone does."""
    name = house.write(house.bridge(ipMasq=False), {**PORTMAP, "conditionsV4": ["-s", network.Outside.address]})

    def look(_: str) -> None:
        until(lambda: house.fetch(f"{network.Outside.own}:{PORT}", *house.outside.command()), 5)
        assert house.fetch(f"{network.Outside.own}:{PORT}") == ""

    house.lives(busybox, look, name, "-p", f"{PORT}:80")
