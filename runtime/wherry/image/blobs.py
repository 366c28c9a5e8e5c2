"""ROOT/images, an OCI image layout: blobs by digest and index.json with the names. Other tools can read it in place.

Decides that a blob has its name only after size and digest were verified and the bytes are on disk. Refuses to know
where bytes come from and what they mean.

    ROOT/images/{oci-layout,index.json,blobs/sha256/<hex>,.lock}
    ROOT/ingest/<algorithm>-<hex>   partial blobs; a later attempt goes on where the last one ended
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from wherry.digest import hexdigest
from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.leases import Lease, Leases
from wherry.image.manifest import descriptor_from, descriptor_json
from wherry.image.reference import DIGEST
from wherry.model import Descriptor, Json

if TYPE_CHECKING:
    import hashlib

__all__ = ["REF_NAME", "Blobs", "Partial", "Tap"]

REF_NAME = "org.opencontainers.image.ref.name"
_CHUNK = 1 << 20


def _hasher(descriptor: Descriptor) -> hashlib._Hash:
    import hashlib

    return hashlib.new(descriptor.digest.partition(":")[0])


class Tap(Protocol):
    """Who wants the bytes of a blob while they come, before they are verified."""

    def write(self, data: bytes) -> None: ...
    def spoil(self) -> None:
        """What came was wrong: forget it."""

    def settle(self) -> None:
        """All of it came and is verified; it becomes durable next. Not to fail."""


class Partial:
    """A blob on its way into the store. `offset` bytes are there and hashed; `commit` verifies and publishes."""

    def __init__(self, fd: int, path: str, target: str, descriptor: Descriptor) -> None:
        self._fd = fd
        self._path = path
        self._target = target
        self.descriptor = descriptor
        self.offset = 0
        self._hash = _hasher(descriptor)
        self._tap: Tap | None = None

    def attach(self, tap: Tap) -> None:
        """Give `tap` what is there, and from now on what comes."""
        at = 0
        while at < self.offset and (data := os.pread(self._fd, min(_CHUNK, self.offset - at), at)):
            tap.write(data)
            at += len(data)
        self._tap = tap

    def resume(self) -> None:
        """Take in what an earlier attempt left."""
        if os.fstat(self._fd).st_size > self.descriptor.size:
            self.restart()
        while data := os.pread(self._fd, _CHUNK, self.offset):
            self._hash.update(data)
            self.offset += len(data)

    def restart(self) -> None:
        """Forget all bytes."""
        if self._tap is not None:
            self._tap.spoil()
            self._tap = None
        os.ftruncate(self._fd, 0)
        self.offset = 0
        self._hash = _hasher(self.descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Append; more than the descriptor's size is refused before it is written."""
        if self.offset + len(data) > self.descriptor.size:
            self.restart()
            raise WherryError(
                Kind.INVALID, f"blob {self.descriptor.digest} is longer than {self.descriptor.size} bytes"
            )
        view = memoryview(data)
        self._hash.update(view)
        if self._tap is not None:
            self._tap.write(bytes(data))
        while view:
            written = os.pwrite(self._fd, view, self.offset)
            self.offset += written
            view = view[written:]

    @property
    def complete(self) -> bool:
        return self.offset == self.descriptor.size

    def commit(self) -> None:
        """Verify, make durable, publish; on a mismatch the bytes are dropped."""
        expected = self.descriptor
        if self.offset != expected.size:
            raise WherryError(
                Kind.INVALID, f"blob {expected.digest} is truncated: {self.offset} of {expected.size} bytes"
            )
        actual = f"{expected.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if actual != expected.digest:
            self.restart()
            raise WherryError(Kind.INVALID, f"blob {expected.digest} has the digest {actual}",
                              hint="the source is damaged or lies; nothing of it was used")  # fmt: skip
        if self._tap is not None:
            self._tap.settle()  # before the sync: one of the whole file system has most of ours done
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o600)
        os.rename(self._path, self._target)
        disk.fsync_dir(os.path.dirname(self._target))


class Blobs:
    """The layout below ROOT/images and the partial blobs below ROOT/ingest."""

    def __init__(self, root: str) -> None:
        self.place = os.path.join(root, "images")
        self.ingest = os.path.join(root, "ingest")
        self.leases = Leases(root)
        self._held: list[Lease] = []
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Make the empty layout."""
        for name in ("blobs/sha256", "blobs/sha512"):
            disk.make_private(os.path.join(self.place, name))
        disk.make_private(self.ingest)
        if not os.path.exists(os.path.join(self.place, "oci-layout")):
            with self.locked():
                disk.write_atomic(os.path.join(self.place, "oci-layout"), b'{"imageLayoutVersion":"1.0.0"}\n')

    def path(self, digest: str) -> str:
        """The file of a blob. Only well-formed digests become paths."""
        if not re.fullmatch(DIGEST, digest):
            raise WherryError(Kind.INVALID, f"invalid digest {digest[:140]!r}")
        return os.path.join(self.place, "blobs", *digest.split(":"))

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there; a descriptor that gives it another size is refused. Under a lease it stays."""
        self.use(descriptor.digest)
        try:
            size = os.stat(self.path(descriptor.digest)).st_size
        except FileNotFoundError:
            return False
        if size != descriptor.size:
            raise WherryError(Kind.INVALID, f"blob {descriptor.digest} has {size} bytes, not {descriptor.size}",
                              hint="`wherry system check --repair` takes away what is damaged here")  # fmt: skip
        return True

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob, verified again: disks rot."""
        with open(self.path(digest), "rb") as file:
            data = file.read(limit + 1)
        algorithm, _, expected = digest.partition(":")
        if len(data) > limit or hexdigest(algorithm, data) != expected:
            raise WherryError(
                Kind.INVALID, f"stored blob {digest} is damaged", hint="remove the image and pull it again"
            )
        return data

    @contextlib.contextmanager
    def partial(self, descriptor: Descriptor, stop: threading.Event | None = None) -> Iterator[Partial | None]:
        """Hold the partial of a blob alone, or None when the blob is there (perhaps another just put it there)."""
        path = os.path.join(self.ingest, descriptor.digest.replace(":", "-"))
        if self.has(descriptor):
            yield None
            return
        with _no_space(descriptor), disk.claim(path, unlink=False, stop=stop) as fd:
            if self.has(descriptor):
                os.unlink(path)
                yield None
                return
            partial = Partial(fd, path, self.path(descriptor.digest), descriptor)
            partial.resume()
            try:
                yield partial
            finally:
                if partial.offset == 0:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)

    def put(self, descriptor: Descriptor, data: bytes) -> None:
        """Store a small blob. There is no partial of it: who is killed leaves a temporary that nobody resumes."""
        if self.has(descriptor):
            return
        algorithm, _, expected = descriptor.digest.partition(":")
        actual = hexdigest(algorithm, data)
        if (actual, len(data)) != (expected, descriptor.size):
            raise WherryError(Kind.INVALID, f"blob {descriptor.digest} has the digest {algorithm}:{actual}")
        with _no_space(descriptor):
            disk.write_atomic(self.path(descriptor.digest), data, scratch=self.ingest)

    def entries(self) -> list[Descriptor]:
        """index.json: one descriptor a name, and nameless ones."""
        try:
            document = disk.load_json(os.path.join(self.place, "index.json"))
        except FileNotFoundError:
            return []
        what = os.path.join(self.place, "index.json")
        if not isinstance(document, dict):
            raise WherryError(Kind.INVALID, f"{what} is not an index")
        return [descriptor_from(item, what) for item in document.get("manifests") or []]

    def use(self, *digests: str) -> None:
        """Under a lease: these blobs and layers (by diff id) stay until its end, if they are still there."""
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease.add(digests)

    def change(self, edit: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        """Replace index.json by what `edit` makes of its entries; one changer at a time."""
        with self.locked():
            entries = self.entries()
            edited = edit(list(entries))
            if edited != entries or not os.path.exists(os.path.join(self.place, "index.json")):
                document: Json = {"schemaVersion": 2, "manifests": [descriptor_json(entry) for entry in edited]}
                disk.dump_json(os.path.join(self.place, "index.json"), document)

    def name(self, descriptor: Descriptor, names: Iterable[str]) -> None:
        """Give an image these names (taken from any other); with none, just keep it.

        NOT_FOUND where a sweep has taken the image meanwhile: none is named that is not there.
        """
        wanted = list(names)

        def edit(entries: list[Descriptor]) -> list[Descriptor]:
            kept = _without(entries, wanted)
            kept += [_named(descriptor, name) for name in wanted]
            present = any(entry.digest == descriptor.digest for entry in kept)
            return kept if present else [*kept, _unnamed(descriptor)]

        with self.leases.guard(shared=True):
            if not self.has(descriptor):
                raise WherryError(Kind.NOT_FOUND, f"image {descriptor.digest} has just been removed")
            self.change(edit)

    def untag(self, names: Iterable[str]) -> None:
        """Take names away; their images stay."""
        gone = list(names)
        self.change(lambda entries: _without(entries, gone))

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Around work that uses the store: what `use`, `has` and `partial` are asked for and what is made meanwhile is
        not swept before the end."""
        with self.leases.hold() as lease:
            with self._lock:
                self._held.append(lease)
            try:
                yield
            finally:
                with self._lock:
                    self._held.remove(lease)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """One changer of the layout's own files at a time."""
        disk.make_private(self.place)
        return disk.locked(os.path.join(self.place, ".lock"))


@contextlib.contextmanager
def _no_space(descriptor: Descriptor) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise disk.os_failure(f"cannot store blob {descriptor.digest}", error) from error


def _named(descriptor: Descriptor, name: str) -> Descriptor:
    return descriptor._replace(annotations={**_unnamed(descriptor).annotations, REF_NAME: name})


def _unnamed(descriptor: Descriptor) -> Descriptor:
    kept = {key: value for key, value in descriptor.annotations.items() if key != REF_NAME}
    return descriptor._replace(annotations=kept)


def _without(entries: list[Descriptor], names: list[str]) -> list[Descriptor]:
    """Take names away. An image that loses its last one stays, nameless, as docker's <none>."""
    kept = [entry for entry in entries if entry.annotations.get(REF_NAME) not in names]
    present = {entry.digest for entry in kept}
    for entry in entries:
        if entry.digest not in present:
            present.add(entry.digest)
            kept.append(_unnamed(entry))
    # A nameless entry says nothing once the image has a name.
    named = {entry.digest for entry in kept if REF_NAME in entry.annotations}
    return [entry for entry in kept if REF_NAME in entry.annotations or entry.digest not in named]
