"""Images made on the spot; nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

from .tools import run

__all__ = ["TOP", "busybox"]

TOP = Path(__file__).resolve().parents[2]


def busybox(directory: Path) -> str:
    """Write the busybox image layout and name it."""
    layout = directory / "busybox"
    run(sys.executable, TOP / "scripts" / "make_image.py", layout)
    return f"oci:{layout}"
