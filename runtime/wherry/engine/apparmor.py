"""The default AppArmor profile: docker's, under our name. Decides its text; apparmor_parser loads it once a boot."""

from __future__ import annotations

import os
import shutil
import subprocess

from wherry.errors import Kind, WherryError

from .house import House

__all__ = ["ensure", "text"]

_LOADED = "/sys/kernel/security/apparmor/profiles"


def text(name: str) -> str:
    """The profile (moby's template, with the signal and ptrace rules for our own name)."""
    return f"""#include <tunables/global>

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer={name},
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer={name},
}}
"""


def _is_loaded(name: str) -> bool:
    try:
        with open(_LOADED, encoding="utf-8") as file:
            return any(line.split(" ")[0] == name for line in file)
    except OSError:
        return False


def ensure(name: str, house: House) -> str:
    """Return the name of a loaded profile; "" (with a warning) where no parser can load it."""
    if _is_loaded(name):
        return name
    parser = shutil.which("apparmor_parser") or "/sbin/apparmor_parser"
    if not os.access(parser, os.X_OK):
        house.warn("AppArmor is on, but apparmor_parser is not installed: the container runs without a profile")
        return ""
    made = subprocess.run([parser, "-Kr"], input=text(name), text=True, capture_output=True, timeout=30, check=False)
    if made.returncode:
        raise WherryError(Kind.PRECONDITION, f"AppArmor profile {name} cannot be loaded: {made.stderr.strip()[-300:]}",
                          hint="--security-opt apparmor=unconfined runs without it")  # fmt: skip
    return name
