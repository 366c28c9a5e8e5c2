"""The Controller service: requests checked, the verb of life.py or snapshots.py called, the answer written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.wrappers_pb2 import Int64Value

from csi_spec import csi_pb2

from . import answers, requests
from .backend.all import BACKENDS
from .capacity import available
from .conditions import Conditions, trouble
from .errors import CsiError
from .life import Life
from .placement import Draft, fs_of, unfit
from .pools import Pool
from .records import Volume
from .snapshots import Snapshots

__all__ = ["Controller"]

_ALWAYS = (
    "CREATE_DELETE_VOLUME", "LIST_VOLUMES", "GET_CAPACITY", "CREATE_DELETE_SNAPSHOT", "LIST_SNAPSHOTS", "CLONE_VOLUME",
    "EXPAND_VOLUME", "VOLUME_CONDITION", "GET_VOLUME", "SINGLE_NODE_MULTI_WRITER", "MODIFY_VOLUME",
)
_SINCE = {"1.12": ("GET_SNAPSHOT",)}
_PUBLISHING = ("PUBLISH_UNPUBLISH_VOLUME", "PUBLISH_READONLY", "LIST_VOLUMES_PUBLISHED_NODES")


class Controller:
    """Controller of the spec. `limited` is called when the io limits of a volume have changed."""

    def __init__(self, life: Life, limited: Callable[[Pool, Volume], None]) -> None:
        self._life = life
        self._limited = limited
        self._snapshots = Snapshots(life)
        self._conditions = Conditions()

    def ControllerGetCapabilities(
        self, _request: csi_pb2.ControllerGetCapabilitiesRequest, _context: Any
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """What is declared, by the configuration and the spec's version."""
        config = self._life.config
        names = [*_ALWAYS, *(_PUBLISHING if config.controller_publish else ()), *_SINCE.get(config.spec, ())]
        if config.expand_on_node:
            names.remove("EXPAND_VOLUME")
        rpc = csi_pb2.ControllerServiceCapability.RPC
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=rpc(type=name)) for name in names]
        )

    # --- volumes --------------------------------------------------------------------------------------------------

    def CreateVolume(self, request: csi_pb2.CreateVolumeRequest, _context: Any) -> csi_pb2.CreateVolumeResponse:
        """Make a volume, empty or from a source."""
        draft = Draft(
            requests.name(request.name),
            requests.size_range(request.capacity_range, request.HasField("capacity_range")),
            requests.capabilities(request.volume_capabilities),
            requests.wish(request.parameters, request.mutable_parameters),
            requests.source(request.volume_content_source, request.HasField("volume_content_source")),
            [dict(one.segments) for one in request.accessibility_requirements.requisite],
            [dict(one.segments) for one in request.accessibility_requirements.preferred],
        )
        return csi_pb2.CreateVolumeResponse(volume=answers.volume(*self._life.create(draft)))

    def DeleteVolume(self, request: csi_pb2.DeleteVolumeRequest, _context: Any) -> csi_pb2.DeleteVolumeResponse:
        """Delete a volume; its snapshots stay."""
        self._life.delete(requests.identity(request.volume_id, "volume_id"))
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, _context: Any
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm capabilities and parameters that the volume has, or say which it has not."""
        ident = requests.identity(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise CsiError("INVALID_ARGUMENT", "volume_capabilities are missing: say what is to be checked")
        pool, volume = self._life.volume(ident)
        if why := _unconfirmed(pool, volume, request):
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=why)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ListVolumes(self, request: csi_pb2.ListVolumesRequest, _context: Any) -> csi_pb2.ListVolumesResponse:
        """A page of volumes with their conditions."""
        where = {record.id: (pool, record) for pool, record in self._life.volumes()}
        kept = [record for _, record in where.values()]
        listed, token = answers.page(kept, requests.entries(request.max_entries), request.starting_token)
        conditions = self._conditions.of([where[record.id] for record in listed])
        entries = [
            csi_pb2.ListVolumesResponse.Entry(
                volume=answers.volume(*where[record.id]),
                status=csi_pb2.ListVolumesResponse.VolumeStatus(
                    published_node_ids=record.published, volume_condition=answers.condition(conditions[record.id])
                ),
            )
            for record in listed
        ]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, _context: Any
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """A volume and its condition."""
        pool, record = self._life.volume(requests.identity(request.volume_id, "volume_id"))
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus(
            published_node_ids=record.published, volume_condition=answers.condition(trouble(pool, record))
        )
        return csi_pb2.ControllerGetVolumeResponse(volume=answers.volume(pool, record), status=status)

    def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, _context: Any
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Grow a volume, in use or not."""
        if self._life.config.expand_on_node:
            raise CsiError("UNIMPLEMENTED", "volumes are expanded by their node (--expand-on-node)")
        ident = requests.identity(request.volume_id, "volume_id")
        wanted = requests.size_range(request.capacity_range, request.HasField("capacity_range"), required=True)
        given = request.HasField("volume_capability")
        capability = requests.capability(request.volume_capability) if given else None
        record, on_node = self._life.expand(ident, wanted, capability)
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=record.shape.size, node_expansion_required=on_node
        )

    def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, _context: Any
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Change io limits, also of what is published."""
        ident = requests.identity(request.volume_id, "volume_id")
        limits = requests.limits(request.mutable_parameters, required=True)
        with self._life.held(ident):
            self._limited(*self._life.modify(ident, limits))
        return csi_pb2.ControllerModifyVolumeResponse()

    def GetCapacity(self, request: csi_pb2.GetCapacityRequest, _context: Any) -> csi_pb2.GetCapacityResponse:
        """What can still be promised to such volumes: in all pools together, and to the largest one."""
        found = requests.capabilities(request.volume_capabilities) if request.volume_capabilities else [_ANY]
        near = [dict(request.accessible_topology.segments)] if request.HasField("accessible_topology") else []
        draft = Draft("", requests.Range(), found, requests.wish(request.parameters, {}), None, near)
        able = self._life.pools_for(draft)
        disks: dict[str, int] = {}
        for pool, _ in able:  # pools on one disk have what is left together
            disks[pool.disk] = max(disks.get(pool.disk, 0), available(pool))
        answer = csi_pb2.GetCapacityResponse(
            available_capacity=sum(disks.values()),
            maximum_volume_size=Int64Value(value=max(disks.values(), default=0)),
        )
        if able:
            least = min(BACKENDS[backend].fit(0, draft.access, fs_of(backend, draft)) for _, backend in able)
            answer.minimum_volume_size.CopyFrom(Int64Value(value=least))
        return answer

    # --- publishing -----------------------------------------------------------------------------------------------

    def ControllerPublishVolume(
        self, request: csi_pb2.ControllerPublishVolumeRequest, _context: Any
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        """Remember that the volume is for this node."""
        self._need_publishing()
        ident, node = requests.identity(request.volume_id, "volume_id"), requests.node(request.node_id)
        capability = requests.capability(request.volume_capability, request.HasField("volume_capability"))
        self._life.volume(ident)
        if node != self._life.config.node_id:
            raise CsiError("NOT_FOUND", f"there is no node {node!r}; this one is {self._life.config.node_id!r}")
        self._life.publish(ident, request.readonly, capability)
        return csi_pb2.ControllerPublishVolumeResponse(publish_context={"readonly": str(request.readonly).lower()})

    def ControllerUnpublishVolume(
        self, request: csi_pb2.ControllerUnpublishVolumeRequest, _context: Any
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        """Forget it."""
        self._need_publishing()
        ident = requests.identity(request.volume_id, "volume_id")
        self._life.unpublish(ident, requests.node(request.node_id) if request.node_id else "")
        return csi_pb2.ControllerUnpublishVolumeResponse()

    def _need_publishing(self) -> None:
        if not self._life.config.controller_publish:
            raise CsiError("UNIMPLEMENTED", "volumes of this node need no controller publishing (--controller-publish)")

    # --- snapshots ------------------------------------------------------------------------------------------------

    def CreateSnapshot(self, request: csi_pb2.CreateSnapshotRequest, _context: Any) -> csi_pb2.CreateSnapshotResponse:
        """Take a snapshot."""
        name = requests.name(request.name)
        ident = requests.identity(request.source_volume_id, "source_volume_id")
        requests.only_known(request.parameters, "parameters of a snapshot")
        return csi_pb2.CreateSnapshotResponse(snapshot=answers.snapshot(self._snapshots.take(name, ident)[1]))

    def DeleteSnapshot(self, request: csi_pb2.DeleteSnapshotRequest, _context: Any) -> csi_pb2.DeleteSnapshotResponse:
        """Delete a snapshot; what was made from it stays."""
        self._snapshots.delete(requests.identity(request.snapshot_id, "snapshot_id"))
        return csi_pb2.DeleteSnapshotResponse()

    def ListSnapshots(self, request: csi_pb2.ListSnapshotsRequest, _context: Any) -> csi_pb2.ListSnapshotsResponse:
        """A page of snapshots, of one volume or the one of an id if that is asked."""
        volume, ident = request.source_volume_id, request.snapshot_id
        every = self._life.snapshots()
        kept = [record for record in every if volume in ("", record.volume) and ident in ("", record.id)]
        listed, token = answers.page(kept, requests.entries(request.max_entries), request.starting_token)
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=answers.snapshot(record)) for record in listed]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    def GetSnapshot(self, request: csi_pb2.GetSnapshotRequest, _context: Any) -> csi_pb2.GetSnapshotResponse:
        """A snapshot."""
        ident = requests.identity(request.snapshot_id, "snapshot_id")
        return csi_pb2.GetSnapshotResponse(snapshot=answers.snapshot(self._life.snapshot(ident)[1]))


_ANY = requests.Capability("mount", "", "SINGLE_NODE_WRITER")


def _unconfirmed(pool: Pool, volume: Volume, request: csi_pb2.ValidateVolumeCapabilitiesRequest) -> str:
    """Why capabilities or parameters are not those of the volume; "" if they are."""
    try:
        asked = requests.capabilities(request.volume_capabilities)
        wish = requests.wish(request.parameters, request.mutable_parameters)
    except CsiError as error:
        return str(error)
    reasons = [unfit(pool, volume, one) for one in asked]
    if wish.pool not in ("", pool.name):
        reasons.append(f"it is in pool {pool.name}")
    if wish.backend not in ("", volume.backend):
        reasons.append(f"its backend is {volume.backend}")
    if wish.provisioning and (wish.provisioning == "thick") != volume.shape.thick:
        reasons.append(f"it is {'thick' if volume.shape.thick else 'thin'}")
    return next((f"volume {volume.id!r}: {why}" for why in reasons if why), "")
