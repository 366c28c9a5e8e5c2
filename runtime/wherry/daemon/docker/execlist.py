"""The processes of exec that are remembered: what was asked, whether they run, how they ended.

Decides how long an ended one is remembered, and that each is seen to its end, whoever listens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict

from wherry.daemon.streaming.beginnings import Beginnings
from wherry.daemon.streaming.frames import Frames
from wherry.engine.engine import Engine
from wherry.engine.values import ExecOptions
from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["Exec", "Execs"]

_MOST = 10_000  # that are remembered; the oldest that does not run goes first
_KEPT = 300.0  # seconds after its end, as docker's


_BEGUN = asyncio.Event()
_BEGUN.set()


class Exec:
    """One, from its creation on. Small, for thousands are remembered."""

    __slots__ = ("asked", "at", "begun", "cid", "code", "frames", "id", "keys", "pid", "running", "started", "task")

    def __init__(self, cid: str, asked: Json, keys: bytes) -> None:
        self.id, self.cid, self.asked, self.keys = secrets.token_hex(32), cid, asked, keys
        self.frames: Frames | None = None
        self.begun = asyncio.Event()
        self.started = self.running = False
        self.code: int | None = None
        self.pid = 0
        self.at = time.monotonic()  # of the creation, then of the end
        self.task: asyncio.Task[None] | None = None

    def options(self) -> ExecOptions:
        """In the engine's words."""
        return ExecOptions(
            tuple(self.asked["Cmd"]), interactive=bool(self.asked.get("AttachStdin")),
            tty=bool(self.asked.get("Tty")), env=tuple(self.asked.get("Env") or ()),
            workdir=self.asked.get("WorkingDir") or "", user=self.asked.get("User") or "",
            privileged=bool(self.asked.get("Privileged")),
        )  # fmt: skip

    def told(self) -> Json:
        """`GET /exec/{id}/json`."""
        command = self.asked["Cmd"]
        return {
            "ID": self.id, "ContainerID": self.cid, "Running": self.running, "ExitCode": self.code, "Pid": self.pid,
            "ProcessConfig": {
                "tty": bool(self.asked.get("Tty")), "entrypoint": command[0], "arguments": command[1:],
                "privileged": bool(self.asked.get("Privileged")), "user": self.asked.get("User") or "",
            },
            "OpenStdin": bool(self.asked.get("AttachStdin")), "OpenStdout": bool(self.asked.get("AttachStdout")),
            "OpenStderr": bool(self.asked.get("AttachStderr")), "CanRemove": False, "DetachKeys": "",
        }  # fmt: skip


class Execs:
    """Those that are remembered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[str, Exec] = OrderedDict()
        self._beginnings = Beginnings()

    def add(self, made: Exec) -> None:
        """Remember it, and forget what is old."""
        now = time.monotonic()
        over = len(self._known) >= _MOST
        for one in list(self._known.values()) if over or len(self._known) % 64 == 0 else ():
            if not one.running and (now - one.at > _KEPT or over):
                del self._known[one.id]
                over = False
        if len(self._known) >= _MOST:
            raise WherryError(Kind.EXHAUSTED, f"{_MOST} processes of exec run already")
        self._known[made.id] = made

    def get(self, ref: str) -> Exec:
        """NOT_FOUND for one that is not remembered."""
        if (found := self._known.get(ref)) is None:
            raise WherryError(Kind.NOT_FOUND, f"no such exec instance: {ref[:80]}")
        return found

    def of(self, cid: str) -> list[str]:
        """The ids of those that run in a container."""
        return [one.id for one in self._known.values() if one.cid == cid and one.running]

    async def begin(self, one: Exec) -> Frames:
        """Start it."""
        if one.started:
            raise WherryError(Kind.CONFLICT, f"exec {one.id[:12]} has already run")
        one.started = True
        running = await self._beginnings.begin(
            one.cid, lambda: self._engine.exec(one.cid, one.options()), mortal=False
        )
        one.frames, one.running = Frames(running), True
        one.pid = running.pid
        one.begun.set()
        return one.frames

    def see_to_its_end(self, one: Exec) -> None:
        """Nobody listens to it any more."""
        one.task = asyncio.get_running_loop().create_task(self._drained(one))

    async def _drained(self, one: Exec) -> None:
        assert one.frames is not None
        await one.frames.quiet()
        async for _ in one.frames:
            pass
        await self._settled(one)

    async def ended(self, one: Exec) -> None:
        """Its output has ended: how did it? That is found out whether or not who asks stays for it."""
        one.task = task = asyncio.get_running_loop().create_task(self._settled(one))
        await asyncio.shield(task)

    async def _settled(self, one: Exec) -> None:
        assert one.frames is not None
        frames, one.frames = one.frames, None  # it is remembered for long, and its streams are not needed
        try:
            one.code = (await frames.wait()).code
        finally:
            one.running, one.at, one.pid, one.task = False, time.monotonic(), 0, None
            one.begun = _BEGUN
            frames.close()
            if self._engine.behind:  # its monitor has to be let go of
                asyncio.get_running_loop().run_in_executor(None, self._engine.catch_up)

    async def stop(self) -> None:
        """Let go of all: they run on."""
        for one in self._known.values():
            if one.task is not None:
                one.task.cancel()
            if one.frames is not None and one.running:
                one.frames.close()
        self._beginnings.close()
