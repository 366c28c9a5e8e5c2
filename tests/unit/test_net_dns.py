"""What the responder answers whom, and that no bytes of a stranger harm it."""

from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.net.dns import MAX_QUERY, Book, Forward, accepted, failed, question, respond, with_id
from wherry.net.roster import Member, Roster

WEB = Member("a" * 64, ("web", "www", "a" * 12, "webhost"), ("10.1.0.2", "fd00::2"))
DB = Member("b" * 64, ("db", "data", "b" * 12), ("10.1.0.3",), ("192.0.2.53",))
DB_BACK = Member("b" * 64, ("db", "store", "b" * 12), ("10.2.0.3",), ("192.0.2.53",))
FAR = Member("c" * 64, ("far", "c" * 12), ("10.2.0.4",))
SIX = Member("d" * 64, ("six", "d" * 12), ("fd00:0:0::6",))
ALONE = Member("e" * 64, ("alone", "e" * 12), ("10.3.0.2",))
FRONT = Roster("front", (WEB, DB, SIX), ("10.1.0.1", "fd00::1"), "wherry")
BACK = Roster("back", (DB_BACK, FAR), ("10.2.0.1",), "wherry")
INSIDE = Roster("inside", (ALONE,), ("10.3.0.1",), "wherry", internal=True)
BOOK = Book((FRONT, BACK, INSIDE))


def ask(name, kind="A", *, source="10.1.0.2", home="front", book=BOOK, stream=False, **options):
    """The parsed answer, or the Forward."""
    query = dns.message.make_query(name, kind, **options)
    found = respond(query.to_wire(), source, book, home, stream=stream)
    if isinstance(found, bytes):
        reply = dns.message.from_wire(found)
        assert query.is_response(reply)
        return reply
    return found


def texts(reply):
    return sorted(item.to_text() for rrset in reply.answer for item in rrset)


@pytest.mark.parametrize("name", ["db", "DB", "data", "b" * 12, "db.front", "data.front."])
def test_every_name_of_a_peer_has_its_address(name):
    reply = ask(name)
    assert texts(reply) == ["10.1.0.3"]
    assert reply.flags & dns.flags.AA
    assert reply.flags & dns.flags.RA
    assert reply.answer[0].ttl <= 10, "a container that comes back has another address"


def test_a_family_that_the_name_lacks_is_no_data_and_not_no_such_name():
    for name, kind in (("db", "AAAA"), ("six", "A"), ("web", "MX"), ("web", "HTTPS")):
        reply = ask(name, kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, []), (name, kind)
    assert texts(ask("six", "AAAA")) == ["fd00::6"]
    assert texts(ask("web", "ANY")) == ["10.1.0.2", "fd00::2"]


def test_who_asks_sees_all_his_networks_and_no_other():
    assert texts(ask("web", source="10.1.0.3")) == ["10.1.0.2"]
    assert texts(ask("far", source="10.1.0.3")) == ["10.2.0.4"], "asked on the other network"
    assert texts(ask("db", source="10.1.0.3")) == ["10.1.0.3", "10.2.0.3"]
    assert isinstance(ask("far", source="10.1.0.2"), Forward), "web is not on back"
    assert isinstance(ask("store", source="10.1.0.2"), Forward), "an alias of another network"
    assert texts(ask("store", source="10.2.0.4", home="back")) == ["10.2.0.3"]


def test_a_stranger_is_refused():
    for source in ("203.0.113.9", "10.1.0.1", "fd00::1"):
        assert ask("web", source=source).rcode() == dns.rcode.REFUSED


def test_addresses_have_names():
    assert texts(ask(dns.reversename.from_address("10.1.0.3"), "PTR")) == ["db."]
    assert texts(ask(dns.reversename.from_address("fd00::6"), "PTR")) == ["six."]
    assert isinstance(ask(dns.reversename.from_address("10.2.0.4"), "PTR"), Forward), "not on his network"
    assert isinstance(ask("nonsense.in-addr.arpa", "PTR"), Forward)


def test_several_with_one_alias_are_all_told():
    crowd = tuple(Member(str(n) * 64, (f"n{n}", "crowd"), (f"10.9.0.{n}",)) for n in range(2, 6))
    book = Book((Roster("n", crowd),))
    orders = {tuple(i.to_text() for i in ask("crowd", source="10.9.0.2", book=book).answer[0]) for _ in range(50)}
    assert all(len(order) == 4 for order in orders)
    assert len(orders) > 1, "and shared among them"


def test_what_does_not_fit_is_asked_again_by_tcp():
    crowd = tuple(Member(f"{n:064x}", (f"n{n}", "crowd"), (f"10.9.{n // 250}.{n % 250 + 1}",)) for n in range(500))
    book = Book((Roster("n", crowd),))
    for options, room in (({}, 512), ({"use_edns": 0, "payload": 4096}, 1232), ({"use_edns": 0, "payload": 100}, 512)):
        query = dns.message.make_query("crowd", "A", **options)
        wire = respond(query.to_wire(), "10.9.0.1", book, "n")
        assert len(wire) <= room
        assert dns.message.from_wire(wire).flags & dns.flags.TC
    assert len(texts(ask("crowd", source="10.9.0.1", book=book, stream=True))) == 500


def test_edns_is_answered_by_edns_and_only_then():
    assert ask("web", use_edns=0, payload=4096).edns == 0
    assert ask("web", use_edns=False).edns == -1
    assert ask("web", use_edns=1).rcode() == dns.rcode.BADVERS


def test_other_names_go_to_the_asker_s_own_servers_or_the_host_s():
    query = dns.message.make_query("example.com", "TXT").to_wire()
    assert respond(query, "10.1.0.2", BOOK, "front") == Forward(query, ())
    assert respond(query, "10.1.0.3", BOOK, "front") == Forward(query, ("192.0.2.53",))


def test_nothing_is_forwarded_for_who_is_on_internal_networks_only():
    assert ask("example.com", source="10.3.0.2", home="inside").rcode() == dns.rcode.SERVFAIL
    assert texts(ask("alone", source="10.3.0.2", home="inside")) == ["10.3.0.2"]
    both = Book((INSIDE._replace(members=(ALONE, WEB._replace(addresses=("10.3.0.9",)))), FRONT))
    assert isinstance(ask("example.com", source="10.3.0.9", home="inside", book=both), Forward)


def test_what_is_no_plain_question_is_refused():
    wire = bytearray(dns.message.make_query("web", "A").to_wire())
    assert respond(bytes(wire[:2]) + b"\x80\x00" + bytes(wire[4:]), "10.1.0.2", BOOK, "front") is None, "an answer"
    update = bytes(wire[:2]) + b"\x28\x00" + bytes(wire[4:])
    assert respond(update, "10.1.0.2", BOOK, "front")[3] & 0xF == dns.rcode.NOTIMP
    chaos = dns.message.make_query("version.bind", "TXT", "CH").to_wire()
    assert dns.message.from_wire(respond(chaos, "10.1.0.2", BOOK, "front")).rcode() == dns.rcode.REFUSED
    for broken in (wire[:-1], wire + b"x", wire[:4] + b"\0\2" + wire[6:], bytes(wire) + bytes(MAX_QUERY)):
        reply = respond(bytes(broken), "10.1.0.2", BOOK, "front")
        assert reply[:2] == wire[:2]
        assert reply[3] & 0xF == dns.rcode.FORMERR


@given(st.binary(max_size=600), st.sampled_from(["10.1.0.2", "10.3.0.2", "192.0.2.1"]), st.booleans())
def test_no_bytes_harm_it(wire, source, stream):
    well_formed_answer(wire, source, stream)


@given(st.data(), st.sampled_from(["web", "example.com", "2.0.1.10.in-addr.arpa"]))
def test_no_change_of_a_good_question_harms_it(data, name):
    wire = bytearray(dns.message.make_query(name, "A", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 6))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(wire)))
    well_formed_answer(bytes(wire[:cut]) + data.draw(st.binary(max_size=20)), "10.1.0.2", False)


def well_formed_answer(wire, source, stream):
    """Nothing, a question for others, or a message that is small, an answer, and under the same id."""
    found = respond(wire, source, BOOK, "front", stream=stream)
    if isinstance(found, bytes):
        assert found[:2] == wire[:2]
        assert found[2] & 0x80
        assert len(found) <= max(1232, len(wire))
        if not found[2] & 0x78:  # of other kinds dnspython wants more than the header of a refusal
            dns.message.from_wire(found)
    elif found is not None:
        assert found.query == wire


def test_a_name_of_pointers_to_themselves_ends():
    header = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    for name in (b"\xc0\x0c", b"\x01a\xc0\x0c", b"\x3f" + b"a" * 63 + b"\xc0\x0c"):
        reply = respond(header + name + b"\0\1\0\1", "10.1.0.2", BOOK, "front")
        assert reply[3] & 0xF == dns.rcode.FORMERR


# ---- what a forwarder believes


QUERY = dns.message.make_query("Example.COM", "A", id=0x1234).to_wire()


def reply_to(query=QUERY, **changes):
    reply = dns.message.make_response(dns.message.from_wire(query))
    for name, value in changes.items():
        setattr(reply, name, value)
    return reply.to_wire()


def test_a_reply_is_one_by_id_and_question():
    assert accepted(QUERY, reply_to())
    assert accepted(QUERY, reply_to().replace(b"Example", b"example")), "a server that writes it small"
    assert not accepted(QUERY, reply_to(id=0x1235))
    assert not accepted(QUERY, QUERY), "a question is no reply"
    assert not accepted(QUERY, reply_to(dns.message.make_query("example.net", "A", id=0x1234).to_wire()))
    assert not accepted(QUERY, reply_to(dns.message.make_query("example.com", "AAAA", id=0x1234).to_wire()))
    assert not accepted(QUERY, b"")
    bare = QUERY[:2] + struct.pack("!5H", 0x8005, 0, 0, 0, 0)
    assert accepted(QUERY, bare), "REFUSED may come without the question"
    assert not accepted(QUERY, QUERY[:2] + struct.pack("!5H", 0x8000, 0, 0, 0, 0)), "success may not"


def test_a_failure_repeats_the_question():
    reply = dns.message.from_wire(failed(QUERY))
    assert dns.message.from_wire(QUERY).is_response(reply)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert with_id(QUERY, b"ab")[:2] == b"ab"


@given(st.binary(max_size=100))
def test_the_question_section_is_whole_or_empty(wire):
    asked = question(wire)
    assert asked == b"" or (asked in wire and len(asked) >= 5)


def test_a_book_forgets_and_learns():
    book = Book((FRONT,))
    book.put("front", FRONT._replace(members=(WEB,)))
    assert isinstance(ask("db", book=book), Forward)
    assert book.members("front") == 1
    book.put("front", None)
    assert ask("web", book=book).rcode() == dns.rcode.REFUSED
    assert book.members("front") == 0
    assert BOOK.gateways() == {"10.1.0.1", "fd00::1", "10.2.0.1", "10.3.0.1"}
