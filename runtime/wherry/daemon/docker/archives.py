"""Files of a container as tars, in and out, and what it changed. Decides nothing: paths are the engine's to resolve."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from aiohttp import web

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import pipes
from .call import Call, Route
from .gate import answer

__all__ = ["ROUTES"]

_TAR = {"Content-Type": "application/x-tar"}


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise WherryError(Kind.INVALID, "bad parameter: 'path' cannot be empty")
    return path


@contextlib.contextmanager
def _there(call: Call) -> Iterator[None]:
    """docker's words where there is no such path; docker's CLI looks for them."""
    try:
        yield
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        message = f"Could not find the file {_path(call)[:1024]} in container {call.ref()}"
        raise WherryError(Kind.NOT_FOUND, message) from error


def _stat(what: Json) -> dict[str, str]:
    return {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(what).encode()).decode()}


async def head(call: Call) -> web.StreamResponse:
    """`HEAD /containers/{id}/archive`: what a path is, in a header."""
    ref = await call.parts.look(call.engine.container_id, call.ref())
    with _there(call):
        what = await call.parts.look(call.engine.archive_stat, ref, _path(call))
    return web.Response(headers=_stat(what))


async def get(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/archive`: a tar of it."""
    ref = await call.parts.look(call.engine.container_id, call.ref())
    with _there(call):
        what, chunks = await call.parts.look(call.engine.archive_get, ref, _path(call))

    def write(fd: int) -> None:
        with closing(chunks):  # it holds files of the container, and a client may leave before its end
            for chunk in chunks:
                _all(fd, chunk)

    return await pipes.sent(call, write, {**_TAR, **_stat(what)})


async def put(call: Call) -> web.StreamResponse:
    """`PUT /containers/{id}/archive`: a tar, packed or not, unpacked in a directory."""
    path, owner = _path(call), call.flag("copyUIDGID")
    ref = await call.parts.look(call.engine.container_id, call.ref())
    with _there(call):
        await call.parts.look(call.engine.archive_stat, ref, path)  # before the body is read
    await pipes.received(call, lambda file: call.engine.archive_put(ref, path, file, archive_owner=owner))
    return web.Response()


async def export(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/export`: the whole root."""
    ref = await call.parts.look(call.engine.container_id, call.ref())
    return await pipes.sent(call, lambda fd: call.engine.export(ref, partial(_all, fd)), _TAR)


async def changes(call: Call) -> web.StreamResponse:
    """`GET /containers/{id}/changes`."""
    return answer(await call.parts.wait(call.engine.diff, call.ref()) or None)


def _all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


ROUTES: tuple[Route, ...] = (
    Route("HEAD", "/containers/{id}/archive", head),
    Route("GET", "/containers/{id}/archive", get),
    Route("PUT", "/containers/{id}/archive", put),
    Route("GET", "/containers/{id}/export", export),
    Route("GET", "/containers/{id}/changes", changes),
)
