"""`_ping`, version, info: what is asked of the whole."""

from __future__ import annotations

from aiohttp import web

from wherry.model import Json

from .call import Call, Route
from .gate import NEWEST, OLDEST, answer

__all__ = ["ROUTES"]


async def ping(call: Call) -> web.StreamResponse:
    """Whether it answers; the headers tell the versions."""
    headers = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}
    return web.Response(text="" if call.request.method == "HEAD" else "OK", headers=headers)


async def version(call: Call) -> web.StreamResponse:
    """What serves, and which API."""
    found: Json = await call.parts.look(call.engine.version)
    return answer({**found, "ApiVersion": str(NEWEST), "MinAPIVersion": str(OLDEST)})


ROUTES = (Route("GET", "/_ping", ping), Route("HEAD", "/_ping", ping), Route("GET", "/version", version))
