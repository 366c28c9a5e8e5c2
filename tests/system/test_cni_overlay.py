"""The plugin overlay: hosts are network namespaces on one switch, containers are namespaces behind them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from helpers.cnichain import Refused
from helpers.nethosts import Host, Segment, eventually
from helpers.tools import run

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
def new(segment: Segment, bin_dir: str, tmp_path: Path) -> Callable[..., Host]:
    return lambda **more: segment.host(bin_dir, tmp_path, **more)


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


def left(host: Host) -> str:
    """Device, routes, watcher and elements of an overlay network that are here. Its bridge stays."""
    rows = [str(host.watchers() or "")]
    for words in (("ip", "-br", "link"), ("ip", "route"), ("ip", "-6", "route"), ("nft", "list", "ruleset")):
        rows += host.run(*words).stdout.splitlines()
    return "\n".join(row for row in rows if row.startswith(("vx", "[")) or "proto 87" in row or "/peers" in row)


def gone(host: Host) -> None:
    """Nothing is left; the watcher may take a moment."""
    end = time.monotonic() + 10
    while left(host) and time.monotonic() < end:
        time.sleep(0.05)
    assert left(host) == ""


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
        gone(host)
        host.run("ip", "link", "del", "br0")
        assert host.state() == before[host]


def host_link(space: str) -> str:
    return run("nsenter", f"--net={space}", "ip", "link", "show", "eth0").stdout


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
        one.call("ADD", config(one, mtu=1400), "d", segment.space("d"))
    assert refused.value.code == 7
    for box in boxes:
        box.end()


# ---- the file and its watcher


def pair(new: Callable[..., Host], segment: Segment, mode: str = "vxlan") -> list[Box]:
    """A container on each of two hosts, and a server in it."""
    hosts = new(), new()
    tell(hosts, [entry(host, DUAL[:1]) for host in hosts])
    boxes = [Box(host, "c", config(host, mode)) for host in hosts]
    for box in boxes:
        segment.serve(box.space)
    return boxes


def write(host: Host, *entries: Json) -> None:
    """In place, as an editor without care does."""
    host.peers.write_text(json.dumps({"peers": entries}))


def replace_directory(host: Host, *entries: Json) -> None:
    shutil.rmtree(host.peers.parent)
    time.sleep(0.3)
    host.peers.parent.mkdir()
    write(host, *entries)


def recreate(host: Host, *entries: Json) -> None:
    host.peers.unlink()
    time.sleep(0.3)
    write(host, *entries)


def move_directory(host: Host, *entries: Json) -> None:
    """As a release is put in place: the file's directory is another one."""
    fresh = host.work / "fresh"
    fresh.mkdir()
    (fresh / host.peers.name).write_text(json.dumps({"peers": entries}))
    host.peers.parent.rename(host.work / "old")
    fresh.rename(host.peers.parent)


def by_link(host: Host, *entries: Json) -> None:
    """As a ConfigMap is mounted: the name is a link by a link to a directory, which is replaced."""
    for turn, listed in enumerate(([entry(host, DUAL[:1])], entries)):
        data = host.work / f"data{turn}"
        data.mkdir()
        (data / host.peers.name).write_text(json.dumps({"peers": listed}))
        fresh = host.work / "etc" / "..new"
        fresh.symlink_to(data)
        fresh.rename(host.work / "etc" / "..data")
        if not host.peers.is_symlink():
            host.peers.unlink()
            host.peers.symlink_to(f"..data/{host.peers.name}")
            eventually(lambda: not routed(host, "10.244.2"))


@pytest.mark.parametrize("change", [write, replace_directory, recreate, move_directory, by_link])
def test_every_way_to_change_the_file_counts(new: Callable[..., Host], segment: Segment,
                                             change: Callable[..., None]) -> None:
    boxes = pair(new, segment)
    one = boxes[0].host
    others = [entry(box.host, DUAL[:1]) for box in boxes]
    change(one, *others, {"address": "192.0.2.77", "subnets": ["10.244.77.0/24"]})
    eventually(lambda: routed(one, "10.244.77.0/24"))
    change(one, *others) if change is write else write(one, *others)
    eventually(lambda: not routed(one, "10.244.77.0/24"))
    all_speak(boxes)
    assert "192.0.2.77" not in one.run("bridge", "fdb").stdout
    assert "10.244.77" not in one.run("ip", "neigh").stdout + one.run("nft", "list", "ruleset").stdout
    assert len(one.watchers()) == 1
    for box in boxes:
        box.end()
    gone(one)


@pytest.mark.parametrize("text", ["{", "", None, '{"peers": [{"address": "192.0.2.2", "subnets": ["10.0.0.1/24"]}]}'])
def test_a_broken_file_keeps_what_was_and_is_told(new: Callable[..., Host], segment: Segment, text: str | None) -> None:
    boxes = pair(new, segment)
    one = boxes[0].host
    sound = one.peers.read_text()
    one.peers.unlink() if text is None else one.peers.write_text(text)
    time.sleep(0.4)
    all_speak(boxes)
    assert "what was before stays" in boxes[0].check()
    with pytest.raises(Refused, match="peers file") as refused:
        one.call("STATUS", boxes[0].config)
    assert refused.value.code == 50
    with pytest.raises(Refused, match="peers file"):
        one.call("ADD", boxes[0].config, "d", segment.space("d"))
    all_speak(boxes)
    assert len(one.watchers()) == 1
    one.peers.write_text(sound)
    one.call("STATUS", boxes[0].config)
    assert boxes[0].check() == ""
    one.peers.unlink()
    for box in boxes:
        box.end()  # the file is not needed to go
    gone(one)


def test_a_watcher_that_was_killed_is_started_by_the_next_add(new: Callable[..., Host], segment: Segment) -> None:
    boxes = pair(new, segment)
    one = boxes[0].host
    (watcher,) = one.watchers()
    os.kill(watcher, signal.SIGKILL)
    eventually(lambda: not one.watchers())
    assert "nobody watches" in boxes[0].check()
    write(one, entry(one, DUAL[:1]))
    time.sleep(0.3)
    assert routed(one, "10.244.2.0/24")
    second = Box(one, "d", boxes[0].config)
    assert not routed(one, "10.244.2.0/24")
    assert len(one.watchers()) == 1
    assert boxes[0].check() == ""
    for box in (*boxes, second):
        box.end()
    gone(one)


def test_the_watcher_has_nothing_of_its_caller(new: Callable[..., Host], segment: Segment) -> None:
    """Descriptors, session, directory, environment; its memory is told."""
    boxes = pair(new, segment)
    (pid,) = boxes[0].host.watchers()
    eventually(lambda: "inotify" in str(list(opened(pid).values())))
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    files = opened(pid)
    assert [files.pop(fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert all("inotify" in name or "/run/wherry-cni/overlay/" in name or "socket" in name for name in files.values())
    assert b"CNI_" not in Path(f"/proc/{pid}/environ").read_bytes()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    print(f"\nthe watcher: RSS {status['VmRSS'].strip()}, anonymous {status['RssAnon'].strip()}")
    for box in boxes:
        box.end()


def opened(pid: int) -> dict[int, str]:
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def test_ten_adds_at_once_have_one_watcher(new: Callable[..., Host], segment: Segment) -> None:
    one = new()
    tell([one], [entry(one)])
    spaces = {f"c{at}": segment.space(f"c{at}") for at in range(10)}
    wanted = config(one)

    def together(verb: str) -> None:
        running = []
        for name, space in spaces.items():
            words, body, env = one.command(verb, wanted, name, space)
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
            assert process.stdin is not None
            process.stdin.write(body)
            process.stdin.close()
            running.append(process)
        for process in running:
            assert process.stdout is not None
            told = process.stdout.read()
            process.stdout.close()
            assert process.wait() == 0, told

    for _ in range(2):
        together("ADD")
        assert len(one.watchers()) == 1
        together("DEL")
        gone(one)


def test_routes_that_went_with_a_link_come_back(new: Callable[..., Host], segment: Segment) -> None:
    """By the next ADD at once (and by the watcher within half a minute)."""
    boxes = pair(new, segment)
    one = boxes[0].host
    one.run("ip", "link", "del", *[line.split()[0] for line in one.run("ip", "-br", "link").stdout.splitlines()
                                   if line.startswith("vx")])
    with pytest.raises(Refused, match="is missing"):
        boxes[0].check()
    second = Box(one, "d", boxes[0].config)
    assert boxes[0].check() == ""
    all_speak(boxes)
    one.run("ip", "route", "del", "10.244.2.0/24")
    with pytest.raises(Refused, match="not as the peers file has them"):
        boxes[0].check()
    one.run("bridge", "fdb", "flush", "dev", one.run("ip", "-br", "link", "show", "type", "vxlan").stdout.split()[0])
    os.utime(one.peers)
    eventually(lambda: boxes[0].asks(boxes[1].addresses[0], seconds=0.5))
    assert boxes[0].check() == ""
    for box in (*boxes, second):
        box.end()


def test_another_network_may_have_the_default_route(new: Callable[..., Host], segment: Segment) -> None:
    """Routes to the peers of now, merged where they meet; none of a version that the containers lack."""
    one = new()
    tell([one], [entry(one, ["10.244.0.0/24"]), {"address": "192.0.2.2", "subnets": ["10.244.1.0/24", "fd44:2::/64"]},
                 {"address": "192.0.2.3", "subnets": ["10.9.0.0/24"]}])
    box = Box(one, "c", config(one, isDefaultGateway=False))
    found = run("nsenter", f"--net={box.space}", "ip", "route").stdout
    assert [line.split()[:3] for line in found.splitlines()] == [
        ["10.9.0.0/24", "via", "10.244.0.1"], ["10.244.0.0/24", "dev", "eth0"], ["10.244.0.0/23", "via", "10.244.0.1"]]
    box.end()


def words(text: str) -> list[str]:
    """A listing without the order of its elements."""
    return sorted(re.split(r"[\s,{}]+", text))


def test_a_flushed_table_is_restored_with_what_the_peers_have_in_it(new: Callable[..., Host], segment: Segment) -> None:
    boxes = pair(new, segment)
    one = boxes[0].host
    before = words(one.run("nft", "list", "ruleset").stdout)
    one.run("nft", "flush", "ruleset")
    plugin = {key: value for key, value in boxes[0].config.items() if key != "prevResult"}
    record = {"conflist": {"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]}, "containerId": "c",
              "netns": boxes[0].space, "ifname": "eth0", "args": {}, "capabilities": {}, "result": boxes[0].result}
    program = f"import sys; sys.path[:0] = {sys.path!r}; from wherry_cni.restore import entry; sys.exit(entry())"
    given = json.dumps({"attachments": [record]})
    told = run("nsenter", f"--net={one.path}", sys.executable, "-c", program, stdin=given)
    assert json.loads(told.stdout)["tables"] == ["t_overlay"]
    assert words(one.run("nft", "list", "ruleset").stdout) == before
    all_speak(boxes)
    for box in boxes:
        box.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_hosts(new: Callable[..., Host], segment: Segment, mode: str) -> None:
    one = new()
    one.run("ip", "addr", "add", "172.20.0.1/16", "dev", "eth0")
    others = [{"address": f"172.20.{1 + at // 250}.{1 + at % 250}", "subnets": [f"10.{at // 250}.{at % 250}.0/24"]}
              for at in range(1000)]
    tell([one], [{**entry(one, DUAL[:1]), "address": "172.20.0.1"}, *others])
    begun = time.monotonic()
    box = Box(one, "c", config(one, mode))
    print(f"\nADD with 1,000 peers: {time.monotonic() - begun:.2f} s")
    assert one.run("ip", "route").stdout.count("proto 87") == 1000
    assert box.check() == ""
    tell([one], [{**entry(one, DUAL[:1]), "address": "172.20.0.1"}])
    eventually(lambda: "proto 87" not in one.run("ip", "route").stdout)
    eventually(lambda: "/peers" not in one.run("nft", "list", "ruleset").stdout)
    box.end()
    gone(one)


# ---- what is refused, and what is left


@pytest.mark.parametrize(("more", "said"), [
    ({"peersFile": "peers.json"}, "not an absolute path"), ({"mode": "ipip"}, "neither vxlan nor host-gw"),
    ({"vni": 1 << 24}, "vni"), ({"vni": -1}, "vni"), ({"port": 70000}, "port"), ({"address": "192.0.2.300"}, "address"),
    ({"address": "192.0.2.9"}, "this host has no address 192.0.2.9"), ({"bridge": "a/b"}, "not a link name"),
    ({"ipam": 5}, "ipam"), ({"mtu": 1500}, "more than the underlay"),
])
def test_a_bad_configuration_is_refused_and_leaves_nothing(new: Callable[..., Host], segment: Segment,
                                                           more: Json, said: str) -> None:
    one = new()
    tell([one], [entry(one)])
    before = one.state()
    with pytest.raises(Refused, match=said) as refused:
        one.call("ADD", config(one, **more), "c", segment.space("c"))
    assert refused.value.code == 7
    assert one.state() == before
    assert left(one) == ""
    assert not list((one.work / "leases").rglob("10.*"))


def test_a_bad_file_is_refused_by_entry(new: Callable[..., Host], segment: Segment) -> None:
    one = new()
    space, before = segment.space("c"), one.state()
    other = {"address": "192.0.2.2", "subnets": ["10.244.2.0/24"]}
    for entries, said in (([other], "no entry for this host"), ([entry(one), entry(one)], "entries 1 and 2"),
                          ([entry(one), {**other, "subnets": ["10.244.0.0/16"]}], "overlaps"),
                          ([entry(one), {**other, "address": "fd99::2"}], "the same IP version"),
                          ([entry(one), {"address": one.six, "subnets": ["10.9.0.0/24"]}], "several entries")):
        tell([one], entries)
        with pytest.raises(Refused, match=said):
            one.call("ADD", config(one), "c", space)
        assert one.state() == before
        assert left(one) == ""


def test_host_gw_wants_neighbours_and_the_right_addresses(new: Callable[..., Host], segment: Segment) -> None:
    one = new()
    space, before = segment.space("c"), one.state()
    one.run("ip", "route", "add", "default", "via", "192.0.2.250")
    for address, subnet, said in (("198.51.100.1", "10.244.2.0/24", "peer 198.51.100.1 is not on a link"),
                                  ("192.0.2.2", "fd44:2::/64", "needs an IPv6 address")):
        tell([one], [entry(one), {"address": address, "subnets": [subnet]}])
        with pytest.raises(Refused, match=said):
            one.call("ADD", config(one, "host-gw"), "c", space)
        one.run("ip", "route", "del", "default")
        assert one.state() == before
        one.run("ip", "route", "add", "default", "via", "192.0.2.250")


@pytest.mark.parametrize("mode", MODES)
def test_a_foreign_route_is_told_and_never_touched(new: Callable[..., Host], segment: Segment, mode: str) -> None:
    boxes = pair(new, segment, mode)
    one = boxes[0].host
    one.run("ip", "route", "add", "10.244.5.0/24", "via", "192.0.2.250", "proto", "87", "metric", "5")
    write(one, *[entry(box.host, DUAL[:1]) for box in boxes], {"address": "192.0.2.5", "subnets": ["10.244.5.0/24"]})
    with pytest.raises(Refused, match=r"peer 192.0.2.5: this host has another route to 10.244.5.0/24"):
        one.call("ADD", boxes[0].config, "d", segment.space("d"))
    all_speak(boxes)
    for box in boxes:
        box.end()
    assert one.run("ip", "route", "show", "10.244.5.0/24").stdout.startswith("10.244.5.0/24 via 192.0.2.250")


def test_a_vni_that_is_taken_is_told(new: Callable[..., Host], segment: Segment) -> None:
    one = new()
    tell([one], [entry(one)])
    one.run("ip", "link", "add", "other", "type", "vxlan", "id", "7", "dstport", "4789", "local", one.four)
    with pytest.raises(Refused, match="VNI 7 on port 4789 belongs to another device"):
        one.call("ADD", config(one, vni=7), "c", segment.space("c"))
    box = Box(one, "d", config(one, vni=8))
    box.end()
    assert "other" in one.run("ip", "link").stdout


def test_a_configuration_that_changes_counts_from_the_next_add(new: Callable[..., Host], segment: Segment) -> None:
    """VXLAN, another VNI, direct routes, and back: nothing of the former is left, and everybody speaks."""
    boxes = pair(new, segment)
    for at, (mode, more) in enumerate((("vxlan", {"vni": 9, "port": 8472}), ("host-gw", {}), ("vxlan", {}))):
        for box in boxes:
            Box(box.host, f"n{at}", config(box.host, mode, **more))
        all_speak(boxes)
        for box in boxes:
            shown = box.host.run("ip", "-d", "link", "show", "type", "vxlan").stdout
            assert shown.count("vxlan id") == (mode == "vxlan")
            assert box.host.run("ip", "route").stdout.count("proto 87") == 1
            assert len(box.host.watchers()) == 1
    for box in boxes:
        for name in ("c", "n0", "n1", "n2"):
            box.host.call("DEL", box.config, name, "")
        gone(box.host)


def test_gc_takes_the_network_with_its_last_attachment(new: Callable[..., Host], segment: Segment) -> None:
    one = new()
    tell([one], [entry(one)])
    Box(one, "c", config(one))
    Box(one, "d", config(one))
    one.call("GC", {**config(one), "cni.dev/valid-attachments": [{"containerID": "d", "ifname": "eth0"}]})
    assert len(one.watchers()) == 1
    one.call("GC", {**config(one), "cni.dev/valid-attachments": []})
    gone(one)
    assert not list((one.work / "leases" / "net").glob("10.*"))


def test_containers_that_went_without_del_take_the_watcher_along(new: Callable[..., Host], segment: Segment) -> None:
    """It looks itself: an attachment whose link is gone, and which is not just being made, is none."""
    one = new()
    tell([one], [entry(one)])
    box = Box(one, "c", config(one))
    (held,) = [name for name in opened(one.watchers()[0]).values() if name.endswith("/watch")]
    segment.drop("1c")
    (port,) = (Path(held).parent / "ports").iterdir()
    os.utime(port, (0, 0))
    eventually(lambda: "veth" not in one.run("ip", "link").stdout)
    write(one, entry(one))
    gone(one)
    assert not Path(held).parent.exists()
    one.call("DEL", box.config, "c", "")


def test_a_repeated_add_is_refused_and_the_first_stays(new: Callable[..., Host], segment: Segment) -> None:
    boxes = pair(new, segment)
    with pytest.raises(Refused, match=r"eth0 already|duplicate"):
        boxes[0].host.call("ADD", boxes[0].config, "c", boxes[0].space)
    all_speak(boxes)
    assert boxes[0].check() == ""
    for box in boxes:
        box.end()
    gone(boxes[0].host)


@pytest.mark.parametrize("mode", MODES)
def test_an_add_that_is_killed_leaves_nothing_after_del(new: Callable[..., Host], segment: Segment, mode: str) -> None:
    """kill -9 at moments all over its time; what remains goes with DEL, and the next ADD is as the first."""
    one = new()
    tell([one], [entry(one, DUAL[:1]), {"address": "192.0.2.2", "subnets": ["10.244.2.0/24"]}])
    wanted, before = config(one, mode), one.state()
    begun = time.monotonic()
    Box(one, "first", wanted).end()
    whole = (time.monotonic() - begun) / 2
    gone(one)
    for at in range(10):
        name, space = f"k{at}", segment.space(f"k{at}")
        words, body, env = one.command("ADD", wanted, name, space)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
        assert process.stdin is not None
        process.stdin.write(body)
        process.stdin.close()
        time.sleep(whole * (at + 1) / 10)
        process.kill()
        process.wait()
        one.call("DEL", wanted, name, space)
        segment.drop(f"k{at}")
        gone(one)
        assert not list((one.work / "leases").rglob("10.244.*"))
        assert "veth" not in one.run("ip", "link").stdout
    one.run("ip", "link", "del", "br0")
    assert one.state() == before
