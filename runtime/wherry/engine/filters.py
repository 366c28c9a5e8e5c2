"""--filter: which names a list takes, and what label and name filters mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from wherry.errors import Kind, WherryError

__all__ = ["check", "labels", "named"]

Filters = Mapping[str, Sequence[str]]


def check(filters: Filters, known: Iterable[str]) -> None:
    """Refuse a filter that the list does not take."""
    for name in filters:
        if name not in known:
            raise WherryError(Kind.INVALID, f'invalid filter "{name}"', hint=f"one of {', '.join(sorted(known))}")


def labels(wanted: Sequence[str], have: Mapping[str, str]) -> bool:
    """All of "key" or "key=value" hold."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in have or (equals and have[key] != value):
            return False
    return True


def named(wanted: Sequence[str], name: str) -> bool:
    """One of the patterns is found in the name (docker: a regular expression, unanchored)."""
    try:
        return any(re.search(text, name) for text in wanted)
    except re.error as error:
        raise WherryError(Kind.INVALID, f"invalid filter: {error}") from error
