"""RuntimeService: pods. Decides which calls wait for each other; the engine does the work."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from wherry.engine.pods.values import Pod

from . import answers, filters, requests
from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Pods"]


class Pods:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._catalog = parts, parts.engine, parts.catalog

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """Make a pod."""
        options = requests.pod_options(request)
        key = ("run", options.namespace, options.name, options.uid, options.attempt)
        pod = await self._parts.joining(key, lambda: self._engine.run_pod(options))
        self._catalog.touch(pod)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        """Stop what runs in it, give back what it holds."""
        pod = requests.identity(request.pod_sandbox_id, "pod")
        await self._parts.waited(("stop", pod), lambda: self._engine.stop_pod(pod), pod)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        """Forget it."""
        pod = requests.identity(request.pod_sandbox_id, "pod")
        await self._parts.waited(("remove", pod), lambda: self._engine.remove_pod(pod), pod)
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse:
        """One pod, with its containers."""
        ref = requests.identity(request.pod_sandbox_id, "pod")
        await self._catalog.fresh()
        pod = self._catalog.pod(ref)
        return pb.PodSandboxStatusResponse(
            status=answers.pod_status(pod), info=_info(pod) if request.verbose else {},
            containers_statuses=[answers.container_status(member) for member in self._catalog.members_of(pod.id)],
            timestamp=time.time_ns(),
        )  # fmt: skip

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        """All that match."""
        return b"".join(await self._matching(request.filter))

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest) -> AsyncIterator[bytes]:
        """The same, one by one: an answer has its one list in field 1 as well."""
        for item in await self._matching(request.filter):
            yield item

    async def _matching(self, wanted: pb.PodSandboxFilter) -> list[bytes]:
        await self._catalog.fresh()
        entries = self._catalog.pods()
        if not wanted.ByteSize():
            return [entry.item for entry in entries]
        return [entry.item for entry in entries if filters.matches_pod(entry.value, wanted)]

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Change the limits of all of a pod."""
        pod = requests.identity(request.pod_sandbox_id, "pod")
        limits, overhead = requests.resources(request.resources), requests.resources(request.overhead)
        await self._parts.work.change(self._engine.update_pod, pod, limits, overhead)
        self._catalog.touch(pod)
        return pb.UpdatePodSandboxResourcesResponse()


def _info(pod: Pod) -> dict[str, str]:
    """What `crictl inspectp` shows beside the status."""
    held = pod.held
    told = {
        "pid": held.pause.pid if held and held.pause else 0,
        "config": pod.options,
        "runtimeType": "wherry",
        "held": held,
    }
    return {"info": json.dumps(answers.plain(told))}
