"""Backends of the CSI driver on this machine's file systems: the contract, and what only images have."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.register_assert_rewrite("helpers.backends")

from helpers.backends import MIB, Contract, Place, Pool, Volume, code, placed  # noqa: E402
from helpers.tools import need, run  # noqa: E402
from wherry_csi import extents, kernel, loop, mounts  # noqa: E402
from wherry_csi.errors import CsiError  # noqa: E402

POOLS = {
    "ext4": ("mkfs.ext4 -q -F", 1600),
    "xfs": ("mkfs.xfs -q -f", 1600),
    "btrfs": ("mkfs.btrfs -q -f", 1600),
}
KINDS = {"ext4": ("mount", "ext4"), "xfs": ("mount", "xfs"), "block": ("block", "")}


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    command, megabytes = POOLS[request.param]
    need(command.split()[0])
    with Pool.made(tmp_path_factory.mktemp(request.param), command, megabytes) as made:
        yield made


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, pool: Pool, tmp_path: Path) -> Iterator[Place]:
    with placed(pool.path, tmp_path, "image", *KINDS[request.param]) as found:
        yield found


class TestImage(Contract):
    """Images on each pool."""

    def test_writes_at_random_do_not_shred_an_image_on_xfs(self, place: Place) -> None:
        if place.facts.fs != "xfs" or place.access != "block":
            pytest.skip("a hint that XFS takes; seen best without a file system inside")
        volume = place.make(64 * MIB).stage()
        pieces = [number * 65536 for number in range(0, 1024, 2)] + [number * 65536 for number in range(1, 1024, 2)]
        with open(place.backend.source(volume.home, volume.shape, "", False), "r+b", buffering=0) as device:
            for offset in pieces:
                os.pwrite(device.fileno(), b"\xa5" * 65536, offset)
                os.fsync(device.fileno())
        copy = place.copy(volume)
        with _image(place, copy) as image:
            assert len(list(extents.pieces(image, copy.shape.size))) <= 96
        assert copy.trouble == ""

    def test_extents_and_changes_cover_the_truth(self, place: Place) -> None:
        volume = place.make().stage()
        volume.write(b"\1" * MIB, 4 * MIB)
        first = place.copy(volume)
        volume.write(b"\2" * 8192, 4 * MIB + 65536)
        volume.write(b"\3" * 4096, 20 * MIB)
        second = place.copy(volume)
        block, size = 4096, volume.shape.size
        with _image(place, first) as old, _image(place, second) as new:
            truth = {at for at in range(0, size, block) if os.pread(old, block, at) != os.pread(new, block, at)}
            data = {at for at in range(0, size, block) if os.pread(new, block, at).strip(b"\0")}
        changed = list(place.backend.changed(first.home, second.home, volume.shape))
        assert changed == sorted(changed)
        told = {at for start, length in changed for at in range(start, start + length, block)}
        assert truth
        assert truth <= told
        assert len(told) < 4 * len(truth) + 64, "not everything is called changed"
        extents = place.backend.extents(second.home, second.shape)
        assert data <= {at for start, length in extents for at in range(start, start + length, block)}
        assert not list(place.backend.changed(first.home, first.home, first.shape))

    def test_thick_is_allocated_at_once(self, place: Place) -> None:
        assert place.backend.allocated((thin := place.make()).home, thin.shape) < thin.shape.size
        thick = place.make(thick=True)
        assert place.backend.allocated(thick.home, thick.shape) >= thick.shape.size
        thick.grow(thick.shape.size + 16 * MIB)
        assert place.backend.allocated(thick.home, thick.shape) >= thick.shape.size

    def test_what_cannot_become_thick_stays_as_long_as_it_was(self, place: Place) -> None:
        volume = place.make(thick=True)
        with pytest.raises(OSError, match="No space"):
            place.backend.grow(volume.home, volume.shape, volume.shape._replace(size=8 << 30))
        assert volume.trouble == ""

    def test_a_thick_copy_shares_nothing(self, place: Place) -> None:
        source = place.make().stage()
        source.write(b"\1" * MIB)
        copy = place.empty(source.shape.size, thick=True)
        place.backend.copy(source.home, source.shape, copy.home, copy.shape)
        assert place.backend.allocated(copy.home, copy.shape) >= copy.shape.size
        if place.facts.fs == "xfs":
            with _image(place, copy) as image:
                shared = [flags & 0x2000 for *_, flags in extents._mapped(image)]  # FIEMAP_EXTENT_SHARED
            assert not any(shared)
        assert copy.stage().read(MIB) == b"\1" * MIB

    def test_errors_do_not_tell_values_of_options(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("a block volume is not mounted")
        volume = place.make()
        for option in ("password=hunter2", "data=hunter2", "logdev=hunter2"):
            with pytest.raises(CsiError) as caught:
                volume.stage(option)
            assert "hunter2" not in str(caught.value)
            assert option.partition("=")[0] in str(caught.value)

    def test_io_limits_name_its_own_device(self, place: Place) -> None:
        volume = place.make().stage()
        device = place.backend.device(volume.home, volume.shape)
        assert device
        assert device[0] == 7
        if place.access == "mount":
            status = os.stat(volume.path)
            assert (os.major(status.st_dev), os.minor(status.st_dev)) == device

    def test_a_volume_that_a_container_still_has_is_staged_onto_the_same_device(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("its device is one until it is detached")
        volume = place.make().stage()
        other = volume.path.with_name("container")
        other.mkdir()
        mounts.bind(str(volume.path), str(other))
        device = place.backend.device(volume.home, volume.shape)
        volume.unstage()
        assert volume.staged, "in use: it must not be deleted"
        (other / "late").write_text("late")
        assert place.backend.device(volume.stage().home, volume.shape) == device
        assert volume.read(4, 0, "late") == b"late"
        mounts.unmount(str(other))

    def test_a_read_only_publish_of_a_block_volume_cannot_be_written(self, place: Place) -> None:
        if place.access == "mount":
            pytest.skip("a mount is made read-only")
        volume = place.make().stage()
        volume.write(b"data")
        path = place.backend.source(volume.home, volume.shape, str(volume.path), True)
        assert path == place.backend.source(volume.home, volume.shape, str(volume.path), True)
        with open(path, "rb") as device:
            assert device.read(4) == b"data"
        with pytest.raises(OSError, match=r"Read-only|not permitted"), open(path, "r+b", buffering=0) as device:
            device.write(b"x")
        volume.unstage()
        assert not volume.staged

    def test_a_busy_block_volume_is_not_copied_without_reflink(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if place.access == "mount" or place.facts.reflink:
            pytest.skip("copied at one instant")
        volume, copy = place.make().stage(), extents.copy

        def while_written(source: int, target: int) -> None:
            copy(source, target)
            volume.write(os.urandom(4096), 4096)

        with monkeypatch.context() as patch:
            patch.setattr(extents, "copy", while_written)
            assert code(lambda: place.copy(volume)) == "ABORTED"
        assert place.copy(volume).trouble == ""

    def test_a_damaged_or_hostile_superblock_is_a_sentence(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("a block volume's bytes are its user's")
        volume = place.make()
        with _image(place, volume, os.O_RDWR) as image:
            if place.fs == "ext4":  # errors=panic, and a checksum that is right no more
                os.pwrite(image, struct.pack("<H", 3), 1024 + 0x3C)
            else:
                os.pwrite(image, b"\xff" * 64, 0)
        assert code(volume.stage) == "INTERNAL"
        assert not volume.staged
        assert not mounts.at(str(volume.path))

    def test_an_image_that_lost_bytes_is_not_staged(self, place: Place) -> None:
        volume = place.make()
        with _image(place, volume, os.O_RDWR) as image:
            os.ftruncate(image, volume.shape.size - 4096)
        assert code(volume.stage) == "INTERNAL"
        assert not volume.staged

    def test_errors_never_stop_the_node(self, place: Place) -> None:
        if place.fs != "ext4":
            pytest.skip("ext4's superblock says what an error does")
        need("tune2fs")
        volume = place.make()
        run("tune2fs", "-e", "panic", place.path / volume.name / "image")
        volume.stage()
        assert "errors=remount-ro" in mounts.at(str(volume.path))[-1].super_options

    def test_recorded_errors_are_trouble(self, place: Place) -> None:
        if place.fs != "ext4":
            pytest.skip("ext4 records its errors")
        need("debugfs")
        volume = place.make()
        run("debugfs", "-w", "-R", "set_super_value state 2", place.path / volume.name / "image")
        assert "errors" in volume.trouble

    def test_who_looks_at_a_device_delays_its_end_and_no_more(self, place: Place) -> None:
        volume = place.make().stage()
        device = place.backend.device(volume.home, volume.shape)
        assert device
        fd = os.open(f"/dev/loop{device[1]}", os.O_RDONLY)
        threading.Timer(0.3, os.close, (fd,)).start()
        volume.unstage()
        assert not volume.staged

    def test_what_a_killed_driver_and_its_guard_left_frozen_is_thawed(self, place: Place) -> None:
        volume = place.make().stage()
        if place.access == "mount":
            fd = os.open(volume.path, os.O_RDONLY)
            kernel.freeze(fd)
            os.close(fd)
        for _ in range(2):
            place.backend.recover(volume.home, volume.shape)
        volume.write(b"goes on")

    def test_many_attach_at_once_and_each_gets_its_own(self, place: Place) -> None:
        volumes = [place.make(16 * MIB) for _ in range(8)]
        threads = [threading.Thread(target=volume.stage) for volume in volumes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        devices = {place.backend.device(volume.home, volume.shape) for volume in volumes}
        assert None not in devices
        assert len(devices) == len(volumes)

    def test_a_snapshot_takes_no_time_on_reflink(self, place: Place) -> None:
        if not place.facts.reflink:
            pytest.skip("this pool copies")
        volume = place.make(900 * MIB).stage()
        for number in range(8):
            volume.write(os.urandom(32 * MIB), number * 64 * MIB)
        copy, before = place.empty(volume.shape.size), time.monotonic()
        place.backend.copy(volume.home, volume.shape, copy.home, copy.shape)
        took = time.monotonic() - before
        print(f"\n256 MiB of data: {took * 1000:.1f} ms")
        assert took < 1


@contextmanager
def _image(place: Place, volume: Volume, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The image file of a volume."""
    fd = os.open(place.path / volume.name / "image", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_device_is_found_by_its_file_and_not_by_its_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(bytes(MIB))
    fds = [os.open(path, os.O_RDWR) for path in (one, two)]
    device, held = loop.attach(fds[0], autoclear=True)
    one.rename(tmp_path / "moved")
    two.rename(one)
    assert loop.find(fds[0]) == [device]
    assert loop.find(fds[1]) == []
    os.close(held)
    assert loop.find(fds[0]) == []
    for fd in fds:
        os.close(fd)
