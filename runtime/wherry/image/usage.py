"""What the store takes on disk, as `du` counts it: allocated blocks, a layer once however many images share it.

Decides whose a layer or blob is. Refuses to know containers: the caller says which images are used.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import WherryError
from wherry.image.snapshot import tree_usage
from wherry.image.sweep import names_in, references

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["Usage", "usage"]


class Usage(NamedTuple):
    """Bytes by hex digits of blobs and diff ids; `total` is the store's whole, with what is on its way in."""

    blobs: dict[str, int]
    layers: dict[str, int]
    total: int
    images: dict[str, set[tuple[str, str]]]  # by id: ("blob" or "layer", digits)

    def of(self, ids: Collection[str]) -> int:
        """What these images take together; parts that they share count once."""
        return self.sum({part for identity in ids for part in self.images.get(identity, ())})

    def shared(self, identity: str) -> int:
        """What of an image other images use as well."""
        counted = Counter(part for parts in self.images.values() for part in parts)
        return self.sum({part for part in self.images.get(identity, ()) if counted[part] > 1})

    def sum(self, parts: Collection[tuple[str, str]]) -> int:
        """The bytes of these blobs and layers."""
        return sum((self.blobs if kind == "blob" else self.layers).get(name, 0) for kind, name in parts)


def _parts(store: ImageStore) -> dict[str, set[tuple[str, str]]]:
    """By image id: the blobs and layers that it needs, those of other platforms too."""
    found: dict[str, set[tuple[str, str]]] = {}
    entries = {entry.digest: entry for entry in store.blobs.entries()}
    for record in store.list():
        entry = entries.get(record.target or record.manifest)
        try:
            blobs, diff_ids = references(store, entry) if entry else (set(), set())
        except (WherryError, OSError):  # removed meanwhile
            continue
        parts = found.setdefault(record.id, set())
        parts |= {("blob", digest.partition(":")[2]) for digest in blobs}
        parts |= {("layer", diff_id.partition(":")[2]) for diff_id in diff_ids}
    return found


def usage(store: ImageStore) -> Usage:
    """Count all of it."""
    layers = os.path.join(store.root, "layers")
    by_layer = {name: tree_usage(os.path.join(layers, name))[0] for name in names_in(layers)}
    by_blob: dict[str, int] = {}
    for algorithm in names_in(os.path.join(store.blobs.place, "blobs")):
        place = os.path.join(store.blobs.place, "blobs", algorithm)
        for name in names_in(place):
            with contextlib.suppress(FileNotFoundError):  # swept meanwhile
                by_blob[name] = os.lstat(os.path.join(place, name)).st_blocks * 512
    rest = sum(tree_usage(os.path.join(store.root, name))[0] for name in ("images", "ingest", "leases"))
    folder = os.lstat(layers).st_blocks * 512 if os.path.isdir(layers) else 0
    return Usage(by_blob, by_layer, rest + folder + sum(by_layer.values()), _parts(store))
