"""wherry-csi on the node of a cluster: the driver, external-provisioner beside it, and the kubelet told of them.

node-driver-registrar cannot be had as a module; what it does is here: one service of the kubelet's plugin registration
(pluginregistration/v1, two calls), whose messages are written by hand.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import grpc

from .cluster import NODE, Cluster, eventually
from .gotools import PROVISIONER, tool
from .images import TOP

__all__ = ["CsiNode"]

_NAME = "csi.wherry.dev"


class CsiNode:
    """`with CsiNode(cluster, pool): ...`; the manifests of csi/deploy are applied."""

    def __init__(self, cluster: Cluster, pool: Path) -> None:
        self._cluster, self._pool = cluster, pool
        root = cluster.place / "kubelet" / "root"
        self._socket, self._registry = root / "plugins" / "csi.sock", root / "plugins_registry" / "csi.sock"
        self._said: list[bytes] = []

    def __enter__(self) -> CsiNode:
        for name in ("csidriver.yaml", "storageclasses.yaml"):
            self._cluster.kubectl("apply", "-f", TOP / "csi/deploy" / name)
        self._pool.mkdir(parents=True, exist_ok=True)
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        self._drive()
        self._server = self._registration()
        eventually(lambda: self._said, 30, "the kubelet has taken the driver")
        assert self._said[0] == b"\x08\x01", self._said[0]  # plugin_registered: true, and no error
        self._provision()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait(5)

    def _drive(self) -> None:
        place, ready = self._cluster.place, ("test", "-S", self._socket)
        words = ("--pool", f"default={self._pool}", "--endpoint", f"unix://{self._socket}", "--node-id", NODE)
        program = Path(sys.executable).with_name("wherry-csi")
        self._cluster.space.daemon(place / "csi.log", ready, program, "serve", *words, "--expand-on-node")

    def _provision(self) -> None:
        """As csi/deploy/daemonset.yaml has it."""
        space, place = self._cluster.space, self._cluster.place
        space.env.update(NODE_NAME=NODE, NAMESPACE="default")
        space.daemon(
            place / "provisioner.log", ("curl", "-sf", "http://127.0.0.1:22011/metrics"),
            tool("csi-provisioner", PROVISIONER), f"--csi-address={self._socket}",
            f"--kubeconfig={self._cluster.config}", "--node-deployment=true", "--strict-topology=true",
            "--immediate-topology=false", "--enable-capacity=true", "--capacity-ownerref-level=-1",
            "--extra-create-metadata=true", "--timeout=60s", "--http-endpoint=127.0.0.1:22011",
        )  # fmt: skip

    def _registration(self) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(2))
        info = b"".join(
            bytes((number << 3 | 2, len(text))) + text.encode()
            for number, text in ((1, "CSIPlugin"), (2, _NAME), (3, str(self._socket)), (4, "1.0.0"))
        )

        def note(status: bytes, _context: grpc.ServicerContext) -> bytes:
            self._said.append(status)
            return b""

        calls: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(lambda _asked, _context: info),
            "NotifyRegistrationStatus": grpc.unary_unary_rpc_method_handler(note),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("pluginregistration.Registration", calls),)
        )
        server.add_insecure_port(f"unix://{self._registry}")
        server.start()
        return server
