"""A CSI driver under siege: its pool, and beside it a tree of files that nothing may touch (the canary)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csi_spec import csi_pb2 as pb
from helpers.csi import (
    HOME,
    Client,
    Driver,
    capability,
    loops,
    mounts_below,
)
from helpers.loopfs import LoopFs
from helpers.tools import run

__all__ = ["CAP", "HUGE", "IDS", "LONG", "PROBLEM", "UNKNOWN_ID", "Fort", "built", "tree"]

UNKNOWN_ID = "vol-" + "0" * 32
LONG = "x" * 4096
HUGE = (1 << 63) - 1
CAP = capability()
#: what a call says of a pool that cannot do it
PROBLEM = ("UNAVAILABLE", "FAILED_PRECONDITION", "INTERNAL", "RESOURCE_EXHAUSTED")
#: strings that are an id of nothing, and may be a path to something
IDS = ["..", ".", "/", "../canary", "a/b", "/etc/passwd", "vol-\0", "vol-" + "0" * 31 + "\n", LONG, "völ-🜁", "%s%n",
       "vol-" + "A" * 32, "-rf", "$(id)", "vol-" + "0" * 32 + "/../../canary", UNKNOWN_ID]  # fmt: skip


def tree(top: Path) -> dict[str, Any]:
    """All there is to know of a tree of files."""
    found = {}
    for directory, names, files in os.walk(top):
        for path in [directory, *(f"{directory}/{name}" for name in [*names, *files])]:
            facts = os.lstat(path)
            content = Path(path).read_bytes() if stat.S_ISREG(facts.st_mode) else b""
            found[path] = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink, facts.st_ctime_ns, content)
    return found


class Fort:
    """A driver on a pool, and a canary beside it."""

    def __init__(self, place: Path, pool: LoopFs, *words: str, pools: dict[str, Path] | None = None) -> None:
        self.place, self.fs, self.pool, self.canary = place, pool, pool.path, place / "canary"
        (self.canary / "deep" / "er").mkdir(parents=True)
        for name in ("file", "deep/file", "deep/er/file"):
            (self.canary / name).write_text("not yours")
        (self.canary / "empty").mkdir()
        self.before = tree(self.canary)
        self.driver = Driver(place, {"pool": pool.path} if pools is None else pools, *words)
        self.client = self.driver.start()

    def untouched(self) -> None:
        """The driver lives, and the canary does."""
        assert self.driver.running, self.driver.tail()
        assert tree(self.canary) == self.before

    def raw(self, method: str, **fields: Any) -> Any:
        """A request as it is said; a stream's answers as a list."""
        answer = self.client.call(method, getattr(pb, f"{method}Request")(**fields))
        return list(answer) if hasattr(answer, "__next__") else answer

    def restart(self) -> Client:
        self.driver.kill()
        self.client = self.driver.start()
        return self.client

    def home(self, volume: str) -> Path:
        return self.pool / HOME / "volumes" / volume

    def raze(self) -> None:
        """Whatever a failed test left."""
        self.driver.kill()
        for target in sorted(mounts_below(self.place), key=len, reverse=True):
            if target != str(self.pool):
                run("umount", "-l", target, check=False)
        if self.pool.is_mount():
            for name in loops(self.pool):
                run("losetup", "-d", f"/dev/{name}", check=False)


@contextmanager
def built(place: Path, fs: str, *words: str, megabytes: int = 2048) -> Iterator[Fort]:
    with LoopFs(place, megabytes, fs) as pool:
        made = Fort(place, pool, *words)
        try:
            yield made
        finally:
            made.raze()
