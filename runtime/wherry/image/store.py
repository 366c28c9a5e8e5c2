"""The image store: which images are here, under which names, and what may be removed.

Decides names, ids and lifetime of images. Refuses to know containers: what they use is told by the caller (`keep`) and
by the snapshots on disk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.blobs import REF_NAME, Blobs
from wherry.image.manifest import (
    CONFIG_MAX,
    INDEX_TYPES,
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
    from wherry.image.auth import Credentials
    from wherry.image.check import Finding, Report
    from wherry.image.hosts import Reach
    from wherry.image.inflate import Readable
    from wherry.image.pull import Puller, Source
    from wherry.image.push import Pushed
    from wherry.image.unpack import LayerLimits, Unpacker
    from wherry.image.usage import Usage

    Findings = list[Finding]

Lines = list[str]  # ImageStore.list hides the builtin inside the class
Records = list[ImageRecord]
Rows = list[Json]
Names = Sequence[str]
Sizes = list[int]
Later = Callable[[Callable[[], object]], object]
Progress = Callable[[ProgressEvent], None]
_ID = r"(?:sha256:)?([a-f0-9]{1,64})"
_WHOLE_ID = re.compile("sha256:[0-9a-f]{64}")  # never a name: as docker


def _silent(_event: ProgressEvent) -> None:
    return None


class ImageStore:
    """Images below `root`. Safe for many threads and processes at once.

    `insecure`: registries (host[:port]) that may be spoken to by plain http, beside loopback ones.
    `hosts`: the directory of what is set for registries (hosts.d).
    `helper`: gives a descriptor of the static helper (role `unpack`); by default the installed one.
    `snapshot_format`: of layers that are unpacked from now on, see formats.py.
    `userxattr`: whiteouts and opaque marks as user.overlay.*, for overlays mounted inside a user namespace.
    """

    def __init__(
        self,
        root: str,
        *,
        insecure: Collection[str] = (),
        hosts: str = "",
        userxattr: bool = False,
        helper: Callable[[], int] | None = None,
        limits: LayerLimits | None = None,
        snapshot_format: str = "directory",
    ) -> None:
        self.root = check_place(root)
        self.blobs = Blobs(self.root)
        self._insecure = frozenset(insecure)
        self._hosts = hosts
        self._userxattr = userxattr
        self._helper = helper
        self._limits = limits
        self._format = snapshot_format
        self._ids: dict[str, str] = {}  # a manifest's digest -> its image's id

    # ---- getting images

    @property
    def reach(self) -> Reach:
        """How registries are reached."""
        from wherry.image.hosts import Reach

        return Reach(self._hosts, self._insecure)

    def pull(
        self,
        name: str,
        platform: Platform | None = None,
        progress: Progress = _silent,
        *,
        all_platforms: bool = False,
        credentials: Callable[[str], Credentials | None] | None = None,
    ) -> ImageRecord:
        """Fetch `name` from its registry and unpack it. `platform` None: this machine's.

        `all_platforms`: keep the index and the images of all its platforms; this machine's is unpacked.
        `credentials`: what a registry may be told, by its name; None: what this user has stored.
        """
        from wherry.image.registry import RegistrySource

        reference = Reference.parse(name)
        reach = self.reach if credentials is None else self.reach._replace(credentials=credentials)
        source = RegistrySource(reference, reach)
        with contextlib.closing(source):
            if all_platforms:
                return self._take_all(source, [reference.stored()], progress)
            return self._take(source, [reference.stored()], platform, progress)

    def push(
        self, name: str, progress: Progress = _silent, *, all_tags: bool = False,
        credentials: Callable[[str], Credentials | None] | None = None,
    ) -> Iterator[Pushed]:  # fmt: skip
        """Send an image, or all tags of a repository, to the registry of its name; what came there, one by one.
        `credentials`: as `pull` has them."""
        from wherry.image.push import push

        reach = self.reach if credentials is None else self.reach._replace(credentials=credentials)
        return push(self.blobs, reach, name, progress, all_tags=all_tags)

    def tags(self, name: str) -> Lines:
        """The tags that the repository of a name has in its registry."""
        from wherry.image.registry import RegistrySource

        with contextlib.closing(RegistrySource(Reference.parse(name), self.reach)) as source:
            return source.tags()

    def referrers(self, name: str, artifact_type: str = "") -> Rows:
        """What refers to an image in its registry, as descriptors."""
        from wherry.image.referrers import referrers

        reference, digest = Reference.parse(name), ""
        with contextlib.suppress(WherryError):
            record = self.get(name)
            digest = record.target or record.manifest
        return referrers(reference, digest, self.reach, artifact_type)

    def distribution(self, name: str, credentials: Callable[[str], Credentials | None]) -> Json:
        """What the registry of a name has there. `credentials`: as `pull` has them."""
        from wherry.image.distribution import described
        from wherry.image.registry import RegistrySource

        reach = self.reach._replace(credentials=credentials)
        return described(self.blobs, RegistrySource(Reference.parse(name), reach))

    def load(self, source: str, progress: Progress = _silent, platform: Platform | None = None) -> ImageRecord:
        """Take the image of `oci:DIR[:tag]`, `oci-archive:FILE[:tag]` or `docker-archive:FILE[:tag]` into the store."""
        return self.load_all(source, progress, platform, only_one=True)[0]

    def load_all(
        self, source: str, progress: Progress = _silent, platform: Platform | None = None, *, only_one: bool = False
    ) -> Records:
        """Like load, but of a source that holds several images takes all when no tag is given (docker load)."""
        from wherry.image.archive import open_sources

        with self._storing(source), open_sources(source, self.blobs, only_one=only_one) as found:
            return [self._loaded(one, one.names, platform, progress) for one in found]

    def load_found(self, path: str, file: Readable | None = None, progress: Progress = _silent) -> Records:
        """Take every image of a directory or archive of any kind: what lies at `path`, or what `file` gives, packed or
        not, when it is read from its beginning to its end."""
        from wherry.image.archive import open_found

        with self._storing(path), open_found(path, file, self.blobs) as found:
            return [self._loaded(one, one.names, None, progress) for one in found]

    def ensure_unpacked(self, record: ImageRecord, progress: Progress = _silent) -> None:
        """Unpack the layers of a stored image that are not on disk yet. Cheap when all are."""
        missing = [d for d in record.config.diff_ids if not os.path.isdir(layer_path(self.root, d))]
        if missing:
            with self.blobs.lease(), self._puller(progress) as puller:
                self.use(record)
                puller.unpack_all(record.layers, record.config.diff_ids)

    def use(self, record: ImageRecord) -> None:
        """Under a lease of `blobs`: what is there of the image stays until the end of that, also without its names."""
        documents = (record.target, record.manifest) if record.target else (record.manifest,)
        self.blobs.use(*documents, record.id, *(x.digest for x in record.layers), *record.config.diff_ids)

    # ---- looking

    def get(self, name_or_id: str) -> ImageRecord:
        """The image of a name, an id, an unambiguous beginning of an id, or name@digest."""
        if is_source(name_or_id):
            raise WherryError(Kind.INVALID, f"{name_or_id} is a source, not a stored image", hint="load it first")
        images = self._grouped()
        for digest, (descriptor, names) in images.items() if not _WHOLE_ID.fullmatch(name_or_id) else ():
            if self._is_named(name_or_id, digest, names):
                return self._record(descriptor, names)
        return self._by_id(name_or_id, images)

    def get_manifest(self, digest: str) -> ImageRecord:
        """The image of the digest of its manifest, or index."""
        return self._record(*self._group(digest))

    def list(self) -> Records:
        """All images, newest first. One that cannot be read is left out: `gc` and `rmi` deal with it."""
        records = []
        for descriptor, names in self._grouped().values():
            with contextlib.suppress(WherryError, OSError):
                records.append(self._record(descriptor, names))
        return sorted(records, key=lambda record: -record.created)

    def config_json(self, record: ImageRecord) -> Json:
        """The image's whole config document, as it was pulled or made."""
        return parse_document(self.blobs.read(record.id, CONFIG_MAX), CONFIG_MAX, f"config {record.id}")

    def layer_sizes(self, record: ImageRecord) -> Sizes:
        """Bytes of each unpacked layer, lowest first."""
        return [_layer_bytes(layer_path(self.root, diff_id)) for diff_id in record.config.diff_ids]

    def save(self, images: Sequence[tuple[ImageRecord, Names]], target: str | int, form: str = "docker") -> None:
        """Write images, each under some of its names, to a path or (an archive) a descriptor; formats: save.FORMATS."""
        from wherry.image.save import Saved, save

        with self.blobs.lease():
            for record, _ in images:
                self.use(record)
            saved = []
            for record, names in images:
                descriptor = self._meant(self._descriptor(record.target or record.manifest))
                saved.append(Saved(record, descriptor, self.manifest(descriptor).config, tuple(names)))
            save(self.blobs, saved, form, target)

    # ---- names and lifetime

    def untag(self, record: ImageRecord, names: Names = ()) -> None:
        """Take these names (all without any) from an image, which stays."""
        doomed = [str(Reference.parse(name).stored()) for name in names] or list(record.names)
        missing = [name for name in doomed if name not in record.names]
        if missing:
            raise WherryError(Kind.NOT_FOUND, f"{missing[0]} is not a name of image {record.id[7:19]}",
                              hint=f"its names: {', '.join(record.names) or 'none'}")  # fmt: skip
        self.blobs.untag(doomed)

    def adopt(self, manifest: Descriptor, names: Names, progress: Progress = _silent) -> ImageRecord:
        """An image whose blobs were all made here: it is unpacked, and has its names (canonical) after that."""
        with self._storing(manifest.digest):
            self.ensure_unpacked(self._record(manifest, ()), progress)
            self.blobs.name(manifest, names)
            return self.get_manifest(manifest.digest)

    def tag(self, name_or_id: str, new_name: str) -> str:
        """Give an image one more name; the canonical form of it."""
        target = Reference.parse(new_name)
        if target.digest:
            raise WherryError(Kind.INVALID, f"{new_name} has a digest: a tag cannot be given to it")
        record = self.get(name_or_id)
        self.blobs.name(self._descriptor(record.target or record.manifest), [str(target)])
        return str(target)

    def remove(
        self, name_or_id: str, force: bool = False, keep: Iterable[str] = (), later: Later | None = None
    ) -> Lines:
        """Untag, and delete the image with its last name. What was done, in docker's words ("Untagged: ...").

        `keep`: diff ids whose layers stay in any case. Whether a container uses the image is the caller's question.
        `later` is given the removal of the files, which are nameless by then.
        """
        record = self.get(name_or_id)
        entry = record.target or record.manifest
        by_id = not any(self._is_named(name_or_id, entry, (name,)) for name in record.names)
        if by_id and len(record.names) > 1 and not force:
            raise WherryError(Kind.CONFLICT, f"image {record.id[7:19]} has several names: {', '.join(record.names)}",
                              hint="remove them by name, or use --force")  # fmt: skip
        doomed = list(record.names) if by_id else [str(Reference.parse(name_or_id).stored())]
        done = [f"Untagged: {Reference.parse(name).familiar()}" for name in doomed]
        last = set(doomed) >= set(record.names)
        self.blobs.change(lambda entries: _dropped(entries, entry, doomed, whole=last))
        if last:
            done.append(f"Deleted: {record.id}")
            self._sweep(keep, later)
        return done

    def gc(self, keep: Iterable[str] = ()) -> int:
        """Remove blobs and layers that no image, no snapshot and no diff id of `keep` uses; the bytes freed."""
        return self._sweep(keep)

    def layer_format(self) -> tuple[str, str]:
        """The snapshot format of what is unpacked from now on, and why it is not erofs, where a probe said so."""
        with self._unpacker() as unpacker:
            chosen, why = unpacker.choice
        return chosen.name, why

    def unmount_layers(self) -> None:
        """Take away the mounts of all layers, in this mount namespace, before the layers themselves are."""
        from wherry.image.sweep import unmount_layers

        unmount_layers(self.root)

    def disk_usage(self) -> Usage:
        """What blobs and layers take on disk, as `du` counts, and whose they are."""
        from wherry.image.usage import usage

        return usage(self)

    def check(self, *, quick: bool = False) -> Report:
        """Whether everything here is whole."""
        from wherry.image.check import check

        return check(self, quick=quick)

    def repair(self, report: Report) -> Findings:
        """Take away what `check` found damaged; the findings that are mended by it."""
        from wherry.image.check import repair

        return repair(self, report)

    # ---- inside

    def _puller(self, progress: Progress) -> Puller:
        from wherry.image.pull import Puller

        return Puller(self.blobs, self._unpacker(), progress)

    def _unpacker(self) -> Unpacker:
        from wherry.image.unpack import Unpacker

        return Unpacker(self.root, userxattr=self._userxattr, helper=self._helper, limits=self._limits,
                        snapshot_format=self._format)  # fmt: skip

    def extract(self, archive: BinaryIO, directory: str, what: str) -> bool:
        """Unpack an archive that is no layer (a build context, ADD) into an empty directory, confined as a layer is.
        False where it is none."""
        from wherry.image.unpack import Unpacker

        with Unpacker(self.root, helper=self._helper, limits=self._limits) as unpacker:
            return unpacker.extract(archive, directory, what)

    def _take(self, source: Source, names: Names, platform: Platform | None, progress: Progress) -> ImageRecord:
        with self._storing(source.what):
            wanted = platform or host_platform()
            with self._puller(progress) as puller:
                if not set(names) & {entry.annotations.get(REF_NAME) for entry in self.blobs.entries()}:
                    puller.expect()
                descriptor = puller.take(source, wanted, strict=platform is not None)
            self.blobs.name(descriptor, names)
            return self._record(descriptor, self._names_of(descriptor.digest))

    def _loaded(self, source: Source, names: Names, platform: Platform | None, progress: Progress) -> ImageRecord:
        """The names are those that it came with; it may have more here."""
        return self._take(source, names, platform, progress)._replace(names=tuple(dict.fromkeys(names)))

    @contextlib.contextmanager
    def _storing(self, what: str) -> Iterator[None]:
        try:
            self.blobs.ensure()
            with self.blobs.lease():
                yield
        except OSError as error:
            raise disk.os_failure(f"cannot store image {what}", error) from error

    def _take_all(self, source: Source, names: Names, progress: Progress) -> ImageRecord:
        from wherry.image.platforms import take_all

        with self._storing(source.what):
            descriptor = take_all(self.blobs, source, progress)
            self._record(descriptor, ())  # an artifact gets no name
            self.blobs.name(descriptor, names)
            record = self._record(descriptor, self._names_of(descriptor.digest))
            with self._puller(progress) as puller:
                puller.unpack_all(record.layers, record.config.diff_ids)
            return record

    def _sweep(self, keep: Iterable[str], later: Later | None = None) -> int:
        from wherry.image.sweep import sweep

        return sweep(self, frozenset(keep), later)

    def _grouped(self) -> dict[str, tuple[Descriptor, tuple[str, ...]]]:
        images: dict[str, tuple[Descriptor, tuple[str, ...]]] = {}
        for entry in self.blobs.entries():
            name = entry.annotations.get(REF_NAME)
            names = images[entry.digest][1] if entry.digest in images else ()
            images[entry.digest] = (entry, (*names, name) if name else names)
        return images

    def _names_of(self, digest: str) -> tuple[str, ...]:
        return self._group(digest)[1]

    def _descriptor(self, digest: str) -> Descriptor:
        return self._group(digest)[0]

    def _group(self, digest: str) -> tuple[Descriptor, tuple[str, ...]]:
        found = self._grouped().get(digest)
        if found is None:
            raise WherryError(Kind.NOT_FOUND, f"image {digest} has just been removed")
        return found

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
                    if self._id_of(descriptor).partition(":")[2].startswith(match[1]):
                        record = self._record(descriptor, names)
                        found[record.manifest] = record
        if len({record.id for record in found.values()}) > 1:
            raise WherryError(Kind.INVALID, f"image id {text} is ambiguous", hint="give more of its digits")
        if not found:
            raise WherryError(Kind.NOT_FOUND, f"no such image: {text[:300]}", hint="see `wherry images`, or pull it")
        return next(iter(found.values()))

    def _id_of(self, target: Descriptor) -> str:
        """The image's id, remembered: what a digest names never changes, and who creates containers asks by id."""
        descriptor = self._meant(target)
        known = self._ids.get(descriptor.digest)
        if known is None:
            known = self._ids[descriptor.digest] = self.manifest(descriptor).config.digest
        return known

    def _record(self, target: Descriptor, names: tuple[str, ...]) -> ImageRecord:
        descriptor = self._meant(target)
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
            target.digest if target.digest != descriptor.digest else "",
        )

    def _meant(self, target: Descriptor) -> Descriptor:
        """The manifest that a name leads to, for this machine where it leads to an index."""
        if target.media_type not in INDEX_TYPES:
            return target
        from wherry.image.indexes import chosen

        return chosen(self.blobs, target, host_platform())

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
