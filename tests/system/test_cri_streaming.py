"""Exec, attach and port-forward over SPDY and WebSocket, with client-go's own clients at the other end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from helpers.streamserver import Server, serving
from helpers.wherry import Wherry, until
from wherry.engine.engine import Engine
from wherry.model import Attachment, Place, RunOptions

NONE = (Attachment("none"),)
BOTH = [("spdy", "v4.channel.k8s.io"), ("websocket", "v5.channel.k8s.io")]


@pytest.fixture
def engine(wherry: Wherry, busybox: str) -> Iterator[Engine]:
    made = Engine(Place(str(wherry.root), str(wherry.state), str(wherry.config)))
    made.load(busybox)
    yield made
    made.close()


def started(engine: Engine, *command: str, **options: object) -> str:
    """A running container."""
    image = str(engine.images()[0]["Id"])
    asked = RunOptions(image, command=command, detach=True, network=NONE, **options)  # type: ignore[arg-type]
    return engine.run(asked).id


@pytest.fixture
def sleeper(engine: Engine) -> str:
    return started(engine, "sleep", "1000")


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    with serving(engine) as made:
        yield made


@pytest.mark.parametrize(("transport", "protocol"), BOTH)
def test_exec(server: Server, sleeper: str, transport: str, protocol: str) -> None:
    how = {"transport": transport, "protocol": protocol}
    assert server.run(server.exec(sleeper, "sh", "-c", "echo out; echo err >&2; exit 7"), **how) == (7, b"out\n", b"err\n")
    assert server.run(server.exec(sleeper, "true"), **how) == (0, b"", b"")
    code, _, err = server.run(server.exec(sleeper, "/no/such"), **how)
    assert code == 125
    assert b"error executing command in container" in err
    data = bytes(range(256)) * 20000
    assert server.run(server.exec(sleeper, "cat", flags="io"), data, flags="io", **how) == (0, data, b"")
