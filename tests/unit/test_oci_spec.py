"""validate(): each breach of the runtime-spec is one sentence that names the field; what is right passes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.spec import validate, validate_process

EXAMPLE: Json = json.loads(
    (Path(__file__).resolve().parents[2] / "oci-bundles" / "example-bundle" / "config.json").read_text()
)
DELETE = object()


def changed(path: str, value: Any) -> Json:
    """A copy of the example with one field set (or deleted). Numbers in the path are indexes."""
    config = copy.deepcopy(EXAMPLE)
    *way, last = path.split("/")
    here: Any = config
    for step in way:
        here = here[int(step)] if step.isdigit() else here.setdefault(step, {})
    if value is DELETE:
        del here[last]
    elif isinstance(here, list):
        here[int(last)] = value
    else:
        here[last] = value
    return config


def refused(config: Json) -> str:
    with pytest.raises(WherryError) as caught:
        validate(config)
    assert caught.value.kind is Kind.INVALID
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_example_is_valid() -> None:
    validate(EXAMPLE)


@pytest.mark.skipif(not shutil.which("runc"), reason="runc is not installed")
def test_what_runc_writes_is_valid(tmp_path: Path) -> None:
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    validate(config)


BREACHES: list[tuple[str, Any, str]] = [
    ("ociVersion", DELETE, "ociVersion: is required"),
    ("ociVersion", "2.0.0", "ociVersion: 2.0.0 is not supported"),
    ("ociVersion", "one", "ociVersion: "),
    ("root", DELETE, "root: is required"),
    ("root/path", "", "root.path: must not be empty"),
    ("root/readonly", "yes", "root.readonly: must be true or false, not a string"),
    ("process", DELETE, "process: is required"),
    ("process/cwd", "work", 'process.cwd: must be an absolute path, not "work"'),
    ("process/args", [], "process.args: must not be empty"),
    ("process/args", DELETE, "process.args: is required"),
    ("process/args", ["sh", 5], "process.args[1]: must be a string, not an integer"),
    ("process/args", [""], "process.args[0]: must not be empty"),
    ("process/args", ["a\0b"], "process.args[0]: must not contain a NUL byte"),
    ("process/env", ["NOVALUE"], "process.env[0]: "),
    ("process/env", ["A=b\0c"], "process.env[0]: must not contain a NUL byte"),
    ("process/user/uid", -1, "process.user.uid: must be between 0 and 4294967294, not -1"),
    ("process/user/uid", 2**32 - 1, "process.user.uid: must be between"),
    ("process/user/uid", True, "process.user.uid: must be an integer, not a boolean"),
    ("process/user/uid", "0", "process.user.uid: must be an integer, not a string"),
    ("process/user/gid", 1.0, "process.user.gid: must be an integer, not a number"),
    ("process/user/additionalGids", [5, -5], "process.user.additionalGids[1]: "),
    ("process/user/umask", 0o1000, "process.user.umask: "),
    ("process/oomScoreAdj", 1001, "process.oomScoreAdj: "),
    ("process/noNewPrivileges", 1, "process.noNewPrivileges: must be true or false"),
    ("process/consoleSize", {"height": 5}, "process.consoleSize.width: is required"),
    ("process/rlimits/0/type", "RLIMIT_BEER", "process.rlimits[0].type: "),
    ("process/rlimits/0/type", "RLIMIT_NOFILE", "process.rlimits[1].type: "),
    ("process/rlimits/1/soft", 5000, "process.rlimits[1].soft: 5000 is above the hard limit 4096"),
    ("process/rlimits/1/hard", 2**64, "process.rlimits[1].hard: "),
    ("mounts/0/destination", "proc", ""),
    ("mounts/0/destination", "", "mounts[0].destination: must not be empty"),
    ("mounts/0/options", "ro", "mounts[0].options: must be a list, not a string"),
    ("mounts/0/type", DELETE, "mounts[0].type: is required unless the mount is a bind"),
    ("mounts/7/source", DELETE, "mounts[7].source: is required for a bind mount"),
    ("mounts/7/uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "mounts[7]: uidMappings and gidMappings"),
    ("mounts/0/options", ["idmap"], "mounts[0]: only a bind mount"),
    ("hostname", "a\0", "hostname: must not contain a NUL byte"),
    ("hostname", "h" * 65, "hostname: is longer"),
    ("annotations", {"": "x"}, "annotations (a key): must not be empty"),
    ("annotations", {"k": 1}, "annotations.k: must be a string"),
    ("hooks", {"prestart": [{"path": "x"}]}, "hooks.prestart[0].path: must be an absolute path"),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout: "),
    ("linux/namespaces/0/type", "bogus", "linux.namespaces[0].type: "),
    ("linux/namespaces/0/type", "network", "linux.namespaces[1].type: "),
    ("linux/namespaces/1/path", "rel", "linux.namespaces[1].path: must be an absolute path"),
    ("linux/uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings: needs a user namespace"),
    ("linux/devices", [{"path": "/dev/x", "type": "a", "major": 1, "minor": 1}], "linux.devices[0].type: "),
    ("linux/devices", [{"path": "/dev/x", "type": "c", "minor": 1}], "linux.devices[0].major: is required"),
    ("linux/devices", [{"path": "/dev", "type": "c", "major": 1, "minor": 1}], "linux.devices[0].path: "),
    ("linux/resources/devices/0/access", "rwx", "linux.resources.devices[0].access: "),
    ("linux/resources/memory/limit", "64m", "linux.resources.memory.limit: must be an integer"),
    ("linux/resources/pids/limit", None, ""),
    ("linux/resources/hugepageLimits", [{"pageSize": "2MB"}], "linux.resources.hugepageLimits[0].limit: is required"),
    ("linux/rootfsPropagation", "wild", "linux.rootfsPropagation: "),
    ("linux/maskedPaths", ["proc"], "linux.maskedPaths[0]: must be an absolute path"),
    ("linux/sysctl", {"net.ipv4.ip_forward": 1}, "linux.sysctl.net.ipv4.ip_forward: must be a string"),
    ("linux/sysctl", {"vm.swappiness": "1"}, "linux.sysctl.vm.swappiness: is not owned by any namespace"),
    ("linux/sysctl", {"kernel/../../x": "1"}, "linux.sysctl.kernel/../../x: is not the name"),
    (
        "linux/sysctl",
        {"user.max_user_namespaces": "1"},
        "linux.sysctl.user.max_user_namespaces: needs a user namespace",
    ),
    ("linux/sysctl", {"kernel.hostname": "x"}, "linux.sysctl.kernel.hostname: contradicts hostname"),
    ("linux/timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets: needs a new time namespace"),
    ("linux/timeOffsets", {"realtime": {"secs": 1}}, "linux.timeOffsets.realtime: is not one of"),
    ("linux/personality", {"domain": "BSD"}, "linux.personality.domain: "),
    ("linux/personality", {"domain": "LINUX", "flags": ["X"]}, "linux.personality.flags: "),
    ("linux/seccomp", {"syscalls": []}, "linux.seccomp.defaultAction: is required"),
    ("linux/seccomp", {"defaultAction": "ALLOW"}, "linux.seccomp.defaultAction: "),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO"}]},
        "linux.seccomp.syscalls[0].names: must not be empty",
    ),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"},
        "linux.seccomp.listenerMetadata: needs a listenerPath",
    ),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_NOTIFY"}]},
        "linux.seccomp.listenerPath: is required for SCMP_ACT_NOTIFY",
    ),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/a"},
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default",
    ),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1},
        "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW returns no errno",
    ),
    (
        "linux/seccomp",
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_LOG", "errnoRet": 1}]},
        "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_LOG returns no errno",
    ),
    ("linux/seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, "linux.seccomp.flags[0]: "),
    ("process/scheduler", {}, "process.scheduler.policy: is required"),
    ("process/scheduler", {"policy": "FIFO"}, "process.scheduler.policy: "),
    ("process/scheduler", {"policy": "SCHED_OTHER", "nice": 20}, "process.scheduler.nice: must be between -20 and 19"),
    ("process/scheduler", {"policy": "SCHED_FIFO", "priority": 1, "nice": 5}, "process.scheduler.nice: is for "),
    ("process/scheduler", {"policy": "SCHED_OTHER", "priority": 5}, "process.scheduler.priority: is for SCHED_FIFO"),
    ("process/scheduler", {"policy": "SCHED_RR"}, "process.scheduler.priority: is required for SCHED_RR"),
    ("process/scheduler", {"policy": "SCHED_RR", "priority": 100}, "process.scheduler.priority: must be between"),
    ("process/scheduler", {"policy": "SCHED_BATCH", "period": 5}, "process.scheduler.period: is for SCHED_DEADLINE"),
    (
        "process/scheduler",
        {"policy": "SCHED_DEADLINE", "runtime": 9, "deadline": 8},
        "process.scheduler.runtime: SCHED_DEADLINE wants 0 < runtime <= deadline <= period",
    ),
    ("process/scheduler", {"policy": "SCHED_OTHER", "flags": ["X"]}, "process.scheduler.flags[0]: "),
    ("process/ioPriority", {"priority": 1}, "process.ioPriority.class: is required"),
    ("process/ioPriority", {"class": "BE"}, "process.ioPriority.class: "),
    ("process/ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority: must be between"),
    ("process/execCPUAffinity", {"initial": "0-"}, 'process.execCPUAffinity.initial: "0-" is not a number or a range'),
    ("process/execCPUAffinity", {"final": "3-1"}, 'process.execCPUAffinity.final: "3-1" does not go up'),
    ("process/execCPUAffinity", {"final": "8192"}, 'process.execCPUAffinity.final: "8192" is above 8191'),
    ("process/execCPUAffinity", {"initial": "0-1, 3", "final": ""}, ""),
    ("linux/memoryPolicy", {}, "linux.memoryPolicy.mode: is required"),
    ("linux/memoryPolicy", {"mode": "MPOL_NEAR"}, "linux.memoryPolicy.mode: "),
    ("linux/memoryPolicy", {"mode": "MPOL_LOCAL", "nodes": "0"}, "linux.memoryPolicy.nodes: MPOL_LOCAL takes no nodes"),
    ("linux/memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes: is required for MPOL_BIND"),
    ("linux/memoryPolicy", {"mode": "MPOL_BIND", "nodes": "1024"}, 'linux.memoryPolicy.nodes: "1024" is above 1023'),
    ("linux/memoryPolicy", {"mode": "MPOL_PREFERRED"}, ""),
    (
        "linux/memoryPolicy",
        {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]},
        "linux.memoryPolicy.flags: ",
    ),
    ("linux/netDevices", {"eth0": {"name": "a/b"}}, 'linux.netDevices.eth0.name: "a/b" is not the name'),
    ("linux/netDevices", {"e" * 16: {}}, f'linux.netDevices.{"e" * 16} (a key): "{"e" * 16}" does not have 1 to 15'),
    ("linux/netDevices", {"a": {"name": "x"}, "b": {"name": "x"}}, 'linux.netDevices.b.name: "x" is given twice'),
    ("linux/netDevices", {"a": {"name": "x%d"}, "b": {"name": "x%d"}}, ""),
    ("linux/intelRdt", {"closID": "../x"}, "linux.intelRdt.closID: "),
    ("linux/intelRdt", {"closID": ".."}, "linux.intelRdt.closID: "),
    ("linux/intelRdt", {"closID": "/"}, ""),
    ("linux/intelRdt", {"l3CacheSchema": "0=f"}, "linux.intelRdt.l3CacheSchema: "),
    ("linux/intelRdt", {"memBwSchema": "MB:0=10\nL3:0=f"}, "linux.intelRdt.memBwSchema: "),
    ("linux/intelRdt", {"schemata": ["L3:0=f", "a\nb"]}, "linux.intelRdt.schemata[1]: "),
    ("linux/intelRdt", {"enableMonitoring": 1}, "linux.intelRdt.enableMonitoring: must be true or false"),
    (
        "linux/resources/blockIO",
        {"weightDevice": [{"major": 8, "minor": 0}]},
        "linux.resources.blockIO.weightDevice[0]: needs a weight or a leafWeight",
    ),
    ("linux/resources/rdma", {"mlx5_0": {}}, "linux.resources.rdma.mlx5_0: needs hcaHandles or hcaObjects"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), BREACHES)
def test_a_breach_names_its_field(path: str, value: Any, sentence: str) -> None:
    config = changed(path, value)
    if not sentence:
        validate(config)
        return
    assert refused(config).startswith(sentence)


@pytest.mark.parametrize("kind", ["uts", "network"])
def test_what_needs_a_namespace(kind: str) -> None:
    config = copy.deepcopy(EXAMPLE)
    config["linux"]["namespaces"] = [ns for ns in config["linux"]["namespaces"] if ns["type"] != kind]
    assert refused(config).startswith({"uts": "hostname: needs a uts", "network": "linux.sysctl.net"}[kind])


def test_net_devices_need_a_network_namespace() -> None:
    config = copy.deepcopy(EXAMPLE)
    config["linux"] |= {"sysctl": {}, "netDevices": {"eth0": {}}}
    config["linux"]["namespaces"] = [ns for ns in config["linux"]["namespaces"] if ns["type"] != "network"]
    assert refused(config) == "linux.netDevices: needs a network namespace in linux.namespaces"


def test_time_offsets_of_a_joined_namespace_are_another_s() -> None:
    config = changed("linux/timeOffsets", {"monotonic": {"secs": 1}})
    config["linux"]["namespaces"].append({"type": "time", "path": "/proc/1/ns/time"})
    assert refused(config).startswith("linux.timeOffsets: needs a new time namespace")


def test_id_maps_must_not_overlap() -> None:
    config = copy.deepcopy(EXAMPLE)
    config["linux"]["namespaces"].append({"type": "user"})
    assert refused(config) == "linux.uidMappings: is required for a new user namespace"
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [
        {"containerID": 0, "hostID": 1000, "size": 10},
        {"containerID": 9, "hostID": 5000, "size": 1},
    ]
    assert refused(config) == "linux.uidMappings[1].containerID: overlaps an earlier mapping"
    config["linux"]["uidMappings"] = [{"containerID": 2, "hostID": 0, "size": 2**32 - 1}]
    assert refused(config).startswith("linux.uidMappings[0].size: ")
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 1000, "size": 10}]
    validate(config)


def test_null_is_absent() -> None:
    """Go writes null for what it does not set."""
    config = copy.deepcopy(EXAMPLE)
    config["hooks"] = config["annotations"] = config["linux"]["sysctl"] = config["linux"]["resources"] = None
    validate(config)


def test_unknown_fields_are_ignored() -> None:
    config = copy.deepcopy(EXAMPLE)
    config["linux"]["tomorrow"] = {"any": "thing"}
    config["process"]["capabilities"]["bounding"].append("CAP_OF_TOMORROW")
    validate(config)


def test_a_process_alone() -> None:
    validate_process({"args": ["sh"], "cwd": "/"})
    with pytest.raises(WherryError, match=r"process\.cwd: is required"):
        validate_process({"args": ["sh"]})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({path for path, _, _ in BREACHES})


@given(st.sampled_from(FIELDS), JUNK)
def test_junk_never_crashes(path: str, value: Any) -> None:
    """Whatever stands in a field: valid, or one INVALID sentence. Never another exception."""
    with suppress(WherryError):
        validate(changed(path, value))
