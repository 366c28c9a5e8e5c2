"""The mount table, and mounts made as descriptors: configured while nobody sees them, then attached in one call.

So there is no moment at which a read-only publish can be written, no path that is resolved twice, and a process that
is killed before the last call has left nothing. Refuses to know volumes, devices and what a mount is for.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import kernel
from .errors import CsiError

__all__ = [
    "ATTRIBUTES",
    "Mount",
    "at",
    "attach",
    "attributes",
    "attributes_of",
    "bind",
    "containing",
    "handle",
    "new",
    "of_device",
    "parse",
    "real_path",
    "root",
    "spots",
    "table",
    "unmount",
]

#: mount options that belong to a mount and not to its file system: (set, cleared)
ATTRIBUTES = {
    "ro": (kernel.ATTR_RDONLY, 0),
    "rw": (0, kernel.ATTR_RDONLY),
    "nosuid": (kernel.ATTR_NOSUID, 0),
    "suid": (0, kernel.ATTR_NOSUID),
    "nodev": (kernel.ATTR_NODEV, 0),
    "noexec": (kernel.ATTR_NOEXEC, 0),
    "exec": (0, kernel.ATTR_NOEXEC),
    "noatime": (kernel.ATTR_NOATIME, kernel.ATTR_ATIME),
    "relatime": (0, kernel.ATTR_ATIME),
    "strictatime": (kernel.ATTR_STRICTATIME, kernel.ATTR_ATIME),
    "nodiratime": (kernel.ATTR_NODIRATIME, 0),
    "diratime": (0, kernel.ATTR_NODIRATIME),
    "nosymfollow": (kernel.ATTR_NOSYMFOLLOW, 0),
}
#: words of fstab(5) that mean nothing to the kernel
_SILENT = re.compile(r"defaults|auto|noauto|nofail|_netdev|users?|nousers?|(x-|X-|comment=).*")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5)."""

    id: int
    parent: int
    device: str  # "major:minor" of the superblock
    root: str  # what of the file system is mounted: "/" or a path in it
    target: str
    options: tuple[str, ...]  # of this mount
    fs: str
    source: str
    super_options: tuple[str, ...] = ()  # of the file system


def _plain(text: str) -> str:
    """Octal escapes undone, in the file system's encoding."""
    if "\\" not in text:
        return text
    raw = _ESCAPE.sub(lambda found: chr(int(found[1], 8) & 0xFF), os.fsencode(text).decode("latin-1"))
    return os.fsdecode(raw.encode("latin-1"))


def parse(line: str) -> Mount:
    """A line of mountinfo without its newline; the number of optional fields before "-" varies."""
    words = line.split(" ")
    dash = words.index("-", 6)
    return Mount(
        int(words[0]),
        int(words[1]),
        words[2],
        _plain(words[3]),
        _plain(words[4]),
        tuple(words[5].split(",")),
        _plain(words[dash + 1]),
        _plain(words[dash + 2]),
        tuple(words[dash + 3].split(",")),
    )


def _lines() -> Iterator[str]:
    with open("/proc/thread-self/mountinfo", "rb") as file:  # bytes: "\r" is no end of a line
        yield from map(os.fsdecode, file.read().split(b"\n")[:-1])


def table() -> list[Mount]:
    """All mounts of this mount namespace, in the kernel's order: what covers comes after what is covered."""
    return list(map(parse, _lines()))


def of_device(device: str) -> list[Mount]:
    """The mounts of the superblock "major:minor"; only their lines are parsed, of what may be thousands."""
    return [parse(line) for line in _lines() if line.split(" ", 3)[2] == device]


def spots(mounts: Sequence[Mount]) -> dict[int, tuple[str, str]]:
    """By id where in its parent's file system a mount is: device and path there. Copies by propagation are at one."""
    wanted = {str(mount.parent) for mount in mounts}
    parents = {found.id: found for found in (parse(line) for line in _lines() if line.split(" ", 1)[0] in wanted)}
    return {mount.id: _spot(mount, parents.get(mount.parent)) for mount in mounts}


def _spot(mount: Mount, parent: Mount | None) -> tuple[str, str]:
    if not parent:
        return "", mount.target
    inside = os.path.relpath(mount.target, parent.target)
    return parent.device, os.path.normpath(os.path.join(parent.root, inside))


def real_path(fd: int) -> str:
    """The path of a descriptor as the kernel has it, and as the mount table writes it."""
    return os.readlink(f"/proc/thread-self/fd/{fd}")


def _mount_id(fd: int) -> int:
    with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def containing(fd: int) -> Mount | None:
    """The mount that a descriptor was opened through; None if it is in no table that we see."""
    wanted = f"{_mount_id(fd)} "
    return next((parse(line) for line in _lines() if line.startswith(wanted)), None)


@contextmanager
def handle(path: str) -> Iterator[int]:
    """`path` as a handle (O_PATH) while the context lasts; a symlink is not followed but refused (ELOOP)."""
    fd = os.open(path.rstrip("/") or "/", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # "link/" would be followed
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        yield fd
    finally:
        os.close(fd)


def at(path: str) -> list[Mount]:
    """The mounts on `path` itself, bottom to top; none if there is no such path. Symlinks on the way are followed."""
    try:
        with handle(path) as fd:
            real = real_path(fd)
    except FileNotFoundError:
        return []
    return [mount for mount in table() if mount.target == real]


def attributes(options: Iterable[str]) -> tuple[int, list[str]]:
    """Mount attributes of the words that are such, and the words left for the file system. The last one wins."""
    bits, left = 0, []
    for word in options:
        if word in ATTRIBUTES:
            on, off = ATTRIBUTES[word]
            bits = bits & ~off | on
        elif not _SILENT.fullmatch(word):
            left.append(word)
    return bits, left


def attributes_of(mount: Mount) -> int:
    """What a mount has; strict access times are what the table does not mention."""
    strict = not {"noatime", "relatime"}.intersection(mount.options)
    return attributes(mount.options)[0] | (kernel.ATTR_STRICTATIME if strict else 0)


def new(fs: str, source: str, options: Iterable[str], bits: int) -> int:
    """A detached mount of the file system `fs` on `source`, as a handle (O_PATH) of its root. It lasts as long as that
    is open, or it is attached. An OSError's text is what the kernel logged."""
    context = kernel.fsopen(fs)
    try:
        kernel.fsconfig(context, "source", source)
        for word in options:
            key, equals, value = word.partition("=")
            kernel.fsconfig(context, key, value if equals else None)
        return kernel.fsmount(context, bits)
    finally:
        os.close(context)


@contextmanager
def root(mount: int) -> Iterator[int]:
    """A readable descriptor of the root of a detached mount, which itself is only a handle."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        yield fd
    finally:
        os.close(fd)


def attach(fd: int, target: str) -> None:
    """Attach a detached mount at `target`, which is not followed if it is a symlink."""
    with handle(target) as there:
        kernel.move_mount(fd, there)


def bind(source: str, target: str, *, readonly: bool = False, options: Iterable[str] = ()) -> None:
    """Mount `source`, a directory or a file, on `target`; with its attributes from the first moment on.

    `options` are words of ATTRIBUTES; others: INVALID_ARGUMENT. Submounts of the source do not come along.
    """
    bits, left = attributes([*options, *(["ro"] if readonly else [])])
    if left:
        word, known = left[0].partition("=")[0], " ".join(ATTRIBUTES)
        raise CsiError("INVALID_ARGUMENT", f"{word!r} is no option of a bind mount; there are: {known}")
    fd = kernel.open_tree(source)
    try:
        if bits:
            kernel.mount_setattr(fd, bits)
        attach(fd, target)
    finally:
        os.close(fd)


def unmount(target: str) -> None:
    """Take the topmost mount off `target`; nothing mounted there or no such path: nothing to do. EBUSY is raised."""
    with suppress(FileNotFoundError):
        try:
            kernel.unmount(target)
        except OSError as error:
            if error.errno != errno.EINVAL:  # no mount point
                raise
