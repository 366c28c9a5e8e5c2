"""Golden plans: for each case the whole plan as text, compared with golden/<case>.txt.

A change of the planner shows here as a diff of steps. Look at it; if it is what you wanted: `pytest tests/plans
--update-golden`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import WherryError
from wherry.model import Json, Mount
from wherry.oci import bpf, cgroup2
from wherry.oci.compile import LaunchHow, MonitorHow, Target, Timer, compile_create, compile_exec
from wherry.oci.compile_process import lost_capabilities
from wherry.oci.compile_sched import made_groups
from wherry.oci.facts import HostFacts
from wherry.oci.plan import Op, Plan, sentence
from wherry.oci.spec import validate, validate_process

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "oci-bundles" / "example-bundle" / "config.json"
FACTS = HostFacts(kernel=(6, 12), overlay_lowerdir_add=True)
CGROUP = "/sys/fs/cgroup/wherry/example"


def example(**linux: Any) -> Json:
    config: Json = json.loads(EXAMPLE.read_text())
    config["linux"].update(linux)
    return config


def monitor() -> MonitorHow:
    return MonitorHow(
        log_driver="cri",
        log_path="/var/log/c/log",
        log_bytes=10 << 20,
        log_files=3,
        attach=True,
        client=True,
        exit_dir="/run/wherry/c/x",
        cleanup=("python3", "-m", "wherry", "internal", "cleanup", "x"),
        cleanup_env=("PATH=/bin",),
        timers=(Timer(30000, 1000, ("python3", "-m", "wherry", "internal", "health", "x")),),
        kill=True,
        cgroup="/sys/fs/cgroup/wherry-monitors",
    )


def how(config: Json, **more: Any) -> LaunchHow:
    resources = config["linux"].get("resources") or {}
    values: Json = {
        "id": "example",
        "cgroup": CGROUP,
        "cgroup_writes": tuple(cgroup2.writes(resources)),
        "device_bpf": bpf.program(resources.get("devices") or []),
        "seccomp": bytes(16),
        "seccomp_flags": 4,
    }
    return LaunchHow(**{**values, **more})


def created(config: Json, facts: HostFacts = FACTS, **more: Any) -> Plan:
    validate(config)
    return compile_create(config, "/bundle", facts, how(config, **more))


OVERLAY = Mount("overlay", "overlay", "/", ("lowerdir=/l/b:/l/a", "upperdir=/s/fs", "workdir=/s/work"))


def case_example() -> Plan:
    return created(example())


def case_launch_waiting() -> Plan:
    return created(example(), wait_start=True, pidfile="/run/pid", preserve_fds=2)


def case_monitor_overlay() -> Plan:
    streams = ("stdin", "stdout", "stderr")
    return created(example(), rootfs=(OVERLAY,), root_dir="/run/c/x", stdio=streams, monitor=monitor(), init=True)


def case_monitor_terminal() -> Plan:
    config = example()
    config["process"] |= {"terminal": True, "consoleSize": {"height": 25, "width": 80}}
    return created(config, rootfs=(OVERLAY,), monitor=monitor())


def case_launch_terminal() -> Plan:
    config = example()
    config["process"]["terminal"] = True
    return created(config, console_socket=True, wait_start=True)


def case_new_privileges() -> Plan:
    """Without no_new_privs the filter must go in before the rights go."""
    config = example()
    config["process"]["noNewPrivileges"] = False
    return created(config)


def case_user_namespace() -> Plan:
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    kinds = [{"type": kind} for kind in ("user", "mount", "pid", "ipc", "uts", "cgroup")]
    config = example(uidMappings=ids, gidMappings=ids, namespaces=[*kinds, {"type": "network", "path": "/run/netns/n"}])
    config["mounts"].append({"destination": "/data", "source": "/srv/data", "options": ["rbind", "ridmap"]})
    return created(config)


def case_user_namespace_overlay() -> Plan:
    """The host side makes the overlay of mapped layers and clones every bind's tree."""
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config = example(uidMappings=ids, gidMappings=ids)
    config["linux"]["namespaces"].append({"type": "user"})
    mount = Mount("overlay", "overlay", "/", (*OVERLAY.options, "idmap"))
    return created(config, HostFacts(kernel=(6, 15), overlay_lowerdir_add=True), rootfs=(mount,), root_dir="/run/c/x")


def case_rootless() -> Plan:
    """One id, no rights: setgroups is denied, the limits are clamped, no node can be made."""
    kinds = [{"type": kind} for kind in ("user", "mount", "pid", "ipc", "uts", "cgroup")]
    own = [{"containerID": 0, "hostID": 1000, "size": 1}]
    config = example(uidMappings=own, gidMappings=own, namespaces=kinds, sysctl={})
    config["process"] |= {"user": {"uid": 0, "gid": 0}, "oomScoreAdj": -500}
    facts = HostFacts(kernel=(6, 12), cap_effective=0, euid=1000, egid=1000, rlimits={"RLIMIT_NOFILE": (1024, 2048)})
    return created(config, facts, cgroup="", cgroup_writes=(), device_bpf=b"")


def case_joined() -> Plan:
    """A pod's second container: every namespace but mount and cgroup is another's."""
    joined = [
        {"type": kind, "path": f"/proc/77/ns/{name}"}
        for kind, name in (("pid", "pid"), ("network", "net"), ("ipc", "ipc"))
    ]
    return created(example(namespaces=[{"type": "mount"}, {"type": "uts"}, *joined]), namespace_slots={"ipc": "ns_ipc"})


def case_joined_user_namespace() -> Plan:
    """A pod's second container with a user namespace: its own pid namespace needs a second clone."""
    joined = [{"type": kind, "path": f"/proc/77/ns/{kind}"} for kind in ("user", "ipc", "uts")]
    network = {"type": "network", "path": "/proc/77/ns/net"}
    config = example(namespaces=[{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}, *joined, network])
    del config["hostname"]
    return created(config)


def case_time_namespace() -> Plan:
    config = example()
    config["linux"]["namespaces"].append({"type": "time"})
    config["linux"]["timeOffsets"] = {"monotonic": {"secs": 86400}, "boottime": {"secs": -5, "nanosecs": 7}}
    return created(config)


def case_hooks() -> Plan:
    config = example()
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    config["hooks"] = {
        kind: [{"path": f"/hooks/{kind}", "args": [kind, "x"], "env": ["A=1"], "timeout": 3}] for kind in kinds
    }
    return created(config)


def case_labels() -> Plan:
    config = example()
    config["process"] |= {"apparmorProfile": "wherry-default", "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"}
    return created(config, HostFacts(kernel=(6, 12), apparmor=True, selinux=True))


def case_mounts() -> Plan:
    """The words of mount(8), propagation, devices, symlinks not followed."""
    config = example(
        rootfsPropagation="shared",
        maskedPaths=[],
        readonlyPaths=[],
        sysctl={},
        devices=[
            {"type": "c", "path": "/dev/net/tun", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 0, "gid": 5},
            {"type": "p", "path": "/dev/pipe", "fileMode": 0o620},
        ],
    )
    config["mounts"] += [
        {"destination": "/a", "source": "/srv/a", "options": ["rbind", "rshared"]},
        {"destination": "/b/../b", "source": "rel/b", "options": ["bind", "ro", "noatime", "sync", "private"]},
        {"destination": "/c", "source": "/srv/c", "options": ["rbind", "rro", "rnosuid", "rslave", "src-nofollow"]},
        {
            "destination": "/d",
            "type": "ext4",
            "source": "/dev/sdb1",
            "options": ["ro", "nosymfollow", "data=ordered", "lazytime"],
        },
        {
            "destination": "/e",
            "type": "tmpfs",
            "source": "t",
            "options": ["ro", "tmpcopyup", "size=1m", "dest-nofollow"],
        },
        {
            "destination": "/f",
            "type": "bind",
            "source": "/srv/f",
            "options": ["rw", "suid", "dev", "exec", "strictatime"],
        },
    ]
    return created(config)


def case_remount_and_label() -> Plan:
    """A label for what is new; what is mounted already is changed in place."""
    config = example(mountLabel="system_u:object_r:container_file_t:s0:c1,c2")
    config["mounts"] += [
        {"destination": "dev/shm", "options": ["remount", "size=1m", "noexec"]},
        {"destination": "/etc/motd", "type": "bind", "options": ["bind", "remount", "nosuid", "rro", "x-note"]},
    ]
    return created(config, FACTS._replace(selinux=True))


def case_old_kernel_overlay() -> Plan:
    """Ten layers with long names on a kernel that knows no lowerdir+."""
    layers = ":".join(f"/var/lib/wherry/layers/sha256-{number:040d}" for number in range(10))
    mount = Mount("overlay", "overlay", "/", (f"lowerdir={layers}", "upperdir=/s/fs", "workdir=/s/work"))
    return created(example(), HostFacts(kernel=(6, 1)), rootfs=(mount,), root_dir="/run/c/x")


def case_seccomp_listener() -> Plan:
    rules = [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent.sock", "syscalls": rules}
    return created(example(seccomp=seccomp), wait_start=True, listener_payload='{"pid":%p}')


SCHEDULING: Json = {
    "scheduler": {"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
    "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 3},
    "execCPUAffinity": {"initial": "0", "final": "0-3,64"},
}
RDT: Json = {
    "l3CacheSchema": "L3:0=f",
    "memBwSchema": "MB:0=20",
    "schemata": ["L2:0=3"],
    "enableMonitoring": True,
}


def case_scheduling() -> Plan:
    """Everything that needs CAP_SYS_NICE before it goes; the CPUs are not for a container's first process."""
    config = example(
        memoryPolicy={"mode": "MPOL_INTERLEAVE", "nodes": "0-1,70", "flags": ["MPOL_F_STATIC_NODES"]},
        intelRdt=RDT,
        netDevices={"eth1": {"name": "data%d"}, "ib0": {}},
    )
    config["process"] |= SCHEDULING
    return created(config, FACTS._replace(resctrl="/sys/fs/resctrl"))


def case_exec_scheduling() -> Plan:
    config = example(memoryPolicy={"mode": "MPOL_LOCAL"}, intelRdt={**RDT, "closID": "gold"})
    return executed({**PROCESS, **SCHEDULING}, config, FACTS._replace(resctrl="/sys/fs/resctrl"))


PROCESS: Json = {"args": ["id"], "cwd": "/", "env": ["A=b"], "user": {"uid": 5, "gid": 6}}


def executed(process: Json, config: Json, facts: HostFacts = FACTS, **more: Any) -> Plan:
    validate_process(process)
    kinds = tuple(entry["type"] for entry in config["linux"]["namespaces"])
    return compile_exec(
        process,
        Target(kinds, config, "example"),
        facts,
        how(config, cgroup_exists=True, device_bpf=b"", cgroup_writes=(), **more),
    )


def case_exec() -> Plan:
    return executed(PROCESS, example(), stdio=("stdout", "stderr"), monitor=MonitorHow(client=True, oom=False))


def case_exec_terminal_user_namespace() -> Plan:
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config = example(uidMappings=ids, gidMappings=ids)
    config["linux"]["namespaces"].append({"type": "user"})
    return executed({**PROCESS, "terminal": True, "capabilities": {}}, config, monitor=MonitorHow(client=True))


CASES: dict[str, Callable[[], Plan]] = {
    name.removeprefix("case_"): function for name, function in list(globals().items()) if name.startswith("case_")
}


def value(field: Any) -> str:
    if isinstance(field, bytes):
        return f"<{field.hex()}>" if len(field) <= 16 else f"<{len(field)} bytes>"
    if isinstance(field, tuple):
        return json.dumps(list(field))
    return json.dumps(field)


def line(op: Op) -> str:
    """The sentence, then every field that is not its default."""
    fields = [f"{name}={getattr(op, name)}" for name in ("fd0", "fd1") if getattr(op, name) >= 0]
    fields += [f"{name}={value(getattr(op, name))}" for name in ("s0", "s1", "s2") if getattr(op, name) != ""]
    fields += [f"{name}={getattr(op, name):#x}" for name in ("n0", "n1", "n2") if getattr(op, name)]
    return f"{op.side} {op.name:<12} {sentence(op)}\n               {' '.join(fields)}".rstrip()


def text(plan: Plan) -> str:
    head = f"inherited: {' '.join(plan.inherited) or 'none'}; slots: {plan.slots}\n"
    return head + "".join(f"{line(op)}\n" for op in plan.ops)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    golden = HERE / "golden" / f"{name}.txt"
    found = text(CASES[name]())
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(found)
    assert found == golden.read_text(), "the plan changed: see the docstring of this file"


def test_no_golden_without_case() -> None:
    assert {path.stem for path in (HERE / "golden").glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_plan_is_sound(name: str) -> None:
    """What holds for every plan, whatever it does."""
    plan = CASES[name]()
    host = [op for op in plan.ops if op.side == "H"]
    child = [op for op in plan.ops if op.side == "C"]
    assert [op.name for op in host].count("CLONE") == 1
    assert child[-1].name == "EXEC"
    assert [op.name for op in child].count("EXEC") == 1
    barriers = [[op.s0 for op in side if op.name == "SYNC"] for side in (host, child)]
    assert barriers[0] == barriers[1]
    assert all(-1 <= slot < plan.slots for op in plan.ops for slot in (op.fd0, op.fd1))
    assert [op.name for op in host].count("RECV_FD") == [op.name for op in child].count("CONSOLE") + sum(
        op.name == "SECCOMP" and op.n1 & 8 != 0 for op in child
    )
    _slots_are_filled_before_use(plan)


def _slots_are_filled_before_use(plan: Plan) -> None:
    """No operation reads a slot that nothing filled on its side. The child starts with what the host had at the
    clone."""
    fills = {
        "OPEN": "fd0",
        "CGROUP_DIR": "fd0",
        "RDT_DIR": "fd0",
        "RECV_FD": "fd0",
        "FS_NEW": "fd0",
        "TREE": "fd0",
        "TREE_IN": "fd0",
        "ROOT": "fd1",
    }
    host = set(range(len(plan.inherited)))
    child: set[int] = set()
    for op in (op for op in plan.ops if op.side != "M"):
        filled = host if op.side == "H" else child
        target = fills.get(op.name, "")
        for name in ("fd0", "fd1"):
            assert name == target or getattr(op, name) < 0 or getattr(op, name) in filled, line(op)
        if target:
            filled.add(getattr(op, target))
        if op.name == "CLONE":
            child = set(host)


def test_compiling_changes_nothing() -> None:
    config = example()
    before = copy.deepcopy(config)
    assert created(config) == created(config)
    assert config == before


def test_ptmx_is_the_containers_own_even_where_the_devices_list_it() -> None:
    """--privileged lists every node of the host; the host's ptmx would open terminals of the host's devpts."""
    config = example(devices=[{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}])
    ops = [(op.name, op.s0, op.s1) for op in created(config).ops]
    assert not [op for op in ops if op[:2] == ("NODE", "/dev/ptmx")]
    assert ("SYMLINK", "pts/ptmx", "/dev/ptmx") in ops


def refusal(config: Json, facts: HostFacts = FACTS) -> str:
    with pytest.raises(WherryError) as caught:
        created(config, facts)
    return caught.value.message


def test_what_this_host_cannot_do_is_said_with_the_field() -> None:
    assert refusal(example(intelRdt={})).startswith("linux.intelRdt is asked for and the resctrl file system is not")
    without = FACTS._replace(cap_effective=0)
    assert refusal(example(netDevices={"eth1": {}}), without).startswith("linux.netDevices: ")
    for field, value, start in (
        ("apparmorProfile", "p", 'AppArmor profile "p" is asked for'),
        ("selinuxLabel", "l", 'SELinux label "l" is asked for'),
        ("scheduler", {"policy": "SCHED_ISO"}, "process.scheduler.policy: SCHED_ISO"),
    ):
        config = example()
        config["process"][field] = value
        assert refusal(config).startswith(start)


@pytest.mark.parametrize(
    ("rdt", "ops"),
    [
        ({}, [("RDT_DIR", (), "/r/example")]),
        ({"closID": "gold"}, [("OPEN", (), "/r/gold")]),
        ({"closID": "/"}, [("OPEN", (), "/r")]),
        (
            {"closID": "gold", "memBwSchema": "MB:0=20"},
            [("RDT_DIR", ("EXIST_OK",), "/r/gold"), ("RDT_SCHEMA", (), "MB:0=20")],
        ),
        (
            {"closID": "/", "schemata": ["MB:0=20"], "enableMonitoring": True},
            [("OPEN", (), "/r"), ("RDT_SCHEMA", ("EXIST_OK",), "MB:0=20"), ("RDT_DIR", (), "/r/mon_groups/example")],
        ),
    ],
)
def test_a_class_of_service_is_made_or_must_be_there(rdt: Json, ops: list[Any]) -> None:
    plan = created(example(intelRdt=rdt), FACTS._replace(resctrl="/r"))
    found = [(op.name, op.flags, op.s0) for op in plan.ops if "RDT_" in op.name or str(op.s0).startswith("/r")]
    assert found[: len(ops)] == ops
    assert {name for name, _, _ in found[len(ops) :]} == {"RDT_JOIN"}


def test_options_without_a_meaning_here_change_no_plan() -> None:
    """A file system's option on a bind, as in mount(2); a label where there is no SELinux (the face warns)."""
    plain, odd = example(), example(mountLabel="system_u:object_r:container_file_t:s0")
    for config, options in ((plain, ["rbind"]), (odd, ["rbind", "size=5m"])):
        config["mounts"].append({"destination": "/x", "source": "/srv", "options": options})
    one, two = (created(config) for config in (plain, odd))
    assert one == two


def test_without_a_mount_namespace_nothing_of_the_hosts_changes_but_the_root() -> None:
    config = example()
    config["linux"]["namespaces"] = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "mount"]
    ops = created(config).ops
    assert not [op for op in ops if op.name == "PROPAGATE"]
    assert [op.flags for op in ops if op.name == "PIVOT"] == [("CHROOT",)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["remount", "private"], "options: remount changes no propagation"),
        (["bind", "copy-symlink"], 'mount option "copy-symlink" is not supported'),
    ],
)
def test_options_that_could_only_be_ignored_are_refused(options: list[str], sentence: str) -> None:
    config = example()
    config["mounts"].append({"destination": "/x", "source": "/srv", "options": options})
    assert refusal(config) in {f"mounts[{len(config['mounts']) - 1}].{sentence}", f"mount /x: {sentence}"}


def test_a_listener_that_nobody_notifies_is_ignored() -> None:
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent.sock"}
    plan = created(example(seccomp=seccomp))
    assert "seccomp_listener" not in plan.inherited
    assert "SEND_FD" not in {op.name for op in plan.ops}


@pytest.mark.parametrize(
    ("rdt", "made"),
    [
        (None, ()),
        ({}, ("/r/c",)),
        ({"enableMonitoring": True}, ("/r/c/mon_groups/c", "/r/c")),
        ({"closID": "gold"}, ()),
        ({"closID": "/", "enableMonitoring": True}, ("/r/mon_groups/c",)),
    ],
)
def test_what_the_end_takes_away_is_the_containers_own(rdt: Json | None, made: tuple[str, ...]) -> None:
    assert made_groups({"linux": {"intelRdt": rdt}}, "/r", "c") == made
    assert made_groups({"linux": {"intelRdt": rdt}}, "", "c") == ()


def test_capabilities_that_are_not_to_be_had_are_told() -> None:
    process = {
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_BPF"], "effective": ["CAP_OF_TOMORROW"], "ambient": None}
    }
    assert lost_capabilities(process, FACTS) == ["CAP_OF_TOMORROW"]
    assert lost_capabilities(process, FACTS._replace(cap_bounding=1)) == ["CAP_BPF", "CAP_OF_TOMORROW"]
