"""Plans of config.json carried out by the real helper: what the container sees is what the config asked."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.container import launch
from wherry.kernel import cgroup, facts
from wherry.kernel import seccomp as compiler
from wherry.model import Json, Mount
from wherry.oci import bpf, defaults, seccomp
from wherry.oci.compile import LaunchHow, compile_create
from wherry.oci.facts import HostFacts
from wherry.oci.spec import validate

pytestmark = pytest.mark.root
EXAMPLE = Path(__file__).resolve().parents[2] / "oci-bundles" / "example-bundle" / "config.json"
IDS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
BUSYBOX = shutil.which("busybox")


class Bundle:
    """A bundle with a busybox, and a cgroup, for one container after the other."""

    def __init__(self, path: Path, group: str, measured: HostFacts) -> None:
        self.path, self.group, self.facts = path, group, measured
        self.config: Json = json.loads(EXAMPLE.read_text())
        self.rootfs = path / "rootfs"
        for name in ("bin", "work"):
            (self.rootfs / name).mkdir(parents=True)
        assert BUSYBOX
        shutil.copy(BUSYBOX, self.rootfs / "bin" / "busybox")
        (self.rootfs / "work" / "seed").write_text("seed\n")
        (path / "motd").write_text("from the host\n")

    def give(self, path: Path, uid: int) -> None:
        for entry in [path, *path.rglob("*")]:
            os.chown(entry, uid, uid, follow_symlinks=False)

    def run(self, script: str, *, profile: str = "default", **more: Any) -> str:
        """The output of a busybox shell in the container."""
        self.config["process"]["args"] = [
            "/bin/busybox",
            "sh",
            "-c",
            f"busybox --install -s /tmp/b 2>/dev/null; {script}",
        ]
        self.config["process"]["env"] = ["PATH=/bin"]
        validate(self.config)
        rules = seccomp.resolve(profile, defaults.CAPABILITIES, self.facts.machine, self.facts.kernel)
        assert rules
        values: Json = {
            "id": "test",
            "cgroup": self.group,
            "device_bpf": bpf.program(self.config["linux"]["resources"]["devices"]),
            "seccomp": compiler.translate(rules),
            "stdio": ("stdout", "stderr"),
        }
        plan = compile_create(self.config, str(self.path), self.facts, LaunchHow(**{**values, **more}))
        out, into = os.pipe2(os.O_CLOEXEC)
        with open(out, "rb") as reader:
            try:
                launch.start(str(self.path), plan, "launch", {"stdout": into, "stderr": into})
            finally:
                os.close(into)
            return reader.read().decode()


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    measured = facts.measure()
    if os.geteuid() or not measured.cgroup_mount or not BUSYBOX:
        pytest.skip("needs root, a cgroup v2 hierarchy and busybox-static")
    group = cgroup.locate(measured, f"wherry-test-plan-{uuid.uuid4().hex[:8]}")
    mounts_before = facts.read("/proc/self/mountinfo")
    yield Bundle(tmp_path / "b", group, measured)
    cgroup.kill(group)
    cgroup.wait_empty(group, 5)
    cgroup.remove(group)
    assert facts.read("/proc/self/mountinfo") == mounts_before


def test_the_example(bundle: Bundle) -> None:
    script = """
        busybox id; busybox hostname; busybox cat /etc/motd /work/seed
        busybox grep -E 'CapBnd|CapEff|NoNew' /proc/self/status
        busybox cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/keys
        ulimit -Sn; ulimit -Hn
        busybox touch /x; echo 1 > /etc/motd
        busybox ls /sys/firmware /proc/self/fd; busybox ifconfig lo
    """
    found = bundle.run(script)
    for wanted in (
        "uid=1000 gid=1000 groups=50\nexample\nfrom the host\nseed\n",
        "CapEff:\t0000000000000000\nCapBnd:\t0000000000000400\nNoNewPrivs:\t1\n100\n0\n1024\n4096\n",
        "touch: /x: Read-only file system",
        "can't create /etc/motd: Read-only file system",
        "/proc/self/fd:\n0\n1\n2\n3\n",
        "UP LOOPBACK RUNNING",
    ):
        assert wanted in found


def test_an_image_cannot_redirect_a_bind(bundle: Bundle, tmp_path: Path) -> None:
    """The root covers the directory that the bind's source lies in; its symlink must not be followed on the host."""
    (tmp_path / "secret").write_text("secret of the host\n")
    (bundle.rootfs / "motd").symlink_to(tmp_path / "secret")
    found = bundle.run("busybox cat /etc/motd", root_dir=str(bundle.path))
    assert found == "from the host\n"


def layers(bundle: Bundle, tmp_path: Path) -> Mount:
    """Twelve layers with long names above the bundle's root."""
    paths = [tmp_path / ("long" * 15 + str(number)) for number in range(12)]
    for number, path in enumerate(paths):
        path.mkdir()
        (path / f"file{number}").write_text("x")
    for name in ("up", "wk", "on"):
        (tmp_path / name).mkdir()
    lower = ":".join(map(str, [*paths, bundle.rootfs]))
    return Mount("overlay", "overlay", "/", (f"lowerdir={lower}", f"upperdir={tmp_path}/up", f"workdir={tmp_path}/wk"))


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_many_layers(bundle: Bundle, tmp_path: Path, kernel: str) -> None:
    """A list of layers that no single fsconfig value can hold."""
    mount = layers(bundle, tmp_path)
    bundle.facts = bundle.facts._replace(overlay_lowerdir_add=kernel == "new" and bundle.facts.overlay_lowerdir_add)
    bundle.config["root"]["readonly"] = False
    found = bundle.run(
        "busybox ls / | busybox grep -c file; busybox cat /etc/motd", rootfs=(mount,), root_dir=str(tmp_path / "on")
    )
    assert found == "12\nfrom the host\n"


def test_user_namespace(bundle: Bundle) -> None:
    """Below directories of root's own (pytest's are 0700), with the root given to the container's root."""
    bundle.config["linux"] |= {"uidMappings": IDS, "gidMappings": IDS}
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.give(bundle.rootfs, 100000)
    found = bundle.run(
        "busybox id; busybox cat /proc/self/uid_map /etc/motd; busybox stat -c %u /; echo x > /dev/null && echo null"
    )
    assert found.split() == [
        "uid=1000",
        "gid=1000",
        "groups=50",
        "0",
        "100000",
        "65536",
        "from",
        "the",
        "host",
        "0",
        "null",
    ]


def test_user_namespace_with_mapped_layers(bundle: Bundle, tmp_path: Path) -> None:
    if bundle.facts.kernel < (6, 15):
        pytest.skip("detached layers need Linux 6.15")
    bundle.config["linux"] |= {"uidMappings": IDS, "gidMappings": IDS}
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["process"]["user"] = {"uid": 0, "gid": 0}
    bundle.config["root"]["readonly"] = False
    mount = layers(bundle, tmp_path)
    bundle.give(tmp_path / "up", 100000)
    mount = mount._replace(options=(*mount.options, "idmap"))
    bundle.config["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(tmp_path / "on"), "options": ["bind", "idmap"]}
    )
    found = bundle.run("echo hi > /new; busybox stat -c %u /file3 /new; echo hi > /data/file", rootfs=(mount,))
    assert found == "0\n0\n"
    assert (tmp_path / "up" / "new").stat().st_uid == 100000
    assert (tmp_path / "on" / "file").stat().st_uid == 0  # a mapped volume keeps the ids of the host


def test_time_namespace(bundle: Bundle) -> None:
    if not bundle.facts.time_namespaces:
        pytest.skip("no time namespaces")
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 86400 * 10000}}
    assert float(bundle.run("busybox cat /proc/uptime").split()[0]) > 86400 * 10000


def test_new_privileges_and_no_pivot(bundle: Bundle) -> None:
    """The filter goes in before the rights go; and MS_MOVE in place of pivot_root."""
    bundle.config["process"]["noNewPrivileges"] = False
    found = bundle.run("busybox grep -E 'NoNew|Seccomp:|CapEff' /proc/self/status; busybox ls /", no_pivot=True)
    assert "NoNewPrivs:\t0" in found
    assert "Seccomp:\t2" in found
    assert "rootfs" not in found
    assert "work" in found


def test_hooks_in_their_order(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1 $(grep -c pid)" >> {log}\n')
    hook.chmod(0o755)
    kinds = ("prestart", "createRuntime", "createContainer", "poststart")
    env = ["PATH=/bin:/usr/bin"]
    bundle.config["hooks"] = {kind: [{"path": str(hook), "args": ["hook", kind], "env": env}] for kind in kinds}
    assert bundle.run("echo ran") == "ran\n"
    assert log.read_text().split() == [word for kind in kinds for word in (kind, "1")]
