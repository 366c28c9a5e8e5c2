"""The engine's values, and the OCI config.json of a container, as NRI's messages; limits also the way back. Pure.

A container is told as it is written down, so that a plugin sees what others have changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from wherry.engine.pods.values import Member, Pod
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import api_pb2 as pb

__all__ = ["HOOKS", "container", "limits", "pod", "resources"]

_STATES = {"created": pb.CONTAINER_CREATED, "running": pb.CONTAINER_RUNNING, "exited": pb.CONTAINER_STOPPED}
#: (ours, the OCI's) of what is there or not, in messages of one value each
_MEMORY = (
    ("limit", "limit"), ("reservation", "reservation"), ("swap", "swap"), ("kernel", "kernel"),
    ("kernel_tcp", "kernelTCP"), ("swappiness", "swappiness"), ("disable_oom_killer", "disableOOMKiller"),
    ("use_hierarchy", "useHierarchy"),
)  # fmt: skip
_CPU = (
    ("shares", "shares"), ("quota", "quota"), ("period", "period"), ("realtime_runtime", "realtimeRuntime"),
    ("realtime_period", "realtimePeriod"),
)  # fmt: skip
_SETS = ("cpus", "mems")
#: (ours, the OCI's) of hooks
HOOKS = (
    ("prestart", "prestart"), ("create_runtime", "createRuntime"), ("create_container", "createContainer"),
    ("start_container", "startContainer"), ("poststart", "poststart"), ("poststop", "poststop"),
)  # fmt: skip
_PROFILES = {"default": pb.SecurityProfile.RUNTIME_DEFAULT, "unconfined": pb.SecurityProfile.UNCONFINED}
_NODE = (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid"))


def _put(message: Any, table: Iterable[tuple[str, str]], found: Json) -> None:
    for ours, key in table:
        if found.get(key) is not None:
            getattr(message, ours).value = found[key]


def _got(message: Any, table: Iterable[tuple[str, str]]) -> Json:
    return {key: getattr(message, ours).value for ours, key in table if message.HasField(ours)}


# ---- limits ----


def resources(found: Json) -> pb.LinuxResources:
    """linux.resources as a message."""
    made, cpu = pb.LinuxResources(), found.get("cpu") or {}
    made.memory.SetInParent()
    _put(made.memory, _MEMORY, found.get("memory") or {})
    _put(made.cpu, _CPU, cpu)
    made.cpu.cpus, made.cpu.mems = (cpu.get(key) or "" for key in _SETS)
    for limit in found.get("hugepageLimits") or ():
        made.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    made.unified.update(found.get("unified") or {})
    for rule in found.get("devices") or ():
        told = made.devices.add(allow=rule["allow"], type=rule.get("type", "a"), access=rule.get("access", ""))
        _put(told, (("major", "major"), ("minor", "minor")), rule)
    if found.get("pids"):
        made.pids.limit = found["pids"]["limit"]
    return made


def limits(asked: pb.LinuxResources) -> Json:
    """A message as linux.resources, with nothing that it does not say. INVALID for what no kernel takes."""
    cpu = _got(asked.cpu, _CPU) | {key: text for key in _SETS if (text := getattr(asked.cpu, key))}
    pages = [{"pageSize": _page_size(limit.page_size), "limit": limit.limit} for limit in asked.hugepage_limits]
    found: Json = {
        "memory": _got(asked.memory, _MEMORY), "cpu": cpu, "hugepageLimits": pages, "unified": dict(asked.unified),
    }  # fmt: skip
    if asked.HasField("pids"):
        found["pids"] = {"limit": asked.pids.limit}
    for name in ("blockio_class", "rdt_class"):
        if asked.HasField(name) and getattr(asked, name).value:
            message = f"there are no classes here: {name} {getattr(asked, name).value[:80]!r} means nothing"
            raise WherryError(Kind.UNSUPPORTED, message, hint="say what it stands for: unified, or rdt")
    return {key: value for key, value in found.items() if value}


def _page_size(text: str) -> str:
    """It becomes part of a file's name."""
    if not re.fullmatch(r"[0-9]{1,6}[KMG]?B", text):
        raise WherryError(Kind.INVALID, f"{text[:40]!r} is no size of huge pages, such as 2MB")
    return text


# ---- pods and containers ----


def pod(found: Pod) -> pb.PodSandbox:
    """A pod; of one that is not ready only what was asked."""
    asked, held = found.options, found.held
    made = pb.PodSandbox(
        id=found.id, name=asked.name, uid=asked.uid, namespace=asked.namespace, labels=asked.labels,
        annotations=asked.annotations, runtime_handler=asked.handler, ips=found.ips,
    )  # fmt: skip
    made.linux.cgroup_parent = asked.cgroup_parent
    made.linux.pod_overhead.CopyFrom(resources(asked.overhead))
    made.linux.pod_resources.CopyFrom(resources(asked.resources))
    if held is not None:
        made.pid = held.pause.pid if held.pause else 0
        made.linux.cgroups_path = held.cgroup
        spaces = {"network": held.netns, "ipc": held.ipc, "uts": held.uts, "pid": held.pid, "user": held.user}
        made.linux.namespaces.extend(pb.LinuxNamespace(type=kind, path=path) for kind, path in spaces.items() if path)
    return made


def container(found: Member, config: Json) -> pb.Container:
    """A container with its config.json ({}: it is not known any more)."""
    asked, process = found.options, config.get("process") or {}
    made = pb.Container(
        id=found.id, pod_sandbox_id=found.pod, name=asked.name,
        state=_STATES.get(found.state, pb.CONTAINER_UNKNOWN),
        labels=asked.labels, annotations={**asked.annotations, **(config.get("annotations") or {})},
        args=process.get("args") or (), env=process.get("env") or (), pid=found.pid,
        created_at=_ns(found.created), started_at=_ns(found.started), finished_at=_ns(found.finished),
        exit_code=found.code, status_reason=found.reason, status_message=found.message,
        image=pb.Image(name=asked.user_image or asked.image, config_digest=found.image_id),
    )  # fmt: skip
    made.CDI_devices.extend(pb.CDIDevice(name=name) for name in asked.cdi)
    for mount in config.get("mounts") or ():
        made.mounts.add(
            destination=mount["destination"], type=mount.get("type", ""), source=mount.get("source", ""),
            options=mount.get("options") or (),
        )  # fmt: skip
    _process(made, process)
    _hooks(made.hooks, config.get("hooks") or {})
    _linux(made.linux, config.get("linux") or {}, process)
    made.linux.seccomp_profile.CopyFrom(_profile(asked.security.seccomp))
    return made


def _profile(asked: str) -> pb.SecurityProfile:
    if asked in _PROFILES:
        return pb.SecurityProfile(profile_type=_PROFILES[asked])
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.LOCALHOST, localhost_ref=asked)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _process(made: pb.Container, process: Json) -> None:
    user = process.get("user") or {}
    made.user.uid, made.user.gid = user.get("uid", 0), user.get("gid", 0)
    made.user.additional_gids.extend(user.get("additionalGids") or ())
    for limit in process.get("rlimits") or ():
        made.rlimits.add(type=limit["type"], hard=limit["hard"], soft=limit["soft"])


def _hooks(made: pb.Hooks, hooks: Json) -> None:
    for ours, key in HOOKS:
        for hook in hooks.get(key) or ():
            told = getattr(made, ours).add(path=hook["path"], args=hook.get("args") or (), env=hook.get("env") or ())
            _put(told, (("timeout", "timeout"),), hook)


def _linux(made: pb.LinuxContainer, linux: Json, process: Json) -> None:
    for space in linux.get("namespaces") or ():
        made.namespaces.add(type=space["type"], path=space.get("path", ""))
    for node in linux.get("devices") or ():
        told = made.devices.add(
            path=node["path"], type=node["type"], major=node.get("major", 0), minor=node.get("minor", 0)
        )
        _put(told, _NODE, node)
    made.resources.CopyFrom(resources(linux.get("resources") or {}))
    _put(made, (("oom_score_adj", "oomScoreAdj"),), process)
    made.cgroups_path = linux.get("cgroupsPath") or ""
    made.sysctl.update(linux.get("sysctl") or {})
    for name, device in (linux.get("netDevices") or {}).items():
        made.net_devices[name].name = device.get("name", "")
    _scheduling(made, process)
    _rdt(made, linux.get("intelRdt") or {})


def _scheduling(made: pb.LinuxContainer, process: Json) -> None:
    if priority := process.get("ioPriority"):
        made.io_priority.CopyFrom(pb.LinuxIOPriority(
            **{"class": pb.IOPrioClass.Value(priority["class"])}, priority=priority.get("priority", 0)
        ))  # fmt: skip
    if found := process.get("scheduler"):
        numbers: Mapping[str, int] = {key: found.get(key, 0) for key in ("nice", "priority", "runtime", "deadline",
                                                                         "period")}  # fmt: skip
        made.scheduler.CopyFrom(pb.LinuxScheduler(
            policy=found["policy"], flags=found.get("flags") or (), **numbers
        ))  # fmt: skip


def _rdt(made: pb.LinuxContainer, found: Json) -> None:
    if "closID" in found:
        made.rdt.clos_id.value = found["closID"]
    if "schemata" in found:
        made.rdt.schemata.value.extend(found["schemata"])
    if "enableMonitoring" in found:
        made.rdt.enable_monitoring.value = found["enableMonitoring"]
