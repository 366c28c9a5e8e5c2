"""COPY and ADD: what is copied (an order), its facts for the cache's key, and the writing of it into a root.

Decides docker's rules of names: what a source and a target mean, who owns what comes. Writes by descriptors beneath
the root only; a link of the image on the way to the target is followed inside that root (invariant 1).
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from wherry.errors import Kind, WherryError
from wherry.image.patterns import EVERYTHING, Ignore

from .trees import Entry, Tree

__all__ = ["Item", "Order", "Writer", "facts", "gather", "write"]

_CHUNK = 1 << 20
_LINKS_MAX = 40  # as the kernel
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


class Item(NamedTuple):
    """One source: a thing and, where it is a directory, all that is in it. `name` is what a file is called."""

    tree: Tree
    name: str
    entries: tuple[Entry, ...]
    parents: str = ""  # with --parents: the directories that come along

    @property
    def is_directory(self) -> bool:
        """Whether its contents are copied, and not itself."""
        return stat.S_ISDIR(self.entries[0].mode)


class Order(NamedTuple):
    """All of one COPY. `target` is absolute; `into`: it is a directory in any case."""

    items: tuple[Item, ...]
    target: str
    into: bool
    owner: tuple[int, int] | None
    mode: int | None


def gather(tree: Tree, text: str, exclude: Ignore = EVERYTHING, *, parents: bool = False) -> list[Item]:
    """What one source is; with a pattern perhaps several things, or none."""
    found = []
    base, _, rest = text.rpartition("/./") if parents else ("", "", text)
    for name, path in tree.find(f"{base}/{rest}" if base else rest):
        entries = tuple(tree.entries(path, exclude=exclude))
        if entries:
            above = posixpath.relpath(posixpath.join("/", path), posixpath.join("/", base)) if parents else ""
            found.append(Item(tree, name, entries, above))
    return found


def facts(order: Order) -> list[object]:
    """What the layer depends on, as plain values."""
    items = [[item.name, item.parents, [entry.facts for entry in item.entries]] for item in order.items]
    return [items, order.target, order.into, order.owner, order.mode]


def write(root: int, order: Order) -> Order:
    """Copy; the same order with the digests of what was really written, should a file have changed meanwhile."""
    writer = Writer(root, order.owner, order.mode)
    try:
        return order._replace(items=tuple(_item(writer, order, item) for item in order.items))
    except OSError as error:
        kind = Kind.EXHAUSTED if error.errno in (errno.ENOSPC, errno.EDQUOT) else Kind.INVALID
        raise WherryError(kind, f"cannot copy to {order.target}: {error.strerror}: {error.filename or ''}") from error


def _item(writer: Writer, order: Order, item: Item) -> Item:
    if item.parents:
        return _with_parents(writer, order, item)
    if item.is_directory:
        return item._replace(entries=writer.directory(order.target, item, into=order.into))
    target = order.target
    if order.into or writer.is_directory(target):
        target = posixpath.join(target, item.name)
    return item._replace(entries=writer.file(target, item))


def _with_parents(writer: Writer, order: Order, item: Item) -> Item:
    target = posixpath.normpath(posixpath.join(order.target, item.parents))
    if item.is_directory:
        return item._replace(entries=writer.directory(target, item, into=False))
    return item._replace(entries=writer.file(target, item))


class Writer:
    """Makes things beneath a root's descriptor. `owner` and `mode`, where given, are those of all that is made."""

    def __init__(self, root: int, owner: tuple[int, int] | None = None, mode: int | None = None) -> None:
        self._root, self._owner, self._mode = root, owner, mode

    def is_directory(self, path: str) -> bool:
        """Whether a directory is there (or a link to one)."""
        from wherry.kernel import files

        try:
            os.close(files.open_in_root(self._root, path, _DIRECTORY))
        except OSError:
            return False
        return True

    def folder(self, path: str, *, links: int = 0) -> int:
        """Open a directory, made with those above it where they are missing."""
        from wherry.kernel import files

        try:
            return files.open_in_root(self._root, path, _DIRECTORY)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            self._not_a_directory(path)
        above, name = posixpath.split(path)
        parent = self.folder(above, links=links)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            return self._fresh(name, parent)
        except FileExistsError:
            if links >= _LINKS_MAX:
                raise
            target = os.readlink(name, dir_fd=parent)  # it points at nothing yet
            return self.folder(posixpath.normpath(posixpath.join(above, target)), links=links + 1)
        finally:
            os.close(parent)

    def _fresh(self, name: str, parent: int) -> int:
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        os.fchmod(fd, 0o755)  # mkdir is subject to the umask
        os.fchown(fd, *(self._owner or (0, 0)))
        return fd

    def directory(self, target: str, item: Item, *, into: bool) -> tuple[Entry, ...]:
        """The contents of a directory; itself only where nothing is at the target."""
        made = not into and not self.is_directory(target)
        top = self.folder(target)
        try:
            written = _Below(self, top, item.tree).all(item.entries[1:])
            if made:
                self.finish(top, item.entries[0])
        finally:
            os.close(top)
        return (item.entries[0], *written)

    def file(self, target: str, item: Item) -> tuple[Entry, ...]:
        """One thing that is no directory, at exactly this path."""
        above, name = posixpath.split(target)
        parent = self.folder(above)
        try:
            return (_Below(self, parent, item.tree).one(parent, name, item.entries[0]),)
        finally:
            os.close(parent)

    def finish(self, fd: int, entry: Entry) -> None:
        """Owner, rights, attributes and time of what was made: in this order, for chown takes setuid away."""
        os.fchown(fd, *(self._owner or (entry.uid, entry.gid)))
        os.fchmod(fd, stat.S_IMODE(entry.mode) if self._mode is None else self._mode)
        for name, value in entry.xattrs:
            os.setxattr(fd, name, value)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def finish_special(self, parent: int, name: str, entry: Entry) -> None:
        """The same for links and nodes, which cannot be opened."""
        os.chown(name, *(self._owner or (entry.uid, entry.gid)), dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(entry.mode):
            os.chmod(name, stat.S_IMODE(entry.mode) if self._mode is None else self._mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _not_a_directory(self, path: str) -> NoReturn:
        raise WherryError(Kind.INVALID, f"cannot copy to non-directory: {path}", hint="name a directory, or a file")


class _Below:
    """Writes the entries of one source below a directory of the root."""

    def __init__(self, writer: Writer, top: int, tree: Tree) -> None:
        self._writer, self._top, self._tree = writer, top, tree
        self._names: dict[tuple[int, int], str] = {}  # inode of the source: where it was put first

    def all(self, entries: Sequence[Entry]) -> list[Entry]:
        """Everything, parents first; the directories' times last."""
        written = []
        for entry in entries:
            above, name = posixpath.split(entry.path)
            parent = self._folder(above)
            try:
                written.append(self.one(parent, name, entry))
            finally:
                os.close(parent)
        for entry in reversed(entries):
            if stat.S_ISDIR(entry.mode):
                fd = self._folder(entry.path)
                try:
                    os.utime(fd, ns=(entry.mtime, entry.mtime))
                finally:
                    os.close(fd)
        return written

    def _folder(self, path: str) -> int:
        """A directory that was made before; one that only a pattern with ! wanted is made now."""
        from wherry.kernel import files

        try:
            return files.open_beneath(self._top, path or ".", _DIRECTORY)
        except FileNotFoundError:
            above, name = posixpath.split(path)
            parent = self._folder(above)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            finally:
                os.close(parent)
            return files.open_beneath(self._top, path, _DIRECTORY)

    def one(self, parent: int, name: str, entry: Entry) -> Entry:
        """One entry; what is in its place goes, but for a directory."""
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFDIR:
            self._directory(parent, name, entry)
            return entry
        self._clear(parent, name, entry)
        first = self._names.get(entry.inode) if entry.inode else None
        if first is not None:
            self._hard_link(first, parent, name)
            return entry
        if entry.inode:
            self._names[entry.inode] = entry.path
        if kind == stat.S_IFREG:
            return self._file(parent, name, entry)
        self._special(parent, name, entry, kind)
        return entry

    def _directory(self, parent: int, name: str, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise WherryError(
                    Kind.INVALID, f"cannot copy to non-directory: {entry.path}",
                    hint="a file or a link has this name in the image",
                ) from None  # fmt: skip
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._writer.finish(fd, entry)
        finally:
            os.close(fd)

    @staticmethod
    def _clear(parent: int, name: str, entry: Entry) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            raise WherryError(
                Kind.INVALID, f"cannot overwrite directory {name!r} with the file {entry.source!r}",
                hint="a directory has this name in the image",
            ) from None  # fmt: skip

    def _file(self, parent: int, name: str, entry: Entry) -> Entry:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        digest = hashlib.sha256()
        with open(self._tree.file(entry.source), "rb") as source, open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as target:  # noqa: E501  # fmt: skip
            while data := source.read(_CHUNK):
                digest.update(data)
                target.write(data)
            target.flush()
            self._writer.finish(target.fileno(), entry)
        return entry._replace(digest=digest.hexdigest())

    def _hard_link(self, first: str, parent: int, name: str) -> None:
        above, last = posixpath.split(first)
        folder = self._folder(above)
        try:
            os.link(last, name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(folder)

    def _special(self, parent: int, name: str, entry: Entry, kind: int) -> None:
        if kind == stat.S_IFLNK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            os.mknod(name, kind | 0o600, entry.device, dir_fd=parent)
        self._writer.finish_special(parent, name, entry)
