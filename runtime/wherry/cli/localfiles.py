"""Files of the host for `cp`: packed into a tar stream, and taken out of one that a container could have shaped.

Decides docker's rules for names, and that nothing is written through a symlink: each path is walked by descriptors,
component by component. Devices are left out. Reads tar headers with tarfile but never lets it write.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from wherry.errors import Kind, WherryError

CHUNK = 1 << 18
BLOCK = 512


# ---- out: a tar stream of host files ----


def pack(path: str, name: str, follow: bool) -> Iterator[bytes]:
    """The tree at `path` as a tar stream whose root is `name`; `follow`: what a symlink at the root points to."""
    yield from _entries(os.path.realpath(path) if follow else path, name, {})
    yield bytes(2 * BLOCK)


def _entries(path: str, name: str, seen: dict[tuple[int, int], str]) -> Iterator[bytes]:
    about = os.lstat(path)
    if stat.S_ISSOCK(about.st_mode):
        return  # tar has no sockets; docker leaves them out too
    yield from _entry(path, name, about, seen)
    if stat.S_ISDIR(about.st_mode):
        for child in sorted(os.listdir(path)):
            yield from _entries(os.path.join(path, child), f"{name}/{child}", seen)


TYPES = (
    (stat.S_ISREG, tarfile.REGTYPE),
    (stat.S_ISDIR, tarfile.DIRTYPE),
    (stat.S_ISLNK, tarfile.SYMTYPE),
    (stat.S_ISFIFO, tarfile.FIFOTYPE),
    (stat.S_ISCHR, tarfile.CHRTYPE),
    (stat.S_ISBLK, tarfile.BLKTYPE),
)


def _entry(path: str, name: str, about: os.stat_result, seen: dict[tuple[int, int], str]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.type = next(kind for holds, kind in TYPES if holds(about.st_mode))
    info.mode, info.mtime = stat.S_IMODE(about.st_mode), about.st_mtime
    info.uid, info.gid = about.st_uid, about.st_gid
    if info.issym():
        info.linkname = os.readlink(path)
    if info.ischr() or info.isblk():
        info.devmajor, info.devminor = os.major(about.st_rdev), os.minor(about.st_rdev)
    key = (about.st_dev, about.st_ino)
    if info.isreg() and about.st_nlink > 1 and key in seen:
        info.type, info.linkname = tarfile.LNKTYPE, seen[key]
    seen[key] = name
    info.size = about.st_size if info.isreg() else 0
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if info.isreg():
        yield from _content(path, info.size)


def _content(path: str, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes: what was cut off meanwhile is zeros, what was added is left out, as tar does."""
    left = size
    with open(path, "rb") as file:
        while left:
            data = file.read(min(left, CHUNK)) or bytes(min(left, CHUNK))
            left -= len(data)
            yield data
    yield bytes(-size % BLOCK)


# ---- in: host files from a tar stream ----


class Stream:
    """An iterator of bytes as the forward-only file that tarfile reads."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._held, self._at = iter(chunks), b"", 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left for -1; fewer only at the end."""
        parts = [self._held]
        have = len(self._held)
        while size < 0 or have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        size = len(data) if size < 0 else min(size, len(data))
        self._held, self._at = data[size:], self._at + size
        return data[:size]

    def tell(self) -> int:
        """Where the stream is."""
        return self._at

    def seek(self, to: int) -> None:
        """Go forward."""
        while self._at < to:
            if not self.read(min(to - self._at, CHUNK)):
                return


def unpack(chunks: Iterable[bytes], directory: str, name: str, *, keep_owner: bool, contents: bool) -> int:
    """Write the stream's tree below `directory`, its root called `name` (`contents`: its root is the directory itself).

    Returns the bytes of content written.
    """
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        writer = _Writer(top, keep_owner, lambda path: _placed(path, name, contents))
        with tarfile.TarFile(fileobj=Stream(chunks), mode="r", errorlevel=2) as tar:  # type: ignore[arg-type]
            for member in tar:
                writer.write(tar, member)
        writer.finish()
        return writer.total
    except tarfile.TarError as error:
        raise WherryError(Kind.INTERNAL, f"the tar stream of the container cannot be read: {error}") from error
    finally:
        os.close(top)


def _placed(path: str, name: str, contents: bool) -> list[str]:
    """The components below the target directory for a member's name."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise WherryError(Kind.INVALID, f'the tar stream holds a path with "..": {path}')
    return parts[1:] if contents else [name, *parts[1:]]


class _Writer:
    """Makes the members one by one, each in its parent's descriptor."""

    def __init__(self, top: int, keep_owner: bool, place: Callable[[str], list[str]]) -> None:
        self._top, self._keep, self._place = top, keep_owner, place
        self._times: list[tuple[list[str], int, float]] = []  # directories get mode and time when all is in them
        self.total = 0

    def write(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one member."""
        parts = self._place(member.name)
        if not parts:
            return
        parent = self._open(parts[:-1])
        try:
            self._make(tar, member, parent, parts)
        except OSError as error:
            raise WherryError(Kind.INVALID, f"cannot write {'/'.join(parts)}: {error.strerror}") from error
        finally:
            os.close(parent)

    def _open(self, parts: list[str]) -> int:
        """A descriptor of a directory below the top, no component of which is a symlink."""
        fd = os.dup(self._top)
        for part in parts:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                below = os.open(part, flags, dir_fd=fd)
            except OSError as error:
                raise WherryError(
                    Kind.INVALID, f"{'/'.join(parts)}: {part} is no directory ({error.strerror})"
                ) from error
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, parts: list[str]) -> None:
        name = parts[-1]
        if member.isdir():
            self._directory(member, parent, parts)
            return
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if member.isreg():
            self._file(tar, member, parent, name)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            self._link(member, parent, name)
            return
        elif member.isfifo():
            os.mkfifo(name, member.mode & 0o7777, dir_fd=parent)
        else:
            return  # a device: `cp` is no way to make one on the host
        self._own(member, parent, name)
        os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _directory(self, member: tarfile.TarInfo, parent: int, parts: list[str]) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                raise
            return
        self._own(member, parent, parts[-1])
        self._times.append((parts, member.mode & 0o7777, member.mtime))

    def _file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            source = tar.extractfile(member)
            assert source is not None
            while data := source.read(CHUNK):
                file.write(data)
                self.total += len(data)
            self._own(member, parent, name)
            # after chown, which clears the set-id bits; without the archive's owner they would be the caller's
            os.fchmod(file.fileno(), member.mode & (0o7777 if self._keep else 0o777))

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        parts = self._place(member.linkname)
        source = self._open(parts[:-1])
        try:
            os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _own(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        if self._keep:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def finish(self) -> None:
        """Modes and times of the directories, the deepest first."""
        for parts, mode, mtime in reversed(self._times):
            fd = self._open(parts)
            try:
                os.chmod(f"/proc/self/fd/{fd}", mode)
                os.utime(f"/proc/self/fd/{fd}", (mtime, mtime))
            finally:
                os.close(fd)
