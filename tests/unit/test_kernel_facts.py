"""Host facts: texts of /proc to values, and the cache of a boot."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from wherry.kernel import cgroup, facts
from wherry.model import Place

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /nowhere/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
"""


def test_hybrid_host_names_the_holders() -> None:
    found = facts.cgroup_facts(HYBRID, "4:memory:/x\n0::/user/me\n")
    assert found["cgroup_mount"] == "/nowhere/uni fied"
    assert found["cgroup_own"] == "/user/me"
    assert found["cgroup_holders"] == {
        "memory": "/sys/fs/cgroup/memory",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "io": "/sys/fs/cgroup/blkio",
    }
    assert found["cgroup_v1"]["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("mountinfo", "expected"),
    [
        ("", ("", "/")),
        ("1 1 0:1 / /x rw - cgroup2 c rw\n2 1 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n", ("/sys/fs/cgroup", "/")),
        ("1 1 0:1 /a/b /x rw master:3 shared:4 - cgroup2 c rw\n", ("/x", "/a/b")),
    ],
)
def test_the_mount_is_found(mountinfo: str, expected: tuple[str, str]) -> None:
    assert facts.v2_mount(mountinfo) == expected


def test_own_cgroup_below_a_bound_subtree() -> None:
    found = facts.cgroup_facts("1 1 0:1 /a/b /nowhere rw - cgroup2 c rw\n", "0::/a/b/c\n")
    assert found["cgroup_own"] == "/c"


def test_this_process() -> None:
    found = facts.measure(Place(state="/nonexistent"))
    assert found.kernel >= (5, 15)
    assert found.rlimits["RLIMIT_NOFILE"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert len(found.rlimits) == 16
    assert found.euid == os.geteuid()
    assert found.has_cap("CAP_SYS_ADMIN") == bool(found.cap_effective >> 21 & 1)


def test_cached_for_one_boot(tmp_path: Path) -> None:
    place = Place(state=str(tmp_path))
    first = facts.measure(place)
    cache = tmp_path / "facts.json"
    stored = json.loads(cache.read_text())
    stored["facts"]["newuidmap"] = "/from/the/cache"
    cache.write_text(json.dumps(stored))
    assert facts.measure(place).newuidmap == "/from/the/cache"
    stored["facts"]["boot_id"] = "another boot"
    cache.write_text(json.dumps(stored))
    assert facts.measure(place) == first
    assert json.loads(cache.read_text())["facts"]["boot_id"] == first.boot_id


@pytest.mark.parametrize("junk", ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "facts": []}'])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, junk: str) -> None:
    (tmp_path / "facts.json").write_text(junk)
    assert facts.measure(Place(state=str(tmp_path))) == facts.measure(Place(state="/nonexistent"))


@pytest.mark.parametrize(
    ("file", "wanted", "found", "agrees"),
    [
        ("memory.max", "4097", "4096", True),
        ("memory.max", "4096", "8192", False),
        ("memory.max", "max", "max", True),
        ("pids.max", "5", "4", False),
        ("hugetlb.2MB.max", "3000000", "2097152", True),
        ("cpu.max", "max 100000", "max 100000", True),
        ("cpuset.cpus", "0,1,2", "0-2", True),
        ("cpuset.cpus", "0-1", "0-2", False),
        ("io.max", "8:0 rbps=5", "8:0 rbps=5 wbps=max riops=max wiops=max", True),
        ("io.max", "8:0 rbps=5", "8:1 rbps=5", False),
        ("io.max", "8:0 rbps=max", "", True),
        ("io.weight", "default 50", "default 50\n8:0 20", True),
    ],
)
def test_reading_back(file: str, wanted: str, found: str, agrees: bool) -> None:
    assert cgroup._agrees(file, wanted, found) == agrees
