"""Real bundles of the distribution's busybox, started through planner, wire, helper and monitor; no engine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from helpers.monitors import Box
from helpers.tools import need
from wherry.container import attach, exec, launch
from wherry.container.attach import AttachStream
from wherry.container.exec import Session
from wherry.container.state import State
from wherry.kernel import facts
from wherry.model import Json
from wherry.oci import compile as planner
from wherry.oci import defaults, spec
from wherry.oci.how import LaunchHow, MonitorHow, Target

__all__ = ["Bundle", "make_root"]


def make_root(path: Path) -> Path:
    """A root with busybox and its applets."""
    need("busybox")
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "root"):
        (path / name).mkdir(parents=True)
    busybox = shutil.which("busybox") or ""
    shutil.copy(busybox, path / "bin/busybox")
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        if applet != "busybox":
            os.symlink("busybox", path / "bin" / applet)
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return path


class Bundle(Box):
    """One container of a bundle."""

    def __init__(self, state: str, name: str, root: Path) -> None:
        super().__init__(state, name)
        self.root, self.facts = root, facts.measure()
        self.cgroup = f"{self.facts.cgroup_mount}/{name}" if self.facts.cgroup_mount else ""
        self.config: Json = {}

    def configure(self, *args: str, tty: bool = False, uid: int = 0, without: tuple[str, ...] = ()) -> Json:
        self.config = {
            "ociVersion": "1.3.0",
            "root": {"path": str(self.root)},
            "mounts": [mount for mount in defaults.mounts() if mount["type"] != "cgroup"],
            "process": {
                "args": list(args), "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"], "terminal": tty,
                "user": {"uid": uid, "gid": uid}, "capabilities": defaults.capabilities(),
            },
            "linux": {"namespaces": defaults.namespaces(*without)},
        }
        return self.config

    def how(self, **monitor: object) -> LaunchHow:
        place = self.place
        mon = MonitorHow(log_driver="cri", log_path=place.file("log"), attach=True, exit_dir=place.path, oom=False)
        mon = mon._replace(**monitor)  # type: ignore[arg-type]
        streams = () if self.config["process"]["terminal"] else ("stdout", "stderr")
        return LaunchHow(id=place.id, cgroup=self.cgroup, monitor=mon, stdio=streams)

    def run(self, how: LaunchHow, *, role: str = "monitor") -> AttachStream | None:
        spec.validate(self.config)
        plan = planner.compile_create(self.config, str(self.root.parent), self.facts, how)
        fds = launch.stdio_pipes(how.stdio, self.config["process"]["user"]["uid"])
        try:
            if "attach" in plan.inherited:
                fds["attach"] = launch.listen(self.place.attach_path)
            if "client" in plan.inherited:
                self.stream, fds["client"] = attach.pair()
            if "fifo" in plan.inherited:
                os.mkfifo(self.place.fifo_path, 0o600)
                fds["fifo"] = os.open(self.place.fifo_path, os.O_PATH | os.O_CLOEXEC)
            self.launched = launch.start(self.place.path, plan, role, fds)
        finally:
            launch.close_all(fds)
        init, monitor = self.launched.init, self.launched.monitor
        self.place.save(State(self.place.id, str(self.root.parent), self.cgroup, init, monitor))
        return self.stream

    def exec(self, *args: str, tty: bool = False, detach: bool = False, stdin: bool = False) -> Session:
        process = {**self.config["process"], "args": list(args), "terminal": tty}
        target = Target(tuple(ns["type"] for ns in self.config["linux"]["namespaces"]), self.config, self.place.id)
        streams = () if tty or detach else (*(("stdin",) if stdin else ()), "stdout", "stderr")
        how = LaunchHow(id=self.place.id, cgroup=self.cgroup, cgroup_exists=True, stdio=streams,
                        monitor=MonitorHow(client=not detach, oom=False))
        plan = planner.compile_exec(process, target, self.facts, how)
        return exec.start(self.place, plan)
