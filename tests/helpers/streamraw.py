"""Clients of a streaming server that do what client-go's do not: stall, break off, talk nonsense, ask for the past."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit

from wherry.daemon.streaming.spdy import Data, Reply, Reset, Session

__all__ = ["RawSpdy", "answer", "connected", "request"]


def connected(url: str) -> socket.socket:
    """A TCP connection to where the URL points."""
    where = urlsplit(url)
    assert where.hostname
    assert where.port
    return socket.create_connection((where.hostname, where.port), timeout=15)


def request(url: str, method: str = "POST", **headers: str) -> bytes:
    """A request of HTTP/1.1; `_` in a header's name is "-"."""
    where = urlsplit(url)
    lines = [f"{method} {where.path} HTTP/1.1", f"Host: {where.netloc}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(url: str, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and what came of the body, until the server is silent or has closed."""
    with connected(url) as sock:
        sock.sendall(request(url, method, Connection="close", **headers) if "Connection" not in headers
                     else request(url, method, **headers))  # fmt: skip
        return _read_answer(sock, body=True)


def _read_answer(sock: socket.socket, *, body: bool) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data and (more := sock.recv(1 if not body else 4096)):
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while body and len(rest) < int(headers.get("content-length", 0)) and (more := sock.recv(4096)):
        rest += more
    return int(lines[0].split()[1]), headers, rest


class RawSpdy:
    """An upgraded connection and the session over it; nothing is read but by `until`."""

    def __init__(self, url: str, version: str = "v4.channel.k8s.io", method: str = "POST") -> None:
        self.socket = connected(url)
        named = {"X_Stream_Protocol_Version": version} if version else {}
        self.socket.sendall(request(url, method, Connection="Upgrade", Upgrade="SPDY/3.1", **named))
        self.status, self.headers, _ = _read_answer(self.socket, body=False)
        assert self.status == 101, self.status
        self.session = Session(client=True)
        self.ids: dict[str, int] = {}
        self.got: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.replied: set[int] = set()
        self.closed = False

    def flush(self) -> None:
        self.socket.sendall(self.session.outgoing())

    def open(self, *kinds: str, **more: str) -> None:
        """Streams of these types."""
        for kind in kinds:
            self.ids[kind] = self.session.open_stream({"streamtype": kind, **more})
        self.flush()

    def send(self, kind: str, data: bytes, *, fin: bool = False) -> None:
        self.session.send(self.ids[kind], data, fin=fin)
        self.flush()

    def read(self) -> bool:
        """Once; False at the end of the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        for event in self.session.receive(data):
            if isinstance(event, Data):
                self.got[event.id] = self.got.get(event.id, b"") + event.data
            if isinstance(event, Reset) or (isinstance(event, Data | Reply) and event.fin):
                self.ended.add(event.id)
            if isinstance(event, Reply):
                self.replied.add(event.id)
        self.closed = not data
        return bool(data)

    def whole(self, kind: str) -> bytes:
        """What comes on a stream, to its end."""
        while self.ids[kind] not in self.ended and self.read():
            pass
        return self.got.get(self.ids[kind], b"")

    def to_the_end(self) -> None:
        while self.read():
            pass

    def abort(self) -> None:
        """A reset, as of a client that was killed with data under way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.contextmanager
def spdy(url: str, **how: str) -> Iterator[RawSpdy]:
    """One, closed at the end."""
    client = RawSpdy(url, **how)
    try:
        yield client
    finally:
        client.socket.close()
