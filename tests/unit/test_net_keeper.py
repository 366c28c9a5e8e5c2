"""The parts of a network's keeper that need no network: rosters, the host's servers, what nft's batches mean."""

from __future__ import annotations

import os
import struct

import pytest

from wherry.errors import WherryError
from wherry.kernel import shim
from wherry.model import Place
from wherry.net import kept, roster
from wherry.net.forward import HostServers
from wherry.net.keeper import main
from wherry.net.nftwatch import Loss, Watch

ONE = roster.Roster("n", (roster.Member("a" * 64, ("web",), ("10.1.0.2",), ("192.0.2.1",)),), ("10.1.0.1",), "t", True)


def test_a_roster_comes_back_as_it_was_and_goes_with_its_last_member(tmp_path):
    state = str(tmp_path)
    assert roster.networks(state) == []
    roster.store(state, ONE)
    assert roster.load_all(state) == [ONE]
    assert os.stat(roster.directory(state)).st_mode & 0o777 == 0o700
    roster.store(state, ONE._replace(members=()))
    assert roster.networks(state) == []
    roster.store(state, ONE._replace(members=()))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"network": "n"}', '{"network": "n", "members": [[1]]}'])
def test_half_a_roster_is_none(tmp_path, text):
    path = tmp_path / "n.json"
    path.write_text(text)
    assert roster.load(str(path)) is None


def test_the_host_s_servers_are_those_of_now(tmp_path):
    path = tmp_path / "resolv.conf"
    servers = HostServers(str(path))
    assert servers.now() == ("127.0.0.1",), "resolv.conf(5): without a file, or a line, it is this machine"
    path.write_text("search example.com\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n")
    assert servers.now() == ("127.0.0.53", "192.0.2.1"), "a stub is asked itself"
    (tmp_path / "new").write_text("nameserver fe80::1%lo\n# nameserver 192.0.2.9\nnameserver nonsense\n")
    os.replace(tmp_path / "new", path)
    assert servers.now() == ("fe80::1%lo",)
    assert servers.now({"fe80::1%lo"}) == ()


def test_a_keeper_is_not_started_by_hand(tmp_path):
    with pytest.raises(WherryError, match="started by the first container"):
        main(Place(state=str(tmp_path)), "n", {})


def test_no_keeper_is_no_keeper(tmp_path):
    state = str(tmp_path)
    assert not kept.there(state, "n")
    assert kept.running(state, "n") is None
    kept.stop(state, "n", "t")
    kept.stop_all(state, "t")


# ---- nft


def message(kind, table="wherry", flags=0):
    """One of nfnetlink's, as the kernel multicasts it."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
    return struct.pack("=IHHIIBBH", 20 + len(attribute), 10 << 8 | kind, flags, 0, 0, 1, 0, 0) + attribute


END = struct.pack("=IHHIIBBHHHI", 28, 10 << 8 | 15, 0, 0, 0, 0, 0, 0, 8, 1, 7)
NEW_RULE, DEL_TABLE, DEL_CHAIN, DEL_RULE, DEL_SET, NEW_ELEMENT, DEL_ELEMENT = 6, 2, 5, 8, 11, 12, 14


@pytest.mark.parametrize(("batch", "loss"), [
    ([DEL_RULE, DEL_SET, DEL_CHAIN, DEL_TABLE], Loss.TABLE),
    ([DEL_TABLE, NEW_RULE], Loss.TABLE),
    ([DEL_RULE], Loss.PARTS),
    ([DEL_CHAIN], Loss.PARTS),
    ([DEL_SET], Loss.PARTS),
    ([DEL_RULE, NEW_RULE], Loss.NOTHING),
    ([DEL_ELEMENT], Loss.ELEMENTS),
    ([NEW_ELEMENT, DEL_ELEMENT], Loss.NOTHING),
    ([NEW_ELEMENT], Loss.NOTHING),
])  # fmt: skip
def test_a_batch_that_only_takes_is_a_loss(batch, loss):
    watch = Watch("wherry")
    try:
        assert watch.read(b"".join(map(message, batch))) is Loss.NOTHING, "not before its end"
        assert watch.read(END) is loss
        assert watch.read(END) is Loss.NOTHING
    finally:
        watch.close()


def test_another_table_is_none_of_ours():
    watch = Watch("wherry")
    try:
        assert watch.read(message(DEL_TABLE, "wherry_2") + message(DEL_RULE, "filter") + END) is Loss.NOTHING
        assert watch.read(message(DEL_RULE) + message(NEW_RULE, "filter") + END) is Loss.PARTS
        assert watch.read(b"\0" * 7) is Loss.NOTHING
        assert watch.read(b"\0" * 64) is Loss.NOTHING, "a length of nothing ends, too"
    finally:
        watch.close()


def test_inotify_names_the_rosters_that_change(tmp_path):
    from wherry.net.keeper import _Names

    state = str(tmp_path)
    roster.store(state, ONE)
    names = _Names(state)
    try:
        assert names.book().members("n") == 1
        roster.store(state, ONE._replace(network="m"))
        roster.store(state, ONE._replace(members=()))
        assert (names.book().members("m"), names.book().members("n")) == (1, 0)
    finally:
        os.close(names.fd)
    assert shim  # the kernel's own events, not a double
