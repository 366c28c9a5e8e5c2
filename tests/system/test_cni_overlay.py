"""The plugin overlay: hosts are network namespaces on one switch, containers are namespaces behind them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from helpers.cnichain import Refused
from helpers.nethosts import Host, Segment, eventually
from wherry.net import launchers

pytestmark = pytest.mark.root
Json = dict[str, Any]
MODES = ("vxlan", "host-gw")
DUAL = ("10.244.{}.0/24", "fd44:{}::/64")


@pytest.fixture
def segment(test_id: str) -> Iterator[Segment]:
    made = Segment(test_id)
    yield made
    made.close()


@pytest.fixture
def new(segment: Segment, tmp_path: Path) -> Callable[..., Host]:
    directory = launchers.provide(str(tmp_path / "bin"))
    assert directory is not None
    return lambda **more: segment.host(directory, tmp_path, **more)


def entry(host: Host, subnets: Sequence[str] = DUAL, six: bool = False) -> Json:
    return {"address": host.six if six else host.four, "subnets": [text.format(host.number) for text in subnets]}


def tell(hosts: Sequence[Host], entries: Sequence[Json]) -> None:
    """The same file on each host, replaced as a whole."""
    for host in hosts:
        fresh = host.peers.with_suffix(".new")
        fresh.write_text(json.dumps({"peers": list(entries)}))
        fresh.replace(host.peers)


def config(host: Host, mode: str = "vxlan", **more: Any) -> Json:
    return {"type": "overlay", "mode": mode, "peersFile": str(host.peers), "bridge": "br0", "ipMasq": True,
            "isolate": True, "nftTable": "t_overlay", "hairpinMode": True,
            "ipam": {"type": "host-local", "dataDir": str(host.work / "leases")}, **more}


class Box:
    """A container on a host."""

    def __init__(self, host: Host, name: str, wanted: Json) -> None:
        self.host, self.name, self.config = host, name, wanted
        self.space = host.segment.space(f"{host.number}{name}")
        self.result = host.call("ADD", wanted, name, self.space)
        self.addresses = [part["address"].partition("/")[0] for part in self.result["ips"]]

    def end(self) -> None:
        self.host.call("DEL", {**self.config, "prevResult": self.result}, self.name, self.space)

    def check(self) -> str:
        answer = self.host.call("CHECK", {**self.config, "prevResult": self.result}, self.name, self.space)
        return str(answer.get("stderr", ""))

    def asks(self, address: str, port: int = 80, seconds: float = 3) -> str:
        return self.host.segment.ask(self.space, address, port, seconds)


def all_speak(boxes: Sequence[Box]) -> None:
    """Everybody with everybody, by each address, seen by his own."""
    for one, other in permutations(boxes, 2):
        for mine, address in zip(one.addresses, other.addresses, strict=True):
            assert one.asks(address) == mine, f"{one.host.name} to {address}"


def clean(host: Host) -> bool:
    """Neither device nor route, watcher or element of an overlay network. Its bridge stays."""
    routes = host.run("ip", "route").stdout + host.run("ip", "-6", "route").stdout
    return not (host.watchers() or "vx" in host.run("ip", "-br", "link").stdout or "proto 87" in routes
                or "/peers" in host.run("nft", "list", "ruleset").stdout)


# ---- traffic


@pytest.mark.parametrize("six", [False, True], ids=["underlay4", "underlay6"])
@pytest.mark.parametrize("mode", MODES)
def test_two_hosts_and_a_third_that_joins_and_leaves(new: Callable[..., Host], segment: Segment, mode: str,
                                                     six: bool) -> None:
    """Also: nobody is masqueraded between hosts, the packets are as big as the way allows, both IP versions."""
    subnets = DUAL if six or mode == "vxlan" else DUAL[:1]
    one, two, three = new(), new(), new()
    entries = [entry(host, subnets, six) for host in (one, two, three)]
    before = {host: host.state() for host in (one, two, three)}
    tell((one, two), entries[:2])
    boxes = [Box(host, "c", config(host, mode)) for host in (one, two)]
    assert [box.addresses[0] for box in boxes] == ["10.244.1.2", "10.244.2.2"]
    for box in boxes:
        segment.serve(box.space)
        wanted = 1500 - (0 if mode == "host-gw" else 70 if six else 50)
        assert f"mtu {wanted} " in host_link(box.space)
        assert box.check() == ""
    all_speak(boxes)
    assert [len(host.watchers()) for host in (one, two)] == [1, 1]

    tell((one, two, three), entries)
    third = Box(three, "c", config(three, mode))
    segment.serve(third.space)
    eventually(lambda: all(third.asks(box.addresses[0], seconds=0.5) for box in boxes))
    all_speak([*boxes, third])

    tell((one, two), entries[:2])
    eventually(lambda: not routed(one, "10.244.3") and not routed(two, "10.244.3"))
    assert boxes[0].asks(third.addresses[0], seconds=0.5) == ""
    all_speak(boxes)
    for box in (*boxes, third):
        box.end()
        box.end()
    for host in (one, two, three):
        eventually(lambda host=host: clean(host))
        host.run("ip", "link", "del", "br0")
        assert host.state() == before[host]


def host_link(space: str) -> str:
    return subprocess.run(["nsenter", f"--net={space}", "ip", "link", "show", "eth0"], capture_output=True, text=True,
                          check=True).stdout


def routed(host: Host, subnet: str) -> bool:
    return subnet in host.run("ip", "route").stdout


@pytest.mark.parametrize("mode", MODES)
def test_hosts_reach_the_others_containers_and_strangers_do_not(new: Callable[..., Host], segment: Segment,
                                                                mode: str) -> None:
    one, two, stranger = new(), new(), new()
    tell((one, two), [entry(host, DUAL[:1]) for host in (one, two)])
    boxes = [Box(host, "c", config(host, mode)) for host in (one, two)]
    for box in boxes:
        segment.serve(box.space)
    assert segment.ask(one.path, boxes[1].addresses[0]) == ("10.244.1.0" if mode == "vxlan" else one.four)
    stranger.run("ip", "route", "add", "10.244.1.0/24", "via", one.four)
    assert segment.ask(stranger.path, boxes[0].addresses[0], seconds=1) == ""
    segment.serve(stranger.path)
    assert boxes[0].asks(stranger.four) == one.four  # what leaves the overlay is masqueraded
    assert boxes[0].asks(two.four, seconds=1) == ""  # nobody listens there
    for box in boxes:
        box.end()


@pytest.mark.parametrize("mode", MODES)
def test_an_internal_network_reaches_over_hosts_and_no_further(new: Callable[..., Host], segment: Segment,
                                                               mode: str) -> None:
    one, two, stranger = new(), new(), new()
    tell((one, two), [entry(host, DUAL[:1]) for host in (one, two)])
    more = {"isolate": False, "internal": True, "ipMasq": False}
    boxes = [Box(host, "c", config(host, mode, **more)) for host in (one, two)]
    for box in boxes:
        segment.serve(box.space)
    segment.serve(stranger.path)
    stranger.run("ip", "route", "add", "10.244.1.0/24", "via", one.four)
    all_speak(boxes)
    assert boxes[0].asks(stranger.four, seconds=1) == ""
    for box in boxes:
        box.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_published_port_from_a_container_of_another_host(new: Callable[..., Host], segment: Segment,
                                                           mode: str) -> None:
    one, two = new(), new()
    tell((one, two), [entry(host, DUAL[:1]) for host in (one, two)])
    boxes = [Box(host, "c", config(host, mode)) for host in (one, two)]
    ports = {"type": "portmap", "nftTable": "t_overlay", "prevResult": boxes[0].result, "runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
    one.call("ADD", ports, "c", boxes[0].space)
    segment.serve(boxes[0].space)
    assert boxes[1].asks(one.four, 8080) == two.four
    assert boxes[1].asks("10.244.1.1", 8080) == boxes[1].addresses[0]
    assert segment.ask(two.path, one.four, 8080) == two.four
    one.call("DEL", ports, "c", boxes[0].space)
    for box in boxes:
        box.end()


def test_an_ipv6_only_network_on_an_ipv4_underlay(new: Callable[..., Host], segment: Segment) -> None:
    one, two = new(), new()
    tell((one, two), [entry(host, DUAL[1:]) for host in (one, two)])
    boxes = [Box(host, "c", config(host)) for host in (one, two)]
    for box in boxes:
        segment.serve(box.space)
    all_speak(boxes)
    for box in boxes:
        box.end()


def test_a_small_underlay_makes_small_containers(new: Callable[..., Host], segment: Segment) -> None:
    one, two = new(mtu=1400), new(mtu=1400)
    tell((one, two), [entry(host) for host in (one, two)])
    boxes = [Box(host, "c", config(host)) for host in (one, two)]
    for box in boxes:
        segment.serve(box.space)
        assert "mtu 1350 " in host_link(box.space)
    all_speak(boxes)
    with pytest.raises(Refused, match="more than the underlay") as refused:
        one.call("ADD", config(one, mtu=1400), "d", one.path)
    assert refused.value.code == 7
    for box in boxes:
        box.end()
