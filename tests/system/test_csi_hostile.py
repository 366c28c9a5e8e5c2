"""What a CSI driver is told that is not so: ids, names, fields, sizes, paths, and what a container makes of its volume.

Each answer is the spec's code and a sentence; the driver lives on, other volumes work, and a tree of files beside the
pool (the canary) is as it was, down to its times.
"""

# ruff: noqa: ARG005 (the lambdas of a table have one form)

from __future__ import annotations

import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import (
    HOME,
    MIB,
    capability,
    clone_of,
    code_of,
    grows_online,
    loops,
    mounts_below,
    refused,
    residue,
    restore_of,
)
from helpers.csifort import CAP, HUGE, IDS, LONG, UNKNOWN_ID, Fort
from helpers.tools import run

# -- ids --

BY_VOLUME: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "ControllerPublishVolume": lambda i, p: {"volume_id": i, "node_id": "node-1", "volume_capability": CAP},
    "ValidateVolumeCapabilities": lambda i, p: {"volume_id": i, "volume_capabilities": [CAP]},
    "ControllerGetVolume": lambda i, p: {"volume_id": i},
    "ControllerModifyVolume": lambda i, p: {"volume_id": i, "mutable_parameters": {"readBps": "1000000"}},
    "ControllerExpandVolume": lambda i, p: {"volume_id": i, "capacity_range": {"required_bytes": 128 * MIB}},
    "CreateSnapshot": lambda i, p: {"source_volume_id": i, "name": "s"},
    "CreateVolumeGroupSnapshot": lambda i, p: {"source_volume_ids": [i], "name": "g"},
    "NodeStageVolume": lambda i, p: {"volume_id": i, "staging_target_path": str(p / "s"), "volume_capability": CAP},
    "NodeUnstageVolume": lambda i, p: {"volume_id": i, "staging_target_path": str(p / "s")},
    "NodePublishVolume": lambda i, p: {"volume_id": i, "staging_target_path": str(p / "s"), "volume_capability": CAP,
                                       "target_path": str(p / "t")},
    "NodeUnpublishVolume": lambda i, p: {"volume_id": i, "target_path": str(p / "t")},
    "NodeGetVolumeStats": lambda i, p: {"volume_id": i, "volume_path": str(p / "t")},
    "NodeExpandVolume": lambda i, p: {"volume_id": i, "volume_path": str(p / "t")},
}  # fmt: skip


@pytest.fixture
def node(fort: Fort) -> Path:
    """A directory with an empty staging directory `s`, and no `t`."""
    made = fort.place / "node"
    shutil.rmtree(made, ignore_errors=True)
    (made / "s").mkdir(parents=True)
    return made


@pytest.mark.parametrize("method", BY_VOLUME)
def test_an_id_that_is_none(fort: Fort, node: Path, method: str) -> None:
    for bad in IDS:
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.raw(method, **BY_VOLUME[method](bad, node))
    with refused("NOT_FOUND"):
        fort.raw(method, **BY_VOLUME[method](UNKNOWN_ID, node))
    with refused("INVALID_ARGUMENT"):
        fort.raw(method, **BY_VOLUME[method]("", node))
    assert os.listdir(node) == ["s"]


def test_ids_of_what_is_to_be_deleted(fort: Fort, volume: str) -> None:
    """What is not there is deleted; what cannot be an id may be refused. A snapshot's id deletes no volume."""
    snapshot = fort.client.snapshot(volume, "s").snapshot_id
    for bad in [*IDS, snapshot]:
        with suppress(grpc.RpcError):
            fort.client.delete(bad)
    for bad in [*IDS, volume]:
        with suppress(grpc.RpcError):
            fort.client.unsnapshot(bad)
        with suppress(grpc.RpcError):
            fort.client.ungroup(bad, [snapshot])
    for call in (fort.client.delete, fort.client.unsnapshot, fort.client.ungroup):
        with refused("INVALID_ARGUMENT"):
            call("")
    fort.client.delete(UNKNOWN_ID)
    fort.client.unsnapshot("snap-" + "0" * 32)
    fort.client.ungroup("group-" + "0" * 32)
    assert set(fort.client.volumes()) == {volume}
    assert set(fort.client.snapshots()) == {snapshot}


def test_ids_of_sources(fort: Fort, volume: str) -> None:
    snapshot = fort.client.snapshot(volume, "s").snapshot_id
    for bad in [*IDS, "", snapshot]:
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.client.create("new", source=clone_of(bad))
    for bad in [*IDS, "", volume]:
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.client.create("new", source=restore_of(bad))
    with refused("INVALID_ARGUMENT"):
        fort.client.create("new", source=pb.VolumeContentSource())
    with refused("NOT_FOUND"):
        fort.client.create("new", source=clone_of(UNKNOWN_ID))
    for bad in IDS:
        assert not fort.client.snapshots(snapshot_id=bad)
        assert not fort.client.snapshots(source_volume_id=bad)
        for method in ("GetSnapshot", "GetMetadataAllocated"):
            with refused("NOT_FOUND", "INVALID_ARGUMENT"):
                fort.raw(method, snapshot_id=bad)
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.raw("GetMetadataDelta", base_snapshot_id=bad, target_snapshot_id=snapshot)
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.raw("GetVolumeGroupSnapshot", group_snapshot_id=bad)
        with refused("NOT_FOUND", "INVALID_ARGUMENT"):
            fort.raw("ControllerPublishVolume", volume_id=volume, node_id=bad, volume_capability=CAP)
    assert set(fort.client.volumes()) == {volume}


# -- names --


@pytest.mark.parametrize(
    "name", ["../../canary/x", "/etc/passwd", "..", "a/b", "naïve 🜁 名", "-rf", "a\tb\nc", "x" * 128, " "]
)
def test_any_name_is_a_name(fort: Fort, name: str) -> None:
    """The spec lets names be any unicode; they are nothing to a file system."""
    volume = fort.client.create(name)
    assert fort.client.create(name).volume_id == volume.volume_id
    snapshot = fort.client.snapshot(volume.volume_id, name)
    assert fort.client.snapshot(volume.volume_id, name).snapshot_id == snapshot.snapshot_id
    assert fort.client.group(name, [volume.volume_id]).ready_to_use
    fort.restart()
    assert fort.client.create(name).volume_id == volume.volume_id


@pytest.mark.parametrize("name", ["", "a\0b", "\x01", "a\x0bb", "\x7f", "a\x85", "x" * 129, "é" * 65, LONG])
def test_names_that_the_spec_bans(fort: Fort, volume: str, name: str) -> None:
    for call in (lambda: fort.client.create(name), lambda: fort.client.snapshot(volume, name),
                 lambda: fort.client.group(name, [volume])):  # fmt: skip
        with refused("INVALID_ARGUMENT"):
            call()
    assert set(fort.client.volumes()) == {volume}
    assert not fort.client.snapshots()


# -- missing fields --

MISSING: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("CreateVolume", {"name": "n", "volume_capabilities": [CAP]}, ()),
    ("DeleteVolume", {"volume_id": UNKNOWN_ID}, ()),
    ("ControllerUnpublishVolume", {"volume_id": UNKNOWN_ID}, ()),
    ("CreateSnapshot", {"source_volume_id": "VOLUME", "name": "n"}, ()),
    ("DeleteSnapshot", {"snapshot_id": "snap-" + "0" * 32}, ()),
    ("GetSnapshot", {"snapshot_id": "snap-" + "0" * 32}, ()),
    ("ControllerExpandVolume", {"volume_id": "VOLUME", "capacity_range": {"required_bytes": 1}}, ()),
    ("ControllerPublishVolume", {"volume_id": "VOLUME", "node_id": "node-1", "volume_capability": CAP}, ()),
    ("ValidateVolumeCapabilities", {"volume_id": "VOLUME", "volume_capabilities": [CAP]}, ()),
    ("ControllerGetVolume", {"volume_id": "VOLUME"}, ()),
    ("ControllerModifyVolume", {"volume_id": "VOLUME", "mutable_parameters": {"readBps": "0"}}, ()),
    ("CreateVolumeGroupSnapshot", {"name": "n", "source_volume_ids": ["VOLUME"]}, ()),
    ("DeleteVolumeGroupSnapshot", {"group_snapshot_id": "group-" + "0" * 32}, ()),
    ("GetVolumeGroupSnapshot", {"group_snapshot_id": "group-" + "0" * 32}, ()),
    ("GetMetadataAllocated", {"snapshot_id": "snap-" + "0" * 32}, ()),
    ("GetMetadataDelta", {"base_snapshot_id": "snap-" + "0" * 32, "target_snapshot_id": "snap-" + "1" * 32}, ()),
    ("NodeStageVolume", {"volume_id": "VOLUME", "staging_target_path": "NODE/s", "volume_capability": CAP}, ()),
    ("NodeUnstageVolume", {"volume_id": "VOLUME", "staging_target_path": "NODE/s"}, ()),
    ("NodePublishVolume", {"volume_id": "VOLUME", "target_path": "NODE/t", "staging_target_path": "NODE/s",
                           "volume_capability": CAP}, ("staging_target_path",)),
    ("NodeUnpublishVolume", {"volume_id": "VOLUME", "target_path": "NODE/t"}, ()),
    ("NodeGetVolumeStats", {"volume_id": "VOLUME", "volume_path": "NODE/t"}, ()),
    ("NodeExpandVolume", {"volume_id": "VOLUME", "volume_path": "NODE/t"}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("method", "fields", "precondition"), MISSING, ids=[row[0] for row in MISSING])
def test_a_required_field_is_missing(
    fort: Fort, node: Path, method: str, fields: dict[str, Any], precondition: tuple[str, ...]
) -> None:
    volume = fort.client.create("one").volume_id

    def real(value: Any) -> Any:
        if isinstance(value, list):
            return [real(one) for one in value]
        return value.replace("VOLUME", volume).replace("NODE", str(node)) if isinstance(value, str) else value

    whole = {key: real(value) for key, value in fields.items()}
    for missing in whole:
        with refused("FAILED_PRECONDITION" if missing in precondition else "INVALID_ARGUMENT"):
            fort.raw(method, **{key: value for key, value in whole.items() if key != missing})
    assert os.listdir(node) == ["s"]
    assert set(fort.client.volumes()) == {volume}


@pytest.mark.parametrize("bad", [
    pb.VolumeCapability(), pb.VolumeCapability(mount={}), pb.VolumeCapability(access_mode={"mode": 1}),
    pb.VolumeCapability(mount={}, access_mode={}), pb.VolumeCapability(mount={}, access_mode={"mode": 77}),
    capability(fs="ntfs"), capability(fs="../ext4"), capability(fs="ext4\0"), capability(fs=LONG),
    capability(fs="tmpfs"), capability(fs="overlay"), capability(fs="-h"),
    capability(group="root; id"), capability(group="-1"), capability(group=str(1 << 32)), capability(group="٣"),
])  # fmt: skip
def test_capabilities_that_are_none(fort: Fort, volume: str, node: Path, bad: pb.VolumeCapability) -> None:
    with refused("INVALID_ARGUMENT"):
        fort.client.create("new", caps=[CAP, bad])
    for method in ("NodeStageVolume", "NodePublishVolume"):
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION"):
            fort.raw(method, **{**BY_VOLUME[method](volume, node), "volume_capability": bad})
    assert set(fort.client.volumes()) == {volume}
    assert os.listdir(node) == ["s"]
    assert not mounts_below(node)


# -- parameters --


@pytest.mark.parametrize("parameters", [
    {"colour": "red"}, {"": "x"}, {"Pool": "pool"}, {"backend": "lvm"}, {"backend": ""}, {"provisioning": "fat"},
    {"pool": "../pool"}, {"pool": "nowhere"}, {"pool": "pool\0"}, {"backend": "image", "size": "1G"},
    {"csi.storage.k8s.io": "x"}, {LONG: "x"}, {"../../x": "y"},
])  # fmt: skip
def test_unknown_parameters(fort: Fort, parameters: dict[str, str]) -> None:
    with refused("INVALID_ARGUMENT"):
        fort.client.create("new", parameters=parameters)
    assert not fort.client.volumes()


def test_parameters_of_kubernetes_are_let_through(fort: Fort) -> None:
    names = {f"csi.storage.k8s.io/pvc/{key}": "../x" for key in ("name", "namespace")}
    assert fort.client.create("new", parameters={"pool": "pool", "backend": "image", **names})


LIMITS = [
    {"readBps": "-1"}, {"readBps": ""}, {"readBps": "1e6"}, {"writeIops": "1.5"}, {"readIops": "٣"}, {"readIops": " 1"},
    {"readIops": "0x10"}, {"readIops": "1" * 30}, {"speed": "1"}, {"readBps": "1 rbps=max"}, {"readIops": "1_0"},
    {"readBps": "1000000\n"}, {"readBps": "5000000", "writeBps": "fast"}, {"readIops": "+1"},
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS)
def test_limits_that_are_none_change_nothing(fort: Fort, volume: str, limits: dict[str, str]) -> None:
    fort.client.modify(volume, readBps="1000000")
    before = (fort.home(volume) / "record.json").read_text()
    with refused("INVALID_ARGUMENT"):
        fort.client.modify(volume, **limits)
    assert (fort.home(volume) / "record.json").read_text() == before
    with refused("INVALID_ARGUMENT"):
        fort.client.create("new", mutable=limits)


@pytest.mark.parametrize("flag", [
    "nonsense", "loop", "bind", "remount", "ro,loop", "a\0b", "offset=512", "x" * 5000, "journal_path=/etc/passwd",
    "subvol=/", "usrjquota=../../x", "-o", "errors=panic",
])  # fmt: skip
def test_mount_flags(fort: Fort, volume: str, flag: str) -> None:
    with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION"):
        fort.client.stage(volume, flags=[flag])
    assert not [path for path in mounts_below(fort.place) if path != str(fort.pool)]
    assert not loops(fort.pool)


@pytest.mark.parametrize("flag", ["dev", "suid", "defaults", "exec"])
def test_mount_flags_open_no_devices(fort: Fort, volume: str, flag: str) -> None:
    """Whoever makes the bytes of a file system makes device nodes in it: they never work."""
    try:
        staging = fort.client.stage(volume, flags=[flag])
    except grpc.RpcError as error:
        assert code_of(error) in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")  # noqa: PT017
        return
    target = fort.client.publish(volume, flags=[flag])
    for path in (staging, target):
        assert os.statvfs(path).f_flag & os.ST_NODEV, f"{flag} opens devices at {path}"


def test_secrets_are_told_to_nobody(fort: Fort) -> None:
    secret = "hunter2-" + os.urandom(8).hex()
    fort.raw("CreateVolume", name="n", volume_capabilities=[CAP], secrets={"password": secret})
    with refused("INVALID_ARGUMENT") as _:
        fort.raw("CreateVolume", name="", volume_capabilities=[CAP], secrets={"password": secret})
    assert secret not in fort.driver.log.read_text(errors="replace")
    for path in (fort.pool / HOME).rglob("record.json"):
        assert secret not in path.read_text()


# -- sizes --


@pytest.mark.parametrize(("size", "limit", "codes"), [
    (-1, 0, ("INVALID_ARGUMENT", "OUT_OF_RANGE")), (0, -1, ("INVALID_ARGUMENT", "OUT_OF_RANGE")),
    (64 * MIB, 32 * MIB, ("INVALID_ARGUMENT", "OUT_OF_RANGE")), (0, 1, ("OUT_OF_RANGE",)),
    (64 * MIB + 1, 64 * MIB + 1, ("OUT_OF_RANGE",)),  # no multiple of a block
    (HUGE, 0, ("OUT_OF_RANGE", "RESOURCE_EXHAUSTED")), (HUGE, HUGE, ("OUT_OF_RANGE", "RESOURCE_EXHAUSTED")),
    (HUGE - 4096, 0, ("OUT_OF_RANGE", "RESOURCE_EXHAUSTED")), (1 << 40, 0, ("OUT_OF_RANGE", "RESOURCE_EXHAUSTED")),
])  # fmt: skip
@pytest.mark.parametrize("cap", [{}, {"block": True}, {"fs": "xfs"}], ids=["ext4", "block", "xfs"])
def test_capacity_that_cannot_be_had(
    fort: Fort, size: int, limit: int, codes: tuple[str, ...], cap: dict[str, Any]
) -> None:
    if "xfs" in cap.values():
        codes = (*codes, "OUT_OF_RANGE")
    with refused(*codes):
        fort.client.create("new", size, limit=limit, **cap)
    assert not fort.client.volumes()
    assert not residue(fort.pool)


def test_the_least_and_the_limit(fort: Fort) -> None:
    for name, cap in {"a": {}, "b": {"block": True}, "c": {"fs": "xfs"}}.items():
        volume = fort.client.create(name, 1, **cap)
        assert volume.capacity_bytes >= 1
        assert fort.client.use(volume.volume_id, **cap)
    exact = fort.client.create("exact", 64 * MIB, limit=64 * MIB)
    assert exact.capacity_bytes == 64 * MIB


def test_more_than_the_pool_has(fort: Fort) -> None:
    """Over-provisioning is off: the sum of all promises fits the pool, also of sparse ones and of expansions."""
    room = fort.client.capacity().available_capacity
    first = fort.client.create("first", room // 2 // MIB * MIB).volume_id
    with refused("RESOURCE_EXHAUSTED", "OUT_OF_RANGE"):
        fort.client.create("second", room * 3 // 4)
    with refused("RESOURCE_EXHAUSTED", "OUT_OF_RANGE"):
        fort.client.expand(first, room * 5 // 4)
    assert fort.client.volumes()[first].capacity_bytes == room // 2 // MIB * MIB
    for size in (HUGE, HUGE - 1, 1 << 50):
        with refused("RESOURCE_EXHAUSTED", "OUT_OF_RANGE"):
            fort.client.expand(first, size)
    assert fort.home(first).is_dir()


def test_shrinking(fort: Fort) -> None:
    """Larger already is success, by the spec; a limit below what it has cannot be."""
    volume = fort.client.create("one", 96 * MIB).volume_id
    assert fort.client.expand(volume, 32 * MIB).capacity_bytes == 96 * MIB
    with refused("OUT_OF_RANGE"):
        fort.client.expand(volume, 0, 32 * MIB)
    for size, limit in ((-5, 0), (0, -5), (128 * MIB, 64 * MIB)):
        with refused("INVALID_ARGUMENT", "OUT_OF_RANGE"):
            fort.client.expand(volume, size, limit)
    with refused("INVALID_ARGUMENT"):
        fort.client.expand(volume, 0)
    target = fort.client.use(volume)
    with suppress(grpc.RpcError):
        fort.client.node_expand(volume, target, 32 * MIB)
    assert fort.client.volumes()[volume].capacity_bytes == 96 * MIB
    snapshot = fort.client.snapshot(volume, "s").snapshot_id
    for source in (clone_of(volume), restore_of(snapshot)):
        with refused("OUT_OF_RANGE"):
            fort.client.create("less", 64 * MIB, source=source)
        with refused("OUT_OF_RANGE"):
            fort.client.create("less", 0, limit=64 * MIB, source=source)
        assert fort.client.create(f"same {source}"[:100], 0, source=source).capacity_bytes == 96 * MIB


# -- in use --


@pytest.mark.parametrize("cap", [{}, {"block": True}], ids=["mount", "block"])
def test_a_volume_in_use_is_not_deleted(fort: Fort, cap: dict[str, Any]) -> None:
    volume = fort.client.create("one", **cap).volume_id
    target = fort.client.use(volume, **cap)
    with refused("FAILED_PRECONDITION"):
        fort.client.delete(volume)
    with suppress(grpc.RpcError):  # not unstaged either while it is published
        fort.client.unstage(volume)
    if cap:
        with open(target, "r+b", buffering=0) as device:
            assert device.write(b"x" * 4096) == 4096
            os.fsync(device.fileno())
    else:
        (target / "file").write_text("x")
    with refused("FAILED_PRECONDITION"):
        fort.client.delete(volume)
    fort.client.unpublish(volume)
    fort.client.leave(volume)
    fort.client.delete(volume)
    assert not loops(fort.pool)


def test_another_mode_than_the_volumes(fort: Fort) -> None:
    mounted, raw = fort.client.create("m").volume_id, fort.client.create("b", block=True).volume_id
    for volume, cap in ((mounted, {"block": True}), (raw, {}), (mounted, {"fs": "xfs"})):
        with refused("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
            fort.client.stage(volume, **cap)
        with refused("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
            fort.client.publish(volume, **cap)
    # the bytes of a raw volume are whatever a container wrote: no kernel is to mount them
    snapshot = fort.client.snapshot(raw, "s").snapshot_id
    for source in (clone_of(raw), restore_of(snapshot)):
        with refused("INVALID_ARGUMENT"):
            fort.client.create("as files", source=source)
    with refused("INVALID_ARGUMENT"):
        fort.client.create("as bytes", source=clone_of(mounted), block=True)
    with refused("INVALID_ARGUMENT"):
        fort.client.create("as xfs", 320 * MIB, source=clone_of(mounted), fs="xfs")


# -- paths --


def bad_paths(fort: Fort) -> list[str]:
    here = str(fort.place)
    return ["relative", "./x", "..", f"{here}/node/../canary/empty", f"{here}/../../../../../..{here}/canary/empty",
            f"{here}/a\0b", f"{here}/{LONG}", "/" + "x/" * 4000, f"{here}/" + "n" * 256, "\0", f"{here}/node/..",
            f"{fort.pool}/{HOME}/volumes", f"{fort.pool}/{HOME}/making/x", "/"]  # fmt: skip


def test_paths_that_lead_astray(fort: Fort, volume: str, node: Path) -> None:
    fort.client.stage(volume)
    for bad in bad_paths(fort):
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"):
            fort.raw("NodeStageVolume", volume_id=volume, staging_target_path=bad, volume_capability=CAP)
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"):
            fort.raw("NodePublishVolume", volume_id=volume, staging_target_path=str(fort.client.staging(volume)),
                     target_path=bad, volume_capability=CAP)  # fmt: skip
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"):
            fort.raw("NodePublishVolume", volume_id=volume, staging_target_path=bad, target_path=str(node / "t"),
                     volume_capability=CAP)  # fmt: skip
        for method, field in (("NodeGetVolumeStats", "volume_path"), ("NodeExpandVolume", "volume_path")):
            with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"):
                fort.raw(method, volume_id=volume, **{field: bad})
        for method, field in (("NodeUnstageVolume", "staging_target_path"), ("NodeUnpublishVolume", "target_path")):
            with suppress(grpc.RpcError):  # "not published there" is success
                fort.raw(method, volume_id=volume, **{field: bad})
    assert os.listdir(node) == ["s"]
    assert fort.client.publish(volume).is_mount()


@pytest.mark.parametrize(
    "name", ["with space", "tab\there", "new\nline", "back\\slash", "a#b", "名前-🜁", "x" * 200, "o'\"$`"]
)
@pytest.mark.parametrize("cap", [{}, {"block": True}], ids=["mount", "block"])
def test_any_path_is_a_path(fort: Fort, node: Path, name: str, cap: dict[str, Any]) -> None:
    """mountinfo writes some of these in octal; what is published is found again all the same."""
    volume = fort.client.create("one", **cap).volume_id
    staging, target = node / name, node / f"{name}2"
    staging.mkdir()
    for _ in range(2):
        fort.client.stage(volume, staging, **cap)
        fort.raw("NodePublishVolume", volume_id=volume, staging_target_path=str(staging), target_path=str(target),
                 volume_capability=capability(**cap))  # fmt: skip
    assert len(mounts_below(node)) == (1 if cap else 2)
    assert fort.raw("NodeGetVolumeStats", volume_id=volume, volume_path=str(target)).usage[0].total
    with refused("FAILED_PRECONDITION"):
        fort.client.delete(volume)
    for _ in range(2):
        fort.client.unpublish(volume, path=target)
        fort.client.unstage(volume, staging)
    assert not mounts_below(node)
    assert not target.exists()
    assert not loops(fort.pool)


def test_a_path_of_the_systems_longest(fort: Fort, node: Path) -> None:
    """kubelet's paths are long; anything that the system can open is taken."""
    deep = node
    while len(str(deep)) < 3700:
        deep /= "d" * 200
    volume = fort.client.create("one").volume_id
    (deep / "s").mkdir(parents=True)
    fort.client.stage(volume, deep / "s")
    fort.raw("NodePublishVolume", volume_id=volume, staging_target_path=str(deep / "s"), target_path=str(deep / "t"),
             volume_capability=CAP)  # fmt: skip
    (deep / "t" / "file").write_text("x")
    fort.client.unpublish(volume, path=deep / "t")
    fort.client.unstage(volume, deep / "s")
    assert not loops(fort.pool)


def test_what_stands_at_a_path(fort: Fort, volume: str, node: Path) -> None:
    """Files, links and full directories of somebody else are neither mounted over by way of a link nor deleted."""
    (node / "file").write_text("not yours")
    (node / "full").mkdir()
    (node / "full" / "file").write_text("not yours")
    (node / "link").symlink_to(fort.canary / "empty")
    (node / "filelink").symlink_to(fort.canary / "file")
    (node / "dangling").symlink_to(fort.canary / "new")
    os.mkfifo(node / "fifo")
    for name in ("file", "link", "filelink", "dangling", "fifo", "none"):
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"):
            fort.raw("NodeStageVolume", volume_id=volume, staging_target_path=str(node / name), volume_capability=CAP)
    fort.client.stage(volume)
    for name in ("file", "link", "filelink", "dangling", "fifo", "none/t"):
        with refused("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"):
            fort.raw("NodePublishVolume", volume_id=volume, staging_target_path=str(fort.client.staging(volume)),
                     target_path=str(node / name), volume_capability=CAP)  # fmt: skip
    for name in ("file", "full", "link", "filelink", "dangling", "fifo", "none/t"):
        with suppress(grpc.RpcError):
            fort.raw("NodeUnpublishVolume", volume_id=volume, target_path=str(node / name))
        with suppress(grpc.RpcError):
            fort.raw("NodeUnstageVolume", volume_id=volume, staging_target_path=str(node / name))
    assert (node / "file").read_text() == (node / "full" / "file").read_text() == "not yours"
    assert not mounts_below(node)
    assert not mounts_below(fort.canary)


@contextmanager
def foreign(path: Path) -> Iterator[Path]:
    """Somebody else's mount with a file in it."""
    path.mkdir(parents=True, exist_ok=True)
    before = mounts_below(path.parent).count(str(path))
    run("mount", "-t", "tmpfs", "none", path)
    (path / "file").write_text("not yours")
    try:
        yield path
        assert (path / "file").read_text() == "not yours", "a foreign mount was taken off or covered"
        assert mounts_below(path.parent).count(str(path)) == before + 1
    finally:
        run("umount", path)


@pytest.mark.parametrize("cap", [{}, {"block": True}], ids=["mount", "block"])
def test_a_foreign_mount_on_the_path(fort: Fort, node: Path, cap: dict[str, Any]) -> None:
    volume = fort.client.create("one", **cap).volume_id
    if not cap:
        with foreign(node / "s"):
            with refused("FAILED_PRECONDITION"):
                fort.client.stage(volume, node / "s", **cap)
            with refused("FAILED_PRECONDITION"):
                fort.client.unstage(volume, node / "s")
    fort.client.stage(volume, **cap)
    with foreign(fort.client.target(volume, "t")):
        with refused("FAILED_PRECONDITION"):
            fort.client.publish(volume, "t", **cap)
        with refused("FAILED_PRECONDITION"):
            fort.raw("NodeUnpublishVolume", volume_id=volume, target_path=str(fort.client.target(volume, "t")))


def test_a_foreign_mount_over_a_published_volume(fort: Fort, volume: str) -> None:
    """It is not ours to take off; ours below it neither, then."""
    target = fort.client.use(volume)
    (target / "ours").write_text("x")
    with foreign(target), refused("FAILED_PRECONDITION"):
        fort.client.unpublish(volume)
    assert (target / "ours").read_text() == "x"


def test_another_volumes_path(fort: Fort, volume: str) -> None:
    """One volume's call undoes nothing of another's."""
    other = fort.client.create("other").volume_id
    target = fort.client.use(volume)
    (target / "file").write_text("x")
    fort.client.stage(other)
    with refused("FAILED_PRECONDITION", "ALREADY_EXISTS", "INVALID_ARGUMENT"):
        fort.client.stage(other, fort.client.staging(volume))
    with refused("FAILED_PRECONDITION", "ALREADY_EXISTS", "INVALID_ARGUMENT"):
        fort.raw("NodePublishVolume", volume_id=other, staging_target_path=str(fort.client.staging(other)),
                 target_path=str(target), volume_capability=CAP)  # fmt: skip
    with refused("FAILED_PRECONDITION", "ALREADY_EXISTS", "INVALID_ARGUMENT", "NOT_FOUND"):
        fort.raw("NodePublishVolume", volume_id=other, staging_target_path=str(fort.client.staging(volume)),
                 target_path=str(fort.client.target(volume, "mixed")), volume_capability=CAP)  # fmt: skip
    for method, field, path in (("NodeUnpublishVolume", "target_path", target),
                                ("NodeUnstageVolume", "staging_target_path", fort.client.staging(volume))):  # fmt: skip
        with suppress(grpc.RpcError):
            fort.raw(method, volume_id=other, **{field: str(path)})
    with refused("NOT_FOUND"):
        fort.raw("NodeGetVolumeStats", volume_id=other, volume_path=str(target))
    assert (target / "file").read_text() == "x"
    assert target.is_mount()
    assert fort.client.staging(volume).is_mount()


# -- what a container does to its volume --


def test_links_in_a_volume_lead_nowhere(fort: Fort, volume: str) -> None:
    """fsGroup, stats and expansion meet links to the canary and back; nothing beyond the volume changes."""
    target = fort.client.use(volume)
    (target / "link").symlink_to(fort.canary)
    (target / "up").symlink_to("../" * 30 + str(fort.canary).lstrip("/"))
    (target / "d" / "e").mkdir(parents=True)
    (target / "d" / "file").symlink_to(fort.canary / "file")
    (target / "loop").symlink_to("loop")
    os.mkfifo(target / "fifo")
    os.mknod(target / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    fort.client.leave(volume)
    target = fort.client.use(volume, group="4711")
    assert os.lstat(target).st_gid == 4711
    assert os.lstat(target / "d" / "e").st_gid == 4711
    fort.untouched()
    assert fort.client.stats(volume, target).usage
    fort.client.expand(volume, 96 * MIB)
    if grows_online("ext4"):
        fort.client.node_expand(volume, target)


def test_fsgroup_races_with_a_link(fort: Fort, volume: str) -> None:
    """A container swaps a directory for a link to the canary all the while: the walk never leaves the volume."""
    target = fort.client.use(volume)
    fort.client.publish(volume, "racer")
    racer, end = fort.client.target(volume, "racer"), threading.Event()
    for number in range(300):
        (target / f"d{number}").mkdir()
        (target / f"d{number}" / "file").write_text("x")
    (target / "swap").mkdir()
    for name in ("file", "deep", "empty"):
        (target / "swap" / name).mkdir()
    (target / "away").symlink_to(fort.canary)

    def race() -> None:
        while not end.is_set():
            with suppress(OSError):
                os.rename(racer / "swap", racer / "aside")
                os.rename(racer / "away", racer / "swap")
                os.rename(racer / "swap", racer / "away")
                os.rename(racer / "aside", racer / "swap")

    thread = threading.Thread(target=race)
    thread.start()
    try:
        for group in range(3000, 3012):
            os.chown(target, 0, 0)  # the walk is spared where the root is right already
            for at in ("swap", "aside"):
                with suppress(OSError):
                    os.chown(target / at, 0, 0, follow_symlinks=False)
            with suppress(grpc.RpcError):
                fort.client.stage(volume, group=str(group))
            with suppress(grpc.RpcError):
                fort.client.publish(volume, f"g{group}", group=str(group))
            fort.untouched()
    finally:
        end.set()
        thread.join()


def superblock(kind: str) -> bytes:
    """The first MiB of a volume as somebody hostile writes it."""
    if kind == "ext4, huge, with errors":
        block = bytearray(1024)
        block[0x38:0x3A] = (0xEF53).to_bytes(2, "little")
        block[0x04:0x08] = b"\xff" * 4  # blocks
        block[0x18:0x1C] = b"\xff" * 4  # log block size
        block[0x3A:0x3C] = (2).to_bytes(2, "little")  # state: errors
        return bytes(1024) + bytes(block) + b"\xff" * 65536
    if kind == "xfs":
        return b"XFSB" + b"\xff" * 65536
    if kind == "partitions":
        return bytes(446) + bytes([0x80, 0, 1, 0, 0x83, 0, 1, 0, 1, 0, 0, 0, 0, 64, 0, 0]) + bytes(48) + b"\x55\xaa"
    return random.Random(1).randbytes(1 << 20)


@pytest.mark.parametrize("kind", ["ext4, huge, with errors", "xfs", "partitions", "noise"])
def test_hostile_superblocks_of_a_raw_volume(fort: Fort, kind: str) -> None:
    """A raw volume's bytes are its user's affair: no call looks at them, none fails of them."""
    raw = {"block": True}
    volume = fort.client.create("raw", **raw).volume_id
    target = fort.client.use(volume, **raw)
    data = superblock(kind)
    with open(target, "r+b", buffering=0) as device:
        device.write(data)
        os.fsync(device.fileno())
    assert not fort.client.stats(volume, target).volume_condition.abnormal
    assert not fort.client.get(volume).status.volume_condition.abnormal
    snapshot = fort.client.snapshot(volume, "s").snapshot_id
    assert fort.raw("GetMetadataAllocated", snapshot_id=snapshot)
    fort.client.expand(volume, 96 * MIB)
    fort.client.node_expand(volume, target)
    copy = fort.client.create("copy", 96 * MIB, source=restore_of(snapshot), **raw).volume_id
    with open(fort.client.use(copy, **raw), "rb") as device:
        assert device.read(len(data)) == data
    fort.client.leave(volume)
    with open(fort.client.use(volume, **raw), "rb") as device:
        assert device.read(len(data)) == data
        assert device.seek(0, os.SEEK_END) == 96 * MIB
    for name in loops(fort.pool):
        assert not list(Path("/sys/block", name).glob(f"{name}p*")), "partitions of a container's bytes were scanned"
    assert fort.driver.check() == []
