"""`cp`: files between a container, running or not, and the host; docker's rules for what the target's name means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from wherry.cli import human
from wherry.cli.app import App, verb
from wherry.cli.localfiles import CHUNK, pack, unpack
from wherry.cli.options import Values, switch
from wherry.errors import Kind, WherryError
from wherry.model import Json

DIRECTORY, SYMLINK = 1 << 31, 1 << 27  # Go's os.ModeDir, os.ModeSymlink
USAGE = "wherry cp CONTAINER:PATH HOST-PATH, or wherry cp HOST-PATH CONTAINER:PATH; - is a tar stream"


def side(text: str) -> tuple[str, str]:
    """(container or "", path). What begins with / or . is a host path, as docker has it."""
    container, colon, path = text.partition(":")
    if not colon or not container or text.startswith(("/", ".")):
        return "", text
    return container, path


@verb(
    "cp",
    "SOURCE TARGET",
    switch("-a --archive", "keep the owners of files"),
    switch("-L --follow-link", "copy what a symlink at SOURCE points to"),
    switch("-q --quiet", "do not tell what was copied"),
    aliases="wherry container cp, wherry cp",
    examples="""
wherry cp web:/etc/nginx/nginx.conf .
wherry cp ./site/. web:/srv/www
wherry cp web:/var/log - | tar t
tar c data | wherry cp - web:/srv""",
)
def cp(app: App, values: Values) -> None:
    """Copy files between a container and the host.

    One of SOURCE and TARGET is CONTAINER:PATH. A TARGET that is a directory gets SOURCE inside of it; a SOURCE that
    ends in /. stands for the directory's content. With - a tar stream is read or written.
    """
    (source_ref, source), (target_ref, target) = side(values["source"]), side(values["target"])
    if bool(source_ref) == bool(target_ref):
        both = "two containers" if source_ref else "two paths of the host"
        raise WherryError(Kind.INVALID, f"cp does not copy between {both}", hint=USAGE)
    if source_ref:
        total = _out(app, source_ref, source, target, values)
        words = values["target"]
    else:
        total = _in(app, source, target_ref, target, values)
        words = f"{target_ref}:{target}"
    if not values["quiet"] and total is not None:
        app.err(f"Successfully copied {human.size(total)} to {words}")


def is_directory(about: Json | None) -> bool:
    """Whether docker's path stat is one of a directory."""
    return about is not None and bool(int(about["mode"]) & DIRECTORY)


def name_in(target: str, exists: bool, directory: bool, source_name: str) -> tuple[str, str]:
    """(directory to write in, name to write): into an existing directory, else as the target itself."""
    if directory:
        return target, source_name
    if target.endswith("/") and not exists:
        return target, ""  # only a directory's content can go to a directory that does not exist
    head, tail = os.path.split(target.rstrip("/"))
    return head or ".", tail


def content_only(path: str) -> bool:
    """SOURCE/. stands for what the directory holds."""
    return path.endswith("/.") or path == "."


# ---- out of a container ----


def _out(app: App, ref: str, source: str, target: str, values: Values) -> int | None:
    about = app.engine.archive_stat(ref, source)
    if values["follow_link"] and int(about["mode"]) & SYMLINK and about.get("linkTarget"):
        source = about["linkTarget"]
    inside = source.rstrip("/") if not content_only(source) else source[:-1].rstrip("/")
    about, chunks = app.engine.archive_get(ref, inside or "/")
    if target == "-":
        for chunk in chunks:
            app.raw_out(chunk)
        return None
    full = os.path.join(app.cwd, target)
    exists, directory = os.path.lexists(full), os.path.isdir(full)
    if is_directory(about) and exists and not directory:
        raise WherryError(Kind.INVALID, f"cannot copy the directory {source} over the file {target}")
    contents = is_directory(about) and directory and content_only(source)
    folder, name = name_in(full, exists, directory, str(about["name"]))
    if not name and not is_directory(about):
        raise WherryError(Kind.NOT_FOUND, f"directory {target} does not exist", hint="make it, or leave the last / out")
    folder, name = (folder, name) if name else os.path.split(folder.rstrip("/"))
    if not os.path.isdir(folder):
        raise WherryError(Kind.NOT_FOUND, f"directory {folder} does not exist")
    return unpack(chunks, folder, name, keep_owner=values["archive"], contents=contents)


# ---- into a container ----


def _in(app: App, source: str, ref: str, target: str, values: Values) -> int | None:
    app.engine.inspect(ref, "container")  # so that what is not found below is the path
    about = _stat(app, ref, target)
    if source == "-":
        if not is_directory(about):
            raise WherryError(Kind.INVALID, f"{ref}:{target} is no directory", hint="a tar stream needs a directory")
        app.engine.archive_put(ref, target, _input(app), archive_owner=values["archive"])
        return None
    full = os.path.join(app.cwd, source)
    if not os.path.lexists(full):
        raise WherryError(Kind.NOT_FOUND, f"{source} does not exist")
    folder, name = _place_in_container(ref, full, source, target, about)
    counted = _Counted(pack(full, name, values["follow_link"] or source.endswith("/")))
    app.engine.archive_put(ref, folder, counted, archive_owner=values["archive"])
    return counted.total


def _place_in_container(ref: str, full: str, source: str, target: str, about: Json | None) -> tuple[str, str]:
    tree = os.path.isdir(full)
    if tree and about is not None and not is_directory(about):
        raise WherryError(Kind.INVALID, f"cannot copy the directory {source} over the file {ref}:{target}")
    if tree and content_only(source) and is_directory(about):
        return target, "."
    name = os.path.basename(os.path.normpath(full))
    folder, name = name_in(target, about is not None, is_directory(about), name)
    if not name and not tree:
        raise WherryError(Kind.NOT_FOUND, f"directory {ref}:{target} does not exist")
    return (
        (folder, name) if name else (os.path.dirname(folder.rstrip("/")) or "/", os.path.basename(folder.rstrip("/")))
    )


def _stat(app: App, ref: str, path: str) -> Json | None:
    """docker's path stat, of what a symlink points to; None if there is nothing."""
    try:
        found = app.engine.archive_stat(ref, path)
        if int(found["mode"]) & SYMLINK and found.get("linkTarget"):
            found = app.engine.archive_stat(ref, found["linkTarget"])
    except WherryError as error:
        if error.kind is Kind.NOT_FOUND:
            return None
        raise
    return found


def _input(app: App) -> Iterator[bytes]:
    stream = cast(BinaryIO, getattr(app.stdio.stdin, "buffer", app.stdio.stdin))
    while data := stream.read(CHUNK):
        yield data


class _Counted:
    """Chunks, and how many bytes they were."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self.total = chunks, 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.total += len(chunk)
            yield chunk
