"""wherryd for one test: places, settings, a CNI list and a bridge of its own, and stubs of the CRI's two services.

    with Wherryd(test_id, tmp_path) as wherryd:
        image = wherryd.load(busybox)
        wherryd.runtime.Version(api.VersionRequest(), timeout=10)

At the end everything is removed, and nothing may be left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

import audit
from wherry.daemon.cri import api_pb2 as api
from wherry.daemon.cri.services import Stub
from wherry.engine import cni

from .wherry import Wherry, until

__all__ = ["Wherryd"]

PROGRAM = [sys.executable, "-c", "import sys; from wherry.daemon.main import main; sys.exit(main())"]
SUBNET = "10.97.0.0/16"

class Wherryd:
    """A running wherryd. `settings`: more lines of wherry.toml. `network` False: no CNI list at all."""

    def __init__(
        self, test_id: str, tmp_path: Path, settings: str = "", *, network: bool = True, subnets: tuple[str, ...] = ()
    ) -> None:
        self.id = test_id
        self.bridge = f"b{test_id}"[:15]
        self.cni = tmp_path / f"{test_id}-cni"
        self.cni.mkdir()
        lines = f'cni_conf = "{self.cni}"\n{self._plugins() if "cni_path" not in settings else ""}{settings}'
        self.wherry = Wherry(test_id, tmp_path, lines)
        self.root, self.state, self.mark = self.wherry.root, self.wherry.state, self.wherry.mark
        self.socket = self.state / "cri.sock"
        self.log = tmp_path / f"{test_id}-wherryd.log"
        if network:
            self._write_network(subnets or (SUBNET,))
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self.runtime: Any = None
        self.images: Any = None

    def _plugins(self) -> str:
        """wherry's, also where the host has others."""
        place = self.cni / "bin"
        place.mkdir()
        cni.install(str(place))
        return f'cni_path = "{place}"\n'

    def _write_network(self, subnets: tuple[str, ...]) -> None:
        data = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets],
                "dataDir": f"{self.state}/ipam", "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
        bridge = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": False, "ipam": data}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        text = json.dumps({"cniVersion": "1.0.0", "name": f"{self.id}-pods", "plugins": [bridge, ports]})
        (self.cni / "10-pods.conflist").write_text(text)

    # ---- life

    def __enter__(self) -> Wherryd:
        self._before = audit.take(self.mark)
        try:
            self.start()
        except BaseException:
            self.wherry.remove_everything()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._remove_pods()
        finally:
            self.stop()
            self.wherry.remove_everything()
            subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)
        if kind is None:
            leaks = audit.settle(self._before, self.mark) + self.wherry.leftovers()
            assert not leaks, "\n".join(leaks)

    @property
    def pid(self) -> int:
        """Of the running wherryd."""
        assert self._process is not None
        return self._process.pid

    def start(self, *words: str, env: dict[str, str] | None = None) -> None:
        """Start, and wait until it says that it is ready."""
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            path = f"{directory}/notify"
            listener.bind(path)
            self._process = self.popen(*words, env={"NOTIFY_SOCKET": path, **(env or {})})
            listener.settimeout(0.1)
            until(lambda: self._ready(listener), 30, "wherryd does not get ready")
        self.connect(self.socket)

    def popen(self, *words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """A wherryd of these places, with more words; nobody waits for it."""
        with self.log.open("ab") as log:
            options.setdefault("stderr", log)
            return subprocess.Popen([*PROGRAM, *words], env={**self.wherry.env, **(env or {})}, **options)

    def _ready(self, listener: socket.socket) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return b"READY=1" in listener.recv(4096)
        except TimeoutError:
            return False

    def connect(self, path: Path) -> None:
        """Stubs on this socket."""
        if self._channel is not None:
            self._channel.close()
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"unix://{path}", options=options)
        self.runtime, self.images = Stub(self._channel, "RuntimeService"), Stub(self._channel, "ImageService")

    def kill(self) -> None:
        """SIGKILL, at whatever it is."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and its exit code; one that is dead already is left alone."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(30)
        self._process = None
        return code

    def restart(self) -> None:
        """Another wherryd in its place."""
        self.stop()
        self.start()

    def _remove_pods(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self.restart()
        for pod in self.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=30).items:
            self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            self.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)

    # ---- beside the CRI

    def load(self, source: str, name: str = "") -> str:
        """Load an image of a layout or archive (`oci:DIR`); its id."""
        self.wherry("load", "-i", source.removeprefix("oci:"))
        found = self.wherry.out("images", "-q", "--no-trunc").split()
        assert found, f"{source} gave no image"
        if name:
            self.wherry("tag", found[0], name)
        return found[0]

    def resident(self) -> int:
        """Bytes of memory that it holds (VmRSS)."""
        line = next(line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmRSS" in line)
        return int(line.split()[1]) << 10

    def descriptors(self) -> int:
        """How many it has open."""
        with suppress(FileNotFoundError):
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        return 0
