"""Namespaces, id maps and the clone: which namespace is new, joined or kept, and on which side it is entered.

Who joins where: the pid namespace on the host side (it only takes effect for children) and left again after the
clone; with
a new user namespace also every other joined one (the child would lack the rights over them); all others in the child.
"""

from typing import Final, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci.compile_builder import Builder
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow

__all__ = [
    "CLONE_BITS",
    "Namespaces",
    "become_root",
    "clone",
    "enter",
    "id_map",
    "map_slot",
    "mapped",
    "namespaces",
    "on_host",
]

#: runtime-spec type -> (CLONE_NEW* of linux/sched.h, name below /proc/<pid>/ns)
CLONE_BITS: Final[dict[str, tuple[int, str]]] = {
    "user": (0x10000000, "user"),
    "ipc": (0x08000000, "ipc"),
    "uts": (0x04000000, "uts"),
    "network": (0x40000000, "net"),
    "cgroup": (0x02000000, "cgroup"),
    "time": (0x00000080, "time"),
    "pid": (0x20000000, "pid"),
    "mount": (0x00020000, "mnt"),
}
#: made by the child after the clone: the cgroup namespace takes its root from the cgroup that its maker is in, and
#: the time
#: namespace needs its offsets before anyone is in it (time_namespaces(7))
_LATE = ("cgroup", "time")
O_PATH_DIRECTORY = 0o10000000 | 0o200000 | 0o2000000  # O_PATH | O_DIRECTORY | O_CLOEXEC
O_RDONLY_CLOEXEC = 0o2000000


class Namespaces(NamedTuple):
    """The namespaces of one container: `new` are made, `joined` maps a type to the slot of its descriptor.

    `powerless`: the caller's rights over what is joined come with the user namespace, thus in the child.
    """

    new: frozenset[str]
    joined: dict[str, int]
    paths: dict[str, str]
    powerless: bool = False

    def has(self, kind: str) -> bool:
        """Not the caller's own one."""
        return kind in self.new or kind in self.joined

    @property
    def user(self) -> bool:
        """The container has another user namespace than the host."""
        return self.has("user")


def namespaces(config: Json, how: LaunchHow, b: Builder) -> Namespaces:
    """Sort linux.namespaces; slots for the joined ones are the launcher's or fresh."""
    new, joined, paths = set(), {}, {}
    for entry in config.get("linux", {}).get("namespaces") or []:
        kind, path = entry["type"], entry.get("path", "")
        slot_name = how.namespace_slots.get(kind, "")
        if slot_name:
            joined[kind], paths[kind] = b.inherited_slot(slot_name), ""
        elif path:
            joined[kind], paths[kind] = b.slot(), path
        else:
            new.add(kind)
    result = Namespaces(frozenset(new), {kind: joined[kind] for kind in CLONE_BITS if kind in joined}, paths)
    _check(result)
    return result


def _check(ns: Namespaces) -> None:
    if "user" in ns.new and "mount" in ns.joined:
        raise WherryError(Kind.UNSUPPORTED, "linux.namespaces: a new user namespace cannot join a mount namespace")


def _mask(kinds: tuple[str, ...] | list[str]) -> int:
    return sum(CLONE_BITS[kind][0] for kind in kinds)


def _host_joins(ns: Namespaces) -> list[str]:
    """Joined namespaces that the host side enters for the clone."""
    if "user" in ns.new:
        return list(ns.joined)
    return [kind for kind in ns.joined if kind == "pid" and not ns.powerless]


def _clone_kinds(ns: Namespaces) -> list[str]:
    """Namespaces made by the clone itself. Below a joined user namespace only the child, once inside, can own new
    ones."""
    if "user" in ns.joined:
        return []
    return [kind for kind in CLONE_BITS if kind in ns.new and kind not in _LATE]


def _reborn(ns: Namespaces) -> bool:
    """A pid namespace below a joined user namespace: only the child, once inside, can make it (or, of a powerless
    caller, join it), and only its own child is in it."""
    return "user" in ns.joined and ("pid" in ns.new or (ns.powerless and "pid" in ns.joined))


def clone(ns: Namespaces, cgroup_slot: int, b: Builder) -> None:
    """Open what is joined, clone, go back."""
    for kind, path in ns.paths.items():
        if path:
            b.host("OPEN", fd0=ns.joined[kind], s0=path, n0=O_RDONLY_CLOEXEC)
    back = []
    for kind in _host_joins(ns):
        bit, name = CLONE_BITS[kind]
        own = b.slot()
        b.host("OPEN", fd0=own, s0=f"/proc/self/ns/{name}", n0=O_RDONLY_CLOEXEC)
        b.host("SETNS", fd0=ns.joined[kind], n0=bit, s0=kind)
        back.append((kind, own))
    kinds = _clone_kinds(ns)
    b.host("CLONE", n0=_mask(kinds), fd0=cgroup_slot, s0=" ".join(kinds) or "no new namespaces")
    for kind, own in reversed(back):
        b.host("SETNS", fd0=own, n0=CLONE_BITS[kind][0], s0=f"{kind} of the host")
    if _reborn(ns):
        b.host("REBORN", s0="pid")


def enter(config: Json, ns: Namespaces, b: Builder) -> None:
    """The child's part: join what is joined here, unshare what the clone could not make. Time has its own function."""
    inside = [kind for kind in ns.joined if kind not in _host_joins(ns)]
    if "user" in inside:
        b.child("SETNS", fd0=ns.joined["user"], n0=CLONE_BITS["user"][0], s0="user")
    become_root(config, ns, b)
    if _reborn(ns):
        b.child("REBORN", n0=CLONE_BITS["pid"][0], s0="pid")
    for kind in inside:
        if kind != "user":
            b.child("SETNS", fd0=ns.joined[kind], n0=CLONE_BITS[kind][0], s0=kind)
    made = ("time", *_clone_kinds(ns), *(["pid"] if _reborn(ns) else []))
    late = [kind for kind in CLONE_BITS if kind in ns.new and (kind == "cgroup" or kind not in made)]
    if late:
        b.child("UNSHARE", n0=_mask(late), s0=" ".join(late))


def time_namespace(config: Json, ns: Namespaces, b: Builder) -> None:
    """A new time namespace: unshare, offsets by the host side, then enter it (a fork would enter it otherwise)."""
    if "time" not in ns.new:
        return
    b.child("UNSHARE", n0=CLONE_BITS["time"][0], s0="time")
    offsets = config["linux"].get("timeOffsets") or {}
    if offsets:
        b.sync("time")
        lines = [
            f"{clock} {value.get('secs', 0)} {value.get('nanosecs', 0)}" for clock, value in sorted(offsets.items())
        ]
        b.host("PROC_WRITE", s0="timens_offsets", s1="\n".join(lines) + "\n")
        b.sync("timed")
    slot = b.slot()
    b.child("OPEN", fd0=slot, s0="/proc/self/ns/time_for_children", n0=O_RDONLY_CLOEXEC)
    b.child("SETNS", fd0=slot, n0=CLONE_BITS["time"][0], s0="time")


def id_map(entries: list[Json]) -> str:
    """The text of uid_map for the runtime-spec's mappings."""
    return "".join(f"{e['containerID']} {e['hostID']} {e['size']}\n" for e in entries)


def write_maps(config: Json, facts: HostFacts, ns: Namespaces, b: Builder) -> None:
    """Maps of a new user namespace, written by the host side while the child waits."""
    if "user" not in ns.new:
        return
    linux = config["linux"]
    for name, tool, cap, own_id in (
        ("gid_map", facts.newgidmap, "CAP_SETGID", facts.egid),
        ("uid_map", facts.newuidmap, "CAP_SETUID", facts.euid),
    ):
        entries = linux.get("uidMappings" if name == "uid_map" else "gidMappings") or []
        if facts.has_cap(cap):
            b.host("PROC_WRITE", s0=name, s1=id_map(entries))
        elif _own_id_only(entries, own_id):
            if name == "gid_map":  # user_namespaces(7): without CAP_SETGID the map is refused until setgroups is denied
                b.host("PROC_WRITE", s0="setgroups", s1="deny")
            b.host("PROC_WRITE", s0=name, s1=id_map(entries))
        elif tool:
            args = tuple(str(e[key]) for e in entries for key in ("containerID", "hostID", "size"))
            b.host("RUN_MAP", s0=tool, s1=args, n0=len(args))
        else:
            raise WherryError(
                Kind.PRECONDITION,
                f"{name}: mapping several ids without {cap} needs new{name[:3]}map",
                hint="install the package uidmap",
            )
    b.sync("maps")


def _own_id_only(entries: list[Json], own_id: int) -> bool:
    return len(entries) == 1 and entries[0]["size"] == 1 and entries[0]["hostID"] == own_id


def setgroups_denied(config: Json, facts: HostFacts, ns: Namespaces) -> bool:
    """Supplementary groups cannot be set: the maps were written without rights."""
    entries = config.get("linux", {}).get("gidMappings") or []
    return ns.user and not facts.has_cap("CAP_SETGID") and _own_id_only(entries, facts.egid)


def map_slot(entry: Json) -> str:
    """The inherited slot of a user namespace that lends its maps: "idmap=C:H:N[/...],C:H:N[/...]" (uids, gids)."""

    def text(key: str) -> str:
        return "/".join(f"{e['containerID']}:{e['hostID']}:{e['size']}" for e in entry[key])

    return f"idmap={text('uidMappings')},{text('gidMappings')}"


def mapped(config: Json, number: int, key: str = "uidMappings") -> bool:
    """Whether the container's id `number` has a host id. Without mappings (a joined namespace) it is taken to have
    one."""
    entries = config.get("linux", {}).get(key) or []
    return not entries or any(0 <= number - e["containerID"] < e["size"] for e in entries)


def on_host(ns: Namespaces, facts: HostFacts) -> bool:
    """Whether mounts are prepared on the host side: the child will be nobody there, and the helper has the rights."""
    return ns.user and facts.has_cap("CAP_SYS_ADMIN")


def become_root(config: Json, ns: Namespaces, b: Builder) -> None:
    """Inside another user namespace the child is nobody until it takes an id: files that it makes need an owner."""
    if not ns.user:
        return
    if mapped(config, 0, "gidMappings"):
        b.child("GID", n0=0)
    if mapped(config, 0):
        b.child("UID", n0=0)
