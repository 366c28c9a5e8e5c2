"""Containers that a command of ours froze for its own sake, and thaws: also when it was killed.

Decides by STATE/c/<id>/frozen, a file that the command holds (flock) as long as it needs the container still. Who finds
it held by nobody thaws. What the user paused has no such file and stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from wherry.errors import Kind, WherryError

from .house import House

__all__ = ["thaw", "while_held"]


def _path(house: House, cid: str) -> str:
    return f"{house.state_dir(cid)}/frozen"


@contextlib.contextmanager
def while_held(house: House, cid: str) -> Iterator[None]:
    """Freeze a running container for the time of the with block. One at a time: CONFLICT while another does."""
    from wherry.kernel import files

    from . import stop

    with files.flock(_path(house, cid), 0):
        stop.pause(house, cid)
        try:
            yield
        finally:
            _end(house, cid)


def _end(house: House, cid: str) -> None:
    from . import stop

    try:
        stop.unpause(house, cid)
    except WherryError as error:
        if error.kind not in (Kind.CONFLICT, Kind.NOT_FOUND):  # it was unpaused, ended or removed by somebody else
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(house, cid))


def thaw(house: House, cid: str) -> bool:
    """Thaw a container whose freezer was killed; whether there was such a one."""
    from wherry.kernel import files

    if not os.path.exists(_path(house, cid)):
        return False
    try:
        with files.flock(_path(house, cid), 0, create=False):
            _end(house, cid)
    except (WherryError, FileNotFoundError):  # it is at work, or has just ended
        return False
    return True
