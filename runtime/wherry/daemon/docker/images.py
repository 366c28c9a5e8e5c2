"""Images: fetching, sending, looking at them, archives of them."""

from __future__ import annotations

from .call import Route

__all__ = ["ROUTES"]

ROUTES: tuple[Route, ...] = ()
