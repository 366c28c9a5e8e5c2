"""BADREG: a registry on loopback that does as its rules say. Without one it serves an image and takes uploads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from image_support import MANIFEST, Image
from wherry.image.transport import Patience

__all__ = ["QUICK", "Handler", "Reply", "Server", "ask", "on", "serving"]

QUICK = Patience(connect=2, read=1, document=3, window=1, window_bytes=4096, settle=1, attempts=3, pause=0.01,
                 longest_pause=0.1, longest_wait=5)  # fmt: skip
Reply = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """server.rules get every request first and may answer it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.read = False
        self.server.log.append((self.command, self.path, dict(self.headers)))
        if isinstance(self.connection, ssl.SSLSocket) and self.connection.getpeercert():
            self.server.shown.append(self.path)
        for rule in self.server.rules:
            if rule(self):
                break
        else:
            self.serve()
        if not self.read and self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # what is left of the body is no request

    do_POST = do_PUT = do_PATCH = do_HEAD = do_DELETE = do_GET

    def serve(self) -> None:
        path = urlsplit(self.path).path
        if "/blobs/uploads/" in path:
            self.upload()
        elif self.command == "PUT":
            self.server.manifests[path.rpartition("/")[2]] = data = self.body()
            self.reply(201, headers={"Docker-Content-Digest": "sha256:" + hashlib.sha256(data).hexdigest()})
        elif path == "/v2/":
            self.reply(200, b"{}")
        else:
            self.document(path)

    def document(self, path: str) -> None:
        match = re.fullmatch(r"/v2/.+/(manifests|blobs)/(.+)", path)
        data = self.server.stored(match[2]) if match else None
        if match and match[2] == "1" and data is None:
            data = self.server.image.manifest
        if data is None:
            self.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown \\u001b[31m"}]}')
        elif match and match[1] == "manifests":
            self.reply(200, data, {"Content-Type": MANIFEST})
        else:
            self.blob(data)

    def blob(self, data: bytes) -> None:
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span:
            start = int(span[1])
            self.reply(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.reply(200, data)

    def upload(self) -> None:
        """distribution-spec: POST opens a session, PATCH adds, GET tells, PUT ends it."""
        sessions = self.server.sessions
        name = urlsplit(self.path).path.rpartition("/")[2]
        if self.command == "POST":
            name = os.urandom(8).hex()
            sessions[name] = b""
        elif name not in sessions:
            self.reply(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"no such upload"}]}')
            return
        elif self.command == "PATCH":
            sessions[name] += self.body()
        elif self.command == "PUT":
            self.finish(sessions.pop(name) + self.body())
            return
        there = {"Location": f"/v2/a/b/blobs/uploads/{name}?x=1", "Range": f"0-{max(len(sessions[name]) - 1, 0)}"}
        self.reply(204 if self.command == "GET" else 202, headers=there)

    def finish(self, data: bytes) -> None:
        digest = parse_qs(urlsplit(self.path).query)["digest"][0]
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            self.reply(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}')
            return
        self.server.uploaded[digest] = data
        self.reply(201, headers={"Docker-Content-Digest": digest})

    def body(self, limit: int = 1 << 40) -> bytes:
        """The request's body, or its beginning; what came before the connection broke."""
        self.read = True
        return self.rfile.read(min(int(self.headers.get("Content-Length", "0")), limit))

    def reply(
        self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None
    ) -> bool:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(data)
                self.wfile.flush()
        if length is not None:
            self.close_connection = True
        return True

    def break_off(self) -> None:
        """No answer at all."""
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    """`image` is what it serves; `uploaded` blobs and `manifests` are what was pushed; `shown`: paths of the requests
    that came with a client's certificate."""

    daemon_threads = True

    def __init__(self, image: Image) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.image = image
        self.rules: list[Reply] = []
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.shown: list[str] = []
        self.sessions: dict[str, bytes] = {}
        self.uploaded: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.empty = False
        self.address = f"127.0.0.1:{self.server_port}"

    def stored(self, name: str) -> bytes | None:
        """A blob or manifest that is here."""
        pushed = {**self.uploaded, **self.manifests}
        return pushed.get(name, None if self.empty else self.image.blobs.get(name))

    def handle_error(self, *_: object) -> None:
        return

    def requests(self, part: str, method: str = "") -> list[dict[str, str]]:
        """Headers of the requests for paths with `part` in them."""
        return [headers for verb, path, headers in self.log if part in path and method in ("", verb)]


@contextlib.contextmanager
def serving(image: Image, tls: tuple[Path, Path] | None = None, client_ca: Path | None = None) -> Iterator[Server]:
    """`tls`: its certificate and key; with `client_ca` it asks for a client's, and serves those without one too."""
    server = Server(image)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def on(part: str, reply: Callable[[Handler], object], times: int = 10**6, method: str = "") -> Reply:
    """A rule for paths that contain `part`, for some times."""
    left = [times]

    def rule(handler: Handler) -> bool:
        if part not in handler.path or left[0] <= 0 or method not in ("", handler.command):
            return False
        left[0] -= 1
        reply(handler)
        return True

    return rule


def ask(scheme: str) -> Callable[[Handler], bool]:
    """A rule: 401 without the right Authorization."""

    def rule(handler: Handler) -> bool:
        if not handler.path.startswith("/v2/a/"):
            return False
        if handler.headers.get("Authorization", "").split(" ")[0] == scheme.split(" ", maxsplit=1)[0]:
            return False
        return handler.reply(401, headers={"WWW-Authenticate": scheme})

    return rule
