"""`features`: what this runtime recognises, by the runtime-spec's features.md and features-linux.md.

Each list is taken from the table that the code itself goes by.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from wherry.model import Json

from .world import World

if TYPE_CHECKING:
    from .flags import Values

__all__ = ["do_features", "structure"]

#: the kernel that a filter flag came with, where it is newer than the oldest we run on (seccomp(2))
_FLAG_KERNELS: Final = {"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": (5, 19)}
_YES: Final[Json] = {"enabled": True}


def do_features(_world: World, _words: Sequence[str], _values: Values) -> None:
    """The structure as JSON."""
    release = os.uname().release.split(".")
    sys.stdout.write(json.dumps(structure((int(release[0]), int(release[1]))), indent=4) + "\n")


def structure(kernel: tuple[int, int]) -> Json:
    """The features structure; `kernel` decides which seccomp flags are supported."""
    from importlib.metadata import version

    from wherry.oci import options, spec, systemd

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": list(spec.HOOKS),
        "mountOptions": sorted(options.KNOWN),
        "linux": _linux(kernel),
        "annotations": {
            "org.wherry.version": version("wherry"),
            "org.opencontainers.runc.checkpoint.enabled": "true",  # where engines look for the verb
        },
        "potentiallyUnsafeConfigAnnotations": [systemd.ANNOTATION],
    }


def _linux(kernel: tuple[int, int]) -> Json:
    from wherry.oci import compile_sched as sched
    from wherry.oci import facts, spec

    return {
        "namespaces": sorted(spec.NAMESPACES),
        "capabilities": list(facts.CAPABILITIES),
        "cgroup": {"v1": False, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
        "seccomp": _seccomp(kernel),
        "apparmor": _YES,
        "selinux": _YES,
        "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
        "memoryPolicy": {"modes": list(sched.MEMORY_MODES), "flags": list(sched.MEMORY_FLAGS)},
        "mountExtensions": {"idmap": _YES},
        "netDevices": _YES,
    }


def _seccomp(kernel: tuple[int, int]) -> Json:
    from wherry.kernel import seccomp
    from wherry.oci import seccomp_data, spec

    rows = seccomp_data.ARCHITECTURES.values()
    return {
        "enabled": True,
        "actions": sorted(spec.SECCOMP_ACTIONS),
        "operators": sorted(seccomp.OPERATORS),
        "archs": sorted(set(seccomp.known_architectures(name for row in rows for name in row))),
        "knownFlags": sorted(spec.SECCOMP_FLAGS),
        "supportedFlags": sorted(name for name in spec.SECCOMP_FLAGS if _FLAG_KERNELS.get(name, kernel) <= kernel),
    }
