"""Container file systems as data: overlay mounts over unpacked layers. This module returns mounts and never mounts.

Decides the shape of ROOT/layers and ROOT/snapshots and what an overlay stack is made of. Refuses to know images,
containers and how a mount is carried out.

    ROOT/layers/<diff id>/fs        one unpacked layer (formats.py)
    ROOT/snapshots/<key>/lower.json its diff ids, lowest first
    ROOT/snapshots/<key>/{upper,work}
    ROOT/mountpoints                below all layers: what every container mounts on, so that no start has to make it
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence

from wherry.errors import Kind, WherryError
from wherry.image import disk, formats
from wherry.image.leases import Leases
from wherry.image.reference import DIGEST
from wherry.kernel.files import remove_tree
from wherry.model import Mount

__all__ = ["Snapshotter", "check_place", "layer_path", "mount_points", "tree_usage"]

_KEY = r"[a-z0-9-]{1,64}"
_MAX_LAYERS = 499  # OVL_MAX_STACK, fs/overlayfs/super.c, less the one of mount points
_MOUNT_DIRECTORIES = ("dev", "etc", "proc", "sys")
_MOUNT_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")
_FORBIDDEN = r"[:,\\\x00-\x1f]"


def check_place(root: str) -> str:
    """An absolute ROOT that overlay's option string can carry: ':' separates layers, ',' options, '\\' escapes."""
    if not os.path.isabs(root) or re.search(_FORBIDDEN, root):
        raise WherryError(
            Kind.INVALID,
            f"{root!r} cannot hold images: the path must be absolute, without colon, comma, backslash or control bytes",
            hint="choose another directory with --root",
        )
    return os.path.normpath(root)


def layer_path(root: str, diff_id: str) -> str:
    """Where the layer of this diff id lives. Only well-formed digests become paths."""
    if not re.fullmatch(DIGEST, diff_id):
        raise WherryError(Kind.INVALID, f"invalid diff id {diff_id[:140]!r}")
    return os.path.join(root, "layers", diff_id.partition(":")[2])


def mount_points(root: str) -> str:
    """The layer below all others: what is mounted on in every container."""
    return os.path.join(root, "mountpoints")


class Snapshotter:
    """Writable and read-only views over layers that ImageStore.ensure_unpacked has put in place."""

    def __init__(self, root: str, *, userxattr: bool = False) -> None:
        self.root = check_place(root)
        self._base = os.path.join(self.root, "snapshots")
        self._userxattr = userxattr
        self._leases = Leases(self.root)

    def below(self, diff_ids: Sequence[str]) -> list[Mount]:
        """What has yet to be mounted before these layers can be used: shared by all snapshots, not theirs to unmount.

        One call a layer, where nothing has: every start asks.
        """
        found, place = [], os.path.join(self.root, "layers")
        device = os.stat(place).st_dev if diff_ids and os.path.isdir(place) else 0
        for layer in (layer_path(self.root, diff_id) for diff_id in diff_ids):
            with contextlib.suppress(FileNotFoundError):  # who uses it says so
                if os.stat(os.path.join(layer, "fs")).st_dev == device:
                    found.append(formats.layer_mount(layer))
        return [mount for mount in found if mount is not None]

    def make(self, key: str, diff_ids: Sequence[str]) -> None:
        """Make the upper and work directories of `key` over `diff_ids` (lowest first); `mounts` tells of its root."""
        self._create(key, diff_ids, writable=True)

    def prepare(self, key: str, diff_ids: Sequence[str]) -> list[Mount]:
        """`make`, and the mounts."""
        self.make(key, diff_ids)
        return self.mounts(key)

    def view(self, key: str, diff_ids: Sequence[str]) -> list[Mount]:
        """Like prepare, but nothing can be written."""
        self._create(key, diff_ids, writable=False)
        return self.mounts(key)

    def mounts(self, key: str) -> list[Mount]:
        """The mounts of an existing snapshot: one overlay, `lowerdir` highest first, paths joined by ':'."""
        place = self._existing(key)
        facts = disk.load_json(os.path.join(place, "lower.json"))
        self._check_mounted(key, facts["lower"])
        lower = [os.path.join(layer_path(self.root, diff_id), "fs") for diff_id in reversed(facts["lower"])]
        lower = [*self._visible(lower), self._mount_points()]
        if not facts["writable"] and len(lower) < 2:  # overlay wants two layers when there is no upper
            lower.append(os.path.join(place, "empty"))
        options = ["lowerdir=" + ":".join(lower)]
        if facts["writable"]:
            options += [f"upperdir={place}/upper", f"workdir={place}/work"]
        # diff() compares names, so a rename must not hide in a redirect, nor a chmod in a metacopy.
        options += ["userxattr"] if self._userxattr else ["index=off", "redirect_dir=off", "metacopy=off"]
        if self._several(lower):  # `du -x`, `tar --one-file-system` are to see one file system all the same
            options.append("xino=on")
        if not facts["writable"]:
            options.append("ro")
        return [Mount("overlay", "overlay", "/", tuple(options))]

    def _several(self, lower: list[str]) -> bool:
        """Whether these directories lie in more than one file system."""
        device = os.stat(self._base).st_dev
        return not self._userxattr and any(os.stat(path).st_dev != device for path in lower)

    def bare(self, key: str) -> list[Mount]:
        """The mounts of a view that shows its layers and nothing else: no mount points of ours below them."""
        ours, empty = mount_points(self.root), os.path.join(self._existing(key), "empty")
        if not self.diff_ids(key):
            return [Mount("bind", empty, "/", ("bind", "ro"))]
        return [mount._replace(options=tuple(_without(option, ours, empty) for option in mount.options))
                for mount in self.mounts(key)]  # fmt: skip

    def shown(self, diff_ids: Sequence[str]) -> list[Mount]:
        """Layers (lowest first) read-only and without a snapshot, for who only shows an image. `below` is mounted."""
        self._check_layers("image", diff_ids)
        self._check_mounted("image", diff_ids)
        lower = self._visible([os.path.join(layer_path(self.root, diff_id), "fs") for diff_id in reversed(diff_ids)])
        if len(lower) == 1:
            return [Mount("bind", lower[0], "/", ("bind", "ro"))]
        options = ("lowerdir=" + ":".join(lower), "index=off", "redirect_dir=off", "metacopy=off", "ro")
        return [Mount("overlay", "overlay", "/", options)]

    def remove(self, key: str) -> None:
        """Remove the snapshot; absent is success. Renamed first: a crash leaves garbage, no half snapshot."""
        self._check_key(key)
        if not os.path.isdir(self._path(key)):
            return
        doomed = disk.fresh_name(".tmp-")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path(key), os.path.join(self._base, doomed))
        self._sweep_one(doomed)

    def keys(self) -> list[str]:
        """The keys of all snapshots."""
        try:
            return sorted(name for name in os.listdir(self._base) if re.fullmatch(_KEY, name))
        except FileNotFoundError:
            return []

    def upper(self, key: str) -> str:
        """The directory that holds what was written; NOT_FOUND for views."""
        path = os.path.join(self._existing(key), "upper")
        if not os.path.isdir(path):
            raise WherryError(Kind.NOT_FOUND, f"snapshot {key} is read-only: it has no upper directory")
        return path

    def usage(self, key: str) -> tuple[int, int]:
        """Bytes on disk and inodes of what was written; hard links count once."""
        return tree_usage(os.path.join(self._existing(key), "upper"))

    def written(self, key: str) -> int:
        """Bytes of the files that were written, as their owner sees them: directories and blocks do not count."""
        return _counted(os.path.join(self._existing(key), "upper")).files

    def diff_ids(self, key: str) -> tuple[str, ...]:
        """The layers below `key`, lowest first."""
        return tuple(disk.load_json(os.path.join(self._existing(key), "lower.json"))["lower"])

    def lower_paths(self, key: str) -> list[str]:
        """The directories below the upper one of `key`, highest first, as its overlay shows them, less mount points.

        What `below` names must be mounted.
        """
        diff_ids = self.diff_ids(key)
        self._check_mounted(key, diff_ids)
        lower = [os.path.join(layer_path(self.root, diff_id), "fs") for diff_id in reversed(diff_ids)]
        return self._visible(lower)

    def problems(self, key: str) -> list[str]:
        """What is wrong with the files of a snapshot, if anything is. One that is removed meanwhile is right."""
        found = self._problems(key)
        return found if os.path.isdir(self._path(key)) else []

    def _problems(self, key: str) -> list[str]:
        try:
            facts = disk.load_json(os.path.join(self._existing(key), "lower.json"))
            below, writable = [layer_path(self.root, diff_id) for diff_id in facts["lower"]], facts["writable"]
        except (OSError, WherryError, KeyError, TypeError) as error:
            return [f"its lower.json cannot be read: {error}"]
        found = [f"layer {os.path.basename(path)} below it is missing" for path in below if not os.path.isdir(path)]
        parts = ("upper", "work") if writable else ("empty",)
        return found + [f"it has no {part}" for part in parts if not os.path.isdir(os.path.join(self._path(key), part))]

    def diff(self, key: str) -> Iterator[tuple[str, str]]:
        """(kind, path) of what was added (A), changed (C) or deleted (D), in docker's sense, sorted by path."""
        from wherry.image.changes import changes

        return changes(self.upper(key), self.lower_paths(key))

    def sweep(self) -> None:
        """Remove what crashed removals and preparations left."""
        with self._leases.guard(shared=False):  # nobody makes one at this moment
            left = self.leftovers()
        for name in left:
            self._sweep_one(name)

    def leftovers(self) -> list[str]:
        """What is being made or removed, or was when somebody was killed."""
        try:
            return sorted(name for name in os.listdir(self._base) if name.startswith(".tmp-"))
        except FileNotFoundError:
            return []

    def _check_key(self, key: str) -> None:
        if not re.fullmatch(_KEY, key):
            raise WherryError(Kind.INVALID, f"invalid snapshot key {key[:80]!r}: expected 1 to 64 of a-z 0-9 -")

    def _path(self, key: str) -> str:
        return os.path.join(self._base, key)

    def _existing(self, key: str) -> str:
        self._check_key(key)
        if not os.path.isdir(self._path(key)):
            raise WherryError(Kind.NOT_FOUND, f"no snapshot {key}")
        return self._path(key)

    def _create(self, key: str, diff_ids: Sequence[str], *, writable: bool) -> None:
        self._check_key(key)
        if len(diff_ids) > _MAX_LAYERS:
            raise WherryError(Kind.UNSUPPORTED, f"{len(diff_ids)} layers: overlay takes at most {_MAX_LAYERS}")
        disk.make_private(self._base)
        # Against the sweep of layers: lower.json must be there before a sweep looks again.
        with self._leases.guard(shared=True):
            self._check_layers(key, diff_ids)
            self._publish(key, diff_ids, writable)

    def _check_layers(self, key: str, diff_ids: Sequence[str]) -> None:
        for diff_id in diff_ids:
            if not os.path.isdir(os.path.join(layer_path(self.root, diff_id), "fs")):
                raise WherryError(
                    Kind.NOT_FOUND, f"layer {diff_id} below snapshot {key} is not unpacked", hint="pull the image again"
                )
        self._check_mounted(key, diff_ids)

    def _check_mounted(self, key: str, diff_ids: Sequence[str]) -> None:
        for mount in self.below(diff_ids):
            raise WherryError(Kind.PRECONDITION, f"layer {mount.source} below snapshot {key} is not mounted")

    def _publish(self, key: str, diff_ids: Sequence[str], writable: bool) -> None:
        temporary = os.path.join(self._base, disk.fresh_name(".tmp-"))
        os.mkdir(temporary, 0o700)
        for name in ("upper", "work") if writable else ("empty",):
            os.mkdir(os.path.join(temporary, name), 0o755)
            os.chmod(os.path.join(temporary, name), 0o755)  # noqa: S103 - a root directory; what is above is 0700
        if writable and diff_ids:
            self._copy_root(os.path.join(layer_path(self.root, diff_ids[-1]), "fs"), os.path.join(temporary, "upper"))
        with open(os.path.join(temporary, "lower.json"), "w", encoding="ascii") as file:
            file.write(_lower_json(diff_ids, writable))
        try:
            os.rename(temporary, self._path(key))
        except OSError as error:
            self._sweep_one(os.path.basename(temporary))
            if os.path.isdir(self._path(key)):
                raise WherryError(Kind.EXISTS, f"snapshot {key} exists already") from None
            raise disk.os_failure(f"cannot make snapshot {key}", error) from error

    def _mount_points(self) -> str:
        """As docker's init layer: without them each start would copy /etc up and make three files in it."""
        path = mount_points(self.root)
        if not os.path.isdir(path):
            disk.make_private(self._base)
            with self._leases.guard(shared=True):
                self._make_mount_points(path)
        return path

    def _make_mount_points(self, path: str) -> None:
        temporary = os.path.join(self._base, disk.fresh_name(".tmp-"))  # there a sweep finds it
        for name in ("", *_MOUNT_DIRECTORIES):
            os.mkdir(os.path.join(temporary, name), 0o755)
            os.chmod(os.path.join(temporary, name), 0o755)  # noqa: S103 - as in any image; what is above is 0700
        for name in _MOUNT_FILES:
            fd = os.open(os.path.join(temporary, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.fchmod(fd, 0o644)
            os.close(fd)
        try:
            os.rename(temporary, path)
        except OSError:
            remove_tree(temporary)
            if not os.path.isdir(path):  # else somebody else was faster
                raise

    def _copy_root(self, source: str, target: str) -> None:
        # The root directory of an overlay shows the mode and owner of its uppermost layer: the image's, not ours.
        status = os.stat(source)
        os.chown(target, status.st_uid, status.st_gid)
        os.chmod(target, status.st_mode & 0o7777)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))

    def _visible(self, lower: list[str]) -> list[str]:
        # overlayfs does not look at the opaque mark of a layer's own root: the stack ends there instead.
        name = "user.overlay.opaque" if self._userxattr else "trusted.overlay.opaque"
        for index, path in enumerate(lower):
            with contextlib.suppress(OSError):
                if os.getxattr(path, name) == b"y":
                    return lower[: index + 1]
        return lower

    def _sweep_one(self, name: str) -> None:
        fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(name, fd)
        finally:
            os.close(fd)


def _without(option: str, layer: str, instead: str) -> str:
    """A lowerdir= with another directory in the place of one of its own."""
    if not option.startswith("lowerdir="):
        return option
    return "lowerdir=" + ":".join(instead if one == layer else one for one in option.partition("=")[2].split(":"))


def _lower_json(diff_ids: Sequence[str], writable: bool) -> str:
    import json

    return json.dumps({"lower": list(diff_ids), "writable": writable})


def tree_usage(path: str) -> tuple[int, int]:
    """Bytes on disk and inodes below `path`, itself included; other mounts are not entered. Absent: nothing."""
    count = _counted(path)
    return count.bytes, count.inodes


def _counted(path: str) -> _Count:
    count = _Count()
    try:
        walker = disk.Walker(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except FileNotFoundError:
        return count
    try:
        _walk(walker, count)
    finally:
        walker.close()
    return count


class _Count:
    """Bytes of blocks and in files, inodes: a hard link counts once. Only what has several names is remembered, for a
    container decides how many files there are."""

    def __init__(self) -> None:
        self.bytes = self.inodes = self.files = 0
        self._seen: set[int] = set()

    def add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._seen:
                return
            self._seen.add(status.st_ino)
        self.inodes += 1
        self.bytes += status.st_blocks * 512
        self.files += status.st_size if stat.S_ISREG(status.st_mode) else 0

    def directory(self, fd: int) -> list[str]:
        """Count what is in a directory; the names of its directories."""
        names = []
        self.add(os.fstat(fd))
        for entry in os.scandir(fd):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                else:
                    self.add(entry.stat(follow_symlinks=False))
        return names


def _walk(walker: disk.Walker, count: _Count) -> None:
    pending = [count.directory(walker.fd)]
    while pending:
        if pending[-1]:
            if walker.down(pending[-1].pop(), quiet=True):
                pending.append(count.directory(walker.fd))
        else:
            pending.pop()
            if pending:
                walker.up()
