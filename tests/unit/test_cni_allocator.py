"""Address allocation: properties of the ranges, and of leases under many callers."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
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
    assert call("GC", "", str(tmp_path))[0] == 0  # without the list nobody is known to be dead
    assert call("CHECK", "b", str(tmp_path))[0] == 0
