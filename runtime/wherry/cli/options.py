"""The flags of `run` and `create` as one table, and the RunOptions that their values make.

Decides what combinations of flags contradict each other before anything is done. The caller brings the environment,
the current directory and a way to read files. Knows nothing of click (see `app.py`) and mixes in no image value.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, HealthCheck, Limits, LogConfig, MountRequest, RestartPolicy, RunOptions

from . import parse

Parser = Callable[[str, str], Any]


class Flag(NamedTuple):
    """One flag: its names as docker spells them, how its value is read (None: a switch), and its help."""

    names: tuple[str, ...]
    parser: Parser | None
    help: str
    metavar: str = ""
    many: bool = False
    default: object = None

    @property
    def key(self) -> str:
        """The key of its value: the first long name with underscores."""
        long = next(name for name in self.names if name.startswith("--"))
        return long[2:].replace("-", "_")


def text(_flag: str, value: str) -> str:
    """Any text."""
    return value


def switch(names: str, help: str, default: bool = False) -> Flag:
    """A flag that is on or off; docker also takes --flag=false."""
    return Flag(tuple(names.split()), None, help, default=default)


def one(names: str, parser: Parser, metavar: str, help: str) -> Flag:
    """A flag with a value, the last one given wins."""
    return Flag(tuple(names.split()), parser, help, metavar)


def many(names: str, parser: Parser, metavar: str, help: str) -> Flag:
    """A flag that may be repeated."""
    return Flag(tuple(names.split()), parser, help, metavar, many=True)


COUNT = parse.integer(0, 2**31 - 1)
LINK = many("--link", parse.link, "CONTAINER", "refused: containers find each other by name on their networks")
IPC_MODES = ("private", "shareable", "host", "none")
LOG_DRIVERS = ("json-file", "local", "journald", "none")

RUN_FLAGS: tuple[Flag, ...] = (
    many("--add-host", parse.add_host, "HOST:IP", "add a line to the container's hosts file"),
    many("--annotation", parse.key_value, "KEY=VALUE", "annotate the OCI configuration"),
    many("-a --attach", parse.stream, "STREAM", "attach to stdin, stdout or stderr"),
    many("--cap-add", text, "CAP", "add a capability (ALL: all of them)"),
    many("--cap-drop", text, "CAP", "drop a capability (ALL: all of them)"),
    one("--cgroup-parent", text, "PATH", "the cgroup that the container's lies in"),
    one("--cgroupns", parse.choice("private", "host"), "MODE", "cgroup namespace: private or host"),
    one("--cidfile", text, "FILE", "write the container's id to a new file"),
    one("-c --cpu-shares", parse.integer(2, 262144), "N", "relative CPU weight"),
    one("--cpus", parse.cpus, "N", "number of CPUs, such as 1.5"),
    one("--cpuset-cpus", parse.cpuset, "LIST", "the CPUs to run on (0-3, 0,1)"),
    one("--cpuset-mems", parse.cpuset, "LIST", "the memory nodes to use (0-3, 0,1)"),
    one("--detach-keys", parse.detach_keys, "KEYS", "the keys that detach (default ctrl-p,ctrl-q)"),
    many("--device", parse.device, "DEVICE", "give a host device (/dev/x[:/dev/y[:rwm]]) or a CDI device"),
    many("--dns", parse.ip, "IP", "DNS server"),
    many("--dns-option", text, "OPTION", "option line of resolv.conf"),
    many("--dns-search", text, "DOMAIN", "DNS search domain"),
    one("--domainname", text, "NAME", "NIS domain name"),
    one("--entrypoint", text, "COMMAND", "replace the image's entrypoint ('' removes it)"),
    many("-e --env", parse.env_name, "KEY[=VALUE]", "set an environment variable"),
    many("--env-file", text, "FILE", "read environment variables from a file"),
    many("--expose", parse.expose, "PORT", "declare a port or a range"),
    many("--group-add", text, "GROUP", "add a supplementary group"),
    one("--health-cmd", text, "COMMAND", "shell command that checks health"),
    one("--health-interval", parse.duration, "DURATION", "time between two checks"),
    one("--health-retries", COUNT, "N", "failures in a row that mean unhealthy"),
    one("--health-start-interval", parse.duration, "DURATION", "time between checks in the start period"),
    one("--health-start-period", parse.duration, "DURATION", "time to start before failures count"),
    one("--health-timeout", parse.duration, "DURATION", "longest time of one check"),
    one("-h --hostname", parse.hostname, "NAME", "the container's host name"),
    switch("--init", "run an init that forwards signals and reaps"),
    switch("-i --interactive", "keep standard input open"),
    one("--ip", parse.ip, "IP", "address on the network"),
    one("--ip6", parse.ip6, "IP", "IPv6 address on the network"),
    one("--ipc", parse.namespace(*IPC_MODES), "MODE", "private, shareable, host, none or container:NAME"),
    many("-l --label", parse.key_value, "KEY=VALUE", "set a label"),
    many("--label-file", text, "FILE", "read labels from a file"),
    LINK,
    one("--log-driver", parse.choice(*LOG_DRIVERS), "DRIVER", "json-file, local, journald or none"),
    many("--log-opt", parse.required_value, "KEY=VALUE", "option of the log driver (max-size, max-file, tag...)"),
    one("--mac-address", parse.mac, "MAC", "MAC address on the network"),
    one("-m --memory", parse.size, "SIZE", "memory limit, such as 512m"),
    one("--memory-reservation", parse.size, "SIZE", "memory that is protected from reclaim"),
    one("--memory-swap", parse.bytes_or_unlimited, "SIZE", "memory plus swap; -1: unlimited swap"),
    many("--mount", parse.mount, "SPEC", "mount: type=bind|volume|tmpfs,source=..,target=..[,readonly...]"),
    one("--name", parse.name, "NAME", "the container's name"),
    many("--network --net", parse.network, "NETWORK", "bridge, none, host, container:NAME or NETWORK[:KEY=VALUE,...]"),
    many("--network-alias", parse.hostname, "NAME", "one more name on the network"),
    switch("--no-healthcheck", "switch the image's health check off"),
    one("--oom-score-adj", parse.integer(-1000, 1000), "N", "preference of the OOM killer, -1000 to 1000"),
    one("--pid", parse.namespace("host", "private"), "MODE", "PID namespace: host or container:NAME"),
    one("--pids-limit", parse.integer(-1, 2**31 - 1), "N", "most processes; -1: no limit"),
    one("--platform", parse.platform, "OS/ARCH", "the image's platform"),
    switch("--privileged", "give all rights of the host"),
    one("--profile", parse.choice("default", "strict", "docker"), "NAME", "rights: default, strict or docker"),
    many("-p --publish", parse.publish, "PORTS", "publish [IP:][HOST:]CONTAINER[/PROTO], ranges too"),
    switch("-P --publish-all", "publish all exposed ports on free ones"),
    one("--pull", parse.choice("always", "missing", "never"), "WHEN", "always, missing (default) or never"),
    switch("-q --quiet", "do not show the progress of a pull"),
    switch("--read-only", "mount the root filesystem read-only"),
    one("--restart", parse.restart, "POLICY", "no, on-failure[:N], always or unless-stopped"),
    switch("--rm", "remove the container and its anonymous volumes when it ends"),
    many("--security-opt", parse.security, "OPTION", "seccomp=, apparmor=, label=, no-new-privileges, systempaths="),
    one("--shm-size", parse.size, "SIZE", "size of /dev/shm"),
    one("--stop-signal", parse.signal_name, "SIGNAL", "the signal of stop"),
    one("--stop-timeout", parse.integer(-1, 2**31 - 1), "SECONDS", "grace of stop; -1: for ever"),
    many("--sysctl", parse.required_value, "KEY=VALUE", "set a namespaced sysctl"),
    many("--tmpfs", parse.tmpfs, "PATH[:OPTIONS]", "mount a tmpfs"),
    switch("-t --tty", "give the process a terminal"),
    many("--ulimit", parse.ulimit, "NAME=SOFT[:HARD]", "set a resource limit"),
    one("-u --user", text, "USER[:GROUP]", "user and group, by name or number"),
    one("--userns", text, "MODE", "user namespace: host, auto or UID:SIZE"),
    one("--uts", parse.namespace("host", "private"), "MODE", "UTS namespace: host or container:NAME"),
    many("-v --volume", parse.volume, "SPEC", "mount [HOST-PATH or VOLUME:]PATH[:OPTIONS]"),
    many("--volumes-from", text, "CONTAINER[:ro]", "mount another container's volumes"),
    one("-w --workdir", parse.workdir, "DIR", "working directory"),
)

ATTACHED_FLAGS: tuple[Flag, ...] = (
    switch("-d --detach", "run in the background and print the id"),
    switch("--sig-proxy", "send signals on to the process (without -t)", default=True),
    switch("--explain", "print what would be done and do nothing"),
)


class Surroundings(NamedTuple):
    """What the flags may refer to: the caller's environment, current directory and files."""

    env: Mapping[str, str]
    cwd: str
    read: Callable[[str], str]


# Values that go to the field of the same name as they are.
PLAIN = frozenset({
    "add_host", "attach", "cap_add", "cap_drop", "cgroup_parent", "cgroupns", "detach", "dns",
    "dns_option", "dns_search", "domainname", "group_add", "hostname", "init", "interactive", "ipc", "name",
    "no_healthcheck", "oom_score_adj", "pid", "platform", "privileged", "profile", "publish_all", "pull",
    "read_only", "restart", "shm_size", "stop_signal", "stop_timeout", "tty", "user", "userns", "uts",
    "volumes_from", "workdir",
})  # fmt: skip
RENAMED = {"device": "devices", "rm": "remove", "ulimit": "ulimits"}
LIMITS = {
    "memory": "memory", "memory_reservation": "memory_reservation", "memory_swap": "memory_swap", "cpus": "cpus",
    "cpu_shares": "cpu_shares", "cpuset_cpus": "cpuset_cpus", "cpuset_mems": "cpuset_mems", "pids_limit": "pids",
}  # fmt: skip
HEALTH = ("interval", "timeout", "start_period", "start_interval", "retries")
Values = Mapping[str, Any]


def build(image: str, command: Sequence[str], values: Values, around: Surroundings) -> RunOptions:
    """The RunOptions that the parsed values of RUN_FLAGS stand for; contradictions are errors."""
    conflicts(values)
    given = {k: v for k, v in values.items() if v not in (None, (), [])}
    fields: dict[str, Any] = {k: _frozen(v) for k, v in given.items() if k in PLAIN}
    fields |= {field: _frozen(given[key]) for key, field in RENAMED.items() if key in given}
    fields |= {
        "cidfile": absolute(given["cidfile"], around.cwd) if "cidfile" in given else "",
        "entrypoint": (given["entrypoint"],) if "entrypoint" in given else None,
        "env": tuple(environment(given, around)),
        "labels": labels(given, around),
        "annotations": dict(given.get("annotation", ())),
        "sysctls": dict(given.get("sysctl", ())),
        "network": networks(given),
        "ports": tuple(port for ports in given.get("publish", ()) for port in ports),
        "expose": tuple(port for ports in given.get("expose", ()) for port in ports),
        "mounts": tuple(mounts(given, around.cwd)),
        "security_opt": tuple(_security(option, around.cwd) for option in given.get("security_opt", ())),
        "limits": limits(given),
        "log": LogConfig(given.get("log_driver", ""), dict(given.get("log_opt", ()))),
        "health": health(given),
    }
    return RunOptions(image=image, command=tuple(command), **fields)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def limits(given: Values) -> Limits:
    """The cgroup limits among the values; also those of `update`."""
    return Limits(**{field: given.get(key) for key, field in LIMITS.items()})


def health(given: Values) -> HealthCheck:
    """--health-cmd goes through the container's shell, as docker's."""
    command = given.get("health_cmd")
    fields = {key: given.get(f"health_{key}") or 0 for key in HEALTH}
    return HealthCheck(("CMD-SHELL", command) if command else (), **fields)


def from_lines(lines: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    """KEY=VALUE lines; a bare KEY takes the caller's value and is left out where there is none."""
    for line in lines:
        if "=" in line:
            yield line
        elif line.rstrip() in env:
            yield f"{line.rstrip()}={env[line.rstrip()]}"


def environment(given: Values, around: Surroundings) -> list[str]:
    """Files first, then -e: the later one wins in the engine, as with docker."""
    lines = [
        line for path in given.get("env_file", ()) for line in parse.line_file("--env-file", path, around.read(path))
    ]
    return list(from_lines([*lines, *given.get("env", ())], around.env))


def labels(given: Values, around: Surroundings) -> dict[str, str]:
    """Label files first, then --label."""
    found: dict[str, str] = {}
    for path in given.get("label_file", ()):
        lines = parse.line_file("--label-file", path, around.read(path))
        found |= dict(parse.key_value("--label-file", line) for line in lines)
    return found | dict(given.get("label", ()))


def networks(given: Values) -> tuple[Attachment, ...]:
    """Every --network, its interface named by order; --ip, --ip6, --mac-address and --network-alias belong to the
    first."""
    wishes: list[Attachment] = list(given.get("network", ()))
    extra = {key: given[key] for key in ("ip", "ip6", "mac_address", "network_alias") if given.get(key)}
    if extra and not wishes:
        wishes = [Attachment("bridge")]
    _network_conflicts(wishes, bool(extra))
    if extra:
        first = wishes[0]
        aliases = first.aliases + tuple(extra.get("network_alias", ()))
        ip, mac = extra.get("ip", first.ip), extra.get("mac_address", first.mac)
        wishes[0] = first._replace(ip=ip, ip6=extra.get("ip6", first.ip6), mac=mac, aliases=aliases)
    return tuple(wish._replace(interface=f"eth{n}") for n, wish in enumerate(wishes))


def _network_conflicts(wishes: Sequence[Attachment], extra: bool) -> None:
    alone = next((w for w in wishes if w.network in ("none", "host") or w.network.startswith("container:")), None)
    names = [w.network for w in wishes]
    if alone and len(wishes) > 1:
        raise conflict(f"--network {alone.network} goes with no other network", "give it alone")
    if alone and (extra or alone != Attachment(alone.network)):
        raise conflict(f"--network {alone.network} takes no address, MAC or alias", "leave --ip and the aliases out")
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise conflict(f'network "{twice}" is given twice', "give each network once")


def mounts(given: Values, cwd: str) -> Iterator[MountRequest]:
    """-v, --mount and --tmpfs in this order; a relative host path is beneath the current directory."""
    seen: set[str] = set()
    for request in (*given.get("volume", ()), *given.get("mount", ()), *given.get("tmpfs", ())):
        if request.target in seen:
            raise conflict(f"two mounts on {request.target}", "mount one thing on one path")
        seen.add(request.target)
        yield request._replace(source=absolute(request.source, cwd)) if request.kind == "bind" else request


def absolute(path: str, cwd: str) -> str:
    """The path, beneath `cwd` if it is relative; no symlink is resolved here."""
    import posixpath

    return posixpath.normpath(posixpath.join(cwd, path))


def _security(option: str, cwd: str) -> str:
    key, _, value = option.partition("=")
    local = key == "seccomp" and value not in ("unconfined", "builtin") and not value.startswith("{")
    return f"{key}={absolute(value, cwd)}" if local else option


def conflict(message: str, hint: str) -> WherryError:
    """Two flags that contradict each other."""
    return WherryError(Kind.INVALID, message, hint=hint)


# (the first holds, the second holds, sentence, hint): docker's own conflicts, found before anything is touched.
Rule = tuple[Callable[[Values], object], str, str]
HEALTH_FLAGS = ("health_cmd", *(f"health_{key}" for key in HEALTH))
RULES: tuple[Rule, ...] = (
    (lambda v: v.get("detach") and v.get("attach"), "--detach and --attach exclude each other", "leave one out"),
    (
        lambda v: v.get("rm") and (v.get("restart") or RestartPolicy()).name != "no",
        "--rm and --restart exclude each other",
        "a container that is removed when it ends cannot be started again",
    ),
    (
        lambda v: v.get("no_healthcheck") and any(v.get(key) is not None for key in HEALTH_FLAGS),
        "--no-healthcheck and --health-* exclude each other",
        "leave one out",
    ),
    (
        lambda v: (v.get("memory_swap") or -1) > 0 and v.get("memory") is None,
        "--memory-swap needs --memory",
        "--memory-swap is the sum of memory and swap: give --memory too",
    ),
    (
        lambda v: (v.get("memory_swap") or -1) > 0 and v["memory_swap"] < v["memory"],
        "--memory-swap is below --memory",
        "--memory-swap is the sum of memory and swap",
    ),
    (
        lambda v: (v.get("hostname") or v.get("domainname")) and (v.get("uts") or "private") != "private",
        "--hostname and --domainname go with a UTS namespace of the container's own",
        "with --uts host or container:NAME it would change the name of another: leave one out",
    ),
    (
        lambda v: v.get("privileged") and v.get("profile") == "strict",
        "--privileged and --profile strict exclude each other",
        "leave one out",
    ),
)


def conflicts(values: Values) -> None:
    """Raise for the first pair of flags that contradict each other."""
    for holds, message, hint in RULES:
        if holds(values):
            raise conflict(message, hint)
