"""An image in a registry as a source: at a mirror, or at the registry itself.

Decides which endpoint is asked, what of its answer is believed, and how a broken download goes on. Refuses to know
where bytes end up.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin

from wherry.errors import Kind, WherryError
from wherry.image.blobs import Partial
from wherry.image.hosts import Reach, endpoints
from wherry.image.manifest import INDEX_TYPES, MANIFEST_MAX, MANIFEST_TYPES, parse_document
from wherry.image.pull import Document
from wherry.image.reference import DIGEST, TAG, Reference
from wherry.image.remote import Remote
from wherry.image.transport import Response, Retry
from wherry.model import Descriptor

__all__ = ["RegistrySource"]

_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_RANGE = r"bytes (\d+)-(\d+)/(\d+|\*)"
_PAGE, _PAGES_MAX = 1000, 100
_TAGS_MAX = _PAGE * _PAGES_MAX  # also of a server that sends larger pages than it was asked for
_TICK = 0.2  # seconds within which a stop is seen
_MIRROR_ATTEMPTS = 2  # there is another place to ask


class RegistrySource:
    """One repository of one registry, read by many threads."""

    def __init__(self, reference: Reference, reach: Reach | None = None) -> None:
        reach = reach or Reach()
        found = endpoints(reference.registry, reach)
        last = len(found) - 1
        self._reference = reference
        self._remotes = [
            Remote(reference, endpoint, reach, attempts=_MIRROR_ATTEMPTS if n < last else 0)
            for n, endpoint in enumerate(found)
        ]
        self._broken: dict[Remote, WherryError] = {}
        self._closed = threading.Event()
        self._watched: threading.Event | None = None
        self._lock = threading.Lock()
        self.what = reference.familiar()

    def top(self) -> Document:
        """The manifest or index of the tag or digest."""
        name = self._reference.digest or self._reference.tag
        return self._manifest("pull" if self._reference.digest else "resolve", name)

    def document(self, descriptor: Descriptor) -> Document:
        """The manifest of a descriptor of an index."""
        return self._manifest("pull", descriptor.digest, descriptor.media_type)

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        """Download a blob; goes on where an earlier attempt ended, also one of another process or endpoint."""
        self._watch(stop)
        self._somewhere("pull", lambda remote: _Download(remote, self.what, partial, report, stop).run())

    def referrers(self, digest: str) -> Document | None:
        """The index of what refers to a manifest (distribution-spec 1.1): of the API, or of the tag in its place."""
        found: Document | None = self._somewhere("resolve", lambda remote: _Referrers(remote, self.what).of(digest))
        return found

    def tags(self) -> list[str]:
        """All tags of the repository."""
        what = f"{self._reference.name}: tags"
        found: list[str] = self._somewhere("resolve", lambda remote: remote.persist(what, lambda: _tags(remote, what)))
        return found

    def close(self) -> None:
        self._closed.set()
        for remote in self._remotes:
            remote.close()

    def _watch(self, stop: threading.Event) -> None:
        """From now on `stop` also ends what waits for a registry that says nothing."""
        with self._lock:
            watched, self._watched = self._watched, stop
        if watched is None:
            threading.Thread(target=self._cut_at, args=(stop,), daemon=True).start()

    def _cut_at(self, stop: threading.Event) -> None:
        while not self._closed.wait(_TICK):
            if stop.is_set():
                for remote in self._remotes:
                    remote.abort()
                return

    # ---- which endpoint

    def _somewhere(self, capability: str, ask: Callable[[Remote], Any]) -> Any:
        """The first endpoint's answer; one that fails otherwise than by not having it is not asked again."""
        failed: list[str] = []
        usable = [remote for remote in self._remotes if capability in remote.endpoint.capabilities]
        usable = [remote for remote in usable if remote not in self._broken] or usable[-1:]
        for remote in usable:
            try:
                return ask(remote)
            except WherryError as error:
                if remote is usable[-1] or error.kind in (Kind.CONFLICT, Kind.EXHAUSTED):
                    raise _with_others(error, failed) from error
                failed.append(f"{remote.host}: {error.message}")
                if error.kind is not Kind.NOT_FOUND:
                    self._broken[remote] = error
        raise WherryError(Kind.PRECONDITION, f"{self.what}: no endpoint of {self._reference.registry} may {capability}",
                          hint="see capabilities in hosts.d")  # fmt: skip

    # ---- documents

    def _manifest(self, capability: str, name: str, media_type: str = "") -> Document:
        what = f"{self.what}: manifest {name}"
        document: Document = self._somewhere(
            capability,
            lambda remote: remote.persist(what, lambda: _manifest_once(remote, name, media_type, what)),
        )
        return document


def _with_others(error: WherryError, failed: list[str]) -> WherryError:
    """The last endpoint's error is the answer; what mirrors said before helps to see why it was asked."""
    if not failed:
        return error
    hint = "; ".join((*([error.hint] if error.hint else []), *(f"before that, {one}" for one in failed)))
    return WherryError(error.kind, error.message, hint=hint[:1000])


def _manifest_once(remote: Remote, name: str, media_type: str, what: str) -> Document:
    with remote.send("GET", remote.url(f"manifests/{name}"), {"Accept": _ACCEPT}) as response:
        remote.expect(response, (200,), what)
        digest = name if re.fullmatch(DIGEST, name) else ""
        return _document(response, media_type, digest, what)


def _document(response: Response, media_type: str, digest: str, what: str) -> Document:
    document = Document(
        response.body(MANIFEST_MAX, what), [response.headers.get("Content-Type", ""), media_type], digest
    )
    told = response.headers.get("Docker-Content-Digest", "")
    for expected in (digest, told if told.partition(":")[0] == document.digest.partition(":")[0] else ""):
        if expected and expected != document.digest:
            raise WherryError(Kind.INVALID, f"{what}: the registry sent {document.digest} instead of {expected}",
                              hint="the registry is damaged or lies; nothing of it was used")  # fmt: skip
    return document


def _tags(remote: Remote, what: str) -> list[str]:
    """distribution-spec 1.1, listing tags: page by page. What is no tag is left out: it becomes a part of a name."""
    found: list[str] = []
    url = remote.url("tags/list", {"n": str(_PAGE)})
    for _ in range(_PAGES_MAX):
        with remote.send("GET", url, {}) as response:
            remote.expect(response, (200,), what)
            tags = parse_document(response.body(MANIFEST_MAX, what), MANIFEST_MAX, what).get("tags") or ()
            more = re.match(r"<([^<>]+)>;\s*rel=\"?next", response.headers.get("Link", ""))
            url = urljoin(response.url, more[1]) if more else ""
        found += [tag for tag in tags if isinstance(tag, str) and re.fullmatch(TAG, tag)]
        if not url and len(found) <= _TAGS_MAX:
            return found
        if len(found) > _TAGS_MAX:
            break
    raise WherryError(Kind.INVALID, f"{what}: more than {_TAGS_MAX} tags, or {_PAGES_MAX} pages",
                      hint="pull those that you need by name")  # fmt: skip


class _Referrers:
    """distribution-spec 1.1, listing referrers: the API, and where it is not, the tag <algorithm>-<hex>."""

    def __init__(self, remote: Remote, what: str) -> None:
        self._remote = remote
        self._what = what

    def of(self, digest: str) -> Document | None:
        for path in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-', 1)}"):
            once = functools.partial(self._once, path)
            found: Document | None = self._remote.persist(f"{self._what}: referrers", once)
            if found:
                return found
        return None

    def _once(self, path: str) -> Document | None:
        with self._remote.send("GET", self._remote.url(path), {"Accept": INDEX_TYPES[0]}) as response:
            if response.status == 404:
                return None
            self._remote.expect(response, (200,), f"{self._what}: referrers")
            return _document(response, "", "", f"{self._what}: referrers")


class _Download:
    """The rest of one blob from one endpoint."""

    def __init__(
        self, remote: Remote, what: str, partial: Partial, report: Callable[[int], None], stop: threading.Event
    ) -> None:
        self._remote = remote
        self._what = what
        self._partial = partial
        self._report = report
        self._stop = stop

    def run(self) -> None:
        partial = self._partial
        what = f"{self._what}: blob {partial.descriptor.digest}"
        resumed = partial.offset > 0
        for last in (not resumed, True):
            self._remote.persist(what, self._once, lambda: partial.offset)
            try:
                partial.commit()
            except WherryError:
                if last:
                    raise
                partial.restart()  # perhaps what an earlier attempt left was bad: once from the beginning
                continue
            return

    def _once(self) -> None:
        partial, remote = self._partial, self._remote
        if partial.complete:
            return
        start = partial.offset
        headers: Mapping[str, str] = {"Range": f"bytes={start}-"} if start else {}
        with remote.send("GET", remote.url(f"blobs/{partial.descriptor.digest}"), headers) as response:
            if response.status == 416:
                partial.restart()
                raise Retry("the registry refuses to go on in the middle")
            remote.expect(response, (206 if start and response.status == 206 else 200,), f"{self._what}: blob")
            _align(partial, response, start)
            for chunk in response.chunks(self._stop):
                partial.write(chunk)
                self._report(partial.offset)
            whole = response.headers.get("Content-Length", "") == str(partial.offset - start)
        if not partial.complete and whole:
            have = partial.offset
            partial.restart()
            raise WherryError(Kind.INVALID, f"{self._what}: {remote.host} has {have} bytes of blob"
                              f" {partial.descriptor.digest}, not {partial.descriptor.size}",
                              hint="the registry is damaged or lies; nothing of it was used")  # fmt: skip
        if not partial.complete:
            raise Retry(f"{remote.host} broke off after {partial.offset} of {partial.descriptor.size} bytes")


def _align(partial: Partial, response: Response, start: int) -> None:
    if response.status != 206:
        if start:
            partial.restart()  # the server knows no ranges
        return
    match = re.fullmatch(_RANGE, response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != start or match[3] not in ("*", str(partial.descriptor.size)):
        partial.restart()
        raise Retry("the registry sent another range than asked for")
