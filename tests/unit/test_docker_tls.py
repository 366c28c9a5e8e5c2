"""docker_tcp: who is let in by his certificate, and that each direction has an end of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from image_support import Certificates
from wherry.daemon import check
from wherry.daemon.docker import tls
from wherry.engine.config import Settings
from wherry.errors import Kind, WherryError

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority: Certificates) -> tls.Files:
    cert, key = authority.sign("server", "IP:127.0.0.1")
    key.chmod(0o600)
    return tls.Files(str(authority.bundle), str(cert), str(key))


@pytest.fixture(scope="module")
def client(authority: Certificates) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority.bundle))
    made.load_cert_chain(*authority.sign("client"))
    return made


async def all_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with everything, once the other direction has ended."""
    writer.write(await reader.read(-1))
    writer.close()


@contextlib.asynccontextmanager
async def listening(files: tls.Files, talk: Talk) -> AsyncIterator[tuple[tls.Listener, int]]:
    talks: list[asyncio.Task[None]] = []

    async def serve(end: socket.socket) -> None:
        talks.append(asyncio.ensure_future(talk(*await asyncio.open_unix_connection(sock=end))))

    listener = tls.Listener(files, serve)
    _, port = await listener.start("127.0.0.1", 0)
    try:
        yield listener, port
    finally:
        listener.close()
        await listener.stop()
        await asyncio.wait_for(asyncio.gather(*talks, return_exceptions=True), 10)  # each saw its end


def dialed(port: int, how: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), 10)
    plain.settimeout(10)
    return how.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)


def conversation(how: ssl.SSLContext, port: int, sent: bytes) -> bytes:
    """By hand over memory: TLS, all of `sent`, close_notify, and then what comes until the server's."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = how.wrap_bio(inward, outward, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), 10) as link:

        def settled(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    found = step()
                except ssl.SSLWantReadError:
                    link.sendall(outward.read())
                    if data := link.recv(1 << 16):
                        inward.write(data)
                    else:
                        inward.write_eof()
                else:
                    link.sendall(outward.read())
                    return found

        settled(session.do_handshake)
        for start in range(0, len(sent), 16384):
            session.write(sent[start : start + 16384])
            link.sendall(outward.read())
        with contextlib.suppress(ssl.SSLWantReadError):
            session.unwrap()  # says close_notify, and would wait for the other's
        link.sendall(outward.read())
        heard = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):  # the server's close_notify; without it SSLEOFError
            while part := settled(lambda: session.read(1 << 16)):
                heard += part
        return heard


@pytest.mark.parametrize("size", [0, 3, 5 * MIB])
def test_close_notify_ends_one_direction(files: tls.Files, client: ssl.SSLContext, size: int) -> None:
    sent = bytes(range(256)) * (size // 256) + b"end"[: size % 256]

    async def act() -> bytes:
        async with listening(files, all_of) as (_, port):
            return await asyncio.to_thread(conversation, client, port, sent)

    assert asyncio.run(act()) == sent


def test_much_goes_both_ways_at_once(files: tls.Files, client: ssl.SSLContext) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def act() -> int:
        async with listening(files, echo) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
            piece, count = bytes(range(256)) * 1024, 32

            async def speak() -> None:
                for _ in range(count):
                    writer.write(piece)
                    await writer.drain()

            speaking = asyncio.ensure_future(speak())
            for _ in range(count):
                assert await reader.readexactly(len(piece)) == piece
            await speaking
            writer.close()
            return count

    assert asyncio.run(asyncio.wait_for(act(), 30)) == 32


def test_the_servers_end_is_told(files: tls.Files, client: ssl.SSLContext) -> None:
    async def bye(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    def dial(port: int) -> bytes:
        with dialed(port, client) as link:
            return link.recv(10) + link.recv(10)  # the second would raise SSLEOFError without close_notify

    async def act() -> bytes:
        async with listening(files, bye) as (_, port):
            return await asyncio.to_thread(dial, port)

    assert asyncio.run(act()) == b"bye"


def strangers(authority: Certificates, tmp_path: Path) -> dict[str, ssl.SSLContext]:
    nobody = ssl.create_default_context(cafile=str(authority.bundle))
    other = ssl.create_default_context(cafile=str(authority.bundle))
    other.load_cert_chain(*Certificates(tmp_path / "other").sign("client"))
    old = ssl.create_default_context(cafile=str(authority.bundle))
    old.load_cert_chain(*authority.sign("old"))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    return {"no certificate": nobody, "another authority's": other, "TLS 1.1": old}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_strangers_stay_outside(
    files: tls.Files, client: ssl.SSLContext, authority: Certificates, tmp_path: Path
) -> None:
    served = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.read(-1))
        writer.close()

    def dial(port: int) -> None:
        for how in strangers(authority, tmp_path).values():
            with pytest.raises((ssl.SSLError, ConnectionError)):
                conversation(how, port, b"GET /_ping HTTP/1.1\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(b"GET /_ping HTTP/1.1\r\n\r\n")
            plain.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in plain.recv(100)
        assert conversation(client, port, b"me") == b""

    async def act() -> None:
        async with listening(files, talk) as (_, port):
            await asyncio.to_thread(dial, port)

    asyncio.run(act())
    assert served == [b"me"]


def test_who_says_nothing_is_let_go(
    files: tls.Files, client: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those there are so many at most: for another one the oldest goes. Known clients are not counted."""
    monkeypatch.setattr(tls, "_HANDSHAKE", 4.0)
    monkeypatch.setattr(tls, "_STRANGERS_MOST", 4)

    def dial(port: int) -> tuple[list[int], bool]:
        silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(6)]
        ended = []
        for number, link in enumerate(silent):
            link.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                ended += [] if received(link) else [number]
        for link in silent:
            link.settimeout(10)
            assert not received(link)
            link.close()
        return ended, conversation(client, port, b"1") == b"1"

    async def act() -> tuple[list[int], bool]:
        async with listening(files, all_of) as (_, port):
            return await asyncio.to_thread(dial, port)

    assert asyncio.run(act()) == ([0, 1], True)


def received(link: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return link.recv(1)
    return b""


def test_a_client_that_has_gone_is_noticed_though_nobody_reads_it(files: tls.Files, client: ssl.SSLContext) -> None:
    seen = asyncio.Event()

    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        while not tls.hung_up(transport):
            await asyncio.sleep(0.1)
        seen.set()
        writer.close()

    def dial(port: int) -> None:
        with dialed(port, client) as link:
            link.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                for _ in range(1000):
                    link.sendall(bytes(MIB))

    async def act() -> None:
        async with listening(files, deaf) as (_, port):
            await asyncio.to_thread(dial, port)
            await asyncio.wait_for(seen.wait(), 10)

    asyncio.run(act())


def test_other_certificates_from_now_on(files: tls.Files, client: ssl.SSLContext, tmp_path: Path) -> None:
    other = Certificates(tmp_path / "next")
    cert, key = other.sign("server", "IP:127.0.0.1")
    key.chmod(0o600)
    theirs = ssl.create_default_context(cafile=str(other.bundle))
    theirs.load_cert_chain(*other.sign("client"))

    async def act() -> None:
        async with listening(files, all_of) as (listener, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
            with pytest.raises(WherryError):
                listener.reload(files._replace(ca="/nowhere"))
            assert await asyncio.to_thread(conversation, client, port, b"still") == b"still"
            listener.reload(tls.Files(str(other.bundle), str(cert), str(key)))
            assert await asyncio.to_thread(conversation, theirs, port, b"theirs") == b"theirs"
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(conversation, client, port, b"ours")
            writer.write(b"who was in stays in")
            await writer.drain()
            writer.close()
            del reader

    asyncio.run(act())


def test_settings_that_make_no_server(files: tls.Files, authority: Certificates, tmp_path: Path) -> None:
    def told(**changed: str) -> str:
        known = Settings(docker_tcp="127.0.0.1:0", tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key)
        with pytest.raises(WherryError) as raised:
            check.settings("wherry.toml", known._replace(**changed))
        assert raised.value.kind in {Kind.INVALID, Kind.DENIED}
        return f"{raised.value.message}; {raised.value.hint}"

    check.settings("x", Settings(docker_tcp="[::1]:2376", tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key))
    assert "docker_tcp must be ADDRESS:PORT" in told(docker_tcp="localhost")
    assert "each an absolute path" in told(tls_ca="")
    assert "each an absolute path" in told(tls_key="key.pem")
    assert "do not make a TLS server" in told(tls_cert="/nowhere.crt")
    assert "do not make a TLS server" in told(tls_key=str(authority.sign("another")[1]))  # of another certificate
    assert "do not make a TLS server" in told(tls_ca=files.key)  # no certificate in it
    locked = tmp_path / "locked.key"
    words = ["openssl", "pkcs8", "-topk8", "-in", files.key, "-out", str(locked), "-passout", "pass:x"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    locked.chmod(0o600)
    assert "do not make a TLS server" in told(tls_key=str(locked))
    open_to_all = tmp_path / "open.key"
    open_to_all.write_bytes(Path(files.key).read_bytes())
    open_to_all.chmod(0o644)
    assert "everybody's to read" in told(tls_key=str(open_to_all))
