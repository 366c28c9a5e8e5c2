"""Exec, attach and port-forward over SPDY and WebSocket, with client-go's own clients at the other end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import audit
from helpers import streamraw
from helpers.streamraw import RawSpdy, answer, connected, request
from helpers.streamserver import Server, serving
from helpers.wherry import Wherry, until
from wherry.daemon.streaming import portforward, remote, spdylink
from wherry.daemon.streaming import server as servers
from wherry.engine.engine import Engine
from wherry.engine.pods.values import PodOptions
from wherry.model import Attachment, Place, RunOptions

NONE = (Attachment("none"),)
BOTH = [("spdy", "v4.channel.k8s.io"), ("websocket", "v5.channel.k8s.io")]
UPGRADE = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
VERSION = "portforward.k8s.io"
ABORTS = int(os.environ.get("WHERRY_STREAM_ABORTS", "60"))


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, private_network: object, host_canary: None
) -> Iterator[Wherry]:
    """One wherry for all tests of this file; at the end nothing may be left."""
    made = Wherry(f"wt{os.getpid()}stream", tmp_path_factory.mktemp("streaming"))
    before = audit.take(made.mark)
    yield made
    made.remove_everything()
    leaks = audit.settle(before, made.mark) + made.leftovers()
    assert not leaks, "\n".join(leaks)


@pytest.fixture(scope="module")
def engine(own: Wherry, busybox: str) -> Iterator[Engine]:
    made = Engine(Place(str(own.root), str(own.state), str(own.config)))
    made.load(busybox)
    yield made
    made.close()


def started(engine: Engine, *command: str, **options: object) -> str:
    """A running container."""
    image = str(engine.images()[0]["Id"])
    asked = RunOptions(image, command=command, detach=True, network=NONE, **options)  # type: ignore[arg-type]
    return engine.run(asked).id


@pytest.fixture(scope="module")
def sleeper(engine: Engine) -> str:
    return started(engine, "sleep", "1000")


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    with serving(engine) as made:
        yield made


def processes(engine: Engine, container: str) -> list[str]:
    """The commands that run in it."""
    return [" ".join(row[7:]) for row in engine.top(container)["Processes"]]


# ---- exec ----


@pytest.mark.parametrize(("transport", "protocol"), BOTH)
def test_exec(server: Server, sleeper: str, transport: str, protocol: str) -> None:
    how = {"transport": transport, "protocol": protocol}
    script = "echo out; echo err >&2; exit 7"
    assert server.run(server.exec(sleeper, "sh", "-c", script), **how) == (7, b"out\n", b"err\n")
    assert server.run(server.exec(sleeper, "true"), **how) == (0, b"", b"")
    code, _, err = server.run(server.exec(sleeper, "/no/such"), **how)
    assert code == 125
    assert b"error executing command in container" in err
    data = bytes(range(256)) * 20000
    assert server.run(server.exec(sleeper, "cat", flags="io"), data, flags="io", **how) == (0, data, b"")


@pytest.mark.parametrize(("transport", "protocol"), BOTH)
def test_the_end_of_input_leaves_the_output_going(
    server: Server, sleeper: str, transport: str, protocol: str
) -> None:
    url = server.exec(sleeper, "sh", "-c", "cat; sleep 0.3; echo after", flags="io")
    assert server.run(url, b"before\n", flags="io", transport=transport, protocol=protocol)[1] == b"before\nafter\n"


@pytest.mark.parametrize(("transport", "protocol"), BOTH)
def test_a_terminal_has_the_clients_size(server: Server, sleeper: str, transport: str, protocol: str) -> None:
    script = "while [ \"$(stty size)\" != '33 101' ]; do sleep 0.05; done; tty; stty size; read line; echo got $line"
    url = server.exec(sleeper, "sh", "-c", script, flags="iot")
    client = server.client(url, "iot", transport, protocol, "-size", "33x101")
    out, _ = client.communicate(b"a line\n", 20)
    assert client.returncode == 0
    assert out.splitlines()[-4:] == [b"/dev/pts/0", b"33 101", b"a line", b"got a line"] or b"got a line" in out
    assert b"33 101" in out


@pytest.mark.parametrize(("version", "structured"), [
    ("v5.channel.k8s.io", True), ("v4.channel.k8s.io", True), ("v3.channel.k8s.io", False),
    ("v2.channel.k8s.io", False), ("channel.k8s.io", False), ("", False),
])  # fmt: skip
def test_versions_of_spdy(server: Server, sleeper: str, version: str, structured: bool) -> None:
    url = server.exec(sleeper, "sh", "-c", "echo out; exit 3", flags="o")
    with streamraw.spdy(url, version=version, method="GET") as client:
        assert client.status == 101
        assert client.headers.get("x-stream-protocol-version", "") == version
        client.open("error", "stdout")
        assert client.whole("stdout") == b"out\n"
        told = client.whole("error")
        assert client.replied == set(client.ids.values())
    if structured:
        assert json.loads(told)["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    else:
        assert b"exit status 3" in told


def test_the_best_version_of_those_offered(server: Server, sleeper: str) -> None:
    url = server.exec(sleeper, "true", flags="o")
    with streamraw.spdy(url, version="v99.channel.k8s.io, v3.channel.k8s.io") as client:
        assert client.headers["x-stream-protocol-version"] == "v3.channel.k8s.io"


def test_no_version_in_common(server: Server, sleeper: str) -> None:
    status, headers, body = answer(server.exec(sleeper, "true"), **UPGRADE, X_Stream_Protocol_Version="v99")
    assert status == 403
    assert "x-accepted-stream-protocol-versions" in headers
    assert b"the client speaks v99; the server v5.channel.k8s.io" in body


# ---- who goes first ----


@pytest.mark.parametrize("protocol", BOTH)
@pytest.mark.parametrize("flags", ["o", "io", "iot"])
def test_a_client_that_dies_takes_its_process_with_it(
    engine: Engine, server: Server, sleeper: str, protocol: tuple[str, str], flags: str
) -> None:
    url = server.exec(sleeper, "sh", "-c", "echo up; sleep 777; echo never", flags=flags)
    client = server.client(url, flags, *protocol)
    assert client.stdout
    assert client.stdout.readline().startswith(b"up")
    assert any("sleep 777" in one for one in processes(engine, sleeper))
    client.kill()
    client.communicate()
    until(lambda: not any("777" in one for one in processes(engine, sleeper)))
    assert any("sleep 1000" in one for one in processes(engine, sleeper))


def test_the_server_ends_its_sessions_when_it_stops(engine: Engine, sleeper: str) -> None:
    with serving(engine) as server:
        client = RawSpdy(server.exec(sleeper, "sh", "-c", "echo up; sleep 777", flags="o"))
        client.open("error", "stdout")
        while not client.got:
            assert client.read()
    client.to_the_end()
    client.socket.close()
    until(lambda: not any("777" in one for one in processes(engine, sleeper)))


def test_a_process_that_ignores_its_input_and_a_client_that_goes(
    engine: Engine, server: Server, sleeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is read no more when the input is full; that the client has gone is noticed all the same."""
    monkeypatch.setattr(spdylink, "_LOOK", 0.5)
    client = RawSpdy(server.exec(sleeper, "sleep", "777", flags="i"))
    client.open("error", "stdin")
    client.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        client.send("stdin", bytes(64 << 20))
    client.socket.close()
    until(lambda: not any("777" in one for one in processes(engine, sleeper)), 20)


def test_an_exec_ends_with_whoever_asked_for_it(own: Wherry, engine: Engine, sleeper: str) -> None:
    """Also if that is killed and can do nothing any more: the monitor sees to it."""
    program = (
        "import sys, time; from wherry.engine.engine import Engine; from wherry.engine.values import ExecOptions\n"
        "engine = Engine(); tied = sys.argv[2] == 'tied'\n"
        "running = engine.exec(sys.argv[1], ExecOptions(('sh', '-c', 'sleep 777; true'), tied=tied))\n"
        "print('up', flush=True); time.sleep(100)"
    )
    for how, left in (("tied", False), ("loose", True)):
        with subprocess.Popen([sys.executable, "-c", program, sleeper, how], env=own.env, stdout=subprocess.PIPE) as it:
            assert it.stdout
            assert it.stdout.readline() == b"up\n"
            assert any("777" in one for one in processes(engine, sleeper))
            it.kill()
        until(lambda left=left: any("777" in one for one in processes(engine, sleeper)) is left)
    for row in engine.top(sleeper)["Processes"]:
        if "777" in " ".join(row):
            os.kill(int(row[1]), signal.SIGKILL)
    until(lambda: not any("777" in one for one in processes(engine, sleeper)))


# ---- back-pressure ----


def resident() -> int:
    """Bytes of this process, the server in it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_slow_client_holds_the_process_back(engine: Engine, server: Server, sleeper: str) -> None:
    url = server.exec(sleeper, "sh", "-c", "head -c 100000000 /dev/zero; echo done >&2", flags="oe")
    with streamraw.spdy(url) as client:
        client.open("error", "stdout", "stderr")
        before = resident()
        time.sleep(1.5)
        assert resident() - before < 20 << 20
        assert any("head" in one for one in processes(engine, sleeper))
        total = 0
        while client.ids["stdout"] not in client.ended and client.read():
            total += len(client.got.pop(client.ids["stdout"], b""))
        assert total == 100_000_000
        assert client.whole("stderr") == b"done\n"


# ---- attach ----


@pytest.mark.parametrize(("transport", "protocol"), BOTH)
def test_attach(engine: Engine, server: Server, transport: str, protocol: str) -> None:
    container = started(engine, "sh", "-c", 'while read line; do echo "got $line"; done; echo end', interactive=True)
    first = server.client(server.attach(container, "io"), "io", transport, protocol)
    assert first.stdin
    assert first.stdout
    first.stdin.write(b"one\n")
    first.stdin.flush()
    assert first.stdout.readline() == b"got one\n"
    second = server.client(server.attach(container, "io"), "io", transport, protocol)
    time.sleep(0.5)
    first.stdin.write(b"two\n")
    first.stdin.flush()
    assert second.stdout
    assert second.stdout.readline() == first.stdout.readline() == b"got two\n"
    first.kill()
    first.communicate()
    assert second.stdin
    second.stdin.write(b"three\n")
    second.stdin.flush()
    assert second.stdout.readline() == b"got three\n"
    engine.kill(container)
    assert second.wait(20) == 0
    second.communicate()


def test_attach_tells_a_loss_from_an_end(own: Wherry, engine: Engine, server: Server) -> None:
    """The monitor drops who takes nothing for ten seconds; here it is gone itself."""
    container = started(engine, "sleep", "1000")
    client = server.client(server.attach(container, "o"), "o")
    time.sleep(0.5)
    state = json.loads((own.state / "c" / container / "state.json").read_text())
    os.kill(state["monitor"]["pid"], signal.SIGKILL)
    _, err = client.communicate(timeout=15)
    assert client.returncode == 125
    assert b"the container's monitor has hung up" in err


def test_attach_to_what_does_not_run(engine: Engine, server: Server) -> None:
    container = started(engine, "true")
    engine.wait(container)
    code, _, err = server.run(server.attach(container, "o"), flags="o")
    assert code == 125
    assert b"error attaching to container" in err
    assert b"not running" in err
    assert b"no such container" in server.run(server.exec("nothing", "true"))[2].lower()


# ---- WebSocket's older protocols ----


class RawSocket:
    """A WebSocket client, as far as RFC 6455 is needed."""

    def __init__(self, url: str, protocol: str = "") -> None:
        self.socket = connected(url)
        named = {"Sec_WebSocket_Protocol": protocol} if protocol else {}
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(request(url, "GET", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13",
                                    Sec_WebSocket_Key=key, **named))  # fmt: skip
        self.status, self.headers, _ = streamraw._read_answer(self.socket, body=False)

    def send(self, data: bytes, kind: int = 2) -> None:
        size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + len(data).to_bytes(2)
        self.socket.sendall(bytes([0x80 | kind]) + size + bytes(4) + data)  # a mask of zeros masks nothing

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.socket.recv(size - len(data))):
            data += more
        return data

    def receive(self) -> tuple[int, bytes] | None:
        """(kind, data), None at the end."""
        head = self._exactly(2)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        size = int.from_bytes(self._exactly({126: 2, 127: 8}[size])) if size > 125 else size
        return head[0] & 15, self._exactly(size)

    def all(self) -> list[tuple[int, bytes]]:
        messages = []
        while (message := self.receive()) is not None:
            messages.append(message)
            if message[0] == 8:
                self.send(message[1], 8)
        self.socket.close()
        return messages


@pytest.mark.parametrize("protocol", ["", "channel.k8s.io", "v4.channel.k8s.io"])
def test_binary_channels(server: Server, sleeper: str, protocol: str) -> None:
    client = RawSocket(server.exec(sleeper, "sh", "-c", "head -c 2; echo err >&2; exit 4", flags="ioe"), protocol)
    assert client.status == 101
    assert client.headers.get("sec-websocket-protocol", "") == protocol
    client.send(b"\0hi")
    messages = client.all()
    assert messages[0] == (2, b"\1")
    assert (2, b"\1hi") in messages
    assert (2, b"\2err\n") in messages
    told = next(data[1:] for kind, data in messages if kind == 2 and data[0] == 3)
    if protocol.startswith("v4"):
        assert json.loads(told)["reason"] == "NonZeroExitCode"
    else:
        assert b"exit status 4" in told
    assert messages[-1][0] == 8
    assert int.from_bytes(messages[-1][1][:2]) == 1000


def test_text_channels(server: Server, sleeper: str) -> None:
    client = RawSocket(server.exec(sleeper, "head", "-c", "2", flags="io"), "v4.base64.channel.k8s.io")
    client.send(b"0" + base64.b64encode(b"hi"), 1)
    messages = client.all()
    assert messages[0] == (1, b"1")
    assert (1, b"1" + base64.b64encode(b"hi")) in messages
    assert json.loads(base64.b64decode(messages[-2][1][1:]))["status"] == "Success"


@pytest.mark.parametrize("message", [
    (1, b"9text"), (2, bytes([255, 77])), (2, b"\7data"), (2, b""), (2, b"\4not json"), (2, b"\0" + bytes(60_000)),
])  # fmt: skip
def test_nonsense_on_a_websocket_harms_nobody(
    engine: Engine, server: Server, sleeper: str, message: tuple[int, bytes]
) -> None:
    client = RawSocket(server.exec(sleeper, "sleep", "777", flags="iot"), "v5.channel.k8s.io")
    until(lambda: any("777" in one for one in processes(engine, sleeper)))
    client.send(message[1], message[0])
    client.socket.close()
    until(lambda: not any("777" in one for one in processes(engine, sleeper)))


def test_no_websocket_protocol_in_common(server: Server, sleeper: str) -> None:
    assert RawSocket(server.exec(sleeper, "true"), "v99").status == 403


# ---- who may ask for what ----


def test_urls_are_good_once(server: Server, sleeper: str) -> None:
    url = server.exec(sleeper, "true", flags="o")
    assert answer(url)[0] == 400
    status, _, body = answer(url)
    assert status == 404
    assert b"once" in body
    other = server.exec(sleeper, "true").replace("/exec/", "/attach/")
    assert answer(other)[0] == 404
    assert answer(other.replace("/attach/", "/exec/"))[0] == 404


def test_there_are_no_other_routes(server: Server) -> None:
    base = server.streaming.base
    assert answer(f"{base}/healthz", "GET")[2] == b"ok"
    for path in ("/", "/exec", "/exec/", "/exec/a/b", "/exec/nothing", "/metrics", "/../healthz/x"):
        assert answer(f"{base}{path}", "GET")[0] == 404
    assert answer(f"{base}/exec/x", "PUT")[0] == 405


def test_a_connection_that_asks_for_nothing_is_closed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_FIRST_REQUEST", 0.3)
    with serving(engine) as server:
        for words in (b"", b"GET /healthz HT"):
            with connected(server.streaming.base) as sock:
                sock.sendall(words)
                assert sock.recv(100) == b""


def test_connections_that_ask_for_nothing_are_few(server: Server, sleeper: str) -> None:
    """Whoever can reach the port can connect, without a token."""
    with contextlib.ExitStack() as held:
        crowd = [held.enter_context(connected(server.streaming.base)) for _ in range(servers._SILENT_MOST + 40)]
        for sock in crowd[:40]:
            assert sock.recv(1) == b""
        assert server.run(server.exec(sleeper, "echo", "hi"))[:2] == (0, b"hi\n")


def test_a_connection_asks_once(server: Server) -> None:
    """One that may ask again and again could stay for ever."""
    with connected(server.streaming.base) as sock:
        sock.sendall(request(f"{server.streaming.base}/healthz", "GET"))
        sock.settimeout(5)
        said = b""
        while data := sock.recv(4096):
            said += data
        assert said.endswith(b"ok")


def test_a_listener_whose_queue_is_full_holds_up_nobody_else(
    engine: Engine, server: Server, private_network: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections wait for a handshake that does not come; no thread waits with them."""
    monkeypatch.setattr(portforward, "_PATIENCE", 3.0)
    pod = engine.run_pod(PodOptions("p", "tests", "u", network="host"))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_server(("127.0.0.1", 0)) as open_one:
        stuck, good = (one.getsockname()[1] for one in (full, open_one))
        with contextlib.ExitStack() as held:
            held.callback(engine.remove_pod, pod)
            for one in [held.enter_context(socket.socket()) for _ in range(2)]:  # the queue is full with one
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", stuck))
            client = held.enter_context(streamraw.spdy(server.streaming.port_forward(pod, ()), version=""))
            for number in range(40):
                client.open("error", "data", port=str(stuck), requestid=str(number))
            began = time.monotonic()
            client.open("error", "data", port=str(good), requestid="good")
            open_one.settimeout(2)
            open_one.accept()[0].close()
            assert time.monotonic() - began < 2


def test_a_client_that_opens_no_streams_is_given_up(
    engine: Engine, sleeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spdylink, "CREATION", 0.3)
    with serving(engine) as server, streamraw.spdy(server.exec(sleeper, "true", flags="oe")) as client:
        client.open("stdout", "nonsense", "stdout")
        client.to_the_end()
        assert client.closed
        assert len(client.ended) == 2


def test_an_idle_client_is_given_up(engine: Engine, sleeper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdylink, "IDLE", 0.5)
    with serving(engine) as server, streamraw.spdy(server.exec(sleeper, "sleep", "777", flags="o")) as client:
        client.open("error", "stdout")
        client.to_the_end()
        until(lambda: not any("777" in one for one in processes(engine, sleeper)))


def test_a_client_that_stays_after_the_end_is_hung_up_on(
    engine: Engine, sleeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LINGER", 0.3)
    with serving(engine) as server, streamraw.spdy(server.exec(sleeper, "true", flags="io")) as client:
        client.open("error", "stdin", "stdout")
        assert json.loads(client.whole("error"))["status"] == "Success"
        client.send("stdin", bytes(100_000))
        client.to_the_end()


def test_a_breach_of_the_protocol_ends_the_session(engine: Engine, server: Server, sleeper: str) -> None:
    with streamraw.spdy(server.exec(sleeper, "sleep", "777", flags="o")) as client:
        client.open("error", "stdout")
        until(lambda: any("777" in one for one in processes(engine, sleeper)))
        client.socket.sendall(b"\x80\x02" + bytes(100))
        client.to_the_end()
        until(lambda: not any("777" in one for one in processes(engine, sleeper)))


# ---- port-forward, into this host's own network ----


class Forwarding:
    """A streaming server whose pods are this host."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.streaming = server.streaming

    def url(self, *ports: int) -> str:
        return self.streaming.port_forward(self.pod, ports)

    @property
    def pod(self) -> str:
        return self.streaming._engine.pods()[0].id


@pytest.fixture
def forwarding(engine: Engine, server: Server) -> Iterator[Forwarding]:
    pod = engine.run_pod(PodOptions("host", "test", "1", network="host"))
    made = Forwarding(server)
    yield made
    made.listener.close()
    engine.remove_pod(pod)


def pair(client: RawSpdy, port: int, request: str = "0") -> None:
    """The two streams of one connection; the client says nothing on the error stream."""
    named = {"requestid": request} if request else {}
    client.open("error", "data", port=str(port), **named)
    client.send("error", b"", fin=True)


@pytest.mark.parametrize("request_id", ["0", ""])
def test_a_pair_of_streams_is_a_connection(forwarding: Forwarding, request_id: str) -> None:
    """Old clients name no request: their streams pair by number."""
    with streamraw.spdy(forwarding.url(), version=VERSION) as client:
        assert client.headers["x-stream-protocol-version"] == VERSION
        pair(client, forwarding.port, request_id)
        client.send("data", b"up", fin=True)
        far, _ = forwarding.listener.accept()
        with far:
            assert [far.recv(10), far.recv(10)] == [b"up", b""]
            far.sendall(b"down")
        assert client.whole("data") == b"down"
        assert client.whole("error") == b""


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "1e3", "http", "\u0661", "99999999999"])
def test_a_port_that_is_none(forwarding: Forwarding, port: str) -> None:
    with streamraw.spdy(forwarding.url(), version=VERSION) as client:
        client.open("error", "data", port=port, requestid="0")
        assert b"is not between 1 and 65535" in client.whole("error")
        assert client.whole("data") == b""


def test_streams_that_make_no_pair(forwarding: Forwarding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portforward, "CREATION", 0.3)
    with streamraw.spdy(forwarding.url(), version=VERSION) as client:
        client.open("nonsense", requestid="1", port="1")
        client.open("data", requestid="2", port="1")
        twice = client.ids["data"]
        client.open("data", requestid="2", port="1")
        client.open("error", requestid="3", port="1")
        assert client.whole("nonsense") == client.whole("data") == client.whole("error") == b""
        assert twice in client.ended
        pair(client, forwarding.port)
        client.send("data", b"fine", fin=True)
        far, _ = forwarding.listener.accept()
        with far:
            assert far.recv(10) == b"fine"


@pytest.mark.parametrize("how", ["reset", "abort"])
def test_a_connection_that_is_given_up_ends_in_the_pod(forwarding: Forwarding, how: str) -> None:
    client = RawSpdy(forwarding.url(), VERSION)
    pair(client, forwarding.port)
    client.send("data", b"up")
    far, _ = forwarding.listener.accept()
    far.settimeout(15)
    with far:
        assert far.recv(10) == b"up"
        if how == "reset":
            client.session.reset(client.ids["data"])
            client.flush()
        else:
            client.abort()
        assert far.recv(10) == b""
    client.socket.close()


def test_connections_do_not_use_up_the_sessions_streams(forwarding: Forwarding) -> None:
    with streamraw.spdy(forwarding.url(), version=VERSION) as client:
        for number in range(700):  # 1400 streams, where 1024 may be open at once
            pair(client, forwarding.port, str(number))
            client.send("data", b"x", fin=True)
            far, _ = forwarding.listener.accept()
            with far:
                assert [far.recv(1), far.recv(1)] == [b"x", b""]
            assert client.whole("data") == b""


def test_a_pod_that_does_not_read_holds_the_client_back(forwarding: Forwarding) -> None:
    with streamraw.spdy(forwarding.url(), version=VERSION) as client:
        pair(client, forwarding.port)
        far, _ = forwarding.listener.accept()
        before = resident()
        client.socket.settimeout(1)
        client.session.send(client.ids["data"], bytes(64 << 20))
        waiting = client.session.outgoing()
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += client.socket.send(waiting[sent : sent + (1 << 16)])
        assert sent < 32 << 20
        assert resident() - before < 150 << 20  # 64 MiB twice are this client's
        far.close()


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
def test_port_forward_by_channels(forwarding: Forwarding, protocol: str) -> None:
    """Two ports: channels 0 and 1, 2 and 3, each of which names its port first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    client = RawSocket(forwarding.url(forwarding.port, nobody), protocol)

    def coded(channel: int, data: bytes) -> bytes:
        return f"{channel}".encode() + base64.b64encode(data) if "base64" in protocol else bytes([channel]) + data

    far, _ = forwarding.listener.accept()
    with far:
        client.send(coded(0, b"up"), 1 if "base64" in protocol else 2)
        assert far.recv(10) == b"up"
        far.sendall(b"down")
        messages: list[bytes] = []
        while coded(0, b"down") not in messages or len(messages) < 6:
            message = client.receive()
            assert message
            messages.append(message[1])
        for channel, port in enumerate([forwarding.port, forwarding.port, nobody, nobody]):
            assert coded(channel, port.to_bytes(2, "little")) in messages
        if "base64" not in protocol:
            assert any(text.startswith(b"\3error forwarding port") for text in messages)
        client.socket.close()
        assert far.recv(10) == b""


def test_no_port_forward_without_its_pod(forwarding: Forwarding) -> None:
    with streamraw.spdy(forwarding.streaming.port_forward("0" * 64, ()), version=VERSION) as client:
        pair(client, 80)
        assert b"no such pod" in client.whole("error")


# ---- nothing is left ----


def test_sessions_that_break_off_leave_nothing(
    engine: Engine, server: Server, sleeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each stage of a session; the whole number is soak's (WHERRY_STREAM_ABORTS)."""
    monkeypatch.setattr(servers, "_FIRST_REQUEST", 0.5)  # what is kept of a silent connection until then
    for _ in range(40):
        break_off(server, sleeper)
    before, memory = settled(server), resident()
    for _ in range(ABORTS // 6 + 1):
        break_off(server, sleeper)
    until(lambda: len(processes(engine, sleeper)) == 1, 30)
    until(lambda: settled(server) <= before, 30, f"{settled(server)} where there were {before}")
    print(f"{ABORTS} sessions: {(resident() - memory) >> 10} KiB more")
    assert resident() - memory < 8 << 20


def break_off(server: Server, container: str) -> None:
    """One session for each stage."""
    connected(server.streaming.base).close()
    with connected(server.streaming.base) as sock:
        sock.sendall(request(f"{server.streaming.base}/exec/nothing", **UPGRADE)[:-10])
    urls = [server.exec(container, "cat", flags="io") for _ in range(3)]
    RawSpdy(urls[0]).abort()
    for url in urls[1:]:
        client = RawSpdy(url)
        client.open("error", "stdin", "stdout")
        client.send("stdin", b"hello")
        if url == urls[2]:
            while not client.got:
                client.read()
        client.abort()
    web = RawSocket(server.exec(container, "cat", flags="io"), "v5.channel.k8s.io")
    web.send(b"\0hello")
    web.socket.close()


def settled(server: Server) -> tuple[int, int]:
    """Descriptors of this process and tasks of the server's loop."""
    import asyncio

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    return len(os.listdir("/proc/self/fd")), server.do(tasks())
