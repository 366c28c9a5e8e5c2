"""Logs of containers.

Decides the form (frames unless the container has a terminal, times in front where asked). A log that is followed is
looked at again and again, and no thread waits for it.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from aiohttp import web

from wherry.engine.values import LogLine
from wherry.errors import Kind, WherryError

from .call import Call, Route

if TYPE_CHECKING:
    from wherry.engine.logs import Follower

__all__ = ["ROUTES"]

_HEADER = struct.Struct(">B3xI")
_GRAIN = 1e-6  # seconds
_LOOK = 0.1  # seconds between two looks at a log that is followed
_AT_ONCE = 1 << 18  # bytes of lines that go out together
_FRAMED, _RAW = "application/vnd.docker.multiplexed-stream", "application/vnd.docker.raw-stream"


async def logs(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/logs`."""
    outputs = {name: call.flag(name) for name in ("stdout", "stderr")}
    if not any(outputs.values()):
        raise WherryError(Kind.INVALID, "Bad parameters: you must choose at least one stream")
    facts = await call.parts.look(call.engine.inspect, call.ref(), "container")
    tail = _tail(call.text("tail", "all"))
    # a line's own time, given back, finds the line: a float holds less than its nanoseconds
    since, until = max(0.0, call.seconds("since") - _GRAIN), call.seconds("until")
    until += _GRAIN if until else 0
    log = await call.parts.look(
        lambda: call.engine.follow_logs(facts["Id"], **outputs, since=since, until=until, tail=tail)
    )
    answer = web.StreamResponse(headers={"Content-Type": _RAW if facts["Config"]["Tty"] else _FRAMED})
    await answer.prepare(call.request)
    prefix = _details(facts["Config"].get("Labels") or {}) if call.flag("details") else b""
    await _send(call, log, answer, prefix=prefix, framed=not facts["Config"]["Tty"])
    await answer.write_eof()
    return answer


def _tail(text: str) -> int | None:
    """docker takes what is no number for all."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _details(labels: dict[str, str]) -> bytes:
    del labels  # docker tells only those that the log driver was told to: none by default
    return b" "


async def _send(call: Call, log: Follower, answer: web.StreamResponse, *, prefix: bytes, framed: bool) -> None:
    follow, times = call.flag("follow"), call.flag("timestamps")
    while (lines := await call.parts.look(log.more)) is not None:
        out = bytearray()
        for line in lines:
            out += _piece(line, prefix, times=times, framed=framed)
            if len(out) > _AT_ONCE:
                await answer.write(bytes(out))
                out.clear()
        if out:
            await answer.write(bytes(out))
        if not follow:
            return
        if not lines:
            await asyncio.sleep(_LOOK)


def _piece(line: LogLine, prefix: bytes, *, times: bool, framed: bool) -> bytes:
    text = (f"{line.time} ".encode() if times else b"") + prefix + line.data
    return (_HEADER.pack(2 if line.stream == "stderr" else 1, len(text)) if framed else b"") + text


ROUTES: tuple[Route, ...] = (Route("GET", "/containers/{id}/logs", logs),)
