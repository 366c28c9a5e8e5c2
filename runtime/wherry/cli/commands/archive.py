"""The verbs that make images, and that take images and root file systems out of here and in again."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, cast

from wherry.cli import human, parse
from wherry.cli.app import App, fd_of, is_terminal, verb
from wherry.cli.options import Values, many, one, switch, text
from wherry.cli.table import FORMAT, NO_TRUNC, QUIET, Column, Look, show
from wherry.errors import Kind, WherryError
from wherry.model import Json

CHANGE = many("-c --change", text, "INSTRUCTION", "apply a Dockerfile instruction (CMD, ENV, LABEL ...) to the config")
MESSAGE = one("-m --message", text, "TEXT", "what the history says of it")
FORMATS = ("docker", "docker-archive", "docker-dir", "oci-archive", "oci-dir")
WIDTH = 45  # of CREATED BY, docker's formatter/history.go
STDIN = "/dev/stdin"


def output_to(app: App, path: str | None, what: str) -> str | int:
    """Where an archive goes: a path, or the descriptor of standard output, unless that is a terminal."""
    if path:
        return os.path.join(app.cwd, path)
    if is_terminal(app.stdio.stdout):
        raise WherryError(Kind.INVALID, f"{what} is not written to a terminal", hint="give -o FILE, or redirect it")
    app.stdio.stdout.flush()
    return fd_of(app.stdio.stdout)


def input_of(app: App, what: str) -> BinaryIO:
    if is_terminal(app.stdio.stdin):
        raise WherryError(Kind.INVALID, f"{what} is not read from a terminal", hint="give a file, or redirect it")
    return cast(BinaryIO, getattr(app.stdio.stdin, "buffer", app.stdio.stdin))


# ---- images out and in


@verb(
    "save",
    "IMAGE...",
    one("-o --output", text, "FILE", "write to a file or directory instead of standard output"),
    one("--format", parse.choice(*FORMATS), "FORMAT", f"docker (default), {', '.join(FORMATS[1:])}"),
    switch("-q --quiet", "accepted for podman's sake: nothing is told anyway"),
    aliases="wherry image save, wherry save",
    examples="""
wherry save -o images.tar alpine:3 registry.example/app
wherry save alpine | zstd > alpine.tar.zst
wherry save --format oci-dir -o ./layout alpine""",
)
def save(app: App, values: Values) -> None:
    """Write images, with their names and layers, into one archive.

    The default is what docker 25 and newer writes: an OCI image layout with a manifest.json beside it, which docker,
    podman, skopeo and ctr read. A name without a tag stands for all its tags.
    """
    target = output_to(app, values["output"], "an archive")
    app.engine.save(values["image"], target, values["format"] or "docker")


@verb(
    "load",
    "[SOURCE]",
    one("-i --input", text, "FILE", "read from a file or directory instead of standard input"),
    switch("-q --quiet", "do not show progress"),
    aliases="wherry image load, wherry load",
    examples="""
wherry load -i images.tar
ssh host wherry save app | wherry load
wherry load oci:./layout:v1""",
)
def load(app: App, values: Values) -> None:
    """Load every image of an archive (docker's or OCI's; plain, gzip, zstd, bzip2 or xz) or directory.

    SOURCE is a path, or oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE, which say what to expect there.
    """
    source, progress = values["input"] or values["source"], app.progress(values["quiet"])
    if values["input"] and values["source"]:
        raise WherryError(Kind.INVALID, "both -i and SOURCE were given", hint="give one of them")
    if source in (None, "-"):
        stream = input_of(app, "an archive")
        regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and not os.lseek(stream.fileno(), 0, os.SEEK_CUR)
        records = app.engine.load(STDIN, progress, None if regular else stream)
    else:
        records = app.engine.load(source if ":" in source else os.path.join(app.cwd, source), progress)
    for record in records:
        for name in record.names:
            app.out(f"Loaded image: {name}")
        if not record.names:
            app.out(f"Loaded image ID: {record.id}")


@verb(
    "untag",
    "IMAGE [NAME...]",
    aliases="wherry image untag, wherry untag",
    examples="wherry untag alpine:3\nwherry untag 1f73ec9c alpine:3 base:1",
)
def untag(app: App, values: Values) -> None:
    """Take names away from an image, all or those given, and keep the image."""
    app.engine.untag(values["image"], values["name"])


# ---- containers to images, root file systems out and in


@verb(
    "commit",
    "CONTAINER [REPOSITORY[:TAG]]",
    one("-a --author", text, "AUTHOR", "who made it"),
    CHANGE,
    MESSAGE,
    switch("-p --pause", "freeze the container meanwhile", default=True),
    switch("-q --quiet", "accepted for podman's sake: the id is all that is told anyway"),
    aliases="wherry container commit, wherry commit",
    examples="""
wherry commit web registry.example/web:patched
wherry commit -m 'with curl' -c 'CMD ["curl", "--version"]' -c 'ENV LANG=C' builder tools""",
)
def commit(app: App, values: Values) -> None:
    """Make an image of what a container changed, on top of its image, and print its id. Volumes are not part of it."""
    record = app.engine.commit(
        values["container"],
        values["repository_tag"] or "",
        author=values["author"] or "",
        message=values["message"] or "",
        changes=values["change"],
        pause=values["pause"],
    )
    app.out(record.id)


@verb(
    "export",
    "CONTAINER",
    one("-o --output", text, "FILE", "write to a file instead of standard output"),
    aliases="wherry container export, wherry export",
    examples="wherry export -o root.tar web\nwherry export web | tar t",
)
def export(app: App, values: Values) -> None:
    """Write the whole root file system of a container as a tar. Volumes are not part of it."""
    target = output_to(app, values["output"], "a tar")
    if isinstance(target, int):
        app.engine.export(values["container"], app.raw_out)
        return
    with whole_file(target) as file:
        app.engine.export(values["container"], file.write)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file that is there when all of it is; what is no regular file (a pipe, a device) is written as it is."""
    path = os.path.realpath(path)
    temporary = "" if os.path.exists(path) and not os.path.isfile(path) else f"{path}.{os.getpid():x}.tmp"
    try:
        with open(temporary or path, "xb" if temporary else "wb", opener=_private) as file:
            yield file
        if temporary:
            os.rename(temporary, path)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@verb(
    "import",
    "FILE [REPOSITORY[:TAG]]",
    CHANGE,
    MESSAGE,
    one("--platform", parse.platform, "OS/ARCH", "the platform that it is for (default: this machine's)"),
    switch("-q --quiet", "accepted for podman's sake: the id is all that is told anyway"),
    aliases="wherry image import, wherry import",
    examples="""
wherry import root.tar.gz base:1
debootstrap-tar | wherry import -c 'CMD ["/bin/bash"]' - debian:mine""",
)
def import_(app: App, values: Values) -> None:
    """Make an image of one layer out of a root file system's tar (plain, gzip, zstd, bzip2 or xz), and print its id.

    FILE may be - for standard input.
    """
    given = {"message": values["message"] or "", "changes": values["change"], "platform": values["platform"] or ""}
    name, path = values["repository_tag"] or "", values["file"]
    if path == "-":
        app.out(app.engine.import_tar(input_of(app, "a tar"), name, origin="-", **given).id)
        return
    try:
        with open(os.path.join(app.cwd, path), "rb") as file:
            app.out(app.engine.import_tar(file, name, origin=path, **given).id)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        hint = "fetch it first: curl -L URL | wherry import - NAME" if "://" in path else ""
        raise WherryError(Kind.INVALID, f"cannot read {path}: {error.strerror}", hint=hint) from error


# ---- history


def _created_by(row: Json, look: Look) -> str:
    said = str(row["CreatedBy"]).replace("\t", " ")
    return said if look.full else human.shortened(said, WIDTH)


def _id(row: Json, look: Look) -> str:
    return str(row["Id"]) if look.full or not str(row["Id"]).startswith("sha256:") else human.short_id(row["Id"])


def _columns(readable: bool) -> tuple[Column, ...]:
    return (
        Column("ID", "IMAGE", _id),
        Column("CreatedSince", "CREATED", lambda r, look: _since(r, look, readable)),
        Column("CreatedAt", "CREATED AT", lambda r, _: human.stamp(r["Created"]) if r["Created"] else "N/A"),
        Column("CreatedBy", "CREATED BY", _created_by),
        Column("Size", "SIZE", lambda r, _: human.size(r["Size"]) if readable else str(r["Size"])),
        Column("Comment", "COMMENT", lambda r, _: str(r["Comment"])),
    )


def _since(row: Json, look: Look, readable: bool) -> str:
    if not row["Created"]:
        return "N/A"
    return human.ago(look.now - row["Created"]) + " ago" if readable else human.rfc3339(row["Created"])


@verb(
    "history",
    "IMAGE",
    FORMAT,
    switch("-H --human", "sizes and times for people", default=True),
    NO_TRUNC,
    QUIET,
    aliases="wherry image history, wherry history",
    examples="wherry history alpine:3\nwherry history --no-trunc --format '{{.CreatedBy}}' alpine:3",
)
def history(app: App, values: Values) -> None:
    """Show the steps that made an image, newest first."""
    default = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
    show(app, app.engine.history(values["image"]), _columns(values["human"]), default, values)
