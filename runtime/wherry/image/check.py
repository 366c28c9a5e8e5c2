"""Is the store whole? Every image's documents and layers, every blob's bytes, every unpacked layer, every snapshot.

Decides what is damage (a finding) and what is merely left over from somebody who was killed: the next sweep takes that,
and nobody meets it. Looks while nothing is swept (the guard of leases.py), reads the blobs after that, beside pulls.
Repairs by forgetting: what is damaged goes, and a pull brings it back.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image import disk, formats
from wherry.image.blobs import REF_NAME
from wherry.image.indexes import chosen, documents
from wherry.image.manifest import CONFIG_MAX, host_platform, parse_config, parse_document
from wherry.image.reference import DIGEST
from wherry.image.snapshot import Snapshotter, layer_path
from wherry.image.sweep import is_old, names_in, remove_doomed, take_out
from wherry.model import Descriptor

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["Finding", "Report", "check", "repair"]

_HEX = {64: "sha256", 128: "sha512"}
_CHUNK = 1 << 20


class Finding(NamedTuple):
    """One thing that is not as it should be. `kind`: image, blob, layer, snapshot, store."""

    kind: str
    subject: str
    problem: str
    cure: str = ""


class Report(NamedTuple):
    """What was found; what is only left over; how many of each kind were looked at."""

    findings: tuple[Finding, ...]
    leftovers: tuple[str, ...]
    counts: dict[str, int]


def check(store: ImageStore, *, quick: bool) -> Report:
    """Look at everything; `quick`: without reading the blobs through."""
    if not os.path.isdir(store.blobs.place):
        return Report((), (), {})
    looked = _Look(store)
    with store.blobs.leases.guard(shared=True):
        findings = list(looked.everything())
    with store.blobs.leases.guard(shared=False):  # for a moment: who lives, and what is older than that
        in_use = store.blobs.leases.in_use()
        leftovers = [path for path in _temporary(store) if is_old(path, in_use)]
    if not quick:
        findings += _damaged(store, [f"{a}:{name}" for a, name in looked.stored])
        findings += _damaged_layers(store, looked.unpacked)
    return Report(tuple(findings), tuple(leftovers), looked.counts)


class _Look:
    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self.stored: list[tuple[str, str]] = []
        self.unpacked: list[str] = []
        self.counts = {"images": 0, "blobs": 0, "layers": 0, "snapshots": 0}

    def everything(self) -> Iterator[Finding]:
        """All findings that need no blob read whole."""
        for step in (self._layout, self._blobs, self._images, self._layers, self._snapshots):
            try:
                yield from step()
            except (WherryError, OSError) as error:
                yield Finding("store", self._store.root, str(error))

    def _layout(self) -> Iterator[Finding]:
        path = os.path.join(self._store.blobs.place, "oci-layout")
        if not os.path.exists(path) and not os.path.exists(os.path.join(self._store.blobs.place, "index.json")):
            return  # nothing was ever stored
        try:
            version = str(disk.load_json(path, 4096)["imageLayoutVersion"])
        except (OSError, WherryError, KeyError, TypeError) as error:
            yield Finding("store", path, f"cannot be read: {error}")
            return
        if not version.startswith("1."):
            yield Finding("store", path, f"is of version {version}")

    def _blobs(self) -> Iterator[Finding]:
        for algorithm in _HEX.values():
            place = os.path.join(self._store.blobs.place, "blobs", algorithm)
            for name in names_in(place):
                self.counts["blobs"] += 1
                regular = stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode)
                if not re.fullmatch(DIGEST, f"{algorithm}:{name}") or not regular:
                    yield Finding("blob", f"{algorithm}:{name}", "is no blob: its name is no digest, or it is no file")
                else:
                    self.stored.append((algorithm, name))

    def _images(self) -> Iterator[Finding]:
        entries = {entry.digest: entry for entry in self._store.blobs.entries()}
        names = [entry.annotations.get(REF_NAME) for entry in self._store.blobs.entries()]
        for name in {name for name in names if name and names.count(name) > 1}:
            yield Finding("store", name, "is the name of two images")
        for entry in entries.values():
            self.counts["images"] += 1
            for problem in _problems(self._store, entry):
                yield Finding("image", entry.digest, problem, "pull it again")

    def _layers(self) -> Iterator[Finding]:
        place = os.path.join(self._store.root, "layers")
        for name in names_in(place):
            if name.startswith(".tmp-"):
                continue
            self.counts["layers"] += 1
            algorithm = _HEX.get(len(name), "")
            if not re.fullmatch(DIGEST, f"{algorithm}:{name}"):
                yield Finding("layer", name, "is no layer: its name is no diff id")
            elif problem := layer_problem(os.path.join(place, name)):
                yield Finding("layer", f"{algorithm}:{name}", problem, "pull its image again")
            else:
                self.unpacked.append(f"{algorithm}:{name}")

    def _snapshots(self) -> Iterator[Finding]:
        snapshots = Snapshotter(self._store.root)
        for key in snapshots.keys():  # noqa: SIM118 - no mapping
            self.counts["snapshots"] += 1
            for problem in snapshots.problems(key):
                yield Finding("snapshot", key, problem, "pull its image again, or remove the container")


def layer_problem(path: str) -> str:
    """What an unpacked layer lacks; "" where it is whole."""
    try:
        size = disk.load_json(os.path.join(path, "size.json"), 4096)
        counted = all(isinstance(size[key], int) and size[key] >= 0 for key in ("bytes", "entries"))
    except (OSError, WherryError, KeyError, TypeError):
        counted = False
    if not counted:
        return "is not whole: its size.json cannot be read"
    if not os.path.isdir(os.path.join(path, "fs")):
        return "is not whole: it has no directory fs"
    if size.get("format") == formats.EROFS.name and formats.layer_mount(path) is None:
        return "is not whole: the file of its file system is missing"  # what mounts it would see a layer of nothing
    return ""


def _problems(store: ImageStore, entry: Descriptor) -> Iterator[str]:
    """Why an image of the index, or one of an index that it names, is not whole."""
    try:
        if not _has(store, entry):
            yield "its manifest is missing"
            return
        needed = [blob for document in documents(store.blobs, entry) for blob in document.blobs]
        missing = [blob for blob in needed if not _has(store, blob)]
        yield from (f"its blob {blob.digest} ({blob.media_type}) is missing" for blob in missing)
        if not missing:
            manifest = store.manifest(chosen(store.blobs, entry, host_platform()))
            what = f"config {manifest.config.digest}"
            data = store.blobs.read(manifest.config.digest, CONFIG_MAX)
            config = parse_config(parse_document(data, CONFIG_MAX, what), what)
            if len(config.diff_ids) != len(manifest.layers):
                yield f"its config names {len(config.diff_ids)} layers, its manifest {len(manifest.layers)}"
    except (WherryError, OSError) as error:
        yield str(error)


def _has(store: ImageStore, blob: Descriptor) -> bool:
    """Whether it is there, without a word to leases: the guard is ours."""
    try:
        size = os.stat(store.blobs.path(blob.digest)).st_size
    except FileNotFoundError:
        return False
    if size != blob.size:
        raise WherryError(Kind.INVALID, f"blob {blob.digest} has {size} bytes, not {blob.size}")
    return True


def _damaged(store: ImageStore, digests: list[str]) -> list[Finding]:
    """Blobs whose bytes are not those of their names. One that goes meanwhile was not needed."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count() or 1, "check") as pool:
        found = pool.map(lambda digest: _is_right(store.blobs.path(digest), digest), digests)
        return [Finding("blob", digest, "its bytes have another digest", "pull its image again")
                for digest, right in zip(digests, found, strict=True) if not right]  # fmt: skip


def _damaged_layers(store: ImageStore, diff_ids: list[str]) -> list[Finding]:
    """Layers in one file whose archive is not that of their names; extracted ones have nothing to compare with."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count() or 1, "check") as pool:
        found = pool.map(lambda diff_id: formats.damage(layer_path(store.root, diff_id), diff_id), diff_ids)
        return [Finding("layer", diff_id, problem, "pull its image again")
                for diff_id, problem in zip(diff_ids, found, strict=True) if problem]  # fmt: skip


def _is_right(path: str, digest: str) -> bool:
    import hashlib

    algorithm, _, expected = digest.partition(":")
    hashed = hashlib.new(algorithm)
    try:
        with open(path, "rb") as file:
            while data := file.read(_CHUNK):
                hashed.update(data)
    except FileNotFoundError:
        return True
    except OSError:  # the disk cannot read it any more
        return False
    return hashed.hexdigest() == expected


def _temporary(store: ImageStore) -> Iterator[str]:
    """What somebody makes now, or made when he was killed."""
    for place in (store.blobs.ingest, store.blobs.place, os.path.join(store.root, "layers"),
                  os.path.join(store.root, "snapshots")):  # fmt: skip
        for name in sorted(names_in(place)):
            if ".tmp-" in name or place == store.blobs.ingest:
                yield os.path.join(place, name)


# ---- repair


def repair(store: ImageStore, report: Report) -> list[Finding]:
    """Take what is damaged away; the findings that this mends. A pull brings back what went.

    A pull may have done so since the report: each finding is looked at again, now that nobody can change it.
    """
    mended = [finding for finding in report.findings if finding.kind in ("blob", "image", "layer")]
    with store.blobs.leases.guard(shared=False):
        still = [finding for finding in mended if _is_still_so(store, finding)]
        bad = {finding.subject for finding in still if finding.kind == "blob"}
        places = [_place_of(store, finding) for finding in still if finding.kind in ("blob", "layer")]
        doomed = [take_out(*place, store.blobs.ingest) for place in places if os.path.lexists(os.path.join(*place))]
        broken = {finding.subject for finding in still if finding.kind == "image"}
        broken |= {entry.digest for entry in store.blobs.entries() if bad & _needed(store, entry)}
        store.blobs.change(lambda entries: [entry for entry in entries if entry.digest not in broken])
    remove_doomed(doomed)
    store.blobs.ensure()
    return mended


def _is_still_so(store: ImageStore, finding: Finding) -> bool:
    if finding.kind == "image":
        entries = {entry.digest: entry for entry in store.blobs.entries()}
        return finding.subject in entries and any(_problems(store, entries[finding.subject]))
    path = os.path.join(*_place_of(store, finding))
    if finding.kind == "layer":
        return ":" not in finding.subject or bool(layer_problem(path) or formats.damage(path, finding.subject))
    regular = re.fullmatch(DIGEST, finding.subject) and os.path.isfile(path) and not os.path.islink(path)
    return not regular or not _is_right(path, finding.subject)


def _place_of(store: ImageStore, finding: Finding) -> tuple[str, str]:
    algorithm, colon, name = finding.subject.partition(":")
    if finding.kind == "blob":
        return os.path.join(store.blobs.place, "blobs", algorithm), name
    return os.path.join(store.root, "layers"), name if colon else finding.subject


def _needed(store: ImageStore, entry: Descriptor) -> set[str]:
    """The blobs that an image cannot do without."""
    needed = {entry.digest}
    with contextlib.suppress(WherryError, OSError):
        for document in documents(store.blobs, entry):
            needed |= {document.descriptor.digest, *(blob.digest for blob in document.blobs)}
    return needed
