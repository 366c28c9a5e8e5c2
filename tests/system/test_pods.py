"""Pods through the engine: what they hold, that it goes, and that a failure or a kill at any step leaves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.pods import MAPS, Pods, inode, namespace, spy
from helpers.wherry import Wherry, until
from wherry.engine.pods import cgroups, files, member, namespaces, network, pause, records, sandbox
from wherry.engine.pods.values import MemberOptions, PodSecurity
from wherry.engine.undo import making
from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.model import PortMapping

pytestmark = pytest.mark.root
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)


@pytest.fixture
def pods(wherry: Wherry, tmp_path: Path) -> Iterator[Pods]:
    made = Pods(wherry, tmp_path)
    yield made
    made.remove_all()
    assert made.leftovers() == []


def owner(path: str) -> int:
    """The inode of the user namespace that owns a namespace."""
    with open(path, "rb") as file:
        fd = fcntl.ioctl(file, _NS_GET_USERNS)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


# ---- what it is ----


def test_a_pod_holds_what_was_asked_and_gives_it_back(pods: Pods) -> None:
    asked = pods.options(hostname="web-0", dns=("192.0.2.53",), dns_search=("a.example",), dns_option=("ndots:5",),
                         has_dns=True, labels={"app": "web"}, annotations={"k": "v"})  # fmt: skip
    pod = pods.engine.run_pod(asked)
    told = pods.engine.pod(pod[:12])
    held = pods.held(pod)
    assert (told.id, told.options, told.ready) == (pod, asked, True)
    assert told.ips == held.ips == ("10.88.9.2", "fd00:88:9::2")
    assert [one.id for one in pods.engine.pods()] == [pod]
    own = {kind: inode(path) for kind, path in (("net", held.netns), ("ipc", held.ipc), ("uts", held.uts))}
    assert not set(own.values()) & {inode(f"/proc/self/ns/{kind}") for kind in own}
    assert namespace(held.uts, "hostname", kind="uts") == "web-0"
    assert "10.88.9.2/24" in namespace(held.netns, "ip", "-br", "addr")
    texts = {inside: Path(path).read_text() for inside, path in held.files.items()}
    assert texts["/etc/resolv.conf"] == "search a.example\nnameserver 192.0.2.53\noptions ndots:5\n"
    assert texts["/etc/hostname"] == "web-0\n"
    assert "10.88.9.2\tweb-0\n" in texts["/etc/hosts"]
    assert os.stat(held.shm).st_mode & 0o7777 == 0o1777
    assert (held.pid, held.user, held.pause) == ("", "", None)
    pods.engine.stop_pod(pod)
    after = pods.engine.pod(pod)
    assert (after.ready, after.ips) == (False, held.ips), "the addresses are still told"
    assert not os.path.exists(held.netns)
    pods.engine.stop_pod(pod)
    pods.engine.remove_pod(pod)
    pods.engine.remove_pod(pod)
    with pytest.raises(WherryError) as error:
        pods.engine.pod(pod)
    assert error.value.kind is Kind.NOT_FOUND
    pods.engine.stop_pod(pod)
    events = pods.engine.events(since=1, until=time.time() + 1, filters={"type": ["pod"]}, follow=False)
    assert [event["Action"] for event in events] == ["create", "start", "stop", "destroy"]


def test_no_process_stays_with_a_pod(pods: Pods) -> None:
    held = pods.held(pods.run())
    assert os.path.isdir(held.cgroup)
    assert not Path(f"{held.cgroup}/cgroup.procs").read_text().strip()
    users = subprocess.run(["lsns", "-n", "-o", "PID", str(inode(held.netns))], capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert users.stdout.strip() in ("", "0")


def test_the_same_pod_again_is_the_same_while_it_is_ready(pods: Pods) -> None:
    asked = pods.options()
    pod = pods.engine.run_pod(asked)
    assert pods.open().run_pod(asked) == pod
    assert pods.engine.run_pod(asked._replace(attempt=1)) != pod
    pods.engine.stop_pod(pod)
    with pytest.raises(WherryError) as error:
        pods.engine.run_pod(asked)
    assert error.value.kind is Kind.EXISTS


@pytest.mark.parametrize("given", [
    {"network": "host"}, {"ipc": "host"}, {"network": "host", "ipc": "host", "pid": "host"},
    {"network": "host", "pid": "pod"}, {"ipc": "host", "pid": "pod"},
], ids="-".join)  # fmt: skip
def test_what_is_shared_with_the_host(pods: Pods, given: dict[str, Any]) -> None:
    held = pods.held(pods.run(**given))
    alone = {"network": (held.netns, held.uts), "ipc": (held.ipc, held.shm)}
    for kind, paths in alone.items():
        assert all(paths) == (kind not in given)
        assert any(paths) == (kind not in given)
    assert bool(held.pause) == bool(held.pid) == (given.get("pid") == "pod")
    if "network" in given:
        assert Path(held.files["/etc/hosts"]).read_text() == Path("/etc/hosts").read_text()
        assert held.hostname == os.uname().nodename


def test_without_a_dns_config_the_host_s_file_and_with_an_empty_one_nothing(pods: Pods) -> None:
    absent, empty = pods.held(pods.run(network="host")), pods.held(pods.run(has_dns=True))
    host = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    told = Path(absent.files["/etc/resolv.conf"]).read_text().splitlines()
    assert [line for line in told if line.startswith("nameserver")] == host
    assert Path(empty.files["/etc/resolv.conf"]).read_text() == ""


def test_sysctls_are_the_pod_s_alone(pods: Pods) -> None:
    before = {name: Path(f"/proc/sys/{name}").read_text() for name in ("kernel/shmmax", "net/ipv4/ip_local_port_range")}
    given = {"kernel.shmmax": "12345678", "net.ipv4.ip_local_port_range": "2000\t3000",
             "net/ipv4/conf/eth0/forwarding": "1"}  # fmt: skip
    held = pods.held(pods.run(sysctls=given))
    names = ("ip_local_port_range", "conf/eth0/forwarding", "ip_unprivileged_port_start", "ping_group_range")
    read = namespace(held.netns, "cat", *(f"/proc/sys/net/ipv4/{name}" for name in names))
    assert read.split() == ["2000", "3000", "1", "0", "0", "2147483647"]
    assert namespace(held.ipc, "cat", "/proc/sys/kernel/shmmax", kind="ipc") == "12345678"
    assert {name: Path(f"/proc/sys/{name}").read_text() for name in before} == before


@pytest.mark.parametrize("given", [{"net.ipv4.no_such_thing": "1"}, {"kernel.shmmax": "many"}])
def test_a_sysctl_that_the_kernel_refuses_fails_the_pod(pods: Pods, given: dict[str, str]) -> None:
    with pytest.raises(WherryError, match="sysctl"):
        pods.run(sysctls=given)
    assert pods.leftovers() == []


# ---- a user namespace, a shared pid namespace ----


@pytest.mark.parametrize("pid", ["container", "pod"])
def test_a_user_namespace_owns_the_others(pods: Pods, pid: str) -> None:
    given = {"kernel.shmmax": "12345678", "net.ipv4.ip_local_port_range": "2000\t3000"}
    held = pods.held(pods.run(uids=MAPS, gids=MAPS, sysctls=given, hostname="mapped", pid=pid))
    mine = inode(held.user)
    assert {owner(path) for path in (held.netns, held.ipc, held.uts, *([held.pid] if held.pid else []))} == {mine}
    assert (os.stat(held.shm).st_uid, os.stat(held.shm).st_gid) == (300000, 300000)
    assert namespace(held.ipc, "cat", "/proc/sys/kernel/shmmax", kind="ipc") == "12345678"
    read = namespace(held.netns, "cat", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ping_group_range")
    assert read.split() == ["2000", "3000", "300000", "365535"], "the ids of whoever reads"
    assert namespace(held.uts, "hostname", kind="uts") == "mapped"
    inside = ["nsenter", f"--user={held.user}", f"--net={held.netns}", "--setuid", "1000", "--setgid", "1000"]
    ping = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    low = "import socket; socket.create_server(('127.0.0.1', 80))"
    for program in (ping, low):
        done = subprocess.run([*inside, "/usr/bin/python3", "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "10.88.9.2/24" in namespace(held.netns, "ip", "-br", "addr")
    if held.pause:
        assert Path(f"/proc/{held.pause.pid}/uid_map").read_text().split() == ["0", "300000", "65536"]


@pytest.mark.parametrize("given", [{"network": "host"}, {"network": "host", "ipc": "host"}, {"ipc": "host"}],
                         ids="-".join)  # fmt: skip
def test_a_user_namespace_beside_the_host_s(pods: Pods, given: dict[str, str]) -> None:
    held = pods.held(pods.run(uids=MAPS, gids=MAPS, pid="pod", **given))
    assert held.pause is not None
    mine = f"/proc/{held.pause.pid}/ns"
    assert inode(f"{mine}/user") == inode(held.user) != inode("/proc/self/ns/user")
    assert (inode(f"{mine}/net") == inode("/proc/self/ns/net")) == ("network" in given)
    assert (inode(f"{mine}/ipc") == inode("/proc/self/ns/ipc")) == ("ipc" in given)


def test_a_shared_pid_namespace_has_a_pause_without_rights(pods: Pods) -> None:
    pod = pods.run(pid="pod")
    held = pods.held(pod)
    assert held.pause is not None
    status = Path(f"/proc/{held.pause.pid}/status").read_text()
    rights = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    assert set(rights) == {"0" * 16}
    assert "Uid:\t65535\t65535\t65535\t65535" in status
    assert "NoNewPrivs:\t1" in status
    assert inode(f"/proc/{held.pause.pid}/ns/pid") == inode(held.pid) != inode("/proc/self/ns/pid")
    for kind, path in (("net", held.netns), ("ipc", held.ipc), ("uts", held.uts)):
        assert inode(f"/proc/{held.pause.pid}/ns/{kind}") == inode(path)
    assert not [name for name in os.listdir(f"/proc/{held.pause.pid}/fd") if int(name) > 2]
    assert os.listdir(f"/proc/{held.pause.pid}/root") in ([], ["dev"])
    orphan = subprocess.run(["nsenter", f"--pid={held.pid}", "sh", "-c", "(sleep 0.05 &) ; exit 0"], check=False)
    assert orphan.returncode == 0
    time.sleep(0.3)
    children = Path(f"/proc/{held.pause.pid}/task/{held.pause.pid}/children").read_text().split()
    assert children == [], "what is orphaned is reaped"
    subprocess.run(["nsenter", f"--pid={held.pid}", "kill", "-9", "1"], check=False)
    subprocess.run(["nsenter", f"--pid={held.pid}", "kill", "-15", "1"], check=False)
    assert pods.engine.pod(pod).ready, "nobody inside can end it"


def test_a_pod_whose_pause_died_is_not_ready_and_can_be_stopped(pods: Pods) -> None:
    pod = pods.run(pid="pod")
    held = pods.held(pod)
    assert held.pause is not None
    process.signal(held.pause, 9)
    process.wait_gone(held.pause, 5)
    assert not pods.engine.pod(pod).ready
    assert [one.ready for one in pods.engine.pods()] == [False]
    pods.engine.stop_pod(pod)
    pods.engine.remove_pod(pod)
    assert pods.leftovers() == []


# ---- the network ----


@contextlib.contextmanager
def serving(netns: str, port: int) -> Iterator[None]:
    """Something answers "pod" on a port in the pod's network."""
    program = f"""
import socket
server = socket.create_server(("0.0.0.0", {port}))
print("on", flush=True)
while True:
    one, _ = server.accept(); one.sendall(b"pod"); one.close()
"""
    command = ["nsenter", f"--net={netns}", "python3", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield
        finally:
            server.kill()


def said(address: str, port: int) -> bytes:
    with socket.create_connection((address, port), timeout=3) as one:
        return one.recv(16)


def test_a_host_port_leads_to_the_pod_and_is_free_again(pods: Pods) -> None:
    ports = (PortMapping(80, 18080, host_ip="127.0.0.1"), PortMapping(81, 0))
    pod = pods.run(ports=ports)
    with serving(pods.held(pod).netns, 80):
        assert said("127.0.0.1", 18080) == b"pod"
    with pytest.raises(WherryError, match="18080"):
        pods.run(ports=(PortMapping(80, 18080, host_ip="127.0.0.1"),))
    pods.engine.stop_pod(pod)
    assert pods.engine.pod(pods.run(ports=ports)).ready


def test_plugins_are_told_whose_pod_it_is(pods: Pods) -> None:
    wanted = ("portMappings", "bandwidth", "dns", "cgroupPath")
    calls = spy(pods, capabilities=dict.fromkeys(wanted, True))
    notes = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Ki"}
    parent = f"/{pods.wherry.id}/y"
    pod = pods.run(name="web", uid="123", annotations=notes, dns=("192.0.2.53",), has_dns=True, cgroup_parent=parent,
                   ports=(PortMapping(80, 18081, "udp", "127.0.0.1"), PortMapping(81)))  # fmt: skip
    assert pods.held(pod).ips == ("192.0.2.7", "2001:db8::7")
    told = dict(line.split("=", 1) for line in (calls / "0-ADD/env").read_text().splitlines())
    assert told["CNI_ARGS"].split(";") == [
        "IgnoreUnknown=1", "K8S_POD_NAMESPACE=ns", "K8S_POD_NAME=web", f"K8S_POD_INFRA_CONTAINER_ID={pod}",
        "K8S_POD_UID=123",
    ]  # fmt: skip
    assert (told["CNI_CONTAINERID"], told["CNI_IFNAME"]) == (pod, "eth0")
    given = json.loads((calls / "0-ADD/config").read_text())["runtimeConfig"]
    burst = 2147483647
    assert given == {
        "portMappings": [{"hostPort": 18081, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": burst, "egressRate": 1024, "egressBurst": burst},
        "dns": {"servers": ["192.0.2.53"]},
        "cgroupPath": parent,
    }
    pods.engine.remove_pod(pod)
    assert [name.name for name in sorted(calls.iterdir())] == ["0-ADD", "1-DEL"]
    assert json.loads((calls / "1-DEL/config").read_text())["runtimeConfig"] == given


def test_a_list_of_the_host_s_is_meant_though_a_network_of_ours_is_called_so(pods: Pods, wherry: Wherry) -> None:
    calls = spy(pods)
    ours = {"cniVersion": "1.0.0", "name": "bridge", "plugins": [{"type": "spy"}]}
    pods.write_list("00-spy", ours)
    wherry("network", "inspect", "bridge")  # it is made
    pod = pods.run()
    assert pods.held(pod).ips[0] == "192.0.2.7"
    pods.engine.remove_pod(pod)
    assert [name.name for name in sorted(calls.iterdir())] == ["0-ADD", "1-DEL"]


def test_an_add_that_fails_is_undone_by_del(pods: Pods) -> None:
    calls = spy(pods)
    Path(f"{calls}.fail-ADD").touch()
    with pytest.raises(WherryError, match="told to fail"):
        pods.run()
    assert [name.name.partition("-")[2] for name in sorted(calls.iterdir())][:2] == ["ADD", "DEL"]
    assert pods.leftovers() == []
    assert pods.engine.pods() == []


def test_a_del_that_fails_is_owed_until_it_is_done(pods: Pods) -> None:
    calls = spy(pods)
    pod = pods.run()
    Path(f"{calls}.fail-DEL").touch()
    for verb in (pods.engine.stop_pod, pods.engine.remove_pod):
        with pytest.raises(WherryError, match="told to fail"):
            verb(pod)
        assert not pods.engine.pod(pod).ready
    os.unlink(f"{calls}.fail-DEL")
    pods.engine.stop_pod(pod)
    count = len(list(calls.iterdir()))
    pods.engine.stop_pod(pod)
    pods.engine.remove_pod(pod)
    assert len(list(calls.iterdir())) == count, "done once, it is not done again"


def test_the_namespace_may_be_gone_at_the_stop(pods: Pods) -> None:
    pod = pods.run()
    subprocess.run(["umount", pods.held(pod).netns], check=True)
    os.unlink(f"{pods.wherry.state}/netns/{pod}")
    pods.engine.stop_pod(pod)
    pods.engine.remove_pod(pod)
    assert pods.leftovers() == []


def test_without_a_list_there_is_no_network_and_it_is_said(pods: Pods) -> None:
    assert pods.engine.network_ready() == ""
    for path in pods.lists.iterdir():
        path.unlink()
    assert "no CNI network" in pods.engine.network_ready()
    with pytest.raises(WherryError) as error:
        pods.run()
    assert error.value.kind is Kind.UNAVAILABLE
    assert pods.engine.pod(pods.run(network="host")).ready
    pods.write_list("10-x", {"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "no-such-plugin"}]})
    assert "no-such-plugin" in pods.engine.network_ready()


# ---- the cgroup ----


def test_a_cgroup_of_its_own_or_the_parent_that_was_asked_for(pods: Pods) -> None:
    top = Path(f"{pods.house.facts.cgroup_mount}/{pods.wherry.id}")
    own = pods.run()
    assert pods.held(own).cgroup == f"{top}/pod-{own}"
    made, there = pods.run(cgroup_parent=f"/{pods.wherry.id}/made/here"), top / "there"
    assert pods.held(made).cgroup == f"{top}/made/here"
    there.mkdir()
    found = pods.run(cgroup_parent=f"/{pods.wherry.id}/there")
    for pod in (own, made, found):
        pods.engine.remove_pod(pod)
    assert there.is_dir(), "who made it takes it away"
    assert not (top / f"pod-{own}").exists()
    assert not (top / "made").exists(), "nor does the way to it stay"
    there.rmdir()


def test_limits_that_this_host_cannot_set_are_told(pods: Pods) -> None:
    limits = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}}
    pod = pods.run(resources=limits, overhead={"memory": {"limit": 1 << 20}})
    have = set(pods.house.facts.cgroup_available)
    if {"memory", "cpu"} <= have:
        assert Path(f"{pods.held(pod).cgroup}/memory.max").read_text().strip() == str(65 << 20)
    else:
        assert any("controller" in text for text in pods.warnings)
    pods.engine.update_pod(pod, {"memory": {"limit": 128 << 20}}, {})
    assert pods.engine.pod(pod).options.resources == {"memory": {"limit": 128 << 20}, "cpu": {"shares": 512}}


# ---- failures and kills at every step ----

STEPS: list[tuple[Any, str]] = [
    (sandbox, "_make_directory"), (namespaces, "make"), (namespaces, "shm"), (network, "join"),
    (namespaces, "set_sysctls"), (files, "write"), (cgroups, "make"), (pause, "start"), (records, "store"),
]  # fmt: skip


def after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, then: Callable[[], None]) -> None:
    """The step is done, and then something happens."""
    real = getattr(module, name)

    def step(*words: Any, **options: Any) -> Any:
        result = real(*words, **options)
        then()
        return result

    monkeypatch.setattr(module, name, step)


def fail() -> None:
    raise WherryError(Kind.INTERNAL, "injected")


@pytest.mark.parametrize("maps", [(), MAPS], ids=["", "userns"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_failure_after_any_step_leaves_nothing(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, maps: Any
) -> None:
    asked = pods.options(pid="pod", uids=maps, gids=maps, sysctls={"kernel.shmmax": "12345678"})
    with monkeypatch.context() as patched:
        after(patched, module, name, fail)
        with pytest.raises(WherryError, match="injected"):
            pods.engine.run_pod(asked)
    assert pods.engine.pods() == []
    if name != "_make_directory":  # nothing but an empty directory is there before there is an undo
        assert pods.leftovers() == []
    pods.wherry("gc")
    assert pods.leftovers() == []


def killed(work: Callable[[], object]) -> None:
    """`work` in a process of its own, which is expected to be killed in it."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def die() -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(("module", "name"), [*STEPS, (sandbox, "_tell")], ids=[*(name for _, name in STEPS), "_tell"])
def test_a_kill_after_any_step_of_a_run_leaves_what_a_sweep_finds(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    with monkeypatch.context() as patched:
        after(patched, module, name, die)
        killed(lambda: pods.open().run_pod(pods.options(pid="pod")))
    for one in pods.engine.pods():  # it was made, or as good as
        assert one.ready == (name in ("store", "_tell"))
        pods.engine.remove_pod(one.id)
    with making(pods.house):  # others are at it all the time: that keeps no sweep from what is nobody's
        pods.open().sweep()
        assert name == "_make_directory" or pods.leftovers() == []
    pods.wherry("gc")
    assert pods.leftovers() == []


ENDS: list[tuple[Any, str]] = [
    (records, "forget"), (pause, "end"), (network, "leave"), (namespaces, "release"), (cgroups, "remove"),
    (sandbox, "_stop"), (sandbox, "_forget"),
]  # fmt: skip


@pytest.mark.parametrize("again", ["remove", "gc"])
@pytest.mark.parametrize(("module", "name"), ENDS, ids=[name for _, name in ENDS])
def test_a_kill_after_any_step_of_a_removal_is_finished_by_the_next(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, again: str
) -> None:
    pod = pods.run(pid="pod")
    with monkeypatch.context() as patched:
        after(patched, module, name, die)
        killed(lambda: pods.open().remove_pod(pod))
    assert [one for one in pods.engine.pods() if one.ready] == []
    if again == "gc":
        pods.wherry("gc")
        assert [path for path in pods.leftovers() if not path.startswith(f"{pods.wherry.root}/pods")] == []
    pods.engine.remove_pod(pod)
    pods.wherry("gc")
    assert pods.leftovers() == []


# ---- with containers in it ----


@pytest.fixture
def image(pods: Pods, busybox: str) -> str:
    return pods.engine.load(busybox)[0].id


def sleeper(pods: Pods, pod: str, image: str, script: str = "sleep 1000", **given: Any) -> str:
    name = f"c{len(pods.engine.members())}"
    return pods.engine.create_member(pod, MemberOptions(name, image, command=("sh", "-c", script), **given))


@pytest.mark.parametrize("pid", ["container", "pod"])
def test_a_stop_ends_what_still_runs_and_a_removal_removes_it(pods: Pods, image: str, pid: str) -> None:
    pod = pods.run(pid=pid)
    stubborn, created = sleeper(pods, pod, image, "trap '' TERM; while :; do sleep 1; done"), sleeper(pods, pod, image)
    pods.engine.start(stubborn)
    until(lambda: pods.engine.member(stubborn).state == "running")
    with pytest.raises(WherryError) as error:
        pods.house.db.remove_pod(pod)
    assert error.value.kind is Kind.CONFLICT
    began = time.monotonic()
    pods.engine.stop_pod(pod)
    assert time.monotonic() - began < 8, "nobody is asked politely: the kubelet has done that before"
    told = {one.id: one for one in pods.engine.members()}
    assert (told[stubborn].state, told[stubborn].code) == ("exited", 137)
    assert told[created].state == "created"
    with pytest.raises(WherryError) as error:
        pods.engine.start(created)
    assert error.value.kind is Kind.CONFLICT
    pods.engine.remove_pod(pod)
    assert pods.engine.members() == []


def test_the_pause_is_no_way_to_the_host(pods: Pods, image: str) -> None:
    pod = pods.run(pid="pod")
    security = PodSecurity(pid="pod", cap_add=("SYS_PTRACE", "KILL"))
    look = "ls -a /proc/1/root/ | xargs; kill -9 1; kill -15 1; ls /proc/1/root/dev | wc -l; sleep 1000"
    log = f"{pods.bin.parent}/log"
    container = sleeper(pods, pod, image, look, security=security, log=log)
    pods.engine.start(container)
    lines = until(lambda: len(found := Path(log).read_text().splitlines()) > 1 and found)
    assert lines[0].partition(" F ")[2] in (". ..", ". .. dev")
    assert pods.engine.pod(pod).ready
    asked = {"security": PodSecurity(pid="pod"), "log": f"{log}2"}
    without = sleeper(pods, pod, image, "ls /proc/1/root || echo refused", **asked)
    pods.engine.start(without)
    until(lambda: "stdout F refused" in Path(f"{log}2").read_text())


def test_no_container_is_missed_by_a_stop_at_the_moment_of_its_start(pods: Pods, image: str) -> None:
    pod = pods.run(network="host")
    made = [sleeper(pods, pod, image) for _ in range(6)]

    def start(container: str) -> None:
        with contextlib.suppress(WherryError):
            pods.engine.start(container)

    threads = [threading.Thread(target=start, args=(container,)) for container in made]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    pods.open().stop_pod(pod)
    for thread in threads:
        thread.join()
    assert not [one for one in pods.engine.members() if one.state == "running"]
    assert not pods.engine.pod(pod).ready


@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_a_kill_between_the_ends_of_two_containers(
    pods: Pods, image: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    pod = pods.run()
    for _ in range(2):
        pods.engine.start(sleeper(pods, pod, image))
    with monkeypatch.context() as patched:
        after(patched, member, verb, die)
        killed(lambda: pods.open().remove_pod(pod))
    pods.engine.stop_pod(pod)
    assert {one.state for one in pods.engine.members()} <= {"exited"}
    pods.engine.remove_pod(pod)
    assert pods.engine.members() == []


# ---- sweeps, reboots, others at the same time ----


def test_no_sweep_takes_a_living_pod_s(pods: Pods, wherry: Wherry) -> None:
    pod = pods.run(pid="pod", ports=(PortMapping(80, 18082, host_ip="127.0.0.1"),))
    before = pods.leftovers()
    for words in (["gc"], ["system", "prune", "-f"], ["network", "prune", "-f"], ["container", "prune", "-f"]):
        wherry(*words)
        assert pods.leftovers() == before, words
    shown = json.loads(wherry("network", "inspect", "podnet").stdout)[0]
    assert [one["Name"] for one in shown["Containers"].values()] == ["ns/p1"]
    assert wherry("network", "disconnect", "--force", "podnet", pod[:12], check=False).returncode != 0
    assert "10.88.9.2/24" in namespace(pods.held(pod).netns, "ip", "-br", "addr")
    assert wherry("system", "check").returncode == 0
    with serving(pods.held(pod).netns, 80):
        assert said("127.0.0.1", 18082) == b"pod"


def test_a_pod_on_a_network_of_wherry_s_keeps_it(pods: Pods, wherry: Wherry) -> None:
    wherry("network", "create", "podded")
    wherry.config.write_text(wherry.config.read_text() + 'pod_network = "podded"\n')
    pods.engine = pods.open()
    pod = pods.run(annotations={"kubernetes.io/egress-bandwidth": "10M"})
    assert wherry("network", "rm", "podded", check=False).returncode == 1
    pods.engine.remove_pod(pod)
    wherry("network", "prune", "-f")
    wherry("network", "rm", "podded")


def test_after_a_reboot_the_pod_is_there_and_not_ready(pods: Pods) -> None:
    calls = spy(pods)
    pod = pods.run()
    pods.engine.close()
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in reversed([path for path in mounts if path.startswith(f"{pods.wherry.state}/")]):
        subprocess.run(["umount", path], check=True)
    subprocess.run(["rm", "-rf", str(pods.wherry.state)], check=True)
    pods.engine = pods.open()
    assert [(one.id, one.ready) for one in pods.engine.pods()] == [(pod, False)]
    assert pods.engine.pod(pod).ips == ("192.0.2.7", "2001:db8::7")
    pods.engine.stop_pod(pod)
    assert "DEL" in sorted(name.name for name in calls.iterdir())[-1], "what a plugin keeps on a disk is given back"
    pods.engine.remove_pod(pod)


def test_a_record_of_another_boot_counts_for_nothing(pods: Pods) -> None:
    pod = pods.run()
    path = Path(f"{pods.wherry.state}/pods/{pod}/pod.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    assert not pods.engine.pod(pod).ready
    assert [one.ready for one in pods.engine.pods()] == [False]


def test_many_at_once_make_one_pod_and_end_it_once(pods: Pods) -> None:
    asked, results = pods.options(), list[object]()

    def attempt(work: Callable[[], object]) -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    def together(*works: Callable[[], object]) -> None:
        threads = [threading.Thread(target=attempt, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    together(*[lambda: pods.engine.run_pod(asked)] * 4)
    (pod,) = [one.id for one in pods.engine.pods()]
    assert {one for one in results if isinstance(one, str)} == {pod}
    assert all(one == pod or getattr(one, "kind", None) is Kind.EXISTS for one in results), results
    results.clear()
    together(*[lambda: pods.engine.stop_pod(pod), lambda: pods.open().remove_pod(pod)] * 3)
    assert results == [None] * 6
    assert pods.engine.pods() == []


def test_a_stop_waits_for_those_who_use_the_pod(pods: Pods) -> None:
    from wherry.engine.pods import held

    pod = pods.run()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (pods.engine.stop_pod(pod), done.set()))
    with held.using(pods.house, pod) as one:
        assert one.id == pod
        thread.start()
        assert not done.wait(0.3)
        assert os.path.exists(one.netns)
    thread.join()
    with pytest.raises(WherryError) as error, held.using(pods.house, pod):
        pass
    assert error.value.kind is Kind.CONFLICT


def test_a_reset_takes_the_pods_too(pods: Pods, wherry: Wherry) -> None:
    pods.run(pid="pod")
    wherry("system", "reset", "--force")
    assert pods.leftovers() == []
    pods.engine.close()
    pods.engine = pods.open()
