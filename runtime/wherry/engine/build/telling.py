"""The news of a build: numbers for its steps, in the order in which they begin. Knows nobody who listens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wherry.errors import WherryError
from wherry.model import ProgressEvent

from .values import BuildEvent

__all__ = ["Teller", "Vertex"]

_TAIL = 10  # pieces of output that an error repeats


class Teller:
    """Gives out numbers; events of all threads come one after the other."""

    def __init__(self, listen: Callable[[BuildEvent], None] | None) -> None:
        self._listen = listen
        self._lock = threading.Lock()
        self._count = 0

    def say(self, event: BuildEvent) -> None:
        """Pass on."""
        if self._listen is not None:
            with self._lock:
                self._listen(event)

    @contextmanager
    def step(self, title: str) -> Iterator[Vertex]:
        """One step; its end is told as the block ends."""
        with self._lock:
            self._count += 1
            number = self._count
        vertex = Vertex(self, number)
        vertex.say("started", title)
        try:
            yield vertex
        except WherryError as error:
            vertex.say("canceled" if error.message == "canceled" else "failed", error.message)
            raise
        except BaseException:
            vertex.say("canceled")
            raise
        vertex.say("cached" if vertex.cached else "done")


class Vertex:
    """One step that goes on."""

    def __init__(self, teller: Teller, number: int) -> None:
        self._teller, self._number = teller, number
        self._began = time.monotonic()
        self.cached = False
        self.tail: deque[bytes] = deque(maxlen=_TAIL)
        self._seen: dict[str, str] = {}

    def say(self, kind: str, text: str = "", data: bytes = b"") -> None:
        """One event."""
        self._teller.say(BuildEvent(self._number, kind, text, data, time.monotonic() - self._began))

    def output(self, data: bytes) -> None:
        """What the step's command wrote."""
        self.tail.append(data)
        self.say("output", data=data)

    def progress(self, event: ProgressEvent) -> None:
        """A pull's news: a line for each change of state."""
        if self._seen.get(event.key) != event.status:
            self._seen[event.key] = event.status
            self.say("note", f"{event.key.removeprefix('sha256:')[:12]}: {event.status}")
