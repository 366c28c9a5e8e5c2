"""What the store takes on disk, as `du` counts it: allocated blocks, a layer once however many images share it.

Decides whose a layer or blob is. Refuses to know containers: the caller says which images are used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from wherry.image.snapshot import tree_usage
from wherry.image.sweep import names_in
from wherry.model import ImageRecord

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["Usage", "usage"]


class Usage(NamedTuple):
    """Bytes by hex digits of blobs and diff ids; `total` is the store's whole, with what is on its way in."""

    blobs: dict[str, int]
    layers: dict[str, int]
    total: int
    images: tuple[ImageRecord, ...]

    def of(self, records: Collection[ImageRecord]) -> int:
        """What these images take together; parts that they share count once."""
        return self._sum({part for record in records for part in _parts(record)})

    def shared(self, record: ImageRecord) -> int:
        """What of an image other images use as well."""
        counted = Counter(part for image in self.images for part in _parts(image))
        return self._sum({part for part in _parts(record) if counted[part] > 1})

    def _sum(self, parts: Collection[tuple[str, str]]) -> int:
        return sum((self.blobs if kind == "blob" else self.layers).get(name, 0) for kind, name in parts)


def _parts(record: ImageRecord) -> set[tuple[str, str]]:
    blobs = (record.manifest, record.id, *(layer.digest for layer in record.layers))
    found = {("blob", digest.partition(":")[2]) for digest in blobs}
    return found | {("layer", diff_id.partition(":")[2]) for diff_id in record.config.diff_ids}


def usage(store: ImageStore) -> Usage:
    """Count all of it."""
    layers = os.path.join(store.root, "layers")
    by_layer = {name: tree_usage(os.path.join(layers, name))[0] for name in names_in(layers)}
    by_blob: dict[str, int] = {}
    for algorithm in names_in(os.path.join(store.blobs.place, "blobs")):
        place = os.path.join(store.blobs.place, "blobs", algorithm)
        by_blob |= {name: os.lstat(os.path.join(place, name)).st_blocks * 512 for name in names_in(place)}
    rest = sum(tree_usage(os.path.join(store.root, name))[0] for name in ("images", "ingest", "leases"))
    folder = os.lstat(layers).st_blocks * 512 if os.path.isdir(layers) else 0
    return Usage(by_blob, by_layer, rest + folder + sum(by_layer.values()), tuple(store.list()))
