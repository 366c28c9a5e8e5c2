"""A warm process for one test's STATE: started before its commands, ended after them.

WHERRY_TEST_WARM=1 gives one to every `wherry` and `Box` of the suite; without it all of them run cold.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Warm"]


SPARES = 3  # of warm/server.py


class Warm:
    """Changes `env` so that commands with it are served, by `self.pid`."""

    def __init__(self, env: dict[str, str], *, idle: float = 600, path: Sequence[str] = ()) -> None:
        """`idle`: seconds until it leaves; `path`: where it imports wherry from, in the place of the installed one."""
        self.directory = Path(env["WHERRY_STATE"]) / "warm"
        self.socket, self.lock = self.directory / "socket", self.directory / "lock"
        program = f"import sys; sys.path[:0] = {list(path)!r}; from wherry.warm.server import main; "
        program += f"main(sys.argv[1], {idle})"
        env["WHERRY_WARM"] = "on"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", program, self.directory], env={"PATH": os.defpath, "LANG": "C.UTF-8"}
        )
        self.pid = self._process.pid
        end = time.monotonic() + 20
        while not self.ready():
            assert self._process.poll() is None, "the warm process did not come up"
            assert time.monotonic() < end, "no socket"
            time.sleep(0.01)

    @staticmethod
    def wanted() -> bool:
        """Whether the whole suite is to run warm."""
        return os.environ.get("WHERRY_TEST_WARM") == "1"

    def ready(self) -> bool:
        """Whether its socket takes connections: it is in the kernel's table as listening."""
        table = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        return any(line.endswith(f" {self.socket}") and line.split()[3] == "00010000" for line in table)

    def alive(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def ended(self, seconds: float) -> bool:
        """Whether it leaves by itself within this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """As an accident would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def children(self) -> list[int]:
        """The commands at work, not the spare processes: those wait for one, or for the end of theirs."""
        below = _children(self.pid)
        found = [*below, *(pid for spare in below for pid in _children(spare))]
        return [pid for pid in found if _name(pid) == "wherry-command"]

    def wait_for_others(self, than: set[int]) -> None:
        """Until what a command puts off until after its answer is done: audits compare what is left at rest. That the
        next command need not wait is what tests/system/test_warm.py tests."""
        end = time.monotonic() + 5
        while set(self.children()) - than and time.monotonic() < end:
            time.sleep(0.002)

    def at_rest(self) -> bool:
        """Whether no command is at work, and the spare processes wait for the next ones."""
        spares = self.spares()
        return len(spares) == SPARES and not any(map(_children, spares))

    def spares(self) -> list[int]:
        """The processes that wait for a command, or for the end of theirs."""
        return [pid for pid in _children(self.pid) if _name(pid) != "wherry-command"]

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        """VmRSS in KiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))

    def stop(self) -> None:
        """End it; nothing of it stays."""
        if self.alive():
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
