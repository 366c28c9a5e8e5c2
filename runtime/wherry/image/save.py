"""Images of the store as an archive or a directory: `save`.

Decides for each format which files there are and what is in them; how they get there is the same for all. Blobs are
copied by the kernel. Refuses to know names: the caller says under which an image is saved.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.blobs import REF_NAME, Blobs
from wherry.image.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_TAR_ZSTD,
    descriptor_json,
    docker_layer_type,
    oci_layer_type,
)
from wherry.image.reference import Reference
from wherry.image.streams import Stream
from wherry.image.tarwrite import END, Member, header, padding
from wherry.model import Descriptor, ImageRecord, Json

__all__ = ["FORMATS", "Saved", "save"]

_CONTAINERD_NAME = "io.containerd.image.name"
_CHUNK = 1 << 30  # of one call to the kernel


class Saved(NamedTuple):
    """One image, the descriptors of its documents, and the names under which it is saved (canonical; may be none)."""

    record: ImageRecord
    manifest: Descriptor
    config: Descriptor
    names: tuple[str, ...]


class _Piece(NamedTuple):
    """One file: a text of ours, or the blob of a digest, as it is or inflated."""

    name: str
    data: bytes = b""
    blob: str = ""
    plain: bool = False


# ---- what is in each format


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _digests(image: Saved) -> list[str]:
    return [image.manifest.digest, image.record.id, *(layer.digest for layer in image.record.layers)]


def _layout(images: Sequence[Saved], ref_name: Callable[[str], str]) -> Iterator[_Piece]:
    """An OCI image layout; what tells of the others comes first, for who reads a stream."""
    yield _Piece("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    entries = [descriptor_json(entry) for image in images for entry in _entries(image, ref_name)]
    yield _Piece("index.json", _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}))


def _entries(image: Saved, ref_name: Callable[[str], str]) -> list[Descriptor]:
    plain = Descriptor(image.manifest.media_type, image.manifest.digest, image.manifest.size)
    notes = [{_CONTAINERD_NAME: name, REF_NAME: ref_name(name)} for name in image.names]
    return [plain._replace(annotations=note) for note in notes] or [plain]


def _blobs(images: Sequence[Saved]) -> Iterator[_Piece]:
    for digest in dict.fromkeys(digest for image in images for digest in _digests(image)):
        yield _Piece(_blob_name(digest), blob=digest)


def _tag(name: str) -> str:
    reference = Reference.parse(name)
    return reference.tag or reference.digest


def _repo_tags(image: Saved) -> list[str]:
    """Whole names: podman takes a short one for localhost's."""
    return [name for name in image.names if "@" not in name]


def _docker(images: Sequence[Saved]) -> Iterator[_Piece]:
    """What docker 25 and newer writes: the layout, and manifest.json for older readers."""
    yield from _layout(images, _tag)
    entries = [
        {"Config": _blob_name(image.record.id), "RepoTags": _repo_tags(image),
         "Layers": [_blob_name(layer.digest) for layer in image.record.layers]}
        for image in images
    ]  # fmt: skip
    yield _Piece("manifest.json", _json(entries))
    yield from _blobs(images)


def _oci(images: Sequence[Saved]) -> Iterator[_Piece]:
    """The layout alone; names whole, as podman and skopeo write them."""
    yield from _layout(images, lambda name: name)
    yield from _blobs(images)


def _old_docker(images: Sequence[Saved]) -> Iterator[_Piece]:
    """Docker's archive of old: layers inflated and named by their diff ids."""
    entries = [
        {"Config": f"{_hex(image.record.id)}.json", "RepoTags": _repo_tags(image),
         "Layers": [f"{_hex(diff_id)}.tar" for diff_id in image.record.config.diff_ids]}
        for image in images
    ]  # fmt: skip
    yield _Piece("manifest.json", _json(entries))
    layers: dict[str, str] = {}
    for image in images:
        yield _Piece(f"{_hex(image.record.id)}.json", blob=image.record.id)
        layers |= zip(image.record.config.diff_ids, (layer.digest for layer in image.record.layers), strict=True)
    for diff_id, digest in layers.items():
        yield _Piece(f"{_hex(diff_id)}.tar", blob=digest, plain=True)


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _docker_dir(images: Sequence[Saved]) -> Iterator[_Piece]:
    """containers-image's `dir:` with a manifest of docker's: one image."""
    if len(images) != 1:
        raise WherryError(Kind.INVALID, "docker-dir holds one image", hint="save each into a directory of its own")
    record = images[0].record
    body: Json = {
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": {**descriptor_json(images[0].config), "mediaType": DOCKER_CONFIG},
        "layers": [{**descriptor_json(layer), "mediaType": _docker_layer(layer)} for layer in record.layers],
    }  # fmt: skip
    yield _Piece("version", b"Directory Transport Version: 1.1\n")
    yield _Piece("manifest.json", _json(body))
    for digest in dict.fromkeys(_digests(images[0])[1:]):
        yield _Piece(_hex(digest), blob=digest)


def _docker_layer(layer: Descriptor) -> str:
    if oci_layer_type(layer.media_type) == OCI_TAR_ZSTD:
        raise WherryError(Kind.UNSUPPORTED, f"layer {layer.digest} is packed by zstd, which docker-dir has no word for",
                          hint="save as oci-dir")  # fmt: skip
    return docker_layer_type(layer.media_type)


#: format: what is in it, and whether it is a directory
FORMATS: dict[str, tuple[Callable[[Sequence[Saved]], Iterator[_Piece]], bool]] = {
    "docker": (_docker, False),
    "docker-archive": (_old_docker, False),
    "docker-dir": (_docker_dir, True),
    "oci-archive": (_oci, False),
    "oci-dir": (_oci, True),
}


# ---- how it gets there


def save(blobs: Blobs, images: Sequence[Saved], form: str, target: str | int) -> None:
    """Write images to a path, or an archive to a descriptor. A path holds all of it or what it held before."""
    if form not in FORMATS:
        raise WherryError(Kind.INVALID, f'unknown format "{form}"', hint=f"one of {', '.join(FORMATS)}")
    plan, directory = FORMATS[form]
    pieces = list(plan(images))
    try:
        if directory:
            _save_directory(blobs, pieces, target)
        elif isinstance(target, int):
            _write_tar(blobs, pieces, target)
        else:
            _save_file(blobs, pieces, target)
    except OSError as error:
        raise disk.os_failure(f"cannot save to {target}", error) from error


def _save_file(blobs: Blobs, pieces: Sequence[_Piece], path: str) -> None:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, a device: written as it is
        with open(path, "wb") as file:
            _write_tar(blobs, pieces, file.fileno())
        return
    temporary = f"{os.path.realpath(path)}.{disk.fresh_name('tmp-')}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_tar(blobs, pieces, fd)
        finally:
            os.close(fd)
        os.rename(temporary, os.path.realpath(path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_tar(blobs: Blobs, pieces: Sequence[_Piece], fd: int) -> None:
    for folder in _folders(pieces):
        _write(fd, header(Member(folder.encode() + b"/", b"5", 0o755)))
    for piece in pieces:
        with _content(blobs, piece) as (source, size):
            _write(fd, header(Member(piece.name.encode(), mode=0o444, size=size)))
            _copy(source, piece, fd, size)
            _write(fd, padding(size))
    _write(fd, END)


def _folders(pieces: Sequence[_Piece]) -> list[str]:
    found: dict[str, None] = {}
    for piece in pieces:
        parts = piece.name.split("/")[:-1]
        found.update(("/".join(parts[: depth + 1]), None) for depth in range(len(parts)))
    return list(found)


def _save_directory(blobs: Blobs, pieces: Sequence[_Piece], path: str | int) -> None:
    if isinstance(path, int):
        raise WherryError(Kind.INVALID, "a directory cannot be written to standard output", hint="give -o DIRECTORY")
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise WherryError(Kind.EXISTS, f"{path} exists and is no empty directory")
    os.makedirs(path, exist_ok=True)
    for folder in _folders(pieces):
        os.makedirs(os.path.join(path, folder), exist_ok=True)
    for piece in sorted(pieces, key=lambda piece: piece.name in ("index.json", "manifest.json")):  # who reads, sees all
        with _content(blobs, piece) as (source, size), open(os.path.join(path, piece.name), "xb") as file:
            _copy(source, piece, file.fileno(), size)


@contextlib.contextmanager
def _content(blobs: Blobs, piece: _Piece) -> Iterator[tuple[BinaryIO | None, int]]:
    """The open blob of a piece, if it is one, and how many bytes it becomes."""
    if not piece.blob:
        yield None, len(piece.data)
        return
    with open(blobs.path(piece.blob), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if piece.plain:
            with Stream(file, piece.name) as stream:
                stream.skip(1 << 62)
                size = stream.at
            file.seek(0)
        yield file, size


def _copy(source: BinaryIO | None, piece: _Piece, fd: int, size: int) -> None:
    if source is None:
        _write(fd, piece.data)
    elif piece.plain:
        with Stream(source, piece.name) as stream:
            while part := stream.some(1 << 20):
                _write(fd, part)
    else:
        _send(source.fileno(), fd, size)


def _send(source: int, target: int, size: int) -> None:
    """The kernel copies; where it cannot (a file opened to append), we do."""
    at = 0
    while at < size:
        try:
            sent = os.sendfile(target, source, at, min(size - at, _CHUNK))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            sent = 0
        if not sent:
            data = os.pread(source, min(size - at, 1 << 20), at)
            if not data:
                raise WherryError(Kind.INTERNAL, "a blob became shorter while it was saved")
            _write(target, data)
            sent = len(data)
        at += sent


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
