"""What plugins ask for, put onto a container that is being made, and onto the limits of others. Pure.

Decides how the wishes of several are one: each in its turn, onto what those before it left, and none onto what another
one set (`owners`). Names that begin with "-" are taken away. What a wish means to the kernel is judged later, as
everything in a config.json is.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from wherry.engine.devices import Devices
from wherry.engine.pods.values import Member
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import api_pb2 as pb
from . import messages
from .owners import Owners, removed

__all__ = ["Adjusting", "Update", "Updates", "over"]


def over(old: Json, new: Json) -> Json:
    """Limits over others: what is absent stays."""
    found = {**old, **{key: value for key, value in new.items() if key not in ("hugepageLimits", "devices")}}
    for key in ("memory", "cpu", "unified"):
        if both := {**(old.get(key) or {}), **(new.get(key) or {})}:
            found[key] = both
    pages = {limit["pageSize"]: limit for part in (old, new) for limit in part.get("hugepageLimits") or ()}
    if pages:
        found["hugepageLimits"] = list(pages.values())
    return found


# ---- limits of containers that are there ----


class Update(NamedTuple):
    """New limits of one container, OCI linux.resources; `lenient`: that it cannot be done harms nobody."""

    container: str
    limits: Json
    lenient: bool = False


class Updates:
    """What all plugins want changed by one event. `own`: the container that it is about, with what it is to get."""

    def __init__(self, owners: Owners, own: Update | None = None, new: str = "") -> None:
        self._owners, self._new = owners, new
        self._found: dict[str, Update] = {own.container: own} if own else {}

    def take(self, plugin: str, asked: Iterable[pb.ContainerUpdate]) -> None:
        """What one plugin answers; CONFLICT, INVALID."""
        for update in asked:
            if update.container_id == self._new:
                message = f"plugin {plugin} wants to update the container that is being made"
                raise WherryError(Kind.INVALID, message, hint="an adjustment does that")
            try:
                self._owners.claim_limits(update.container_id, plugin, update.linux.resources)
                self._put(update, messages.limits(update.linux.resources))
            except WherryError:
                if not update.ignore_failure:
                    raise

    def _put(self, update: pb.ContainerUpdate, limits: Json) -> None:
        ref = update.container_id
        known = self._found.get(ref, Update(ref, {}, True))
        self._found[ref] = Update(ref, over(known.limits, limits), known.lenient and update.ignore_failure)

    def of(self, container: str) -> Json:
        """What this one gets."""
        return self._found[container].limits

    def others(self, own: str = "") -> list[Update]:
        """All but `own`."""
        return [update for ref, update in self._found.items() if ref != own]


# ---- a container that is being made ----


class Adjusting:
    """One container: `config` is its config.json as it has become, `member` what is kept of it, `cdi` the devices that
    are still to be put in. `asked`, `owners`: for validators."""

    def __init__(self, member: Member, config: Json) -> None:
        self.member, self.config = member, copy.deepcopy(config)
        self.cdi: list[str] = []
        self.asked = pb.ContainerAdjustment()
        self.owners = Owners()
        self.updates = Updates(self.owners, new=member.id)

    def take(self, plugin: str, answer: pb.CreateContainerResponse) -> None:
        """What one plugin answers; CONFLICT, INVALID, UNSUPPORTED."""
        for part in _PARTS:
            part(_Turn(self, plugin), answer.adjust)
        self.asked.MergeFrom(answer.adjust)
        self.updates.take(plugin, answer.update)

    def put(self, found: Devices) -> None:
        """The CDI devices, as they were found."""
        taken = {mount["destination"] for mount in found.mounts}
        kept = [mount for mount in self.config["mounts"] if mount["destination"] not in taken]
        self.config["mounts"] = sorted([*kept, *found.mounts], key=lambda mount: mount["destination"].count("/"))
        self.process["env"] = [*self.process["env"], *found.env]
        self.linux["devices"] = [*(self.linux.get("devices") or ()), *found.nodes]
        self.linux["resources"]["devices"] += found.rules
        for name, hook in found.hooks:
            self.config.setdefault("hooks", {}).setdefault(name, []).append(hook)

    def told(self) -> pb.Container:
        """As it is now."""
        return messages.container(self.member, self.config)

    @property
    def linux(self) -> Json:
        """linux of config.json."""
        found: Json = self.config["linux"]
        return found

    @property
    def process(self) -> Json:
        """process of config.json."""
        found: Json = self.config["process"]
        return found

    def forget(self, entries: Any, key: str, gone: set[str]) -> None:
        """Out of `asked`, what a later plugin took away."""
        kept = [entry for entry in entries if getattr(entry, key).removeprefix("-") not in gone]
        del entries[:]
        entries.extend(kept)


class _Turn(NamedTuple):
    """One plugin's turn."""

    it: Adjusting
    plugin: str

    def claim(self, field: int, key: str = "") -> None:
        self.it.owners.claim(self.it.member.id, field, self.plugin, key)

    def named(self, field: int, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """(names that go, names that come), each this plugin's from now on."""
        words = list(names)
        gone = {name for word in words if (name := removed(word))}
        come = {word for word in words if word and not removed(word)}
        for name in gone:
            self.it.owners.clear(self.it.member.id, field, self.plugin, name)
        for name in come:
            self.claim(field, name)
        return gone, come

    def map(self, field: int, wished: Mapping[str, Any], where: Json, key: str, value: Callable[[Any], Any]) -> None:
        """The wishes of a map onto one of config.json."""
        if not wished:
            return
        gone, come = self.named(field, wished)
        found = {name: old for name, old in (where.get(key) or {}).items() if name not in gone}
        where[key] = found | {name: value(wished[name]) for name in come}


def _annotations(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    turn.map(pb.Annotations, asked.annotations, turn.it.config, "annotations", str)


def _mounts(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.mounts:
        return
    it = turn.it
    gone, come = turn.named(pb.Mounts, (_place(mount.destination) for mount in asked.mounts))
    it.forget(it.asked.mounts, "destination", gone)
    kept = [mount for mount in it.config["mounts"] if os.path.normpath(mount["destination"]) not in gone | come]
    new = {_place(mount.destination): mount for mount in asked.mounts if not removed(mount.destination)}
    made = [*kept, *({"destination": place, "type": mount.type or "bind", "source": mount.source,
                      "options": list(mount.options)} for place, mount in new.items())]  # fmt: skip
    it.config["mounts"] = sorted(made, key=lambda mount: mount["destination"].count("/"))
    if any(set(mount.options) & {"rslave", "rshared", "slave", "shared"} for mount in new.values()):
        it.linux["rootfsPropagation"] = "slave"


def _place(path: str) -> str:
    mark, place = ("-", path[1:]) if removed(path) else ("", path)
    if not place.startswith("/") or "\0" in place:
        raise WherryError(Kind.INVALID, f"a mount's place must be absolute, not {path[:200]!r}")
    return mark + os.path.normpath(place)


def _env(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.env:
        return
    it = turn.it
    gone, come = turn.named(pb.Env, (pair.key for pair in asked.env))
    it.forget(it.asked.env, "key", gone)
    kept = [line for line in it.process["env"] if line.partition("=")[0] not in gone | come]
    new = {pair.key: pair.value for pair in asked.env if pair.key in come}
    for key, value in new.items():
        if "=" in key or "\0" in key + value:
            raise WherryError(Kind.INVALID, f"{key[:80]!r} is no name of an environment variable, or it has a NUL")
    it.process["env"] = [*kept, *(f"{key}={value}" for key, value in new.items())]


def _args(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    words = list(asked.args)
    if not words:
        return
    if not words[0]:  # an empty first word takes away what others have set
        turn.it.owners.clear(turn.it.member.id, pb.Args, turn.plugin)
        del words[0]
    turn.claim(pb.Args)
    del turn.it.asked.args[:]
    if words:
        turn.it.process["args"] = words


def _hooks(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    hooks = turn.it.config.setdefault("hooks", {})
    for ours, key in messages.HOOKS:
        for hook in getattr(asked.hooks, ours):
            made: Json = {"path": hook.path, "args": list(hook.args), "env": list(hook.env)}
            if hook.HasField("timeout"):
                made["timeout"] = hook.timeout.value
            hooks.setdefault(key, []).append(made)
            turn.it.owners.add(turn.it.member.id, pb.OciHooks, turn.plugin)
    if not hooks:
        del turn.it.config["hooks"]


def _rlimits(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    new = {limit.type: {"type": limit.type, "hard": limit.hard, "soft": limit.soft} for limit in asked.rlimits}
    for kind in new:
        turn.claim(pb.Rlimits, kind)
    if new:
        kept = [limit for limit in turn.it.process.get("rlimits") or () if limit["type"] not in new]
        turn.it.process["rlimits"] = [*kept, *new.values()]


def _cdi(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    for device in asked.CDI_devices:
        turn.claim(pb.CdiDevices, device.name)
        if device.name not in turn.it.cdi:
            turn.it.cdi.append(device.name)


def _devices(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.devices:
        return
    it = turn.it
    gone, come = turn.named(pb.Devices, (device.path for device in asked.linux.devices))
    it.forget(it.asked.linux.devices, "path", gone)
    kept = [node for node in it.linux.get("devices") or () if node["path"] not in gone | come]
    new = {device.path: _node(device) for device in asked.linux.devices if device.path in come}
    it.linux["devices"] = [*kept, *new.values()]
    it.linux["resources"]["devices"] += [_rule(node) for node in new.values()]


def _node(device: pb.LinuxDevice) -> Json:
    made = {"path": device.path, "type": device.type, "major": device.major, "minor": device.minor}
    for ours, key in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
        if device.HasField(ours):
            made[key] = getattr(device, ours).value
    return made


def _rule(node: Json) -> Json:
    """Whoever gets a node may use it; making more of them is for block devices, as elsewhere."""
    access = "rwm" if node["type"] == "b" else "rw"
    return {"allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access}


def _resources(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("resources"):
        return
    it, wished = turn.it, asked.linux.resources
    it.owners.claim_limits(it.member.id, turn.plugin, wished)
    options = it.member.options
    limits = over(options.resources, messages.limits(wished))
    it.member = it.member._replace(options=options._replace(resources=limits))
    rules = [*it.linux["resources"]["devices"], *(_device_rule(rule) for rule in wished.devices)]
    it.linux["resources"] = {**limits, "devices": rules}


def _device_rule(rule: pb.LinuxDeviceCgroup) -> Json:
    made: Json = {"allow": rule.allow, "type": rule.type or "a", "access": rule.access or "rwm"}
    for name in ("major", "minor"):
        if rule.HasField(name):
            made[name] = getattr(rule, name).value
    return made


def _score(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if asked.linux.HasField("oom_score_adj"):
        turn.claim(pb.OomScoreAdj)
        turn.it.process["oomScoreAdj"] = score = asked.linux.oom_score_adj.value
        member = turn.it.member
        turn.it.member = member._replace(options=member.options._replace(oom_score_adj=score))


def _cgroup(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if asked.linux.cgroups_path:
        turn.claim(pb.CgroupsPath)
        turn.it.linux["cgroupsPath"] = asked.linux.cgroups_path


def _io_priority(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("io_priority"):
        return
    turn.claim(pb.IoPriority)
    wished = asked.linux.io_priority
    kind = getattr(wished, "class")
    turn.it.process.pop("ioPriority", None)
    if kind != pb.IOPRIO_CLASS_NONE:
        turn.it.process["ioPriority"] = {"class": _word(pb.IOPrioClass, kind), "priority": wished.priority}


def _scheduler(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("scheduler"):
        return
    turn.claim(pb.LinuxSched)
    wished = asked.linux.scheduler
    turn.it.process.pop("scheduler", None)
    if wished.policy != pb.SCHED_NONE:
        numbers = {key: value for key in ("nice", "priority", "runtime", "deadline", "period")
                   if (value := getattr(wished, key))}  # fmt: skip
        flags = {"flags": [_word(pb.LinuxSchedulerFlag, flag) for flag in wished.flags]} if wished.flags else {}
        turn.it.process["scheduler"] = {"policy": _word(pb.LinuxSchedulerPolicy, wished.policy), **numbers, **flags}


def _seccomp(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("seccomp_policy"):
        return
    turn.claim(pb.SeccompPolicy)
    wished = asked.linux.seccomp_policy
    texts = {"architectures": list(wished.architectures), "flags": list(wished.flags),
             "listenerPath": wished.listener_path, "listenerMetadata": wished.listener_metadata}  # fmt: skip
    made: Json = {key: value for key, value in texts.items() if value}
    if wished.HasField("default_errno"):
        made["defaultErrnoRet"] = wished.default_errno.value
    calls = [_syscall(call) for call in wished.syscalls]
    turn.it.linux["seccomp"] = {"defaultAction": wished.default_action, **made, "syscalls": calls}


def _syscall(call: pb.LinuxSyscall) -> Json:
    made: Json = {"names": list(call.names), "action": call.action}
    if call.HasField("errno_ret"):
        made["errnoRet"] = call.errno_ret.value
    if call.args:
        made["args"] = [{"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}
                        for arg in call.args]  # fmt: skip
    return made


def _namespaces(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    wished = {space.type: space.path for space in asked.linux.namespaces}
    if not wished:
        return
    gone, come = turn.named(pb.Namespace, wished)
    kept = [space for space in turn.it.linux["namespaces"] if space["type"] not in gone | come]
    new = [{"type": kind, **({"path": wished[kind]} if wished[kind] else {})} for kind in sorted(come)]
    turn.it.linux["namespaces"] = [*kept, *new]


def _sysctl(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    turn.map(pb.Sysctl, asked.linux.sysctl, turn.it.linux, "sysctl", str)


def _net_devices(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    def device(wished: pb.LinuxNetDevice) -> Json:
        return {"name": wished.name} if wished.name else {}

    turn.map(pb.LinuxNetDevices, asked.linux.net_devices, turn.it.linux, "netDevices", device)


def _rdt(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("rdt"):
        return
    wished, linux = asked.linux.rdt, turn.it.linux
    fields = {"clos_id": (pb.RdtClosID, "closID"), "schemata": (pb.RdtSchemata, "schemata"),
              "enable_monitoring": (pb.RdtEnableMonitoring, "enableMonitoring")}  # fmt: skip
    found = {} if wished.remove else dict(linux.get("intelRdt") or {})
    for name, (field, key) in fields.items():
        if wished.remove:
            turn.it.owners.clear(turn.it.member.id, field, turn.plugin)
        if wished.HasField(name):
            turn.claim(field)
            value = getattr(wished, name).value
            found[key] = list(value) if name == "schemata" else value
    linux.pop("intelRdt", None)
    if found:
        linux["intelRdt"] = found


def _memory_policy(turn: _Turn, asked: pb.ContainerAdjustment) -> None:
    if not asked.linux.HasField("memory_policy"):
        return
    turn.claim(pb.MemoryPolicy)
    wished = asked.linux.memory_policy
    flags = [_word(pb.MpolFlag, flag) for flag in wished.flags]
    made = {"mode": _word(pb.MpolMode, wished.mode), "nodes": wished.nodes, "flags": flags}
    turn.it.linux["memoryPolicy"] = {key: value for key, value in made.items() if value}


def _word(enum: Any, number: int) -> str:
    try:
        return str(enum.Name(number))
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"{enum.DESCRIPTOR.name} has no value {number}") from error


_PARTS = (
    _annotations, _mounts, _env, _args, _hooks, _rlimits, _cdi, _devices, _resources, _score, _cgroup, _io_priority,
    _scheduler, _seccomp, _namespaces, _sysctl, _net_devices, _rdt, _memory_policy,
)  # fmt: skip
