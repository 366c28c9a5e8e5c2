"""The snapshot formats: what the helper is told, where it writes, and what must be mounted before a layer can be used.

Decides which format a layer gets: the one that was asked for, or by a probe, which writes a layer of nothing and tries
to mount it. Refuses to know how a layer is filled, and mounts nothing that anybody else could see.

    directory   ROOT/layers/<diff id>/fs            the files
    erofs       ROOT/layers/<diff id>/layer.erofs   a file system, mounted on fs at its first use (docs/decisions/0013)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Mount

__all__ = ["CHOICES", "DIRECTORY", "EROFS", "DoesNotFitError", "Format", "choose", "damage", "layer_mount", "refusal"]

_FILE = "layer.erofs"
_HEAD = 128  # bytes that hold its first lines
_CHUNK = 1 << 20


class Format(NamedTuple):
    """How a layer lies on the disk. `place`: the directory below the layer's own that the helper works in."""

    name: str
    place: str


DIRECTORY = Format("directory", "fs")
EROFS = Format("erofs", "")
CHOICES = ("auto", DIRECTORY.name, EROFS.name)


class DoesNotFitError(WherryError):
    """A layer that is not at fault, but that this format cannot hold: `directory` can."""


def choose(wanted: str, probe: Callable[[], str]) -> tuple[Format, str]:
    """The format that `wanted` means here, and why not erofs where that was asked: `probe` says it, "" if it can be."""
    if wanted not in CHOICES:
        raise WherryError(Kind.INVALID, f'invalid snapshot format "{wanted}"', hint=", ".join(CHOICES))
    if wanted == DIRECTORY.name:
        return DIRECTORY, ""
    why = probe()
    if why and wanted == EROFS.name:
        hint = 'set snapshot_format = "auto", or "directory"'
        raise WherryError(Kind.PRECONDITION, f"layers cannot be erofs here: {why}", hint=hint)
    return DIRECTORY if why else EROFS, why


def refusal(layer: str) -> str:
    """Why the erofs layer in the directory `layer` cannot be mounted; "" when it can be. It is mounted for nobody."""
    from wherry.kernel import mount

    try:
        os.close(mount.detached([_mount(layer)._replace(target="/")]))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def damage(layer: str, diff_id: str) -> str:
    """What is wrong with the file of a layer, which must hold the archive of this digest; "": nothing, or no file."""
    import hashlib

    algorithm, _, expected = diff_id.partition(":")
    hashed = hashlib.new(algorithm)
    try:
        with open(_mount(layer).source, "rb") as file:
            told = re.match(rb"wherry layer\ntar (\d{1,19}) (\d{1,19})\n", file.read(_HEAD))
            if told is None:
                return "its file does not say where the archive lies in it"
            left = int(told[2])
            file.seek(int(told[1]))
            while left and (data := file.read(min(left, _CHUNK))):
                hashed.update(data)
                left -= len(data)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, OverflowError) as error:
        return f"its file cannot be read: {error}"
    return "" if hashed.hexdigest() == expected else "the archive in its file has another digest"


def layer_mount(layer: str) -> Mount | None:
    """What has to be mounted on the `fs` of the layer in this directory before its files are there; None: nothing."""
    how = _mount(layer)
    return how if os.path.exists(how.source) else None


def _mount(layer: str) -> Mount:
    # devices, set-id bits and programs count by the flags of the overlay's mount, not by those of its layers
    return Mount("erofs", os.path.join(layer, _FILE), os.path.join(layer, "fs"), ("ro", "nodev", "nosuid", "noexec"))
