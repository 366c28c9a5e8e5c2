"""crictl at wherryd's streaming server, as a person uses it: exec -it, attach, port-forward, over both transports."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from helpers import gotools
from helpers.cri import Wherryd
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api

TRANSPORTS = ["spdy", "websocket"]
#: an HTTP server, one that echoes, and a process to be seen
SERVERS = "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; nc -ll -p 7000 -e cat & exec sleep 1000"


class Node:
    """A wherryd with one pod and its containers."""

    def __init__(self, wherryd: Wherryd, image: str) -> None:
        self.wherryd, self.image = wherryd, image
        self.pods: dict[str, str] = {}
        self._configs: dict[str, api.PodSandboxConfig] = {}

    def pod(self, name: str, network: int = api.POD) -> str:
        """A pod, made when it is first asked for."""
        if name not in self.pods:
            options = api.NamespaceOption(network=network, pid=api.CONTAINER, ipc=api.POD)
            config = api.PodSandboxConfig(metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="test"))
            config.linux.security_context.namespace_options.CopyFrom(options)
            asked = api.RunPodSandboxRequest(config=config)
            self.pods[name] = self.wherryd.runtime.RunPodSandbox(asked, timeout=60).pod_sandbox_id
            self._configs[name] = config
        return self.pods[name]

    def container(self, name: str, *command: str, pod: str = "pod", **more: Any) -> str:
        """A running one."""
        config = api.ContainerConfig(metadata=api.ContainerMetadata(name=name), command=command,
                                     image=api.ImageSpec(image=self.image), **more)  # fmt: skip
        runtime = self.wherryd.runtime
        asked = api.CreateContainerRequest(pod_sandbox_id=self.pod(pod), config=config,
                                           sandbox_config=self._configs[pod])  # fmt: skip
        made = str(runtime.CreateContainer(asked, timeout=60).container_id)
        runtime.StartContainer(api.StartContainerRequest(container_id=made), timeout=60)
        return made

    def exited(self, container: str) -> bool:
        asked = api.ContainerStatusRequest(container_id=container)
        state = self.wherryd.runtime.ContainerStatus(asked, timeout=10).status.state
        return bool(state == api.CONTAINER_EXITED)

    def words(self, *words: str) -> list[str]:
        """A crictl command line."""
        return [str(gotools.tool("crictl")), "-r", f"unix://{self.wherryd.socket}", *words]

    def __call__(self, *words: str, data: bytes = b"", timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.words(*words), input=data, capture_output=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, private_network: object, host_canary: None,
         busybox: str) -> Iterator[Node]:  # fmt: skip
    with Wherryd(f"wt{os.getpid()}cl", tmp_path_factory.mktemp("clients")) as wherryd:
        yield Node(wherryd, wherryd.load(busybox))


@pytest.fixture(scope="module")
def servers(node: Node) -> str:
    return node.container("servers", "sh", "-c", SERVERS)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, words: Sequence[str], rows: int = 24, cols: int = 80) -> None:
        import termios

        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, cols))
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, cols: int) -> None:
        import signal
        import termios

        termios.tcsetwinsize(self.master, (rows, cols))
        self.process.send_signal(signal.SIGWINCH)

    def until(self, text: str, seconds: float = 15) -> None:
        """Read until this was shown."""
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            assert time.monotonic() < end, f"{text!r} does not show: {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    assert text.encode() in self.seen, f"{text!r} did not show: {self.seen!r}"
        self.seen = self.seen.partition(text.encode())[2]

    def end(self) -> int:
        """Wait for its end."""
        with contextlib.suppress(OSError):
            while self.process.poll() is None:
                if select.select([self.master], [], [], 0.1)[0]:
                    self.seen += os.read(self.master, 4096)
        code = self.process.wait(15)
        os.close(self.master)
        return code


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_shell(node: Node, servers: str, transport: str) -> None:
    terminal = Terminal(node.words("exec", "--transport", transport, "-it", servers, "sh"), 31, 91)
    terminal.until("# ")
    terminal.type("stty size; tty\n")
    terminal.until("31 91")
    terminal.until("/dev/pts/")
    terminal.resize(44, 111)
    terminal.type("while [ \"$(stty size)\" != '44 111' ]; do sleep 0.1; done; echo big''ger\n")
    terminal.until("bigger")
    terminal.type("sleep 777\n")
    time.sleep(0.3)
    terminal.type("\x03")  # the terminal's own interrupt, at the far end
    terminal.until("# ")
    terminal.type("exit 5\n")
    assert terminal.end() == 1  # crictl's for any code that is not 0
    assert b"exit code 5" in terminal.seen


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_without_a_terminal(node: Node, servers: str, transport: str) -> None:
    done = node("exec", "--transport", transport, "-i", servers, "sh", "-c", "cat; echo bad >&2; exit 3", data=b"in\n")
    assert done.stdout == b"in\n"
    assert b"bad\n" in done.stderr
    assert b"exit code 3" in done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach_to_a_terminal(node: Node, transport: str) -> None:
    container = node.container(f"tty-{transport}", "sh", tty=True, stdin=True)
    words = node.words("attach", "--transport", transport, "-it", container)
    for _ in range(2):  # the second client finds it as the first left it
        terminal = Terminal(words)
        time.sleep(0.5)
        terminal.type("echo he''re\n")
        terminal.until("here")
        terminal.process.kill()
        terminal.end()
    terminal = Terminal(words)
    time.sleep(0.5)
    terminal.type("exit\n")
    assert terminal.end() == 0
    until(lambda: node.exited(container))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_input_for_one_client(node: Node, transport: str) -> None:
    """stdin_once: the end of the first client's input is the end of the container's."""
    container = node.container(f"once-{transport}", "cat", stdin=True, stdin_once=True)
    done = node("attach", "--transport", transport, "-i", container, data=b"to the end\n")
    assert done.stdout == b"to the end\n"
    until(lambda: node.exited(container))


def test_input_for_one_client_that_breaks_off(node: Node) -> None:
    container = node.container("once-broken", "cat", stdin=True, stdin_once=True)
    client = subprocess.Popen(node.words("attach", "-i", container), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin
    assert client.stdout
    client.stdin.write(b"hello\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"hello\n"
    client.kill()
    client.communicate()
    until(lambda: node.exited(container))


@contextlib.contextmanager
def forwarded(node: Node, pod: str, port: int, transport: str) -> Iterator[int]:
    """The local port that leads to one of the pod's."""
    words = node.words("port-forward", "--transport", transport, node.pod(pod), f"0:{port}")
    client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert client.stdout
    try:
        line = client.stdout.readline().decode()
        assert "Forwarding from 127.0.0.1:" in line, line
        yield int(line.split("127.0.0.1:")[1].split()[0])
    finally:
        client.terminate()
        client.communicate()


def got(port: int, path: str = "/") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while more := sock.recv(1 << 16):
            data += more
    return data


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward(node: Node, servers: str, transport: str) -> None:
    with forwarded(node, "pod", 8080, transport) as port:
        for _ in range(20):
            assert got(port).endswith(b"hello\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_connections_of_one_session(node: Node, servers: str, transport: str) -> None:
    """At once, both ways, and each closed half by half."""
    data = bytes(range(256)) * 2000
    with forwarded(node, "pod", 7000, transport) as port:
        socks = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(12)]
        for number, sock in enumerate(socks):
            sock.sendall(bytes([number]))
        for number, sock in enumerate(socks):
            assert sock.recv(1) == bytes([number])
        for sock in reversed(socks):
            sock.sendall(data[:200_000])
            sock.shutdown(socket.SHUT_WR)
            back = b""
            while more := sock.recv(1 << 16):
                back += more
            assert back == data[:200_000]
            sock.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward_into_the_hosts_network(node: Node, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node.pod("hostpod", api.NODE)
        far_port = listener.getsockname()[1]
        with (
            forwarded(node, "hostpod", far_port, transport) as port,
            socket.create_connection(("127.0.0.1", port), timeout=15) as near,
        ):
            near.sendall(b"hello")
            far, _ = listener.accept()
            with far:
                assert far.recv(10) == b"hello"
                far.sendall(b"there")
                far.shutdown(socket.SHUT_WR)
                assert near.recv(10) == b"there"
                assert near.recv(10) == b""


def test_a_port_where_nobody_listens(node: Node, servers: str) -> None:
    words = node.words("port-forward", node.pod("pod"), "0:9999")
    client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout
    port = int(client.stdout.readline().decode().split("127.0.0.1:")[1].split()[0])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(10) == b""
    client.terminate()
    said = client.communicate()[1].decode()
    assert "cannot connect to port 9999 of localhost in pod" in said, said


def test_the_server_listens_on_localhost_only(node: Node, servers: str) -> None:
    url = node.wherryd.runtime.Exec(api.ExecRequest(container_id=servers, cmd=["true"], stdout=True), timeout=10).url
    assert url.startswith("http://127.0.0.1:")
