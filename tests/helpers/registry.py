"""The distribution's registry (docker-registry) on a free loopback port, and pushing to it."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from .tools import need, run

__all__ = ["Registry", "free_port"]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """`with Registry(directory) as registry: registry.push("oci:DIR", "name:tag")`; `registry.host` is host:port."""

    def __init__(self, directory: Path) -> None:
        need("docker-registry")
        self._directory = directory
        self.host = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Registry:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {self._directory}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: {self.host}}}\n"
        )
        with open(self._directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        host, _, port = self.host.partition(":")
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(10)

    def push(self, source: str, name: str) -> str:
        """Copy an image (skopeo's name of it) to the registry; returns the whole name there."""
        need("skopeo")
        run(
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            source,
            f"docker://{self.host}/{name}",
        )
        return f"{self.host}/{name}"
