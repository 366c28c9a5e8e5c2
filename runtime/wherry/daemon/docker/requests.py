"""docker's body of a create (Config, HostConfig, NetworkingConfig) as `RunOptions`, that of an update as limits. Pure.

Decides what each field means here; what cannot be done is refused with the field's name, never left out. Unknown
fields are ignored, as docker ignores them. What values are good, the engine judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import (
    Attachment,
    HealthCheck,
    Json,
    Limits,
    LogConfig,
    MountRequest,
    PortMapping,
    RestartPolicy,
    RunOptions,
)

from .fields import Fields

__all__ = ["Update", "create", "endpoint", "update"]

_NS = 1_000_000_000
_PERIOD = 100_000  # microseconds: CpuPeriod where none is said
#: what of HostConfig has no counterpart here, and the values that ask for nothing
_REFUSED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("StorageOpt", ()), ("Isolation", ("default",)), ("Cgroup", ()), ("BlkioWeight", ()),
    ("BlkioWeightDevice", ()), ("BlkioDeviceReadBps", ()), ("BlkioDeviceWriteBps", ()), ("BlkioDeviceReadIOps", ()),
    ("BlkioDeviceWriteIOps", ()), ("CpuRealtimePeriod", ()), ("CpuRealtimeRuntime", ()), ("DeviceCgroupRules", ()),
    ("KernelMemory", ()), ("KernelMemoryTCP", ()), ("MemorySwappiness", (-1,)), ("OomKillDisable", ()),
    ("CpuCount", ()), ("CpuPercent", ()), ("IOMaximumIOps", ()), ("IOMaximumBandwidth", ()), ("Runtime", ("wherry",)),
    ("VolumeDriver", ("local",)),
)  # fmt: skip


def create(body: Json, name: str, platform: str) -> RunOptions:
    """What a create asks for; the image must be there already, as docker has it."""
    config, host = Fields(body), Fields(body).part("HostConfig")
    if name == "/":  # the name "" would ask for one of ours
        raise WherryError(Kind.INVALID, "Invalid container name (/), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    _refuse(body.get("HostConfig") or {}, host, _REFUSED)
    if config.flag("NetworkDisabled") and not host.text("NetworkMode"):
        host = Fields({**(body.get("HostConfig") or {}), "NetworkMode": "none"}, "HostConfig")
    values = {field: get(config) for field, get in _CONFIG.items()}
    values |= {field: get(host) for field, get in _HOST.items()}
    values |= {
        "name": name.removeprefix("/"),
        "platform": platform,
        "pull": "never",
        "network": tuple(_networks(config, host)),
        "mounts": tuple(_mounts(config, host)),
    }
    return RunOptions(**values)


def _refuse(given: Json, host: Fields, table: tuple[tuple[str, tuple[Any, ...]], ...]) -> None:
    for key, idle in table:
        value = given.get(key)
        if value and value not in idle:
            message = f"{host.name(key)} is not supported by wherry"
            raise WherryError(Kind.UNSUPPORTED, message, hint="leave it out")


# ---- Config ----


def _env(config: Fields) -> tuple[str, ...]:
    """K=V. A bare name, by which docker unsets an image's variable, is passed over: the engine unsets none."""
    found = config.texts("Env")
    for text in found:
        if not text or text.startswith("="):
            raise WherryError(Kind.INVALID, f"invalid environment variable: {text[:200]!r}")
    return tuple(text for text in found if "=" in text)


def _attach(config: Fields) -> tuple[str, ...]:
    return tuple(name for name in ("stdin", "stdout", "stderr") if config.flag(f"Attach{name.capitalize()}"))


def _health(config: Fields) -> HealthCheck:
    given = config.part("Healthcheck")
    test = given.texts("Test")
    if test == ("NONE",):
        return HealthCheck()
    names = {"interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod",
             "start_interval": "StartInterval"}  # fmt: skip
    times = {field: given.number(key) for field, key in names.items()}
    for field, value in times.items():
        if value < 0 or 0 < value < 1_000_000 or value > 1 << 60:
            raise WherryError(Kind.INVALID, f"{given.name(names[field])} in Healthcheck cannot be less than 1ms")
    if given.number("Retries") < 0:
        raise WherryError(Kind.INVALID, "Retries in Healthcheck cannot be negative")
    seconds = {field: value / _NS for field, value in times.items()}
    return HealthCheck(test, **seconds, retries=given.number("Retries"))


def _stop_timeout(config: Fields) -> int | None:
    return config.maybe("StopTimeout")


_CONFIG: dict[str, Callable[[Fields], Any]] = {
    "image": lambda c: c.text("Image") or _no_image(),
    "command": lambda c: c.words("Cmd") or (),
    "entrypoint": lambda c: c.words("Entrypoint"),
    "interactive": lambda c: c.flag("OpenStdin"),
    "tty": lambda c: c.flag("Tty"),
    "detach": lambda c: not (c.flag("StdinOnce") if c.flag("OpenStdin") else _attach(c)),
    "attach": _attach,
    "env": _env,
    "workdir": lambda c: c.text("WorkingDir"),
    "user": lambda c: c.text("User"),
    "hostname": lambda c: c.text("Hostname"),
    "domainname": lambda c: c.text("Domainname"),
    "expose": lambda c: c.keys("ExposedPorts"),
    "labels": lambda c: c.pairs("Labels"),
    "stop_signal": lambda c: c.text("StopSignal"),
    "stop_timeout": _stop_timeout,
    "health": _health,
    "no_healthcheck": lambda c: c.part("Healthcheck").texts("Test") == ("NONE",),
}


def _no_image() -> str:
    raise WherryError(Kind.INVALID, "no image specified: Config.Image is empty")


# ---- HostConfig ----


def _port(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise WherryError(Kind.INVALID, f"invalid {what}: {text[:80]!r}")
    return int(text)


def _ports(host: Fields) -> tuple[PortMapping, ...]:
    """{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}; no host port: a free one; "8000-8010": one of these."""
    found = []
    for key, bindings in host.lists("PortBindings"):
        inside, _, protocol = key.partition("/")
        for binding in bindings or [Fields({})]:
            first, _, last = binding.text("HostPort").partition("-")
            outside = _port(first, "host port") if first else 0
            end = _port(last, "host port") if last else 0
            container = _port(inside, "container port")
            found.append(PortMapping(container, outside, protocol or "tcp", binding.text("HostIp"), end))
    return tuple(found)


def _restart(host: Fields) -> RestartPolicy:
    given = host.part("RestartPolicy")
    return RestartPolicy(given.text("Name") or "no", given.number("MaximumRetryCount"))


def _ulimits(host: Fields) -> tuple[str, ...]:
    return tuple(f"{one.text('Name')}={one.number('Soft')}:{one.number('Hard')}" for one in host.parts("Ulimits"))


def _devices(host: Fields) -> tuple[str, ...]:
    """Nodes, and those that CDI names; other requests want a driver that is not here."""
    found = []
    for one in host.parts("Devices"):
        source = one.text("PathOnHost")
        inside = one.text("PathInContainer") or source
        found.append(f"{source}:{inside}:{one.text('CgroupPermissions') or 'rwm'}")
    for one in host.parts("DeviceRequests"):
        if one.text("Driver") != "cdi":
            wanted = one.text("Driver") or "gpu"
            message = f'could not select device driver "{wanted[:80]}" with capabilities: only cdi is known'
            raise WherryError(Kind.UNSUPPORTED, message, hint='Driver "cdi" with DeviceIDs such as vendor.com/gpu=0')
        found += one.texts("DeviceIDs")
    return tuple(found)


def _security(host: Fields) -> tuple[str, ...]:
    """docker's older KEY:VALUE too; empty lists of paths are what its systempaths=unconfined becomes."""
    found = []
    for text in host.texts("SecurityOpt"):
        key, mark, value = (text, "", "") if text == "no-new-privileges" else _split(text)
        found.append(f"{key}{mark}{value}")
    for key in ("MaskedPaths", "ReadonlyPaths"):
        if host.texts(key):
            message = f"{host.name(key)} is not supported by wherry"
            raise WherryError(Kind.UNSUPPORTED, message, hint="an empty list unmasks all; SecurityOpt takes mask=PATH")
    if host.has("MaskedPaths") and host.has("ReadonlyPaths"):
        found.append("systempaths=unconfined")
    return tuple(found)


def _split(text: str) -> tuple[str, str, str]:
    equals, colon = text.find("="), text.find(":")
    at = equals if equals >= 0 and (colon < 0 or equals < colon) else colon
    return (text, "", "") if at < 0 else (text[:at], "=", text[at + 1 :])


def _log(host: Fields) -> LogConfig:
    given = host.part("LogConfig")
    return LogConfig(given.text("Type"), given.pairs("Config"))


def _cpus(host: Fields) -> float | None:
    """NanoCpus, or the older quota in a period (a quota of -1: none)."""
    quota, nano = host.number("CpuQuota"), host.number("NanoCpus")
    if nano and (quota > 0 or host.number("CpuPeriod")):
        raise WherryError(Kind.INVALID, "conflicting options: NanoCpus and CpuPeriod or CpuQuota cannot both be set")
    if nano < 0 or host.number("CpuPeriod") < 0:
        raise WherryError(Kind.INVALID, "NanoCpus and CpuPeriod cannot be negative")
    if nano:
        return nano / _NS
    return quota / (host.number("CpuPeriod") or _PERIOD) if quota > 0 else None


def _limits(host: Fields) -> Limits:
    """0 and "" ask for nothing, in docker's notation."""
    for key in ("Memory", "MemoryReservation", "CpuShares"):
        if host.number(key) < 0:
            raise WherryError(Kind.INVALID, f"{host.name(key)} cannot be negative")
    return Limits(
        memory=host.number("Memory") or None,
        memory_reservation=host.number("MemoryReservation") or None,
        memory_swap=host.number("MemorySwap") or None,
        cpus=_cpus(host),
        cpu_shares=host.number("CpuShares") or None,
        cpuset_cpus=host.text("CpusetCpus") or None,
        cpuset_mems=host.text("CpusetMems") or None,
        pids=host.number("PidsLimit") or None,
    )


_HOST: dict[str, Callable[[Fields], Any]] = {
    "remove": lambda h: h.flag("AutoRemove"),
    "group_add": lambda h: h.texts("GroupAdd"),
    "ports": _ports,
    "publish_all": lambda h: h.flag("PublishAllPorts"),
    "add_host": lambda h: h.texts("ExtraHosts"),
    "dns": lambda h: h.texts("Dns"),
    "dns_search": lambda h: h.texts("DnsSearch"),
    "dns_option": lambda h: h.texts("DnsOptions"),
    "volumes_from": lambda h: h.texts("VolumesFrom"),
    "limits": _limits,
    "cgroup_parent": lambda h: h.text("CgroupParent"),
    "devices": _devices,
    "cap_add": lambda h: h.texts("CapAdd"),
    "cap_drop": lambda h: h.texts("CapDrop"),
    "security_opt": _security,
    "privileged": lambda h: h.flag("Privileged"),
    "profile": lambda h: h.text("Profile") or "default",
    "read_only": lambda h: h.flag("ReadonlyRootfs"),
    "shm_size": lambda h: h.number("ShmSize") or None,
    "ulimits": _ulimits,
    "sysctls": lambda h: h.pairs("Sysctls"),
    "init": lambda h: h.flag("Init"),
    "annotations": lambda h: h.pairs("Annotations"),
    "restart": _restart,
    "log": _log,
    "ipc": lambda h: h.text("IpcMode"),
    "pid": lambda h: h.text("PidMode"),
    "uts": lambda h: h.text("UTSMode"),
    "userns": lambda h: h.text("UsernsMode"),
    "cgroupns": lambda h: h.text("CgroupnsMode"),
    "oom_score_adj": lambda h: h.number("OomScoreAdj") or None,
}


# ---- networks ----


def _networks(config: Fields, host: Fields) -> Iterator[Attachment]:
    """NetworkMode's first, then the others of EndpointsConfig; "default" is the setting's."""
    endpoints = dict(config.part("NetworkingConfig").items("EndpointsConfig"))
    mode = host.text("NetworkMode") or "default"
    first = endpoints.pop(mode, None) or (endpoints.pop("bridge", None) if mode == "default" else None)
    wishes = [] if mode == "default" and first is None and not endpoints else [_first(mode, first, config)]
    if mode in ("none", "host") or mode.startswith("container:"):
        endpoints = {}
    wishes += [endpoint(name, given) for name, given in endpoints.items()]
    for number, wish in enumerate(wishes):
        yield wish._replace(interface=f"eth{number}")


def _first(mode: str, given: Fields | None, config: Fields) -> Attachment:
    if mode in ("none", "host") or mode.startswith("container:"):
        return Attachment(mode)
    wish = endpoint("bridge" if mode == "default" else mode, given or Fields({}))
    return wish._replace(mac=wish.mac or config.text("MacAddress"))


def endpoint(network: str, given: Fields) -> Attachment:
    """docker's EndpointSettings as a wish to join. Its links are the module links'."""
    asked = given.part("IPAMConfig")
    return Attachment(
        network, given.texts("Aliases"), asked.text("IPv4Address"), given.text("MacAddress"),
        ip6=asked.text("IPv6Address"), options=given.pairs("DriverOpts"), priority=given.number("GwPriority"),
    )  # fmt: skip


# ---- mounts ----


def _mounts(config: Fields, host: Fields) -> Iterator[MountRequest]:
    """Binds, Mounts, Tmpfs; then those of Config.Volumes that have no mount yet. Two on one target are a conflict."""
    given = [_bind(text) for text in host.texts("Binds")]
    given += [_mount(one) for one in host.parts("Mounts")]
    given += [MountRequest("tmpfs", path, options=_words(text)) for path, text in host.pairs("Tmpfs").items()]
    seen: set[str] = set()
    for request in given:
        if request.target in seen:
            raise WherryError(Kind.INVALID, f"Duplicate mount point: {request.target}")
        seen.add(request.target)
        yield request
    yield from (MountRequest("volume", path) for path in config.keys("Volumes") if path not in seen)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _bind(text: str) -> MountRequest:
    """SOURCE:TARGET[:OPTIONS]; a source that is no path is a volume. A missing directory is made."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts[:2]):
        hint = "SOURCE:TARGET[:OPTIONS]"
        raise WherryError(Kind.INVALID, f"invalid volume specification: '{text[:200]}'", hint=hint)
    if len(parts) == 1:
        return MountRequest("volume", parts[0])
    kind = "bind" if parts[0].startswith("/") else "volume"
    options = _words(parts[2]) if len(parts) == 3 else ()
    return MountRequest(kind, parts[1], parts[0], options, create_source=kind == "bind")


class _Kind(NamedTuple):
    read: Callable[[Fields], Iterator[str]]
    part: str


def _bind_words(given: Fields) -> Iterator[str]:
    if text := given.text("Propagation"):
        yield text
    if given.flag("NonRecursive"):
        yield "bind-nonrecursive"


def _volume_words(given: Fields) -> Iterator[str]:
    if given.text("Subpath"):
        raise WherryError(Kind.UNSUPPORTED, f"{given.name('Subpath')} is not supported by wherry")
    if given.flag("NoCopy"):
        yield "nocopy"


def _tmpfs_words(given: Fields) -> Iterator[str]:
    if size := given.number("SizeBytes"):
        yield f"size={size}"
    if mode := given.number("Mode"):
        yield f"mode={mode:o}"


_KINDS = {
    "bind": _Kind(_bind_words, "BindOptions"), "volume": _Kind(_volume_words, "VolumeOptions"),
    "tmpfs": _Kind(_tmpfs_words, "TmpfsOptions"),
}  # fmt: skip


def _mount(given: Fields) -> MountRequest:
    kind = given.text("Type")
    if kind not in _KINDS:
        raise WherryError(Kind.INVALID, f'mount type "{kind[:80]}" unknown', hint=f"one of {', '.join(_KINDS)}")
    read, part = _KINDS[kind]
    options = [*read(given.part(part)), *(["ro"] if given.flag("ReadOnly") else [])]
    driver = given.part("VolumeOptions").part("DriverConfig") if kind == "volume" else Fields({})
    return MountRequest(
        kind, given.text("Target"), given.text("Source"), tuple(options),
        create_source=given.part("BindOptions").flag("CreateMountpoint"),
        driver=driver.text("Name"), driver_options=tuple(driver.pairs("Options").items()),
    )  # fmt: skip


# ---- update ----


class Update(NamedTuple):
    """`restart` None: as it was."""

    limits: Limits
    restart: RestartPolicy | None


def update(body: Json) -> Update:
    """Limits are at the top of the body here."""
    given = Fields(body)
    _refuse(body, given, _REFUSED)
    policy = _restart(given) if given.part("RestartPolicy").text("Name") else None
    return Update(_limits(given), policy)
