"""Waiting for the end of a container.

Decides when each condition holds. Nobody's thread waits: the engine's events tell, those of our own starts at once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiohttp import web

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .call import Call, Route, Version
from .happenings import Listener

__all__ = ["ROUTES"]

_CONDITIONS = ("not-running", "next-exit", "removed")
_CONDITIONS_SINCE = Version(1, 30)


async def wait(call: Call) -> web.StreamResponse:
    """`POST /containers/{id}/wait`: {"StatusCode", "Error"}. The headers go at once: clients start it only then."""
    condition = call.text("condition") if call.version >= _CONDITIONS_SINCE else ""
    if condition not in ("", *_CONDITIONS):
        raise WherryError(Kind.INVALID, f'invalid condition: "{condition[:80]}"', hint=", ".join(_CONDITIONS))
    cid = await call.parts.look(call.engine.container_id, call.ref())
    with call.parts.happenings.listener() as heard:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(call.request)
        ended = await _ended(call, _code(call, cid, condition or "not-running", heard))
        await answer.write(json.dumps(_told(ended)).encode() + b"\n")
    await answer.write_eof()
    return answer


async def _ended(call: Call, waiting: Coroutine[Any, Any, int]) -> int | WherryError:
    try:
        return await call.while_there(waiting)
    except WherryError as error:
        return error


def _told(ended: int | WherryError) -> Json:
    if isinstance(ended, WherryError):
        return {"StatusCode": 255, "Error": {"Message": ended.message}}
    return {"StatusCode": ended}


async def _code(call: Call, cid: str, condition: str, heard: Listener) -> int:
    state = await _state(call, cid)
    code = int(state["ExitCode"]) if state else 0
    if condition == "not-running" and state is not None and not _runs(state):
        return code
    if condition == "removed" and state is None:
        return code
    async for kind, told in _ends(call, cid, heard):
        code = told if told is not None else code
        if kind == "destroy" or (kind == "die" and condition != "removed"):
            return code
    return code


def _runs(state: Json) -> bool:
    return bool(state["Running"] or state.get("Restarting"))


async def _state(call: Call, cid: str) -> Json | None:
    """None: it is gone."""
    try:
        found: Json = (await call.parts.look(call.engine.inspect, cid, "container"))["State"]
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        return None
    return found


async def _ends(call: Call, cid: str, heard: Listener) -> AsyncIterator[tuple[str, int | None]]:
    """("die", code) and ("destroy", None), as they come; after a gap what is true now."""
    while True:
        event = await heard.get()
        if event is None:
            state = await _state(call, cid)
            if state is None:
                yield "destroy", None
            elif not _runs(state):
                yield "die", int(state["ExitCode"])
        elif event["Actor"]["ID"] == cid and event["Type"] == "container" and event["Action"] in ("die", "destroy"):
            code = event["Actor"]["Attributes"].get("exitCode", "")
            yield event["Action"], int(code) if code.isdigit() else None


ROUTES: tuple[Route, ...] = (Route("POST", "/containers/{id}/wait", wait),)
