"""Volumes. Decides how docker's bodies become the engine's words, and nothing else."""

from __future__ import annotations

from aiohttp import web

from .call import Call, Route, Version
from .fields import Fields
from .gate import answer

__all__ = ["ROUTES"]

_ALL_SINCE = Version(1, 42)  # before that a prune took those with a name too


async def listed(call: Call) -> web.StreamResponse:
    """`GET /volumes`."""
    return answer({"Volumes": await call.parts.look(call.engine.volume_list, call.filters()), "Warnings": None})


async def create(call: Call) -> web.StreamResponse:
    """`POST /volumes/create`."""
    asked = Fields(await call.json())
    made = await call.parts.change(
        call.engine.volume_create, asked.text("Name"), driver=asked.text("Driver") or "local",
        labels=asked.pairs("Labels"), options=asked.pairs("DriverOpts"),
    )  # fmt: skip
    return answer(made, 201)


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /volumes/{name}`."""
    return answer(await call.parts.look(call.engine.volume_inspect, call.ref("name")))


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /volumes/{name}`."""
    await call.parts.change(call.engine.volume_remove, call.ref("name"), force=call.flag("force"))
    return web.Response(status=204)


async def prune(call: Call) -> web.StreamResponse:
    """`POST /volumes/prune`."""
    filters = call.filters()
    every = filters.pop("all", ["0"])[0].lower() in ("1", "true") or call.version < _ALL_SINCE
    return answer(await call.parts.wait(call.engine.volume_prune, all=every, filters=filters))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/volumes", listed),
    Route("POST", "/volumes/create", create),
    Route("POST", "/volumes/prune", prune, Version(1, 25)),
    Route("GET", "/volumes/{name}", inspect),
    Route("DELETE", "/volumes/{name}", remove),
)
