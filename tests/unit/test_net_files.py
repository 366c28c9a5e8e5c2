"""hosts, resolv.conf and hostname texts."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.net.files import (
    HostEntry,
    host_resolv_conf,
    hostname_file,
    hosts_file,
    resolv_conf,
    update_peers,
    with_peers,
)

OWN = [HostEntry(("10.0.0.2/16", "fd00::2/64"), ("web", "web"))]
PEER = HostEntry(("10.0.0.3/16",), ("db", "postgres"))


def test_hosts_holds_local_names_own_names_added_names_and_peers() -> None:
    text = hosts_file(OWN, ["a:1.2.3.4", "b=fd00::9", "gw:host-gateway", "six:[::5]"], "10.0.0.1", [PEER])
    lines = text.splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    for line in ("10.0.0.2\tweb", "fd00::2\tweb", "1.2.3.4\ta", "fd00::9\tb", "10.0.0.1\tgw", "::5\tsix",
                 "10.0.0.3\tdb postgres\t# wherry: peer"):
        assert line in lines


def test_peers_are_replaced_in_place_and_other_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(hosts_file(OWN, peers=[PEER]) + "9.9.9.9 mine # by hand\n")
    inode = path.stat().st_ino
    assert update_peers(str(path), [HostEntry(("10.0.0.9",), ("cache",))])
    text = path.read_text()
    assert path.stat().st_ino == inode
    assert "db" not in text
    assert "10.0.0.9\tcache" in text
    assert "9.9.9.9 mine # by hand\n" in text
    assert update_peers(str(path), [])
    assert path.read_text() == hosts_file(OWN) + "9.9.9.9 mine # by hand\n"
    assert not update_peers(str(tmp_path / "absent"), [])


def test_a_hosts_file_is_never_followed_nor_read_without_end(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    os.symlink(tmp_path / "real", tmp_path / "link")
    with pytest.raises(OSError, match="symbolic"):
        update_peers(str(tmp_path / "link"), [])
    (tmp_path / "big").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(WherryError) as caught:
        update_peers(str(tmp_path / "big"), [])
    assert caught.value.kind is Kind.EXHAUSTED


@given(st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_with_peers_is_idempotent_and_undone_by_no_peers(text: str) -> None:
    once = with_peers(text, [PEER])
    assert with_peers(once, [PEER]) == once
    assert with_peers(once, []) == with_peers(text, [])


@given(st.text(min_size=1, max_size=30))
def test_no_name_adds_a_line_or_a_word(name: str) -> None:
    try:
        text = hosts_file([HostEntry(("10.0.0.2",), (name,))])
    except WherryError:
        return
    added = text[len(hosts_file([])):]
    assert added == f"10.0.0.2\t{name}\n"
    assert len(added.split()) == 2
    assert "#" not in added


@pytest.mark.parametrize("bad", ["noaddress", "a:1.2.3", ":1.2.3.4", "a b:1.2.3.4", "a\n1.1.1.1 x:1.2.3.4",
                                 "a:1.2.3.4\n"])
def test_bad_added_hosts_are_refused(bad: str) -> None:
    with pytest.raises(WherryError) as caught:
        hosts_file([], [bad])
    assert caught.value.kind is Kind.INVALID
    assert "\n" not in caught.value.message


def test_host_gateway_needs_a_gateway() -> None:
    with pytest.raises(WherryError) as caught:
        hosts_file([], ["gw:host-gateway"])
    assert caught.value.kind is Kind.PRECONDITION


@pytest.mark.parametrize(("host", "wanted"), [
    ("nameserver 10.1.1.1\nsearch a b\noptions ndots:2\n", "search a b\nnameserver 10.1.1.1\noptions ndots:2\n"),
    ("nameserver 127.0.0.1\nnameserver ::1\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
    ("nameserver 127.0.0.1\nnameserver 10.2.2.2\n", "nameserver 10.2.2.2\n"),
    ("nameserver nonsense\n# nameserver 1.1.1.1\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
    ("", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
])
def test_resolv_conf_drops_what_cannot_answer(host: str, wanted: str) -> None:
    assert resolv_conf(host) == wanted


def test_resolv_conf_takes_what_is_asked_and_keeps_loopback_on_the_hosts_network() -> None:
    host = "nameserver 127.0.0.53\nsearch home\n"
    assert resolv_conf(host, same_namespace=True) == "search home\nnameserver 127.0.0.53\n"
    assert resolv_conf(host, ["9.9.9.9"], ["."], ["rotate"]) == "nameserver 9.9.9.9\noptions rotate\n"
    for bad in (["9.9.9.9\nnameserver 6.6.6.6"], ["x"], ["fe80::1%\n"]):
        with pytest.raises(WherryError):
            resolv_conf(host, bad)
    with pytest.raises(WherryError):
        resolv_conf(host, [], ["a\nb"])


def test_behind_resolveds_stub_the_true_servers_are_read(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    assert host_resolv_conf(str(stub), str(real)) == "nameserver 127.0.0.53\n"
    real.write_text("nameserver 10.0.0.53\n")
    assert host_resolv_conf(str(stub), str(real)) == "nameserver 10.0.0.53\n"
    stub.write_text("nameserver 127.0.0.1\n")  # a server of the host's own, not the stub
    assert host_resolv_conf(str(stub), str(real)) == "nameserver 127.0.0.1\n"


def test_hostname() -> None:
    assert hostname_file("web-1") == "web-1\n"
    with pytest.raises(WherryError):
        hostname_file("a\nb")


def test_a_lock_that_a_container_holds_on_its_file_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(hosts_file(OWN))
    with open(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert update_peers(str(path), [PEER])
    assert "10.0.0.3\tdb" in path.read_text()
