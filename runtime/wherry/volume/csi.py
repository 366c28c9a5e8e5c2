"""A client of any CSI driver on a unix socket: its calls with plain values, its failures as sentences.

Decides deadlines, what is tried again, and which kind of failure a gRPC code is (CSI 1.12, "Error Scheme"). Refuses to
know what a volume is called here and where drivers come from. The only importer of grpc, and itself imported only when
a volume has a driver.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would go to the user's terminal
import grpc

from csi_spec import csi_pb2
from csi_spec.services import Stub
from wherry.errors import Kind, WherryError

__all__ = ["Client", "Expanded", "Handle", "Taken", "Usage", "Wish"]

_QUICK, _SLOW = 60.0, 3600.0  # seconds for a call: a copy of all bytes may take long, all else may not
_HELLO = 10.0  # for the calls of Identity, which come first and have no work to do
_LEAVING = (0.0, 0.1, 0.5, 1.0)  # pauses before a driver that may just have left is called again
_PATIENCE = 30.0  # seconds for which a volume may be busy with another call
_DETAILS = 1000  # characters of a driver's sentence that are shown
_PARENT = 0o700
_WHO = ""  # what a call is about that names no volume
_OPTIONS = (
    ("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, without the pause of one that failed
)  # fmt: skip
_Code = grpc.StatusCode
_KINDS = {
    _Code.INVALID_ARGUMENT: Kind.INVALID,
    _Code.OUT_OF_RANGE: Kind.INVALID,
    _Code.NOT_FOUND: Kind.NOT_FOUND,
    _Code.ALREADY_EXISTS: Kind.EXISTS,
    _Code.FAILED_PRECONDITION: Kind.CONFLICT,
    _Code.ABORTED: Kind.UNAVAILABLE,  # busy with another call for all of our patience
    _Code.RESOURCE_EXHAUSTED: Kind.EXHAUSTED,
    _Code.UNIMPLEMENTED: Kind.UNSUPPORTED,
    _Code.PERMISSION_DENIED: Kind.DENIED,
    _Code.UNAUTHENTICATED: Kind.DENIED,
    _Code.UNAVAILABLE: Kind.UNAVAILABLE,
    _Code.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
    _Code.CANCELLED: Kind.UNAVAILABLE,  # by a driver that ends: we never do
}
_GONE = (_Code.UNAVAILABLE, _Code.CANCELLED)
_AWAY = "is its driver running? containers that have the volume go on without it"


class Handle(NamedTuple):
    """A volume as its driver knows it; `size` in bytes, 0 where the driver does not tell."""

    id: str
    size: int
    access: str  # "mount" or "block"
    fs: str  # as it was asked; "" leaves it to the driver
    mode: str  # a name of VolumeCapability.AccessMode.Mode
    context: Mapping[str, str] = {}


class Wish(NamedTuple):
    """A volume that is to be made. `name` makes the call idempotent. `source`: ("volume" or "snapshot", its id)."""

    name: str
    size: int = 0
    access: str = "mount"
    fs: str = ""
    parameters: Mapping[str, str] = {}
    mutable: Mapping[str, str] = {}
    source: tuple[str, str] | None = None


class Taken(NamedTuple):
    """A snapshot as its driver knows it; `created` in Unix seconds."""

    id: str
    size: int
    created: float


class Expanded(NamedTuple):
    """What an expansion gave, and whether the node has to do its part."""

    size: int
    node: bool


class Usage(NamedTuple):
    """df of a volume in bytes, and its condition: "" is well."""

    total: int
    used: int
    available: int
    condition: str = ""


class Client:
    """One driver. `ensure` starts one that comes on demand; `name` is what failures call it. Calls connect by need."""

    def __init__(self, socket: str, name: str, ensure: Callable[[], object] | None = None) -> None:
        self._socket, self._name, self._ensure = socket, name, ensure
        self._channel: grpc.Channel | None = None

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # ---- one call ----

    def _call(self, method: str, request: Any, about: str, seconds: float = _QUICK) -> Any:
        """Call SERVICE.METHOD. Again where an on-demand driver was just leaving, and while a volume is busy:
        every call of CSI may be repeated."""
        deadline, pause, left = time.monotonic() + _PATIENCE, 0.05, list(_LEAVING) if self._ensure else []
        while True:
            try:
                return self._once(method, request, seconds)
            except grpc.RpcError as error:
                code = error.code()
                if left and (code in _GONE or (code is _Code.DEADLINE_EXCEEDED and method.startswith("Identity."))):
                    self.close()
                    time.sleep(left.pop(0))
                elif code is _Code.ABORTED and time.monotonic() < deadline:
                    time.sleep(pause)
                    pause = min(pause * 2, 1.0)
                else:
                    raise self._failed(method, about, error) from error

    def _once(self, method: str, request: Any, seconds: float) -> Any:
        if self._channel is None:
            if self._ensure is not None:
                self._ensure()
            self._channel = grpc.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
        service, _, name = method.partition(".")
        return getattr(Stub(self._channel, service), name)(request, timeout=seconds)

    def _failed(self, method: str, about: str, error: Any) -> WherryError:
        code, said = error.code(), " ".join(str(error.details() or "").split())[:_DETAILS]
        kind, who = _KINDS.get(code, Kind.INTERNAL), f"the volume driver {self._name}"
        prefix = f"{about}: " if about else ""
        if code is _Code.UNAVAILABLE and not self._answers():
            return WherryError(kind, f"{prefix}{who} does not answer", hint=_AWAY)
        if code is _Code.DEADLINE_EXCEEDED:
            return WherryError(kind, f"{prefix}{who} gave {method} no answer in time", hint=_AWAY)
        if code is _Code.UNIMPLEMENTED:
            return WherryError(kind, f"{prefix}{who} has no {method}")
        return WherryError(kind, f"{prefix}{self._name} says: {said or code.name}")

    def _answers(self) -> bool:
        try:
            self._once("Identity.GetPluginInfo", csi_pb2.GetPluginInfoRequest(), _HELLO)
        except (grpc.RpcError, WherryError):
            return False
        return True

    # ---- who it is and what it can ----

    @cached_property
    def info(self) -> tuple[str, str]:
        """The driver's own name and version."""
        found = self._call("Identity.GetPluginInfo", csi_pb2.GetPluginInfoRequest(), _WHO, _HELLO)
        return found.name, found.vendor_version

    def must_answer(self, about: str) -> None:
        """UNAVAILABLE if nobody is there: then what is asked next has had no effect."""
        self._call("Identity.GetPluginInfo", csi_pb2.GetPluginInfoRequest(), about, _HELLO)

    def ready(self) -> bool:
        """Identity.Probe: whether it is ready to serve; one that does not say is."""
        found = self._call("Identity.Probe", csi_pb2.ProbeRequest(), _WHO)
        return not found.HasField("ready") or bool(found.ready.value)

    @cached_property
    def _plugin(self) -> frozenset[str]:
        request = csi_pb2.GetPluginCapabilitiesRequest()
        found = self._call("Identity.GetPluginCapabilities", request, _WHO, _HELLO)
        kinds = csi_pb2.PluginCapability.Service.Type
        return frozenset(kinds.Name(one.service.type) for one in found.capabilities if one.HasField("service"))

    @cached_property
    def _controller(self) -> frozenset[str]:
        if "CONTROLLER_SERVICE" not in self._plugin:
            return frozenset()
        request = csi_pb2.ControllerGetCapabilitiesRequest()
        found = self._call("Controller.ControllerGetCapabilities", request, _WHO)
        return frozenset(csi_pb2.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in found.capabilities)

    @cached_property
    def _node(self) -> frozenset[str]:
        found = self._call("Node.NodeGetCapabilities", csi_pb2.NodeGetCapabilitiesRequest(), _WHO)
        return frozenset(csi_pb2.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in found.capabilities)

    @cached_property
    def _node_info(self) -> Any:
        return self._call("Node.NodeGetInfo", csi_pb2.NodeGetInfoRequest(), _WHO)

    def _must(self, capability: str, what: str) -> None:
        if capability not in self._controller:
            hint = f"it does not announce {capability}"
            raise WherryError(Kind.UNSUPPORTED, f"the volume driver {self._name} cannot {what}", hint=hint)

    @property
    def _mode(self) -> str:
        """Several containers of this node may write: the mode that says so, where both sides know it."""
        both = "SINGLE_NODE_MULTI_WRITER" in self._controller & self._node
        return "SINGLE_NODE_MULTI_WRITER" if both else "SINGLE_NODE_WRITER"

    # ---- controller ----

    def create(self, wish: Wish, about: str) -> Handle:
        """CreateVolume; the same wish again gives the same volume."""
        self._must("CREATE_DELETE_VOLUME", "make volumes")
        if wish.source:
            self._must("CLONE_VOLUME" if wish.source[0] == "volume" else "CREATE_DELETE_SNAPSHOT", "copy volumes")
        if wish.mutable:
            self._must("MODIFY_VOLUME", "limit a volume's io")
        mode = self._mode
        request = csi_pb2.CreateVolumeRequest(
            name=wish.name, parameters=wish.parameters, mutable_parameters=wish.mutable,
            volume_capabilities=[_capability(wish.access, wish.fs, mode)],
            capacity_range=csi_pb2.CapacityRange(required_bytes=wish.size) if wish.size else None,
            volume_content_source=_source(wish.source), accessibility_requirements=self._here(),
        )  # fmt: skip
        made = self._call("Controller.CreateVolume", request, about, _SLOW if wish.source else _QUICK).volume
        return Handle(made.volume_id, made.capacity_bytes or wish.size, wish.access, wish.fs, mode,
                      dict(made.volume_context))  # fmt: skip

    def _here(self) -> Any:
        """This node, for a driver whose volumes are not everywhere."""
        if "VOLUME_ACCESSIBILITY_CONSTRAINTS" not in self._plugin:
            return None
        topology = self._node_info.accessible_topology
        return csi_pb2.TopologyRequirement(requisite=[topology], preferred=[topology])

    def delete(self, volume: str, about: str) -> None:
        """DeleteVolume; gone already is success."""
        if "PUBLISH_UNPUBLISH_VOLUME" in self._controller:
            self._controller_unpublish(volume, about)
        self._call("Controller.DeleteVolume", csi_pb2.DeleteVolumeRequest(volume_id=volume), about)

    def snapshot(self, volume: str, name: str, about: str) -> Taken:
        """CreateSnapshot, and wait until it can be used."""
        self._must("CREATE_DELETE_SNAPSHOT", "take snapshots")
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume, name=name)
        deadline = time.monotonic() + _SLOW
        while True:
            made = self._call("Controller.CreateSnapshot", request, about, _SLOW).snapshot
            if made.ready_to_use:
                return Taken(made.snapshot_id, made.size_bytes, made.creation_time.ToNanoseconds() / 1e9)
            if time.monotonic() > deadline:
                raise WherryError(Kind.UNAVAILABLE, f"{about}: the snapshot is not ready after {_SLOW:.0f} s")
            time.sleep(1.0)

    def delete_snapshot(self, snapshot: str, about: str) -> None:
        """DeleteSnapshot; gone already is success."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot)
        self._call("Controller.DeleteSnapshot", request, about)

    def expand(self, volume: Handle, size: int, about: str) -> Expanded:
        """ControllerExpandVolume to at least `size` bytes; a driver may leave all of it to the node."""
        if "EXPAND_VOLUME" not in self._controller:
            if "EXPAND_VOLUME" in self._node:
                return Expanded(size, True)
            self._must("EXPAND_VOLUME", "make volumes larger")
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume.id, capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capability=_of(volume),
        )  # fmt: skip
        found = self._call("Controller.ControllerExpandVolume", request, about, _SLOW)
        return Expanded(found.capacity_bytes, found.node_expansion_required)

    def volumes(self, about: str) -> list[str]:
        """The ids of all volumes of the driver."""
        pages = self._pages("Controller.ListVolumes", csi_pb2.ListVolumesRequest, about)
        return [one.volume.volume_id for one in pages]

    def snapshots(self, about: str) -> list[str]:
        """The ids of all snapshots of the driver."""
        pages = self._pages("Controller.ListSnapshots", csi_pb2.ListSnapshotsRequest, about)
        return [one.snapshot.snapshot_id for one in pages]

    def _pages(self, method: str, kind: Any, about: str) -> list[Any]:
        found, token = [], ""
        while True:
            page = self._call(method, kind(starting_token=token), about)
            found += page.entries
            if not (token := page.next_token):
                return found

    def condition(self, volume: str, about: str) -> str:
        """What the controller says is wrong with a volume, "" for nothing (or where it does not tell)."""
        if not {"GET_VOLUME", "VOLUME_CONDITION"} <= self._controller:
            return ""
        request = csi_pb2.ControllerGetVolumeRequest(volume_id=volume)
        found = self._call("Controller.ControllerGetVolume", request, about).status.volume_condition
        return _told(found)

    # ---- node ----

    def attach(self, volume: Handle, staging: str, target: str, *, readonly: bool, about: str) -> None:
        """Make the volume appear at `target`: ControllerPublish, NodeStage, NodePublish, as far as the driver has
        them."""
        context = self._controller_publish(volume, about)
        common: Any = {"volume_id": volume.id, "publish_context": context, "volume_capability": _of(volume),
                  "volume_context": volume.context}  # fmt: skip
        staged = "STAGE_UNSTAGE_VOLUME" in self._node
        if staged:
            os.makedirs(staging, _PARENT, exist_ok=True)
            stage = csi_pb2.NodeStageVolumeRequest(staging_target_path=staging, **common)
            self._call("Node.NodeStageVolume", stage, about)
        os.makedirs(os.path.dirname(target), _PARENT, exist_ok=True)
        request = csi_pb2.NodePublishVolumeRequest(
            target_path=target, readonly=readonly, staging_target_path=staging if staged else "", **common
        )
        self._call("Node.NodePublishVolume", request, about)

    def _controller_publish(self, volume: Handle, about: str) -> Mapping[str, str]:
        if "PUBLISH_UNPUBLISH_VOLUME" not in self._controller:
            return {}
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=volume.id, node_id=self._node_info.node_id, volume_capability=_of(volume),
            volume_context=volume.context,
        )  # fmt: skip
        return dict(self._call("Controller.ControllerPublishVolume", request, about).publish_context)

    def _controller_unpublish(self, volume: str, about: str) -> None:
        request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume, node_id=self._node_info.node_id)
        self._call("Controller.ControllerUnpublishVolume", request, about)

    def unpublish(self, volume: str, target: str, about: str) -> None:
        """NodeUnpublishVolume; the target is gone after it."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target)
        self._gone("Node.NodeUnpublishVolume", request, about)
        _clear(target)

    def release(self, volume: str, staging: str, about: str) -> None:
        """Undo the rest of `attach`, once nothing is published any more."""
        if "STAGE_UNSTAGE_VOLUME" in self._node:
            request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=staging)
            self._gone("Node.NodeUnstageVolume", request, about)
        if "PUBLISH_UNPUBLISH_VOLUME" in self._controller:
            self._controller_unpublish(volume, about)
        _clear(staging)

    def _gone(self, method: str, request: Any, about: str) -> None:
        """A volume that does not exist any more is not in use either."""
        try:
            self._call(method, request, about)
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise

    def grow_on_node(self, volume: Handle, size: int, staging: str, target: str, about: str) -> None:
        """NodeExpandVolume of what is published at `target`."""
        request = csi_pb2.NodeExpandVolumeRequest(
            volume_id=volume.id, volume_path=target, capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            staging_target_path=staging if "STAGE_UNSTAGE_VOLUME" in self._node else "", volume_capability=_of(volume),
        )  # fmt: skip
        self._call("Node.NodeExpandVolume", request, about, _SLOW)

    def usage(self, volume: Handle, staging: str, target: str, about: str) -> Usage:
        """NodeGetVolumeStats of what is published at `target`; statvfs(3) of it where the driver has none."""
        if "GET_VOLUME_STATS" not in self._node:
            return _measured(target, volume.size)
        staged = staging if "STAGE_UNSTAGE_VOLUME" in self._node else ""
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.id, volume_path=target, staging_target_path=staged)
        found = self._call("Node.NodeGetVolumeStats", request, about)
        condition = _told(found.volume_condition)
        for one in found.usage:
            if one.unit == csi_pb2.VolumeUsage.Unit.BYTES:
                return Usage(one.total or volume.size, one.used, one.available, condition)
        return _measured(target, volume.size)._replace(condition=condition)


def _told(condition: Any) -> str:
    return " ".join((condition.message or "abnormal").split())[:_DETAILS] if condition.abnormal else ""


def _measured(target: str, size: int) -> Usage:
    if not stat.S_ISDIR(os.stat(target).st_mode):
        return Usage(size, size, 0)
    found = os.statvfs(target)
    unit = found.f_frsize
    return Usage(found.f_blocks * unit, (found.f_blocks - found.f_bfree) * unit, found.f_bavail * unit)


def _of(volume: Handle) -> Any:
    return _capability(volume.access, volume.fs, volume.mode)


def _capability(access: str, fs: str, mode: str) -> Any:
    kinds = csi_pb2.VolumeCapability
    how = kinds.AccessMode(mode=mode)
    if access == "block":
        return kinds(block=kinds.BlockVolume(), access_mode=how)
    return kinds(mount=kinds.MountVolume(fs_type=fs), access_mode=how)


def _source(source: tuple[str, str] | None) -> Any:
    kinds = csi_pb2.VolumeContentSource
    if source is None:
        return None
    if source[0] == "volume":
        return kinds(volume=kinds.VolumeSource(volume_id=source[1]))
    return kinds(snapshot=kinds.SnapshotSource(snapshot_id=source[1]))


def _clear(path: str) -> None:
    """An empty directory, or file, that a driver left; what is still mounted stays (EBUSY, ENOTEMPTY)."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)
