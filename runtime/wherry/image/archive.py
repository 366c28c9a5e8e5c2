"""Images from this machine: `oci:DIR[:tag]`, `oci-archive:FILE[:tag]`, `docker-archive:FILE[:tag]`.

Decides which image of a layout or archive is meant and what it is called here. An archive is untrusted input: its
members are read as streams, never extracted (invariants 1 and 13).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Protocol

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.blobs import REF_NAME, Partial
from wherry.image.inflate import inflate
from wherry.image.manifest import (
    CONFIG_MAX,
    MANIFEST_MAX,
    OCI_CONFIG,
    OCI_MANIFEST,
    OCI_TAR,
    OCI_TAR_GZIP,
    OCI_TAR_ZSTD,
    descriptor_json,
    parse_config,
    parse_document,
    parse_index,
)
from wherry.image.members import clean_name, index_tar
from wherry.image.pull import Document, copy_stream
from wherry.image.reference import DIGEST, Reference
from wherry.model import Descriptor, Json

__all__ = ["open_sources"]

_ARCHIVE_MAX = 256 << 30
_CONTAINERD_NAME = "io.containerd.image.name"  # what `ctr image export` and docker write beside the bare tag


class _Stream(Protocol):
    """What is read of a member."""

    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...
    def close(self) -> None: ...


class _Files(Protocol):
    """Named byte streams: a directory or a tar."""

    def open(self, name: str) -> tuple[_Stream, int]: ...


class _Directory:
    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, name: str) -> tuple[_Stream, int]:
        path = os.path.join(self._path, name)
        file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")  # noqa: SIM115 - the caller closes it
        return file, os.fstat(file.fileno()).st_size


class _Archive:
    """An uncompressed tar, indexed once. Each reader has its own descriptor: threads do not share a position."""

    def __init__(self, path: str, shown: str) -> None:
        self._path = path
        with open(path, "rb") as file:
            self._members = index_tar(file.fileno(), shown)

    def open(self, name: str) -> tuple[_Stream, int]:
        member = self._members.get(clean_name(name))
        for _ in range(8):  # docker save links equal layers to the first one
            if member is None or not member.target:
                break
            member = self._members.get(member.target)
        if member is None or member.target:
            raise FileNotFoundError(2, "no such member", name)
        return _Window(self._path, member.offset, member.size), member.size


class _Window:
    """A part of a file as a file: read, seek, tell, close is all that readers need."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._start, self._size, self._at = start, size, 0

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        data = os.pread(self._file.fileno(), left if size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def close(self) -> None:
        self._file.close()


def _read(files: _Files, name: str, limit: int, what: str) -> bytes:
    try:
        file, size = files.open(name)
    except NotADirectoryError:
        raise
    except OSError as error:
        raise WherryError(Kind.NOT_FOUND, f"{what} has no {name}: {error.strerror}") from None
    with contextlib.closing(file):
        if size > limit:
            raise WherryError(Kind.INVALID, f"{what}: {name} is larger than {limit} bytes")
        return file.read(limit + 1)


class _Layout:
    """One image of an OCI image layout."""

    def __init__(self, files: _Files, what: str, entry: Descriptor, names: list[str]) -> None:
        self._files = files
        self._entry = entry
        self.what = what
        self.names = names

    def top(self) -> Document:
        document = self.document(self._entry)
        if document.digest != self._entry.digest or len(document.data) != self._entry.size:
            raise WherryError(
                Kind.INVALID, f"{self.what}: manifest {self._entry.digest} is damaged (it is {document.digest})"
            )
        return document

    def document(self, descriptor: Descriptor) -> Document:
        data = _read(self._files, _blob_name(descriptor), MANIFEST_MAX, self.what)
        return Document(data, [descriptor.media_type], descriptor.digest)

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        try:
            file, size = self._files.open(_blob_name(partial.descriptor))
        except OSError as error:
            raise WherryError(Kind.NOT_FOUND, f"{self.what} lacks blob {partial.descriptor.digest}: {error.strerror}",
                              hint="the layout is incomplete") from None  # fmt: skip
        with contextlib.closing(file):
            partial.restart()
            copy_stream(file.read, size, partial, report, stop)


def _blob_name(descriptor: Descriptor) -> str:
    return "blobs/" + descriptor.digest.replace(":", "/")


def _layout_images(files: _Files, what: str, tag: str, base: str, only_one: bool) -> list[_Layout]:
    version = parse_document(_read(files, "oci-layout", 4096, what), 4096, f"{what}: oci-layout").get(
        "imageLayoutVersion"
    )
    if not isinstance(version, str) or not version.startswith("1."):
        raise WherryError(Kind.UNSUPPORTED, f"{what}: image layout version {version!r}")
    entries = parse_index(parse_document(_read(files, "index.json", MANIFEST_MAX, what), MANIFEST_MAX, what), what)
    chosen = _chosen(entries, what, tag, only_one)
    found: dict[str, _Layout] = {}
    for entry in chosen:
        names = [name for name in [_name_of(entry.annotations, base)] if name]
        if entry.digest in found:
            found[entry.digest].names += names
        else:
            found[entry.digest] = _Layout(files, what, entry, names)
    return list(found.values())


def _chosen(entries: tuple[Descriptor, ...], what: str, tag: str, only_one: bool) -> list[Descriptor]:
    matching = [entry for entry in entries if not tag or _has_tag(entry.annotations, tag) or entry.digest == tag]
    if not matching:
        raise WherryError(Kind.NOT_FOUND, f"{what} has no image {tag!r}", hint=f"it has: {_tags(entries)}")
    if only_one and len({entry.digest for entry in matching}) > 1:
        latest = [entry for entry in matching if not tag and _has_tag(entry.annotations, "latest")]
        if len({entry.digest for entry in latest}) != 1:
            raise WherryError(Kind.INVALID, f"{what} holds several images", hint=f"name one of them: {_tags(entries)}")
        matching = latest
    return matching


def _tags(entries: tuple[Descriptor, ...]) -> str:
    return ", ".join(sorted(entry.annotations.get(REF_NAME, entry.digest) for entry in entries)[:20]) or "nothing"


def _has_tag(annotations: Mapping[str, str], tag: str) -> bool:
    for name in (annotations.get(REF_NAME, ""), annotations.get(_CONTAINERD_NAME, "")):
        if name and (name == tag or name.rpartition("/")[2].partition(":")[2] == tag):
            return True
    return False


def _name_of(annotations: Mapping[str, str], base: str) -> str:
    """What the image is called here: its full name if it brings one, else localhost/<directory or file>:<tag>."""
    for name in (annotations.get(_CONTAINERD_NAME, ""), annotations.get(REF_NAME, "")):
        if ":" in name or "/" in name:
            with contextlib.suppress(WherryError):
                return str(Reference.parse(name).stored())
    clean = re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-") or "image"
    with contextlib.suppress(WherryError):
        return str(Reference.parse(f"localhost/{clean}:{annotations.get(REF_NAME) or 'latest'}"))
    return ""


class _DockerImage:
    """One image of `docker save`: the OCI manifest that docker does not store there is made here."""

    def __init__(self, files: _Files, what: str, entry: Json) -> None:
        self._files = files
        self.what = what
        self.names = _repo_tags(entry)
        self._paths: dict[str, str] = {}
        config_name, layers = entry.get("Config"), entry.get("Layers") or []
        if (
            not isinstance(config_name, str)
            or not isinstance(layers, list)
            or not all(isinstance(x, str) for x in layers)
        ):
            raise WherryError(Kind.INVALID, f"{what}: manifest.json is malformed")
        self._config = _read(files, config_name, CONFIG_MAX, what)
        self._manifest = self._compose(layers)

    def _compose(self, layers: list[str]) -> bytes:
        config = parse_config(parse_document(self._config, CONFIG_MAX, self.what), self.what)
        if len(config.diff_ids) != len(layers):
            raise WherryError(Kind.INVALID, f"{self.what}: {len(layers)} layers, but {len(config.diff_ids)} diff ids")
        described = [self._describe(path, diff_id) for path, diff_id in zip(layers, config.diff_ids, strict=True)]
        digest = "sha256:" + hashlib.sha256(self._config).hexdigest()
        document: Json = {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor_json(Descriptor(OCI_CONFIG, digest, len(self._config))),
            "layers": [descriptor_json(layer) for layer in described],
        }  # fmt: skip
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    def _describe(self, path: str, diff_id: str) -> Descriptor:
        try:
            file, size = self._files.open(path)
        except OSError as error:
            raise WherryError(Kind.NOT_FOUND, f"{self.what} has no {path}: {error.strerror}") from None
        with contextlib.closing(file):
            head = file.read(4)
            media_type = {b"\x1f\x8b": OCI_TAR_GZIP, b"\x28\xb5": OCI_TAR_ZSTD}.get(head[:2], OCI_TAR)
            digest = diff_id
            if media_type != OCI_TAR:
                file.seek(0)
                hashed = hashlib.sha256()
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
                digest = "sha256:" + hashed.hexdigest()
        self._paths[digest] = path
        return Descriptor(media_type, digest, size)

    def top(self) -> Document:
        return Document(self._manifest, [OCI_MANIFEST])

    def document(self, descriptor: Descriptor) -> Document:
        raise WherryError(Kind.INVALID, f"{self.what}: no manifest {descriptor.digest}")

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        path = self._paths.get(partial.descriptor.digest)
        if path is None:
            partial.restart()
            partial.write(self._config)
            partial.commit()
            return
        file, size = self._files.open(path)
        with contextlib.closing(file):
            partial.restart()
            copy_stream(file.read, size, partial, report, stop)


def _repo_tags(entry: Json) -> list[str]:
    tags = entry.get("RepoTags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise WherryError(Kind.INVALID, "manifest.json: RepoTags is not a list of strings")
    return [str(Reference.parse(tag)) for tag in tags]


def _docker_images(files: _Files, what: str, tag: str, only_one: bool) -> list[_DockerImage]:
    try:
        entries = json.loads(_read(files, "manifest.json", MANIFEST_MAX, what))
    except (ValueError, RecursionError) as error:
        raise WherryError(Kind.INVALID, f"{what}: manifest.json is not JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise WherryError(Kind.INVALID, f"{what}: manifest.json is not a list of images")
    wanted = [entry for entry in entries if not tag or _docker_match(entry, tag)]
    if not wanted:
        raise WherryError(Kind.NOT_FOUND, f"{what} has no image {tag!r}")
    if only_one and len(wanted) > 1:
        names = ", ".join(name for entry in entries for name in _repo_tags(entry))
        raise WherryError(Kind.INVALID, f"{what} holds several images", hint=f"name one of them: {names}")
    return [_DockerImage(files, what, entry) for entry in wanted]


def _docker_match(entry: Json, tag: str) -> bool:
    names = _repo_tags(entry)
    with contextlib.suppress(WherryError):
        if str(Reference.parse(tag)) in names:
            return True
    return any(Reference.parse(name).tag == tag for name in names)


def _split(source: str) -> tuple[str, str, str]:
    """(kind, path, tag). The path ends at the first colon behind which no existing path goes on."""
    kind, _, rest = source.partition(":")
    if os.path.exists(rest):
        return kind, rest, ""
    path, _, tag = rest.partition(":")
    while not os.path.exists(path) and ":" in tag:
        more, _, tag = tag.partition(":")
        path = f"{path}:{more}"
    if not path:
        raise WherryError(Kind.INVALID, f"{source}: no path", hint=f"expected {kind}:PATH[:TAG]")
    if not os.path.exists(path):
        raise WherryError(
            Kind.NOT_FOUND, f"{rest.partition(':')[0]} does not exist", hint=f"expected {kind}:PATH[:TAG]"
        )
    if tag and not (re.fullmatch(DIGEST, tag) or re.fullmatch(r"[\w][\w./:@-]{0,511}", tag, re.ASCII)):
        raise WherryError(Kind.INVALID, f"{source}: invalid tag {tag[:140]!r}")
    return kind, path, tag


@contextlib.contextmanager
def _plain_archive(path: str, scratch: str) -> Iterator[str]:
    """The path of an uncompressed copy of an archive, or of itself."""
    with open(path, "rb") as file:
        head = file.read(4)
    if not head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        yield path
        return
    disk.make_private(scratch)
    copy = os.path.join(scratch, disk.fresh_name(".tmp-archive-"))
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    held = disk.try_lock(copy)
    try:
        with open(fd, "wb") as target:
            _inflate_archive(path, target)
        yield copy
    finally:
        os.unlink(copy)
        os.close(held)


def _inflate_archive(path: str, target: BinaryIO) -> None:
    import zlib

    total, most = 0, min(_ARCHIVE_MAX, max(4 << 30, os.path.getsize(path) * 100))
    with open(path, "rb") as file:
        try:
            for chunk in inflate(file):
                total += len(chunk)
                if total > most:
                    raise WherryError(Kind.INVALID, f"{path} inflates to more than {most} bytes")
                target.write(chunk)
        except (zlib.error, EOFError) as error:
            raise WherryError(Kind.INVALID, f"{path} is damaged: {error}") from error


@contextlib.contextmanager
def open_sources(source: str, scratch: str, *, only_one: bool) -> Iterator[list[_Layout] | list[_DockerImage]]:
    """The images that a source names, open for the time of the with block."""
    kind, path, tag = _split(source)
    base = os.path.basename(os.path.abspath(path))
    try:
        if kind == "oci":
            yield _layout_images(_Directory(path), f"oci:{path}", tag, base, only_one)
            return
        with _plain_archive(path, scratch) as plain:
            files = _Archive(plain, path)
            if kind == "docker-archive":
                yield _docker_images(files, f"{kind}:{path}", tag, only_one)
            else:
                yield _layout_images(files, f"{kind}:{path}", tag, base.partition(".")[0], only_one)
    except IsADirectoryError:
        raise WherryError(Kind.INVALID, f"{path} is a directory, not an archive", hint=f"try oci:{path}") from None
    except NotADirectoryError:
        raise WherryError(
            Kind.INVALID, f"{path} is a file, not an image layout", hint=f"try oci-archive:{path}"
        ) from None
