"""From the store to a registry: blobs first, several at a time, then the documents that name them.

Decides what has to be sent: nothing that is there, nothing that the registry can mount from a repository of its own.
Refuses to know which name the user gave and how the store keeps images.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from wherry.digest import hexdigest
from wherry.errors import Kind, WherryError
from wherry.image.blobs import REF_NAME, Blobs
from wherry.image.hosts import Endpoint, Reach, endpoints
from wherry.image.indexes import Stored, documents
from wherry.image.reference import Reference
from wherry.image.remote import Remote
from wherry.image.subject import refer
from wherry.image.transport import Retry, Upload
from wherry.image.upload import BlobUpload
from wherry.model import Descriptor, ProgressEvent

__all__ = ["Pushed", "Pusher", "push"]

_PARALLEL = 4
_TICK = 0.1  # seconds between two reports of a blob
_REPOSITORIES_MAX = 8  # that a blob may be mounted from, and a token is asked for


class Pushed(NamedTuple):
    """What is in the registry now."""

    name: str
    tag: str
    descriptor: Descriptor


def push(
    blobs: Blobs, reach: Reach, name: str, progress: Callable[[ProgressEvent], None], *, all_tags: bool = False
) -> Iterator[Pushed]:
    """Push the image of a name, or those of all tags of a repository, one after the other."""
    reference = Reference.parse(name)
    if reference.digest:
        raise WherryError(Kind.INVALID, "cannot push a digest reference", hint=f"tag it: {reference.name}:TAG")
    found = _named(blobs, reference, all_tags=all_tags)
    pusher = Pusher(blobs, reference, reach, progress)
    with blobs.lease(), contextlib.closing(pusher):
        for one, top in found:
            yield pusher.push(one, top)


def _named(blobs: Blobs, wanted: Reference, *, all_tags: bool) -> list[tuple[Reference, Descriptor]]:
    found = []
    for entry in blobs.entries():
        if name := entry.annotations.get(REF_NAME):
            reference = Reference.parse(name)
            if reference == wanted or (all_tags and reference.name == wanted.name and reference.tag):
                found.append((reference, entry._replace(annotations={})))
    if not found:
        what = f"repository: {wanted.name}" if all_tags else f"tag: {wanted.name}:{wanted.tag}"
        raise WherryError(Kind.NOT_FOUND, f"an image does not exist locally with the {what}",
                          hint="see `wherry images`, and `wherry tag`")  # fmt: skip
    return found


class _MissingError(Exception):
    """A blob that was there is not: it was collected meanwhile, or another push of it is just being finished."""


class Pusher:
    """Sends images of the store to one repository. Close it."""

    def __init__(
        self, blobs: Blobs, repository: Reference, reach: Reach, progress: Callable[[ProgressEvent], None]
    ) -> None:
        self._blobs = blobs
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._there: set[str] = set()
        self._elsewhere = _elsewhere(blobs, repository)
        self.what = repository.name
        sources = dict.fromkeys(name for names in self._elsewhere.values() for name in names)
        scopes = [f"repository:{name}:pull" for name in list(sources)[:_REPOSITORIES_MAX]]
        endpoint = _endpoint(repository, reach)
        self._remote = Remote(repository, endpoint, reach, actions="pull,push", scopes=scopes)

    def push(self, reference: Reference, top: Descriptor) -> Pushed:
        """Everything of a stored image, or of an index with all its images; its name comes last."""
        found = list(documents(self._blobs, top))
        names = [*(document.descriptor.digest for document in found[:-1]), reference.tag or top.digest]
        self._remote.persist(self.what, lambda: self._all(found, names))
        return Pushed(str(reference), reference.tag, top)

    def close(self) -> None:
        self._remote.close()

    def _all(self, found: Sequence[Stored], names: Sequence[str]) -> None:
        try:
            self._send_blobs(found)
            for document, name in zip(found, names, strict=True):
                self._document(document, name)
        except _MissingError as error:
            self._there.clear()
            raise Retry(str(error)) from error

    # ---- blobs

    def _send_blobs(self, found: Sequence[Stored]) -> None:
        configs = {document.blobs[0].digest for document in found if document.blobs}
        wanted = {blob.digest: blob for document in found for blob in document.blobs if blob.digest not in self._there}
        for blob in wanted.values():
            if not self._blobs.has(blob):
                raise WherryError(Kind.NOT_FOUND, f"blob {blob.digest} is not in the store",
                                  hint="pull the image again, with --all-platforms where it has several")  # fmt: skip
            if blob.digest not in configs:
                self._say(blob, "Preparing")
        with ThreadPoolExecutor(_PARALLEL, "push") as pool:
            futures = [pool.submit(self._send, blob, silent=digest in configs) for digest, blob in wanted.items()]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stop.set()
                self._remote.abort()
                for future in futures:
                    future.cancel()
                raise

    def _send(self, blob: Descriptor, *, silent: bool) -> None:
        last = 0.0

        def report(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if not silent and now - last >= _TICK:
                last = now
                self._say(blob, "Pushing", done)

        sources = self._elsewhere.get(blob.digest, ())
        upload = BlobUpload(self._remote, blob, self._blobs.path(blob.digest), report, self._stop)
        word = upload.run(sources, self._blobs.ingest)
        if not silent:
            self._say(blob, word, blob.size)
        self._there.add(blob.digest)

    def _say(self, blob: Descriptor, status: str, done: int = 0) -> None:
        with self._lock:
            self._progress(ProgressEvent(blob.digest.partition(":")[2][:12], status, done, blob.size))

    # ---- documents

    def _document(self, document: Stored, name: str) -> None:
        answer = self._put(name, document.data, document.descriptor.media_type)
        refer(self._remote, document, answer.get("OCI-Subject", ""), self._put)

    def _put(self, name: str, data: bytes, media_type: str) -> Mapping[str, str]:
        what = f"{self.what}: manifest {name}"
        answer: Mapping[str, str] = self._remote.persist(what, lambda: _put_once(self._remote, name, data, media_type))
        digest = f"sha256:{hexdigest('sha256', data)}"
        told = answer.get("Docker-Content-Digest", digest)
        if told != digest and told.startswith("sha256:"):
            raise WherryError(Kind.INVALID, f"{what}: the registry has {told[:140]} instead of {digest}",
                              hint="the registry is damaged, or something between changes what is sent")  # fmt: skip
        return answer


def _put_once(remote: Remote, name: str, data: bytes, media_type: str) -> Mapping[str, str]:
    upload = Upload(len(data), lambda: iter([data]))
    url = remote.url(f"manifests/{name}")
    with remote.send("PUT", url, {"Content-Type": media_type}, upload=upload, slow=True) as response:
        if response.status in (400, 404) and "BLOB_UNKNOWN" in response.words():
            raise _MissingError(f"{remote.host} misses what was there{response.words()}")
        remote.expect(response, (200, 201, 202), f"{remote.what}: manifest {name}")
        return response.headers


def _endpoint(repository: Reference, reach: Reach) -> Endpoint:
    """The first endpoint that takes images (containerd's order)."""
    for endpoint in endpoints(repository.registry, reach):
        if "push" in endpoint.capabilities:
            return endpoint
    raise WherryError(Kind.PRECONDITION, f"no endpoint of {repository.registry} takes images",
                      hint='give one the capability "push" in hosts.d')  # fmt: skip


def _elsewhere(blobs: Blobs, repository: Reference) -> Mapping[str, tuple[str, ...]]:
    """Where else in this registry a blob may be: in the repositories that images here have names of."""
    found: dict[str, dict[str, None]] = {}
    for entry in blobs.entries():
        name = entry.annotations.get(REF_NAME)
        other = Reference.parse(name) if name else None
        if other and other.registry == repository.registry and other.repository != repository.repository:
            for blob in _blobs_of(blobs, entry):
                found.setdefault(blob.digest, {})[other.repository] = None
    return {digest: tuple(names) for digest, names in found.items()}


def _blobs_of(blobs: Blobs, entry: Descriptor) -> Iterator[Descriptor]:
    """What an image consists of; nothing of one that is damaged: this is only a guess where blobs may be."""
    with contextlib.suppress(WherryError, OSError):
        for document in documents(blobs, entry):
            yield from document.blobs
