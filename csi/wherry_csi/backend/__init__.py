"""What a volume's bytes are kept by: the interface of a backend, and the two that there are.

A backend knows one directory at a time, always as a descriptor: a *home*, where the pool keeps one volume or one
snapshot. It names its own files in there. It knows no ids, no records, no requests and no capacity: the pool does.

Every method can be called again after it was killed at any point, and then ends as if it had been called once; what is
acknowledged is on disk (fsync of the files and of the home). Errors are OSError (errno tells: ENOSPC, EIO …) or
CsiError where the spec has a code for the case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

__all__ = ["Backend", "Extent", "PoolFacts", "Shape", "Usage"]


class PoolFacts(NamedTuple):
    """What a pool's file system can do; probed once, when the pool is opened."""

    fs: str  # statfs(2) by name: "ext4", "xfs", "btrfs", "tmpfs", …
    reflink: bool  # FICLONE works (tried, not guessed)
    project_quota: bool  # project quotas are accounted and enforced (quotactl(2))
    block: int  # f_frsize in bytes


class Shape(NamedTuple):
    """What a volume is: decided once, at its creation, but for the size, which can grow."""

    size: int  # bytes
    access: str  # "mount" or "block"
    fs: str = ""  # of an image that is mounted: "ext4" or "xfs"
    thick: bool = False  # an image whose bytes are allocated at once
    project: int = 0  # the directory backend's quota project, unique in the pool


class Usage(NamedTuple):
    """df of one volume; `total` is what its user sees."""

    total: int
    used: int
    available: int
    inodes: int = 0  # 0 for a block volume
    inodes_used: int = 0
    inodes_free: int = 0


class Extent(NamedTuple):
    """A range of bytes of a block volume or of a snapshot of one."""

    offset: int
    length: int


class Backend(Protocol):
    """One way to keep volumes. Homes are descriptors of directories (O_RDONLY|O_DIRECTORY) inside the pool."""

    name: str
    files: tuple[str, ...]  # what it keeps in a home; all else there is not its own

    def problem(self, pool: PoolFacts, access: str, fs: str) -> str:
        """Why such volumes cannot be kept in such a pool; "" if they can."""

    def fit(self, size: int, access: str, fs: str) -> int:
        """The size that is made when at least `size` bytes are asked: rounded up, at least the file system's least."""

    def make(self, home: int, shape: Shape) -> None:
        """Make an empty volume in an empty home (or in one where a killed call left something)."""

    def copy(self, source: int, old: Shape, home: int, new: Shape) -> None:
        """Fill an empty home with the content of another, of the same backend: snapshot, restore and clone.

        The source may be in use: what was written and synced before the call is in the copy, which is as after a power
        cut at one instant of the call (directory: of each file). new.size >= old.size; the rest is zeros. By reflink
        where the file system can, else by its data only. A quiesced source (below) is taken as it stands.
        """

    def quiesced(self, homes: Sequence[tuple[int, Shape]]) -> AbstractContextManager[None]:
        """Hold back all writes to volumes of a group while they are copied. Whoever is killed leaves none frozen."""

    def grow(self, home: int, old: Shape, new: Shape) -> bool:
        """Make it larger, in use or not. Returns whether the node has to expand what is staged."""

    def allocated(self, home: int, shape: Shape) -> int:
        """Bytes that it takes in the pool now (shared ones of a reflink counted in full)."""

    def stage(self, home: int, shape: Shape, path: str, options: Sequence[str]) -> None:
        """NodeStageVolume: mount at the directory `path`; a block volume gets its device (nothing is mounted)."""

    def expand(self, home: int, shape: Shape) -> None:
        """NodeExpandVolume: let what is staged see the size that `grow` gave it. Nothing staged: nothing to do."""

    def source(self, home: int, shape: Shape, staged: str, readonly: bool) -> str:
        """What NodePublishVolume binds on its target: the staged directory, or a device node."""

    def unstage(self, home: int, shape: Shape, path: str) -> None:
        """NodeUnstageVolume: undo `stage`; undone already is success. A foreign mount is left, FAILED_PRECONDITION."""

    def staged(self, home: int, shape: Shape) -> bool:
        """Whether this node has it mounted or attached anywhere (so it must not be deleted)."""

    def usage(self, home: int, shape: Shape) -> Usage:
        """df, exact: of the quota, of the mounted file system, or of a block volume's blocks."""

    def recover(self, home: int, shape: Shape) -> None:
        """After a start: undo what a killed driver may have left of this volume in the kernel."""

    def trouble(self, home: int, shape: Shape) -> str:
        """Volume condition and `check`: what is wrong with its bytes, in a sentence; "" if nothing."""

    def extents(self, home: int, shape: Shape) -> Iterator[Extent]:
        """Where an image or its snapshot has data (FIEMAP), ascending. Directories: CsiError FAILED_PRECONDITION."""

    def changed(self, base: int, home: int, shape: Shape) -> Iterator[Extent]:
        """Where `home` differs from an older snapshot of the same volume, ascending; never too little."""

    def device(self, home: int, shape: Shape) -> tuple[int, int] | None:
        """major, minor of the device that io limits name; None if it has none of its own or is not attached."""
