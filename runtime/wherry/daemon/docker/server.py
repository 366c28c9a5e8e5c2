"""The Docker Engine API's server: its socket, its routes, its end. Decides which module serves which route."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from wherry.daemon import check, sockets
from wherry.daemon.measures import Measures
from wherry.engine.config import Settings
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError

from . import (
    archives,
    attach,
    build,
    containers,
    events,
    execs,
    gate,
    images,
    logs,
    metrics,
    networks,
    prunes,
    stats,
    system,
    volumes,
    waits,
)
from .call import Route
from .door import Door
from .parts import Parts
from .tls import Files, Listener

__all__ = ["ROUTES", "Server"]

_log = logging.getLogger("wherryd")
ROUTES: tuple[Route, ...] = (
    *archives.ROUTES, *attach.ROUTES, *build.ROUTES, *containers.ROUTES, *events.ROUTES, *execs.ROUTES, *images.ROUTES,
    *logs.ROUTES, *metrics.ROUTES, *networks.ROUTES, *prunes.ROUTES, *stats.ROUTES, *system.ROUTES, *volumes.ROUTES,
    *waits.ROUTES,
)  # fmt: skip
_GRACE = 10.0  # seconds that running calls have at the end


class Server:
    """One Docker API. `start` once, `stop` once."""

    def __init__(self, engine: Engine, known: Settings, measures: Measures) -> None:
        self.path = f"{engine.place.state}/docker.sock"
        self._group, self._address = known.socket_group, known.docker_tcp
        self._tcp = Listener(Files.of(known), self._inner) if known.docker_tcp else None
        self._parts = Parts(engine, known, measures)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._bound: list[str] = []

    async def start(self, given: socket.socket | None) -> None:
        """Listen: on the socket that systemd gave, else on our own."""
        self._door = Door(self._connection)
        app = self._application()
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=75, shutdown_timeout=_GRACE)
        await self._runner.setup()
        self._listening = await asyncio.get_running_loop().create_unix_server(
            self._door.opened, sock=given or self._own(), backlog=512
        )
        if self._tcp is not None:
            host, port = await self._tcp.start(*check.address(self._address))
            _log.info("serving the Docker API on %s port %d", host, port)

    async def _inner(self, end: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._door.opened, end)

    def _connection(self) -> RequestHandler:
        assert self._runner is not None
        assert self._runner.server is not None
        return self._runner.server()

    def _own(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sockets.bound(self.path, made.bind, self._group)
        self._bound.append(self.path)
        return made

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=0, middlewares=[self._door.counted])
        app.on_response_prepare.append(_signed)
        for route in ROUTES:
            for prefix in ("", r"/v{version:\d{1,4}\.\d{1,4}}"):
                app.router.add_route(route.method, prefix + route.path, gate.wrap(self._parts, route))
        app.router.add_route("*", "/{rest:.*}", _nothing)
        return app

    def reload(self, known: Settings) -> None:
        """Other settings hold from now on; another docker_tcp needs a restart. INVALID for certificates that do not
        hold."""
        if self._tcp is not None and known.docker_tcp:
            self._tcp.reload(Files.of(known))
        if known.docker_tcp != self._address:
            _log.warning("docker_tcp stays %s until wherryd is started again", self._address or "closed")
        self._parts.known = known

    async def stop(self) -> None:
        """Take no call any more, let those that run end, let go."""
        for path in self._bound:
            with suppress(FileNotFoundError):
                os.unlink(path)
        if self._listening is not None:
            self._listening.close()
        if self._tcp is not None:
            self._tcp.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._tcp is not None:
            await self._tcp.stop()
        await self._parts.stop()


async def _signed(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(gate.HEADERS)


async def _nothing(_request: web.Request) -> web.StreamResponse:
    return gate.failed(WherryError(Kind.NOT_FOUND, "page not found"))
