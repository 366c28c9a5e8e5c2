"""Connections into the network of a pod.

Decides in which network namespace a socket is made. What is said over it is the caller's.
"""

from __future__ import annotations

import socket

from wherry.engine.house import House
from wherry.errors import Kind, WherryError

from . import held

__all__ = ["tcp"]

_PATIENCE = 10.0  # seconds a connection may take to come about: only a full queue of the listener's makes it wait
_LOCALHOST = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def tcp(house: House, pod: str, port: int) -> socket.socket:
    """A connection to a port of the pod's localhost; of the host's, for a pod in the host's network."""
    if not 0 < port < 1 << 16:
        raise WherryError(Kind.INVALID, f"port {port} is not between 1 and 65535")
    netns = held.of(house, pod).netns
    problems = []
    for family, address in _LOCALHOST:
        try:
            return _connected(netns, family, address, port)
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
    raise WherryError(Kind.UNAVAILABLE, f"cannot connect to port {port} of localhost in pod {pod[:12]}: "
                      + ", ".join(problems), hint="does a container of the pod listen there?")  # fmt: skip


def _connected(netns: str, family: int, address: str, port: int) -> socket.socket:
    sock = _made(netns, family)
    try:
        sock.settimeout(_PATIENCE)
        sock.connect((address, port))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _made(netns: str, family: int) -> socket.socket:
    """A socket stays in the network namespace that it was made in, whoever connects it."""
    if not netns:
        return socket.socket(family, socket.SOCK_STREAM)
    from wherry.net import netns as namespaces

    return namespaces.inside(netns, lambda: socket.socket(family, socket.SOCK_STREAM))
