"""`python -m wherry_cni NAME`: the plugins without their executables."""

from __future__ import annotations

import sys
from importlib import import_module

PLUGINS = ("bandwidth", "bridge", "firewall", "host-device", "host-local", "ipvlan", "loopback", "macvlan", "overlay",
           "portmap", "ptp", "sbr", "static", "tuning")


def entry() -> int:
    """Run the plugin that the first argument names."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PLUGINS:
        sys.stderr.write(f"usage: python -m wherry_cni {'|'.join(PLUGINS)}\n")
        return 2
    code: int = import_module(f"wherry_cni.{name.replace('-', '_')}").entry()
    return code


if __name__ == "__main__":
    sys.exit(entry())
