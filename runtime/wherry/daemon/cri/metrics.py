"""RuntimeService: metrics of pods and containers, by the names that cAdvisor gave them and dashboards ask for.

Decides which are told: those that this host counts. A figure that the kernel does not count is left out, never zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.engine.pods.values import Member, Pod, Usage

from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Metrics", "of_container", "of_pod"]

_BASE = ("id", "name", "image", "container", "pod", "namespace")
_SECOND = 1_000_000_000


_C, _G = pb.COUNTER, pb.GAUGE
_Read = Callable[[Usage, Member | None], list[tuple[tuple[str, ...], int | None]]]


class _Row(NamedTuple):
    """One metric. `read`: pairs of further labels' values and a number; None: it is not counted here."""

    name: str
    help: str
    kind: int
    read: _Read
    labels: tuple[str, ...] = ()


def _one(value: int | None) -> list[tuple[tuple[str, ...], int | None]]:
    return [((), value)]


def _limit(member: Member | None, part: str, key: str) -> int | None:
    found = member.options.resources.get(part, {}).get(key) if member else None
    return found if isinstance(found, int) and found > 0 else None


def _waited(used: Usage, what: str, kind: str) -> int | None:
    total = used.pressure.get(what, {}).get(kind, {}).get("total")
    return None if total is None else int(total) // 1_000_000


def _faults(used: Usage, _: Member | None) -> list[tuple[tuple[str, ...], int | None]]:
    minor, major = used.memory_faults or (None, None)
    return [(("pgfault", "container"), minor), (("pgmajfault", "container"), major)]


def _link(position: int) -> _Read:
    return lambda used, _: [((str(link[0]),), int(link[position])) for link in used.interfaces if link[0] != "lo"]


def _detail(name: str, help_: str, kind: int, key: str, divisor: int = 1) -> _Row:
    def read(used: Usage, _: Member | None) -> list[tuple[tuple[str, ...], int | None]]:
        found = used.details.get(key)
        return _one(None if found is None else found // divisor)

    return _Row(name, help_, kind, read)


def _pressure(what: str, kind: str) -> _Row:
    word, who = ("waiting", "some process") if kind == "some" else ("stalled", "every process")
    return _Row(
        f"container_pressure_{what}_{word}_seconds_total", f"Time in which {who} waited for {what}, in seconds", _C,
        lambda used, _: _one(_waited(used, what, kind)),
    )  # fmt: skip


def _packets(position: int) -> _Read:
    return lambda used, _: [((name,), found[position]) for name, found in used.packets.items() if name != "lo"]


def _room(field: str) -> _Read:
    """Of statvfs(3). Bytes are blocks of the size that they are counted in."""

    def read(used: Usage, _: Member | None) -> list[tuple[tuple[str, ...], int | None]]:
        if not used.disk_at:
            return []
        found = os.statvfs(used.disk_at)
        return [((used.disk_at,), getattr(found, field) * (found.f_frsize if field == "f_blocks" else 1))]

    return read


def _blocks(used: Usage, _: Member | None) -> list[tuple[tuple[str, ...], int | None]]:
    told: list[tuple[tuple[str, ...], int | None]] = []
    for device, counted in used.devices.items():
        for operation, value in zip(("Read", "Write"), counted, strict=True):
            told.append(((f"/dev/block/{device}", *device.split(":", 1), operation), value))
    return told


_OF_BOTH = (
    _Row("container_cpu_usage_seconds_total", "CPU time used, in seconds", _C,
         lambda u, _: _one(None if u.cpu_ns is None else u.cpu_ns // _SECOND)),
    _Row("container_memory_working_set_bytes", "Memory in use less inactive file pages", _G,
         lambda u, _: _one(u.memory)),
    _Row("container_memory_usage_bytes", "Memory in use, whenever it was last touched", _G,
         lambda u, _: _one(u.memory_usage)),
    _Row("container_memory_rss", "Anonymous memory", _G, lambda u, _: _one(u.memory_rss)),
    _Row("container_memory_swap", "Swap in use", _G, lambda u, _: _one(u.swap)),
    _Row("container_memory_failures_total", "Page faults", _C, _faults, ("failure_type", "scope")),
    _Row("container_threads", "Threads", _G, lambda u, _: _one(u.pids)),
    *(_detail(*row) for row in (
        ("container_processes", "Processes", _G, "processes"),
        ("container_threads_max", "Limit of threads", _G, "threads_max"),
        ("container_file_descriptors", "Open descriptors", _G, "descriptors"),
        ("container_sockets", "Open sockets", _G, "sockets"),
        ("container_cpu_user_seconds_total", "CPU time used in user mode, in seconds", _C, "cpu_user_ns", _SECOND),
        ("container_cpu_system_seconds_total", "CPU time used by the kernel, in seconds", _C, "cpu_system_ns", _SECOND),
        ("container_cpu_cfs_periods_total", "Periods of the CPU limit", _C, "periods"),
        ("container_cpu_cfs_throttled_periods_total", "Periods in which it was throttled", _C, "throttled_periods"),
        ("container_cpu_cfs_throttled_seconds_total", "Time in which it was throttled, in seconds", _C, "throttled_ns",
         _SECOND),
        ("container_memory_cache", "Memory of the page cache", _G, "cache"),
        ("container_memory_mapped_file", "Memory of mapped files", _G, "mapped"),
        ("container_memory_kernel_usage", "Memory of the kernel", _G, "kernel"),
        ("container_memory_failcnt", "Times that the limit of memory was hit", _C, "limit_hits"),
        ("container_memory_max_usage_bytes", "The most memory that was in use", _G, "memory_peak"),
        ("container_oom_events_total", "Processes killed for want of memory", _C, "oom_kills"),
        ("container_fs_reads_bytes_total", "Bytes read from devices", _C, "read_bytes"),
        ("container_fs_writes_bytes_total", "Bytes written to devices", _C, "written_bytes"),
        ("container_fs_reads_total", "Reads from devices", _C, "reads"),
        ("container_fs_writes_total", "Writes to devices", _C, "writes"),
    )),
    _Row("container_last_seen", "When these figures were read, unix seconds", _G, lambda u, _: _one(int(u.time))),
    *(_pressure(what, kind) for what in ("cpu", "memory", "io") for kind in ("some", "full")),
)  # fmt: skip
_OF_CONTAINERS = (
    _Row("container_fs_usage_bytes", "Bytes of the writable layer", _G,
         lambda u, _: [((u.disk_at,), u.disk[0])] if u.disk else [], ("device",)),
    _Row("container_fs_limit_bytes", "Size of the file system of the writable layer", _G, _room("f_blocks"),
         ("device",)),
    _Row("container_fs_inodes_total", "Inodes of the file system of the writable layer", _G, _room("f_files"),
         ("device",)),
    _Row("container_fs_inodes_free", "Free inodes of the file system of the writable layer", _G, _room("f_ffree"),
         ("device",)),
    _Row("container_blkio_device_usage_total", "Bytes read from and written to devices", _C, _blocks,
         ("device", "major", "minor", "operation")),
    _Row("container_start_time_seconds", "When it was started, unix seconds", _G,
         lambda _, m: _one(int(m.started) if m and m.started else None)),
    _Row("container_spec_cpu_period", "Period of the CPU limit, in microseconds", _G,
         lambda _, m: _one(_limit(m, "cpu", "period"))),
    _Row("container_spec_cpu_quota", "CPU time in each period, in microseconds", _G,
         lambda _, m: _one(_limit(m, "cpu", "quota"))),
    _Row("container_spec_cpu_shares", "Share of the CPU", _G, lambda _, m: _one(_limit(m, "cpu", "shares"))),
    _Row("container_spec_memory_limit_bytes", "Limit of memory", _G, lambda _, m: _one(_limit(m, "memory", "limit"))),
    _Row("container_spec_memory_swap_limit_bytes", "Limit of memory and swap", _G,
         lambda _, m: _one(_limit(m, "memory", "swap"))),
)  # fmt: skip
_OF_PODS = (
    _Row("container_network_receive_bytes_total", "Bytes received", _C, _link(1), ("interface",)),
    _Row("container_network_receive_errors_total", "Errors while receiving", _C, _link(2), ("interface",)),
    _Row("container_network_transmit_bytes_total", "Bytes sent", _C, _link(3), ("interface",)),
    _Row("container_network_transmit_errors_total", "Errors while sending", _C, _link(4), ("interface",)),
    _Row("container_network_receive_packets_total", "Packets received", _C, _packets(0), ("interface",)),
    _Row("container_network_receive_packets_dropped_total", "Packets dropped that came", _C, _packets(1),
         ("interface",)),
    _Row("container_network_transmit_packets_total", "Packets sent", _C, _packets(2), ("interface",)),
    _Row("container_network_transmit_packets_dropped_total", "Packets dropped that were to be sent", _C, _packets(3),
         ("interface",)),
)


def _metrics(
    rows: Sequence[_Row], used: Usage, member: Member | None, base: tuple[str, ...]
) -> Iterator[pb.Metric]:
    when = int(used.time * _SECOND)
    for row in rows:
        for labels, value in row.read(used, member):
            if value is not None:
                yield pb.Metric(
                    name=row.name, timestamp=when, metric_type=row.kind,  # type: ignore[arg-type]
                    label_values=[*base, *labels], value=pb.UInt64Value(value=max(0, value)),
                )  # fmt: skip


def of_pod(pod: Pod, used: Usage | None) -> list[pb.Metric]:
    """Of a pod as a whole."""
    base = (pod.id, pod.id, "", "", pod.options.name, pod.options.namespace)
    return list(_metrics((*_OF_BOTH, *_OF_PODS), used or Usage(time.time()), None, base))


def of_container(pod: Pod, member: Member, used: Usage | None) -> list[pb.Metric]:
    """Of one container."""
    asked = member.options
    image, whose = asked.user_image or asked.image, pod.options
    base = (member.cgroup, member.id, image, asked.name, whose.name, whose.namespace)
    used = used or Usage(time.time())
    return [*_metrics(_OF_BOTH, used, member, base), *_metrics(_OF_CONTAINERS, used, member, base)]


class Metrics:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._catalog = parts, parts.engine, parts.catalog

    async def ListMetricDescriptors(
        self, _request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """Which metrics there are."""
        rows = (*_OF_BOTH, *_OF_CONTAINERS, *_OF_PODS)
        return pb.ListMetricDescriptorsResponse(descriptors=[
            pb.MetricDescriptor(name=row.name, help=row.help, label_keys=[*_BASE, *row.labels]) for row in rows
        ])  # fmt: skip

    async def ListPodSandboxMetrics(
        self, _request: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        """Those of all ready pods."""
        return pb.ListPodSandboxMetricsResponse(pod_metrics=await self._all())

    async def StreamPodSandboxMetrics(
        self, _request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        """The same, pod by pod."""
        for found in await self._all():
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[found])

    async def _all(self) -> list[pb.PodSandboxMetrics]:
        await self._catalog.fresh()
        pods = [entry.value for entry in self._catalog.pods() if entry.value.ready]
        members: dict[str, list[Member]] = {pod.id: [] for pod in pods}
        for entry in self._catalog.members():
            if entry.value.pod in members and entry.value.state == "running":
                members[entry.value.pod].append(entry.value)
        return await self._parts.work.look(self._read, pods, members)

    def _read(self, pods: list[Pod], members: dict[str, list[Member]]) -> list[pb.PodSandboxMetrics]:
        if not pods:
            return []
        used = self._engine.usage([*members, *(m.id for found in members.values() for m in found)], detailed=True)
        return [
            pb.PodSandboxMetrics(
                pod_sandbox_id=pod.id, metrics=of_pod(pod, used.get(pod.id)),
                container_metrics=[
                    pb.ContainerMetrics(container_id=m.id, metrics=of_container(pod, m, used.get(m.id)))
                    for m in members[pod.id]
                ],
            )
            for pod in pods
        ]  # fmt: skip
