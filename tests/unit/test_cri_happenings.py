"""Who listens to events hears of every one, or hears that the stream has ended: never nothing for ever."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest

from wherry.daemon.cri import api_pb2 as pb
from wherry.daemon.cri.catalog import Catalog
from wherry.daemon.cri.happenings import Happenings
from wherry.daemon.cri.parts import Parts
from wherry.daemon.cri.streams import Streams
from wherry.daemon.measures import Measures
from wherry.engine import events
from wherry.engine.engine import Engine
from wherry.model import Place

POD = "a" * 64


def test_an_event_that_cannot_be_told_ends_who_listens_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "none.toml")))
    catalog = Catalog(engine)
    happenings = Happenings(Parts(engine, catalog, Streams(engine, "127.0.0.1:0"), Measures()))
    fresh, broken = catalog.fresh, [True]

    async def sometimes() -> None:
        if broken.pop():
            raise KeyError("nobody thought of it")
        await fresh()

    async def listen() -> list[pb.ContainerEventResponse]:
        stream = happenings.GetContainerEvents(pb.GetEventsRequest())
        first = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)  # it listens
        events.emit(engine._house, "pod", "create", POD, {})
        message = cast(bytes | None, await asyncio.wait_for(first, 5))
        await stream.aclose()  # type: ignore[attr-defined]
        return [] if message is None else [pb.ContainerEventResponse.FromString(message)]

    async def work() -> None:
        engine.prepare()
        catalog.start()
        with monkeypatch.context() as patched:
            patched.setattr(catalog, "fresh", sometimes)
            broken[:] = [False, True]
            assert await listen() == []
            (told,) = await listen()
        assert (told.container_id, told.container_event_type) == (POD, pb.CONTAINER_CREATED_EVENT)
        catalog.stop()

    with caplog.at_level(logging.ERROR, "wherryd.cri"):
        asyncio.run(work())
    engine.close()
    assert "nobody thought of it" in caplog.text
