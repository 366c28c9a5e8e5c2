"""What a flush of nft took comes back: elements rendered anew from the records of attachments."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cnichain import Chain
from helpers.nethost import HOST, HOST6, OUTSIDE, NetHost
from helpers.tools import run
from wherry.net import launchers

pytestmark = pytest.mark.root
TABLE = "t_restore"
WEB = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
Record = dict[str, Any]


@pytest.fixture
def chain(host: NetHost, bin_dir: str, tmp_path: Path) -> Chain:
    bridge = {"type": "bridge", "bridge": f"b{host.name}"[:15], "isGateway": True, "ipMasq": True, "hairpinMode": True,
              "isolate": True, "nftTable": TABLE,
              "ipam": {"type": "host-local", "dataDir": str(tmp_path / "leases"),
                       "ranges": [[{"subnet": "10.35.0.0/16"}], [{"subnet": "fd35::/64"}]],
                       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "nftTable": TABLE}
    return Chain(bin_dir, [bridge, ports])


def restore(*records: Record) -> tuple[int, dict[str, Any]]:
    out = io.BytesIO()
    given = io.BytesIO(json.dumps({"attachments": records}).encode())
    return launchers.program("restore")(["restore"], {}, given, out), json.loads(out.getvalue())


def elements(table: str = TABLE) -> set[str]:
    """Every element with its comment, and every rule, whatever the order."""
    return {line.strip().rstrip(",") for line in run("nft", "-n", "list", "table", "inet", table).stdout.split("\n")}


def page(path: Path) -> Path:
    (path / "www").mkdir()
    (path / "www/index.html").write_text("hello")
    return path / "www"


def works(host: NetHost, web: str, peer: str) -> bool:
    """Published ports and masquerading."""
    pages = [host.fetch(where, url, 1) for where, url in (
        ("o", f"http://{HOST}:8080/"), ("o", f"http://[{HOST6}]:8080/"), ("h", "http://127.0.0.1:8080/"),
        (peer, f"http://{HOST}:8080/"), (web, f"http://{HOST}:8080/"))]
    ping = host.run(peer, "busybox", "ping", "-c1", "-W1", OUTSIDE, check=False)
    assert len(set(pages)) == 1  # all or none
    assert (pages[0] == "hello") == (ping.returncode == 0)
    return pages[0] == "hello"


@pytest.fixture
def two(host: NetHost, chain: Chain, tmp_path: Path) -> Iterator[tuple[list[Record], str, str]]:
    """A container with a port and one without; their records and namespaces."""
    web, peer = host.space("w"), host.space("p")
    first, second = chain.add("web", web, portMappings=WEB), chain.add("peer", peer)
    host.serve(web, page(tmp_path))
    assert works(host, web, peer)
    yield [chain.record("web", web, first, portMappings=WEB), chain.record("peer", peer, second)], web, peer
    for name, space in (("web", web), ("peer", peer)):
        chain.delete(name, space)
    assert "veth" not in host.links()
    assert "/eth0@" not in host.rules()


def test_a_flushed_ruleset_comes_back(host: NetHost, chain: Chain, two: tuple[list[Record], str, str]) -> None:
    records, web, peer = two
    before = elements()
    for _ in range(2):
        host.run("h", "nft", "flush", "ruleset")
        host.run("h", "conntrack", "-F", check=False)
        assert not works(host, web, peer)
        code, told = restore(*records)
        assert (code, told["tables"]) == (0, [TABLE])
        assert elements() == before
        assert works(host, web, peer)
    for record in records:
        chain.check(record["containerId"], record["netns"], record["result"], **record["capabilities"])


def test_the_mac_spoof_check_comes_back(host: NetHost, chain: Chain) -> None:
    chain.plugins[0]["macspoofchk"] = True
    space = host.space("c")
    result = chain.add("one", space)
    before = host.rules()
    host.run("h", "nft", "flush", "ruleset")
    for _ in range(2):
        assert restore(chain.record("one", space, result))[0] == 0
    assert sorted(host.rules().split()) == sorted(before.split())
    chain.delete("one", space, result)


def test_it_can_be_done_again_and_again(two: tuple[list[Record], str, str]) -> None:
    before = elements()
    assert restore(*two[0]) == restore(*two[0])
    assert elements() == before


@pytest.mark.parametrize("damage", [
    "delete chain inet {} forward", "flush chain inet {} postrouting", "flush map inet {} any4",
    "flush set inet {} masq4",
    "flush chain inet {0} output; flush chain inet {0} prerouting; flush chain inet {0} publish; "
    "delete map inet {0} any4",
    "flush table inet {}", "delete table inet {}",
    "delete table inet {0}; add table inet {0}; add set inet {0} masq4 {{ type ipv4_addr; }}",
])
def test_whatever_is_left_of_the_table(host: NetHost, two: tuple[list[Record], str, str], damage: str) -> None:
    before = elements()
    host.run("h", "nft", damage.format(TABLE))
    assert restore(*two[0])[0] == 0
    assert elements() == before


def test_a_key_that_nobody_gave_back_changes_hands(host: NetHost, two: tuple[list[Record], str, str]) -> None:
    before = elements()
    host.run("h", "nft", f'flush map inet {TABLE} any4; '
             f'add element inet {TABLE} any4 {{ tcp . 8080 comment "lost/eth0@net" : 10.35.0.99 . 80 }}')
    assert restore(*two[0])[0] == 0
    assert elements() == before


def test_other_tables_stay_as_they_are(host: NetHost, two: tuple[list[Record], str, str]) -> None:
    host.run("h", "nft", "add table inet theirs; add chain inet theirs c; add rule inet theirs c counter drop")
    before = elements("theirs")
    assert restore(*two[0])[0] == 0
    assert elements("theirs") == before
    assert {line.split()[-1] for line in run("nft", "list", "tables").stdout.splitlines()} == {TABLE, "theirs"}


def test_records_of_what_is_gone_or_broken_keep_no_other_from_coming_back(
    host: NetHost, two: tuple[list[Record], str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    records, web, peer = two
    before = elements()
    gone = {**records[0], "containerId": "gone", "netns": "/run/netns/none-such"}
    half = {**records[0], "containerId": "half", "result": None}
    plugins = records[0]["conflist"]["plugins"]
    bad = {**records[0], "conflist": {**records[0]["conflist"], "plugins": [{**plugins[0], "mtu": "big"}]}}
    foreign = {**records[0], "conflist": {"cniVersion": "1.0.0", "name": "f", "plugins": [{"type": "cilium"}]}}
    host.run("h", "nft", "flush", "ruleset")
    assert restore(gone, half, bad, {}, foreign, *records)[0] == 0  # type: ignore[arg-type]
    assert elements() == before
    assert capfd.readouterr().err.count("passed over") == 2
    assert works(host, web, peer)


def test_nothing_to_restore_makes_no_table(host: NetHost) -> None:
    assert restore() == (0, {"elements": 0, "tables": []})
    assert host.rules() == ""


def test_what_is_no_list_of_records_is_refused(host: NetHost) -> None:
    out = io.BytesIO()
    for given, code in ((b"{", 6), (b"[]", 7), (b'{"attachments": {}}', 7)):
        out = io.BytesIO()
        assert launchers.program("restore")(["restore"], {}, io.BytesIO(given), out) == 1
        assert json.loads(out.getvalue())["code"] == code


def test_two_hundred_attachments_take_well_under_a_second(host: NetHost, chain: Chain) -> None:
    space = host.space("c")
    records = []
    for number in range(200):
        ips = [{"address": address, "interface": 0} for address in (f"10.35.1.{number}/16", f"fd35::1:{number:x}/64")]
        result = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": space}], "ips": ips}
        ports = [{"hostPort": 9000 + 2 * number + odd, "containerPort": 80, "protocol": "tcp"} for odd in (0, 1)]
        records.append(chain.record(f"c{number}", space, result, portMappings=ports))
    began = time.monotonic()
    code, told = restore(*records)
    took = time.monotonic() - began
    print(f"\n200 attachments, {told['elements']} elements: {took * 1000:.0f} ms")
    assert code == 0
    assert took < 1
