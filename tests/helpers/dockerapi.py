"""wherryd's Docker API for one test: places and settings of its own, the docker CLI on it, and plain requests.

    with DockerD(test_id, tmp_path) as docker:
        image = docker.load(busybox)
        docker.docker("run", "--rm", image, "true")
        docker.get("/containers/json?all=1").json()

At the end everything is removed, and nothing may be left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import audit

from .cri import Wherryd

__all__ = ["CLIS", "Answer", "Clients", "DockerD", "Terminal"]

CLIS = tuple(path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if os.access(path, os.X_OK))


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """Of a failure."""
        return str(self.json()["message"])


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Clients:
    """What speaks to a daemon by its DOCKER_HOST: the same for ours and for dockerd (helpers/dockerd.py)."""

    socket: Path
    env: dict[str, str]
    log: Path
    cli = CLIS[0] if CLIS else "docker"  # which is called

    def point_at(self, path: Path, config: Path) -> None:
        """`path` is the daemon's socket, `config` a directory for what clients keep."""
        self.socket, self.host = path, f"unix://{path}"
        self.env = {key: text for key, text in os.environ.items() if not key.startswith("DOCKER_")}
        self.env |= {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(config)}

    def docker(
        self, *words: object, cli: str = "", check: bool = True, stdin: str | None = None, timeout: float = 30,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run the docker CLI (`cli`: which) on this socket; output is text."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(
            [cli or self.cli, *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False,
            env={**self.env, **(env or {})}, **given,
        )  # fmt: skip
        if check and done.returncode:
            said = f"exit {done.returncode}\n{done.stdout}{done.stderr}"
            raise AssertionError(f"docker {' '.join(map(str, words))}: {said}\n{self.log.read_text()[-4000:]}")
        return done

    def out(self, *words: object, **options: Any) -> str:
        """Its standard output without the last line end."""
        return self.docker(*words, **options).stdout.rstrip("\n")

    def docker_popen(self, *words: object, cli: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """Start the docker CLI and go on."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([cli or self.cli, *map(str, words)], env=self.env, **options)


class Terminal:
    """The docker CLI on a terminal."""

    def __init__(self, docker: Clients, *words: object, cli: str = "", rows: int = 31, cols: int = 91) -> None:
        self.fd, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.process = docker.docker_popen(
            *words, cli=cli, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def see(self, text: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not in {self.shown!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.fd, 4096).decode(errors="replace")

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def end(self) -> int:
        code = self.process.wait(20)
        os.close(self.fd)
        return code


class DockerD(Clients, Wherryd):
    """A running wherryd, seen by its Docker API. `settings`: more lines of wherry.toml."""

    def __init__(self, test_id: str, tmp_path: Path, settings: str = "") -> None:
        super().__init__(test_id, tmp_path, settings, network=False)
        self.cri = self.socket
        self.point_at(self.state / "docker.sock", tmp_path / f"{test_id}-docker")

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self.wherry.remove_everything()
            subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        if kind is None:
            leaks = audit.settle(self._before, self.mark) + self.wherry.leftovers()
            assert not leaks, "\n".join(leaks)

    def connect(self, path: Path) -> None:
        """The CRI is not looked at here."""

    # ---- plain HTTP

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> Answer:
        """One request on a connection of its own; `body`: bytes as they are, anything else as JSON."""
        connection = _Connection(str(self.socket), timeout)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        usual = {"Content-Type": "application/json"} if raw is not None else {}
        try:
            connection.request(method, path, raw, {**usual, **(headers or {})})
            found = connection.getresponse()
            return Answer(found.status, {key.lower(): value for key, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        """GET."""
        return self.ask("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Answer:
        """POST."""
        return self.ask("POST", path, body, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        """DELETE."""
        return self.ask("DELETE", path, **options)

    def raw(self) -> socket.socket:
        """A connection, nothing sent yet."""
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(30)
        made.connect(str(self.socket))
        return made

