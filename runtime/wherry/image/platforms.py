"""An image with all its platforms into the store: the index as it came, and everything below it.

Decides the order: what is named comes before what names it, so that a crash leaves garbage, never a hole. Unpacks
nothing; refuses to know how a source gets bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from wherry.errors import Kind, WherryError
from wherry.image.blobs import Blobs
from wherry.image.indexes import MANIFESTS_MAX, Stored, named
from wherry.image.manifest import DEPTH_MAX, MANIFEST_MAX, agreed_type, parse_document
from wherry.image.pull import Document, Source
from wherry.model import Descriptor, ProgressEvent

__all__ = ["take_all"]

_PARALLEL = 4


def take_all(blobs: Blobs, source: Source, progress: Callable[[ProgressEvent], None]) -> Descriptor:
    """Fetch what the name leads to with all that it lists; the descriptor of it. An image alone is one of one."""
    top = source.top()
    media_type = agreed_type(parse_document(top.data, MANIFEST_MAX, source.what), top.declared, source.what)
    first = named(Descriptor(media_type, top.digest, len(top.data)), top.data, source.what)
    found = _listed(source, first)
    configs = {document.blobs[0].digest for document in found if document.blobs}
    wanted = {blob.digest: blob for document in found for blob in document.blobs}

    def shown(event: ProgressEvent) -> None:
        if f"sha256:{event.key}" not in configs:
            progress(event._replace(key=event.key[:12]))

    _fetch(blobs, source, wanted, shown)
    for document in reversed(found):
        blobs.put(document.descriptor, document.data)
    return first.descriptor


def _listed(source: Source, first: Stored) -> list[Stored]:
    """All documents, each before those that it lists, none twice."""
    found = {first.descriptor.digest: first}
    level = [first]
    for _ in range(DEPTH_MAX):
        wanted = {child.digest: child for document in level for child in document.below if child.digest not in found}
        if len(found) + len(wanted) > MANIFESTS_MAX:
            raise WherryError(Kind.INVALID, f"{source.what}: lists more than {MANIFESTS_MAX} manifests")
        level = [_document(source, child) for child in wanted.values()]
        found.update((document.descriptor.digest, document) for document in level)
    if any(document.below for document in level):
        raise WherryError(Kind.INVALID, f"{source.what}: indexes are nested deeper than {DEPTH_MAX}")
    return list(found.values())


def _document(source: Source, wanted: Descriptor) -> Stored:
    document: Document = source.document(wanted)
    if document.digest != wanted.digest or len(document.data) != wanted.size:
        raise WherryError(Kind.INVALID, f"manifest {wanted.digest} came as {document.digest}",
                          hint="the source is damaged or lies; nothing of it was used")  # fmt: skip
    media_type = agreed_type(parse_document(document.data, MANIFEST_MAX, source.what), document.declared, source.what)
    return named(wanted._replace(media_type=media_type), document.data, source.what)


def _fetch(
    blobs: Blobs, source: Source, wanted: dict[str, Descriptor], progress: Callable[[ProgressEvent], None]
) -> None:
    stop, lock = threading.Event(), threading.Lock()

    def say(blob: Descriptor, status: str, done: int = 0) -> None:
        with lock:
            progress(ProgressEvent(blob.digest.partition(":")[2], status, done, blob.size))

    def one(blob: Descriptor) -> None:
        say(blob, "Pulling fs layer")
        with blobs.partial(blob, stop) as partial:
            if partial is not None:
                source.fetch(partial, lambda done: say(blob, "Downloading", done), stop)
        say(blob, "Pull complete" if partial is not None else "Already exists", blob.size)

    with ThreadPoolExecutor(_PARALLEL, "blob") as pool:
        futures = [pool.submit(one, blob) for blob in wanted.values()]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
