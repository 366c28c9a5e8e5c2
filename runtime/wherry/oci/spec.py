"""Is this config.json one that can be carried out? One sentence with the field's path for the first breach.

Decides by runtime-spec 1.3 (config.md, config-linux.md, the JSON schema) and by what its prose demands beyond types.
Refuses to
know the host: whether a path exists or a capability can be granted is found out later. Unknown fields are ignored, as
the
spec wants ("Extensibility").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import compile_sched as sched
from wherry.oci.compile_process import RLIMITS

__all__ = [
    "HOOKS",
    "NAMESPACES",
    "SECCOMP_ACTIONS",
    "SECCOMP_FLAGS",
    "validate",
    "validate_process",
    "validate_resources",
]

Check = Callable[[Any, str], None]
MAX_ID: Final = 2**32 - 2  # 2^32-1 is "no id" to the kernel
U32, U64, I64 = 2**32 - 1, 2**64 - 1, 2**63 - 1


def _fail(path: str, why: str) -> WherryError:
    return WherryError(Kind.INVALID, f"{path}: {why}")


# ---- checks as values


def text(value: Any, path: str) -> None:
    """A string without NUL: every one of them ends in a C string."""
    if not isinstance(value, str):
        raise _fail(path, f"must be a string, not {_kind(value)}")
    if "\0" in value:
        raise _fail(path, "must not contain a NUL byte")


def name(value: Any, path: str) -> None:
    """A string that is not empty."""
    text(value, path)
    if not value:
        raise _fail(path, "must not be empty")


def absolute(value: Any, path: str) -> None:
    """An absolute path."""
    text(value, path)
    if not value.startswith("/"):
        raise _fail(path, f'must be an absolute path, not "{value}"')


def members(most: int) -> Check:
    """A list of CPUs or memory nodes, "0-3,7"."""

    def check(value: Any, path: str) -> None:
        text(value, path)
        try:
            sched.members(value, most)
        except ValueError as error:
            raise _fail(path, f'{error}; a list is like "0-3,7"') from None

    return check


def link(value: Any, path: str) -> None:
    """The name of a network device, as the kernel takes it (dev_valid_name in net/core/dev.c)."""
    text(value, path)
    if not 0 < len(value.encode("utf-8", "surrogateescape")) < 16:
        raise _fail(path, f'"{value}" does not have 1 to 15 bytes')
    if value in {".", ".."} or any(char in "/:" or char.isspace() for char in value):
        raise _fail(path, f'"{value}" is not the name of a network device')


def boolean(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise _fail(path, f"must be true or false, not {_kind(value)}")


def number(low: int, high: int) -> Check:
    """An integer in range; a bool is none."""

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _fail(path, f"must be an integer, not {_kind(value)}")
        if not low <= value <= high:
            raise _fail(path, f"must be between {low} and {high}, not {value}")

    return check


def one_of(*words: str) -> Check:
    def check(value: Any, path: str) -> None:
        text(value, path)
        if value not in words:
            raise _fail(path, f'"{value}" is not one of {", ".join(w for w in words if w)}')

    return check


def matching(pattern: str, why: str) -> Check:
    def check(value: Any, path: str) -> None:
        text(value, path)
        if not re.fullmatch(pattern, value):
            raise _fail(path, f"{value!r} {why}")

    return check


def listing(item: Check, *, least: int = 0) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise _fail(path, f"must be a list, not {_kind(value)}")
        if len(value) < least:
            raise _fail(path, "must not be empty")
        for index, entry in enumerate(value):
            item(entry, f"{path}[{index}]")

    return check


def mapping(item: Check, keys: tuple[str, ...] = ()) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _fail(path, f"must be an object, not {_kind(value)}")
        for key, entry in value.items():
            name(key, f"{path} (a key)")
            if keys and key not in keys:
                raise _fail(f"{path}.{key}", f"is not one of {', '.join(keys)}")
            item(entry, f"{path}.{key}")

    return check


def obj(fields: dict[str, Check], required: Iterable[str] = ()) -> Check:
    """An object of known fields; null counts as absent (Go's pointers and slices marshal to it)."""
    wanted = tuple(required)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _fail(path or "config", f"must be an object, not {_kind(value)}")
        prefix = f"{path}." if path else ""
        for key in wanted:
            if value.get(key) is None:
                raise _fail(prefix + key, "is required")
        for key, field in fields.items():
            if value.get(key) is not None:
                field(value[key], prefix + key)

    return check


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


# ---- the schema

_ID = number(0, MAX_ID)
_TEXTS = listing(text)
_PATHS = listing(absolute)
_U64, _I64, _U32 = number(0, U64), number(-I64 - 1, I64), number(0, U32)

_MAPPINGS = listing(obj({"containerID": _ID, "hostID": _ID, "size": number(1, U32)}, ("containerID", "hostID", "size")))

_USER = obj({"uid": _ID, "gid": _ID, "umask": number(0, 0o777), "additionalGids": listing(_ID), "username": text})

_CAPS = obj(dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _TEXTS))

_PROCESS = obj(
    {
        "terminal": boolean,
        "consoleSize": obj({"height": number(0, 65535), "width": number(0, 65535)}, ("height", "width")),
        "cwd": absolute,
        "env": _TEXTS,
        "args": listing(text, least=1),
        "user": _USER,
        "capabilities": _CAPS,
        "rlimits": listing(obj({"type": one_of(*RLIMITS), "hard": _U64, "soft": _U64}, ("type", "hard", "soft"))),
        "apparmorProfile": text,
        "selinuxLabel": text,
        "noNewPrivileges": boolean,
        "oomScoreAdj": number(-1000, 1000),
        "scheduler": obj(
            {
                "policy": one_of(*sched.POLICIES),
                "nice": number(-20, 19),
                "priority": number(0, 99),
                "flags": listing(one_of(*sched.FLAGS)),
                **dict.fromkeys(("runtime", "deadline", "period"), _U64),
            },
            ("policy",),
        ),
        "ioPriority": obj({"class": one_of(*sched.IO_CLASSES), "priority": number(0, 7)}, ("class",)),
        "execCPUAffinity": obj(dict.fromkeys(("initial", "final"), members(sched.MAX_CPU))),
    },
    ("cwd", "args"),
)

_MOUNT = obj(
    {
        "destination": name,  # a relative one is below "/", deprecated
        "type": text,
        "source": text,
        "options": _TEXTS,
        "uidMappings": _MAPPINGS,
        "gidMappings": _MAPPINGS,
    },
    ("destination",),
)

_HOOK = obj({"path": absolute, "args": _TEXTS, "env": _TEXTS, "timeout": number(1, 2**31 - 1)}, ("path",))
HOOKS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_HOOKS = obj(dict.fromkeys(HOOKS, listing(_HOOK)))

NAMESPACES: Final = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_NAMESPACE = obj({"type": one_of(*NAMESPACES), "path": text}, ("type",))

_DEVICE = obj(
    {
        "type": one_of("a", "c", "b", "u", "p"),
        "path": absolute,
        "major": number(0, 2**32 - 1),
        "minor": number(0, 2**32 - 1),
        "fileMode": number(0, U32),
        "uid": _ID,
        "gid": _ID,
    },
    ("type", "path"),
)

_DEVICE_RULE = obj(
    {
        "allow": boolean,
        "type": one_of("", "a", "c", "b"),
        "major": number(-1, U32),
        "minor": number(-1, U32),
        "access": text,
    },
    ("allow",),
)

_WEIGHT = number(0, 1000)
_BLOCK_DEVICE = {"major": number(0, U32), "minor": number(0, U32)}
_THROTTLE = listing(obj({**_BLOCK_DEVICE, "rate": _U64}, ("major", "minor", "rate")))
_RESOURCES = obj(
    {
        "devices": listing(_DEVICE_RULE),
        "memory": obj(
            {
                "limit": _I64,
                "reservation": _I64,
                "swap": _I64,
                "kernel": _I64,
                "kernelTCP": _I64,
                "swappiness": number(0, 200),
                "disableOOMKiller": boolean,
                "useHierarchy": boolean,
                "checkBeforeUpdate": boolean,
            }
        ),
        "cpu": obj(
            {
                "shares": _U64,
                "quota": _I64,
                "burst": _U64,
                "period": _U64,
                "realtimeRuntime": _I64,
                "realtimePeriod": _U64,
                "cpus": text,
                "mems": text,
                "idle": number(0, 1),
            }
        ),
        "pids": obj({"limit": _I64}),
        "blockIO": obj(
            {
                "weight": _WEIGHT,
                "leafWeight": _WEIGHT,
                "weightDevice": listing(
                    obj({**_BLOCK_DEVICE, "weight": _WEIGHT, "leafWeight": _WEIGHT}, ("major", "minor"))
                ),
                **dict.fromkeys(
                    (
                        "throttleReadBpsDevice",
                        "throttleWriteBpsDevice",
                        "throttleReadIOPSDevice",
                        "throttleWriteIOPSDevice",
                    ),
                    _THROTTLE,
                ),
            }
        ),
        "hugepageLimits": listing(obj({"pageSize": name, "limit": _U64}, ("pageSize", "limit"))),
        "network": obj(
            {"classID": _U32, "priorities": listing(obj({"name": name, "priority": _U32}, ("name", "priority")))}
        ),
        "rdma": mapping(obj({"hcaHandles": _U32, "hcaObjects": _U32})),
        "unified": mapping(text),
    }
)

SECCOMP_ACTIONS: Final = tuple(
    f"SCMP_ACT_{word}"
    for word in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
_ACTION = one_of(*SECCOMP_ACTIONS)
SECCOMP_FLAGS: Final = tuple(
    f"SECCOMP_FILTER_FLAG_{word}" for word in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
)
_SECCOMP_ARG = obj(
    {
        "index": number(0, 5),
        "value": _U64,
        "valueTwo": _U64,
        "op": one_of(*(f"SCMP_CMP_{op}" for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))),
    },
    ("index", "value", "op"),
)
_SECCOMP = obj(
    {
        "defaultAction": _ACTION,
        "defaultErrnoRet": _U32,
        "architectures": _TEXTS,
        "flags": listing(one_of(*SECCOMP_FLAGS)),
        "listenerPath": text,
        "listenerMetadata": text,
        "syscalls": listing(
            obj(
                {"names": listing(name, least=1), "action": _ACTION, "errnoRet": _U32, "args": listing(_SECCOMP_ARG)},
                ("names", "action"),
            )
        ),
    },
    ("defaultAction",),
)

_PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable")
_SCHEMA = matching(r"[^\n]+", "is not one line")
_RDT = obj(
    {
        "closID": matching(r"/|(?!\.{1,2}$)[^/\n]+", 'is not the name of a group, nor "/"'),
        "l3CacheSchema": matching(r"L3[A-Z]*:[^\n]+", 'is not one line that starts with "L3:"'),
        "memBwSchema": matching(r"MB:[^\n]+", 'is not one line that starts with "MB:"'),
        "schemata": listing(_SCHEMA),
        "enableMonitoring": boolean,
    }
)
_MEMORY_POLICY = obj(
    {
        "mode": one_of(*sched.MEMORY_MODES),
        "nodes": members(sched.MAX_NODE),
        "flags": listing(one_of(*sched.MEMORY_FLAGS)),
    },
    ("mode",),
)
_CLOCK = obj({"secs": _I64, "nanosecs": number(0, 999_999_999)})
_LINUX = obj(
    {
        "namespaces": listing(_NAMESPACE),
        "uidMappings": _MAPPINGS,
        "gidMappings": _MAPPINGS,
        "devices": listing(_DEVICE),
        "netDevices": mapping(obj({"name": link})),
        "intelRdt": _RDT,
        "memoryPolicy": _MEMORY_POLICY,
        "cgroupsPath": text,
        "resources": _RESOURCES,
        "rootfsPropagation": one_of(*_PROPAGATIONS),
        "seccomp": _SECCOMP,
        "sysctl": mapping(text),
        "maskedPaths": _PATHS,
        "readonlyPaths": _PATHS,
        "mountLabel": text,
        "personality": obj({"domain": one_of("LINUX", "LINUX32"), "flags": _TEXTS}, ("domain",)),
        "timeOffsets": mapping(_CLOCK, ("monotonic", "boottime")),
    }
)

_CONFIG = obj(
    {
        "ociVersion": name,
        "root": obj({"path": name, "readonly": boolean}, ("path",)),
        "process": _PROCESS,
        "hostname": text,
        "domainname": text,
        "mounts": listing(_MOUNT),
        "hooks": _HOOKS,
        "annotations": mapping(text),
        "linux": _LINUX,
    },
    ("ociVersion", "root", "process", "linux"),
)


def validate(config: Json) -> None:
    """WherryError(INVALID) naming the field's path for the first breach; nothing otherwise."""
    _CONFIG(config, "")
    for rule in _RULES:
        rule(config)


def validate_process(process: Json) -> None:
    """The same for a process alone (exec)."""
    _PROCESS(process, "process")
    _process_rules({"process": process})


def validate_resources(resources: Json) -> None:
    """The same for linux.resources alone (update)."""
    _RESOURCES(resources, "linux.resources")
    for rule in (_device_rules, _resource_rules):
        rule({"linux": {"resources": resources}})


# ---- what types cannot say


def _version(config: Json) -> None:
    parts = config["ociVersion"].split("-")[0].split("+")[0].split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise _fail("ociVersion", f'"{config["ociVersion"]}" is not a version (SemVer 2.0)')
    if parts[0] != "1":
        raise _fail("ociVersion", f"{config['ociVersion']} is not supported, 1.x is")


def _unique(values: list[Any], path: str, key: str) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise _fail(f"{path}[{index}].{key}", f'"{value}" is given twice')


def _process_rules(config: Json) -> None:
    _scheduler_rules(config)
    process = config["process"]
    rlimits = process.get("rlimits") or []
    _unique([entry["type"] for entry in rlimits], "process.rlimits", "type")
    for index, entry in enumerate(rlimits):
        if entry["soft"] > entry["hard"]:
            raise _fail(f"process.rlimits[{index}].soft", f"{entry['soft']} is above the hard limit {entry['hard']}")
    if not process["args"][0]:
        raise _fail("process.args[0]", "must not be empty")
    for index, entry in enumerate(process.get("env") or []):
        if "=" not in entry or entry.startswith("="):
            raise _fail(f"process.env[{index}]", f'"{entry}" is not NAME=VALUE')


def _scheduler_rules(config: Json) -> None:
    """sched_setattr(2), set_mempolicy(2): which value goes with which policy."""
    scheduler = config["process"].get("scheduler") or {}
    policy = scheduler.get("policy")
    for keys, policies in _SCHEDULER_KEYS:
        given = next((key for key in keys if scheduler.get(key)), "")
        if given and policy not in policies:
            raise _fail(f"process.scheduler.{given}", f"is for {' and '.join(policies)}, not for {policy}")
    if policy in {"SCHED_FIFO", "SCHED_RR"} and not scheduler.get("priority"):
        raise _fail("process.scheduler.priority", f"is required for {policy}, from 1 to 99")
    if policy == "SCHED_DEADLINE":
        runtime, deadline = (scheduler.get(key) or 0 for key in ("runtime", "deadline"))
        if not 0 < runtime <= deadline <= (scheduler.get("period") or deadline):
            raise _fail("process.scheduler.runtime", "SCHED_DEADLINE wants 0 < runtime <= deadline <= period")


_SCHEDULER_KEYS: Final = (
    (("nice",), ("SCHED_OTHER", "SCHED_BATCH")),
    (("priority",), ("SCHED_FIFO", "SCHED_RR")),
    (("runtime", "deadline", "period"), ("SCHED_DEADLINE",)),
)


def _memory_policy_rules(config: Json) -> None:
    policy = config["linux"].get("memoryPolicy")
    if policy is None:
        return
    mode, nodes = policy["mode"], (policy.get("nodes") or "").strip(" ,")
    if mode in {"MPOL_DEFAULT", "MPOL_LOCAL"} and nodes:
        raise _fail("linux.memoryPolicy.nodes", f"{mode} takes no nodes")
    if mode not in {"MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED"} and not nodes:
        raise _fail("linux.memoryPolicy.nodes", f"is required for {mode}")
    if {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"} <= set(policy.get("flags") or []):
        raise _fail("linux.memoryPolicy.flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")


def _net_device_rules(config: Json) -> None:
    devices = config["linux"].get("netDevices") or {}
    if devices and "network" not in _kinds(config):
        raise _fail("linux.netDevices", "needs a network namespace in linux.namespaces")
    names: set[str] = set()
    for key, device in devices.items():
        link(key, f"linux.netDevices.{key} (a key)")
        name = device.get("name") or key
        if name in names and "%d" not in name:
            raise _fail(f"linux.netDevices.{key}.name", f'"{name}" is given twice')
        names.add(name)


def _mount_rules(config: Json) -> None:
    for index, mount in enumerate(config.get("mounts") or []):
        options = mount.get("options") or []
        if "remount" in options:
            continue
        bind = mount.get("type") in {"bind", "rbind"} or "bind" in options or "rbind" in options
        if bind and not mount.get("source"):
            raise _fail(f"mounts[{index}].source", "is required for a bind mount")
        if not bind and not mount.get("type"):
            raise _fail(f"mounts[{index}].type", "is required unless the mount is a bind")
        if bool(mount.get("uidMappings")) != bool(mount.get("gidMappings")):
            raise _fail(f"mounts[{index}]", "uidMappings and gidMappings must be given together")
        if not bind and (mount.get("uidMappings") or {"idmap", "ridmap"}.intersection(options)):
            raise _fail(f"mounts[{index}]", "only a bind mount can have its ids mapped")


def _kinds(config: Json) -> set[str]:
    return {entry["type"] for entry in config["linux"].get("namespaces") or []}


def _namespace_rules(config: Json) -> None:
    linux, kinds = config["linux"], _kinds(config)
    entries = linux.get("namespaces") or []
    _unique([entry["type"] for entry in entries], "linux.namespaces", "type")
    for index, entry in enumerate(entries):
        if entry.get("path"):
            absolute(entry["path"], f"linux.namespaces[{index}].path")
    for key, kind in (("hostname", "uts"), ("domainname", "uts")):
        if config.get(key) and kind not in kinds:
            raise _fail(key, f"needs a {kind} namespace in linux.namespaces")
    if linux.get("timeOffsets") and not any(e["type"] == "time" and not e.get("path") for e in entries):
        raise _fail("linux.timeOffsets", "needs a new time namespace in linux.namespaces")
    _mapping_rules(linux, kinds)


def _mapping_rules(linux: Json, kinds: set[str]) -> None:
    new_user = any(e["type"] == "user" and not e.get("path") for e in linux.get("namespaces") or [])
    for key in ("uidMappings", "gidMappings"):
        entries = linux.get(key) or []
        if entries and "user" not in kinds:
            raise _fail(f"linux.{key}", "needs a user namespace in linux.namespaces")
        if new_user and not entries:
            raise _fail(f"linux.{key}", "is required for a new user namespace")
        for index, entry in enumerate(entries):
            _mapping_bounds(entries[:index], entry, f"linux.{key}[{index}]")


def _mapping_bounds(before: list[Json], entry: Json, path: str) -> None:
    for side in ("containerID", "hostID"):
        if entry[side] + entry["size"] > 2**32:
            raise _fail(f"{path}.size", f"{entry['size']} ids from {side} {entry[side]} pass the end of the id space")
        for other in before:
            if entry[side] < other[side] + other["size"] and other[side] < entry[side] + entry["size"]:
                raise _fail(f"{path}.{side}", "overlaps an earlier mapping")


def _device_rules(config: Json) -> None:
    linux = config["linux"]
    devices = linux.get("devices") or []
    _unique([device["path"] for device in devices], "linux.devices", "path")
    for index, device in enumerate(devices):
        path = f"linux.devices[{index}]"
        if device["type"] == "a":
            raise _fail(f"{path}.type", '"a" is for rules, a node is c, b, u or p')
        if device["type"] != "p":
            for key in ("major", "minor"):
                if device.get(key) is None:
                    raise _fail(f"{path}.{key}", f'is required for type "{device["type"]}"')
        if device["path"].rstrip("/") in {"", "/dev"}:
            raise _fail(f"{path}.path", f'"{device["path"]}" cannot be a device')
    for index, rule in enumerate((linux.get("resources") or {}).get("devices") or []):
        if not set(rule.get("access") or "") <= set("rwm"):
            raise _fail(
                f"linux.resources.devices[{index}].access", f'"{rule["access"]}" has letters other than r, w, m'
            )


def _resource_rules(config: Json) -> None:
    resources = config["linux"].get("resources") or {}
    for index, entry in enumerate((resources.get("blockIO") or {}).get("weightDevice") or []):
        if entry.get("weight") is None and entry.get("leafWeight") is None:
            raise _fail(f"linux.resources.blockIO.weightDevice[{index}]", "needs a weight or a leafWeight")
    for key, entry in (resources.get("rdma") or {}).items():
        if entry.get("hcaHandles") is None and entry.get("hcaObjects") is None:
            raise _fail(f"linux.resources.rdma.{key}", "needs hcaHandles or hcaObjects")


def _seccomp_rules(config: Json) -> None:
    seccomp = config["linux"].get("seccomp") or {}
    rules = seccomp.get("syscalls") or []
    if seccomp.get("listenerMetadata") and not seccomp.get("listenerPath"):
        raise _fail("linux.seccomp.listenerMetadata", "needs a listenerPath")
    if not seccomp.get("listenerPath") and "SCMP_ACT_NOTIFY" in {rule["action"] for rule in rules}:
        raise _fail("linux.seccomp.listenerPath", "is required for SCMP_ACT_NOTIFY")
    if seccomp.get("defaultAction") == "SCMP_ACT_NOTIFY":  # the agent could not even be told of the first call
        raise _fail("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be the default")
    actions = [("defaultErrnoRet", seccomp.get("defaultErrnoRet"), seccomp.get("defaultAction"))]
    actions += [(f"syscalls[{i}].errnoRet", rule.get("errnoRet"), rule["action"]) for i, rule in enumerate(rules)]
    for key, value, action in actions:
        if value is not None and action not in {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}:
            raise _fail(f"linux.seccomp.{key}", f"{action} returns no errno")


#: sysctls that a namespace owns (namespaces(7), ipc_namespaces(7), user_namespaces(7)); every other one is the host's
_SYSCTL_IPC = frozenset(
    {
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
        "kernel.msg_next_id",
        "kernel.sem_next_id",
        "kernel.shm_next_id",
    }
)
_SYSCTL_PREFIX = (("fs.mqueue.", "ipc"), ("net.", "network"), ("user.", "user"))


def _sysctl_namespace(key: str) -> str:
    if key in _SYSCTL_IPC:
        return "ipc"
    if key in {"kernel.hostname", "kernel.domainname"}:
        return "uts"
    return next((kind for prefix, kind in _SYSCTL_PREFIX if key.startswith(prefix)), "")


def sysctl_owner(key: str) -> str | None:
    """The kind of namespace that owns a kernel parameter, written with dots or slashes (sysctl(8)): "" where it is the
    host's; None: it is no name of one."""
    first = next((char for char in key if char in "./"), ".")
    dotted = key.translate(str.maketrans("./", "/.")) if first == "/" else key
    if any(part in {"", ".", ".."} for part in dotted.replace("/", ".").split(".")):
        return None
    return _sysctl_namespace(dotted)


def _sysctl_rules(config: Json) -> None:
    kinds = _kinds(config)
    for key in config["linux"].get("sysctl") or {}:
        path = f"linux.sysctl.{key}"
        kind = sysctl_owner(key)
        if kind is None:
            raise _fail(path, "is not the name of a kernel parameter")
        if not kind:
            raise _fail(path, "is not owned by any namespace: it would change the host")
        if kind not in kinds:
            raise _fail(path, f"needs a {kind} namespace in linux.namespaces: it would change the host")
        if key in {"kernel.hostname", "kernel/hostname"} and config.get("hostname"):
            raise _fail(path, "contradicts hostname")


def _other_rules(config: Json) -> None:
    if (config["linux"].get("personality") or {}).get("flags"):
        raise _fail("linux.personality.flags", "no flag is defined")
    if len(config.get("hostname") or "") > 64 or len(config.get("domainname") or "") > 64:
        raise _fail(
            "hostname" if len(config.get("hostname") or "") > 64 else "domainname", "is longer than 64 characters"
        )


_RULES: Final = (
    _version,
    _process_rules,
    _mount_rules,
    _namespace_rules,
    _device_rules,
    _net_device_rules,
    _memory_policy_rules,
    _resource_rules,
    _seccomp_rules,
    _sysctl_rules,
    _other_rules,
)
