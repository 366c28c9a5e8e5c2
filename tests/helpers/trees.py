"""Directory trees with all that a tar can say of them, how to compare them, and tars that mean harm."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

__all__ = ["FILL", "HOSTILE", "gnu", "packed", "tree"]

#: a tree with all that a tar can say of it, made by busybox in /v
FILL = """
mkdir -p /v/sub/deep && echo one > /v/one && ln /v/one /v/sub/hard && ln -s ../one /v/sub/soft && mkfifo /v/pipe
chown 12:34 /v/one /v/sub && chmod 4750 /v/one && chmod 1777 /v/sub && echo two > "/v/sub/deep/a b" && chmod 711 /v
touch -d '2001-02-03 04:05:06' /v/one /v/sub/deep
"""


def tree(top: str | Path) -> dict[str, tuple[Any, ...]]:
    """Everything below, with what must survive a copy; hard links by the names that share an inode."""
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[int, list[str]] = {}
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files] if folder == str(top) else [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            shown = os.path.relpath(path, top)
            names.setdefault(status.st_ino, []).append(shown)
            link = os.readlink(path) if os.path.islink(path) else ""
            data = Path(path).read_bytes() if os.path.isfile(path) and not os.path.islink(path) else b""
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False)
                      for key in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
            found[shown] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, link, data, xattrs)
    shared = {name: tuple(sorted(group)) for group in names.values() if len(group) > 1 for name in group}
    found.pop("lost+found", None)
    return {name: (*facts, shared.get(name, ())) for name, facts in found.items()}


def gnu(*words: object) -> None:
    """Run GNU tar."""
    subprocess.run(["tar", *map(str, words)], check=True)


def packed(*members: tuple[str, bytes, str]) -> bytes:
    """A tar of members, each (name, type, link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o755
            made.addfile(info)
    return out.getvalue()


HOSTILE = {
    "dots": packed(("../escaped", tarfile.REGTYPE, "")),
    "absolute": packed(("/escaped", tarfile.REGTYPE, "")),
    "through a link": packed(("link", tarfile.SYMTYPE, "/"), ("link/escaped", tarfile.REGTYPE, "")),
    "through a relative link": packed(("l", tarfile.SYMTYPE, "../../../.."), ("l/escaped", tarfile.DIRTYPE, "")),
    "a hard link out": packed(("hard", tarfile.LNKTYPE, "../../wherry.db")),
    "a hard link through a link": packed(("l", tarfile.SYMTYPE, "/etc"), ("hard", tarfile.LNKTYPE, "l/passwd")),
    "cut off": packed(("x", tarfile.REGTYPE, ""))[:300],
    "noise": os.urandom(4096),
}
