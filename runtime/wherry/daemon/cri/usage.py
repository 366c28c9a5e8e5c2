"""RuntimeService: what pods and containers use.

Decides over what time a rate is told: between the sample before, if it is not too old, and this one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from wherry.engine.pods.values import Member, Pod
from wherry.engine.pods.values import Usage as Used

from . import answers, filters, requests
from . import api_pb2 as pb
from .catalog import Entry, framed

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Rates", "Usage"]

_SHORTEST = 0.5  # seconds between two samples that make a rate: less is noise


class Rates:
    """Nanocores by two samples of one object."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int, int | None]] = {}  # time, cpu ns, the rate then

    def of(self, ref: str, used: Used | None) -> int | None:
        """The rate since the last sample; None for the first one."""
        if used is None or used.cpu_ns is None:
            return None
        when, before, rate = self._before.get(ref, (0.0, 0, None))
        if when and used.time - when < _SHORTEST:
            return rate
        rate = max(0, int((used.cpu_ns - before) / (used.time - when))) if when else None
        self._before[ref] = used.time, used.cpu_ns, rate
        return rate

    def forget_but(self, refs: Mapping[str, object]) -> None:
        """Forget what is gone."""
        for ref in self._before.keys() - refs.keys():
            del self._before[ref]


class Usage:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._catalog = parts, parts.engine, parts.catalog
        self._rates = Rates()

    async def ContainerStats(self, request: pb.ContainerStatsRequest) -> bytes:
        """Of one container."""
        ref = requests.identity(request.container_id, "container")
        await self._catalog.fresh()
        entry = self._catalog.member(ref)
        used = await self._parts.work.look(self._engine.usage, [entry.value.id])
        return framed(1, self._container(entry, used))

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest) -> bytes:
        """Of all that match."""
        return b"".join(await self._containers(request.filter))

    async def StreamContainerStats(self, request: pb.StreamContainerStatsRequest) -> AsyncIterator[bytes]:
        """The same, one by one: an answer has its one list in field 1 as well."""
        for item in await self._containers(request.filter):
            yield item

    async def _containers(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        await self._catalog.fresh()
        entries = [entry for entry in self._catalog.members() if filters.matches_container(entry.value, wanted)]
        return await self._parts.work.look(self._told, entries)

    def _told(self, entries: list[Entry[Member]]) -> list[bytes]:
        used = self._engine.usage([entry.value.id for entry in entries]) if entries else {}
        return [framed(1, self._container(entry, used)) for entry in entries]

    def _container(self, entry: Entry[Member], used: Mapping[str, Used]) -> bytes:
        """ContainerStats: its attributes, which are kept as bytes, and what it uses now."""
        ref = entry.value.id
        now = answers.container_stats(used.get(ref), self._rates.of(ref, used.get(ref)))
        return entry.attributes + now.SerializeToString()

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
        """Of one pod."""
        ref = requests.identity(request.pod_sandbox_id, "pod")
        await self._catalog.fresh()
        found = await self._parts.work.look(self._of_pods, [self._catalog.pod(ref)])
        return pb.PodSandboxStatsResponse(stats=found[0])

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest) -> pb.ListPodSandboxStatsResponse:
        """Of all ready ones that match."""
        return pb.ListPodSandboxStatsResponse(stats=await self._pods(request.filter))

    async def StreamPodSandboxStats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        """The same, one by one."""
        for stats in await self._pods(request.filter):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=[stats])

    async def _pods(self, wanted: pb.PodSandboxStatsFilter) -> list[pb.PodSandboxStats]:
        await self._catalog.fresh()
        pods = [entry.value for entry in self._catalog.pods() if filters.matches_pod(entry.value, wanted)]
        return await self._parts.work.look(self._of_pods, [pod for pod in pods if pod.ready])

    def _of_pods(self, pods: list[Pod]) -> list[pb.PodSandboxStats]:
        if not pods:
            return []
        members: dict[str, list[Entry[Member]]] = {pod.id: [] for pod in pods}
        for entry in list(self._catalog.members()):
            if entry.value.pod in members and entry.value.state == "running":
                members[entry.value.pod].append(entry)
        ids = [*members, *(entry.value.id for entries in members.values() for entry in entries)]
        used = self._engine.usage(ids)
        return [self._of_pod(pod, members[pod.id], used) for pod in pods]

    def _of_pod(self, pod: Pod, entries: list[Entry[Member]], used: Mapping[str, Used]) -> pb.PodSandboxStats:
        stats = [self._container(entry, used) for entry in entries]
        return answers.pod_stats(pod, used.get(pod.id), self._rates.of(pod.id, used.get(pod.id)), stats)
