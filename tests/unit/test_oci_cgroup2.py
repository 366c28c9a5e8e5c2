"""linux.resources to cgroup v2 files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import WherryError
from wherry.model import Json
from wherry.oci import cgroup2


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        ({}, []),
        ({"memory": {"limit": 1 << 26}}, [("memory.max", "67108864")]),
        ({"memory": {"limit": -1}}, [("memory.max", "max"), ("memory.swap.max", "max")]),
        ({"memory": {"limit": 100, "swap": 150}}, [("memory.max", "100"), ("memory.swap.max", "50")]),
        ({"memory": {"limit": 100, "swap": 100}}, [("memory.max", "100"), ("memory.swap.max", "0")]),
        ({"memory": {"limit": 100, "swap": -1}}, [("memory.max", "100"), ("memory.swap.max", "max")]),
        ({"memory": {"reservation": 50}}, [("memory.low", "50")]),
        ({"cpu": {"shares": 1024}}, [("cpu.weight", "100")]),
        ({"cpu": {"quota": 50000, "period": 100000}}, [("cpu.max", "50000 100000")]),
        ({"cpu": {"quota": 50000}}, [("cpu.max", "50000 100000")]),
        ({"cpu": {"quota": -1, "period": 20000}}, [("cpu.max", "max 20000")]),
        ({"cpu": {"quota": 5000, "burst": 1000}}, [("cpu.max", "5000 100000"), ("cpu.max.burst", "1000")]),
        ({"cpu": {"idle": 1, "shares": 512}}, [("cpu.idle", "1")]),
        ({"cpu": {"idle": 0, "shares": 1024}}, [("cpu.idle", "0"), ("cpu.weight", "100")]),
        ({"cpu": {"cpus": "0-1", "mems": "0"}}, [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
        ({"pids": {"limit": 64}}, [("pids.max", "64")]),
        ({"pids": {"limit": -1}}, [("pids.max", "max")]),
        ({"pids": {"limit": 0}}, [("pids.max", "1")]),
        ({"pids": {}}, []),
        ({"blockIO": {"weight": 500}}, [("io.weight", "default 4950")]),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}, [("io.weight", "8:0 1")]),
        (
            {
                "blockIO": {
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}],
                }
            },
            [("io.max", "8:0 rbps=5"), ("io.max", "8:0 wiops=max")],
        ),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
            [("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
        ),
        ({"rdma": {"mlx5_0": {"hcaHandles": 3, "hcaObjects": 9}}}, [("rdma.max", "mlx5_0 hca_handle=3 hca_object=9")]),
        (
            {"unified": {"memory.high": "5", "io.max": "8:0 rbps=1\n8:16 rbps=2"}},
            [("memory.high", "5"), ("io.max", "8:0 rbps=1"), ("io.max", "8:16 rbps=2")],
        ),
    ],
)
def test_files(resources: Json, files: list[tuple[str, str]]) -> None:
    assert cgroup2.writes(resources) == files


def test_unified_has_the_last_word() -> None:
    found = cgroup2.writes({"unified": {"pids.max": "5"}, "pids": {"limit": 64}})
    assert found == [("pids.max", "64"), ("pids.max", "5")]


@pytest.mark.parametrize("memory", [{"swap": 5}, {"limit": -1, "swap": 5}, {"limit": 10, "swap": 5}])
def test_impossible_swap(memory: Json) -> None:
    with pytest.raises(WherryError, match=r"linux\.resources\.memory\.swap"):
        cgroup2.writes({"memory": memory})


@pytest.mark.parametrize("name", ["../x", "a/b.c", "nodot"])
def test_unified_is_a_file_name(name: str) -> None:
    with pytest.raises(WherryError, match="unified"):
        cgroup2.writes({"unified": {name: "1"}})


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262144, 10000)]
)
def test_weight_meets_its_points(shares: int, weight: int) -> None:
    assert cgroup2.weight(shares) == weight


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_weight_is_in_range_and_monotonic(a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert 1 <= cgroup2.weight(low) <= cgroup2.weight(high) <= 10000


@given(st.integers(10, 1000))
def test_io_weight_is_in_range(value: int) -> None:
    assert 1 <= cgroup2.io_weight(value) <= 10000


def test_missing_controllers() -> None:
    wanted = [("memory.max", "1"), ("cgroup.type", "x"), ("hugetlb.2MB.max", "0"), ("cpu.max", "max 1")]
    assert cgroup2.missing(wanted, ("hugetlb", "cpu")) == [("memory.max", "memory")]


def test_what_v2_cannot_say() -> None:
    resources = {"memory": {"swappiness": 5, "limit": 1}, "network": {"classID": 7}, "cpu": {"realtimePeriod": 0}}
    assert cgroup2.ignored(resources) == ["memory.swappiness", "network.classID"]


V1_FIELDS: dict[str, Json] = {
    "memory": {"kernel": 1, "kernelTCP": 1, "swappiness": 1, "disableOOMKiller": True},
    "cpu": {"realtimeRuntime": 1, "realtimePeriod": 1},
    "blockIO": {"leafWeight": 10, "weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]},
    "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
}


def test_each_field_of_v1_is_told_and_writes_nothing() -> None:
    found = cgroup2.ignored(V1_FIELDS)
    wanted = {f"{section}.{key}" for section, fields in V1_FIELDS.items() for key in fields if key != "weightDevice"}
    assert set(found) == {*wanted, "blockIO.weightDevice[0].leafWeight"}
    assert cgroup2.writes(V1_FIELDS) == []


def test_hierarchy_is_what_v2_has_anyway() -> None:
    assert cgroup2.writes({"memory": {"useHierarchy": True}}) == []
    assert cgroup2.ignored({"memory": {"useHierarchy": True}}) == []


def test_a_limit_below_the_usage_is_refused_where_asked() -> None:
    cgroup2.check_usage({"memory": {"limit": 5}}, 6)
    cgroup2.check_usage({"memory": {"limit": 6, "checkBeforeUpdate": True}}, 6)
    cgroup2.check_usage({"memory": {"limit": -1, "checkBeforeUpdate": True}}, 6)
    with pytest.raises(WherryError, match=r"linux\.resources\.memory\.limit: 5 is below the 6 bytes"):
        cgroup2.check_usage({"memory": {"limit": 5, "checkBeforeUpdate": True}}, 6)
