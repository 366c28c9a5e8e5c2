"""Where an upload goes on that a process has begun and not ended: ROOT/ingest/upload-<hash of place and blob>.

Decides who may go on with a session: one process, which holds its file. A file that is lost costs time, nothing else,
so none is synced; a sweep takes them after a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator

from wherry.digest import hexdigest

__all__ = ["Session", "held"]

_ADDRESS_MAX = 16 << 10


class Session:
    """An upload's address, "" for none. Without a descriptor it is known to this process alone."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd
        found = os.pread(fd, _ADDRESS_MAX, 0).decode("utf-8", "replace") if fd >= 0 else ""
        self._location = found.strip() if re.fullmatch(r"https?://[\x21-\x7e]+\n", found) else ""

    @property
    def location(self) -> str:
        return self._location

    @location.setter
    def location(self, value: str) -> None:
        self._location = value
        if self._fd >= 0:
            text = f"{value}\n".encode()
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))


@contextlib.contextmanager
def held(directory: str, blob: str, place: str) -> Iterator[Session]:
    """The session of a blob's upload to a place. Another one, where somebody is at it now."""
    path = os.path.join(directory, f"upload-{hexdigest('sha256', f'{place}@{blob}'.encode())}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        yield Session()
        return
    session = Session(fd)
    try:
        yield session
    finally:
        if not session.location:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.close(fd)
