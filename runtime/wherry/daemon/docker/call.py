"""One request as its handler sees it: its path, its query in docker's notation, its body within bounds.

Decides what is well formed; what it means is the handler's. Knows no route.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.model import Json

from .parts import Parts

__all__ = ["BODY_MAX", "Call", "Route", "Version"]

_T = TypeVar("_T")
BODY_MAX = 4 << 20  # bytes of a JSON body
_BODY_SECONDS = 60.0  # that it may take to come
_LOOK = 1.0  # seconds between two looks whether a client is there
_NO = ("", "0", "no", "false", "none")  # docker's httputils.BoolValue


class Version(NamedTuple):
    """Of the API: compares as numbers do."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Call:
    """One request. `version`: what the client speaks."""

    def __init__(self, parts: Parts, request: web.Request, version: Version) -> None:
        self.parts, self.request, self.version = parts, request, version

    @property
    def engine(self) -> Engine:
        """The one that serves."""
        return self.parts.engine

    def ref(self, name: str = "id") -> str:
        """A variable of the path, decoded."""
        return self.request.match_info[name]

    def text(self, key: str, default: str = "") -> str:
        """A value of the query."""
        return self.request.query.get(key, default)

    def texts(self, key: str) -> list[str]:
        """All values of a key that may come several times."""
        return self.request.query.getall(key, [])

    def flag(self, key: str, default: bool = False) -> bool:
        """docker's boolean: anything but "", 0, no, false, none."""
        found = self.request.query.get(key)
        return default if found is None else found.strip().lower() not in _NO

    def number(self, key: str, default: int | None = None) -> int | None:
        """A whole number; INVALID for what is none."""
        found = self.request.query.get(key, "")
        if not found:
            return default
        try:
            return int(found) if len(found) <= 20 else int("x")
        except ValueError:
            raise WherryError(Kind.INVALID, f"{key} must be a whole number, not {found[:80]!r}") from None

    def seconds(self, key: str) -> float:
        """A time in unix seconds, with a fraction perhaps; 0 for none. INVALID for what is no time."""
        found = self.request.query.get(key, "")
        try:
            value = float(found or 0)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1 << 40:  # NaN too
            raise WherryError(Kind.INVALID, f"{key} must be a time in seconds since 1970, not {found[:80]!r}")
        return value

    def filters(self) -> dict[str, list[str]]:
        """`filters`: {"name": ["a"]}, or as clients before 1.22 have it {"name": {"a": true}}."""
        found = parsed(self.request.query.get("filters", "") or "{}", "filters")
        return {key: _values(key, value) for key, value in found.items()}

    async def json(self) -> Json:
        """The body, an object; {} where there is none. INVALID for anything else, 413 above BODY_MAX."""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                raw = await self.body(BODY_MAX)
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        return parsed(raw, "the body") if raw.strip() else {}

    async def body(self, most: int) -> bytes:
        """The whole body, of at most so many bytes."""
        found = bytearray()
        async for chunk in self.request.content.iter_chunked(1 << 16):
            found += chunk
            if len(found) > most:
                raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=len(found))
        return bytes(found)


    async def while_there(self, waiting: Coroutine[Any, Any, _T]) -> _T:
        """What `waiting` gives; it is cancelled when the client has gone (ConnectionResetError), which nobody sees who
        has nothing to tell it."""
        task = asyncio.ensure_future(waiting)
        try:
            while not (await asyncio.wait((task,), timeout=_LOOK))[0]:
                if self.request.transport is None or self.request.transport.is_closing():
                    raise ConnectionResetError("the client has gone")
            return task.result()
        finally:
            task.cancel()


def parsed(raw: str | bytes, what: str) -> Json:
    """A JSON object, or INVALID."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WherryError(Kind.INVALID, f"{what} cannot be parsed as JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise WherryError(Kind.INVALID, f"{what} must be a JSON object, not {type(found).__name__}")
    return found


def _values(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [name for name, wanted in value.items() if wanted]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise WherryError(Kind.INVALID, f"filters: {key[:80]} must be a list of texts")


class Route(NamedTuple):
    """One operation: `path` without the version; what serves it. `since`: the version that brought it."""

    method: str
    path: str
    serve: Callable[[Call], Awaitable[web.StreamResponse]]
    since: Version = Version(1, 22)
