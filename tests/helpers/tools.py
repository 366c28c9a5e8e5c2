"""Which programs a test needs; a missing one skips it with its reason."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

import pytest

__all__ = ["need", "needs", "run", "strays"]


def need(*programs: str) -> None:
    """Skip the test unless every program (a name or an absolute path) is there."""
    for program in programs:
        if not (os.path.exists(program) if program.startswith("/") else shutil.which(program)):
            pytest.skip(f"{program} is not installed")


def needs(*programs: str) -> pytest.MarkDecorator:
    """The same as a mark."""
    missing = [name for name in programs if not shutil.which(name)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def run(
    *words: object, check: bool = True, timeout: float = 60, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program; its output is in the failure's message."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=stdin, env=env)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def strays(*, reap: bool = False) -> list[int]:
    """Our children, dead ones too unless reaped here, but for the holder of the session's network (network.Outside) and
    warm processes."""
    with contextlib.suppress(ChildProcessError):
        while reap and os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found += [int(pid) for pid in file.read().split()]
    return [pid for pid in found if _command(pid) != b"sleep\0infinity\0" and b"wherry.warm" not in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
