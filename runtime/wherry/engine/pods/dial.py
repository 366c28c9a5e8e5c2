"""Sockets in the network of a pod.

Decides in which network namespace a socket is made. Connects none: how long that takes is the pod's affair, and no
thread of ours waits for it.
"""

from __future__ import annotations

import socket

from wherry.engine.house import House

from . import held

__all__ = ["sockets"]

_LOCALHOST = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def sockets(house: House, pod: str) -> list[tuple[socket.socket, str]]:
    """One for each family that this kernel has; of the host's network, for a pod that shares it."""
    netns = held.of(house, pod).netns
    if not netns:
        return _made()
    from wherry.net import netns as namespaces

    return namespaces.inside(netns, _made)


def _made() -> list[tuple[socket.socket, str]]:
    """A socket stays in the network namespace that it was made in, whoever connects it."""
    found = []
    for family, address in _LOCALHOST:
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # a kernel without IPv6
            continue
        found.append((made, address))
    return found
