"""Images made here: a tar stream becomes a stored layer, layers and a config become an image with names.

Decides compression and the shape of the manifest, and that a layer has its name only when it is whole and on disk.
Refuses to know what is in a layer and why it is made. Hold `Blobs.lease` from the first layer to the image: until its
manifest is in index.json nothing else says that a layer is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from wherry.digest import hexdigest
from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.blobs import Blobs
from wherry.image.manifest import (
    OCI_CONFIG,
    OCI_MANIFEST,
    OCI_TAR,
    OCI_TAR_GZIP,
    OCI_TAR_ZSTD,
    descriptor_json,
    oci_layer_type,
)
from wherry.image.reference import Reference
from wherry.model import Descriptor, ImageRecord, Json

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from wherry.image.store import ImageStore

__all__ = ["NewLayer", "add_image", "add_layer", "layers_of"]

_PIECE = 1 << 20  # of the tar: what is hashed and compressed at once
_AHEAD = 8  # pieces under way
_WINDOW = 32 << 10  # of deflate: what a piece may refer back to
_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no time and no name in it: equal layers have equal digests


class NewLayer(NamedTuple):
    """A layer of an image that is being made: the stored blob, and the digest of its tar."""

    descriptor: Descriptor
    diff_id: str


class _Packer(Protocol):
    """Compresses pieces in order."""

    def add(self, piece: bytes) -> Iterable[bytes]: ...
    def finish(self) -> Iterable[bytes]: ...


class _Plain:
    def __init__(self, _pool: ThreadPoolExecutor) -> None: ...

    def add(self, piece: bytes) -> Iterable[bytes]:
        return (piece,)

    def finish(self) -> Iterable[bytes]:
        return ()


class _Zstd:
    """Its own threads; what comes out does not depend on how many."""

    def __init__(self, _pool: ThreadPoolExecutor) -> None:
        import zstandard

        packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=max(os.cpu_count() or 1, 1), write_checksum=True)
        self._packer = packer.compressobj()

    def add(self, piece: bytes) -> Iterable[bytes]:
        return (self._packer.compress(piece),)

    def finish(self) -> Iterable[bytes]:
        return (self._packer.flush(),)


class _Gzip:
    """One gzip stream out of pieces deflated in several threads, each with the window of the one before (as pigz).

    Where the pieces are cut depends on nothing but the data, so the bytes do not depend on the number of threads.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._under_way: deque[Future[bytes]] = deque()
        self._window = b""
        self._sum, self._size = 0, 0
        self._head = _GZIP_HEAD

    def add(self, piece: bytes) -> Iterable[bytes]:
        self._under_way.append(self._pool.submit(_deflate, piece, self._window))
        self._sum, self._size = zlib.crc32(piece, self._sum), self._size + len(piece)
        self._window = piece[-_WINDOW:]
        if self._head:
            yield self._head
            self._head = b""
        while len(self._under_way) >= _AHEAD:
            yield self._under_way.popleft().result()

    def finish(self) -> Iterable[bytes]:
        yield self._head
        while self._under_way:
            yield self._under_way.popleft().result()
        # an empty last block, then RFC 1952's trailer
        yield b"\x03\0" + self._sum.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")


def _deflate(piece: bytes, window: bytes) -> bytes:
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, zdict=window) if window else zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15)  # noqa: E501  # fmt: skip
    return packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)


_FORMS: dict[str, tuple[Callable[[ThreadPoolExecutor], _Packer], str]] = {
    "gzip": (_Gzip, OCI_TAR_GZIP),
    "zstd": (_Zstd, OCI_TAR_ZSTD),
    "none": (_Plain, OCI_TAR),
}


def add_layer(
    blobs: Blobs, write: Callable[[Callable[[bytes], object]], None], *, compression: str = "gzip"
) -> NewLayer:
    """Store what `write` gives to its argument, a tar. `compression`: gzip, zstd or none."""
    if compression not in _FORMS:
        raise WherryError(Kind.INVALID, f'unknown compression "{compression}"', hint=", ".join(_FORMS))
    blobs.ensure()
    path = os.path.join(blobs.ingest, disk.fresh_name(".tmp-layer-"))
    try:
        return _add(blobs, write, path, compression)
    except OSError as error:
        raise disk.os_failure("cannot store a new layer", error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _add(blobs: Blobs, write: Callable[[Callable[[bytes], object]], None], path: str, compression: str) -> NewLayer:
    from concurrent.futures import ThreadPoolExecutor

    make, media_type = _FORMS[compression]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held = disk.try_lock(path)  # tells gc that someone works here
    try:
        with ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "author") as pool:
            stream = _Stream(fd, make(pool), pool)
            write(stream.write)
            stream.finish()
        os.fsync(fd)
        descriptor = Descriptor(media_type, f"sha256:{stream.blob.hexdigest()}", stream.stored)
        if not blobs.has(descriptor):
            os.rename(path, blobs.path(descriptor.digest))
            disk.fsync_dir(os.path.dirname(blobs.path(descriptor.digest)))
        return NewLayer(descriptor, f"sha256:{stream.tar.hexdigest()}")
    finally:
        os.close(held)
        os.close(fd)


class _Stream:
    """Cuts the tar into pieces; each is hashed in one thread while others compress, and written in order."""

    def __init__(self, fd: int, packer: _Packer, pool: ThreadPoolExecutor) -> None:
        import hashlib

        self._fd, self._packer, self._pool = fd, packer, pool
        self._parts: list[bytes] = []
        self._gathered = 0
        self._hashing: Future[None] | None = None
        self.tar, self.blob = hashlib.sha256(), hashlib.sha256()
        self.stored = 0

    def write(self, data: bytes) -> None:
        """Take some of the tar in."""
        while data:
            part = data[: _PIECE - self._gathered]
            self._parts.append(bytes(part))
            self._gathered += len(part)
            data = data[len(part) :]
            if self._gathered == _PIECE:
                self._piece()

    def finish(self) -> None:
        """The rest of it."""
        self._piece()
        self._await_hash()
        self._store(self._packer.finish())

    def _piece(self) -> None:
        piece = b"".join(self._parts)
        self._parts, self._gathered = [], 0
        if piece:
            self._await_hash()
            self._hashing = self._pool.submit(self.tar.update, piece)
            self._store(self._packer.add(piece))

    def _await_hash(self) -> None:
        if self._hashing is not None:
            self._hashing.result()

    def _store(self, packed: Iterable[bytes]) -> None:
        for data in packed:
            self.blob.update(data)
            self.stored += len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]


def layers_of(record: ImageRecord) -> list[NewLayer]:
    """The layers of a stored image, to put more on top of them."""
    return [NewLayer(layer, diff_id) for layer, diff_id in zip(record.layers, record.config.diff_ids, strict=True)]


def add_image(
    store: ImageStore,
    config: Json,
    layers: Sequence[NewLayer],
    names: Sequence[str],
    *,
    annotations: Mapping[str, str] | None = None,
) -> ImageRecord:
    """Store an image of these layers (lowest first), unpack it, and give it `names`; it is nameless without any.

    `rootfs` of the config is made from the layers; all else of it is the caller's.
    """
    wanted = [str(Reference.parse(name)) for name in names]
    whole = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}}
    store.blobs.ensure()
    body: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_json(_put(store.blobs, OCI_CONFIG, whole)),
        "layers": [descriptor_json(_oci(layer.descriptor)) for layer in layers],
    }
    if annotations:
        body["annotations"] = dict(annotations)
    return store.adopt(_put(store.blobs, OCI_MANIFEST, body), wanted)


def _oci(layer: Descriptor) -> Descriptor:
    """A layer of a docker image in an OCI manifest: the same bytes by OCI's name."""
    return layer._replace(media_type=oci_layer_type(layer.media_type))


def _put(blobs: Blobs, media_type: str, document: Json) -> Descriptor:
    data = json.dumps(document, separators=(",", ":")).encode()
    descriptor = Descriptor(media_type, f"sha256:{hexdigest('sha256', data)}", len(data))
    blobs.put(descriptor, data)
    return descriptor
