"""`network create` as CNI lists: each driver's plugins and options, IPAM, subnets, and what is refused."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, Place
from wherry.net import drivers
from wherry.net.networks import Networks, Subnet

DOCKER = "com.docker.network."


def networks(path: Path) -> Networks:
    return Networks(Place(root=str(path / "root"), state=str(path / "state"), cni_conf=str(path / "net.d")))


def plugins(path: Path, name: str = "net") -> list[dict[str, Any]]:
    return json.loads((path / f"root/networks/{name}.conflist").read_text())["plugins"]  # type: ignore[no-any-return]


def made(path: Path, driver: str = "bridge", **more: Any) -> list[dict[str, Any]]:
    networks(path).create("net", driver, **more)
    return plugins(path)


def peers(path: Path, *rows: tuple[str, list[str]]) -> str:
    file = path / "peers.json"
    file.write_text(json.dumps({"peers": [{"address": address, "subnets": nets} for address, nets in rows]}))
    return str(file)


def test_a_bridge_as_docker_makes_it(tmp_path: Path) -> None:
    bridge, portmap = made(tmp_path)
    assert (bridge["isGateway"], bridge["isDefaultGateway"], bridge["ipMasq"], bridge["isolate"]) == (True,) * 4
    assert (bridge["type"], portmap["type"]) == ("bridge", "portmap")
    assert "portIsolation" not in bridge
    assert bridge["nftTable"] == portmap["nftTable"]


@pytest.mark.parametrize(("options", "more", "wanted"), [
    ({"mtu": "1400"}, {}, {"mtu": 1400}), ({f"{DOCKER}driver.mtu": "9000"}, {}, {"mtu": 9000}),
    ({f"{DOCKER}bridge.name": "br-x"}, {}, {"bridge": "br-x"}),
    ({f"{DOCKER}bridge.enable_ip_masquerade": "false"}, {}, {"ipMasq": False}),
    ({f"{DOCKER}bridge.enable_icc": "0"}, {}, {"portIsolation": True}),
    ({"isolate": "false"}, {}, {"isolate": False}),
    ({f"{DOCKER}bridge.gateway_mode_ipv4": "nat-unprotected"}, {}, {"isolate": False}),
    ({f"{DOCKER}bridge.gateway_mode_ipv4": "isolated"}, {"internal": True}, {"isGateway": False, "internal": True}),
    ({f"{DOCKER}bridge.inhibit_ipv4": "true"}, {}, {"isGateway": False, "isDefaultGateway": False}),
    ({"no_default_route": "true"}, {}, {"isGateway": True, "isDefaultGateway": False}),
    ({"vlan": "12"}, {}, {"vlan": 12}),
    ({}, {"internal": True}, {"internal": True, "ipMasq": False, "isDefaultGateway": False, "isGateway": True}),
])
def test_options_of_a_bridge(tmp_path: Path, options: dict[str, str], more: Any, wanted: dict[str, Any]) -> None:
    bridge = made(tmp_path, options=options, **more)[0]
    assert {key: bridge[key] for key in wanted} == wanted


@pytest.mark.parametrize(("driver", "options", "wanted"), [
    ("macvlan", {"parent": "eth0"}, {"master": "eth0", "mode": "bridge"}),
    ("macvlan", {"macvlan_mode": "private", "mtu": "1400"}, {"mode": "private", "mtu": 1400}),
    ("ipvlan", {"parent": "eth0.5", "ipvlan_mode": "l3"}, {"master": "eth0.5", "mode": "l3"}),
    ("ipvlan", {}, {"mode": "l2"}),
])
def test_links_on_a_link_of_the_host(tmp_path: Path, driver: str, options: dict[str, str], wanted: Any) -> None:
    (plugin,) = made(tmp_path, driver, options=options, subnets=[Subnet("192.0.2.0/24", "192.0.2.254")], ipv6=True)
    assert plugin["type"] == driver
    assert {key: plugin[key] for key in wanted} == wanted
    assert plugin["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert plugin["ipam"]["ranges"][0][0]["gateway"] == "192.0.2.254"
    assert not networks(tmp_path).settings("net")["publishes"]


def test_an_internal_macvlan_has_no_default_route(tmp_path: Path) -> None:
    (plugin,) = made(tmp_path, "macvlan", internal=True)
    assert "routes" not in plugin["ipam"]
    assert "master" not in plugin


def test_an_overlay_takes_its_subnets_from_its_own_entry(tmp_path: Path) -> None:
    file = peers(tmp_path, ("198.51.100.1", ["10.244.1.0/24"]), ("127.0.0.1", ["10.244.2.0/24", "fd00:2::/64"]))
    options = {"peers": file, "mode": "host-gw", "vni": "7", "port": "8472", "mtu": "1400"}
    overlay, portmap = made(tmp_path, "overlay", options=options)
    wanted = {"type": "overlay", "mode": "host-gw", "peersFile": file, "vni": 7, "port": 8472, "mtu": 1400}
    assert {key: overlay[key] for key in wanted} == wanted
    assert overlay["ipam"]["type"] == "host-local"
    assert "ranges" not in overlay["ipam"], "the plugin reads them from the file, which changes"
    assert portmap["type"] == "portmap"
    shown = networks(tmp_path).inspect("net")["IPAM"]["Config"]
    assert [part["Subnet"] for part in shown] == ["10.244.2.0/24", "fd00:2::/64"]
    assert shown[0]["Gateway"] == "10.244.2.1"


@pytest.mark.parametrize(("text", "kind"), [
    (None, Kind.NOT_FOUND), ("{ broken", Kind.INVALID), ("[]", Kind.INVALID), ('{"peers": [{}]}', Kind.INVALID),
    ('{"peers": []}', Kind.INVALID), ('{"peers": [{"address": "127.0.0.1", "subnets": ["x"]}]}', Kind.INVALID),
])
def test_bad_peers_are_told(tmp_path: Path, text: str | None, kind: Kind) -> None:
    file = tmp_path / "peers.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(WherryError, match="peers file") as caught:
        networks(tmp_path).create("net", "overlay", options={"peers": str(file)})
    assert caught.value.kind is kind
    assert not (tmp_path / "root/networks/net.conflist").exists()


def test_a_fifo_of_peers_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "peers.json")
    with pytest.raises(WherryError, match="is not a file"):
        networks(tmp_path).create("net", "overlay", options={"peers": str(tmp_path / "peers.json")})


@pytest.mark.parametrize(("driver", "options", "more", "word"), [
    ("bridge", {"parent": "eth0"}, {}, '"parent" is not known to bridge'), ("macvlan", {"peers": "/"}, {}, "not known"),
    ("bridge", {f"{DOCKER}bridge.enable_icc": "maybe"}, {}, "true or false"),
    ("bridge", {f"{DOCKER}bridge.gateway_mode_ipv4": "routed"}, {}, "routed is not built"),
    ("bridge", {f"{DOCKER}bridge.gateway_mode_ipv6": "isolated"}, {}, "for internal networks"),
    ("bridge", {f"{DOCKER}bridge.host_binding_ipv4": "here"}, {}, "an IP address"),
    ("bridge", {"vlan": "4095"}, {}, "1 to 4094"), ("macvlan", {"macvlan_mode": "l2"}, {}, "one of bridge, private"),
    ("ipvlan", {"ipvlan_flag": "vepa"}, {}, "is not built"), ("ipvlan", {"parent": "a/b"}, {}, "a link's name"),
    ("overlay", {}, {}, "needs its peers"), ("overlay", {"peers": "x.json"}, {}, "absolute path"),
    ("bridge", {}, {"ipv4": False}, "neither IPv4 nor IPv6"), ("bridge", {}, {"ipam": "dhcp"}, '"dhcp" is not there'),
    ("bridge", {}, {"ipam_options": {"x": "1"}}, '"x" is not known to host-local'),
    ("bridge", {}, {"subnets": [Subnet("10.0.0.0/24", aux={"r": "10.1.0.1"})]}, "is not in subnet"),
    ("bridge", {}, {"subnets": [Subnet("10.0.0.0/24"), Subnet("10.0.0.128/25")]}, "overlaps"),
    ("bridge", {f"{DOCKER}container_iface_prefix": "9x"}, {}, "beginning of a link's name"),
])
def test_what_is_refused_is_refused_by_name(
    tmp_path: Path, driver: str, options: dict[str, str], more: dict[str, Any], word: str
) -> None:
    with pytest.raises(WherryError, match=word):
        networks(tmp_path).create("net", driver, options=options, **more)
    assert not (tmp_path / "root/networks/net.conflist").exists()


def test_ipv6_only_and_dual_stack(tmp_path: Path) -> None:
    nets = networks(tmp_path)
    only = nets.create("only", ipv4=False, ipv6=True)
    assert (only["EnableIPv4"], only["EnableIPv6"], len(only["IPAM"]["Config"])) == (False, True, 1)
    assert ":" in nets.gateway("only")
    both = nets.create("both", ipv6=True, subnets=[Subnet("10.9.0.0/24"), Subnet("fd00:9::/64", "fd00:9::9")])
    assert [part["Gateway"] for part in both["IPAM"]["Config"]] == ["10.9.0.1", "fd00:9::9"]
    asked = nets.create("asked", ipv4=False, subnets=[Subnet("fd00:8::/64")])
    assert asked["EnableIPv6"]
    assert not asked["EnableIPv4"]


def test_subnets_never_overlap_those_of_other_networks(tmp_path: Path) -> None:
    nets = networks(tmp_path)
    nets.create("one", subnets=[Subnet("10.9.0.0/24")])
    for driver in ("bridge", "macvlan"):
        with pytest.raises(WherryError, match=r"overlaps with 10.9.0.0/24") as caught:
            nets.create("two", driver, subnets=[Subnet("10.9.0.128/25")])
        assert caught.value.kind is Kind.CONFLICT
    taken = [ipaddress.ip_network(nets.create(f"n{n}")["IPAM"]["Config"][0]["Subnet"]) for n in range(8)]
    assert not [one for one in taken for two in taken if one is not two and one.overlaps(two)]


def test_a_bridge_of_another_network_is_refused_and_one_of_the_hosts_stays(tmp_path: Path) -> None:
    nets = networks(tmp_path)
    nets.create("one", options={"bridge.name": "br-mine"})
    with pytest.raises(WherryError, match="bridge br-mine is network one's"):
        nets.create("two", options={"bridge.name": "br-mine"})
    nets.create("three", options={"bridge.name": "lo"})
    assert json.loads((tmp_path / "root/networks/three.conflist").read_text())["wherry"]["keepBridge"]
    assert not json.loads((tmp_path / "root/networks/one.conflist").read_text())["wherry"]["keepBridge"]


AUX = st.sets(st.integers(0, 63), max_size=12)


@given(AUX)
def test_auxiliary_addresses_are_never_given_out_and_all_others_are(numbers: set[int]) -> None:
    network = ipaddress.ip_network("10.9.0.0/26")
    aux = {str(number): str(network[number]) for number in numbers}
    part = {"subnet": str(network), "gateway": "10.9.0.1", "aux": aux}
    given_out = {
        number for span in drivers._ranges(part)
        for number in range(*(int(ipaddress.ip_address(span.get(key, text))) - int(network[0]) + more
                              for key, text, more in (("rangeStart", "10.9.0.1", 0), ("rangeEnd", "10.9.0.62", 1))))
    }  # fmt: skip
    assert given_out == set(range(1, 63)) - numbers


def test_static_addresses_are_told_with_their_length_and_gateway(tmp_path: Path) -> None:
    from wherry.net import wishes

    nets = networks(tmp_path)
    subnets = [Subnet("10.9.0.0/24", "10.9.0.254"), Subnet("fd00:9::/64")]
    nets.create("net", ipam="static", subnets=subnets)
    assert plugins(tmp_path)[0]["ipam"] == {"type": "static"}
    conflist = nets._own("net")
    assert conflist is not None
    args = wishes.arguments(conflist, Attachment("net", ip="10.9.0.7", ip6="fd00:9::7"), {})
    assert args["IP"] == "10.9.0.7/24,fd00:9::7/64"
    assert args["GATEWAY"] == "10.9.0.254,fd00:9::1"
    assert "ips" not in wishes.capabilities(conflist, Attachment("net"), (), {})
    for wish, word in ((Attachment("net"), "gives out no addresses"), (Attachment("net", ip="10.8.0.1"), "no subnet")):
        with pytest.raises(WherryError, match=word):
            wishes.arguments(conflist, wish, {})


def test_a_network_without_addresses_has_no_gateway(tmp_path: Path) -> None:
    bridge = made(tmp_path, ipam="none")[0]
    assert bridge["ipam"] == {}
    assert not bridge["isGateway"]
    assert networks(tmp_path).inspect("net")["IPAM"] == {"Driver": "null", "Options": {}, "Config": []}


def test_a_list_gives_up_its_default_route_to_another_network(tmp_path: Path) -> None:
    made(tmp_path)
    networks(tmp_path).create("mac", "macvlan")
    for name in ("net", "mac"):
        conflist = networks(tmp_path)._own(name)
        assert conflist is not None
        first = drivers.without_default(conflist)["plugins"][0]
        assert not first.get("isDefaultGateway")
        assert not first["ipam"].get("routes")
        assert drivers.without_default(conflist)["plugins"][1:] == conflist["plugins"][1:]
