"""A build context with a dynamic program of the host's: its libraries and its loader, on top of busybox."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .tools import run

__all__ = ["context"]


def context(directory: Path, program: str, name: str, *command: str) -> Path:
    """`program` (a path) as /usr/bin/`name`, started with these words; the directory is returned."""
    files, said = {program: f"usr/bin/{name}"}, run("ldd", program).stdout
    place = re.search(r"=> (/\S+)/libc\.so", said)
    assert place, said
    for found, path in re.findall(r"(=> )?(/\S+) \(0x", said):  # the loader stays where it is; it looks beside libc
        files[path] = f"{place[1] if found else os.path.dirname(path)}/{os.path.basename(path)}".lstrip("/")
    for source, target in files.items():
        (directory / "root" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, directory / "root" / target)
    words = ", ".join(f'"{word}"' for word in (name, *command))
    (directory / "Dockerfile").write_text(f"FROM busybox\nCOPY root /\nCMD [{words}]\n")
    return directory
