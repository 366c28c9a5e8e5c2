"""Who a user of an image is, remembered: to look takes a mount of its layers, and layers never change.

Decides when memory may answer: as long as nobody wrote to the container's own layer. ROOT/cache/users, one small file
for each question; any of them may be missing, torn or removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress

from wherry.errors import WherryError

from . import rootfs, users
from .house import House

__all__ = ["lookup"]

_MAX = 1 << 16  # bytes
_VERSION = 1  # of the rules in users.py


def lookup(house: House, cid: str, spec: str, extra: Sequence[str]) -> users.User:
    """The user of a container that does not run."""
    path = _place(house, cid, spec, extra)
    found = _remembered(path) if path else None
    if found is not None:
        return found
    with rootfs.at_rest(house, cid) as root:
        found = users.lookup(root, spec, extra)
    if path and _untouched(house, cid):  # still: a `cp` may have come while we looked
        _remember(path, found)
    return found


def _place(house: House, cid: str, spec: str, extra: Sequence[str]) -> str:
    """The file that knows, "" where the container's own layer may say otherwise."""
    if not _untouched(house, cid):
        return ""
    question = json.dumps([_VERSION, house.snapshots.diff_ids(cid), spec, list(extra)])
    return f"{house.place.root}/cache/users/{hashlib.sha256(question.encode()).hexdigest()}"


def _untouched(house: House, cid: str) -> bool:
    with os.scandir(house.snapshots.upper(cid)) as entries:
        return next(entries, None) is None


def _remembered(path: str) -> users.User | None:
    from wherry.kernel import files

    try:
        uid, gid, groups, home, name = json.loads(files.read_capped(path, _MAX))
        return users.User(uid, gid, tuple(groups), home, name)
    except (OSError, ValueError, TypeError, WherryError):
        return None


def _remember(path: str, user: users.User) -> None:
    from wherry.kernel import files

    with suppress(OSError):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        files.atomic_write(path, json.dumps(user).encode(), 0o600)
