"""A streaming server of the test's own, on a loop in a thread, and client-go's clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from helpers import gotools
from wherry.daemon.streaming.server import Streaming
from wherry.engine.engine import Engine
from wherry.engine.values import ExecOptions

__all__ = ["Server", "serving"]

_T = TypeVar("_T")
STREAMS = {"i": "stdin", "o": "stdout", "e": "stderr", "t": "tty"}


class Server:
    """`exec` and `attach` give URLs, `client` starts a client-go client on one."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.streaming = Streaming(engine, "127.0.0.1:0")

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """On the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def exec(self, container: str, *command: str, flags: str = "oe") -> str:
        wanted = {name: letter in flags for letter, name in STREAMS.items()}
        return self.streaming.exec(container, ExecOptions(command), **wanted)

    def attach(self, container: str, flags: str = "oe") -> str:
        return self.streaming.attach(container, **{name: letter in flags for letter, name in STREAMS.items()})

    @staticmethod
    def client(
        url: str, flags: str = "oe", transport: str = "spdy", protocol: str = "v4.channel.k8s.io", *more: str,
        **options: Any,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        words = [f"-{letter}" for letter in flags]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [gotools.stream_client(), "exec", "-transport", transport, "-protocol", protocol, *words, *more, url]
        return subprocess.Popen(command, **(pipes | options))

    def run(self, url: str, data: bytes = b"", timeout: float = 20, **how: Any) -> tuple[int, bytes, bytes]:
        """A whole client: its code, output and errors."""
        client = self.client(url, **how)
        out, err = client.communicate(data, timeout)
        return client.returncode, out, err


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[Server]:
    """While the block lasts; at its end no task of a session may be left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="streaming")
    thread.start()
    server = Server(engine, loop)
    try:
        server.do(server.streaming.start())
        yield server
    finally:
        server.do(server.streaming.stop())
        left = server.do(_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        assert not left, left


async def _tasks() -> list[str]:
    await asyncio.sleep(0.05)
    return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
