"""What ADD and COPY take that is not simply there: here-documents, addresses, archives; and the way out of a build.

Decides what becomes of each before it is copied like anything else: a directory of scratch files. Archives are unpacked
by the confined helper, never by us (invariant 6).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.image.dockerfile import refuse
from wherry.image.fetch import fetch, is_url
from wherry.image.instructions import Copy, Step
from wherry.image.patterns import EVERYTHING, Ignore

from .context import begins_as_archive
from .copying import Item, Order, gather, write
from .drafts import Draft
from .trees import Entry, Tree
from .work import Work

__all__ = ["documents", "export", "export_tar", "sources"]

_REMOTE = ("git@", "git://", "ssh://")
_CHECKSUM = re.compile(r"sha256:[a-f0-9]{64}")


@contextlib.contextmanager
def _opened(directory: str, what: str, *, context: bool) -> Iterator[Tree]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Tree(fd, what, context=context)
    finally:
        os.close(fd)


def documents(
    work: Work, says: Copy, sources: Sequence[str], expand: Callable[[str], str]
) -> Mapping[str, contextlib.AbstractContextManager[Tree]]:
    """Each here-document as a directory that holds it, by the word that announced it."""
    announced = [text for text in sources if re.match(r"\d*<<-?", text)]
    found = {}
    for text, document in zip(announced, says.heredocs, strict=True):
        directory = work.scratch()
        path = os.path.join(directory, os.path.basename(document.name))
        with open(path, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(expand(document.text) if document.expand else document.text)
        os.utime(path, (0, 0) if work.epoch is None else (work.epoch, work.epoch))
        found[text] = _opened(directory, "a here-document", context=True)
    return found


def sources(  # noqa: PLR0917 - what one source of a step is read with
    work: Work, step: Step, tree: Tree, text: str, exclude: Ignore, held: contextlib.ExitStack
) -> list[Item]:
    """What one source of ADD is: a file from the network, the contents of an archive, or as COPY's."""
    assert isinstance(step.says, Copy)
    if text.startswith(_REMOTE) or re.match(r"https?://.+\.git(#.*)?$", text):
        refuse(step.at, f"ADD of a git repository is not supported: {text}", "clone it into the context")
    if is_url(text):
        return _fetched(work, step, text, held)
    if step.says.checksum:
        refuse(step.at, "checksum can't be specified for non-HTTP sources")
    found = []
    for item in gather(tree, text, exclude):
        found += [item] if step.says.unpack is False else _perhaps_unpacked(work, item, held)
    return found


def _perhaps_unpacked(work: Work, item: Item, held: contextlib.ExitStack) -> list[Item]:
    if item.is_directory or not item.entries[0].digest:
        return [item]
    with open(item.tree.file(item.entries[0].source), "rb") as file:
        if not begins_as_archive(file.read(tarfile.BLOCKSIZE)):
            return [item]
        file.seek(0)
        directory = work.scratch()
        if not work.house.images.extract(file, directory, item.name):
            return [item]
    found = gather(held.enter_context(_opened(directory, item.name, context=False)), "/")
    return [one._replace(entries=(_plain(one.entries[0]), *one.entries[1:])) for one in found]


def _plain(top: Entry) -> Entry:
    """What an archive says of its own root is not said of the directory that it is unpacked into."""
    return top._replace(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, xattrs=())


def _fetched(work: Work, step: Step, url: str, held: contextlib.ExitStack) -> list[Item]:
    assert isinstance(step.says, Copy)
    wanted = step.says.checksum
    if wanted and not _CHECKSUM.fullmatch(wanted):
        refuse(step.at, f"invalid checksum {wanted!r}", "sha256: and 64 hexadecimal digits")
    directory = work.scratch()
    path = f"{directory}/fetched"
    with open(path, "w+b") as file:
        os.fchmod(file.fileno(), 0o600)
        got = fetch(url, file)
        file.flush()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and wanted != f"sha256:{digest}":
        raise WherryError(Kind.INVALID, f"digest mismatch of {url}: sha256:{digest} is not {wanted}")
    os.utime(path, (got.modified, got.modified))
    tree = held.enter_context(_opened(directory, url, context=True))
    items = [item._replace(name=got.name or "index.html") for item in gather(tree, "/fetched")]
    return [one for item in items for one in _perhaps_unpacked(work, item, held)] if step.says.unpack else items


def export(work: Work, draft: Draft, directory: str) -> None:
    """The file system of an image into a directory of the caller's."""
    os.makedirs(directory, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with work.tree(draft, "the image") as tree:
            entries: tuple[Entry, ...] = tuple(tree.entries("", exclude=EVERYTHING))
            write(fd, Order((Item(tree, "", entries),), "/", True, None, None))
    finally:
        os.close(fd)


def export_tar(work: Work, draft: Draft, fd: int) -> None:
    """The same as a tar."""
    from wherry.image.layertar import write_tree
    from wherry.kernel import files

    with open(fd, "wb", closefd=False) as file, work.view(draft) as root:
        top = files.open_beneath(root, ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            write_tree(top, file.write)
        finally:
            os.close(top)
