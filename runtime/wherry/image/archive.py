"""Images from this machine: `oci:DIR[:tag]`, `oci-archive:FILE[:tag]`, `docker-archive:FILE[:tag]`; what `load` finds.

Decides which image of a layout or archive is meant and what it is called here. An archive is untrusted input: its
members are read as streams, never extracted (invariants 1 and 13). One that is plain and in a file is read in place;
one that is packed, or comes through a pipe, is read once: blobs go straight into the store under their digests.
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
from wherry.image.blobs import REF_NAME, Blobs, Partial
from wherry.image.inflate import Readable
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
from wherry.image.members import Member, clean_name, index_tar, members
from wherry.image.pull import Document, copy_stream
from wherry.image.reference import DIGEST, Reference
from wherry.image.streams import Stream, is_one_way, pieces
from wherry.model import Descriptor, Json

__all__ = ["open_found", "open_sources"]

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
        member = _followed(self._members, name)
        if member is None:
            raise FileNotFoundError(2, "no such member", name)
        return _Window(self._path, member.offset, member.size), member.size


class _Piped:
    """A tar that can be read once: its blobs are in the store by then, the rest (mostly small) in a scratch file."""

    def __init__(self, stream: Stream, blobs: Blobs, scratch: str) -> None:
        self._blobs, self._scratch = blobs, scratch
        self._stored: dict[str, str] = {}
        self._members: dict[str, Member] = {}
        with open(scratch, "r+b") as file:
            for name, member in members(stream, stream.what):
                self._take(stream, name, member, file)

    def _take(self, stream: Stream, name: str, member: Member, file: BinaryIO) -> None:
        match = re.fullmatch(r"blobs/(sha256|sha512)/([a-f0-9]+)", name)
        digest = f"{match[1]}:{match[2]}" if match else ""
        if member.target or not re.fullmatch(DIGEST, digest):
            self._members[name] = member if member.target else Member(file.tell(), member.size)
            file.writelines(pieces(stream, member.size))
            return
        with self._blobs.partial(Descriptor("", digest, member.size)) as partial:
            if partial is not None:
                partial.restart()
                for piece in pieces(stream, member.size):
                    partial.write(piece)
                partial.commit()
        self._stored[name] = digest

    def open(self, name: str) -> tuple[_Stream, int]:
        member = _followed(self._members, name)
        if member is not None:
            return _Window(self._scratch, member.offset, member.size), member.size
        path = self._blobs.path(self._stored.get(clean_name(name), ""))
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        return file, os.fstat(file.fileno()).st_size


def _followed(found: Mapping[str, Member], name: str) -> Member | None:
    """The file of a name, through links."""
    member = found.get(clean_name(name))
    for _ in range(8):  # docker save links equal layers to the first one
        if member is None or not member.target:
            break
        member = found.get(member.target)
    return member if member is not None and not member.target else None


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

    def blob_name(self, descriptor: Descriptor) -> str:
        """The file that a blob lies in."""
        return "blobs/" + descriptor.digest.replace(":", "/")

    def document(self, descriptor: Descriptor) -> Document:
        data = _read(self._files, self.blob_name(descriptor), MANIFEST_MAX, self.what)
        return Document(data, [descriptor.media_type], descriptor.digest)

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        try:
            file, size = self._files.open(self.blob_name(partial.descriptor))
        except OSError as error:
            raise WherryError(Kind.NOT_FOUND, f"{self.what} lacks blob {partial.descriptor.digest}: {error.strerror}",
                              hint="the layout is incomplete") from None  # fmt: skip
        with contextlib.closing(file):
            partial.restart()
            copy_stream(file.read, size, partial, report, stop)


class _Flat(_Layout):
    """The one image of a `dir:` of skopeo and podman: manifest.json, and blobs named by their digits."""

    def top(self) -> Document:
        return Document(_read(self._files, "manifest.json", MANIFEST_MAX, self.what), [])

    def blob_name(self, descriptor: Descriptor) -> str:
        return descriptor.digest.partition(":")[2]


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
        names = [name for name in [_name_of(entry, base)] if name]
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


def _name_of(entry: Descriptor, base: str) -> str:
    """What the image is called here: its full name if it brings one, else localhost/<directory or file>:<tag>.

    A name with a digest is a promise of content: it counts only for the manifest that has this digest.
    """
    annotations = entry.annotations
    for name in (annotations.get(_CONTAINERD_NAME, ""), annotations.get(REF_NAME, "")):
        if ":" in name or "/" in name:
            with contextlib.suppress(WherryError):
                reference = Reference.parse(name)
                return reference.stored() if reference.digest in ("", entry.digest) else ""
    if not base:
        return ""
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
    found = [Reference.parse(tag) for tag in tags]
    return [str(reference) for reference in found if not reference.digest]  # of a manifest that was not kept


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
def _files_of(path: str, file: Readable | None, shown: str, blobs: Blobs) -> Iterator[_Archive | _Piped]:
    """The members of an archive: the file `path`, or what is read from `file`."""
    with contextlib.ExitStack() as held:
        if file is None:
            file = held.enter_context(open(path, "rb"))
            if not is_one_way(file):
                yield _Archive(path, shown)
                return
        scratch = held.enter_context(_scratch(blobs))
        yield _Piped(held.enter_context(Stream(file, shown)), blobs, scratch)


@contextlib.contextmanager
def _scratch(blobs: Blobs) -> Iterator[str]:
    path = os.path.join(blobs.ingest, disk.fresh_name(".tmp-archive-"))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    held = disk.try_lock(path)
    try:
        yield path
    finally:
        os.unlink(path)
        os.close(held)


@contextlib.contextmanager
def open_found(path: str, file: Readable | None, blobs: Blobs) -> Iterator[list[_Layout] | list[_DockerImage]]:
    """Every image of a directory or archive, whatever its kind; of the archive that `file` gives where there is one.

    Hold `Blobs.lease`: what a pipe gives is in the store before it is known what it belongs to.
    """
    if file is None and os.path.isdir(path):
        directory = _Directory(path)
        if os.path.exists(os.path.join(path, "oci-layout")):
            yield _layout_images(directory, path, "", os.path.basename(os.path.abspath(path)), False)
        elif os.path.exists(os.path.join(path, "version")):
            flat: list[_Layout] = [_Flat(directory, path, Descriptor("", "", 0), [])]
            yield flat
        else:
            raise WherryError(Kind.INVALID, f"{path} holds no image", hint="an OCI layout has a file oci-layout")
        return
    with _files_of(path, file, path, blobs) as files:
        if _has(files, "oci-layout") and _has(files, "index.json"):
            yield _layout_images(files, path, "", "" if file else os.path.basename(path).partition(".")[0], False)
        elif _has(files, "manifest.json"):
            yield _docker_images(files, path, "", False)
        else:
            raise WherryError(Kind.INVALID, f"{path} is neither an OCI nor a docker archive",
                              hint="for the tar of a root file system there is `wherry import`")  # fmt: skip


def _has(files: _Files, name: str) -> bool:
    try:
        files.open(name)[0].close()
    except (OSError, WherryError):
        return False
    return True


@contextlib.contextmanager
def open_sources(source: str, blobs: Blobs, *, only_one: bool) -> Iterator[list[_Layout] | list[_DockerImage]]:
    """The images that a source names, open for the time of the with block."""
    kind, path, tag = _split(source)
    base = os.path.basename(os.path.abspath(path))
    try:
        if kind == "oci":
            yield _layout_images(_Directory(path), f"oci:{path}", tag, base, only_one)
            return
        with _files_of(path, None, path, blobs) as files:
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
