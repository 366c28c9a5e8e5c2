"""The engine's values to messages. Decides how things are told to a kubelet; asks nobody. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from wherry.engine.pods.values import IdMap, Member, Pod, PodMount, Usage
from wherry.model import Json

from . import api_pb2 as pb
from .requests import stop_signal

__all__ = ["container", "container_stats", "container_status", "limits", "plain", "pod", "pod_stats", "pod_status"]

_STATES = {"created": pb.CONTAINER_CREATED, "running": pb.CONTAINER_RUNNING, "exited": pb.CONTAINER_EXITED}
_PROPAGATION = {
    "private": pb.PROPAGATION_PRIVATE,
    "rslave": pb.PROPAGATION_HOST_TO_CONTAINER,
    "rshared": pb.PROPAGATION_BIDIRECTIONAL,
}
_PID = {"pod": pb.POD, "container": pb.CONTAINER, "host": pb.NODE}
_PRESSURE_NS = 1000  # the kernel's totals are microseconds


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


# ---- pods ----


def _pod_metadata(pod: Pod) -> pb.PodSandboxMetadata:
    asked = pod.options
    return pb.PodSandboxMetadata(name=asked.name, uid=asked.uid, namespace=asked.namespace, attempt=asked.attempt)


def _pod_state(pod: Pod) -> pb.PodSandboxState:
    return pb.SANDBOX_READY if pod.ready else pb.SANDBOX_NOTREADY


def pod(found: Pod) -> pb.PodSandbox:
    """A pod in a list."""
    return pb.PodSandbox(
        id=found.id, metadata=_pod_metadata(found), state=_pod_state(found), created_at=_ns(found.created),
        labels=found.options.labels, annotations=found.options.annotations, runtime_handler=found.options.handler,
    )  # fmt: skip


def pod_status(found: Pod) -> pb.PodSandboxStatus:
    """A pod by itself. A pod of the host's network has no addresses of its own: the kubelet knows the node's."""
    asked = found.options
    made = pb.PodSandboxStatus(
        id=found.id, metadata=_pod_metadata(found), state=_pod_state(found), created_at=_ns(found.created),
        labels=asked.labels, annotations=asked.annotations, runtime_handler=asked.handler,
    )  # fmt: skip
    ips = found.ips if asked.network == "pod" else ()
    made.network.ip = ips[0] if ips else ""
    made.network.additional_ips.extend(pb.PodIP(ip=ip) for ip in ips[1:])
    options = made.linux.namespaces.options
    options.network = pb.NODE if asked.network == "host" else pb.POD
    options.pid = _PID[asked.pid]
    options.ipc = pb.NODE if asked.ipc == "host" else pb.POD
    if asked.uids:
        options.userns_options.CopyFrom(
            pb.UserNamespace(mode=pb.POD, uids=_id_maps(asked.uids), gids=_id_maps(asked.gids))
        )
    return made


def _id_maps(maps: Iterable[IdMap]) -> list[pb.IDMapping]:
    return [pb.IDMapping(container_id=inside, host_id=host, length=size) for inside, host, size in maps]


# ---- containers ----


def container(found: Member) -> pb.Container:
    """A container in a list."""
    asked = found.options
    return pb.Container(
        id=found.id, pod_sandbox_id=found.pod, metadata=_metadata(found), image=_image(found),
        image_ref=found.image_id, image_id=found.image_id, state=_STATES.get(found.state, pb.CONTAINER_UNKNOWN),
        created_at=_ns(found.created), labels=asked.labels, annotations=asked.annotations,
    )  # fmt: skip


def _metadata(found: Member) -> pb.ContainerMetadata:
    return pb.ContainerMetadata(name=found.options.name, attempt=found.options.attempt)


def _image(found: Member) -> pb.ImageSpec:
    """By what the user called it, where the kubelet told us; the rest of what it said is told as it was."""
    asked = found.options
    return pb.ImageSpec(image=asked.user_image or asked.image, user_specified_image=asked.user_image)


def container_status(found: Member) -> pb.ContainerStatus:
    """A container by itself."""
    asked = found.options
    made = pb.ContainerStatus(
        id=found.id, metadata=_metadata(found), state=_STATES.get(found.state, pb.CONTAINER_UNKNOWN),
        created_at=_ns(found.created), started_at=_ns(found.started), finished_at=_ns(found.finished),
        exit_code=found.code, image=_image(found), image_ref=found.image_id, image_id=found.image_id,
        reason=found.reason, message=found.message, labels=asked.labels, annotations=asked.annotations,
        mounts=[_mount(mount) for mount in asked.mounts], log_path=asked.log,
        stop_signal=stop_signal(asked.stop_signal or "SIGTERM"),
    )  # fmt: skip
    made.resources.linux.CopyFrom(limits(asked.resources, asked.oom_score_adj))
    user = made.user.linux
    user.uid, user.gid = found.uid, found.gid
    user.supplemental_groups.extend(found.gids)
    return made


def _mount(mount: PodMount) -> pb.Mount:
    made = pb.Mount(
        container_path=mount.target, host_path="" if mount.image else mount.source, readonly=mount.readonly,
        selinux_relabel=mount.relabel, propagation=_PROPAGATION[mount.propagation],
        uidMappings=_id_maps(mount.uids), gidMappings=_id_maps(mount.gids),
        recursive_read_only=mount.recursive_readonly, image_sub_path=mount.source if mount.image else "",
        mount_options=mount.options,
    )  # fmt: skip
    if mount.image:
        made.image.image = made.image.image_ref = mount.image
    return made


def limits(found: Json, oom_score_adj: int | None = None) -> pb.LinuxContainerResources:
    """The OCI's linux.resources as the CRI has them: the way back of `requests.resources`."""
    cpu, memory = found.get("cpu", {}), found.get("memory", {})
    return pb.LinuxContainerResources(
        cpu_period=cpu.get("period", 0), cpu_quota=cpu.get("quota", 0), cpu_shares=cpu.get("shares", 0),
        cpuset_cpus=cpu.get("cpus", ""), cpuset_mems=cpu.get("mems", ""),
        memory_limit_in_bytes=memory.get("limit", 0), memory_swap_limit_in_bytes=memory.get("swap", 0),
        hugepage_limits=[
            pb.HugepageLimit(page_size=one["pageSize"], limit=one["limit"]) for one in found.get("hugepageLimits", ())
        ],
        unified=found.get("unified", {}), oom_score_adj=oom_score_adj or 0,
    )  # fmt: skip


def plain(value: Any) -> Any:
    """Values as JSON has them, named tuples as objects: what the verbose form of a status shows."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---- what is used ----


def _number(value: int | None) -> pb.UInt64Value | None:
    return None if value is None else pb.UInt64Value(value=max(0, value))


def _psi(found: Mapping[str, Mapping[str, float]] | None) -> pb.PsiStats | None:
    return pb.PsiStats(Full=_pressure(found.get("full")), Some=_pressure(found.get("some"))) if found else None


def _pressure(found: Mapping[str, float] | None) -> pb.PsiData | None:
    if not found:
        return None
    return pb.PsiData(
        Total=int(found.get("total", 0)) * _PRESSURE_NS, Avg10=found.get("avg10", 0.0), Avg60=found.get("avg60", 0.0),
        Avg300=found.get("avg300", 0.0),
    )  # fmt: skip


def _cpu(used: Usage, when: int, rate: int | None) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=when, usage_core_nano_seconds=_number(used.cpu_ns), usage_nano_cores=_number(rate),
        psi=_psi(used.pressure.get("cpu")),
    )  # fmt: skip


def _memory(used: Usage, when: int) -> pb.MemoryUsage:
    minor, major = used.memory_faults or (None, None)
    return pb.MemoryUsage(
        timestamp=when, working_set_bytes=_number(used.memory), available_bytes=_number(used.memory_available),
        usage_bytes=_number(used.memory_usage), rss_bytes=_number(used.memory_rss), page_faults=_number(minor),
        major_page_faults=_number(major), psi=_psi(used.pressure.get("memory")),
    )  # fmt: skip


def attributes(found: Member) -> pb.ContainerAttributes:
    """Whose figures they are."""
    asked = found.options
    return pb.ContainerAttributes(
        id=found.id, metadata=_metadata(found), labels=asked.labels, annotations=asked.annotations
    )


def container_stats(used: Usage | None, rate: int | None) -> pb.ContainerStats:
    """What a container uses, less its attributes; one that does not run uses its writable layer at most. `rate`:
    nanocores."""
    used = used or Usage(time.time())
    when = _ns(used.time)
    made = pb.ContainerStats(
        cpu=_cpu(used, when, rate), memory=_memory(used, when),
        io=pb.IoUsage(timestamp=when, psi=_psi(used.pressure.get("io"))),
        swap=pb.SwapUsage(
            timestamp=when, swap_available_bytes=_number(used.swap_available), swap_usage_bytes=_number(used.swap)
        ),
    )  # fmt: skip
    if used.disk is not None:
        made.writable_layer.CopyFrom(_layer(used, when))
    return made


def _layer(used: Usage, when: int) -> pb.FilesystemUsage:
    size, inodes = used.disk or (0, 0)
    return pb.FilesystemUsage(
        timestamp=when, fs_id=pb.FilesystemIdentifier(mountpoint=used.disk_at), used_bytes=_number(size),
        inodes_used=_number(inodes),
    )  # fmt: skip


def pod_stats(found: Pod, used: Usage | None, rate: int | None, containers: Iterable[bytes]) -> pb.PodSandboxStats:
    """What a pod uses, and each of its containers (their stats as bytes)."""
    asked, used = found.options, used or Usage(time.time())
    when = _ns(used.time)
    whose = pb.PodSandboxAttributes(
        id=found.id, metadata=_pod_metadata(found), labels=asked.labels, annotations=asked.annotations
    )
    linux = pb.LinuxPodSandboxStats(
        cpu=_cpu(used, when, rate), memory=_memory(used, when), network=_network(used, when),
        process=pb.ProcessUsage(timestamp=when, process_count=_number(used.pids)),
        containers=[pb.ContainerStats.FromString(raw) for raw in containers],
        io=pb.IoUsage(timestamp=when, psi=_psi(used.pressure.get("io"))),
    )  # fmt: skip
    return pb.PodSandboxStats(attributes=whose, linux=linux)


def _network(used: Usage, when: int) -> pb.NetworkUsage:
    """The default interface is the one that CNI made: the first beside the loopback."""
    links = [
        pb.NetworkInterfaceUsage(
            name=name, rx_bytes=_number(received), rx_errors=_number(bad),
            tx_bytes=_number(sent), tx_errors=_number(lost),
        )
        for name, received, bad, sent, lost in used.interfaces
        if name != "lo"
    ]
    return pb.NetworkUsage(timestamp=when, default_interface=links[0] if links else None, interfaces=links)


