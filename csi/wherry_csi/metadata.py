"""The SnapshotMetadata service: which ranges of a snapshot have data, and which changed since an older one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from csi_spec import csi_pb2

from . import requests
from .backend import Extent
from .catalog import Catalog
from .errors import CsiError
from .records import Snapshot

__all__ = ["Metadata", "ranges"]

_BLOCK = 1024  # ranges of a message, if the caller does not ask for fewer
_STREAMS = 4  # at once: one whose reader stalls has a thread of the server's for as long as it does

A = TypeVar("A", csi_pb2.GetMetadataAllocatedResponse, csi_pb2.GetMetadataDeltaResponse)


class Metadata:
    """SnapshotMetadata of the spec; answers are streamed, so that no snapshot is too fragmented."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._free = threading.BoundedSemaphore(_STREAMS)

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, _context: Any
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        """Where a snapshot has data."""
        ident, most = requests.identity(request.snapshot_id, "snapshot_id"), _most(request.max_results)
        with self._one_of_few(), self._catalog.locks.hold(shared=(ident,)):
            pool, snapshot = self._catalog.snapshot(ident)
            start = requests.offset(request.starting_offset, snapshot.shape.size)
            with pool.home(snapshot) as home:
                found = pool.backend(snapshot).extents(home, snapshot.shape)
                yield from _stream(csi_pb2.GetMetadataAllocatedResponse, found, start, snapshot, most)

    def GetMetadataDelta(
        self, request: csi_pb2.GetMetadataDeltaRequest, _context: Any
    ) -> Iterator[csi_pb2.GetMetadataDeltaResponse]:
        """Where a snapshot differs from an older one of the same volume."""
        first = requests.identity(request.base_snapshot_id, "base_snapshot_id")
        second = requests.identity(request.target_snapshot_id, "target_snapshot_id")
        most = _most(request.max_results)
        both = self._catalog.locks.hold(shared=tuple({first, second}))
        with self._one_of_few(), both, ExitStack() as stack:
            _, base = self._catalog.snapshot(first)
            pool, target = self._catalog.snapshot(second)
            if base.volume != target.volume or base.backend != target.backend or base.created > target.created:
                raise CsiError(
                    "INVALID_ARGUMENT", f"{first!r} is not an older snapshot of the volume that {second!r} is of"
                )
            start = requests.offset(request.starting_offset, target.shape.size)
            old, new = stack.enter_context(pool.home(base)), stack.enter_context(pool.home(target))
            found = pool.backend(target).changed(old, new, target.shape)
            yield from _stream(csi_pb2.GetMetadataDeltaResponse, found, start, target, most)

    @contextmanager
    def _one_of_few(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            sentence = f"{_STREAMS} streams of metadata are open already; ask again when one has been read to its end"
            raise CsiError("RESOURCE_EXHAUSTED", sentence)
        try:
            yield
        finally:
            self._free.release()


def _most(number: int) -> int:
    if number < 0:
        raise CsiError("INVALID_ARGUMENT", "max_results is negative")
    return min(number or _BLOCK, _BLOCK)


def _stream(kind: type[A], found: Iterable[Extent], start: int, snapshot: Snapshot, most: int) -> Iterator[A]:
    """Messages of at most `most` ranges; one without any if there are none."""
    block: list[csi_pb2.BlockMetadata] = []
    sent = False
    for extent in ranges(found, start, snapshot.shape.size):
        block.append(csi_pb2.BlockMetadata(byte_offset=extent.offset, size_bytes=extent.length))
        if len(block) == most:
            yield _message(kind, block, snapshot)
            block, sent = [], True
    if block or not sent:
        yield _message(kind, block, snapshot)


def _message(kind: type[A], block: list[csi_pb2.BlockMetadata], snapshot: Snapshot) -> A:
    return kind(
        block_metadata_type=csi_pb2.BlockMetadataType.VARIABLE_LENGTH,
        volume_capacity_bytes=snapshot.shape.size,
        block_metadata=block,
    )


def ranges(found: Iterable[Extent], start: int, size: int) -> Iterator[Extent]:
    """Extents that end after `start`, within `size`, those that touch as one; none overlaps another."""
    last: Extent | None = None
    for offset, length in found:
        begin, end = max(offset, last.offset + last.length if last else 0), min(offset + length, size)
        if end <= start or begin >= end:
            continue
        if last and last.offset + last.length == begin:
            last = Extent(last.offset, end - last.offset)
            continue
        if last:
            yield last
        last = Extent(begin, end - begin)
    if last:
        yield last
