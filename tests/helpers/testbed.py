"""The testbed's guest (scripts/testbed/vm-run), as tests boot it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

__all__ = ["PREPARE_SECONDS", "TOP", "VM_RUN", "checkout", "prepare"]

TOP = Path(__file__).resolve().parents[2]
VM_RUN = TOP / "scripts" / "testbed" / "vm-run"
PREPARE_SECONDS = 1500


def prepare(*flags: str) -> None:
    """Have its kernel; skips, with the reason, where it cannot be had."""
    try:
        done = subprocess.run(
            [str(VM_RUN), *flags, "--prepare"], capture_output=True, text=True, timeout=PREPARE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the testbed's kernel was not built within {PREPARE_SECONDS} s")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"not prepared ({VM_RUN.name} {' '.join([*flags, '--prepare'])}): {why}")


def checkout() -> list[str]:
    """The guest's /tmp and /run are its own: a checkout that lies there is shared with it."""
    hidden = any(TOP.is_relative_to(place) for place in ("/tmp", "/run"))
    return ["--rw", str(TOP)] if hidden else []
