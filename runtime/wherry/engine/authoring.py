"""Images made from containers and tars (`commit`, `import`), a container's root as a tar (`export`), and `history`.

Decides what of a container becomes an image's config, as docker: everything that it was asked and that its image said.
Knows nothing of compression and of the store's files.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ImageRecord, Json

from . import codec, events, frozen, images, rootfs
from .house import House
from .status import look

if TYPE_CHECKING:
    from wherry.image.inflate import Readable

    from .db import Container

__all__ = ["commit", "export", "history", "import_tar"]

_OF_IMAGE = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal",
             "User", "Volumes", "WorkingDir")  # fmt: skip
_OF_PLATFORM = ("architecture", "os", "variant", "os.version", "os.features")


def _now() -> str:
    from .inspection import when

    return when(time.time())


# ---- commit ----


def commit(
    house: House, ref: str, name: str, *, author: str, message: str, changes: Sequence[str], pause: bool
) -> ImageRecord:
    """The verb."""
    from wherry.image import author as making
    from wherry.image.layertar import write_layer

    from .build.changes import changed

    row = house.db.find(ref)
    config = changed(_config(row), changes)
    with house.images.blobs.lease():
        base = _base(house, row)
        below = making.layers_of(base)
        house.images.use(base)
        rootfs.settle(house, house.snapshots.diff_ids(row.id))
        upper, lower = house.snapshots.upper(row.id), house.snapshots.lower_paths(row.id)
        with _held_still(house, row, pause):
            layer = making.add_layer(house.images.blobs, lambda out: write_layer(upper, lower, out))
        document = _document(house.images.config_json(base), config, author)
        command = " ".join(_config(row)["Cmd"] or ())
        document["history"].append(_entry(document["created"], command, author, message))
        record = making.add_image(house.images, document, [*below, layer], [name] if name else [])
    events.emit(house, "image", "create", record.id, {"name": name})
    events.container(house, row, "commit", imageID=record.id, imageRef=name)
    return record


def _base(house: House, row: Container) -> ImageRecord:
    try:
        return house.images.get(row.image)
    except WherryError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        message = f"the image of container {row.name} was removed: {row.image}"
        raise WherryError(Kind.NOT_FOUND, message, hint="pull it again, or take `wherry export` and `import`") from None


@contextlib.contextmanager
def _held_still(house: House, row: Container, pause: bool) -> Iterator[None]:
    """Frozen while it is read, as docker does unless told not to."""
    if not pause or look(house, row.id).status != "running":
        yield
        return
    with frozen.while_held(house, row.id):
        yield


def _config(row: Container) -> Json:
    """docker's config of a container, without what is this container's alone."""
    from .inspection import config_of

    found = config_of(row, codec.decode_options(row.config["options"]))
    return {key: value for key, value in found.items() if key in _OF_IMAGE}


def _document(base: Json, config: Json, author: str) -> Json:
    """The image's config document: the base's, as far as it is true of what is on top of it."""
    kept: Json = {key: base[key] for key in _OF_PLATFORM if key in base}
    given: Json = {"author": author} if author else {}
    history = base.get("history")
    past = [item for item in history if isinstance(item, dict)] if isinstance(history, list) else []
    on_build = {"OnBuild": base["config"]["OnBuild"]} if (base.get("config") or {}).get("OnBuild") else {}
    whole = {key: value for key, value in {**on_build, **config}.items() if value}
    return {"created": _now(), **given, **kept, "config": whole, "history": past}


def _entry(created: str, command: str, author: str, comment: str) -> Json:
    entry = {"created": created, "created_by": command, "author": author, "comment": comment}
    return {key: value for key, value in entry.items() if value}


# ---- export, import ----


def export(house: House, ref: str, out: Callable[[bytes], object]) -> None:
    """The verb: what lies below volumes and the kernel's file systems, as docker's."""
    from wherry.image.layertar import write_tree

    row = house.db.find(ref)
    with rootfs.at_rest(house, row.id) as handle:  # of its own, so that nothing is mounted in it
        fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_tree(fd, out)
        finally:
            os.close(fd)
    events.container(house, row, "export")


def import_tar(
    house: House, stream: Readable, name: str, *, message: str, changes: Sequence[str], platform: str, origin: str
) -> ImageRecord:
    """The verb: an image of one layer, which is this tar, packed or not."""
    from wherry.image import author as making
    from wherry.image.manifest import host_platform
    from wherry.image.streams import tar_of

    from .build.changes import changed

    wanted = images.platform(platform) or host_platform()
    config = changed({}, changes)
    house.prepare()
    with _swept_on_failure(house), house.images.blobs.lease():
        layer = making.add_layer(house.images.blobs, lambda out: tar_of(stream, out, origin))
        created = _now()
        document: Json = {
            "created": created, "architecture": wanted.architecture, "os": wanted.os,
            **({"variant": wanted.variant} if wanted.variant else {}), "config": config,
            "history": [_entry(created, "", "", message or f"Imported from {origin}")],
        }  # fmt: skip
        record = making.add_image(house.images, document, [layer], [name] if name else [])
    events.emit(house, "image", "import", record.id, {"name": name or record.id})
    return record


@contextlib.contextmanager
def _swept_on_failure(house: House) -> Iterator[None]:
    """What was read of something that is no tar of a root goes at once: it may be large."""
    try:
        yield
    except WherryError:
        images.sweep(house)
        raise


# ---- history ----


def history(house: House, ref: str) -> list[Json]:
    """docker's rows, newest first. A layer's size is that of its files."""
    record = house.images.get(ref)
    sizes: Iterator[int] = iter(house.images.layer_sizes(record))
    rows = [_row(item, next(sizes, 0) if not item.get("empty_layer") else 0) for item in record.config.history]
    rows += [_row({}, size) for size in sizes]  # layers that the history does not tell of
    if rows:
        rows[-1] |= {"Id": record.id, "Tags": images.tags(record) or None}
    return rows[::-1]


def _row(entry: Json, size: int) -> Json:
    from wherry.image.manifest import created_time

    texts = {key: str(entry.get(key) or "") for key in ("created", "created_by", "comment")}
    return {"Id": "<missing>", "Created": int(created_time(texts["created"])), "CreatedBy": texts["created_by"],
            "Tags": None, "Size": size, "Comment": texts["comment"]}  # fmt: skip
