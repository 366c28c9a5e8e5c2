"""`wherry-oci update` and `events` where every controller is: what was asked is what the kernel holds, and tells."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ocibundle import Box, boxed
from helpers.wherry import until
from wherry.container import systemd
from wherry.model import Json

MIB = 1 << 20


@pytest.fixture
def box(test_id: str, tmp_path: Path) -> Iterator[Box]:
    with boxed(test_id, tmp_path) as made:
        yield made


def kept(box: Box) -> Json:
    """The resources that the runtime remembers."""
    found: Json = json.loads((box.root / "c" / "config.json").read_text())["linux"]["resources"]
    return found


def held(box: Box, *names: str) -> list[str]:
    """Files of the container's cgroup."""
    return [(box.cgroup() / name).read_text().strip() for name in names]


def given(box: Box, resources: Json) -> Path:
    file = box.place / "resources.json"
    file.write_text(json.dumps(resources))
    return file


def test_flags_set_limits(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}, "pids": {"limit": 20}}
    box.started()
    box("update", "--memory", "128m", "--memory-swap", "192m", "--memory-reservation", "32m", "--cpu-quota", "25000",
        "--cpu-period", "50000", "--cpu-share", "512", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "30",
        "c")  # fmt: skip
    assert held(box, "memory.max", "memory.low", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "pids.max") == [
        str(128 * MIB), str(32 * MIB), "25000 50000", "59", "0", "0", "30",
    ]  # fmt: skip
    if (box.cgroup() / "memory.swap.max").exists():
        assert held(box, "memory.swap.max") == [str(64 * MIB)]
    assert kept(box)["memory"] == {"limit": 128 * MIB, "swap": 192 * MIB, "reservation": 32 * MIB}
    assert "degraded" not in box.state()


def test_a_file_of_resources_changes_what_it_names(box: Box) -> None:
    """As containerd and docker send it: zeros and nulls are what they do not mean."""
    box.linux["resources"] = {"cpu": {"quota": 20000, "period": 40000, "shares": 2048}, "pids": {"limit": 20}}
    box.started()
    before = held(box, "cpu.weight")
    sent = {"memory": {"limit": 96 * MIB}, "cpu": {"quota": 30000, "shares": 0, "cpus": ""}, "pids": {"limit": 0},
            "blockIO": None}  # fmt: skip
    box("update", "--resources", given(box, sent), "c")
    assert held(box, "cpu.max", "cpu.weight", "pids.max", "memory.max") == ["30000 40000", *before, "20", str(96 * MIB)]


def test_limits_are_lifted(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 * MIB, "swap": 96 * MIB}, "cpu": {"quota": 20000, "period": 40000},
                              "pids": {"limit": 20}}  # fmt: skip
    box.started()
    box("update", "--memory", "-1", "--cpu-quota", "-1", "--pids-limit", "-1", "c")
    assert held(box, "memory.max", "cpu.max", "pids.max") == ["max", "max 40000", "max"]
    if (box.cgroup() / "memory.swap.max").exists():
        assert held(box, "memory.swap.max") == ["max"]


def test_a_burst_goes_with_its_quota(box: Box) -> None:
    """The kernel refuses a quota below the burst: down the burst goes first, up the quota does."""
    box.linux["resources"] = {"cpu": {"quota": 50000, "period": 100000, "burst": 40000}}
    box.started()
    box("update", "-r", given(box, {"cpu": {"quota": 20000, "burst": 10000}}), "c")
    assert held(box, "cpu.max", "cpu.max.burst") == ["20000 100000", "10000"]
    box("update", "--cpu-quota", "90000", "--cpu-burst", "80000", "c")
    assert held(box, "cpu.max", "cpu.max.burst") == ["90000 100000", "80000"]
    box("update", "--cpu-burst", "0", "c")
    assert held(box, "cpu.max.burst") == ["0"]


def test_idle_and_back(box: Box) -> None:
    box.linux["resources"] = {"cpu": {"shares": 512}}
    box.started()
    box("update", "--cpu-idle", "1", "c")
    assert held(box, "cpu.idle") == ["1"]
    box("update", "--cpu-idle", "0", "c")
    assert held(box, "cpu.idle", "cpu.weight") == ["0", "59"]


def test_a_refused_value_takes_the_others_back(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 20}}
    box.started()
    files = ("memory.max", "cpu.max", "pids.max", "cpuset.cpus")
    before, config = held(box, *files), kept(box)
    assert "cpuset.cpus" in box.refused("update", "--cpu-quota", "20000", "--cpuset-cpus", "77", "c")
    assert "pids.max" in box.refused(
        "update", "-r", given(box, {"memory": {"limit": 32 * MIB}, "unified": {"pids.max": "many"}}), "c"
    )
    assert held(box, *files) == before
    assert kept(box) == config


def test_a_limit_below_what_is_used_can_be_refused(box: Box) -> None:
    box.started("head -c 20000000 /dev/zero >/dev/shm/x; echo up; sleep 1000").waits_for("up\n")
    text = box.refused("update", "-r", given(box, {"memory": {"limit": 4 * MIB, "checkBeforeUpdate": True}}), "c")
    assert "linux.resources.memory.limit: 4194304 is below" in text
    assert held(box, "memory.max") == ["max"]


def test_events_tell_of_the_oom_killer(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 24 * MIB, "swap": 24 * MIB}}
    fifo = box.rootfs / "tmp" / "go"
    subprocess.run(["mkfifo", fifo], check=True)
    done = box.started("read line </tmp/go; tail /dev/zero; echo over; sleep 1000")
    with box.popen("events", "--interval", "100ms", "c") as running:
        assert running.stdout
        first = json.loads(running.stdout.readline())
        assert first["data"]["memory"]["usage"]["limit"] == 24 * MIB
        assert first["data"]["memory"]["usage"]["usage"] > 0
        fifo.write_text("go\n")
        done.waits_for("over\n")
        box("kill", "c", "KILL")
        rows = [json.loads(line) for line in running.stdout]
        assert running.wait(10) == 0
    assert [row for row in rows if row["type"] == "oom"] == [{"type": "oom", "id": "c"}]
    last = [row for row in rows if row["type"] == "stats"][-1]["data"]["memory"]
    assert last["event_count"]["oom_kill"] in (0, 1)


def test_stats_have_pressure_and_limits(box: Box) -> None:
    box.linux["resources"] = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 20}}
    box.started()
    until(lambda: (box.cgroup() / "memory.current").read_text().strip() != "0")
    data = json.loads(box("events", "--stats", "c").out)["data"]
    assert data["pids"] == {"current": 1, "limit": 20}
    assert data["memory"]["raw"]["anon"] > 0
    assert data["cpuset"]["cpus"]
    for part in ("cpu", "memory", "blkio"):
        assert set(data[part]["psi"]) <= {"some", "full"}
        assert data[part]["psi"]["some"]["total"] >= 0


@pytest.mark.skipif(not systemd.available(), reason="no systemd in this boot")
def test_the_unit_learns_of_it(box: Box) -> None:
    """A daemon-reload writes what systemd knows: the new limits and device rules, not those of the start."""
    unit = f"wherry-{box.id}.scope"
    box.linux.update({"cgroupsPath": f"system.slice:wherry:{box.id}", "resources": {"pids": {"limit": 20}}})
    options = ("--systemd-cgroup",)
    box._script("mknod /tmp/none c 10 254; sleep 1000")
    box.write()
    box("run", "-d", "--bundle", box.bundle, "c", options=options)
    try:
        allowed = {"allow": True, "type": "c", "major": 10, "minor": 254, "access": "r"}
        rules = [{"allow": False, "access": "rwm"}, allowed]
        resources = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 33}, "devices": rules}
        box("update", "-r", given(box, resources), "c", options=options)
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        group = Path(f"/sys/fs/cgroup/system.slice/{unit}")
        assert (group / "memory.max").read_text() == f"{64 * MIB}\n"
        assert (group / "pids.max").read_text() == "33\n"
        assert "No such device" in box.exec("sh", "-c", "exec 3</tmp/none").err
        said = subprocess.check_output(["systemctl", "show", unit, "-pTasksMax", "-pMemoryMax"], text=True)
        assert sorted(said.split()) == [f"MemoryMax={64 * MIB}", "TasksMax=33"]
    finally:
        box("delete", "--force", "c", options=options)
