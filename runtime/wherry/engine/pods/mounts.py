"""The mounts of a container of a pod: the kubelet's binds, and images as volumes.

Decides what a mount may ask for and in which order mounts come. What is bound is bound as it is (no nosuid, no nodev):
a kubelet's volumes are its own, and other runtimes leave them so. Makes missing directories of the host, as they do.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from wherry.engine import confine
from wherry.engine.house import House
from wherry.engine.undo import Undo
from wherry.errors import Kind, WherryError
from wherry.model import Json

from .values import IdMap, PodMount

__all__ = ["ImageVolume", "Made", "inspect_rows", "make", "mappings", "propagation"]


class ImageVolume(NamedTuple):
    """An image that is mounted on `target`; `inside`: the part of it that is, "" for all."""

    target: str
    image: str  # its id
    layers: tuple[str, ...]
    inside: str = ""


class Made(NamedTuple):
    """OCI mounts in their order, parents first, and what of them are images, whose trees come with the start."""

    oci: tuple[Json, ...]
    images: tuple[ImageVolume, ...] = ()


def make(house: House, pod: str, asked: Sequence[PodMount], undo: Undo, *, relabel: bool) -> Made:
    """Check them all, then make what is missing. `relabel`: label what asks for it as the pod's own (SELinux)."""
    entries, images = [], []
    for mount in asked:
        target = _target(mount)
        if mount.image:
            images.append(_image(house, mount, target))
            entries.append(_entry(target, "", ["rbind", "rprivate", "ro", "nosuid", "nodev"], mount))
        else:
            entries.append(_bind(mount, target, undo))
        if relabel and mount.relabel and not mount.image:
            confine.relabel(entries[-1]["source"], pod, shared=False)
    return Made(tuple(sorted(entries, key=lambda entry: entry["destination"].count("/"))), tuple(images))


def _target(mount: PodMount) -> str:
    path = posixpath.normpath(mount.target)
    if not mount.target.startswith("/") or "\0" in mount.target + mount.source:
        raise WherryError(Kind.INVALID, f"mount target {mount.target[:300]!r} is no absolute path")
    path = path.replace("//", "/")
    if path == "/":
        raise WherryError(Kind.INVALID, 'invalid mount target "/": the root is the image\'s')
    return path


def _entry(target: str, source: str, options: list[str], mount: PodMount) -> Json:
    mapped = {"uidMappings": mappings(mount.uids), "gidMappings": mappings(mount.gids)} if mount.uids else {}
    return {
        "destination": target, "type": "bind", "source": source,
        "options": [*options, *(["idmap"] if mapped and not mount.image else [])], **({} if mount.image else mapped),
    }  # fmt: skip


def mappings(maps: Sequence[IdMap]) -> list[Json]:
    """As the runtime-spec writes them."""
    return [{"containerID": one.inside, "hostID": one.host, "size": one.size} for one in maps]


# ---- binds


def _bind(mount: PodMount, target: str, undo: Undo) -> Json:
    if not mount.source.startswith("/"):
        raise WherryError(Kind.INVALID, f"source {mount.source[:300]!r} of mount {target} is no absolute path")
    _check_recursive(mount)
    _make_source(mount.source, undo)
    source = os.path.realpath(mount.source)
    _check_propagation(source, mount.propagation)
    words = {"private": "rprivate"}.get(mount.propagation, mount.propagation)
    access = "rro" if mount.recursive_readonly else "ro" if mount.readonly else "rw"
    return _entry(target, source, ["rbind", words, access, *mount.options], mount)


def _check_recursive(mount: PodMount) -> None:
    if mount.recursive_readonly and not mount.readonly:
        raise WherryError(Kind.INVALID, f"mount {mount.target}: recursive_read_only requires readonly")
    if mount.recursive_readonly and mount.propagation != "private":
        raise WherryError(Kind.INVALID, f"mount {mount.target}: recursive_read_only requires private propagation")


def _make_source(path: str, undo: Undo) -> None:
    if os.path.exists(path):
        return
    missing = path
    while not os.path.lexists(parent := os.path.dirname(missing)):
        missing = parent
    try:
        os.makedirs(path, 0o755)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot make mount source {path}: {error.strerror}") from error
    undo.add(_unmake, path, missing)


def _unmake(path: str, top: str) -> None:
    """What was made, as long as it is empty."""
    while True:
        os.rmdir(path)
        if path == top:
            return
        path = os.path.dirname(path)


def _check_propagation(source: str, wanted: str) -> None:
    """What is mounted later can only reach the container through a mount that propagates (mount_namespaces(7))."""
    if wanted == "private":
        return
    if wanted not in ("rslave", "rshared"):
        raise WherryError(Kind.INVALID, f'mount propagation "{wanted}" is unknown', hint="private, rslave or rshared")
    where, kinds = propagation(source)
    if wanted == "rshared" and "shared" not in kinds:
        problem = "it is not a shared mount"
    elif wanted == "rslave" and not kinds:
        problem = "it is not a shared or slave mount"
    else:
        return
    message = f'path "{source}" is mounted on "{where}" but {problem}'
    raise WherryError(Kind.PRECONDITION, message, hint=f"mount --make-rshared {where}")


def propagation(path: str) -> tuple[str, frozenset[str]]:
    """The mount point that a path lies on, and its kinds: "shared", "master" (a slave), or none."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            wanted = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            number, _, _, _, target, _, *rest = line.split(" ")
            if number == wanted:
                kinds = {word.partition(":")[0] for word in rest[: rest.index("-")]}
                return target, frozenset(kinds & {"shared", "master"})
    return "?", frozenset()


# ---- images as volumes


def _image(house: House, mount: PodMount, target: str) -> ImageVolume:
    if mount.source.startswith("/") or ".." in mount.source.split("/"):
        raise WherryError(Kind.INVALID, f"sub path {mount.source[:300]!r} of the image on {target} leads out of it")
    if mount.propagation != "private":
        raise WherryError(Kind.INVALID, f"mount {target}: an image volume has no propagation")
    if not mount.readonly:
        raise WherryError(Kind.INVALID, f"mount {target}: an image volume must be read-only", hint="set readonly")
    record = house.images.get(mount.image)
    house.images.ensure_unpacked(record)
    return ImageVolume(target, record.id, record.config.diff_ids, mount.source)


def inspect_rows(made: Made) -> list[Json]:
    """docker's MountPoints of them."""
    images = {volume.target: volume for volume in made.images}
    return [_inspect(entry, images.get(entry["destination"])) for entry in made.oci]


def _inspect(entry: Json, image: ImageVolume | None) -> Json:
    options = entry["options"]
    return {
        "Type": "image" if image else "bind", "Source": image.image if image else entry["source"],
        "Destination": entry["destination"], "Mode": "", "RW": "rw" in options,
        "Propagation": next((word for word in options if word in ("rslave", "rshared")), "rprivate"),
        "Options": options,
    }  # fmt: skip
