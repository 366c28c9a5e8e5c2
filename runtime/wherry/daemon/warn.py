"""Where the engine's warnings go: to whoever listens on the thread that works for him, else to the log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

__all__ = ["hearing", "warn"]

_log = logging.getLogger("wherryd")
_local = threading.local()


def warn(text: str) -> None:
    """A sentence of the engine."""
    heard: list[str] | None = getattr(_local, "heard", None)
    if heard is None:
        _log.warning("%s", text)
    else:
        heard.append(text)


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """What is said on this thread meanwhile."""
    heard: list[str] = []
    _local.heard = heard
    try:
        yield heard
    finally:
        _local.heard = None
