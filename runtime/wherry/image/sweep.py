"""What nobody uses any more: blobs, layers, and what crashes left.

Decides by index.json, by the snapshots on disk, by what the caller keeps and by what living work uses (leases.py), so
that it can run beside pulls. What goes is taken out of its place while nobody can begin to use it, and removed after.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING

from wherry.errors import WherryError
from wherry.image import disk
from wherry.image.indexes import chosen, documents
from wherry.image.leases import InUse
from wherry.image.manifest import CONFIG_MAX, host_platform, parse_config, parse_document
from wherry.image.snapshot import Snapshotter
from wherry.kernel.files import remove_tree
from wherry.model import Json

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["sweep", "unmount_layers", "usage"]

_HEX = r"[a-f0-9]{64}|[a-f0-9]{128}"
_ALGORITHMS = ("sha256", "sha512")
_PARTIAL_AGE = 24 * 3600.0  # a broken pull may go on where it ended for a day
_REMOVERS = 4
_PATIENCE = 5.0  # seconds: the guard is held for moments only


def sweep(store: ImageStore, keep: frozenset[str]) -> int:
    """Remove what is unused; the bytes freed."""
    with store.blobs.leases.alone(_PATIENCE) as alone:
        if not alone:
            return 0
        _drop_broken(store)
        in_use = store.blobs.leases.in_use()
        blobs, diff_ids = _used(store)
        freed, doomed = _doom_blobs(store, in_use, blobs)
        more, layers = _doom_layers(store, in_use, diff_ids | keep | _of_snapshots(store.root))
        doomed += layers + _leftovers(store, in_use)
        snapshots = Snapshotter(store.root).leftovers()
    _remove_all(doomed)
    for name in snapshots:
        _remove(os.path.join(store.root, "snapshots"), name)
    return freed + more


def _remove_all(doomed: _Doomed) -> None:
    """The kernel's work nearly alone: two CPUs take less time for it than one."""
    if len(doomed) < 2:
        for place, name in doomed:
            _remove_unheld(place, name)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_REMOVERS, "remove") as pool:
        for _ in pool.map(lambda one: _remove_unheld(*one), doomed):
            pass


_Doomed = list[tuple[str, str]]  # directory and name: temporary names, which nobody looks for


def _drop_broken(store: ImageStore) -> None:
    """Forget images whose manifest or config is missing or damaged: nothing can be started from them."""
    broken = {entry.digest for entry in store.blobs.entries() if not _readable(store, entry.digest)}
    if broken:
        store.blobs.change(lambda entries: [entry for entry in entries if entry.digest not in broken])


def _readable(store: ImageStore, digest: str) -> bool:
    try:
        _references(store, digest)
    except WherryError:
        return False
    return True


def _references(store: ImageStore, digest: str) -> tuple[set[str], set[str]]:
    top = next(entry for entry in store.blobs.entries() if entry.digest == digest)
    descriptor = chosen(store.blobs, top, host_platform())
    manifest = store.manifest(descriptor)
    what = f"config {manifest.config.digest}"
    try:
        data = store.blobs.read(manifest.config.digest, CONFIG_MAX)
    except FileNotFoundError:
        raise disk.os_failure(what, FileNotFoundError(2, "missing")) from None
    config = parse_config(parse_document(data, CONFIG_MAX, what), what)
    found = list(documents(store.blobs, top))
    blobs = {blob.digest for document in found for blob in document.blobs}
    return blobs | {document.descriptor.digest for document in found}, set(config.diff_ids)


def _used(store: ImageStore) -> tuple[set[str], set[str]]:
    blobs: set[str] = set()
    diff_ids: set[str] = set()
    for digest in {entry.digest for entry in store.blobs.entries()}:
        more_blobs, more_ids = _references(store, digest)
        blobs |= more_blobs
        diff_ids |= more_ids
    return blobs, diff_ids


def _of_snapshots(root: str) -> set[str]:
    snapshots = Snapshotter(root)
    keys = snapshots.keys()
    return {diff_id for key in keys for diff_id in snapshots.diff_ids(key)}


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _doom(place: str, name: str, into: str) -> tuple[str, str]:
    """A temporary name for what goes: a crash in the middle leaves no half thing under its own."""
    doomed = disk.fresh_name(".tmp-doomed-")
    os.rename(os.path.join(place, name), os.path.join(into, doomed))
    return into, doomed


def _doom_blobs(store: ImageStore, in_use: InUse, used: set[str]) -> tuple[int, _Doomed]:
    freed, doomed = 0, []
    for algorithm in _ALGORITHMS:
        place = os.path.join(store.blobs.place, "blobs", algorithm)
        for name in _names(place):
            status = os.stat(os.path.join(place, name), follow_symlinks=False)
            if f"{algorithm}:{name}" not in used and not in_use.keeps(f"{algorithm}:{name}", status):
                freed += status.st_size
                doomed.append(_doom(place, name, store.blobs.ingest))
    return freed, doomed


def _doom_layers(store: ImageStore, in_use: InUse, used: set[str]) -> tuple[int, _Doomed]:
    place = os.path.join(store.root, "layers")
    names = {diff_id.partition(":")[2] for diff_id in used}
    claimed = InUse(frozenset(digest.partition(":")[2] for digest in in_use.digests), in_use.since)
    freed, doomed = 0, []
    for name in _names(place):
        path = os.path.join(place, name)
        if re.fullmatch(_HEX, name) and name not in names and not claimed.keeps(name, os.lstat(path)):
            freed += layer_bytes(path)
            doomed.append(_doom(place, name, place))
    return freed, doomed


def _leftovers(store: ImageStore, in_use: InUse) -> _Doomed:
    """What the dead left half made. Names of partial blobs are reused: they are locked, as living temporaries."""
    ingest, layers = store.blobs.ingest, os.path.join(store.root, "layers")
    found: _Doomed = [(layers, name) for name in _names(layers) if name.startswith(".tmp-")]
    for name in _names(ingest):
        if name.startswith((".tmp-", "layer-")) or _older(os.path.join(ingest, name), _PARTIAL_AGE):
            found.append((ingest, name))
    with store.blobs.locked():
        for name in _names(store.blobs.place):
            if ".tmp-" in name:  # of an index.json that was never finished: who writes one holds the lock
                os.unlink(os.path.join(store.blobs.place, name))
    return [(place, name) for place, name in found if _is_old(os.path.join(place, name), in_use)]


def _is_old(path: str, in_use: InUse) -> bool:
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


def unmount_layers(root: str) -> None:
    """Every layer loses its mount; who has files of it open keeps them."""
    place = os.path.join(root, "layers")
    for name in _names(place):
        _unmount(os.path.join(place, name, "fs"))


def _unmount(path: str) -> None:
    from wherry.kernel import mount

    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        while mount.mounted(path):
            mount.unmount(path)


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


def usage(store: ImageStore) -> Json:
    """Bytes of blobs, of unpacked layers, and of those layers that no image uses."""
    used: set[str] = set()
    for record in store.list():
        used.update(diff_id.partition(":")[2] for diff_id in record.config.diff_ids)
    place = os.path.join(store.root, "layers")
    sizes = {name: layer_bytes(os.path.join(place, name)) for name in _names(place) if re.fullmatch(_HEX, name)}
    blobs = os.path.join(store.blobs.place, "blobs", "sha256")
    return {
        "blobs": sum(os.stat(os.path.join(blobs, name)).st_size for name in _names(blobs)),
        "layers": sum(sizes.values()),
        "reclaimable": sum(size for name, size in sizes.items() if name not in used),
    }
