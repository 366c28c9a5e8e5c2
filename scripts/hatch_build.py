"""Hatchling's build hook: runs make for the native parts, makes the wheel a wheel of this platform, and the front its
scripts.

Used by `pip install .`, `pip install -e .` and `python -m build`. Needs gcc, make, headers of libc and libseccomp.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILT = {
    "runtime/wherry/_native/wherry-helper": "wherry/_native/wherry-helper",
    "runtime/wherry/kernel/_shim.abi3.so": "wherry/kernel/_shim.abi3.so",
    "runtime/wherry/kernel/_seccomp.abi3.so": "wherry/kernel/_seccomp.abi3.so",
}
#: the front under the names of the programs that it is; installed as scripts, byte by byte
FRONTS = {f"runtime/wherry/_native/front/{name}": name for name in ("wherry", "wherry-oci", "wherry-cni")}
NEEDS = "gcc make libc6-dev libseccomp-dev"


class NativeBuildHook(BuildHookInterface[Any]):
    """Builds before the files are gathered; an sdist carries sources only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run make; name the built files and the platform to hatchling."""
        if self.target_name != "wheel":
            return
        self._make()
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-linux_{platform.machine()}"
        root = self.root
        build_data["shared_scripts"].update({os.path.join(root, path): name for path, name in FRONTS.items()})
        if version != "editable":
            build_data["force_include"].update({os.path.join(root, path): name for path, name in BUILT.items()})

    def _make(self) -> None:
        command = ["make", "-s", "-C", os.path.join(self.root, "runtime", "native"), f"PYTHON={sys.executable}"]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            hint = f"on Debian: apt install {NEEDS}"
            raise SystemExit(f"building wherry's native parts failed ({error}); {hint}") from error
