"""What containers use, and their processes.

Decides the pace of a stream, and that each sample has the one before beside it, for clients compute shares of the CPU
from the two. A client that does not read holds up its own stream only.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping

from aiohttp import web

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .call import Call, Route
from .gate import answer

__all__ = ["ROUTES"]

_PACE = 1.0  # seconds between two samples, as docker's
_NEVER = "0001-01-01T00:00:00Z"
_EMPTY: Mapping[str, object] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


async def stats(call: Call) -> web.StreamResponse:
    """One sample, or one each second; `one-shot`: at once, without one before."""
    cid = await call.parts.look(call.engine.container_id, call.ref())
    first = _first(await call.parts.look(call.engine.stats, cid))
    if call.flag("stream", True):
        return await _stream(call, cid, first)
    if call.flag("one-shot") or not first["cpu_stats"].get("online_cpus"):
        return answer(first)
    await asyncio.sleep(_PACE)
    return answer(_after(await call.parts.look(call.engine.stats, cid), first))


async def _stream(call: Call, cid: str, sample: Json) -> web.StreamResponse:
    made = web.StreamResponse(headers={"Content-Type": "application/json"})
    await made.prepare(call.request)
    while True:
        await made.write(json.dumps(sample).encode() + b"\n")
        await asyncio.sleep(_PACE)
        try:
            sample = _after(await call.parts.look(call.engine.stats, cid), sample)
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            break  # removed: the stream ends
    await made.write_eof()
    return made


def _first(sample: Json) -> Json:
    return _after(sample, {"read": _NEVER, "cpu_stats": {}})


def _after(sample: Json, before: Json) -> Json:
    """docker's whole shape of a sample."""
    return {
        **sample,
        "preread": before["read"],
        "cpu_stats": {**_EMPTY, **sample["cpu_stats"]},
        "precpu_stats": {**_EMPTY, **before["cpu_stats"]},
        "num_procs": 0,
        "storage_stats": {},
    }


async def top(call: Call) -> web.StreamResponse:
    """Its processes, as the host's ps shows them."""
    try:
        words = shlex.split(call.text("ps_args"))
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"ps_args cannot be read: {error}") from error
    return answer(await call.parts.wait(call.engine.top, call.ref(), words))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/containers/{id}/stats", stats), Route("GET", "/containers/{id}/top", top),
)  # fmt: skip
