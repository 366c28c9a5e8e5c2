"""The cgroup of a pod on a host that has every controller: a plain boot with cgroupfs, under systemd with slices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.pods import MAPS, Pods
from helpers.wherry import Wherry, until
from wherry.container import systemd
from wherry.model import Json

MIB = 1 << 20
DRIVER = "systemd" if systemd.available() else "cgroupfs"
LIMITS: Json = {"memory": {"limit": 64 * MIB}, "cpu": {"quota": 20000, "period": 100000}, "pids": {"limit": 50}}


@pytest.fixture
def pods(wherry: Wherry, tmp_path: Path) -> Iterator[Pods]:
    made = Pods(wherry, tmp_path)
    wherry.config.write_text(wherry.config.read_text().replace('driver = "cgroupfs"', f'driver = "{DRIVER}"'))
    made.engine = made.open()
    yield made
    made.remove_all()
    assert made.leftovers() == []


def limits(cgroup: str) -> dict[str, str]:
    return {name: Path(f"{cgroup}/{name}").read_text().strip() for name in ("memory.max", "cpu.max", "pids.max")}


@pytest.mark.parametrize("pid", ["container", "pod"])
def test_a_pod_without_a_parent_gets_a_cgroup_with_its_limits(pods: Pods, pid: str) -> None:
    pod = pods.run(network="host", pid=pid, resources=LIMITS, overhead={"memory": {"limit": MIB}})
    held = pods.held(pod)
    assert bool(held.slice) == (DRIVER == "systemd")
    assert limits(held.cgroup) == {"memory.max": str(65 * MIB), "cpu.max": "20000 100000", "pids.max": "50"}
    pods.engine.update_pod(pod, {"memory": {"limit": 128 * MIB}}, {})
    assert limits(held.cgroup) == {"memory.max": str(129 * MIB), "cpu.max": "20000 100000", "pids.max": "50"}
    if held.pause:
        own = Path(f"/proc/{held.pause.pid}/cgroup").read_text().strip().removeprefix("0::")
        assert f"/sys/fs/cgroup{own}".startswith(f"{held.cgroup}/wherry-pause-{pod}")
    pods.engine.remove_pod(pod)
    until(lambda: not os.path.exists(held.cgroup), 5)


def test_a_parent_that_nobody_has_made(pods: Pods) -> None:
    name = f"{pods.wherry.id}kube"
    parent = f"{name}-podx.slice" if DRIVER == "systemd" else f"/{name}/podx"
    pod = pods.run(network="host", pid="pod", cgroup_parent=parent, resources=LIMITS, uids=MAPS, gids=MAPS)
    held = pods.held(pod)
    assert held.cgroup == f"/sys/fs/cgroup/{name}{'.slice' if held.slice else ''}/{held.slice or 'podx'}"
    assert limits(held.cgroup)["memory.max"] == "max", "a parent's limits are its owner's"
    assert pods.engine.pod(pod).ready
    pods.engine.remove_pod(pod)
    if held.slice:
        systemd.stop_slice(f"{name}.slice")
    until(lambda: not os.path.exists(os.path.dirname(held.cgroup) if not held.slice else held.cgroup), 5)
