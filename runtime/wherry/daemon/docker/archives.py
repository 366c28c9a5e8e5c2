"""Files of a container as tars, in and out, and what it changed."""

from __future__ import annotations

from .call import Route

__all__ = ["ROUTES"]

ROUTES: tuple[Route, ...] = ()
