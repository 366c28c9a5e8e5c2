"""The CSI driver over its socket: what it declares, places and counts, who may publish where, groups, metadata,
fsGroup, its start and its end. What is hostile, crashes or is many is tested elsewhere (test_csi_hostile, …)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import MIB, Client, Driver, capability, clone_of, eventually, loops, refused, residue, restore_of
from helpers.loopfs import LoopFs
from helpers.tools import run

NODE, POOL = "topology.csi.wherry.dev/node", "pool.csi.wherry.dev/"
SINGLE, MULTI, RWOP = "SINGLE_NODE_WRITER", "SINGLE_NODE_MULTI_WRITER", "SINGLE_NODE_SINGLE_WRITER"


class Place:
    """A driver on one file system with two pools, `a` and `b`."""

    def __init__(self, top: Path, disk: Path, *words: str) -> None:
        self.top, self.disk = top, disk
        self.pools = {name: disk / name for name in ("a", "b")}
        for path in self.pools.values():
            path.mkdir(exist_ok=True)
        self.driver = Driver(top, self.pools, *words)
        self.client = self.driver.start()

    def empty(self) -> None:
        """All deleted, nothing left."""
        self.client.sweep()
        assert self.driver.check() == []
        assert [residue(path) for path in self.pools.values()] == [[], []]
        assert loops(self.disk) == []


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system with reflink, 2 GiB."""
    with LoopFs(tmp_path_factory.mktemp("csi"), 2048, "xfs") as made:
        yield made.path


@pytest.fixture
def place(tmp_path: Path, disk: Path) -> Iterator[Place]:
    made = Place(tmp_path, disk, "--controller-publish")
    try:
        yield made
        made.empty()
        made.driver.stop()
    finally:
        made.driver.kill()


def declared(client: Client, service: str) -> set[str]:
    """The capabilities of a service by name."""
    method = {"Controller": "ControllerGetCapabilities", "Node": "NodeGetCapabilities"}[service]
    found = client.call(method, getattr(pb, method + "Request")()).capabilities
    return {one.rpc.Type.Name(one.rpc.type) for one in found}


# --- what it is -----------------------------------------------------------------------------------------------------


def test_every_capability_of_the_spec_is_declared(place: Place) -> None:
    kinds = pb.ControllerServiceCapability.RPC.Type
    assert declared(place.client, "Controller") == set(kinds.keys()) - {"UNKNOWN"}
    assert declared(place.client, "Node") == set(pb.NodeServiceCapability.RPC.Type.keys()) - {"UNKNOWN"}
    found = place.client.call("GetPluginCapabilities", pb.GetPluginCapabilitiesRequest()).capabilities
    services = {pb.PluginCapability.Service.Type.Name(one.service.type) for one in found if one.HasField("service")}
    assert services == set(pb.PluginCapability.Service.Type.keys()) - {"UNKNOWN"}
    assert [one.volume_expansion.type for one in found if one.HasField("volume_expansion")] == [1]
    assert place.client.call("GetPluginInfo", pb.GetPluginInfoRequest()).name == "csi.wherry.dev"
    assert place.client.call("Probe", pb.ProbeRequest()).ready.value


def test_what_is_not_asked_is_not_declared(tmp_path: Path, disk: Path) -> None:
    place = Place(tmp_path, disk, "--spec", "1.11", "--expand-on-node", "--max-volumes", "3")
    try:
        missing = {"PUBLISH_UNPUBLISH_VOLUME", "PUBLISH_READONLY", "LIST_VOLUMES_PUBLISHED_NODES", "GET_SNAPSHOT"}
        every = set(pb.ControllerServiceCapability.RPC.Type.keys()) - {"UNKNOWN"}
        assert declared(place.client, "Controller") == every - missing - {"EXPAND_VOLUME"}
        info = place.client.call("NodeGetInfo", pb.NodeGetInfoRequest())
        assert (info.node_id, info.max_volumes_per_node) == ("node-1", 3)
        assert dict(info.accessible_topology.segments) == {NODE: "node-1", POOL + "a": "true", POOL + "b": "true"}
        volume = place.client.create("v", 300 * MIB, fs="xfs")
        request = pb.ControllerPublishVolumeRequest(
            volume_id=volume.volume_id, node_id="node-1", volume_capability=capability()
        )
        with refused("UNIMPLEMENTED"):
            place.client.call("ControllerPublishVolume", request)
        with refused("UNIMPLEMENTED"):
            place.client.expand(volume.volume_id, 400 * MIB)
        target = place.client.use(volume.volume_id, fs="xfs")
        assert place.client.node_expand(volume.volume_id, target, 400 * MIB).capacity_bytes == 400 * MIB
        assert place.client.get(volume.volume_id).volume.capacity_bytes == 400 * MIB
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 300 * MIB
        place.empty()
    finally:
        place.driver.kill()


# --- where volumes lie, and what is left ----------------------------------------------------------------------------


def available(client: Client, **topology: str) -> int:
    segments = {key.replace("_", "/"): value for key, value in topology.items()}
    return int(client.capacity(topology=segments or None).available_capacity)


def where(volume: pb.Volume) -> dict[str, str]:
    (one,) = volume.accessible_topology
    return dict(one.segments)


def terms(*segments: dict[str, str], preferred: bool = False) -> pb.TopologyRequirement:
    listed = [pb.Topology(segments=one) for one in segments]
    return pb.TopologyRequirement(**{"preferred" if preferred else "requisite": listed})


@pytest.mark.parametrize("pool", ["a", "b"])
def test_a_pool_is_chosen_by_parameter_and_by_topology(place: Place, pool: str) -> None:
    here, there = {NODE: "node-1", POOL + pool: "true"}, {NODE: "node-2", POOL + pool: "true"}
    whole = {NODE: "node-1", POOL + "a": "true", POOL + "b": "true"}
    assert where(place.client.create("by parameter", parameters={"pool": pool})) == here
    assert where(place.client.create("by need", topology=terms(there, here))) == here
    assert where(place.client.create("by wish", topology=terms(here, whole, preferred=True))) == here
    assert where(place.client.create("by node", topology=terms(whole), parameters={"pool": pool})) == here
    with refused("RESOURCE_EXHAUSTED"):
        place.client.create("elsewhere", topology=terms(there))
    with refused("RESOURCE_EXHAUSTED"):
        place.client.create("other keys", topology=terms({"zone": "z1", NODE: "node-1"}))
    with refused("INVALID_ARGUMENT"):
        place.client.create("no such pool", parameters={"pool": "c"})
    with refused("ALREADY_EXISTS"):
        place.client.create("by parameter", topology=terms({POOL + {"a": "b", "b": "a"}[pool]: "true"}))


def test_two_pools_on_one_disk_do_not_promise_it_twice(place: Place) -> None:
    free = os.statvfs(place.disk).f_bavail * os.statvfs(place.disk).f_frsize
    one = place.client.capacity(parameters={"pool": "a"})
    assert free - 4 * MIB < one.available_capacity <= free
    size = free // 2 // MIB * MIB
    place.client.create("v", size, parameters={"pool": "a"}, block=True)
    for pool in "ab":
        left = place.client.capacity(parameters={"pool": pool}).available_capacity
        assert abs(left - (free - size)) < 4 * MIB
    with refused("RESOURCE_EXHAUSTED"):
        place.client.create("w", size + 8 * MIB, parameters={"pool": "b"}, block=True)
    place.client.create("w", size - 8 * MIB, parameters={"pool": "b"}, block=True)


def test_the_most_that_is_said_to_be_left_can_be_had(place: Place) -> None:
    most = place.client.capacity(caps=[capability(block=True)]).maximum_volume_size.value
    with refused("RESOURCE_EXHAUSTED"):
        place.client.create("more", most + MIB, block=True)
    volume = place.client.create("most", most, block=True)
    assert most <= volume.capacity_bytes < most + 4096
    least = place.client.capacity(caps=[capability(fs="xfs")]).minimum_volume_size.value
    assert least == 300 * MIB


def test_a_copy_on_write_costs_what_it_may_come_to(place: Place) -> None:
    """A snapshot shares its bytes with the volume, until the volume is written anew: both are accounted for."""
    volume = place.client.create("v", 64 * MIB, block=True)
    target = place.client.use(volume.volume_id, block=True)
    before = available(place.client)
    with open(target, "r+b") as device:
        device.write(os.urandom(32 * MIB))
        os.fsync(device.fileno())
    assert abs(available(place.client) - before) < MIB
    snapshot = place.client.snapshot(volume.volume_id, "s")
    assert abs(before - 32 * MIB - available(place.client)) < MIB
    place.client.create("c", 64 * MIB, source=restore_of(snapshot.snapshot_id), block=True)
    assert abs(before - 96 * MIB - available(place.client)) < MIB
    place.client.leave(volume.volume_id)
    place.client.delete(volume.volume_id)
    assert abs(before - 32 * MIB - available(place.client)) < MIB


# --- who may publish where ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "second"),
    [
        (SINGLE, "FAILED_PRECONDITION"),
        ("SINGLE_NODE_READER_ONLY", "FAILED_PRECONDITION"),
        (RWOP, "FAILED_PRECONDITION"),
        (MULTI, ""),
        ("MULTI_NODE_READER_ONLY", ""),
        ("MULTI_NODE_SINGLE_WRITER", ""),
        ("MULTI_NODE_MULTI_WRITER", ""),
    ],
)
@pytest.mark.parametrize("block", [False, True])
def test_the_specs_table_of_second_publishes(place: Place, mode: str, second: str, block: bool) -> None:
    volume = place.client.create("v", mode=mode, block=block).volume_id
    place.client.stage(volume, mode=mode, block=block)
    target = place.client.publish(volume, "one", mode=mode, block=block)
    assert place.client.publish(volume, "one", mode=mode, block=block) == target
    reads = "READER" in mode
    assert written(target, block) is not reads
    if not reads:
        with refused("ALREADY_EXISTS"):
            place.client.publish(volume, "one", mode=mode, block=block, readonly=True)
    if second:
        with refused(second):
            place.client.publish(volume, "two", mode=mode, block=block)
        assert not os.path.lexists(place.client.target(volume, "two"))
        return
    other = place.client.publish(volume, "two", mode=mode, block=block, readonly=True)
    assert not written(other, block)
    assert written(target, block) is not reads


def written(target: Path, block: bool) -> bool:
    """Whether a user of the target can write."""
    try:
        fd = os.open(target if block else target / "file", os.O_RDWR | (0 if block else os.O_CREAT))
    except OSError:
        return False
    try:
        return os.write(fd, b"x") == 1  # a read-only device can be opened for writing
    except PermissionError:
        return False
    finally:
        os.close(fd)


def test_a_volume_for_one_pod_is_for_one_whatever_a_call_says(place: Place) -> None:
    volume = place.client.create("v", mode=RWOP).volume_id
    place.client.use(volume, "one", mode=RWOP)
    with refused("FAILED_PRECONDITION"):
        place.client.publish(volume, "two", mode=MULTI)


def test_publishing_needs_staging_and_unstaging_needs_unpublishing(place: Place) -> None:
    volume = place.client.create("v").volume_id
    with refused("FAILED_PRECONDITION"):
        place.client.publish(volume)
    request = pb.NodePublishVolumeRequest(
        volume_id=volume, target_path=str(place.client.target(volume)), volume_capability=capability()
    )
    with refused("FAILED_PRECONDITION"):
        place.client.call("NodePublishVolume", request)
    place.client.use(volume)
    with refused("FAILED_PRECONDITION"):
        place.client.unstage(volume)
    with refused("FAILED_PRECONDITION"):
        place.client.delete(volume)
    place.client.unpublish(volume)
    place.client.unpublish(volume)
    place.client.unstage(volume)
    place.client.unstage(volume)


def test_mount_flags_hold_where_they_are_published(place: Place) -> None:
    volume = place.client.create("v").volume_id
    target = place.client.use(volume, flags=["noexec", "noatime"])
    assert os.statvfs(target).f_flag & os.ST_NOEXEC
    assert place.client.publish(volume, flags=["noexec", "noatime"]) == target
    with refused("ALREADY_EXISTS"):
        place.client.publish(volume, flags=["noexec", "nosuid"])
    read = place.client.publish(volume, "read", flags=["ro"])
    assert not written(read, False)
    assert place.client.publish(volume, "read", flags=["ro"]) == read


def test_stats_are_of_the_path_where_the_volume_is(place: Place) -> None:
    volume = place.client.create("v", 64 * MIB, fs="ext4").volume_id
    target = place.client.use(volume)
    (target / "data").write_bytes(bytes(8 * MIB))
    run("sync", target)
    usage, inodes = place.client.stats(volume, target).usage
    inside = os.statvfs(target)
    assert (usage.unit, usage.total) == (pb.VolumeUsage.BYTES, inside.f_blocks * inside.f_frsize)
    assert usage.used >= 8 * MIB
    assert (inodes.total, inodes.available) == (inside.f_files, inside.f_ffree)
    assert place.client.stats(volume, place.client.staging(volume)).usage[0].total == usage.total
    for path in (place.top, target / "data", Path("relative")):
        with refused("NOT_FOUND"):
            place.client.stats(volume, path)


@pytest.mark.parametrize("access", ["mount", "block"])
def test_growth_is_seen_where_it_is_published(place: Place, access: str) -> None:
    block = access == "block"
    kind = {"block": True} if block else {"fs": "xfs"}
    volume = place.client.create("v", 300 * MIB, **kind).volume_id
    target = place.client.use(volume, **kind)
    answer = place.client.expand(volume, 500 * MIB)
    assert (answer.capacity_bytes, answer.node_expansion_required) == (500 * MIB, True)
    assert place.client.node_expand(volume, target, 500 * MIB).capacity_bytes == 500 * MIB
    with refused("OUT_OF_RANGE"):
        place.client.node_expand(volume, target, 501 * MIB)
    if block:
        with open(target, "rb") as device:
            assert device.seek(0, os.SEEK_END) == 500 * MIB
    else:
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 400 * MIB
    assert place.client.expand(volume, 400 * MIB).capacity_bytes == 500 * MIB
    place.client.leave(volume)
    assert not place.client.expand(volume, 600 * MIB).node_expansion_required


def test_an_ext4_that_grows_by_too_little_for_a_group_of_blocks_is_staged(place: Place) -> None:
    """resize2fs leaves out a last group that could hold nothing: the file system then is smaller than its image."""
    volume = place.client.create("v", 64 * MIB).volume_id
    place.client.expand(volume, 129 * MIB)
    for _ in range(2):
        assert os.statvfs(place.client.use(volume)).f_blocks * 4096 > 100 * MIB
        place.client.leave(volume)


# --- fsGroup --------------------------------------------------------------------------------------------------------


def test_a_volume_is_given_to_a_group_once(place: Place) -> None:
    volume = place.client.create("v").volume_id
    first = place.client.use(volume, "root")
    (first / "dir").mkdir(mode=0o700)
    (first / "dir" / "file").write_text("x")
    (first / "dir" / "file").chmod(0o600)
    (first / "link").symlink_to("/etc/passwd")
    os.mkfifo(first / "fifo", 0o600)
    before = os.stat("/etc/passwd")
    target = place.client.publish(volume, "pod", group="4242")
    for path, mode in ((target, 0o2775), (target / "dir", 0o2770), (target / "dir" / "file", 0o660)):
        facts = path.lstat()
        assert (facts.st_gid, stat.S_IMODE(facts.st_mode)) == (4242, mode), path
    assert (target / "link").lstat().st_gid == (target / "fifo").lstat().st_gid == 4242
    assert os.stat("/etc/passwd") == before
    (target / "late").write_text("x")
    assert (target / "late").stat().st_gid == 4242
    os.chown(target / "late", -1, 0)
    place.client.publish(volume, "again", group="4242")
    assert (target / "late").stat().st_gid == 0, "the root has the group already: no second walk"
    place.client.publish(volume, "reader", group="77", readonly=True)
    assert target.stat().st_gid == 4242


# --- the controller's publishing, listing, validation ---------------------------------------------------------------


def test_controller_publishing_outlives_the_driver(place: Place) -> None:
    volume = place.client.create("v").volume_id
    request = pb.ControllerPublishVolumeRequest(volume_id=volume, node_id="node-1", volume_capability=capability())
    place.client.call("ControllerPublishVolume", request)
    place.driver.kill()
    place.client = place.driver.start()
    assert list(place.client.get(volume).status.published_node_ids) == ["node-1"]
    (entry,) = next(place.client.pages("ListVolumes"))
    assert list(entry.status.published_node_ids) == ["node-1"]
    with refused("ALREADY_EXISTS"):
        request.readonly = True
        place.client.call("ControllerPublishVolume", request)
    with refused("FAILED_PRECONDITION"):
        place.client.delete(volume)
    request.node_id = "node-2"
    with refused("NOT_FOUND"):
        place.client.call("ControllerPublishVolume", request)
    for node in ("node-2", "", ""):
        undo = pb.ControllerUnpublishVolumeRequest(volume_id=volume, node_id=node)
        place.client.call("ControllerUnpublishVolume", undo)
        assert list(place.client.get(volume).status.published_node_ids) == (["node-1"] if node else [])


def test_validation_confirms_what_the_volume_is(place: Place) -> None:
    volume = place.client.create("v", fs="ext4", parameters={"pool": "a", "backend": "image"}).volume_id

    def answer(cap: pb.VolumeCapability, **parameters: str) -> pb.ValidateVolumeCapabilitiesResponse:
        request = pb.ValidateVolumeCapabilitiesRequest(
            volume_id=volume, volume_capabilities=[cap], parameters=parameters
        )
        return place.client.call("ValidateVolumeCapabilities", request)

    assert answer(capability(fs="ext4"), pool="a").confirmed.parameters == {"pool": "a"}
    for cap, parameters in (
        (capability(block=True), {}), (capability(fs="xfs"), {}), (capability(fs="ntfs"), {}),
        (capability(), {"pool": "b"}), (capability(), {"backend": "directory"}), (capability(), {"color": "red"}),
    ):  # fmt: skip
        said = answer(cap, **parameters)
        assert not said.HasField("confirmed")
        assert len(said.message) > 10


def test_snapshots_are_listed_by_volume_by_id_and_in_pages(place: Place) -> None:
    one, two = (place.client.create(name).volume_id for name in ("one", "two"))
    made = [place.client.snapshot(one, f"s{n}").snapshot_id for n in range(5)]
    other = place.client.snapshot(two, "other").snapshot_id
    assert [len(page) for page in place.client.pages("ListSnapshots", 4)] == [4, 2]
    assert list(place.client.snapshots(2, source_volume_id=one)) == made
    assert list(place.client.snapshots(snapshot_id=other)) == [other]
    assert place.client.snapshots(snapshot_id="none", source_volume_id=one) == {}
    with refused("ABORTED"):
        place.client.call("ListSnapshots", pb.ListSnapshotsRequest(starting_token="x"))
    got = place.client.call("GetSnapshot", pb.GetSnapshotRequest(snapshot_id=other)).snapshot
    assert (got.source_volume_id, got.ready_to_use, got.group_snapshot_id) == (two, True, "")
    place.client.delete(two)
    assert list(place.client.snapshots(source_volume_id=two)) == [other]


def test_names_are_idempotent_and_what_is_incompatible_is_said(place: Place) -> None:
    limits = {"readBps": "1000000"}
    volume = place.client.create("v", 64 * MIB, limit=80 * MIB, fs="ext4", mutable=limits)
    assert place.client.create("v", 64 * MIB, limit=80 * MIB, fs="ext4", mutable=limits) == volume
    assert place.client.create("v", 10 * MIB, mode="MULTI_NODE_MULTI_WRITER") == volume
    for wrong in (
        {"size": 65 * MIB}, {"size": 0, "limit": 63 * MIB}, {"block": True}, {"fs": "xfs"}, {"mode": RWOP},
        {"mutable": {"readBps": "7"}}, {"source": clone_of(volume.volume_id)},
        {"parameters": {"provisioning": "thick"}}, {"parameters": {"backend": "directory"}},
    ):  # fmt: skip
        with refused("ALREADY_EXISTS"):
            place.client.create("v", **{"size": 64 * MIB, **wrong})
    other = place.client.create("w")
    place.client.snapshot(volume.volume_id, "s")
    with refused("ALREADY_EXISTS"):
        place.client.snapshot(other.volume_id, "s")


def test_sources_make_volumes_like_themselves(place: Place) -> None:
    volume = place.client.create("v", 64 * MIB, parameters={"pool": "b"})
    target = place.client.use(volume.volume_id)
    (target / "file").write_text("kept")
    snapshot = place.client.snapshot(volume.volume_id, "s")
    (target / "file").write_text("changed")
    for name, source, size in (("restored", restore_of(snapshot.snapshot_id), 0), ("larger", None, 96 * MIB)):
        copy = place.client.create(name, size, source=source or restore_of(snapshot.snapshot_id))
        assert copy.capacity_bytes == (size or 64 * MIB)
        assert copy.content_source.snapshot.snapshot_id == snapshot.snapshot_id
        assert where(copy) == where(volume)
        assert (place.client.use(copy.volume_id) / "file").read_text() == "kept"
    clone = place.client.create("clone", 0, source=clone_of(volume.volume_id))
    assert (place.client.use(clone.volume_id) / "file").read_text() == "changed"
    with refused("OUT_OF_RANGE"):
        place.client.create("smaller", 32 * MIB, source=restore_of(snapshot.snapshot_id))
    others = ({"pool": "a"}, {"backend": "directory"})
    for wrong in ({"block": True}, {"fs": "xfs"}, *({"parameters": one} for one in others)):
        with refused("INVALID_ARGUMENT"):
            place.client.create("unlike", 0, source=clone_of(volume.volume_id), **wrong)
    for source in (clone_of("vol-0"), restore_of("snap-0")):
        with refused("NOT_FOUND"):
            place.client.create("from nothing", source=source)


# --- groups and metadata --------------------------------------------------------------------------------------------


def test_a_group_is_made_and_goes_as_one(place: Place) -> None:
    volumes = [place.client.create(f"v{n}", parameters={"pool": "a"}, block=bool(n)).volume_id for n in range(3)]
    stray = place.client.create("stray", parameters={"pool": "b"}).volume_id
    group = place.client.group("g", volumes)
    assert place.client.group("g", volumes[::-1]) == group
    assert [one.source_volume_id for one in group.snapshots] == volumes
    assert {one.group_snapshot_id for one in group.snapshots} == {group.group_snapshot_id}
    with refused("ALREADY_EXISTS"):
        place.client.group("g", volumes[:2])
    with refused("FAILED_PRECONDITION"):
        place.client.group("h", [volumes[0], stray])
    with refused("NOT_FOUND"):
        place.client.group("h", [volumes[0], "vol-0"])
    with refused("INVALID_ARGUMENT"):
        place.client.group("h", [volumes[0], volumes[0]])
    idents = [one.snapshot_id for one in group.snapshots]
    with refused("INVALID_ARGUMENT"):
        place.client.unsnapshot(idents[0])
    with refused("INVALID_ARGUMENT"):
        place.client.ungroup(group.group_snapshot_id, idents[:2])
    place.driver.kill()
    place.client = place.driver.start()
    request = pb.GetVolumeGroupSnapshotRequest(group_snapshot_id=group.group_snapshot_id, snapshot_ids=idents)
    assert place.client.call("GetVolumeGroupSnapshot", request).group_snapshot == group
    assert place.client.create("r", 0, source=restore_of(idents[0])).capacity_bytes == 64 * MIB
    place.client.ungroup(group.group_snapshot_id, idents)
    place.client.ungroup(group.group_snapshot_id, idents)
    assert place.client.snapshots() == {}
    with refused("NOT_FOUND"):
        place.client.call("GetVolumeGroupSnapshot", request)


def test_metadata_tells_which_ranges_have_data_and_which_changed(place: Place) -> None:
    volume = place.client.create("v", 64 * MIB, block=True).volume_id
    target = place.client.use(volume, block=True)
    snapshots, writes = [], ((0, 1), (40, 1), (40, 2))
    for number, (offset, length) in enumerate(writes):
        with open(target, "r+b") as device:
            device.seek(offset * MIB)
            device.write(os.urandom(length * MIB))
        snapshots.append(place.client.snapshot(volume, f"s{number}").snapshot_id)

    def ranges(method: str, **fields: object) -> list[tuple[int, int]]:
        answers = list(place.client.call(method, getattr(pb, method + "Request")(**fields)))
        assert {one.volume_capacity_bytes for one in answers} == {64 * MIB}
        assert all(len(one.block_metadata) <= (fields.get("max_results") or 1024) for one in answers)
        return [(part.byte_offset, part.size_bytes) for one in answers for part in one.block_metadata]

    allocated = ranges("GetMetadataAllocated", snapshot_id=snapshots[1], max_results=1)
    assert allocated == [(0, MIB), (40 * MIB, MIB)]
    assert ranges("GetMetadataAllocated", snapshot_id=snapshots[1], starting_offset=2 * MIB) == allocated[1:]
    assert ranges("GetMetadataAllocated", snapshot_id=snapshots[1], starting_offset=64 * MIB) == []
    changed = ranges("GetMetadataDelta", base_snapshot_id=snapshots[0], target_snapshot_id=snapshots[2])
    assert changed == [(40 * MIB, 2 * MIB)]
    for fields, code in (
        ({"snapshot_id": "snap-0"}, "NOT_FOUND"),
        ({"snapshot_id": snapshots[0], "starting_offset": 65 * MIB}, "OUT_OF_RANGE"),
        ({"snapshot_id": snapshots[0], "starting_offset": -1}, "OUT_OF_RANGE"),
        ({"snapshot_id": snapshots[0], "max_results": -1}, "INVALID_ARGUMENT"),
    ):
        with refused(code):
            ranges("GetMetadataAllocated", **fields)
    with refused("INVALID_ARGUMENT"):
        ranges("GetMetadataDelta", base_snapshot_id=snapshots[2], target_snapshot_id=snapshots[0])


# --- pools that come and go, and drivers that do --------------------------------------------------------------------


def test_a_block_volume_is_known_to_a_driver_of_another_mount_namespace(tmp_path: Path) -> None:
    """A driver's pod is replaced: the path by which its device was attached is nobody's any more."""
    with LoopFs(tmp_path, 512, "xfs") as disk:
        driver = Driver(tmp_path, {"a": disk.path})
        try:
            client = driver.start()
            volume = client.create("v", block=True).volume_id
            target = client.use(volume, block=True)
            driver.stop()
            run("umount", "--lazy", disk.path)
            disk.mount()
            client = driver.start()
            assert client.publish(volume, block=True) == target
            for call in (client.unstage, client.delete):
                with refused("FAILED_PRECONDITION"):
                    call(volume)
            assert driver.check() == []
            client.leave(volume)
            client.delete(volume)
            assert loops(disk.path) == []
            driver.stop()
        finally:
            driver.kill()


def test_a_pool_that_comes_back_is_read_before_it_is_asked(tmp_path: Path) -> None:
    with LoopFs(tmp_path, 512, "xfs") as disk:
        config = tmp_path / "csi.toml"
        config.write_text(f'[[pool]]\nname = "a"\npath = "{disk.path}"\nmount = true\n')
        driver = Driver(tmp_path, {}, "--config", str(config))
        try:
            client = driver.start()
            kept, gone = (client.create(name).volume_id for name in ("kept", "gone"))
            snapshot = client.snapshot(kept, "s").snapshot_id
            for first in (
                lambda one: one.delete(gone) is None,
                lambda one: one.create("kept").volume_id == kept,
                lambda one: one.snapshot(kept, "s").snapshot_id == snapshot,
                lambda one: one.create("clone", 0, source=clone_of(kept)).volume_id != kept,
            ):
                driver.stop()
                disk.unmount()
                client = driver.start()
                with refused("FAILED_PRECONDITION"):
                    client.call("Probe", pb.ProbeRequest())
                for call in (client.delete, client.get):
                    with refused("UNAVAILABLE"):
                        call(kept)
                with refused("UNAVAILABLE"):
                    client.create("kept")
                assert os.listdir(disk.path) == []
                disk.mount()
                assert first(client)
            assert set(client.volumes()) == {kept, client.create("clone", 0, source=clone_of(kept)).volume_id}
            assert driver.check() == []
            driver.stop()
        finally:
            driver.kill()


def test_one_pool_that_is_gone_leaves_the_others(place: Place) -> None:
    client = place.client
    volume = client.create("v", parameters={"pool": "a"}).volume_id
    away = place.pools["a"].rename(place.disk / "away")
    try:
        assert client.call("Probe", pb.ProbeRequest()).ready.value
        assert client.get(client.create("w", parameters={"pool": "b"}).volume_id).volume.capacity_bytes
        assert client.get(volume).status.volume_condition.abnormal
        assert client.volumes()[volume].capacity_bytes
        for call in (client.delete, client.stage):
            with refused("UNAVAILABLE"):
                call(volume)
        with refused("UNAVAILABLE"):
            client.create("x", parameters={"pool": "a"})
    finally:
        away.rename(place.pools["a"])
    assert not client.get(volume).status.volume_condition.abnormal


# --- its start, its end, its check ----------------------------------------------------------------------------------


def test_the_socket_is_for_root_and_a_stale_one_is_replaced(tmp_path: Path, disk: Path) -> None:
    place = Place(tmp_path, disk)
    try:
        assert stat.S_IMODE(place.driver.socket.stat().st_mode) == 0o600
        place.driver.kill()
        assert place.driver.socket.exists()
        place.client = place.driver.start()
        assert place.client.call("Probe", pb.ProbeRequest()).ready.value
        place.driver.stop()
        assert not place.driver.socket.exists()
    finally:
        place.driver.kill()


def test_a_second_driver_is_told_who_has_the_pool(place: Place, tmp_path: Path) -> None:
    words = ["--endpoint", f"unix://{tmp_path}/other/x.sock", "--node-id", "n", "--pool", str(place.pools["a"])]
    done = subprocess.run(
        [sys.executable, "-m", "wherry_csi", *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"wherry-csi: another driver is at work on \S+: .*\n", done.stderr)


def test_it_leaves_when_nobody_asks(tmp_path: Path, disk: Path) -> None:
    place = Place(tmp_path, disk, "--idle", "1")
    try:
        volume = place.client.create("v").volume_id
        target = place.client.use(volume)
        (target / "file").write_text("kept")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            place.client.get(volume)
            time.sleep(0.3)
        eventually(lambda: not place.driver.running, 10, "it leaves")
        assert not place.driver.socket.exists()
        assert (target / "file").read_text() == "kept"
        assert place.driver._ended() == 0
        place.client = place.driver.start()
        assert place.client.publish(volume) == target
        place.empty()
    finally:
        place.driver.kill()


def test_running_calls_end_before_it_does(tmp_path: Path, disk: Path) -> None:
    place = Place(tmp_path, disk)
    try:
        volume = place.client.create("v", 300 * MIB, block=True, parameters={"provisioning": "thick"}).volume_id
        stub = place.client.stubs["Controller"].CreateVolume
        request = pb.CreateVolumeRequest(name="w", volume_capabilities=[capability(fs="xfs")])
        request.capacity_range.required_bytes = 300 * MIB
        pending = stub.future(request, timeout=30)
        time.sleep(0.02)
        os.kill(place.driver.pid, signal.SIGTERM)
        made = pending.result().volume.volume_id if not pending.exception() else ""
        assert place.driver._ended() == 0
        place.client = place.driver.start()
        assert set(place.client.volumes()) - {volume} == ({made} if made else set())
        place.empty()
    finally:
        place.driver.kill()


def test_systemd_is_told(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        place = Place(tmp_path, disk)
        try:
            assert listener.recv(100) == b"READY=1"
            place.driver.stop()
            assert listener.recv(100) == b"STOPPING=1"
        finally:
            place.driver.kill()


def test_check_tells_what_is_wrong_as_json_too(place: Place) -> None:
    volume = place.client.create("v", parameters={"pool": "a"}).volume_id
    home = place.pools["a"] / ".wherry-csi" / "volumes" / volume
    record = (home / "record.json").read_bytes()
    (home / "record.json").write_bytes(record[:-20])
    (place.pools["b"] / ".wherry-csi" / "volumes" / "Stranger").mkdir()
    pools = [word for name, path in place.pools.items() for word in ("--pool", f"{name}={path}")]
    words = [sys.executable, "-m", "wherry_csi", "check", "--json", *pools]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    (place.pools["b"] / ".wherry-csi" / "volumes" / "Stranger").rmdir()
    (home / "record.json").write_bytes(record)
    assert done.returncode == 1
    assert {(one["pool"], one["subject"]) for one in json.loads(done.stdout)} == {
        ("a", f"volumes/{volume}"), ("b", "volumes/Stranger"),
    }  # fmt: skip
    assert place.driver.check() == []
