"""The CRI's server: its socket, its services, its end. Decides which module serves which call."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio

from wherry.daemon import sockets
from wherry.daemon.measures import Measures
from wherry.engine.config import Settings
from wherry.engine.engine import Engine

from . import gate, services
from .about import About
from .catalog import Catalog
from .containers import Containers
from .happenings import Happenings
from .images import Images
from .metrics import Metrics
from .parts import Parts
from .pods import Pods
from .processes import Processes
from .streams import Streams
from .usage import Usage

if TYPE_CHECKING:
    from wherry.daemon.nri.engine import PluggedEngine

__all__ = ["Server"]

_log = logging.getLogger("wherryd")
_MESSAGE_MAX = 16 << 20  # bytes of a request, as containerd's
_CALLS_MAX = 2048  # at once, streams of events among them; more are told to come again
_SWEEP_SECONDS = 60
_FIRST_SWEEPS = (1, 3, 10)  # seconds between them: a sweep does nothing while something is being made
_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_MAX),
    ("grpc.max_send_message_length", -1),  # a node with many containers has long lists
    ("grpc.so_reuseport", 0),
]


class Server:
    """One CRI. `start` once, `stop` once. `plugged`: the engine, where plugins have their say."""

    GRACE = 10  # seconds that running calls have at the end

    def __init__(
        self, engine: Engine, known: Settings, measures: Measures, plugged: PluggedEngine | None = None
    ) -> None:
        self.path = f"{engine.place.state}/cri.sock"
        self._group = known.socket_group
        self._plugged = plugged
        self._parts = Parts(engine, Catalog(engine), Streams(engine, known.stream_address), measures)
        self._happenings = Happenings(self._parts)
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_CALLS_MAX)
        wrap = self._wrapped()
        for name in services.SERVICES:
            self._server.add_generic_rpc_handlers((services.handlers(name, wrap),))
        self._relay: sockets.Relay | None = None
        self._bound: list[str] = []
        self._keeping: asyncio.Future[None] | None = None

    def _wrapped(self) -> Any:
        kinds = (About, Pods, Containers, Processes, Usage, Metrics, Images)
        servicers = [*(kind(self._parts) for kind in kinds), self._happenings]

        def wrap(method: services.Method) -> Any:
            found = (getattr(servicer, method.name, None) for servicer in servicers)
            return gate.wrap(method, next(filter(None, found), None), self._parts.measures)

        return wrap

    async def start(self, given: socket.socket | None) -> None:
        """Listen: on the socket that systemd gave, else on our own."""
        if self._plugged is not None:
            await self._plugged.serve()
        path = self.path if given is None else f"{os.path.dirname(self.path)}/cri-inner.sock"
        group = self._group if given is None else ""
        sockets.bound(path, lambda found: self._server.add_insecure_port(f"unix:{found}"), group)
        self._bound.append(path)
        await self._server.start()
        if given is not None:
            self._relay = sockets.Relay(given, path)
            self._relay.start()
        self._parts.catalog.start()
        self._parts.work.later(self._parts.engine.preload)
        self._keeping = asyncio.ensure_future(self._keep())

    async def _keep(self) -> None:
        """Take what killed processes left, we among them: nobody else asks for a pod that never got an id."""
        for pause in itertools.chain(_FIRST_SWEEPS, itertools.repeat(_SWEEP_SECONDS)):
            # not where removals are finished: a sweep may wait for a lock that one of those holds
            await self._parts.work.wait(self._swept)
            await asyncio.sleep(pause)

    def _swept(self) -> None:
        try:
            found = {kind: names for kind, names in self._parts.engine.sweep().items() if names}
        except Exception:  # the next one may go well
            _log.exception("what was left could not be swept")
        else:
            if found:
                _log.info("swept what was left: %s", found)

    async def stop(self) -> None:
        """Take no call any more, let those that run end, let go."""
        self._happenings.stop()
        if self._keeping is not None:
            self._keeping.cancel()
        await self._server.stop(self.GRACE)
        if self._plugged is not None:
            await self._plugged.leave()
        for path in self._bound:
            with suppress(FileNotFoundError):
                os.unlink(path)
        if self._relay is not None:
            self._relay.stop()
        await self._parts.streams.stop()
        self._parts.catalog.stop()
        self._parts.work.close()
