"""Attaching to a container: the connection taken over (docker's raw stream), or a WebSocket."""

from __future__ import annotations

from .call import Route

__all__ = ["ROUTES"]

ROUTES: tuple[Route, ...] = ()
