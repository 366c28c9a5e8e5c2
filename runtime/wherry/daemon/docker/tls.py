"""Docker's clients over TCP: mutual TLS, or nothing.

Decides who comes in: whoever has the key of a certificate that an authority of `tls_ca` signed. Each connection is
brought to a pair of sockets, whose other end is served as those of docker.sock are; so a client may end its input
(close_notify, RFC 8446 6.1) and still hears all output, which asyncio's own TLS would not let it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from wherry.daemon.streaming.pipe import hung_up
from wherry.engine.config import Settings
from wherry.errors import Kind, WherryError

__all__ = ["Files", "Listener", "context"]

_log = logging.getLogger("wherryd.docker")
_CHUNK = 1 << 16
_HANDSHAKE = 10.0  # seconds that it may take
_STRANGERS_MOST = 128  # connections that have not shown a certificate yet; one more, and the oldest goes
_GOODBYE = 1.0  # seconds for the last bytes
_LOOK = 1.0  # seconds between two looks whether a client is there whose bytes nobody takes

Serve = Callable[[socket.socket], Awaitable[object]]


class Files(NamedTuple):
    """Of the settings: paths of PEM files."""

    ca: str
    cert: str
    key: str

    @classmethod
    def of(cls, known: Settings) -> Files:
        """As they are set."""
        return cls(known.tls_ca, known.tls_cert, known.tls_key)


def context(files: Files) -> ssl.SSLContext:
    """What a handshake goes by. INVALID for files that do not make one, DENIED for a key that others may read."""
    for path in files:
        if not os.path.isabs(path):
            message = "docker_tcp needs tls_ca, tls_cert and tls_key, each an absolute path"
            raise WherryError(Kind.INVALID, message, hint="there is no TCP without certificates on both sides")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET  # who is let in is asked for its certificate each time
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        if os.stat(files.key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise WherryError(Kind.DENIED, f"tls_key {files.key} is everybody's to read", hint=f"chmod 600 {files.key}")
        made.load_cert_chain(files.cert, files.key, password=_no_password)
        made.load_verify_locations(files.ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is the first
        words = f"tls_ca, tls_cert and tls_key do not make a TLS server: {getattr(error, 'strerror', '') or error}"
        raise WherryError(Kind.INVALID, words, hint="PEM files; the key without a password, and the certificate's own"
                          ) from error  # fmt: skip
    return made


def _no_password() -> str:
    raise ValueError("the key has a password")


class Listener:
    """One TCP address. `serve` takes the inner end of a connection, and begins to serve it."""

    def __init__(self, files: Files, serve: Serve) -> None:
        self._context, self._serve = context(files), serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}  # oldest first

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address and the port that it became. UNAVAILABLE where another has it."""
        try:
            self._server = await asyncio.start_server(self._accepted, host, port, limit=_CHUNK)
        except OSError as error:
            words = f"docker_tcp {host}:{port} cannot be served: {error.strerror or error}"
            raise WherryError(Kind.UNAVAILABLE, words) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def reload(self, files: Files) -> None:
        """Other certificates hold for connections from now on."""
        self._context = context(files)

    def close(self) -> None:
        """Take nobody more."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Let go of who is there."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = _Session(reader, writer, self._context)
        try:
            if await self._known(task, session, writer):
                await _bring(session, self._serve)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _known(self, task: asyncio.Task[None], session: _Session, writer: asyncio.StreamWriter) -> bool:
        if len(self._strangers) >= _STRANGERS_MOST:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]  # its end comes a moment later
            oldest.cancel()
        self._strangers[task] = None
        try:
            async with asyncio.timeout(_HANDSHAKE):
                await session.handshake()
        except (ssl.SSLError, OSError, TimeoutError) as error:
            peer = writer.get_extra_info("peername") or ("?",)
            why = getattr(error, "reason", None) or str(error) or "it said nothing"
            _log.info("a client of docker_tcp was let go", extra={"fields": {"client": peer[0], "why": why}})
            return False
        finally:
            self._strangers.pop(task, None)
        return True


class _Session:
    """TLS over a stream, each direction with an end of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: ssl.SSLContext) -> None:
        self._reader, self._writer = reader, writer
        self._from, self._to = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = how.wrap_bio(self._from, self._to, server_side=True)

    async def handshake(self) -> None:
        """SSLError for a client that is not let in; it is told why."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
                continue
            finally:
                await self._flush()
            return

    async def _flush(self) -> None:
        if data := self._to.read():
            self._writer.write(data)
            await self._writer.drain()

    async def _more(self) -> None:
        if data := await self._reader.read(_CHUNK):
            self._from.write(data)
        else:
            self._from.write_eof()

    async def read(self) -> bytes:
        """Some bytes; b"" where the client has ended its direction. ConnectionError if it is gone."""
        while True:
            try:
                return self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            except ssl.SSLError as error:
                raise ConnectionResetError(str(error)) from error

    async def write(self, data: bytes) -> None:
        """All of it; waits while the client does not take it. ConnectionError if it is gone."""
        left = memoryview(data)
        while left:  # a record at a time
            left = left[self._tls.write(left) :]
        await self._flush()

    async def gone(self) -> None:
        """After the end of the client's direction: returns at the connection's."""
        while await self._reader.read(_CHUNK):
            pass

    def hung_up(self) -> bool:
        """Whether the client has closed the connection."""
        return hung_up(self._writer.transport)

    async def close(self) -> None:
        """Say that no more comes, and hang up when that is out."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self._flush()
        await _let_go(self._writer)


async def _let_go(writer: asyncio.StreamWriter) -> None:
    """Hang up; what the other end does not take within a moment is dropped."""
    writer.close()
    try:
        async with asyncio.timeout(_GOODBYE):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


async def _bring(session: _Session, serve: Serve) -> None:
    """Bytes both ways, until the client is gone or the server has said all."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_CHUNK)
    try:
        await serve(theirs)
        both = asyncio.ensure_future(_inward(session, writer)), asyncio.ensure_future(_outward(session, reader))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            said = both[1].done() and not both[1].cancelled() and both[1].exception() is None
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if said:
            await session.close()
    finally:
        await _let_go(writer)


async def _inward(session: _Session, writer: asyncio.StreamWriter) -> None:
    """Returns when the client is gone."""
    while data := await session.read():
        writer.write(data)
        taken = asyncio.ensure_future(writer.drain())
        while not (await asyncio.wait((taken,), timeout=_LOOK))[0]:
            if session.hung_up():
                taken.cancel()
                return
        taken.result()
    writer.write_eof()
    await session.gone()


async def _outward(session: _Session, reader: asyncio.StreamReader) -> None:
    """Returns when the server has closed its end."""
    while data := await reader.read(_CHUNK):
        await session.write(data)
