"""Two questions of rtnetlink(7) that no plugin answers: the host's addresses, and whose default route a container has.

Decides the messages, packed by hand (pyroute2's import takes longer than a start). Refuses to know networks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Set
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.net import netns

__all__ = ["Host", "Way", "addresses", "set_default"]

_NEWLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _DELROUTE, _ERROR, _DONE = 16, 18, 20, 22, 24, 25, 2, 3
_REQUEST, _ACK, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400
_HEAD = struct.Struct("=IHHII")  # nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL, _RTA_OIF, _RTA_GATEWAY, _IFLA_MASTER = 1, 2, 4, 5, 10
_TABLE_MAIN, _PROTO_BOOT, _UNICAST, _NOWHERE = 254, 3, 1, 255


class Host(NamedTuple):
    """An address of the host and its link. A link that is a `port` of another takes in nothing for itself."""

    address: str
    link: str
    scope: int  # rtnetlink(7): 0 universe, 253 link, 254 host
    port: bool = False


class Way(NamedTuple):
    """A default route: a gateway, by a link of the container."""

    gateway: str
    link: str


def addresses() -> list[Host]:
    """Every address of this network namespace, IPv4 and IPv6."""
    with _opened() as wire:
        wire.send(_message(_GETLINK, _REQUEST | _DUMP, _LINK.pack(0, 0, 0, 0, 0)))
        ports = {_LINK.unpack_from(body)[2] for kind, body in _answers(wire)
                 if kind == _NEWLINK and _IFLA_MASTER in dict(_parts(body[_LINK.size:]))}
        wire.send(_message(_GETADDR, _REQUEST | _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)))
        return [_host(body, ports) for kind, body in _answers(wire) if kind == _NEWADDR]


def set_default(path: str, four: Way | None, six: Way | None) -> None:
    """Make these the default routes of the namespace at `path`; None: none of that family."""
    def work() -> None:
        with _opened() as wire:
            for family, way in ((socket.AF_INET, four), (socket.AF_INET6, six)):
                _replace(wire, family, way)

    try:
        netns.inside(path, work)
    except OSError as problem:
        raise WherryError(Kind.INTERNAL, f"network namespace {path}: {problem.strerror}") from problem


def _replace(wire: socket.socket, family: int, way: Way | None) -> None:
    bare = _ROUTE.pack(family, 0, 0, 0, _TABLE_MAIN, 0, _NOWHERE, 0, 0)  # of any scope
    for _ in range(16):  # those of other metrics too
        if _ask(wire, _message(_DELROUTE, _REQUEST | _ACK, bare)):
            break
    if way is None:
        return
    head = _ROUTE.pack(family, 0, 0, 0, _TABLE_MAIN, _PROTO_BOOT, 0, _UNICAST, 0)
    link = struct.pack("=I", socket.if_nametoindex(way.link))
    body = head + _part(_RTA_GATEWAY, socket.inet_pton(family, way.gateway)) + _part(_RTA_OIF, link)
    code = _ask(wire, _message(_NEWROUTE, _REQUEST | _ACK | _CREATE, body))
    if code not in (0, errno.EEXIST):
        raise OSError(code, f"default route by {way.gateway}: {os.strerror(code)}")


def _opened() -> socket.socket:
    wire = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    wire.bind((0, 0))
    return wire


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, 1, 0) + body


def _part(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(wire: socket.socket, message: bytes) -> int:
    """The errno that the kernel answers, 0 for none."""
    wire.send(message)
    return next((-int(struct.unpack_from("=i", body)[0]) for kind, body in _answers(wire) if kind == _ERROR), 0)


def _answers(wire: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message of one answer."""
    while True:
        data = wire.recv(1 << 16)
        while data:
            length, kind, *_ = _HEAD.unpack_from(data)
            if kind == _DONE:
                return
            yield kind, data[_HEAD.size:length]
            if kind == _ERROR:
                return
            data = data[(length + 3) & ~3:]


def _host(body: bytes, ports: Set[int]) -> Host:
    family, _, _, scope, index = _ADDRESS.unpack_from(body)
    found = dict(_parts(body[_ADDRESS.size:]))
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return Host(socket.inet_ntop(family, packed), socket.if_indextoname(index), scope, index in ports)


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[(length + 3) & ~3:]

