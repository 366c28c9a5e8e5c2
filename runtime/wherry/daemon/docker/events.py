"""What happens, as a stream. Decides which part is past and which is still to come; one reader follows for all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from functools import partial

from aiohttp import web

from wherry.model import Json

from .call import Call, Route
from .happenings import Listener

__all__ = ["ROUTES"]


async def events(call: Call) -> web.StreamResponse:
    """`GET /events`: one JSON object a line, until `until` or the client's end."""
    filters, since, until = call.filters(), call.seconds("since"), call.seconds("until")
    fits = await call.parts.look(call.engine.event_test, filters)
    with call.parts.happenings.listener() as heard:
        past = await call.parts.look(partial(_past, call, since, until, filters)) if since or until else []
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(call.request)
        told = 0
        for event in past:
            await _tell(answer, event)
            told = event["timeNano"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.time()) if until else None):
                await _follow(answer, heard, lambda event: event["timeNano"] > told and fits(event))
    await answer.write_eof()
    return answer


def _past(call: Call, since: float, until: float, filters: dict[str, list[str]]) -> list[Json]:
    return list(call.engine.events(since=since, until=until, filters=filters, follow=False))


async def _follow(answer: web.StreamResponse, heard: Listener, fits: Callable[[Json], bool]) -> None:
    while (event := await heard.get()) is not None:  # None: some were missed, and who listens must look again
        if fits(event):
            await _tell(answer, event)


async def _tell(answer: web.StreamResponse, event: Json) -> None:
    await answer.write(json.dumps(event).encode() + b"\n")


ROUTES: tuple[Route, ...] = (Route("GET", "/events", events),)
