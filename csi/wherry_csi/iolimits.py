"""io limits of published volumes: lines of io.max (cgroup v2) in the cgroup of the pod that a volume is published for.

The pod is known by its uid, from podInfoOnMount or from the target's path, as the kubelet lays them; its cgroup by its
name, as the kubelet's two drivers make them. Nothing is kept: what is limited is read from the kernel.
Source: Documentation/admin-guide/cgroup-v2.rst (io.max); kubelet, pod_container_manager_linux.go (names).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

from . import mounts
from .errors import CsiError
from .requests import LIMITS

__all__ = ["POD_UID", "apply", "line", "pod_of", "remove"]

POD_UID = "csi.storage.k8s.io/pod.uid"

Device = tuple[int, int]  # major, minor

_UID = re.compile(r"[0-9a-zA-Z-]{1,64}")
_IN_PATH = re.compile(r"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/")
_IN_BLOCK_PATH = re.compile(r"/publish/[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
_DEPTH = 5  # kubelet.slice/kubelet-kubepods.slice/…-burstable.slice/…-pod….slice
_ON_THE_WAY = ("kube", "burstable", "besteffort")


def pod_of(target: str, context: Mapping[str, str] | None = None) -> str:
    """The uid of the pod that a target is for; "" if it is for none."""
    if context and (uid := context.get(POD_UID, "")):
        if not _UID.fullmatch(uid):
            raise CsiError("INVALID_ARGUMENT", f"volume_context: {POD_UID} {uid[:80]!r} is no uid of a pod")
        return uid
    found = _IN_PATH.search(target) or _IN_BLOCK_PATH.search(target)
    return found[1] if found else ""


def line(device: Device, limits: Mapping[str, int]) -> str:
    """The line of io.max for a device; what is not limited is "max"."""
    words = [f"{word}={limits.get(key) or 'max'}" for key, word in LIMITS.items()]
    return f"{device[0]}:{device[1]} {' '.join(words)}"


def apply(uid: str, devices: Iterable[Device], limits: Mapping[str, int]) -> None:
    """Limit a pod's io on a volume's devices. FAILED_PRECONDITION if it cannot be: a limit is kept or refused."""
    found = list(_cgroups(uid))
    if not found and any(limits.values()):
        raise CsiError(
            "FAILED_PRECONDITION",
            f"the volume has io limits, but pod {uid} has no cgroup with io.max here: that needs cgroup v2 with its io "
            "controller; take the limits off the volume (0), or the pod to another node",
        )
    _write(found, [line(device, limits) for device in devices])


def remove(uid: str, devices: Iterable[Device]) -> None:
    """Take the limits on a volume's devices off a pod; it may be gone."""
    if lines := [line(device, {}) for device in devices]:
        _write(_cgroups(uid), lines)


def _write(cgroups: Iterable[str], lines: Iterable[str]) -> None:
    for cgroup, text in product(cgroups, lines):
        try:
            with open(os.path.join(cgroup, "io.max"), "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the pod or the device is gone
                raise


def _cgroups(uid: str) -> Iterator[str]:
    """The pod's cgroups that have io.max: one, if any."""
    if not uid:
        return
    names = (f"pod{uid}", f"-pod{uid.replace('-', '_')}.slice")
    for mount in mounts.table():
        if mount.fs == "cgroup2":
            for path in _pods(mount.target, names, _DEPTH):
                if os.path.exists(os.path.join(path, "io.max")):
                    yield path


def _pods(directory: str, names: tuple[str, str], depth: int) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in below:
        path = os.path.join(directory, name)
        if name == names[0] or name.endswith(names[1]):
            yield path
        elif depth and name.startswith(_ON_THE_WAY):
            yield from _pods(path, names, depth - 1)
