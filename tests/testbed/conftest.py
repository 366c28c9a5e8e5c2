"""Tests that need a host with pure cgroup v2: they run inside the guest of scripts/testbed, started by
tests/system/test_testbed.py, and skip anywhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.wherry import Wherry

CGROUPS = Path("/sys/fs/cgroup")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("WHERRY_TESTBED"):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="runs in the testbed's guest only: scripts/test testbed"))


class Group:
    """The cgroup of one running container, as the host sees it."""

    def __init__(self, wherry: Wherry, ref: str) -> None:
        own = Path(f"/proc/{wherry.pid(ref)}/cgroup").read_text().strip()
        self.path = CGROUPS / own.removeprefix("0::/")

    def __getitem__(self, name: str) -> str:
        return (self.path / name).read_text().strip()

    def pairs(self, name: str) -> dict[str, int]:
        """A flat keyed file: cpu.stat, cgroup.events."""
        return {key: int(value) for key, value in (line.split() for line in self[name].splitlines())}


@pytest.fixture
def group(wherry: Wherry):  # type: ignore[no-untyped-def]
    """`group(ref)`: the cgroup of a container of this test."""
    return lambda ref: Group(wherry, ref)
