"""The namespaces of a pod: made, named, pinned by bind mounts, let go. No process stays behind for them.

Decides how they come to be: a thread's own unshare(2), for it takes no process, or, below a user namespace of the pod's
own (which only a process can enter, user_namespaces(7)), a child of ours that waits while we pin what it is in. Refuses
to know the network inside (network.py) and the pid namespace, which lives as long as its pause process (pause.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from wherry.engine.house import House
from wherry.engine.joining import netns_path
from wherry.kernel import files, mount
from wherry.model import Mount
from wherry.oci.facts import HostFacts
from wherry.oci.plan import Op

from . import records
from .values import IdMap, PodOptions

__all__ = ["make", "pin", "release", "set_sysctls", "shm", "shm_mount"]

_BITS: Final = {"user": 0x10000000, "ipc": 0x08000000, "uts": 0x04000000, "net": 0x40000000}  # linux/sched.h
_PING = "net.ipv4.ping_group_range"
_SHM_BYTES = 64 << 20  # docker's and the kubelet's other runtimes'
_EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH


def make(house: House, pod: str, options: PodOptions, hostname: str) -> dict[str, str]:
    """All that are not the host's: {"ipc", "uts", "user", "net"} with the files that they are pinned on. Taken back by
    `release`, also when this fails half way. Sysctls of ipc are set; those of the network are for `set_sysctls`, once
    its links are there."""
    place = f"{records.run_directory(house, pod)}/ns"
    os.makedirs(place, 0o700)
    own = [kind for kind, mode in (("ipc", options.ipc), ("uts", options.network), ("net", options.network))
           if mode == "pod"]  # fmt: skip  # who shares the host's network has its name, too
    paths = {kind: f"{place}/{kind}" for kind in own if kind != "net"}
    if "net" in own:
        paths["net"] = netns_path(house, pod)
    name = hostname if "uts" in own else ""
    sysctls = {key: value for key, value in options.sysctls.items() if not _of_network(key)}
    if options.uids:
        sysctls |= {key: value for key, value in _network_sysctls(options).items() if _of_ids(key) and "net" in own}
        paths["user"] = f"{place}/user"
        _below_user(paths, options, name, sysctls)
    else:
        _by_thread(paths, name, sysctls)
    return paths


def release(house: House, pod: str) -> None:
    """Unpin everything and remove the run directory; the kernel takes a namespace down when its last process has left.
    Absent is success."""
    from wherry.net import netns

    netns.remove(netns_path(house, pod))
    place = records.run_directory(house, pod)
    for name in ("shm", *(f"ns/{kind}" for kind in ("ipc", "uts", "user", "pid"))):
        mount.unmount(f"{place}/{name}")
    files.remove_tree(place)


def pin(source: str, path: str) -> None:
    """Bind a namespace (/proc/PID/ns/KIND) on a new file."""
    from wherry.kernel import shim

    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    fd = shim.open_tree(shim.AT_FDCWD, source, shim.OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        shim.move_mount(fd, "", shim.AT_FDCWD, path, _EMPTY_PATH)
    finally:
        os.close(fd)


def _by_thread(paths: Mapping[str, str], hostname: str, sysctls: Mapping[str, str]) -> None:
    from wherry.kernel import shim
    from wherry.net import netns

    if "net" in paths:
        netns.create(paths["net"])
    rest = [kind for kind in ("ipc", "uts") if kind in paths]

    def settle() -> None:
        if hostname:
            socket.sethostname(hostname)
        if sysctls:
            _write_sysctls(sysctls)
        for kind in rest:
            pin(f"/proc/thread-self/ns/{kind}", paths[kind])

    if rest:
        netns.in_thread(lambda: shim.unshare(sum(_BITS[kind] for kind in rest)), settle)


# ---- below a user namespace


def _below_user(paths: Mapping[str, str], options: PodOptions, hostname: str, sysctls: Mapping[str, str]) -> None:
    from wherry.container.waiting import Waiting
    from wherry.net import netns

    steps = _steps(paths, options, hostname, sysctls)
    child = Waiting("the pod's namespaces", sum(_BITS[kind] for kind in paths), steps, slots=1)
    try:
        source = f"/proc/{child.process.pid}/ns"  # its pid is its own as long as it is our child's
        for kind, path in paths.items():
            if kind == "net":
                netns.create(path, f"{source}/net")
            else:
                pin(f"{source}/{kind}", path)
    finally:
        child.end()


def _steps(paths: Mapping[str, str], options: PodOptions, hostname: str, sysctls: Mapping[str, str]) -> list[Op]:
    """The maps by us; then the child, root in there, makes its namespaces ready. The kernel lets only the root of a
    user namespace change the sysctls of its ipc namespace (ipc/ipc_sysctl.c), hence by the child."""
    from wherry.oci.compile_create import sysctl_path

    steps = [Op("FS_NEW", "H", fd0=1, s0="proc", s2="proc")] if sysctls else []
    steps += [Op("PROC_WRITE", "H", s0=name, s1=_map_text(lines))
              for name, lines in (("gid_map", options.gids), ("uid_map", options.uids))]  # fmt: skip
    steps += [Op("SYNC", "H", s0="maps"), Op("SYNC", "C", s0="maps"), Op("GID", "C", n0=0), Op("UID", "C", n0=0)]
    if hostname:
        steps.append(Op("HOSTNAME", "C", s0=hostname))
    if "net" in paths:
        steps.append(Op("LOOPBACK", "C"))
    return steps + [Op("SYSCTL", "C", fd0=1, s0=sysctl_path(key), s1=value) for key, value in sysctls.items()]


def _map_text(lines: tuple[IdMap, ...]) -> str:
    return "".join(f"{one.inside} {one.host} {one.size}\n" for one in lines)


# ---- sysctls


def set_sysctls(path: str, options: PodOptions) -> None:
    """Those of the network, in the namespace at `path`, but for those that `make` has set."""
    from wherry.net import netns

    left = {key: value for key, value in _network_sysctls(options).items() if not (options.uids and _of_ids(key))}
    netns.inside(path, lambda: _write_sysctls(left))


def _network_sysctls(options: PodOptions) -> dict[str, str]:
    """What is asked, and docker's and containerd's defaults, by which low ports and ping need no capability there."""
    last = min((one.size - 1 for one in options.gids if one.inside == 0), default=2147483647)
    usual = {"net.ipv4.ip_unprivileged_port_start": "0", _PING: f"0 {min(last, 2147483647)}"}
    return {**usual, **{key: value for key, value in options.sysctls.items() if _of_network(key)}}


def _of_ids(key: str) -> bool:
    """Whether its values are ids of the writer's user namespace: then a process in the pod's must write it."""
    return key.replace("/", ".") == _PING


def _of_network(key: str) -> bool:
    return key.startswith(("net.", "net/"))


def _write_sysctls(sysctls: Mapping[str, str]) -> None:
    """In this thread's namespaces, through a procfs of our own that nobody else sees (invariant 4)."""
    from wherry.errors import Kind, WherryError
    from wherry.oci.compile_create import sysctl_path

    with mount.opened([Mount("proc", "proc", "/")]) as procfs:
        for key, value in sysctls.items():
            try:
                fd = files.open_beneath(procfs, f"sys/{sysctl_path(key)}", os.O_WRONLY)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)
            except OSError as error:
                hint = "this kernel does not have it" if isinstance(error, FileNotFoundError) else ""
                message = f"sysctl {key} = {value[:80]} of the pod: {error.strerror}"
                raise WherryError(Kind.INVALID, message, hint=hint) from error


# ---- /dev/shm


def shm(house: House, pod: str, options: PodOptions) -> str:
    """The tmpfs that is /dev/shm of all its containers, owned by the pod's root; "" where it has the host's ipc."""
    if options.ipc == "host":
        return ""
    from wherry.kernel import shim

    path = f"{records.run_directory(house, pod)}/shm"
    os.mkdir(path, 0o700)
    with mount.opened([shm_mount(pod, options, house.facts)]) as fd:
        shim.move_mount(fd, "", shim.AT_FDCWD, path, _EMPTY_PATH)
    return path


def shm_mount(pod: str, options: PodOptions, facts: HostFacts) -> Mount:
    """What is mounted for that; where there is SELinux, all in it has the label of the pod's files."""
    owner = [f"{name}={next(one.host for one in lines if one.inside == 0)}"
             for name, lines in (("uid", options.uids), ("gid", options.gids)) if lines]  # fmt: skip
    label = []
    if facts.selinux:
        from . import security

        label = [f"context={security.mount_label(pod, options.selinux, facts)}"]
    return Mount("tmpfs", "shm", "/", ("mode=1777", f"size={_SHM_BYTES}", *owner, *label, "noexec"))
