"""After a boot: which containers start again by their restart policies. Docker's daemon does it as it starts.

Decides by policy and past: `always` and `unless-stopped` (unless somebody stopped it), of what has not run since the
host came up. What runs, or was begun since, is let alone: a second call starts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wherry.errors import WherryError

from . import codec, fence, records, start
from .house import House
from .status import look

if TYPE_CHECKING:
    from .db import Container

__all__ = ["start_all"]


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
