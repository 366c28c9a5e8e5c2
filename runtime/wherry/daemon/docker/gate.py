"""The gate of every call: which version is spoken, what a failure is in HTTP, a line in the log.

Decides the status of each kind of failure, in docker's form ({"message": ...}). Knows no route by name.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

import wherry
from wherry.errors import Kind, WherryError

from .call import Call, Route, Version
from .parts import Parts

__all__ = ["HEADERS", "NEWEST", "OLDEST", "answer", "failed", "wrap", "written"]

_log = logging.getLogger("wherryd.docker")
OLDEST, NEWEST = Version(1, 22), Version(1, 51)  # skopeo and podman of Debian 12 speak 1.22
HEADERS: Mapping[str, str] = {
    "Api-Version": str(NEWEST), "Docker-Experimental": "false", "Ostype": "linux",
    "Server": f"wherry/{wherry.__version__} (linux)",
}  # fmt: skip
#: Kind -> HTTP status, as docker's errdefs are mapped (moby api/server/httpstatus)
STATUS: Mapping[Kind, int] = {
    Kind.INVALID: 400, Kind.NOT_FOUND: 404, Kind.EXISTS: 409, Kind.CONFLICT: 409, Kind.PRECONDITION: 409,
    Kind.DENIED: 403, Kind.UNAVAILABLE: 503, Kind.EXHAUSTED: 507, Kind.UNSUPPORTED: 501, Kind.INTERNAL: 500,
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_NUL = re.compile(r"embedded null|NUL byte|surrogates not allowed")
_SENTENCE_MAX = 4096
#: sentences that clients look for, as docker-py's errors.py does for the first, compose for the ports'
_DOCKERS = tuple((re.compile(ours), dockers) for ours, dockers in (
    (r"^no such", "No such"),
    (r"^the container name", "Conflict. The container name"),
    (r"^port (\S+)/\w+ is in use:", r"driver failed programming external connectivity: Bind for \1 failed: "
     r"port is already allocated:"),
    (r"^volume (\S+) is in use by", r"remove \1: volume is in use -"),
    (r"^network (\S+) is in use by", r"error while removing network: network \1 has active endpoints:"),
))  # fmt: skip


#: what the first word of a path is about, by the name of a field in the log
_KINDS = {"containers": "container", "exec": "exec", "networks": "network", "volumes": "volume", "images": "image"}


class Told(web.StreamResponse):
    """An answer that was written by hand, or has nobody to go to."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """It is out already."""
        del request

    async def write_eof(self, data: bytes = b"") -> None:
        """Its end is the connection's."""
        del data


def answer(value: object, status: int = 200) -> web.Response:
    """A JSON answer."""
    return written(json.dumps(value, separators=(",", ":")).encode(), status)


def written(body: bytes, status: int = 200) -> web.Response:
    """JSON text. Its type has no charset: docker's client compares the whole header before it reads a failure."""
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def failed(error: BaseException) -> web.Response:
    """What a client is told of whatever a call ended with."""
    status, sentence = _told(error)
    return answer({"message": sentence[:_SENTENCE_MAX]}, status)


def _told(error: BaseException) -> tuple[int, str]:
    if isinstance(error, web.HTTPException):
        return error.status, error.text if error.status == 413 and error.text else (error.reason or "").lower()
    if isinstance(error, WherryError):
        words = f"{error.message}; {error.hint}" if error.hint else error.message
        return STATUS[error.kind], _as_docker_says(words)
    if isinstance(error, OSError):
        return 507 if error.errno in _FULL else 500, f"the kernel refused: {error.strerror or error}"
    if isinstance(error, ValueError) and _NUL.search(str(error)):
        return 400, "a text of the request has a NUL byte, or is no Unicode"
    return 500, f"a defect of wherryd: {type(error).__name__}: {error}"


def _as_docker_says(words: str) -> str:
    for ours, dockers in _DOCKERS:
        words = ours.sub(dockers, words)
    return words


def _version(request: web.Request) -> Version:
    text = request.match_info.get("version")
    if text is None:
        return NEWEST
    major, _, minor = text.partition(".")
    found = Version(int(major), int(minor))
    if found < OLDEST:
        raise WherryError(Kind.INVALID, f"client version {found} is too old. Minimum supported API version is "
                          f"{OLDEST}, please upgrade your client to a newer version")  # fmt: skip
    if found > NEWEST:
        message = f"client version {found} is too new. Maximum supported API version is {NEWEST}"
        raise WherryError(Kind.INVALID, message)
    return found


async def _served(route: Route, call: Call) -> web.StreamResponse:
    return await route.serve(call)


def wrap(parts: Parts, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of a route. One that only looks is cancelled when its client goes; what was begun is done."""

    kind = _KINDS.get(route.path.split("/")[1], "")

    def about(request: web.Request) -> dict[str, object]:
        name = request.match_info.get("id") or request.query.get("name", "")
        return {kind: name} if kind and name else {}

    async def serve(request: web.Request) -> web.StreamResponse:
        began = time.monotonic()
        try:
            version = _version(request)
            if version < route.since:
                raise WherryError(Kind.NOT_FOUND, f"page not found: {route.path} came with {route.since}")
            call = Call(parts, request, version)
            serving = _served(route, call)
            given = await (call.while_there(serving) if route.method == "GET" else serving)
        except ConnectionError:  # the client has left
            given = Told()
        except Exception as error:
            given = failed(error)
            parts.measures.failed("docker", error)
            if given.status == 500:
                _log.error("%s %s", route.method, route.path, exc_info=error, extra={"fields": about(request)})
        took = time.monotonic() - began
        parts.measures.served(route.method, route.path, given.status, took, request.headers)
        if _log.isEnabledFor(logging.DEBUG):
            fields = {**about(request), "status": given.status, "ms": round(took * 1000, 1)}
            _log.debug("%s %s", route.method, route.path, extra={"fields": fields})
        return given

    return serve
