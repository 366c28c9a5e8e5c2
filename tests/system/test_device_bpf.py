"""The kernel's verifier takes our device programs, and the kernel then does what the rules say."""

from __future__ import annotations

import errno
import os
import random
import uuid
from collections.abc import Iterator

import pytest

from wherry.kernel import cgroup, facts, shim
from wherry.model import Json
from wherry.oci import bpf, defaults

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[str]:
    if os.geteuid():
        pytest.skip("needs root")
    measured = facts.measure()
    if not measured.cgroup_mount:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    path = cgroup.locate(measured, f"wherry-test-bpf-{uuid.uuid4().hex[:8]}")
    os.mkdir(path)
    yield path
    cgroup.kill(path)
    cgroup.wait_empty(path, 5)
    cgroup.remove(path)


def attach(path: str, rules: list[Json]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shim.attach_device_program(fd, bpf.program(rules))
    finally:
        os.close(fd)


def inside(path: str, device: str, flags: int) -> int:
    """errno of opening `device` by a process in the cgroup; 0: opened."""
    pid = os.fork()
    if not pid:
        code = 255
        try:
            with open(f"{path}/cgroup.procs", "w") as procs:
                procs.write("0")
            try:
                os.close(os.open(device, flags))
                code = 0
            except OSError as error:
                code = error.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_docker_rules(group: str) -> None:
    attach(group, defaults.device_rules())
    assert inside(group, "/dev/null", os.O_RDWR) == 0
    assert inside(group, "/dev/urandom", os.O_RDONLY) == 0
    assert inside(group, "/dev/kmsg", os.O_RDONLY) == 1
    assert inside(group, "/dev/mem", os.O_RDONLY) in (1, 2)


def test_read_only_device(group: str) -> None:
    attach(group, [{"allow": False}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}])
    assert inside(group, "/dev/null", os.O_RDONLY) == 0
    assert inside(group, "/dev/null", os.O_WRONLY) == 1
    assert inside(group, "/dev/null", os.O_RDWR) == 1
    assert inside(group, "/dev/zero", os.O_RDONLY) == 1


def test_no_rules_deny_everything(group: str) -> None:
    attach(group, [])
    assert inside(group, "/dev/null", os.O_RDONLY) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_verifier_takes_any_rules(group: str, seed: int) -> None:
    """Random lists, deny-all and allow-all in every place: no dead code, no uninitialised register."""
    dice = random.Random(seed)
    rules = [
        {
            "allow": dice.random() < 0.5,
            "type": dice.choice(["a", "b", "c"]),
            "major": dice.choice([-1, 1, 4095, 2**32 - 1]),
            "minor": dice.choice([-1, 0, 3, 2**20 - 1]),
            "access": dice.choice(["", "r", "w", "m", "rw", "rwm"]),
        }
        for _ in range(dice.randrange(30))
    ]
    attach(group, rules)


def test_new_rules_take_the_place_of_the_old_ones(group: str) -> None:
    """Side by side both would have to agree, and nothing could be granted later."""
    attach(group, [{"allow": False}])
    assert inside(group, "/dev/null", os.O_RDWR) == errno.EPERM
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shim.attach_device_program(fd, bpf.program([{"allow": False}, {"allow": True, "type": "c"}]), replace=True)
        assert inside(group, "/dev/null", os.O_RDWR) == 0
        shim.attach_device_program(fd, bpf.program([{"allow": False}]), replace=True)
    finally:
        os.close(fd)
    assert inside(group, "/dev/null", os.O_RDWR) == errno.EPERM
