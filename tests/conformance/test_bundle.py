"""Our config.json is a bundle that other OCI runtimes take over, and what the process sees there is the same.

crun is the judge, without cgroups (--cgroup-manager=disabled), in a mount namespace of its own.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from helpers import tools
from helpers.wherry import Wherry

SPY = "; ".join([
    "exec 2>&1",
    "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status",
    "id; pwd; umask; hostname; ulimit -c; env | sort",
    "ls -l /dev | awk 'NR>1 {print $1,$NF}' | grep ^c",
    "cut -d' ' -f5 /proc/self/mountinfo | grep -v ^/sys/fs/cgroup | sort",
    "cat /proc/self/uid_map; ls /proc/acpi /sys/firmware | head -4; echo x >/proc/sys/kernel/domainname",
])  # fmt: skip
FLAVOURS: dict[str, tuple[str, ...]] = {
    "default": (),
    "user": ("--user", "33:33", "--group-add", "12", "-w", "/tmp"),
    "caps": ("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"),
    "nnp": ("--security-opt", "no-new-privileges"),
    "unconfined": ("--security-opt", "seccomp=unconfined"),
    "read-only": ("--read-only", "--tmpfs", "/scratch:size=1m"),
    "privileged": ("--privileged",),
    "limits": ("--ulimit", "nofile=100:200", "--env", "A=b c", "--hostname", "box"),
}
HIDE_V2 = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'


def bundle_of(wherry: Wherry, ref: str) -> dict[str, Any]:
    """The config.json that a created container has on disk."""
    found = list((wherry.root / "containers" / wherry.inspect(ref)["Id"]).rglob("config.json"))
    assert found, "no config.json below the container's directory"
    return json.loads(found[0].read_text())  # type: ignore[no-any-return]


def rootfs(layout: str, target: Path) -> Path:
    """The same image unpacked by another program."""
    tools.need("umoci")
    tools.run("umoci", "raw", "unpack", "--image", f"{layout.removeprefix('oci:')}:busybox:latest", target)
    return target


def run_by_crun(config: dict[str, Any], root: Path, bundle: Path, name: str) -> list[str]:
    """Run the bundle, with the process's output as lines."""
    bundle.mkdir()
    config = {**config, "root": {**config["root"], "path": str(root)}}
    namespaces = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "network"]
    config["linux"] = {**config["linux"], "namespaces": [*namespaces, {"type": "network"}]}
    config["linux"].pop("cgroupsPath", None)
    config["ociVersion"] = "1.0.2"  # crun before 1.9 refuses any version after 1.0 by its number alone
    config["linux"]["resources"] = {}
    # crun does not clamp what this host cannot grant (no CAP_SYS_RESOURCE); wherry does, when it plans
    config["process"] = {**config["process"], "rlimits": [_granted(limit) for limit in config["process"]["rlimits"]]}
    (bundle / "config.json").write_text(json.dumps(config))
    crun = ("crun", "--root", str(bundle / "state"), "--cgroup-manager=disabled", "run", "--bundle", str(bundle), name)
    done = tools.run("unshare", "--mount", "--propagation", "private", "sh", "-c", HIDE_V2, "sh", *crun, check=False)
    return (done.stdout or done.stderr).splitlines()


def _granted(limit: dict[str, Any]) -> dict[str, Any]:
    own = resource.getrlimit(getattr(resource, limit["type"]))[1]
    most = own if own != resource.RLIM_INFINITY else limit["hard"]
    return {**limit, "hard": min(limit["hard"], most), "soft": min(limit["soft"], most)}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_crun_runs_our_bundle_alike(wherry: Wherry, busybox: str, tmp_path: Path, flavour: str) -> None:
    tools.need("crun", "umoci")
    flags = ("--network", "none", "--hostname", "box", *FLAVOURS[flavour])
    name = wherry.name(flavour)
    done = wherry("run", *flags, "--name", name, busybox, "sh", "-c", SPY, check=False)
    ours = done.stdout.splitlines()
    theirs = run_by_crun(bundle_of(wherry, name), rootfs(busybox, tmp_path / "rootfs"), tmp_path / "bundle", name)
    assert ours == theirs


def test_config_names_a_version_of_the_spec(wherry: Wherry, busybox: str) -> None:
    wherry("run", "--name", wherry.name(), busybox, "true")
    config = bundle_of(wherry, wherry.name())
    assert config["ociVersion"].startswith("1.")
    assert config["process"]["args"] == ["true"]
    assert {entry["type"] for entry in config["linux"]["namespaces"]} >= {"pid", "ipc", "uts", "mount", "network"}
