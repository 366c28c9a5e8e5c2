"""What a DNS question of a container is answered: names and addresses of those whom it shares a network with, a
question to be forwarded, or a refusal.

Decides by the asker's address alone who he is, and so what he sees (RFC 1035; EDNS: RFC 6891). Pure: wire in, wire out,
whatever comes in. Refuses to know sockets and time (keeper.py) and how a question is forwarded (forward.py).
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from wherry.net.roster import Member, Roster

__all__ = ["MAX_QUERY", "Book", "Forward", "accepted", "failed", "question", "rcode", "respond", "with_id"]

MAX_QUERY = 4096  # bytes: a question is some dozens
_TTL = 5  # seconds: a container that comes back has another address
_PAYLOAD, _PLAIN = 1232, 512  # bytes of an answer by UDP: with EDNS (below every MTU), without
_STREAM_MAX = 65535
_HEADER = 12
_QR, _RD, _RA, _OPCODE = 0x8000, 0x0100, 0x0080, 0x7800
_FAMILIES = {dns.rdatatype.A: False, dns.rdatatype.AAAA: True}  # whether the address has a colon


class Forward(NamedTuple):
    """A question for others. `upstreams`: the asker's own servers, () for the host's."""

    query: bytes
    upstreams: tuple[str, ...] = ()


class _Place(NamedTuple):
    """One network with its names as they are looked up."""

    roster: Roster
    names: dict[str, tuple[str, ...]]  # lower case -> addresses
    addresses: dict[str, Member]


class Book:
    """All rosters of one wherry, indexed."""

    def __init__(self, found: Iterable[Roster] = ()) -> None:
        self._places = {roster.network: _indexed(roster) for roster in found}

    def put(self, network: str, roster: Roster | None) -> None:
        """Another roster in the place of the network's; None: it has none any more."""
        self._places.pop(network, None)
        if roster is not None:
            self._places[network] = _indexed(roster)

    def members(self, network: str) -> int:
        """How many the network has."""
        place = self._places.get(network)
        return len(place.roster.members) if place else 0

    def gateways(self) -> set[str]:
        """Where responders of ours listen: nothing is forwarded to these."""
        return {_plain(address) for place in self._places.values() for address in place.roster.gateways}

    def seen_by(self, address: str, home: str) -> list[_Place]:
        """The networks of whoever has the address, `home` first: there an address is one container's beyond doubt."""
        ordered = sorted(self._places.values(), key=lambda place: place.roster.network != home)
        who = next((place.addresses[address] for place in ordered if address in place.addresses), None)
        return [place for place in ordered if who and any(m.id == who.id for m in place.roster.members)]


def _indexed(roster: Roster) -> _Place:
    names: dict[str, tuple[str, ...]] = {}
    addresses = {}
    for member in roster.members:
        own = tuple(map(_plain, member.addresses))
        for name in dict.fromkeys(name.lower().rstrip(".") for name in member.names):
            for known in (name, f"{name}.{roster.network.lower()}"):  # docker's second form
                names[known] = (*names.get(known, ()), *own)
        addresses.update(dict.fromkeys(own, member))
    return _Place(roster, names, addresses)


def _plain(address: str) -> str:
    """As the kernel writes it, so that equal addresses are equal texts."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        return address


def respond(wire: bytes, source: str, book: Book, home: str, *, stream: bool = False) -> bytes | Forward | None:
    """The answer to what `source` sent to the responder of network `home`; None: none is due."""
    if len(wire) < _HEADER or _flags(wire) & _QR:  # to answer an answer would be the start of a loop
        return None
    places = book.seen_by(source, home)
    if not places:
        return failed(wire, dns.rcode.REFUSED)
    query = _parsed(wire)
    if not isinstance(query, dns.message.Message):
        return failed(wire, query)
    answer = _own_answer(query, places)
    if answer is not None:
        return _wire(answer, query, stream)
    if all(place.roster.internal for place in places):
        return failed(wire)
    asked = [m.upstreams for place in places for m in place.roster.members if source in map(_plain, m.addresses)]
    return Forward(wire, next(filter(None, asked), ()))


def _parsed(wire: bytes) -> dns.message.Message | dns.rcode.Rcode:
    """The one plain question, or what is said to anything else."""
    if _flags(wire) & _OPCODE:  # before it is read: an update has other sections
        return dns.rcode.NOTIMP
    try:
        query = dns.message.from_wire(wire) if len(wire) <= MAX_QUERY else None
    except Exception:  # bytes of a stranger: dnspython raises more than it documents, and each means the same
        return dns.rcode.FORMERR
    if query is None or len(query.question) != 1:
        return dns.rcode.FORMERR
    return query if query.question[0].rdclass == dns.rdataclass.IN else dns.rcode.REFUSED


def _own_answer(query: dns.message.Message, places: list[_Place]) -> dns.message.Message | None:
    """The answer where the name, or the address, is one that the asker's networks know."""
    if query.edns > 0:
        return _unversed(query)
    asked = query.question[0]
    if asked.rdtype == dns.rdatatype.PTR:
        texts, kind = _names_of(asked.name, places), dns.rdatatype.PTR
        return _answer(query, [(kind, texts)]) if texts else None
    name = asked.name.to_text(omit_final_dot=True).lower()
    found = [place.names[name] for place in places if name in place.names]
    if not found:
        return None
    addresses = list(dict.fromkeys(address for group in found for address in group))
    random.SystemRandom().shuffle(addresses)  # an alias of several is shared among them
    wanted = _FAMILIES if asked.rdtype == dns.rdatatype.ANY else {asked.rdtype: _FAMILIES.get(asked.rdtype)}
    return _answer(query, [(kind, [a for a in addresses if (":" in a) == six]) for kind, six in wanted.items()])


def _unversed(query: dns.message.Message) -> dns.message.Message:
    """RFC 6891, 6.1.3: we know version 0."""
    answer = dns.message.make_response(query, recursion_available=True, our_payload=_PAYLOAD)
    answer.set_rcode(dns.rcode.BADVERS)
    return answer


def _names_of(name: dns.name.Name, places: list[_Place]) -> list[str]:
    try:
        address = _plain(dns.reversename.to_address(name))
    except (dns.exception.DNSException, ValueError):
        return []
    return [f"{place.addresses[address].names[0]}." for place in places if address in place.addresses][:1]


def _answer(query: dns.message.Message, found: list[tuple[dns.rdatatype.RdataType, list[str]]]) -> dns.message.Message:
    """With no text for the type asked it is NODATA: the name is there (RFC 2308, 2.2)."""
    answer = dns.message.make_response(query, recursion_available=True, our_payload=_PAYLOAD)
    answer.flags |= dns.flags.AA
    name = query.question[0].name
    answer.answer = [dns.rrset.from_text_list(name, _TTL, "IN", kind, texts) for kind, texts in found if texts]
    return answer


def _wire(answer: dns.message.Message, query: dns.message.Message, stream: bool) -> bytes:
    room = min(max(query.payload, _PLAIN), _PAYLOAD) if query.edns >= 0 else _PLAIN
    return answer.to_wire(max_size=_STREAM_MAX if stream else room, prefer_truncation=True)


def failed(wire: bytes, code: dns.rcode.Rcode = dns.rcode.SERVFAIL) -> bytes:
    """The refusal of a question that need not be readable: its header, and its question where there is one."""
    flags = _QR | _RA | (_flags(wire) & (_OPCODE | _RD)) | code
    asked = question(wire)
    return wire[:2] + struct.pack("!5H", flags, 1 if asked else 0, 0, 0, 0) + asked


# ---- what a forwarder needs to know of the wire


def _flags(wire: bytes) -> int:
    return int(struct.unpack_from("!H", wire, 2)[0])


def question(wire: bytes) -> bytes:
    """The question section's bytes; b"" where there is not exactly one that is whole."""
    if len(wire) < _HEADER or struct.unpack_from("!H", wire, 4)[0] != 1:
        return b""
    at = _HEADER
    while at < len(wire) and 0 < wire[at] < 64:  # a compression pointer has no place in the first name
        at += wire[at] + 1
    end = at + 5  # the root's label, type, class
    return wire[_HEADER:end] if end <= len(wire) and wire[at] == 0 else b""


def accepted(query: bytes, reply: bytes) -> bool:
    """Whether it is the reply to this query: the same id, the same question (RFC 5452, 9.1)."""
    if len(reply) < _HEADER or reply[:2] != query[:2] or not _flags(reply) & _QR:
        return False
    asked = question(reply)
    if not asked:
        return rcode(reply) != dns.rcode.NOERROR and struct.unpack_from("!H", reply, 4)[0] == 0
    return asked.lower() == question(query).lower()


def rcode(reply: bytes) -> int:
    """The header's four bits of it."""
    return _flags(reply) & 0xF


def with_id(wire: bytes, number: bytes) -> bytes:
    """The same message under another id (two bytes)."""
    return number + wire[2:]
