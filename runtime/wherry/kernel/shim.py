"""Kernel calls that Python's `os` lacks, one typed function each, and the numbers of the helper's vocabulary.

Errors are OSError with the path. Decides nothing. The cffi module `_shim` (native/shim.c) is imported with this module,
so import this lazily. Man pages: openat2(2), open_tree(2), move_mount(2), mount_setattr(2), fsopen(2), memfd_create(2).
"""

from __future__ import annotations

import fcntl
import os
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from wherry.kernel import _shim

__all__ = [
    "FLAGS",
    "LOGS",
    "OPS",
    "SIDES",
    "attach_device_program",
    "fsconfig_create",
    "fsconfig_flag",
    "fsconfig_string",
    "fsmount",
    "fsopen",
    "go_on_in",
    "helper_memfd",
    "inotify",
    "inotify_add",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pidfd_getfd",
    "populate",
    "read_many",
    "sealed_memfd",
    "setns",
    "umount2",
    "unshare",
]

_lib, _ffi = _shim.lib, _shim.ffi

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final[int] = _lib.AT_EMPTY_PATH
AT_RECURSIVE: Final[int] = _lib.AT_RECURSIVE
AT_SYMLINK_NOFOLLOW: Final[int] = _lib.AT_SYMLINK_NOFOLLOW
OPEN_TREE_CLONE: Final[int] = _lib.OPEN_TREE_CLONE
MOVE_MOUNT_F_EMPTY_PATH: Final[int] = _lib.MOVE_MOUNT_F_EMPTY_PATH
MOVE_MOUNT_T_EMPTY_PATH: Final[int] = _lib.MOVE_MOUNT_T_EMPTY_PATH
MOUNT_ATTR_RDONLY: Final[int] = _lib.MOUNT_ATTR_RDONLY
MOUNT_ATTR_NOSUID: Final[int] = _lib.MOUNT_ATTR_NOSUID
MOUNT_ATTR_NODEV: Final[int] = _lib.MOUNT_ATTR_NODEV
MOUNT_ATTR_NOEXEC: Final[int] = _lib.MOUNT_ATTR_NOEXEC
MOUNT_ATTR_IDMAP: Final[int] = _lib.MOUNT_ATTR_IDMAP
RESOLVE_IN_ROOT: Final[int] = _lib.RESOLVE_IN_ROOT
RESOLVE_BENEATH: Final[int] = _lib.RESOLVE_BENEATH
RESOLVE_NO_MAGICLINKS: Final[int] = _lib.RESOLVE_NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: Final[int] = _lib.RESOLVE_NO_SYMLINKS
RESOLVE_NO_XDEV: Final[int] = _lib.RESOLVE_NO_XDEV
CLONE_NEWNS: Final[int] = _lib.CLONE_NEWNS
CLONE_NEWNET: Final[int] = _lib.CLONE_NEWNET
CLONE_NEWUSER: Final[int] = _lib.CLONE_NEWUSER

WH_MAGIC: Final[int] = _lib.WH_MAGIC
WH_VERSION: Final[int] = _lib.WH_VERSION
CREATED: Final[int] = _lib.WH_CREATED
STARTED: Final[int] = _lib.WH_STARTED
FAILED: Final[int] = _lib.WH_FAILED

#: numbers of the plan's vocabulary, from the compiler that built the helper
OPS: Final[dict[str, int]] = {name[6:]: getattr(_lib, name) for name in dir(_lib) if name.startswith("WH_OP_")}
FLAGS: Final[dict[str, int]] = {name[5:]: getattr(_lib, name) for name in dir(_lib) if name.startswith("WH_F_")}
SIDES: Final[dict[str, int]] = {"H": _lib.WH_SIDE_H, "C": _lib.WH_SIDE_C, "M": _lib.WH_SIDE_M}
LOGS: Final[dict[str, int]] = {"none": _lib.WH_LOG_NONE, "cri": _lib.WH_LOG_CRI, "json": _lib.WH_LOG_JSON,
                               "journald": _lib.WH_LOG_JOURNALD}


def _checked(ret: int, path: str = "") -> int:
    if ret < 0:
        number = _ffi.errno
        raise OSError(number, os.strerror(number), *([path] if path else []))
    return ret


def openat2(root: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` from the descriptor `root` under RESOLVE_* rules; mode only counts with O_CREAT or O_TMPFILE."""
    mode = mode if flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY) else 0
    return _checked(_lib.sh_openat2(root, os.fsencode(path), flags, mode, resolve), path)


def open_tree(root: int, path: str, flags: int) -> int:
    """A mount as a descriptor; with OPEN_TREE_CLONE a detached copy."""
    return _checked(_lib.sh_open_tree(root, os.fsencode(path), flags), path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach or move a mount."""
    _checked(_lib.sh_move_mount(from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags), to_path)


def mount_setattr(root: int, path: str, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0,
                  userns_fd: int = 0) -> None:
    """Change a mount's attributes (MOUNT_ATTR_*), its propagation or its id mapping."""
    _checked(_lib.sh_mount_setattr(root, os.fsencode(path), flags, attr_set, attr_clr, propagation, userns_fd), path)


def fsopen(kind: str) -> int:
    """A context for a new filesystem of type `kind`."""
    return _checked(_lib.sh_fsopen(os.fsencode(kind)), kind)


def fsconfig_string(context: int, key: str, value: str) -> None:
    """One option with a value; the kernel takes fewer than 256 bytes."""
    text = os.fsencode(value)
    _explained(context, _lib.sh_fsconfig(context, _lib.FSCONFIG_SET_STRING, os.fsencode(key), text), f"{key}={value}")


def fsconfig_flag(context: int, key: str) -> None:
    """One option without a value."""
    _explained(context, _lib.sh_fsconfig(context, _lib.FSCONFIG_SET_FLAG, os.fsencode(key), _ffi.NULL), key)


def fsconfig_create(context: int) -> None:
    """Make the superblock that the options describe."""
    ret = _lib.sh_fsconfig(context, _lib.FSCONFIG_CMD_CREATE, _ffi.NULL, _ffi.NULL)
    _explained(context, ret, "create")


def _explained(context: int, ret: int, what: str) -> None:
    """The filesystem's own words, where it left any in its context, make the error."""
    if ret >= 0:
        return
    number = _ffi.errno
    try:
        words = os.read(context, 1024).decode(errors="replace").strip()
    except OSError:
        words = ""
    raise OSError(number, words or os.strerror(number), what)


def fsmount(context: int, attributes: int = 0) -> int:
    """The context's filesystem as a detached mount."""
    return _checked(_lib.sh_fsmount(context, attributes))


def umount2(path: str, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_lib.sh_umount(os.fsencode(path), flags), path)


def setns(fd: int, kind: int) -> None:
    """Join a namespace: the calling thread only."""
    _checked(_lib.sh_setns(fd, kind))


def unshare(kinds: int) -> None:
    """Leave for new namespaces: the calling thread only."""
    _checked(_lib.sh_unshare(kinds))


def go_on_in(cgroup: int) -> None:
    """What follows is done by a new process, born into this cgroup (a descriptor), in the memory of this one, which
    sleeps until the new one has ended, and ends then (clone3(2): CLONE_VM, CLONE_VFORK, CLONE_INTO_CGROUP). For one
    thread only."""
    _checked(_lib.sh_go_on_in(cgroup))


def populate(areas: array[int]) -> None:
    """madvise(2), MADV_POPULATE_WRITE, of areas of whole pages: start, end, start, end... Each as far as it goes."""
    _lib.sh_populate(_ffi.from_buffer("uint64_t[]", areas), len(areas) // 2)


def read_many(directory: str, names: Sequence[str], room: int = 1 << 16) -> list[bytes | None]:
    """What small files below a directory hold, None for one that cannot be read; a name that ends in
    "@" is a link, and its target is told. ENOSPC where all together are larger than `room` bytes."""
    out, sizes = _ffi.new("char[]", room), _ffi.new("int32_t[]", len(names))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        text = "\0".join(names).encode("utf-8", "surrogateescape")
        _checked(_lib.sh_read_many(fd, text, len(names), out, room, sizes), directory)
    finally:
        os.close(fd)
    data, found, at = _ffi.buffer(out), [], 0
    for size in sizes:
        found.append(None if size < 0 else data[at : at + size])
        at += max(size, 0)
    return found


def inotify(paths: Iterable[str], events: int) -> int:
    """A descriptor (inotify(7), non-blocking) that tells these events (IN_*) of the paths; watch by watch in order."""
    fd = _checked(_lib.sh_inotify())
    try:
        for path in paths:
            _checked(_lib.sh_inotify_add(fd, os.fsencode(path), events), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def inotify_add(fd: int, path: str, events: int) -> int:
    """Let the descriptor of `inotify` tell these events of one more path; the watch's number, an old one's for a path
    that is watched already."""
    return _checked(_lib.sh_inotify_add(fd, os.fsencode(path), events), path)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor."""
    return _checked(_lib.sh_pidfd_getfd(pidfd, fd))


def attach_device_program(cgroup: int, code: bytes, *, replace: bool = False) -> None:
    """Load `code` (struct bpf_insn[]), attach it to the cgroup's descriptor; OSError has the verifier's last words.
    `replace`: in the place of our program that is there (by its name; one that is not ours stays beside it)."""
    if _lib.sh_bpf_device(cgroup, code, len(code) // 8, _ffi.NULL, 0, replace) == 0:
        return
    number = _ffi.errno
    log = _ffi.new("char[]", 65536)
    if _lib.sh_bpf_device(cgroup, code, len(code) // 8, log, len(log), replace) == 0:
        return
    words = _ffi.string(log).decode(errors="replace").strip().splitlines()
    raise OSError(number, "; ".join(words[-3:]) or os.strerror(number), "device program")


def syncfs(fd: int) -> None:
    """syncfs(2): wait until all that was written to the file system of `fd` is on its device."""
    _checked(_lib.sh_syncfs(fd))


def trim() -> None:
    """malloc_trim(3): what is free in all arenas goes back to the kernel."""
    _lib.sh_trim()


def only_compute() -> None:
    """From here on this process reads and writes what it holds or is given (recvmsg), makes threads, and nothing else.

    A seccomp filter, for good; to be called before there are threads.
    """
    _checked(_lib.sh_only_compute())


def sealed_memfd(name: str, data: bytes, *, executable: bool = False) -> int:
    """An anonymous file holding `data` that nobody can change any more, at its start."""
    fd = _checked(_lib.sh_memfd(os.fsencode(name), int(executable)))
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        _checked(_lib.sh_seal(fd))
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


_ABOVE_SLOTS: Final = 5 + _lib.WH_MAX_SLOTS
HELPER: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_native", "wherry-helper")


@lru_cache(maxsize=1)
def _helper_image() -> bytes:
    with open(HELPER, "rb") as file:
        return file.read()


def helper_memfd() -> int:
    """The helper in a sealed memfd, the caller's to close: a container cannot write to its image (CVE-2019-5736).

    The descriptor lies above every slot of a plan, so that no dup2 of a launcher falls on it before the exec.
    """
    fd = sealed_memfd("wherry-helper", _helper_image(), executable=True)
    try:
        high: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_SLOTS)
    except OSError:  # a low RLIMIT_NOFILE
        return fd
    os.close(fd)
    return high
