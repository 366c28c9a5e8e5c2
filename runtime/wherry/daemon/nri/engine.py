"""The engine as plugins see it: each verb with what is told of it before and after.

Decides what is told when, and that the end and the removal of a container are told once, whoever ended it. What a
plugin refuses before something has happened fails the verb; afterwards it is only logged.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

from google.protobuf.message import Message

from wherry.engine import devices
from wherry.engine.engine import Engine
from wherry.engine.notifying import Notify
from wherry.engine.pods.hooks import Hooks
from wherry.engine.pods.values import Member, MemberOptions, Pod, PodOptions
from wherry.engine.running import Running
from wherry.errors import Kind, WherryError
from wherry.model import Json, Place

from . import api_pb2 as pb
from . import messages
from .adjust import Adjusting, Update, Updates
from .gate import Gate
from .owners import Owners
from .plugins import Plugins

__all__ = ["PluggedEngine"]

_log = logging.getLogger("wherryd.nri")
_PATIENCE = 0.2  # seconds until the end of a container that nobody stopped is seen
_GRACE = 10  # seconds that an evicted container has


class _Told(NamedTuple):
    """A container with its pod, as events have them."""

    pod: pb.PodSandbox
    container: pb.Container


class PluggedEngine(Engine):
    """An engine whose pods plugins take part in. `serve` before the first pod, `leave` at the end."""

    def __init__(self, place: Place, warn: Callable[[str], None], path: str, timeout: float) -> None:
        super().__init__(place, warn, answer_first=True)
        self._gate = Gate()
        self._plugins = Plugins(path, timeout, _Node(self, self._gate))
        self._alive: set[str] = set()  # whose end is still to be told
        self._ending = threading.Lock()
        self._drafts: dict[str, tuple[pb.PodSandbox, Adjusting]] = {}
        self._watching: asyncio.Task[None] | None = None
        self.hook(_Hooks(self))

    async def serve(self) -> None:
        """Let plugins come."""
        await self._plugins.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def leave(self) -> None:
        """Let them go."""
        if self._watching is not None:
            self._watching.cancel()
        await self._plugins.stop()

    # ---- telling ----

    def tell(
        self, method: str, request: Callable[[], Message], take: Callable[[str, Any], None] | None = None,
        then: Callable[[list[pb.PluginInstance]], Message | None] | None = None,
    ) -> None:  # fmt: skip
        """An event (`Plugins.tell`), from a thread; returns when all plugins have answered."""
        if self._plugins.any and not self._plugins.loop.is_closed():
            asyncio.run_coroutine_threadsafe(
                self._plugins.tell(method, request, take, then), self._plugins.loop
            ).result()

    def notice(self, method: str, request: Message, take: Callable[[str, Any], None] | None = None) -> None:
        """The same for what has happened already."""
        try:
            self.tell(method, lambda: request, take)
        except WherryError as error:
            _log.warning("%s", error)

    def _member(self, ref: str) -> Member | None:
        with suppress(WherryError):
            return self.member(ref)
        return None

    def _pod(self, ref: str) -> Pod | None:
        with suppress(WherryError):
            return self.pod(ref)
        return None

    def _told(self, member: Member) -> _Told:
        pod = self._pod(member.pod)
        config: Json = {}
        with suppress(WherryError, OSError):
            config = self.bundle_config(member.id)
        told = messages.pod(pod) if pod else pb.PodSandbox(id=member.pod)
        return _Told(told, messages.container(member, config))

    # ---- pods ----

    def run_pod(self, options: PodOptions) -> str:
        """As of an engine (its hook tells)."""
        try:
            return super().run_pod(options)
        finally:
            self._gate.leave()

    def making_pod(self, pod: Pod) -> None:
        """For the hook."""
        self._gate.enter()
        if self._plugins.any:
            request = pb.RunPodSandboxRequest(pod=messages.pod(pod))
            self.tell("RunPodSandbox", lambda: request)

    def lost_pod(self, pod: Pod) -> None:
        """For the hook."""
        told = messages.pod(pod)
        self.notice("StopPodSandbox", pb.StopPodSandboxRequest(pod=told))
        self.notice("RemovePodSandbox", pb.RemovePodSandboxRequest(pod=told))

    def stopping_pod(self, pod: Pod) -> None:
        """For the hook."""
        if self._plugins.any:
            for member in self._members_of(pod.id):
                self._ended(member.id)
            self.notice("StopPodSandbox", pb.StopPodSandboxRequest(pod=messages.pod(pod)))

    def _members_of(self, pod: str) -> Iterator[Member]:
        return (member for member in self.members() if member.pod == pod)

    def remove_pod(self, pod: str) -> None:
        """As of an engine, container by container."""
        known = self._pod(pod) if self._plugins.any else None
        if known is not None:
            super().stop_pod(known.id)
            for member in self._members_of(known.id):
                self.remove_member(member.id)
            self.notice("RemovePodSandbox", pb.RemovePodSandboxRequest(pod=messages.pod(known)))
        super().remove_pod(pod)

    def update_pod(self, pod: str, resources: Json, overhead: Json) -> None:
        """As of an engine."""
        if self._plugins.any:
            request = pb.UpdatePodSandboxRequest(
                pod=messages.pod(self.pod(pod)), overhead_linux_resources=messages.resources(overhead),
                linux_resources=messages.resources(resources),
            )  # fmt: skip
            self.tell("UpdatePodSandbox", lambda: request)
        super().update_pod(pod, resources, overhead)
        if self._plugins.any and (known := self._pod(pod)):
            self.notice("PostUpdatePodSandbox", pb.PostUpdatePodSandboxRequest(pod=messages.pod(known)))

    # ---- a container comes to be ----

    def create_member(self, pod: str, options: MemberOptions) -> str:
        """As of an engine (its hook tells before)."""
        try:
            made = super().create_member(pod, options)
            new = self._drafts.pop(made, None) is not None  # else it was there already, or there are no plugins
            if new:
                self._alive.add(made)
        finally:
            self._gate.leave()
        if new and (member := self._member(made)):
            self.notice("PostCreateContainer", pb.PostCreateContainerRequest(**self._told(member)._asdict()))
        return made

    def making_member(self, pod: Pod, member: Member, config: Json) -> tuple[Member, Json]:
        """For the hook: what plugins make of it."""
        self._gate.enter()
        if not self._plugins.any:
            return member, config
        it, told = Adjusting(member, config), messages.pod(pod)
        self._drafts[member.id] = told, it
        pristine = it.told()

        def take(plugin: str, answer: pb.CreateContainerResponse) -> None:
            it.take(plugin, answer)
            self._plugins.evict(plugin, answer.evict)

        def validation(plugins: list[pb.PluginInstance]) -> Message:
            return pb.ValidateContainerAdjustmentRequest(
                pod=told, container=pristine, adjust=it.asked, owners=it.owners.book, plugins=plugins,
                update=[_update(update) for update in it.updates.others()],
            )  # fmt: skip

        self.tell("CreateContainer", lambda: pb.CreateContainerRequest(pod=told, container=it.told()), take, validation)
        self._apply(it.updates.others())
        if it.cdi:
            it.put(devices.resolve(it.cdi))
        return (it.member, it.config) if it.config != config else (member, config)

    def lost_member(self, member: str) -> None:
        """For the hook."""
        if (draft := self._drafts.pop(member, None)) is not None:
            pod, container = draft[0], draft[1].told()
            self.notice("StopContainer", pb.StopContainerRequest(pod=pod, container=container))
            self.notice("RemoveContainer", pb.RemoveContainerRequest(pod=pod, container=container))

    def start(
        self, ref: str, *, attach: bool = False, interactive: bool = False, notify: Notify | None = None
    ) -> Running:
        """As of an engine."""
        member = self._member(ref) if self._plugins.any else None
        if member is not None:
            request = pb.StartContainerRequest(**self._told(member)._asdict())
            self.tell("StartContainer", lambda: request)
        running = super().start(ref, attach=attach, interactive=interactive, notify=notify)
        if member is not None and (now := self._member(ref)):
            self.notice("PostStartContainer", pb.PostStartContainerRequest(**self._told(now)._asdict()))
        return running

    # ---- its limits ----

    def update_member(self, container: str, resources: Json, annotations: Mapping[str, str]) -> None:
        """As of an engine, with what plugins make of it."""
        member = self.member(container) if self._plugins.any else None
        if member is None:
            super().update_member(container, resources, annotations)
            return
        updates = Updates(Owners(), Update(member.id, resources))
        told = self._told(member)

        def take(plugin: str, answer: pb.UpdateContainerResponse) -> None:
            updates.take(plugin, answer.update)
            self._plugins.evict(plugin, answer.evict)

        self.tell("UpdateContainer", lambda: pb.UpdateContainerRequest(
            **told._asdict(), linux_resources=messages.resources(updates.of(member.id))
        ), take)  # fmt: skip
        self._apply(updates.others(member.id))
        super().update_member(member.id, updates.of(member.id), annotations)
        if now := self._member(member.id):
            self.notice("PostUpdateContainer", pb.PostUpdateContainerRequest(**self._told(now)._asdict()))

    def change(self, container: str, limits: Json) -> None:
        """New limits as a plugin wants them: told to nobody."""
        super().update_member(container, limits, {})

    def _apply(self, updates: Iterable[Update]) -> None:
        for update in updates:
            try:
                self.change(update.container, update.limits)
            except (WherryError, OSError) as error:
                if not update.lenient:
                    raise
                _log.info("container %s keeps its limits: %s", update.container[:12], error)

    # ---- its end ----

    def stop_member(self, container: str, timeout: int) -> None:
        """As of an engine."""
        super().stop_member(container, timeout)
        self._ended(container)

    def remove_member(self, container: str) -> None:
        """As of an engine."""
        member = self._member(container) if self._plugins.any else None
        if member is not None:
            super().stop_member(member.id, 0)
            self._ended(member.id)
            self.notice("RemoveContainer", pb.RemoveContainerRequest(**self._told(self._member(member.id) or member)
                                                                     ._asdict()))  # fmt: skip
        super().remove_member(container)

    def _ended(self, ref: str) -> None:
        """Tell it, unless that was done, or is: then it is waited for."""
        member = self._member(ref) if self._plugins.any else None
        if member is None:
            return
        updates = Updates(Owners())
        with self._ending:
            if member.id not in self._alive:
                return
            self._alive.discard(member.id)
            request = pb.StopContainerRequest(**self._told(member)._asdict())
            self.notice("StopContainer", request, lambda plugin, told: updates.take(plugin, told.update))
            self._alive.discard(member.id)  # a plugin may have come while this waited for its turn
        try:
            self._apply(updates.others())
        except (WherryError, OSError) as error:
            _log.warning("what plugins want at the end of %s cannot be: %s", member.id[:12], error)

    async def _watch(self) -> None:
        """Containers that end by themselves."""
        tail, dead = self.changes(), set[str]()
        while True:
            await asyncio.sleep(_PATIENCE)
            dead |= {event["Actor"]["ID"] for event in tail.more() if event.get("Action") == "die" and "pod" in event}
            for ref in dead & self._alive if not tail.missed else set(self._alive):
                await asyncio.to_thread(self._ended_alone, ref)
            tail.missed = False
            dead &= self._alive  # whose end is written down a moment after it is told, is looked at once more

    def _ended_alone(self, ref: str) -> None:
        try:
            member = self._member(ref)
            if member is not None and member.state == "exited":
                self._ended(ref)
        except Exception:
            _log.exception("the end of %s could not be told", ref[:12])

    # ---- what there is ----

    def everything(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """For a plugin that comes; nothing is told to anybody meanwhile."""
        pods = [pod for pod in self.pods() if pod.ready]
        ready = {pod.id: messages.pod(pod) for pod in pods}
        members = [member for member in self.members() if member.pod in ready and member.state != "exited"]
        living = {member.id for member in members}
        self._alive = self._alive | living if self._plugins.any else living
        return list(ready.values()), [self._told(member).container for member in members]


def _update(update: Update) -> pb.ContainerUpdate:
    made = pb.ContainerUpdate(container_id=update.container, ignore_failure=update.lenient)
    made.linux.resources.CopyFrom(messages.resources(update.limits))
    return made


class _Hooks(Hooks):
    """What the engine calls in the middle of its verbs."""

    def __init__(self, engine: PluggedEngine) -> None:
        self._engine = engine

    def run_pod(self, pod: Pod) -> None:
        self._engine.making_pod(pod)

    def lost_pod(self, pod: Pod) -> None:
        self._engine.lost_pod(pod)

    def stop_pod(self, pod: Pod) -> None:
        self._engine.stopping_pod(pod)

    def create_member(self, pod: Pod, member: Member, config: Json) -> tuple[Member, Json]:
        return self._engine.making_member(pod, member, config)

    def lost_member(self, member: str) -> None:
        self._engine.lost_member(member)


class _Node:
    """What plugins ask for (`plugins.Node`)."""

    def __init__(self, engine: PluggedEngine, gate: Gate) -> None:
        self._engine, self._gate = engine, gate

    def still(self) -> AbstractContextManager[None]:
        return self._gate.still()

    def everything(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        return self._engine.everything()

    def change(self, plugin: str, updates: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        failed = []
        for update in updates:
            try:
                self._engine.change(_identity(update.container_id), messages.limits(update.linux.resources))
            except (WherryError, OSError) as error:
                _log.info("plugin %s: container %s keeps its limits: %s", plugin, update.container_id[:12], error)
                if not update.ignore_failure:
                    failed.append(update)
        return failed

    def evict(self, plugin: str, evictions: Iterable[pb.ContainerEviction]) -> None:
        for eviction in evictions:
            _log.info("plugin %s evicts %s: %s", plugin, eviction.container_id[:12], eviction.reason[:200])
            try:
                self._engine.stop_member(_identity(eviction.container_id), _GRACE)
            except (WherryError, OSError) as error:
                _log.warning("container %s could not be evicted: %s", eviction.container_id[:12], error)


def _identity(text: str) -> str:
    if not text:
        raise WherryError(Kind.INVALID, "it names no container")
    return text
