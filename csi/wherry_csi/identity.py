"""The Identity service: who the driver is, what it can do, whether its pools are in order."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from google.protobuf.wrappers_pb2 import BoolValue

from csi_spec import csi_pb2

from .catalog import Catalog
from .errors import CsiError

__all__ = ["NAME", "Identity"]

NAME = "csi.wherry.dev"

_SERVICES = (
    "CONTROLLER_SERVICE", "GROUP_CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS", "SNAPSHOT_METADATA_SERVICE",
)


class Identity:
    """Identity of the spec."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def GetPluginInfo(self, _request: csi_pb2.GetPluginInfoRequest, _context: Any) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        manifest = {"pools": ",".join(pool.name for pool in self._catalog.pools)[:128]}
        return csi_pb2.GetPluginInfoResponse(name=NAME, vendor_version=_version(), manifest=manifest)

    def GetPluginCapabilities(
        self, _request: csi_pb2.GetPluginCapabilitiesRequest, _context: Any
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """All services, and growth in use."""
        kinds = csi_pb2.PluginCapability
        found = [kinds(service=kinds.Service(type=name)) for name in _SERVICES]
        online = kinds(volume_expansion=kinds.VolumeExpansion(type=kinds.VolumeExpansion.Type.ONLINE))
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=[*found, online])

    def Probe(self, _request: csi_pb2.ProbeRequest, _context: Any) -> csi_pb2.ProbeResponse:
        """Ready while a pool can be used; else FAILED_PRECONDITION with what is wrong with them.

        One dead disk of several must not have the driver restarted again and again: conditions and capacity tell of it.
        """
        troubles = self._catalog.probe()
        if len(troubles) == len(self._catalog.pools):
            raise CsiError("FAILED_PRECONDITION", "; ".join(troubles))
        return csi_pb2.ProbeResponse(ready=BoolValue(value=True))


def _version() -> str:
    try:
        return metadata.version("wherry")
    except metadata.PackageNotFoundError:
        return "0"
