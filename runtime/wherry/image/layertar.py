"""A directory tree as a tar: a layer out of an overlay's upper directory (image-spec 1.1, layer.md), or a whole root.

Decides the order (by name, parents first), what becomes of overlayfs' marks (whiteouts become `.wh.NAME`, opaque
directories hold `.wh..wh..opq`) and which attributes go in. Reads by descriptors only and follows no link: the tree may
be a running container's. Refuses to know what the tar is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from wherry.image import disk
from wherry.image.changes import hidden_below
from wherry.image.tarwrite import END, Member, header, padding

__all__ = ["Out", "write_layer", "write_tree"]

Out = Callable[[bytes], object]
_Parts = tuple[bytes, ...]
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_SECOND = 1_000_000_000
_KINDS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
          stat.S_IFIFO: b"6"}  # fmt: skip
_KEPT = ("user.", "trusted.", "security.capability")  # security.selinux and the like are the host's
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"


def write_layer(
    upper: str, lower: Sequence[str], out: Out, *, epoch: int | None = None, userxattr: bool = False
) -> None:
    """The layer that `upper` is over the directories `lower` (highest first); `epoch` (unix s): no time is later.

    A directory that is there only for what changed below it is in the tar too, as docker's are; the root only where its
    rights are not those that a layer has anyway. `userxattr`: overlayfs' marks are user.overlay.*.
    """
    fd = os.open(upper, _DIRECTORY)
    try:
        top = [*lower[:1], upper]
        with_root = any(_rights(os.stat(path)) != (0o755, 0, 0) for path in top)
        marks = _OVERLAY[1 if userxattr else 0] + "opaque"
        _Writer(out, epoch, _Overlay(upper, lower, marks)).write(fd, with_root=with_root)
    finally:
        os.close(fd)


def write_tree(root: int, out: Out, *, with_root: bool = False) -> None:
    """Everything below a directory's descriptor, on its own mount: `docker export`'s tar. `with_root`: and itself."""
    _Writer(out, None, None).write(root, with_root=with_root)


def _rights(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


class _Overlay:
    """The marks of an upper directory, and what they hide."""

    def __init__(self, upper: str, lower: Sequence[str], opaque: str) -> None:
        self._upper, self._lower, self._opaque = upper, lower, opaque

    def is_whiteout(self, status: os.stat_result) -> bool:
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def hides(self, fd: int, parts: _Parts) -> bool:
        """Whether a directory is opaque and there is something to hide: overlayfs marks every new one, to be quick."""
        with contextlib.suppress(OSError):
            if os.getxattr(fd, self._opaque) == b"y":
                return hidden_below(self._lower, tuple(os.fsdecode(part) for part in parts))
        return False


class _Writer:
    def __init__(self, out: Out, epoch: int | None, overlay: _Overlay | None) -> None:
        self._out = out
        self._latest = None if epoch is None else epoch * _SECOND
        self._overlay = overlay
        self._links: dict[tuple[int, int], bytes] = {}

    def write(self, root: int, *, with_root: bool) -> None:
        if with_root:
            self._out(header(self._member(root, b".", b"./", os.fstat(root), b"5")))
        walker = disk.Walker(os.dup(root))
        try:
            self._walk(walker)
        finally:
            walker.close()
        self._out(END)

    def _walk(self, walker: disk.Walker) -> None:
        """Depth first, with one descriptor open: a container may nest directories as deep as it likes."""
        parts: list[bytes] = []
        pending = [self._entries(walker.fd, ())]
        while pending:
            name = next(pending[-1], None)
            if name is None:
                pending.pop()
                if pending:
                    walker.up()
                    parts.pop()
                continue
            status = self._entry(walker.fd, name, (*parts, name))
            if status is not None and stat.S_ISDIR(status.st_mode) and self._enter(walker, name):
                parts.append(name)
                pending.append(self._entries(walker.fd, tuple(parts)))

    def _enter(self, walker: disk.Walker, name: bytes) -> bool:
        """Go down, but not into another mount: what is mounted there is not of this tree."""
        return walker.down(os.fsdecode(name), quiet=True)

    def _entries(self, fd: int, parts: _Parts) -> Iterator[bytes]:
        if self._overlay is not None and parts and self._overlay.hides(fd, parts):
            self._out(header(Member(b"/".join((*parts, _OPAQUE)))))
        return iter(sorted(os.fsencode(name) for name in os.listdir(fd)))

    def _entry(self, parent: int, name: bytes, parts: _Parts) -> os.stat_result | None:
        """Write one member; None where there is none to write (any more)."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            kind = _KINDS.get(stat.S_IFMT(status.st_mode))
            if self._overlay is not None and self._overlay.is_whiteout(status):
                self._out(header(Member(b"/".join((*parts[:-1], _WHITEOUT + name)))))
            elif kind == b"0":
                self._file(parent, name, b"/".join(parts), status)
            elif kind is not None:  # a socket: tar has no word for it
                path = b"/".join(parts) + (b"/" if kind == b"5" else b"")
                self._out(header(self._member(parent, name, path, status, kind)))
        except FileNotFoundError:
            return None
        return status

    def _member(self, parent: int, name: bytes, path: bytes, status: os.stat_result, kind: bytes) -> Member:
        is_device = kind in (b"3", b"4")
        linked = status.st_nlink > 1 and kind != b"5"
        first = self._links.setdefault((status.st_dev, status.st_ino), path) if linked else path
        common = Member(path, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, 0, self._time(status))
        if first != path:
            return common._replace(kind=b"1", link=first)
        return common._replace(
            size=status.st_size if kind == b"0" else 0,
            link=os.readlink(name, dir_fd=parent) if kind == b"2" else b"",
            major=os.major(status.st_rdev) if is_device else 0,
            minor=os.minor(status.st_rdev) if is_device else 0,
            xattrs=_xattrs(parent, name),
        )

    def _time(self, status: os.stat_result) -> int:
        return status.st_mtime_ns if self._latest is None else min(status.st_mtime_ns, self._latest)

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        from wherry.kernel import files

        member = self._member(parent, name, path, status, b"0")
        if member.kind == b"1":
            self._out(header(member))
            return
        try:
            fd = files.open_regular(parent, os.fsdecode(name), follow=False)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ELOOP):  # something else has its name now: the container runs
                return
            raise
        try:
            self._content(fd, member)
        finally:
            os.close(fd)

    def _content(self, fd: int, member: Member) -> None:
        head, left = header(member), member.size
        while left:
            data = os.read(fd, min(left, _CHUNK)) or bytes(min(left, _CHUNK))  # it shrank meanwhile: keep the shape
            left -= len(data)
            self._out(head + data if head else data)
            head = b""
        self._out(head + padding(member.size))


def _xattrs(parent: int, name: bytes) -> dict[str, bytes]:
    """The attributes that belong to the file and not to this host or to overlayfs."""
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOENT):
            return found
        raise
    for key in names:
        if key.startswith(_KEPT) and not key.startswith(_OVERLAY):
            with contextlib.suppress(OSError):  # gone between the two calls
                found[key] = os.getxattr(path, key, follow_symlinks=False)
    return found
