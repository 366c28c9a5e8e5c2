"""Containers: their making, their life, and looking at them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from aiohttp import web

from wherry.daemon.streaming.frames import Frames
from wherry.daemon.warn import hearing
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.model import Json, LogConfig, RunOptions

from . import links, requests
from .call import Call, Route
from .gate import answer, written

__all__ = ["ROUTES"]


def _done(status: int = 204) -> web.Response:
    return web.Response(status=status)


# ---- looking ----


async def listed(call: Call) -> web.StreamResponse:
    """All that run, or `all`; `limit`: the newest, in any state."""
    last, filters = max(call.number("limit") or 0, 0), call.filters()
    if not any(filters.values()) and not call.flag("size"):
        return written(await call.parts.roster.told(all=call.flag("all"), last=last))
    found = await call.parts.look(
        call.engine.containers, all=call.flag("all"), filters=filters, size=call.flag("size"), last=last
    )
    return answer(found)


async def inspected(call: Call) -> web.StreamResponse:
    """docker's object of one."""
    found: Json = await call.parts.look(call.engine.inspect, call.ref(), "container", size=call.flag("size"))
    return answer({**found, "ExecIDs": call.parts.execs.of(found["Id"]) or None})


async def _state(call: Call) -> Json:
    found: Json = await call.parts.look(call.engine.inspect, call.ref(), "container")
    state: Json = found["State"]
    return state


# ---- life ----


async def created(call: Call) -> web.StreamResponse:
    """Make one; its image must be there."""
    body = await call.json()
    options = requests.create(body, call.text("name"), call.text("platform"))
    if not options.log.driver:
        options = options._replace(log=_log(call.parts.known.docker_log_driver, options.log.options))
    cid, warnings = await call.parts.change(_create, call.engine, options, links.asked(body))
    return answer({"Id": cid, "Warnings": warnings}, 201)


def _log(driver: str, asked: Mapping[str, str]) -> LogConfig:
    """Of whoever names no driver; nobody's logs fill the disk."""
    bounds = {"max-size": "10m", "max-file": "3"} if driver == "json-file" else {}
    return LogConfig(driver, {**bounds, **asked})


def _create(engine: Engine, options: RunOptions, linked: list[str]) -> tuple[str, list[str]]:
    if linked:
        options = options._replace(add_host=(*options.add_host, *links.hosts(engine, linked, options)))
    with hearing() as warnings:
        try:
            return engine.create(options), warnings
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND or error.message.startswith("no such image"):
                raise
            # docker's clients take a 404 for an image that is missing, and pull it
            raise WherryError(Kind.INVALID, error.message, hint=error.hint) from error


async def started(call: Call) -> web.StreamResponse:
    """Start; 304 for one that runs."""
    cid = await call.parts.look(call.engine.container_id, call.ref())
    try:
        return _done(204 if await call.parts.lives.start(cid) else 304)
    except WherryError:
        await call.parts.change(_unstarted, call.engine, cid)
        raise


def _unstarted(engine: Engine, cid: str) -> None:
    """What could not be started goes if it was to go at its end: a client waits for that."""
    with contextlib.suppress(WherryError):
        if engine.inspect(cid, "container")["HostConfig"]["AutoRemove"]:
            engine.remove(cid, volumes=True)


def _grace(call: Call) -> int | None:
    return call.number("t")


async def stopped(call: Call) -> web.StreamResponse:
    """Stop; 304 for one that does not run."""
    state = await _state(call)
    if not state["Running"] and not state["Restarting"]:
        return _done(304)
    await call.parts.wait(call.engine.stop, call.ref(), _grace(call), call.text("signal"))
    return _done()


async def restarted(call: Call) -> web.StreamResponse:
    """Stop if it runs, and start."""
    grace, signal = _grace(call), call.text("signal")
    cid = await call.parts.look(call.engine.container_id, call.ref())
    await call.parts.lives.start(cid, lambda: call.parts.wait(call.engine.stop, cid, grace, signal))
    await call.parts.change(call.engine.tell_restarted, cid)
    return _done()


async def killed(call: Call) -> web.StreamResponse:
    """Send a signal."""
    await call.parts.change(call.engine.kill, call.ref(), call.text("signal") or "KILL")
    return _done()


async def paused(call: Call) -> web.StreamResponse:
    """Freeze."""
    await call.parts.change(call.engine.pause, call.ref())
    return _done()


async def unpaused(call: Call) -> web.StreamResponse:
    """Thaw."""
    await call.parts.change(call.engine.unpause, call.ref())
    return _done()


async def renamed(call: Call) -> web.StreamResponse:
    """Another name."""
    if not call.text("name"):
        raise WherryError(Kind.INVALID, "Neither old nor new names may be empty")
    await call.parts.change(call.engine.rename, call.ref(), call.text("name").removeprefix("/"))
    return _done()


async def updated(call: Call) -> web.StreamResponse:
    """Other limits, another restart policy."""
    wanted = requests.update(await call.json())
    warnings = await call.parts.change(call.engine.update, call.ref(), wanted.limits, wanted.restart)
    return answer({"Warnings": warnings})


async def removed(call: Call) -> web.StreamResponse:
    """Remove; `force` kills it before, `v` takes its anonymous volumes along."""
    if call.flag("link"):
        raise WherryError(Kind.UNSUPPORTED, "links are not supported by wherry", hint="leave link out")
    await call.parts.wait(call.engine.remove, call.ref(), force=call.flag("force"), volumes=call.flag("v"))
    return _done()


async def resized(call: Call) -> web.StreamResponse:
    """The size of its terminal."""
    rows, cols = call.number("h") or 0, call.number("w") or 0
    if not (0 <= rows <= 0xFFFF and 0 <= cols <= 0xFFFF):
        raise WherryError(Kind.INVALID, "h and w must be numbers of rows and columns, up to 65535")
    frames = Frames(await call.parts.change(call.engine.attach, call.ref(), stdin=False))
    try:
        await frames.resize(rows, cols)
    finally:
        frames.close()
    return _done(200)


_ONE = "/containers/{id}"
ROUTES = (
    Route("GET", "/containers/json", listed),
    Route("POST", "/containers/create", created),
    Route("GET", f"{_ONE}/json", inspected),
    Route("POST", f"{_ONE}/start", started),
    Route("POST", f"{_ONE}/stop", stopped),
    Route("POST", f"{_ONE}/restart", restarted),
    Route("POST", f"{_ONE}/kill", killed),
    Route("POST", f"{_ONE}/pause", paused),
    Route("POST", f"{_ONE}/unpause", unpaused),
    Route("POST", f"{_ONE}/rename", renamed),
    Route("POST", f"{_ONE}/update", updated),
    Route("POST", f"{_ONE}/resize", resized),
    Route("DELETE", _ONE, removed),
)
