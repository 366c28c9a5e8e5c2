"""The streaming server's small parts: tickets, inboxes, statuses."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.streamraw import answer
from helpers.streamserver import serving
from wherry.daemon.streaming import remote, status
from wherry.daemon.streaming.beginnings import Beginnings
from wherry.daemon.streaming.inbox import Bound, Inbox
from wherry.daemon.streaming.tickets import Tickets
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.model import Place


def test_a_ticket_is_good_once_and_for_a_while() -> None:
    now = [0.0]
    tickets = Tickets[str](60, 10, lambda: now[0])
    first, second = tickets.give("a"), tickets.give("b")
    assert len(first) >= 43  # 256 bits
    assert tickets.take(first) == "a"
    assert tickets.take(first) is None
    assert tickets.take("none") is None
    now[0] = 60.0
    assert tickets.take(second) is None


def test_tickets_are_bounded_and_come_back() -> None:
    now = [0.0]
    tickets = Tickets[int](60, 3, lambda: now[0])
    for number in range(3):
        tickets.give(number)
    with pytest.raises(WherryError) as caught:
        tickets.give(3)
    assert caught.value.kind is Kind.EXHAUSTED
    now[0] = 61.0
    assert tickets.take(tickets.give(4)) == 4


def test_tickets_of_many_threads() -> None:
    tickets = Tickets[int](60, 10_000)
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(tickets.give, range(2000)))
        taken = list(pool.map(tickets.take, given + given))
    assert len(set(given)) == 2000
    assert sorted(one for one in taken if one is not None) == list(range(2000))


def test_an_inbox_holds_back_who_puts_too_much() -> None:
    async def work() -> None:
        inbox = Inbox(10)
        inbox.put(b"12345")
        assert not inbox.full
        inbox.put(b"67890")
        assert inbox.full
        waiting = asyncio.create_task(inbox.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await inbox.read() == b"1234567890"
        await waiting
        inbox.put(b"more")
        inbox.end()
        inbox.put(b"late")
        assert [await inbox.read(), await inbox.read(), await inbox.read()] == [b"more", b"", b""]

    asyncio.run(work())


def test_an_inbox_that_is_forgotten_lets_go() -> None:
    async def work() -> None:
        inbox = Inbox(4)
        inbox.put(b"12345")
        inbox.forget()
        assert not inbox.full
        assert await inbox.read() == b""

    asyncio.run(work())


def test_small_pieces_take_no_more_than_their_size() -> None:
    async def work() -> None:
        inbox = Inbox()
        tracemalloc.start()
        for _ in range(1 << 18):
            inbox.put(b"x")
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert inbox.full
        assert held < 1 << 19

    asyncio.run(work())


def test_inboxes_share_a_bound() -> None:
    async def work() -> None:
        both = Bound(10)
        one, two = Inbox(100, both), Inbox(100, both)
        one.put(b"123456")
        two.put(b"7890")
        assert one.full
        assert two.full
        waiting = asyncio.create_task(two.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        one.forget()
        await waiting
        assert await two.read() == b"7890"
        one.put(b"dropped")
        assert not both.full

    asyncio.run(work())


class Said:
    """A channel that says this."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    async def read(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""


def objects(*parts: bytes) -> list[object]:
    async def work() -> list[object]:
        return [found async for found in remote._objects(Said(*parts))]  # type: ignore[arg-type]

    return asyncio.run(work())


def test_objects_however_they_are_cut() -> None:
    assert objects(b' {"a"', b': 1}\n{"b"', b": 2}  ", b"[3]", b'{"c": 4}') == [{"a": 1}, {"b": 2}]
    assert objects(b"[" * (1 << 16)) == []
    assert objects(b"{" * 600, b"{" * 600, b"}") == []


def test_many_objects_at_once_hold_nobody_up() -> None:
    before = time.process_time()
    assert len(objects(b"{}" * (1 << 19))) == 1 << 19
    assert time.process_time() - before < 5  # a copy of the rest for each would take minutes


def test_statuses_are_those_of_kubernetes() -> None:
    """metav1.Status: what clients take an exit code from."""
    assert status.exited(0) == status.SUCCESS
    told = json.loads(status.told(status.exited(3), structured=True))
    assert told["status"] == "Failure"
    assert told["reason"] == "NonZeroExitCode"
    assert told["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert b"exit code" in status.told(status.exited(3), structured=False)
    assert status.told(status.SUCCESS, structured=False) == b""
    assert json.loads(status.told(status.failed("why"), structured=True))["code"] == 500


class Begun:
    """A process that began."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def kill(self) -> None:
        self._told.append("killed")

    def close(self) -> None:
        self._told.append("closed")


def test_few_begin_at_once_in_one_container() -> None:
    async def work() -> None:
        beginnings, go, told = Beginnings(each=2), threading.Event(), []

        def stuck() -> Any:
            go.wait(10)
            return Begun(told)

        tasks = [asyncio.create_task(beginnings.begin("bad", stuck, mortal=True)) for _ in range(100)]
        await asyncio.sleep(0.05)
        assert isinstance(await beginnings.begin("good", lambda: Begun(told), mortal=True), Begun)  # type: ignore
        for task in tasks[1:]:
            task.cancel()
        await asyncio.sleep(0)
        go.set()
        assert isinstance(await tasks[0], Begun)
        assert all(isinstance(found, asyncio.CancelledError)
                   for found in await asyncio.gather(*tasks[1:], return_exceptions=True))  # fmt: skip
        while len(told) < 2:
            await asyncio.sleep(0.01)
        assert told == ["killed", "closed"]
        assert not beginnings._turns
        beginnings.close()

    asyncio.run(work())


@pytest.mark.parametrize(("protocol", "most"), [
    ("v4.channel.k8s.io", 128), ("v4.base64.channel.k8s.io", 5), ("", 128), ("SPDY/3.1+portforward.k8s.io", 1000),
])  # fmt: skip
def test_more_ports_than_channels_can_be_numbered_are_refused_in_words(
    tmp_path: Path, protocol: str, most: int
) -> None:
    engine = Engine(Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "none.toml")))
    wish = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
            "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **({"Sec_WebSocket_Protocol": protocol} if protocol else {})}  # fmt: skip
    with serving(engine) as server:
        status, _, _ = answer(server.streaming.port_forward("pod", range(1, most + 1)), "GET", **wish)
        assert status == 101
        status, _, body = answer(server.streaming.port_forward("pod", range(1, most + 2)), "GET", **wish)
    if most == 1000:
        assert status == 101, "its streams are numbered otherwise"
    else:
        assert status == 400
        assert f"not {2 * most + 2}: ask for fewer".encode() in body
