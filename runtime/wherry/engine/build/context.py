"""The build context and the Dockerfile: a directory, a tar, or standard input.

Decides what counts as which, and where the Dockerfile and its ignore file are. All of it is untrusted: a tar is
unpacked by the confined helper into a scratch directory, files are read beneath the context only and up to a size
(invariants 3 and 13).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.patterns import EVERYTHING, Ignore, read_ignore

from .trees import Tree
from .values import BuildOptions
from .work import Work

__all__ = ["Context", "begins_as_archive", "opened"]

_FILE_MAX = 1 << 20  # of a Dockerfile, of an ignore file
_CONTEXT_MAX = 64 << 30  # of a tar on standard input
_CHUNK = 1 << 20
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


class Context(NamedTuple):
    """What there is to build from."""

    tree: Tree
    dockerfile: str
    name: str  # of the Dockerfile, for errors


@contextlib.contextmanager
def opened(work: Work, options: BuildOptions) -> Iterator[Context]:
    """The context of a build, as long as the block."""
    directory, text = _place(work, options)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"unable to prepare context: path {directory}: {error.strerror}",
                          hint="name a directory, a tar file, or -") from error  # fmt: skip
    try:
        yield _read(work, fd, options, text)
    finally:
        os.close(fd)


def _place(work: Work, options: BuildOptions) -> tuple[str, str | None]:
    """The directory, and the Dockerfile's text where standard input brought it."""
    if options.file == "-":
        if options.context == "-":
            raise WherryError(Kind.INVALID, "invalid argument: can't use stdin for both build context and dockerfile")
        text = _text(_stdin(options).read(_FILE_MAX + 1), "Dockerfile")
        return (options.context if os.path.isdir(options.context) else _unpacked(work, options.context)), text
    if options.context == "-":
        return _from_stdin(work, _stdin(options))
    if os.path.isfile(options.context):
        return _unpacked(work, options.context), None
    return options.context, None


def _stdin(options: BuildOptions) -> BinaryIO:
    if options.stdin is None:
        raise WherryError(Kind.INVALID, "standard input is closed: nothing can be read from it")
    return options.stdin


def _from_stdin(work: Work, stdin: BinaryIO) -> tuple[str, str | None]:
    head = _exactly(stdin, tarfile.BLOCKSIZE)
    if not begins_as_archive(head):
        return work.scratch(), _text(head + stdin.read(_FILE_MAX + 1 - len(head)), "Dockerfile")
    path = f"{work.scratch()}/context"
    with open(path, "wb") as file:
        file.write(head)
        while data := stdin.read(_CHUNK):
            file.write(data)
            if file.tell() > _CONTEXT_MAX:
                raise WherryError(Kind.EXHAUSTED, f"the build context is larger than {_CONTEXT_MAX} bytes")
    found = _unpacked(work, path)
    os.unlink(path)
    return found, None


def _exactly(stdin: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := stdin.read(size - len(data))):
        data += part
    return data


def _unpacked(work: Work, path: str) -> str:
    directory = work.scratch()
    try:
        with open(path, "rb") as file:
            if not work.house.images.extract(file, directory, "the build context"):
                raise WherryError(Kind.INVALID, f"unable to prepare context: {path} is no tar",
                                  hint="name a directory, a tar file, or -")  # fmt: skip
    except OSError as error:
        raise WherryError(Kind.INVALID, f"unable to prepare context: {path}: {error.strerror}") from error
    return directory


def begins_as_archive(head: bytes) -> bool:
    """Whether the first block of a file may be a tar's, or a packed tar's."""
    if head.startswith(_PACKED):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


# ---- the two files


def _read(work: Work, fd: int, options: BuildOptions, text: str | None) -> Context:
    plain = Tree(fd, "the build context", context=True)
    inside = options.inside or "Dockerfile"
    name = os.path.basename(options.file) if options.file not in ("", "-") else os.path.basename(inside)
    if text is None:
        text = _of_caller(options.file) if options.file else _inside(plain, inside)
    if text is None:
        raise WherryError(Kind.NOT_FOUND, f"failed to read dockerfile: open {inside}: no such file or directory",
                          hint=f"make {options.context}/Dockerfile, or name another with -f")  # fmt: skip
    ignore = _ignore(plain, options)
    return Context(Tree(fd, plain.what, context=True, ignore=ignore, check=work.check), text, name)


def _of_caller(path: str) -> str:
    """A Dockerfile that the caller names by -f: any file that the caller may read."""
    from wherry.kernel import files

    try:
        return _text(files.read_capped(path, _FILE_MAX), path)
    except OSError as error:
        raise WherryError(
            Kind.NOT_FOUND, f"failed to read dockerfile: open {path}: {(error.strerror or '').lower()}"
        ) from error


def _ignore(tree: Tree, options: BuildOptions) -> Ignore:
    """NAME.dockerignore beside the Dockerfile wins over the context's .dockerignore."""
    own = f"{options.file}.dockerignore"
    if options.file not in ("", "-") and os.path.isfile(own):
        return read_ignore(_of_caller(own))
    text = None if options.file else _inside(tree, "Dockerfile.dockerignore")
    text = _inside(tree, ".dockerignore") if text is None else text
    return EVERYTHING if text is None else read_ignore(text)


def _inside(tree: Tree, path: str) -> str | None:
    """A text of the context; a link leads to a file of the context or to nothing."""
    from wherry.kernel import files

    try:
        fd = files.open_regular(tree.root, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = "not a regular file" if error.errno == errno.EINVAL else error.strerror
        raise WherryError(Kind.INVALID, f"cannot read {path} of the build context: {why}") from error
    try:
        return _text(files.read_capped(fd, _FILE_MAX), path)
    finally:
        os.close(fd)


def _text(data: bytes, what: str) -> str:
    if len(data) > _FILE_MAX:
        raise WherryError(Kind.INVALID, f"{what} is larger than {_FILE_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WherryError(Kind.INVALID, f"{what} is not UTF-8 text: {error}") from error
