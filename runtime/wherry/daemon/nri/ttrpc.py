"""ttrpc's frames and what they carry for calls that take and give one message: bytes in, values out, and back.

Decides what a peer may send, and no more of it is kept than one frame. Knows no method, does no I/O.
Source: PROTOCOL.md of github.com/containerd/ttrpc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from . import ttrpc_pb2 as pb

__all__ = ["DATA_MAX", "HEADER", "INVALID_ARGUMENT", "REQUEST", "RESOURCE_EXHAUSTED", "RESPONSE", "UNIMPLEMENTED",
           "UNKNOWN", "Answer", "Broken", "Call", "Decoder", "Frame", "answer", "call", "encoded", "request",
           "response"]  # fmt: skip

REQUEST, RESPONSE = 1, 2
DATA_MAX = 4 << 20
HEADER = struct.Struct(">IIBB")  # length of what follows, stream, type, flags
#: gRPC's codes, as far as they are said or looked at here
UNKNOWN, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 2, 3, 8, 12


class Broken(Exception):
    """The peer does not speak the protocol; its connection is worth nothing any more."""


class Frame(NamedTuple):
    """One message of ttrpc."""

    stream: int
    kind: int
    flags: int
    data: bytes


class Call(NamedTuple):
    """A request."""

    service: str
    method: str
    payload: bytes


class Answer(NamedTuple):
    """A response: code 0 and a payload, or why not."""

    code: int
    message: str
    payload: bytes


class Decoder:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Broken where one is larger than any may be."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            length, stream, kind, flags = HEADER.unpack_from(self._buffer)
            if length > DATA_MAX:
                raise Broken(f"a message of {length} bytes, more than {DATA_MAX}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(stream, kind, flags, body)


def encoded(frame: Frame) -> bytes:
    """A frame's bytes. ValueError where it is larger than the peer takes."""
    if len(frame.data) > DATA_MAX:
        raise ValueError(f"a message of {len(frame.data)} bytes, more than {DATA_MAX}")
    return HEADER.pack(len(frame.data), frame.stream, frame.kind, frame.flags) + frame.data


def request(stream: int, asked: Call, timeout: float) -> bytes:
    """A request's frame; `timeout`: seconds that the peer has."""
    made = pb.Request(
        service=asked.service, method=asked.method, payload=asked.payload, timeout_nano=int(timeout * 1e9)
    )
    return encoded(Frame(stream, REQUEST, 0, made.SerializeToString()))


def response(stream: int, told: Answer) -> bytes:
    """A response's frame."""
    made = pb.Response(payload=told.payload)
    if told.code:
        made.status.code, made.status.message = told.code, told.message
    return encoded(Frame(stream, RESPONSE, 0, made.SerializeToString()))


def call(frame: Frame) -> Call:
    """What a request asks; Broken."""
    try:
        found = pb.Request.FromString(frame.data)
    except DecodeError as error:
        raise Broken("a request that cannot be parsed") from error
    return Call(found.service, found.method, found.payload)


def answer(frame: Frame) -> Answer:
    """What a response says; Broken."""
    try:
        found = pb.Response.FromString(frame.data)
    except DecodeError as error:
        raise Broken("a response that cannot be parsed") from error
    return Answer(found.status.code, found.status.message, found.payload)
