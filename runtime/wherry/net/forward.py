"""Questions for others: sent to servers one after the other, answers relayed as they came.

Decides which servers the host has at this moment (resolv.conf(5) is looked at again when it changes, and a local stub
such as 127.0.0.53 is asked itself: split DNS stays), how long each has, and what is no answer. Each question goes out
from a socket of its own, whose port the kernel draws, under an id of ours (RFC 5452). Refuses to know who asks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wherry.net import dns, files

__all__ = ["HostServers", "forward"]

_PORT = 53
_SERVERS, _ROUNDS = 3, 2  # MAXNS and attempts, as resolv.conf(5) has them
_PATIENCE = 2.0  # seconds for one server
_MAX_REPLY = 65535
_TRY_NEXT = (2, 4, 5)  # SERVFAIL, NOTIMP, REFUSED: another server may know better
_LOCAL = ("127.0.0.1",)  # resolv.conf(5): without a nameserver line it is this machine


class HostServers:
    """The host's resolvers as its resolv.conf names them now."""

    def __init__(self, path: str = "/etc/resolv.conf") -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._servers: tuple[str, ...] = _LOCAL

    def now(self, but: Iterable[str] = ()) -> tuple[str, ...]:
        """The servers, without those of `but`."""
        try:
            found = os.stat(self._path)
            seen: tuple[int, ...] = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            seen = ()
        if seen != self._seen:
            self._seen, self._servers = seen, files.nameservers(self._path) or _LOCAL
        return tuple(server for server in self._servers if server not in but)


async def forward(query: bytes, servers: Sequence[str], *, stream: bool) -> bytes:
    """The first server's reply that is one, under the query's id; else the last refusal, or SERVFAIL."""
    sent = dns.with_id(query, secrets.token_bytes(2))
    ask = _by_stream if stream else _by_datagram
    last = b""
    for server in (*servers[:_SERVERS],) * _ROUNDS:
        try:
            async with asyncio.timeout(_PATIENCE):
                reply = await ask(server, sent)
        except (OSError, TimeoutError, EOFError):
            continue
        last = dns.with_id(reply, query[:2])
        if dns.rcode(reply) not in _TRY_NEXT:
            break
    return last or dns.failed(query)


async def _by_datagram(server: str, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with _connectable(server, socket.SOCK_DGRAM) as (wire, address):
        wire.connect(address)
        await loop.sock_sendall(wire, query)
        while not dns.accepted(query, reply := await loop.sock_recv(wire, _MAX_REPLY)):
            pass
        return reply


async def _by_stream(server: str, query: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with _connectable(server, socket.SOCK_STREAM) as (wire, address):
        await loop.sock_connect(wire, address)
        await loop.sock_sendall(wire, len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await _exactly(wire, 2), "big")
        reply = await _exactly(wire, size)
    if not dns.accepted(query, reply):
        raise EOFError(server)
    return reply


async def _exactly(wire: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        part = await loop.sock_recv(wire, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@contextmanager
def _connectable(server: str, kind: socket.SocketKind) -> Iterator[tuple[socket.socket, Any]]:
    """A socket for one question, and where it goes."""
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(server, _PORT, type=kind, flags=numeric)[0]
    with socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as wire:
        yield wire, address
