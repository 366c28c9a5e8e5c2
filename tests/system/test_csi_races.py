"""The CSI driver asked by everybody at once, and asked anything at all.

Two calls at once are both right or one is ABORTED, and nothing is lost; a request of random parts gets a code of the
spec's and a sentence.
"""

# ruff: noqa: ARG005 (the lambdas of a table have one form)

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi_spec import csi_pb2 as pb
from helpers.csi import (
    HOME,
    MIB,
    Client,
    answer_of,
    clone_of,
    code_of,
    loops,
    mounts_below,
    refused,
    restore_of,
)
from helpers.csifort import HUGE, IDS, LONG, Fort
from helpers.tools import run

# -- at once --


def at_once(count: int, work: Callable[[int], Any]) -> Counter[str]:
    """How often each status was answered to so many threads that start together."""
    barrier = threading.Barrier(count)

    def one(number: int) -> str:
        barrier.wait()
        return answer_of(lambda: work(number))[0]

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def insist(work: Callable[[], Any], seconds: float = 60) -> Any:
    """Again while it is ABORTED, as a CO does."""
    end = time.monotonic() + seconds
    while True:
        try:
            return work()
        except grpc.RpcError as error:
            if code_of(error) != "ABORTED" or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.005, 0.05))


def test_two_creates_of_one_name(fort: Fort) -> None:
    for number in range(10):
        answers = at_once(8, lambda _, number=number: fort.client.create(f"n{number}"))
        assert set(answers) <= {"OK", "ABORTED"}
        assert answers["OK"]
        assert len(fort.client.volumes()) == number + 1


def test_creates_at_once_do_not_overcommit(fort: Fort) -> None:
    """Forty ask for a tenth of the pool each, in one moment."""
    size = fort.client.capacity().available_capacity // 10 // MIB * MIB
    answers = at_once(40, lambda number: fort.client.create(f"v{number}", size))
    assert set(answers) <= {"OK", "RESOURCE_EXHAUSTED", "ABORTED"}
    assert len(fort.client.volumes()) == answers["OK"]
    assert 7 <= answers["OK"] <= 10
    assert fort.client.capacity().available_capacity >= 0


PAIRS: dict[str, Callable[[Client, str, int], Any]] = {
    "stage": lambda c, v, n: c.stage(v),
    "publish": lambda c, v, n: c.publish(v),
    "snapshot": lambda c, v, n: c.snapshot(v, "same"),
    "expand": lambda c, v, n: c.expand(v, (70 + n) * MIB),
    "modify": lambda c, v, n: c.modify(v, readBps=str(1_000_000 + n)),
    "clone": lambda c, v, n: c.create("clone", source=clone_of(v)),
    "group": lambda c, v, n: c.group("group", [v]),
}


@pytest.mark.parametrize("verb", PAIRS)
def test_one_call_by_many_at_once(fort: Fort, volume: str, verb: str) -> None:
    """Done once; all others are told the same, or ABORTED."""
    if verb == "publish":
        fort.client.stage(volume)
    answers = at_once(50, lambda number: PAIRS[verb](fort.client, volume, number))
    assert set(answers) <= {"OK", "ABORTED"}
    assert answers["OK"]
    insist(lambda: PAIRS[verb](fort.client, volume, 49))
    assert len(fort.client.volumes()) == (2 if verb == "clone" else 1)
    assert len(fort.client.snapshots()) == (verb in ("snapshot", "group"))
    staging, target = fort.client.staging(volume), fort.client.target(volume)
    mounts = {"stage": [staging], "publish": [staging, target]}
    mine = [path for path in mounts_below(fort.place) if path != str(fort.pool)]
    assert sorted(mine) == sorted(str(path) for path in mounts.get(verb, [])), "mounted twice"
    if verb == "expand":
        assert fort.client.volumes()[volume].capacity_bytes == 119 * MIB


def test_fifty_threads_on_one_volume(fort: Fort, volume: str) -> None:
    """Anything at once: each answer is one of the spec's, and then the volume works."""
    fort.client.stage(volume)
    (fort.client.publish(volume, "keep") / "file").write_text("x")
    chance = random.Random(7)
    away = {"volume_id": volume}
    plan = [chance.choice((
        lambda n: fort.client.stage(volume), lambda n: fort.client.publish(volume, f"t{n}"),
        lambda n: fort.raw("NodeUnpublishVolume", target_path=str(fort.client.target(volume, f"t{n}")), **away),
        lambda n: fort.client.snapshot(volume, f"s{n}"), lambda n: fort.client.expand(volume, (64 + n) * MIB),
        lambda n: fort.client.node_expand(volume, fort.client.target(volume, "keep")),
        lambda n: fort.client.delete(volume), lambda n: fort.client.unstage(volume),
        lambda n: fort.client.create(f"c{n % 5}", 0, source=clone_of(volume)),
        lambda n: fort.client.get(volume), lambda n: fort.client.volumes(),
        lambda n: fort.client.stats(volume, fort.client.target(volume, "keep")),
    )) for _ in range(50)]  # fmt: skip
    for _ in range(3):
        answers = at_once(50, lambda number: plan[number](number))
        assert set(answers) <= {"OK", "ABORTED", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS"}, answers
    assert (fort.client.target(volume, "keep") / "file").read_text() == "x"
    insist(lambda: fort.client.stage(volume))
    (insist(lambda: fort.client.publish(volume, "last")) / "file2").write_text("x")
    for path in sorted((fort.place / "pods" / volume).iterdir()):
        assert path.is_mount()
    fort.restart()
    assert volume in fort.client.volumes()


def test_fifty_threads_on_volumes_of_their_own(fort: Fort) -> None:
    """Whole lives beside each other; nobody is told to wait for somebody else's volume, nothing is left."""

    def life(number: int) -> None:
        cap = {"block": True} if number % 3 == 0 else {}
        volume = fort.client.create(f"v{number}", 32 * MIB, **cap).volume_id
        target = fort.client.use(volume, **cap)
        if cap:
            with open(target, "r+b", buffering=0) as device:
                device.write(b"%04096d" % number)
                os.fsync(device.fileno())
        else:
            (target / "file").write_bytes(b"%04096d" % number)
        snapshot = fort.client.snapshot(volume, f"s{number}").snapshot_id
        with open(target if cap else target / "file", "rb") as file:
            assert int(file.read(4096)) == number
        fort.client.unsnapshot(snapshot)
        fort.client.leave(volume)
        fort.client.delete(volume)

    assert at_once(50, life) == {"OK": 50}
    assert not fort.client.volumes()
    assert not loops(fort.pool)


def test_create_and_delete_at_once(fort: Fort) -> None:
    for number in range(10):
        volume = fort.client.create(f"v{number}").volume_id
        answers = at_once(6, lambda at, volume=volume: (
            fort.client.delete(volume) if at % 2 else fort.client.snapshot(volume, "of " + volume)))  # fmt: skip
        assert set(answers) <= {"OK", "ABORTED", "NOT_FOUND"}
        insist(lambda volume=volume: fort.client.delete(volume))
        assert volume not in fort.client.volumes()
        for snapshot in fort.client.snapshots(source_volume_id=volume).values():
            copy = fort.client.create(f"r{number}", source=restore_of(snapshot.snapshot_id)).volume_id
            assert fort.client.use(copy).is_mount()


# -- anything at all --

NAMES = ["n1", "n2", "", "..", "a\0b", LONG, "🜁", "../canary"]


def strings(fort: Fort, field: str, ids: list[str]) -> st.SearchStrategy[str]:
    """What a field of this name may be: right, nearly right, and wrong."""
    places = [str(fort.place / "any" / name) for name in ("s", "t", "u", "none/t", "..", "a b", "ü", LONG, "a\0")]
    paths = [*places, "", "relative", "/", f"{fort.pool}/{HOME}/volumes", f"{fort.canary}/empty/../file"]
    if field.endswith("_path"):
        return st.sampled_from(paths)
    if field.endswith(("_id", "_ids")):
        return st.sampled_from([*ids, *IDS, "", "node-1"])
    if field == "name":
        return st.sampled_from(NAMES) | st.text(max_size=140)
    return st.sampled_from(["", "pool", "ext4", "xfs", "1", "max", "ro", "noatime", "0", LONG, "\0"]) | st.text(
        max_size=20
    )


def messages(fort: Fort, kind: Any, ids: list[str], depth: int = 0) -> st.SearchStrategy[Any]:
    """Requests made of their descriptor, any field of which may be missing."""
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        value = _values(fort, kind, field, ids, depth)
        if value is not None:
            fields[field.name] = st.none() | value if depth else value | st.none()

    def build(values: dict[str, Any]) -> Any:
        made = kind()
        for name, value in values.items():
            if value is None:
                continue
            if isinstance(value, dict):
                getattr(made, name).update(value)
            elif isinstance(value, list):
                getattr(made, name).extend(value)
            elif hasattr(value, "DESCRIPTOR"):
                getattr(made, name).CopyFrom(value)
            else:
                setattr(made, name, value)
        return made

    return st.fixed_dictionaries(fields).map(build)


KEYS = ["pool", "backend", "provisioning", "readBps", "writeIops", "colour", "csi.storage.k8s.io/pod.uid",
        "topology.csi.wherry.dev/node", "pool.csi.wherry.dev/pool"]  # fmt: skip


def _values(fort: Fort, kind: Any, field: Any, ids: list[str], depth: int) -> st.SearchStrategy[Any] | None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(st.sampled_from(KEYS), strings(fort, "value", ids), max_size=2)
    if field.message_type is not None:
        if depth > 4:
            return None
        value = messages(fort, message_factory.GetMessageClass(field.message_type), ids, depth + 1)
    elif field.enum_type is not None:
        value = st.sampled_from([*(one.number for one in field.enum_type.values), 7, 5])
    elif field.cpp_type == field.CPPTYPE_STRING:
        value = strings(fort, field.name, ids)
    elif field.cpp_type == field.CPPTYPE_BOOL:
        return st.booleans()
    else:
        top = (1 << 31) - 1 if field.cpp_type == field.CPPTYPE_INT32 else HUGE
        value = st.sampled_from([0, 1, -1, 4096, 33 * MIB, 64 * MIB, top, -top])
    return st.lists(value, max_size=2) if field.is_repeated else value


METHODS = [method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]
#: what the spec and the contract of this driver know; never UNKNOWN (an unforeseen exception) or INTERNAL (a bug)
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ABORTED",
           "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_any_request_is_answered(fort: Fort, method: str) -> None:
    """Requests of random right and wrong parts: one of the spec's codes with a sentence, and the driver lives."""
    place = fort.place / "any"
    shutil.rmtree(place, ignore_errors=True)
    for name in ("s", "u", "a b", "ü"):
        (place / name).mkdir(parents=True)
    ids = [fort.client.create("n1").volume_id, fort.client.create("raw", block=True).volume_id]
    ids.append(fort.client.snapshot(ids[0], "n1").snapshot_id)
    ids += [(group := fort.client.group("n2", [ids[1]])).group_snapshot_id, group.snapshots[0].snapshot_id]
    fort.client.use(ids[0])
    kind = getattr(pb, f"{method}Request")

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages(fort, kind, ids))
    def answered(request: Any) -> None:
        def call() -> None:
            answer = fort.client.call(method, request)
            if hasattr(answer, "__next__"):
                list(answer)

        code, said = answer_of(call)
        assert code in ALLOWED, (code, said, request)
        assert fort.driver.running

    try:
        answered()
        fort.untouched()
    finally:
        for target in sorted(mounts_below(place), key=len, reverse=True):
            run("umount", target)
        volumes = fort.client.volumes()
        for volume in volumes:
            for path in (*sorted(place.glob("*")), *sorted(place.glob("none/*"))):
                with suppress(grpc.RpcError):
                    fort.raw("NodeUnpublishVolume", volume_id=volume, target_path=str(path))
                with suppress(grpc.RpcError):
                    fort.raw("NodeUnstageVolume", volume_id=volume, staging_target_path=str(path))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=0, max_size=160))
def test_any_unicode_name_is_a_name_or_refused(standing: Callable[..., Fort], name: str) -> None:
    banned = any(ord(one) < 9 or ord(one) in (11, 12, *range(14, 32), *range(127, 160)) for one in name)
    right = 0 < len(name.encode()) <= 128 and not banned
    if not right:
        with refused("INVALID_ARGUMENT"):
            standing().client.create(name)
        return
    volume = standing().client.create(name, 32 * MIB).volume_id
    standing().client.delete(volume)
