"""The plugins that are chained behind an interface: portmap, firewall, bandwidth, tuning, sbr, on the real kernel.

What the reference plugins print and make for the same configuration is compared where they exist.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import tools
from helpers.cnichain import REFERENCE, Chain, Refused
from helpers.nethost import HOST, HOST6, OUTSIDE, NetHost
from helpers.tools import run
from helpers.wherry import until
from wherry.net import launchers
from wherry_cni import libnft, nft, tuning
from wherry_cni.errors import CniError

pytestmark = pytest.mark.root
Json = dict[str, Any]
TABLE = "t_meta"
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
META = ("bandwidth", "firewall", "portmap", "sbr", "tuning")
needs_reference = pytest.mark.skipif(not os.path.exists(f"{REFERENCE}/bandwidth"),
                                     reason="the reference plugins are not installed (containernetworking-plugins)")


class House:
    """Networks of one host, and containers that are only namespaces."""

    def __init__(self, host: NetHost, own: str, path: Path) -> None:
        self.host, self.own, self.path = host, own, path
        self._left: list[tuple[Chain, str, str]] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def bridge(self, number: int = 1, **more: Any) -> Json:
        ipam = {"type": "host-local", "dataDir": str(self.path / "leases"),
                "ranges": [[{"subnet": f"10.{60 + number}.0.0/24"}], [{"subnet": f"fd6{number}::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
        return {"type": "bridge", "bridge": f"{number}{self.host.name}"[:15], "isGateway": True, "hairpinMode": True,
                "ipMasq": True, "nftTable": TABLE, "ipam": ipam, **more}

    def chain(self, *plugins: Json, version: str = "1.1.0", name: str = "net") -> Chain:
        return Chain(self.own, list(plugins), version, name)

    def add(self, chain: Chain, name: str, **capabilities: Any) -> tuple[str, Json]:
        """A namespace with the chain in it; its path, and the result."""
        space = self.host.space(name)
        self._left.append((chain, name, space))
        return space, chain.add(name, space, **capabilities)

    def serve(self, space: str, text: str = "hello", port: int = 80) -> None:
        directory = self.path / f"www-{text}"
        directory.mkdir(exist_ok=True)
        (directory / "index.html").write_text(text)
        self.host.serve(space, directory, port)

    def popen(self, space: str, *words: object) -> subprocess.Popen[bytes]:
        words = ("nsenter", f"--net={space if '/' in space else f'/run/netns/{self.host.name}{space}'}", *words)
        child = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.communicate()
        for chain, name, space in self._left:
            for _ in range(2):
                chain.delete(name, space)
        assert "/eth0@" not in self.host.rules()
        assert not re.search(r"veth|bwp", self.host.links())


@pytest.fixture
def house(host: NetHost, bin_dir: str, tmp_path: Path) -> Iterator[House]:
    made = House(host, bin_dir, tmp_path)
    yield made
    made.close()


def meta(kind: str, **more: Any) -> Json:
    capabilities = {"portmap": {"portMappings": True}, "bandwidth": {"bandwidth": True}, "tuning": {"mac": True}}
    table = {"nftTable": TABLE} if kind in ("portmap", "firewall") else {}
    return {"type": kind, "capabilities": capabilities.get(kind, {}), **table, **more}


def ports(*numbers: int, protocol: str = "tcp", inside: int = 80, **more: Any) -> list[Json]:
    return [{"hostPort": number, "containerPort": inside, "protocol": protocol, **more} for number in numbers]


def plain(result: Json, family: int = 4) -> str:
    """The container's address of a family."""
    addresses = [part["address"].partition("/")[0] for part in result["ips"]]
    return next(address for address in addresses if (":" in address) == (family == 6))


def shown(result: Json | None) -> Json:
    """What a result says, in the words of 1.0.0 and without what is empty."""
    assert result is not None
    links = [{key: value for key, value in part.items() if key != "mtu"} for part in result["interfaces"]]
    return {key: value for key, value in {**result, "interfaces": links}.items() if value}


def everything(host: NetHost, space: str) -> tuple[Any, ...]:
    """The host's state, and the container's links, routes, rules and sysctls."""
    inside = [host.run(space, *words.split()).stdout for words in (
        "ip -o -d link", "ip -o -4 addr", "ip route show table all", "ip rule", "ip -6 rule",
        "sysctl net.core.somaxconn")]
    late = ("fe80:", "ff00::/8")  # they come a moment later
    lines = [line for text in inside for line in text.splitlines() if not any(word in line for word in late)]
    return host.state(), run("tc", "qdisc").stdout, lines


def settled(host: NetHost, space: str) -> tuple[Any, ...]:
    """The same, once every link is known to have a carrier: the kernel notices a moment later."""
    def awake() -> bool:
        links = [line for where in (space, "h") for line in host.run(where, "ip", "-o", "link").stdout.splitlines()]
        return all(" state UP " in link for link in links if ": lo: " not in link)

    until(awake, 5)
    return everything(host, space)


# ---- every one of them ----

SETTINGS: dict[str, Json] = {
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
    "firewall": {"ingressPolicy": "same-bridge"}, "portmap": {}, "sbr": {},
    "tuning": {"sysctl": {"net.core.somaxconn": "200"}, "mtu": 1400, "dataDir": "/run/netns/.t_meta"},
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Json]:
    return {**SETTINGS, "tuning": {**SETTINGS["tuning"], "dataDir": str(tmp_path / "tuning")}}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", META)
def test_a_life_in_every_version(house: House, settings: dict[str, Json], kind: str, version: str) -> None:
    """ADD answers in the caller's version, CHECK agrees, DEL may come twice, with and without what ADD knew."""
    before = house.host.state()
    chain = house.chain(house.bridge(), meta(kind, **settings[kind]), version=version)
    given = {"portMappings": ports(8080)}
    space, result = house.add(chain, "one", **given)
    assert result["cniVersion"] == version
    assert len(result["ips"]) == 2
    if version >= "0.4.0":
        chain.check("one", space, result, **given)
    known = result if version >= "0.4.0" else None
    for _ in range(2):
        chain.delete("one", space, known, **given)
    chain.delete("one", "", known, **given)
    assert house.host.state()[0] != before[0]  # the bridge is the network's
    assert not re.search(r"veth|bwp", house.host.links())
    assert "one/eth0" not in house.host.rules()
    assert not list((house.path / "tuning").glob("*"))


@pytest.mark.parametrize("kind", META)
def test_del_needs_no_namespace_and_no_memory(house: House, settings: dict[str, Json], kind: str) -> None:
    """Specification, DEL: "Plugins should generally complete a DEL action without error even if some resources are
    missing."""
    chain = house.chain(house.bridge(), meta(kind, **settings[kind]))
    chain.delete("never", "/run/netns/none-such")
    house.add(chain, "one", portMappings=ports(8080))
    house.host.drop("one")
    for _ in range(2):
        chain.delete("one", f"/run/netns/{house.host.name}one")
        chain.delete("one", "")
    assert "one/eth0" not in house.host.rules()
    assert not re.search(r"veth|bwp", house.host.links())
    assert not list((house.path / "tuning").glob("*"))


@pytest.mark.parametrize("kind", META)
def test_a_chained_plugin_says_that_it_is_one(house: House, kind: str) -> None:
    space = house.host.space("c")
    config = meta(kind, **SETTINGS[kind])
    with pytest.raises(Refused, match="chained") as refused:
        house.chain().call("ADD", config, "one", space, given={"portMappings": ports(80)})
    assert refused.value.code == 7


@pytest.mark.parametrize("kind", META)
def test_status_and_version(house: House, kind: str) -> None:
    chain = house.chain(meta(kind))
    chain.status()
    told = chain.call("VERSION", meta(kind), "", "", "")
    assert told is not None
    assert tuple(told["supportedVersions"]) == VERSIONS


@pytest.mark.parametrize(("kind", "config", "code"), [
    ("bandwidth", {"ingressRate": 1000}, 7), ("bandwidth", {"egressBurst": 1000}, 7),
    ("bandwidth", {"ingressRate": -1, "ingressBurst": 1}, 7), ("bandwidth", {"ingressRate": "1M"}, 7),
    ("bandwidth", {"unshapedSubnets": ["hello"]}, 7), ("bandwidth", {"unshapedSubnets": "10.0.0.0/8"}, 7),
    ("bandwidth", {"unshapedSubnets": ["10.0.0.0/8"], "shapedSubnets": ["10.0.0.0/8"]}, 7),
    ("firewall", {"backend": "iptables"}, 2), ("firewall", {"backend": "firewalld"}, 2),
    ("firewall", {"iptablesAdminChainName": "X"}, 2), ("firewall", {"firewalldZone": "trusted"}, 2),
    ("firewall", {"ingressPolicy": "closed"}, 7), ("firewall", {"nftTable": "a b"}, 7),
    ("portmap", {"backend": "iptables"}, 2), ("portmap", {"conditionsV4": ["-s", "1.1.1.1"]}, 2),
    ("portmap", {"conditionsV6": ["-s", "::1"]}, 2), ("portmap", {"markMasqBit": 13}, 2),
    ("portmap", {"externalSetMarkChain": "X"}, 2), ("portmap", {"snat": "yes"}, 7), ("portmap", {"nftTable": "a b"}, 7),
    ("sbr", {"table": "main"}, 7), ("sbr", {"table": -3}, 7),
    ("tuning", {"mac": "01:00:00:00:00:01"}, 7), ("tuning", {"mac": "hello"}, 7), ("tuning", {"mtu": 1}, 7),
    ("tuning", {"sysctl": {"kernel.hostname": "x"}}, 7), ("tuning", {"sysctl": {"net/../kernel/hostname": "x"}}, 7),
    ("tuning", {"sysctl": {"net.ipv4.conf.nowhere.forwarding": "1"}}, 5), ("tuning", {"promisc": "on"}, 7),
    ("tuning", {"sysctl": {"net.core.somaxconn": [1]}}, 7), ("tuning", {"txQLen": -1}, 7), ("tuning", {"sysctl": 5}, 7),
    ("tuning", {"dataDir": 5, "mtu": 1400}, 7), ("tuning", {"args": {"cni": "x"}}, 7),
])  # fmt: skip
def test_bad_input_is_an_error_object_and_leaves_nothing(house: House, kind: str, config: Json, code: int) -> None:
    bridge, bad = house.bridge(), meta(kind, **{"dataDir": str(house.path / "tuning"), **config})
    good = house.chain(bridge)
    space, result = house.add(good, "one")
    before = settled(house.host, space)
    with pytest.raises(Refused) as refused:
        house.chain().call("ADD", bad, "one", space, given={"portMappings": ports(8080)}, previous=result)
    assert refused.value.code == code, refused.value.msg
    assert everything(house.host, space) == before
    assert not list((house.path / "tuning").glob("*"))
    for _ in range(2):
        house.chain().call("DEL", bad, "one", space, previous=result)


# ---- portmap ----


def udp_answer(host: NetHost, where: str, address: str, port: int) -> str:
    """What a datagram from there is answered with."""
    text = ("import socket; s = socket.socket(socket.AF_INET6 if ':' in {0!r} else socket.AF_INET, socket.SOCK_DGRAM); "
            "s.bind(('', 5353)); s.settimeout(1); s.sendto(b'x', ({0!r}, {1})); print(s.recv(99).decode())")
    return host.run(where, sys.executable, "-c", text.format(address, port), check=False).stdout.strip()


ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    _, peer = s.recvfrom(99)
    s.sendto(sys.argv[2].encode(), peer)
"""


def echo(house: House, space: str, port: int, text: str) -> None:
    child = house.popen(space, sys.executable, "-c", ECHO, port, text)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"


def test_udp_goes_to_who_has_the_port_now(house: House) -> None:
    """The kernel remembers flows; an ADD and a DEL make it forget those of their ports."""
    chain = house.chain(house.bridge(), meta("portmap"))
    port = ports(5300, protocol="udp", inside=53)
    first, result = house.add(chain, "one", portMappings=port)
    echo(house, first, 53, "first")
    host = house.host
    for where, address in (("o", HOST), ("o", HOST6), ("h", HOST), ("h", "127.0.0.1")):
        assert udp_answer(host, where, address, 5300) == "first", (where, address)
    second, _ = house.add(chain, "two")
    echo(house, second, 53, "second")
    chain.call("DEL", chain.plugins[1], "one", first, given={"portMappings": port}, previous=result)
    assert udp_answer(host, "o", HOST, 5300) == ""
    now = house_result(host, second)
    chain.call("ADD", chain.plugins[1], "two", second, given={"portMappings": port}, previous=now)
    assert udp_answer(host, "o", HOST, 5300) == "second"
    assert udp_answer(host, "o", HOST6, 5300) == "second"


def test_udp_that_goes_by_is_not_forgotten(house: House) -> None:
    """A neighbour's flow to another machine's port of the same number, which the host masquerades."""
    chain = house.chain(house.bridge(), meta("portmap"))
    peer, _ = house.add(chain, "peer")
    says = "import socket; s = socket.socket(2, 2); s.bind(('', 4444)); s.sendto(b'x', ('%s', 5301))"
    house.host.run(peer, sys.executable, "-c", says % OUTSIDE)
    house.host.run("o", sys.executable, "-c", says % HOST)
    before = flows(5301)
    assert len(before) == 2
    house.add(chain, "one", portMappings=ports(5301, protocol="udp"))
    assert flows(5301) == [flow for flow in before if f"dst={OUTSIDE}" in flow]


def flows(port: int) -> list[str]:
    lines = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
    return [" ".join(line.split()[5:9]) for line in lines if f"dport={port} " in line]


def test_no_child_gets_the_librarys_socket(house: House) -> None:
    """It stays open for a while after a batch, and is not made with SOCK_CLOEXEC: hooks come next."""
    house.add(house.chain(house.bridge(), meta("portmap")), "one", portMappings=ports(80))
    netfilter = re.findall(r"^\S+ +12 +.* (\d+) *$", Path("/proc/thread-self/net/netlink").read_text(), re.M)
    found = [fd for fd in map(int, os.listdir("/proc/self/fd"))
             if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}")[8:-1] in netfilter]
    assert found
    assert not any(map(os.get_inheritable, found))


def test_loopback_is_open_only_behind_its_guard(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2020-8558: an ADD that the table refuses, or that ends before, leaves no bridge with route_localnet."""
    chain = house.chain(house.bridge(), meta("portmap"))
    space, result = house.add(chain, "one")
    switch = Path(f"/proc/sys/net/ipv4/conf/{chain.plugins[0]['bridge']}/route_localnet")

    def full(table: str, wanted: object) -> None:
        raise CniError(101, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(nft, "add", full)
        with pytest.raises(Refused, match="no room"):
            chain.call("ADD", chain.plugins[1], "one", space, given={"portMappings": ports(80)}, previous=result)
    assert house.host.run("h", "cat", switch).stdout == "0\n"
    chain.call("ADD", chain.plugins[1], "one", space, given={"portMappings": ports(80)}, previous=result)
    assert house.host.run("h", "cat", switch).stdout == "1\n"


def house_result(host: NetHost, space: str) -> Json:
    """A result as any plugin might print it: what is in the namespace."""
    told = json.loads(host.run(space, "ip", "-j", "addr", "show", "dev", "eth0").stdout)[0]
    ips = [{"address": f"{part['local']}/{part['prefixlen']}", "interface": 0} for part in told["addr_info"]
           if part["scope"] == "global"]
    return {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": space}], "ips": ips}


def test_every_way_in(house: House) -> None:
    """Other machines, the host by each of its addresses, the container itself and its neighbours; by one address only
    where one was asked for."""
    chain = house.chain(house.bridge(), meta("portmap"))
    wanted = ports(8080) + ports(8081, hostIP="127.0.0.1") + ports(8082, hostIP=HOST) + ports(8083, hostIP=HOST6)
    web, _ = house.add(chain, "web", portMappings=wanted)
    peer, _ = house.add(chain, "peer")
    house.serve(web)
    fetch = house.host.fetch
    for where in ("o", "h", web, peer):
        for address in (HOST, f"[{HOST6}]"):
            assert fetch(where, f"http://{address}:8080/") == "hello", (where, address)
        assert fetch(where, f"http://{HOST}:8082/") == "hello", where
        assert fetch(where, f"http://[{HOST6}]:8083/") == "hello", where
        assert fetch(where, "http://127.0.0.1:8081/", 1) == ("hello" if where == "h" else "")
        assert fetch(where, f"http://{HOST}:8081/", 1) == ""
        assert fetch(where, f"http://{HOST}:8083/", 1) == ""
    for address in ("127.0.0.1", "10.61.0.1", "[fd61::1]"):
        assert fetch("h", f"http://{address}:8080/") == "hello"


def client_seen(house: House, web: str, where: str, address: str) -> str:
    """The address that the container sees a client by."""
    text = ("import socket; s = socket.create_server(('', 81), family=socket.AF_INET6, dualstack_ipv6=True); "
            "print('ready', flush=True); print(s.accept()[1][0], flush=True)")
    child = house.popen(web, sys.executable, "-c", text)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    house.host.run(where, "curl", "-s", "-m", "1", f"http://{address}:8181/", check=False)
    child.terminate()
    return child.stdout.read().decode().strip().removeprefix("::ffff:")


@pytest.mark.parametrize(("setting", "far", "near"), [
    ({}, OUTSIDE, "10.61.0.1"), ({"masqAll": True}, "10.61.0.1", "10.61.0.1"), ({"snat": False}, OUTSIDE, ""),
])
def test_who_a_client_seems_to_be(house: House, setting: Json, far: str, near: str) -> None:
    """snat (default) masquerades only those who could not be answered else; masqAll everybody; without it, nobody."""
    chain = house.chain(house.bridge(hairpinMode=False), meta("portmap", **setting))
    web, _ = house.add(chain, "web", portMappings=ports(8181, inside=81))
    peer, _ = house.add(chain, "peer")
    assert client_seen(house, web, "o", HOST) == far
    if near:
        assert client_seen(house, web, peer, HOST) == near
        assert client_seen(house, web, "h", "127.0.0.1") == near
    else:
        assert house.host.fetch(peer, f"http://{HOST}:8181/", 1) == ""


def test_a_container_with_several_addresses(house: House) -> None:
    """Its ports lead to the first address of each family of this attachment's interface."""
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "web")
    house.serve(space)
    links = [*result["interfaces"], {"name": "eth1", "sandbox": space}]
    ips = [{"address": "10.99.0.2/24", "interface": 3}, {"address": "10.61.0.1/24", "interface": 0},
           {"address": "fd99::2/64", "interface": 3}, *result["ips"], {"address": "10.61.0.77/24", "interface": 2}]
    given = {"portMappings": ports(8080)}
    previous = {**result, "interfaces": links, "ips": ips}
    chain.call("ADD", meta("portmap"), "web", space, given=given, previous=previous)
    assert house.host.fetch("o", f"http://{HOST}:8080/") == "hello"
    assert house.host.fetch("o", f"http://[{HOST6}]:8080/") == "hello"
    chain.call("DEL", meta("portmap"), "web", space, given=given, previous=previous)


def test_a_taken_port_names_its_holder_and_nothing_is_left(house: House) -> None:
    chain = house.chain(house.bridge(), meta("portmap"))
    house.add(chain, "one", portMappings=ports(8080, 8081))
    before = house.host.rules()
    with pytest.raises(Refused, match="host port 8081 is published by container one") as refused:
        house.add(chain, "two", portMappings=ports(9090, 8081))
    assert refused.value.code == 120
    chain.delete("two", f"/run/netns/{house.host.name}two")
    assert sorted(house.host.rules().split()) == sorted(before.split())


def test_the_same_port_twice(house: House) -> None:
    """The same mapping twice is one; two that contradict each other are refused."""
    chain = house.chain(house.bridge(), meta("portmap"))
    house.add(chain, "one", portMappings=ports(8080, 8080))
    with pytest.raises(Refused, match="asked for twice, for the ports 80 and 81") as refused:
        house.add(chain, "two", portMappings=ports(8088) + ports(8088, inside=81))
    assert refused.value.code == 7


def test_an_add_that_was_killed_may_come_again(house: House) -> None:
    chain = house.chain(house.bridge(), meta("portmap"))
    space, result = house.add(chain, "one", portMappings=ports(8080))
    again = {"portMappings": ports(8080, 8081)}
    chain.call("ADD", meta("portmap"), "one", space, given=again, previous=result)
    chain.delete("one", space, result, **again)
    assert "one/eth0" not in house.host.rules()


def test_a_second_del_does_not_take_the_next_ones_port(house: House) -> None:
    chain = house.chain(house.bridge(), meta("portmap"))
    given = {"portMappings": ports(8080)}
    space, result = house.add(chain, "one", **given)
    chain.delete("one", space, result, **given)
    other, _ = house.add(chain, "two", **given)
    house.serve(other)
    for known in (result, None):
        chain.delete("one", space, known, **given)
    assert house.host.fetch("o", f"http://{HOST}:8080/") == "hello"


@pytest.mark.parametrize("told", [{"portMappings": ports(8080)}, {}, {"portMappings": ports(8080, 9999)}])
def test_del_takes_what_add_made_whatever_it_is_told(house: House, told: Json) -> None:
    chain = house.chain(house.bridge(), meta("portmap"))
    given = {"portMappings": ports(8080) + ports(8053, protocol="udp") + ports(8054, protocol="sctp")}
    space, result = house.add(chain, "one", **given)
    assert {"8080", "8053", "8054"} <= set(re.findall(r"\d+", house.host.rules()))
    chain.delete("one", space, result, **told)
    assert "one/eth0" not in house.host.rules()


def test_a_thousand_ports(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three figures are printed; the number of programs started is what does not depend on the machine."""
    asked = spied_nft(monkeypatch)
    chain = house.chain(house.bridge(), meta("portmap"))
    many = {"portMappings": [{"hostPort": n, "containerPort": n, "protocol": "tcp"} for n in range(20000, 21000)]}
    space, result = house.add(chain, "one", **many)
    house.serve(space, port=20999)
    assert house.host.fetch("o", f"http://{HOST}:20999/") == "hello"
    assert house.host.fetch("o", f"http://[{HOST6}]:20999/") == "hello"
    asked.clear()
    began = time.monotonic()
    chain.call("DEL", chain.plugins[1], "one", space, given=many, previous=result)
    print(f"\nDEL of 1,000 ports: {(time.monotonic() - began) * 1000:.0f} ms")
    assert asked == ["batch"]
    assert "one/eth0" not in house.host.rules().partition("masq")[0]


def spied_nft(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the real library is asked from now on: "batch", or what is to be listed."""
    asked: list[str] = []

    def run(text: str, *, as_json: bool = False) -> tuple[int, str, str]:
        asked.append(text if as_json else "batch")
        return libnft.run(text, as_json=as_json)

    monkeypatch.setattr(nft, "run", run)
    return asked


def test_del_lists_nothing_that_grows(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told what ADD was told: one batch. Told that there are no ports: nothing. A second DEL: one small set."""
    asked = spied_nft(monkeypatch)
    chain = house.chain(house.bridge(), meta("portmap"))
    given = {"portMappings": ports(8080)}
    space, result = house.add(chain, "one", **given)
    for told, calls in ((given, ["batch"]), (given, ["batch", f"list set inet {TABLE} published"]),
                        ({"portMappings": []}, [])):
        asked.clear()
        chain.call("DEL", chain.plugins[1], "one", space, given=told, previous=result)
        assert asked == calls


def test_gc_of_ports(house: House) -> None:
    bridge = house.bridge()
    chain = house.chain(bridge, meta("portmap"))
    for number, name in enumerate(("one", "two")):
        house.add(chain, name, portMappings=ports(8080 + number))
    chain.collect(("two", "eth0"))
    assert "one/eth0" not in house.host.rules()
    assert "8081" in house.host.rules()
    chain.collect()
    assert "two/eth0" not in house.host.rules()
    assert "@net" in house.host.rules(), "127.0.0.0/8 is guarded as long as the bridge is there"
    house.host.run("h", "ip", "link", "del", bridge["bridge"])
    chain.collect()
    assert "@net" not in house.host.rules()


@needs_reference
def test_ports_as_the_references(house: House) -> None:
    """The same configuration, the same answer, reached alike."""
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    house.serve(space)
    result["cniVersion"] = "1.0.0"
    for directory, number in ((house.own, 8080), (REFERENCE, 8081)):
        portmap = {key: value for key, value in meta("portmap", snat=True).items() if key != "nftTable"}
        given = {"portMappings": ports(number)}
        chained = Chain(directory, [portmap], "1.0.0", "ref")
        told = chained.call("ADD", portmap, "one", space, given=given, previous=result)
        assert shown(told) == shown(result)
        if directory == house.own:  # 1.1.1 of the reference looks for the IPv4 rules among those of IPv6
            chained.call("CHECK", portmap, "one", space, given=given, previous=told)
        for where, address in (("o", HOST), ("h", HOST), ("h", "127.0.0.1"), (space, HOST), ("o", f"[{HOST6}]")):
            assert house.host.fetch(where, f"http://{address}:{number}/") == "hello", (directory, where, address)
        for _ in range(2):
            chained.call("DEL", portmap, "one", space, given=given, previous=told)
        assert house.host.fetch("o", f"http://{HOST}:{number}/", 1) == ""


# ---- firewall ----


def reaches(house: House, where: str, result: Json) -> tuple[bool, bool]:
    """Whether a page is got by IPv4 and by IPv6."""
    urls = (f"http://{plain(result)}/", f"http://[{plain(result, 6)}]/")
    four, six = (house.host.fetch(where, url, 1) == "hello" for url in urls)
    return four, six


YES, NO = (True, True), (False, False)


@pytest.mark.parametrize(("policy", "neighbour", "network"), [
    ("open", YES, YES), ("", YES, YES), ("same-bridge", YES, NO), ("isolated", NO, NO),
])
def test_who_reaches_whom(house: House, policy: str, neighbour: tuple[bool, bool], network: tuple[bool, bool]) -> None:
    """Containers of one bridge, of two bridges, and the host, which is never kept away; published ports work anyhow."""
    wall = meta("firewall", ingressPolicy=policy)
    one = house.chain(house.bridge(1), meta("portmap"), wall, name="one")
    two = house.chain(house.bridge(2), meta("portmap"), wall, name="two")
    web, result = house.add(one, "web", portMappings=ports(8080))
    peer, _ = house.add(one, "peer")
    other, _ = house.add(two, "other")
    house.serve(web)
    assert reaches(house, "h", result) == YES
    assert reaches(house, peer, result) == neighbour
    assert reaches(house, other, result) == network
    assert house.host.fetch("o", f"http://{HOST}:8080/") == "hello"
    assert house.host.fetch(other, f"http://{HOST}:8080/") == "hello"
    for where in (web, peer, other):
        house.host.run(where, "busybox", "ping", "-c1", "-W2", OUTSIDE)
    one.check("web", web, result, portMappings=ports(8080))


@needs_reference
@pytest.mark.parametrize("policy", ["open", "same-bridge"])
def test_a_policy_as_the_references(house: House, policy: str) -> None:
    """Who reaches whom is the same; the release that is compared with has no `isolated`."""
    house.host.run("h", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    told = []
    for directory in (house.own, REFERENCE):
        wall, spaces = {"type": "firewall", "ingressPolicy": policy}, {}
        for number, kind in ((1, "web"), (1, "peer"), (2, "other")):
            name = kind + os.path.basename(directory)
            space, result = house.add(house.chain(house.bridge(number), version="1.0.0"), name)
            answer = Chain(directory, [wall], "1.0.0").call("ADD", wall, name, space, previous=result)
            assert shown(answer) == shown(result)
            spaces[name] = space, result
        (web, result), *others = spaces.values()
        house.serve(web)
        told.append([reaches(house, where, result) for where in ("h", *(space for space, _ in others))])
        for name, (space, result) in spaces.items():
            for _ in range(2):
                Chain(directory, [wall], "1.0.0").call("DEL", wall, name, space, previous=result)
        for name, (space, _) in spaces.items():
            house.chain(house.bridge(2 if name.startswith("other") else 1)).delete(name, space)
        house.host.run("h", "nft", "flush", "ruleset")
    assert told[0] == told[1]


def test_isolated_neighbours_have_no_way_by_the_host_either(house: House) -> None:
    """A container that sends to its neighbour by the gateway, as one with another netmask would."""
    chain = house.chain(house.bridge(), meta("firewall", ingressPolicy="isolated"))
    web, result = house.add(chain, "web")
    peer, back = house.add(chain, "peer")
    house.serve(web)
    for space, other in ((web, back), (peer, result)):
        house.host.run(space, "ip", "route", "replace", f"{plain(other)}/32", "via", "10.61.0.1")
    assert house.host.fetch(peer, f"http://{plain(result)}/", 1) == ""
    house.host.run("h", "nft", "flush", "chain", "inet", TABLE, "forward")
    assert house.host.fetch(peer, f"http://{plain(result)}/") == "hello"  # a true way: only that rule shuts it


def test_a_network_without_a_policy_is_reached_by_all(house: House) -> None:
    one = house.chain(house.bridge(1), meta("firewall", ingressPolicy="same-bridge"), name="one")
    two = house.chain(house.bridge(2), name="two")
    web, result = house.add(two, "web")
    peer, back = house.add(one, "peer")
    house.serve(web)
    house.serve(peer)
    assert reaches(house, peer, result) == YES
    assert reaches(house, web, back) == YES


def test_no_rule_per_container(house: House) -> None:
    chain = house.chain(house.bridge(), meta("firewall", ingressPolicy="same-bridge"))
    house.add(chain, "one")
    before = run("nft", "list", "table", "inet", TABLE).stdout.count("\n")
    house.add(chain, "two")
    assert run("nft", "list", "table", "inet", TABLE).stdout.count("\n") <= before + 2  # the masqueraded addresses


@pytest.mark.parametrize("whose", ["ours", pytest.param("theirs", marks=needs_reference)])
def test_a_policy_behind_ptp(house: House, whose: str) -> None:
    """Each is a network by itself; its element is its own and goes with it."""
    ipam = {"type": "host-local", "dataDir": str(house.path / "leases"), "subnet": "10.71.0.0/24",
            "routes": [{"dst": "0.0.0.0/0"}]}
    ptp, wall = {"type": "ptp", "ipam": ipam}, meta("firewall", ingressPolicy="same-bridge")
    house.host.run("h", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    chain = house.chain(wall, version="1.0.0")
    pairs = Chain(house.own if whose == "ours" else REFERENCE, [ptp], "1.0.0", "net")
    made = []
    for name in ("one", "two"):
        space = house.host.space(name)
        result = pairs.add(name, space)
        assert shown(chain.call("ADD", wall, name, space, previous=result)) == shown(result)
        chain.call("CHECK", wall, name, space, previous=result)
        made.append((name, space, result))
    house.serve(made[0][1])
    url = f"http://{plain(made[0][2])}/"
    assert house.host.fetch("h", url) == "hello"
    assert house.host.fetch(made[1][1], url, 1) == ""
    for told in (made[1][2], None, None):
        chain.call("DEL", wall, "two", made[1][1], previous=told)
    assert house.host.fetch(made[1][1], url) == "hello"
    chain.call("DEL", wall, "one", made[0][1])
    assert "eth0@net" not in house.host.rules()
    for name, space, _ in made:
        pairs.delete(name, space)


def test_a_policy_behind_macvlan_says_why_not(house: House) -> None:
    ipam = {"type": "host-local", "dataDir": str(house.path / "leases"), "subnet": "10.72.0.0/24"}
    macvlan = Chain(house.own, [{"type": "macvlan", "master": "up0", "ipam": ipam}], "1.0.0")
    space = house.host.space("c")
    result = macvlan.add("one", space)
    chain = house.chain(version="1.0.0")
    chain.call("ADD", meta("firewall"), "one", space, previous=result)
    with pytest.raises(Refused, match="no interface of the host") as refused:
        chain.call("ADD", meta("firewall", ingressPolicy="same-bridge"), "one", space, previous=result)
    assert (refused.value.code, "macvlan" in refused.value.details) == (7, True)
    chain.call("DEL", meta("firewall", ingressPolicy="same-bridge"), "one", space, previous=result)
    macvlan.delete("one", space)


def test_a_policy_comes_back_with_restore(house: House) -> None:
    chain = house.chain(house.bridge(), meta("firewall", ingressPolicy="isolated"))
    space, result = house.add(chain, "one")
    before = set(run("nft", "list", "table", "inet", TABLE).stdout.splitlines())
    house.host.run("h", "nft", "flush", "ruleset")
    with pytest.raises(Refused, match="ingress policy"):
        chain.call("CHECK", chain.plugins[1], "one", space, previous=result)
    given, out = json.dumps({"attachments": [chain.record("one", space, result)]}).encode(), io.BytesIO()
    assert launchers.program("restore")(["restore"], {}, io.BytesIO(given), out) == 0
    assert set(run("nft", "list", "table", "inet", TABLE).stdout.splitlines()) == before
    chain.check("one", space, result)


def test_gc_of_policies(house: House) -> None:
    bridge = house.bridge()
    chain = house.chain(bridge, meta("firewall", ingressPolicy="same-bridge"))
    house.add(chain, "one")
    chain.collect(("one", "eth0"))
    assert house.host.rules().count("fenced") > 2
    chain.collect()
    assert "@net" in house.host.rules(), "a bridge keeps its walls"
    house.host.run("h", "ip", "link", "del", bridge["bridge"])
    chain.collect()
    assert "@net" not in house.host.rules()


# ---- bandwidth ----


def mbits(house: House, server: str, client: str, address: str, seconds: int = 1) -> float:
    """What a TCP stream from the client to the server gets through, in Mbit/s as the server counts them."""
    child = house.popen(server, "iperf3", "-s", "-1", "-p", "5999")
    for _ in range(100):
        if ":5999 " in house.host.run(server, "ss", "-Hltn").stdout:
            break
        time.sleep(0.02)
    told = house.host.run(client, "iperf3", "-J", "-c", address, "-p", "5999", "-t", seconds, check=False).stdout
    child.wait(20)
    return float(json.loads(told)["end"]["sum_received"]["bits_per_second"] / 1e6)


RATES = {"ingressRate": 20_000_000, "ingressBurst": 2_000_000, "egressRate": 8_000_000, "egressBurst": 800_000}


def about(measured: float, wanted: float) -> bool:
    """Within what a burst and a busy machine make of it."""
    print(f"{measured:.1f} Mbit/s where {wanted} are set")
    return 0.4 * wanted < measured < 1.4 * wanted


@tools.needs("iperf3", "tc")
@pytest.mark.parametrize("how", ["configuration", "capability"])
def test_traffic_is_held_up_both_ways(house: House, how: str) -> None:
    given = {"bandwidth": RATES} if how == "capability" else {}
    chain = house.chain(house.bridge(), meta("bandwidth", **({} if given else RATES)))
    space, result = house.add(chain, "one", **given)
    assert [part["name"][:3] for part in result["interfaces"] if "sandbox" not in part][2:] == ["bwp"]
    chain.check("one", space, result, **given)
    assert about(mbits(house, space, "h", plain(result)), 20)
    assert about(mbits(house, "o", space, OUTSIDE), 8)
    assert about(mbits(house, "h", space, "fd61::1"), 8)
    chain.call("DEL", chain.plugins[1], "one", space, given=given, previous=result)
    assert mbits(house, space, "h", plain(result)) > 100
    assert mbits(house, "h", space, "10.61.0.1") > 100


@tools.needs("iperf3", "tc")
@pytest.mark.parametrize(("key", "gateway", "world"),
                         [("unshapedSubnets", False, True), ("shapedSubnets", True, False)])
def test_subnets_that_are_let_by(house: House, key: str, gateway: bool, world: bool) -> None:
    """The container's partner is meant: its own subnets by IPv4 and IPv6, or the rest."""
    rates = {**RATES, "ingressRate": RATES["egressRate"], key: ["10.61.0.0/24", "fd61::/64"]}
    chain = house.chain(house.bridge(ipMasq=False), meta("bandwidth", **rates))
    space, result = house.add(chain, "one")
    house.host.run("o", "ip", "route", "add", "10.61.0.0/24", "via", HOST)
    chain.check("one", space, result)
    for slow, speeds in (
        (gateway, (mbits(house, space, "h", plain(result)), mbits(house, "h", space, "10.61.0.1"),
                   mbits(house, space, "h", plain(result, 6)), mbits(house, "h", space, "fd61::1"))),
        (world, (mbits(house, space, "o", plain(result)), mbits(house, "o", space, OUTSIDE))),
    ):
        for speed in speeds:
            assert about(speed, 8) if slow else speed > 100


@needs_reference
@tools.needs("tc")
def test_queues_as_the_references(house: House) -> None:
    """The same disciplines, rates, limits and filters, and the same answer but for the device's name."""
    chain = house.chain(house.bridge(), version="1.0.0")
    config = {"type": "bandwidth", **RATES}
    told = []
    for directory in (house.own, REFERENCE):
        name = os.path.basename(directory)
        space, result = house.add(chain, name)
        chained = Chain(directory, [config], "1.0.0", "ref")
        answer = chained.call("ADD", config, name, space, previous=result)
        assert answer is not None
        chained.call("CHECK", config, name, space, previous=answer)
        pair, device = result["interfaces"][1]["name"], answer["interfaces"][-1]["name"]
        assert shown({**answer, "interfaces": answer["interfaces"][:-1]}) == shown(result)
        told.append([queues(pair), queues(device), filters(pair)])
        for _ in range(2):
            chained.call("DEL", config, name, space, previous=answer)
        assert device not in house.host.links()
    assert told[0] == told[1]


def queues(link: str) -> list[tuple[str, Any]]:
    """Kind and options of a link's disciplines; how long a burst may last is told in whole microseconds."""
    found = json.loads(run("tc", "-j", "qdisc", "show", "dev", link).stdout)
    return [(part["kind"], {key: value for key, value in part.get("options", {}).items() if key != "burst"},
             round(part.get("options", {}).get("burst", 0), -3)) for part in found]


def filters(link: str) -> list[str]:
    """What they match, and what becomes of that; the reference has its action twice, the second does nothing."""
    lines = run("tc", "filter", "show", "dev", link, "ingress").stdout.splitlines()
    return [re.sub(r"bwp\w+", "", line).strip() for line in lines if "match" in line or "order 1" in line]


@tools.needs("iperf3", "tc")
def test_rates_and_ports_behind_ptp(house: House) -> None:
    """A point-to-point link with all that is chained behind it."""
    ptp = {**house.bridge(), "type": "ptp"}
    wall = meta("firewall", ingressPolicy="same-bridge")
    chain = house.chain(ptp, meta("portmap"), meta("bandwidth", **RATES), wall, meta("tuning", mtu=1400), meta("sbr"))
    given = {"portMappings": ports(8080)}
    space, result = house.add(chain, "one", **given)
    chain.check("one", space, result, **given)
    house.serve(space)
    for where, address in (("o", HOST), ("h", HOST), ("h", "127.0.0.1"), ("o", f"[{HOST6}]")):
        assert house.host.fetch(where, f"http://{address}:8080/") == "hello", (where, address)
    assert about(mbits(house, space, "h", plain(result)), 20)
    chain.delete("one", space, result, **given)
    assert "/eth0@" not in house.host.rules()


def test_an_add_of_queues_that_was_killed_may_come_again(house: House) -> None:
    chain = house.chain(house.bridge(), meta("bandwidth", **RATES))
    space, result = house.add(chain, "one")
    before = {**result, "interfaces": result["interfaces"][:3]}
    again = chain.call("ADD", chain.plugins[1], "one", space, previous=before)
    assert again is not None
    assert len(again["interfaces"]) == 4
    chain.check("one", space, again)


def test_check_finds_what_became_of_the_rates(house: House) -> None:
    chain = house.chain(house.bridge(), meta("bandwidth", **RATES))
    space, result = house.add(chain, "one")
    pair, device = result["interfaces"][1]["name"], result["interfaces"][3]["name"]
    house.host.run("h", *f"tc qdisc change dev {device} root handle 1: tbf rate 9mbit burst 100k latency 25ms".split())
    with pytest.raises(Refused, match="9000000 bits a second pass, not 8000000"):
        chain.check("one", space, result)
    house.host.run("h", "tc", "qdisc", "del", "dev", pair, "root")
    with pytest.raises(Refused, match="no longer shaped"):
        chain.check("one", space, result)


def test_no_limit_is_no_queue(house: House) -> None:
    chain = house.chain(house.bridge(), meta("bandwidth"))
    space, result = house.add(chain, "one", bandwidth={})
    assert len(result["interfaces"]) == 3
    assert "tbf" not in run("tc", "qdisc").stdout
    chain.check("one", space, result)


def test_gc_of_queues(house: House) -> None:
    chain, other = (house.chain(house.bridge(), meta("bandwidth", **RATES), name=name) for name in ("net", "second"))
    house.add(chain, "one")
    house.add(chain, "two")
    house.add(other, "three")
    chain.collect(("two", "eth0"))
    assert house.host.links().count("bwp") == 2
    chain.collect()
    assert house.host.links().count("bwp") == 1


def test_bandwidth_behind_macvlan_says_why_not(house: House) -> None:
    ipam = {"type": "host-local", "dataDir": str(house.path / "leases"), "subnet": "10.72.0.0/24"}
    macvlan = Chain(house.own, [{"type": "macvlan", "master": "up0", "ipam": ipam}], "1.0.0")
    space = house.host.space("c")
    result = macvlan.add("one", space)
    with pytest.raises(Refused, match="no veth interface of the host"):
        house.chain(version="1.0.0").call("ADD", meta("bandwidth", **RATES), "one", space, previous=result)
    macvlan.delete("one", space)


# ---- tuning ----


def attributes(host: NetHost, space: str) -> tuple[Any, ...]:
    told = json.loads(host.run(space, "ip", "-j", "-d", "link", "show", "eth0").stdout)[0]
    return told["address"], told["mtu"], told["txqlen"], told["promiscuity"], "ALLMULTI" in told["flags"]


def test_attributes_are_set_told_and_given_back(house: House) -> None:
    """For a namespace and an interface that live on: DEL of tuning alone."""
    tune = meta("tuning", mtu=1400, promisc=True, allmulti=True, txQLen=77, dataDir=str(house.path / "tuning"),
                sysctl={"net.ipv4.conf.IFNAME.log_martians": "1", "net/core/somaxconn": "333",
                        "net.ipv4.ip_local_port_range": "2000 3000"})
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    before = attributes(house.host, space)
    names = ("net.ipv4.conf.eth0.log_martians", "net.core.somaxconn", "net.ipv4.ip_local_port_range")
    values = [house.host.run(space, "sysctl", "-n", name).stdout.split() for name in names]
    mac = {"mac": "02:11:22:33:44:55"}
    told = chain.call("ADD", tune, "one", space, given=mac, previous=result)
    assert told is not None
    assert told["interfaces"][2] == {**result["interfaces"][2], **mac, "mtu": 1400}
    assert told["interfaces"][:2] == result["interfaces"][:2]
    assert attributes(house.host, space) == (mac["mac"], 1400, 77, 1, True)
    now = [house.host.run(space, "sysctl", "-n", name).stdout.split() for name in names]
    assert now == [["1"], ["333"], ["2000", "3000"]]
    chain.call("CHECK", tune, "one", space, given=mac, previous=told)
    for _ in range(2):
        chain.call("DEL", tune, "one", space, given=mac, previous=told)
        assert attributes(house.host, space) == before
        assert [house.host.run(space, "sysctl", "-n", name).stdout.split() for name in names] == values
    assert not list((house.path / "tuning").iterdir())


def test_what_was_before_is_kept_first_and_for_its_network_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed ADD has changed nothing that DEL does not know; a DEL of another network, whose ADD was refused the
    interface's name, gives back nothing."""
    tune = meta("tuning", sysctl={"net.core.somaxconn": "333"}, dataDir=str(house.path / "tuning"))
    chain, other = house.chain(house.bridge()), house.chain(tune, name="other")
    space, result = house.add(chain, "one")
    before, kept = house.host.run(space, "sysctl", "-n", "net.core.somaxconn").stdout, []
    write = tuning._write
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_write", lambda wanted: (kept.extend(os.listdir(house.path / "tuning")), write(wanted)))
        chain.call("ADD", tune, "one", space, previous=result)
    assert kept == ["one:eth0.json"]
    other.delete("one", space)
    assert house.host.run(space, "sysctl", "-n", "net.core.somaxconn").stdout == "333\n"
    chain.call("DEL", tune, "one", space)
    assert house.host.run(space, "sysctl", "-n", "net.core.somaxconn").stdout == before


@pytest.mark.parametrize("change", ["ip link set eth0 mtu 1300", "ip link set eth0 promisc off",
                                    "ip link set eth0 allmulticast off", "ip link set eth0 txqlen 5",
                                    "sysctl -qw net.core.somaxconn=1", "ip link set eth0 address 02:00:00:00:00:09"])
def test_check_finds_what_was_changed(house: House, change: str) -> None:
    tune = meta("tuning", mtu=1400, promisc=True, allmulti=True, txQLen=77, mac="02:11:22:33:44:55",
                dataDir=str(house.path / "tuning"), sysctl={"net.core.somaxconn": "333"})
    chain = house.chain(house.bridge(), tune)
    space, result = house.add(chain, "one")
    chain.check("one", space, result)
    house.host.run(space, *change.split())
    with pytest.raises(Refused):
        chain.call("CHECK", tune, "one", space, previous=result)


def test_who_says_the_mac(house: House) -> None:
    """args.cni before runtimeConfig, that before CNI_ARGS, that before the configuration."""
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    tune = meta("tuning", dataDir=str(house.path / "tuning"))
    own, args = {"mac": "02:00:00:00:00:01"}, {"CNI_ARGS": "IgnoreUnknown=1;MAC=02:00:00:00:00:02"}
    given, cni = {"mac": "02:00:00:00:00:03"}, {"args": {"cni": {"mac": "02:00:00:00:00:04"}}}
    for number, (config, env, runtime) in enumerate(((own, {}, {}), (own, args, {}), (own, args, given),
                                                     ({**own, **cni}, args, given)), 1):
        told = chain.call("ADD", {**tune, **config}, "one", space, given=runtime, previous=result, **env)
        assert told is not None
        assert told["interfaces"][2]["mac"] == f"02:00:00:00:00:0{number}"
    chain.call("DEL", tune, "one", space)
    assert attributes(house.host, space)[0] == result["interfaces"][2]["mac"]


def test_a_setting_that_fails_takes_the_others_back(house: House) -> None:
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    before = settled(house.host, space)
    tune = meta("tuning", dataDir=str(house.path / "tuning"), sysctl={"net.core.somaxconn": "77"})
    first = tune["sysctl"]
    for bad in ({"mtu": 1400, "mac": "00:00:00:00:00:00"}, {"sysctl": {**first, "net.no.such": "1"}},
                {"sysctl": {**first, "net.ipv4.ip_forward": "maybe"}}):
        with pytest.raises(Refused):
            chain.call("ADD", {**tune, **bad}, "one", space, previous=result)
        assert everything(house.host, space) == before


def test_the_administrators_list(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as the reference has it: a regular expression a line."""
    from wherry_cni import tuning

    path = tmp_path / "allowlist.conf"
    path.write_text("^net.core.somaxconn$\n\nnet.ipv4.conf.IFNAME.[a-z_]*\n")
    monkeypatch.setattr(tuning, "ALLOWED", str(path))
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    tune = meta("tuning", dataDir=str(house.path / "tuning"))
    for name, fine in (("net.core.somaxconn", True), ("net.ipv4.conf.IFNAME.log_martians", True),
                       ("net.ipv4.ip_forward", False)):
        config = {**tune, "sysctl": {name: "1"}}
        with contextlib.nullcontext() if fine else pytest.raises(Refused, match="is not allowed"):
            chain.call("ADD", config, "one", space, previous=result)
        chain.call("DEL", config, "one", space)
    path.write_text("net.(\n")
    with pytest.raises(Refused, match=r"allowlist\.conf"):
        chain.call("STATUS", {**tune, "sysctl": {"net.core.somaxconn": "1"}}, "", "", "")


def test_another_interface_of_the_same_name_is_left_alone(house: House) -> None:
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    tune = meta("tuning", mtu=1300, dataDir=str(house.path / "tuning"))
    chain.call("ADD", tune, "one", space, previous=result)
    house.host.run(space, "ip", "link", "del", "eth0")
    house.host.run(space, "ip", "link", "add", "eth0", "mtu", "1200", "type", "veth", "peer", "name", "x")
    chain.call("DEL", tune, "one", space)
    assert attributes(house.host, space)[1] == 1200


def test_gc_of_what_is_kept(house: House) -> None:
    data = house.path / "tuning"
    tune = meta("tuning", mtu=1300, dataDir=str(data))
    chain, other = (house.chain(house.bridge(), tune, name=name) for name in ("net", "second"))
    for network, name in ((chain, "one"), (chain, "two"), (other, "three")):
        house.add(network, name)
    (data / "theirs.json").write_text('{"mac": ""}')
    (data / "half.json").write_text("{")
    chain.collect(("two", "eth0"))
    assert {path.name for path in data.iterdir()} == {"two:eth0.json", "three:eth0.json", "theirs.json", "half.json"}


@needs_reference
def test_tuned_as_by_the_reference(house: House) -> None:
    chain = house.chain(house.bridge(), version="1.0.0")
    told = []
    for directory in (house.own, REFERENCE):
        name = os.path.basename(directory)
        space, result = house.add(chain, name)
        tune = {"type": "tuning", "mtu": 1400, "mac": "02:11:22:33:44:55", "promisc": True, "allmulti": True,
                "sysctl": {"net.core.somaxconn": "333"}, "dataDir": str(house.path / f"tuning-{name}")}
        chained = Chain(directory, [tune], "1.0.0", "ref")
        before = attributes(house.host, space)
        answer = chained.call("ADD", tune, name, space, previous=result)
        chained.call("CHECK", tune, name, space, previous=answer)
        told.append((shown(answer)["interfaces"][2]["mac"], attributes(house.host, space),
                     house.host.run(space, "sysctl", "-n", "net.core.somaxconn").stdout))
        chained.call("DEL", tune, name, space, previous=answer)
        told[-1] = (*told[-1], attributes(house.host, space) == before)
    assert told[0] == told[1]


# ---- sbr ----


def second_interface(house: House, space: str, **more: Any) -> tuple[Chain, Json]:
    """A second network of a container, by sbr."""
    chain = house.chain(house.bridge(2), meta("sbr", **more), name="second")
    return chain, chain.add("one", space, "eth1")


def ways(host: NetHost, space: str, table: object = "main", family: str = "-4") -> str:
    return host.run(space, "ip", family, "route", "show", "table", table, check=False).stdout


def test_each_interface_answers_for_itself(house: House) -> None:
    chain = house.chain(house.bridge(1), name="first")
    space, first = house.add(chain, "one")
    before = {family: ways(house.host, space, "main", family) for family in ("-4", "-6")}
    second, result = second_interface(house, space)
    for family in ("-4", "-6"):
        assert [line for line in ways(house.host, space, "main", family).splitlines() if "eth1" not in line] == \
            before[family].splitlines()
    assert "default via 10.62.0.1 dev eth1" in ways(house.host, space, 100)
    assert "10.62.0.0/24 dev eth1" in ways(house.host, space, 100)
    assert "default via fd62::1 dev eth1" in ways(house.host, space, 101, "-6")
    assert "eth1" not in ways(house.host, space)
    house.serve(space)
    for told in (first, result):
        assert house.host.fetch("h", f"http://{plain(told)}/") == "hello"
        assert house.host.fetch("h", f"http://[{plain(told, 6)}]/") == "hello"
        assert house.host.run(space, "ip", "route", "get", OUTSIDE, "from", plain(told)).stdout.split()[4] == \
            told["ips"][0]["gateway"]
    second.check("one", space, result, "eth1")
    for known in (result, None, result):
        second.call("DEL", second.plugins[1], "one", space, "eth1", previous=known)
    assert "10.62" not in house.host.run(space, "ip", "rule").stdout
    with pytest.raises(Refused, match="routing table of their own"):
        second.call("CHECK", second.plugins[1], "one", space, "eth1", previous=result)
    second.delete("one", space, None, "eth1")
    assert {family: ways(house.host, space, "main", family) for family in ("-4", "-6")} == before


@pytest.mark.parametrize(("taken", "more", "wanted"), [
    ("ip route add 10.250.0.0/24 dev lo table 100", {}, (101, 102)),
    ("ip rule add from 10.250.0.1 table 100", {}, (101, 102)),
    ("ip -6 rule add from fd99::1 table 101", {}, (100, 102)),
    ("true", {"table": 252}, (252, 256)), ("true", {"table": 70000}, (70000, 70001)),
])
def test_free_tables(house: House, taken: str, more: Json, wanted: tuple[int, int]) -> None:
    space = house.host.space("c")
    house.host.run(space, *taken.split())
    second, _ = second_interface(house, space, **more)
    rules = house.host.run(space, "ip", "rule").stdout + house.host.run(space, "ip", "-6", "rule").stdout
    found = [line.split()[-1] for line in rules.splitlines() if "62" in line and "from all" not in line]
    assert found == [str(number) for number in wanted]
    second.delete("one", space, None, "eth1")


def test_routes_of_ipam_move_along(house: House) -> None:
    space = house.host.space("c")
    bridge = house.bridge(2)
    bridge["ipam"]["routes"] = [{"dst": "172.20.0.0/16", "gw": "10.62.0.9"}, {"dst": "fd77::/64"}]
    chain = house.chain(bridge, meta("sbr"))
    chain.add("one", space, "eth1")
    assert ways(house.host, space).strip() == ""
    assert "172.20.0.0/16 via 10.62.0.9 dev eth1" in ways(house.host, space, 100)
    assert "fd77::/64 via fd62::1 dev eth1" in ways(house.host, space, 101, "-6")
    chain.delete("one", space, None, "eth1")


def test_an_add_of_routes_that_fails_is_undone(house: House) -> None:
    """The gateway of one address is of no use to the kernel: what was moved comes back."""
    chain = house.chain(house.bridge())
    space, result = house.add(chain, "one")
    before = settled(house.host, space)
    bad = [dict(part) for part in result["ips"]]
    bad[1]["gateway"] = plain(result, 6)  # an address of its own
    with pytest.raises(Refused):
        chain.call("ADD", meta("sbr"), "one", space, previous={**result, "ips": bad})
    assert everything(house.host, space) == before


@needs_reference
def test_routed_as_by_the_reference(house: House) -> None:
    """By IPv4; the release that is compared with moves an interface's routes of both families into one table."""
    told = []
    for directory in (house.own, REFERENCE):
        name = os.path.basename(directory)
        bridge = house.bridge(2)
        bridge["ipam"]["ranges"] = bridge["ipam"]["ranges"][:1]
        bridge["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "172.20.0.0/16"}]
        chain = house.chain(bridge, version="1.0.0")
        space, result = house.add(chain, name)
        chained = Chain(directory, [meta("sbr")], "1.0.0")
        assert shown(chained.call("ADD", meta("sbr"), name, space, previous=result)) == shown(result)
        own = plain(result)
        rules = house.host.run(space, "ip", "rule").stdout.replace(own, "OWN")
        lines = sorted(ways(house.host, space, 100).replace(own, "OWN").split("\n"))
        told.append((rules, [re.sub(r" proto \w+", "", line).strip() for line in lines], ways(house.host, space)))
        chained.call("DEL", meta("sbr"), name, space, previous=result)
        assert own not in house.host.run(space, "ip", "rule").stdout
    assert told[0] == told[1]
