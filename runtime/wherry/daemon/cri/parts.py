"""What all calls share: the engine, the threads, what runs now. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

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

    def __init__(self, engine: Engine, catalog: Catalog, streams: Streams) -> None:
        self.engine, self.catalog, self.streams = engine, catalog, streams
        self.work = Work()
        self.joined = Joined()

    async def change(self, key: object, call: Callable[[], _T]) -> _T:
        """Something that changes a pod or a container, once for all who ask for it now (`key`); what nobody waits for
        is done after the answer."""
        return await self.joined.do(key, lambda: self.work.change(self._settled, call))

    async def waited(self, key: object, call: Callable[[], _T]) -> _T:
        """The same for what mostly waits."""
        return await self.joined.do(key, lambda: self.work.wait(self._settled, call))

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
