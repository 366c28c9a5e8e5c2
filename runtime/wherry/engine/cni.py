"""Our CNI plugins for other runtimes: links under their standard names to the installed `wherry-cni`.

Decides what is ours: a symbolic link to a file of that name, be it there or not (an installation that moved). Whatever
else has the name of a plugin is left alone, unless it is to be replaced.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from wherry.errors import Kind, WherryError
from wherry.net.launchers import PLUGINS

__all__ = ["install", "uninstall"]

_FRONT = "wherry-cni"


def install(directory: str, *, force: bool = False, front: str = "") -> list[str]:
    """Put a link for each plugin into `directory`; their paths. `front`: the program, if not the installed one.

    CONFLICT where a file of another is in the way, without `force`: then nothing is put. NOT_FOUND, DENIED.
    """
    front = front or _installed()
    paths = _paths(directory)
    taken = [path for path in paths if os.path.lexists(path) and not _ours(path)]
    if taken and not force:
        names = ", ".join(map(os.path.basename, taken))
        raise WherryError(
            Kind.CONFLICT, f"cannot install into {directory}: {names} of another there",
            hint="--force replaces them; another directory, named first in CNI_PATH, keeps both",
        )  # fmt: skip
    for path in paths:
        _put(front, path)
    return paths


def uninstall(directory: str) -> list[str]:
    """Take our links away from `directory`; the paths that are gone. NOT_FOUND, DENIED."""
    gone = [path for path in _paths(directory) if _ours(path)]
    for path in gone:
        try:
            os.unlink(path)
        except OSError as error:
            raise WherryError(Kind.DENIED, f"cannot remove {path}: {error.strerror}") from error
    return gone


def _paths(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        raise WherryError(Kind.NOT_FOUND, f"{directory} is not a directory", hint=f"mkdir -p {directory}")
    return [os.path.join(directory, name) for name in PLUGINS]


def _installed() -> str:
    """Beside the front of `wherry`: where the installer puts scripts."""
    places = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    found = [path for path in (os.path.join(place, _FRONT) for place in places) if os.access(path, os.X_OK)]
    if not found:
        raise WherryError(Kind.PRECONDITION, f"there is no {_FRONT} in {places[0]}", hint="install wherry again")
    return found[0]


def _ours(path: str) -> bool:
    return os.path.islink(path) and os.path.basename(os.readlink(path)) == _FRONT


def _put(front: str, path: str) -> None:
    """At no moment is there none: a runtime may call it just now."""
    beside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    try:
        os.symlink(front, beside)
        try:
            os.replace(beside, path)
        except OSError:
            os.unlink(beside)
            raise
    except OSError as error:
        raise WherryError(Kind.DENIED, f"cannot put {path}: {error.strerror}") from error
