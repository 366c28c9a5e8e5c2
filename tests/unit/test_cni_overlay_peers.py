"""The peers file: what is sound, and that a wrong one says which entry is wrong. What it means for the kernel and the
table is tested with both (tests/system/test_cni_overlay.py)."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_cni import overlay_peers
from wherry_cni.errors import CniError

ONE = {"address": "192.0.2.1", "subnets": ["10.244.1.0/24", "fd00:1::/64"]}
TWO = {"address": "2001:db8::2", "subnets": ["10.244.2.0/24"]}


def parse(*peers: Any) -> list[overlay_peers.Peer]:
    return overlay_peers.parse(json.dumps({"peers": peers}).encode())


def test_a_sound_file() -> None:
    assert parse(ONE, TWO) == [("192.0.2.1", ("10.244.1.0/24", "fd00:1::/64")), ("2001:db8::2", ("10.244.2.0/24",))]


@pytest.mark.parametrize(("second", "said"), [
    ({"address": "192.0.2.1", "subnets": ["10.244.2.0/24"]}, "entries 1 and 2: the same address 192.0.2.1"),
    ({"address": "192.0.2.2", "subnets": ["10.244.0.0/16"]}, r"10.244.0.0/16 overlaps 10.244.1.0/24 of entry 1"),
    ({"address": "192.0.2.2", "subnets": ["10.244.1.128/25"]}, "entry 1 .* overlaps 10.244.1.128/25 of entry 2"),
    ({"address": "192.0.2.2", "subnets": ["fd00:1::/64"]}, "entry 1 .*: fd00:1::/64 overlaps fd00:1::/64 of entry 2"),
    ({"address": "192.0.2.2", "subnets": ["10.9.0.0/24", "10.9.0.0/25"]}, "overlaps 10.9.0.0/25 of entry 2"),
    ({"address": "192.0.2.2", "subnets": ["192.0.2.0/24"]}, "overlaps 192.0.2.1/32 of the host of entry 1"),
    ({"address": "192.0.2.2", "subnets": ["10.244.2.1/24"]}, "entry 2 .*host bits"),
    ({"address": "192.0.2.2", "subnets": ["10.244.2.0/33"]}, "entry 2 .*10.244.2.0/33"),
    ({"address": "192.0.2.2", "subnets": ["10.244.2.0/31"]}, "entry 2 .*holds no containers"),
    ({"address": "192.0.2.2", "subnets": ["0.0.0.0/0"]}, "entry 2 .*holds no containers"),
    ({"address": "192.0.2.2", "subnets": ["224.1.0.0/16"]}, "entry 2 .*holds no containers"),
    ({"address": "192.0.2.2", "subnets": [7]}, "entry 2 .*7 is not a text"),
    ({"address": "192.0.2.2", "subnets": []}, "entry 2 .*no list of subnets"),
    ({"address": "192.0.2.2"}, "entry 2 .*no list of subnets"),
    ({"address": "host", "subnets": ["10.244.2.0/24"]}, "entry 2: address: 'host'"),
    ({"address": "0.0.0.0", "subnets": ["10.244.2.0/24"]}, "entry 2: address 0.0.0.0 is no host's"),
    ({"address": "fe80::1%eth0", "subnets": ["10.244.2.0/24"]}, "entry 2: address .* is no host's"),
    ({"subnets": ["10.244.2.0/24"]}, "entry 2: no address"), ("x", "entry 2: no address"),
])
def test_a_wrong_entry_is_named(second: Any, said: str) -> None:
    with pytest.raises(CniError, match=said) as refused:
        parse(ONE, second)
    assert refused.value.code == 7


@pytest.mark.parametrize(("text", "said"), [
    (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", 'no list "peers"'), (b'{"peers": {}}', 'no list "peers"'),
    (b"[" * 100_000, "not JSON"), (b"", "not JSON"),
])
def test_what_is_no_peers_file(text: bytes, said: str) -> None:
    with pytest.raises(CniError, match=said):
        overlay_peers.parse(text)


def test_the_file_is_named_and_bounded(tmp_path: Path) -> None:
    with pytest.raises(CniError, match=r"peers file .*/none: No such file"):
        overlay_peers.read(str(tmp_path / "none"))
    (tmp_path / "big").write_bytes(b" " * (5 << 20))
    with pytest.raises(CniError, match="larger than"):
        overlay_peers.read(str(tmp_path / "big"))


def test_a_fifo_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "peers.json")
    with pytest.raises(CniError, match="is not a file"):
        overlay_peers.read(str(tmp_path / "peers.json"))


def test_the_own_entry() -> None:
    peers = parse(ONE, TWO)
    assert overlay_peers.own(peers, "", {"192.0.2.1", "198.51.100.1"}) == peers[0]
    assert overlay_peers.own(peers, "2001:DB8:0::2", {"2001:db8::2"}) == peers[1]
    with pytest.raises(CniError, match=r"no entry for this host \(198.51.100.1\)"):
        overlay_peers.own(peers, "", {"198.51.100.1"})
    with pytest.raises(CniError, match=r"several entries: 192.0.2.1, 2001:db8::2"):
        overlay_peers.own(peers, "", {"192.0.2.1", "2001:db8::2"})
    with pytest.raises(CniError, match=r"this host has no address 192\.0\.2\.1"):
        overlay_peers.own(peers, "192.0.2.1", {"198.51.100.1"})


def test_a_thousand_hosts_are_read_at_once() -> None:
    peers = [{"address": f"192.0.{at // 250}.{at % 250 + 1}", "subnets": [f"10.{at // 250}.{at % 250}.0/24"]}
             for at in range(1000)]
    before = time.perf_counter()
    assert len(parse(*peers)) == 1000
    assert time.perf_counter() - before < 2


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(18, 30)), min_size=2, max_size=6))
def test_overlaps_are_found_wherever_they_stand(parts: list[tuple[int, int]]) -> None:
    nets = [ipaddress.ip_network(f"10.0.{third}.0/{prefix}", strict=False) for third, prefix in parts]
    overlapping = any(one.overlaps(two) for at, one in enumerate(nets) for two in nets[:at])
    peers = [{"address": f"192.0.2.{at + 1}", "subnets": [str(net)]} for at, net in enumerate(nets)]
    if overlapping:
        with pytest.raises(CniError, match="overlaps"):
            parse(*peers)
    else:
        assert len(parse(*peers)) == len(nets)
