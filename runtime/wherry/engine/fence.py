"""Rows that cannot be read keep nobody from the others: they are left out of lists, and told once.

Decides what of a row makes it readable: what the verbs take for granted. How one is taken away is decided by remove.py
and by the pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from . import codec
from .db import Container, PodRow, Unreadable
from .house import House

if TYPE_CHECKING:
    from .pods.values import PodOptions

__all__ = ["container", "each", "one", "pod", "readable"]

_Row = TypeVar("_Row", Container, PodRow)
_T = TypeVar("_T")
_SHAPES = (AttributeError, KeyError, TypeError, ValueError)  # what reading other values than were written ends with


def one(house: House, row: _Row, read: Callable[[_Row], _T]) -> _T:
    """What `read` makes of it; Unreadable, and in the log the first time."""
    try:
        return read(row)
    except (Unreadable, *_SHAPES) as error:
        what = "container" if isinstance(row, Container) else "pod"
        found = error if isinstance(error, Unreadable) else Unreadable(what, row.id, f"{type(error).__name__} {error}")
        if row.id not in house.unreadable:
            house.unreadable.add(row.id)
            house.warn(f"{found.message}; {found.hint}")
        raise found from error


def each(house: House, rows: Iterable[_Row], read: Callable[[_Row], _T]) -> list[_T]:
    """Of all that can be read."""
    found = []
    for row in rows:
        try:
            found.append(one(house, row, read))
        except Unreadable:
            continue
    return found


def container(row: Container) -> Container:
    """It, if it can be read."""
    codec.decode_options(row.config["options"])
    if row.pod:
        from .pods import rows

        rows.told(row)
    return row


def pod(row: PodRow) -> PodOptions:
    """As what it was made, if all of it can be read."""
    from .pods import records

    for key, kind in (("ips", list), ("cgroup_made", int)):
        if not isinstance(row.config[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    return records.decode(row.config["options"])


def readable(house: House, row: Container) -> bool:
    """Whether it can be."""
    return bool(each(house, [row], container))
