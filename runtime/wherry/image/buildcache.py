"""What builds remember: the layer that a step made, by the step's key; and the directories of RUN --mount=type=cache.

Decides the shape of ROOT/cache/build and what of it keeps layers from being swept. Refuses to know what a step is.

    ROOT/cache/build/steps/<key>     one remembered step; its time is that of its last use
    ROOT/cache/build/mounts/<id>     one cache directory, held (flock of <id>.lock) while a step uses it
    ROOT/cache/build/work/<build>    scratch files of a running build, which holds the directory (flock)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from wherry.digest import hexdigest
from wherry.errors import WherryError
from wherry.image import disk
from wherry.image.author import NewLayer
from wherry.image.manifest import descriptor_from, descriptor_json
from wherry.image.reference import DIGEST
from wherry.kernel.files import remove_tree
from wherry.model import Json

__all__ = ["BuildCache", "Entry", "Remembered"]

_KEY = r"[a-f0-9]{64}"
_RECORD_MAX = 1 << 20
_PATIENCE = 24 * 3600.0  # seconds that a step may take in another process that works on the same one
_VARIANTS = 64  # directories of one private cache mount


class Remembered(NamedTuple):
    """What a step gave: a layer, or None where it changed nothing; when it ran, and its name."""

    layer: NewLayer | None
    created: str
    title: str


class Entry(NamedTuple):
    """One thing that is kept. `kind` is docker's: regular, exec.cachemount. Times are unix seconds."""

    id: str
    kind: str
    title: str
    diff_id: str
    created: float
    used: float


class BuildCache:
    """Below `root`. Safe for many threads and processes: records appear whole, and are only ever added or removed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._place = os.path.join(root, "cache", "build")
        self._steps, self._mounts = os.path.join(self._place, "steps"), os.path.join(self._place, "mounts")
        self.work = os.path.join(self._place, "work")

    # ---- steps

    def get(self, key: str) -> Remembered | None:
        """What the step of this key gave, where it is known; to ask counts as a use."""
        path = os.path.join(self._steps, key)
        found = _read(path)
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
        return found

    def put(self, key: str, what: Remembered) -> None:
        """Remember. The layer is in the store already, and the lease of the store is held."""
        disk.make_private(self._steps)
        layer = what.layer and {**descriptor_json(what.layer.descriptor), "diffId": what.layer.diff_id}
        document = {"layer": layer, "created": what.created, "title": what.title}
        disk.dump_json(os.path.join(self._steps, key), document)

    @contextlib.contextmanager
    def working(self, key: str) -> Iterator[None]:
        """One at a time on a step: who comes second finds what the first one remembered."""
        disk.make_private(self._steps)
        with disk.claim(os.path.join(self._steps, f"{key}.lock"), unlink=True, timeout=_PATIENCE):
            yield

    def used(self) -> tuple[set[str], set[str]]:
        """The blobs and the diff ids that a sweep must leave."""
        layers = [found.layer for key in self._keys() if (found := _read(os.path.join(self._steps, key)))]
        kept = [layer for layer in layers if layer is not None]
        return {layer.descriptor.digest for layer in kept}, {layer.diff_id for layer in kept}

    # ---- cache mounts

    @contextlib.contextmanager
    def mount(self, name: str, sharing: str, fill: Callable[[str], None]) -> Iterator[str]:
        """The directory of a cache mount, made (by `fill`) at its first use. `sharing`: shared, private or locked."""
        disk.make_private(self._mounts)
        base = hexdigest("sha256", name.encode())
        with self._held(base, sharing) as path:
            if not os.path.isdir(path):
                temporary = os.path.join(self._mounts, disk.fresh_name(".tmp-"))
                os.mkdir(temporary, 0o700)
                fill(temporary)
                with contextlib.suppress(OSError):  # shared, and another was faster
                    os.rename(temporary, path)
                remove_tree(temporary)
            os.utime(path + ".lock")
            yield path

    @contextlib.contextmanager
    def _held(self, base: str, sharing: str) -> Iterator[str]:
        variants = range(_VARIANTS) if sharing == "private" else (0,)
        for variant in variants:
            path = os.path.join(self._mounts, f"{base}-{variant}" if variant else base)
            fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                last = variant == variants[-1]
                fcntl.flock(fd, _LOCKS[sharing] | (0 if last else fcntl.LOCK_NB))
                yield path
                return
            except BlockingIOError:
                continue
            finally:
                os.close(fd)

    # ---- what there is, and its end

    def entries(self) -> list[Entry]:
        """Everything that is kept, the latest used first."""
        found = [*self._step_entries(), *self._mount_entries()]
        return sorted(found, key=lambda entry: -entry.used)

    def _step_entries(self) -> Iterator[Entry]:
        from wherry.image.manifest import created_time

        for key in self._keys():
            path = os.path.join(self._steps, key)
            what = _read(path)
            if what is not None:
                diff_id = what.layer.diff_id if what.layer else ""
                yield Entry(key, "regular", what.title, diff_id, created_time(what.created), os.stat(path).st_mtime)

    def _mount_entries(self) -> Iterator[Entry]:
        for name in _names(self._mounts):
            lock = os.path.join(self._mounts, f"{name}.lock")
            if os.path.exists(lock):
                used = os.stat(lock).st_mtime
                yield Entry(name, "exec.cachemount", "cache mount", "", used, used)

    def path(self, entry: Entry) -> str:
        """Where the files of a cache mount are."""
        return os.path.join(self._mounts, entry.id)

    def forget(self, entries: Collection[Entry]) -> list[str]:
        """Remove these, but for cache mounts that a step uses now; the ids of what went."""
        gone = []
        for entry in entries:
            if entry.kind == "regular":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._steps, entry.id))
                gone.append(entry.id)
            elif self._forget_mount(entry.id):
                gone.append(entry.id)
        return gone

    def _forget_mount(self, name: str) -> bool:
        lock = os.path.join(self._mounts, f"{name}.lock")
        held = disk.try_lock(lock)
        if held < 0:
            return False
        try:
            doomed = os.path.join(self._mounts, disk.fresh_name(".tmp-"))
            os.rename(os.path.join(self._mounts, name), doomed)
            remove_tree(doomed)
        finally:
            os.close(held)
        return True

    def dead(self) -> list[str]:
        """The builds that ended without taking their scratch files with them."""
        found = []
        for name in os.listdir(self.work) if os.path.isdir(self.work) else ():
            held = disk.try_lock(os.path.join(self.work, name))
            if held >= 0:
                os.close(held)
                found.append(name)
        return found

    def _keys(self) -> list[str]:
        return _names(self._steps)


_LOCKS = {"shared": fcntl.LOCK_SH, "private": fcntl.LOCK_EX, "locked": fcntl.LOCK_EX}


def _names(place: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(place) if re.fullmatch(_KEY + r"(-\d+)?", name))
    except FileNotFoundError:
        return []


def _read(path: str) -> Remembered | None:
    """One record; None where there is none, or none that can be believed."""
    try:
        document: Json = disk.load_json(path, _RECORD_MAX)
        layer = document["layer"]
        made = layer and NewLayer(descriptor_from(layer, path), layer["diffId"])
        if made is not None and not re.fullmatch(DIGEST, made.diff_id):
            return None
        return Remembered(made, str(document["created"]), str(document["title"]))
    except (OSError, WherryError, KeyError, TypeError):
        return None
