"""Results of every CNI version, read and written: what a version cannot say is lost, what it can is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.net import cniresult

FULL: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/netns"}],
    "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::2/64"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300}, {"dst": "::/0"}],
    "dns": {"nameservers": ["10.0.0.1"]},
}


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_until_1_0_each_ip_says_its_family(version: str) -> None:
    told = cniresult.written(FULL, version)
    assert told["cniVersion"] == version
    assert [ip["version"] for ip in told["ips"]] == ["4", "6"]
    assert "mtu" not in told["interfaces"][0]
    again = cniresult.read(told, version)
    assert again["ips"] == FULL["ips"]
    assert again["cniVersion"] == "1.1.0"


def test_1_0_has_neither_families_nor_what_came_with_1_1() -> None:
    told = cniresult.written(FULL, "1.0.0")
    assert told["ips"] == FULL["ips"]
    assert told["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0"}]
    assert cniresult.written(FULL, "1.1.0") == FULL


def test_the_oldest_have_one_address_of_each_family_with_its_routes() -> None:
    told = cniresult.written(FULL, "0.2.0")
    assert told == {
        "cniVersion": "0.2.0", "dns": {"nameservers": ["10.0.0.1"]},
        "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]},
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
    }  # fmt: skip
    again = cniresult.read(told, "0.2.0")
    assert again["ips"] == [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}]
    assert again["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0"}]


def test_a_result_that_says_no_version_has_its_lists() -> None:
    assert cniresult.read({"ip4": {"ip": "10.0.0.2/24"}}, "0.2.0")["ips"] == [{"address": "10.0.0.2/24"}]
    assert "ips" not in cniresult.read({"ip4": {"ip": "10.0.0.2/24"}}, "1.0.0")


@pytest.mark.parametrize(("conflist", "wanted"), [
    ({"cniVersion": "0.4.0"}, ["0.4.0"]), ({}, ["0.1.0"]), ({"cniVersion": "9.9.9"}, []),
    ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1", "7.0.0"]}, ["1.0.0", "0.4.0", "0.3.1"]),
    ({"cniVersion": "9.0.0", "cniVersions": ["1.1.0"]}, ["1.1.0"]), ({"cniVersions": "1.0.0"}, ["0.1.0"]),
])
def test_the_versions_that_a_list_may_be_spoken_in(conflist: dict[str, Any], wanted: list[str]) -> None:
    assert cniresult.candidates(conflist) == wanted


ADDRESSES = st.lists(st.sampled_from(["10.0.0.2/24", "fd00::2/64", "192.0.2.9/32"]), max_size=3)


@given(ADDRESSES, st.sampled_from(cniresult.VERSIONS[2:]))
def test_what_is_written_is_read_again(addresses: list[str], version: str) -> None:
    result = {"cniVersion": "1.1.0", "ips": [{"address": text} for text in addresses]}
    assert cniresult.read(cniresult.written(result, version), version) == result
