"""Connections into the network of a pod."""

from __future__ import annotations

import socket

from wherry.engine.house import House


def tcp(house: House, pod: str, port: int) -> socket.socket:
    """Connect."""
    raise NotImplementedError
