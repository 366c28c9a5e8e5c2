"""The plugin macvlan: a link with a MAC of its own upon a link of the host.

Decides which modes there are and what they are called. Keys are the reference plugin's. Host and container do not reach
each other over a macvlan: the kernel sends nothing from a master to its own children.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO

from wherry_cni import skel
from wherry_cni.uplink import Kind, verbs

__all__ = ["VERBS", "entry", "main"]

_BC_QUEUE_LEN = 7  # IFLA_MACVLAN_BC_QUEUE_LEN
_MODES = {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8}  # MACVLAN_MODE_*
VERBS = verbs(Kind("macvlan", _MODES, "=I", own_mac=True, chained=False, more={"bcqueuelen": _BC_QUEUE_LEN}))


def main(argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """One call with injected streams."""
    return skel.main(VERBS, argv, env, stdin, stdout)


def entry() -> int:
    """The executable."""
    return skel.process_main(VERBS)
