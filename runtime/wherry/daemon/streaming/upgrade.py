"""From an HTTP/1.1 request to SPDY/3.1 or a WebSocket: which protocols we know, and which one is spoken.

Decides the answer: 101 with the choice, 400 without a wish to upgrade, 403 where there is no common protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import hdrs, web

from .pipe import hold
from .wslink import MESSAGE_MAX, PLAIN, channels_max

__all__ = ["FORWARD", "REMOTE", "TUNNEL", "Protocols", "negotiated", "spdy_answer", "web_socket"]

_SPDY = "SPDY/3.1"
_VERSION = "X-Stream-Protocol-Version"
_FORWARD = "portforward.k8s.io"
TUNNEL = f"{_SPDY}+{_FORWARD}"  # SPDY inside of a WebSocket


class Protocols(NamedTuple):
    """What is spoken, by name. Of SPDY's, the number says what a version can."""

    spdy: Mapping[str, int]
    web_socket: Sequence[str]


REMOTE = Protocols(
    # "" is a client from before there were versions
    {"v5.channel.k8s.io": 5, "v4.channel.k8s.io": 4, "v3.channel.k8s.io": 3, "v2.channel.k8s.io": 2,
     "channel.k8s.io": 1, "": 1},
    ("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", PLAIN, "base64.channel.k8s.io"),
)  # fmt: skip
FORWARD = Protocols(
    {_FORWARD: 1, "": 1}, (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", PLAIN, "base64.channel.k8s.io"),
)  # fmt: skip


def web_socket(request: web.Request) -> bool:
    """Whether it asks for a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


def _listed(request: web.Request, header: str) -> list[str]:
    """The words of a header that may come several times, each with commas."""
    return [word.strip() for line in request.headers.getall(header, []) for word in line.split(",") if word.strip()]


async def negotiated(request: web.Request, known: Sequence[str], channels: int = 0) -> web.WebSocketResponse:
    """The WebSocket, open, with the first of the client's protocols that we know; none for a client that names none.
    400 where it cannot number that many `channels`."""
    wanted = _listed(request, hdrs.SEC_WEBSOCKET_PROTOCOL)
    if wanted and not set(wanted) & set(known):
        raise _no_common(wanted, known)
    if request.method != hdrs.METH_GET:
        raise web.HTTPBadRequest(text="a WebSocket begins with a GET request (RFC 6455, 4.1)\n")
    socket = web.WebSocketResponse(protocols=known, compress=False, max_msg_size=MESSAGE_MAX, timeout=5.0)
    protocol = socket.can_prepare(request).protocol or PLAIN
    if protocol != TUNNEL and channels > (most := channels_max(protocol)):
        hint = f"ask for fewer, or come with {TUNNEL}"
        raise web.HTTPBadRequest(text=f"{protocol} has {most} channels, not {channels}: {hint}\n")
    await socket.prepare(request)
    return socket


async def spdy_answer(request: web.Request, known: Mapping[str, int]) -> tuple[web.StreamResponse, str]:
    """The answer 101, sent, and the version that was chosen; what the client says then waits for `pipe.taken_over`."""
    upgrades = [word.lower() for word in _listed(request, hdrs.UPGRADE)]
    if "upgrade" not in map(str.lower, _listed(request, hdrs.CONNECTION)) or _SPDY.lower() not in upgrades:
        raise web.HTTPBadRequest(text=f"the request must upgrade the connection to {_SPDY} or to a WebSocket\n")
    wanted = _listed(request, _VERSION) or [""]
    version = next((word for word in wanted if word in known), None)
    if version is None:
        raise _no_common(wanted, list(filter(None, known)))
    headers: dict[str, str] = {hdrs.CONNECTION: "Upgrade", hdrs.UPGRADE: _SPDY}
    headers |= {_VERSION: version} if version else {}
    answer = web.StreamResponse(status=101, headers=headers)
    hold(request)
    await answer.prepare(request)
    return answer, version


def _no_common(wanted: Sequence[str], known: Sequence[str]) -> web.HTTPForbidden:
    text = f"no protocol in common: the client speaks {', '.join(wanted)}; the server {', '.join(known)}\n"
    return web.HTTPForbidden(text=text, headers=[("X-Accepted-Stream-Protocol-Versions", name) for name in known])
