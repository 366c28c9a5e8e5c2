"""RuntimeService: events of containers, as they happen.

Decides what of the engine's events a kubelet hears, and that a listener who does not keep up, or who misses an event
that could not be told, is let go: he comes again and lists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from wherry.engine.events import Tail
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import answers
from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Happenings", "kind_of"]

_log = logging.getLogger("wherryd.cri")
_KINDS: Mapping[tuple[str, str], int] = {
    ("container", "create"): pb.CONTAINER_CREATED_EVENT,
    ("container", "start"): pb.CONTAINER_STARTED_EVENT,
    ("container", "die"): pb.CONTAINER_STOPPED_EVENT,
    ("container", "destroy"): pb.CONTAINER_DELETED_EVENT,
    ("pod", "create"): pb.CONTAINER_CREATED_EVENT,
    ("pod", "start"): pb.CONTAINER_STARTED_EVENT,
    ("pod", "stop"): pb.CONTAINER_STOPPED_EVENT,
    ("pod", "destroy"): pb.CONTAINER_DELETED_EVENT,
}
_MOST = 1024  # events that wait for one listener
_PATIENCE = 0.2  # seconds until an event that no call of ours made is seen


def kind_of(event: Json) -> int | None:
    """What a kubelet calls it; None for what does not concern it."""
    found = _KINDS.get((event.get("Type", ""), event.get("Action", "")))
    return found if event.get("Type") == "pod" or "pod" in event else None


class Happenings:
    """The call. One task follows the events for all who listen, while somebody does."""

    def __init__(self, parts: Parts) -> None:
        self._engine, self._catalog = parts.engine, parts.catalog
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def GetContainerEvents(self, _request: pb.GetEventsRequest) -> AsyncIterator[bytes]:
        """What happens from now on, until the caller goes."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MOST)
        self._listeners.add(queue)
        if self._task is None:
            self._task = asyncio.ensure_future(self._follow(self._engine.changes()))
        try:
            while not queue.full():
                if (message := await queue.get()) is None:
                    return
                yield message
            raise WherryError(Kind.EXHAUSTED, f"{_MOST} events waited for this listener", hint="list, and listen again")
        finally:
            self._listeners.discard(queue)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    def stop(self) -> None:
        """End all streams: nobody listens to a server that is ending."""
        self._tell(None)

    async def _follow(self, tail: Tail) -> None:
        while True:
            try:
                await self._tell_new(tail)
            except Exception:  # whatever it is: nobody waits for us for ever, and the next who listens is served
                _log.exception("events could not be told: who listens must list")
                self._tell(None)
            self._catalog.poked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._catalog.poked.wait()

    async def _tell_new(self, tail: Tail) -> None:
        events = tail.more()
        if tail.missed:  # who listens must list
            tail.missed = False
            self._tell(None)
        for event in events:
            if (kind := kind_of(event)) is not None:
                self._tell(await self._made(event, kind))

    def _tell(self, message: bytes | None) -> None:
        for queue in self._listeners:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(message)

    async def _made(self, event: Json, kind: int) -> bytes:
        """An event with how the pod and its containers are now; of a pod that is gone nothing is known."""
        actor = event["Actor"]
        made = pb.ContainerEventResponse(
            container_id=actor["ID"], container_event_type=kind, created_at=event["timeNano"]  # type: ignore[arg-type]
        )
        ref = actor["ID"] if event["Type"] == "pod" else event["pod"]
        await self._catalog.fresh()
        with suppress(WherryError):
            pod = self._catalog.pod(ref)
            made.pod_sandbox_status.CopyFrom(answers.pod_status(pod))
            made.containers_statuses.extend(answers.container_status(m) for m in self._catalog.members_of(pod.id))
        return made.SerializeToString()
