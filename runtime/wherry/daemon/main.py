"""`wherryd`: reads its arguments, opens its sockets, serves until it is told to stop.

Decides the order of a start and of an end. Whoever kills it loses nothing: it holds no truth of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

import wherry
from wherry.engine import config
from wherry.errors import Kind, WherryError
from wherry.model import Place

from . import check, log, sockets
from .notify import Notifier

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

    from .cri.server import Server
    from .docker.server import Server as Docker
    from .nri.engine import PluggedEngine
    from .spans import Spans

__all__ = ["main", "parser"]

Listen = Callable[[config.Settings], None]
_log = logging.getLogger("wherryd")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="wherryd",
        description="Serves the Kubernetes Container Runtime Interface on STATE/cri.sock and the Docker Engine API on "
        "STATE/docker.sock.",
    )
    top.add_argument("--root", metavar="DIR", default="", help="where images and containers are kept")
    top.add_argument("--state", metavar="DIR", default="", help="where run state and sockets are")
    top.add_argument("--config", metavar="FILE", default="", help="wherry.toml")
    top.add_argument("--log-level", choices=tuple(log.LEVELS), help="default: log_level of the settings, info")
    top.add_argument("--log-format", choices=log.FORMATS, help="default: log_format of the settings, auto")
    top.add_argument("--check-config", action="store_true", help="look at the settings, say what is wrong, and leave")
    top.add_argument("--version", action="version", version=f"wherryd {wherry.__version__}")
    return top


def main(argv: Sequence[str] | None = None, env: MutableMapping[str, str] = os.environ) -> int:
    """The exit code: 0, 1 for what went wrong (a sentence on stderr), 2 for a wrong command line."""
    given = parser().parse_args(argv)
    try:
        place = config.place(given.root, given.state, given.config, env)
        known = config.settings(place.config, env)
        check.settings(place.config, known)
        if given.check_config:
            print(f"{place.config}: good")
            return 0

        def listen(now: config.Settings) -> None:
            log.start(given.log_level or now.log_level, given.log_format or now.log_format, env)

        listen(known)
        return _run(place, known, env, listen)
    except WherryError as error:
        return _fail(error)
    except OSError as error:
        return _fail(WherryError(Kind.INTERNAL, f"cannot start: {error.filename or ''} {error.strerror or error}"))


def _fail(error: WherryError) -> int:
    print(f"wherryd: {error}" + (f"; {error.hint}" if error.hint else ""), file=sys.stderr)
    return 1


def _run(place: Place, known: config.Settings, env: MutableMapping[str, str], listen: Listen) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each container, and for each stream
    given = sockets.activated(env)
    os.makedirs(place.state, 0o711, exist_ok=True)
    with sockets.held(place.state):
        asyncio.run(_serve(place, known, given, Notifier(env), listen))
    _leave()
    return 0


def _leave() -> None:
    """Go now, where threads still wait, for a grace period or a plugin: they may be killed at any time, and the
    interpreter would wait for them."""
    if any(not one.daemon for one in threading.enumerate() if one is not threading.current_thread()):
        logging.shutdown()
        os._exit(0)


async def _serve(
    place: Place, known: config.Settings, given: Mapping[str, socket.socket], notifier: Notifier, listen: Listen
) -> None:
    from .docker.server import Server as Docker
    from .measures import Measures
    from .quiet import Quiet

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    engine, plugged = _engine(place, known)
    spans = _spans(known.otlp_endpoint)
    measures = Measures(spans, Quiet(lambda: loop.run_in_executor(None, engine.trim)).stirred)
    docker, cri = Docker(engine, known, measures), None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(engine, docker, notifier, listen))
    try:
        engine.prepare()
        await docker.start(given.get("docker"))
        # the imports of the other face take as long as everything else: docker's clients are answered meanwhile
        cri = (await asyncio.to_thread(_cri))(engine, known, measures, plugged)
        await cri.start(given.get("cri"))
        watch = loop.create_task(notifier.watch())
        notifier.tell("READY=1", f"STATUS=serving {cri.path} and {docker.path}")
        _log.info("serving %s and %s", cri.path, docker.path)
        await stop.wait()
        notifier.tell("STOPPING=1")
        _log.info("stopping: calls that run have %d seconds", cri.GRACE)
        watch.cancel()
    finally:
        await docker.stop()
        if cri is not None:
            await cri.stop()
        engine.close()
        if spans is not None:
            await asyncio.to_thread(spans.stop)


def _engine(place: Place, known: config.Settings) -> tuple[Engine, PluggedEngine | None]:
    from .warn import warn

    if known.nri_socket:
        from .nri.engine import PluggedEngine

        plugged = PluggedEngine(place, warn, known.nri_socket, known.nri_timeout)
        return plugged, plugged
    from wherry.engine.engine import Engine

    return Engine(place, warn, answer_first=True), None


def _cri() -> type[Server]:
    from .cri.server import Server

    return Server


def _spans(endpoint: str) -> Spans | None:
    if not endpoint:
        return None
    from .spans import Spans

    return Spans(endpoint)


def _reload(engine: Engine, docker: Docker, notifier: Notifier, listen: Listen) -> None:
    """Read the settings again; they stay as they were where they are wrong."""
    notifier.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        known = config.settings(engine.place.config)
        check.settings(engine.place.config, known)
        docker.reload(known)
        engine.reload()
        listen(known)
        _log.info("settings are read again")
    except WherryError as error:
        _log.error("settings stay as they were: %s", error)
    notifier.tell("READY=1")
