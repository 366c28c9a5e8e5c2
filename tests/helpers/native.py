"""Small plans by hand, run by the real helper: what the tests of the native executor share."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers import tools
from wherry.container import wire
from wherry.kernel import shim
from wherry.oci.plan import Op, Plan

__all__ = ["NAMESPACES", "Outcome", "child", "exec_op", "host", "make_root", "rootfs_ops", "run"]

PAYLOAD = Path(__file__).resolve().parent.parent / "payload" / "probe.c"
#: mount, pid, ipc, uts, network
NAMESPACES = 0x00020000 | 0x20000000 | 0x08000000 | 0x04000000 | 0x40000000
MS_SLAVE, MS_REC = 1 << 19, 1 << 14
REPORT = struct.Struct("=IIIiiI104s")


def host(name: str, *flags: str, **fields: object) -> Op:
    return Op(name, "H", flags, **fields)  # type: ignore[arg-type]


def child(name: str, *flags: str, **fields: object) -> Op:
    return Op(name, "C", flags, **fields)  # type: ignore[arg-type]


def exec_op(*args: str, env: tuple[str, ...] = ("PATH=/bin",), flags: tuple[str, ...] = ()) -> Op:
    return child("EXEC", *flags, s0=args[0], s1=args, n0=len(args), s2=env, n1=len(env))


def make_root(directory: Path) -> Path:
    """busybox and the payload in a tree of their own."""
    tools.need("busybox", "gcc")
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "data"):
        (directory / name).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), directory / "bin" / "busybox")
    for name in ("true", "sh", "cat", "echo", "ls", "sleep"):
        (directory / "bin" / name).symlink_to("busybox")
    subprocess.run(["gcc", "-static", "-Os", "-o", directory / "bin" / "probe", PAYLOAD], check=True)
    (directory / "data" / "file").write_text("of the image\n")
    return directory


def rootfs_ops(root: Path, *inside: Op, pivot: bool = True) -> list[Op]:
    """Slot 0 the tree, slot 1 the root, slot 2 a proc; `inside` comes before the pivot. Slots from 3 on are free."""
    ops = [
        child("PROPAGATE", s0="/", s1="rslave", n0=MS_SLAVE | MS_REC),
        child("TREE", "RECURSIVE", fd0=0, s0=str(root)),
        child("ROOT", fd0=0, fd1=1, s0=str(root)),
        child("FS_NEW", fd0=2, s0="proc", s2="proc"),
        child("ATTACH", "MAKE_DIR", "REAL_DIR", fd0=2, fd1=1, s0="/proc"),
        *inside,
    ]
    return [*ops, child("PIVOT", fd0=1)] if pivot else ops


@dataclass
class Outcome:
    """What the helper said and what became of the container's init (its wait status, None where it never ran)."""

    helper: int
    reports: list[tuple[int, int, int, int, str]] = field(default_factory=list)  # stage, index, errno, pid, detail
    status: int | None = None
    output: str = ""

    @property
    def facts(self) -> dict[str, str]:
        pairs = (line.partition(": ") for line in self.output.splitlines())
        return {key.rstrip(":"): value for key, _, value in pairs}

    @property
    def failure(self) -> tuple[int, int, str]:
        """(index, errno, detail) of the failed record."""
        stage, index, number, _, detail = self.reports[-1]
        assert stage == shim.FAILED, self
        return index, number, detail


def run(
    ops: Sequence[Op], fds: Sequence[int] = (), *, slots: int = 16, data: bytes | None = None, wait: bool = True
) -> Outcome:
    """Carry `ops` out in role launch; `fds` fill the first slots. Waits for init and gathers its output."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: init comes to us when the helper leaves
    if data is None:
        data = wire.encode(Plan(tuple(ops), tuple(f"s{i}" for i in range(len(fds))), max(slots, len(fds))))
    plan, helper = shim.sealed_memfd("plan", data), shim.helper_memfd()
    reports, report_end = os.pipe()
    output, output_end = os.pipe()
    wanted = [os.open("/dev/null", os.O_RDONLY), output_end, output_end, plan, report_end, *fds]
    high = [os.dup2(fd, 700 + i, inheritable=False) for i, fd in enumerate(wanted)]
    actions = [(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(high)]
    pid = os.posix_spawn(f"/proc/self/fd/{helper}", ["wherry-helper", "launch"], {}, file_actions=actions)
    for fd in {*high, *wanted[:5], helper} - set(fds):
        os.close(fd)
    outcome = Outcome(0)
    said, text = _gather(reports, output, wait)
    outcome.helper = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for at in range(0, len(said), REPORT.size):
        _, stage, index, number, init, _, detail = REPORT.unpack_from(said, at)
        outcome.reports.append((stage, index, number, init, detail.split(b"\0")[0].decode(errors="replace")))
    if wait and outcome.reports and outcome.reports[-1][0] == shim.STARTED:
        outcome.status = os.waitstatus_to_exitcode(os.waitpid(outcome.reports[-1][3], 0)[1])
    outcome.output = text.decode(errors="replace")
    return outcome


def _gather(reports: int, output: int, wait: bool) -> tuple[bytes, bytes]:
    said = {reports: b"", output: b""}
    open_ends = {reports, output} if wait else {reports}
    while open_ends:
        for fd in select.select(list(open_ends), [], [], 60)[0] or pytest_fail(open_ends):
            data = os.read(fd, 65536)
            said[fd] += data
            if not data:
                open_ends.discard(fd)
    os.close(reports)
    os.close(output)
    return said[reports], said[output]


def pytest_fail(ends: object) -> list[int]:
    raise AssertionError(f"no end of {ends} within 60 s")


def reap(pid: int) -> int:
    """Kill and wait."""
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]
