"""One whole wherry for one test: the command line with a --root, --state and settings of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit import Mark, cgroup_mounts

from .tools import run
from .warm import Warm

__all__ = ["Wherry", "until"]

TOP = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("wherry")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "wherry"]


def until(what: Callable[[], Any], seconds: float = 15, message: str = "") -> Any:
    """Wait for something to become true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, message or f"not within {seconds} s"
        time.sleep(0.02)
    return found


class Wherry:
    """Call it with words: `wherry("run", "--rm", image, "true")`. The result's output is text."""

    def __init__(self, test_id: str, directory: Path, settings: str = "") -> None:
        self.id = test_id
        # a path with the id in it: attach sockets need it short, and mounts and processes are found by it
        self.root, self.state = directory / f"{test_id}-root", Path(f"/run/{test_id}-state")
        self.config = directory / f"{test_id}.toml"
        self.cgroup = f"/{test_id}"
        self.config.write_text(f'cgroup_parent = "{self.cgroup}"\n{settings}')
        self.mark = Mark(paths=(str(self.root), str(self.state)), cgroup=self.cgroup)
        places = {"WHERRY_ROOT": self.root, "WHERRY_STATE": self.state, "WHERRY_CONFIG": self.config}
        self.env = {**os.environ, **{key: str(value) for key, value in places.items()}}
        self.warm = Warm(self.env) if Warm.wanted() else None
        if not SCRIPT.exists():
            self.env["PYTHONPATH"] = f"{TOP}/runtime:{TOP}/cni:{TOP}/csi"

    def name(self, suffix: str = "c") -> str:
        """A name that carries the test's id."""
        return f"{self.id}-{suffix}"

    def __call__(
        self,
        *words: object,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 90,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *map(str, words)]
        before = set(self.warm.children()) if self.warm else set()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**self.env, **(env or {})},
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),  # type: ignore[call-overload]
        )
        if self.warm:
            self.warm.wait_for_others(before)
        if check and done.returncode:
            said = f"exit {done.returncode}\n{done.stdout}{done.stderr}"
            raise AssertionError(f"wherry {' '.join(map(str, words))}: {said}")
        return done  # type: ignore[no-any-return]

    def popen(self, *words: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command and go on."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([*COMMAND, *map(str, words)], env=self.env, **options)

    def out(self, *words: object, **options: Any) -> str:
        """Standard output without its last line end."""
        return self(*words, **options).stdout.rstrip("\n")

    def inspect(self, ref: str) -> dict[str, Any]:
        """`inspect` of one object."""
        return json.loads(self("inspect", ref).stdout)[0]  # type: ignore[no-any-return]

    def containers(self) -> list[str]:
        """Ids of all containers, running or not."""
        return self.out("ps", "-a", "-q", "--no-trunc").split()

    def pid(self, ref: str) -> int:
        """The container's init as the host sees it."""
        return int(self.inspect(ref)["State"]["Pid"])

    def remove_everything(self) -> None:
        """Containers by force, then the networks with their bridges and rules, then the cgroup parent."""
        if self.warm and not self.warm.alive():  # a reset has ended it: a command would leave another
            self.env["WHERRY_WARM"] = "off"
        try:
            self._remove_everything()
        finally:
            if self.warm:
                self.warm.stop()

    def _remove_everything(self) -> None:
        if not self.root.exists():
            return
        if ids := self.containers():
            self("rm", "-f", "-v", *ids, check=False)
        self("gc", check=False)
        # no verb does this: the default network's bridge is meant to stay, and so are layers with their mounts
        program = "import sys; from wherry.model import Place; from wherry.net.networks import Networks;"
        program += " from wherry.image.store import ImageStore; ImageStore(sys.argv[1]).unmount_layers();"
        program += " Networks(Place(root=sys.argv[1], state=sys.argv[2])).teardown();"
        program += " from wherry.volume import driver; driver.stop(sys.argv[2])"  # idle it may stay, but not outlive us
        run(sys.executable, "-c", program, self.root, self.state, env=self.env)
        for mount, kind in cgroup_mounts():
            if kind == "cgroup2":
                _rmdir_empty(Path(mount + self.cgroup))

    def leftovers(self) -> list[str]:
        """Run state that no container owns any more; then the state directory itself goes."""
        left = [str(path) for pattern in ("c/*", "netns/*", "pods/*") for path in self.state.glob(pattern)]
        left += [str(path) for top in ("containers", "pods") for path in self.root.glob(f"{top}/*")]
        left += [str(path) for path in self.state.glob("csi/*") if path.is_dir()]
        if not left:
            _remove_tree(self.state)
        return [f"left files: {path}" for path in sorted(left)]


def _rmdir_empty(path: Path) -> None:
    """Parent groups stay as long as a wherry may want them; empty, they are nobody's. The lowest go first."""
    for directory, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _remove_tree(path: Path) -> None:
    """Files of ours only: a mount below would be a leak, which the audit names, so this never crosses one."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=False)
