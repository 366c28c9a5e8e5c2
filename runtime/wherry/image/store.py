"""The image store: which images are here, under which names, and what may be removed.

Decides names, ids and lifetime of images. Refuses to know containers: what they use is told by the caller (`keep`) and
by the snapshots on disk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.blobs import REF_NAME, Blobs
from wherry.image.manifest import (
    CONFIG_MAX,
    MANIFEST_MAX,
    Manifest,
    agreed_type,
    created_time,
    host_platform,
    parse_config,
    parse_document,
    parse_manifest,
)
from wherry.image.reference import Reference, is_source
from wherry.image.snapshot import check_place, layer_path
from wherry.model import Descriptor, ImageRecord, Json, Platform, ProgressEvent

__all__ = ["ImageStore", "Progress"]

if TYPE_CHECKING:
    from wherry.image.pull import Puller, Source
    from wherry.image.unpack import LayerLimits

Lines = list[str]  # ImageStore.list hides the builtin inside the class
Records = list[ImageRecord]
Names = Sequence[str]
Progress = Callable[[ProgressEvent], None]
_ID = r"(?:sha256:)?([a-f0-9]{1,64})"


def _silent(_event: ProgressEvent) -> None:
    return None


class ImageStore:
    """Images below `root`. Safe for many threads and processes at once.

    `insecure`: registries (host[:port]) that may be spoken to by plain http, beside loopback ones.
    `helper`: gives a descriptor of the static helper (role `unpack`); by default the installed one.
    `snapshot_format`: of layers that are unpacked from now on, see formats.py.
    `userxattr`: whiteouts and opaque marks as user.overlay.*, for overlays mounted inside a user namespace.
    """

    def __init__(
        self,
        root: str,
        *,
        insecure: Collection[str] = (),
        userxattr: bool = False,
        helper: Callable[[], int] | None = None,
        limits: LayerLimits | None = None,
        snapshot_format: str = "directory",
    ) -> None:
        self.root = check_place(root)
        self.blobs = Blobs(self.root)
        self._insecure = frozenset(insecure)
        self._userxattr = userxattr
        self._helper = helper
        self._limits = limits
        self._format = snapshot_format

    # ---- getting images

    def pull(self, name: str, platform: Platform | None = None, progress: Progress = _silent) -> ImageRecord:
        """Fetch `name` from its registry and unpack it. `platform` None: this machine's."""
        from wherry.image.registry import RegistrySource

        reference = Reference.parse(name)
        source = RegistrySource(reference, insecure=self._insecure)
        with contextlib.closing(source):
            return self._take(source, [reference.stored()], platform, progress)

    def load(self, source: str, progress: Progress = _silent, platform: Platform | None = None) -> ImageRecord:
        """Take the image of `oci:DIR[:tag]`, `oci-archive:FILE[:tag]` or `docker-archive:FILE[:tag]` into the store."""
        return self.load_all(source, progress, platform, only_one=True)[0]

    def load_all(
        self, source: str, progress: Progress = _silent, platform: Platform | None = None, *, only_one: bool = False
    ) -> Records:
        """Like load, but of a source that holds several images takes all when no tag is given (docker load)."""
        from wherry.image.archive import open_sources

        records = []
        with open_sources(source, self.blobs.ingest, only_one=only_one) as found:
            for one in found:
                records.append(self._take(one, one.names, platform, progress))
        return records

    def ensure_unpacked(self, record: ImageRecord, progress: Progress = _silent) -> None:
        """Unpack the layers of a stored image that are not on disk yet. Cheap when all are."""
        missing = [d for d in record.config.diff_ids if not os.path.isdir(layer_path(self.root, d))]
        if missing:
            with self.blobs.lease():
                self._puller(progress).unpack_all(record.layers, record.config.diff_ids)

    # ---- looking

    def get(self, name_or_id: str) -> ImageRecord:
        """The image of a name, an id, an unambiguous beginning of an id, or name@digest."""
        if is_source(name_or_id):
            raise WherryError(Kind.INVALID, f"{name_or_id} is a source, not a stored image", hint="load it first")
        images = self._grouped()
        for digest, (descriptor, names) in images.items():
            if self._is_named(name_or_id, digest, names):
                return self._record(descriptor, names)
        return self._by_id(name_or_id, images)

    def list(self) -> Records:
        """All images, newest first. One that cannot be read is left out: `gc` and `rmi` deal with it."""
        records = []
        for descriptor, names in self._grouped().values():
            with contextlib.suppress(WherryError, OSError):
                records.append(self._record(descriptor, names))
        return sorted(records, key=lambda record: -record.created)

    def config_json(self, record: ImageRecord) -> Json:
        """The image's whole config document, as it was pulled."""
        return parse_document(self.blobs.read(record.id, CONFIG_MAX), CONFIG_MAX, f"config {record.id}")

    # ---- names and lifetime

    def tag(self, name_or_id: str, new_name: str) -> str:
        """Give an image one more name; the canonical form of it."""
        target = Reference.parse(new_name)
        if target.digest:
            raise WherryError(Kind.INVALID, f"{new_name} has a digest: a tag cannot be given to it")
        record = self.get(name_or_id)
        self.blobs.name(self._descriptor(record.manifest), [str(target)])
        return str(target)

    def remove(self, name_or_id: str, force: bool = False, keep: Iterable[str] = ()) -> Lines:
        """Untag, and delete the image with its last name. What was done, in docker's words ("Untagged: ...").

        `keep`: diff ids whose layers stay in any case. Whether a container uses the image is the caller's question.
        """
        record = self.get(name_or_id)
        by_id = not any(self._is_named(name_or_id, record.manifest, (name,)) for name in record.names)
        if by_id and len(record.names) > 1 and not force:
            raise WherryError(Kind.CONFLICT, f"image {record.id[7:19]} has several names: {', '.join(record.names)}",
                              hint="remove them by name, or use --force")  # fmt: skip
        doomed = list(record.names) if by_id else [str(Reference.parse(name_or_id).stored())]
        done = [f"Untagged: {Reference.parse(name).familiar()}" for name in doomed]
        last = set(doomed) >= set(record.names)
        self.blobs.change(lambda entries: _dropped(entries, record.manifest, doomed, whole=last))
        if last:
            done.append(f"Deleted: {record.id}")
            self._sweep(keep, wait=False)
        return done

    def gc(self, keep: Iterable[str] = ()) -> int:
        """Remove blobs and layers that no image, no snapshot and no diff id of `keep` uses; the bytes freed."""
        return self._sweep(keep, wait=True)

    def unmount_layers(self) -> None:
        """Take away the mounts of all layers, in this mount namespace, before the layers themselves are."""
        from wherry.image.sweep import unmount_layers

        unmount_layers(self.root)

    def disk_usage(self) -> Json:
        """Bytes: of blobs, of unpacked layers, and of the layers that no image uses."""
        from wherry.image.sweep import usage

        return usage(self)

    # ---- inside

    def _puller(self, progress: Progress) -> Puller:
        from wherry.image.pull import Puller
        from wherry.image.unpack import Unpacker

        unpacker = Unpacker(self.root, userxattr=self._userxattr, helper=self._helper, limits=self._limits,
                            snapshot_format=self._format)  # fmt: skip
        return Puller(self.blobs, unpacker, progress)

    def _take(self, source: Source, names: Names, platform: Platform | None, progress: Progress) -> ImageRecord:
        try:
            self.blobs.ensure()
            with self.blobs.lease():
                wanted = platform or host_platform()
                descriptor = self._puller(progress).take(source, wanted, strict=platform is not None)
                self.blobs.name(descriptor, names)
                return self._record(descriptor, self._names_of(descriptor.digest))
        except OSError as error:
            raise disk.os_failure(f"cannot store image {source.what}", error) from error

    def _sweep(self, keep: Iterable[str], *, wait: bool) -> int:
        from wherry.image.sweep import sweep

        return sweep(self, frozenset(keep), wait=wait)

    def _grouped(self) -> dict[str, tuple[Descriptor, tuple[str, ...]]]:
        images: dict[str, tuple[Descriptor, tuple[str, ...]]] = {}
        for entry in self.blobs.entries():
            name = entry.annotations.get(REF_NAME)
            names = images[entry.digest][1] if entry.digest in images else ()
            images[entry.digest] = (entry, (*names, name) if name else names)
        return images

    def _names_of(self, digest: str) -> tuple[str, ...]:
        return self._grouped()[digest][1]

    def _descriptor(self, digest: str) -> Descriptor:
        return self._grouped()[digest][0]

    def _is_named(self, text: str, digest: str, names: Collection[str]) -> bool:
        try:
            reference = Reference.parse(text)
        except WherryError:
            return False
        if reference.stored() in names:
            return True
        # name@digest of the platform's manifest is as good as of the index that it was pulled by.
        same_repository = any(Reference.parse(name).name == reference.name for name in names)
        return bool(reference.digest) and reference.digest == digest and same_repository

    def _by_id(self, text: str, images: dict[str, tuple[Descriptor, tuple[str, ...]]]) -> ImageRecord:
        match = re.fullmatch(_ID, text)
        found: dict[str, ImageRecord] = {}
        if match:
            for descriptor, names in images.values():
                with contextlib.suppress(WherryError, OSError):
                    record = self._record(descriptor, names)
                    if record.id.partition(":")[2].startswith(match[1]):
                        found[record.manifest] = record
        if len({record.id for record in found.values()}) > 1:
            raise WherryError(Kind.INVALID, f"image id {text} is ambiguous", hint="give more of its digits")
        if not found:
            raise WherryError(Kind.NOT_FOUND, f"no such image: {text[:300]}", hint="see `wherry images`, or pull it")
        return next(iter(found.values()))

    def _record(self, descriptor: Descriptor, names: tuple[str, ...]) -> ImageRecord:
        manifest = self.manifest(descriptor)
        what = f"config {manifest.config.digest}"
        config = parse_config(parse_document(self._stored(manifest.config.digest, CONFIG_MAX), CONFIG_MAX, what), what)
        size = sum(_layer_bytes(layer_path(self.root, diff_id)) for diff_id in dict.fromkeys(config.diff_ids))
        return ImageRecord(
            manifest.config.digest,
            descriptor.digest,
            names,
            config,
            manifest.layers,
            size,
            created_time(config.created),
        )

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """The stored manifest of a descriptor."""
        what = f"manifest {descriptor.digest}"
        document = parse_document(self._stored(descriptor.digest, MANIFEST_MAX), MANIFEST_MAX, what)
        return parse_manifest(document, agreed_type(document, [descriptor.media_type], what), what)

    def _stored(self, digest: str, limit: int) -> bytes:
        try:
            return self.blobs.read(digest, limit)
        except FileNotFoundError:
            raise WherryError(Kind.NOT_FOUND, f"blob {digest} of a stored image is missing",
                              hint="remove the image and pull it again") from None  # fmt: skip


def _layer_bytes(path: str) -> int:
    from wherry.image.sweep import layer_bytes

    return layer_bytes(path)


def _dropped(entries: list[Descriptor], digest: str, names: list[str], *, whole: bool) -> list[Descriptor]:
    def goes(entry: Descriptor) -> bool:
        return entry.digest == digest and (whole or entry.annotations.get(REF_NAME) in names)

    return [entry for entry in entries if not goes(entry)]
