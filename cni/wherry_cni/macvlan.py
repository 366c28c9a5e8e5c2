"""The plugin macvlan: a link with a MAC of its own upon a link of the host.

Decides which modes there are and what they are called. Keys are the reference plugin's. Host and container do not reach
each other over a macvlan: the kernel sends nothing from a master to its own children.
"""

from __future__ import annotations

from wherry_cni import skel
from wherry_cni.uplink import Kind, verbs

__all__ = ["VERBS", "entry", "main"]

_BC_QUEUE_LEN = 7  # IFLA_MACVLAN_BC_QUEUE_LEN
_MODES = {"bridge": 4, "private": 1, "vepa": 2, "passthru": 8}  # MACVLAN_MODE_*
VERBS = verbs(Kind("macvlan", _MODES, "=I", own_mac=True, chained=False, more={"bcqueuelen": _BC_QUEUE_LEN}))
main, entry = skel.faces(VERBS)
