"""Images for several platforms in the store: an index, its manifests, and all that these name.

Decides which documents and blobs belong to a stored descriptor. Reads the store only; what is no image (an
attestation, an artifact that an index lists) is kept and copied like the rest, as image-spec 1.1 asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.blobs import Blobs
from wherry.image.manifest import (
    DEPTH_MAX,
    INDEX_TYPES,
    LAYERS_MAX,
    MANIFEST_MAX,
    agreed_type,
    choose,
    descriptor_from,
    parse_document,
    parse_index,
)
from wherry.model import Descriptor, Json, Platform

__all__ = ["Stored", "chosen", "documents", "members", "named"]

MANIFESTS_MAX = 1000  # of one index and those that it lists


class Stored(NamedTuple):
    """A document with what it names: `below` are the manifests of an index, `blobs` config and layers of a manifest."""

    descriptor: Descriptor
    data: bytes
    below: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()


def named(descriptor: Descriptor, data: bytes, what: str) -> Stored:
    """A document by its kind."""
    body = parse_document(data, MANIFEST_MAX, what)
    media_type = agreed_type(body, [descriptor.media_type], what)
    if media_type in INDEX_TYPES:
        return Stored(descriptor, data, below=parse_index(body, what))
    return Stored(descriptor, data, blobs=members(body, what))


def members(manifest: Json, what: str) -> tuple[Descriptor, ...]:
    """Config and layers, of whatever kind they are."""
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
        raise WherryError(Kind.INVALID, f"{what}: layers is not a list of at most {LAYERS_MAX}")
    return tuple(descriptor_from(item, what) for item in (manifest.get("config"), *layers))


def documents(blobs: Blobs, top: Descriptor) -> Iterator[Stored]:
    """All documents below a stored descriptor and itself, each after those that it lists, none twice."""
    seen: set[str] = set()
    yield from _below(blobs, top, DEPTH_MAX, seen)


def _below(blobs: Blobs, descriptor: Descriptor, depth: int, seen: set[str]) -> Iterator[Stored]:
    what = f"manifest {descriptor.digest}"
    if descriptor.digest in seen:
        return
    seen.add(descriptor.digest)
    if not depth or len(seen) > MANIFESTS_MAX:
        raise WherryError(Kind.INVALID, f"{what}: indexes are nested deeper than {DEPTH_MAX}, or list too much")
    found = named(descriptor, _read(blobs, descriptor.digest), what)
    for child in found.below:
        yield from _below(blobs, child, depth - 1, seen)
    yield found


def chosen(blobs: Blobs, top: Descriptor, platform: Platform) -> Descriptor:
    """The manifest that a stored descriptor means on a platform; of an index without it, the first.

    Only what leads there is read: damage elsewhere is no concern of who wants this one.
    """
    for _ in range(DEPTH_MAX):
        if top.media_type not in INDEX_TYPES:
            return top
        what = f"index {top.digest}"
        top = _best(named(top, _read(blobs, top.digest), what).below, platform, what)
    raise WherryError(Kind.INVALID, f"manifest {top.digest}: indexes are nested deeper than {DEPTH_MAX}")


def _best(listed: tuple[Descriptor, ...], platform: Platform, what: str) -> Descriptor:
    try:
        return choose(listed, platform, what)
    except WherryError:
        usable = [one for one in listed if one.platform and one.platform.architecture != "unknown"]
        if not usable:
            raise
        return usable[0]


def _read(blobs: Blobs, digest: str) -> bytes:
    try:
        return blobs.read(digest, MANIFEST_MAX)
    except FileNotFoundError:
        raise WherryError(Kind.NOT_FOUND, f"blob {digest} of a stored image is missing",
                          hint="remove the image and pull it again") from None  # fmt: skip
