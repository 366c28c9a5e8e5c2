"""The attach client: frames, detach keys, the relay's arithmetic. A socket pair stands for the connection."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.container.attach import AttachStream, DetachKeys, End, decode_exit, detach_keys, relay
from wherry.errors import WherryError
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT, ExitStatus


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">B3xI", kind, len(payload)) + payload


def connected() -> tuple[AttachStream, socket.socket]:
    ours, theirs = socket.socketpair()
    return AttachStream(ours), theirs


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.binary(max_size=300)), max_size=8), st.integers(1, 40))
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], piece: int) -> None:
    stream, peer = connected()
    data = b"".join(frame(*one) for one in frames)
    with stream, peer:
        got = []
        for at in range(0, len(data), piece):
            peer.sendall(data[at : at + piece])
            stream.fill()
            while (one := stream.take()) is not None:
                got.append(one)
        peer.close()
        assert got == frames
        assert stream.read() is None


def test_a_frame_cut_off_by_the_end_is_no_frame() -> None:
    stream, peer = connected()
    with stream:
        peer.sendall(frame(1, b"whole") + frame(1, b"torn")[:-1])
        peer.close()
        assert list(stream.frames()) == [(1, b"whole")]


def test_an_absurd_length_is_an_error() -> None:
    stream, peer = connected()
    peer.sendall(struct.pack(">B3xI", 1, 0xFFFFFFFF))
    with stream, peer, pytest.raises(WherryError, match="frame of 4294967295 bytes"):
        stream.read()


def test_what_the_client_sends() -> None:
    stream, peer = connected()
    with stream, peer:
        stream.write(b"x")
        stream.eof()
        stream.resize(24, 80)
        stream.claim()
        stream.quiet()
        stream.done()
        want = [(0, b"x"), (5, b""), (6, b"\0\x18\0\x50"), (7, b""), (9, b""), (8, b"")]
        assert peer.recv(1000) == b"".join(frame(*one) for one in want)


def test_sending_to_a_gone_monitor_is_silent() -> None:
    stream, peer = connected()
    with stream:
        peer.close()
        stream.write(b"x" * 100000)
        stream.claim()


@pytest.mark.parametrize(("code", "oom"), [(0, False), (137, True), (255, False)])
def test_exit_payload(code: int, oom: bool) -> None:
    assert decode_exit(struct.pack(">iB", code, oom)) == ExitStatus(code, oom)


@pytest.mark.parametrize(("text", "keys"), [
    ("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-P", b"\x10"), ("a,b", b"ab"), ("ctrl-@", b"\0"), ("ctrl-[", b"\x1b"),
    ("ctrl-_", b"\x1f"), ("", b""), ("~,.", b"~."),
])
def test_detach_keys(text: str, keys: bytes) -> None:
    assert detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "pp", "a,,b", "ctrl-1", "é"])
def test_bad_detach_keys(text: str) -> None:
    with pytest.raises(WherryError, match="invalid detach keys"):
        detach_keys(text)


@given(st.text("abq", max_size=30), st.integers(1, 5))
def test_detach_finds_the_sequence_at_any_cut(text: str, piece: int) -> None:
    keys, data = b"ab", text.encode()
    found, passed = DetachKeys(keys), b""
    for at in range(0, len(data), piece):
        part, detach = found.feed(data[at : at + piece])
        passed += part
        if detach:
            assert passed == data[: data.index(keys)]
            return
    assert keys not in data
    # a start of the sequence may be held back, nothing else
    assert data.startswith(passed)
    assert data[len(passed) :] in (b"", b"a")


def test_relay_writes_streams_apart_and_ends_with_the_status() -> None:
    stream, peer = connected()
    out, err = os.pipe(), os.pipe()
    with stream, peer:
        peer.sendall(frame(4, b"started") + frame(ATTACH_STDOUT, b"o") + frame(ATTACH_STDERR, b"e")
                     + frame(ATTACH_EXIT, struct.pack(">iB", 3, 0)))
        ended = relay(stream, None, out[1], err[1])
    assert (ended.end, ended.status) == (End.EXIT, ExitStatus(3))
    assert (os.read(out[0], 10), os.read(err[0], 10)) == (b"o", b"e")
    for fd in (*out, *err):
        os.close(fd)


def test_relay_goes_on_when_nobody_reads_its_output() -> None:
    stream, peer = connected()
    reader, writer = os.pipe()
    os.close(reader)
    with stream, peer:
        peer.sendall(frame(ATTACH_STDOUT, b"o") * 3 + frame(ATTACH_EXIT, struct.pack(">iB", 0, 0)))
        assert relay(stream, None, writer, None).end is End.EXIT
    os.close(writer)


def test_relay_tells_a_lost_monitor() -> None:
    stream, peer = connected()
    with stream:
        peer.close()
        assert relay(stream, None, None, None).end is End.LOST


def test_relay_wakes() -> None:
    stream, peer = connected()
    reader, writer = os.pipe()
    woken: list[bytes] = []

    def wake() -> None:
        woken.append(os.read(reader, 10))
        peer.close()

    with stream:
        os.write(writer, b"w")
        assert relay(stream, None, None, None, wake_fd=reader, on_wake=wake).end is End.LOST
    assert woken == [b"w"]
    os.close(reader)
    os.close(writer)
