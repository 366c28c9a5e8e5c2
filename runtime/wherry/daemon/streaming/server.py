"""The streaming server: URLs with one-time tokens for exec, attach and port-forward, and who may use them how.

Decides routes, who is served by which protocol, and the deadline of a connection that asks for nothing. What then goes
over the connection is the other modules'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from wherry.engine.engine import Engine
from wherry.engine.values import ExecOptions

from . import portforward, remote
from .beginnings import Beginnings
from .link import Wanted
from .pipe import TunnelPipe, taken_over
from .portforward import Target
from .remote import Task
from .spdylink import SpdyConnection, SpdyLink
from .tickets import Tickets
from .upgrade import FORWARD, REMOTE, TUNNEL, negotiated, spdy_answer, web_socket
from .wslink import WsConnection, WsLink

__all__ = ["Streaming"]

_FIRST_REQUEST = 30.0  # seconds that a connection may take to ask for something
_SILENT_MOST = 256  # connections that have asked for nothing yet; one more, and the oldest goes
_SETTLERS, _DIALERS = 16, 4  # threads: what settles the end of processes, what makes sockets in pods


class _Ticket(NamedTuple):
    kind: str  # exec, attach, portforward
    serve: Callable[[web.Request], Awaitable[web.StreamResponse]]


class Streaming:
    """Serves at `address` ("127.0.0.1:0": any free port) between `start` and `stop`, on the running loop.

    `exec`, `attach` and `port_forward` check nothing of their objects: what is wrong shows when the client comes.
    """

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine = engine
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._tickets: Tickets[_Ticket] = Tickets()
        self._beginnings = Beginnings()
        self._settling = ThreadPoolExecutor(_SETTLERS, "streaming")
        self._dialing = ThreadPoolExecutor(_DIALERS, "dialing")
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}  # connections that have asked for nothing yet
        self._sessions: set[asyncio.Task[object]] = set()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self.base = ""  # of the URLs, known once started

    # ---- life ----

    async def start(self) -> None:
        """Listen."""
        app = web.Application(middlewares=[self._has_asked])
        app.router.add_get("/healthz", self._health)
        for method in ("GET", "POST"):
            app.router.add_route(method, "/{kind:exec|attach|portforward}/{token}", self._redeem)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=0, lingering_time=0, shutdown_timeout=1)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, self._host or None, self._port, backlog=512)
        host, port = self._server.sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
        self.base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Take no more connections and end those that there are: exec'd processes with them."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        self._beginnings.close()
        self._settling.shutdown(wait=False)
        self._dialing.shutdown(wait=False)

    def _connection(self) -> RequestHandler:
        """A new connection; it goes if it asks for nothing."""
        assert self._runner is not None
        assert self._runner.server is not None
        if len(self._silent) >= _SILENT_MOST:  # anybody on this host can connect: a token comes with the request only
            self._expire(next(iter(self._silent)))
        handler = self._runner.server()
        self._silent[handler] = asyncio.get_running_loop().call_later(_FIRST_REQUEST, self._expire, handler)
        return handler

    def _expire(self, handler: RequestHandler) -> None:
        self._silent.pop(handler).cancel()
        # of many that come at once, some are not made yet, and would stay open: they are when this is called
        asyncio.get_running_loop().call_soon(handler.force_close)

    @web.middleware
    async def _has_asked(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if timer := self._silent.pop(request.protocol, None):
            timer.cancel()
        return await handler(request)

    # ---- URLs ----

    def exec(self, container: str, options: ExecOptions, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> str:
        """The URL where a client runs a command, once and within a minute."""
        wanted = Wanted(stdin, stdout, stderr and not tty, tty)
        options = options._replace(interactive=stdin, tty=tty, detach=False, tied=True)
        return self._url("exec", Task(container, partial(self._engine.exec, container, options), wanted, mortal=True))

    def attach(self, container: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> str:
        """The URL where a client joins a container's streams."""
        wanted = Wanted(stdin, stdout, stderr and not tty, tty)
        begin = partial(self._engine.attach, container, stdin=stdin)
        return self._url("attach", Task(container, begin, wanted, mortal=False))

    def _url(self, kind: str, task: Task) -> str:
        return f"{self.base}/{kind}/{self._tickets.give(_Ticket(kind, partial(self._remote, task)))}"

    def port_forward(self, pod: str, ports: Sequence[int]) -> str:
        """The URL where a client forwards ports of a pod; those named here are for clients that cannot name them."""
        target = Target(pod, partial(self._engine.pod_sockets, pod), self._dialing)
        ticket = _Ticket("portforward", partial(self._forward, target, tuple(ports)))
        return f"{self.base}/portforward/{self._tickets.give(ticket)}"

    # ---- requests ----

    @staticmethod
    async def _health(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _redeem(self, request: web.Request) -> web.StreamResponse:
        ticket = self._tickets.take(request.match_info["token"])
        if ticket is None or ticket.kind != request.match_info["kind"]:
            raise web.HTTPNotFound(text="no such streaming request: its token is good once, for 60 s\n")
        session = asyncio.current_task()
        assert session is not None
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)
        try:
            return await ticket.serve(request)
        finally:
            if self._engine.behind:  # the end of a process leaves its connection to be closed
                with contextlib.suppress(RuntimeError):  # we stop
                    self._settling.submit(self._engine.catch_up)

    async def _remote(self, task: Task, request: web.Request) -> web.StreamResponse:
        if web_socket(request):
            socket = await negotiated(request, REMOTE.web_socket)
            await remote.serve(WsLink(socket, request), task, self._beginnings, self._settling)
            return socket
        answer, version = await spdy_answer(request, REMOTE.spdy)
        link = SpdyLink(taken_over(request), REMOTE.spdy[version])
        await remote.serve(link, task, self._beginnings, self._settling)
        return answer

    async def _forward(self, target: Target, ports: Sequence[int], request: web.Request) -> web.StreamResponse:
        if web_socket(request):
            socket = await negotiated(request, FORWARD.web_socket, 2 * len(ports))
            if socket.ws_protocol == TUNNEL:
                await portforward.serve_streams(SpdyConnection(TunnelPipe(socket, request)), target)
            else:
                await portforward.serve_channels(WsConnection(socket, request, 2 * len(ports)), ports, target)
            return socket
        answer, _ = await spdy_answer(request, FORWARD.spdy)
        await portforward.serve_streams(SpdyConnection(taken_over(request)), target)
        return answer
