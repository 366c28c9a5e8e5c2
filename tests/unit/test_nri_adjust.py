"""What plugins ask for, onto a container's config.json: each wish, several plugins' wishes, and limits of others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from wherry.daemon.nri import api_pb2 as pb
from wherry.daemon.nri import messages
from wherry.daemon.nri.adjust import Adjusting, Update, Updates, over
from wherry.daemon.nri.owners import Owners
from wherry.engine.devices import Devices
from wherry.engine.pods import limiting
from wherry.engine.pods.values import Held, Member, MemberOptions, Pod, PodOptions, PodSecurity
from wherry.errors import Kind, WherryError
from wherry.oci import spec
from wherry.oci.facts import HostFacts

CID = "c" * 64
HOUSE: Any = SimpleNamespace(facts=HostFacts(kernel=(6, 18)))
MEMBER = Member(
    CID, "p" * 64, MemberOptions("app", "img", annotations={"k8s": "yes"}, resources={"cpu": {"shares": 512}}),
    "sha256:1", 7.0, "creating",
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "ociVersion": "1.3.0",
    "process": {
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]}, "args": ["sleep", "1"], "env": ["PATH=/bin", "A=1"],
        "cwd": "/", "terminal": False,
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind"]},
    ],
    "annotations": {"io.kubernetes.cri.container-type": "container"},
    "linux": {
        "namespaces": [{"type": "network", "path": "/ns/net"}, {"type": "mount"}],
        "resources": {"cpu": {"shares": 512}, "devices": [{"allow": False, "access": "rwm"}]},
        "devices": [{"path": "/dev/old", "type": "c", "major": 1, "minor": 9}],
        "cgroupsPath": "/pod/wherry-c",
    },
}  # fmt: skip


def adjustment(**parts: Any) -> pb.CreateContainerResponse:
    linux = parts.pop("linux", None)
    made = pb.ContainerAdjustment(**parts)
    if linux is not None:
        made.linux.CopyFrom(linux)
    return pb.CreateContainerResponse(adjust=made)


def adjusted(*answers: pb.CreateContainerResponse) -> Adjusting:
    it = Adjusting(MEMBER, CONFIG)
    for number, answer in enumerate(answers):
        it.take(f"{number:02}-p", answer)
    spec.validate(it.config)
    return it


def linux(**parts: Any) -> pb.CreateContainerResponse:
    return adjustment(linux=pb.LinuxContainerAdjustment(**parts))


def test_nothing_asked_is_nothing_changed() -> None:
    before = copy.deepcopy(CONFIG)
    it = adjusted(pb.CreateContainerResponse(), adjustment(linux=pb.LinuxContainerAdjustment()))
    assert it.config == before == CONFIG
    assert it.member == MEMBER
    assert it.updates.others() == []


CASES: list[tuple[pb.CreateContainerResponse, Callable[[Any], Any], Any]] = [
    (
        adjustment(annotations={"a": "1", "-io.kubernetes.cri.container-type": ""}),
        lambda c: c["annotations"], {"a": "1"},
    ),
    (
        adjustment(env=[pb.KeyValue(key="A", value="2=3"), pb.KeyValue(key="-PATH"), pb.KeyValue(key="B")]),
        lambda c: c["process"]["env"], ["A=2=3", "B="],
    ),
    (adjustment(args=["run", "me"]), lambda c: c["process"]["args"], ["run", "me"]),
    (
        adjustment(mounts=[pb.Mount(destination="/etc/hosts/", source="/other", options=["bind", "ro"]),
                           pb.Mount(destination="-/proc"),
                           pb.Mount(destination="/a/b/c", type="tmpfs", source="tmpfs")]),
        lambda c: c["mounts"],
        [{"destination": "/etc/hosts", "type": "bind", "source": "/other", "options": ["bind", "ro"]},
         {"destination": "/a/b/c", "type": "tmpfs", "source": "tmpfs", "options": []}],
    ),
    (
        adjustment(hooks=pb.Hooks(create_runtime=[pb.Hook(path="/h", args=["h"], timeout=pb.OptionalInt(value=3))])),
        lambda c: c["hooks"], {"createRuntime": [{"path": "/h", "args": ["h"], "env": [], "timeout": 3}]},
    ),
    (
        adjustment(rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", hard=9, soft=8)]),
        lambda c: c["process"]["rlimits"], [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}],
    ),
    (
        linux(devices=[pb.LinuxDevice(path="/dev/x", type="b", major=8, minor=1, uid=pb.OptionalUInt32(value=0),
                                      file_mode=pb.OptionalFileMode(value=0o600)), pb.LinuxDevice(path="-/dev/old")]),
        lambda c: (c["linux"]["devices"], c["linux"]["resources"]["devices"][1:]),
        ([{"path": "/dev/x", "type": "b", "major": 8, "minor": 1, "fileMode": 0o600, "uid": 0}],
         [{"allow": True, "type": "b", "major": 8, "minor": 1, "access": "rwm"}]),
    ),
    (linux(oom_score_adj=pb.OptionalInt(value=0)), lambda c: c["process"]["oomScoreAdj"], 0),
    (linux(cgroups_path="/other"), lambda c: c["linux"]["cgroupsPath"], "/other"),
    (
        linux(io_priority=pb.LinuxIOPriority(**{"class": pb.IOPRIO_CLASS_BE}, priority=4)),
        lambda c: c["process"]["ioPriority"], {"class": "IOPRIO_CLASS_BE", "priority": 4},
    ),
    (
        linux(scheduler=pb.LinuxScheduler(policy=pb.SCHED_DEADLINE, runtime=1000000, deadline=2000000, period=2000000,
                                          flags=[pb.SCHED_FLAG_RESET_ON_FORK])),
        lambda c: c["process"]["scheduler"],
        {"policy": "SCHED_DEADLINE", "runtime": 1000000, "deadline": 2000000, "period": 2000000,
         "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
    ),
    (
        linux(seccomp_policy=pb.LinuxSeccomp(
            default_action="SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_X86_64"],
            syscalls=[
                pb.LinuxSyscall(names=["reboot"], action="SCMP_ACT_ERRNO", errno_ret=pb.OptionalUInt32(value=38))
            ],
        )),
        lambda c: c["linux"]["seccomp"],
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
         "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]},
    ),
    (
        linux(namespaces=[pb.LinuxNamespace(type="network", path="/ns/other"), pb.LinuxNamespace(type="-mount"),
                          pb.LinuxNamespace(type="time")]),
        lambda c: c["linux"]["namespaces"], [{"type": "network", "path": "/ns/other"}, {"type": "time"}],
    ),
    (linux(sysctl={"net.ipv4.ip_forward": "1"}), lambda c: c["linux"]["sysctl"], {"net.ipv4.ip_forward": "1"}),
    (
        linux(net_devices={"eth7": pb.LinuxNetDevice(name="in0")}),
        lambda c: c["linux"]["netDevices"], {"eth7": {"name": "in0"}},
    ),
    (
        linux(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="gold"),
                              schemata=pb.OptionalRepeatedString(value=["L3:0=f"]))),
        lambda c: c["linux"]["intelRdt"], {"closID": "gold", "schemata": ["L3:0=f"]},
    ),
    (
        linux(memory_policy=pb.LinuxMemoryPolicy(mode=pb.MPOL_BIND, nodes="0", flags=[pb.MPOL_F_STATIC_NODES])),
        lambda c: c["linux"]["memoryPolicy"], {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "part", "want"), CASES)
def test_each_wish_where_it_belongs(
    answer: pb.CreateContainerResponse, part: Callable[[Any], Any], want: object
) -> None:
    found = part(adjusted(answer).config)
    if isinstance(want, list) and want and isinstance(want[0], dict) and "type" in want[0] and "path" in found[-1]:
        found, want = (sorted(entries, key=str) for entries in (found, want))
    assert found == want


def test_limits_are_put_over_those_that_were_asked() -> None:
    wished = pb.LinuxResources(
        memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=1 << 30), swappiness=pb.OptionalUInt64(value=0)),
        cpu=pb.LinuxCPU(quota=pb.OptionalInt64(value=-1), cpus="0-1"), unified={"memory.high": "1"},
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4)], pids=pb.LinuxPids(limit=9),
        devices=[pb.LinuxDeviceCgroup(allow=True, type="c", major=pb.OptionalInt64(value=5), access="r")],
    )  # fmt: skip
    it = adjusted(linux(resources=wished))
    limits = {
        "memory": {"limit": 1 << 30, "swappiness": 0}, "cpu": {"shares": 512, "quota": -1, "cpus": "0-1"},
        "unified": {"memory.high": "1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4}], "pids": {"limit": 9},
    }  # fmt: skip
    assert it.member.options.resources == limits
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "access": "r", "major": 5}]
    assert it.config["linux"]["resources"] == {**limits, "devices": rules}
    assert messages.limits(messages.resources(limits)) == limits


def test_the_next_plugin_sees_what_the_one_before_it_did() -> None:
    it = Adjusting(MEMBER, CONFIG)
    it.take("00-a", adjustment(annotations={"n": "1"}, env=[pb.KeyValue(key="N", value="1")], args=["x"]))
    told = it.told()
    assert told.annotations == {"n": "1", "k8s": "yes", "io.kubernetes.cri.container-type": "container"}
    assert list(told.args) == ["x"]
    assert list(told.env) == ["PATH=/bin", "A=1", "N=1"]
    assert (told.name, told.state) == ("app", pb.CONTAINER_UNKNOWN)
    assert (told.user.uid, told.user.gid, list(told.user.additional_gids)) == (1, 2, [3])


CLASHES = [
    adjustment(annotations={"a": "1"}),
    adjustment(env=[pb.KeyValue(key="A", value="2")]),
    adjustment(args=["run"]),
    adjustment(mounts=[pb.Mount(destination="/x", source="/y")]),
    adjustment(rlimits=[pb.POSIXRlimit(type="RLIMIT_NOFILE", hard=9, soft=8)]),
    adjustment(CDI_devices=[pb.CDIDevice(name="v/c=d")]),
    linux(devices=[pb.LinuxDevice(path="/dev/x", type="c")]),
    linux(oom_score_adj=pb.OptionalInt(value=1)),
    linux(cgroups_path="/x"),
    linux(resources=pb.LinuxResources(cpu=pb.LinuxCPU(cpus="1"))),
    linux(resources=pb.LinuxResources(memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=1)))),
    linux(resources=pb.LinuxResources(unified={"a.b": "1"})),
    linux(resources=pb.LinuxResources(pids=pb.LinuxPids(limit=1))),
    linux(seccomp_policy=pb.LinuxSeccomp(default_action="SCMP_ACT_ALLOW")),
    linux(namespaces=[pb.LinuxNamespace(type="time")]),
    linux(sysctl={"net.ipv4.ip_forward": "1"}),
    linux(rdt=pb.LinuxRdt(clos_id=pb.OptionalString(value="x"))),
]


@pytest.mark.parametrize("answer", CLASHES)
def test_two_plugins_that_set_the_same_are_a_conflict(answer: pb.CreateContainerResponse) -> None:
    it = adjusted(answer)
    it.take("00-p", answer)  # once more by the same one
    with pytest.raises(WherryError) as caught:
        it.take("07-q", answer)
    assert caught.value.kind is Kind.CONFLICT
    assert "00-p and 07-q" in caught.value.message


TAKEN_AWAY = [
    (CLASHES[0], adjustment(annotations={"-a": "", "a": "2"}), lambda c: c["annotations"]["a"], "2"),
    (CLASHES[1], adjustment(env=[pb.KeyValue(key="-A"), pb.KeyValue(key="A", value="3")]),
     lambda c: c["process"]["env"][-1], "A=3"),
    (CLASHES[2], adjustment(args=["", "other"]), lambda c: c["process"]["args"], ["other"]),
    (CLASHES[3], adjustment(mounts=[pb.Mount(destination="-/x")]),
     lambda c: [m["destination"] for m in c["mounts"]], ["/proc", "/etc/hosts"]),
    (CLASHES[6], linux(devices=[pb.LinuxDevice(path="-/dev/x")]),
     lambda c: [d["path"] for d in c["linux"]["devices"]], ["/dev/old"]),
    (CLASHES[16], linux(rdt=pb.LinuxRdt(remove=True)), lambda c: "intelRdt" in c["linux"], False),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "part", "want"), TAKEN_AWAY)
def test_a_later_plugin_may_take_away_what_an_earlier_one_set(
    first: pb.CreateContainerResponse, second: pb.CreateContainerResponse, part: Callable[[Any], Any], want: object
) -> None:
    it = adjusted(first, second)
    assert part(it.config) == want
    for entries, key in ((it.asked.mounts, "destination"), (it.asked.env, "key"), (it.asked.linux.devices, "path")):
        names = [getattr(entry, key) for entry in entries]  # type: ignore[attr-defined]
        assert len(names) == len(set(names))


def test_hooks_of_all_and_their_owners() -> None:
    hook = adjustment(hooks=pb.Hooks(poststop=[pb.Hook(path="/h")]))
    it = adjusted(hook, hook)
    assert len(it.config["hooks"]["poststop"]) == 2
    assert it.owners.book.owners[CID].simple[pb.OciHooks] == "00-p,01-p"
    assert len(it.asked.hooks.poststop) == 2


def test_cdi_devices_are_put_in_as_they_are_found() -> None:
    it = adjusted(adjustment(CDI_devices=[pb.CDIDevice(name="v/c=d")]))
    assert it.cdi == ["v/c=d"]
    found = Devices()
    found.env, found.nodes = ["CDI=1"], [{"path": "/dev/cdi", "type": "c", "major": 1, "minor": 3}]
    found.rules = [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}]
    found.mounts = [{"destination": "/cdi", "type": "bind", "source": "/s", "options": ["bind"]}]
    found.hooks = [("createContainer", {"path": "/hook"})]
    it.put(found)
    spec.validate(it.config)
    assert it.config["process"]["env"][-1] == "CDI=1"
    assert it.config["linux"]["devices"][-1]["path"] == "/dev/cdi"
    assert it.config["linux"]["resources"]["devices"][-1]["minor"] == 3
    assert "/cdi" in [mount["destination"] for mount in it.config["mounts"]]
    assert it.config["hooks"] == {"createContainer": [{"path": "/hook"}]}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (adjustment(mounts=[pb.Mount(destination="relative", source="/x")]), Kind.INVALID),
        (adjustment(env=[pb.KeyValue(key="A=B", value="1")]), Kind.INVALID),
        (adjustment(env=[pb.KeyValue(key="A", value="\0")]), Kind.INVALID),
        (linux(resources=pb.LinuxResources(hugepage_limits=[pb.HugepageLimit(page_size="../x")])), Kind.INVALID),
        (linux(resources=pb.LinuxResources(rdt_class=pb.OptionalString(value="gold"))), Kind.UNSUPPORTED),
        (linux(resources=pb.LinuxResources(blockio_class=pb.OptionalString(value="slow"))), Kind.UNSUPPORTED),
        (pb.CreateContainerResponse(update=[pb.ContainerUpdate(container_id=CID)]), Kind.INVALID),
    ],
)
def test_what_no_container_can_be(answer: pb.CreateContainerResponse, kind: Kind) -> None:
    with pytest.raises(WherryError) as caught:
        adjusted(answer)
    assert caught.value.kind is kind


def update(ref: str, *, lenient: bool = False, **cpu: Any) -> pb.ContainerUpdate:
    limits = pb.LinuxContainerUpdate(resources=pb.LinuxResources(cpu=pb.LinuxCPU(**cpu)))
    return pb.ContainerUpdate(container_id=ref, linux=limits, ignore_failure=lenient)


def test_updates_of_several_plugins_are_one_for_each_container() -> None:
    updates = Updates(Owners(), Update("own", {"cpu": {"shares": 2}, "memory": {"limit": 5}}))
    updates.take("a", [update("own", cpus="0"), update("x", cpus="1", lenient=True)])
    updates.take("b", [update("x", mems="0", lenient=True), update("y", shares=pb.OptionalUInt64(value=7))])
    assert updates.of("own") == {"cpu": {"shares": 2, "cpus": "0"}, "memory": {"limit": 5}}
    assert updates.others("own") == [
        Update("x", {"cpu": {"cpus": "1", "mems": "0"}}, True), Update("y", {"cpu": {"shares": 7}}, False),
    ]  # fmt: skip
    with pytest.raises(WherryError) as caught:
        updates.take("c", [update("x", cpus="3")])
    assert caught.value.kind is Kind.CONFLICT
    updates.take("c", [update("x", cpus="3", lenient=True)])
    assert updates.others("own")[0].limits == {"cpu": {"cpus": "1", "mems": "0"}}


@pytest.mark.parametrize(
    ("asked", "kind", "ref"),
    [
        ("default", pb.SecurityProfile.RUNTIME_DEFAULT, ""), ("unconfined", pb.SecurityProfile.UNCONFINED, ""),
        ("/etc/p.json", pb.SecurityProfile.LOCALHOST, "/etc/p.json"),
    ],
)  # fmt: skip
def test_the_kind_of_a_seccomp_profile(asked: str, kind: int, ref: str) -> None:
    options = MEMBER.options._replace(security=PodSecurity(seccomp=asked))
    told = messages.container(MEMBER._replace(options=options), CONFIG).linux.seccomp_profile
    assert (told.profile_type, told.localhost_ref) == (kind, ref)


WORDS = [
    "", "a", "/a", "-a", "-/a", "=", "\0", "../x", "2MB", "0-1", "cgroup.kill", "memory.high", "RLIMIT_CPU", "mount",
]  # fmt: skip
SCALARS = {
    FieldDescriptor.CPPTYPE_STRING: st.sampled_from(WORDS) | st.text(max_size=5),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 20),
}


def filled(draw: st.DrawFn, message: Any) -> Any:
    """Some of its fields, of any values that the wire can carry."""
    for field in message.DESCRIPTOR.fields:
        if not draw(st.integers(0, 2)):
            value = getattr(message, field.name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key = draw(SCALARS[FieldDescriptor.CPPTYPE_STRING])
                kind = field.message_type.fields_by_name["value"]
                if kind.message_type is not None:
                    filled(draw, value[key])
                else:
                    value[key] = draw(SCALARS[kind.cpp_type])
            elif field.is_repeated:
                entry = filled(draw, value.add()) if field.message_type else value.append(draw(SCALARS[field.cpp_type]))
                del entry
            elif field.message_type is not None:
                filled(draw, value).SetInParent()
            else:
                setattr(message, field.name, draw(SCALARS[field.cpp_type]))
    return message


@st.composite
def answers(draw: st.DrawFn) -> Any:
    return filled(draw, pb.CreateContainerResponse())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(answers(), min_size=1, max_size=2))
def test_whatever_the_wire_can_carry_is_done_or_refused(asked: list[Any]) -> None:
    """And what is done is a config.json, as far as its types go, that can be told again."""
    it = Adjusting(MEMBER, CONFIG)
    try:
        for number, answer in enumerate(asked):
            it.take(f"{number:02}-p", answer)
        spec.validate(it.config)
        limiting.split(HOUSE, it.member.options.resources)
    except WherryError as error:
        event(error.message[:30])
        return
    event("done")
    it.told().SerializeToString()


def test_limits_over_limits() -> None:
    old = {"cpu": {"shares": 1, "cpus": "0"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}
    new = {"cpu": {"cpus": "1"}, "hugepageLimits": [{"pageSize": "1GB", "limit": 2}], "pids": {"limit": 3}}
    assert over(old, new) == {
        "cpu": {"shares": 1, "cpus": "1"}, "pids": {"limit": 3},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
    }  # fmt: skip


def test_a_pod_as_a_message() -> None:
    held = Held("p", "/ns/net", "/ns/ipc", "/ns/uts", cgroup="/sys/fs/cgroup/pods/p", ips=("10.0.0.2",))
    options = PodOptions("web", "shop", "u", labels={"l": "1"}, cgroup_parent="/pods/p",
                         resources={"cpu": {"shares": 3}}, overhead={"memory": {"limit": 4}})  # fmt: skip
    told = messages.pod(Pod("p", options, 1.0, held, ("10.0.0.2",)))
    assert (told.name, told.namespace, told.uid, told.labels["l"]) == ("web", "shop", "u", "1")
    assert list(told.ips) == ["10.0.0.2"]
    assert {(space.type, space.path) for space in told.linux.namespaces} == {
        ("network", "/ns/net"), ("ipc", "/ns/ipc"), ("uts", "/ns/uts"),
    }  # fmt: skip
    assert told.linux.pod_resources.cpu.shares.value == 3
    assert told.linux.pod_overhead.memory.limit.value == 4
    assert told.linux.cgroup_parent == "/pods/p"
    gone = messages.pod(Pod("p", options, 1.0))
    assert not gone.linux.namespaces
