"""Networks by name and their subnets, as far as no kernel is asked."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from wherry.errors import Kind, WherryError
from wherry.model import Place
from wherry.net import subnets
from wherry.net.networks import Networks, Subnet


def networks(path: Path, name: str = "one") -> Networks:
    own = path / name
    return Networks(Place(root=str(own / "root"), state=str(own / "state"), cni_conf=str(path / "net.d")))


def test_default_none_and_host_are_always_there(tmp_path: Path) -> None:
    nets = networks(tmp_path)
    assert [row["Name"] for row in nets.list()] == ["bridge", "host", "none"]
    assert nets.inspect("bridge")["Driver"] == "bridge"
    assert nets.inspect("none")["Driver"] == "null"
    assert nets.inspect("bridge")["Id"] == nets.inspect(nets.inspect("bridge")["Id"][:12])["Id"]
    assert nets.gateway("bridge") == nets.inspect("bridge")["IPAM"]["Config"][0]["Gateway"]


def test_two_wherrys_share_neither_bridge_nor_table_nor_subnet(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        networks(tmp_path, name).list()
        conflist = json.loads((tmp_path / name / "root/networks/bridge.conflist").read_text())
        plugin = conflist["plugins"][0]
        found.append((plugin["bridge"], plugin["nftTable"], plugin["ipam"]["dataDir"]))
        assert len(plugin["bridge"]) <= 15
    assert all(one != two for one, two in zip(*found, strict=True))
    assert "wherry0" not in {row[0] for row in found}


def test_a_network_is_made_shown_and_removed(tmp_path: Path) -> None:
    nets = networks(tmp_path)
    shown = nets.create("web", subnets=[Subnet("172.30.0.0/24", "172.30.0.254", "172.30.0.64/26")],
                        options={"mtu": "1400"}, labels={"a": "b"}, ipv6=True)
    assert shown["IPAM"]["Config"][0] == {"Subnet": "172.30.0.0/24", "Gateway": "172.30.0.254",
                                          "IPRange": "172.30.0.64/26"}
    assert ipaddress.ip_network(shown["IPAM"]["Config"][1]["Subnet"]).is_private
    assert shown["Labels"] == {"a": "b"}
    assert shown["EnableIPv6"]
    conflist = json.loads((tmp_path / "one/root/networks/web.conflist").read_text())
    first = conflist["plugins"][0]["ipam"]["ranges"][0][0]
    assert (first["rangeStart"], first["rangeEnd"]) == ("172.30.0.64", "172.30.0.127")
    assert conflist["plugins"][0]["mtu"] == 1400
    with pytest.raises(WherryError, match="exists"):
        nets.create("web")
    with pytest.raises(WherryError, match="not found"):
        nets.inspect("nope")


@pytest.mark.parametrize(("name", "more", "kind"), [
    ("host", {}, Kind.DENIED), ("none", {}, Kind.DENIED), ("bridge", {}, Kind.EXISTS), ("../x", {}, Kind.INVALID),
    ("a b", {}, Kind.INVALID), ("x", {"driver": "nosuch"}, Kind.UNSUPPORTED),
    ("x", {"options": {"nope": "1"}}, Kind.INVALID), ("x", {"options": {"mtu": "9"}}, Kind.INVALID),
    ("x", {"subnets": [Subnet("10.0.0.1/24")]}, Kind.INVALID),
    ("x", {"subnets": [Subnet("10.0.0.0/24", "10.1.0.1")]}, Kind.INVALID),
    ("x", {"subnets": [Subnet("10.0.0.0/24", "", "10.1.0.0/25")]}, Kind.INVALID),
    ("x", {"subnets": [Subnet("10.0.0.0/31")]}, Kind.INVALID),
])
def test_bad_networks_are_refused(tmp_path: Path, name: str, more: dict[str, object], kind: Kind) -> None:
    with pytest.raises(WherryError) as caught:
        networks(tmp_path).create(name, **more)  # type: ignore[arg-type]
    assert caught.value.kind is kind


def test_predefined_networks_stay(tmp_path: Path) -> None:
    for name in ("bridge", "host", "none"):
        with pytest.raises(WherryError) as caught:
            networks(tmp_path).remove(name)
        assert caught.value.kind is Kind.DENIED


def test_lists_of_the_host_are_usable_and_not_removed(tmp_path: Path) -> None:
    (tmp_path / "net.d").mkdir()
    plugins = [{"type": "bridge", "ipam": {"subnet": "10.87.0.0/16"}}]
    (tmp_path / "net.d" / "10-x.conflist").write_text(json.dumps(
        {"cniVersion": "0.4.0", "name": "hostnet", "plugins": plugins}))
    single = {"cniVersion": "0.3.1", "name": "single", "type": "ptp"}
    (tmp_path / "net.d" / "20-y.conf").write_text(json.dumps(single))
    (tmp_path / "net.d" / "30-z.conf").write_text("{ broken")
    nets = networks(tmp_path)
    assert {row["Name"] for row in nets.list()} == {"bridge", "hostnet", "single", "host", "none"}
    assert nets.inspect("single")["Driver"] == "ptp"
    with pytest.raises(WherryError, match="CNI list of the host"):
        nets.remove("hostnet")
    default = ipaddress.ip_network(nets.inspect("bridge")["IPAM"]["Config"][0]["Subnet"])
    assert not default.overlaps(ipaddress.ip_network("10.87.0.0/16"))


def test_choice_avoids_everything_taken_and_ends(tmp_path: Path) -> None:
    taken: list[subnets.Network] = [ipaddress.ip_network("0.0.0.0/1")]
    with pytest.raises(WherryError) as caught:
        subnets.choose(taken, "", default=True)
    assert caught.value.kind is Kind.EXHAUSTED
    seen: list[subnets.Network] = []
    for _ in range(20):
        part = subnets.choose(seen, "ab12", default=False)
        network = ipaddress.ip_network(part["subnet"])
        assert not any(network.overlaps(old) for old in seen)
        seen.append(network)


def test_routes_of_this_host_are_read() -> None:
    assert all(network.prefixlen for network in subnets.host_networks())


@pytest.mark.parametrize("gateway", ["10.55.0.0", "10.55.0.255", "10.56.0.1"])
def test_a_gateway_is_a_host_of_its_subnet(tmp_path: Path, gateway: str) -> None:
    with pytest.raises(WherryError, match=f"gateway {gateway} is") as refused:
        networks(tmp_path).create("net", subnets=[Subnet("10.55.0.0/24", gateway)])
    assert refused.value.kind is Kind.INVALID


def test_an_id_s_beginning_is_no_network_s_name(tmp_path: Path) -> None:
    """Neither is a name taken because another network's id begins so, nor is that one left in its place."""
    nets = networks(tmp_path)
    name = str(nets.create("first")["Id"])[:8]
    assert nets.inspect(name)["Name"] == "first"
    nets.detach("c1", "", name)
    assert nets.create(name)["Name"] == name
    assert nets.inspect(name)["Name"] == name
