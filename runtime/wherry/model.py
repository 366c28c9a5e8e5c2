"""Immutable values that more than one layer speaks of. No behaviour beyond small pure conversions, no I/O.

Units are in the names or the comments: bytes, seconds (float), nanoseconds only where the OCI specs say so.
"""


from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "ATTACH_ACK", "ATTACH_CLAIM", "ATTACH_DONE", "ATTACH_EOF", "ATTACH_EXIT", "ATTACH_QUIET", "ATTACH_REOPEN",
    "ATTACH_RESIZE", "ATTACH_STDERR", "ATTACH_STDIN", "ATTACH_STDOUT", "Address", "Attachment", "Descriptor",
    "ExitStatus", "HealthCheck", "ImageConfig", "ImageRecord", "Interface", "Json", "Limits", "LogConfig", "Mount",
    "MountRequest", "NetworkResult", "Place", "Platform", "PortMapping", "ProgressEvent", "RestartPolicy", "RunOptions",
]

Json = dict[str, Any]

# Frames of the attach socket (native/monitor.h): type u8, three zero bytes, length u32 big endian, payload.
ATTACH_STDIN, ATTACH_STDOUT, ATTACH_STDERR, ATTACH_EXIT, ATTACH_ACK = 0, 1, 2, 3, 4
ATTACH_EOF, ATTACH_RESIZE, ATTACH_CLAIM, ATTACH_DONE, ATTACH_QUIET, ATTACH_REOPEN = 5, 6, 7, 8, 9, 10


class Place(NamedTuple):
    """Where one whole wherry lives (docs/state.md). Several can live side by side."""

    root: str = "/var/lib/wherry"
    state: str = "/run/wherry"
    config: str = "/etc/wherry/wherry.toml"
    cni_conf: str = "/etc/cni/net.d"
    cni_bin: tuple[str, ...] = ("/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni")  # CNI's own, Fedora's, Debian's


class Mount(NamedTuple):
    """One mount as data: an OCI runtime-spec mount, or what a snapshotter returns (then `target` is "/")."""

    type: str
    source: str
    target: str
    options: tuple[str, ...] = ()


class Platform(NamedTuple):
    """An image platform (image-spec 1.1, image-index.md). `variant` is "" where the architecture has none."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""


class Descriptor(NamedTuple):
    """An OCI content descriptor (image-spec 1.1, descriptor.md). `size` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = {}
    platform: Platform | None = None


class ImageConfig(NamedTuple):
    """The part of an image's config that a container starts from, and the diff ids of its layers, lowest first."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    stop_signal: str = ""
    healthcheck: Json | None = None  # docker's config.Healthcheck, durations in ns
    shell: tuple[str, ...] = ()
    platform: Platform = Platform()
    created: str = ""
    diff_ids: tuple[str, ...] = ()
    history: tuple[Json, ...] = ()


class ImageRecord(NamedTuple):
    """A stored image. `id` is the config's digest ("sha256:..."), `manifest` the manifest's; `size` unpacked bytes.

    `target`: the digest of the index that its names lead to, where the images of all platforms are kept; else "".
    """

    id: str
    manifest: str
    names: tuple[str, ...]
    config: ImageConfig
    layers: tuple[Descriptor, ...]
    size: int
    created: float  # unix seconds, from the config; 0 where unset
    target: str = ""


class ProgressEvent(NamedTuple):
    """Progress of one piece of long work: `done` of `total` bytes (total 0: unknown); `status` is docker's word."""

    key: str
    status: str
    done: int = 0
    total: int = 0


class PortMapping(NamedTuple):
    """One published port. `host_port` 0 asks for a free one; `host_ip` "" is the setting `publish_default`.

    With `host_port_end` the request is any free port of host_port..host_port_end; a granted mapping has none.
    """

    container_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = ""
    host_port_end: int = 0


class Address(NamedTuple):
    """One address of an interface: "10.88.0.5/16" and its gateway ("" where none)."""

    address: str
    gateway: str = ""


class Interface(NamedTuple):
    """One interface inside the container's network namespace."""

    name: str
    mac: str = ""
    addresses: tuple[Address, ...] = ()


class Attachment(NamedTuple):
    """A wish to join a network. `ip`: IPv4 (alone, either family will do). `options`: --driver-opt, for this endpoint
    only. The network of the highest `priority` has the default route, among equals the first by name."""

    network: str
    aliases: tuple[str, ...] = ()
    ip: str = ""
    mac: str = ""
    interface: str = "eth0"
    ip6: str = ""
    options: Mapping[str, str] = {}
    priority: int = 0


class NetworkResult(NamedTuple):
    """What CNI ADD gave for one network. `raw` is the CNI result as printed (for DEL, CHECK and inspect).

    `ports` are the published ports as granted: every `host_port` is a number that is taken now. `routed`: its gateway
    leads out, so it may have the default route.
    """

    network: str
    interfaces: tuple[Interface, ...]
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    raw: Mapping[str, Any] = {}
    ports: tuple[PortMapping, ...] = ()
    routed: bool = True


class RestartPolicy(NamedTuple):
    """docker's: no, on-failure (max_retries 0: no limit), always, unless-stopped."""

    name: str = "no"
    max_retries: int = 0


class HealthCheck(NamedTuple):
    """Seconds. `test` as docker's: ("CMD", ...), ("CMD-SHELL", text), ("NONE",); empty inherits the image's."""

    test: tuple[str, ...] = ()
    interval: float = 0
    timeout: float = 0
    start_period: float = 0
    start_interval: float = 0
    retries: int = 0


class LogConfig(NamedTuple):
    """`driver` "" is the default (local); options are strings as given: max-size, max-file, tag, labels, env."""

    driver: str = ""
    options: Mapping[str, str] = {}


class MountRequest(NamedTuple):
    """-v, --mount, --tmpfs and --volumes-from after parsing, before resolving.

    `kind`: bind, volume, tmpfs. `source`: host path, volume name, or "" (anonymous). `options`: ro, rw, z, Z, U,
    nocopy, nosuid, dev, suid, exec, rshared..., "size=..", "mode=..".
    """

    kind: str
    target: str
    source: str = ""
    options: tuple[str, ...] = ()
    create_source: bool = False  # -v makes a missing host directory, --mount does not
    driver: str = ""  # of a volume that is to be made, and its options
    driver_options: tuple[tuple[str, str], ...] = ()


class Limits(NamedTuple):
    """What the user asked of the cgroup; None: not asked. Bytes, CPUs, counts."""

    memory: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None  # memory + swap as docker's; -1: unlimited
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None  # -1: unlimited


class RunOptions(NamedTuple):
    """What `run` and `create` were asked, as typed values: no image value is mixed in (invariant 2).

    None and empty mean "not given": the image's or the default's turn.
    """

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None  # ("",) or () resets the image's
    name: str = ""
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    remove: bool = False
    attach: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # "K=V"; files are already read
    workdir: str = ""
    user: str = ""
    group_add: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    network: tuple[Attachment, ...] = ()  # empty: the default network; "none", "host", "container:X" are names too
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    mounts: tuple[MountRequest, ...] = ()
    volumes_from: tuple[str, ...] = ()
    limits: Limits = Limits()
    cgroup_parent: str = ""
    devices: tuple[str, ...] = ()  # "/dev/x[:/dev/y[:rwm]]" or a CDI name
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    privileged: bool = False
    profile: str = "default"  # default, strict, docker
    read_only: bool = False
    shm_size: int | None = None  # bytes
    ulimits: tuple[str, ...] = ()  # "name=soft[:hard]"
    sysctls: Mapping[str, str] = {}
    init: bool = False
    platform: str = ""
    pull: str = "missing"  # always, missing, never
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    stop_signal: str = ""
    stop_timeout: int | None = None  # seconds
    restart: RestartPolicy = RestartPolicy()
    log: LogConfig = LogConfig()
    health: HealthCheck = HealthCheck()
    no_healthcheck: bool = False
    ipc: str = ""  # private, shareable, host, none, container:X
    pid: str = ""  # "", host, container:X
    uts: str = ""  # "", host
    userns: str = ""  # "", host, auto, "uid:size"
    cgroupns: str = ""  # private, host
    oom_score_adj: int | None = None
    cidfile: str = ""


class ExitStatus(NamedTuple):
    """How a container ended: docker's code (128+n by signal), whether the kernel's OOM killer did it, when (unix s)."""

    code: int
    oom: bool = False
    time: float = 0.0
    error: str = ""
