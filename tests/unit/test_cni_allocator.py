"""Address allocation: properties of the ranges, and of leases under many callers."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_cni import host_local, skel
from wherry_cni.allocator import parse_ranges, walk
from wherry_cni.errors import CniError


@st.composite
def range_configs(draw: st.DrawFn) -> dict[str, str]:
    if draw(st.booleans()):
        prefix = draw(st.integers(22, 30))
        base = ipaddress.ip_network((draw(st.integers(0, 2**32 - 1)), prefix), strict=False)
    else:
        prefix = draw(st.integers(118, 126))
        base = ipaddress.ip_network((draw(st.integers(0, 2**128 - 1)), prefix), strict=False)
    config = {"subnet": str(base)}
    top = base.num_addresses - (2 if base.version == 4 else 1)
    low = draw(st.integers(1, top))
    if draw(st.booleans()):
        config["rangeStart"] = str(base[low])
        config["rangeEnd"] = str(base[draw(st.integers(low, top))])
    if draw(st.booleans()):
        config["gateway"] = str(base[draw(st.integers(1, top))])
    return config


@given(range_configs(), st.integers(0, 2000))
@settings(max_examples=150, deadline=None)
def test_walk_offers_every_address_once_and_never_the_gateway(config: dict[str, str], at: int) -> None:
    (group,) = parse_ranges({"ranges": [[config]]})
    straight = [address for _, address in walk(group, None)]
    part = group[0]
    wanted = [number for number in range(int(part.start), int(part.end) + 1) if number != int(part.gateway)]
    assert [int(address) for address in straight] == wanted
    if straight:
        last = straight[at % len(straight)]
        turned = [address for _, address in walk(group, last)]
        assert sorted(map(int, turned)) == wanted
        assert turned[-1] == last
        assert len(straight) == 1 or turned[0] == straight[(at + 1) % len(straight)]


@given(st.lists(range_configs(), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_ranges_of_two_sets_never_overlap_unseen(configs: list[dict[str, str]]) -> None:
    spans = [parse_ranges({"ranges": [[config]]})[0][0] for config in configs]
    if any(one.subnet.version == two.subnet.version
           and int(one.start) <= int(two.end) and int(two.start) <= int(one.end)
           for index, one in enumerate(spans) for two in spans[:index]):
        with pytest.raises(CniError, match="overlap"):
            parse_ranges({"ranges": [[config] for config in configs]})
        return
    sets = parse_ranges({"ranges": [[config] for config in configs]})
    offered = [str(address) for group in sets for _, address in walk(group, None)]
    gateways = {str(part.gateway) for group in sets for part in group}
    assert len(offered) == len(set(offered))
    assert gateways.isdisjoint(str(address) for group in sets for part, address in walk(group, None)
                               if str(part.gateway) == str(address))


@pytest.mark.parametrize(("ranges", "word"), [
    ([[{"subnet": "10.0.0.0/31"}]], "too small"),
    ([[{"subnet": "10.0.0.1/24"}]], "host bits"),
    ([[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]], "not a range"),
    ([[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]], "mixes"),
    ([[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]], "overlap"),
    ([[]], "non-empty"),
    ([], "no IP ranges"),
])
def test_bad_ranges_are_refused_with_the_reason(ranges: Any, word: str) -> None:
    with pytest.raises(CniError, match=word):
        parse_ranges({"ranges": ranges})


def call(verb: str, container: str, directory: str, ipam: dict[str, Any] | None = None,
         **more: Any) -> tuple[int, dict[str, Any]]:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "host-local",
              "ipam": {"type": "host-local", "dataDir": directory, "ranges": [[{"subnet": "10.9.0.0/27"}]],
                       **(ipam or {})}, **more.pop("config", {})}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": "/none", "CNI_IFNAME": "eth0",
           "CNI_PATH": "/none", **more}
    code, out = skel.capture(host_local.VERBS, ["host-local"], env, json.dumps(config).encode())
    return code, json.loads(out) if out else {}


def addresses(answer: dict[str, Any]) -> list[str]:
    return [part["address"] for part in answer["ips"]]


def test_many_at_once_get_different_addresses_and_the_last_is_told_why(tmp_path: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: call("ADD", f"c{number}", str(tmp_path)), range(32)))
    given_out = [addresses(answer)[0] for code, answer in answers if code == 0]
    refused = [answer for code, answer in answers if code]
    assert len(given_out) == len(set(given_out)) == 29  # 32 less network, broadcast and gateway
    assert {answer["code"] for answer in refused} == {51}
    assert call("DEL", "c0", str(tmp_path)) == (0, {})
    assert call("DEL", "c0", str(tmp_path)) == (0, {})


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
@settings(max_examples=25, deadline=None)
def test_leases_follow_a_model(steps: list[tuple[bool, int]]) -> None:
    held: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        for adding, number in steps:
            code, answer = call("ADD" if adding else "DEL", f"c{number}", directory)
            if not adding:
                assert code == 0
                held.pop(number, None)
            elif number in held:
                assert answer["code"] == 7
            else:
                assert addresses(answer)[0] not in held.values()
                held[number] = addresses(answer)[0]
        kept = {name for name in os.listdir(directory + "/net") if name[0].isdigit()} if steps and held else set()
        assert kept == {address.partition("/")[0] for address in held.values()}


def test_a_static_address_by_each_of_its_three_ways(tmp_path: Any) -> None:
    ways: list[dict[str, Any]] = [
        {"CNI_ARGS": "IgnoreUnknown=1;IP=10.9.0.20"},
        {"config": {"runtimeConfig": {"ips": ["10.9.0.21/27"]}}},
        {"config": {"args": {"cni": {"ips": ["10.9.0.22"]}}}},
    ]
    found = [addresses(call("ADD", f"c{number}", str(tmp_path), **way)[1])[0] for number, way in enumerate(ways)]
    assert found == ["10.9.0.20/27", "10.9.0.21/27", "10.9.0.22/27"]
    code, answer = call("ADD", "c9", str(tmp_path), **ways[0])
    assert (code, answer["code"]) == (1, 51)
    code, answer = call("ADD", "c9", str(tmp_path), CNI_ARGS="IP=192.0.2.1")
    assert (code, answer["code"]) == (1, 7)
    code, answer = call("ADD", "c9", str(tmp_path), CNI_ARGS="IP=10.9.0.1")
    assert "gateway" in answer["msg"]
    assert len([name for name in os.listdir(tmp_path / "net") if name[0].isdigit()]) == 3


def test_nothing_is_kept_when_the_second_family_is_full(tmp_path: Any) -> None:
    ipam = {"ranges": [[{"subnet": "10.9.0.0/27"}], [{"subnet": "fd00::/126", "rangeEnd": "fd00::2"}]]}
    assert call("ADD", "a", str(tmp_path), ipam)[0] == 0
    assert call("ADD", "b", str(tmp_path), ipam)[1]["code"] == 51
    assert sorted(name for name in os.listdir(tmp_path / "net") if name[0].isalnum() and "." in name and name[0] == "1"
                  ) == ["10.9.0.2"]


def test_gc_keeps_exactly_the_valid(tmp_path: Any) -> None:
    for name in "abc":
        call("ADD", name, str(tmp_path))
    code, _ = call("GC", "", str(tmp_path),
                   config={"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]})
    assert code == 0
    assert call("CHECK", "b", str(tmp_path))[0] == 0
    assert call("CHECK", "a", str(tmp_path))[1]["code"] == 5
    assert call("GC", "", str(tmp_path))[1]["code"] == 7  # without the list it would drop everything


def test_ranges_of_the_runtime_go_before_the_configurations(tmp_path: Any) -> None:
    """Capability ipRanges: a list of range sets."""
    given = {"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]}}
    code, answer = call("ADD", "a", str(tmp_path), config=given)
    assert (code, addresses(answer)) == (0, ["10.7.0.2/24", "fd07::2/64", "10.9.0.2/27"])
    code, answer = call("ADD", "b", str(tmp_path), config={"runtimeConfig": {"ipRanges": "x"}})
    assert (code, answer["code"]) == (1, 7)
    code, answer = call("STATUS", "", str(tmp_path), config={"runtimeConfig": {"ipRanges": [[]]}})
    assert (code, answer["code"]) == (1, 7)


def test_resolver_settings_are_read_before_anything_is_leased(tmp_path: Any) -> None:
    (tmp_path / "resolv.conf").write_text("# no\nnameserver 10.0.0.53\nsearch a.example b.example\noptions ndots:2\n"
                                          "domain example\nnameserver\n")
    _, answer = call("ADD", "a", str(tmp_path), {"resolvConf": str(tmp_path / "resolv.conf")})
    assert answer["dns"] == {"nameservers": ["10.0.0.53"], "search": ["a.example", "b.example"],
                             "options": ["ndots:2"], "domain": "example"}
    for wrong in ({"resolvConf": str(tmp_path / "none")}, {"routes": [{"dst": "x"}]}):
        assert call("ADD", "b", str(tmp_path), wrong)[0] == 1
    assert leases(tmp_path) == ["10.9.0.2"]


def test_an_empty_lease_is_nobodys_and_a_strangers_is_his(tmp_path: Any) -> None:
    """What a killed plugin of the reference leaves, or a power cut; and a lease without a name of very old plugins."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.9.0.2").write_text("")
    (tmp_path / "net" / "10.9.0.3").write_text("old")
    assert addresses(call("ADD", "a", str(tmp_path))[1]) == ["10.9.0.2/27"]
    assert addresses(call("ADD", "b", str(tmp_path))[1]) == ["10.9.0.4/27"]
    (tmp_path / "net" / "10.9.0.9").write_text("")
    valid = [{"containerID": name, "ifname": "eth0"} for name in ("a", "old")]
    assert call("GC", "", str(tmp_path), config={"cni.dev/valid-attachments": valid})[0] == 0
    assert leases(tmp_path) == ["10.9.0.2", "10.9.0.3"]
    assert call("DEL", "old", str(tmp_path))[0] == 0
    assert leases(tmp_path) == ["10.9.0.2"]


def test_an_address_rests_before_it_is_given_again(tmp_path: Any) -> None:
    seen = []
    for number in range(40):
        seen += addresses(call("ADD", f"c{number}", str(tmp_path))[1])
        call("DEL", f"c{number}", str(tmp_path))
    assert len(set(seen[:29])) == 29
    assert seen[29:] == seen[:11]


def test_several_ranges_of_a_set_are_used_one_after_another(tmp_path: Any) -> None:
    ranges = [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.6"},
               {"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.9", "rangeEnd": "10.8.0.9", "gateway": "10.8.0.254"}]]
    answers = [call("ADD", f"c{number}", str(tmp_path), {"ranges": ranges}) for number in range(4)]
    assert [addresses(answer) for _, answer in answers[:3]] == [["10.9.0.5/24"], ["10.9.0.6/24"], ["10.8.0.9/24"]]
    assert answers[2][1]["ips"][0]["gateway"] == "10.8.0.254"
    assert answers[3][1]["code"] == 51
    assert "10.8.0.9-10.8.0.9" in answers[3][1]["msg"]


def test_a_del_of_what_add_refused_succeeds(tmp_path: Any) -> None:
    for wrong in ({"dataDir": "relative"}, {"ranges": "x"}, {"routes": 5}):
        assert call("ADD", "a", str(tmp_path), wrong)[1]["code"] == 7
        assert call("DEL", "a", str(tmp_path), wrong) == (0, {})


_LOOP = """
import sys
from wherry_cni import store
while True:
    for number in range(1, 60):
        with store.opened(sys.argv[1], "net") as held:
            held.take(f"10.9.0.{number}", "container" * 20, "eth0")
        with store.opened(sys.argv[1], "net") as held:
            held.drop([f"10.9.0.{number}"])
"""


def test_a_killed_plugin_leaves_whole_leases_only(tmp_path: Any) -> None:
    for _ in range(15):
        with subprocess.Popen([sys.executable, "-c", _LOOP, str(tmp_path)],
                              env={"PYTHONPATH": ":".join(sys.path)}) as plugin:
            time.sleep(random.uniform(0.05, 0.2))
            plugin.kill()
        for name in leases(tmp_path) if (tmp_path / "net").exists() else ():
            assert (tmp_path / "net" / name).read_bytes() == b"container" * 20 + b"\r\neth0"
    assert addresses(call("ADD", "a", str(tmp_path))[1])
    assert call("DEL", "container" * 20, str(tmp_path))[0] == 0
    assert len(leases(tmp_path)) == 1


def leases(directory: Any) -> list[str]:
    return sorted(name for name in os.listdir(directory / "net") if name[0].isdigit())
