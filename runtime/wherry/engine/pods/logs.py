"""Where the log of a pod's container lies, on a node where others write below the kubelet's log directory.

Decides which part of its path is the node's (links there are the administrator's) and which is the pod's: there no
link is followed, neither when directories are made nor when a monitor opens the file (invariants 1 and 10).
"""

from __future__ import annotations

import contextlib
import os

from wherry.errors import Kind, WherryError
from wherry.kernel import files

__all__ = ["locate", "make_way"]

_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def locate(path: str, directory: str) -> str:
    """The file of a log as `make_way` and the monitor take it: all that lies above the pod's own directory resolved
    once. `directory`: the pod's; without one that of the file. "" is no log."""
    if not path:
        return ""
    own = directory if directory and path.startswith(f"{directory}/") else os.path.dirname(path)
    above = os.path.dirname(own)
    return os.path.realpath(above).rstrip("/") + path[len(above.rstrip("/")) :]


def make_way(file: str) -> None:
    """Make the directories that are missing. PRECONDITION where something else than a directory is in the way."""
    directory = os.path.dirname(file)
    here = os.open("/", _HANDLE)
    try:
        try:
            os.close(files.open_beneath(here, directory.lstrip("/"), _HANDLE, cross=True))
        except FileNotFoundError:
            for name in directory.strip("/").split("/"):
                here = _below(here, name)
    except OSError as error:
        message = f"log directory {directory[:300]}: {error.strerror}"
        raise WherryError(Kind.PRECONDITION, message, hint="it must be of real directories") from error
    finally:
        os.close(here)


def _below(parent: int, name: str) -> int:
    """A handle in exchange for the parent's; the directory is made if it is missing."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
    found = os.open(name, _HANDLE, dir_fd=parent)
    os.close(parent)
    return found
