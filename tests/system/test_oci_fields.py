"""Fields of config.json, one by one: what the process sees from inside is what the field says."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.bundles import make_root
from helpers.tools import need
from wherry.container import launch
from wherry.errors import WherryError
from wherry.kernel import cgroup, facts
from wherry.kernel.process import Process
from wherry.model import Json
from wherry.oci import cgroup2, defaults
from wherry.oci.compile import LaunchHow, Target, compile_create, compile_exec
from wherry.oci.spec import validate, validate_process

pytestmark = pytest.mark.root


class Bundle:
    """A bundle whose config each test changes; every container of it ends with its command."""

    def __init__(self, path: Path, group: str) -> None:
        self.path, self.group, self.facts = path, group, facts.measure()
        make_root(path / "rootfs")
        self.config: Json = {
            "ociVersion": "1.3.0",
            "root": {"path": "rootfs"},
            "mounts": [mount for mount in defaults.mounts() if mount["type"] != "cgroup"],
            "process": {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": defaults.namespaces()},
        }

    @property
    def linux(self) -> Json:
        linux: Json = self.config["linux"]
        return linux

    @property
    def process(self) -> Json:
        process: Json = self.config["process"]
        return process

    def run(self, script: str, **more: Any) -> str:
        """What `script` prints, errors too."""
        self.process["args"] = ["sh", "-c", script]
        validate(self.config)
        how = LaunchHow(**{"id": "fields", "cgroup": self.group, "stdio": ("stdout", "stderr"), **more})
        plan = compile_create(self.config, str(self.path), self.facts, how)
        out, into = os.pipe2(os.O_CLOEXEC)
        with open(out, "rb") as reader:
            try:
                launch.start(str(self.path), plan, "launch", {"stdout": into, "stderr": into})
            finally:
                os.close(into)
            text = reader.read().decode()
        cgroup.wait_empty(self.group, 5)
        cgroup.remove(self.group)
        return text

    def refused(self, script: str = "true", **more: Any) -> str:
        with pytest.raises(WherryError) as caught:
            self.run(script, **more)
        assert not os.path.exists(self.group)
        return caught.value.message


@pytest.fixture
def bundle(tmp_path: Path, private_network: object) -> Iterator[Bundle]:
    measured = facts.measure()
    if os.geteuid() or not measured.cgroup_mount:
        pytest.skip("needs root and a cgroup v2 hierarchy")
    group = cgroup.locate(measured, f"wherry-test-fields-{uuid.uuid4().hex[:8]}")
    mounts_before = facts.read("/proc/self/mountinfo")
    made = Bundle(tmp_path / "b", group)
    yield made
    cgroup.kill(group)
    cgroup.wait_empty(group, 5)
    cgroup.remove(group)
    assert facts.read("/proc/self/mountinfo") == mounts_before


# ---- process.scheduler, ioPriority, execCPUAffinity; linux.memoryPolicy


@pytest.mark.parametrize(
    ("scheduler", "policy", "nice"),
    [
        ({"policy": "SCHED_OTHER", "nice": 7}, "0", 7),
        ({"policy": "SCHED_OTHER", "nice": -5}, "0", -5),
        ({"policy": "SCHED_BATCH", "nice": 3}, "3", 3),
        ({"policy": "SCHED_IDLE"}, "5", 0),
    ],
)
def test_scheduler_policy_and_nice(bundle: Bundle, scheduler: Json, policy: str, nice: int) -> None:
    """The last fields of /proc/self/stat (proc_pid_stat(5)): 19 nice, 41 policy."""
    bundle.process["scheduler"] = scheduler
    fields = bundle.run("cat /proc/self/stat").rpartition(")")[2].split()
    assert (fields[41 - 3], int(fields[19 - 3])) == (policy, nice)


@pytest.mark.parametrize(
    ("scheduler", "policy", "priority"),
    [
        ({"policy": "SCHED_FIFO", "priority": 7}, "1", "7"),
        ({"policy": "SCHED_RR", "priority": 9}, "2", "9"),
    ],
)
def test_real_time_priority_or_a_reason(bundle: Bundle, scheduler: Json, policy: str, priority: str) -> None:
    """40 is the real-time priority. A v1 cpu controller without real-time shares forbids it (sched-rt-group.rst)."""
    bundle.process["scheduler"] = scheduler
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        assert f"process.scheduler: {scheduler['policy']} priority {priority}" in bundle.refused()
        return
    fields = bundle.run("cat /proc/self/stat").rpartition(")")[2].split()
    assert (fields[41 - 3], fields[40 - 3]) == (policy, priority)


def test_deadline_scheduler_comes_with_its_times(bundle: Bundle) -> None:
    wanted = {"policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 30_000_000, "period": 30_000_000}
    bundle.process["scheduler"] = {**wanted, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    fields = bundle.run("read line < /proc/self/stat; echo $line").rpartition(")")[2].split()
    assert fields[41 - 3] == "6"


def test_scheduler_flags_reset_on_fork(bundle: Bundle) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": -5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    found = bundle.run("read line < /proc/self/stat; echo $line; cat /proc/self/stat; true").splitlines()
    assert [line.rpartition(")")[2].split()[19 - 3] for line in found] == ["-5", "0"]


def test_what_the_scheduler_does_not_know_is_refused_by_name(bundle: Bundle) -> None:
    """This needs a kernel without utilization clamping; one with it takes the flag."""
    bundle.process["scheduler"] = {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}
    if os.path.exists("/proc/sys/kernel/sched_util_clamp_min"):
        assert bundle.run("echo ran") == "ran\n"
    else:
        assert "process.scheduler: SCHED_OTHER SCHED_FLAG_UTIL_CLAMP_MIN" in bundle.refused()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"class": "IOPRIO_CLASS_RT", "priority": 2}, "realtime: prio 2"),
        ({"class": "IOPRIO_CLASS_BE", "priority": 6}, "best-effort: prio 6"),
        ({"class": "IOPRIO_CLASS_IDLE"}, "idle"),
    ],
)
def test_io_priority(bundle: Bundle, wanted: Json, told: str) -> None:
    bundle.process["ioPriority"] = wanted
    assert bundle.run("ionice").strip() == told


def test_scheduling_is_set_before_the_rights_go(bundle: Bundle) -> None:
    """A user without a capability has what only CAP_SYS_NICE may give."""
    bundle.process.update(
        user={"uid": 1000, "gid": 1000},
        noNewPrivileges=True,
        scheduler={"policy": "SCHED_OTHER", "nice": -3},
        ioPriority={"class": "IOPRIO_CLASS_RT", "priority": 1},
    )
    found = bundle.run("ionice; cut -d' ' -f19 /proc/self/stat; grep CapEff /proc/self/status").splitlines()
    assert found == ["realtime: prio 1", "-3", "CapEff:\t0000000000000000"]


def test_memory_policy(bundle: Bundle) -> None:
    """numa_maps(5) shows the policy of each mapping; one node is enough to see it."""
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    if not os.path.exists("/proc/self/numa_maps"):
        assert "linux.memoryPolicy: MPOL_BIND" in bundle.refused()
        return
    assert "bind=static:0" in bundle.run("cat /proc/self/numa_maps").split()


def test_a_memory_node_that_is_not_there_is_refused(bundle: Bundle) -> None:
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "1000"}
    assert "linux.memoryPolicy: MPOL_BIND 1000" in bundle.refused()


# ---- mounts


def mounted(text: str, point: str) -> list[str]:
    """The last line of mountinfo for a mount point, as words (proc_pid_mountinfo(5))."""
    return [line for line in text.splitlines() if line.split()[4] == point][-1].split()


def test_remount_changes_what_is_mounted(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    bundle.config["mounts"] += [
        {"destination": "/data", "source": str(tmp_path / "shared"), "options": ["rbind"]},
        {"destination": "/dev/shm", "options": ["remount", "size=1m", "nosymfollow"]},
        {"destination": "/data", "options": ["remount", "bind", "ro", "rnosuid"]},
    ]
    found = bundle.run("cat /proc/self/mountinfo; touch /data/x")
    *lines, refused = found.splitlines()
    assert "Read-only file system" in refused
    data, shm = mounted("\n".join(lines), "/data"), mounted("\n".join(lines), "/dev/shm")
    assert {"ro", "nosuid"} <= set(data[5].split(","))
    assert "ro" not in data[-1].split(","), "the superblock is the host's"
    assert "nosymfollow" in shm[5]
    assert "size=1024k" in shm[-1]


def test_remount_of_what_is_no_mount_is_refused(bundle: Bundle) -> None:
    bundle.config["mounts"].append({"destination": "/etc", "options": ["remount", "ro"]})
    assert "remount /etc: " in bundle.refused()


def test_a_relative_destination_is_below_the_root(bundle: Bundle) -> None:
    bundle.config["mounts"].append({"destination": "srv/x", "type": "tmpfs", "source": "tmpfs"})
    assert mounted(bundle.run("cat /proc/self/mountinfo"), "/srv/x")


@pytest.mark.parametrize(
    "word", ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "strictatime", "nosymfollow"]
)
def test_recursive_attributes_reach_the_whole_tree(bundle: Bundle, tmp_path: Path, word: str) -> None:
    """A tmpfs below the source has the attribute as well; one word of each pair of the spec's table."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    mount = {"destination": "/tree", "source": str(tmp_path / "tree"), "options": ["rbind", f"r{word}"]}
    bundle.config["mounts"].append(mount)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "relatime", "tmpfs", tmp_path / "tree" / "sub"], check=True)
    try:
        found = bundle.run("cat /proc/self/mountinfo")
    finally:
        subprocess.run(["umount", tmp_path / "tree" / "sub"], check=True)
    for point in ("/tree", "/tree/sub"):
        flags = mounted(found, point)[5].split(",")
        assert word in flags or (word == "strictatime" and not {"relatime", "noatime"} & set(flags))


@pytest.mark.parametrize(
    ("word", "sign"), [("shared", "shared:"), ("slave", ""), ("private", ""), ("unbindable", "unbindable")]
)
def test_rootfs_propagation(bundle: Bundle, word: str, sign: str) -> None:
    bundle.linux["rootfsPropagation"] = word
    optional = mounted(bundle.run("cat /proc/self/mountinfo"), "/")[6:]
    fields = optional[: optional.index("-")]
    assert any(field.startswith(sign) for field in fields) if sign else "shared" not in " ".join(fields)


# ---- linux.namespaces


@pytest.fixture
def pod() -> Iterator[dict[str, str]]:
    """Namespaces of another process, the user namespace with a map of its own."""
    need("unshare")
    holder = subprocess.Popen(["unshare", "--user", "--net", "--ipc", "--uts", "sleep", "100"])
    host = os.readlink("/proc/self/ns/uts")
    while os.readlink(f"/proc/{holder.pid}/ns/uts") == host:
        assert holder.poll() is None
    for name in ("gid_map", "uid_map"):
        Path(f"/proc/{holder.pid}/{name}").write_text("0 100000 65536\n")
    names = {"user": "user", "network": "net", "ipc": "ipc", "uts": "uts"}
    yield {kind: f"/proc/{holder.pid}/ns/{name}" for kind, name in names.items()}
    holder.kill()
    holder.wait()


@pytest.mark.parametrize("own_pid", [True, False])
def test_a_joined_user_namespace(bundle: Bundle, pod: dict[str, str], own_pid: bool) -> None:
    """As a pod's second container: everything of the pod joined, mount, cgroup and perhaps pid its own."""
    own = ["mount", "cgroup", *(["pid"] if own_pid else [])]
    joined = [{"type": kind, "path": path} for kind, path in pod.items()]
    bundle.linux["namespaces"] = [*({"type": kind} for kind in own), *joined]
    if not own_pid:  # a user namespace may make no proc of the host's pid namespace
        bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["type"] != "proc"]
        bundle.config["mounts"].append({"destination": "/proc", "source": "/proc", "options": ["rbind"]})
    for entry in [bundle.path / "rootfs", *(bundle.path / "rootfs").rglob("*")]:
        os.chown(entry, 100000, 100000, follow_symlinks=False)
    links = " ".join(path.replace(path.split("/")[2], "self") for path in pod.values())
    shared = [os.readlink(path) for path in pod.values()]
    found = bundle.run(
        f"echo $$; for at in {links}; do readlink $at; done; cat /proc/self/uid_map; id -u; touch /x && stat -c %u /x"
    )
    pid, *rest = found.splitlines()
    assert (pid == "1") is own_pid
    assert " ".join(rest).split() == [*shared, "0", "100000", "65536", "0", "0"]
    assert (bundle.path / "rootfs" / "x").stat().st_uid == 100000


def test_a_failure_after_the_second_clone_leaves_nothing(bundle: Bundle, pod: dict[str, str]) -> None:
    joined = [{"type": kind, "path": path} for kind, path in pod.items()]
    bundle.linux["namespaces"] = [{"type": "mount"}, {"type": "pid"}, *joined]
    bundle.process["cwd"] = "/proc/self/nothere"
    assert "chdir /proc/self/nothere" in bundle.refused() or "mkdir /proc/self/nothere" in bundle.refused()


# ---- linux, small things


def test_personality(bundle: Bundle) -> None:
    bundle.linux["personality"] = {"domain": "LINUX32"}
    assert bundle.run("uname -m").strip() == {"x86_64": "i686", "aarch64": "armv8l"}[bundle.facts.machine]


def test_default_devices_and_more(bundle: Bundle) -> None:
    bundle.linux["devices"] = [
        {"type": "c", "path": "/dev/net/tun", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 3, "gid": 5},
        {"type": "b", "path": "/dev/block", "major": 7, "minor": 0},
        {"type": "u", "path": "/srv/unbuffered", "major": 1, "minor": 3},
        {"type": "p", "path": "/dev/fifo", "fileMode": 0o620},
    ]
    names = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/net/tun /dev/block /srv/unbuffered"
    found = bundle.run(f"stat -c '%n %F %t:%T %a %u:%g' {names} /dev/fifo; readlink /dev/ptmx").splitlines()
    assert found[0] == "/dev/null character special file 1:3 666 0:0"
    assert found[6:] == [
        "/dev/net/tun character special file a:c8 600 3:5",
        "/dev/block block special file 7:0 666 0:0",
        "/srv/unbuffered character special file 1:3 666 0:0",
        "/dev/fifo fifo 0:0 620 0:0",
        "pts/ptmx",
    ]


def test_masked_and_readonly_paths(bundle: Bundle) -> None:
    bundle.linux.update(maskedPaths=["/proc/meminfo", "/root"], readonlyPaths=["/etc", "/nothere"])
    (bundle.path / "rootfs" / "root" / "secret").write_text("x")
    found = bundle.run("cat /proc/meminfo; ls -A /root; touch /etc/x; touch /tmp/x && echo ok").splitlines()
    assert found == ["touch: /etc/x: Read-only file system", "ok"]


def test_hugepage_limits_are_usage_and_reservations(bundle: Bundle) -> None:
    """The one controller that even a hybrid host has in v2."""
    if "hugetlb" not in bundle.facts.cgroup_available or not bundle.facts.hugepages:
        pytest.skip("no hugetlb controller")
    size = bundle.facts.hugepages[0]
    writes = tuple(cgroup2.writes({"hugepageLimits": [{"pageSize": size, "limit": 0}]}))
    assert [file for file, _ in writes] == [f"hugetlb.{size}.max", f"hugetlb.{size}.rsvd.max"]
    assert bundle.run("true", cgroup_writes=writes) == ""


# ---- linux.netDevices


def links(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)


@pytest.fixture
def link(bundle: Bundle) -> Iterator[str]:
    """A veth with permanent addresses and one that is not global, gone with its peer."""
    need("ip")
    name = f"wt{uuid.uuid4().hex[:8]}"
    links("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    links("address", "add", "192.0.2.7/28", "broadcast", "192.0.2.15", "dev", name)
    links("address", "add", "169.254.7.7/16", "scope", "link", "dev", name)
    links("address", "add", "2001:db8::7/64", "dev", name, "nodad")
    yield name
    subprocess.run(["ip", "link", "delete", f"{name}p"], check=False, stderr=subprocess.DEVNULL)
    assert name not in os.listdir("/sys/class/net")


def test_net_device_keeps_its_addresses_and_comes_up(bundle: Bundle, link: str) -> None:
    links("link", "set", link, "up")
    bundle.linux["netDevices"] = {link: {}}
    found = bundle.run(f"ip address show dev {link}; ls /sys/class/net")
    assert "inet 192.0.2.7/28 brd 192.0.2.15 scope global" in found
    assert "inet6 2001:db8::7/64 scope global" in found
    assert "169.254" not in found
    assert ",UP" in found


def test_net_device_under_another_name(bundle: Bundle, link: str) -> None:
    bundle.linux["netDevices"] = {link: {"name": "data0"}, f"{link}p": {"name": "eth%d"}}
    found = bundle.run("ip address show; ls /sys/class/net; true")
    assert found.splitlines()[-3:] == ["data0", "eth0", "lo"] or found.split()[-3:] == ["data0", "eth0", "lo"]
    assert "inet 192.0.2.7/28" in found


def test_net_device_that_is_not_there_is_named(bundle: Bundle) -> None:
    bundle.linux["netDevices"] = {"nosuchlink0": {}}
    assert "linux.netDevices: nosuchlink0" in bundle.refused()


def test_net_device_does_not_take_a_name_that_is_taken(bundle: Bundle, link: str) -> None:
    bundle.linux["netDevices"] = {link: {"name": "lo"}}
    assert f"linux.netDevices: {link} to the container as lo: " in bundle.refused()


# ---- linux.intelRdt, over a directory that stands for the file system


@pytest.fixture
def resctrl(bundle: Bundle, tmp_path: Path) -> Path:
    """What the helper reads and writes of resctrl.rst's interface. The real one needs a CPU that has it."""
    root = tmp_path / "resctrl"
    (root / "gold").mkdir(parents=True)
    for directory in (root, root / "gold"):
        (directory / "tasks").touch()
        (directory / "schemata").write_text("    MB:0=20;1=100\n    L3:0=00f;1=7ff\n")
    bundle.facts = bundle.facts._replace(resctrl=str(root))
    return root


def test_rdt_joins_a_class_that_exists(bundle: Bundle, resctrl: Path) -> None:
    bundle.linux["intelRdt"] = {"closID": "gold", "l3CacheSchema": "L3:0=F;1=7ff", "memBwSchema": "MB:1=100"}
    bundle.run("true")
    assert (resctrl / "gold" / "tasks").read_text().isdigit()
    assert "L3:0=00f" in (resctrl / "gold" / "schemata").read_text()


@pytest.mark.parametrize("schema", ["L3:0=e", "L3:2=f", "L3:0=f;1=7f", "L3CODE:0=f"])
def test_rdt_refuses_a_class_with_another_schema(bundle: Bundle, resctrl: Path, schema: str) -> None:
    bundle.linux["intelRdt"] = {"closID": "gold", "l3CacheSchema": schema}
    message = bundle.refused()
    assert f"linux.intelRdt: resctrl schema {schema}" in message
    assert (resctrl / "gold" / "tasks").read_text() == ""


def test_rdt_writes_schemata_into_the_default_class(bundle: Bundle, resctrl: Path) -> None:
    bundle.linux["intelRdt"] = {"closID": "/", "schemata": ["L2:0=f"]}
    bundle.run("true")
    assert (resctrl / "schemata").read_text().startswith("L2:0=f\n")
    assert (resctrl / "tasks").read_text().isdigit()


def test_rdt_class_by_name_alone_must_exist(bundle: Bundle, resctrl: Path) -> None:
    bundle.linux["intelRdt"] = {"closID": "silver"}
    assert f"open {resctrl}/silver" in bundle.refused()


@pytest.mark.parametrize("monitoring", [False, True])
def test_rdt_class_made_for_a_start_that_fails_goes_again(bundle: Bundle, resctrl: Path, monitoring: bool) -> None:
    """Here no kernel fills the new directory, so the write fails."""
    bundle.linux["intelRdt"] = {"memBwSchema": "MB:0=20"} if not monitoring else {"enableMonitoring": True}
    assert "linux.intelRdt: " in bundle.refused()
    assert sorted(entry.name for entry in resctrl.iterdir()) == ["gold", "schemata", "tasks"]


def test_rdt_without_the_file_system(bundle: Bundle) -> None:
    bundle.linux["intelRdt"] = {}
    if bundle.facts.resctrl:
        pytest.skip("this host has resctrl")
    assert "linux.intelRdt is asked for and the resctrl file system is not mounted" in bundle.refused()


# ---- exec


@pytest.fixture
def running(bundle: Bundle) -> Iterator[Process]:
    """A container that sleeps, its init a child of ours."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    bundle.process["args"] = ["sleep", "1000"]
    validate(bundle.config)
    plan = compile_create(bundle.config, str(bundle.path), bundle.facts, LaunchHow(id="fields", cgroup=bundle.group))
    init = launch.start(str(bundle.path), plan, "launch", {}).init
    yield init
    os.kill(init.pid, signal.SIGKILL)
    os.waitpid(init.pid, 0)


def executed(bundle: Bundle, init: Process, process: Json) -> str:
    process = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, **process}
    validate_process(process)
    kinds = tuple(entry["type"] for entry in bundle.linux["namespaces"])
    how = LaunchHow(id="fields", cgroup=bundle.group, cgroup_exists=True, stdio=("stdout", "stderr"))
    plan = compile_exec(process, Target(kinds, bundle.config, "fields"), bundle.facts, how)
    out, into = os.pipe2(os.O_CLOEXEC)
    pidfd = os.pidfd_open(init.pid)
    with open(out, "rb") as reader:
        try:
            pid = launch.start(
                str(bundle.path), plan, "launch", {"stdout": into, "stderr": into, "pidfd": pidfd}
            ).init.pid
        finally:
            os.close(into)
            os.close(pidfd)
        text = reader.read().decode()
    os.waitpid(pid, 0)
    return text


CPUS = "grep Cpus_allowed_list /proc/self/status | cut -f2"


@pytest.mark.parametrize(
    ("affinity", "cpus"), [({"initial": "0"}, "0"), ({"initial": "0", "final": "1"}, "1"), ({"final": "0"}, "0")]
)
def test_exec_cpu_affinity(bundle: Bundle, running: Process, affinity: Json, cpus: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    process = {"args": ["sh", "-c", CPUS], "execCPUAffinity": affinity}
    assert executed(bundle, running, process).strip() == cpus
    assert not os.sched_getaffinity(running.pid) <= {int(cpus)}


def test_exec_cpu_affinity_is_not_for_the_first_process(bundle: Bundle) -> None:
    bundle.process["execCPUAffinity"] = {"initial": "0", "final": "0"}
    assert bundle.run("nproc").strip() == str(len(os.sched_getaffinity(0)))


def test_exec_scheduling(bundle: Bundle, running: Process) -> None:
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_PREFERRED", "nodes": "0"}
    process = {
        "args": ["sh", "-c", "cut -d' ' -f41 /proc/self/stat; ionice; grep -c prefer /proc/self/numa_maps"],
        "scheduler": {"policy": "SCHED_BATCH"},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
    }
    if not os.path.exists("/proc/self/numa_maps"):
        pytest.skip("this kernel has no memory policies")
    policy, io, mapped = executed(bundle, running, process).splitlines()
    assert (policy, io) == ("3", "best-effort: prio 1")
    assert int(mapped) > 0
