"""Containers of pods."""

from __future__ import annotations

from collections.abc import Mapping

from wherry.engine.house import House
from wherry.model import Json

from .values import Member, MemberOptions


def create(house: House, pod: str, options: MemberOptions) -> str:
    """Make it."""
    raise NotImplementedError


def stop(house: House, container: str, timeout: int) -> None:
    """Stop it."""
    raise NotImplementedError


def remove(house: House, container: str) -> None:
    """Remove it."""
    raise NotImplementedError


def get(house: House, container: str) -> Member:
    """One."""
    raise NotImplementedError


def every(house: House) -> list[Member]:
    """All."""
    raise NotImplementedError


def update(house: House, container: str, resources: Json, annotations: Mapping[str, str]) -> None:
    """Change limits."""
    raise NotImplementedError


def reopen_log(house: House, container: str) -> None:
    """A new file."""
    raise NotImplementedError
