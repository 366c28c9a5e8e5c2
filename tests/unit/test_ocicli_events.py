"""`events`: Go's durations, and cgroup files in the names of runc's statistics."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.errors import WherryError
from wherry.ocicli import events

MAX = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("100ms", 0.1), ("1m30s", 90), ("1.5h", 5400), (".5s", 0.5), ("2us", 2e-6), ("2µs", 2e-6)],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert events.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "", "s", "5 s", "-5s", "0s", "5s5", "1d", "1e3s", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(WherryError, match="--interval"):
        events.duration(text)


FILES = {
    "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    "cpuset.cpus.effective": "0-1,4\n",
    "cpuset.mems.effective": "0\n",
    "memory.stat": "anon 5\nfile 6\nkernel 7\nsock 8\n",
    "memory.current": "100\n",
    "memory.max": "1000\n",
    "memory.peak": "200\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
    "memory.swap.current": "10\n",
    "memory.swap.max": "500\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.events": "max 4\n",
    "hugetlb.2MB.rsvd.current": "0\n",
}


@pytest.fixture
def group(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_statistics(group: Path) -> None:
    found = events.statistics(str(group))
    assert found["cpu"]["usage"] == {"total": 30000, "kernel": 10000, "user": 20000}
    assert found["cpu"]["throttling"] == {"periods": 4, "throttledPeriods": 3, "throttledTime": 2000}
    assert found["cpu"]["psi"]["some"] == {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 77}
    assert found["cpuset"] == {"cpus": [0, 1, 4], "mems": [0]}
    assert found["pids"] == {"current": 3, "limit": 0}
    assert found["hugetlb"] == {"2MB": {"usage": 2097152, "failcnt": 4}}
    assert found["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 1},
            {"major": 8, "minor": 0, "op": "Write", "value": 2},
        ],
        "ioServicedRecursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 3},
            {"major": 8, "minor": 0, "op": "Write", "value": 4},
        ],
    }


def test_swap_is_told_with_the_memory(group: Path) -> None:
    memory = events.statistics(str(group))["memory"]
    assert memory["usage"] == {"limit": 1000, "usage": 100, "max": 200, "failcnt": 9}
    assert memory["swap"] == {"limit": 1500, "usage": 110, "max": 0, "failcnt": 0}
    assert memory["raw"] == {"anon": 5, "file": 6, "kernel": 7, "sock": 8}
    assert (memory["cache"], memory["event_count"]["oom_kill"]) == (6, 1)
    for name in ("memory.max", "memory.swap.max"):
        (group / name).write_text("max\n")
    memory = events.statistics(str(group))["memory"]
    assert memory["usage"]["limit"] == memory["swap"]["limit"] == MAX


def test_a_cgroup_without_controllers_counts_nothing(tmp_path: Path) -> None:
    found = events.statistics(str(tmp_path))
    assert found["memory"]["usage"] == {"limit": 0, "usage": 0, "max": 0, "failcnt": 0}
    assert (found["pids"]["current"], found["blkio"], found["hugetlb"]) == (0, {}, {})
