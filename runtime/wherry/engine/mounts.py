"""What is mounted in a container besides its root: binds, volumes, tmpfs, the image's volumes, --volumes-from.

Decides which request wins on which target, and each mount's options: a bind or a volume is nodev and nosuid unless
`dev` or `suid` is asked. Makes nothing: `Resolved` says what is to be there, the caller makes it.
"""

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json, MountRequest, RunOptions

__all__ = ["Resolved", "collect", "inspect_row", "oci"]

_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable"})
_TMPFS_DATA = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"})
_TMPFS = ("noexec", "nosuid", "nodev")
_PLAIN = frozenset({"ro", "rw", "exec", "noexec", "dev", "nodev", "suid", "nosuid", "sync", "async", "noatime", "atime",
                    "relatime", "nodiratime", "strictatime", "bind", "rbind", "nosymfollow"})  # fmt: skip
_OURS = frozenset({"z", "Z", "U", "nocopy", "copy", "idmap", "tmpcopyup", "notmpcopyup", "consistent", "cached",
                   "delegated", "readonly", "bind-nonrecursive"})  # fmt: skip


#: an image may not put a directory of its own where the container, and its masks, expect the kernel's files
_KERNELS = frozenset({"/proc", "/sys", "/dev"})


class Resolved(NamedTuple):
    """One mount. `name` is a volume's, "" for an anonymous one until it is made; `source` the host path once known."""

    kind: str  # bind, volume, tmpfs
    target: str
    source: str = ""
    name: str = ""
    options: tuple[str, ...] = ()
    anonymous: bool = False
    create_source: bool = False
    driver: str = "local"  # of a volume: who serves it
    driver_options: tuple[tuple[str, str], ...] = ()  # of one that is to be made

    @property
    def served(self) -> bool:
        """Whether a driver mounts it, when the container starts."""
        return self.driver != "local"

    @property
    def fills(self) -> bool:
        """Whether the image's content goes into it, if it is empty, at creation (a driver's: at the first start)."""
        return "nocopy" not in self.options and not self.served

    @property
    def writable(self) -> bool:
        """Whether the container may write there."""
        return "ro" not in self.options and "readonly" not in self.options


def _target(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise WherryError(Kind.INVALID, f'invalid mount target "{text}": it must be an absolute path')
    path = posixpath.normpath(text).replace("//", "/")
    if path == "/":
        raise WherryError(Kind.INVALID, 'invalid mount target "/": the root is the image\'s')
    return path


def _checked_options(request: MountRequest) -> tuple[str, ...]:
    for option in request.options:
        key = option.partition("=")[0]
        known = option in _PLAIN | _OURS | _PROPAGATION
        if not known and not (request.kind == "tmpfs" and key in _TMPFS_DATA):
            raise WherryError(Kind.INVALID, f'invalid mount option "{option}" for {request.target}')
    return tuple("ro" if option == "readonly" else option for option in request.options)


def _one(request: MountRequest) -> Resolved:
    target, options = _target(request.target), _checked_options(request)
    if request.kind == "tmpfs":
        return Resolved("tmpfs", target, options=options)
    if request.kind == "volume":
        return _volume(request, Resolved("volume", target, name=request.source, options=options))
    if request.kind != "bind":
        raise WherryError(Kind.INVALID, f'mount type "{request.kind}" is unknown', hint="bind, volume or tmpfs")
    if not request.source.startswith("/"):
        raise WherryError(Kind.INVALID, f'bind source "{request.source}" must be an absolute path')
    source = os.path.normpath(request.source)
    return Resolved("bind", target, source=source, options=options, create_source=request.create_source)


def _volume(request: MountRequest, found: Resolved) -> Resolved:
    """One that is to be made is checked before anything is."""
    from . import voloptions

    wanted = dict(request.driver_options)
    driver = request.driver or voloptions.LOCAL
    voloptions.read(driver, wanted)
    return found._replace(anonymous=not request.source, driver=driver, driver_options=tuple(wanted.items()))


def collect(options: RunOptions, image_volumes: Sequence[str], inherited: Sequence[Resolved]) -> list[Resolved]:
    """Merge: what is asked beats --volumes-from beats the image. Parents come before what lies in them."""
    found: dict[str, Resolved] = {}
    for path in image_volumes:
        target = _target(path if path.startswith("/") else f"/{path}")
        if target in _KERNELS or target.startswith("/proc/"):
            raise WherryError(Kind.INVALID, f"the image wants a volume at {target}, which is the kernel's")
        found[target] = Resolved("volume", target, anonymous=True)
    for mount in inherited:
        found[mount.target] = mount
    asked: set[str] = set()
    for request in options.mounts:
        mount = _one(request)
        if mount.target in asked:
            raise WherryError(Kind.INVALID, f"duplicate mount point: {mount.target}")
        asked.add(mount.target)
        found[mount.target] = mount
    return sorted(found.values(), key=lambda mount: (mount.target.count("/"), mount.target))


def inherit(rows: Sequence[Json], mode: str) -> list[Resolved]:
    """The mounts of another container (its inspect rows) for --volumes-from NAME[:ro]."""
    if mode not in ("", "rw", "ro", "z", "Z"):
        raise WherryError(Kind.INVALID, f'invalid mode "{mode}" of --volumes-from', hint="ro or rw")
    found = []
    for row in rows:
        if row["Type"] != "tmpfs":
            mount = from_row(row)
            options = (*mount.options, "ro") if mode == "ro" and mount.writable else mount.options
            found.append(mount._replace(options=options, anonymous=False))
    return found


def from_row(row: Json) -> Resolved:
    """Read what `inspect_row` made."""
    options = tuple(row.get("Options", ()))
    found = Resolved(row["Type"], row["Destination"], row.get("Source", ""), row.get("Name", ""), options)
    return found._replace(driver=row.get("Driver", "local"))


def inspect_row(mount: Resolved) -> Json:
    """docker's MountPoint, and the options as given."""
    propagation = next((o for o in mount.options if o in _PROPAGATION), "rprivate" if mount.kind == "bind" else "")
    row: Json = {"Type": mount.kind}
    if mount.kind == "volume":
        row |= {"Name": mount.name, "Driver": mount.driver}
    mode = ",".join(o for o in mount.options if o in ("z", "Z", "ro", "rw")) or ("z" if mount.kind == "volume" else "")
    row |= {"Source": mount.source, "Destination": mount.target, "Mode": mode, "RW": mount.writable}
    return row | {"Propagation": propagation, "Options": list(mount.options)}


def _bind_options(mount: Resolved) -> list[str]:
    given = [o for o in mount.options if o not in _OURS and o not in ("dev", "suid", "bind", "rbind")]
    options = ["bind" if {"bind", "bind-nonrecursive"} & set(mount.options) else "rbind"]
    options += [] if "dev" in mount.options else ["nodev"]
    options += [] if "suid" in mount.options else ["nosuid"]
    if not _PROPAGATION & set(given):
        options.append("rprivate")
    return options + [o for o in given if o not in options]


def _tmpfs_options(mount: Resolved) -> list[str]:
    given = set(mount.options)
    options = [o for o in _TMPFS if o.removeprefix("no") not in given]
    return options + [o for o in mount.options if o not in _OURS | {"exec", "dev", "suid"} and o not in options]


def oci(mount: Resolved, idmap: Mapping[str, object] | None = None) -> Json:
    """Return the runtime-spec mount."""
    if mount.kind == "tmpfs":
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": _tmpfs_options(mount)}
    options = [*_bind_options(mount), *(["idmap"] if idmap else [])]
    return {"destination": mount.target, "type": "bind", "source": mount.source, "options": options, **(idmap or {})}
