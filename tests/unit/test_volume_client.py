"""The CSI client against a server of the spec's messages on a real socket: codes, retries, what is asked once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_spec import csi_pb2, services
from wherry.errors import Kind, WherryError
from wherry.volume.csi import Client, Handle, Wish

Code = grpc.StatusCode
VOLUME = Handle("vol-1", 1 << 20, "mount", "ext4", "SINGLE_NODE_WRITER", {"a": "b"})


class Driver:
    """All services in one; every call is noted, and fails as `failures` says, once each."""

    def __init__(self, controller: tuple[str, ...], node: tuple[str, ...]) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failures: list[tuple[Code, str]] = []
        self.controller, self.node = controller, node

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name[0].isupper():
            raise AttributeError(name)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append((name, request))
            quiet = ("GetPluginInfo", "GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities",
                     "NodeGetInfo")  # fmt: skip
            if self.failures and name not in quiet:
                context.abort(*self.failures.pop(0))
            return getattr(self, f"answer_{name}", self.plain)(name, request)

        return call

    @staticmethod
    def plain(name: str, _request: Any) -> Any:
        return getattr(csi_pb2, f"{name}Response")()

    def answer_GetPluginInfo(self, _name: str, _request: Any) -> Any:
        return csi_pb2.GetPluginInfoResponse(name="test.example", vendor_version="7")

    def answer_GetPluginCapabilities(self, _name: str, _request: Any) -> Any:
        kind = csi_pb2.PluginCapability
        names = ("CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS")
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[kind(service=kind.Service(type=kind.Service.Type.Value(one))) for one in names]
        )

    def answer_ControllerGetCapabilities(self, _name: str, _request: Any) -> Any:
        kind = csi_pb2.ControllerServiceCapability
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[kind(rpc=kind.RPC(type=kind.RPC.Type.Value(one))) for one in self.controller]
        )

    def answer_NodeGetCapabilities(self, _name: str, _request: Any) -> Any:
        kind = csi_pb2.NodeServiceCapability
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[kind(rpc=kind.RPC(type=kind.RPC.Type.Value(one))) for one in self.node]
        )

    def answer_NodeGetInfo(self, _name: str, _request: Any) -> Any:
        topology = csi_pb2.Topology(segments={"node": "here"})
        return csi_pb2.NodeGetInfoResponse(node_id="here", accessible_topology=topology)

    def answer_CreateVolume(self, _name: str, request: Any) -> Any:
        size = request.capacity_range.required_bytes
        made = csi_pb2.Volume(volume_id="vol-1", capacity_bytes=size, volume_context={"k": "v"})
        return csi_pb2.CreateVolumeResponse(volume=made)

    def answer_ControllerPublishVolume(self, _name: str, _request: Any) -> Any:
        return csi_pb2.ControllerPublishVolumeResponse(publish_context={"device": "7"})

    def answer_ListVolumes(self, _name: str, request: Any) -> Any:
        at = int(request.starting_token or 0)
        entry = csi_pb2.ListVolumesResponse.Entry(volume=csi_pb2.Volume(volume_id=f"vol-{at}"))
        return csi_pb2.ListVolumesResponse(entries=[entry], next_token=str(at + 1) if at < 3 else "")

    def asked(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]


FULL = (
    ("CREATE_DELETE_VOLUME", "PUBLISH_UNPUBLISH_VOLUME", "MODIFY_VOLUME", "CLONE_VOLUME", "SINGLE_NODE_MULTI_WRITER",
     "CREATE_DELETE_SNAPSHOT", "EXPAND_VOLUME", "LIST_VOLUMES"),
    ("STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "SINGLE_NODE_MULTI_WRITER"),
)  # fmt: skip
Serve = Callable[..., tuple[Driver, Client]]


def listen(driver: Driver, socket: str) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    for name in services.SERVICES:
        server.add_generic_rpc_handlers((services.handlers(name, driver),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    running: list[grpc.Server] = []

    def start(capabilities: tuple[tuple[str, ...], tuple[str, ...]] = FULL) -> tuple[Driver, Client]:
        driver, socket = Driver(*capabilities), str(tmp_path / "csi.sock")
        running.append(listen(driver, socket))
        return driver, Client(socket, "test.example")

    yield start
    for server in running:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, Kind.INVALID),
        (Code.OUT_OF_RANGE, Kind.INVALID),
        (Code.NOT_FOUND, Kind.NOT_FOUND),
        (Code.ALREADY_EXISTS, Kind.EXISTS),
        (Code.FAILED_PRECONDITION, Kind.CONFLICT),
        (Code.RESOURCE_EXHAUSTED, Kind.EXHAUSTED),
        (Code.PERMISSION_DENIED, Kind.DENIED),
        (Code.UNAVAILABLE, Kind.UNAVAILABLE),
        (Code.INTERNAL, Kind.INTERNAL),
        (Code.DATA_LOSS, Kind.INTERNAL),
    ],
)
def test_codes_are_kinds_and_the_driver_s_sentence_is_told(serve: Serve, code: Code, kind: Kind) -> None:
    driver, client = serve()
    driver.failures = [(code, "the tape\nis   torn")]
    with pytest.raises(WherryError) as error:
        client.create(Wish("x", 1), "volume data")
    assert error.value.kind is kind
    assert error.value.message == "volume data: test.example says: the tape is torn"
    client.close()


def test_a_driver_that_is_not_there(tmp_path: Path) -> None:
    client = Client(str(tmp_path / "none.sock"), "unix:///none.sock")
    with pytest.raises(WherryError) as error:
        client.delete("vol-1", "volume data")
    assert error.value.kind is Kind.UNAVAILABLE
    assert "does not answer" in error.value.message
    assert error.value.hint
    client.close()


def test_a_busy_volume_is_waited_for(serve: Serve) -> None:
    driver, client = serve()
    driver.failures = [(Code.ABORTED, "busy"), (Code.ABORTED, "busy")]
    assert client.create(Wish("x", 7), "volume x").id == "vol-1"
    assert len(driver.asked("CreateVolume")) == 3
    client.close()


def test_a_driver_on_demand_that_was_leaving_is_started_again(tmp_path: Path) -> None:
    """The channel is up when the driver goes: the next call finds it gone, starts it and is made again, once."""
    driver, socket = Driver(*FULL), str(tmp_path / "csi.sock")
    running = [listen(driver, socket)]
    started: list[int] = []

    def ensure() -> None:
        started.append(1)
        if len(started) > 1:
            running.append(listen(driver, socket))

    client = Client(socket, "own", ensure)
    client.create(Wish("x", 1), "volume x")
    running.pop().stop(0).wait()
    assert client.create(Wish("y", 1), "volume y").id == "vol-1"
    assert len(started) == 2
    driver.failures = [(Code.CANCELLED, "")]  # what a server says that ends with calls not begun
    running.pop().stop(0).wait()
    assert client.create(Wish("z", 1), "volume z").id == "vol-1"
    client.close()
    for server in running:
        server.stop(0).wait()


def test_what_it_can_is_asked_once(serve: Serve) -> None:
    driver, client = serve()
    for _ in range(3):
        client.create(Wish("x", 1), "volume x")
        client.delete("vol-1", "volume x")
    for name in ("GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetInfo"):
        assert len(driver.asked(name)) == 1
    client.close()


def test_a_volume_s_whole_way(serve: Serve, tmp_path: Path) -> None:
    driver, client = serve()
    made = client.create(Wish("x", 5, fs="xfs", parameters={"p": "q"}, mutable={"readBps": "1"}), "volume x")
    assert made == Handle("vol-1", 5, "mount", "xfs", "SINGLE_NODE_MULTI_WRITER", {"k": "v"})
    (request,) = driver.asked("CreateVolume")
    assert request.accessibility_requirements.requisite[0].segments == {"node": "here"}
    assert (dict(request.parameters), dict(request.mutable_parameters)) == ({"p": "q"}, {"readBps": "1"})
    staging, target = tmp_path / "v/staging", tmp_path / "v/c1"
    client.attach(made, str(staging), str(target), readonly=True, about="volume x")
    assert stat.S_ISDIR(staging.stat().st_mode)
    assert not target.exists()  # it is the driver's to make
    order = [name for name, _ in driver.calls if "lish" in name or "tage" in name]
    assert order == ["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"]
    (publish,) = driver.asked("NodePublishVolume")
    assert (publish.readonly, dict(publish.publish_context)) == (True, {"device": "7"})
    assert publish.volume_capability.mount.fs_type == "xfs"
    target.mkdir()  # one that the driver leaves goes
    driver.calls.clear()
    client.unpublish("vol-1", str(target), "volume x")
    client.release("vol-1", str(staging), "volume x")
    assert [name for name, _ in driver.calls] == [
        "NodeUnpublishVolume", "NodeUnstageVolume", "ControllerUnpublishVolume",
    ]  # fmt: skip
    assert os.listdir(tmp_path / "v") == []
    client.close()


def test_a_volume_that_the_driver_forgot_is_not_in_use(serve: Serve, tmp_path: Path) -> None:
    driver, client = serve()
    driver.failures = [(Code.NOT_FOUND, "who?"), (Code.NOT_FOUND, "who?")]
    client.unpublish("vol-1", str(tmp_path / "t"), "volume x")
    client.release("vol-1", str(tmp_path / "s"), "volume x")
    client.close()


def test_a_driver_of_little(serve: Serve, tmp_path: Path) -> None:
    """What it does not announce is not called, and is refused with a sentence where it is needed."""
    driver, client = serve((("CREATE_DELETE_VOLUME",), ()))
    made = client.create(Wish("x"), "volume x")
    assert made.mode == "SINGLE_NODE_WRITER"
    assert not driver.asked("CreateVolume")[0].HasField("capacity_range")
    client.attach(made, str(tmp_path / "s"), str(tmp_path / "v/c"), readonly=False, about="volume x")
    assert [name for name, _ in driver.calls if name.startswith("NodeS")] == []
    assert driver.asked("NodePublishVolume")[0].staging_target_path == ""
    assert client.usage(made, "", str(tmp_path), "volume x").total > 0  # statvfs
    refused: tuple[Callable[[], object], ...] = (
        lambda: client.create(Wish("y", source=("volume", "vol-1")), "volume y"),
        lambda: client.create(Wish("y", source=("snapshot", "s")), "volume y"),
        lambda: client.create(Wish("y", mutable={"readBps": "1"}), "volume y"),
        lambda: client.snapshot("vol-1", "s", "volume x"),
        lambda: client.expand(made, 9, "volume x"),
    )
    for call in refused:
        with pytest.raises(WherryError) as error:
            call()
        assert error.value.kind is Kind.UNSUPPORTED
        assert error.value.hint
    client.close()


def test_the_warm_process_is_without_it() -> None:
    """Every command of a warm process is a fork of it."""
    program = "import sys; from wherry.warm import server; server._preload(); from wherry.warm import rehearsal"
    program += "; print(sorted({'grpc', 'google.protobuf', 'csi_spec', 'wherry.volume.csi'} & set(sys.modules)))"
    program += "; print('wherry.engine.served' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue\n"


def test_pages(serve: Serve) -> None:
    _, client = serve()
    assert client.volumes("all") == ["vol-0", "vol-1", "vol-2", "vol-3"]
    client.close()
