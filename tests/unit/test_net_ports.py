"""Host ports: notation, grants, conflicts. Uses real sockets of this machine's loopback, no rights needed."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wherry.errors import Kind, WherryError
from wherry.model import PortMapping
from wherry.net.ports import PortBook, hold, parse_publish


@pytest.mark.parametrize(("text", "wanted"), [
    ("80", (PortMapping(80),)),
    ("8080:80", (PortMapping(80, 8080),)),
    ("127.0.0.1:8080:80/udp", (PortMapping(80, 8080, "udp", "127.0.0.1"),)),
    ("127.0.0.1::80", (PortMapping(80, 0, "tcp", "127.0.0.1"),)),
    ("[fd00::1]:8080:80", (PortMapping(80, 8080, "tcp", "fd00::1"),)),
    ("8000-8002:80-82", (PortMapping(80, 8000), PortMapping(81, 8001), PortMapping(82, 8002))),
    ("8000-8009:80", (PortMapping(80, 8000, "tcp", "", 8009),)),
    ("80-81", (PortMapping(80), PortMapping(81))),
])
def test_publish_notation(text: str, wanted: tuple[PortMapping, ...]) -> None:
    assert parse_publish(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "0", "70000", "80:", "8000-8001:80-82", "80/icmp", "1.2.3:80:80", "81-80",
                                  "-1:80", "²:80", "[::1]:80:80"])
def test_bad_notation_is_one_clear_error(text: str) -> None:
    with pytest.raises(WherryError) as caught:
        parse_publish(text)
    assert caught.value.kind in (Kind.INVALID, Kind.UNSUPPORTED)


@pytest.fixture
def book(tmp_path: Path) -> PortBook:
    return PortBook(str(tmp_path / "ports"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_listener_of_the_host_is_named(book: PortBook, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "", "0.0.0.0"):
            with pytest.raises(WherryError, match=rf"{port}/tcp is in use: .*pid {os.getpid()}") as caught:
                book.claim("c1", [PortMapping(80, port, "tcp", address)])
            assert caught.value.kind is Kind.CONFLICT
        assert book.claim("c1", [PortMapping(80, port, "udp", "127.0.0.1")])
        assert book.holders() == {"c1"}


def test_two_containers_cannot_have_one_port_but_two_addresses_can(book: PortBook) -> None:
    port = free_port()
    assert book.claim("c1", [PortMapping(80, port, "tcp", "127.0.0.1")])
    with pytest.raises(WherryError, match="container c1 publishes it"):
        book.claim("c2", [PortMapping(80, port, "tcp", "127.0.0.1")])
    with pytest.raises(WherryError, match="container c1 publishes it"):
        book.claim("c2", [PortMapping(80, port)])
    assert book.claim("c2", [PortMapping(80, port, "tcp", "127.0.0.2")])
    book.release("c1")
    book.release("c1")
    assert book.claim("c3", [PortMapping(80, port, "tcp", "127.0.0.1")])


def test_claiming_again_is_the_same_grant_and_all_or_nothing(book: PortBook) -> None:
    port = free_port()
    wish = [PortMapping(80, port)]
    assert book.claim("c1", wish) == book.claim("c1", wish)
    with pytest.raises(WherryError):
        book.claim("c2", [PortMapping(81, 0), PortMapping(80, port)])
    assert book.holders() == {"c1"}
    with pytest.raises(WherryError, match="twice"):
        book.claim("c4", [PortMapping(80, port + 1, "tcp", "127.0.0.1"), PortMapping(81, port + 1)])


def test_a_range_gives_its_next_free_port_and_tells_when_it_is_full(book: PortBook) -> None:
    first = free_port()
    wish = PortMapping(80, first, "tcp", "127.0.0.1", first + 1)
    got = [book.claim(name, [wish])[0].host_port for name in ("a", "b")]
    assert got == [first, first + 1]
    with pytest.raises(WherryError, match="is free"):
        book.claim("c", [wish])


def test_free_ports_differ_under_many_callers(book: PortBook) -> None:
    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda number: book.claim(f"c{number}", [PortMapping(80), PortMapping(53, 0, "udp")]),
                                range(16)))
    ports = [(mapping.protocol, mapping.host_port) for pair in granted for mapping in pair]
    assert len(ports) == len(set(ports)) == 32
    assert all(port for _, port in ports)


def test_hold_keeps_others_out(book: PortBook) -> None:
    port = free_port()
    sockets = hold([PortMapping(80, port, "udp", "127.0.0.1")])
    with pytest.raises(WherryError, match="is in use"):
        book.claim("c1", [PortMapping(80, port, "udp", "127.0.0.1")])
    for held in sockets:
        held.close()
    assert book.claim("c1", [PortMapping(80, port, "udp", "127.0.0.1")])


def test_an_address_of_somebody_else_is_refused(book: PortBook) -> None:
    with pytest.raises(WherryError, match="not an address of this host"):
        book.claim("c1", [PortMapping(80, 8080, "tcp", "203.0.113.7")])
