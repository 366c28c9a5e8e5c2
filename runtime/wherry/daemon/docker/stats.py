"""What containers use, and their processes."""

from __future__ import annotations

from .call import Route

__all__ = ["ROUTES"]

ROUTES: tuple[Route, ...] = ()
