"""What a ready pod holds."""

from __future__ import annotations

from wherry.engine.house import House

from .values import Held


def of(house: House, pod: str) -> Held:
    """CONFLICT unless the pod is ready, NOT_FOUND without a pod."""
    raise NotImplementedError
