"""Which programs a test needs; a missing one skips it with its reason."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["need", "needs", "run"]


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
