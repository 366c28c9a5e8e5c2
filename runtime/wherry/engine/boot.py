"""After a boot: which containers start again by their restart policies. Before the end of the host: all stop in order.
Docker's daemon does it as it starts and stops.

Decides by policy and past: `always` and `unless-stopped` (unless somebody stopped it), of what has not run since the
host came up. What runs, or was begun since, is let alone: a second call starts nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError

from . import codec, fence, records, start, stop
from .house import House
from .status import look
from .undo import container_lock

if TYPE_CHECKING:
    from .db import Container

__all__ = ["start_all", "stop_all"]

_AT_ONCE = 32  # stops, each of which mostly waits


def start_all(house: House) -> Iterator[tuple[str, WherryError | None]]:
    """Start them, oldest first; each by its name, with what went wrong."""
    up = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = [row for row in fence.each(house, house.db.containers(), fence.container) if _wanted(house, row, up)]
    for row in sorted(rows, key=lambda row: row.created):
        try:
            start.start(house, row.id, attach=False, interactive=False).close()
        except WherryError as error:
            yield row.name, error
        else:
            yield row.name, None


def _wanted(house: House, row: Container, up: float) -> bool:
    if row.pod or row.config.get("build"):
        return False
    policy = codec.decode_options(row.config["options"]).restart.name
    life = records.load(house.container_dir(row.id))
    again = policy == "always" or (policy == "unless-stopped" and not life.stopped)
    return again and 0 < life.started < up and not look(house, row.id).running


def stop_all(house: House) -> Iterator[tuple[str, WherryError | None]]:
    """Stop whatever runs, of pods too, side by side, each with its own grace; each by its name, with what went wrong.
    Nobody's hand did it: who is to run after the next boot will."""
    rows = [row for row in fence.each(house, house.db.containers(), fence.container) if look(house, row.id).running]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda row: (row.name, _stopped(house, row)), rows)


def _stopped(house: House, row: Container) -> WherryError | None:
    by_hand = records.load(house.container_dir(row.id)).stopped
    try:
        stop.stop_row(house, row, None)
        with contextlib.suppress(FileNotFoundError), container_lock(house, row.id):  # --rm: it is gone
            life = records.load(house.container_dir(row.id))
            records.store(house.container_dir(row.id), life._replace(stopped=by_hand))
    except WherryError as error:
        return None if error.kind is Kind.NOT_FOUND else error
    return None
