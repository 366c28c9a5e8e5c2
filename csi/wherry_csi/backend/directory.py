"""Volumes as directories in the pool's own file system, each a quota project of its own: no cost in io, shared room.

Decides the directory's name, its limits and what of a mount is its own. Needs project quota that is enforced: without,
a size would be a wish. Every home, a snapshot's too, has a project. Refuses to know who uses which project.

Whom the kernel does not hold to it: on ext4 a process with CAP_SYS_RESOURCE in the first user namespace, on both a
process there that gives its files another project. An unprivileged container is neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wherry_csi import kernel, mounts, quota, tree
from wherry_csi.errors import CsiError

from . import Extent, PoolFacts, Shape, Usage

__all__ = ["Directory"]

_NAME, _LINKS = "data", "links"
_BLOCK = 4096
_LEAST = 64 << 10
_BYTES_PER_INODE = 16384  # as mke2fs(8) has it: millions of empty files are a neighbour's harm, too
_LEAST_INODES = 1024


def _limit(fd: int, shape: Shape) -> None:
    quota.limit(fd, shape.project, shape.size, max(shape.size // _BYTES_PER_INODE, _LEAST_INODES))


def _made(home: int, shape: Shape) -> None:
    """An empty directory under its limits. Limits first: the journal keeps the order, so fsync of what came last is
    fsync of all."""
    for name in (_NAME, _LINKS):
        tree.remove(name, home)
    _limit(home, shape)
    os.mkdir(_NAME, 0o755, dir_fd=home)
    with tree.opened(_NAME, home) as fd:
        os.fchmod(fd, 0o755)  # whatever the umask
        quota.assign(fd, shape.project)
        os.fsync(fd)


def _root_of(home: int) -> tuple[str, str] | None:
    """Of what a mount table says of mounts of the directory: device and root."""
    mount = mounts.containing(home)
    if not mount:
        return None
    inside = os.path.relpath(mounts.real_path(home), mount.target)
    return mount.device, os.path.normpath(os.path.join(mount.root, inside, _NAME))


def _is_at(home: int, path: str, bits: int | None = None) -> bool:
    """Whether the directory is what is mounted at `path` (with these attributes); foreign: FAILED_PRECONDITION."""
    found = mounts.at(path)
    if not found:
        return False
    top = found[-1]
    if (top.device, top.root) != _root_of(home):
        sentence = f"{path} has a mount of {top.source} on it that is not this volume's; unmount it"
        raise CsiError("FAILED_PRECONDITION", sentence)
    if bits is not None and mounts.attributes_of(top) & bits != bits:
        raise CsiError("ALREADY_EXISTS", f"{path} is staged with other options: {','.join(top.options)}")
    return True


class Directory:
    """A directory named `data` in each home."""

    name = "directory"
    files: tuple[str, ...] = (_NAME,)

    def problem(self, pool: PoolFacts, access: str, fs: str) -> str:
        """Block volumes, pools without quota, other file systems than the pool's."""
        if access == "block":
            return "a directory is no block device; the image backend has block volumes"
        if not pool.project_quota:
            return (
                f"the pool's {pool.fs or 'file system'} enforces no project quota, so sizes would not hold; mount it"
                " with prjquota (ext4: after tune2fs -O project,quota), or use the image backend"
            )
        if fs not in ("", pool.fs):
            return f"a directory has the file system of its pool, {pool.fs}, not {fs}; use the image backend"
        return ""

    def fit(self, size: int, access: str, fs: str) -> int:
        """Whole blocks of 4096 bytes, 64 KiB at least."""
        return max(-(-size // _BLOCK) * _BLOCK, _LEAST)

    def make(self, home: int, shape: Shape) -> None:
        """Empty and limited."""
        _made(home, shape)
        os.fsync(home)

    def copy(self, source: int, old: Shape, home: int, new: Shape) -> None:
        """File by file, cloned where that goes."""
        _made(home, new)
        os.mkdir(_LINKS, 0o700, dir_fd=home)
        names = ((_NAME, source), (_NAME, home), (_LINKS, home))
        with tree.opened(*names[0]) as data, tree.opened(*names[1]) as copy, tree.opened(*names[2]) as links:
            tree.copy(data, copy, links)
        tree.remove(_LINKS, home)
        kernel.syncfs(home)

    @contextmanager
    def quiesced(self, homes: Sequence[tuple[int, Shape]]) -> Iterator[None]:
        """Only of volumes that nobody has: a freeze would stop the pool, and the copy with it."""
        if any(self.staged(home, shape) for home, shape in homes):
            sentence = "directories in use have no common instant; unstage the volumes, or use the image backend"
            raise CsiError("FAILED_PRECONDITION", sentence)
        yield

    def grow(self, home: int, old: Shape, new: Shape) -> bool:
        """Other limits, for who uses it too; the node has nothing to do."""
        _limit(home, new)
        with tree.opened(_NAME, home) as fd:
            quota.assign(fd, new.project)  # a change of the inode, so that fsync has something to wait for
            os.fsync(fd)
        return False

    def allocated(self, home: int, shape: Shape) -> int:
        """What the quota counts."""
        return quota.report(home, shape.project).used

    def stage(self, home: int, shape: Shape, path: str, options: Sequence[str]) -> None:
        """A bind mount, nodev."""
        bits, left = mounts.attributes(options)
        if left:
            known = " ".join(mounts.ATTRIBUTES)
            sentence = f"{left[0].partition('=')[0]!r} is no mount option of the directory backend; there are: {known}"
            raise CsiError("INVALID_ARGUMENT", sentence)
        bits |= kernel.ATTR_NODEV
        if _is_at(home, path, bits):
            return
        with tree.opened(_NAME, home) as fd:
            mount = kernel.open_tree("", fd)
        try:
            kernel.mount_setattr(mount, bits)
            mounts.attach(mount, path)
        finally:
            os.close(mount)

    def expand(self, home: int, shape: Shape) -> None:
        """The quota is what its users see."""

    def source(self, home: int, shape: Shape, staged: str, readonly: bool) -> str:
        """The staged directory."""
        if _is_at(home, staged):
            return staged
        raise CsiError("FAILED_PRECONDITION", f"the volume is not staged at {staged}; call NodeStageVolume first")

    def unstage(self, home: int, shape: Shape, path: str) -> None:
        """All mounts of it at `path`."""
        while _is_at(home, path):
            mounts.unmount(path)

    def staged(self, home: int, shape: Shape) -> bool:
        """Whether it, or a directory in it, is mounted where we see it."""
        ours = _root_of(home)
        if not ours:
            return False
        device, root = ours
        return any(mount.root == root or mount.root.startswith(root + "/") for mount in mounts.of_device(device))

    def usage(self, home: int, shape: Shape) -> Usage:
        """Of the quota; available is never more than the pool has."""
        found, pool = quota.report(home, shape.project), os.fstatvfs(home)
        free = max(min(shape.size - found.used, pool.f_bavail * pool.f_frsize), 0)
        inodes_free = max(min(found.inode_limit - found.inodes, pool.f_favail), 0)
        return Usage(shape.size, found.used, free, found.inode_limit, found.inodes, inodes_free)

    def recover(self, home: int, shape: Shape) -> None:
        """Nothing is left."""

    def trouble(self, home: int, shape: Shape) -> str:
        """The directory, its project, its limits."""
        try:
            with tree.opened(_NAME, home) as fd:
                project = quota.project(fd)
        except OSError as error:
            return f"its directory is not usable: {error.strerror}"
        if not quota.enforced(home):
            return "the pool no longer enforces project quota; mount it with prjquota"
        if project != shape.project:
            return f"its directory is of quota project {project}, not {shape.project}: its size is not enforced"
        if (found := quota.report(home, shape.project).limit) != shape.size:
            return f"its quota is {found} bytes where {shape.size} are promised; expand it to set it anew"
        return ""

    def extents(self, home: int, shape: Shape) -> Iterator[Extent]:
        """None."""
        raise CsiError("FAILED_PRECONDITION", "a directory has no block metadata; volumes of the image backend have")

    def changed(self, base: int, home: int, shape: Shape) -> Iterator[Extent]:
        """None."""
        return self.extents(home, shape)

    def device(self, home: int, shape: Shape) -> tuple[int, int] | None:
        """It shares its pool's."""
        return None
