"""How a monitor (or we) start `wherry internal ...`: argv and environment. Decides that nothing of the caller's
environment leaks in: another user's PYTHONPATH must not run as root."""

from __future__ import annotations

import os
import sys

from .house import House

__all__ = ["argv", "environment", "python_path"]


def python_path() -> str:
    """The directories our packages were imported from, where the interpreter would not find them by itself."""
    import wherry

    here = os.path.dirname(os.path.dirname(os.path.abspath(wherry.__file__)))
    found = [here] if not here.endswith("site-packages") else []
    beside = [os.path.join(os.path.dirname(here), name) for name in ("cni", "csi")] if found else []
    return ":".join([*found, *(path for path in beside if os.path.isdir(path))])


def argv(verb: str, cid: str) -> tuple[str, ...]:
    """The command line of `internal VERB ID`. -P: the current directory is no place for modules."""
    return (sys.executable, "-P", "-m", "wherry", "internal", verb, cid)


def environment(house: House) -> dict[str, str]:
    """Its whole environment."""
    place = house.place
    found = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "WHERRY_ROOT": place.root,
        "WHERRY_STATE": place.state,
        "WHERRY_CONFIG": place.config,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    path = python_path()
    return found | ({"PYTHONPATH": path} if path else {})
