"""What all calls share: the engine, the threads, what runs now. Decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from wherry.daemon.measures import Measures
from wherry.daemon.work import Work
from wherry.engine.engine import Engine

from .gate import Joined

if TYPE_CHECKING:
    from .catalog import Catalog
    from .streams import Streams

__all__ = ["Parts"]

_T = TypeVar("_T")


class Parts:
    """One wherryd's CRI."""

    def __init__(self, engine: Engine, catalog: Catalog, streams: Streams, measures: Measures) -> None:
        self.engine, self.catalog, self.streams, self.measures = engine, catalog, streams, measures
        self.work = Work()
        self.joined = Joined()

    async def change(self, key: object, call: Callable[[], _T], about: str = "") -> _T:
        """Something that changes a pod or a container, once for all who ask for it now (`key`); what nobody waits for
        is done after the answer. `about`: what is then another than it was, also where it fails half way."""
        return await self.joined.do(key, lambda: self._touching(about, self.work.change(self._settled, call)))

    async def joining(self, key: object, call: Callable[[], _T]) -> _T:
        """The same for what asks a plugin for a network."""
        return await self.joined.do(key, lambda: self.work.join(self._settled, call))

    async def waited(self, key: object, call: Callable[[], _T], about: str) -> _T:
        """The same for what mostly waits."""
        return await self.joined.do(key, lambda: self._touching(about, self.work.wait(self._settled, call)))

    async def _touching(self, about: str, work: Awaitable[_T]) -> _T:
        """Whoever asked may be gone when it ends, and what fails tells no event."""
        try:
            return await work
        finally:
            if about:
                self.catalog.touch(about, *(member.id for member in self.catalog.members_of(about)))

    def _settled(self, call: Callable[[], _T]) -> _T:
        """In the thread that did it: who asked may be gone by then, and what is put off holds locks."""
        try:
            return call()
        finally:
            self.catch_up()

    def catch_up(self) -> None:
        """What nobody waits for is done now that the answer is on its way."""
        if self.engine.behind:
            self.work.later(self.engine.catch_up)
