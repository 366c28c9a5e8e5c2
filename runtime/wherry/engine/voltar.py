"""`volume export` and `import`: a volume's content as a tar.

Decides what of a tar comes into a volume: what comes is as untrusted as a layer (invariant 13), so it goes the way of
`cp` (archive.py), beneath the volume's top directory; device nodes, which a volume is mounted without, stay out.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError

from . import archive, events, tarread, volumes
from .house import House

if TYPE_CHECKING:
    from wherry.image.inflate import Readable
    from wherry.image.streams import Stream

__all__ = ["export", "import_"]

_CHUNK = 1 << 20
_BLOCK = 512


def export(house: House, name: str, out: Callable[[bytes], object]) -> None:
    """The verb: the top directory as ./ and all below it."""
    from wherry.image.layertar import write_tree

    row = volumes.get(house, name)
    with volumes.opened(house, row) as fd:
        write_tree(fd, out, with_root=True)
    events.emit(house, "volume", "export", name, {"driver": row.driver})


def import_(house: House, name: str, stream: Readable, origin: str) -> None:
    """The verb: a tar, plain or packed, over what the volume holds."""
    from wherry.image.streams import Stream

    row = volumes.get(house, name)
    with Stream(stream, origin) as source, volumes.opened(house, row, readonly=False) as top:
        chunks = tarread.Chunks(itertools.chain([_head(source, origin)], iter(lambda: bytes(source.some(_CHUNK)), b"")))
        target = _Volume(archive.Place(top, "."), top, f"volume {name}")
        archive.unpack(target, chunks)
    if target.skipped:
        house.warn(f"{target.skipped} device nodes of {origin} are not in volume {name}: it is mounted nodev")
    events.emit(house, "volume", "import", name, {"driver": row.driver})


def _head(source: Stream, origin: str) -> bytes:
    """The first block, if it is one of a tar: of an empty one it is zeros."""
    from wherry.image.members import is_header

    head = source.read(_BLOCK)
    if not is_header(head) and head != bytes(_BLOCK):
        what = f"{origin} is not a tar archive" if head else f"{origin} is empty"
        hint = "a tar was expected, plain or packed by gzip, zstd, bzip2 or xz"
        raise WherryError(Kind.INVALID, what, hint=hint)
    return head


class _Volume(archive.Target):
    """A volume's top directory. Directories get owner, mode and time at the end: what comes into them changes it."""

    def __init__(self, place: archive.Place, top: int, what: str) -> None:
        super().__init__(place, top, archive_owner=True, what=what)
        self._directories: dict[tuple[str, ...], tarread.Member] = {}
        self.skipped = 0

    def root(self, member: tarread.Member) -> None:
        """The top directory is a member too."""
        if member.type == "5":
            self._directories[()] = member

    def directory(self, member: tarread.Member, parent: int, parts: list[str]) -> None:
        """Make it, or take the one that is there."""
        super().directory(member, parent, parts)
        self._directories[tuple(parts)] = member

    def other(self, member: tarread.Member) -> bool:
        """Device nodes."""
        self.skipped += member.type in ("3", "4")
        return member.type in ("3", "4")

    def settle(self) -> None:
        """Deepest first."""
        for parts in sorted(self._directories, key=len, reverse=True):
            fd = self.parent(list(parts))
            try:
                self.finish(self._directories[parts], fd)
            finally:
                os.close(fd)
