"""What all calls share: the engine and the threads. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from wherry.daemon.measures import Measures
from wherry.daemon.work import Work
from wherry.engine.config import Settings
from wherry.engine.engine import Engine

from .execlist import Execs
from .happenings import Happenings
from .lives import Lives
from .roster import Roster

__all__ = ["Parts"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Parts:
    """One wherryd's Docker API. `lives` (module `lives`) knows what runs, and who is attached to it."""

    def __init__(self, engine: Engine, known: Settings, measures: Measures) -> None:
        self.engine, self.known, self.measures = engine, known, measures
        self.work = Work()
        self.happenings = Happenings(engine)
        self.lives = Lives(engine, self.happenings)
        self.execs = Execs(engine)
        self.roster = Roster(engine, self.work)

    async def stop(self) -> None:
        """Let go of everything."""
        self.happenings.stop()
        self.roster.stop()
        await self.lives.stop()
        await self.execs.stop()
        self.work.close()

    async def look(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something quick that changes nothing."""
        return await self.work.look(call, *args, **kwargs)

    async def change(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that takes milliseconds, seconds at worst; what nobody waits for is done after the answer."""
        return await self.work.change(self._settled, lambda: call(*args, **kwargs))

    async def wait(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that mostly waits: a grace period, a long answer."""
        return await self.work.wait(self._settled, lambda: call(*args, **kwargs))

    async def fetch(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something of registries, or a build."""
        return await self.work.fetch(self._settled, lambda: call(*args, **kwargs))

    def _settled(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        finally:
            if self.engine.behind:
                self.work.later(self.engine.catch_up)
