"""What nobody uses any more: blobs, layers, and what crashes left.

Decides by index.json, by the snapshots on disk, by what the caller keeps and by what living work uses (leases.py), so
that it can run beside pulls. What goes is taken out of its place while nobody can begin to use it, and removed after.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from wherry.errors import WherryError
from wherry.image import disk
from wherry.image.indexes import chosen, documents
from wherry.image.leases import InUse
from wherry.image.manifest import CONFIG_MAX, host_platform, parse_config, parse_document
from wherry.image.snapshot import Snapshotter
from wherry.kernel.files import remove_tree
from wherry.model import Descriptor

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["is_old", "layer_bytes", "names_in", "references", "remove_doomed", "sweep", "take_out", "unmount_layers"]

_HEX = r"[a-f0-9]{64}|[a-f0-9]{128}"
_ALGORITHMS = ("sha256", "sha512")
_PARTIAL_AGE = 24 * 3600.0  # a broken pull may go on where it ended for a day
_REMOVERS = 4
_PATIENCE = 5.0  # seconds: the guard is held for moments only


def sweep(
    store: ImageStore, keep: frozenset[str], later: Callable[[Callable[[], object]], object] | None = None
) -> int:
    """Remove what is unused; the bytes freed. `later` is given the removal itself, once all is out of its place."""
    with store.blobs.leases.alone(_PATIENCE) as alone:
        if not alone:
            return 0
        in_use = store.blobs.leases.in_use()
        blobs, diff_ids = _used(store)
        freed, doomed = (0, []) if blobs is None else _doom_blobs(store, in_use, blobs)
        below = _of_snapshots(store.root)
        more, layers = (0, []) if below is None else _doom_layers(store, in_use, diff_ids | keep | below)
        doomed += layers + _leftovers(store, in_use)
        snapshots = Snapshotter(store.root).leftovers()
    doomed += [(os.path.join(store.root, "snapshots"), name) for name in snapshots]
    (later or (lambda step: step()))(lambda: remove_doomed(doomed))
    return freed + more


Doomed = list[tuple[str, str]]  # directory and name: temporary names, which nobody looks for


def _used(store: ImageStore) -> tuple[set[str] | None, set[str]]:
    """The blobs and diff ids of all images and of what builds remember.

    An image whose manifest or config is missing or damaged is forgotten: nothing can be started from it. Where only a
    document of another platform is, it stays; what that one names nobody can tell, so all blobs do (None).
    """
    from wherry.image.buildcache import BuildCache

    blobs, diff_ids = BuildCache(store.root).used()
    broken: set[str] = set()
    vague = False
    for entry in {entry.digest: entry for entry in store.blobs.entries()}.values():
        try:
            diff_ids |= _diff_ids(store, entry)
        except WherryError:
            broken.add(entry.digest)
            continue
        try:
            blobs |= _needed(store, entry)
        except (WherryError, OSError):
            vague = True
    if broken:
        store.blobs.change(lambda entries: [entry for entry in entries if entry.digest not in broken])
    return None if vague else blobs, diff_ids


def references(store: ImageStore, top: Descriptor) -> tuple[set[str], set[str]]:
    """What an image of the index needs: its documents and blobs, and the diff ids of this machine's."""
    diff_ids = _diff_ids(store, top)
    return _needed(store, top), diff_ids


def _diff_ids(store: ImageStore, top: Descriptor) -> set[str]:
    manifest = store.manifest(chosen(store.blobs, top, host_platform()))
    what = f"config {manifest.config.digest}"
    try:
        data = store.blobs.read(manifest.config.digest, CONFIG_MAX)
    except FileNotFoundError:
        raise disk.os_failure(what, FileNotFoundError(2, "missing")) from None
    return set(parse_config(parse_document(data, CONFIG_MAX, what), what).diff_ids)


def _needed(store: ImageStore, top: Descriptor) -> set[str]:
    found = list(documents(store.blobs, top))
    blobs = {blob.digest for document in found for blob in document.blobs}
    return blobs | {document.descriptor.digest for document in found}


def _of_snapshots(root: str) -> set[str] | None:
    """The layers below all snapshots; None where one cannot tell (a power cut took its list): then all layers stay."""
    snapshots = Snapshotter(root)
    found: set[str] = set()
    for key in snapshots.keys():  # noqa: SIM118 - no mapping
        try:
            found.update(snapshots.diff_ids(key))
        except (FileNotFoundError, WherryError, KeyError, TypeError):
            if key in snapshots.keys():  # noqa: SIM118 - else it was removed meanwhile
                return None
    return found


def names_in(path: str) -> list[str]:
    """What a directory holds; nothing where it is not."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def take_out(place: str, name: str, into: str) -> tuple[str, str]:
    """A temporary name for what goes: a crash in the middle leaves no half thing under its own."""
    doomed = disk.fresh_name(".tmp-doomed-")
    os.rename(os.path.join(place, name), os.path.join(into, doomed))
    return into, doomed


def _doom_blobs(store: ImageStore, in_use: InUse, used: set[str]) -> tuple[int, Doomed]:
    freed, doomed = 0, []
    for algorithm in _ALGORITHMS:
        place = os.path.join(store.blobs.place, "blobs", algorithm)
        for name in names_in(place):
            status = os.stat(os.path.join(place, name), follow_symlinks=False)
            if f"{algorithm}:{name}" not in used and not in_use.keeps(f"{algorithm}:{name}", status):
                freed += status.st_size
                doomed.append(take_out(place, name, store.blobs.ingest))
    return freed, doomed


def _doom_layers(store: ImageStore, in_use: InUse, used: set[str]) -> tuple[int, Doomed]:
    place = os.path.join(store.root, "layers")
    names = {diff_id.partition(":")[2] for diff_id in used}
    claimed = InUse(frozenset(digest.partition(":")[2] for digest in in_use.digests), in_use.since)
    freed, doomed = 0, []
    for name in names_in(place):
        path = os.path.join(place, name)
        if re.fullmatch(_HEX, name) and name not in names and not claimed.keeps(name, os.lstat(path)):
            freed += layer_bytes(path)
            doomed.append(take_out(place, name, place))
    return freed, doomed


def _leftovers(store: ImageStore, in_use: InUse) -> Doomed:
    """What the dead left half made. Names of partial blobs are reused: they are locked, as living temporaries."""
    ingest, layers = store.blobs.ingest, os.path.join(store.root, "layers")
    found: Doomed = [(layers, name) for name in names_in(layers) if name.startswith(".tmp-")]
    for name in names_in(ingest):
        if name.startswith((".tmp-", "layer-")) or _older(os.path.join(ingest, name), _PARTIAL_AGE):
            found.append((ingest, name))
    with store.blobs.locked():
        for name in names_in(store.blobs.place):
            if ".tmp-" in name:  # of an index.json that was never finished: who writes one holds the lock
                os.unlink(os.path.join(store.blobs.place, name))
    return [(place, name) for place, name in found if is_old(os.path.join(place, name), in_use)]


def is_old(path: str, in_use: InUse) -> bool:
    """Made before any living work began: that has no lock on it yet, perhaps."""
    try:
        return not in_use.keeps("", os.lstat(path))
    except FileNotFoundError:
        return False


def layer_bytes(path: str) -> int:
    """The bytes of an unpacked layer, as counted when it was unpacked."""
    try:
        return int(disk.load_json(os.path.join(path, "size.json"))["bytes"])
    except (OSError, WherryError, KeyError, TypeError, ValueError):
        return 0


def remove_doomed(doomed: Doomed) -> None:
    """Remove what was taken out of its place, and temporaries that nobody holds; what fails is told after the rest.

    The kernel's work nearly alone: two CPUs take less time for it than one.
    """
    if len(doomed) < 2:
        failed = [_attempt(one) for one in doomed]
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_REMOVERS, "remove") as pool:
            failed = list(pool.map(_attempt, doomed))
    for error in failed:
        if error is not None:
            raise error


def _attempt(one: tuple[str, str]) -> WherryError | None:
    try:
        _remove_unheld(*one)
    except WherryError as error:
        return error
    return None


def unmount_layers(root: str) -> None:
    """Every layer loses its mount; who has files of it open keeps them."""
    place = os.path.join(root, "layers")
    for name in names_in(place):
        _unmount(os.path.join(place, name, "fs"))


def _unmount(path: str) -> None:
    from wherry.kernel import mount

    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        while mount.mounted(path) and mount.unmount(path):  # one that a user namespace inherited is not ours to take
            pass


def _remove(place: str, name: str) -> None:
    _unmount(os.path.join(place, name, "fs"))
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(name, fd)
    finally:
        os.close(fd)


def _remove_unheld(place: str, name: str) -> None:
    held = disk.try_lock(os.path.join(place, name))
    if held >= 0:
        try:
            _remove(place, name)
        finally:
            os.close(held)


def _older(path: str, age: float) -> bool:
    try:
        return time.time() - os.stat(path, follow_symlinks=False).st_mtime > age
    except FileNotFoundError:
        return False
