"""When nobody has asked for a while."""

from __future__ import annotations

import asyncio

import pytest

from wherry.daemon import quiet


def test_once_after_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_SECONDS", 0.2)

    async def act() -> list[float]:
        loop = asyncio.get_running_loop()
        done: list[float] = []
        waits = quiet.Quiet(lambda: done.append(loop.time()))
        for _ in range(6):
            waits.stirred()
            last = loop.time()
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert len(done) == 1
        assert done[0] >= last + 0.2
        await asyncio.sleep(0.3)
        assert len(done) == 1, "not again without a call"
        waits.stirred()
        await asyncio.sleep(0.4)
        return done

    assert len(asyncio.run(act())) == 2
