"""What nobody uses any more: blobs, layers, and what crashes left.

Decides by index.json, by the snapshots on disk and by what the caller keeps. Works only while no pull and no new
snapshot is under way (the lease of blobs.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wherry.errors import WherryError
from wherry.image import disk
from wherry.image.manifest import CONFIG_MAX, parse_config, parse_document
from wherry.image.snapshot import Snapshotter
from wherry.kernel.files import remove_tree
from wherry.model import Json

if TYPE_CHECKING:
    from wherry.image.store import ImageStore

__all__ = ["sweep", "unmount_layers", "usage"]

_HEX = r"[a-f0-9]{64}|[a-f0-9]{128}"
_PARTIAL_AGE = 24 * 3600.0  # a broken pull may go on where it ended for a day
_TEMPORARY_AGE = 3600.0
_PATIENCE = 5.0


@contextlib.contextmanager
def _alone(store: ImageStore, wait: bool) -> Iterator[bool]:
    """Hold the lease alone; False where others hold it (after some patience, with `wait`)."""
    disk.make_private(store.blobs.place)
    fd = os.open(
        os.path.join(store.blobs.place, ".lease"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    deadline = time.monotonic() + (_PATIENCE if wait else 0)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True
    finally:
        os.close(fd)


def sweep(store: ImageStore, keep: frozenset[str], *, wait: bool) -> int:
    """Remove what is unused; the bytes freed. Does nothing while a pull runs: the next sweep will."""
    with _alone(store, wait) as alone:
        if not alone:
            return 0
        _drop_broken(store)
        blobs, diff_ids = _used(store)
        Snapshotter(store.root).sweep()
        diff_ids |= keep | _of_snapshots(store.root)
        freed = _sweep_blobs(store, blobs)
        freed += _sweep_layers(store, {diff_id.partition(":")[2] for diff_id in diff_ids})
        _sweep_temporary(store)
    return freed


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
    descriptor = next(entry for entry in store.blobs.entries() if entry.digest == digest)
    manifest = store.manifest(descriptor)
    what = f"config {manifest.config.digest}"
    try:
        data = store.blobs.read(manifest.config.digest, CONFIG_MAX)
    except FileNotFoundError:
        raise disk.os_failure(what, FileNotFoundError(2, "missing")) from None
    config = parse_config(parse_document(data, CONFIG_MAX, what), what)
    return {digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)}, set(config.diff_ids)


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


def _sweep_blobs(store: ImageStore, used: set[str]) -> int:
    freed = 0
    for algorithm in ("sha256", "sha512"):
        place = os.path.join(store.blobs.place, "blobs", algorithm)
        for name in _names(place):
            if f"{algorithm}:{name}" not in used:
                freed += os.stat(os.path.join(place, name)).st_size
                os.unlink(os.path.join(place, name))
    return freed


def _sweep_layers(store: ImageStore, used: set[str]) -> int:
    place = os.path.join(store.root, "layers")
    freed = 0
    for name in _names(place):
        if re.fullmatch(_HEX, name) and name not in used:
            freed += layer_bytes(os.path.join(place, name))
            doomed = disk.fresh_name(".tmp-")  # a crash in the middle leaves no half layer under its name
            os.rename(os.path.join(place, name), os.path.join(place, doomed))
            _remove(place, doomed)
        elif name.startswith(".tmp-"):
            _remove_unheld(place, name)
    return freed


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


def _sweep_temporary(store: ImageStore) -> None:
    for name in _names(store.blobs.ingest):
        path = os.path.join(store.blobs.ingest, name)
        if name.startswith((".tmp-", "layer-")) or _older(path, _PARTIAL_AGE):
            _remove_unheld(store.blobs.ingest, name)
    for name in _names(store.blobs.place):
        path = os.path.join(store.blobs.place, name)
        if ".tmp-" in name and _older(path, _TEMPORARY_AGE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


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
