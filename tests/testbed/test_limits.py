"""Limits, proven on a host that has every controller of cgroup v2: what was asked is what the kernel holds."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from helpers.wherry import Wherry, until

MIB = 1 << 20


@pytest.fixture
def sleeper(wherry: Wherry, busybox: str):  # type: ignore[no-untyped-def]
    """`sleeper("-m", "64m")`: a detached container with these flags; its name."""
    count = iter(range(100))

    def start(*flags: str, command: str = "trap exit TERM; sleep 1000 & wait") -> str:
        name = wherry.name(f"s{next(count)}")
        wherry("run", "-d", "--network", "none", "--name", name, *flags, busybox, "sh", "-c", command)
        return name

    return start


def test_the_host_has_pure_cgroup_v2(wherry: Wherry) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    assert " - cgroup2 " in mounts
    assert " - cgroup " not in mounts
    assert {"cpu", "cpuset", "memory", "pids", "io"} <= set(
        Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    )


def test_run_prints_and_returns_its_exit_code(wherry: Wherry, busybox: str) -> None:
    assert wherry.out("run", "--rm", busybox, "echo", "from the guest") == "from the guest"
    assert wherry("run", "--rm", "--network", "none", busybox, "sh", "-c", "exit 7", check=False).returncode == 7


def test_memory_limit_is_set(sleeper, group) -> None:  # type: ignore[no-untyped-def]
    held = group(sleeper("-m", "64m", "--memory-swap", "64m", "--memory-reservation", "32m"))
    assert int(held["memory.max"]) == 64 * MIB
    assert int(held["memory.low"]) == 32 * MIB
    if (held.path / "memory.swap.max").exists():
        assert held["memory.swap.max"] == "0"


@pytest.mark.parametrize(("flag", "expected"), [("192m", str(128 * MIB)), ("-1", "max"), (None, str(64 * MIB))])
def test_memory_swap_is_what_exceeds_the_memory(sleeper, group, flag: str | None, expected: str) -> None:  # type: ignore[no-untyped-def]
    """docker's --memory-swap is memory plus swap; unset it is twice the memory."""
    held = group(sleeper("-m", "64m", *(["--memory-swap", flag] if flag else [])))
    if not (held.path / "memory.swap.max").exists():
        pytest.skip("this kernel has no swap accounting")
    assert held["memory.swap.max"] == expected


def test_oom_kill_is_reported(wherry: Wherry, busybox: str) -> None:
    name = wherry.name("oom")
    flags = ("-m", "24m", "--memory-swap", "24m", "--network", "none", "--name", name)
    done = wherry("run", *flags, busybox, "tail", "/dev/zero", check=False)
    state = wherry.inspect(name)["State"]
    assert done.returncode == 137
    assert state["OOMKilled"] is True
    assert state["ExitCode"] == 137


def test_an_exit_without_oom_is_not_reported_as_one(wherry: Wherry, busybox: str) -> None:
    name = wherry.name("no-oom")
    wherry("run", "-m", "64m", "--network", "none", "--name", name, busybox, "sh", "-c", "kill -9 $$", check=False)
    assert wherry.inspect(name)["State"]["OOMKilled"] is False


def test_pids_limit_holds(wherry: Wherry, busybox: str, group) -> None:  # type: ignore[no-untyped-def]
    name = wherry.name("pids")
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 100 & done; wait"
    wherry(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        name,
        "--pids-limit",
        "8",
        busybox,
        "sh",
        "-c",
        f"({script}); sleep 100",
    )
    held = group(name)
    assert held["pids.max"] == "8"
    until(lambda: held.pairs("pids.events").get("max", 0) > 0, message="the limit was never hit")
    assert int(held["pids.current"]) <= 8


def test_pids_are_limited_by_default(sleeper, group) -> None:  # type: ignore[no-untyped-def]
    assert group(sleeper())["pids.max"] == "2048"
    assert group(sleeper("--pids-limit", "-1"))["pids.max"] == "max"


def test_cpu_quota_is_set_and_felt(sleeper, group) -> None:  # type: ignore[no-untyped-def]
    held = group(sleeper("--cpus", "0.25", command="while :; do :; done"))
    assert held["cpu.max"] == "25000 100000"
    time.sleep(0.5)
    before, start = held.pairs("cpu.stat")["usage_usec"], time.monotonic()
    time.sleep(3)
    used = (held.pairs("cpu.stat")["usage_usec"] - before) / 1e6 / (time.monotonic() - start)
    assert used < 0.4


def test_cpu_shares_become_a_weight(sleeper, group) -> None:  # type: ignore[no-untyped-def]
    low, high = (int(group(sleeper("--cpu-shares", shares))["cpu.weight"]) for shares in ("256", "4096"))
    assert 1 <= low < 100 < high


def test_cpuset(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    name = sleeper("--cpuset-cpus", "0", "--cpuset-mems", "0")
    held = group(name)
    assert held["cpuset.cpus"] == held["cpuset.cpus.effective"] == "0"
    assert held["cpuset.mems"] == "0"
    assert wherry.out("exec", name, "nproc") == "1"


def test_a_cpu_that_is_not_there_is_one_clear_error(wherry: Wherry, busybox: str) -> None:
    done = wherry("run", "--rm", "--network", "none", "--cpuset-cpus", "77", busybox, "true", check=False)
    assert done.returncode == 125
    assert "cpuset" in done.stderr
    assert "Traceback" not in done.stderr
    assert not wherry.containers()


def test_update_of_a_running_container(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    name = sleeper("-m", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "30")
    held = group(name)
    wherry(
        "update",
        "-m",
        "128m",
        "--memory-swap",
        "128m",
        "--cpus",
        "1.5",
        "--pids-limit",
        "60",
        "--cpuset-cpus",
        "1",
        name,
    )
    assert int(held["memory.max"]) == 128 * MIB
    assert held["cpu.max"] == "150000 100000"
    assert held["pids.max"] == "60"
    assert held["cpuset.cpus"] == "1"
    assert wherry.inspect(name)["HostConfig"]["Memory"] == 128 * MIB


def test_update_survives_a_restart(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    name = sleeper("--pids-limit", "30")
    wherry("update", "--pids-limit", "70", name)
    wherry("restart", "-t", "1", name)
    assert group(name)["pids.max"] == "70"


def test_pause_freezes_and_unpause_thaws(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    name = sleeper(command="while :; do :; done")
    held = group(name)
    wherry("pause", name)
    assert held.pairs("cgroup.events")["frozen"] == 1
    before = held.pairs("cpu.stat")["usage_usec"]
    time.sleep(0.5)
    assert held.pairs("cpu.stat")["usage_usec"] - before < 5000
    assert wherry.inspect(name)["State"]["Status"] == "paused"
    wherry("unpause", name)
    assert held.pairs("cgroup.events")["frozen"] == 0
    assert wherry.inspect(name)["State"]["Status"] == "running"


def test_a_paused_container_can_be_removed(wherry: Wherry, sleeper) -> None:  # type: ignore[no-untyped-def]
    name = sleeper()
    wherry("pause", name)
    wherry("rm", "-f", name)
    assert not wherry.containers()


def test_devices_are_denied_by_default(wherry: Wherry, busybox: str) -> None:
    """mknod is allowed (docker's rule `c *:* m`), the open is what the eBPF program refuses."""
    script = "mknod /tmp/kmsg c 1 11 && ! cat /tmp/kmsg 2>/tmp/err; cat /tmp/err; head -c 1 /dev/zero | wc -c"
    out = wherry.out("run", "--rm", "--network", "none", busybox, "sh", "-c", script)
    assert "not permitted" in out
    assert out.splitlines()[-1].strip() == "1"


def test_a_device_is_allowed_with_its_rights_only(wherry: Wherry, busybox: str) -> None:
    run = ("run", "--rm", "--network", "none", "--device", "/dev/kmsg:/dev/kmsg:r", busybox, "sh", "-c")
    assert wherry(*run, "exec 3</dev/kmsg").returncode == 0
    denied = wherry(*run, "exec 3>/dev/kmsg", check=False)
    assert denied.returncode != 0
    assert "not permitted" in denied.stderr


def test_privileged_may_open_any_device(wherry: Wherry, busybox: str) -> None:
    wherry(
        "run", "--rm", "--network", "none", "--privileged", busybox, "sh", "-c", "mknod /tmp/k c 1 11; exec 3</tmp/k"
    )


def test_pressure_is_there(sleeper, group) -> None:  # type: ignore[no-untyped-def]
    held = group(sleeper("-m", "64m"))
    for name in ("cpu.pressure", "memory.pressure", "io.pressure"):
        assert re.match(r"some avg10=\d", held[name]), name


def test_stats_shows_the_limit_and_the_use(wherry: Wherry, sleeper) -> None:  # type: ignore[no-untyped-def]
    name = sleeper("-m", "64m", "--pids-limit", "40")
    row = json.loads(wherry.out("stats", "--no-stream", "--format", "json", name))
    row = row[0] if isinstance(row, list) else row
    assert "64MiB" in row["MemUsage"].replace(" ", "")
    assert int(row["PIDs"]) >= 1


def test_the_container_sees_only_its_own_cgroup_read_only(wherry: Wherry, busybox: str) -> None:
    script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max; echo 1 >/sys/fs/cgroup/memory.max || echo refused"
    out = wherry.out("run", "--rm", "--network", "none", "-m", "64m", busybox, "sh", "-c", script).splitlines()
    assert out == ["0::/", str(64 * MIB), "refused"]


def test_the_cgroup_is_gone_with_the_container(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    name = sleeper(command="for i in 1 2 3 4 5; do (trap '' TERM; sleep 1000) & done; wait")
    held = group(name)
    wherry("rm", "-f", name)
    until(lambda: not held.path.exists(), message=f"{held.path} is still there")


def test_cgroup_parent(wherry: Wherry, sleeper, group) -> None:  # type: ignore[no-untyped-def]
    held = group(sleeper("--cgroup-parent", f"{wherry.cgroup}/below", "-m", "64m"))
    assert f"{wherry.cgroup}/below/" in str(held.path)
    assert int(held["memory.max"]) == 64 * MIB


def test_doctor_misses_no_controller(wherry: Wherry) -> None:
    said = wherry("doctor", check=False)
    assert "Traceback" not in said.stderr
    assert not re.search(r"missing.*controller|controller.*missing", said.stdout)
