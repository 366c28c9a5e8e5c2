"""Fields of config.json, one by one: what the process sees from inside is what the field says."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from helpers.bundles import make_root
from helpers.tools import need, strays
from wherry.container import launch
from wherry.errors import WherryError
from wherry.kernel import cgroup, facts
from wherry.kernel import seccomp as compiler
from wherry.kernel.process import Process
from wherry.model import Json
from wherry.oci import cgroup2, defaults, seccomp
from wherry.oci.compile import LaunchHow, Target, compile_create, compile_exec
from wherry.oci.compile_process import RLIMITS
from wherry.oci.plan import Op, Plan
from wherry.oci.spec import NAMESPACES, validate, validate_process

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

    def plan(self, *args: str, **more: Any) -> Plan:
        """The config's plan with this command."""
        self.process["args"] = list(args)
        validate(self.config)
        profile = self.linux.get("seccomp")
        if profile:
            more |= {"seccomp": compiler.translate(profile), "seccomp_flags": seccomp.filter_flags(profile)}
        how = LaunchHow(**{"id": "fields", "cgroup": self.group, "stdio": ("stdout", "stderr"), **more})
        return compile_create(self.config, str(self.path), self.facts, how)

    def run(self, script: str, fds: Mapping[str, int] = MappingProxyType({}), **more: Any) -> str:
        """What `script` prints, errors too."""
        plan = self.plan("sh", "-c", script, **more)
        out, into = os.pipe2(os.O_CLOEXEC)
        with open(out, "rb") as reader:
            try:
                launch.start(str(self.path), plan, "launch", {"stdout": into, "stderr": into, **fds})
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


# ---- process


def test_command_environment_directory_and_user(bundle: Bundle) -> None:
    bundle.process.update(
        env=["PATH=/bin", "A=b=c", "EMPTY="],
        cwd="/made/for it",
        user={"uid": 1000, "gid": 1001, "additionalGids": [5, 4000000000], "umask": 0o27},
    )
    found = bundle.run('pwd; echo "$A"; env | grep -c EMPTY=; id -u; id -g; id -G; umask')
    assert found.splitlines() == ["/made/for it", "b=c", "1", "1000", "1001", "1001 5 4000000000", "0027"]


def test_command_is_searched_in_its_own_path(bundle: Bundle) -> None:
    bundle.process["env"] = ["PATH=/nothere"]
    assert bundle.refused() == 'exec: "sh": executable file not found in $PATH'


SETS = ("inheritable", "permitted", "effective", "bounding", "ambient")


def test_capability_sets(bundle: Bundle) -> None:
    """Each set for itself; a name of tomorrow is left out."""
    bounding = ["CAP_CHOWN", "CAP_KILL", "CAP_SETPCAP"]
    sets = ([bounding[1]], bounding[:2], bounding[:1], [*bounding, "CAP_OF_TOMORROW"], [bounding[1]])
    bundle.process["capabilities"] = dict(zip(SETS, sets, strict=True))
    bundle.process["user"] = {"uid": 7, "gid": 7}
    lines = bundle.run("exec grep ^Cap /proc/self/status").splitlines()
    # an exec by a user: permitted and effective are the ambient ones (capabilities(7))
    kill, bound = 1 << 5, 1 << 0 | 1 << 5 | 1 << 8
    assert [int(line.split()[1], 16) for line in lines] == [kill, kill, kill, bound, kill]


def test_root_has_the_permitted_and_effective_sets(bundle: Bundle) -> None:
    names = ["CAP_CHOWN", "CAP_NET_RAW"]
    bundle.process["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective"), names)
    lines = bundle.run("grep -E '^Cap(Prm|Eff)' /proc/self/status").splitlines()
    assert [int(line.split()[1], 16) for line in lines] == [1 << 0 | 1 << 13] * 2


def test_no_new_privileges(bundle: Bundle) -> None:
    for wanted in (True, False):
        bundle.process["noNewPrivileges"] = wanted
        assert bundle.run("grep NoNewPrivs /proc/self/status").split()[1] == str(int(wanted))


def test_every_kind_of_rlimit(bundle: Bundle) -> None:
    """/proc/self/limits has them in the order of their numbers, soft and hard from column 26 on."""
    limits = {name: min(bundle.facts.rlimits[name][1] % 2**64, 1 << 40) for name in RLIMITS}
    bundle.process["rlimits"] = [{"type": name, "soft": value, "hard": value} for name, value in limits.items()]
    lines = bundle.run("cat /proc/self/limits").splitlines()[1:]
    assert [line[26:].split()[:2] for line in lines] == [[str(value)] * 2 for value in limits.values()]


def test_oom_score(bundle: Bundle) -> None:
    bundle.process["oomScoreAdj"] = 321
    assert bundle.run("cat /proc/self/oom_score_adj").strip() == "321"


def test_terminal_and_its_size(bundle: Bundle) -> None:
    """The master goes over the console socket; the slave is standard input to error, and /dev/console."""
    bundle.process.update(terminal=True, consoleSize={"height": 33, "width": 77})
    plan = bundle.plan("sh", "-c", "stty size; tty; test /dev/console -ef /dev/pts/0 && echo same", console_socket=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        launch.start(str(bundle.path), plan, "launch", {"console_socket": theirs.fileno()})
        _, fds, _, _ = socket.recv_fds(ours, 100, 1)
    text = b""
    with open(fds[0], "rb", buffering=0) as master, suppress(OSError):  # EIO: the last slave is closed
        while piece := master.read(1000):
            text += piece
    assert text.decode().split() == ["33", "77", "/dev/pts/0", "same"]


# ---- hooks


def hook(path: Path, script: str, **more: Any) -> Json:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"path": str(path), **more}


def test_hooks_get_the_state_their_arguments_and_environment(bundle: Bundle, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f'echo "$0 $1 $A $HOME" > {said}; cat > {said}.json'
    made = hook(tmp_path / "hook", script, args=["name", "one"], env=["A=b", "PATH=/bin:/usr/bin"])
    bundle.config |= {"hooks": {"createRuntime": [made]}, "annotations": {"org.example": "x"}}
    bundle.run("true")
    assert said.read_text().split() == [str(tmp_path / "hook"), "one", "b"]
    state = json.loads(Path(f"{said}.json").read_text())
    assert state.pop("pid") > 1
    wanted = {"ociVersion": "1.3.0", "id": "fields", "status": "creating", "bundle": str(bundle.path)}
    assert state == {**wanted, "annotations": {"org.example": "x"}}


def test_hooks_run_where_the_spec_says(bundle: Bundle, tmp_path: Path) -> None:
    """createRuntime in the runtime's namespaces, createContainer in the container's before the pivot, startContainer
    after it."""
    said, env = tmp_path / "said", ["PATH=/bin:/usr/bin"]
    outside = hook(tmp_path / "hook", f"readlink /proc/self/ns/mnt /proc/self/ns/net >> {said}", env=env)
    inside = hook(bundle.path / "rootfs" / "bin" / "inside", "readlink /proc/self/ns/mnt > /said", env=env)
    inside["path"] = "/bin/inside"
    bundle.config["hooks"] = {"createRuntime": [outside], "createContainer": [outside], "startContainer": [inside]}
    own = bundle.run("readlink /proc/self/ns/mnt; readlink /proc/self/ns/net").split()
    host = [os.readlink("/proc/self/ns/mnt"), os.readlink("/proc/self/ns/net")]
    assert said.read_text().split() == [*host, *own]
    assert (bundle.path / "rootfs" / "said").read_text().strip() == own[0]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_hook_that_fails_or_takes_too_long_ends_the_start(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    place = bundle.path / "rootfs" / "bin" if kind == "startContainer" else tmp_path
    for script, why in (("echo because >&2; exit 3", "because"), ("sleep 30", "")):
        made = hook(place / "hook", script, timeout=1, env=["PATH=/bin:/usr/bin"])
        bundle.config["hooks"] = {kind: [{**made, "path": "/bin/hook"} if kind == "startContainer" else made]}
        message = bundle.refused()
        assert "hook " in message
        assert why in message


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


# ---- root and mounts


@pytest.mark.parametrize("readonly", [True, False])
def test_root_read_only(bundle: Bundle, readonly: bool) -> None:
    bundle.config["root"] = {"path": str(bundle.path / "rootfs"), "readonly": readonly}
    assert ("Read-only file system" in bundle.run("touch /x")) is readonly


def test_a_source_is_relative_to_the_bundle(bundle: Bundle) -> None:
    (bundle.path / "note").write_text("of the bundle")
    bundle.config["mounts"].append({"destination": "/etc/note", "type": "none", "source": "note", "options": ["bind"]})
    assert bundle.run("cat /etc/note") == "of the bundle"


def test_options_of_the_superblock_and_of_the_mount(bundle: Bundle) -> None:
    words = [
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "sync",
        "dirsync",
        "lazytime",
        "size=2m",
        "mode=711",
        "iversion",
        "loud",
    ]
    bundle.config["mounts"].append({"destination": "/t", "type": "tmpfs", "source": "src", "options": words})
    line = mounted(bundle.run("cat /proc/self/mountinfo"), "/t")
    assert set(words[:4]) <= set(line[5].split(","))
    assert line[-3:-1] == ["tmpfs", "src"]
    assert {"sync", "dirsync", "lazytime", "size=2048k", "mode=711"} <= set(line[-1].split(","))


@pytest.mark.parametrize("tree", ["", "r"])
@pytest.mark.parametrize(
    ("word", "sign"), [("shared", "shared:"), ("slave", ""), ("private", ""), ("unbindable", "unbindable")]
)
def test_propagation_of_a_bind(bundle: Bundle, tmp_path: Path, tree: str, word: str, sign: str) -> None:
    options = [f"{tree}bind", f"{tree}{word}"]
    bundle.config["mounts"].append({"destination": "/p", "source": str(tmp_path), "options": options})
    optional = mounted(bundle.run("cat /proc/self/mountinfo"), "/p")[6:]
    fields = optional[: optional.index("-")]
    assert any(field.startswith(sign) for field in fields) if sign else "shared" not in " ".join(fields)


@pytest.mark.parametrize("word", ["idmap", "ridmap"])
def test_ids_of_a_mount_are_mapped(bundle: Bundle, tmp_path: Path, word: str) -> None:
    """The mount's own mapping: what 3 owns on the file system, 1234 owns in the container; with ridmap below it too."""
    if not bundle.facts.idmap:
        pytest.skip("no idmapped mounts")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "sub"], check=True)
    for path in (source, source / "sub"):
        (path / "file").touch()
        os.chown(path / "file", 3, 4)
    ids = {key: [{"containerID": c, "hostID": 1234, "size": 1}] for key, c in (("uidMappings", 3), ("gidMappings", 4))}
    bundle.config["mounts"].append({"destination": "/m", "source": str(source), "options": ["rbind", word], **ids})
    try:
        found = bundle.run("stat -c %u:%g /m/file /m/sub/file").split()
    finally:
        subprocess.run(["umount", source / "sub"], check=True)
    assert found == ["1234:1234", "1234:1234" if word == "ridmap" else "3:4"]


def test_symlinks_are_not_followed_where_asked(bundle: Bundle, tmp_path: Path) -> None:
    """src-nofollow takes the link itself; dest-nofollow does not let the image lead the mount elsewhere."""
    (tmp_path / "real").write_text("real")
    (tmp_path / "link").symlink_to("real")
    (bundle.path / "rootfs" / "etc" / "at").symlink_to("/etc/passwd")
    mount = {"destination": "/etc/at", "source": str(tmp_path / "real"), "options": ["bind", "dest-nofollow"]}
    bundle.config["mounts"].append(mount)
    assert bundle.run("cat /etc/passwd; true").startswith("root:")
    bundle.config["mounts"][-1] = {**mount, "options": ["bind"]}
    assert bundle.run("cat /etc/passwd") == "real"


def test_tmpcopyup(bundle: Bundle) -> None:
    (bundle.path / "rootfs" / "etc" / "kept").write_text("kept")
    options = ["tmpcopyup", "ro", "size=1m"]
    bundle.config["mounts"].append({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": options})
    assert bundle.run("cat /etc/kept; touch /etc/x").startswith("kepttouch: /etc/x: Read-only")


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

FILES = {"network": "net", "mount": "mnt"}


def test_every_new_namespace_is_another(bundle: Bundle) -> None:
    kinds = list(NAMESPACES) if bundle.facts.time_namespaces else [kind for kind in NAMESPACES if kind != "time"]
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.linux.update(namespaces=[{"type": kind} for kind in kinds], uidMappings=ids, gidMappings=ids)
    names = [FILES.get(kind, kind) for kind in kinds]
    found = bundle.run(f"for n in {' '.join(names)}; do readlink /proc/self/ns/$n; done").split()
    assert len(found) == len(kinds)
    for name, link in zip(names, found, strict=True):
        assert link.startswith(f"{name}:")
        assert link != os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "cgroup"])
def test_a_namespace_not_named_is_the_runtimes(bundle: Bundle, kind: str) -> None:
    bundle.linux["namespaces"] = [entry for entry in defaults.namespaces() if entry["type"] != kind]
    name = FILES.get(kind, kind)
    assert bundle.run(f"readlink /proc/self/ns/{name}").strip() == os.readlink(f"/proc/self/ns/{name}")


def test_a_path_to_another_kind_of_namespace_is_refused(bundle: Bundle) -> None:
    namespaces = [entry for entry in defaults.namespaces() if entry["type"] != "network"]
    bundle.linux["namespaces"] = [*namespaces, {"type": "network", "path": "/proc/self/ns/uts"}]
    assert "join namespace network" in bundle.refused()


def test_id_mappings(bundle: Bundle) -> None:
    own = bundle.linux["namespaces"]
    uids = [{"containerID": 0, "hostID": 100000, "size": 10}, {"containerID": 10, "hostID": 300000, "size": 5}]
    gids = [{"containerID": 0, "hostID": 100000, "size": 20}]
    bundle.linux.update(namespaces=[*own, {"type": "user"}], uidMappings=uids, gidMappings=gids)
    found = bundle.run("cat /proc/self/uid_map /proc/self/gid_map").split()
    assert found == ["0", "100000", "10", "10", "300000", "5", "0", "100000", "20"]


def test_time_offsets(bundle: Bundle) -> None:
    if not bundle.facts.time_namespaces:
        pytest.skip("no time namespaces")
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {"monotonic": {"secs": 86400, "nanosecs": 7}, "boottime": {"secs": 172800}}
    assert bundle.run("cat /proc/self/timens_offsets").split() == ["monotonic", "86400", "7", "boottime", "172800", "0"]


def test_names_and_kernel_parameters(bundle: Bundle) -> None:
    bundle.config |= {"hostname": "inside", "domainname": "example.org"}
    names = {"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/forwarding": "0", "kernel.shm_rmid_forced": "1"}
    bundle.linux["sysctl"] = names
    paths = " ".join(name.replace(".", "/") for name in ("kernel.domainname", *names))
    found = bundle.run(f"hostname; cd /proc/sys && cat {paths}")
    assert found.split() == ["inside", "example.org", "1", "0", "1"]


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


def failing(plan: Plan) -> Iterator[Plan]:
    """The plan once for each of its operations and each side, with one before it that must fail."""
    for at, op in enumerate(plan.ops):
        for side in {op.side, "H"}:
            bad = Op("OPEN", side, s0=f"/none/{at}", fd0=plan.slots)
            yield plan._replace(ops=(*plan.ops[:at], bad, *plan.ops[at:]), slots=plan.slots + 1)


def test_whatever_fails_nothing_is_left(bundle: Bundle, pod: dict[str, str]) -> None:
    """Every field that has an operation of its own, below a joined user namespace: at each operation in turn."""
    joined = [{"type": kind, "path": path} for kind, path in pod.items()]
    bundle.linux.update(namespaces=[{"type": "mount"}, {"type": "pid"}, *joined], memoryPolicy={"mode": "MPOL_LOCAL"})
    bundle.process.update(scheduler={"policy": "SCHED_BATCH"}, ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 1})
    bundle.config["mounts"].append({"destination": "/dev/shm", "options": ["remount", "size=1m"]})
    plan = bundle.plan("true", stdio=())
    assert "REBORN" in {op.name for op in plan.ops}
    before = strays()
    for broken in failing(plan):
        with pytest.raises(WherryError, match="/none/"):
            launch.start(str(bundle.path), broken, "launch", {})
        assert not os.path.exists(bundle.group)
    assert strays() == before


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


# ---- linux.seccomp


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"action": "SCMP_ACT_ERRNO"}, "Operation not permitted"),
        ({"action": "SCMP_ACT_ERRNO", "errnoRet": 28}, "No space left on device"),
        ({"action": "SCMP_ACT_TRACE"}, "Function not implemented"),
        ({"action": "SCMP_ACT_KILL"}, "159"),
        ({"action": "SCMP_ACT_KILL_THREAD"}, "159"),
        ({"action": "SCMP_ACT_KILL_PROCESS"}, "159"),
        ({"action": "SCMP_ACT_TRAP"}, "159"),
        ({"action": "SCMP_ACT_LOG"}, "0"),
        ({"action": "SCMP_ACT_ALLOW"}, "0"),
    ],
)
def test_seccomp_actions(bundle: Bundle, rule: Json, told: str) -> None:
    rules = [{"names": ["mkdir", "mkdirat"], **rule}]
    native = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[bundle.facts.machine]
    flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]
    default = {"defaultAction": "SCMP_ACT_ALLOW" if told != "0" else "SCMP_ACT_LOG"}
    bundle.linux["seccomp"] = {**default, "architectures": [native], "flags": flags, "syscalls": rules}
    assert told in bundle.run("mkdir /x; echo $?")


def test_seccomp_default_errno(bundle: Bundle) -> None:
    """A profile of what is allowed; the rest gets the errno of the profile."""
    known = seccomp.resolve("default", (), bundle.facts.machine, bundle.facts.kernel)
    assert known
    names = sorted({name for rule in known["syscalls"] for name in rule["names"]} - {"mkdir", "mkdirat"})
    default = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28}
    bundle.linux["seccomp"] = {**default, "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}
    assert "No space left on device" in bundle.run("mkdir /x")


@pytest.mark.parametrize(
    ("op", "value", "two", "hit"),
    [
        ("EQ", 3, 0, True),
        ("EQ", 4, 0, False),
        ("NE", 3, 0, False),
        ("LT", 4, 0, True),
        ("LE", 3, 0, True),
        ("GE", 4, 0, False),
        ("GT", 2, 0, True),
        ("MASKED_EQ", 0b110, 0b010, True),
        ("MASKED_EQ", 0b110, 0b100, False),
    ],
)
def test_seccomp_arguments(bundle: Bundle, op: str, value: int, two: int, hit: bool) -> None:
    """The length of a new hostname, 3 letters, is the second argument."""
    argument = {"index": 1, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}
    rule = {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [argument]}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert ("No space left on device" in bundle.run("hostname abc")) is hit


def test_seccomp_listener_goes_to_the_agent(bundle: Bundle) -> None:
    """Closed by the agent, the call that waits has no answer: ENOSYS (seccomp_unotify(2))."""
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}
    path = {"listenerPath": "/run/agent.sock", "listenerMetadata": "for the agent"}
    flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] if bundle.facts.kernel >= (5, 19) else []
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "flags": flags, **path}
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        more = {"listener_payload": '{"pid":%p}'}
        done = pool.submit(bundle.run, "mkdir /x", {"seccomp_listener": theirs.fileno()}, **more)
        text, fds, _, _ = socket.recv_fds(ours, 1000, 1)
        assert os.readlink(f"/proc/self/fd/{fds[0]}") == "anon_inode:seccomp notify"
        os.close(fds[0])
        assert "Function not implemented" in done.result(20)
    assert json.loads(text)["pid"] > 1


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
    plan = bundle.plan("sleep", "1000", stdio=())
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
