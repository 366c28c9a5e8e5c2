"""What `update` is asked, and how it comes together with what was asked before."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.errors import WherryError
from wherry.model import Json
from wherry.oci import cgroup2, spec
from wherry.ocicli import flags, update
from wherry.ocicli.verbs import VERBS

_FLAGS = next(verb.flags for verb in VERBS if verb.name == "update")


def asked(*argv: str) -> Json:
    return update.asked(flags.read(_FLAGS, argv)[0])


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ((), {}),
        (("--memory", "64m", "--memory-swap=-1"), {"memory": {"limit": 64 << 20, "swap": -1}}),
        (("--memory", "1.5GiB"), {"memory": {"limit": 3 << 29}}),
        (("--memory", "4096"), {"memory": {"limit": 4096}}),
        (("--memory-reservation", "10 kb"), {"memory": {"reservation": 10240}}),
        (("--cpu-quota", "-1", "--cpu-period", "50000"), {"cpu": {"quota": -1, "period": 50000}}),
        (("--cpu-idle", "0", "--cpuset-cpus", "0-1"), {"cpu": {"idle": 0, "cpus": "0-1"}}),
        (("--pids-limit", "-1"), {"pids": {"limit": -1}}),
        (("--blkio-weight", "500"), {"blockIO": {"weight": 500}}),
        (("--kernel-memory", "1m"), {"memory": {"kernel": 1 << 20}}),
        (("--cpu-rt-period", "9"), {"cpu": {"realtimePeriod": 9}}),
    ],
)
def test_flags_are_fields(argv: tuple[str, ...], found: Json) -> None:
    assert asked(*argv) == found
    spec.validate_resources(found)


@pytest.mark.parametrize("text", ["", "-2", "1x", "1.2.3", "m", "0x10", "٣", "1 0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    if not text:
        assert asked("--memory", text) == {}
        return
    with pytest.raises(WherryError, match="--memory"):
        asked("--memory", text)


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        ({}, {"memory": {"limit": 1}}, {"memory": {"limit": 1}}),
        ({"cpu": {"quota": 5, "period": 9}}, {"cpu": {"quota": 7}}, {"cpu": {"quota": 7, "period": 9}}),
        ({"cpu": {"shares": 5}}, {"cpu": {"shares": 0, "cpus": "", "quota": None}}, {"cpu": {"shares": 5}}),
        ({"cpu": {"idle": 1, "burst": 4}}, {"cpu": {"idle": 0, "burst": 0}}, {"cpu": {"idle": 0, "burst": 0}}),
        ({"pids": {"limit": 5}}, {"pids": {"limit": 0}}, {"pids": {"limit": 5}}),
        ({"pids": {"limit": 5}}, {"pids": None}, {"pids": {"limit": 5}}),
        ({"memory": {"limit": 5, "swap": 9}}, {"memory": {"limit": -1}}, {"memory": {"limit": -1, "swap": -1}}),
        ({"devices": [{"allow": True}]}, {"devices": [{"allow": False}]}, {"devices": [{"allow": False}]}),
        ({"unified": {"a.b": "1"}}, {"unified": {"c.d": "2"}}, {"unified": {"a.b": "1", "c.d": "2"}}),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}]},
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 3}]},
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 3}, {"pageSize": "1GB", "limit": 2}]},
        ),
    ],
)
def test_what_is_not_given_stays(before: Json, new: Json, after: Json) -> None:
    kept: Any = {key: dict(value) if isinstance(value, dict) else list(value) for key, value in before.items()}
    assert update.merged(before, new) == after
    assert before == kept


def test_swap_follows_what_memory_is_now() -> None:
    """v2 counts swap alone: with another memory limit the same sum is another number."""
    after = update.merged({"memory": {"limit": 10, "swap": 30}}, {"memory": {"limit": 20}})
    assert cgroup2.writes(after) == [("memory.max", "20"), ("memory.swap.max", "10")]
