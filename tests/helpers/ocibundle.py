"""A bundle of busybox and `wherry-oci` with a --root of its own: what the tests of the OCI face share.

Decides what "nothing left" means for one of them: no container below the root, no cgroup, mount or process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import audit
from audit import Mark
from wherry.kernel import facts
from wherry.model import Json
from wherry.oci import defaults
from wherry.ocicli import main

from .bundles import make_root
from .tools import need
from .warm import Warm
from .wherry import until

__all__ = ["SCRIPT", "Box", "Done", "boxed", "hook"]

SCRIPT = Path(sys.executable).with_name("wherry-oci")


class Done(NamedTuple):
    """One command that has ended. What its container says is in the files too, and may still grow."""

    code: int
    out: str
    err: str
    out_file: Path
    err_file: Path

    def waits_for(self, text: str, seconds: float = 10) -> str:
        """What stands on standard output once `text` does."""
        until(lambda: text in self.out_file.read_text(), seconds, f"{text!r} did not come: {self.out_file.read_text()}")
        return self.out_file.read_text()


class Box:
    """Call it with words: `box("create", …)`. `config` is written to the bundle by `create` and `run`."""

    def __init__(self, test_id: str, directory: Path) -> None:
        self.id = test_id
        self.place = directory / f"{test_id}-oci"
        self.root, self.bundle, self.said = self.place / "state", self.place / "bundle", self.place / "said"
        for path in (self.root, self.said):
            path.mkdir(parents=True)
        make_root(self.bundle / "rootfs")
        self.mark = Mark(paths=(str(self.place),), cgroup=f"/{test_id}")
        self.env = {**os.environ, "WHERRY_STATE": str(self.place / "run"), "WHERRY_ROOT": str(self.place / "lib")}
        self.warm = Warm(self.env) if Warm.wanted() else None
        self.config: Json = {
            "ociVersion": "1.3.0",
            "root": {"path": "rootfs"},
            "mounts": [copy.deepcopy(mount) for mount in defaults.mounts() if mount["type"] != "cgroup"],
            "process": {
                "args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
                "capabilities": defaults.capabilities(),
            },
            "linux": {"namespaces": defaults.namespaces()},
        }  # fmt: skip

    @property
    def linux(self) -> Json:
        """config.linux."""
        linux: Json = self.config["linux"]
        return linux

    @property
    def process(self) -> Json:
        """config.process."""
        process: Json = self.config["process"]
        return process

    @property
    def rootfs(self) -> Path:
        """The container's root."""
        return self.bundle / "rootfs"

    def cgroup(self, cid: str = "c") -> Path:
        """The cgroup of a container."""
        return Path(f"{facts.measure().cgroup_mount}/{self.id}/{cid}")

    # ---- calls

    def argv(self, *words: object, options: tuple[object, ...] = ()) -> list[str]:
        """The command line."""
        return [str(word) for word in (SCRIPT, "--root", self.root, *options, *words)]

    def __call__(
        self, *words: object, check: bool = True, options: tuple[object, ...] = (), timeout: float = 40,
        stdin: int = subprocess.DEVNULL, fds: tuple[int, ...] = (), env: dict[str, str] | None = None,
    ) -> Done:  # fmt: skip
        """Run `wherry-oci`; its output goes to files, which a container may keep open."""
        out = tempfile.NamedTemporaryFile(dir=self.said, prefix="out-", delete=False)  # noqa: SIM115  # closed below, read after
        err = tempfile.NamedTemporaryFile(dir=self.said, prefix="err-", delete=False)  # noqa: SIM115  # closed below, read after
        with out, err:
            code = subprocess.run(
                self.argv(*words, options=options), stdin=stdin, stdout=out, stderr=err, timeout=timeout, check=False,
                pass_fds=fds, env={**self.env, **(env or {})},
            ).returncode  # fmt: skip
        said, erred = Path(out.name), Path(err.name)
        done = Done(code, said.read_text(errors="replace"), erred.read_text(errors="replace"), said, erred)
        assert not check or not done.code, f"wherry-oci {' '.join(map(str, words))}: {done.code}\n{done.out}{done.err}"
        return done

    def popen(self, *words: object, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        """Start a command, perhaps by another `before` it, and go on; standard output and errors by one pipe."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen([*before, *self.argv(*words)], env=self.env, text=True, **options)

    def write(self, cid: str = "c") -> None:
        """config.json of the bundle as `config` is now, with a cgroup of the test's own."""
        if facts.measure().cgroup_mount:
            self.linux.setdefault("cgroupsPath", f"/{self.id}/{cid}")
        (self.bundle / "config.json").write_text(json.dumps(self.config))
        if self.linux.get("cgroupsPath") == f"/{self.id}/{cid}":
            del self.linux["cgroupsPath"]

    def create(self, cid: str = "c", *options: object, script: str = "", **more: Any) -> Done:
        """`create` from the bundle; `script` is the shell's."""
        self._script(script)
        self.write(cid)
        return self("create", "--bundle", self.bundle, *options, cid, **more)

    def run(self, script: str = "", *options: object, cid: str = "c", **more: Any) -> Done:
        """`run` in the foreground, or what `options` make of it."""
        self._script(script)
        self.write(cid)
        return self("run", "--bundle", self.bundle, *options, cid, **more)

    def started(self, script: str = "sleep 1000", *options: object, cid: str = "c", **more: Any) -> Done:
        """A running container."""
        done = self.create(cid, *options, script=script, **more)
        self("start", cid)
        return done

    def exec(self, *words: object, cid: str = "c", options: tuple[object, ...] = (), **more: Any) -> Done:
        """`exec`; its failures are the caller's to judge."""
        return self("exec", *options, cid, *words, **{"check": False, **more})

    def refused(self, *words: object, **more: Any) -> str:
        """A command that fails with one sentence; returns it."""
        done = self(*words, check=False, **more)
        return self._sentence(words, done.code, done.out, done.err)

    def refused_here(self, *words: object) -> str:
        """The same in this process, for long tables: nothing of it may start a container."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(["--root", str(self.root), *map(str, words)], self.env)
        return self._sentence(words, code, out.getvalue(), err.getvalue())

    def _sentence(self, words: tuple[object, ...], code: int, out: str, err: str) -> str:
        assert code, f"{words} is taken"
        assert not out, out
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("wherry-oci: "), err
        assert "Error:" not in lines[0], err
        return lines[0]

    def state(self, cid: str = "c") -> Json:
        """`state`."""
        found: Json = json.loads(self("state", cid).out)
        return found

    def pid(self, cid: str = "c") -> int:
        """The container's first process, on the host."""
        return int(self.state(cid)["pid"])

    def ends(self, cid: str = "c", seconds: float = 10) -> None:
        """Wait until it is stopped."""
        until(lambda: self.state(cid)["status"] == "stopped", seconds)

    def _script(self, script: str) -> None:
        if script:
            self.process["args"] = ["sh", "-c", script]

    # ---- what is left

    def left(self, seconds: float = 5) -> list[str]:
        """What is there of containers: waits for what the kernel does by itself."""
        with contextlib.suppress(AssertionError):
            until(lambda: not self._left(), seconds)
        return self._left()

    def _left(self) -> list[str]:
        found = [f"directory {path}" for path in self.root.iterdir()]
        measured = facts.measure()
        parent = Path(f"{measured.cgroup_mount}/{self.id}")
        if measured.cgroup_mount and parent.exists():
            found += [f"cgroup {path}" for path in parent.iterdir() if path.is_dir()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.place) in line]
        return found + [f"process {pid}" for pid in self.processes()]

    def processes(self) -> list[int]:
        """Processes whose root, or command line, is of this box; and those of its cgroups."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace") + os.readlink(f"/proc/{pid}/root")
                if str(self.place) in text or f"/{self.id}/" in Path(f"/proc/{pid}/cgroup").read_text():
                    found.append(int(pid))
        apart = {os.getpid(), *((self.warm.pid, *self.warm.spares()) if self.warm else ())}
        return [pid for pid in found if pid not in apart]

    def remove_everything(self) -> None:
        """Every container by force, then the cgroup parent."""
        for cid in sorted(os.listdir(self.root)):
            self("delete", "--force", cid, check=False)
        parent = Path(f"{facts.measure().cgroup_mount}/{self.id}")
        if facts.measure().cgroup_mount and parent.is_dir():
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def boxed(test_id: str, directory: Path) -> Iterator[Box]:
    """A box for one test; at its end everything is removed, and nothing may be left."""
    need("busybox")
    mark = Mark(paths=(str(directory / f"{test_id}-oci"),), cgroup=f"/{test_id}")
    before = audit.take(mark)
    box = Box(test_id, directory)
    try:
        yield box
    finally:
        box.remove_everything()
        if box.warm:
            box.warm.stop()
    left = box.left() + audit.settle(before, mark)
    for pid in box.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "\n".join(left)


def hook(path: Path, log: Path, kind: str, script: str = "") -> Json:
    """A hook that appends its name and the state that it was given to `log`, then does `script`."""
    file = path / f"hook-{kind}"
    file.write_text(f'#!/bin/sh\nstate=$(cat)\necho "$1 $state" >> {log}\n{script}\n')
    file.chmod(0o755)
    return {"path": str(file), "args": ["hook", kind], "env": ["PATH=/bin:/usr/bin"]}
