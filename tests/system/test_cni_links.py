"""The interface plugins and static against the kernel: the specification's verbs, faults, and the reference plugins.

Where the distribution's plugins are installed, each configuration is served by both: what they print and what they make
(links, addresses, routes) is equal but for MACs and the names of pairs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.nethost import OUTSIDE, OUTSIDE6, NetHost
from helpers.plugins import REFERENCE, Plugins, picture, plain

pytestmark = pytest.mark.root
Json = dict[str, Any]
needs_reference = pytest.mark.skipif(not os.path.exists(f"{REFERENCE}/ptp"),
                                     reason="the reference plugins are not installed (containernetworking-plugins)")
FOUR, SIX = [{"subnet": "10.61.0.0/24"}], [{"subnet": "fd61::/64"}]
DEFAULTS = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
# the outside's own subnet: what macvlan and host-device give is reachable there
NEAR = {"type": "static", "addresses": [{"address": "192.0.2.50/24", "gateway": OUTSIDE}],
        "routes": [{"dst": "0.0.0.0/0"}]}
NEAR6 = {"type": "static", "addresses": [{"address": "fd99::50/64", "gateway": OUTSIDE6}], "routes": [{"dst": "::/0"}]}


def local(*groups: list[Json], routes: list[Json] | None = None) -> Json:
    return {"type": "host-local", "ranges": list(groups), "routes": routes or []}


#: name: a configuration that works here; the bridge's name is the test's
WORKING: dict[str, Json] = {
    "bridge": {"type": "bridge", "isGateway": True, "ipam": local(FOUR)},
    "bridge-dual": {"type": "bridge", "isDefaultGateway": True, "ipam": local(FOUR, SIX)},
    "bridge-six": {"type": "bridge", "isDefaultGateway": True, "ipam": local(SIX)},
    "bridge-routes": {"type": "bridge", "isGateway": True, "mtu": 1400, "ipam": local(
        FOUR, routes=[{"dst": "0.0.0.0/0"}, {"dst": "192.168.7.0/24", "gw": "10.61.0.9"}])},
    "bridge-hairpin": {"type": "bridge", "hairpinMode": True, "ipam": local(FOUR)},
    "bridge-promisc": {"type": "bridge", "promiscMode": True, "ipam": local(FOUR)},
    "ptp": {"type": "ptp", "ipam": local(FOUR)},
    "ptp-dual": {"type": "ptp", "mtu": 1300, "ipam": local(FOUR, SIX, routes=DEFAULTS)},
    "ptp-six": {"type": "ptp", "ipam": local(SIX, routes=[{"dst": "::/0"}])},
    "ptp-dns": {"type": "ptp", "dns": {"nameservers": ["10.1.1.1"]}, "ipam": local(FOUR)},
    "macvlan": {"type": "macvlan", "master": "up0", "ipam": NEAR},
    "macvlan-default-master": {"type": "macvlan", "mtu": 1400, "ipam": NEAR},
    "macvlan-private": {"type": "macvlan", "master": "up0", "mode": "private", "ipam": NEAR},
    "macvlan-vepa": {"type": "macvlan", "master": "up0", "mode": "vepa", "ipam": NEAR},
    "macvlan-passthru": {"type": "macvlan", "master": "up0", "mode": "passthru", "ipam": NEAR},
    "macvlan-six": {"type": "macvlan", "master": "up0", "ipam": NEAR6},
    "macvlan-two": {"type": "macvlan", "master": "up0"},
    "host-device": {"type": "host-device", "device": "dev0", "ipam": NEAR},
    "host-device-two": {"type": "host-device", "device": "dev0"},
}


@pytest.fixture
def host(test_id: str) -> Iterator[NetHost]:
    made = NetHost(test_id)
    made.run("h", "ip", "link", "add", "dev0", "type", "veth", "peer", "name", "dev0p", "netns", f"{test_id}o")
    made.run("o", "ip", "link", "set", "dev0p", "up")
    yield made
    made.close()


@pytest.fixture
def own(bin_dir: str) -> Plugins:
    return Plugins(bin_dir)


@pytest.fixture
def config(host: NetHost, tmp_path: Path) -> Callable[..., Json]:
    """`config("ptp", mtu=1300)`: one of WORKING for this test, its leases in a directory of `side`."""

    def made(name: str, side: str = "own", **more: Any) -> Json:
        found: Json = json.loads(json.dumps({**WORKING[name], **more}))
        if found["type"] == "bridge":
            found["bridge"] = f"b{host.name}"[:13]
        if found.get("ipam", {}).get("type") == "host-local":
            found["ipam"]["dataDir"] = str(tmp_path / side)
        return found

    return made


def leases(tmp_path: Path, side: str = "own") -> list[str]:
    held = tmp_path / side / "links"
    return sorted(name for name in os.listdir(held) if name[0] in "1f") if held.exists() else []


# ---- the verbs, from the specification's own words


@pytest.mark.parametrize("name", WORKING)
def test_a_life(host: NetHost, own: Plugins, config: Callable[..., Json], tmp_path: Path, name: str) -> None:
    """Section 2: ADD makes the interface CNI_IFNAME in CNI_NETNS and tells it; CHECK fails when something of the result
    is missing or wrong; DEL takes all of it away, and succeeds when it is not there any more."""
    own.version, wanted, space = "1.1.0", config(name), host.space("c")
    before = picture(host, "h")
    own.ok("STATUS", wanted)
    result = own.ok("ADD", wanted, netns=space)
    inner = [link for link in result["interfaces"] if link.get("sandbox")]
    assert [(link["name"], link["sandbox"]) for link in inner] == [("eth0", space)]
    shown = json.loads(host.run(space, "ip", "-j", "addr", "show", "eth0").stdout)[0]
    assert (shown["address"], shown["mtu"], "UP" in shown["flags"]) == (inner[0]["mac"], inner[0]["mtu"], True)
    have = {f"{part['local']}/{part['prefixlen']}" for part in shown["addr_info"]}
    assert {part["address"] for part in result["ips"]} <= have
    assert all(result["interfaces"][part["interface"]] == inner[0] for part in result["ips"])
    own.ok("CHECK", wanted, netns=space, previous=result)
    for part in result["ips"]:
        host.run(space, "ip", "addr", "del", part["address"], "dev", "eth0")
    host.run(space, "ip", "link", "set", "eth0", "down")
    assert own.refused("CHECK", wanted, netns=space, previous=result)["code"] == 5
    for _ in range(2):
        assert own.ok("DEL", wanted, netns=space) == ""
    assert "eth0" not in host.run(space, "ip", "link").stdout
    after = picture(host, "h")
    assert [link for link in after["links"] if link[1] != "bridge"] == [
        link for link in before["links"] if link[1] != "bridge"]
    assert leases(tmp_path) == []


_BROKEN = {  # what is done in the container to what ADD made: a word of CHECK's answer
    "down": ("ip link set eth0 down", "down"), "gone": ("ip link del eth0", "no interface"),
    "mac": ("ip link set eth0 address 02:00:00:00:00:99", "MAC"), "route": ("ip route del default", "route"),
    "address": ("ip addr del {address} dev eth0", "address"),
    "kind": ("ip link del eth0; ip link add eth0 up type bridge", ""),
}


@pytest.mark.parametrize("broken", _BROKEN)
@pytest.mark.parametrize("name", ["bridge-routes", "ptp-dual", "macvlan", "host-device"])
def test_check_names_what_is_wrong(host: NetHost, own: Plugins, config: Callable[..., Json], name: str,
                                   broken: str) -> None:
    wanted, space = config(name), host.space("c")
    result = own.ok("ADD", wanted, netns=space)
    own.ok("CHECK", wanted, netns=space, previous=result)
    script, word = _BROKEN[broken]
    host.run(space, "sh", "-ec", script.format(address=result["ips"][0]["address"]))
    answer = own.refused("CHECK", wanted, netns=space, previous=result)
    assert (answer["code"], word in answer["msg"]) == (5, True), answer
    assert own.refused("CHECK", wanted, netns=space)["code"] == 7  # prevResult is not optional
    own.ok("DEL", wanted, netns=space)


@pytest.mark.parametrize("name", ["ptp", "macvlan", "host-device"])
def test_del_after_a_killed_add(host: NetHost, own: Plugins, config: Callable[..., Json], tmp_path: Path,
                                name: str) -> None:
    wanted, space = config(name, ipam=local(FOUR), nftTable="t_links", ipMasq=True), host.space("c")
    wanted["ipam"]["dataDir"] = str(tmp_path / "own")
    before, inside = picture(host, "h"), picture(host, space)
    for _ in range(12):
        own.killed(random.uniform(0.03, 0.3), wanted, netns=space)
        own.ok("DEL", wanted, netns=space)
        assert (picture(host, "h"), picture(host, space)) == (before, inside)
        assert leases(tmp_path) == []
    assert "one/eth0" not in host.rules()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("name", ["ptp-dual", "macvlan", "host-device"])
def test_every_version(host: NetHost, own: Plugins, config: Callable[..., Json], name: str, version: str) -> None:
    own.version, wanted, space = version, config(name), host.space("c")
    result = own.ok("ADD", wanted, netns=space)
    assert result["cniVersion"] == version
    assert [part.get("version") for part in result["ips"]] == [
        None if version >= "1.0.0" else "6" if ":" in part["address"] else "4" for part in result["ips"]]
    code, answer = own("CHECK", wanted, netns=space, previous=result)
    assert (code, version < "0.4.0" and answer["code"]) == ((1, 1) if version < "0.4.0" else (0, False))
    own.ok("DEL", wanted, netns=space, previous=result)


@pytest.mark.parametrize("name", ["bridge", "ptp", "macvlan", "host-device"])
def test_del_without_a_namespace(host: NetHost, own: Plugins, config: Callable[..., Json], tmp_path: Path,
                                 name: str) -> None:
    """Section 2, DEL: without CNI_NETNS, or when nothing is there, it frees what it can (addresses) and succeeds."""
    wanted, space = config(name), host.space("c")
    result = own.ok("ADD", wanted, netns=space)
    if name == "host-device":  # it is virtual, and dies with its namespace
        own.ok("DEL", wanted, netns=space)
        result = own.ok("ADD", wanted, netns=space)
    host.drop("c")
    for netns in ("", space, str(tmp_path)):
        own.ok("DEL", wanted, netns=netns, previous=result)
    assert "veth" not in host.links()
    assert leases(tmp_path) == []


@pytest.mark.parametrize(("first", "second"), [
    ("bridge", "ptp"), ("bridge", "macvlan"), ("ptp", "bridge"), ("macvlan", "host-device"),
    ("host-device", "host-device"), ("macvlan", "macvlan"),
])
def test_a_refused_add_and_its_del_leave_another_networks_interface(
        host: NetHost, own: Plugins, config: Callable[..., Json], first: str, second: str) -> None:
    """A runtime calls DEL after an ADD that failed (section 3, "Adding an attachment"), here for the name is taken."""
    host.run("h", "ip", "link", "add", "dev1", "type", "veth", "peer", "name", "dev1p")
    wanted, other, space = config(first), config(second, side="other"), host.space("c")
    if second == "host-device":
        other["device"] = "dev1"
    result = own.ok("ADD", wanted, netns=space)
    own.name = "another"
    assert "already" in own.refused("ADD", other, netns=space)["msg"]
    own.ok("DEL", other, netns=space)
    own.name = "links"
    own.ok("CHECK", wanted, netns=space, previous=result)
    own.ok("DEL", wanted, netns=space)
    assert "eth0" not in host.run(space, "ip", "link").stdout


@pytest.mark.parametrize("name", ["bridge", "ptp", "macvlan", "host-device", "loopback", "sbr", "tuning", "bandwidth"])
def test_del_when_the_file_outlives_the_namespace(own: Plugins, config: Callable[..., Json], tmp_path: Path,
                                                  name: str) -> None:
    """What `umount /run/netns/NAME` and a reboot leave."""
    (tmp_path / "gone").touch()
    own.ok("DEL", config(name) if name in WORKING else {"type": name}, netns=str(tmp_path / "gone"),
           CNI_IFNAME="lo" if name == "loopback" else "eth0")


def test_del_touches_nothing_of_the_host(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    """CNI_NETNS is that of a process that ended, and its number is one of the host's by now."""
    host.run("h", "ip", "link", "add", "eth0", "type", "bridge")
    for name in ("bridge", "macvlan", "ptp", "host-device"):
        own.ok("DEL", config(name), netns="/proc/self/ns/net")
    own.ok("DEL", {"type": "loopback"}, netns="/proc/self/ns/net", CNI_IFNAME="lo")
    assert "eth0" in host.links()
    assert "UP" in host.run("h", "ip", "link", "show", "lo").stdout


@pytest.mark.parametrize(("name", "more"), [
    ("bridge", {"ipam": 5}), ("bridge", {"ipam": {"type": 5}}), ("bridge", {"dns": 5}), ("bridge", {"args": 5}),
    ("bridge", {"args": {"cni": [1]}}), ("bridge", {"bridge": "br*"}), ("ptp", {"ipam": "x"}),
    ("macvlan", {"ipam": [1]}), ("host-device", {"ipam": 5}), ("bridge", {"ipam": local([5])}),  # type: ignore[list-item]
    ("bridge", {"ipam": local(FOUR, routes=[{"dst": 5}])}), ("bridge", {"ipam": local(FOUR, routes=[5])}),  # type: ignore[list-item]
    ("bridge", {"ipam": local(FOUR, routes=[{"dst": "10.0.0.0/8", "gw": "x"}])}),
    ("bridge", {"ipam": {"type": "static", "addresses": 5}}), ("bridge", {"ipam": {"type": "static", "dns": 5}}),
])
def test_del_succeeds_after_an_add_that_refused_the_configuration(
        host: NetHost, own: Plugins, config: Callable[..., Json], name: str, more: Json) -> None:
    wanted, space = config(name), host.space("c")
    wanted |= more
    assert own.refused("ADD", wanted, netns=space)["code"] == 7
    for _ in range(2):
        own.ok("DEL", wanted, netns=space)


def test_an_ipam_plugin_that_fails_gets_its_del(host: NetHost, own: Plugins, config: Callable[..., Json],
                                                tmp_path: Path) -> None:
    """Section 4, "Delegated Plugin Execution": "If, on ADD, a delegated plugin fails, the "upper" plugin should execute
    again with DEL before returning failure.\""""
    (tmp_path / "bin" / "rubbish").write_text(f'#!/bin/sh\necho "$CNI_COMMAND" >> {tmp_path}/verbs\necho rubbish\n')
    (tmp_path / "bin" / "rubbish").chmod(0o755)
    own.refused("ADD", config("bridge", ipam={"type": "rubbish"}), netns=host.space("c"))
    assert (tmp_path / "verbs").read_text().split() == ["ADD", "DEL"]


@pytest.mark.parametrize("name", ["bridge", "ptp", "macvlan", "host-device"])
def test_gc_ends_the_leases_of_others(host: NetHost, own: Plugins, config: Callable[..., Json], tmp_path: Path,
                                      name: str) -> None:
    own.version, wanted = "1.1.0", config(name, ipam=local(FOUR))
    wanted["ipam"]["dataDir"] = str(tmp_path / "own")
    for container in ("one", "two") if name != "host-device" else ("one",):
        own.ok("ADD", wanted, container, host.space(container))
    kept = {"cni.dev/valid-attachments": [{"containerID": "one", "ifname": "eth0"}]}
    own.ok("GC", {**wanted, **kept})
    assert leases(tmp_path) == ["10.61.0.2"]
    own.ok("GC", {**wanted, "cni.dev/valid-attachments": []})
    assert leases(tmp_path) == []
    own.ok("GC", wanted)  # a caller that lists nobody says nothing
    for container in ("one", "two"):
        own.ok("DEL", wanted, container, f"/run/netns/{host.name}{container}")


@pytest.mark.parametrize(("name", "more", "code"), [
    ("macvlan", {"master": "none0"}, 50), ("host-device", {"device": "none0"}, 50), ("macvlan", {"mode": "odd"}, 7),
    ("ptp", {"ipam": {}}, 7), ("ptp", {"ipam": {"type": "absent"}}, 4), ("host-device", {"device": ""}, 7),
    ("bridge", {"vlan": 4095}, 7), ("ptp", {"mtu": 60}, 7), ("macvlan", {"ipam": {"type": "static", "routes": [1]}}, 7),
])
def test_status_tells_that_an_add_would_fail(own: Plugins, config: Callable[..., Json], name: str, more: Json,
                                             code: int) -> None:
    own.version = "1.1.0"
    assert own.refused("STATUS", config(name, **more))["code"] == code


# ---- faults: an ADD that fails leaves nothing


@pytest.mark.parametrize("case", list(itertools.product(
    ["bridge", "ptp", "macvlan", "host-device"],
    ["address", "twice", "route", "netns", "taken", "again", "full", "none"],
)), ids="-".join)
def test_a_failed_add_leaves_nothing(host: NetHost, own: Plugins, config: Callable[..., Json], tmp_path: Path,
                                     case: tuple[str, str]) -> None:
    name, fault = case
    wanted, space = config(name), host.space("c")
    host.run("h", "ip", "link", "set", "dev0", "up")
    if name == "bridge":  # it is the network's and stays: the second ADD finds it
        own.ok("ADD", wanted, "zero", host.space("z"))
        own.ok("DEL", wanted, "zero", f"/run/netns/{host.name}z")
    faults: dict[str, Json] = {
        "none": {"addresses": []},
        "address": {"addresses": [{"address": "127.0.0.1/40", "gateway": "127.0.0.2"}]},
        "twice": {"addresses": [{"address": "10.61.0.5/24", "gateway": "10.61.0.1"}] * 2},
        "route": {"addresses": [{"address": "10.61.0.5/24", "gateway": "10.61.0.1"}],
                  "routes": [{"dst": "10.99.0.0/16", "gw": "172.31.9.9"}]},
    }
    if fault in faults:
        wanted["ipam"] = {"type": "static", **faults[fault]}
    if fault == "full":
        ipam = local([{"subnet": "10.61.0.0/30"}], [{"subnet": "10.62.0.0/30"}])
        wanted["ipam"] = {**ipam, "dataDir": str(tmp_path / "own")}
        os.makedirs(tmp_path / "own" / "links", exist_ok=True)
        (tmp_path / "own" / "links" / "10.62.0.2").write_text("other\r\neth0")
    if fault == "taken":
        host.run(space, "ip", "link", "add", "eth0", "type", "bridge")
    if fault == "again":
        first = own.ok("ADD", wanted, netns=space)
    before, inside = (picture(host, "h"), host.rules()), picture(host, space)
    answer = own.refused("ADD", wanted, netns=space if fault != "netns" else "/run/netns/none-such")
    assert answer["code"] == {"netns": 3, "full": 51, "route": 100}.get(fault, 7), answer
    assert (picture(host, "h"), host.rules()) == before
    assert picture(host, space) == inside
    if fault == "again":
        own.ok("CHECK", wanted, netns=space, previous=first)
        own.ok("DEL", wanted, netns=space)
    assert [held for held in leases(tmp_path) if held != "10.62.0.2"] == []
    own.ok("DEL", wanted, netns=space if fault != "taken" else "")


@pytest.mark.parametrize(("name", "more"), [
    ("macvlan", {"master": "none0"}), ("host-device", {"device": "none0"}), ("host-device", {"device": "lo"}),
    ("macvlan", {"mtu": 1501}), ("macvlan", {"master": "up0", "mode": "odd"}),
])
def test_a_missing_or_unfit_device(host: NetHost, own: Plugins, config: Callable[..., Json], name: str,
                                   more: Json) -> None:
    wanted, space = config(name, **more), host.space("c")
    before = host.state()
    assert own.refused("ADD", wanted, netns=space)["msg"]
    assert host.state() == before
    for _ in range(2):
        own.ok("DEL", wanted, netns=space)
    assert host.state() == before


def test_a_neighbours_address_is_a_failed_add(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    """RFC 4862, 5.4: the kernel asks the link whether somebody has the address."""
    host.run("h", "busybox", "ping", "-c1", "-W5", OUTSIDE6)  # the link is awake
    taken = {"type": "static", "addresses": [{"address": f"{OUTSIDE6}/64"}]}
    wanted, space = config("macvlan", ipam=taken), host.space("c")
    assert "another machine" in own.refused("ADD", wanted, netns=space)["msg"]
    assert "eth0" not in host.run(space, "ip", "link").stdout


# ---- what each plugin is for


def test_ptp_routes_and_masquerades(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    wanted = config("ptp-dual", ipMasq=True, nftTable="t_links")
    one, two = host.space("one"), host.space("two")
    result = own.ok("ADD", wanted, "one", one)
    own.ok("ADD", wanted, "two", two)
    for where, target in ((one, OUTSIDE), (one, "10.61.0.3"), (two, "fd61::2"), (two, OUTSIDE6), ("h", "10.61.0.2")):
        host.run(where, "busybox", "ping", "-c1", "-W2", target)
    assert "one/eth0@links" in host.rules()
    own.ok("CHECK", wanted, "one", one, result)
    host.run("h", "nft", "flush", "set", "inet", "t_links", "masq4")
    assert "masqueraded" in own.refused("CHECK", wanted, "one", one, result)["msg"]
    host.run("h", "ip", "route", "del", "10.61.0.3")
    second = {**result, "ips": [{**result["ips"][0], "address": "10.61.0.3/24"}], "interfaces": [], "routes": []}
    assert own("CHECK", {**wanted, "ipMasq": False}, "two", two, second)[0] == 1
    for container, space in (("one", one), ("two", two)):
        own.ok("DEL", wanted, container, space)
    assert "eth0@links" not in host.rules()
    assert "veth" not in host.links()


def test_ports_of_a_ptp_are_published_and_go_with_it(host: NetHost, own: Plugins, config: Callable[..., Json],
                                                    tmp_path: Path) -> None:
    space, wanted = host.space("c"), config("ptp-dual", ipMasq=True, nftTable="t_links")
    ports = {"type": "portmap", "nftTable": "t_links",
             "runtimeConfig": {"portMappings": [{"hostPort": 8091, "containerPort": 80}]}}
    result = own.ok("ADD", wanted, netns=space)
    own.ok("ADD", ports, netns=space, previous=result)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("by itself")
    host.serve(space, tmp_path / "www")
    for where, url in (("o", "http://192.0.2.2:8091/"), ("h", "http://127.0.0.1:8091/"), ("o", "http://[fd99::2]:8091/"),
                       (space, "http://192.0.2.2:8091/")):
        assert host.fetch(where, url) == "by itself", (where, url)
    own.ok("DEL", ports, netns=space, previous=result)
    own.ok("DEL", wanted, netns=space, previous=result)
    assert "veth" not in host.rules()
    assert "one/eth0" not in host.rules()


def test_a_container_is_no_router_of_the_host(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    """CVE-2020-10749: the host takes no router advertisement from a container."""
    own.ok("ADD", config("ptp-six"), "one", host.space("one"))
    wanted = config("bridge-six")
    own.ok("ADD", wanted, "two", host.space("two"))
    links = [line.split()[0].partition("@")[0] for line in host.links().splitlines() if "veth" in line]
    pair = next(name for name in links if "master" not in host.run("h", "ip", "-d", "link", "show", name).stdout)
    for name in (pair, wanted["bridge"]):
        assert host.run("h", "sysctl", "-n", f"net.ipv6.conf.{name}.accept_ra").stdout.strip() == "0"
    own.ok("DEL", config("ptp-six"), "one")
    own.ok("DEL", wanted, "two")


def test_macvlan_reaches_the_link_and_has_the_mac_asked_for(host: NetHost, own: Plugins,
                                                           config: Callable[..., Json]) -> None:
    space, mac = host.space("c"), "02:00:00:aa:bb:cc"
    for way, env in (({"runtimeConfig": {"mac": mac}}, {}), ({}, {"CNI_ARGS": f"IgnoreUnknown=1;MAC={mac}"}),
                     ({"mac": mac}, {})):
        wanted = config("macvlan", **way)
        result = own.ok("ADD", wanted, netns=space, **env)
        assert result["interfaces"][0]["mac"] == mac
        host.run(space, "busybox", "ping", "-c1", "-W2", OUTSIDE)
        own.ok("DEL", wanted, netns=space)
    assert own.refused("ADD", config("macvlan", mac="03:00:00:00:00:00"), netns=space)["code"] == 7


def test_two_macvlans_in_bridge_mode_reach_each_other_and_in_private_mode_do_not(
        host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    for mode, reached in (("bridge", True), ("private", False)):
        for container, address in (("one", "192.0.2.51/24"), ("two", "192.0.2.52/24")):
            space = f"/run/netns/{host.name}{container}"
            space = space if os.path.exists(space) else host.space(container)
            ipam = {"type": "static", "addresses": [{"address": address}]}
            own.ok("ADD", config("macvlan", mode=mode, ipam=ipam), container, space)
        done = host.run("one", "busybox", "ping", "-c1", "-W1", "192.0.2.52", check=False)
        assert (done.returncode == 0) is reached
        for container in ("one", "two"):
            own.ok("DEL", config("macvlan"), container, f"/run/netns/{host.name}{container}")


def test_macvlan_upon_a_link_of_the_container(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    space = host.space("c")
    own.ok("ADD", config("host-device"), netns=space, CNI_IFNAME="net0")
    wanted = config("macvlan", master="", linkInContainer=True,
                    ipam={"type": "static", "addresses": [{"address": "192.0.2.60/24"}]})
    result = own.ok("ADD", wanted, netns=space)  # the default route's link is net0 there
    shown = host.run(space, "ip", "-d", "link", "show", "eth0").stdout
    assert "eth0@net0" in shown
    assert "mode bridge" in shown
    own.ok("CHECK", wanted, netns=space, previous=result)
    assert own.refused("CHECK", {**wanted, "mode": "vepa"}, netns=space, previous=result)["code"] == 5
    own.ok("DEL", wanted, netns=space)
    own.ok("DEL", config("host-device"), netns=space, CNI_IFNAME="net0")


def test_a_device_goes_and_comes_back(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    space, wanted = host.space("c"), config("host-device")
    mac = json.loads(host.run("h", "ip", "-j", "link", "show", "dev0").stdout)[0]["address"]
    by_mac = config("host-device", device="", hwaddr=mac.upper())
    for way in (wanted, by_mac):
        result = own.ok("ADD", way, netns=space)
        assert result["interfaces"][0]["mac"] == mac
        assert "dev0" not in host.links()
        assert "alias dev0" in host.run(space, "ip", "link", "show", "eth0").stdout
        own.ok("CHECK", way, netns=space, previous=result)
        assert "another container" in own.refused("ADD", way, "two", host.space("d"))["details"]
        own.ok("DEL", way, "two", f"/run/netns/{host.name}d")
        host.drop("d")
        host.run("h", "ip", "link", "add", "eth0", "type", "bridge")  # a name that the host has, too
        own.ok("DEL", way, netns=space)
        host.run("h", "ip", "link", "del", "eth0")
        assert "dev0" in host.links()


def test_a_device_that_is_of_no_use_goes_back_alone(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    """The container has a link of the device's name, which is not the device."""
    space, wanted = host.space("c"), config("host-device", ipam={**NEAR, "routes": [{"dst": "10.9.0.0/16",
                                                                                    "gw": "172.31.9.9"}]})
    host.run(space, "ip", "link", "add", "dev0", "type", "bridge")
    host.run("h", "ip", "link", "set", "dev0", "up", "alias", "to the lab")
    before = host.run("h", "ip", "link", "show", "dev0").stdout.split("link/")[1], picture(host, space)
    assert own.refused("ADD", wanted, netns=space)["code"] == 100
    assert (host.run("h", "ip", "link", "show", "dev0").stdout.split("link/")[1], picture(host, space)) == before


@pytest.mark.parametrize("alias", ["a/b", "..", "x" * 20, "up9"])
def test_a_container_does_not_choose_its_devices_name_on_the_host(host: NetHost, own: Plugins,
                                                                  config: Callable[..., Json], alias: str) -> None:
    space, wanted = host.space("c"), config("host-device")
    result = own.ok("ADD", wanted, netns=space)
    host.run(space, "ip", "link", "set", "eth0", "alias", alias)
    own.ok("DEL", wanted, netns=space, previous=result)
    assert "dev0" in host.links()


def test_a_link_with_an_administrators_alias_is_not_renamed(host: NetHost, own: Plugins,
                                                            config: Callable[..., Json]) -> None:
    """A DEL without an ADD, for the device that the host itself uses under the name of the container's interface."""
    mac = json.loads(host.run("h", "ip", "-j", "link", "show", "dev0").stdout)[0]["address"]
    for step in ("name eth0", "alias uplink", "up"):
        host.run("h", "ip", "link", "set", "dev0" if step == "name eth0" else "eth0", *step.split())
    own.ok("DEL", config("host-device", device="", hwaddr=mac))
    assert "eth0" in host.links()


def test_a_device_that_fell_back_to_the_host_gets_its_name_again(host: NetHost, own: Plugins,
                                                                config: Callable[..., Json]) -> None:
    """What the kernel does with a real device when a namespace ends: it is on the host, under the container's name."""
    wanted = config("host-device")
    for fallen in ("eth0", "dev77"):
        host.run("h", "ip", "link", "set", "dev0", "name", fallen, "alias", "dev0")
        own.ok("DEL", wanted)
        assert "dev0" in host.links()
        own.ok("DEL", wanted)
    host.run("h", "ip", "link", "set", "up0", "alias", "dev0")  # another's alias is another's
    own.ok("DEL", wanted)
    assert "up0" in host.links()


def test_a_device_whose_old_name_is_taken_stays_until_it_is_free(host: NetHost, own: Plugins,
                                                                 config: Callable[..., Json]) -> None:
    space, wanted = host.space("c"), config("host-device")
    own.ok("ADD", wanted, netns=space)
    host.run("h", "ip", "link", "add", "dev0", "type", "bridge")
    assert "another link" in own.refused("DEL", wanted, netns=space)["msg"]
    host.run("h", "ip", "link", "del", "dev0")
    own.ok("DEL", wanted, netns=space)
    assert "dev0" in host.links()


# ---- what the bridge does on request


def reaches(host: NetHost, where: str, address: str) -> bool:
    return host.run(where, "busybox", "ping", "-c1", "-W1", address, check=False).returncode == 0


@pytest.mark.parametrize(("name", "targets"), [
    ("bridge-six", ("fd61::2", "fd61::3", OUTSIDE6)),
    ("bridge-dual", ("10.61.0.2", "fd61::2", OUTSIDE, OUTSIDE6, "10.61.0.3", "fd61::3")),
])
def test_a_bridge_of_ipv6_alone_and_of_both(host: NetHost, own: Plugins, config: Callable[..., Json], name: str,
                                            targets: tuple[str, ...]) -> None:
    """Reachable from the first packet, masqueraded, and its rules gone with it."""
    host.run("h", "busybox", "ping", "-c3", "-W2", OUTSIDE6)  # the host's own link is awake
    wanted = config(name, ipMasq=True, hairpinMode=True, nftTable="t_links")
    for container in ("one", "two"):
        result = own.ok("ADD", wanted, container, host.space(container))
        own.ok("CHECK", wanted, container, f"/run/netns/{host.name}{container}", result)
    for target in targets:
        assert reaches(host, "one", target), target
    assert reaches(host, "h", "fd61::3")
    for container in ("one", "two"):
        own.ok("DEL", wanted, container, f"/run/netns/{host.name}{container}")
    assert "/eth0@links" not in host.rules()


def test_isolated_ports_reach_the_host_only(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    wanted = config("bridge", portIsolation=True)
    for container in ("one", "two"):
        own.ok("ADD", wanted, container, host.space(container))
    assert reaches(host, "one", "10.61.0.1")
    assert not reaches(host, "one", "10.61.0.3")
    for container in ("one", "two"):
        own.ok("DEL", wanted, container, f"/run/netns/{host.name}{container}")


def test_a_forged_mac_is_dropped(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    own.version = "1.1.0"
    wanted, space = config("bridge", macspoofchk=True, nftTable="t_links"), host.space("c")
    other = config("bridge", nftTable="t_links")
    result = own.ok("ADD", wanted, netns=space)
    own.ok("ADD", other, "two", host.space("two"))
    assert reaches(host, space, "10.61.0.1")
    own.ok("CHECK", wanted, netns=space, previous=result)
    host.run(space, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    assert not reaches(host, space, "10.61.0.1")
    assert reaches(host, "two", "10.61.0.1")
    host.run(space, "ip", "link", "set", "eth0", "address", result["interfaces"][2]["mac"])
    assert reaches(host, space, "10.61.0.1")
    host.run("h", "nft", "flush", "set", "bridge", "t_links", "guarded")
    assert "spoof" in own.refused("CHECK", wanted, netns=space, previous=result)["msg"]
    own.ok("DEL", wanted, netns=space)
    assert "one/eth0" not in host.rules()
    own.ok("ADD", wanted, netns=space)
    assert "one/eth0" in host.rules()
    own.ok("GC", {**wanted, "cni.dev/valid-attachments": []})
    assert "one/eth0" not in host.rules()
    for container in ("one", "two"):
        own.ok("DEL", wanted, container, f"/run/netns/{host.name}{'c' if container == 'one' else container}")


def test_a_container_interface_that_stays_down(host: NetHost, own: Plugins, config: Callable[..., Json]) -> None:
    wanted, space = config("bridge", disableContainerInterface=True, ipam={}), host.space("c")
    result = own.ok("ADD", wanted, netns=space)
    assert "state DOWN" in host.run(space, "ip", "link", "show", "eth0").stdout
    own.ok("CHECK", wanted, netns=space, previous=result)
    own.ok("DEL", wanted, netns=space)
    assert own.refused("ADD", config("bridge", disableContainerInterface=True), netns=space)["code"] == 7


@pytest.mark.parametrize(("more", "word"), [
    ({"vlan": 5, "vlanTrunk": [{"id": 6}]}, "exclude"), ({"vlan": -1}, "vlan"),
    ({"vlanTrunk": [{"minID": 5}]}, "maxID"),
    ({"vlanTrunk": [{"id": 0}]}, "4094"), ({"vlanTrunk": 7}, "vlanTrunk"), ({"vlanTrunk": [{}]}, "vlanTrunk"),
    ({"vlanTrunk": [{"minID": 9, "maxID": 5}]}, "4094"), ({"vlanTrunk": [{"id": "5"}]}, "vlanTrunk"),
])
def test_bad_vlans(host: NetHost, own: Plugins, config: Callable[..., Json], more: Json, word: str) -> None:
    wanted, space = config("bridge", **more), host.space("c")
    answer = own.refused("ADD", wanted, netns=space)
    assert (answer["code"], word in answer["msg"]) == (7, True), answer
    own.ok("DEL", wanted, netns=space)


def test_vlans_work_or_one_error_tells_what_the_kernel_lacks(host: NetHost, own: Plugins, config: Callable[..., Json],
                                                            tmp_path: Path) -> None:
    """What they do is proven in tests/testbed/test_cni_links.py."""
    space = host.space("c")
    for wanted in (config("bridge", vlan=5), config("bridge", vlanTrunk=[{"id": 5}, {"minID": 7, "maxID": 9}])):
        before = host.state()
        code, answer = own("ADD", wanted, netns=space)
        if code:
            assert (answer["code"], "CONFIG_BRIDGE_VLAN_FILTERING" in answer["details"]) == (2, True)
            assert host.state() == before
            assert leases(tmp_path) == []
        own.ok("DEL", wanted, netns=space)


# ---- static


@pytest.mark.parametrize(("more", "env", "expected"), [
    ({}, {}, ["10.1.0.5/24", "fd01::5/64"]),
    ({}, {"CNI_ARGS": "IP=10.2.0.6/16,10.3.0.6/16;GATEWAY=10.2.0.1"},
     ["10.1.0.5/24", "fd01::5/64", "10.2.0.6/16 10.2.0.1", "10.3.0.6/16"]),
    ({"args": {"cni": {"ips": ["10.4.0.7/24"]}}}, {"CNI_ARGS": "IP=10.2.0.6/16"}, ["10.4.0.7/24"]),
    ({"args": {"cni": {"ips": ["10.4.0.7/24"]}}, "runtimeConfig": {"ips": ["10.5.0.8/24", "fd05::8/64"]}}, {},
     ["10.5.0.8/24", "fd05::8/64"]),
])
def test_static_addresses_by_every_way(own: Plugins, more: Json, env: dict[str, str], expected: list[str]) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.5/24"}, {"address": "fd01::5/64"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.0.0/16"}],
            "dns": {"nameservers": ["10.1.0.53"], "search": ["a.example"]}}
    wanted = {"type": "any", "ipam": ipam, **more}
    result = own.ok("ADD", wanted, netns="/none", PLUGIN="static", **env)
    assert [f"{part['address']} {part.get('gateway', '')}".strip() for part in result["ips"]] == expected
    own.ok("CHECK", wanted, netns="/none", previous=result, PLUGIN="static", **env)
    shorter = {**result, "ips": result["ips"][1:]}
    own.refused("CHECK", wanted, netns="/none", previous=shorter, PLUGIN="static", **env)
    own.ok("DEL", wanted, PLUGIN="static", **env)
    if os.path.exists(f"{REFERENCE}/static"):
        assert result == Plugins(REFERENCE).ok("ADD", wanted, netns="/none", PLUGIN="static", **env)


@pytest.mark.parametrize(("ipam", "env"), [
    ({"addresses": [{"address": "10.1.0.5"}]}, {}), ({"addresses": [{"address": "10.1.0.500/24"}]}, {}),
    ({"addresses": [{}]}, {}), ({"addresses": ["10.1.0.5/24"]}, {}), ({"routes": [{"dst": "x"}]}, {}),
    ({"addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]}, {}), ({}, {"CNI_ARGS": "IP=10.1.0.5"}),
    ({}, {"CNI_ARGS": "GATEWAY=x"}),
])
def test_static_refuses_rubbish(own: Plugins, ipam: Json, env: dict[str, str]) -> None:
    wanted = {"type": "static", "ipam": {"type": "static", **ipam}}
    assert own.refused("ADD", wanted, netns="/none", **env)["code"] == 7
    own.ok("DEL", wanted, **env)


# ---- the reference plugins


@needs_reference
@pytest.mark.parametrize("name", WORKING)
def test_what_the_reference_prints_and_makes(host: NetHost, own: Plugins, config: Callable[..., Json],
                                             name: str) -> None:
    seen = {}
    for side, plugins in (("reference", Plugins(REFERENCE)), ("own", own)):
        space, wanted = host.space("c"), config(name, side)
        result = plugins.ok("ADD", wanted, netns=space)
        seen[side] = plain(result), picture(host, space), picture(host, "h")
        plugins.ok("CHECK", wanted, netns=space, previous=result)
        if wanted["type"] in ("macvlan", "host-device"):  # no host end whose name would be another's
            own.ok("CHECK", wanted, netns=space, previous=result)
        plugins.ok("DEL", wanted, netns=space)
        host.drop("c")
        host.run("h", "ip", "link", "del", wanted.get("bridge", "none0"), check=False)
    for ours, theirs in zip(seen["own"], seen["reference"], strict=True):
        assert ours == theirs


@needs_reference
@pytest.mark.parametrize("name", ["bridge-dual", "ptp-dual", "macvlan", "host-device"])
def test_each_takes_away_what_the_other_made(host: NetHost, own: Plugins, config: Callable[..., Json],
                                             name: str) -> None:
    wanted, space, before = config(name), host.space("c"), picture(host, "h")
    for maker, ender in ((own, Plugins(REFERENCE)), (Plugins(REFERENCE), own)):
        result = maker.ok("ADD", wanted, netns=space)
        ender.ok("DEL", wanted, netns=space, previous=result)
        assert "eth0" not in host.run(space, "ip", "link").stdout
        assert "veth" not in host.links()
    if name == "host-device":
        assert picture(host, "h") == before


@needs_reference
@pytest.mark.parametrize("more", [
    {"ranges": [FOUR]}, {"ranges": [FOUR, SIX], "routes": DEFAULTS}, {"subnet": "10.63.0.0/24", "ranges": [FOUR]},
    {"ranges": [[{"subnet": "10.61.0.0/29", "rangeStart": "10.61.0.3", "rangeEnd": "10.61.0.5"}]]},
    {"ranges": [[{"subnet": "10.61.0.0/30"}, {"subnet": "10.62.0.0/30", "gateway": "10.62.0.2"}]]},
    {"subnet": "10.63.0.0/24", "gateway": "10.63.0.254", "routes": [{"dst": "10.0.0.0/8", "gw": "10.63.0.7"}]},
    {"ranges": [[{"subnet": "10.61.0.0/31"}]]}, {"ranges": [FOUR, FOUR]}, {"ranges": [[*FOUR, *SIX]]}, {},
    {"subnet": "10.63.0.1/24"}, {"subnet": "10.63.0.0/24", "rangeEnd": "10.64.0.1"},
])
def test_host_local_gives_what_the_reference_gives(own: Plugins, tmp_path: Path, more: Json) -> None:
    """The same six ADDs, a DEL after the third: addresses in the same order, the same files, the same refusals."""
    seen: dict[str, list[Any]] = {}
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 10.0.0.53\nsearch a.example\noptions ndots:2\n")
    for side, plugins in (("reference", Plugins(REFERENCE)), ("own", own)):
        ipam = {"type": "host-local", "dataDir": str(tmp_path / side), "resolvConf": str(resolv), **more}
        wanted, told = {"type": "host-local", "ipam": ipam}, []
        for number in range(6):
            code, answer = plugins("ADD", wanted, f"c{number}", "/none")
            told.append(answer if code == 0 else code)
            if number == 2 and isinstance(told[0], dict):
                plugins.ok("DEL", wanted, "c1")
        held = tmp_path / side / "links"
        seen[side] = [told, {name: (held / name).read_text() for name in leases(tmp_path, side)}]
    assert seen["own"] == seen["reference"]


@needs_reference
def test_one_lease_directory_serves_both(own: Plugins, tmp_path: Path) -> None:
    wanted = {"type": "host-local", "ipam": {**local(FOUR, SIX), "dataDir": str(tmp_path / "own")}}
    theirs, given = Plugins(REFERENCE), []
    for number in range(6):
        side = (own, theirs)[number % 2]
        result = side.ok("ADD", wanted, f"c{number}", "/none")
        given += [part["address"] for part in result["ips"]]
        for other in (own, theirs):
            other.ok("CHECK", wanted, f"c{number}", "/none", result)
    assert len(given) == len(set(given)) == 12
    for number in range(6):
        (theirs, own)[number % 2].ok("DEL", wanted, f"c{number}")
    assert leases(tmp_path) == []
