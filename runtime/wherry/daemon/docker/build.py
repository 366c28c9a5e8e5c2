"""Building images."""

from __future__ import annotations

from .call import Route

__all__ = ["ROUTES"]

ROUTES: tuple[Route, ...] = ()
