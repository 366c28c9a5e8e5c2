"""io limits of volumes, where cgroup v2 has io: written for the pod that publishes, felt by who writes, taken out."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.csi import MIB, Client, Driver, refused

CGROUPS = Path("/sys/fs/cgroup")
RATE = 4 * MIB  # bytes a second
UID = "0b7c3e52-96a4-4c1d-8f5e-2a6d1c9b7e30"
#: the pod's cgroup by the kubelet's driver (kubelet's pkg/kubelet/cm: podContainerManagerImpl, cgroup names)
LAYOUTS = {
    "cgroupfs": "kubepods/burstable/pod{uid}",
    "systemd": "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice",
    "cgroupfs, guaranteed": "kubepods/pod{uid}",
    "systemd, guaranteed": "kubepods.slice/kubepods-pod{flat}.slice",
}


def context(uid: str = UID) -> dict[str, str]:
    """What kubelet adds with podInfoOnMount."""
    return {"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/pod.name": "web",
            "csi.storage.k8s.io/pod.namespace": "default", "csi.storage.k8s.io/ephemeral": "false"}  # fmt: skip


def use(client: Client, volume: str) -> Path:
    """Stage and publish it where kubelet does, for the pod."""
    client.stage(volume)
    return client.publish(volume, path=kubelets(client, volume), context=context())


def kubelets(client: Client, volume: str) -> Path:
    """The target that kubelet gives, pod and all: NodeUnpublishVolume has nothing but that."""
    return client.place / "kubelet" / "pods" / UID / "volumes" / "kubernetes.io~csi" / volume / "mount"


def leave(client: Client, volume: str) -> None:
    client.unpublish(volume, path=kubelets(client, volume))
    client.leave(volume)


class Pod:
    """A pod's cgroup with one container in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []  # what others have made, systemd perhaps, stays theirs
        if "io" not in (CGROUPS / "cgroup.controllers").read_text().split():
            pytest.skip("cgroup v2 has no io here")
        parent = CGROUPS
        for part in (path / "container").relative_to(CGROUPS).parts:
            (parent / "cgroup.subtree_control").write_text("+io")
            parent /= part
            if not parent.is_dir():
                parent.mkdir()
                self._made.append(parent)

    @property
    def limits(self) -> dict[str, str]:
        """io.max by device."""
        lines = (self.path / "io.max").read_text().splitlines()
        return {device: rest for device, _, rest in (line.partition(" ") for line in lines)}

    def write(self, directory: Path, megabytes: int, *flags: str) -> float:
        """Seconds that a process of the container takes for it."""
        words = ["dd", "if=/dev/zero", f"of={directory}/data", "bs=1M", f"count={megabytes}", "conv=fsync", *flags]
        script = 'echo $$ > "$0/container/cgroup.procs" && exec "$@"'
        start = time.monotonic()
        subprocess.run(["sh", "-c", script, str(self.path), *words], check=True, capture_output=True)
        return time.monotonic() - start

    def remove(self) -> None:
        for path in reversed(self._made):
            path.rmdir()


@pytest.fixture(params=LAYOUTS)
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    made = Pod(CGROUPS / LAYOUTS[request.param].format(uid=UID, flat=UID.replace("-", "_")))
    yield made
    made.remove()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    (tmp_path / "pool").mkdir()
    driver = Driver(tmp_path, {"one": tmp_path / "pool"})
    client = driver.start()
    yield client
    client.sweep()
    driver.stop()


def device(target: Path) -> str:
    """major:minor of the file system that is mounted there."""
    number = os.stat(target).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def test_a_writer_is_slowed_to_the_limit(client: Client, pod: Pod) -> None:
    """Limited, changed while it is published, and free again; what the pod has by others is left alone."""
    volume = client.create("slow", parameters={"backend": "image"}, mutable={"writeBps": str(RATE)}).volume_id
    target = use(client, volume)
    assert pod.limits == {device(target): f"rbps=max wbps={RATE} riops=max wiops=max"}
    took = pod.write(target, 8, "oflag=direct")
    assert 8 * MIB / took < RATE * 1.3, f"{8 / took:.1f} MiB/s"  # throttling lets the first slice of 100 ms through

    client.modify(volume, writeBps=str(4 * RATE), readIops="100")
    assert pod.limits == {device(target): f"rbps=max wbps={4 * RATE} riops=100 wiops=max"}
    quicker = pod.write(target, 8, "oflag=direct")
    assert quicker < took / 2, f"{took:.2f} s, then {quicker:.2f} s"

    client.modify(volume, writeBps="max", readIops="0")
    assert not pod.limits
    leave(client, volume)


def test_it_holds_for_what_is_written_back_too(client: Client, pod: Pod) -> None:
    """Pages that a process of the pod made dirty are written on its account."""
    volume = client.create("buffered", parameters={"backend": "image"}, mutable={"writeBps": str(RATE)}).volume_id
    target = use(client, volume)
    took = pod.write(target, 8)
    assert 8 * MIB / took < RATE * 1.5, f"{8 / took:.1f} MiB/s"
    leave(client, volume)


def test_unpublish_takes_it_out(client: Client, pod: Pod) -> None:
    """And nothing else: another volume of the pod keeps its own."""
    first, second = (
        client.create(name, parameters={"backend": "image"}, mutable={"writeIops": number}).volume_id
        for name, number in (("first", "111"), ("second", "222"))
    )
    gone, kept = (device(use(client, volume)) for volume in (first, second))
    assert {gone, kept} == set(pod.limits)
    leave(client, first)
    assert set(pod.limits) == {kept}
    leave(client, second)
    assert not pod.limits


def test_a_driver_that_was_killed_takes_it_out_too(tmp_path: Path, pod: Pod) -> None:
    """No state is kept of it on the node."""
    (tmp_path / "pool").mkdir()
    driver = Driver(tmp_path, {"one": tmp_path / "pool"})
    client = driver.start()
    volume = client.create("slow", parameters={"backend": "image"}, mutable={"writeBps": str(RATE)}).volume_id
    use(client, volume)
    driver.kill()
    client = driver.start()
    assert pod.limits
    leave(client, volume)
    assert not pod.limits
    client.sweep()
    driver.stop()


def test_a_limit_is_kept_or_refused(client: Client, pod: Pod) -> None:
    """A pod whose cgroup is not there (yet: kubelet tries again) gets no volume that should be limited; who names no
    pod, as an orchestrator without pods does, limits it himself."""
    volume = client.create("elsewhere", parameters={"backend": "image"}, mutable={"writeBps": str(RATE)}).volume_id
    client.stage(volume)
    with refused("FAILED_PRECONDITION"):
        client.publish(volume, "unknown", context=context("ffffffff-0000-0000-0000-000000000000"))
    client.publish(volume, "no-pod")
    assert not pod.limits
    client.leave(volume)
