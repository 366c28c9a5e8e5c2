"""The bundle of the OCI workloads, and the helper's own share of running it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "runtime"))

from wherry.container import launch
from wherry.kernel import facts, process, seccomp
from wherry.oci import compile as planner
from wherry.oci import defaults
from wherry.oci import seccomp as profiles
from wherry.oci.how import LaunchHow


def make(where: Path) -> dict[str, Any]:
    """busybox and a config as docker's engine writes it; its config. `ociVersion` is what the oldest peer takes."""
    root = where / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/true")
    host = facts.measure()
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "process": {
            "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "capabilities": defaults.capabilities(), "noNewPrivileges": True,
        },
        "mounts": defaults.mounts(),
        "linux": {
            "namespaces": defaults.namespaces(), "maskedPaths": defaults.masked_paths(),
            "readonlyPaths": list(defaults.READONLY_PATHS),
            "seccomp": profiles.resolve("docker", defaults.CAPABILITIES, host.machine, host.kernel),
        },
    }  # fmt: skip
    (where / "config.json").write_text(json.dumps(config))
    return config


def helper(config: dict[str, Any], where: Path, runs: int) -> list[float]:
    """Milliseconds from the call of the helper with a finished plan to the end of the container, by run."""
    host = facts.measure()
    filtered = seccomp.compiled(config["linux"]["seccomp"], str(where / "cache"))
    process.become_subreaper()
    cgroup = f"{host.cgroup_mount}/wherry-bench" if host.cgroup_mount else ""
    how = LaunchHow(id="bench", cgroup=cgroup, cgroup_exists=True, seccomp=filtered,
                    null_streams=("stdin", "stdout", "stderr"))  # fmt: skip
    plan = planner.compile_create(config, str(where), host, how)
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        process.reap(launch.start(str(where), plan, "launch", {}).init.pid)
        samples.append((time.perf_counter() - start) * 1000)
    if cgroup:
        os.rmdir(cgroup)
    return samples
