"""The systemd cgroup driver against a real systemd: what a unit was given is what systemd shows and the kernel holds,
and a daemon-reload takes nothing of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.bundles import Bundle, make_root
from helpers.wherry import until
from wherry.container import systemd
from wherry.container.systemd import Holder
from wherry.errors import Kind, WherryError
from wherry.kernel import cgroup, facts, process
from wherry.model import Json
from wherry.oci import bpf, cgroup2, defaults
from wherry.oci import systemd as words
from wherry.oci.systemd import Scope

pytestmark = pytest.mark.skipif(not systemd.available(), reason="no systemd in this boot")

RESOURCES: Json = {
    "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 512, "quota": 12500, "period": 50000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 20},
    "blockIO": {"weight": 500},
    "unified": {"memory.high": "60M", "cpu.max.burst": "1000"},
}
#: null and zero may be opened, kmsg may not
RULES = defaults.device_rules()


def show(unit: str, *names: str) -> dict[str, str]:
    command = ["systemctl", "show", unit, *(f"-p{name}" for name in names)]
    out = subprocess.check_output(command, text=True)
    return dict(line.split("=", 1) for line in out.splitlines())


def loaded(unit: str) -> bool:
    return show(unit, "LoadState")["LoadState"] == "loaded"


def reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.fixture
def scope(test_id: str) -> Iterator[Scope]:
    made = words.scope(f"wherry.slice:wherry:{test_id}", test_id)
    yield made
    systemd.stop(made)
    until(lambda: not loaded(made.unit), message=f"{made.unit} is still known to systemd")
    assert not os.path.exists(f"/sys/fs/cgroup/wherry.slice/{made.unit}")


def begin(scope: Scope, resources: Json = RESOURCES, rules: list[Json] | None = None) -> Holder:
    return systemd.start(scope, words.properties(cgroup2.writes(resources), rules), facts.measure())


def test_a_scope_is_made_and_holds_its_limits(scope: Scope) -> None:
    with begin(scope) as holder:
        assert holder.path == f"/sys/fs/cgroup/wherry.slice/{scope.unit}"
        found = show(scope.unit, "MemoryMax", "MemorySwapMax", "MemoryLow", "MemoryHigh", "CPUWeight",
                     "CPUQuotaPerSecUSec", "AllowedCPUs", "AllowedMemoryNodes", "IOWeight", "Delegate", "Slice")  # fmt: skip
        assert found == {
            "MemoryMax": str(64 << 20), "MemorySwapMax": str(32 << 20), "MemoryLow": str(32 << 20),
            "MemoryHigh": str(60 << 20), "CPUWeight": "59", "CPUQuotaPerSecUSec": "250ms", "AllowedCPUs": "0",
            "AllowedMemoryNodes": "0", "IOWeight": "4950", "Delegate": "yes", "Slice": "wherry.slice",
        }  # fmt: skip
        limits = [(file, value) for file, value in cgroup2.writes(RESOURCES) if file not in ("cpu.max.burst", "pids.max")]
        assert cgroup.mismatches(holder.path, [(f, str(60 << 20) if v == "60M" else v) for f, v in limits]) == []
