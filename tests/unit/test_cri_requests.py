"""Requests of the CRI become values of the engine's, or are refused in words; whatever bytes come, nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from wherry.daemon.cri import answers, requests
from wherry.daemon.cri import api_pb2 as pb
from wherry.engine.pods.values import IdMap, Member, MemberOptions, Pod, PodMount, PodOptions
from wherry.errors import Kind, WherryError
from wherry.model import PortMapping


def pod_request(handler: str = "", **more: Any) -> pb.RunPodSandboxRequest:
    metadata = pb.PodSandboxMetadata(name="web", namespace="shop", uid="u-1", attempt=2)
    return pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=metadata, **more), runtime_handler=handler)


def pod(**more: Any) -> PodOptions:
    return requests.pod_options(pod_request(**more))


def test_sizes_of_huge_pages_are_no_paths() -> None:
    def size(text: str) -> Any:
        limits = [pb.HugepageLimit(page_size=text, limit=1)]
        return requests.resources(pb.LinuxContainerResources(hugepage_limits=limits))["hugepageLimits"][0]["pageSize"]

    assert [size(text) for text in ("2MB", "1GB", "64KB")] == ["2MB", "1GB", "64KB"]
    for bad in ("", "2M", "../2MB", "2MB/../../x", "2MB\n"):
        with pytest.raises(WherryError):
            size(bad)


def spaces(**more: Any) -> pb.LinuxPodSandboxConfig:
    options = pb.NamespaceOption(**more)
    return pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=options))


POD = PodOptions("web", "shop", "u-1", log_directory="/var/log/pods/x")


def member(config: dict[str, Any] | None = None, of: PodOptions = POD, **security: Any) -> MemberOptions:
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**security))
    name, image = pb.ContainerMetadata(name="c", attempt=1), pb.ImageSpec(image="sha256:1")
    made = pb.ContainerConfig(**{"metadata": name, "image": image, "linux": linux, **(config or {})})
    return requests.member_options(pb.CreateContainerRequest(pod_sandbox_id="p", config=made), of)


def refused(kind: Kind, call: Any, *words: str) -> None:
    with pytest.raises(WherryError) as raised:
        call()
    assert raised.value.kind is kind
    assert all(word in raised.value.message for word in words), raised.value.message


@contextlib.contextmanager
def refusal() -> Iterator[None]:
    """The only ways out of the block beside its end: no message, or INVALID."""
    try:
        yield
    except DecodeError:
        pass
    except WherryError as error:
        if error.kind is not Kind.INVALID:
            raise


# ---- pods


def test_a_pod_that_asks_for_nothing() -> None:
    asked = pod()
    assert asked == PodOptions("web", "shop", "u-1", 2)
    assert asked.pid == "container", "zero would mean one pid namespace for all: nobody asked for that"


def test_a_pod_that_asks_for_much() -> None:
    asked = pod(
        handler="crun", hostname="h", log_directory="/var/log/pods//x/", labels={"a": "b"}, annotations={"c": "d"},
        dns_config=pb.DNSConfig(servers=["10.0.0.1"], searches=["svc"], options=["ndots:5"]),
        port_mappings=[
            pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1"),
            pb.PortMapping(container_port=80),
        ],
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/x", sysctls={"net.core.somaxconn": "9"},
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=9),
            overhead=pb.LinuxContainerResources(cpu_shares=3),
            security_context=pb.LinuxSandboxSecurityContext(
                privileged=True, selinux_options=pb.SELinuxOption(user="u", role="r", type="t", level="l"),
                namespace_options=pb.NamespaceOption(
                    network=pb.NODE, pid=pb.POD, ipc=pb.NODE,
                    userns_options=pb.UserNamespace(
                        mode=pb.POD, uids=[pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)],
                        gids=[pb.IDMapping(host_id=1 << 21, container_id=0, length=65536)],
                    ),
                ),
            ),
        ),
    )  # fmt: skip
    assert asked == PodOptions(
        "web", "shop", "u-1", 2, "h", "/var/log/pods/x", {"a": "b"}, {"c": "d"}, ("10.0.0.1",), ("svc",), ("ndots:5",),
        has_dns=True, ports=(PortMapping(53, 5353, "udp", "127.0.0.1"),), network="host", pid="pod", ipc="host",
        uids=(IdMap(0, 1 << 20, 65536),), gids=(IdMap(0, 1 << 21, 65536),), cgroup_parent="/kubepods/x",
        sysctls={"net.core.somaxconn": "9"}, resources={"memory": {"limit": 9}}, overhead={"cpu": {"shares": 3}},
        privileged=True, selinux=("u", "r", "t", "l"), handler="crun",
    )  # fmt: skip


def test_an_empty_dns_config_is_not_none_at_all() -> None:
    assert pod(dns_config=pb.DNSConfig()).has_dns
    assert not pod().has_dns


def test_who_names_namespaces_gets_what_he_says() -> None:
    assert pod(linux=spaces(network=pb.NODE)).pid == "pod", "zero, said aloud"


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (pb.RunPodSandboxRequest(), "no config"),
        (pb.RunPodSandboxRequest(config=pb.PodSandboxConfig()), "no metadata"),
        (pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(uid="u"))), "no name"),
        (pod_request(log_directory="var/log"), "log_directory"),
        (pod_request(log_directory="/var/log/../../etc"), "log_directory"),
        (pod_request(port_mappings=[pb.PortMapping(container_port=80, host_port=70000)]), "out of range"),
        (pod_request(port_mappings=[pb.PortMapping(container_port=-1, host_port=80)]), "out of range"),
        (pod_request(port_mappings=[pb.PortMapping(protocol=9, container_port=1, host_port=1)]), "protocol"),
        (pod_request(linux=spaces(pid=pb.TARGET, target_id="x")), "pid namespace"),
        (pod_request(linux=spaces(userns_options=pb.UserNamespace(mode=pb.CONTAINER))), "user namespace"),
        (pod_request(linux=spaces(userns_options=pb.UserNamespace(mode=pb.TARGET))), "user namespace"),
        (
            pod_request(linux=spaces(userns_options=pb.UserNamespace(uids=[pb.IDMapping(length=1)]))),
            "needs mappings of uids and of gids",
        ),
        (
            pod_request(linux=spaces(userns_options=pb.UserNamespace(mode=pb.NODE, uids=[pb.IDMapping(length=1)]))),
            "takes no id mappings",
        ),
        (
            pod_request(linux=spaces(userns_options=pb.UserNamespace(
                uids=[pb.IDMapping(host_id=(1 << 32) - 1, length=2)], gids=[pb.IDMapping(length=1)],
            ))),
            "out of range",
        ),
        (pod_request(linux=pb.LinuxPodSandboxConfig(resources=pb.LinuxContainerResources(cpu_shares=-1))), "negative"),
    ],
)  # fmt: skip
def test_a_pod_that_can_never_be(request_: Any, word: str) -> None:
    refused(Kind.INVALID, lambda: requests.pod_options(request_), word)


# ---- containers


def test_a_container_that_asks_for_nothing() -> None:
    asked = member()
    assert (asked.name, asked.attempt, asked.image, asked.log) == ("c", 1, "sha256:1", "")
    assert asked.security.pid == "container"
    assert asked.security.seccomp == "unconfined"
    assert asked.security.masked_paths is None, "forgotten masks are the default's"
    assert asked.oom_score_adj is None


def test_no_masks_are_meant_only_in_a_user_namespace() -> None:
    maps = [pb.IDMapping(host_id=1 << 20, length=65536)]
    apart = spaces(userns_options=pb.UserNamespace(uids=maps, gids=maps))
    assert member(of=pod(linux=apart)).security.masked_paths == ()
    assert member().security.masked_paths is None
    assert member(masked_paths=["/proc/kcore"]).security.masked_paths == ("/proc/kcore",)


def test_the_pid_namespace_is_the_pods_where_the_container_says_nothing() -> None:
    shared = pod(linux=spaces(pid=pb.POD))
    assert member(of=shared).security.pid == "pod"
    alone = pb.NamespaceOption(pid=pb.CONTAINER)
    assert member(of=shared, namespace_options=alone).security.pid == "container"
    other = pb.NamespaceOption(pid=pb.TARGET, target_id="abc")
    assert member(namespace_options=other).security.pid == "target:abc"


def test_what_a_request_says_of_its_pod_is_not_read() -> None:
    maps = [pb.IDMapping(host_id=1 << 20, length=65536)]
    other = spaces(pid=pb.POD, userns_options=pb.UserNamespace(uids=maps, gids=maps))
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="sha256:1"))
    request = pb.CreateContainerRequest(config=config, sandbox_config=pb.PodSandboxConfig(linux=other))
    made = requests.member_options(request, POD).security
    assert (made.masked_paths, made.pid) == (None, "container"), "the default's masks, and no namespace of others"


def test_a_log_lies_below_the_directory_of_its_pod() -> None:
    assert member({"log_path": "c/0.log"}).log == "/var/log/pods/x/c/0.log"
    for bad in ("/etc/passwd", "../other/0.log", "c/../../0.log", "c/", "a\nb", "a\0b"):
        refused(Kind.INVALID, lambda bad=bad: member({"log_path": bad}), "log_path")


def test_users_and_groups() -> None:
    asked = member(run_as_user=pb.Int64Value(value=0), run_as_group=pb.Int64Value(value=7), supplemental_groups=[8])
    assert (asked.security.user, asked.security.group, asked.security.groups) == ("0", 7, (8,))
    assert member(run_as_username="www").security.user == "www"
    assert member(supplemental_groups_policy=pb.Strict).security.groups_policy == "strict"
    for bad in (-1, 1 << 32, (1 << 32) - 1):
        refused(Kind.INVALID, lambda bad=bad: member(run_as_user=pb.Int64Value(value=bad)), "out of range")
        refused(Kind.INVALID, lambda bad=bad: member(supplemental_groups=[bad]), "out of range")
    refused(Kind.INVALID, lambda: member(run_as_group=pb.Int64Value(value=1)), "run_as_group needs")
    refused(Kind.INVALID, lambda: member(supplemental_groups_policy=5), "supplemental_groups_policy")


def test_profiles() -> None:
    kinds = pb.SecurityProfile
    local = kinds(profile_type=kinds.Localhost, localhost_ref="/var/lib/kubelet/seccomp/a.json")
    assert member(seccomp=local).security.seccomp == "/var/lib/kubelet/seccomp/a.json"
    assert member(seccomp=kinds(profile_type=kinds.RuntimeDefault)).security.seccomp == "default"
    assert member(seccomp_profile_path="localhost//a.json").security.seccomp == "/a.json"
    assert member(seccomp=local, privileged=True).security.seccomp == "unconfined"
    relative = kinds(profile_type=kinds.Localhost, localhost_ref="a.json")
    refused(Kind.INVALID, lambda: member(seccomp=relative), "absolute")
    mine = kinds(profile_type=kinds.Localhost, localhost_ref="localhost/mine")
    assert member(apparmor=mine).security.apparmor == "mine"
    assert member(apparmor_profile="unconfined").security.apparmor == "unconfined"
    assert member(apparmor_profile="runtime/default").security.apparmor == ""
    refused(Kind.INVALID, lambda: member(apparmor=kinds(profile_type=kinds.Localhost)), "AppArmor")
    refused(Kind.INVALID, lambda: member(seccomp=kinds(profile_type=8)), "seccomp")


def test_mounts() -> None:
    asked = member({"mounts": [
        pb.Mount(container_path="/a", host_path="/b", readonly=True, recursive_read_only=True, selinux_relabel=True,
                 mount_options=["noexec", "nodev"]),
        pb.Mount(container_path="/c", host_path="/d", propagation=pb.PROPAGATION_BIDIRECTIONAL,
                 uidMappings=[pb.IDMapping(container_id=0, host_id=5, length=1)]),
        pb.Mount(container_path="/i", image=pb.ImageSpec(image="sha256:2"), image_sub_path="sub", readonly=True),
    ]})  # fmt: skip
    assert asked.mounts == (
        PodMount("/a", "/b", readonly=True, recursive_readonly=True, relabel=True, options=("noexec", "nodev")),
        PodMount("/c", "/d", propagation="rshared", uids=(IdMap(0, 5, 1),)),
        PodMount("/i", "sub", readonly=True, image="sha256:2"),
    )
    for bad in (
        pb.Mount(container_path="a", host_path="/b"), pb.Mount(container_path="/a", host_path="b"),
        pb.Mount(container_path="/a"), pb.Mount(container_path="/a", host_path="/b", image=pb.ImageSpec(image="i")),
        pb.Mount(container_path="/a", host_path="/b\0c"), pb.Mount(container_path="/a", host_path="/b", propagation=7),
        pb.Mount(container_path="/a", host_path="/b", image_sub_path="x"),
        pb.Mount(container_path="/a", host_path="/b", mount_options=["bind"]),
    ):  # fmt: skip
        refused(Kind.INVALID, lambda bad=bad: member({"mounts": [bad]}))


def test_devices_environment_and_command() -> None:
    device = pb.Device(host_path="/dev/null", container_path="/dev/x", permissions="r")
    asked = member({"devices": [device], "CDI_devices": [pb.CDIDevice(name="v/c=1")],
                    "envs": [pb.KeyValue(key="A", value=b"b=c\xff")], "command": ["sh"], "args": ["-c"]})  # fmt: skip
    assert (asked.devices, asked.cdi, asked.env) == ((("/dev/null", "/dev/x", "r"),), ("v/c=1",), ("A=b=c\udcff",))
    assert (asked.command, asked.args) == (("sh",), ("-c",))
    refused(Kind.INVALID, lambda: member({"devices": [pb.Device(host_path="/dev/null", permissions="x")]}), "rwm")
    for key in ("", "A=B", "A\0"):
        refused(Kind.INVALID, lambda key=key: member({"envs": [pb.KeyValue(key=key)]}), "environment")
    refused(Kind.INVALID, lambda: requests.command([]), "no command")
    refused(Kind.INVALID, lambda: requests.command(["a\0b"]), "NUL")


def test_what_a_container_must_have() -> None:
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"))
    for request, word in (
        (pb.CreateContainerRequest(), "no config"),
        (pb.CreateContainerRequest(config=pb.ContainerConfig()), "metadata"),
        (pb.CreateContainerRequest(config=config), "names no image"),
    ):
        refused(Kind.INVALID, lambda request=request: requests.member_options(request, POD), word)


def test_every_stop_signal_there_and_back() -> None:
    for name, number in pb.Signal.items():
        if number != pb.SIGNAL_RUNTIME_DEFAULT:
            asked = member({"stop_signal": number}).stop_signal
            assert "PLUS" not in asked
            assert "MINUS" not in asked
            assert requests.stop_signal(asked) == number, name
    assert member().stop_signal == ""
    assert requests.stop_signal("TERM") == pb.SIGNAL_SIGTERM
    assert requests.stop_signal("no such") == pb.SIGNAL_RUNTIME_DEFAULT
    refused(Kind.INVALID, lambda: member({"stop_signal": 99}), "stop signal")


def test_limits_there_and_back() -> None:
    asked = pb.LinuxContainerResources(
        cpu_period=100000, cpu_quota=-1, cpu_shares=2, memory_limit_in_bytes=3, oom_score_adj=-998, cpuset_cpus="0-1",
        cpuset_mems="0", hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4)], unified={"memory.high": "5"},
        memory_swap_limit_in_bytes=6,
    )  # fmt: skip
    assert answers.limits(requests.resources(asked), -998) == asked
    assert requests.resources(pb.LinuxContainerResources()) == {}


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a\0b", "x" * 129, "a b"])
def test_what_is_no_id(bad: str) -> None:
    refused(Kind.INVALID, lambda: requests.identity(bad, "container"))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_value_or_refused(raw: bytes) -> None:
    """Neither another exception nor a path outside comes of what parses."""
    for kind, translate in (
        (pb.RunPodSandboxRequest, requests.pod_options),
        (pb.CreateContainerRequest, lambda request: requests.member_options(request, POD)),
    ):
        with refusal():
            made = translate(kind.FromString(raw))  # type: ignore[operator,attr-defined]
            assert not isinstance(made, MemberOptions) or not made.log or made.log.startswith("/var/log/pods/x/")


TEXT = st.text(max_size=8)
NUMBER = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.builds(
    pb.ContainerConfig, metadata=st.builds(pb.ContainerMetadata, name=TEXT), image=st.builds(pb.ImageSpec, image=TEXT),
    log_path=st.text("abc/.\n", max_size=12), command=st.lists(TEXT, max_size=2),
    mounts=st.lists(st.builds(
        pb.Mount, container_path=st.text("/a.", max_size=5), host_path=st.text("/b.", max_size=5),
    ), max_size=2),
    linux=st.builds(pb.LinuxContainerConfig, security_context=st.builds(
        pb.LinuxContainerSecurityContext, run_as_user=st.builds(pb.Int64Value, value=NUMBER),
        supplemental_groups=st.lists(NUMBER, max_size=2), seccomp_profile_path=TEXT, apparmor_profile=TEXT,
    )),
))  # fmt: skip
def test_whatever_passes_is_in_range(config: pb.ContainerConfig) -> None:
    request = pb.CreateContainerRequest(config=config)
    with refusal():
        made = requests.member_options(request, POD)
        assert ".." not in made.log.split("/")
        assert 0 <= int(made.security.user) < (1 << 32) - 1
        assert all(mount.target.startswith("/") and mount.source.startswith("/") for mount in made.mounts)


# ---- answers


def test_a_container_is_told_as_it_was_asked() -> None:
    asked = member({"log_path": "c.log", "stop_signal": pb.SIGNAL_SIGQUIT, "labels": {"a": "b"},
                    "annotations": {"c": "d"},
                    "mounts": [pb.Mount(container_path="/a", host_path="/b", readonly=True)]})  # fmt: skip
    found = Member("i", "p", asked, "sha256:1", 1.5, "exited", 2.5, 3.5, 137, "OOMKilled", "words", 0, 1, 2, (2, 3))
    told = answers.container_status(found)
    assert (told.created_at, told.started_at, told.finished_at) == (1_500_000_000, 2_500_000_000, 3_500_000_000)
    assert (told.state, told.exit_code, told.reason, told.message) == (pb.CONTAINER_EXITED, 137, "OOMKilled", "words")
    assert told.image_id == told.image_ref == "sha256:1"
    assert list(told.mounts) == [pb.Mount(container_path="/a", host_path="/b", readonly=True)]
    assert told.log_path == "/var/log/pods/x/c.log"
    assert told.stop_signal == pb.SIGNAL_SIGQUIT
    assert (told.user.linux.uid, told.user.linux.gid, list(told.user.linux.supplemental_groups)) == (1, 2, [2, 3])
    assert dict(told.annotations) == {"c": "d"}
    assert answers.container(found).image_id == "sha256:1"


def test_a_pod_tells_all_its_addresses() -> None:
    found = Pod("i", PodOptions("web", "shop", "u"), 1.0, None, ("10.0.0.2", "fd00::2"))
    told = answers.pod_status(found)
    assert told.network.ip == "10.0.0.2"
    assert [one.ip for one in told.network.additional_ips] == ["fd00::2"]
    assert told.state == pb.SANDBOX_NOTREADY
    host = answers.pod_status(found._replace(options=found.options._replace(network="host")))
    assert host.network.ip == "", "the kubelet knows the node's"
