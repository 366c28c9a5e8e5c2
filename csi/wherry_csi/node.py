"""The Node service: volumes staged, published on targets, measured and grown where they are used.

Decides what may be mounted where, by the access mode and by what is mounted already, and refuses to touch a mount that
is not the volume's. It keeps no state: see targets.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from csi_spec import csi_pb2

from . import answers, fsgroup, iolimits, kernel, loop, mounts, requests, targets
from .conditions import trouble
from .errors import CsiError
from .life import Life
from .placement import exclusive, unfit
from .pools import NODE_KEY, POOL_KEY, Pool
from .records import Volume
from .requests import Capability
from .targets import Places

__all__ = ["Node"]

_CAPABILITIES = (
    "STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "VOLUME_CONDITION", "SINGLE_NODE_MULTI_WRITER",
    "VOLUME_MOUNT_GROUP",
)


class Node:
    """Node of the spec."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def NodeGetCapabilities(
        self, _request: csi_pb2.NodeGetCapabilitiesRequest, _context: Any
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """All that there are."""
        rpc = csi_pb2.NodeServiceCapability.RPC
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=rpc(type=name)) for name in _CAPABILITIES]
        )

    def NodeGetInfo(self, _request: csi_pb2.NodeGetInfoRequest, _context: Any) -> csi_pb2.NodeGetInfoResponse:
        """Who this node is, and its pools, also those that are down: they are still here."""
        config = self._life.config
        segments = {NODE_KEY: config.node_id, **{POOL_KEY + pool.name: "true" for pool in self._life.pools}}
        return csi_pb2.NodeGetInfoResponse(
            node_id=config.node_id,
            max_volumes_per_node=config.max_volumes,
            accessible_topology=csi_pb2.Topology(segments=segments),
        )

    # --- staging --------------------------------------------------------------------------------------------------

    def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, _context: Any
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Mount the volume, or attach its device."""
        ident = requests.identity(request.volume_id, "volume_id")
        path = requests.path(request.staging_target_path, "staging_target_path")
        targets.apart(path, self._life.pools)
        capability = requests.capability(request.volume_capability, request.HasField("volume_capability"))
        with self._on_node(ident) as (pool, volume, home):
            _must_fit(pool, volume, capability)
            if not os.path.isdir(path):
                raise CsiError("INVALID_ARGUMENT", f"staging_target_path {path} is no directory: make it first")
            pool.backend(volume).stage(home, volume.shape, path, capability.flags)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, _context: Any
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Undo it; a volume that is still published stays staged."""
        ident = requests.identity(request.volume_id, "volume_id")
        path = requests.path(request.staging_target_path, "staging_target_path")
        try:
            with self._on_node(ident) as (pool, volume, home):
                _must_be_unpublished(ident, targets.find(pool, volume, home), path)
                pool.backend(volume).unstage(home, volume.shape, path)
        except (CsiError, OSError) as error:
            _must_be_unpublished(ident, targets.blind(ident), path)
            self._blindly(ident, targets.real(path), error)
            for device in targets.blind_devices(ident):
                with suppress(OSError):  # what cannot be flushed is lost; a fsync of its user was told so
                    loop.detach(device)
        return csi_pb2.NodeUnstageVolumeResponse()

    # --- publishing -----------------------------------------------------------------------------------------------

    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, _context: Any
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Bind what is staged on the target."""
        ident = requests.identity(request.volume_id, "volume_id")
        target = requests.path(request.target_path, "target_path")
        targets.apart(target, self._life.pools)
        capability = requests.capability(request.volume_capability, request.HasField("volume_capability"))
        uid = iolimits.pod_of(target, request.volume_context)
        if not request.staging_target_path:
            raise CsiError("FAILED_PRECONDITION", "staging_target_path is not set: stage the volume and say where")
        staged = requests.path(request.staging_target_path, "staging_target_path")
        with self._on_node(ident) as (pool, volume, home):
            _must_fit(pool, volume, capability)
            self._publish((pool, volume, home), (staged, target), capability, request.readonly or _reads(capability))
            if volume.limits and uid:
                iolimits.apply(uid, targets.devices(home), volume.limits)
        return csi_pb2.NodePublishVolumeResponse()

    @staticmethod
    def _publish(
        what: tuple[Pool, Volume, int], paths: tuple[str, str], capability: Capability, readonly: bool
    ) -> None:
        pool, volume, home = what
        staged, target = targets.real(paths[0]), targets.real(paths[1])
        places = targets.find(pool, volume, home)
        there = _mounted(places, target, volume.id)
        if there is not None:
            _must_be_same(places, staged, there, readonly, capability)
            return
        others = places.beside(staged, target)
        if others and (exclusive(volume) or capability.mode not in requests.SHARED_MODES):
            raise CsiError(
                "FAILED_PRECONDITION",
                f"volume {volume.id!r} is published at {others[0]}, and its access mode allows one target only",
            )
        source = pool.backend(volume).source(home, volume.shape, staged, readonly)
        if capability.group is not None and not readonly:
            fsgroup.apply(source, capability.group)
        with _made(target, volume.shape.access):
            mounts.bind(source, target, readonly=readonly, options=_bind_options(capability))

    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, _context: Any
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take the volume off the target, and the target away."""
        ident = requests.identity(request.volume_id, "volume_id")
        target = requests.path(request.target_path, "target_path")
        there = targets.real(target)
        try:
            with self._on_node(ident) as (pool, volume, home):
                if uid := iolimits.pod_of(target):  # first: the number of a device may soon be another volume's
                    iolimits.remove(uid, targets.devices(home))
                while _mounted(targets.find(pool, volume, home), there, volume.id) is not None:
                    _unmount(there)
        except (CsiError, OSError) as error:
            self._blindly(ident, there, error)
        _remove_target(there)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def _blindly(self, ident: str, path: str, why: CsiError | OSError) -> None:
        """Take off `path` a volume whose pool is dead or gone, which must keep no pod from ending; or raise `why`."""
        if isinstance(why, CsiError) and why.code not in ("NOT_FOUND", "UNAVAILABLE", "INTERNAL"):
            raise why
        with self._life.held(ident):
            found, attached = targets.blind(ident).found, targets.blind_devices(ident)
            unknown = isinstance(why, CsiError) and why.code == "NOT_FOUND" and not (found or attached)
            mounted = targets.stack(path)
            if unknown or (mounted and mounted[-1] not in found):
                raise why
            while (mounted := targets.stack(path)) and mounted[-1] in found:
                _unmount(path)

    def limited(self, pool: Pool, volume: Volume) -> None:
        """The volume's io limits have changed: so they do for the pods that it is published for."""
        with pool.home(volume) as home:
            pods = {iolimits.pod_of(path) for path in targets.find(pool, volume, home).beside()} - {""}
            for uid in sorted(pods):
                iolimits.apply(uid, targets.devices(home), volume.limits)

    # --- use ------------------------------------------------------------------------------------------------------

    def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, _context: Any
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """df of the volume, and its condition."""
        ident = requests.identity(request.volume_id, "volume_id")
        _given(request.volume_path)
        pool, volume = self._life.volume(ident)
        with pool.home(volume) as home:
            self._must_be_at(pool, volume, home, request.volume_path)
            usage = pool.backend(volume).usage(home, volume.shape)
        kinds = csi_pb2.VolumeUsage
        found = [kinds(unit=kinds.BYTES, total=usage.total, used=usage.used, available=usage.available)]
        if usage.inodes:
            inodes = {"total": usage.inodes, "used": usage.inodes_used, "available": usage.inodes_free}
            found.append(kinds(unit=kinds.INODES, **inodes))
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=found, volume_condition=answers.condition(trouble(pool, volume))
        )

    def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, _context: Any
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Let what is mounted have the size that the controller gave."""
        ident = requests.identity(request.volume_id, "volume_id")
        _given(request.volume_path)
        wanted = requests.size_range(request.capacity_range, request.HasField("capacity_range"))
        given = request.HasField("volume_capability")
        capability = requests.capability(request.volume_capability) if given else None
        with self._on_node(ident) as (pool, volume, home):
            if capability and (why := unfit(pool, volume, capability)):
                raise CsiError("INVALID_ARGUMENT", f"volume {ident!r}: {why}")
            self._must_be_at(pool, volume, home, request.volume_path)
            if self._life.config.expand_on_node and wanted.required > volume.shape.size:
                shape = self._life.grow(pool, volume, wanted)[0].shape
            else:
                shape = volume.shape
            if not wanted.holds(size := shape.size):
                raise CsiError("OUT_OF_RANGE", f"volume {ident!r} has {size} bytes: let the controller expand it first")
            pool.backend(volume).expand(home, shape)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size)

    @contextmanager
    def _on_node(self, ident: str) -> Iterator[tuple[Pool, Volume, int]]:
        with self._life.held(ident):
            pool, volume = self._life.volume(ident)
            with pool.home(volume) as home:
                yield pool, volume, home

    @staticmethod
    def _must_be_at(pool: Pool, volume: Volume, home: int, path: str) -> None:
        """NOT_FOUND if the volume is not on the path (spec). Nothing is mounted where a block volume is staged."""
        if path.startswith("/") and "\0" not in path:
            if targets.find(pool, volume, home).at(targets.real(os.path.normpath(path))):
                return
            block = volume.shape.access == "block"
            if block and os.path.isdir(path) and pool.backend(volume).staged(home, volume.shape):
                return
        raise CsiError("NOT_FOUND", f"volume {volume.id!r} is neither staged nor published at {path[:200]!r}")


def _must_be_unpublished(ident: str, places: Places, staged: str) -> None:
    if others := places.beside(targets.real(staged)):
        raise CsiError("FAILED_PRECONDITION", f"volume {ident!r} is still published at {others[0]}")


def _given(path: str) -> None:
    if not path:
        raise CsiError("INVALID_ARGUMENT", "volume_path is missing: say where the volume is")


def _must_fit(pool: Pool, volume: Volume, capability: Capability) -> None:
    if why := unfit(pool, volume, capability):
        raise CsiError("FAILED_PRECONDITION", f"volume {volume.id!r}: {why}")


def _mounted(places: Places, target: str, ident: str) -> mounts.Mount | None:
    """The volume's mount on the target; None if nothing is mounted there; another's mount is FAILED_PRECONDITION."""
    try:
        stack = mounts.at(target)
    except NotADirectoryError as error:
        raise CsiError("INVALID_ARGUMENT", f"target_path {target}: a part of it is no directory") from error
    if not stack:
        return None
    if stack[-1] not in places.found:
        raise CsiError(
            "FAILED_PRECONDITION",
            f"{target} has a mount of {stack[-1].source} on it that is not of volume {ident!r}: it is left alone",
        )
    return stack[-1]


def _must_be_same(places: Places, staged: str, there: mounts.Mount, readonly: bool, capability: Capability) -> None:
    """ALREADY_EXISTS if the volume is published there in another way than is asked now."""
    base = places.at(staged)
    if base is None:  # a block volume: all that matters is which device it is
        same = targets.is_readonly(there) == readonly
    else:
        asked, _ = mounts.attributes([*_bind_options(capability), *(["ro"] if readonly else [])])
        kept = mounts.attributes_of(base)
        if asked & kernel.ATTR_ATIME:
            kept &= ~kernel.ATTR_ATIME
        same = mounts.attributes_of(there) == asked | kept
    if not same:
        how = ",".join(there.options)
        raise CsiError("ALREADY_EXISTS", f"the volume is published at {there.target} already, as {how}")


def _reads(capability: Capability) -> bool:
    """Whether the access mode or the mount flags are read-only already."""
    return capability.reads or bool(mounts.attributes(_bind_options(capability))[0] & mounts.ATTRIBUTES["ro"][0])


def _bind_options(capability: Capability) -> list[str]:
    """The mount flags that belong to a mount; those of the file system were for staging."""
    return [word for word in capability.flags if word in mounts.ATTRIBUTES]


@contextmanager
def _made(target: str, access: str) -> Iterator[None]:
    """The target, made if it is missing; taken away again if it was made in vain."""
    try:
        new = _make_file(target) if access == "block" else _make_directory(target)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CsiError("INVALID_ARGUMENT", f"target_path {target}: make its parent directory first") from error
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                os.unlink(target) if access == "block" else os.rmdir(target)
        raise


def _make_directory(target: str) -> bool:
    """Whether it is new; one that was there must be an empty directory, or it would be hidden."""
    try:
        os.mkdir(target, 0o750)
        return True
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(target).st_mode) or os.listdir(target):
            raise CsiError("FAILED_PRECONDITION", f"target_path {target} is there, and no empty directory") from None
        return False


def _make_file(target: str) -> bool:
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660))
        return True
    except FileExistsError:
        status = os.lstat(target)
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            raise CsiError("FAILED_PRECONDITION", f"target_path {target} is there already and no empty file") from None
        return False


def _unmount(target: str) -> None:
    try:
        mounts.unmount(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        sentence = f"{target} is in use: end what has files open or mounts below it"
        raise CsiError("FAILED_PRECONDITION", sentence) from error


def _remove_target(target: str) -> None:
    """What publishing made; what it did not make is not ours to remove."""
    try:
        status = os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(target)
            return
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            os.unlink(target)
            return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
    raise CsiError("FAILED_PRECONDITION", f"target_path {target} is not what publishing made: it is left alone")
