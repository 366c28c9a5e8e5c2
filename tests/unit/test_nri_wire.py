"""NRI's two framings, one in the other, and its .proto."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from wherry.daemon.nri import api_pb2 as pb
from wherry.daemon.nri import mux, ttrpc

FRAMES = st.lists(
    st.builds(ttrpc.Frame, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@given(FRAMES, st.lists(st.integers(0, 2000)))
def test_frames_come_out_however_they_are_cut(frames: list[ttrpc.Frame], cuts: list[int]) -> None:
    decoder = ttrpc.Decoder()
    data = b"".join(ttrpc.encoded(frame) for frame in frames)
    assert [frame for part in pieces(data, cuts) for frame in decoder.feed(part)] == frames


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=9000))), st.lists(st.integers(0, 9999)))
def test_connections_come_out_however_they_are_cut(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    decoder = mux.Decoder()
    data = b"".join(mux.encoded(*message) for message in messages)
    found: dict[int, bytes] = {}
    for part in pieces(data, cuts):
        for connection, content in decoder.feed(part):
            found[connection] = found.get(connection, b"") + content
    want: dict[int, bytes] = {}
    for connection, content in messages:
        want[connection] = want.get(connection, b"") + content
    assert found == want


def test_the_bytes_of_a_call() -> None:
    message = ttrpc.request(1, ttrpc.Call("s", "m", b"p"), 2)
    body = b"\x0a\x01s\x12\x01m\x1a\x01p\x20\x80\xa8\xd6\xb9\x07"
    assert message == struct.pack(">IIBB", len(body), 1, 1, 0) + body
    assert mux.encoded(mux.PLUGIN, message) == struct.pack(">II", 1, len(message)) + message


@pytest.mark.parametrize("size", [1, 4096, 4097, 100_000])
def test_a_long_message_is_two_pieces_the_first_of_4096(size: int) -> None:
    data, found = mux.encoded(2, b"x" * size), []
    while data:
        connection, length = struct.unpack_from(">II", data)
        assert connection == 2
        found.append(length)
        data = data[8 + length :]
    assert found == ([size] if size <= 4096 else [4096, size - 4096])


def test_what_is_too_large_is_refused_by_its_header_alone() -> None:
    with pytest.raises(ttrpc.Broken):
        list(ttrpc.Decoder().feed(struct.pack(">IIBB", (4 << 20) + 1, 1, 1, 0)))
    with pytest.raises(ttrpc.Broken):
        list(mux.Decoder().feed(struct.pack(">II", 1, (4 << 20) + 11)))
    with pytest.raises(ValueError, match="more than"):
        ttrpc.encoded(ttrpc.Frame(1, 1, 0, bytes((4 << 20) + 1)))
    assert list(ttrpc.Decoder().feed(struct.pack(">IIBB", 4 << 20, 1, 1, 0))) == []


def test_answers_and_requests_that_are_none() -> None:
    frame = next(ttrpc.Decoder().feed(ttrpc.response(3, ttrpc.Answer(12, "no", b""))))
    assert (frame.stream, ttrpc.answer(frame)) == (3, ttrpc.Answer(12, "no", b""))
    for read in (ttrpc.answer, ttrpc.call):
        with pytest.raises(ttrpc.Broken):
            read(ttrpc.Frame(1, 1, 0, b"\xff\xff"))


def test_names_numbers_and_types_are_those_of_nri(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    try:
        said = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("Go is not installed")
    found = sorted(Path(said.stdout.strip()).glob("github.com/containerd/nri@v0.12*/pkg/api/api.proto"))
    if not found:
        pytest.skip("NRI 0.12 is not in the cache of Go's modules")
    out = tmp_path / "theirs.binpb"
    words = ["-m", "grpc_tools.protoc", f"-I{found[-1].parent}", f"--descriptor_set_out={out}", "api.proto"]
    subprocess.run([sys.executable, *words], check=True, timeout=60)
    theirs: Any = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    ours = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == theirs.package
    for part in ("message_type", "enum_type", "service"):
        have, want = ({one.name: one for one in getattr(file, part)} for file in (ours, theirs))
        if part == "service":
            for service in want.values():
                for method in service.method:
                    method.ClearField("options")
        assert have == want
