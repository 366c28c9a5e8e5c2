"""Which plugin has set what: two that set the same are a conflict, unless the later one says that it takes it away
first. Pure."""

from __future__ import annotations

from wherry.errors import Kind, WherryError

from . import api_pb2 as pb

__all__ = ["Owners", "removed"]

#: field of a message -> what it is called in the book
_MEMORY = {
    "limit": pb.MemLimit, "reservation": pb.MemReservation, "swap": pb.MemSwapLimit, "kernel": pb.MemKernelLimit,
    "kernel_tcp": pb.MemTCPLimit, "swappiness": pb.MemSwappiness, "disable_oom_killer": pb.MemDisableOomKiller,
    "use_hierarchy": pb.MemUseHierarchy,
}  # fmt: skip
_CPU = {
    "shares": pb.CPUShares, "quota": pb.CPUQuota, "period": pb.CPUPeriod, "realtime_runtime": pb.CPURealtimeRuntime,
    "realtime_period": pb.CPURealtimePeriod, "cpus": pb.CPUSetCPUs, "mems": pb.CPUSetMems,
}  # fmt: skip
_REST = {"blockio_class": pb.BlockioClass, "rdt_class": pb.RdtClass, "pids": pb.PidsLimit}
_MARK = "-"


def removed(name: str) -> str:
    """What a name that is marked as to be removed stands for; "" for one that is not."""
    return name[1:] if name.startswith(_MARK) else ""


class Owners:
    """The book, for one event. `book` is the message that validators get."""

    def __init__(self) -> None:
        self.book = pb.OwningPlugins()

    def claim(self, container: str, field: int, plugin: str, key: str = "") -> None:
        """The plugin sets it; CONFLICT where another one has. `key`: of fields that are sets, which of it."""
        other = self._owner(container, field, key)
        if other not in ("", plugin, _MARK + plugin):
            what = f"{pb.Field.Name(field)} {key[:200]}".rstrip()
            message = f"plugins {other.removeprefix(_MARK)} and {plugin} both set {what} of {container[:12]}"
            raise WherryError(Kind.CONFLICT, message, hint="what a plugin does not own is for another one to set")
        self._write(container, field, key, plugin)

    def clear(self, container: str, field: int, plugin: str, key: str = "") -> None:
        """The plugin takes away what others have set; it is its own now."""
        self._write(container, field, key, _MARK + plugin)

    def add(self, container: str, field: int, plugin: str) -> None:
        """One more that has added something; nobody has it alone."""
        other = self._owner(container, field, "")
        if plugin not in other.split(","):
            self._write(container, field, "", f"{other},{plugin}".lstrip(","))

    def claim_limits(self, container: str, plugin: str, asked: pb.LinuxResources) -> None:
        """All that is set of resources."""
        for message, names in ((asked.memory, _MEMORY), (asked.cpu, _CPU), (asked, _REST)):
            for descriptor, _ in message.ListFields():
                if descriptor.name in names:
                    self.claim(container, names[descriptor.name], plugin)
        for limit in asked.hugepage_limits:
            self.claim(container, pb.HugepageLimits, plugin, limit.page_size)
        for key in asked.unified:
            self.claim(container, pb.CgroupsUnified, plugin, key)

    def _owner(self, container: str, field: int, key: str) -> str:
        found = self.book.owners[container]
        return found.compound[field].owners.get(key, "") if key else found.simple.get(field, "")

    def _write(self, container: str, field: int, key: str, owner: str) -> None:
        found = self.book.owners[container]
        if key:
            found.compound[field].owners[key] = owner
        else:
            found.simple[field] = owner
