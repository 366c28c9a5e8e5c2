"""kernel/cgroup.py on the real hierarchy: made, frozen, killed, measured, removed; nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

from wherry.errors import WherryError
from wherry.kernel import cgroup, facts
from wherry.oci.facts import HostFacts

pytestmark = pytest.mark.root


@pytest.fixture
def measured() -> HostFacts:
    found = facts.measure()
    if os.geteuid() or not found.cgroup_mount:
        pytest.skip("needs root and a cgroup v2 hierarchy")
    return found


@pytest.fixture
def group(measured: HostFacts) -> Iterator[str]:
    top = cgroup.locate(measured, f"wherry-test-cg-{uuid.uuid4().hex[:8]}")
    path = f"{top}/inner/leaf"
    cgroup.prepare(measured, path)
    os.mkdir(path)
    yield path
    cgroup.kill(top)
    assert cgroup.wait_empty(top, 5)
    cgroup.remove(top)
    assert not os.path.exists(top)


@pytest.fixture
def sleeper(group: str) -> Iterator[subprocess.Popen[bytes]]:
    script = f"echo 0 > {group}/cgroup.procs; sleep 1000 & wait"
    process = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 5
    while len(cgroup.processes(group)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_prepare_hands_down_what_there_is(measured: HostFacts, group: str) -> None:
    have = set(facts.read(f"{group}/cgroup.controllers").split())
    assert have == cgroup.prepare(measured, group)
    assert have <= set(measured.cgroup_available)


def test_freeze_and_thaw(group: str, sleeper: subprocess.Popen[bytes]) -> None:
    cgroup.freeze(group)
    assert cgroup.frozen(group)
    assert cgroup.events(group) == {"populated": 1, "frozen": 1}
    cgroup.thaw(group)
    assert not cgroup.frozen(group)
    assert cgroup.events(group)["frozen"] == 0


@pytest.mark.parametrize("way", ["at once", "one by one"])
def test_kill_takes_frozen_processes_too(group: str, sleeper: subprocess.Popen[bytes], way: str) -> None:
    cgroup.freeze(group)
    (cgroup.kill if way == "at once" else cgroup._kill_one_by_one)(group)
    assert sleeper.wait(5) == -signal.SIGKILL
    assert cgroup.wait_empty(group, 5)
    assert cgroup.processes(group) == []


def test_stats(group: str, sleeper: subprocess.Popen[bytes]) -> None:
    found = cgroup.stats(group)
    assert found.pids == 2
    assert found.memory > 0
    assert found.cpu_usec > 0
    assert set(found.estimated) == {"memory", "pids", "io"} - set(facts.read(f"{group}/cgroup.controllers").split())


def test_what_is_gone_is_no_error(group: str) -> None:
    gone = f"{group}/never"
    cgroup.kill(gone)
    cgroup.remove(gone)
    assert cgroup.wait_empty(gone, 0)
    assert cgroup.processes(gone) == []
    assert cgroup.stats(gone).pids == 0


def test_busy_is_said_with_its_processes(group: str, sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(WherryError, match="cannot remove the cgroup") as caught:
        cgroup.remove(group, timeout=0.05)
    assert str(sleeper.pid) in caught.value.hint


def test_limits_are_read_back(group: str) -> None:
    if "hugetlb" not in facts.read(f"{group}/cgroup.controllers").split():
        pytest.skip("no controller here to set a limit of")
    writes = [("hugetlb.2MB.max", str(5 << 20))]
    cgroup.update(group, writes)
    assert cgroup.mismatches(group, writes) == []  # rounded down to 4 MiB by the kernel
    assert cgroup.mismatches(group, [("hugetlb.2MB.max", "0")]) == [("hugetlb.2MB.max", "0", str(4 << 20))]
    with pytest.raises(WherryError, match="cannot set hugetlb"):
        cgroup.update(group, [("hugetlb.2MB.max", "0"), ("hugetlb.2MB.max", "wrong")])
    assert cgroup.limits(group, ("hugetlb.2MB.max", "no.such")) == {"hugetlb.2MB.max": str(4 << 20)}


def test_paths_stay_inside(measured: HostFacts) -> None:
    with pytest.raises(WherryError):
        cgroup.locate(measured, "a/../../b")
    with pytest.raises(WherryError):
        cgroup.prepare(measured, "/elsewhere/x")
    with pytest.raises(WherryError, match="no cgroup v2"):
        cgroup.locate(HostFacts(cgroup_mount=""), "x")
