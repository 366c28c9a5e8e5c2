"""Directories that things are copied from: a build context or the root of a stage, and what is found in them.

Decides how a name that a Dockerfile gives becomes a handle: always beneath the tree's root, links resolve in it and
lead nowhere else (invariants 1 and 13). A context holds files, directories and links of nobody in particular; a stage's
root has owners, devices and attributes too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.patterns import EVERYTHING, Ignore, has_glob, matcher

__all__ = ["Entry", "Tree"]

_ROOT = stat.S_IFDIR | 0o755
_ENTRIES_MAX = 5_000_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_KEPT = ("user.", "trusted.", "security.capability")
_NOT_KEPT = ("trusted.overlay.", "user.overlay.")


class Entry(NamedTuple):
    """One thing to copy. `path` is below what was asked for, "" for that itself; `source` below the tree's root."""

    path: str
    source: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int  # ns
    device: int = 0
    link: str = ""
    digest: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    inode: tuple[int, int] | None = None  # where it has several names

    @property
    def facts(self) -> list[object]:
        """What a cache key knows of it: everything but its times."""
        xattrs = [[name, value.hex()] for name, value in self.xattrs]
        return [self.path, self.mode, self.uid, self.gid, self.device, self.link, self.digest, xattrs]


class Tree:
    """A tree by the descriptor of its root, which stays the caller's. `context`: owners and devices do not count."""

    def __init__(self, root: int, what: str, *, context: bool = False, ignore: Ignore = EVERYTHING) -> None:
        self.root, self.what, self.context, self.ignore = root, what, context, ignore
        self._base = os.readlink(f"/proc/self/fd/{root}").rstrip("/")

    def find(self, text: str) -> list[tuple[str, str]]:
        """What a source or a pattern means, in order: its name, and its path below the root with links resolved."""
        clean = os.path.normpath("/" + text).strip("/")
        if not has_glob(clean):
            found = self._resolve(clean)
            return [] if found is None else [(os.path.basename(clean), found)]
        matched = [path for path in self._matching(clean.split("/")) if not self.ignore.ignores(path)]
        resolved = [(os.path.basename(path), self._resolve(path)) for path in matched]
        return [(name, path) for name, path in resolved if path is not None]

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Open what lies at a path that `find` or `entries` gave; a link on the way or at its end is an error."""
        from wherry.kernel import files

        return files.open_beneath(self.root, path or ".", flags, cross=self.context)

    def entries(self, path: str, *, exclude: Ignore = EVERYTHING) -> Iterator[Entry]:
        """What is at a path, then what is below it, sorted; files with their digests."""
        pending, count = [""], 0
        while pending:
            inner = pending.pop()
            entry = self._entry(path, inner)
            if entry is None:
                continue
            count += 1
            if count > _ENTRIES_MAX:
                raise WherryError(Kind.EXHAUSTED, f"{self.what} holds more than {_ENTRIES_MAX} files")
            wanted = not inner or not (self.ignore.ignores(entry.source) or exclude.ignores(inner))
            if stat.S_ISDIR(entry.mode) and (wanted or self.ignore.takes_back or exclude.takes_back):
                names = self._names(entry.source)
                pending += [f"{inner}/{name}" if inner else name for name in reversed(names)]
            if wanted:
                yield entry

    # ---- inside

    def _resolve(self, path: str) -> str | None:
        from wherry.kernel import files

        try:
            fd = files.open_in_root(self.root, path or ".", os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(path, error) from error
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if found != self._base and not found.startswith(self._base + "/"):
            raise WherryError(Kind.DENIED, f"{path!r} leads out of {self.what}")
        inner = found[len(self._base) :].strip("/")
        if not inner or not self.ignore.ignores(inner):
            return inner
        return inner if self.ignore.takes_back and self._is_directory(inner) else None

    def _matching(self, parts: list[str], base: str = "") -> Iterator[str]:
        """Part by part; ** walks through all that is below."""
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self._matching_below(parts, base)
            return
        pattern = matcher(first)
        for name in self._names(base):
            if pattern.match(name):
                path = f"{base}/{name}" if base else name
                if not rest:
                    yield path
                elif self._is_directory(path):
                    yield from self._matching(rest, path)

    def _matching_below(self, parts: list[str], base: str) -> Iterator[str]:
        if parts[1:]:
            yield from self._matching(parts[1:], base)
        for name in self._names(base):
            path = f"{base}/{name}" if base else name
            if not parts[1:]:
                yield path
            elif self._is_directory(path):
                yield from self._matching_below(parts, path)

    def _is_directory(self, path: str) -> bool:
        return stat.S_ISDIR(self._stat(path).st_mode)

    def _stat(self, path: str) -> os.stat_result:
        fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _names(self, path: str) -> list[str]:
        try:
            fd = self.open(path, _DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._failed(path, error) from error
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _failed(self, path: str, error: OSError) -> WherryError:
        if error.errno == errno.ELOOP:
            return WherryError(Kind.INVALID, f"{path!r} in {self.what}: a loop of symbolic links, or a magic one")
        return WherryError(Kind.INVALID, f"cannot read {path!r} in {self.what}: {error.strerror}")

    def _entry(self, path: str, inner: str) -> Entry | None:
        """None for what is gone again, and for a socket."""
        source = f"{path}/{inner}".strip("/") if inner else path
        try:
            fd = self.open(source, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(source, error) from error
        try:
            return self._seen(inner, source, fd, os.fstat(fd))
        finally:
            os.close(fd)

    def _seen(self, inner: str, source: str, fd: int, found: os.stat_result) -> Entry | None:
        mode = found.st_mode if source or not self.context else _ROOT  # how the caller keeps it is nobody's business
        if stat.S_ISSOCK(mode):
            return None
        if self.context and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            hint = "a build context holds files, directories and links; put it into .dockerignore"
            raise WherryError(Kind.DENIED, f"{source!r} in {self.what} is a device", hint=hint)
        entry = Entry(inner, source, mode, 0, 0, found.st_size, found.st_mtime_ns)
        several = found.st_nlink > 1 and not stat.S_ISDIR(mode)
        entry = entry._replace(
            link=os.readlink("", dir_fd=fd) if stat.S_ISLNK(mode) else "",
            digest=self._digest(source) if stat.S_ISREG(mode) else "",
            inode=(found.st_dev, found.st_ino) if several else None,
        )
        return entry if self.context else _owned(entry, fd, found)

    def _digest(self, source: str) -> str:
        with open(self.file(source), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def file(self, source: str) -> int:
        """Open a regular file; anything else in its place is an error, and not even opened."""
        fd = -1
        try:
            fd = self.open(source, os.O_PATH | os.O_NOFOLLOW)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(source, error) from error
        finally:
            if fd >= 0:
                os.close(fd)
        raise WherryError(Kind.CONFLICT, f"{source!r} in {self.what} was changed while it was read")


def _owned(entry: Entry, fd: int, found: os.stat_result) -> Entry:
    """What only the tree of a stage knows: owner, device number, attributes."""
    device = found.st_rdev if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode) else 0
    return entry._replace(uid=found.st_uid, gid=found.st_gid, device=device, xattrs=_xattrs(fd, found.st_mode))


def _xattrs(fd: int, mode: int) -> tuple[tuple[str, bytes], ...]:
    if stat.S_ISLNK(mode):
        return ()
    path = f"/proc/self/fd/{fd}"
    try:
        names = [name for name in os.listxattr(path) if name.startswith(_KEPT) and not name.startswith(_NOT_KEPT)]
        return tuple((name, os.getxattr(path, name)) for name in sorted(names))
    except OSError:
        return ()
