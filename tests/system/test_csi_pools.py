"""What befalls a pool of the CSI driver: damaged and foreign things in it, no room, no device, no mount; its bytes.

Each is told by the spec's code, the volume's condition or `wherry-csi check`; what is well is served, and what is
somebody's data stays.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.csi import (
    HOME,
    MIB,
    Driver,
    answer_of,
    clone_of,
    eventually,
    loops,
    mounts_below,
    processes_of,
    refused,
    residue,
    restore_of,
)
from helpers.csifort import IDS, PROBLEM, UNKNOWN_ID, Fort, built, tree
from helpers.loopfs import LoopFs
from helpers.tools import need, run


@pytest.mark.parametrize("cap", [{}, {"block": True}, {"fs": "xfs", "size": 320 * MIB}], ids=["ext4", "block", "xfs"])
@pytest.mark.parametrize("damage", ["zeros", "short", "gone", "link", "fifo", "directory"])
def test_a_damaged_image(own: Fort, damage: str, cap: dict[str, Any]) -> None:
    """It is told, by the call, the volume's condition and `check`; the other volumes are well."""
    well = own.client.create("well").volume_id
    volume = own.client.create("ill", **cap).volume_id
    image = max((path for path in own.home(volume).iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "zeros":
        with open(image, "r+b") as file:
            file.write(bytes(8 * MIB))
    elif damage == "short":
        os.truncate(image, 32 * MIB)
    else:
        image.unlink()
        make: dict[str, Callable[[], Any]] = {
            "gone": lambda: None, "link": lambda: image.symlink_to(own.canary / "file"),
            "fifo": lambda: os.mkfifo(image), "directory": image.mkdir,
        }  # fmt: skip
        make[damage]()
    own.restart()
    stage = {key: value for key, value in cap.items() if key != "size"}
    if not (damage == "zeros" and cap.get("block")):
        with refused("INTERNAL", "FAILED_PRECONDITION", "DATA_LOSS", "UNAVAILABLE"):
            own.client.stage(volume, **stage)
    if damage != "zeros":
        assert own.client.get(volume).status.volume_condition.abnormal
        assert any(volume in line for line in own.driver.check())
    assert not [path for path in mounts_below(own.place) if path != str(own.pool)]
    assert not loops(own.pool)
    (own.client.use(well) / "file").write_text("x")
    own.client.sweep()
    own.untouched()
    assert own.driver.check() == []
    assert not residue(own.pool)


def test_what_a_cut_off_resize_leaves_is_put_right(own: Fort) -> None:
    """resize2fs marks what it works on as in error; if the power goes then, the next start of the driver mends it."""
    need("debugfs")
    volume = own.client.create("one").volume_id
    (own.client.use(volume) / "file").write_bytes(PATTERN)
    own.client.leave(volume)
    own.driver.stop()
    run("debugfs", "-w", "-R", "set_super_value state 2", own.home(volume) / "image")
    assert own.driver.check()
    own.client = own.driver.start()
    assert own.driver.check() == []
    assert (own.client.use(volume) / "file").read_bytes() == PATTERN


# -- what is found in a pool --


def plant(own: Fort, kind: str, volume: str) -> bool:
    """Put something into the pool; whether `check` has to complain of it."""
    home = own.pool / HOME
    record = own.home(volume) / "record.json"
    text = record.read_text()
    strange: dict[str, Callable[[], Any]] = {
        "garbage": lambda: record.write_bytes(os.urandom(500)),
        "empty": lambda: record.write_text(""),
        "half": lambda: record.write_text(text[: len(text) // 2]),
        "a list": lambda: record.write_text("[]"),
        "null": lambda: record.write_text("null"),
        "no fields": lambda: record.write_text("{}"),
        "other kinds": lambda: record.write_text(json.dumps({key: ["../../x", 7] for key in json.loads(text)})),
        "negative": lambda: record.write_text(text.replace(str(64 * MIB), "-5")),
        "another's id": lambda: record.write_text(text.replace(volume, "vol-" + "f" * 32)),
        "a path as id": lambda: record.write_text(text.replace(volume, "../../../canary")),
        "deep": lambda: record.write_text("[" * 100_000 + "]" * 100_000),
        "large": lambda: record.write_text('{"a": "' + "x" * (32 << 20) + '"}'),
        "gone": lambda: os.unlink(record),
        "directory": lambda: (record.unlink(), record.mkdir()),
        "link": lambda: (record.unlink(), record.symlink_to(own.canary / "file")),
        "fifo": lambda: (record.unlink(), os.mkfifo(record)),
        "foreign home": lambda: os.mkdir(home / "volumes" / "lost+found"),
        "foreign file": lambda: (home / "volumes" / "notes.txt").write_text("x"),
        "linked home": lambda: (home / "volumes" / UNKNOWN_ID).symlink_to(own.canary),
        "linked making": lambda: (home / "making" / UNKNOWN_ID).symlink_to(own.canary),
        "linked trash": lambda: (home / "trash" / UNKNOWN_ID).symlink_to(own.canary),
        "link in trash": lambda: ((home / "trash" / UNKNOWN_ID).mkdir(),
                                  (home / "trash" / UNKNOWN_ID / "disk.img").symlink_to(own.canary)),
        "mount in trash": lambda: ((home / "trash" / UNKNOWN_ID / "m").mkdir(parents=True),
                                   run("mount", "--bind", own.canary, home / "trash" / UNKNOWN_ID / "m")),
        "group of nothing": lambda: (home / "groups" / f"group-{'0' * 32}.json").write_text("{"),
    }  # fmt: skip
    strange[kind]()
    return kind not in ("linked making", "linked trash", "link in trash")


KINDS = [
    "garbage", "empty", "half", "a list", "null", "no fields", "other kinds", "negative", "another's id",
    "a path as id", "deep", "large", "gone", "directory", "link", "fifo", "foreign home", "foreign file", "linked home",
    "linked making", "linked trash", "link in trash", "mount in trash", "group of nothing",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_strange_things_in_a_pool(own: Fort, kind: str) -> None:
    """The driver starts, the other volumes are served, `check` tells, and nothing beside the pool goes."""
    well = own.client.create("well").volume_id
    ill = own.client.create("ill").volume_id
    own.driver.stop()
    before = own.home(ill).exists()
    told = plant(own, kind, ill)
    try:
        own.client = own.driver.start(seconds=15)
        assert well in own.client.volumes()
        (own.client.use(well) / "file").write_text("x")
        own.client.snapshot(well, "s")
        assert own.client.create("new").volume_id
        own.untouched()
        if told:
            own.driver.stop()
            assert own.driver.check(), f"check has nothing to say of {kind}"
            own.restart()
        assert own.home(ill).exists() == before, "a volume whose record is lost is somebody's data"
        for volume in [ill, *IDS[:5]]:
            with suppress(grpc.RpcError):
                own.client.get(volume)
        own.restart()
        assert well in own.client.volumes()
        own.client.leave(well)
        own.client.delete(well)
        own.untouched()
    finally:
        mount = own.pool / HOME / "trash" / UNKNOWN_ID / "m"
        if kind == "mount in trash" and os.path.ismount(mount):
            run("umount", mount)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 999, "id": "x"}', '{"version": "1"}'])
def test_a_pool_of_somebody_else(own: Fort, text: str) -> None:
    """A pool that a newer driver wrote, or that is damaged, is not served and not changed; calls and `check` say so."""
    volume = own.client.create("one").volume_id
    own.driver.stop()
    (own.pool / HOME / "pool.json").write_text(text)
    before = set(residue(own.pool))
    own.client = own.driver.start()
    for call in (lambda: own.client.create("new"), lambda: own.client.delete(volume), lambda: own.client.get(volume)):
        with refused(*PROBLEM) as caught:
            call()
        assert "pool.json" in caught.value.details()
    assert own.driver.check()
    own.driver.stop()
    assert "Traceback" not in own.driver.tail()
    assert set(residue(own.pool)) == before
    assert (own.pool / HOME / "pool.json").read_text() == text
    assert tree(own.canary) == own.before


def test_one_driver_a_pool(own: Fort) -> None:
    other = own.place / "other"
    other.mkdir()
    second = Driver(other, {"pool": own.pool})
    with pytest.raises(AssertionError, match="ended"):
        second.start(5)
    assert "Traceback" not in second.tail()
    assert str(own.pool) in second.tail()
    own.untouched()
    assert stat.S_IMODE(own.driver.socket.stat().st_mode) == 0o600


# -- the pool fails --


@pytest.mark.parametrize("own", ["xfs", "ext4"], indirect=True)
def test_a_full_pool(own: Fort) -> None:
    """No room is RESOURCE_EXHAUSTED, leaves nothing behind, and passes when there is room again."""
    volume = own.client.create("one", 256 * MIB).volume_id
    target = own.client.use(volume)
    (target / "file").write_bytes(os.urandom(40 * MIB))
    os.sync()
    filler = own.fs.fill(leave=8 * MIB)
    before = sorted(residue(own.pool))
    for call in (
        lambda: own.client.create("new", 64 * MIB), lambda: own.client.create("new", 64 * MIB, block=True),
        lambda: own.client.create("new", 64 * MIB, parameters={"provisioning": "thick"}),
        lambda: own.client.create("new", source=clone_of(volume), size=256 * MIB),
        lambda: own.client.expand(volume, 1024 * MIB),
    ):  # fmt: skip
        with refused("RESOURCE_EXHAUSTED"):
            call()
    if own.fs.fs == "ext4":  # a copy by data
        with refused("RESOURCE_EXHAUSTED"):
            own.client.snapshot(volume, "s")
    assert own.client.capacity().available_capacity == 0
    assert sorted(residue(own.pool)) == before
    assert set(own.client.volumes()) == {volume}
    assert (target / "file").stat().st_size == 40 * MIB
    own.client.unpublish(volume)  # leaving and deleting need no room
    own.client.leave(volume)
    filler.unlink()
    (own.client.use(volume) / "more").write_text("x")
    assert own.client.snapshot(volume, "s").ready_to_use
    assert own.client.create("new").volume_id
    own.client.sweep()
    assert own.driver.check() == []
    assert not residue(own.pool)


def test_a_full_pool_can_be_emptied(own: Fort) -> None:
    ids = [own.client.create(f"v{number}", 64 * MIB).volume_id for number in range(4)]
    own.fs.fill(leave=0)
    own.restart()
    for volume in ids:
        own.client.delete(volume)
    assert not own.client.volumes()
    eventually(lambda: not residue(own.pool), 5)


def calls_that_write(own: Fort, volume: str, snapshot: str) -> list[Callable[[], Any]]:
    return [
        lambda: own.client.create("new"), lambda: own.client.create("new", source=clone_of(volume)),
        lambda: own.client.create("new", source=restore_of(snapshot)), lambda: own.client.snapshot(volume, "t"),
        lambda: own.client.expand(volume, 128 * MIB), lambda: own.client.modify(volume, readBps="9999999"),
        lambda: own.client.group("g", [volume]),
    ]  # fmt: skip


def refused_while_read_only(own: Fort, volume: str, snapshot: str) -> None:
    """Every call that would write says so; what is there is listed; Probe tells."""
    for call in (*calls_that_write(own, volume, snapshot), lambda: own.client.delete(volume),
                 lambda: own.client.unsnapshot(snapshot)):  # fmt: skip
        with refused(*PROBLEM):
            call()
    assert set(own.client.volumes()) == {volume}
    assert set(own.client.snapshots()) == {snapshot}
    with refused("FAILED_PRECONDITION"):
        own.raw("Probe")


def test_a_pool_that_is_mounted_read_only(own: Fort) -> None:
    volume = own.client.create("one").volume_id
    snapshot = own.client.snapshot(volume, "s").snapshot_id
    own.driver.stop()
    own.fs.unmount()
    own.fs.mount("ro")
    own.client = own.driver.start()
    refused_while_read_only(own, volume, snapshot)
    assert own.client.get(volume).status.volume_condition.abnormal
    own.driver.stop()
    own.fs.unmount()
    own.fs.mount()
    own.client = own.driver.start()
    assert own.client.create("new").volume_id
    assert own.driver.check() == []
    own.client.sweep()
    assert not residue(own.pool)


@pytest.mark.parametrize("own", ["ext4"], indirect=True)
def test_a_pool_that_goes_read_only(own: Fort) -> None:
    """ext4 met an error, and protects itself, under a driver that runs."""
    volume = own.client.create("one").volume_id
    snapshot = own.client.snapshot(volume, "s").snapshot_id
    run("mount", "-o", "remount,errors=remount-ro", own.pool)
    device = Path(run("findmnt", "-n", "-o", "SOURCE", own.pool).stdout.strip()).name
    (Path("/sys/fs/ext4") / device / "trigger_fs_error").write_text("a test")
    refused_while_read_only(own, volume, snapshot)
    own.driver.stop()
    own.fs.unmount()
    own.fs.mount()
    own.client = own.driver.start()
    assert own.client.create("new").volume_id
    assert set(own.client.snapshots()) == {snapshot}


def test_a_pool_whose_device_dies(own: Fort) -> None:
    """EIO from everywhere: each call says so, and nothing that was acknowledged is gone when the disk is back."""
    volume = own.client.create("one").volume_id
    snapshot = own.client.snapshot(volume, "s").snapshot_id
    own.fs.shutdown()
    for call in calls_that_write(own, volume, snapshot):
        with refused(*PROBLEM):
            call()
    with suppress(grpc.RpcError):
        own.client.volumes()
    with suppress(grpc.RpcError):
        assert not own.raw("Probe").ready.value
    own.driver.kill()
    own.fs.unmount()
    own.fs.mount()
    own.client = own.driver.start()
    assert set(own.client.volumes()) == {volume}
    assert set(own.client.snapshots()) == {snapshot}
    assert own.driver.check() == []
    (own.client.use(volume) / "file").write_text("x")


@pytest.mark.parametrize("own", ["xfs", "ext4"], indirect=True)
def test_pods_end_on_a_dead_pool(own: Fort) -> None:
    """A disk that died keeps no pod from ending: what was published is taken off, and no device is left."""
    kinds: list[dict[str, Any]] = [{}, {"block": True}, {"fs": "xfs"}]
    volumes = [own.client.create(f"v{at}", 320 * MIB, **cap).volume_id for at, cap in enumerate(kinds)]
    for volume, cap in zip(volumes, kinds, strict=True):
        target = own.client.use(volume, **cap)
        if target.is_dir():
            (target / "file").write_bytes(os.urandom(MIB))
    own.fs.shutdown()
    for volume in volumes:
        own.client.leave(volume)
    assert [path for path in mounts_below(own.place) if path != str(own.pool)] == []
    eventually(lambda: not loops(own.pool), 10, "no device is attached")
    own.driver.stop()
    own.fs.unmount()
    own.fs.mount()
    own.client = own.driver.start()
    assert own.driver.check() == []
    assert set(own.client.volumes()) == set(volumes)


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[tuple[Fort, LoopFs]]:
    """Two pools by csi.toml, each of which must be a mount point; the second one is there to go."""
    second = tmp_path / "second"
    second.mkdir()
    with LoopFs(tmp_path, 1024, "xfs") as first, LoopFs(second, 1024, "xfs", "weak") as weak:
        config = tmp_path / "csi.toml"
        config.write_text(f'[[pool]]\nname = "pool"\npath = "{first.path}"\nmount = true\n'
                          f'[[pool]]\nname = "weak"\npath = "{weak.path}"\nmount = true\n')  # fmt: skip
        made = Fort(tmp_path, first, "--config", str(config), pools={})
        try:
            yield made, weak
        finally:
            made.raze()
            if not weak.path.is_mount():
                weak.mount()


def test_an_unmounted_pool_is_not_written_below(configured: tuple[Fort, LoopFs]) -> None:
    """The directory that a mount point covers is the root disk's: a volume there would fill it."""
    fort, weak = configured
    volume = fort.client.create("one", parameters={"pool": "weak"}).volume_id
    assert fort.client.create("well", parameters={"pool": "pool"}).volume_id
    run("umount", "-l", weak.path)
    for call in (
        lambda: fort.client.create("new", parameters={"pool": "weak"}), lambda: fort.client.snapshot(volume, "s"),
        lambda: fort.client.expand(volume, 128 * MIB), lambda: fort.client.stage(volume),
    ):  # fmt: skip
        with refused(*PROBLEM, "NOT_FOUND"):
            call()
    assert os.listdir(weak.path) == [], "written to the directory below the mount point"
    assert fort.client.create("other", parameters={"pool": "pool"}).volume_id
    assert fort.client.capacity(parameters={"pool": "weak"}).available_capacity == 0
    # a driver that starts now serves what it can
    fort.restart()
    assert fort.client.create("third", parameters={"pool": "pool"}).volume_id
    with refused(*PROBLEM):
        fort.client.create("new", parameters={"pool": "weak"})
    assert os.listdir(weak.path) == []
    fort.driver.kill()  # lets go of the lazily unmounted one
    weak.mount()
    fort.restart()
    assert volume in fort.client.volumes()
    fort.client.sweep()
    fort.driver.stop()


def test_a_pool_that_vanishes(own: Fort) -> None:
    """Somebody deletes the driver's directory below it."""
    volume = own.client.create("one").volume_id
    snapshot = own.client.snapshot(volume, "s").snapshot_id
    shutil.rmtree(own.pool / HOME)
    for call in calls_that_write(own, volume, snapshot):
        assert answer_of(call)[0] in ("OK", *PROBLEM, "NOT_FOUND"), answer_of(call)
    own.untouched()
    own.restart()
    assert own.client.create("new").volume_id
    assert volume not in own.client.volumes()


# -- bytes and room --

PATTERN = b"the secret of the tenant before!" * 128


def fill(path: Path) -> int:
    """Write until it is full; how many bytes went in, and that it was ENOSPC that ended it."""
    written = 0
    try:
        with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
            try:
                while count := file.write(PATTERN * 16):
                    written += count
            finally:
                with suppress(OSError):
                    os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return written


@pytest.mark.parametrize("fs", ["xfs", "ext4", "btrfs"])
@pytest.mark.parametrize("parameters", [{}, {"provisioning": "thick"}], ids=["thin", "thick"])
def test_bytes_of_a_deleted_volume_cannot_be_read_from_a_new_one(
    tmp_path: Path, fs: str, parameters: dict[str, str]
) -> None:
    """Pools are small, so that new volumes get the same blocks of the disk."""
    with built(tmp_path, fs, megabytes=512) as own:
        size = own.client.capacity().available_capacity * 3 // 4 // MIB * MIB
        for name, cap in (("raw", {"block": True}), ("mounted", {})):
            volume = own.client.create(name, size, parameters=parameters, **cap).volume_id
            target = own.client.use(volume, **cap)
            assert fill(target if cap else target / "file") > size * 0.8
            own.client.leave(volume)
            own.client.delete(volume)
            assert not residue(own.pool)
            again = own.client.create(f"{name} again", size, parameters=parameters, block=True).volume_id
            assert clean(own.client.use(again, block=True))
            own.client.leave(again)
            own.client.delete(again)
            again = own.client.create(f"{name} mounted again", size, parameters=parameters).volume_id
            hole = own.client.use(again) / "hole"
            with open(hole, "wb") as file:  # what fallocate(2) gives was not written
                os.posix_fallocate(file.fileno(), 0, size // 2)
            assert clean(hole)
            own.client.leave(again)
            own.client.delete(again)


def clean(path: Path) -> bool:
    """Nothing but zeros."""
    with open(path, "rb", buffering=0) as file:
        return not any(piece.strip(b"\0") for piece in iter(lambda: file.read(8 * MIB), b""))


@pytest.mark.parametrize("own", ["xfs", "ext4", "btrfs"], indirect=True)
@pytest.mark.parametrize("cap", [{}, {"block": True}, {"fs": "xfs"}], ids=["ext4", "block", "xfs"])
def test_a_full_volume_harms_no_neighbour(own: Fort, cap: dict[str, Any]) -> None:
    """64 MiB are 64 MiB: ENOSPC inside, and room for everybody else."""
    size = 320 * MIB if cap.get("fs") == "xfs" else 64 * MIB
    volume, neighbour = own.client.create("one", size, **cap), own.client.create("neighbour", 64 * MIB)
    room = own.client.capacity().available_capacity
    target, beside = own.client.use(volume.volume_id, **cap), own.client.use(neighbour.volume_id)
    written = fill(target if cap.get("block") else target / "file")
    assert size * (1 if cap.get("block") else 0.7) <= written <= size
    (beside / "file").write_bytes(os.urandom(30 * MIB))
    with open(beside / "file", "rb") as file:
        os.fsync(file.fileno())
    usage = own.client.stats(volume.volume_id, target).usage[0]
    assert usage.total <= size
    assert abs(own.client.capacity().available_capacity - room) <= room // 20 + 16 * MIB, "promised room is promised"
    assert own.client.create("third", 64 * MIB).volume_id
    assert own.driver.check() == []
    if not cap.get("block"):
        assert fill(target / "more") < MIB
        (target / "file").unlink()
        (target / "more").write_bytes(PATTERN)
    own.client.sweep()


def test_nothing_runs_when_the_driver_has_ended(own: Fort) -> None:
    own.client.use(own.client.create("one").volume_id)
    own.client.sweep()
    own.driver.stop()
    assert not own.driver.socket.exists()
    assert subprocess.run(["umount", own.pool], check=False).returncode == 0
    own.fs.mount()
    assert not processes_of(own.place)
