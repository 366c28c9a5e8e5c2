"""A container of a pod as an OCI config.json (runtime-spec 1.3). Pure: everything it needs is in `Inputs`.

Decides what Kubernetes decides: which of the pod's and the image's values win, default mounts, namespaces, annotations.
Limits of processes are the caller's own: a kubelet sets none. Values of the image reach process.args, env and cwd only
(invariant 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wherry.engine import specgen
from wherry.engine.devices import NONE as NO_DEVICES
from wherry.engine.devices import Devices
from wherry.engine.users import User
from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, Json, RunOptions
from wherry.oci import defaults
from wherry.oci.facts import HostFacts

from .mounts import mappings
from .security import Confinement
from .values import Held, MemberOptions, PodOptions

__all__ = ["Inputs", "argv", "generate"]

_SHM = "/dev/" + "shm"


class Inputs(NamedTuple):
    """Everything that a config.json is made of."""

    id: str
    options: MemberOptions
    pod: PodOptions
    held: Held
    image: ImageConfig
    facts: HostFacts
    user: User
    capabilities: Json
    mounts: tuple[Json, ...] = ()  # OCI mounts, parents first
    devices: Devices = NO_DEVICES
    confinement: Confinement = Confinement()
    cgroup: str = ""


def argv(options: MemberOptions, image: ImageConfig) -> tuple[str, ...]:
    """The command line: command replaces the image's entrypoint and, without args, its cmd as well; args replace cmd
    (the CRI's ContainerConfig.command and args)."""
    given = options.command + options.args
    words = given if options.command else image.entrypoint + (options.args or image.cmd)
    if not words:
        raise WherryError(Kind.INVALID, "no command specified", hint="the image has none: give a command or args")
    return words


def generate(made: Inputs) -> Json:
    """Return the whole config.json. Namespaces of the pod are named by their paths."""
    asked = made.options.security
    return {
        "ociVersion": "1.3.0",
        "process": _process(made),
        "root": {"path": "rootfs", "readonly": asked.readonly_root},
        "mounts": _mounts(made),
        "linux": _linux(made),
        "annotations": _annotations(made),
        **_hooks(made.devices),
    }


def _hooks(devices: Devices) -> Json:
    found: dict[str, list[Json]] = {}
    for name, hook in devices.hooks:
        found.setdefault(name, []).append(hook)
    return {"hooks": found} if found else {}


def _process(made: Inputs) -> Json:
    options, user = made.options, made.user
    given = RunOptions(image="", tty=options.tty, env=options.env)
    process: Json = {
        "terminal": options.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(argv(options, made.image)),
        "env": specgen.environment(given, made.image, made.held.hostname, user, tuple(made.devices.env)),
        "cwd": _cwd(options, made.image),
        "capabilities": made.capabilities,
        "noNewPrivileges": options.security.no_new_privileges,
    }
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    if made.confinement.apparmor:
        process["apparmorProfile"] = made.confinement.apparmor
    if made.confinement.selinux[0]:
        process["selinuxLabel"] = made.confinement.selinux[0]
    return process


def _cwd(options: MemberOptions, image: ImageConfig) -> str:
    path = options.workdir or image.workdir or "/"
    if options.workdir and not path.startswith("/"):
        raise WherryError(Kind.INVALID, f'the working directory "{path}" is not an absolute path')
    return path if path.startswith("/") else f"/{path}"


# ---- mounts


def _mounts(made: Inputs) -> list[Json]:
    own = [*made.mounts, *made.devices.mounts]
    taken = {mount["destination"] for mount in own}
    base = [mount for mount in (*_base(made), *_files(made)) if mount["destination"] not in taken]
    # parents first, also where a kubelet gives /dev or /sys of the host: /dev/pts comes on top of that
    return sorted([*base, *own], key=lambda mount: mount["destination"].count("/"))


def _base(made: Inputs) -> list[Json]:
    """docker's, with the pod's /dev/shm; privileged, /sys can be written and shows all cgroups."""
    found = [mount for mount in defaults.mounts() if mount["destination"] != _SHM]
    if made.options.security.privileged:
        for mount in found:
            mount["options"] = [option for option in mount["options"] if option != "ro"]
        found = [_host_cgroups(made) if mount["type"] == "cgroup" else mount for mount in found]
    shared = made.held.shm or _SHM
    return [*found, _bound(_SHM, shared, ["nosuid", "noexec", "nodev", "rw"])]


def _host_cgroups(made: Inputs) -> Json:
    source = made.facts.cgroup_mount or "/sys/fs/cgroup"
    return _bound("/sys/fs/cgroup", source, ["nosuid", "noexec", "nodev", "rw"])


def _files(made: Inputs) -> list[Json]:
    """hosts, hostname and resolv.conf of the pod, read-only where the root is."""
    access = "ro" if made.options.security.readonly_root else "rw"
    files: Mapping[str, str] = made.held.files
    return [{**_bound(target, source, ["nosuid", "nodev", access]), **_maps(made)} for target, source in files.items()]


def _bound(target: str, source: str, options: list[str]) -> Json:
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", *options]}


def _maps(made: Inputs) -> Json:
    """Of a user namespace; with them a mount shows what is root's as the container's root's."""
    held = made.held
    return {"uidMappings": mappings(held.uids), "gidMappings": mappings(held.gids)} if held.user else {}


# ---- linux


def _namespaces(made: Inputs) -> list[Json]:
    held = made.held
    joined = {"user": held.user, "network": held.netns, "ipc": held.ipc, "uts": held.uts}
    found = [{"type": kind, "path": path} for kind, path in joined.items() if path]
    how = made.options.security.pid
    if how == "pod":
        found.append({"type": "pid", "path": held.pid} if held.pid else {"type": "pid"})
    elif how != "host":  # of its own; that of a target is only known when it starts
        found.append({"type": "pid"})
    found.append({"type": "mount"})
    if not made.options.security.privileged:
        found.append({"type": "cgroup"})
    return found


def _linux(made: Inputs) -> Json:
    masked, readonly = _paths(made)
    resources = {key: value for key, value in made.options.resources.items() if key != "devices"}
    linux: Json = {
        "namespaces": _namespaces(made),
        "resources": {**resources, "devices": [*defaults.device_rules(), *made.devices.rules]},
        "devices": made.devices.nodes,
        "cgroupsPath": made.cgroup,
        "maskedPaths": masked,
        "readonlyPaths": readonly,
        "rootfsPropagation": _propagation(made.mounts),
    }
    if made.confinement.seccomp is not None:
        linux["seccomp"] = made.confinement.seccomp
    if made.confinement.selinux[1]:
        linux["mountLabel"] = made.confinement.selinux[1]
    return linux | _maps(made)


def _paths(made: Inputs) -> tuple[list[str], list[str]]:
    asked = made.options.security
    if asked.privileged:
        return [], []
    masked = defaults.masked_paths(made.facts.thermal_cpus) if asked.masked_paths is None else asked.masked_paths
    readonly = defaults.READONLY_PATHS if asked.readonly_paths is None else asked.readonly_paths
    return list(masked), list(readonly)


def _propagation(mounts: tuple[Json, ...]) -> str:
    """What is mounted on the host later passes on only as long as the container's tree is a slave of it. Of the root
    alone: with "rslave" no mount below it could be shared."""
    words = {word for mount in mounts for word in mount["options"]}
    return "slave" if words & {"rslave", "rshared"} else "private"


def _annotations(made: Inputs) -> dict[str, str]:
    """Who it is, by the names that hooks and other runtimes look for. Those of the request stay out: a runtime may take
    them for orders."""
    key = "io.kubernetes.cri."
    return {
        f"{key}container-type": "container",
        f"{key}sandbox-id": made.held.id,
        f"{key}sandbox-name": made.pod.name,
        f"{key}sandbox-namespace": made.pod.namespace,
        f"{key}sandbox-uid": made.pod.uid,
        f"{key}container-name": made.options.name,
        f"{key}image-name": made.options.user_image or made.options.image,
    }
