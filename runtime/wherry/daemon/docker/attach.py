"""Attaching to a container: the connection taken over (docker's raw stream), or a WebSocket.

Decides what a client hears (from now on, what the log has before that, or from the first byte of a start that is still
to come), and that a container goes on when its client goes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from wherry.daemon.streaming.frames import CHUNK, Frames
from wherry.errors import WherryError
from wherry.model import ATTACH_STDERR, ATTACH_STDOUT, Json

from . import hijack
from .call import Call, Route
from .hijack import Client, Keys

__all__ = ["ROUTES", "Wanted", "conversed", "feed"]

_SOON = 1.0  # seconds
_KINDS = {"stdout": ATTACH_STDOUT, "stderr": ATTACH_STDERR}


class Wanted(NamedTuple):
    """Which streams, the keys that let go, and whether this client's input ends the container's (StdinOnce)."""

    stdin: bool
    outputs: frozenset[int]
    keys: bytes
    once: bool = False


class _Tap:
    """Waits in `lives` for a start, and takes what comes then, once its client can have it."""

    def __init__(self, outputs: frozenset[int]) -> None:
        self._outputs = outputs
        loop = asyncio.get_running_loop()
        self.client: asyncio.Future[Client | None] = loop.create_future()  # None: it left before
        self.frames: asyncio.Future[Frames] = loop.create_future()
        self.ended: asyncio.Future[WherryError | None] = loop.create_future()
        self._left = False

    def begun(self, frames: Frames) -> None:
        """See `Tap`."""
        if not self.frames.done():
            self.frames.set_result(frames)

    async def take(self, kind: int, payload: bytes) -> None:
        """See `Tap`."""
        client = await asyncio.shield(self.client)
        if self._left or client is None:
            raise ConnectionResetError("the client has let go")
        if kind in self._outputs:
            await client.take(kind, payload)

    def over(self, error: WherryError | None) -> None:
        """See `Tap`."""
        self.frames.cancel()
        if not self.ended.done():
            self.ended.set_result(error)

    def leave(self) -> None:
        """It takes nothing any more."""
        self._left = True
        if not self.client.done():
            self.client.set_result(None)


async def feed(client: Client, frames: Frames, keys: bytes, *, once: bool = True) -> bool:
    """A client's input, up to its end (False) or the detach keys (True), which only a terminal's has. `once`: its end
    is that of the process's input."""
    watch = Keys(keys) if frames.tty else None
    while data := await client.read():
        typed, let_go = watch.typed(data) if watch else (data, False)
        for start in range(0, len(typed), CHUNK):
            await frames.send(typed[start : start + CHUNK])
        if let_go:
            return True
    if once and not frames.tty:
        await frames.eof()
    return False


async def conversed(client: Client, output: Awaitable[object], typing: Callable[[], Awaitable[bool]]) -> None:
    """Until the output ends, the detach keys were typed, or the client is gone; whatever still runs is cancelled."""
    ends = asyncio.ensure_future(output), asyncio.ensure_future(client.vanished())
    typed = asyncio.ensure_future(typing())
    try:
        waited = {*ends, typed}
        while True:
            done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if any(end in done for end in ends) or (typed in done and (typed.exception() or typed.result())):
                return
    finally:
        for task in (*ends, typed):
            task.cancel()
        await asyncio.gather(*ends, typed, return_exceptions=True)


@contextlib.asynccontextmanager
async def _attending(call: Call, wanted: Wanted) -> AsyncIterator[tuple[_Tap, Json, Wanted]]:
    """A tap for the next start, what the container is, and what is wanted of it. The tap waits before anything is
    looked at or answered: a client may start it as soon as it has read our head, and others at any moment."""
    lives, cid = call.parts.lives, await call.parts.look(call.engine.container_id, call.ref())
    tap = _Tap(wanted.outputs)
    lives.attend(cid, tap)
    try:
        facts = await call.parts.look(call.engine.inspect, cid, "container")
        yield tap, facts, wanted._replace(once=facts["Config"]["StdinOnce"])
    finally:
        tap.leave()
        lives.leave(cid, tap)


def _wanted(call: Call) -> Wanted:
    outputs = frozenset(kind for name, kind in _KINDS.items() if call.flag(name))
    return Wanted(call.flag("stdin"), outputs, hijack.detach_keys(call.text("detachKeys")))


async def attach(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/attach`."""
    async with _attending(call, _wanted(call)) as (tap, facts, wanted):
        client, answer = await hijack.opened(call, tty=facts["Config"]["Tty"])
        await _session(call, tap, facts, client, wanted)
        return answer


async def attach_socket(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/attach/ws`."""
    asked = _wanted(call)
    if not (asked.stdin or asked.outputs):  # as the older dockers have it: all of them
        asked = Wanted(True, frozenset(_KINDS.values()), asked.keys)
    async with _attending(call, asked) as (tap, facts, wanted):
        socket = web.WebSocketResponse(compress=False, max_msg_size=1 << 20)
        await socket.prepare(call.request)
        await _session(call, tap, facts, hijack.Socket(socket, call.request), wanted)
        return socket


async def _session(call: Call, tap: _Tap, facts: Json, client: Client, wanted: Wanted) -> None:
    cid = str(facts["Id"])
    try:
        if call.flag("logs"):
            await _past(call, cid, client, wanted)
        if call.flag("stream") or "stream" not in call.request.query:
            runs = facts["State"]["Running"] and call.parts.lives.leave(cid, tap)  # it ran before the tap came
            if runs or await _attend(call, cid, tap, client, wanted):
                await _join(call, cid, client, wanted)
    except ConnectionError:
        pass
    finally:
        await client.close()


async def _past(call: Call, cid: str, client: Client, wanted: Wanted) -> None:
    names = {name: kind in wanted.outputs for name, kind in _KINDS.items()}
    log = await call.parts.look(lambda: call.engine.follow_logs(cid, **names))
    for line in await call.parts.look(log.more) or ():
        await client.take(_KINDS[line.stream], line.data)


async def _join(call: Call, cid: str, client: Client, wanted: Wanted) -> None:
    """One that runs: by a connection of our own to its monitor."""
    frames = Frames(await call.parts.change(call.engine.attach, cid, stdin=wanted.stdin))

    async def output() -> None:
        async for kind, payload in frames:
            if kind in wanted.outputs:
                await client.take(kind, payload)

    async def typing() -> bool:
        return await feed(client, frames, wanted.keys, once=wanted.once) if wanted.stdin else await _ignored(client)

    try:
        if not wanted.outputs:
            await frames.quiet()
        await conversed(client, output(), typing)
    finally:
        frames.close()


async def _attend(call: Call, cid: str, tap: _Tap, client: Client, wanted: Wanted) -> bool:
    """One that is still to be started, or just has been. Whether another started it than a client of ours, and it is to
    be joined."""

    async def typing() -> bool:
        if not wanted.stdin:
            return await _ignored(client)
        return await feed(client, await asyncio.shield(tap.frames), wanted.keys, once=wanted.once)

    tap.client.set_result(client)
    elsewhere = asyncio.ensure_future(_elsewhere(call, cid, tap))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await conversed(client, asyncio.wait((tap.ended, elsewhere), return_when=asyncio.FIRST_COMPLETED), typing)
        return elsewhere.done() and elsewhere.result()
    finally:
        elsewhere.cancel()
        await asyncio.gather(elsewhere, return_exceptions=True)


async def _elsewhere(call: Call, cid: str, tap: _Tap) -> bool:
    """Returns True when it was started by wherry's own CLI or by a restart policy, False when it is gone. Docker's
    clients start what they attach to at once: only for who waits longer are events followed."""
    await asyncio.sleep(_SOON)
    with call.parts.happenings.listener() as happened:
        while True:
            try:
                if await call.parts.look(call.engine.runs, cid) and call.parts.lives.leave(cid, tap):
                    return True
            except WherryError:
                return False
            while (event := await happened.get()) is not None and event["Actor"]["ID"] != cid:
                continue  # None: something may have been missed


async def _ignored(client: Client) -> bool:
    """What a client says that gives no input."""
    while await client.read():
        pass
    return False


ROUTES: tuple[Route, ...] = (
    Route("POST", "/containers/{id}/attach", attach),
    Route("GET", "/containers/{id}/attach/ws", attach_socket),
)
