"""`python -m wherry_cni NAME`: the plugins without their executables."""

from __future__ import annotations

import sys
from importlib import import_module

_PLUGINS = {
    "bandwidth": "bandwidth",
    "bridge": "bridge",
    "firewall": "firewall",
    "host-device": "host_device",
    "host-local": "host_local",
    "ipvlan": "ipvlan",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "overlay": "overlay",
    "portmap": "portmap",
    "ptp": "ptp",
    "sbr": "sbr",
    "static": "static",
    "tuning": "tuning",
}


def entry() -> int:
    """Run the plugin that the first argument names."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in _PLUGINS:
        sys.stderr.write(f"usage: python -m wherry_cni {'|'.join(_PLUGINS)}\n")
        return 2
    code: int = import_module(f"wherry_cni.{_PLUGINS[name]}").entry()
    return code


if __name__ == "__main__":
    sys.exit(entry())
