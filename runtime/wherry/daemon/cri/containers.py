"""RuntimeService: containers of pods. Decides which calls wait for each other; the engine does the work."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from wherry.engine.pods.values import Member
from wherry.errors import Kind, WherryError

from . import answers, filters, requests
from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Containers"]

_LONGEST = 1 << 31  # seconds of grace: longer than any machine is up


class Containers:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._catalog = parts, parts.engine, parts.catalog

    async def CreateContainer(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        """Make a container in a pod, which is as it was made, not as this request says."""
        ref = requests.identity(request.pod_sandbox_id, "pod")
        await self._catalog.fresh()
        pod = self._catalog.pod(ref)
        options = requests.member_options(request, pod.options)
        key = ("create", pod.id, options.name, options.attempt)
        made = await self._parts.change(key, lambda: self._engine.create_member(pod.id, options))
        self._catalog.touch(made)
        return pb.CreateContainerResponse(container_id=made)

    async def StartContainer(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """Start it."""
        ref = requests.identity(request.container_id, "container")
        # among those that wait: in a pod with one pid namespace another container can hold the start up
        await self._parts.waited(("start", ref), lambda: self._started(ref), ref)
        return pb.StartContainerResponse()

    def _started(self, ref: str) -> None:
        member = self._engine.member(ref)
        if member.state != "created":
            raise WherryError(Kind.CONFLICT, f"container {member.id[:12]} is {member.state}, not created")
        self._engine.start(member.id).close()

    async def StopContainer(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """Stop it within the grace period."""
        ref = requests.identity(request.container_id, "container")
        timeout = min(max(request.timeout, 0), _LONGEST)
        await self._parts.waited(("stop", ref, timeout), lambda: self._engine.stop_member(ref, timeout), ref)
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        """Forget it."""
        ref = requests.identity(request.container_id, "container")
        await self._parts.change(("remove", ref), lambda: self._engine.remove_member(ref), ref)
        return pb.RemoveContainerResponse()

    async def ListContainers(self, request: pb.ListContainersRequest) -> bytes:
        """All that match."""
        return b"".join(await self._matching(request.filter))

    async def StreamContainers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        """The same, one by one: an answer has its one list in field 1 as well."""
        for item in await self._matching(request.filter):
            yield item

    async def _matching(self, wanted: pb.ContainerFilter) -> list[bytes]:
        await self._catalog.fresh()
        entries = self._catalog.members()
        if not wanted.ByteSize():
            return [entry.item for entry in entries]
        return [entry.item for entry in entries if filters.matches_container(entry.value, wanted)]

    async def ContainerStatus(self, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse:
        """One container."""
        ref = requests.identity(request.container_id, "container")
        await self._catalog.fresh()
        member = self._catalog.member(ref).value
        info = await self._parts.work.look(self._info, member) if request.verbose else {}
        return pb.ContainerStatusResponse(status=answers.container_status(member), info=info)

    def _info(self, member: Member) -> dict[str, str]:
        """What `crictl inspect` shows beside the status."""
        told = {
            "sandboxID": member.pod,
            "pid": member.pid,
            "config": member.options,
            "runtimeSpec": self._engine.bundle_config(member.id),
            "cgroup": member.cgroup,
        }
        return {"info": json.dumps(answers.plain(told))}

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """Change its limits, at once if it runs."""
        ref = requests.identity(request.container_id, "container")
        if not request.HasField("linux"):
            raise WherryError(Kind.INVALID, "the request has no resources of Linux")
        limits, notes = requests.resources(request.linux), dict(request.annotations)
        await self._parts.work.change(self._engine.update_member, ref, limits, notes)
        self._catalog.touch(ref)
        return pb.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(self, request: pb.ReopenContainerLogRequest) -> pb.ReopenContainerLogResponse:
        """Its log goes on in a new file."""
        ref = requests.identity(request.container_id, "container")
        await self._parts.work.change(self._engine.reopen_log, ref)
        return pb.ReopenContainerLogResponse()

    async def CheckpointContainer(self, request: pb.CheckpointContainerRequest) -> pb.CheckpointContainerResponse:
        """An archive of its processes and of what it changed; it goes on."""
        ref = requests.identity(request.container_id, "container")
        await self._parts.work.wait(self._engine.checkpoint_member, ref, request.location, request.timeout)
        return pb.CheckpointContainerResponse()
