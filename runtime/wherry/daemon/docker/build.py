"""Building images: the classic builder's request and its lines. The context is the request's tar.

Decides what of the request a build heeds and that what it cannot (a context from the network, BuildKit's sessions) is
refused in words; what a cache would be given for is taken and not used.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import BinaryIO

from aiohttp import web

from wherry.engine.build.values import BuildEvent, BuildOptions, Built, CommandFailed, StepFailed
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import pipes
from .call import Call, Route, Version, parsed
from .fields import Fields
from .gate import answer
from .images import familiar

__all__ = ["ROUTES"]

_SAID: dict[str, Callable[[BuildEvent], str]] = {
    "started": lambda event: f"Step {event.vertex} : {event.text}\n",
    "note": lambda event: f"{event.text}\n",
    "cached": lambda _event: " ---> Using cache\n",
    "output": lambda event: event.data.decode("utf-8", "replace"),
    "failed": lambda event: f"{event.text}\n",
}


#: of the classic builder, for its steps; BuildKit's takes and forgets them
_LIMITS = (
    "memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "cpusetcpus", "cpusetmems", "cgroupparent", "squash",
)  # fmt: skip


def _refuse_limits(call: Call) -> None:
    for key in _LIMITS:
        if call.text(key) not in ("", "0", "false"):
            message = f"{key} is not supported by wherry for the steps of a build"
            raise WherryError(Kind.UNSUPPORTED, message, hint="leave it out")


def _texts(call: Call, key: str) -> dict[str, str]:
    """An object of texts in the query; null is an ARG that has no value here."""
    found = Fields({key: parsed(call.text(key) or "{}", key)})
    return {name: value for name, value in found.pairs(key).items() if found.part(key).has(name)}


def _size(call: Call) -> int | None:
    return call.number("shmsize") or None


def _ulimits(call: Call) -> tuple[str, ...]:
    try:
        listed = json.loads(call.text("ulimits") or "[]")
    except (ValueError, RecursionError):
        raise WherryError(Kind.INVALID, "ulimits cannot be parsed as JSON") from None
    return tuple(f"{one.text('Name')}={one.number('Soft')}:{one.number('Hard')}"
                 for one in Fields({"ulimits": listed}).parts("ulimits"))  # fmt: skip


def _options(call: Call, context: BinaryIO) -> BuildOptions:
    hosts = call.texts("extrahosts")
    return BuildOptions(
        "-", inside=call.text("dockerfile"), stdin=context, tags=tuple(name for name in call.texts("t") if name),
        args=_texts(call, "buildargs"), target=call.text("target"), no_cache=call.flag("nocache"),
        pull=call.flag("pull"), platform=call.text("platform"), labels=_texts(call, "labels"),
        network=call.text("networkmode") or "default", add_host=tuple(one for text in hosts for one in text.split(",")),
        shm_size=_size(call), ulimits=_ulimits(call),
    )  # fmt: skip


async def build(call: Call) -> web.StreamResponse:
    """`POST /build`."""
    if remote := call.text("remote"):
        raise WherryError(Kind.UNSUPPORTED, f"a build context from the network is not supported: {remote[:200]}",
                          hint="send it as a tar")  # fmt: skip
    if call.text("version") == "2" or call.text("session"):
        raise WherryError(Kind.UNSUPPORTED, "BuildKit's sessions are not served", hint="DOCKER_BUILDKIT=0 docker build")
    if (network := call.text("networkmode")) not in ("", "default", "none", "host", "bridge"):
        raise WherryError(Kind.UNSUPPORTED, f"networkmode {network[:80]}: a build has default, none or host")
    _refuse_limits(call)
    news, quiet = pipes.News(call), call.flag("q")

    def tell(event: BuildEvent) -> None:
        if not quiet and (words := _SAID.get(event.kind)):
            news.tell({"stream": words(event)})

    def work(context: BinaryIO) -> Built:
        return call.engine.build(_options(call, context), tell)

    given, built = await news.during(_failing(pipes.received(call, work)))
    if built is not None:
        for line in _end(built, quiet=quiet):
            news.tell(line)
        given = await news.write()
    await given.write_eof()
    return given


async def _failing(work: Awaitable[Built]) -> Built:
    """A step that failed is told with its code, as the classic builder does."""
    try:
        return await work
    except StepFailed as error:
        if isinstance(why := error.__cause__, CommandFailed):
            message = f"The command '{why.command}' returned a non-zero code: {why.status}"
            raise WherryError(Kind.INTERNAL, message, code=why.status) from error
        raise WherryError(Kind.INTERNAL, error.message, hint=error.hint) from error


def _end(built: Built, *, quiet: bool) -> list[Json]:
    if quiet:
        return [{"stream": f"{built.id}\n"}]
    lines: list[Json] = [{"aux": {"ID": built.id}}, {"stream": f"Successfully built {built.id[7:19]}\n"}]
    return lines + [{"stream": f"Successfully tagged {familiar(name)}\n"} for name in built.names]


async def prune(call: Call) -> web.StreamResponse:
    """`POST /build/prune`."""
    return answer(await call.parts.wait(call.engine.builder_prune, all=call.flag("all"), filters=call.filters()))


ROUTES: tuple[Route, ...] = (
    Route("POST", "/build", build),
    Route("POST", "/build/prune", prune, Version(1, 31)),
)
