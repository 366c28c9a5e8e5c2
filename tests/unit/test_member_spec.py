"""Containers of pods, the pure part: config.json, users, capabilities, limits, names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wherry.engine.pods import limiting, mounts, rows, security, spec, usage
from wherry.engine.pods.values import Held, IdMap, MemberOptions, PodMount, PodOptions, PodSecurity
from wherry.engine.undo import Undo
from wherry.engine.users import User, resolve
from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, ImageRecord
from wherry.oci.facts import HostFacts

GOLDEN = Path(__file__).with_name("member_config.json")
FACTS = HostFacts(kernel=(6, 18))
POD = PodOptions("web-0", "shop", "uid-1")
HELD = Held(
    "p" * 64, "/run/w/netns/p", "/run/w/pods/p/ns/ipc", "/run/w/pods/p/ns/uts", shm="/run/w/pods/p/shm",
    files={"/etc/hosts": "/var/w/pods/p/hosts", "/etc/resolv.conf": "/var/w/pods/p/resolv.conf"},
    cgroup="/sys/fs/cgroup/kubepods/pod1", hostname="web-0",
)  # fmt: skip
IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("serve", "--all"), env=("PATH=/bin", "MODE=image"), workdir="/srv")
MAPS = (IdMap(0, 65536, 65536),)


def made(options: MemberOptions, held: Held = HELD, *mounted: PodMount, image: ImageConfig = IMAGE) -> dict[str, Any]:
    caps = security.capabilities(options.security, FACTS, print)
    with Undo() as undo:
        bound = mounts.make(None, held.id, mounted, undo, relabel=False)  # type: ignore[arg-type]  # no image among them
    inputs = spec.Inputs(
        "c" * 64, options, POD, held, image, FACTS, User(1000, 1000, (1000, 7), "/home/x"), caps, bound.oci,
        cgroup=limiting.cgroup(held, "c" * 64),
    )  # fmt: skip
    return spec.generate(inputs)


def test_the_whole(tmp_path: Path) -> None:
    """Every value of it was read and meant; a change of one is to be, too."""
    options = MemberOptions(
        "app", "sha256:" + "1" * 64, user_image="shop/app:1", args=("serve",), env=("MODE=pod", "HOST=web-0"),
        resources={"cpu": {"shares": 512}, "unified": {"memory.high": "1000000"}}, oom_score_adj=970,
        security=PodSecurity(
            no_new_privileges=True, readonly_root=True, cap_drop=("ALL",), cap_add=("NET_BIND_SERVICE",)
        ),
    )  # fmt: skip
    source = tmp_path / "source"
    config = made(options, HELD, PodMount("/data", str(source), readonly=True), PodMount("/etc/hosts", str(source)))
    text = json.dumps(config, indent=1, sort_keys=True).replace(str(source), "/source") + "\n"
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("command", "args", "image", "words"),
    [
        ((), (), IMAGE, "/entry serve --all"),
        (("/mine",), (), IMAGE, "/mine"),
        (("/mine",), ("a",), IMAGE, "/mine a"),
        ((), ("a",), IMAGE, "/entry a"),
        ((), (), ImageConfig(cmd=("only",)), "only"),
    ],
)
def test_command_and_args(command: tuple[str, ...], args: tuple[str, ...], image: ImageConfig, words: str) -> None:
    assert " ".join(spec.argv(MemberOptions("c", "i", command=command, args=args), image)) == words


def test_nothing_to_run() -> None:
    with pytest.raises(WherryError, match="no command"):
        spec.argv(MemberOptions("c", "i"), ImageConfig())


def namespaces(config: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry.get("path", "") for entry in config["linux"]["namespaces"]}


def test_namespaces() -> None:
    own = {"network": HELD.netns, "ipc": HELD.ipc, "uts": HELD.uts, "pid": "", "mount": "", "cgroup": ""}
    assert namespaces(made(MemberOptions("c", "i"))) == own
    shared = HELD._replace(pid="/run/pid")
    asked = MemberOptions("c", "i", security=PodSecurity(pid="pod"))
    assert namespaces(made(asked, shared)) == own | {"pid": "/run/pid"}
    of_host = HELD._replace(netns="", ipc="", uts="", shm="")
    asked = asked._replace(security=PodSecurity(pid="host", privileged=True))
    config = made(asked, of_host)
    assert namespaces(config) == {"mount": ""}
    assert config["linux"]["maskedPaths"] == config["linux"]["readonlyPaths"] == []
    cgroup = next(mount for mount in config["mounts"] if mount["destination"] == "/sys/fs/cgroup")
    assert (cgroup["type"], cgroup["source"], "rw" in cgroup["options"]) == ("bind", "/sys/fs/cgroup", True)


def test_a_user_namespace_maps_what_is_the_pods() -> None:
    held = HELD._replace(user="/run/user", uids=MAPS, gids=MAPS)
    config = made(MemberOptions("c", "i"), held)
    line = [{"containerID": 0, "hostID": 65536, "size": 65536}]
    assert config["linux"]["uidMappings"] == config["linux"]["gidMappings"] == line
    by_target = {mount["destination"]: mount for mount in config["mounts"]}
    assert by_target["/etc/hosts"]["uidMappings"] == line
    assert "uidMappings" not in by_target["/dev/shm"]  # which is the pod's root's already


@pytest.mark.parametrize(("word", "expected"), [("rprivate", "private"), ("rslave", "slave"), ("rshared", "slave")])
def test_propagation_of_the_root(word: str, expected: str) -> None:
    assert spec._propagation(({"options": ["rbind", word]},)) == expected


# ---- users, as SupplementalGroupsPolicy

PASSWD = b"root:x:0:0::/root:\nwww:x:82:83::/srv:\n"
GROUP = b"root:x:0:\nextra:x:500:www,root\nother:x:600:www\nstaff:x:50:\n"


@pytest.mark.parametrize(
    ("asked", "image", "expected"),
    [
        (PodSecurity(), "", (0, 0, (0, 500))),
        (PodSecurity(), "www", (82, 83, (83, 500, 600))),
        (PodSecurity(), "www:staff", (82, 50, (50, 500, 600))),
        (PodSecurity(user="82"), "root", (82, 83, (83, 500, 600))),
        (PodSecurity(user="www", group=9, groups=(1, 500)), "", (82, 9, (9, 500, 600, 1))),
        (PodSecurity(user="www", group=9, groups=(1,), groups_policy="strict"), "", (82, 9, (9, 1))),
        (PodSecurity(groups=(7,), groups_policy="strict"), "www", (82, 83, (83, 7))),
        (PodSecurity(user="4711"), "www", (4711, 0, (0,))),
    ],
)
def test_users(asked: PodSecurity, image: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
    found = security.user(asked, image, lambda text: resolve(text, (), PASSWD, GROUP))
    assert (found.uid, found.gid, found.groups) == expected


# ---- limits


def test_limits_merge() -> None:
    pages = [{"pageSize": "2MB", "limit": 0}]
    old = {"cpu": {"shares": 2, "quota": 5}, "memory": {"limit": 1}, "hugepageLimits": pages}
    new = {"cpu": {"quota": 7}, "hugepageLimits": [], "unified": {"memory.high": "1"}}
    assert limiting.merged(old, new) == {
        "cpu": {"shares": 2, "quota": 7}, "memory": {"limit": 1}, "hugepageLimits": [], "unified": {"memory.high": "1"},
    }  # fmt: skip
    assert old["cpu"] == {"shares": 2, "quota": 5}


def test_the_place_of_a_cgroup() -> None:
    assert limiting.cgroup(HELD, "abc") == "/sys/fs/cgroup/kubepods/pod1/wherry-abc"
    assert limiting.cgroup(HELD._replace(slice="kubepods-pod1.slice"), "abc") == "kubepods-pod1.slice:wherry:abc"
    assert limiting.cgroup(HELD._replace(cgroup=""), "abc") == ""


# ---- what is kept, what is read


def test_what_a_row_keeps_comes_back() -> None:
    asked = MemberOptions(
        "c", "img", attempt=3, command=("a",), env=("A=b",), labels={"x": "y"}, log="/l/0.log",
        devices=(("/a", "/b", "r"),),
        mounts=(PodMount("/m", "/s", uids=MAPS, gids=MAPS), PodMount("/i/", "sub", readonly=True, image="img:1")),
        security=PodSecurity(user="1", groups=(1, 2), cap_add=("ALL",), selinux=("", "", "t", "s0")),
        resources={"memory": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, oom_score_adj=5,
    )  # fmt: skip
    record = ImageRecord("sha256:1", "sha256:2", (), ImageConfig(diff_ids=("sha256:l",)), (), 0, 0)
    volume = mounts.ImageVolume("/i", "sha256:9", ("sha256:k",), "sub")
    config = rows.config("pod", asked, record, mounts.Made((), (volume,)), User(1, 2, (2,)), "host", 15, "/l/0.log")
    row = rows.Container("c", "n", 0, "sha256:1", json.loads(json.dumps(config)), "pod")
    expected = asked._replace(mounts=(asked.mounts[0], asked.mounts[1]._replace(image="sha256:9")))
    assert rows.options(row) == expected
    assert rows.volumes(row) == (volume,)
    assert config["layers"] == ["sha256:l", "sha256:k"]
    assert config["log"] == {"driver": "local", "monitor": "cri", "file": "/l/0.log", "bytes": 0, "files": 1}
    assert rows.name(POD, asked) == "k8s_c_web-0_shop_uid-1_3"


@pytest.mark.parametrize("path", ["relative", "/"])
def test_targets_that_are_refused(path: str) -> None:
    with Undo() as undo, pytest.raises(WherryError) as caught:
        mounts.make(None, "p", (PodMount(path, "/tmp"),), undo, relabel=False)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID


def test_figures_of_a_cgroup() -> None:
    files = {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\n", "memory.current": "1000\n",
        "memory.stat": "anon 300\nfile 10\ninactive_file 400\npgfault 12\npgmajfault 2\n", "memory.max": "2000\n",
        "memory.swap.current": "7\n", "memory.swap.max": "max\n", "pids.current": "4\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n",
    }  # fmt: skip
    found = usage._usage(files, 8.0, detailed=True)
    assert (found.time, found.cpu_ns, found.memory, found.memory_usage, found.memory_rss) == (8.0, 5000, 600, 1000, 300)
    assert (found.memory_available, found.memory_faults, found.swap, found.swap_available) == (1400, (10, 2), 7, None)
    assert found.pids == 4
    assert found.pressure == {"cpu": {"some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.0, "total": 12}}}
    assert (found.details["cpu_user_ns"], found.details["periods"]) == (3000, 9)
    bare = usage._usage({"cpu.stat": "usage_usec 5\n"}, 8.0)
    assert (bare.memory, bare.pids, bare.pressure) == (None, None, {})


def test_what_lies_below_a_mount_comes_after_it(tmp_path: Path) -> None:
    config = made(MemberOptions("c", "i"), HELD, PodMount("/dev", str(tmp_path)), PodMount("/sys", str(tmp_path)))
    order = [mount["destination"] for mount in config["mounts"]]
    assert order.index("/dev") < order.index("/dev/pts")
    assert order.index("/sys") < order.index("/sys/fs/cgroup")
    assert order.count("/dev") == order.count("/sys") == 1
