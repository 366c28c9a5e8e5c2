"""A small HTTP proxy (CONNECT only) that knows names nobody else does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["Proxy", "proxy"]


class Proxy:
    """`names` maps host:port to where it really is; `asked` is what clients wanted; `secret`: what they must say."""

    def __init__(self, names: dict[str, str], secret: str = "") -> None:
        self.names, self.secret = names, secret
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (data := client.recv(4096)):
                head += data
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            self.asked.append(target)
            if self.secret and f"Proxy-Authorization: {self.secret}".encode() not in head:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            elif method != "CONNECT" or target not in self.names:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            else:
                host, _, port = self.names[target].rpartition(":")
                with socket.create_connection((host, int(port))) as there:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    _relay(client, there)


def _relay(one: socket.socket, other: socket.socket) -> None:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join(10)


@contextlib.contextmanager
def proxy(names: dict[str, str], secret: str = "") -> Iterator[Proxy]:
    running = Proxy(names, secret)
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.close()
        thread.join(5)
