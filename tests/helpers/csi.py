"""A CSI driver of a test's own on a socket of its own, and a client with short verbs.

Decides where a test's driver lives (socket, log, staging and target paths: one directory) and what "nothing left" means
for a pool. Refuses to know how the driver works: it is a program with flags, a socket, and a `check`.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_spec import csi_pb2 as pb
from csi_spec.services import SERVICES, Stub

__all__ = [
    "HOME",
    "MIB",
    "Client",
    "Driver",
    "answer_of",
    "capability",
    "clone_of",
    "code_of",
    "eventually",
    "grows_online",
    "loops",
    "mounts_below",
    "processes_of",
    "refused",
    "residue",
    "restore_of",
    "writable",
]  # fmt: skip

MIB = 1 << 20
HOME = ".wherry-csi"  # what is the driver's in a pool
_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_FITHAW = 0xC0045878  # linux/fs.h
# without it a new channel shares the old one's back-off after the driver was killed
_CHANNEL = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


def eventually(true: Callable[[], Any], seconds: float = 10, what: str = "") -> Any:
    """Wait for it; its last value."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what or true}"
        time.sleep(0.02)
    return value


def capability(*, block: bool = False, fs: str = "", mode: str = "SINGLE_NODE_MULTI_WRITER",
               flags: Sequence[str] = (), group: str = "") -> pb.VolumeCapability:  # fmt: skip
    """A VolumeCapability: mounted unless `block`."""
    made = pb.VolumeCapability(access_mode={"mode": pb.VolumeCapability.AccessMode.Mode.Value(mode)})
    if block:
        made.block.SetInParent()
    else:
        made.mount.CopyFrom(pb.VolumeCapability.MountVolume(fs_type=fs, mount_flags=flags, volume_mount_group=group))
    return made


def clone_of(volume: str) -> pb.VolumeContentSource:
    """A volume as the source of another."""
    return pb.VolumeContentSource(volume={"volume_id": volume})


def restore_of(snapshot: str) -> pb.VolumeContentSource:
    """A snapshot as the source of a volume."""
    return pb.VolumeContentSource(snapshot={"snapshot_id": snapshot})


def code_of(error: grpc.RpcError) -> str:
    """The name of its status: NOT_FOUND, …"""
    return str(error.code().name)


def answer_of(call: Callable[[], Any]) -> tuple[str, str]:
    """The status of a call by name, and its sentence; OK has none, and every other must have one."""
    try:
        call()
    except grpc.RpcError as error:
        sentence(error.details())
        return code_of(error), error.details()
    return "OK", ""


def sentence(said: str) -> None:
    """It is a person's: it says what failed, on what, and what to do."""
    assert len(said.split()) > 2, f"not a sentence: {said!r}"
    for word in ("Traceback", "Exception", "object at 0x", "calling application"):
        assert word not in said, f"a program's words, not a person's: {said!r}"


@contextmanager
def refused(*codes: str) -> Iterator[pytest.ExceptionInfo[grpc.RpcError]]:
    """The call within answers one of these codes, with a sentence and no details (the spec's error scheme)."""
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    error = caught.value
    assert code_of(error) in codes, f"{code_of(error)}: {error.details()}"
    sentence(error.details())
    assert all(key.startswith(("grpc-message", "content-")) for key, _ in error.trailing_metadata() or ())


class Client:
    """The calls of a CO on one node; staging paths and targets are below `place`, by volume id."""

    def __init__(self, address: str, place: Path, seconds: float = 60) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}", options=_CHANNEL)
        self.stubs = {name: Stub(self._channel, name) for name in SERVICES}
        self.place, self.seconds = place, seconds

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, seconds: float = 0) -> Any:
        """One call by its name, whichever service it is of."""
        for stub in self.stubs.values():
            if method in vars(stub):
                return getattr(stub, method)(request, timeout=seconds or self.seconds)
        raise AssertionError(f"the spec has no {method}")

    def create(self, name: str, size: int = 64 * MIB, *, limit: int = 0, source: pb.VolumeContentSource | None = None,
               parameters: Mapping[str, str] = {}, mutable: Mapping[str, str] = {}, topology: Any = None,
               caps: Sequence[pb.VolumeCapability] = (), **cap: Any) -> pb.Volume:  # fmt: skip
        """CreateVolume of `size` bytes (0: not said)."""
        request = pb.CreateVolumeRequest(
            name=name, volume_capabilities=caps or [capability(**cap)], parameters=parameters,
            mutable_parameters=mutable, volume_content_source=source, accessibility_requirements=topology,
        )  # fmt: skip
        if size or limit:
            request.capacity_range.CopyFrom(pb.CapacityRange(required_bytes=size, limit_bytes=limit))
        return self.call("CreateVolume", request).volume

    def delete(self, volume: str) -> None:
        self.call("DeleteVolume", pb.DeleteVolumeRequest(volume_id=volume))

    def snapshot(self, volume: str, name: str, parameters: Mapping[str, str] = {}) -> pb.Snapshot:
        request = pb.CreateSnapshotRequest(source_volume_id=volume, name=name, parameters=parameters)
        return self.call("CreateSnapshot", request).snapshot

    def unsnapshot(self, snapshot: str) -> None:
        self.call("DeleteSnapshot", pb.DeleteSnapshotRequest(snapshot_id=snapshot))

    def group(self, name: str, volumes: Sequence[str]) -> pb.VolumeGroupSnapshot:
        request = pb.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volumes)
        return self.call("CreateVolumeGroupSnapshot", request).group_snapshot

    def ungroup(self, group: str, snapshots: Sequence[str] = ()) -> None:
        request = pb.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group, snapshot_ids=snapshots)
        self.call("DeleteVolumeGroupSnapshot", request)

    def expand(self, volume: str, size: int, limit: int = 0) -> pb.ControllerExpandVolumeResponse:
        request = pb.ControllerExpandVolumeRequest(volume_id=volume)
        request.capacity_range.CopyFrom(pb.CapacityRange(required_bytes=size, limit_bytes=limit))
        return self.call("ControllerExpandVolume", request)

    def node_expand(self, volume: str, path: Path, size: int = 0) -> pb.NodeExpandVolumeResponse:
        request = pb.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(path),
                                             staging_target_path=str(self.staging(volume)))  # fmt: skip
        if size:
            request.capacity_range.required_bytes = size
        return self.call("NodeExpandVolume", request)

    def modify(self, volume: str, **limits: str) -> None:
        request = pb.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=limits)
        self.call("ControllerModifyVolume", request)

    def get(self, volume: str) -> pb.ControllerGetVolumeResponse:
        return self.call("ControllerGetVolume", pb.ControllerGetVolumeRequest(volume_id=volume))

    def stats(self, volume: str, path: Path) -> pb.NodeGetVolumeStatsResponse:
        request = pb.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(path),
                                               staging_target_path=str(self.staging(volume)))  # fmt: skip
        return self.call("NodeGetVolumeStats", request)

    def capacity(self, parameters: Mapping[str, str] = {}, caps: Sequence[pb.VolumeCapability] = (),
                 topology: Mapping[str, str] | None = None) -> pb.GetCapacityResponse:  # fmt: skip
        request = pb.GetCapacityRequest(parameters=parameters, volume_capabilities=caps)
        if topology is not None:
            request.accessible_topology.segments.update(topology)
        return self.call("GetCapacity", request)

    def pages(self, method: str, entries: int = 0, **more: Any) -> Iterator[list[Any]]:
        """The pages of ListVolumes or ListSnapshots."""
        token = ""
        while True:
            kind = getattr(pb, f"{method}Request")
            answer = self.call(method, kind(max_entries=entries, starting_token=token, **more))
            yield list(answer.entries)
            if not (token := answer.next_token):
                return

    def volumes(self, entries: int = 0) -> dict[str, pb.Volume]:
        """All of them by id."""
        listed = [entry.volume for page in self.pages("ListVolumes", entries) for entry in page]
        found = {volume.volume_id: volume for volume in listed}
        assert len(found) == len(listed), "a volume is listed twice"
        return found

    def snapshots(self, entries: int = 0, **more: str) -> dict[str, pb.Snapshot]:
        listed = [entry.snapshot for page in self.pages("ListSnapshots", entries, **more) for entry in page]
        found = {snapshot.snapshot_id: snapshot for snapshot in listed}
        assert len(found) == len(listed), "a snapshot is listed twice"
        return found

    def staging(self, volume: str) -> Path:
        return self.place / "staging" / volume

    def target(self, volume: str, name: str = "pod") -> Path:
        return self.place / "pods" / volume / name

    def stage(self, volume: str, path: Path | None = None, **cap: Any) -> Path:
        """NodeStageVolume at its own path, which is made as a CO makes it."""
        path = path or self.staging(volume)
        path.mkdir(parents=True, exist_ok=True)
        request = pb.NodeStageVolumeRequest(volume_id=volume, staging_target_path=str(path),
                                            volume_capability=capability(**cap))  # fmt: skip
        self.call("NodeStageVolume", request)
        return path

    def unstage(self, volume: str, path: Path | None = None) -> None:
        request = pb.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=str(path or self.staging(volume)))
        self.call("NodeUnstageVolume", request)

    def publish(self, volume: str, name: str = "pod", *, path: Path | None = None, readonly: bool = False,
                context: Mapping[str, str] = {}, **cap: Any) -> Path:  # fmt: skip
        """NodePublishVolume at a target by a name; its parent is made as a CO makes it."""
        path = path or self.target(volume, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        request = pb.NodePublishVolumeRequest(
            volume_id=volume, staging_target_path=str(self.staging(volume)), target_path=str(path),
            volume_capability=capability(**cap), readonly=readonly, volume_context=context,
        )  # fmt: skip
        self.call("NodePublishVolume", request)
        return path

    def unpublish(self, volume: str, name: str = "pod", path: Path | None = None) -> None:
        path = path or self.target(volume, name)
        self.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(path)))
        assert not os.path.lexists(path), f"NodeUnpublishVolume left {path}"

    def use(self, volume: str, name: str = "pod", **more: Any) -> Path:
        """Stage and publish; the target."""
        self.stage(volume, **{key: value for key, value in more.items() if key not in ("readonly", "context")})
        return self.publish(volume, name, **more)

    def leave(self, volume: str) -> None:
        """Unpublish it wherever it may be published, and unstage it."""
        pods = self.place / "pods" / volume
        for path in sorted(pods.iterdir()) if pods.is_dir() else ():
            self.unpublish(volume, path.name)
        if self.staging(volume).is_dir():
            self.unstage(volume)
            self.staging(volume).rmdir()
        if pods.is_dir():
            pods.rmdir()

    def sweep(self, keep: Sequence[str] = ()) -> None:
        """Leave and delete every volume, snapshot and group, but for those of these ids."""
        groups: dict[str, list[str]] = {}
        for ident, one in self.snapshots().items():
            groups.setdefault(one.group_snapshot_id, []).append(ident)
        for group in sorted(set(groups) - {"", *keep}):
            self.ungroup(group, groups[group])
        for snapshot in sorted(set(self.snapshots()) - set(keep)):
            self.unsnapshot(snapshot)
        for volume in sorted(set(self.volumes()) - set(keep)):
            self.leave(volume)
            self.delete(volume)


class Driver:
    """`wherry-csi` as a process: `driver.start()` gives a client; stop, kill and start it as often as you like."""

    def __init__(self, place: Path, pools: Mapping[str, Path], *words: str, node: str = "node-1") -> None:
        self.place, self.socket, self.log = place, place / "csi.sock", place / "csi.log"
        self._pools = [word for name, path in pools.items() for word in ("--pool", f"{name}={path}")]
        self._config = list(words[words.index("--config") :][:2]) if "--config" in words else []
        self._words = ["--endpoint", f"unix://{self.socket}", "--node-id", node, *words]
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, seconds: float = 20) -> Client:
        """Start it, and wait until it accepts connections."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "wherry_csi", "serve", *self._words, *self._pools],
                                             stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # fmt: skip
        eventually(self._accepts, seconds, f"{self.socket} accepts")
        return self.client()

    def client(self, seconds: float = 60) -> Client:
        """One more client of the running driver."""
        made = Client(str(self.socket), self.place, seconds)
        self._clients.append(made)
        return made

    def _accepts(self) -> bool:
        assert self.running, f"the driver has ended:\n{self.tail()}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def _ended(self) -> int:
        while self._clients:
            self._clients.pop().close()
        process, self._process = self._process, None
        return process.wait(30) if process else 0

    def kill(self) -> None:
        """kill -9, or bury what was killed."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        self._ended()

    def stop(self) -> None:
        """SIGTERM: it ends with 0."""
        os.kill(self.pid, signal.SIGTERM)
        assert (status := self._ended()) == 0, f"exit {status}:\n{self.tail()}"

    def check(self) -> list[str]:
        """What `wherry-csi check` complains of, one sentence a line; none where its exit status is 0."""
        words = [sys.executable, "-m", "wherry_csi", "check", *self._config, *self._pools]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, 1), f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        assert not done.returncode or said, "exit 1 without a sentence"
        return said if done.returncode else []


def residue(pool: Path) -> list[str]:
    """What the driver keeps in a pool beside its own few files: empty when everything was deleted."""
    home, found = pool / HOME, []
    for directory, names, files in os.walk(home):
        at = os.path.relpath(directory, home)
        if at == ".":
            found += [name for name in files if name not in ("pool.json", "lock")]
        else:
            found += [f"{at}/{name}" for name in [*names, *files]]
    return found


def mounts_below(place: Path) -> list[str]:
    """Targets of all mounts below a directory (mountinfo)."""
    with open("/proc/self/mountinfo", encoding="utf-8", newline="\n") as file:
        targets = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in file]
    return [target for target in targets if target.startswith(f"{place}/")]


def grows_online(fs: str) -> bool:
    """Whether a mounted file system can be grown here: ext4 asks for CAP_SYS_RESOURCE, which a container may lack."""
    with open("/proc/self/status", encoding="ascii") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return fs == "xfs" or bool(held >> 24 & 1)


def loops(pool: Path) -> list[str]:
    """Loop devices whose file is on this pool's file system, also where it was deleted or its mount is out of sight; of
    a file system that was shut down, which answers no stat(2), those whose file had a path below the pool."""
    here, found = None, []
    with suppress(OSError):
        here = os.stat(pool).st_dev
    for name in sorted(name for name in os.listdir("/sys/block") if name.startswith("loop")):
        with suppress(OSError):
            path = Path(f"/sys/block/{name}/loop/backing_file").read_text(encoding="utf-8", errors="replace")
            if path.startswith(f"{pool}/") or (here is not None and _file_system_of(name) == here):
                found.append(name)
    return found


def _file_system_of(name: str) -> int:
    """st_dev of what a loop device's file lies on."""
    fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(232))
    finally:
        os.close(fd)
    # the kernel's huge_encode_dev: minor's low byte, major, the rest of the minor
    number = int.from_bytes(status[:8], "little")
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def processes_of(place: Path) -> list[str]:
    """Command lines that name the test's directory, but for our own."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read().replace(b"\0", b" ").decode(errors="replace")
            if f"{place}/" in line:
                found.append(f"{pid} {line}")
    return found


def writable(directory: Path, seconds: float = 10) -> None:
    """A file can be written and synced here in time; what was left frozen is thawed, and told."""
    script = f"echo x > '{directory}/.thawed' && sync '{directory}/.thawed' && rm '{directory}/.thawed'"
    process = subprocess.Popen(["sh", "-c", script])
    try:
        assert process.wait(seconds) == 0, f"nothing can be written to {directory}"
    except subprocess.TimeoutExpired:
        fd = os.open(directory, os.O_RDONLY)
        with suppress(OSError):
            fcntl.ioctl(fd, _FITHAW, 0)
        os.close(fd)
        process.wait(10)
        pytest.fail(f"{directory} was left frozen")
