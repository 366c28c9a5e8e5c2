"""The GroupController service: snapshots of several volumes at one instant."""

from __future__ import annotations

from typing import Any

from csi_spec import csi_pb2

from . import answers, requests
from .catalog import Catalog
from .errors import CsiError
from .snapshots import Snapshots, check_members

__all__ = ["Groups"]


class Groups:
    """GroupController of the spec."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._snapshots = Snapshots(catalog)

    def GroupControllerGetCapabilities(
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: Any
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """The one that there is."""
        rpc = csi_pb2.GroupControllerServiceCapability.RPC
        kind = rpc.Type.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
        return csi_pb2.GroupControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.GroupControllerServiceCapability(rpc=rpc(type=kind))]
        )

    def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, _context: Any
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """All volumes at one instant, or none."""
        name = requests.name(request.name)
        sources = [requests.identity(one, "source_volume_ids") for one in request.source_volume_ids]
        if not sources or len(set(sources)) < len(sources):
            raise CsiError("INVALID_ARGUMENT", "source_volume_ids are missing, or one is named twice")
        requests.only_known(request.parameters, "parameters of a group snapshot")
        pool, group = self._snapshots.take_group(name, sources)
        answer = answers.group(group, answers.members(pool, group))
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=answer)

    def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, _context: Any
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """The group and its snapshots."""
        ident = requests.identity(request.group_snapshot_id, "group_snapshot_id")
        self._snapshots.delete_group(ident, [requests.identity(one, "snapshot_ids") for one in request.snapshot_ids])
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, _context: Any
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """A group with its snapshots."""
        ident = requests.identity(request.group_snapshot_id, "group_snapshot_id")
        pool, group = self._catalog.group(ident)
        check_members(group, request.snapshot_ids)
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=answers.group(group, answers.members(pool, group)))
