"""Clients that stall, break off or ask for too much: wherryd answers others, stays small, and keeps nothing of them.

The sessions that are broken off are WHERRY_CRI_SESSIONS's (scripts/soak: 2000); WHERRY_SEED repeats their moments.
"""

from __future__ import annotations

import base64
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

import audit
from helpers.cri import Wherryd
from helpers.kubelet import Kubelet
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root

SESSIONS = int(os.environ.get("WHERRY_CRI_SESSIONS", "120"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
MIB = 1 << 20
CAP = 16 * MIB  # of each stream of an ExecSync's answer
GROWTH_MIB = 64  # what an answer of two capped streams may cost, copies on their way to the socket included
SLOW_SECONDS = 2.0  # for a call beside those that stall


@pytest.fixture(scope="module")
def kubelet(
    tmp_path_factory: pytest.TempPathFactory, busybox: str, private_network: object, host_canary: None
) -> Iterator[Kubelet]:
    """One wherryd for all, which none of them may wear out; with one pod that stays."""
    directory = tmp_path_factory.mktemp("leaks")
    with Wherryd(f"wt{os.getpid()}leaks", directory) as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox), directory / "logs")
        yield made
        made.remove_everything()


@pytest.fixture(scope="module")
def container(kubelet: Kubelet) -> str:
    """A running container; everything has been used once, so that what is loaded late is not taken for a leak."""
    made = kubelet.run(kubelet.pod("leaks", network=True), "c", "sleep", "100000")
    kubelet.exec(made, "true")
    for method in SESSION_METHODS:
        talk(session(kubelet, made, method), 0.2)
    return made


@pytest.fixture(autouse=True)
def nothing_is_kept(kubelet: Kubelet, container: str) -> Iterator[None]:
    """Descriptors, threads and processes are as before a few seconds after each test."""
    settle_down(kubelet)
    before = held(kubelet)
    yield
    until(lambda: all(now <= then for now, then in zip(held(kubelet), before, strict=True)), 20,
          f"descriptors, threads, children, in the container: {before}")  # fmt: skip


def settle_down(kubelet: Kubelet) -> None:
    """What the test before left to be ended has ended."""
    last: tuple[int, ...] = ()
    while (now := held(kubelet)) != last:
        last = now
        time.sleep(0.5)


def held(kubelet: Kubelet) -> tuple[int, ...]:
    """What wherryd has: descriptors, children; and how many processes the pods have."""
    pid = kubelet.wherryd.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    inside = [line for line in audit.take(kubelet.wherryd.mark).processes if "sleep" in line or "yes" in line]
    return len(audit.open_descriptors(pid)), len(children), len(inside)


def rss_mib(kubelet: Kubelet, field: str = "VmRSS") -> float:
    """Resident memory of wherryd; VmHWM is its peak."""
    status = Path(f"/proc/{kubelet.wherryd.pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def forget_peak(kubelet: Kubelet) -> None:
    """VmHWM begins anew (proc_pid_clear_refs(5))."""
    Path(f"/proc/{kubelet.wherryd.pid}/clear_refs").write_text("5")


def answers(kubelet: Kubelet) -> None:
    """Others are served meanwhile."""
    begin = time.monotonic()
    kubelet("ListContainers")
    kubelet("Version")
    assert time.monotonic() - begin < SLOW_SECONDS


def ended(kubelet: Kubelet, container: str, *commands: str) -> None:
    """They do not run in the container any more; each lost its client a moment ago."""
    deadline = time.monotonic() + 15
    while set(commands) & set(there := kubelet.output(container, "ps", "-o", "args").splitlines()):
        assert time.monotonic() < deadline, f"a command outlives its client: {there}"
        time.sleep(0.1)


# ---- what is too much


def test_a_gibibyte_from_exec_sync(kubelet: Kubelet, container: str) -> None:
    """The answer has 16 MiB at most, whatever the command says; wherryd does not grow with it, others are served."""
    forget_peak(kubelet)
    before = rss_mib(kubelet)
    done: list[Any] = []
    command = ("sh", "-c", "head -c 1073741824 /dev/zero")

    def ask() -> None:
        with suppress(grpc.RpcError):
            done.append(kubelet.exec(container, *command, timeout=100))

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        answers(kubelet)
        time.sleep(0.2)
    thread.join()
    for answer in done:
        assert len(answer.stdout) <= CAP
    grown = rss_mib(kubelet, "VmHWM") - before
    print(f"grew by {grown:.0f} MiB, {[len(one.stdout) for one in done]} bytes told")
    assert grown < GROWTH_MIB


def test_many_at_once_have_their_caps(kubelet: Kubelet, container: str) -> None:
    """Eight that say more than is told, on both streams: as many capped answers at most."""
    forget_peak(kubelet)
    before = rss_mib(kubelet)
    command = ("sh", "-c", "head -c 33554432 /dev/zero; head -c 33554432 /dev/zero >&2")

    def ask() -> None:
        with suppress(grpc.RpcError):
            assert len(kubelet.exec(container, *command, timeout=60).stdout) <= CAP

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rss_mib(kubelet, "VmHWM") - before < 8 * GROWTH_MIB


def test_a_command_without_end_has_its_deadline(kubelet: Kubelet, container: str) -> None:
    """The timeout ends it, with what it started; a client that goes earlier ends it too."""
    for seconds, timeout in ((30, 1), (1, 30)):
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as raised:
            kubelet("ExecSync", container_id=container, cmd=["sh", "-c", "yes | sleep 777"], timeout=timeout,
                    seconds=seconds)  # fmt: skip
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begin < 5
        ended(kubelet, container, "sleep 777", "yes")


def test_requests_that_are_too_large_or_no_requests(kubelet: Kubelet) -> None:
    """A message above 16 MiB is refused by the server; what is no message is an error of that call only."""
    channel = grpc.insecure_channel(f"unix://{kubelet.wherryd.socket}")
    call = channel.unary_unary("/runtime.v1.RuntimeService/Version")
    for junk in (b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f", bytes(20 * MIB)):
        with pytest.raises(grpc.RpcError) as raised:
            call(junk, timeout=20)
        assert raised.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED,
                                       grpc.StatusCode.INVALID_ARGUMENT)  # fmt: skip
    channel.close()
    answers(kubelet)


# ---- clients that stall


def test_connections_that_say_nothing_or_half(kubelet: Kubelet) -> None:
    """To the CRI's socket and to the streaming server: a hundred of each harm nobody."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    stream = stream_address(kubelet)
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context(unix(kubelet.wherryd.socket)).send((b"", preface[:7], preface)[number % 3])
            stack.enter_context(tcp(stream)).send((b"", b"GET /exec/", b"GET / HTTP/1.1\r\nHost:")[number % 3])
        answers(kubelet)


def test_who_follows_events_and_does_not_read(kubelet: Kubelet, container: str) -> None:
    """Events go to one who does not take them: others are served, wherryd stays small."""
    before = rss_mib(kubelet)
    channels = [grpc.insecure_channel(f"unix://{kubelet.wherryd.socket}") for _ in range(10)]
    for channel in channels:
        channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents")(b"")
    pod = next(iter(kubelet.configs))
    for number in range(20):
        one = kubelet.create(pod, f"quick{number}", "true")
        kubelet.remove(one)
    answers(kubelet)
    for channel in channels:
        channel.close()
    assert rss_mib(kubelet) - before < 20


@pytest.mark.seconds(240)
def test_who_does_not_read_what_a_command_says(kubelet: Kubelet, container: str) -> None:
    """The command waits for its reader; wherryd does not take in what nobody takes out; it ends with its client."""
    before = rss_mib(kubelet)
    stalled = []
    for _ in range(8):
        one = session(kubelet, container, "Exec", "yes")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.append(one)
    time.sleep(2)
    answers(kubelet)
    assert rss_mib(kubelet) - before < GROWTH_MIB
    for one in stalled:
        one.close()
    ended(kubelet, container, "yes")


# ---- sessions that are broken off


def unix(path: Path | str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def tcp(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, 10)


def stream_address(kubelet: Kubelet) -> tuple[str, int]:
    """Where streams are served, by a URL that is not used."""
    answer = kubelet("PortForward", pod_sandbox_id=next(iter(kubelet.configs)), port=[1])
    parts = urlsplit(answer.url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def url(kubelet: Kubelet, container: str, method: str, *command: str) -> str:
    """Of a session."""
    if method == "PortForward":
        return str(kubelet(method, pod_sandbox_id=next(iter(kubelet.configs)), port=[80]).url)
    streams = {"stdin": True, "stdout": True, "stderr": method == "Exec"}
    words = {"cmd": command or ("cat",)} if method == "Exec" else {}
    return str(kubelet(method, container_id=container, **streams, **words).url)


SESSION_METHODS = ("Exec", "Attach", "PortForward")


def session(kubelet: Kubelet, container: str, method: str, *command: str, cut: int | None = None) -> socket.socket:
    """A WebSocket as kubectl opens it (RFC 6455); `cut`: only so many bytes of the request are sent."""
    parts = urlsplit(url(kubelet, container, method, *command))
    assert parts.hostname
    assert parts.port
    one = tcp((parts.hostname, parts.port))
    key = base64.b64encode(os.urandom(16)).decode()
    protocol = "portforward.k8s.io" if method == "PortForward" else "v4.channel.k8s.io"
    head = (f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n").encode()  # fmt: skip
    one.sendall(head[:cut])
    return one


def talk(one: socket.socket, seconds: float) -> None:
    """Some input (channel 0, masked with zeros), whatever comes back; then it is broken off."""
    with suppress(OSError):
        one.sendall(bytes((0x82, 0x80 | 6)) + bytes(4) + b"\0hello")
        one.settimeout(max(seconds, 0.001))
        one.recv(4096)
    abort(one)


def abort(one: socket.socket) -> None:
    """RST in the stead of an orderly end."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


@pytest.mark.seconds(120 + SESSIONS)
def test_sessions_that_are_broken_off(kubelet: Kubelet, container: str) -> None:
    """At any moment, from a token that nobody uses to the midst of a stream."""
    chance = random.Random(SEED)
    print(f"WHERRY_SEED={SEED}")
    ways: tuple[Callable[[str], Any], ...] = (
        lambda method: talk(session(kubelet, container, method), chance.uniform(0, 0.1)),
        lambda method: abort(session(kubelet, container, method)),
        lambda method: abort(session(kubelet, container, method, cut=chance.randrange(1, 200))),
        lambda _method: talk(session(kubelet, container, "Exec", "yes"), chance.uniform(0, 0.05)),
        lambda method: url(kubelet, container, method),
    )
    resident = 0.0
    for number in range(SESSIONS):
        chance.choice(ways)(chance.choice(SESSION_METHODS))
        if number == SESSIONS // 4:
            resident = rss_mib(kubelet)
    answers(kubelet)
    ended(kubelet, container, "cat", "yes")
    grown = rss_mib(kubelet) - resident
    print(f"{SESSIONS} sessions: grew by {grown:.1f} MiB since the first quarter")
    assert grown < 12
    assert kubelet.status(container).state == api.CONTAINER_RUNNING
