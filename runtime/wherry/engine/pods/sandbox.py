"""The life of a pod."""

from __future__ import annotations

from wherry.engine.house import House
from wherry.model import Json

from .values import Pod, PodOptions


def run(house: House, options: PodOptions) -> str:
    """Make it."""
    raise NotImplementedError


def stop(house: House, pod: str) -> None:
    """Stop it."""
    raise NotImplementedError


def remove(house: House, pod: str) -> None:
    """Remove it."""
    raise NotImplementedError


def get(house: House, pod: str) -> Pod:
    """One."""
    raise NotImplementedError


def every(house: House) -> list[Pod]:
    """All."""
    raise NotImplementedError


def update(house: House, pod: str, resources: Json, overhead: Json) -> None:
    """Change limits."""
    raise NotImplementedError
