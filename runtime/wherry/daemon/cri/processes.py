"""RuntimeService: processes in containers, at once (ExecSync) or over a connection (Exec, Attach, PortForward)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from wherry.engine.values import ExecOptions
from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_STDOUT

from . import api_pb2 as pb
from . import requests
from .gate import Expired

if TYPE_CHECKING:
    from wherry.daemon.streaming.beginnings import Beginnings
    from wherry.daemon.streaming.frames import Frames

    from .parts import Parts

__all__ = ["MOST", "Processes"]

MOST = 16 << 20  # bytes of each stream of ExecSync; what is more is read and dropped
_LONGEST = 1 << 31  # seconds


class Processes:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._catalog = parts, parts.engine, parts.catalog
        self._began: Beginnings | None = None

    async def ExecSync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """Run a command to its end. `timeout` seconds (0: none) after it was asked it is killed: DEADLINE_EXCEEDED. So
        it is when the caller goes away."""
        ref, words = requests.identity(request.container_id, "container"), requests.command(request.cmd)
        if not 0 <= request.timeout <= _LONGEST:
            raise WherryError(Kind.INVALID, f"timeout is out of range: {request.timeout}")
        try:
            async with asyncio.timeout(request.timeout or None):
                frames = await self._begun(ref, words, request.timeout)
                return await self._seen(frames)
        except TimeoutError as error:
            seconds = request.timeout
            raise Expired(f"the command did not end within {seconds} s, and was killed") from error
        finally:
            self._parts.catch_up()

    @staticmethod
    async def _seen(frames: Frames) -> pb.ExecSyncResponse:
        """To its end; it is killed where nobody waits for that any more."""
        try:
            return await _whole(frames)
        except asyncio.CancelledError:
            await asyncio.shield(frames.kill())
            raise
        finally:
            frames.close()

    async def _begun(self, ref: str, words: tuple[str, ...], timeout: int) -> Frames:
        from wherry.daemon.streaming.frames import Frames

        await self._catalog.fresh()
        member = self._catalog.member(ref).value
        options = ExecOptions(words, tied=True)
        if timeout:  # it is ours that passes first
            options = options._replace(patience=min(timeout + 1.0, options.patience))
        begin = partial(self._engine.exec, member.id, options)
        return Frames(await self._beginnings().begin(member.id, begin, mortal=True))

    def _beginnings(self) -> Beginnings:
        from wherry.daemon.streaming.beginnings import Beginnings

        if self._began is None:
            self._began = Beginnings()
        return self._began

    async def Exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        """Where a client may run a command over a connection."""
        words = requests.command(request.cmd)
        _check_streams(request.stdin, request.stdout, request.stderr, request.tty)
        container = await self._running(request.container_id)
        server = await self._parts.streams.server()
        options = ExecOptions(words, interactive=request.stdin, tty=request.tty)
        return pb.ExecResponse(url=server.exec(
            container, options, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty
        ))  # fmt: skip

    async def Attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Where a client may join a container's streams."""
        _check_streams(request.stdin, request.stdout, request.stderr, request.tty)
        container = await self._running(request.container_id)
        server = await self._parts.streams.server()
        return pb.AttachResponse(url=server.attach(
            container, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty
        ))  # fmt: skip

    async def _running(self, given: str) -> str:
        ref = requests.identity(given, "container")
        await self._catalog.fresh()
        member = self._catalog.member(ref).value
        if member.state != "running":
            raise WherryError(Kind.CONFLICT, f"container {member.id[:12]} is {member.state}, not running")
        return member.id

    async def PortForward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """Where a client may reach ports of a pod."""
        ref = requests.identity(request.pod_sandbox_id, "pod")
        if any(not 0 < port < 65536 for port in request.port):
            raise WherryError(Kind.INVALID, "a port is out of range")
        await self._catalog.fresh()
        pod = self._catalog.pod(ref)
        if not pod.ready:
            raise WherryError(Kind.CONFLICT, f"pod {pod.id[:12]} is not ready")
        server = await self._parts.streams.server()
        return pb.PortForwardResponse(url=server.port_forward(pod.id, tuple(request.port)))


def _check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
    if not (stdin or stdout or stderr):
        raise WherryError(Kind.INVALID, "one of stdin, stdout and stderr must be asked for")
    if tty and stderr:
        raise WherryError(Kind.INVALID, "a terminal has no stderr of its own", hint="ask for tty without stderr")


async def _whole(frames: Frames) -> pb.ExecSyncResponse:
    """All output, up to a bound for each stream, and the exit code."""
    out, bad = bytearray(), bytearray()
    async for kind, payload in frames:
        whose = out if kind == ATTACH_STDOUT else bad
        whose += payload[: MOST - len(whose)]
    status = await frames.wait()
    return pb.ExecSyncResponse(stdout=bytes(out), stderr=bytes(bad), exit_code=status.code)
