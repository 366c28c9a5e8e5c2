"""`cp`: tar streams out of and into a container, running or not.

Decides how a path of the container becomes a descriptor: always beneath its root, never twice as a string
(invariant 1). What comes in is untrusted like a layer (invariant 13): names with ".." are refused, links are made and
not followed, pseudo file systems are not written to, headers are bounded.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat as stats
import tarfile
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import rootfs, tarread
from .house import House
from .status import look

if TYPE_CHECKING:
    from .db import Container

__all__ = ["Place", "Target", "get", "put", "stat", "unpack"]

_CHUNK = 1 << 20
_DEPTH = 250  # levels: each holds a descriptor open
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PSEUDO = frozenset({"proc", "sysfs", "cgroup2", "cgroup", "debugfs", "tracefs", "securityfs", "bpf", "configfs"})
# Go's os.FileMode, which docker's clients read
_GO_MODE = {stats.S_IFDIR: 1 << 31, stats.S_IFLNK: 1 << 27, stats.S_IFBLK: 1 << 26, stats.S_IFCHR: 1 << 26 | 1 << 21,
            stats.S_IFIFO: 1 << 25, stats.S_IFSOCK: 1 << 24}  # fmt: skip


class Place(NamedTuple):
    """A root to resolve in, and the path in it."""

    root: int
    path: str
    pid: int = 0  # of the running init, whose mounts these are


@contextlib.contextmanager
def _place(house: House, row: Container, path: str, *, writable: bool) -> Iterator[Place]:
    seen = look(house, row.id)
    if seen.running and seen.state is not None:
        with rootfs.live(seen.state) as root:
            yield Place(root, path, seen.pid)
        return
    mount = _mount_of(row, path)
    if mount is not None:
        if writable and not mount["RW"]:
            raise WherryError(Kind.CONFLICT, f"mount {mount['Destination']} is marked read-only")
        inner = posixpath.relpath(posixpath.join("/", path), mount["Destination"])
        with _source(house, mount) as fd:
            yield Place(fd, inner + ("/" if path.endswith("/") else ""))
        return
    with rootfs.at_rest(house, row.id, writable=writable) as root:
        yield Place(root, path)


@contextlib.contextmanager
def _source(house: House, mount: Json) -> Iterator[int]:
    if _is_served(mount):  # not mounted while the container is at rest
        from . import volumes

        with volumes.opened(house, volumes.get(house, mount["Name"]), readonly=not mount["RW"]) as fd:
            yield fd
        return
    fd = os.open(mount["Source"], os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _mount_of(row: Container, path: str) -> Json | None:
    """The bind or volume that a path of a container at rest lies in."""
    clean = posixpath.normpath(posixpath.join("/", path))
    inside = [
        mount
        for mount in row.config["mounts"]
        if mount["Type"] != "tmpfs" and (clean + "/").startswith(mount["Destination"] + "/")
    ]
    found = max(inside, key=lambda mount: len(mount["Destination"]), default=None)
    return found if found and (_is_served(found) or os.path.isdir(found["Source"])) else None


def _is_served(mount: Json) -> bool:
    return str(mount.get("Driver", "local")) != "local"


def _in_root(place: Place, path: str, flags: int) -> int:
    from wherry.kernel import files

    try:
        return files.open_in_root(place.root, path or ".", flags | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WherryError(Kind.NOT_FOUND, f"no such file or directory in the container: {path}") from error
    except OSError as error:
        raise WherryError(Kind.INVALID, f"{path} in the container: {error.strerror}") from error


@contextlib.contextmanager
def _entry(place: Place, path: str) -> Iterator[tuple[int, str, os.stat_result]]:
    """The parent's descriptor, the last name, and what lies there; a link as the last name is not followed."""
    clean = path.rstrip("/") or "/"
    folder, name = posixpath.split(clean)
    if name in ("", ".", "..") or path.endswith("/"):
        folder, name = path, "."
    parent = _in_root(place, folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            yield parent, name, os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise WherryError(Kind.NOT_FOUND, f"could not find the file {path} in the container") from None
    finally:
        os.close(parent)


# ---- out ----


def _shape(name: str, found: os.stat_result, target: str) -> Json:
    mode = stats.S_IMODE(found.st_mode) & 0o777 | _GO_MODE.get(stats.S_IFMT(found.st_mode), 0)
    when = datetime.fromtimestamp(found.st_mtime, UTC).isoformat().replace("+00:00", "Z")
    return {"name": name, "size": found.st_size, "mode": mode, "mtime": when, "linkTarget": target}


def _stat(place: Place, path: str) -> Json:
    with _entry(place, path) as (parent, name, found):
        target = os.readlink(name, dir_fd=parent) if stats.S_ISLNK(found.st_mode) else ""
        shown = posixpath.basename(posixpath.normpath(path)) or "/"
        return _shape(shown, found, target)


def stat(house: House, ref: str, path: str) -> Json:
    """The verb."""
    row = house.db.find(ref)
    with _place(house, row, path, writable=False) as place:
        what = _stat(place, place.path)
    what["name"] = posixpath.basename(posixpath.normpath(path)) or "/"
    return what


def get(house: House, ref: str, path: str) -> tuple[Json, Generator[bytes, None, None]]:
    """The verb: what it is, and its tar."""
    row = house.db.find(ref)
    with _place(house, row, path, writable=False) as place:
        what = _stat(place, place.path)
        what["name"] = posixpath.basename(posixpath.normpath(path)) or "/"
    return what, _stream(house, row, path, what["name"])


def _stream(house: House, row: Container, path: str, name: str) -> Generator[bytes, None, None]:
    base = "." if path.endswith("/.") or name == "/" else name
    with _place(house, row, path, writable=False) as place, _entry(place, place.path) as (parent, last, _found):
        yield from _pack(parent, last, base, {})
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _pack(parent: int, name: str, shown: str, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    info = _info(parent, name, shown, found, links)
    if info is None:
        return
    if info.isreg():
        yield from _pack_file(parent, name, info)
        return
    yield info.tobuf(tarfile.PAX_FORMAT)
    if info.isdir():
        if shown.count("/") > _DEPTH:
            raise WherryError(Kind.UNSUPPORTED, f"directories nested deeper than {_DEPTH} cannot be copied")
        fd = os.open(name, _DIR, dir_fd=parent)
        try:
            for child in sorted(os.listdir(fd)):
                with contextlib.suppress(FileNotFoundError):
                    yield from _pack(fd, child, f"{shown}/{child}", links)
        finally:
            os.close(fd)


_TYPES = {stats.S_IFREG: tarfile.REGTYPE, stats.S_IFDIR: tarfile.DIRTYPE, stats.S_IFLNK: tarfile.SYMTYPE,
          stats.S_IFIFO: tarfile.FIFOTYPE, stats.S_IFCHR: tarfile.CHRTYPE, stats.S_IFBLK: tarfile.BLKTYPE}  # fmt: skip


def _info(
    parent: int, name: str, shown: str, found: os.stat_result, links: dict[tuple[int, int], str]
) -> tarfile.TarInfo | None:
    kind = _TYPES.get(stats.S_IFMT(found.st_mode))
    if kind is None:  # a socket: tar has no word for it
        return None
    info = tarfile.TarInfo(shown)
    info.type, info.mode = kind, stats.S_IMODE(found.st_mode)
    info.uid, info.gid, info.mtime = found.st_uid, found.st_gid, int(found.st_mtime)
    if kind == tarfile.SYMTYPE:
        info.linkname = os.readlink(name, dir_fd=parent)
    elif kind == tarfile.REGTYPE:
        info.size = found.st_size
        first = links.setdefault((found.st_dev, found.st_ino), shown) if found.st_nlink > 1 else shown
        if first != shown:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return info


def _pack_file(parent: int, name: str, info: tarfile.TarInfo) -> Iterator[bytes]:
    from wherry.kernel import files

    with open(files.open_regular(parent, name, follow=False), "rb") as file:
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = info.size
        while left:
            data = file.read(min(left, _CHUNK)) or b"\0" * min(left, _CHUNK)  # it shrank while we read: keep the shape
            left -= len(data)
            yield data
    yield b"\0" * (-info.size % tarfile.BLOCKSIZE)


# ---- in ----


def put(house: House, ref: str, path: str, stream: BinaryIO | Iterable[bytes], *, archive_owner: bool) -> None:
    """The verb."""
    row = house.db.find(ref)
    with _place(house, row, path, writable=True) as place:
        top = _in_root(place, place.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            unpack(Target(place, top, archive_owner), tarread.Chunks(stream))
        finally:
            os.close(top)


def unpack(target: Target, source: tarread.Chunks) -> None:
    """Every member of a tar."""
    try:
        for member in tarread.members(source):
            target.add(source, member)
        target.settle()
    except (ValueError, OverflowError) as error:  # a NUL in a name, a time or owner that no file can have
        raise WherryError(Kind.INVALID, f"the archive cannot be unpacked: {error}") from error
    except OSError as error:
        kind = {28: Kind.EXHAUSTED, 30: Kind.CONFLICT}.get(error.errno or 0, Kind.INVALID)
        raise WherryError(kind, f"cannot write into {target.what}: {error.strerror or error}") from error


class Target:
    """A directory of the container that an untrusted archive is unpacked into."""

    def __init__(self, place: Place, top: int, archive_owner: bool, what: str = "the container") -> None:
        self._place, self._top, self._owner, self.what = place, top, archive_owner, what
        self._types = self._mount_types()
        self._refuse_pseudo(top)

    def _mount_types(self) -> dict[int, str]:
        if not self._place.pid:
            return {}
        from wherry.kernel import mount

        return {found.id: found.type for found in mount.mounts(self._place.pid)}

    def _refuse_pseudo(self, fd: int) -> None:
        """Invariant 4: nothing is written to a container's /proc or /sys by us, who may more than it."""
        if not self._types:
            return
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            line = next(text for text in file if text.startswith("mnt_id:"))
        if self._types.get(int(line.split()[1]), "") in _PSEUDO:
            raise WherryError(Kind.DENIED, "cp does not write into a pseudo file system of the container")

    def add(self, source: tarread.Chunks, member: tarread.Member) -> None:
        """Make one member."""
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts or member.name.startswith("/"):
            raise WherryError(Kind.INVALID, f'"{member.name[:200]}" in the archive leads out of its place')
        if not parts:
            self.root(member)
            return
        parent = self.parent(parts[:-1])
        try:
            self._refuse_pseudo(parent)
            self._make(source, member, parent, parts)
        finally:
            os.close(parent)

    def root(self, member: tarread.Member) -> None:
        """A member that is the directory itself: it stays as it is."""

    def parent(self, parts: list[str]) -> int:
        """Walk down, making what is missing; a link on the way is followed inside the container's root only."""
        from wherry.kernel import files

        here = os.dup(self._top)
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            try:
                below = files.open_beneath(here, part, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise WherryError(Kind.INVALID, f"the archive goes through {part}: {error.strerror}") from error
            finally:
                os.close(here)
            here = below
        return here

    def _make(self, source: tarread.Chunks, member: tarread.Member, parent: int, parts: list[str]) -> None:
        name = parts[-1]
        if member.type == "5":
            self.directory(member, parent, parts)
            return
        makers = {"1": self._link, "2": self._symlink, "6": self._fifo}
        if self.other(member):
            return
        if member.type not in ("0", *makers):
            raise WherryError(Kind.INVALID, f'"{member.name[:200]}" in the archive is neither a file nor a link')
        self._clear(member, parent, name)
        if member.type == "0":
            self._file(source, member, parent, name)
        else:
            makers[member.type](member, parent, name)

    def settle(self) -> None:
        """All members are made."""

    def other(self, member: tarread.Member) -> bool:
        """Whether a member is let pass unmade."""
        del member
        return False

    def _clear(self, member: tarread.Member, parent: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stats.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise WherryError(Kind.CONFLICT, f"cannot overwrite directory {member.name[:200]} with a file")
            os.unlink(name, dir_fd=parent)

    def _symlink(self, member: tarread.Member, parent: int, name: str) -> None:
        os.symlink(member.link, name, dir_fd=parent)
        self._rights(member, name, parent)

    def _fifo(self, member: tarread.Member, parent: int, name: str) -> None:
        os.mkfifo(name, stats.S_IMODE(member.mode), dir_fd=parent)
        self._rights(member, name, parent)

    def _rights(self, member: tarread.Member, name: str, parent: int) -> None:
        if self._owner:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def directory(self, member: tarread.Member, parent: int, parts: list[str]) -> None:
        """Make it; one that is there stays as it is."""
        name = parts[-1]
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stats.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise WherryError(Kind.CONFLICT, f"cannot overwrite {member.name} with a directory") from None
            return
        fd = os.open(name, _DIR, dir_fd=parent)
        try:
            self.finish(member, fd)
        finally:
            os.close(fd)

    def finish(self, member: tarread.Member, fd: int) -> None:
        """Owner, mode, attributes, time: in this order, for each undoes something of the next."""
        if self._owner:
            os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, stats.S_IMODE(member.mode))
        for name, value in member.xattrs.items() if self._owner else ():
            _set_xattr(fd, name, value)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))

    def _file(self, source: tarread.Chunks, member: tarread.Member, parent: int, name: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with open(fd, "wb") as file:
            for data in tarread.body(source, member):
                file.write(data)
            file.flush()
            self.finish(member, fd)

    def _link(self, member: tarread.Member, parent: int, name: str) -> None:
        parts = [part for part in member.link.split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            raise WherryError(Kind.INVALID, f'a link to "{member.link[:200]}" leads out of its place')
        folder = self.parent(parts[:-1])
        try:
            os.link(parts[-1], name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(folder)


def _set_xattr(fd: int, name: str, value: bytes) -> None:
    """The file's own ones, none that overlayfs reads (an archive could redirect a directory of whoever stacks it); what
    the file system cannot hold is left out, as tar does."""
    own = name.startswith(("user.", "trusted.")) and not name.startswith(("user.overlay.", "trusted.overlay."))
    if own or name == "security.capability":
        with contextlib.suppress(OSError):
            os.setxattr(fd, name, value)
