"""Freezing file systems so that whoever is killed leaves none frozen.

A frozen file system blocks its writers until it is thawed, and nobody thaws it when the freezer dies. So a child that
does nothing else is started first. It has the same descriptors, is told which of them we are about to freeze, and
thaws what is frozen still when its standard input ends: that is when the context ends, or when we die.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from . import kernel

__all__ = ["frozen"]

_CHILD = """
import fcntl, os, sys
held = set()
os.write(1, b"+")
for line in sys.stdin:
    held ^= {int(line)}
for fd in held:
    try:
        fcntl.ioctl(fd, 0xC0045878, 0)  # FITHAW
    except OSError:
        pass
"""


class _Guard:
    """The child; each `toggle` tells it of a descriptor that is ours to thaw from now on, or no longer."""

    def __init__(self, roots: Sequence[int]) -> None:
        command = [sys.executable, "-I", "-S", "-c", _CHILD]
        # a session of its own: no signal to our group ends it
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=roots, start_new_session=True
        )
        assert self._child.stdin
        assert self._child.stdout
        self._told, ready = self._child.stdin, self._child.stdout
        with ready:
            if ready.read(1) != b"+":
                self.dismiss()
                raise OSError(errno.EIO, "the process that would thaw file systems does not start; nothing was frozen")

    def toggle(self, root: int) -> None:
        self._told.write(b"%d\n" % root)

    def dismiss(self) -> None:
        self._told.close()
        self._child.wait()


@contextmanager
def frozen(roots: Sequence[int]) -> Iterator[None]:
    """Freeze the file systems with these roots while the context lasts: all that was written is on disk, and who writes
    waits. One that somebody froze before (EBUSY) stays theirs to thaw."""
    if not roots:
        yield
        return
    guard, mine = _Guard(roots), list[int]()
    try:
        for root in roots:
            if _froze(root, guard):
                mine.append(root)
        yield
    finally:
        for root in mine:
            with suppress(OSError):  # the guard will try, too
                kernel.thaw(root)
                guard.toggle(root)
        guard.dismiss()


def _froze(root: int, guard: _Guard) -> bool:
    guard.toggle(root)
    try:
        kernel.freeze(root)
    except OSError as error:
        guard.toggle(root)
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
