"""Crashes of the CSI driver: kill -9 at every call that changes something, and the power of its pool cut at any time.

WHERRY_CSI_KILLS is how many points of each call are tried (scripts/soak: 0, all of them), WHERRY_CSI_CUTS how often the
power goes (scripts/soak: 300). WHERRY_SEED repeats a run.
"""

# ruff: noqa: ARG005 (the lambdas of a table have one form)

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import (
    HOME,
    MIB,
    Client,
    Driver,
    clone_of,
    code_of,
    eventually,
    grows_online,
    loops,
    mounts_below,
    processes_of,
    residue,
    restore_of,
    writable,
)  # fmt: skip
from helpers.killpoints import Point, cut_at, points_of
from helpers.loopfs import LoopFs
from helpers.tools import need, run

KILLS = int(os.environ.get("WHERRY_CSI_KILLS", "2"))
CUTS = int(os.environ.get("WHERRY_CSI_CUTS", "10"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
MARK = b"what was acknowledged" * 200
AT = 8 * MIB  # where the mark is on a block volume


def sync(path: Path) -> None:
    """fsync(2) of a file, a directory or a device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put(target: Path, name: str, data: bytes) -> None:
    """Write a file, or (a number) at this offset of a device, durably."""
    if target.is_dir():
        (target / name).write_bytes(data)
        sync(target / name)
        sync(target)
    else:
        with open(target, "r+b", buffering=0) as device:
            os.pwrite(device.fileno(), data, int(name))
            os.fsync(device.fileno())


def got(target: Path, name: str, length: int) -> bytes:
    """What is there."""
    if target.is_dir():
        return (target / name).read_bytes()
    with open(target, "rb", buffering=0) as device:
        return os.pread(device.fileno(), length, int(name))


def mark(target: Path) -> None:
    put(target, "mark" if target.is_dir() else str(AT), MARK)


def marked(target: Path) -> bool:
    return got(target, "mark" if target.is_dir() else str(AT), len(MARK)) == MARK


def size_of(target: Path) -> int:
    """Bytes that the user of a published volume sees."""
    if target.is_dir():
        facts = os.statvfs(target)
        return facts.f_blocks * facts.f_frsize
    with open(target, "rb") as device:
        return device.seek(0, os.SEEK_END)


# -- kill -9 --


class Act(NamedTuple):
    """A call that is cut: what was acknowledged before it (ids), the call, and what must hold when it was repeated (the
    ids that are listed then, beside the bystander's)."""

    before: Callable[[Client, str], list[str]]
    call: Callable[[Client, str, list[str]], Any]
    after: Callable[[Client, str, list[str], Any], set[str]]


def made(**cap: Any) -> Callable[[Client, str], list[str]]:
    return lambda client, name: [client.create(name, **cap).volume_id]


def staged(**cap: Any) -> Callable[[Client, str], list[str]]:
    def before(client: Client, name: str) -> list[str]:
        ids = made(**cap)(client, name)
        client.stage(ids[0], **_cap(cap))
        return ids

    return before


def used(**cap: Any) -> Callable[[Client, str], list[str]]:
    """A published volume with the mark."""

    def before(client: Client, name: str) -> list[str]:
        ids = made(**cap)(client, name)
        mark(client.use(ids[0], **_cap(cap)))
        return ids

    return before


def unpublished(**cap: Any) -> Callable[[Client, str], list[str]]:
    """A staged one with the mark."""

    def before(client: Client, name: str) -> list[str]:
        ids = used(**cap)(client, name)
        client.unpublish(ids[0])
        return ids

    return before


def left(**cap: Any) -> Callable[[Client, str], list[str]]:
    def before(client: Client, name: str) -> list[str]:
        ids = used(**cap)(client, name)
        client.leave(ids[0])
        return ids

    return before


def snapped(**cap: Any) -> Callable[[Client, str], list[str]]:
    """A published volume with the mark, and its snapshot."""

    def before(client: Client, name: str) -> list[str]:
        ids = used(**cap)(client, name)
        return [*ids, client.snapshot(ids[0], f"{name}-snap").snapshot_id]

    return before


def grown(**cap: Any) -> Callable[[Client, str], list[str]]:
    """One that only the node has still to expand."""

    def before(client: Client, name: str) -> list[str]:
        ids = used(**cap)(client, name)
        client.expand(ids[0], 448 * MIB)
        return ids

    return before


def two(client: Client, name: str) -> list[str]:
    return [*used()(client, f"{name}a"), *used(block=True)(client, f"{name}b")]


def grouped(client: Client, name: str) -> list[str]:
    ids = two(client, name)
    group = client.group(f"{name}-group", ids)
    return [*ids, group.group_snapshot_id, *(one.snapshot_id for one in group.snapshots)]


def _cap(cap: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cap.items() if key in ("block", "fs", "mode")}


def works(client: Client, volume: str, **cap: Any) -> Path:
    """It can be used, and written to."""
    target = client.use(volume, **_cap(cap))
    mark(target)
    assert marked(target)
    return target


def new_volume(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    def after(client: Client, name: str, ids: list[str], volume: pb.Volume) -> set[str]:
        works(client, volume.volume_id, **cap)
        return {*ids, volume.volume_id}

    return after


def copied(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    """The new volume has what its source had."""

    def after(client: Client, name: str, ids: list[str], volume: pb.Volume) -> set[str]:
        assert marked(client.use(volume.volume_id, **_cap(cap)))
        return {*ids, volume.volume_id}

    return after


def snapshot_is(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    def after(client: Client, name: str, ids: list[str], snapshot: pb.Snapshot) -> set[str]:
        assert snapshot.ready_to_use
        volume = client.create(f"{name}-restored", source=restore_of(snapshot.snapshot_id), **cap).volume_id
        assert marked(client.use(volume, **_cap(cap)))
        return {*ids, snapshot.snapshot_id, volume}

    return after


def still(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    """It can be published again, and has its bytes."""

    def after(client: Client, name: str, ids: list[str], _: Any) -> set[str]:
        assert marked(client.use(ids[0], **_cap(cap)))
        return set(ids)

    return after


def usable(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    def after(client: Client, name: str, ids: list[str], _: Any) -> set[str]:
        works(client, ids[0], **cap)
        return set(ids)

    return after


def without(*gone: int) -> Callable[[Client, str, list[str], Any], set[str]]:
    return lambda client, name, ids, _: {one for at, one in enumerate(ids) if at not in gone}


def larger(**cap: Any) -> Callable[[Client, str, list[str], Any], set[str]]:
    """It has the new size: online where that can be, else when it is staged anew."""

    def after(client: Client, name: str, ids: list[str], _: Any) -> set[str]:
        if cap.get("block") or grows_online(cap.get("fs", "")):
            client.node_expand(ids[0], client.target(ids[0]), 448 * MIB)
        else:
            client.leave(ids[0])
        target = client.use(ids[0], **_cap(cap))
        assert size_of(target) > 360 * MIB
        assert client.volumes()[ids[0]].capacity_bytes == 448 * MIB
        assert marked(target)
        return set(ids)

    return after


def whole_group(client: Client, name: str, ids: list[str], group: pb.VolumeGroupSnapshot) -> set[str]:
    assert {one.source_volume_id for one in group.snapshots} == set(ids)
    return {*ids, *(one.snapshot_id for one in group.snapshots)}


def no_group(client: Client, name: str, ids: list[str], _: Any) -> set[str]:
    return set(ids[:2])


BLOCK = {"block": True}
XFS = {"fs": "xfs", "size": 320 * MIB}
ACTS: dict[str, Act] = {
    "create": Act(lambda c, n: [], lambda c, n, i: c.create(n), new_volume()),
    "create-xfs": Act(lambda c, n: [], lambda c, n, i: c.create(n, **XFS), new_volume(**XFS)),
    "create-block": Act(lambda c, n: [], lambda c, n, i: c.create(n, **BLOCK), new_volume(**BLOCK)),
    "create-thick": Act(
        lambda c, n: [], lambda c, n, i: c.create(n, parameters={"provisioning": "thick"}), new_volume()
    ),
    "clone": Act(used(), lambda c, n, i: c.create(f"{n}-new", source=clone_of(i[0])), copied()),
    "clone-block": Act(used(**BLOCK), lambda c, n, i: c.create(f"{n}-new", source=clone_of(i[0]), **BLOCK),
                       copied(**BLOCK)),
    "restore": Act(snapped(), lambda c, n, i: c.create(f"{n}-new", 96 * MIB, source=restore_of(i[1])), copied()),
    "delete": Act(left(), lambda c, n, i: c.delete(i[0]), without(0)),
    "stage": Act(made(), lambda c, n, i: c.stage(i[0]), usable()),
    "stage-xfs": Act(made(**XFS), lambda c, n, i: c.stage(i[0], fs="xfs"), usable(fs="xfs")),
    "stage-block": Act(made(**BLOCK), lambda c, n, i: c.stage(i[0], **BLOCK), usable(**BLOCK)),
    "publish": Act(staged(), lambda c, n, i: c.publish(i[0]), usable()),
    "publish-block": Act(staged(**BLOCK), lambda c, n, i: c.publish(i[0], **BLOCK), usable(**BLOCK)),
    "unpublish": Act(used(), lambda c, n, i: c.unpublish(i[0]), still()),
    "unpublish-block": Act(used(**BLOCK), lambda c, n, i: c.unpublish(i[0]), still(**BLOCK)),
    "unstage": Act(unpublished(), lambda c, n, i: c.unstage(i[0]), still()),
    "unstage-block": Act(unpublished(**BLOCK), lambda c, n, i: c.unstage(i[0]), still(**BLOCK)),
    "snapshot": Act(used(), lambda c, n, i: c.snapshot(i[0], f"{n}-snap"), snapshot_is()),
    "snapshot-block": Act(used(**BLOCK), lambda c, n, i: c.snapshot(i[0], f"{n}-snap"), snapshot_is(**BLOCK)),
    "unsnapshot": Act(snapped(), lambda c, n, i: c.unsnapshot(i[1]), without(1)),
    "expand": Act(used(), lambda c, n, i: c.expand(i[0], 448 * MIB), larger()),
    "node-expand": Act(grown(**XFS), lambda c, n, i: c.node_expand(i[0], c.target(i[0])), larger(**XFS)),
    "node-expand-block": Act(grown(**BLOCK), lambda c, n, i: c.node_expand(i[0], c.target(i[0])), larger(**BLOCK)),
    "modify": Act(used(), lambda c, n, i: c.modify(i[0], readBps="1048576", writeIops="100"), still()),
    "group": Act(two, lambda c, n, i: c.group(f"{n}-group", i), whole_group),
    "ungroup": Act(grouped, lambda c, n, i: c.ungroup(i[2], i[3:]), no_group),
}  # fmt: skip
#: without reflink, copies freeze what they copy, and take their time
BY_DATA = ("clone", "clone-block", "snapshot", "snapshot-block", "restore", "group")


class Rig:
    """A driver on a pool of its own with a bystander: a published volume and its snapshot, which nothing may harm."""

    def __init__(self, place: Path, pool: LoopFs) -> None:
        self.place, self.pool = place, pool.path
        self.driver = Driver(place, {"pool": pool.path})
        self.client = self.driver.start()
        self.volume = self.client.create("bystander").volume_id
        self.target = self.client.use(self.volume)
        mark(self.target)
        self.snapshot = self.client.snapshot(self.volume, "bystander-snap").snapshot_id

    def again(self) -> None:
        """The driver was killed, or is now; a new one, that has nothing to complain of."""
        self.driver.kill()
        self.client = self.driver.start()
        assert self.driver.check() == []

    def listed(self) -> set[str]:
        """Ids of all volumes and snapshots but the bystander's."""
        found = {*self.client.volumes(), *self.client.snapshots()}
        assert {self.volume, self.snapshot} <= found
        return found - {self.volume, self.snapshot}

    def rest(self) -> None:
        """Deleting all leaves the bystander, and nothing else: no file, device, mount or process; nothing frozen."""
        writable(self.target)
        writable(self.pool)
        self.client.sweep(keep=[self.volume, self.snapshot])
        assert self.listed() == set()

        def beside() -> list[str]:
            mine = {str(self.pool), str(self.target), str(self.client.staging(self.volume))}
            found = [name for name in residue(self.pool) if self.volume not in name and self.snapshot not in name]
            found += [mount for mount in mounts_below(self.place) if mount not in mine]
            found += loops(self.pool)[1:]
            own = str(self.driver.pid)
            return found + [line for line in processes_of(self.place) if line.split()[0] != own]

        settled(beside)
        assert marked(self.target)
        assert self.driver.check() == []

    def end(self) -> None:
        """All of it goes, and the pool's file system can be taken off."""
        self.client.sweep()
        self.driver.stop()
        settled(lambda: [*residue(self.pool), *loops(self.pool), *processes_of(self.place)])
        settled(lambda: [mount for mount in mounts_below(self.place) if mount != str(self.pool)])


def settled(beside: Callable[[], list[str]], seconds: float = 5) -> None:
    """Nothing is left, after some grace for what is done behind an answer."""
    end = time.monotonic() + seconds
    while found := beside():
        assert time.monotonic() < end, found
        time.sleep(0.02)


@pytest.fixture
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LoopFs]:
    need("strace")
    with LoopFs(tmp_path, 3072, getattr(request, "param", "xfs")) as place:
        yield place
        cleared(place, tmp_path)


def cleared(pool: LoopFs, place: Path) -> None:
    """After a failure: whatever is mounted and attached goes, so that the next test starts clean."""
    hopeless(pool)
    for target in sorted(mounts_below(place), key=len, reverse=True):
        if target != str(pool.path):
            run("umount", "-l", target, check=False)
    for name in loops(pool.path):
        run("losetup", "-d", f"/dev/{name}", check=False)


@pytest.fixture
def rig(tmp_path: Path, pool: LoopFs) -> Iterator[Rig]:
    made = None
    try:
        made = Rig(tmp_path, pool)
        yield made
    finally:
        if made:
            made.driver.kill()


def chosen(points: list[Point], act: str) -> list[Point]:
    """All of them, or a sample."""
    return random.Random(f"{SEED} {act}").sample(points, min(KILLS, len(points))) if KILLS else points


CASES = [(name, fs) for name in ACTS for fs in ("xfs", "ext4") if fs == "xfs" or name in BY_DATA or not KILLS]


@pytest.mark.seconds(180 if KILLS else 7200)
@pytest.mark.parametrize(("act", "pool"), CASES, indirect=["pool"])
def test_kill_9_at_any_call_that_changes_something(rig: Rig, act: str, tmp_path: Path) -> None:
    before, call, after = ACTS[act]
    ids = before(rig.client, "whole")
    result: list[Any] = []
    trace = tmp_path / "trace"
    points, follow = points_of(rig.driver.pid, trace, lambda: result.append(call(rig.client, "whole", ids)))
    assert points, trace.read_text()
    expected = after(rig.client, "whole", ids, result[0])
    assert rig.listed() == expected
    rig.rest()
    harmed = 0
    for number, point in enumerate(chosen(points, act)):
        harmed += cut_once(rig, act, point, follow=follow, number=number)
    for point in {} if KILLS else {point.call: point for point in points if not point.child}.values():
        while cut_once(rig, act, point := point._replace(number=point.number + 1), follow=follow):
            harmed += 1  # runs differ a little: on, until it ends unharmed
    print(f"{act}: {len(points)} points, {harmed} cut calls; WHERRY_SEED={SEED}")
    assert harmed or KILLS
    rig.end()


def cut_once(rig: Rig, name: str, point: Point, *, follow: bool, number: int = 0) -> bool:
    """One call cut at one point, and what comes after it; False if it ended unharmed."""
    act, harmed = ACTS[name], None
    name = f"{name} {point} {number}"
    ids = act.before(rig.client, name)
    with cut_at(rig.driver.pid, point, rig.place / "trace", follow=follow):
        try:
            act.call(rig.client, name, ids)
        except grpc.RpcError as error:
            harmed = error
    try:
        if harmed and not rig.driver.running:
            assert code_of(harmed) == "UNAVAILABLE"
        rig.again()
        if number % 4 != 3:  # or else it is undone without having been done
            expected = act.after(rig.client, name, ids, act.call(rig.client, name, ids))
            assert rig.listed() == expected
        rig.rest()
    except BaseException as error:
        error.add_note(f"kill -9 at {point}: {harmed and harmed.details()}; WHERRY_SEED={SEED}\n{rig.driver.tail()}")
        raise
    return harmed is not None


# -- the power is cut --


class Known(NamedTuple):
    """A volume or a snapshot as it was acknowledged."""

    id: str
    size: int
    cap: dict[str, Any]
    data: dict[str, bytes]  # file name, or offset of a device → what was synced
    limits: dict[str, str]


class Story:
    """A random history of calls and synced writes, and what of it was acknowledged when the power went."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.volumes: dict[str, Known] = {}
        self.snapshots: dict[str, Known] = {}
        self.pending: Callable[[Client], None] | None = None  # the call that got no answer, to be repeated
        self.numbers = iter(range(1 << 30))
        self.falling = threading.Event()  # the power is going

    def name(self) -> str:
        return f"n{next(self.numbers)}"

    def step(self, client: Client) -> None:
        """One thing; an error leaves it pending."""
        kinds: list[tuple[int, Callable[[], Callable[[Client], None]]]] = [
            (6, self.write), (2, self.expand), (2, self.modify), (1, self.move),
        ]  # fmt: skip
        if len(self.volumes) < 5:
            kinds += [(4, self.create), (2, self.clone), (3, self.restore)]
        if len(self.snapshots) < 4:
            kinds.append((4, self.snapshot))
        kinds += [(2, self.delete)] * (len(self.volumes) > 2) + [(1, self.unsnapshot)] * (len(self.snapshots) > 1)
        if not self.volumes:
            kinds = [(1, self.create)]
        weights = [weight for weight, _ in kinds]
        plan = self.chance.choices([kind for _, kind in kinds], weights)[0]()
        self.pending = plan
        plan(client)
        # A machine without power answers nothing. This one goes on, and XFS then calls a directory synced (fsync(2) is
        # 0) whose changes it has just thrown away; so what is answered from now on is as good as not answered.
        if not self.falling.is_set():
            self.pending = None

    def any(self, known: dict[str, Known]) -> str:
        return self.chance.choice(sorted(known))

    def create(self) -> Callable[[Client], None]:
        name, size = self.name(), self.chance.choice((32, 48, 64)) * MIB
        cap = self.chance.choice(({}, {}, {"block": True}, {"fs": "xfs"}))
        size = 320 * MIB if cap.get("fs") else size

        def call(client: Client) -> None:
            volume = client.create(name, size, **cap)
            self.volumes[name] = Known(volume.volume_id, volume.capacity_bytes, cap, {}, {})

        return call

    def _copy(self, source: Known, content: pb.VolumeContentSource) -> Callable[[Client], None]:
        name = self.name()

        def call(client: Client) -> None:
            volume = client.create(name, source.size, source=content, **source.cap)
            self.volumes[name] = Known(volume.volume_id, volume.capacity_bytes, source.cap, dict(data), {})

        data = dict(source.data)
        return call

    def clone(self) -> Callable[[Client], None]:
        source = self.volumes[self.any(self.volumes)]
        return self._copy(source, clone_of(source.id))

    def restore(self) -> Callable[[Client], None]:
        if not self.snapshots:
            return self.create()
        source = self.snapshots[self.any(self.snapshots)]
        return self._copy(source, restore_of(source.id))

    def snapshot(self) -> Callable[[Client], None]:
        name, source = self.name(), self.volumes[self.any(self.volumes)]
        data = dict(source.data)

        def call(client: Client) -> None:
            snapshot = client.snapshot(source.id, name)
            self.snapshots[name] = Known(snapshot.snapshot_id, snapshot.size_bytes, source.cap, data, {})

        return call

    def expand(self) -> Callable[[Client], None]:
        name = self.any(self.volumes)
        known, online = self.volumes[name], self.chance.random() < 0.5
        size = known.size + 16 * MIB

        def call(client: Client) -> None:
            assert client.expand(known.id, size).capacity_bytes == size
            self.volumes[name] = known._replace(size=size)
            if online and grows_online(known.cap.get("fs", "")) and client.target(known.id).exists():
                client.node_expand(known.id, client.target(known.id), size)

        return call

    def modify(self) -> Callable[[Client], None]:
        name, limit = self.any(self.volumes), str(self.chance.randrange(1 << 20, 1 << 30))

        def call(client: Client) -> None:
            client.modify(self.volumes[name].id, writeBps=limit)
            self.volumes[name].limits["writeBps"] = limit

        return call

    def move(self) -> Callable[[Client], None]:
        """Off the node; the next write brings it back."""
        name = self.any(self.volumes)
        return lambda client: client.leave(self.volumes[name].id)

    def write(self) -> Callable[[Client], None]:
        name = self.any(self.volumes)
        known = self.volumes[name]
        at = str(self.chance.randrange(0, 28 * MIB, 4096)) if known.cap.get("block") else self.name()
        data = self.chance.randbytes(self.chance.choice((1, 700, 4096, 50_000)))
        if known.cap.get("block"):
            data = data[:4096].ljust(4096, b"\0")

        def call(client: Client) -> None:
            target = client.target(known.id)
            if not client.target(known.id).exists():
                target = client.use(known.id, **known.cap)
            known.data.pop(at, None)  # if this fails, either may be there
            put(target, at, data)
            known.data[at] = data

        return call

    def delete(self) -> Callable[[Client], None]:
        name = self.any(self.volumes)
        known = self.volumes[name]

        def call(client: Client) -> None:
            if name in self.volumes:
                client.leave(known.id)
                del self.volumes[name]
            client.delete(known.id)

        return call

    def unsnapshot(self) -> Callable[[Client], None]:
        known = self.snapshots.pop(self.any(self.snapshots))
        return lambda client: client.unsnapshot(known.id)

    def verify(self, client: Client, pool: Path, every: bool) -> None:
        """All that was acknowledged is there, and nothing else."""
        volumes, snapshots = client.volumes(), client.snapshots()
        same_ids("volumes", self.volumes, {one.volume_id: one.capacity_bytes for one in volumes.values()})
        same_ids("snapshots", self.snapshots, {one.snapshot_id: one.size_bytes for one in snapshots.values()})
        for known in self.volumes.values():
            target = client.use(known.id, **known.cap)
            self.same(known, target)
            record = (pool / HOME / "volumes" / known.id / "record.json").read_text()
            assert all(value in record for value in known.limits.values()), (known.limits, record)
        for name in sorted(self.snapshots) if every else sorted(self.snapshots)[:1]:
            known = self.snapshots[name]
            volume = client.create(f"look at {name}", source=restore_of(known.id), size=known.size, **known.cap)
            self.same(known, client.use(volume.volume_id, **known.cap))
            client.leave(volume.volume_id)
            client.delete(volume.volume_id)

    @staticmethod
    def same(known: Known, target: Path) -> None:
        """Every synced byte."""
        for name, data in known.data.items():
            assert got(target, name, len(data)) == data, f"{name} of {known.id} ({known.cap}), at {target}"
        assert size_of(target) > known.size * (0.7 if target.is_dir() else 0.999)


def same_ids(what: str, known: dict[str, Known], listed: dict[str, int]) -> None:
    """What was acknowledged, with its size, and nothing else."""
    acknowledged = {one.id: one.size for one in known.values()}
    assert listed == acknowledged, (
        f"{what}: lost {set(acknowledged) - set(listed)}, back {set(listed) - set(acknowledged)}"
    )


def power_cut(story: Story, pool: LoopFs, driver: Driver, client: Client, chance: random.Random) -> None:
    """Go on with the story until the power goes; then it is back, and the machine has started again."""
    gone = threading.Event()
    story.falling.clear()

    def go() -> None:
        story.falling.set()
        pool.shutdown()
        gone.set()
        hopeless(pool)

    timer = threading.Timer(chance.expovariate(1 / 0.4), go)
    timer.start()
    failed = None
    try:
        while not (gone.is_set() or story.pending):
            story.step(client)
    except (grpc.RpcError, OSError) as error:
        failed = error
    timer.join()
    assert gone.is_set()
    if failed is not None and not isinstance(failed, OSError):
        assert code_of(failed) not in ("UNIMPLEMENTED", "INVALID_ARGUMENT", "UNKNOWN"), failed
    hopeless(pool)
    driver.kill()
    dark(pool, client.place)
    pool.mount()


def hopeless(pool: LoopFs) -> None:
    """XFS on a device that fails tries for ever, and whoever waits for it waits; a machine without power does not."""
    for name in loops(pool.path):
        with suppress(OSError):
            Path(f"/sys/fs/xfs/{name}/error/metadata/EIO/max_retries").write_text("0")


def dark(pool: LoopFs, place: Path) -> None:
    """Nothing of the machine's memory is left: mounts, devices, page cache."""
    for target in sorted(mounts_below(place), key=len, reverse=True):
        if target != str(pool.path):
            eventually(lambda: not subprocess.run(["umount", target], check=False, capture_output=True).returncode,  # noqa: B023
                       20, f"umount {target}")  # fmt: skip
    for name in loops(pool.path):
        run("losetup", "-d", f"/dev/{name}", check=False)
    for path in sorted((place / "pods").glob("*/*")):
        path.rmdir() if path.is_dir() else path.unlink()

    def off() -> bool:
        with suppress(AssertionError):
            pool.unmount()
            return True
        return False

    eventually(off, 20, "the pool can be taken off")


@pytest.mark.seconds(180 if CUTS < 50 else 7200)
@pytest.mark.parametrize("pool", ["xfs", "ext4"], indirect=True)
def test_no_acknowledged_byte_is_lost_when_the_power_goes(tmp_path: Path, pool: LoopFs) -> None:
    driver = Driver(tmp_path, {"pool": pool.path})
    print(f"WHERRY_SEED={SEED}")
    chance = random.Random(SEED)
    story = Story(chance)
    try:
        client = driver.start()
        for number in range(CUTS // 2):
            power_cut(story, pool, driver, client, chance)
            client = driver.start()
            assert driver.check() == [], f"after cut {number}"
            pending, story.pending = story.pending, None
            if pending is not None:
                pending(client)
            story.verify(client, pool.path, every=CUTS >= 50)
            assert driver.check() == [], f"after cut {number}, used"
        client.sweep()
        driver.stop()
        settled(lambda: [*residue(pool.path), *loops(pool.path)])
    finally:
        driver.kill()


def test_a_killed_drivers_volumes_go_on(rig: Rig) -> None:
    """Who uses a published volume does not notice that the driver has gone, and the next driver knows of it."""
    with open(rig.target / "log", "wb", buffering=0) as file:
        for number in range(3):
            rig.driver.kill()
            file.write(b"%d\n" % number)
            os.fsync(file.fileno())
            rig.again()
        assert rig.client.stats(rig.volume, rig.target).usage[0].total > 0
        with pytest.raises(grpc.RpcError) as caught:
            rig.client.delete(rig.volume)
        assert code_of(caught.value) == "FAILED_PRECONDITION"
    assert (rig.target / "log").read_bytes() == b"0\n1\n2\n"
    rig.rest()
    rig.end()


def test_what_is_half_made_is_never_listed(rig: Rig) -> None:
    """Kills at random moments of many creates at once: what is listed then is whole, and a repeated create finds it."""
    chance = random.Random(SEED)
    for number in range(4 if KILLS else 60):
        names = [f"r{number}-{at}" for at in range(6)]
        threads = [threading.Thread(target=quietly, args=(rig.client.create, name)) for name in names]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0, 0.3))
        rig.driver.kill()
        for thread in threads:
            thread.join()
        rig.again()
        for volume in rig.listed():
            record = json.loads((rig.pool / HOME / "volumes" / volume / "record.json").read_text())
            assert record
        ids = {rig.client.create(name).volume_id for name in names}
        assert rig.listed() == ids
        for volume in sorted(ids)[:2]:
            works(rig.client, volume)
        rig.rest()
    rig.end()


def quietly(call: Callable[..., Any], *words: Any) -> None:
    with suppress(grpc.RpcError):
        call(*words)
