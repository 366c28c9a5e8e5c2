"""What every call goes through: codes of failures, work that is joined, lists made of bytes, what happens told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.daemon.cri import api_pb2 as pb
from wherry.daemon.cri import catalog, filters, gate, happenings, metrics, services
from wherry.daemon.cri.usage import Rates
from wherry.daemon.measures import Measures
from wherry.engine.events import Tail
from wherry.engine.pods.values import Member, MemberOptions, Pod, PodOptions, Usage
from wherry.errors import Kind, WherryError

VERSION = next(method for method in services.methods("RuntimeService") if method.name == "Version")
STREAM = next(method for method in services.methods("RuntimeService") if method.name == "StreamContainers")


class Aborted(Exception):
    """What grpc raises in `abort`."""


class Context:
    """A call's context, as far as the gate needs one."""

    def __init__(self) -> None:
        self.ended: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.ended = code, details
        raise Aborted


def called(serve: Any, raw: bytes = b"", method: services.Method = VERSION) -> Any:
    """The answer's bytes, or how it was refused."""
    context = Context()
    handler = gate.wrap(method, serve, Measures())

    async def call() -> Any:
        try:
            return await handler(raw, context)
        except Aborted:
            return context.ended

    return asyncio.run(call())


def raising(error: BaseException) -> Callable[[Any], Awaitable[Any]]:
    async def serve(_request: Any) -> Any:
        raise error

    return serve


def test_every_kind_has_a_code() -> None:
    assert set(gate.CODES) == set(Kind)
    for kind, code in gate.CODES.items():
        assert called(raising(WherryError(kind, "no", hint="do this"))) == (code, "no; do this")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (gate.Expired("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), grpc.StatusCode.RESOURCE_EXHAUSTED, "No space"),
        (OSError(errno.EPERM, "Operation not permitted"), grpc.StatusCode.INTERNAL, "the kernel refused"),
        (ZeroDivisionError("x"), grpc.StatusCode.INTERNAL, "a defect of wherryd: ZeroDivisionError"),
        (WherryError(Kind.INVALID, "x" * 9999), grpc.StatusCode.INVALID_ARGUMENT, "xxx"),
    ],
)
def test_whatever_goes_wrong_has_a_code_and_a_sentence(error: BaseException, code: grpc.StatusCode, words: str) -> None:
    got, sentence = called(raising(error))
    assert got is code
    assert words in sentence
    assert len(sentence) <= 2048, "it travels in a header"


def test_what_cannot_be_parsed_is_the_callers_fault() -> None:
    async def never(_request: Any) -> Any:
        raise AssertionError

    assert called(never, b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert called(never, pb.VersionRequest(version="x").SerializeToString()[:-1] + b"\xff")[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    ), "no UTF-8"


def test_what_nobody_serves_says_so() -> None:
    assert called(None)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_answers_are_messages_or_bytes() -> None:
    async def message(request: Any) -> Any:
        return pb.VersionResponse(version=request.version)

    async def raw(_request: Any) -> Any:
        return b"\x0a\x01x"

    asked = pb.VersionRequest(version="v").SerializeToString()
    assert pb.VersionResponse.FromString(called(message, asked)).version == "v"
    assert pb.VersionResponse.FromString(called(raw)).version == "x"


def test_a_stream_ends_with_a_code_too() -> None:
    async def serve(_request: Any) -> AsyncIterator[Any]:
        yield pb.StreamContainersResponse(containers=[pb.Container(id="a")])
        raise WherryError(Kind.EXHAUSTED, "enough")

    context = Context()

    async def call() -> list[bytes]:
        found = []
        with contextlib.suppress(Aborted):
            async for part in gate.wrap(STREAM, serve, Measures())(b"", context):
                found.append(part)
        return found

    parts = asyncio.run(call())
    assert [pb.StreamContainersResponse.FromString(part).containers[0].id for part in parts] == ["a"]
    assert context.ended == (grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def test_the_log_tells_ids_and_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    method = next(one for one in services.methods("ImageService") if one.name == "PullImage")
    request = pb.PullImageRequest(auth=pb.AuthConfig(username="me", password="hush"))
    with caplog.at_level(logging.DEBUG, "wherryd"):
        called(raising(WherryError(Kind.DENIED, "no")), request.SerializeToString(), method)
        stop = next(one for one in services.methods("RuntimeService") if one.name == "StopContainer")
        named = pb.StopContainerRequest(container_id="abc").SerializeToString()
        called(raising(WherryError(Kind.NOT_FOUND, "no")), named, stop)
    told = " ".join(str(record.__dict__) for record in caplog.records)
    assert "abc" in told
    assert "PERMISSION_DENIED" in told
    assert "hush" not in told


# ---- work that is joined


def test_who_asks_for_the_same_waits_for_the_first() -> None:
    async def run() -> tuple[list[str], int]:
        joined, calls, go = gate.Joined(), 0, asyncio.Event()

        async def make() -> str:
            nonlocal calls
            calls += 1
            await go.wait()
            return "made"

        first = [asyncio.ensure_future(joined.do("key", make)) for _ in range(3)]
        await asyncio.sleep(0)
        first[0].cancel()  # he who began it goes away: it is made nevertheless
        go.set()
        found = [str(found) for found in await asyncio.gather(*first[1:])]
        await joined.drained()
        return found, calls

    assert asyncio.run(run()) == (["made", "made"], 1)


def test_a_failure_is_everybodys_and_the_next_one_tries_anew() -> None:
    async def run() -> list[str]:
        joined, told = gate.Joined(), []

        async def fail() -> str:
            await asyncio.sleep(0)
            raise WherryError(Kind.CONFLICT, "no")

        async def good() -> str:
            return "good"

        for found in await asyncio.gather(*(joined.do(1, fail) for _ in range(2)), return_exceptions=True):
            told.append(str(found))
        told.append(await joined.do(1, good))
        return told

    assert asyncio.run(run()) == ["no", "no", "good"]


# ---- lists


@given(st.lists(st.text(max_size=300), max_size=5))
def test_framed_messages_are_a_list(names: list[str]) -> None:
    raw = b"".join(catalog.framed(1, pb.Container(id=name).SerializeToString()) for name in names)
    assert [one.id for one in pb.ListContainersResponse.FromString(raw).containers] == names


def member(number: int, pod: str = "p", state: str = "running", **labels: str) -> Member:
    options = MemberOptions(f"c{number}", "i", labels=labels)
    return Member(f"{number:064x}", pod, options, "sha256:1", 1.0, state)


def test_filters_are_anded() -> None:
    found = member(10, "pod-1", a="b")
    wanted = pb.ContainerFilter(id=found.id[:20], pod_sandbox_id="pod-1", label_selector={"a": "b"})
    wanted.state.state = pb.CONTAINER_RUNNING
    assert filters.matches_container(found, wanted)
    assert filters.matches_container(found, pb.ContainerFilter())
    for wrong in (
        pb.ContainerFilter(id="x"), pb.ContainerFilter(pod_sandbox_id="pod-2"),
        pb.ContainerFilter(label_selector={"a": "c"}), pb.ContainerFilter(label_selector={"b": ""}),
        pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED)),
    ):  # fmt: skip
        assert not filters.matches_container(found, wrong)
    pod = Pod("p", PodOptions("n", "s", "u", labels={"a": "b"}), 1.0)
    assert filters.matches_pod(pod, pb.PodSandboxFilter(label_selector={"a": "b"}))
    ready = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    assert not filters.matches_pod(pod, ready), "zero is said aloud here"


class Engine:
    """What the catalog asks of an engine, and how often."""

    missed = False

    def __init__(self) -> None:
        self.all: dict[str, Member] = {}
        self.events: list[Any] = []
        self.asked: list[str] = []

    def changes(self) -> Engine:
        return self

    def more(self) -> list[Any]:
        found, self.events = self.events, []
        return found

    def pods(self) -> list[Pod]:
        return []

    def members(self) -> list[Member]:
        self.asked.append("all")
        return list(self.all.values())

    def pod(self, ref: str) -> Pod:
        raise WherryError(Kind.NOT_FOUND, ref)

    def member(self, ref: str) -> Member:
        self.asked.append(ref)
        if ref not in self.all:
            raise WherryError(Kind.NOT_FOUND, ref)
        return self.all[ref]

    def tell(self, found: Member, action: str, pod: bool = True) -> None:
        actor, whose = {"ID": found.id, "Attributes": {}}, {"pod": found.pod} if pod else {}
        self.events.append({"Type": "container", "Action": action, "Actor": actor, "timeNano": 1, **whose})


def test_only_what_changed_is_read_again() -> None:
    engine = Engine()
    engine.all = {found.id: found for found in (member(1), member(2))}

    async def run() -> None:
        kept = catalog.Catalog(engine)  # type: ignore[arg-type]
        kept.start()
        await kept.fresh()
        await kept.fresh()
        assert engine.asked == ["all"]
        changed = member(1, state="exited")
        engine.all[changed.id] = changed
        engine.tell(changed, "die", pod=False)
        await kept.fresh()
        assert engine.asked == ["all", changed.id]
        assert kept.member(changed.id).value.state == "exited"
        new = member(3)
        engine.all[new.id] = new
        engine.tell(new, "create")
        engine.tell(member(9), "create", pod=False)  # of no pod
        await kept.fresh()
        assert len(list(kept.members())) == 3
        del engine.all[new.id]
        kept.touch(new.id)
        await kept.fresh()
        with pytest.raises(WherryError):
            kept.member(new.id)
        assert member(9).id not in engine.asked

    asyncio.run(run())


def test_ids_may_be_short_and_must_not_be_ambiguous() -> None:
    engine = Engine()
    engine.all = {found.id: found for found in (member(1), member(2))}

    async def run() -> None:
        kept = catalog.Catalog(engine)  # type: ignore[arg-type]
        kept.start()
        await kept.fresh()
        assert kept.member(member(1).id).value == member(1)
        for ref, kind in (("0" * 60, Kind.INVALID), ("f", Kind.NOT_FOUND), ("", Kind.NOT_FOUND)):
            with pytest.raises(WherryError) as raised:
                kept.member(ref)
            assert raised.value.kind is kind

    asyncio.run(run())


def test_a_process_that_ends_is_noticed_without_an_event() -> None:
    engine = Engine()

    async def run() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "100")
        running = member(1)._replace(pid=process.pid)
        engine.all = {running.id: running}
        kept = catalog.Catalog(engine)  # type: ignore[arg-type]
        kept.start()
        await kept.fresh()
        engine.all[running.id] = member(1, state="exited")
        process.kill()
        await process.wait()
        await asyncio.wait_for(kept.poked.wait(), 5)
        await kept.fresh()
        assert kept.member(running.id).value.state == "exited"
        kept.stop()

    asyncio.run(run())


# ---- figures and events


def test_a_rate_needs_two_samples_that_are_apart() -> None:
    rates = Rates()
    assert rates.of("a", Usage(10.0, cpu_ns=0)) is None
    assert rates.of("a", Usage(12.0, cpu_ns=1_000_000_000)) == 500_000_000
    assert rates.of("a", Usage(12.1, cpu_ns=1_900_000_000)) == 500_000_000, "too close: the one before"
    assert rates.of("a", Usage(14.0, cpu_ns=900_000_000)) == 0, "it was started anew"
    assert rates.of("a", Usage(15.0)) is None
    assert rates.of("a", None) is None


@pytest.mark.parametrize(
    ("kind", "action", "pod", "told"),
    [
        ("container", "create", True, pb.CONTAINER_CREATED_EVENT),
        ("container", "die", True, pb.CONTAINER_STOPPED_EVENT),
        ("container", "die", False, None),
        ("container", "exec_die", True, None),
        ("pod", "destroy", False, pb.CONTAINER_DELETED_EVENT),
        ("image", "pull", False, None),
    ],
)
def test_which_events_a_kubelet_hears(kind: str, action: str, pod: bool, told: int | None) -> None:
    event = {"Type": kind, "Action": action, "Actor": {"ID": "x", "Attributes": {}}, **({"pod": "p"} if pod else {})}
    assert happenings.kind_of(event) == told


def test_a_label_of_an_image_makes_no_container_of_a_pod() -> None:
    """Labels are attributes of docker's events (invariant 2)."""
    event = {"Type": "container", "Action": "die", "Actor": {"ID": "x", "Attributes": {"pod": "p"}}}
    assert happenings.kind_of(event) is None
    assert list(catalog._named([event], {})) == []


def test_a_tail_knows_when_it_missed_something(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("{}\n")
    tail = Tail(str(path))
    assert tail.more() == [{}]
    for number, missed in ((1, False), (2, True)):
        for _ in range(number):
            path.rename(tmp_path / "events.jsonl.1")
            path.write_text('{"n": 1}\n')
        assert tail.more() == [{"n": 1}]
        assert tail.missed is missed


def test_only_what_is_counted_is_told() -> None:
    """Every metric by its description, with a value for each label, and no zero for what this host does not know."""
    found = member(1)
    pod = Pod("p", PodOptions("web", "shop", "u"), 1.0)
    assert {one.name for one in metrics.of_container(pod, found, None)} == {"container_last_seen"}
    used = Usage(
        10.0, cpu_ns=2_500_000_000, memory=3, memory_faults=(4, 5), pids=6, disk=(7, 8), disk_at="/",
        interfaces=(("lo", 1, 1, 1, 1), ("eth0", 9, 10, 11, 12)), details={"cpu_user_ns": 1_000_000_000, "reads": 13},
        pressure={"cpu": {"some": {"total": 14_000_000}}}, packets={"eth0": (15, 16, 17, 18)},
        devices={"8:0": (19, 20)},
    )  # fmt: skip
    told = {(one.name, *one.label_values[6:]): one.value.value for one in [
        *metrics.of_container(pod, found, used), *metrics.of_pod(pod, used),
    ]}  # fmt: skip
    disk = os.statvfs("/")
    assert told == {
        ("container_cpu_usage_seconds_total",): 2, ("container_memory_working_set_bytes",): 3,
        ("container_memory_failures_total", "pgfault", "container"): 4,
        ("container_memory_failures_total", "pgmajfault", "container"): 5, ("container_threads",): 6,
        ("container_fs_usage_bytes", "/"): 7, ("container_network_receive_bytes_total", "eth0"): 9,
        ("container_network_receive_errors_total", "eth0"): 10, ("container_network_transmit_bytes_total", "eth0"): 11,
        ("container_network_transmit_errors_total", "eth0"): 12, ("container_fs_reads_total",): 13,
        ("container_cpu_user_seconds_total",): 1, ("container_pressure_cpu_waiting_seconds_total",): 14,
        ("container_network_receive_packets_total", "eth0"): 15, ("container_last_seen",): 10,
        ("container_network_receive_packets_dropped_total", "eth0"): 16,
        ("container_network_transmit_packets_total", "eth0"): 17,
        ("container_network_transmit_packets_dropped_total", "eth0"): 18,
        ("container_blkio_device_usage_total", "/dev/block/8:0", "8", "0", "Read"): 19,
        ("container_blkio_device_usage_total", "/dev/block/8:0", "8", "0", "Write"): 20,
        ("container_fs_limit_bytes", "/"): disk.f_blocks * disk.f_frsize,
        ("container_fs_inodes_total", "/"): disk.f_files,
        ("container_fs_inodes_free", "/"): told["container_fs_inodes_free", "/"],  # changes while we look
    }  # fmt: skip
