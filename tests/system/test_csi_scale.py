"""A CSI driver with many volumes, and the sums of a pool's capacity after anything that happened to it.

The count is WHERRY_CSI_VOLUMES's (scripts/soak: 1000). The bars are those of a thousand; a shared machine gets room,
and each test prints what it measured.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import MIB, Client, Driver, clone_of, code_of, eventually, loops, residue, restore_of
from helpers.csifort import Fort, built
from helpers.loopfs import LoopFs
from helpers.tools import run

COUNT = int(os.environ.get("WHERRY_CSI_VOLUMES", "300"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
LIST_BAR, START_BAR = 0.1, 2.0  # seconds
ROOM = 3  # times the bar, on a machine that does other things too


def best(work: Callable[[], Any], times: int = 5) -> float:
    """The least of its times, in seconds: the work itself, without the neighbours."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    print(f"best {min(took) * 1000:.1f} ms, median {statistics.median(took) * 1000:.1f} ms")
    return min(took)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fort, dict[str, str]]]:
    """A pool with all the volumes, some of them in use: ids by name, as they were acknowledged."""
    size = 32 * MIB
    with built(tmp_path_factory.mktemp("crowd"), "xfs", megabytes=COUNT * 40) as made:
        begin = time.monotonic()
        ids = {f"v{number}": made.client.create(f"v{number}", size).volume_id for number in range(COUNT)}
        print(f"{COUNT} volumes: {(time.monotonic() - begin) / COUNT * 1000:.1f} ms each")
        for number in range(0, COUNT, COUNT // 20):
            made.client.use(ids[f"v{number}"])
        yield made, ids
        for volume in ids.values():
            made.client.leave(volume)
            made.client.delete(volume)
        eventually(lambda: not residue(made.pool), 60, "the pool is empty")


@pytest.mark.seconds(900)
def test_they_are_listed_and_a_restart_is_quick(crowd: tuple[Fort, dict[str, str]]) -> None:
    """List under 100 ms, restart under 2 s, nothing lost."""
    fort, ids = crowd
    assert set(fort.client.volumes()) == set(ids.values())
    request = pb.ListVolumesRequest()
    assert best(lambda: fort.client.call("ListVolumes", request)) < LIST_BAR * ROOM
    for end in (fort.driver.stop, fort.driver.kill):
        end()
        begin = time.perf_counter()
        fort.client = fort.driver.start()
        first = fort.client.volumes()
        took = time.perf_counter() - begin
        print(f"restart to the first list: {took:.2f} s")
        assert set(first) == set(ids.values())
        assert took < START_BAR * ROOM
    begin = time.perf_counter()
    assert fort.driver.check() == []
    print(f"check: {time.perf_counter() - begin:.2f} s")


@pytest.mark.seconds(600)
@pytest.mark.parametrize("page", [1, 7, COUNT // 10, COUNT - 1, COUNT, COUNT + 1])
def test_pages_are_complete(crowd: tuple[Fort, dict[str, str]], page: int) -> None:
    """Every volume once, at most `page` of them at a time."""
    fort, ids = crowd
    pages = list(fort.client.pages("ListVolumes", page))
    assert all(len(entries) <= page for entries in pages)
    assert len(pages) == -(-COUNT // page)
    listed = [entry.volume.volume_id for entries in pages for entry in entries]
    assert sorted(listed) == sorted(ids.values())


@pytest.mark.seconds(600)
def test_pages_are_complete_while_volumes_come_and_go(crowd: tuple[Fort, dict[str, str]]) -> None:
    """What is there from the first page to the last is listed, once; also over a restart between two pages."""
    fort, ids = crowd
    chance = random.Random(SEED)
    listed: list[str] = []
    token, number = "", 0
    passing: list[str] = []
    while True:
        answer = fort.client.call("ListVolumes", pb.ListVolumesRequest(max_entries=COUNT // 16, starting_token=token))
        listed += [entry.volume.volume_id for entry in answer.entries]
        if not (token := answer.next_token):
            break
        number += 1
        passing.append(fort.client.create(f"passing {number}", 32 * MIB, block=True).volume_id)
        if len(passing) > 3:
            fort.client.delete(passing.pop(chance.randrange(len(passing))))
        if answer.entries[-1].volume.volume_id not in ids.values():  # the very entry that the token may name
            fort.client.delete(answer.entries[-1].volume.volume_id)
            passing = [one for one in passing if one != answer.entries[-1].volume.volume_id]
        if number == 5:
            fort.restart()
    assert len(listed) == len(set(listed)), f"twice; WHERRY_SEED={SEED}"
    assert set(ids.values()) <= set(listed), f"missed; WHERRY_SEED={SEED}"
    for volume in passing:
        fort.client.delete(volume)


@pytest.mark.seconds(600)
def test_a_token_of_a_deleted_volume_still_works(crowd: tuple[Fort, dict[str, str]]) -> None:
    fort, ids = crowd
    answer = fort.client.call("ListVolumes", pb.ListVolumesRequest(max_entries=COUNT // 2))
    last = answer.entries[-1].volume.volume_id
    fort.client.leave(last)
    name = next(name for name, volume in ids.items() if volume == last)
    fort.client.delete(last)
    rest = fort.client.call("ListVolumes", pb.ListVolumesRequest(starting_token=answer.next_token))
    assert len(rest.entries) == COUNT - COUNT // 2
    ids[name] = fort.client.create(name, 32 * MIB).volume_id


@pytest.mark.parametrize("token", ["x", "-1", "0", "999999999999999999999", "../..", "a\0b", "x" * 4096, "é"])
def test_a_token_that_is_none(crowd: tuple[Fort, dict[str, str]], token: str) -> None:
    fort, _ = crowd
    for method, kind in (("ListVolumes", pb.ListVolumesRequest), ("ListSnapshots", pb.ListSnapshotsRequest)):
        with pytest.raises(grpc.RpcError) as caught:
            fort.client.call(method, kind(starting_token=token))
        assert code_of(caught.value) == "ABORTED"
        with pytest.raises(grpc.RpcError) as caught:
            fort.client.call(method, kind(max_entries=-1))
        assert code_of(caught.value) == "INVALID_ARGUMENT"


def test_snapshots_have_pages_too(crowd: tuple[Fort, dict[str, str]]) -> None:
    fort, ids = crowd
    source, other = ids["v1"], ids["v2"]
    made = {fort.client.snapshot(source, f"s{number}").snapshot_id for number in range(25)}
    more = fort.client.snapshot(other, "other").snapshot_id
    assert set(fort.client.snapshots(entries=4)) == made | {more}
    assert set(fort.client.snapshots(entries=4, source_volume_id=source)) == made
    assert set(fort.client.snapshots(source_volume_id=other)) == {more}
    assert set(fort.client.snapshots(snapshot_id=more)) == {more}
    for snapshot in made | {more}:
        fort.client.unsnapshot(snapshot)


# -- capacity --


def room(client: Client) -> int:
    return client.capacity().available_capacity


class Walk:
    """A random history of calls; what there is no room for is refused, and nothing else."""

    def __init__(self, client: Client, chance: random.Random, numbers: Iterator[int]) -> None:
        self.client, self.chance = client, chance
        self.name = lambda: f"w{next(numbers)}"

    def steps(self, count: int) -> None:
        for _ in range(count):
            try:
                self.step()
            except grpc.RpcError as error:
                # INVALID_ARGUMENT: a copy was asked in the other mode than its source's
                if code_of(error) not in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"):
                    raise
            assert room(self.client) >= 0

    def step(self) -> None:
        client, chance = self.client, self.chance
        volumes, snapshots = client.volumes(), sorted(client.snapshots())
        block, volume = chance.random() < 0.5, chance.choice(sorted(volumes) or [""])
        kinds: list[Callable[[], Any]] = [
            lambda: client.create(self.name(), chance.randrange(32, 160) * MIB, block=block)
        ] * 3
        if volumes:
            size = volumes[volume].capacity_bytes + chance.randrange(64) * MIB
            kinds += [
                lambda: client.snapshot(volume, self.name()),
                lambda: client.expand(volume, size),
                lambda: client.delete(volume),
                lambda: write(client, volume, chance),
                lambda: client.create(self.name(), 0, source=clone_of(volume), block=block),
            ]
        if snapshots:
            source = chance.choice(snapshots)
            kinds += [
                lambda: client.unsnapshot(source),
                lambda: client.create(self.name(), 0, source=restore_of(source), block=block),
            ]
        chance.choice(kinds)()


def write(client: Client, volume: str, chance: random.Random) -> None:
    """Some of it, through whichever mode it has."""
    data = chance.randbytes(chance.randrange(1, 12) * MIB)
    try:
        target = client.use(volume, block=True)
    except grpc.RpcError:
        target = client.use(volume)
        path = target / "file"
        path.write_bytes(data)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    else:
        with open(target, "r+b", buffering=0) as device:
            device.write(data)
            os.fsync(device.fileno())
    client.leave(volume)


@pytest.mark.seconds(300)
@pytest.mark.parametrize("fs", ["xfs", "ext4", "btrfs"])
def test_capacity_adds_up(tmp_path: Path, fs: str) -> None:
    """After a random history, what is said to be free can be had, to the last volume, and be written; no more can."""
    with LoopFs(tmp_path, 2048, fs) as pool:
        driver = Driver(tmp_path, {"pool": pool.path})
        chance, numbers = random.Random(SEED), iter(range(1 << 30))
        print(f"WHERRY_SEED={SEED}")
        try:
            client = driver.start()
            empty = room(client)
            facts = os.statvfs(pool.path)
            free = facts.f_bavail * facts.f_frsize
            assert 0.75 * free <= empty <= free
            for _ in range(2):
                Walk(client, chance, numbers).steps(25)
                promised = sum(one.capacity_bytes for one in client.volumes().values())
                # btrfs moves some of its own room between data and metadata
                assert room(client) + promised <= free + 16 * MIB, "more is promised than there is"
                before = settled(client, pool)
                driver.kill()
                client = driver.start()
                assert abs(settled(client, pool) - before) <= 4 * MIB, "a restart counts otherwise"
                assert driver.check() == []
            for volume in [] if room(client) > 200 * MIB else sorted(client.volumes())[:4]:
                client.delete(volume)
            probe(client, pool)
            client.sweep()
            slack = 64 * MIB if fs == "btrfs" else 8 * MIB  # chunks of metadata that it keeps
            eventually(lambda: abs(room(client) - empty) <= slack, 20, f"{room(client)} of {empty} are free again")
            assert not loops(pool.path)
        finally:
            driver.kill()


def settled(client: Client, pool: LoopFs) -> int:
    """What is free when the file system has given back what was deleted: XFS and btrfs do so in the background."""
    before, now, end = -1, room(client), time.monotonic() + 30
    while now != before and time.monotonic() < end:
        run("sync", "--file-system", pool.path)
        time.sleep(0.5)
        before, now = now, room(client)
    return now


def probe(client: Client, pool: LoopFs) -> None:
    """All that is said to be free, as one raw volume: it is made, and can be filled; more cannot be had."""
    said = settled(client, pool)
    if said < 40 * MIB:
        return
    volume = client.create("all", said // MIB * MIB, block=True).volume_id
    assert room(client) < 2 * MIB
    with pytest.raises(grpc.RpcError) as caught:
        client.create("one more", 32 * MIB, block=True)
    assert code_of(caught.value) == "RESOURCE_EXHAUSTED"
    target = client.use(volume, block=True)
    written, piece = 0, os.urandom(4 * MIB)
    with open(target, "r+b", buffering=0) as device:
        while written < said // MIB * MIB:
            written += device.write(piece[: said // MIB * MIB - written])
            if written % (64 * MIB) == 0:
                os.fsync(device.fileno())
        os.fsync(device.fileno())
    facts = os.statvfs(pool.path)
    print(f"{pool.fs}: {said / MIB:.0f} MiB were said to be free and could be written; "
          f"{facts.f_bavail * facts.f_frsize / MIB:.0f} MiB are left")  # fmt: skip
    client.leave(volume)
    client.delete(volume)


def test_other_files_on_the_pools_file_system_count(tmp_path: Path) -> None:
    """A pool that has not the file system to itself says what is left."""
    with LoopFs(tmp_path, 1024, "ext4") as pool:
        driver = Driver(tmp_path, {"pool": pool.path})
        try:
            client = driver.start()
            before = room(client)
            (pool.path / "somebody's").write_bytes(os.urandom(300 * MIB))
            os.sync()
            after = room(client)
            assert 295 * MIB <= before - after <= 310 * MIB
            with pytest.raises(grpc.RpcError) as caught:
                client.create("one", after + 8 * MIB)
            assert code_of(caught.value) == "RESOURCE_EXHAUSTED"
            (pool.path / "somebody's").unlink()
            eventually(lambda: abs(room(client) - before) < MIB, 10)
            client.sweep()
        finally:
            driver.kill()
