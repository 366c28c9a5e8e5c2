"""What a process that stays loads before anybody waits for it: the modules of a pod's life, and the host's facts.

Decides nothing; what is missing here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from wherry.errors import WherryError

from .house import House

__all__ = ["preload"]

_MODULES = (
    "wherry.engine.pods.sandbox", "wherry.engine.pods.namespaces", "wherry.engine.pods.network",
    "wherry.engine.pods.cgroups", "wherry.engine.pods.files", "wherry.engine.pods.member",
    "wherry.engine.pods.building", "wherry.engine.pods.starting", "wherry.engine.pods.usage",
    "wherry.engine.start", "wherry.engine.stop", "wherry.engine.remove", "wherry.engine.execs",
    "wherry.engine.keeping", "wherry.container.launch", "wherry.container.lifecycle", "wherry.container.attach",
    "wherry.container.exec", "wherry.oci.compile", "wherry.oci.seccomp", "wherry.image.snapshot", "wherry.image.store",
    "wherry.net.cni",
)  # fmt: skip


def preload(house: House) -> None:
    """Load it. A failure is the affair of who needs the thing."""
    for name in _MODULES:
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(WherryError, OSError):
        _ = house.facts, house.db, house.networks, house.snapshots, house.images.list()
