"""The plugin ipvlan: a link with the MAC of its master, a link of the host, and addresses of its own.

Decides which modes there are and what they are called. Keys are the reference plugin's. In a chain, without `ipam` and
`master`, it takes both from the plugin before it.
"""

from __future__ import annotations

from wherry_cni import skel
from wherry_cni.uplink import Kind, verbs

__all__ = ["VERBS", "entry", "main"]

_MODES = {"l2": 0, "l3": 1, "l3s": 2}  # IPVLAN_MODE_*
VERBS = verbs(Kind("ipvlan", _MODES, "=H", own_mac=False, chained=True, more={}))
main, entry = skel.faces(VERBS)
