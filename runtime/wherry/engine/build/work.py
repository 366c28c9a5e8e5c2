"""A build's workshop: its scratch files, views of what is there, and how a root that was changed becomes a layer.

Decides where things lie while a build runs and that nothing of them stays: what a killed build leaves is found by its
directory below ROOT/cache/build/work, which nobody holds any more (`sweep`). Knows no instruction.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from wherry.engine import names, rootfs
from wherry.engine.house import House
from wherry.engine.undo import making
from wherry.errors import Kind, WherryError
from wherry.image.buildcache import BuildCache, Remembered
from wherry.model import ImageRecord, ProgressEvent

from .drafts import Draft
from .trees import Tree

if TYPE_CHECKING:
    from wherry.image.author import NewLayer

__all__ = ["Work", "record", "rfc3339", "sweep"]

_EMPTY = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"  # of a tar without members
_T = TypeVar("_T")


def rfc3339(when: float) -> str:
    """A time as an image's config has it."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(when, UTC).isoformat().replace("+00:00", "Z")


def record(draft: Draft) -> ImageRecord:
    """A draft in the shape of a stored image, which it is not: no name and no manifest leads to it."""
    from wherry.image.manifest import parse_config

    document = {**draft.document, "rootfs": {"type": "layers", "diff_ids": draft.diff_ids}}
    config = parse_config(document, "the image that is being built")._replace(volumes=())
    layers = tuple(layer.descriptor for layer in draft.layers)
    return ImageRecord("sha256:" + "0" * 64, "", (), config, layers, 0, 0.0)


class Work:
    """One build. `stop` is set when it is to end early; `live` are the containers of its steps."""

    def __init__(self, house: House, epoch: int | None, *, no_cache: bool) -> None:
        self.house, self.epoch, self._no_cache = house, epoch, no_cache
        self.cache = BuildCache(house.place.root)
        self.id = names.mint()[:32]
        self.stop = threading.Event()
        self.live: set[str] = set()
        self._place = os.path.join(self.cache.work, self.id)
        self._held = -1
        self._removals = ThreadPoolExecutor(1, "removals")

    def __enter__(self) -> Work:
        from wherry.image import disk

        disk.make_private(self._place)
        self._held = disk.try_lock(self._place)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._removals.shutdown()
            _drop(self.house, self.id)
        finally:
            os.close(self._held)

    def now(self) -> str:
        """The time that a step notes."""
        return rfc3339(time.time() if self.epoch is None else self.epoch)

    def check(self) -> None:
        """End here where the build is to end."""
        if self.stop.is_set():
            raise WherryError(Kind.CONFLICT, "canceled")

    def scratch(self) -> str:
        """A fresh directory, gone with the build."""
        path = os.path.join(self._place, names.mint()[:16])
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)  # noqa: S103 - what is above is 0700
        return path

    def secret(self, value: bytes, owner: tuple[int, int], mode: int) -> str:
        """A file below STATE, which is no disk; gone with the build."""
        from wherry.image import disk

        folder = f"{self.house.place.state}/build/{self.id}"
        disk.make_private(folder)
        path = f"{folder}/{names.mint()[:16]}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(value)
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        return path

    # ---- steps

    def remembered(
        self, key: str, title: str, make: Callable[[], tuple[str, NewLayer | None]]
    ) -> tuple[Remembered, bool]:
        """What the step of this key gives, and whether that was known. `make` does it, and tells the key of what was
        really done."""
        found = self._known(key)
        if found is not None:
            return found, True
        with self.cache.working(key):
            found = self._known(key)
            if found is not None:
                return found, True
            self.check()
            done, layer = make()
            what = Remembered(layer, self.now(), title)
            self.cache.put(done, what)
            return what, False

    def _known(self, key: str) -> Remembered | None:
        found = None if self._no_cache else self.cache.get(key)
        if found is None or found.layer is None:
            return found
        self.house.images.blobs.use(found.layer.diff_id)  # said before it is looked for: no sweep takes it now
        return found if self.house.images.blobs.has(found.layer.descriptor) else None

    # ---- roots

    def unpacked(self, draft: Draft, progress: Callable[[ProgressEvent], None] | None = None) -> None:
        """Its layers are on disk when this returns."""
        self.house.images.ensure_unpacked(record(draft), progress or (lambda _event: None))

    @contextlib.contextmanager
    def view(self, draft: Draft) -> Iterator[int]:
        """The root of a draft to read from, as a descriptor."""
        from wherry.kernel import mount

        self.unpacked(draft)
        key = names.mint()
        with making(self.house):
            rootfs.settle(self.house, draft.diff_ids)
            self.house.snapshots.view(key, draft.diff_ids)
            try:
                with mount.opened(self.house.snapshots.bare(key), readonly=True) as root:
                    yield root
            finally:
                self.house.snapshots.remove(key)

    @contextlib.contextmanager
    def tree(self, draft: Draft, what: str) -> Iterator[Tree]:
        """The same to copy from."""
        with self.view(draft) as root:
            yield Tree(root, what)

    def changed(self, draft: Draft, change: Callable[[int], _T], *, alone: bool = False) -> tuple[NewLayer | None, _T]:
        """The layer that a change of the root makes, None where it changed nothing. `alone`: over nothing at all."""
        from wherry.kernel import mount

        self.unpacked(draft)
        key = names.mint()
        with making(self.house):
            below = [] if alone else draft.diff_ids
            rootfs.settle(self.house, below)
            self.house.snapshots.make(key, below)
            try:
                with mount.opened(self.house.snapshots.mounts(key)) as root:
                    given = change(root)
                return self.layer(key), given
            finally:
                self._removals.submit(self.house.snapshots.remove, key)  # it can take as long as the step: nobody waits

    def layer(self, key: str) -> NewLayer | None:
        """What was written to a snapshot, as a stored layer."""
        from wherry.image.author import add_layer
        from wherry.image.layertar import write_layer

        upper, lower = self.house.snapshots.upper(key), self.house.snapshots.lower_paths(key)
        made = add_layer(self.house.images.blobs, lambda out: write_layer(upper, lower, out, epoch=self.epoch))
        return None if made.diff_id == _EMPTY else made


def _drop(house: House, build: str) -> None:
    """All files of a build that has ended."""
    from wherry.kernel import files

    files.remove_tree(f"{house.place.state}/build/{build}")
    files.remove_tree(os.path.join(BuildCache(house.place.root).work, build))


def sweep(house: House) -> Sequence[str]:
    """What killed builds left: containers of their steps, which may still run, and their files. The builds' ids."""
    from wherry.engine import remove

    dead = BuildCache(house.place.root).dead()
    for row in house.db.containers() if dead else ():
        if row.config.get("build") in dead:
            with contextlib.suppress(WherryError):
                remove.remove(house, row.id, force=True, volumes=True)
    for build in dead:
        _drop(house, build)
    return dead
