"""What pods and their containers are asked, and what is told of them. Plain values; decides nothing, does no I/O.

They follow the CRI's messages (runtime/v1 api.proto), free of protobuf: a face translates.
"""

from collections.abc import Mapping
from typing import NamedTuple

from wherry.kernel.process import Process
from wherry.model import Json, PortMapping

__all__ = ["Held", "IdMap", "Member", "MemberOptions", "Pod", "PodMount", "PodOptions", "PodSecurity",
           "Usage"]  # fmt: skip


class IdMap(NamedTuple):
    """One line of a user namespace's map (user_namespaces(7))."""

    inside: int
    host: int
    size: int


class PodOptions(NamedTuple):
    """What RunPodSandbox was asked (PodSandboxConfig). `namespace`, `name`, `uid` and `attempt` together are unique."""

    name: str
    namespace: str
    uid: str
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    has_dns: bool = False  # the request had a DNSConfig, if an empty one: then nothing of the host's is taken
    ports: tuple[PortMapping, ...] = ()
    network: str = "pod"  # pod, host
    pid: str = "container"  # pod, container, host
    ipc: str = "pod"  # pod, host
    uids: tuple[IdMap, ...] = ()  # of the pod's own user namespace; () is the host's
    gids: tuple[IdMap, ...] = ()
    cgroup_parent: str = ""  # as the kubelet says it: a path, or with the systemd driver a slice's name
    sysctls: Mapping[str, str] = {}
    resources: Json = {}  # of all its containers, OCI linux.resources; what the pod itself needs is `overhead`
    overhead: Json = {}
    privileged: bool = False
    selinux: tuple[str, str, str, str] = ("", "", "", "")  # user, role, type, level
    handler: str = ""  # RuntimeClass; "" is the default


class Held(NamedTuple):
    """What a ready pod holds for its containers. Paths are the host's; "" says that the host's own is shared."""

    id: str
    netns: str
    ipc: str
    uts: str
    pid: str = ""  # of a pod that shares its pid namespace, else ""
    user: str = ""
    uids: tuple[IdMap, ...] = ()
    gids: tuple[IdMap, ...] = ()
    shm: str = ""  # the /dev/shm of all its containers; "" with the host's ipc
    files: Mapping[str, str] = {}  # /etc/resolv.conf, /etc/hostname, /etc/hosts -> file of the host
    cgroup: str = ""  # absolute path of the pod's cgroup, "" where there is no cgroup v2
    slice: str = ""  # with the systemd driver: the slice that scopes of its containers go into
    hostname: str = ""
    ips: tuple[str, ...] = ()  # the primary one first
    pause: Process | None = None  # who holds the namespaces, where a process must


class Pod(NamedTuple):
    """One pod as it is now. `held` is None unless it is ready."""

    id: str
    options: PodOptions
    created: float  # unix seconds
    held: Held | None = None
    ips: tuple[str, ...] = ()  # also of one that is not ready any more, as long as it is known

    @property
    def ready(self) -> bool:
        """SANDBOX_READY."""
        return self.held is not None


class PodMount(NamedTuple):
    """One mount of a container (the CRI's Mount). `image`: an image volume, whose `source` is inside it ("" all)."""

    target: str
    source: str
    readonly: bool = False
    recursive_readonly: bool = False
    propagation: str = "private"  # private, rslave, rshared
    relabel: bool = False
    uids: tuple[IdMap, ...] = ()
    gids: tuple[IdMap, ...] = ()
    image: str = ""
    options: tuple[str, ...] = ()  # noexec, nodev, nosuid ...: what a bind does not have by itself


class PodSecurity(NamedTuple):
    """The security context of a container (LinuxContainerSecurityContext)."""

    user: str = ""  # a name, or the digits of a uid; "" is the image's
    group: int | None = None
    groups: tuple[int, ...] = ()
    groups_policy: str = "merge"  # merge, strict
    privileged: bool = False
    cap_add: tuple[str, ...] = ()  # without or with CAP_; ALL
    cap_drop: tuple[str, ...] = ()
    cap_ambient: tuple[str, ...] = ()
    readonly_root: bool = False
    no_new_privileges: bool = False
    seccomp: str = "unconfined"  # unconfined, default, or the path of a profile of the host's
    apparmor: str = ""  # "" default where the host has it, unconfined, or a profile's name
    selinux: tuple[str, str, str, str] = ("", "", "", "")
    masked_paths: tuple[str, ...] | None = None  # None: the default's
    readonly_paths: tuple[str, ...] | None = None
    pid: str = "container"  # pod, container, host, or target:CONTAINER


class MemberOptions(NamedTuple):
    """What CreateContainer was asked (ContainerConfig)."""

    name: str
    image: str  # an id of this node, or a name
    attempt: int = 0
    user_image: str = ""  # as the user wrote it in the pod's spec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    workdir: str = ""
    env: tuple[str, ...] = ()  # "K=V"
    mounts: tuple[PodMount, ...] = ()
    devices: tuple[tuple[str, str, str], ...] = ()  # (of the host, inside, "rwm")
    cdi: tuple[str, ...] = ()  # names of CDI devices
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    log: str = ""  # absolute path of the host; "" is no log
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    stop_signal: str = ""
    security: PodSecurity = PodSecurity()
    resources: Json = {}  # OCI linux.resources (cpu, memory, hugepageLimits, unified …)
    oom_score_adj: int | None = None


class Member(NamedTuple):
    """One container of a pod as it is now. Times are unix seconds, 0 is "not yet"."""

    id: str
    pod: str
    options: MemberOptions
    image_id: str  # "sha256:…", the one id that this node knows the image by
    created: float
    state: str  # created, running, exited
    started: float = 0.0
    finished: float = 0.0
    code: int = 0
    reason: str = ""  # Completed, Error, OOMKilled, StartError
    message: str = ""
    pid: int = 0
    uid: int = 0  # of its first process, as resolved
    gid: int = 0
    gids: tuple[int, ...] = ()
    tty: bool = False
    cgroup: str = ""


class Usage(NamedTuple):
    """What a pod or a container used up to `time` (unix seconds). None: this host does not count it."""

    time: float
    cpu_ns: int | None = None  # since its start
    memory: int | None = None  # bytes: usage without inactive file pages (the kubelet's working set)
    memory_usage: int | None = None
    memory_rss: int | None = None
    memory_faults: tuple[int, int] | None = None  # minor, major
    memory_available: int | None = None  # the limit less the working set; None without a limit
    swap: int | None = None
    swap_available: int | None = None
    pids: int | None = None
    disk: tuple[int, int] | None = None  # bytes and inodes of the writable layer
    disk_at: str = ""  # the mount point of the file system that it is on
    interfaces: tuple[tuple[str, int, int, int, int], ...] = ()  # name, rx bytes, rx errors, tx bytes, tx errors
    pressure: Json = {}  # PSI: {"cpu": {"some": {...}, "full": {...}}, "memory": …, "io": …} as the kernel tells
    details: Mapping[str, int] = {}  # what only metrics tell (usage.py), as far as it is counted here
    packets: Mapping[str, tuple[int, int, int, int]] = {}  # by interface: received, of those dropped, sent, dropped
    devices: Mapping[str, tuple[int, int]] = {}  # by MAJOR:MINOR: bytes read, bytes written
