"""Pods without a host: what is refused, how values are kept, rates, where cgroups lie and what limits add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from wherry.engine import codec
from wherry.engine.config import Settings
from wherry.engine.db import Container, Database, PodRow
from wherry.engine.house import House
from wherry.engine.pods import cgroups, checking, namespaces, network, records, sandbox, security
from wherry.engine.pods.values import Held, IdMap, PodOptions, PodSecurity
from wherry.errors import Kind, WherryError
from wherry.kernel.process import Process
from wherry.model import Json, PortMapping
from wherry.oci.facts import HostFacts

GOOD = PodOptions("web", "default", "uid-1")
FULL = GOOD._replace(
    attempt=2, hostname="web-0", log_directory="/var/log/pods/x", labels={"a": "b"}, annotations={"c": "d"},
    dns=("192.0.2.1",), dns_search=("a.example",), dns_option=("ndots:5",), has_dns=True,
    ports=(PortMapping(80, 8080, "udp", "127.0.0.1"),), pid="pod", uids=(IdMap(0, 100000, 65536),),
    gids=(IdMap(0, 100000, 1000), IdMap(1000, 300000, 10)), cgroup_parent="/kubepods/burstable/podx",
    sysctls={"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4"}, resources={"memory": {"limit": 1}},
    overhead={"cpu": {"shares": 2}}, privileged=True, selinux=("u", "r", "t", "l"), handler="crun",
)  # fmt: skip


@pytest.mark.parametrize("good", [GOOD, FULL, GOOD._replace(sysctls={"fs/mqueue/msg_max": "10"}, network="host")])
def test_what_is_asked_is_kept_as_it_is(good: PodOptions) -> None:
    checking.check(good)
    assert records.decode(records.encode(good)) == good


@pytest.mark.parametrize(("change", "why"), [
    ({"name": ""}, "no name"), ({"uid": ""}, "no uid"), ({"namespace": "a/b"}, "namespace"), ({"name": "a\n"}, "name"),
    ({"name": "a;b"}, "name"), ({"uid": "x=y"}, "uid"), ({"name": "n" * 254}, "name"),
    ({"network": "container"}, "network"), ({"pid": "target"}, "pid"), ({"ipc": ""}, "ipc"),
    ({"hostname": "h" * 65}, "hostname"), ({"hostname": "a b"}, "hostname"), ({"hostname": "-a"}, "hostname"),
    ({"log_directory": "var/log"}, "log directory"), ({"log_directory": "/var/../etc"}, "log directory"),
    ({"log_directory": "/a\0b"}, "log directory"), ({"cgroup_parent": "/a\0b"}, "cgroup parent"),
    ({"ports": (PortMapping(0, 80),)}, "port"), ({"ports": (PortMapping(80, 70000),)}, "port"),
    ({"ports": (PortMapping(80, 80, "icmp"),)}, "protocol"),
    ({"sysctls": {"kernel.panic": "1"}}, "change the host"), ({"sysctls": {"kernel.hostname": "x"}}, "change the host"),
    ({"sysctls": {"net.//.kernel.panic": "1"}}, "change the host"), ({"sysctls": {"net/../kernel/panic": "1"}}, "host"),
    ({"sysctls": {"user.max_ipc_namespaces": "1"}}, "change the host"),
    ({"sysctls": {"net.core.somaxconn": "1"}, "network": "host"}, "host's network"),
    ({"sysctls": {"kernel.sem": "1"}, "ipc": "host"}, "host's ipc"), ({"sysctls": {"kernel.sem": "1\n2"}}, "one line"),
    ({"uids": (IdMap(0, 1, 10),)}, "gids"), ({"gids": (IdMap(0, 1, 10),)}, "uids"),
    ({"uids": (IdMap(1, 1, 10),), "gids": (IdMap(0, 1, 10),)}, "no id 0"),
    ({"uids": (IdMap(0, 1, 0),), "gids": (IdMap(0, 1, 1),)}, "no range"),
    ({"uids": (IdMap(0, -1, 5),), "gids": (IdMap(0, 1, 1),)}, "no range"),
    ({"uids": (IdMap(0, 1 << 32, 1),), "gids": (IdMap(0, 1, 1),)}, "no range"),
    ({"uids": (IdMap(0, 100, 10), IdMap(5, 200, 10)), "gids": (IdMap(0, 1, 1),)}, "overlap"),
    ({"uids": (IdMap(0, 100, 10), IdMap(10, 105, 10)), "gids": (IdMap(0, 1, 1),)}, "overlap"),
])  # fmt: skip
def test_what_cannot_be_is_refused(change: Json, why: str) -> None:
    with pytest.raises(WherryError, match=why) as error:
        checking.check(GOOD._replace(**change))
    assert error.value.kind is Kind.INVALID
    assert "\n" not in error.value.message
    assert "\0" not in error.value.message


@pytest.mark.parametrize(("text", "rate"), [
    ("10M", 10_000_000), ("1k", 1000), ("1Ki", 1024), ("1.5G", 1_500_000_000), ("2000000m", 2000), ("1e6", 1_000_000),
    ("1E3", 1000), ("1P", 10**15), ("12345", 12345),
])  # fmt: skip
def test_a_rate_is_a_quantity_of_kubernetes(text: str, rate: int) -> None:
    assert network._rate("x", text) == rate


@pytest.mark.parametrize("text", ["", "10", "999", "2P", "-5M", "M", "1 M", "1x", "0x10", "1e99", "9" * 30, "1.2.3k"])
def test_no_rate(text: str) -> None:
    with pytest.raises(WherryError, match="is no rate"):
        network._rate("x", text)


def test_bandwidth_and_cgroup_are_told_where_they_are_declared() -> None:
    asked = GOOD._replace(annotations={"kubernetes.io/egress-bandwidth": "1M"})
    both = network._wishes({"bandwidth", "cgroupPath"}, asked, "/x")
    assert both == {"bandwidth.egressRate": "1000000", "bandwidth.egressBurst": "2147483647", "cgroupPath": "/x"}
    assert network._wishes(set(), asked, "/x") == {}


def test_the_resources_of_a_pod_are_its_containers_and_its_overhead() -> None:
    containers = {"memory": {"limit": 100, "swap": 100}, "cpu": {"shares": 512, "quota": -1, "period": 100000}}
    assert cgroups._sum(containers, {}) == containers
    more = {"memory": {"limit": 10}, "cpu": {"shares": 2}, "pids": {"limit": 5}}
    assert cgroups._sum(containers, more) == {
        "memory": {"limit": 110, "swap": 100}, "cpu": {"shares": 514, "quota": -1, "period": 100000},
        "pids": {"limit": 5},
    }  # fmt: skip
    assert cgroups._sum({"memory": {"limit": -1}}, more)["memory"]["limit"] == -1


class FakeHouse:
    """Settings and facts alone: all that is looked at where nothing is made."""

    class facts:  # as an attribute
        cgroup_mount = "/cg"

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)


@pytest.mark.parametrize(("driver", "parent", "path", "slice_", "own"), [
    ("cgroupfs", "", "/cg/wherry/pod-p", "", True), ("cgroupfs", "/kubepods/podx", "/cg/kubepods/podx", "", False),
    ("systemd", "", "/cg/wherry.slice/wherry-podp.slice", "wherry-podp.slice", True),
    ("systemd", "kube-besteffort.slice", "/cg/kube.slice/kube-besteffort.slice", "kube-besteffort.slice", False),
    ("systemd", "/kubepods.slice/kubepods-podx.slice", "/cg/kubepods.slice/kubepods-podx.slice", "kubepods-podx.slice",
     False),
])  # fmt: skip
def test_where_the_cgroup_of_a_pod_lies(driver: str, parent: str, path: str, slice_: str, own: bool) -> None:
    house = cast("House", FakeHouse(pod_cgroup_driver=driver))
    place = cgroups.locate(house, "p", GOOD._replace(cgroup_parent=parent))
    assert place == cgroups.Place(path, slice_, own)


@pytest.mark.parametrize(("driver", "parent"), [("cgroupfs", "/a/../../b"), ("systemd", "/kubepods/podx"),
                                                ("systemd", "a--b.slice")])  # fmt: skip
def test_a_cgroup_parent_that_is_none(driver: str, parent: str) -> None:
    with pytest.raises(WherryError) as error:
        cgroups.locate(cast("House", FakeHouse(pod_cgroup_driver=driver)), "p", GOOD._replace(cgroup_parent=parent))
    assert error.value.kind is Kind.INVALID


def test_the_way_to_a_parent_that_was_missing_goes_again_as_far_as_nobody_is_in_it(tmp_path: Path) -> None:
    deep, beside = cgroups.Place(str(tmp_path / "a/b/c")), cgroups.Place(str(tmp_path / "a/x"))
    assert (cgroups.absent(deep), cgroups.absent(cgroups.Place())) == (3, 0)
    assert cgroups.absent(deep._replace(slice="s")) == 0
    (tmp_path / "a/b/c").mkdir(parents=True)
    assert (cgroups.absent(deep), cgroups.absent(beside)) == (0, 1)
    (tmp_path / "a/x").mkdir()
    cgroups.remove(deep, made=0)
    assert (tmp_path / "a/b/c").is_dir()
    cgroups.remove(deep, made=3)
    cgroups.remove(deep, made=3)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "x"], "who is beside keeps what is above both"
    cgroups.remove(beside, made=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"], "no more than was made"
    cgroups.remove(deep, made=3)
    assert list(tmp_path.iterdir()) == []


def test_network_sysctls_have_defaults_that_a_wish_overrides() -> None:
    assert namespaces._network_sysctls(GOOD) == {
        "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}  # fmt: skip
    asked = FULL._replace(sysctls={"net.ipv4.ip_unprivileged_port_start": "100", "kernel.sem": "1"})
    assert namespaces._network_sysctls(asked) == {
        "net.ipv4.ip_unprivileged_port_start": "100", "net.ipv4.ping_group_range": "0 999"}  # fmt: skip


@pytest.mark.parametrize(("asked", "label"), [
    (("", "", "", ""), "system_u:object_r:container_file_t:s0:c170,c171"),
    (("user_u", "r", "t_t", "s0:c1,c2"), "user_u:object_r:container_file_t:s0:c1,c2"),
])  # fmt: skip
def test_the_shared_memory_of_a_pod_has_the_pod_s_label(asked: tuple[str, str, str, str], label: str) -> None:
    pod, options = "00aa00ab" + "0" * 56, GOOD._replace(selinux=asked, privileged=True)
    without = namespaces.shm_mount(pod, options, HostFacts())
    assert without.options == ("mode=1777", "size=67108864", "noexec")
    labelled = namespaces.shm_mount(pod, options, HostFacts(selinux=True))
    assert labelled.options == ("mode=1777", "size=67108864", f"context={label}", "noexec")
    of_a_member = security.confinement(cast("House", Confined()), pod, PodSecurity(selinux=asked), ()).selinux[1]
    assert of_a_member == label, "as what its containers write"


class Confined:
    """A host with SELinux and nothing else."""

    facts = HostFacts(selinux=True)


def test_what_is_held_is_read_as_it_was_written() -> None:
    held = Held("p", "/n", "/i", "/u", "/p", "/user", FULL.uids, FULL.gids, "/shm", {"/etc/hosts": "/h"}, "/cg",
                "x.slice", "web", ("10.0.0.2", "fd00::2"), Process(12, 345))  # fmt: skip
    assert codec.plain(Held, codec.encode(held), records._HELD) == held


# ---- rows ----


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(str(tmp_path / "w.db"))


def row(pod: str, **change: Any) -> PodRow:
    return PodRow(pod, "ns", "web", "uid", 0, 1.0, {"options": {}})._replace(**change)


def test_a_pod_is_one_by_its_names(db: Database) -> None:
    db.add_pod(row("aa11"))
    with pytest.raises(WherryError) as error:
        db.add_pod(row("bb22"))
    assert error.value.kind is Kind.EXISTS
    db.add_pod(row("ab33", attempt=1, created=2.0))
    assert [found.id for found in db.pods()] == ["ab33", "aa11"]
    assert db.pod_of("ns", "web", "uid", 1) == db.pod("ab33") == db.find_pod("ab")
    assert db.pod_ids() == {"aa11", "ab33"}
    for ref, kind in (("a", Kind.INVALID), ("c", Kind.NOT_FOUND), ("", Kind.NOT_FOUND), ("web", Kind.NOT_FOUND)):
        with pytest.raises(WherryError) as error:
            db.find_pod(ref)
        assert error.value.kind is kind, ref
    db.set_pod("aa11", {"options": {"x": 1}})
    assert db.find_pod("aa").config == {"options": {"x": 1}}


def test_a_pod_stays_as_long_as_it_has_containers(db: Database) -> None:
    db.add_pod(row("aa11"))
    mine, other = Container("c1", "one", 1.0, "img", {}, "aa11"), Container("c2", "two", 2.0, "img", {})
    db.add_container(mine)
    db.add_container(other)
    assert db.members() == db.members("aa11") == [mine]
    assert db.container("c2") == other
    with pytest.raises(WherryError) as error:
        db.remove_pod("aa11")
    assert error.value.kind is Kind.CONFLICT
    db.remove_container("c1")
    db.remove_pod("aa11")
    db.remove_pod("aa11")
    with pytest.raises(WherryError) as error:
        db.add_container(mine)
    assert error.value.kind is Kind.CONFLICT, "its pod was removed meanwhile"


def test_a_handler_that_is_not_configured_is_refused() -> None:
    house = cast("House", FakeHouse(handlers={"crun": "/usr/bin/crun"}))
    for known in ("", "wherry", "crun"):
        sandbox._check_handler(house, known)
    with pytest.raises(WherryError, match="kata"):
        sandbox._check_handler(house, "kata")
