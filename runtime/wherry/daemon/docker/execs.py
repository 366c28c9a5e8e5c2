"""Processes in a running container.

Decides that a process goes on when its client goes, as docker's do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from aiohttp import web

from wherry.daemon.streaming.frames import Frames
from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_STDERR, ATTACH_STDOUT, Json

from . import hijack
from .attach import conversed, feed
from .call import Call, Route
from .execlist import Exec, Execs
from .gate import answer
from .hijack import Client

__all__ = ["ROUTES"]

_BEGIN = 10.0  # seconds that a resize waits for its process


async def create(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/exec`."""
    asked = await call.json()
    command = asked.get("Cmd")
    if not command or not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise WherryError(Kind.INVALID, "no exec command specified", hint='Cmd is a list of texts, as ["ls", "-l"]')
    facts = await call.parts.look(call.engine.inspect, call.ref(), "container")
    for word in ("Running", "Paused"):
        if facts["State"][word] is (word == "Paused"):
            state = "paused, unpause the container before exec" if word == "Paused" else "not running"
            raise WherryError(Kind.CONFLICT, f"container {facts['Id']} is {state}")
    _sound(asked)
    made = Exec(facts["Id"], asked, hijack.detach_keys(str(asked.get("DetachKeys") or "")))
    call.parts.execs.add(made)
    return answer({"Id": made.id}, 201)


def _sound(asked: Json) -> None:
    """What would be no value of ours."""
    env = asked.get("Env") or []
    if not isinstance(env, list) or not all(isinstance(one, str) for one in env):
        raise WherryError(Kind.INVALID, "Env must be a list of texts")
    for key in ("User", "WorkingDir", "DetachKeys"):
        if not isinstance(asked.get(key) or "", str):
            raise WherryError(Kind.INVALID, f"{key} must be a text")


async def start(call: Call) -> web.StreamResponse:
    """`POST /exec/{id}/start`."""
    asked, execs = await call.json(), call.parts.execs
    one = execs.get(call.ref())
    if asked.get("Detach"):
        one.asked["AttachStdin"] = False
        await execs.begin(one)
        execs.see_to_its_end(one)
        return web.Response()
    try:
        frames = await execs.begin(one)
    except WherryError as error:
        if error.code is None:
            raise
        return await _unbegun(call, one, error)
    try:
        size = asked.get("ConsoleSize")
        if frames.tty and isinstance(size, list) and len(size) == 2:
            await frames.resize(*_size(*size))
        client, given = await hijack.opened(call, tty=frames.tty)
    except BaseException:  # the client has gone already
        execs.see_to_its_end(one)
        raise
    await _session(one, execs, frames, client)
    return given


async def _unbegun(call: Call, one: Exec, error: WherryError) -> web.StreamResponse:
    """The command itself cannot be run: docker's clients read that in the stream, and the code from the process."""
    one.code, one.at = error.code, time.monotonic()
    client, given = await hijack.opened(call, tty=bool(one.asked.get("Tty")))
    with contextlib.suppress(ConnectionError):
        await client.take(ATTACH_STDERR, f"{error.message}\r\n".encode())
    await client.close()
    return given


async def _session(one: Exec, execs: Execs, frames: Frames, client: Client) -> None:
    outputs = {kind for kind, key in ((ATTACH_STDOUT, "AttachStdout"), (ATTACH_STDERR, "AttachStderr"))
               if one.asked.get(key)}  # fmt: skip
    whole = False

    async def output() -> None:
        nonlocal whole
        async for kind, payload in frames:
            if kind in outputs:
                await client.take(kind, payload)
        whole = True
        await execs.ended(one)

    async def typing() -> bool:
        if one.asked.get("AttachStdin"):
            return await feed(client, frames, one.keys)
        while await client.read():
            pass
        return False

    try:
        await conversed(client, output(), typing)
    finally:
        if not whole:
            execs.see_to_its_end(one)
        await client.close()


def _size(rows: object, cols: object) -> tuple[int, int]:
    if isinstance(rows, int) and isinstance(cols, int) and 0 <= rows < 1 << 16 and 0 <= cols < 1 << 16:
        return rows, cols
    raise WherryError(Kind.INVALID, "the size of a terminal is two numbers from 0 to 65535")


async def resize(call: Call) -> web.StreamResponse:
    """`POST /exec/{id}/resize`. Clients ask while it is still being started."""
    one = call.parts.execs.get(call.ref())
    size = _size(call.number("h", 0), call.number("w", 0))
    try:
        async with asyncio.timeout(_BEGIN):
            await one.begun.wait()
    except TimeoutError:
        raise WherryError(Kind.CONFLICT, f"exec {one.id[:12]} has not been started") from None
    if one.frames is not None and one.running:
        await one.frames.resize(*size)
    return web.Response(status=200)


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /exec/{id}/json`."""
    return answer(call.parts.execs.get(call.ref()).told())


ROUTES: tuple[Route, ...] = (
    Route("POST", "/containers/{id}/exec", create),
    Route("POST", "/exec/{id}/start", start),
    Route("POST", "/exec/{id}/resize", resize),
    Route("GET", "/exec/{id}/json", inspect),
)
