"""RunOptions and the image's config to an OCI config.json (runtime-spec 1.3). Pure: everything it needs is in `Inputs`.

Decides what docker decides: which of the two values wins, default mounts, namespaces, devices, rlimits. Refuses to know
where the inputs came from. Values of the image reach only process.args, env, cwd, user and annotations of
its own prefix (invariant 2).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, Json, RunOptions
from wherry.oci import defaults
from wherry.oci.facts import HostFacts

from . import devices as device_rules
from . import security as sec
from .users import User

__all__ = ["Inputs", "argv", "asked_rlimits", "check", "environment", "generate", "hostname", "process"]

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = "/sbin/wherry-init"
_SHM = 64 << 20
_RLIMITS = {
    "as": "AS", "core": "CORE", "cpu": "CPU", "data": "DATA", "fsize": "FSIZE", "locks": "LOCKS", "memlock": "MEMLOCK",
    "msgqueue": "MSGQUEUE", "nice": "NICE", "nofile": "NOFILE", "nproc": "NPROC", "rss": "RSS", "rtprio": "RTPRIO",
    "rttime": "RTTIME", "sigpending": "SIGPENDING", "stack": "STACK",
}  # fmt: skip
_DEFAULT_RLIMITS = {"nofile": (1 << 20, 1 << 20), "core": (0, 0)}
_SYSCTL_IPC = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
               "kernel.shmmni", "kernel.shm_rmid_forced")  # fmt: skip


class Inputs(NamedTuple):
    """Everything that a config.json is made of."""

    id: str
    options: RunOptions
    image: ImageConfig
    security: sec.Security
    facts: HostFacts
    user: User = User()
    hostname: str = ""
    mounts: tuple[Json, ...] = ()  # OCI mounts, parents first
    files: Mapping[str, str] = {}  # target -> host file: hosts, hostname, resolv.conf
    shm: str = ""  # host path of a shared /dev/shm
    devices: device_rules.Devices = device_rules.NONE
    resources: Mapping[str, Any] = {}
    namespaces: Mapping[str, str] = {}  # type -> path, "": a new one; absent: the host's
    cgroup: str = ""
    seccomp: Json | None = None
    apparmor: str = ""
    selinux: tuple[str, str] = ("", "")  # process label, mount label
    id_map: tuple[int, int] = (0, 0)  # first host id and size of a private user namespace
    init: str = ""  # host path of the static helper, for --init
    root: str = "rootfs"


def argv(options: RunOptions, image: ImageConfig) -> tuple[str, ...]:
    """The command line: --entrypoint resets the image's command, as docker."""
    if options.entrypoint is not None:
        entry = tuple(part for part in options.entrypoint if part) if options.entrypoint != ("",) else ()
        words = entry + options.command
    else:
        words = image.entrypoint + (options.command or image.cmd)
    if not words:
        hint = "the image has none: give one after its name"
        raise WherryError(Kind.INVALID, "no command specified", hint=hint, code=125)
    return words


def hostname(options: RunOptions, cid: str, host: str) -> str:
    """The hostname: as asked, the host's own where its UTS or network namespace is shared, else the short id."""
    return options.hostname or (host if _shares_host_name(options) else cid[:12])


def _shares_host_name(options: RunOptions) -> bool:
    return options.uts == "host" or any(a.network == "host" for a in options.network)


def environment(
    options: RunOptions, image: ImageConfig, name: str, user: User, extra: tuple[str, ...] = ()
) -> list[str]:
    """docker's order: defaults, the image's, what was asked; the last of a name wins, a bare name removes."""
    base = [PATH, f"HOSTNAME={name}", *(["TERM=xterm"] if options.tty else [])]
    merged: dict[str, str] = {}
    for item in (*base, *image.env, *extra, *options.env):
        key, equals, _ = item.partition("=")
        if not key or "\0" in item:
            raise WherryError(Kind.INVALID, f"invalid environment variable {item!r}")
        if equals:
            merged[key] = item
        else:
            merged.pop(key, None)
    merged.setdefault("HOME", f"HOME={user.home}")
    return list(merged.values())


def _rlimits(options: RunOptions, profile: str) -> list[Json]:
    found = dict(_DEFAULT_RLIMITS)
    if profile == "docker":
        del found["core"]
    for text in options.ulimits:
        name, limits = _ulimit(text)
        found[name] = limits
    return [{"type": f"RLIMIT_{_RLIMITS[n]}", "soft": soft, "hard": hard} for n, (soft, hard) in sorted(found.items())]


def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    name, equals, value = text.partition("=")
    soft_text, _, hard_text = value.partition(":")
    try:
        soft, hard = _limit(soft_text), _limit(hard_text or soft_text)
    except ValueError:
        equals = ""
        soft = hard = 0
    if not equals or name not in _RLIMITS:
        hint = f"NAME=SOFT[:HARD], NAME of {', '.join(_RLIMITS)}"
        raise WherryError(Kind.INVALID, f'invalid --ulimit "{text}"', hint=hint)
    if soft > hard:
        raise WherryError(Kind.INVALID, f'invalid --ulimit "{text}": the soft limit is above the hard one')
    return name, (soft, hard)


def _limit(text: str) -> int:
    return (1 << 64) - 1 if text in ("-1", "unlimited") else int(text) if text.isdigit() else int("x")


def asked_rlimits(options: RunOptions) -> tuple[str, ...]:
    """The rlimits that were asked for by name: they are set or the start fails."""
    return tuple(f"RLIMIT_{_RLIMITS[_ulimit(text)[0]]}" for text in options.ulimits)


def process(inputs: Inputs) -> Json:
    """Return the `process` member."""
    options, security = inputs.options, inputs.security
    user: Json = {"uid": inputs.user.uid, "gid": inputs.user.gid, "additionalGids": list(inputs.user.groups)}
    made: Json = {
        "terminal": options.tty,
        "user": user,
        "args": _command(options, inputs.image),
        "env": environment(options, inputs.image, inputs.hostname, inputs.user, tuple(inputs.devices.env)),
        "cwd": _cwd(options, inputs.image),
        "capabilities": capability_sets(options, inputs.facts),
        "rlimits": _rlimits(options, security.profile),
        "noNewPrivileges": security.no_new_privileges,
    }
    if options.oom_score_adj is not None:
        made["oomScoreAdj"] = options.oom_score_adj
    if inputs.apparmor:
        made["apparmorProfile"] = inputs.apparmor
    if inputs.selinux[0]:
        made["selinuxLabel"] = inputs.selinux[0]
    return made


def _command(options: RunOptions, image: ImageConfig) -> list[str]:
    """With --init the helper is pid 1: `init FILE ARGV...`."""
    words = list(argv(options, image))
    return [INIT, "init", words[0], *words] if options.init else words


def _cwd(options: RunOptions, image: ImageConfig) -> str:
    path = options.workdir or image.workdir or "/"
    if options.workdir and not path.startswith("/"):
        raise WherryError(Kind.INVALID, f"the working directory '{path}' is invalid, it needs to be an absolute path")
    return path if path.startswith("/") else f"/{path}"


def capability_sets(options: RunOptions, facts: HostFacts) -> Json:
    """Bounding, effective and permitted; inheritable and ambient stay empty (invariant 9)."""
    names = list(sec.capabilities(options, facts.cap_bounding))
    return {"bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": []}


def _base_mounts(inputs: Inputs) -> list[Json]:
    options = inputs.options
    size = options.shm_size if options.shm_size is not None else _SHM
    found = defaults.mounts(size)
    if inputs.security.privileged:
        for mount in found:
            mount["options"] = [option for option in mount["options"] if option != "ro"]
    if inputs.shm or options.ipc == "none":
        found = [mount for mount in found if mount["destination"] != "/dev/shm"]  # noqa: S108  # inside
    if inputs.shm:
        found.append(_bind("/dev/shm", inputs.shm, ["nosuid", "noexec", "nodev", "rw"]))  # noqa: S108  # inside
    return found


def _bind(target: str, source: str, options: list[str]) -> Json:
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", *options]}


def _mounts(inputs: Inputs) -> list[Json]:
    own = [*inputs.mounts, *inputs.devices.mounts]
    taken = {mount["destination"] for mount in own}
    files = [_bind(t, s, ["rw", "nodev", "nosuid"]) for t, s in inputs.files.items() if t not in taken]
    base = [mount for mount in _base_mounts(inputs) if mount["destination"] not in taken]
    init = [_bind(INIT, inputs.init, ["ro", "nodev", "nosuid"])] if inputs.options.init else []
    return [*base, *files, *own, *init]


def _namespaces(inputs: Inputs) -> list[Json]:
    return [{"type": kind, **({"path": path} if path else {})} for kind, path in inputs.namespaces.items()]


def _sysctls(inputs: Inputs) -> dict[str, str]:
    found: dict[str, str] = {}
    own_net = "network" in inputs.namespaces and not inputs.id_map[1]
    if own_net:  # docker 20.10: low ports and ping need no capability in a network namespace of one's own
        found = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    for key, value in inputs.options.sysctls.items():
        _check_sysctl(key, frozenset(inputs.namespaces))
        found[key] = value
    return found


def check(options: RunOptions, image: ImageConfig, private: frozenset[str]) -> None:
    """Refuse at creation what the spec could not say. `private`: the kinds of namespaces that are not the host's."""
    argv(options, image)
    asked_rlimits(options)
    _cwd(options, image)
    for key in options.sysctls:
        _check_sysctl(key, private)


def _check_sysctl(key: str, private: frozenset[str]) -> None:
    needs = "network" if key.startswith("net.") else "ipc" if key in _SYSCTL_IPC or key.startswith("fs.mqueue.") else ""
    needs = "uts" if key in ("kernel.domainname", "kernel.hostname") else needs
    if "" in key.replace("/", ".").split("."):  # dots and slashes change places: "net.//.kernel.x" climbs out of net
        needs = ""
    if not needs:
        raise WherryError(Kind.INVALID, f'sysctl "{key}" is not of a namespace: it would change the host')
    if needs not in private:
        raise WherryError(Kind.INVALID, f'sysctl "{key}" is not allowed in the host\'s {needs} namespace')


def _paths(inputs: Inputs) -> tuple[list[str], list[str]]:
    security = inputs.security
    masked = [] if security.open_paths else defaults.masked_paths(inputs.facts.thermal_cpus)
    readonly = [] if security.open_paths else list(defaults.READONLY_PATHS)
    opened = set(security.unmask)
    masked = [path for path in masked if path not in opened] + list(security.mask)
    return masked, [path for path in readonly if path not in opened]


def _linux(inputs: Inputs) -> Json:
    masked, readonly = _paths(inputs)
    rules = inputs.devices.rules
    linux: Json = {
        "namespaces": _namespaces(inputs),
        "resources": {**inputs.resources, "devices": [*defaults.device_rules(), *rules]},
        "devices": inputs.devices.nodes,
        "cgroupsPath": inputs.cgroup,
        "sysctl": _sysctls(inputs),
        "maskedPaths": masked,
        "readonlyPaths": readonly,
        "rootfsPropagation": "private",
    }
    if inputs.seccomp is not None:
        linux["seccomp"] = inputs.seccomp
    if inputs.selinux[1]:
        linux["mountLabel"] = inputs.selinux[1]
    start, size = inputs.id_map
    if size:
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": start, "size": size}]
    return linux


def generate(inputs: Inputs) -> Json:
    """Return the whole config.json."""
    config: Json = {
        "ociVersion": "1.3.0",
        "process": process(inputs),
        "root": {"path": inputs.root, "readonly": inputs.options.read_only},
        "mounts": _mounts(inputs),
        "linux": _linux(inputs),
        "annotations": dict(inputs.options.annotations),
    }
    if inputs.namespaces.get("uts") == "":  # a joined one keeps its names
        config["hostname"] = inputs.hostname
        if inputs.options.domainname:
            config["domainname"] = inputs.options.domainname
    for name, hook in inputs.devices.hooks:
        config.setdefault("hooks", {}).setdefault(name, []).append(hook)
    return config
