"""Removing containers that nobody uses. What prunes images, volumes and networks is with those."""

from __future__ import annotations

from aiohttp import web

from .call import Call, Route
from .gate import answer

__all__ = ["ROUTES"]


async def containers(call: Call) -> web.StreamResponse:
    """Those that have ended. Filters: until, label."""
    return answer(await call.parts.wait(call.engine.container_prune, call.filters()))


ROUTES: tuple[Route, ...] = (Route("POST", "/containers/prune", containers),)
