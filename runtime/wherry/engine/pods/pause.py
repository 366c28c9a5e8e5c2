"""The pause process: pid 1 of a pod whose containers share one pid namespace, which lives as long as it does.

Decides how little it has: the helper in its role init with nothing to start, which reaps; an empty read-only root, no
capability, no descriptor of ours, a uid of nobody. A container that sees it in /proc must not come by it to the host.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping

from wherry.engine.house import House
from wherry.kernel import files, process
from wherry.kernel.process import Process
from wherry.model import Json
from wherry.oci.how import LaunchHow

from . import cgroups, namespaces, records
from .values import IdMap, PodOptions

__all__ = ["end", "start"]

_NOBODY = 65535  # as Kubernetes' pause image
_SIGKILL = 9
_NOTE_MAX = 1 << 16
_STREAMS = ("stdin", "stdout", "stderr")


def start(house: House, pod: str, options: PodOptions, paths: Mapping[str, str], place: cgroups.Place) -> Process:
    """In the pod's namespaces `paths` and a new pid namespace, which is pinned as "pid" beside them. Taken back by
    `end`, also when this fails half way."""
    from wherry.container import launch
    from wherry.oci import compile as planner

    folder = records.run_directory(house, pod)
    root = f"{folder}/pause"
    os.mkdir(root, 0o755)
    os.chown(root, root_id(options.uids), root_id(options.gids))  # the root of its user namespace mounts in there
    with contextlib.ExitStack() as held:
        cgroup = _cgroup(house, pod, place, held)
        how = LaunchHow(pod, root_dir=root, cgroup=cgroup, cgroup_exists=bool(place.slice), stdio=_STREAMS, init=True)
        plan = planner.compile_create(_config(root, options, paths), root, house.facts, how)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        held.callback(os.close, null)
        streams, name = dict.fromkeys(_STREAMS, null), f"the pause of pod {pod[:12]}"
        made = launch.start(root, plan, "launch", streams, name=name).init
        _store(house, pod, {"cgroup": cgroup, **made._asdict()})
    namespaces.pin(f"/proc/{made.pid}/ns/pid", f"{folder}/ns/pid")
    return made


def end(house: House, pod: str) -> None:
    """Kill it, and with it everything in its pid namespace. Gone is success."""
    from wherry.kernel import cgroup

    try:
        note = json.loads(files.read_small(f"{records.run_directory(house, pod)}/pause.json", _NOTE_MAX))
    except (FileNotFoundError, NotADirectoryError):
        return
    found = Process(note["pid"], note["start_time"])
    if process.signal(found, _SIGKILL):
        process.wait_gone(found, 10)
    if note["cgroup"]:
        cgroup.kill(note["cgroup"])
        cgroup.remove(note["cgroup"])


def _store(house: House, pod: str, note: Json) -> None:
    data = json.dumps({"pid": 0, "start_time": 0, **note}).encode()
    files.atomic_write(f"{records.run_directory(house, pod)}/pause.json", data, 0o600)


def _cgroup(house: House, pod: str, place: cgroups.Place, held: contextlib.ExitStack) -> str:
    """A leaf below the pod's, for only leaves have processes; with systemd a scope, until the end of `held` kept by its
    holder."""
    if not place.path:
        return ""
    name = f"wherry-pause-{pod}"
    if not place.slice:
        path = f"{place.path}/{name}"
        _store(house, pod, {"cgroup": path})  # before it exists: a sweep must find it whatever dies when
        return path
    from wherry.container import systemd as bus
    from wherry.oci.systemd import Scope

    return held.enter_context(bus.start(Scope(place.slice, f"{name}.scope"), [], house.facts)).path


def _config(root: str, options: PodOptions, paths: Mapping[str, str]) -> Json:
    uid, gid = (_NOBODY if _maps(lines) else 0 for lines in (options.uids, options.gids))
    names = {"net": "network"}
    joined = [{"type": names.get(kind, kind), "path": path} for kind, path in paths.items() if kind != "pid"]
    rights = ("bounding", "effective", "permitted", "inheritable", "ambient")
    return {
        "ociVersion": "1.2.0",
        "root": {"path": root, "readonly": True},
        "mounts": [],
        "process": {
            "cwd": "/", "args": [""], "env": [], "user": {"uid": uid, "gid": gid}, "noNewPrivileges": True,
            "capabilities": {right: [] for right in rights},
        },
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, *joined], "resources": {}},
    }  # fmt: skip


def root_id(lines: tuple[IdMap, ...]) -> int:
    """The host's id of a pod's 0."""
    return next((one.host for one in lines if one.inside == 0), 0)


def _maps(lines: tuple[IdMap, ...]) -> bool:
    return not lines or any(one.inside <= _NOBODY < one.inside + one.size for one in lines)
