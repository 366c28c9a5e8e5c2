"""Networks on a real kernel: joined, published, isolated, left without a trace, on a host that is a namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.nethost import HOST, HOST6, OUTSIDE, OUTSIDE6, NetHost
from wherry.errors import Kind, WherryError
from wherry.model import Attachment, NetworkResult, Place, PortMapping
from wherry.net import netns
from wherry.net.networks import Networks

pytestmark = pytest.mark.root
BRIDGE = Attachment("bridge")


class House:
    """One wherry's networks on one host, and containers that are only namespaces."""

    def __init__(self, host: NetHost, path: Path) -> None:
        self.host, self.path = host, path
        self.place = Place(root=str(path / "root"), state=str(path / "state"), cni_conf=str(path / "net.d"),
                           cni_bin=("/usr/lib/cni",))
        self.nets = Networks(self.place)

    def container(self, name: str) -> str:
        return netns.create(f"{self.place.state}/netns/{name}")

    def join(self, name: str, ports: tuple[PortMapping, ...] = (), wish: Attachment = BRIDGE) -> NetworkResult:
        path = f"{self.place.state}/netns/{name}"
        return self.nets.attach(name, path if os.path.exists(path) else self.container(name), wish, ports)

    def leave(self, name: str, network: str = "bridge", interface: str = "eth0") -> None:
        self.nets.detach(name, self.space(name), network, interface=interface)

    def space(self, name: str) -> str:
        return f"{self.place.state}/netns/{name}"

    def close(self) -> None:
        self.nets.sweep([])
        for name in os.listdir(f"{self.place.state}/netns") if os.path.isdir(f"{self.place.state}/netns") else ():
            netns.remove(self.space(name))
        self.nets.teardown()


@pytest.fixture
def house(host: NetHost, tmp_path: Path) -> Iterator[House]:
    before = host.state()
    made = House(host, tmp_path)
    yield made
    made.close()
    assert host.state() == before


def plain(result: NetworkResult, family: int = 4) -> str:
    texts = [address.address for address in result.interfaces[0].addresses]
    return next(text for text in texts if (":" in text) == (family == 6)).partition("/")[0]


def page(path: Path, text: str) -> Path:
    directory = path / f"www-{text}"
    directory.mkdir()
    (directory / "index.html").write_text(text)
    return directory


def test_a_container_reaches_its_peer_the_host_and_the_world_masqueraded(house: House) -> None:
    one, two = house.join("one"), house.join("two")
    assert one.interfaces[0].name == "eth0"
    for target in (plain(two), one.interfaces[0].addresses[0].gateway, HOST, OUTSIDE):
        house.host.run(house.space("one"), "busybox", "ping", "-c1", "-W2", target)
    # the world has no route back: its answer proves that it saw the host's own address
    assert plain(one) not in house.host.run("o", "ip", "route").stdout
    house.nets.check("one", "bridge")


def test_a_published_port_is_reached_from_everywhere_it_should(house: House, tmp_path: Path) -> None:
    house.nets.create("six", ipv6=True)
    wish = Attachment("six")
    result = house.join("web", (PortMapping(80, 8080), PortMapping(80, 8081, "tcp", "127.0.0.1"),
                                PortMapping(80, 8082, "tcp", HOST)), wish)
    # a link-local address under duplicate detection would keep the host from soliciting neighbours for 1 to 2 s
    bridge = house.host.run("h", "ip", "-br", "link", "show", "type", "bridge").stdout.split()[0]
    assert house.host.run("h", "ip", "-6", "addr", "show", "tentative", "dev", bridge).stdout == ""
    house.join("peer", wish=wish)
    house.join("other")
    house.host.serve(house.space("web"), page(tmp_path, "hello"))
    host, fetch = house.host, house.host.fetch
    gateway = result.interfaces[0].addresses[0].gateway
    for where, url in (
        ("h", "http://127.0.0.1:8080/"), ("h", f"http://{HOST}:8080/"), ("h", f"http://{gateway}:8080/"),
        ("h", f"http://[{HOST6}]:8080/"), ("o", f"http://{HOST}:8080/"), ("o", f"http://[{HOST6}]:8080/"),
        ("h", "http://127.0.0.1:8081/"), ("h", f"http://{HOST}:8082/"), ("o", f"http://{HOST}:8082/"),
        (house.space("peer"), f"http://{HOST}:8080/"), (house.space("peer"), f"http://[{HOST6}]:8080/"),
        (house.space("web"), f"http://{HOST}:8080/"), (house.space("web"), f"http://{gateway}:8080/"),  # hairpin
        (house.space("other"), f"http://{HOST}:8080/"),
    ):
        assert fetch(where, url) == "hello", (where, url)
    for where, url in (
        ("o", f"http://{HOST}:8081/"), ("h", f"http://{HOST}:8081/"),  # published on loopback only
        ("h", "http://127.0.0.1:8082/"), (house.space("peer"), "http://127.0.0.1:8080/"),
        ("h", "http://[::1]:8080/"), ("o", f"http://{HOST}:80/"),
    ):
        assert fetch(where, url, 1) == "", (where, url)
    house.leave("web", "six")
    assert fetch("h", "http://127.0.0.1:8080/", 1) == ""
    assert host.run("h", "nft", "list", "ruleset").stdout.count("web/eth0@six") == 0


def test_a_neighbour_cannot_reach_what_is_published_on_loopback(house: House, tmp_path: Path) -> None:
    house.join("web", (PortMapping(80, 8081, "tcp", "127.0.0.1"),))
    house.host.serve(house.space("web"), page(tmp_path, "secret"))
    assert house.host.fetch("h", "http://127.0.0.1:8081/") == "secret"
    mac = house.host.run("h", "ip", "-br", "link", "show", "up0").stdout.split()[2]
    house.host.run("o", "sysctl", "-qw", "net.ipv4.conf.out0.route_localnet=1")
    house.host.run("o", "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
    house.host.run("o", "ip", "route", "add", "127.0.0.1", "via", HOST, "dev", "out0", "src", OUTSIDE)
    theirs = house.host.run("o", "ip", "-br", "link", "show", "out0").stdout.split()[2]
    house.host.run("o", "ip", "neigh", "replace", HOST, "lladdr", mac, "dev", "out0")
    house.host.run("h", "ip", "neigh", "replace", OUTSIDE, "lladdr", theirs, "dev", "up0")
    assert house.host.fetch("o", "http://127.0.0.1:8081/", 1) == ""
    table = house.host.table()
    listed = house.host.run("h", "nft", "-a", "list", "chain", "inet", table, "prerouting").stdout
    handle = next(line.split()[-1] for line in listed.splitlines() if "127.0.0.0/8 return" in line)
    house.host.run("h", "nft", "delete", "rule", "inet", table, "prerouting", "handle", handle)
    assert house.host.fetch("o", "http://127.0.0.1:8081/") == "secret"  # a true attack: only that rule stops it


def test_a_container_cannot_reach_the_hosts_own_loopback_services(house: House, tmp_path: Path) -> None:
    """route_localnet must not open 127.0.0.1 of the host to containers (CVE-2020-8558)."""
    result = house.join("web", (PortMapping(80, 8080),))
    house.host.serve("h", page(tmp_path, "private"), 9999)
    inside, gateway = house.space("web"), result.interfaces[0].addresses[0].gateway
    house.host.run(inside, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
    house.host.run(inside, "ip", "route", "add", "127.0.0.1", "via", gateway, "dev", "eth0", "src", plain(result))
    house.host.run(inside, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    assert house.host.fetch("h", "http://127.0.0.1:9999/") == "private"
    assert house.host.fetch(inside, "http://127.0.0.1:9999/", 1) == ""


def test_networks_are_isolated_and_internal_ones_are_closed(house: House, tmp_path: Path) -> None:
    house.nets.create("left")
    house.nets.create("inner", internal=True)
    left = house.join("a", wish=Attachment("left"))
    house.join("b")
    inner = house.join("c", wish=Attachment("inner"))
    house.join("d", wish=Attachment("inner"))
    house.host.serve(house.space("a"), page(tmp_path, "left"))
    house.host.serve(house.space("c"), page(tmp_path, "inner"))
    assert house.host.fetch(house.space("b"), f"http://{plain(left)}/", 1) == ""
    assert house.host.fetch(house.space("d"), f"http://{plain(inner)}/") == "inner"
    assert "default" not in house.host.run(house.space("c"), "ip", "route").stdout
    gateway = house.nets.gateway("inner")
    house.host.run(house.space("c"), "ip", "route", "add", "default", "via", gateway)
    house.host.run("o", "ip", "route", "add", f"{plain(inner)}/32", "via", HOST)
    house.host.serve("o", page(tmp_path, "world"))
    assert house.host.fetch(house.space("b"), f"http://{OUTSIDE}/") == "world"
    assert house.host.fetch(house.space("c"), f"http://{OUTSIDE}/", 1) == ""
    assert house.host.fetch("o", f"http://{plain(inner)}/", 1) == ""
    house.host.run("o", "ip", "route", "add", f"{plain(left)}/32", "via", HOST)
    assert house.host.fetch("o", f"http://{plain(left)}/", 1) == ""  # nothing but published ports from outside


def test_static_address_mac_and_a_second_network(house: House) -> None:
    house.nets.create("web")
    gateway = house.nets.gateway("web")
    wanted = gateway.rsplit(".", 1)[0] + ".77"
    house.join("one")
    result = house.join("one", wish=Attachment("web", ip=wanted, mac="02:11:22:33:44:55", interface="eth1"))
    assert plain(result) == wanted
    assert result.interfaces[0].mac == "02:11:22:33:44:55"
    shown = house.host.run(house.space("one"), "ip", "-br", "addr").stdout
    assert "eth0" in shown
    assert f"{wanted}/24" in shown
    with pytest.raises(WherryError, match="in use"):
        house.join("two", wish=Attachment("web", ip=wanted))
    with pytest.raises(WherryError, match="in no range"):
        house.join("two", wish=Attachment("web", ip="203.0.113.9"))
    with pytest.raises(WherryError, match="in use by container one"):
        house.nets.remove("web")
    house.leave("one", "web", "eth1")
    assert house.nets.remove("web") == "web"
    assert "eth1" not in house.host.run(house.space("one"), "ip", "-br", "addr").stdout


def test_leaving_twice_and_after_the_namespace_is_gone(house: House) -> None:
    house.join("one", (PortMapping(80, 8080),))
    assert "veth" in house.host.links()
    netns.remove(house.space("one"))
    house.leave("one")
    assert "veth" not in house.host.links()  # at once, whatever the kernel still does with the dead namespace
    house.leave("one")
    house.leave("never")
    house.leave("never", "nosuchnetwork")
    assert house.nets.attached() == []
    house.join("two", (PortMapping(80, 8080),))
    house.leave("two")


def test_leaving_a_half_made_namespace(house: House) -> None:
    """A command killed between the file and the mount on it: plugins take an absent path, an empty file they do not."""
    house.join("one")
    netns.remove(house.space("one"))
    Path(house.space("one")).touch()
    house.leave("one")
    assert house.nets.attached() == []
    netns.remove(house.space("one"))


def test_rules_are_found_without_any_memory(house: House) -> None:
    house.join("one", (PortMapping(80, 8080),))
    shutil.rmtree(f"{house.place.state}/cni/results")
    assert "one/eth0@bridge" in house.host.rules()
    house.nets.detach("one", house.space("one"), "bridge", [PortMapping(80, 8080)])
    assert "one/eth0@bridge" not in house.host.rules()
    assert "veth" not in house.host.links()


def test_a_taken_port_is_refused_and_leaves_nothing(house: House, tmp_path: Path) -> None:
    house.join("one", (PortMapping(80, 8080),))
    before = house.host.state()
    house.container("two")
    with pytest.raises(WherryError, match="8080/tcp is in use: container one publishes it") as caught:
        house.join("two", (PortMapping(80, 8080),))
    assert caught.value.kind is Kind.CONFLICT
    house.host.serve("h", page(tmp_path, "x"), 9000)
    with pytest.raises(WherryError, match="9000/tcp is in use: busybox"):
        house.join("two", (PortMapping(80, 9000),))
    assert house.host.state() == before
    shutil.rmtree(f"{house.place.state}/ports")  # the book is lost: the rules themselves still refuse
    with pytest.raises(WherryError, match="published by container one"):
        house.join("two", (PortMapping(80, 8080),))
    assert house.host.state() == before


def test_an_interrupted_attach_is_swept(house: House) -> None:
    house.join("one", (PortMapping(80, 8080),))
    house.join("two")
    assert house.nets.sweep(["two"]) == ["one"]
    assert "one/eth0" not in house.host.rules()
    assert [joined.container_id for joined in house.nets.attached()] == ["two"]
    house.nets.check("two", "bridge")


def test_check_sees_what_is_broken(house: House) -> None:
    result = house.join("one")
    house.nets.check("one", "bridge")
    house.host.run("h", "nft", "flush", "ruleset")
    with pytest.raises(WherryError, match="masqueraded"):
        house.nets.check("one", "bridge")
    house.host.run(house.space("one"), "ip", "addr", "del", result.interfaces[0].addresses[0].address, "dev", "eth0")
    with pytest.raises(WherryError, match="lost its address"):
        house.nets.check("one", "bridge")
    house.join("two")  # the table is put back by the next ADD
    house.nets.check("two", "bridge")


def test_many_at_once(house: House) -> None:
    names = [f"c{number}" for number in range(12)]
    for name in names:
        house.container(name)
    host = f"/run/netns/{house.host.name}h"

    def join(name: str) -> str:
        return plain(house.join(name, (PortMapping(80),)))

    assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(host).st_ino
    with ThreadPoolExecutor(4) as pool:  # its threads stand where we stand
        found = list(pool.map(join, names))
        assert len(set(found)) == 12
        list(pool.map(house.leave, names))
    assert "veth" not in house.host.links()


def test_a_network_leaves_no_link_no_rule_and_no_lease(house: House) -> None:
    before = house.host.links()
    house.nets.create("web", ipv6=True)
    house.join("one", (PortMapping(80, 8080),), Attachment("web"))
    house.leave("one", "web")
    house.nets.remove("web")
    assert house.host.links() == before
    assert "@web" not in house.host.rules()
    assert not os.path.exists(f"{house.place.state}/cni/leases/web")


def test_other_tables_neither_break_us_nor_are_touched(house: House, tmp_path: Path) -> None:
    other = tmp_path / "other.nft"
    other.write_text("""table inet other { chain post { type nat hook postrouting priority 90; policy accept; }
        chain pre { type nat hook prerouting priority -110; policy accept; }
        }
        """)
    house.host.run("h", "nft", "-f", other)
    before = house.host.run("h", "nft", "list", "table", "inet", "other").stdout
    house.join("one", (PortMapping(80, 8080),))
    house.host.serve(house.space("one"), page(tmp_path, "x"))
    assert house.host.fetch("o", f"http://{HOST}:8080/") == "x"
    house.host.run(house.space("one"), "busybox", "ping", "-c1", "-W2", OUTSIDE)
    house.leave("one")
    assert house.host.run("h", "nft", "list", "table", "inet", "other").stdout == before
    house.host.run("h", "nft", "delete", "table", "inet", "other")


def test_ipv6_reaches_the_world_masqueraded(house: House) -> None:
    house.nets.create("six", ipv6=True)
    house.join("one", wish=Attachment("six"))
    house.host.run(house.space("one"), "busybox", "ping", "-6", "-c1", "-W2", OUTSIDE6)


UDP_ECHO = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(100)
    server.sendto(sys.argv[1].encode(), peer)
"""
UDP_ASK = f"""
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(("0.0.0.0", 40000))
client.settimeout(1)
client.sendto(b"x", ("{HOST}", 5353))
try:
    print(client.recv(100).decode())
except TimeoutError:
    print("nothing")
"""


def test_a_udp_flow_follows_its_port_to_the_next_container(house: House) -> None:
    """The same client port: the kernel would remember the flow for minutes and send it to the first container."""
    served = []
    for name in ("one", "two"):
        house.join(name, (PortMapping(53, 5353, "udp"),))
        command = ["nsenter", f"--net={house.space(name)}", sys.executable, "-c", UDP_ECHO, name]
        served.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert served[-1].stdout is not None
        assert served[-1].stdout.readline() == "ready\n"
        try:
            assert house.host.run("o", sys.executable, "-c", UDP_ASK).stdout.strip() == name
            if name == "one":
                house.leave("one")
        finally:
            served[-1].kill()
            served[-1].communicate()


def test_a_bridge_of_a_deleted_root_does_not_stand_in_the_way(house: House) -> None:
    """Its name follows from the root's path and the network's name, its address was the old list's."""
    house.nets.list()
    bridge = house.nets._bridge_name("bridge")
    house.host.run("h", "ip", "link", "add", bridge, "type", "bridge")
    house.host.run("h", "ip", "addr", "add", "10.250.0.1/16", "dev", bridge)
    house.host.run("h", "ip", "link", "set", bridge, "up")
    os.unlink(f"{house.place.root}/networks/bridge.conflist")
    one = house.join("one")
    house.host.run(house.space("one"), "busybox", "ping", "-c1", "-W2", one.interfaces[0].addresses[0].gateway)
    assert "10.250.0.1" not in house.host.run("h", "ip", "addr").stdout


def test_a_late_second_del_leaves_the_next_holder_of_the_address_alone(house: House) -> None:
    one = house.join("one")
    record = Path(house.place.state) / "cni/results/bridge,one,eth0.json"
    kept = record.read_text()
    house.leave("one")
    assert f"{plain(one)} comment" not in house.host.rules()
    two = house.join("two", wish=Attachment("bridge", ip=plain(one)))
    assert plain(two) == plain(one)
    record.write_text(kept)
    house.leave("one")
    assert f"{plain(two)} comment" in house.host.rules()
    house.host.run(house.space("two"), "busybox", "ping", "-c1", "-W2", OUTSIDE)
