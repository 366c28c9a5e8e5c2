"""SPDY/3.1 without I/O: two sessions understand each other however their bytes are cut, and nothing else passes."""

from __future__ import annotations

import contextlib
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.daemon.streaming import spdy
from wherry.daemon.streaming.dictionary import DICTIONARY
from wherry.daemon.streaming.spdy import Data, GoAway, Pong, ProtocolError, Reply, Reset, Session, Syn

names = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=12)
headers = st.dictionaries(names, st.text(max_size=40), max_size=5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("open"), headers, st.booleans()),
        st.tuples(st.just("data"), st.integers(0, 5), st.binary(max_size=300), st.booleans()),
        st.tuples(st.just("reset"), st.integers(0, 5)),
        st.tuples(st.just("ping")),
    ),
    max_size=25,
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    return pieces


def heard(session: Session, data: bytes, sizes: list[int]) -> list[spdy.Event]:
    """What a session makes of these bytes, data joined again."""
    events: list[spdy.Event] = []
    for piece in cut(data, sizes):
        for event in session.receive(piece):
            last = events[-1] if events else None
            if isinstance(event, Data) and isinstance(last, Data) and last.id == event.id and not last.fin:
                events[-1] = Data(event.id, last.data + event.data, event.fin)
            else:
                events.append(event)
    return events


@given(steps, st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_what_is_said_is_heard(work: list[tuple], sizes: list[int]) -> None:  # type: ignore[type-arg]
    client, server = Session(client=True), Session()
    opened: list[int] = []
    expected: list[spdy.Event] = []
    closed: set[int] = set()
    for step in work:
        if step[0] == "open":
            opened.append(client.open_stream(step[1], fin=step[2]))
            expected.append(Syn(opened[-1], step[1], step[2]))
            closed |= {opened[-1]} if step[2] else set()
        elif step[0] == "ping":
            client.ping()
        elif step[1] < len(opened) and (stream := opened[step[1]]) not in closed:
            if step[0] == "reset":
                client.reset(stream)
                expected.append(Reset(stream, spdy.CANCEL))
                closed.add(stream)
            elif step[2] or step[3]:
                client.send(stream, step[2], fin=step[3])
                expected.append(Data(stream, step[2], step[3]))
                closed |= {stream} if step[3] else set()
    told: list[spdy.Event] = []
    for event in expected:
        last = told[-1] if told else None
        if isinstance(event, Data) and isinstance(last, Data) and last.id == event.id and not last.fin:
            told[-1] = Data(event.id, last.data + event.data, event.fin)
        else:
            told.append(event)
    assert heard(server, client.outgoing(), sizes) == told
    pongs = [event for event in client.receive(server.outgoing()) if isinstance(event, Pong)]
    assert [pong.id for pong in pongs] == [1 + 2 * n for n in range(sum(step[0] == "ping" for step in work))]


@given(st.binary(max_size=400), st.integers(0, 300), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_nothing_but_the_protocol_passes(noise: bytes, at: int, sizes: list[int]) -> None:
    """Noise alone, and in the middle of sound frames: events or a ProtocolError, and never another failure."""
    client = Session(client=True)
    stream = client.open_stream({"streamtype": "stdin"})
    client.send(stream, b"data" * 50)
    client.open_stream({"streamtype": "error", "port": "80"})
    sound = client.outgoing()
    for data in (noise, sound[:at] + noise + sound[at:], sound[:at] + noise + sound[at + len(noise) :]):
        server = Session()
        with contextlib.suppress(ProtocolError):
            for piece in cut(data, sizes):
                server.receive(piece)
        assert len(server.outgoing()) <= 16 * len(data)


def control(kind: int, payload: bytes, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(payload)) + payload


def block(text: bytes) -> bytes:
    packer = zlib.compressobj(zdict=DICTIONARY)
    return packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)


def syn(stream: int, text: bytes, flags: int = 0) -> bytes:
    return control(1, struct.pack(">II", stream, 0) + bytes(2) + block(text), flags)


def pairs(*words: bytes) -> bytes:
    text = struct.pack(">I", len(words) // 2)
    return text + b"".join(struct.pack(">I", len(word)) + word for word in words)


BAD = {
    "another version": control(4, bytes(4), version=2),
    "a huge control frame": struct.pack(">HHI", 0x8003, 1, 0xFFFFFF),
    "data of no stream": struct.pack(">II", 0, 1) + b"x",
    "data of a stream never opened": struct.pack(">II", 1, 1) + b"x",
    "a short SYN_STREAM": control(1, bytes(9)),
    "a short SYN_REPLY": control(2, bytes(3)),
    "a stream of the server's": syn(2, pairs()),
    "stream 0": syn(0, pairs()),
    "the same stream twice": syn(1, pairs()) * 2,
    "headers that do not inflate": control(1, struct.pack(">II", 1, 0) + bytes(2) + b"nonsense"),
    "a bomb": syn(1, bytes(5_000_000)),
    "a short RST_STREAM": control(3, bytes(7)),
    "a short PING": control(6, bytes(3)),
    "a long GOAWAY": control(7, bytes(9)),
    "a short WINDOW_UPDATE": control(9, bytes(4)),
    "SETTINGS that count wrong": control(4, struct.pack(">I", 2) + bytes(8)),
    "data after the end": syn(1, pairs(), flags=1) + struct.pack(">II", 1, 1) + b"x",
}


@pytest.mark.parametrize("what", BAD)
def test_breach(what: str) -> None:
    server = Session()
    with pytest.raises(ProtocolError):
        server.receive(BAD[what])


def test_a_bomb_is_not_unpacked() -> None:
    bomb = BAD["a bomb"]
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="more than 8192 bytes"):
        Session().receive(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("text", [
    b"", bytes(3), pairs(b"Upper", b"x"), pairs(b"", b"x"), pairs(b"a", b"1", b"a", b"2"), pairs(b"a", b"1") + b"more",
    struct.pack(">I", 0xFFFFFFFF), struct.pack(">II", 1, 0xFFFFFFFF) + b"a",
])  # fmt: skip
def test_bad_headers_cost_their_stream_only(text: bytes) -> None:
    server, client = Session(), Session(client=True)
    client.open_stream({})
    client.outgoing()
    assert server.receive(syn(1, text)) == []
    assert client.receive(server.outgoing()) == [Reset(1, spdy.PROTOCOL_ERROR)]
    assert server.open == 0


def test_streams_are_bounded_and_come_back() -> None:
    client, server = Session(client=True), Session(streams=3)
    ids = [client.open_stream({"n": str(n)}) for n in range(5)]
    assert [event.id for event in server.receive(client.outgoing())] == ids[:3]
    assert client.receive(server.outgoing()) == [Reset(one, spdy.REFUSED_STREAM) for one in ids[3:]]
    client.reset(ids[0])
    again = client.open_stream({"n": "again"})
    assert server.receive(client.outgoing()) == [Reset(ids[0], spdy.CANCEL), Syn(again, {"n": "again"})]


def test_a_stream_costs_the_same_however_many_are_open() -> None:
    """A session is one of many on a loop: where each looks at all others these take half a minute."""
    client, server = Session(client=True), Session(streams=1 << 20)
    for _ in range(40_000):
        client.open_stream({"streamtype": "data"})
    flood, before = client.outgoing(), time.process_time()
    assert len(server.receive(flood)) == 40_000
    assert time.process_time() - before < 10


def test_a_stream_ends_half_by_half() -> None:
    client, server = Session(client=True), Session()
    stream = client.open_stream({"a": "b"})
    server.receive(client.outgoing())
    server.reply(stream, {"c": "d"})
    client.send(stream, b"", fin=True)
    assert server.receive(client.outgoing()) == [Data(stream, b"", fin=True)]
    assert server.open == client.open == 1
    big = bytes(200_000)
    server.send(stream, big, fin=True)
    assert heard(client, server.outgoing(), [1000]) == [Reply(stream, {"c": "d"}), Data(stream, big, fin=True)]
    assert server.open == client.open == 0
    server.send(stream, b"late")
    server.reset(stream)
    assert server.outgoing() == b""


def test_what_is_on_the_way_to_a_stream_given_up_is_dropped() -> None:
    client, server = Session(client=True), Session()
    stream = client.open_stream({})
    client.send(stream, b"before")
    assert len(server.receive(client.outgoing())) == 2
    server.reset(stream)
    client.send(stream, b"after", fin=True)
    assert server.receive(client.outgoing()) == []
    assert client.receive(server.outgoing()) == [Reset(stream, spdy.CANCEL)]


def test_other_control_frames() -> None:
    server = Session()
    assert server.receive(control(4, struct.pack(">III", 1, 4, 100)) + control(9, bytes(8)) + control(77, b"x")) == []
    assert server.receive(control(7, struct.pack(">II", 3, 0))) == [GoAway(3, 0)]
    assert server.receive(control(6, struct.pack(">I", 1))) == []
    assert server.outgoing() == control(6, struct.pack(">I", 1))
    server.go_away(spdy.PROTOCOL_ERROR)
    assert server.outgoing() == control(7, struct.pack(">II", 0, 1))


def test_a_stream_may_end_with_headers_or_be_one_way() -> None:
    server = Session()
    one_way = control(1, struct.pack(">II", 1, 0) + bytes(2) + block(pairs(b"a", b"b")), flags=2)
    assert server.receive(one_way) == [Syn(1, {"a": "b"})]
    server.send(1, b"not heard")
    assert server.outgoing() == b""
    server._inflate = zlib.decompressobj(zdict=DICTIONARY)
    assert server.receive(control(8, struct.pack(">I", 1) + block(pairs()), flags=1)) == [Data(1, b"", fin=True)]
    assert server.open == 0


def test_the_dictionary_is_the_protocols() -> None:
    """Its checksum is what every compressed block of SPDY/3 begins with (RFC 1950, DICTID)."""
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_data_passes_on_in_pieces_and_is_not_held() -> None:
    client, server = Session(client=True), Session()
    stream = client.open_stream({})
    server.receive(client.outgoing())
    head = struct.pack(">II", stream, 0xFFFFFF)
    assert server.receive(head + b"some") == [Data(stream, b"some")]
    assert server.receive(b"more") == [Data(stream, b"more")]
    assert not server._in
