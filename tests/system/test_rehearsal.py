"""What the warm process does before anybody calls: it goes as it should, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from wherry.warm import rehearsal
before = sorted(os.listdir("/proc/self/fd"))
sys.stderr.write("".join(f"{line}\\n" for line in rehearsal.rehearse(sys.argv[1])))
if sorted(os.listdir("/proc/self/fd")) != before:
    sys.stderr.write("descriptors are left\\n")
children = open(f"/proc/self/task/{os.getpid()}/children").read()
if children:
    sys.stderr.write(f"children are left: {children}\\n")
if len(os.listdir("/proc/self/task")) != 1:
    sys.stderr.write("threads are left\\n")
"""


def rehearsed(directory: Path) -> list[str]:
    """What went wrong, line by line."""
    command = [sys.executable, "-c", PROGRAM, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "nobody does not exist" not in line]


def test_a_rehearsal_goes_through_and_leaves_nothing(tmp_path: Path) -> None:
    assert rehearsed(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_killed_one_is_taken_away_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "rehearsal/root/half").mkdir(parents=True)
    (tmp_path / "rehearsal/image").write_text("")
    assert rehearsed(tmp_path) == []
    assert not list(tmp_path.iterdir())
