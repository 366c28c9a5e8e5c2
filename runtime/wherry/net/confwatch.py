"""A directory of network configurations, watched by inotify(7): also one that is not there yet, or is made anew.

Decides when something changed. Refuses to know what (cniconf.py reads it). For processes that stay: a command reads.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from wherry.kernel import shim

from .cniconf import Directory

__all__ = ["Watch"]

_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, size of the name behind it
_MODIFIED, _CLOSED, _FROM, _TO, _CREATED, _DELETED, _GONE, _MOVED = (
    0x2, 0x8, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800)  # fmt: skip
_EVENTS = _CLOSED | _FROM | _TO | _CREATED | _DELETED | _GONE | _MOVED | _MODIFIED
_OVERFLOW = 0x4000


class Watch:
    """Readable (`fileno`, for a selector) when something may have happened; `changed` then says whether it did."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._fd = shim.inotify([], 0)
        self._inside: set[int] = set()  # watches of the directory itself, and of those in it
        self._arm()
        self._then = directory.looks()

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def changed(self) -> bool:
        """Whether a configuration came, went or changed since the last call."""
        heard = self._drain()
        self._arm()  # before we look: what happens from now on is heard
        now = self._directory.looks()
        before, self._then = self._then, now
        return heard or now != before

    def wait(self, timeout: float) -> bool:
        """Until something changed; False after `timeout` seconds in which nothing was heard."""
        ready, _, _ = select.select([self._fd], [], [], timeout)
        return bool(ready) and self.changed()

    def close(self) -> None:
        """No more watches."""
        os.close(self._fd)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        self.close()

    def _arm(self) -> None:
        """Watch the directory, the lists' own directories in it, and the one that it would be made anew in: the lowest
        that is there. What comes to be while we do this is seen by looking again."""
        self._inside = set()
        reached = self._add_up(self._directory.path)
        while reached != (again := self._add_up(self._directory.path)):
            reached = again
        for path in _below(self._directory.path):
            with suppress(OSError):
                self._inside.add(shim.inotify_add(self._fd, path, _EVENTS))

    def _add_up(self, path: str) -> str:
        """Watch the lowest part of the path that exists, and that above it; returns it."""
        with suppress(OSError):
            self._inside.add(shim.inotify_add(self._fd, path, _EVENTS))
        parent = os.path.dirname(path)
        while parent:
            with suppress(OSError):
                shim.inotify_add(self._fd, parent, _EVENTS)
                return f"{parent} {os.path.isdir(path)}"
            path, parent = parent, os.path.dirname(parent) if parent != "/" else ""
        return ""

    def _drain(self) -> bool:
        """Whether something happened in the directory itself, or more than the kernel could tell."""
        found = False
        for watch, mask in self._events():
            found |= watch in self._inside or bool(mask & _OVERFLOW)
        return found

    def _events(self) -> Iterator[tuple[int, int]]:
        with suppress(BlockingIOError):
            while True:
                data = os.read(self._fd, 65536)
                while data:
                    watch, mask, _, size = _EVENT.unpack_from(data)
                    data = data[_EVENT.size + size:]
                    yield watch, mask


def _below(path: str) -> list[str]:
    with suppress(OSError), os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.is_dir()]
    return []
