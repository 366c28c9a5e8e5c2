"""kill -9 of a running process at a chosen system call of it, by strace.

Decides which system calls change state, and names the points at which a run can be cut: the Nth of a call that one
thread makes. strace's signal is there before the call is made, so the points of a run cut it before its first change,
between any two, and after the last.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .csi import eventually

__all__ = ["Point", "cut_at", "points_of"]

#: what may change a file, a mount, a device or a process
CALLS = (
    "mkdir mkdirat mknod mknodat rename renameat renameat2 unlink unlinkat rmdir link linkat symlink symlinkat "
    "open openat openat2 creat ftruncate truncate fallocate fsync fdatasync syncfs ioctl mount umount2 move_mount "
    "fsmount fsopen fsconfig open_tree mount_setattr pwrite64 pwritev write writev copy_file_range sendfile chmod "
    "fchmod fchmodat chown fchown fchownat lchown setxattr fsetxattr lsetxattr quotactl quotactl_fd utimensat clone "
    "clone3 vfork fork execve sendmsg"
)
#: of those, the ones that do not: by the line that strace writes
_HARMLESS = re.compile(
    r"open(at2?)?\((?!.*O_(CREAT|TRUNC|TMPFILE|RDWR|WRONLY))|"
    r"ioctl\(.*(TCGETS|TIOC|FIONREAD|FIONBIO|FIOCLEX|FIOASYNC|_GET|FIEMAP|GETXATTR|GETFLAGS|SSZGET|GETSIZE64)|"
    r"p?writev?(64)?\(\d+<(anon_inode|socket|pipe|/dev/null|.*\.log>)|"
    r"clone3?\(.*CLONE_THREAD"
)
_LINE = re.compile(r"^(\d+) +((\w+)\(.*)$")


class Point(NamedTuple):
    """Where a run is cut."""

    call: str
    number: int  # of this call, of one thread, from 1
    child: bool = False  # a program that it runs makes it

    def __str__(self) -> str:
        return f"{self.call} {self.number}{' of a child' if self.child else ''}"


def _tasks(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")


@contextmanager
def _strace(pid: int, output: Path, *words: str, follow: bool) -> Iterator[subprocess.Popen[bytes]]:
    """strace on all threads of a process, from when it has attached; `follow`: new threads and programs too."""
    calls = ",".join(f"?{name}" for name in CALLS.split())
    command = ["strace", "-y", "-o", str(output), "-e", f"trace={calls}", "-e", "signal=none", *words]
    tasks = [str(pid)] if follow else _tasks(pid)
    command += ["-f"] if follow else []
    with open(f"{output}.said", "w+b") as said:
        process = subprocess.Popen([*command, "-p", ",".join(tasks)], stdout=said, stderr=said)

        def attached() -> bool:
            if not _lives(pid):  # what its other threads do can meet the point already
                return True
            assert process.poll() is None, Path(said.name).read_text()
            traced = (Path(f"/proc/{pid}/task/{task}/status").read_text() for task in _tasks(pid))
            with suppress(FileNotFoundError):
                return all("TracerPid:\t0\n" not in status for status in traced)
            return False

        eventually(attached, 20, "strace attaches")
        try:
            yield process
        finally:
            _end(process, pid)


def _end(process: subprocess.Popen[bytes], pid: int) -> None:
    """It lets go of a process that lives, and sees one that was killed to its end; told to go at that very moment it
    can wait for ever, and is killed itself, which lets go too."""
    for word, seconds in ((None, 0.0 if _lives(pid) else 2.0), (signal.SIGINT, 2.0), (signal.SIGKILL, 20.0)):
        if word is not None:
            process.send_signal(word)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def points_of(pid: int, output: Path, run: Callable[[], object]) -> tuple[list[Point], bool]:
    """Where `run` changes something through the process; and whether new threads do, which must be followed then."""
    with _strace(pid, output, follow=True):
        run()
        threads = set(_tasks(pid))
    counts: Counter[tuple[str, str]] = Counter()
    seen: list[tuple[str, Point]] = []
    programs = set()
    for task, line, call in (match.groups() for line in output.read_text(errors="replace").splitlines()
                             if (match := _LINE.match(line))):  # fmt: skip
        counts[task, call] += 1
        if call == "execve":
            programs.add(task)
        if not _HARMLESS.search(line):
            seen.append((task, Point(call, counts[task, call])))
    own = {point: None for task, point in seen if task not in programs}
    children: dict[str, list[Point]] = {}
    for task, point in seen:
        if task in programs:
            children.setdefault(point.call, []).append(point._replace(child=True))
    # a program's many writes are alike for us: its first, middle and last of each kind stand for them
    some = {one: None for found in children.values() for one in (found[0], found[len(found) // 2], found[-1])}
    new = any(task not in threads and task not in programs for task, _ in seen)
    return [*own, *some], new


@contextmanager
def cut_at(pid: int, point: Point, output: Path, *, follow: bool = False) -> Iterator[None]:
    """Whoever makes this call within, is killed before it is made."""
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    with _strace(pid, output, "-e", inject, follow=follow or point.child):
        yield
