"""Requests to the engine's values. Decides what a request lacks or can never be; knows nothing of this host.

Pure: what is asked here is judged by the request alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from wherry.engine.pods.values import IdMap, MemberOptions, PodMount, PodOptions, PodSecurity
from wherry.errors import Kind, WherryError
from wherry.model import Json, PortMapping

from . import api_pb2 as pb

__all__ = ["command", "identity", "member_options", "pod_options", "resources", "stop_signal"]

_ID_MAX = (1 << 32) - 2  # (uid_t)-1 means "unchanged"
_PROTOCOLS = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}
_PROPAGATION = {
    pb.PROPAGATION_PRIVATE: "private",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_PID = {pb.POD: "pod", pb.CONTAINER: "container", pb.NODE: "host"}
_MOUNT_OPTIONS = frozenset(("noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime", "nosymfollow"))
_SIGNALS: Mapping[str, Any] = dict(pb.Signal.items())
_POLICIES = {pb.Merge: "merge", pb.Strict: "strict"}
_T = TypeVar("_T")


def _bad(message: str, hint: str = "") -> WherryError:
    return WherryError(Kind.INVALID, message, hint=hint)


def _known(table: Mapping[Any, _T], value: int, what: str) -> _T:
    if value not in table:
        raise _bad(f"{what} cannot be {value}")
    return table[value]


def identity(value: str, what: str) -> str:
    """An id of a pod or container, as far as one can be seen: it becomes part of paths."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", value):
        raise _bad(f"the request names no {what}" if not value else f"{value[:80]!r} is no id of a {what}")
    return value


# ---- pods ----


def pod_options(request: pb.RunPodSandboxRequest) -> PodOptions:
    """What RunPodSandbox asks."""
    config = request.config
    linux, context, spaces = config.linux, config.linux.security_context, _spaces(config)
    name, directory = _pod_name(request), _log_directory(config.log_directory)
    uids, gids = _user_namespace(spaces.userns_options)
    return PodOptions(
        name=name.name, namespace=name.namespace, uid=name.uid, attempt=name.attempt,
        hostname=config.hostname, log_directory=directory,
        labels=dict(config.labels), annotations=dict(config.annotations),
        dns=tuple(config.dns_config.servers), dns_search=tuple(config.dns_config.searches),
        dns_option=tuple(config.dns_config.options), has_dns=config.HasField("dns_config"),
        ports=tuple(_port(port) for port in config.port_mappings if port.host_port > 0),
        network="host" if spaces.network == pb.NODE else "pod",
        pid=_known(_PID, spaces.pid, "the pid namespace of a pod"),
        ipc="host" if spaces.ipc == pb.NODE else "pod",
        uids=uids, gids=gids, cgroup_parent=linux.cgroup_parent, sysctls=dict(linux.sysctls),
        resources=resources(linux.resources), overhead=resources(linux.overhead),
        privileged=context.privileged, selinux=_selinux(context.selinux_options), handler=request.runtime_handler,
    )  # fmt: skip


def _pod_name(request: pb.RunPodSandboxRequest) -> pb.PodSandboxMetadata:
    if not request.HasField("config"):
        raise _bad("the request has no config")
    if not request.config.HasField("metadata"):
        raise _bad("the pod's config has no metadata")
    if not request.config.metadata.name:
        raise _bad("the pod's metadata have no name")
    return request.config.metadata


def _spaces(config: pb.PodSandboxConfig) -> pb.NamespaceOption:
    """Which namespaces the pod asks for. Who asks for none does not want one pid namespace for all containers, which
    is what zero would mean."""
    context = config.linux.security_context
    return context.namespace_options if context.HasField("namespace_options") else pb.NamespaceOption(pid=pb.CONTAINER)


def _log_directory(path: str) -> str:
    if path and (not path.startswith("/") or ".." in path.split("/") or "\0" in path):
        raise _bad(f"log_directory must be an absolute path without .., not {path[:200]!r}")
    return os.path.normpath(path) if path else ""


def _port(port: pb.PortMapping) -> PortMapping:
    if not 0 < port.container_port < 65536 or port.host_port > 65535:
        raise _bad(f"a port is out of range: {port.host_port}:{port.container_port}")
    protocol = _known(_PROTOCOLS, port.protocol, "the protocol of a port")
    return PortMapping(port.container_port, port.host_port, protocol, port.host_ip or "0.0.0.0")  # noqa: S104


def _user_namespace(asked: pb.UserNamespace) -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    if asked.mode == pb.NODE or not (asked.ByteSize()):
        if asked.uids or asked.gids:
            raise _bad("the node's user namespace takes no id mappings")
        return (), ()
    if asked.mode != pb.POD:
        raise _bad("a user namespace is the pod's own or the node's")
    uids, gids = _id_maps(asked.uids), _id_maps(asked.gids)
    if not uids or not gids:
        raise _bad("a user namespace of the pod's own needs mappings of uids and of gids")
    return uids, gids


def _id_maps(maps: Iterable[pb.IDMapping]) -> tuple[IdMap, ...]:
    found = tuple(IdMap(entry.container_id, entry.host_id, entry.length) for entry in maps)
    for inside, host, size in found:
        if not size or max(inside, host) + size - 1 > _ID_MAX:
            raise _bad(f"an id mapping is out of range: {inside} {host} {size}")
    return found


def _selinux(asked: pb.SELinuxOption) -> tuple[str, str, str, str]:
    return asked.user, asked.role, asked.type, asked.level


def resources(asked: pb.LinuxContainerResources) -> Json:
    """Limits as the OCI's linux.resources; zero is "not asked". What the kernel calls them is not judged here."""
    cpu = {
        "period": asked.cpu_period, "quota": asked.cpu_quota, "shares": asked.cpu_shares,
        "cpus": asked.cpuset_cpus, "mems": asked.cpuset_mems,
    }  # fmt: skip
    memory = {"limit": asked.memory_limit_in_bytes, "swap": asked.memory_swap_limit_in_bytes}
    pages = [{"pageSize": _page_size(limit.page_size), "limit": limit.limit} for limit in asked.hugepage_limits]
    found = {
        "cpu": _set(cpu), "memory": _set(memory), "hugepageLimits": pages, "unified": dict(asked.unified),
    }  # fmt: skip
    if asked.cpu_shares < 0 or asked.cpu_period < 0:
        raise _bad("cpu_shares and cpu_period cannot be negative")
    return _set(found)


def _page_size(text: str) -> str:
    """It becomes part of a file's name."""
    if not re.fullmatch(r"[0-9]{1,6}[KMG]?B", text):
        raise _bad(f"{text[:40]!r} is no size of huge pages, such as 2MB")
    return text


def _set(values: Json) -> Json:
    return {key: value for key, value in values.items() if value}


# ---- containers ----


def member_options(request: pb.CreateContainerRequest, pod: PodOptions) -> MemberOptions:
    """What CreateContainer asks. `pod`: as it was made; what the request says of it is not read."""
    config = _container_config(request)
    linux = config.linux
    return MemberOptions(
        name=config.metadata.name, attempt=config.metadata.attempt,
        image=config.image.image, user_image=config.image.user_specified_image,
        command=tuple(config.command), args=tuple(config.args), workdir=config.working_dir,
        env=tuple(_variable(pair) for pair in config.envs),
        mounts=tuple(_mount(mount) for mount in config.mounts),
        devices=tuple(_device(device) for device in config.devices),
        cdi=tuple(device.name for device in config.CDI_devices),
        labels=dict(config.labels), annotations=dict(config.annotations),
        log=_log_path(pod.log_directory, config.log_path),
        stdin=config.stdin, stdin_once=config.stdin_once, tty=config.tty,
        stop_signal=_signal(config.stop_signal),
        security=_security(linux.security_context, pod),
        resources=resources(linux.resources),
        oom_score_adj=linux.resources.oom_score_adj if linux.HasField("resources") else None,
    )  # fmt: skip


def _container_config(request: pb.CreateContainerRequest) -> pb.ContainerConfig:
    config = request.config
    if not request.HasField("config"):
        raise _bad("the request has no config")
    if not config.metadata.name:
        raise _bad("the container's config has no metadata with a name")
    if not config.image.image:
        raise _bad("the container's config names no image")
    return config


def _variable(pair: pb.KeyValue) -> str:
    if not pair.key or "=" in pair.key or "\0" in pair.key or b"\0" in pair.value:
        raise _bad(f"{pair.key[:80]!r} is no name of an environment variable, or its value has a NUL")
    return f"{pair.key}={os.fsdecode(pair.value)}"


def _log_path(directory: str, path: str) -> str:
    """The log's file. What asks for a place outside of the pod's directory is refused."""
    if not directory or not path:
        return ""
    if path.startswith("/") or ".." in path.split("/") or not path.isprintable() or path.endswith("/"):
        raise _bad(f"log_path must be a file below the pod's log directory, not {path[:200]!r}")
    return os.path.join(directory, os.path.normpath(path))


def _mount(mount: pb.Mount) -> PodMount:
    if not mount.container_path.startswith("/") or "\0" in mount.container_path + mount.host_path:
        raise _bad(f"a mount's path in the container must be absolute, not {mount.container_path[:200]!r}")
    image = mount.image.image
    if bool(image) == bool(mount.host_path):
        raise _bad(f"the mount on {mount.container_path[:200]} needs either a host path or an image")
    if mount.image_sub_path and not image:
        raise _bad(f"the mount on {mount.container_path[:200]} has a path in an image, and no image")
    if not image and not mount.host_path.startswith("/"):
        raise _bad(f"the host path of a mount must be absolute, not {mount.host_path[:200]!r}")
    return PodMount(
        target=mount.container_path, source=mount.image_sub_path if image else mount.host_path,
        readonly=mount.readonly, recursive_readonly=mount.recursive_read_only,
        propagation=_known(_PROPAGATION, mount.propagation, "a mount's propagation"), relabel=mount.selinux_relabel,
        uids=_id_maps(mount.uidMappings), gids=_id_maps(mount.gidMappings), image=image, options=_flags(mount),
    )  # fmt: skip


def _flags(mount: pb.Mount) -> tuple[str, ...]:
    found = tuple(mount.mount_options)
    if unknown := set(found) - _MOUNT_OPTIONS:
        raise _bad(f"mount option {min(unknown)[:40]!r} is not one of {', '.join(sorted(_MOUNT_OPTIONS))}")
    return found


def _device(device: pb.Device) -> tuple[str, str, str]:
    access = device.permissions or "rwm"
    if not device.host_path.startswith("/") or set(access) - set("rwm"):
        raise _bad(f"a device needs an absolute path and rwm, not {device.host_path[:200]!r} and {access[:9]!r}")
    return device.host_path, device.container_path or device.host_path, access


def _signal(number: int) -> str:
    """The CRI numbers signals by names of its own: SIGNAL_SIGRTMINPLUS3 is SIGRTMIN+3."""
    if number == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    if number not in pb.Signal.values():
        raise _bad(f"there is no stop signal {number}")
    return pb.Signal.Name(number).removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-")


def stop_signal(name: str) -> pb.Signal:
    """The CRI's number of a signal's name (SIGTERM, TERM, SIGRTMIN+3); SIGNAL_RUNTIME_DEFAULT if it has none."""
    word = name.upper().removeprefix("SIG").replace("+", "PLUS").replace("-", "MINUS")
    number: pb.Signal = _SIGNALS.get(f"SIGNAL_SIG{word}", pb.SIGNAL_RUNTIME_DEFAULT)
    return number


def _security(asked: pb.LinuxContainerSecurityContext, pod: PodOptions) -> PodSecurity:
    capabilities = asked.capabilities
    group = _group(asked)
    apart = bool(pod.uids)
    return PodSecurity(
        user=_user(asked), group=group, groups=tuple(_an_id(found, "group") for found in asked.supplemental_groups),
        groups_policy=_known(_POLICIES, asked.supplemental_groups_policy, "supplemental_groups_policy"),
        privileged=asked.privileged, cap_add=tuple(capabilities.add_capabilities),
        cap_drop=tuple(capabilities.drop_capabilities), cap_ambient=tuple(capabilities.add_ambient_capabilities),
        readonly_root=asked.readonly_rootfs, no_new_privileges=asked.no_new_privs,
        seccomp="unconfined" if asked.privileged else _seccomp(asked), apparmor=_apparmor(asked),
        selinux=_selinux(asked.selinux_options),
        masked_paths=_paths(asked.masked_paths, apart), readonly_paths=_paths(asked.readonly_paths, apart),
        pid=_pid(asked, pod),
    )  # fmt: skip


def _paths(asked: Iterable[str], apart: bool) -> tuple[str, ...] | None:
    """Kubernetes lets a container go without masks (procMount: Unmasked) only in a user namespace of its pod, so where
    none are named outside of one they were forgotten, and the default's are taken."""
    found = tuple(asked)
    return found if found or apart else None


def _an_id(value: int, what: str) -> int:
    if not 0 <= value <= _ID_MAX:
        raise _bad(f"a {what} id is out of range: {value}")
    return value


def _user(asked: pb.LinuxContainerSecurityContext) -> str:
    if asked.HasField("run_as_user"):
        return str(_an_id(asked.run_as_user.value, "user"))
    return asked.run_as_username


def _group(asked: pb.LinuxContainerSecurityContext) -> int | None:
    if not asked.HasField("run_as_group"):
        return None
    if not asked.HasField("run_as_user") and not asked.run_as_username:
        raise _bad("run_as_group needs run_as_user or run_as_username")
    return _an_id(asked.run_as_group.value, "group")


def _seccomp(asked: pb.LinuxContainerSecurityContext) -> str:
    if asked.HasField("seccomp"):
        profile = asked.seccomp
        kinds: Mapping[Any, Callable[[], str]] = {
            pb.SecurityProfile.RuntimeDefault: lambda: "default",
            pb.SecurityProfile.Unconfined: lambda: "unconfined",
            pb.SecurityProfile.Localhost: lambda: _profile_path(profile.localhost_ref),
        }
        return _known(kinds, profile.profile_type, "the kind of a seccomp profile")()
    words = {"": "unconfined", "unconfined": "unconfined", "runtime/default": "default", "docker/default": "default"}
    old = asked.seccomp_profile_path
    return words[old] if old in words else _profile_path(old)


def _profile_path(text: str) -> str:
    path = text.removeprefix("localhost/")
    if not path.startswith("/") or "\0" in path:
        raise _bad(f"a seccomp profile of the host needs an absolute path, not {text[:200]!r}")
    return path


def _apparmor(asked: pb.LinuxContainerSecurityContext) -> str:
    if asked.HasField("apparmor"):
        profile = asked.apparmor
        kinds: Mapping[Any, Callable[[], str]] = {
            pb.SecurityProfile.RuntimeDefault: lambda: "",
            pb.SecurityProfile.Unconfined: lambda: "unconfined",
            pb.SecurityProfile.Localhost: lambda: _profile_name(profile.localhost_ref),
        }
        return _known(kinds, profile.profile_type, "the kind of an AppArmor profile")()
    words = {"": "", "runtime/default": "", "unconfined": "unconfined"}
    old = asked.apparmor_profile
    return words[old] if old in words else _profile_name(old)


def _profile_name(text: str) -> str:
    name = text.removeprefix("localhost/")
    if not name or not name.isprintable():
        raise _bad(f"{text[:200]!r} is no name of an AppArmor profile")
    return name


def _pid(asked: pb.LinuxContainerSecurityContext, pod: PodOptions) -> str:
    """Whose pid namespace; who says nothing takes what the pod asked for."""
    if not asked.HasField("namespace_options"):
        return pod.pid
    spaces = asked.namespace_options
    if spaces.pid == pb.TARGET:
        return f"target:{identity(spaces.target_id, 'container')}"
    return _known(_PID, spaces.pid, "the pid namespace of a container")


def command(words: Iterable[str]) -> tuple[str, ...]:
    """A command to run."""
    found = tuple(words)
    if not found or not found[0]:
        raise _bad("the request has no command")
    if any("\0" in word for word in found):
        raise _bad("a word of the command has a NUL")
    return found
