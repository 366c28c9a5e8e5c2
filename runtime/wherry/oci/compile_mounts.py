"""The root filesystem, every mount of the config, masked and read-only paths, in the config's order.

Decides what each mount is made of (a new filesystem, or a clone of a host tree) and with which attributes. Refuses to
look at
the host: whether a source exists or is a directory is found out by the helper, at execution.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Final

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import options as opt
from wherry.oci.compile_builder import inside
from wherry.oci.compile_job import Job
from wherry.oci.compile_namespaces import map_slot, mapped, on_host
from wherry.oci.how import LaunchHow
from wherry.oci.options import MountOptions

__all__ = ["Mounts", "idmap_slots"]

#: filesystems whose superblock is shared or made of nothing: "ro" is only a mount attribute of theirs
_VIRTUAL: Final[frozenset[str]] = frozenset(
    {
        "proc",
        "sysfs",
        "tmpfs",
        "devpts",
        "mqueue",
        "cgroup",
        "cgroup2",
        "overlay",
        "debugfs",
        "tracefs",
        "securityfs",
        "bpf",
        "ramfs",
        "efivarfs",
        "fusectl",
        "configfs",
        "pstore",
        "hugetlbfs",
        "binfmt_misc",
    }
)
#: filesystems that take no context= (or whose labels the kernel gives), as in runc
_UNLABELLED: Final[frozenset[str]] = frozenset({"proc", "sysfs", "mqueue", "cgroup", "cgroup2"})
#: must lie on real directories: a symlink there would move the kernel's files elsewhere (CVE-2023-27561,
#: CVE-2019-19921)
_REAL_DIR: Final[frozenset[str]] = frozenset({"proc", "sysfs"})
_MASK_OPTIONS = ("mode=555", "size=4k", "nr_inodes=2")
_MASK_ATTRS = opt.RDONLY | opt.NOSUID | opt.NODEV | opt.NOEXEC


def _mappings(mount: Json, config: Json) -> tuple[list[Json], list[Json]]:
    """uid and gid mappings of an idmapped mount: its own, else the container's (runtime-spec 1.3, idmap)."""
    linux = config.get("linux", {})
    return (
        mount.get("uidMappings") or linux.get("uidMappings") or [],
        mount.get("gidMappings") or linux.get("gidMappings") or [],
    )


def _idmap_name(mount: Json, config: Json) -> str:
    uids, gids = _mappings(mount, config)
    if not uids or not gids:
        raise WherryError(Kind.INVALID, f"mount {mount['destination']}: idmap needs uidMappings and gidMappings")

    return map_slot({"uidMappings": uids, "gidMappings": gids})


def _wants_idmap(mount: Json) -> bool:
    return bool(mount.get("uidMappings")) or bool({"idmap", "ridmap"}.intersection(mount.get("options") or []))


def idmap_slots(config: Json, how: LaunchHow) -> tuple[str, ...]:
    """Names of the inherited slots of user namespaces that lend their maps to mounts (compile_namespaces.map_slot)."""
    names = [_idmap_name(mount, config) for mount in config.get("mounts") or [] if _wants_idmap(mount)]
    if any("idmap" in mount.options for mount in how.rootfs):
        names.append(_idmap_name({"destination": "/"}, config))
    return tuple(dict.fromkeys(names))


class Mounts:
    """Compiles one container's mounts. Create one per plan; call the steps in the order of compile_create."""

    def __init__(self, job: Job) -> None:
        self.config, self.bundle, self.facts, self.how = job.config, job.bundle, job.facts, job.how
        self.ns, self.b = job.ns, job.b
        self.root = -1
        self._entries: list[tuple[Json, MountOptions]] = [
            (m, opt.parse(m.get("options") or [], f"mount {m['destination']}")) for m in job.config.get("mounts") or []
        ]
        self._label = _mount_label(job)
        for index, (_, options) in enumerate(self._entries):
            _check(index, options)
        self._cloned: dict[int, int] = {}  # index of a mount -> slot of its tree, cloned before its turn
        self._early: set[int] = set()  # those of them that the child cloned
        for index, (mount, _) in enumerate(self._entries):
            if slot := job.how.mount_slots.get(mount["destination"]):
                self._cloned[index] = self.b.inherited_slot(slot)

    # ---- trees that must be cloned before anything else

    def host_trees(self) -> None:
        """Host side, before the clone. Only the owner of a filesystem may map its ids; and with a new user namespace
        the
        child could not even reach what lies below a directory of root's own."""
        for index, (mount, options) in enumerate(self._entries):
            wants = _wants_idmap(mount)
            if wants and not self.facts.idmap:
                raise WherryError(Kind.UNSUPPORTED, f"mount {mount['destination']}: this kernel maps no ids of mounts")
            if index in self._cloned:
                continue
            if wants or (_is_bind(mount, options) and on_host(self.ns, self.facts)):
                slot = self._cloned[index] = self._host_tree(mount, options)
                if wants:
                    flags = ("RECURSIVE",) if options.ridmap else ()
                    users = self.b.inherited_slot(_idmap_name(mount, self.config))
                    self.b.host("ATTR", *flags, fd0=slot, n0=opt.IDMAP, fd1=users)

    def shared(self) -> None:
        """Child, before the propagation of "/" is cut: a clone of a shared mount is its peer only while that is."""
        self._clone_where(lambda options: options.shared)

    def trees(self) -> None:
        """Child, before the root is attached: on a host path below that, the image could put a symlink to anything."""
        self._clone_where(lambda _: True)

    def _clone_where(self, wanted: Callable[[MountOptions], bool]) -> None:
        for index, (mount, options) in enumerate(self._entries):
            if _is_bind(mount, options) and wanted(options) and index not in self._cloned:
                self._cloned[index] = self._tree(mount, options)
                self._early.add(index)

    def propagate(self) -> None:
        """Nothing that we mount may reach the host, whatever rootfsPropagation says of the container's own root."""
        wanted = self.config.get("linux", {}).get("rootfsPropagation") or "rslave"
        word = "rprivate" if wanted in {"private", "rprivate", "unbindable", "runbindable"} else "rslave"
        self.b.child("PROPAGATE", s0="/", s1=word, n0=opt.PROPAGATION[word])

    # ---- the root and the config's mounts

    def all(self) -> None:
        """Every mount in the config's order."""
        for index, (mount, options) in enumerate(self._entries):
            self._mount(index, mount, options)

    def _mount(self, index: int, mount: Json, options: MountOptions) -> None:
        target = inside(mount["destination"])
        if target == "/":
            raise WherryError(Kind.INVALID, f"mounts[{index}].destination: a mount on / would hide the root filesystem")
        if options.remount:
            self._remount(options, target)
        elif _is_bind(mount, options):
            self._attach(
                self._in_turn(index), target, "MAKE_DIR", "MAKE_FILE", options=options
            )  # both: whatever the source is
        elif mount.get("type") in {"cgroup", "cgroup2"}:
            self._attach(self._cgroup(options), target, "MAKE_DIR", options=options)
        elif mount.get("type") == "sysfs" and self._host_sysfs():
            self._attach(self._bound_sysfs(options), target, "MAKE_DIR", "REAL_DIR", options=options)
        else:
            self._new(mount, options, target)

    def _remount(self, options: MountOptions, target: str) -> None:
        """What an earlier entry mounted, changed: its superblock by the options of its file system, its mount by
        attributes. "ro" is one of those: the superblock may be the host's too."""
        nofollow = ("NOFOLLOW",) if options.target_nofollow else ()
        data, to_set, to_clear = options.data, options.attr_set, options.attr_clr
        self.b.child("REMOUNT", *nofollow, fd1=self.root, s0=target, s1=data, n0=len(data), n1=to_set, n2=to_clear)
        if options.tree_set or options.tree_clr:
            flags = (*nofollow, "RECURSIVE")
            self.b.child("REMOUNT", *flags, fd1=self.root, s0=target, n1=options.tree_set, n2=options.tree_clr)

    def _new(self, mount: Json, options: MountOptions, target: str) -> None:
        kind = mount.get("type") or ""
        data = self._data(kind, options)
        slot = self.b.slot()
        late = opt.RDONLY if options.copy_up else 0  # filled first, read-only afterwards
        self.b.child(
            "FS_NEW",
            fd0=slot,
            s0=kind,
            s1=data,
            n0=len(data),
            n1=options.attr_set & ~late,
            s2=self._fs_source(mount, kind),
        )
        if options.copy_up:
            self.b.child("COPY_UP", fd0=slot, fd1=self.root, s0=target)
        self._attributes(slot, options.attr_set & late, 0, options)
        real = kind in _REAL_DIR or target == "/dev"  # else nodes could land in a volume that /dev is a link to
        flags = ("MAKE_DIR", "REAL_DIR") if real else ("MAKE_DIR",)
        self._attach(slot, target, *flags, options=options)

    def _data(self, kind: str, options: MountOptions) -> tuple[str, ...]:
        data = options.data
        if kind == "devpts":
            data = tuple(word for word in data if word != "newinstance" and self._gid_mapped(word))
        if kind not in _VIRTUAL and options.attr_set & opt.RDONLY:
            data = (*data, "ro")
        return data if kind in _UNLABELLED else (*data, *self._label)

    def _gid_mapped(self, word: str) -> bool:
        """devpts refuses gid= of an unmapped id (a user namespace of one id has no tty group)."""
        key, _, value = word.partition("=")
        return key != "gid" or not value.isdigit() or mapped(self.config, int(value), "gidMappings")

    def _fs_source(self, mount: Json, kind: str) -> str:
        source: str = mount.get("source") or kind
        return source

    def _cgroup(self, options: MountOptions) -> int:
        """A cgroup2 of the private namespace; without one a bind of the container's own cgroup."""
        if self.ns.has("cgroup"):
            slot = self.b.slot()
            self.b.child("FS_NEW", fd0=slot, s0="cgroup2", n1=options.attr_set, s2="cgroup")
            return slot
        return self._clone(self.how.cgroup or self.facts.cgroup_mount, ("RECURSIVE",), options)

    def _host_sysfs(self) -> bool:
        """sysfs belongs to the network namespace: over one that is not its own, a user namespace may only bind it. A
        joined one is its own where both were joined (a pod's)."""
        own = "network" in self.ns.new or ("user" in self.ns.joined and "network" in self.ns.joined)
        return self.ns.user and not own

    def _bound_sysfs(self, options: MountOptions) -> int:
        slot = self.b.slot()
        self.b.child("TREE", "RECURSIVE", fd0=slot, s0="/sys")
        self.b.child("ATTR", "RECURSIVE", fd0=slot, n0=options.attr_set, n1=options.attr_clr)
        return slot

    # ---- pieces

    def _in_turn(self, index: int) -> int:
        """The tree of a bind, cloned once more (6.15 takes a detached one): mountinfo(5) lists mounts by the number
        that they got when they were made (6.8), and they are to be found in the config's order."""
        slot = self._cloned[index]
        if index not in self._early or self.facts.kernel < (6, 15):
            return slot
        again = self.b.slot()
        self.b.child("TREE", "RECURSIVE", fd0=again, fd1=slot)
        return again

    def _source(self, mount: Json) -> str:
        """Relative sources are relative to the bundle (runtime-spec, mounts.source)."""
        return posixpath.normpath(posixpath.join(self.bundle, mount["source"]))

    def _tree(self, mount: Json, options: MountOptions) -> int:
        slot = self.b.slot()
        self.b.child("TREE", *_tree_flags(options), fd0=slot, s0=self._source(mount))
        return slot

    def _host_tree(self, mount: Json, options: MountOptions) -> int:
        """A tree cloned by the host side, no peer of the host's mounts any more."""
        slot = self.b.slot()
        self.b.host("TREE", *_tree_flags(options), fd0=slot, s0=self._source(mount))
        self.b.host("ATTR", "RECURSIVE", fd0=slot, n2=opt.MS_SLAVE)
        return slot

    def _clone(self, path: str, flags: tuple[str, ...], options: MountOptions) -> int:
        slot = self.b.slot()
        self.b.child("TREE", *flags, fd0=slot, s0=path)
        self._attributes(slot, options.attr_set, options.attr_clr, MountOptions())
        return slot

    def _attach(self, slot: int, target: str, *flags: str, options: MountOptions) -> None:
        bind = "MAKE_FILE" in flags
        self._attributes(slot, options.attr_set if bind else 0, options.attr_clr if bind else 0, options)
        nofollow = ("NOFOLLOW",) if options.target_nofollow else ()
        self.b.child("ATTACH", *flags, *nofollow, fd0=slot, fd1=self.root, s0=target)

    def _attributes(self, slot: int, to_set: int, to_clear: int, options: MountOptions) -> None:
        """Attributes of the mount, then of its tree, then propagation. Nothing wanted, nothing emitted."""
        if to_set or to_clear:
            self.b.child("ATTR", fd0=slot, n0=to_set, n1=to_clear)
        if options.tree_set or options.tree_clr:
            self.b.child("ATTR", "RECURSIVE", fd0=slot, n0=options.tree_set, n1=options.tree_clr)
        for value in options.propagation:
            flags = ("RECURSIVE",) if value & opt.MS_REC else ()
            self.b.child("ATTR", *flags, fd0=slot, n2=value & ~opt.MS_REC)

    # ---- the last touches

    def hide(self) -> None:
        """Masked and read-only paths. One empty read-only tmpfs and one null device serve every mask."""
        linux = self.config.get("linux", {})
        for path in linux.get("readonlyPaths") or []:
            self.b.child("READONLY", "MAY_BE_ABSENT", fd1=self.root, s0=inside(path))
        masked = linux.get("maskedPaths") or []
        if not masked:
            return
        null, empty = self.b.slot(), self.b.slot()
        self.b.child("TREE", fd0=null, s0="/dev/null")
        self.b.child("ATTR", fd0=null, n0=opt.RDONLY | opt.NOSUID | opt.NOEXEC)  # a device can be written all the same
        data = (*_MASK_OPTIONS, *self._label)
        self.b.child("FS_NEW", fd0=empty, s0="tmpfs", s1=data, n0=len(data), n1=_MASK_ATTRS, s2="tmpfs")
        for path in masked:
            self.b.child("MASK", "MAY_BE_ABSENT", fd0=null, fd1=self.root, s0=inside(path), n0=empty)

    def pivot(self) -> None:
        """Into the root, and what the config says of its mount. In the host's own mount namespace only by chroot."""
        how = ("CHROOT",) if not self.ns.has("mount") else ("MOVE",) if self.how.no_pivot else ()
        self.b.child("PIVOT", *how, fd0=self.root)
        word = self.config.get("linux", {}).get("rootfsPropagation") or ""
        if word:
            value = opt.PROPAGATION[word]
            self.b.child("ROOT_ATTR", *(("RECURSIVE",) if value & opt.MS_REC else ()), n2=value & ~opt.MS_REC)
        if self.config.get("root", {}).get("readonly"):
            self.b.child("ROOT_ATTR", n0=opt.RDONLY)


def _is_bind(mount: Json, options: MountOptions) -> bool:
    return not options.remount and (options.bind or mount.get("type") in {"bind", "rbind"})


def _check(index: int, options: MountOptions) -> None:
    """What could only be ignored. A file system's option on a bind may stand there, as in mount(2): callers do it."""
    if options.remount and options.propagation:
        raise WherryError(Kind.UNSUPPORTED, f"mounts[{index}].options: remount changes no propagation")


def _mount_label(job: Job) -> tuple[str, ...]:
    """linux.mountLabel as an option of new file systems, where labels are known (the face warns elsewhere). What is
    bound keeps its labels: to change them is the engine's."""
    label = job.linux.get("mountLabel") or ""
    return (f"context={label}",) if label and job.facts.selinux else ()


def _tree_flags(options: MountOptions) -> tuple[str, ...]:
    flags = (("RECURSIVE", options.recursive), ("NOFOLLOW", options.source_nofollow))
    return tuple(name for name, wanted in flags if wanted)
