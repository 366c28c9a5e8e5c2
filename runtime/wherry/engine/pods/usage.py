"""What pods and containers use."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.engine.house import House

from .values import Usage


def of(house: House, ids: Sequence[str]) -> dict[str, Usage]:
    """One walk."""
    raise NotImplementedError
