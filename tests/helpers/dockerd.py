"""dockerd of the distribution, as the judge of what we ask of our own daemon.

Decides how one is started so that nothing of it is left: mounts and processes apart (Space), a network namespace of its
own, all data in the test's directories, a cgroup parent of the test's. It knows no test.

    with Dockerd(place, tmp_path, test_id) as docker:
        docker.load(busybox)
        docker.docker("run", "--rm", "busybox", "true")
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from . import tools
from .dockerapi import Clients
from .engines import packed
from .ociruntime import Space

__all__ = ["Dockerd", "own_network"]

_CLONE_NEWNET = 0x40000000
_CONTAINERD = """version = 2
root = "{data}/containerd"
state = "{place}/containerd-run"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{place}/containerd.sock"
"""


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts meanwhile, in a new network namespace with loopback up."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare network namespace")
        try:
            tools.run("ip", "link", "set", "lo", "up")
            yield
        finally:
            assert libc.setns(home, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(home)


class Dockerd(Clients):
    """A running dockerd with a containerd of its own. The test stands in its network, where it publishes ports."""

    def __init__(self, place: Path, data: Path, name: str) -> None:
        """`place`: a short path, for sockets; `data`: for images; `name`: of the cgroup parent."""
        tools.need("dockerd", "containerd", "docker", "iptables")
        self._place, self._data, self._name = place, data, name
        self.log = place / "dockerd.log"
        self.point_at(place / "docker.sock", place / "docker-config")

    def __enter__(self) -> Dockerd:
        with ExitStack() as stack:
            stack.enter_context(own_network())
            # plugins' sockets, containerd's of all containers, the key of 20.10: paths that no flag moves
            self._space = stack.enter_context(Space(private=("/run/containerd", "/run/docker", "/etc/docker")))
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if ids := self.docker("ps", "-aq", check=False).stdout.split():
                self.docker("rm", "-f", "-v", *ids, check=kind is None)
        finally:
            self._stack.close()
            for left in ("docker-run", "containerd-run"):  # files that dockerd would sweep later
                tools.run("rm", "-rf", "--one-file-system", self._place / left)
            tools.run("rm", "-rf", "--one-file-system", self._data / "docker", self._data / "containerd")

    def _start(self) -> None:
        place = self._place
        settings = place / "containerd.toml"
        settings.write_text(_CONTAINERD.format(place=place, data=self._data))
        address = place / "containerd.sock"
        self._space.daemon(place / "containerd.log", ("ctr", "--address", address, "version"),
                           "containerd", "--config", settings)  # fmt: skip
        (place / "dockerd.json").write_text("{}")
        self._space.daemon(
            self.log, ("docker", "--host", self.host, "info"),
            "dockerd", "--config-file", place / "dockerd.json", "--containerd", address, "--host", self.host,
            "--data-root", self._data / "docker", "--exec-root", place / "docker-run",
            "--pidfile", place / "dockerd.pid", "--cgroup-parent", f"/{self._name}",
        )  # fmt: skip

    def load(self, source: str) -> None:
        """The image of a layout (`oci:DIR`) as busybox:latest."""
        self.docker("load", "-q", "-i", packed(source, self._data, "busybox:latest"))
