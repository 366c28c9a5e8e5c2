"""The CSI driver on nodes that are laid out in unusual ways, and what one caller may take from all others: descriptors,
threads, bytes that were promised twice. What a call answers is in test_csi_driver, what is hostile in test_csi_hostile.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import MIB, Client, Driver, capability, refused
from helpers.loopfs import LoopFs
from helpers.tools import need, run
from wherry_csi import requests
from wherry_csi.backend.all import BACKENDS
from wherry_csi.capacity import available, claim
from wherry_csi.config import Config, PoolConfig
from wherry_csi.errors import CsiError
from wherry_csi.life import Life
from wherry_csi.metadata import Metadata
from wherry_csi.placement import Draft
from wherry_csi.snapshots import Snapshots

RWO = "SINGLE_NODE_WRITER"


@contextmanager
def served(place: Path, pools: dict[str, Path], *words: str) -> Iterator[tuple[Driver, Client]]:
    """A driver, swept and stopped at the end."""
    driver = Driver(place, pools, *words)
    try:
        client = driver.start()
        yield driver, client
        client.sweep()
        driver.stop()
    finally:
        driver.kill()


@contextmanager
def bound(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """Bind mounts, each shared with what it is of."""
    done: list[Path] = []
    try:
        for source, target in pairs:
            run("mount", "--bind", source, target)
            done.append(target)
            run("mount", "--make-shared", target)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "--lazy", target], check=False)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    made = tmp_path / "pool"
    made.mkdir()
    return made


# --- nodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [False, True])
def test_a_directory_of_the_kubelets_that_is_there_twice(tmp_path: Path, pool: Path, block: bool) -> None:
    """What is mounted in one of them is in the other, too: that is no second pod."""
    first, second = tmp_path / "kubelet", tmp_path / "data"
    first.mkdir()
    second.mkdir()
    with bound((second, first), (first, second)), served(tmp_path, {"p": pool}) as (driver, client):
        client.place = first
        volume = client.create("v", block=block).volume_id
        target = client.use(volume, block=block, mode=RWO)
        assert os.path.samefile(target, second / target.relative_to(first))
        client.publish(volume, block=block, mode=RWO)
        with refused("FAILED_PRECONDITION"):
            client.publish(volume, "another", block=block, mode=RWO)
        with refused("FAILED_PRECONDITION"):
            client.unstage(volume)
        client.unpublish(volume)
        client.unstage(volume)
        client.delete(volume)
        assert driver.check() == []


def test_a_file_at_the_endpoint_is_not_taken_for_a_stale_socket(tmp_path: Path, pool: Path) -> None:
    driver = Driver(tmp_path, {"p": pool})
    driver.socket.write_text("precious")
    with pytest.raises(AssertionError, match="is no socket"):
        driver.start()
    assert driver.socket.read_text() == "precious"
    driver.kill()


def test_subvolumes_of_one_disk_share_its_bytes(tmp_path: Path) -> None:
    need("mkfs.btrfs", "btrfs")
    with LoopFs(tmp_path, 600, "btrfs") as disk:
        pools = {name: disk.path / name for name in "ab"}
        for path in pools.values():
            run("btrfs", "-q", "subvolume", "create", path)
        with served(tmp_path, pools) as (_, client):
            client.create("one", 300 * MIB, block=True, parameters={"pool": "a"})
            with refused("RESOURCE_EXHAUSTED"):
                client.create("two", 300 * MIB, block=True, parameters={"pool": "b"})
            assert client.capacity().available_capacity < 300 * MIB


# --- what one caller may take from the others -----------------------------------------------------------------------


def test_a_deep_tree_is_given_to_a_group_with_few_descriptors(tmp_path: Path, pool: Path) -> None:
    with served(tmp_path, {"p": pool}) as (driver, client):
        volume = client.create("v", 128 * MIB).volume_id
        fd, depth = os.open(client.use(volume), os.O_RDONLY), 3000
        for _ in range(depth):
            os.mkdir("d", 0o700, dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        deepest = os.fstat(fd)
        most, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.is_set():
                most[0] = max(most[0], len(os.listdir(f"/proc/{driver.pid}/fd")))
                time.sleep(0.005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        client.publish(volume, "given", group="4242")
        ended.set()
        watcher.join()
        given = os.fstat(fd)
        os.close(fd)
        assert (deepest.st_gid, given.st_gid, given.st_mode & 0o7777) == (0, 4242, 0o2770)
        assert 0 < most[0] < 200


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """The verbs without a socket, on a pool with reflink."""
    with LoopFs(tmp_path, 600, "xfs") as disk:
        found = Life(Config("unix:///nowhere", "node-1", (PoolConfig("p", str(disk.path)),)))
        found.open(0.0)
        yield found
        for _, volume in found.volumes():
            found.delete(volume.id)
        found.close()
        found.pools[0]._down("the test is over")


def block_volume(life: Life, size: int) -> str:
    """A block volume, its every byte written."""
    draft = Draft("v", requests.Range(size), [requests.capability(capability(block=True))], requests.Wish())
    pool, volume = life.create(draft)
    with pool.home(volume) as home:
        fd = os.open("image", os.O_WRONLY, dir_fd=home)
        for offset in range(0, size, MIB):
            os.pwrite(fd, random.randbytes(MIB), offset)
        os.fsync(fd)
        os.close(fd)
    return volume.id


def test_bytes_are_not_promised_twice_while_a_copy_is_made(life: Life) -> None:
    size = 64 * MIB
    pool, volume = life.volume(block_volume(life, size))
    before = available(pool)
    with claim(pool, "snap-1", size, "a snapshot", copy=True):
        with pool.home(volume) as source, pool.making("snap-1") as home:
            BACKENDS["image"].copy(source, volume.shape, home, volume.shape)
            assert os.stat("image", dir_fd=home).st_blocks * 512 >= size
            assert available(pool) <= before - size
        pool.discard("snap-1", "making").wait(10)


def test_few_streams_of_metadata_are_open_at_once(life: Life) -> None:
    """One whose reader stalls has a thread: there must be some left for everybody else."""
    _, snapshot = Snapshots(life).take("s", block_volume(life, MIB))
    service, request = Metadata(life), pb.GetMetadataAllocatedRequest(snapshot_id=snapshot.id)
    stalled = [service.GetMetadataAllocated(request, None) for _ in range(4)]
    for stream in stalled:
        assert next(stream).block_metadata
    with pytest.raises(CsiError) as caught:
        next(service.GetMetadataAllocated(request, None))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    stalled.pop().close()
    assert len(list(service.GetMetadataAllocated(request, None))) == 1
    for stream in stalled:
        stream.close()
    Snapshots(life).delete(snapshot.id)
