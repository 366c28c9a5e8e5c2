"""From a source to a stored, unpacked image: the one way, whatever the source.

Decides the order (documents, then blobs, then layers) and what must agree. Refuses to know how a source gets bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from wherry.errors import Kind, WherryError
from wherry.image.blobs import Blobs, Partial
from wherry.image.manifest import (
    CONFIG_MAX,
    DEPTH_MAX,
    INDEX_TYPES,
    MANIFEST_MAX,
    Manifest,
    agreed_type,
    choose,
    matches,
    parse_config,
    parse_document,
    parse_index,
    parse_manifest,
    platform_text,
)
from wherry.image.unpack import LayerStream, Unpacker
from wherry.kernel import files, shim
from wherry.model import Descriptor, Platform, ProgressEvent

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Document", "Puller", "Source"]

_PARALLEL = 4
_FLUSH_SECONDS, _FLUSH_BYTES = 0.3, 16 << 20  # a slow pull does not keep a whole file system busy with syncs
_TICK = 0.1  # seconds between two progress events of one layer


class Document:
    """A manifest or index as it came: its bytes, the media types that header and descriptor gave it."""

    def __init__(self, data: bytes, declared: Sequence[str], digest: str = "") -> None:
        self.data = data
        self.declared = tuple(declared)
        algorithm = digest.partition(":")[0] or "sha256"
        self.digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@runtime_checkable
class Source(Protocol):
    """Where an image comes from. Bytes are not trusted: the callers verify them."""

    what: str

    def top(self) -> Document:
        """The manifest or index that the name leads to."""

    def document(self, descriptor: Descriptor) -> Document:
        """The manifest or index of a descriptor; at most MANIFEST_MAX bytes."""

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        """Write the blob of partial.descriptor into `partial` from partial.offset on, and commit it."""


class Puller:
    """Takes images from sources into a store's blobs and layers. To be used in a `with`."""

    def __init__(self, blobs: Blobs, unpacker: Unpacker, progress: Callable[[ProgressEvent], None]) -> None:
        self._blobs = blobs
        self._unpacker = unpacker
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._taps: list[_Unpacking] = []

    def __enter__(self) -> Puller:
        return self

    def __exit__(self, *_: object) -> None:
        self._unpacker.close()

    def expect(self) -> None:
        """There will be layers to unpack: get ready for them while the source is asked."""
        self._unpacker.expect()

    def take(self, source: Source, platform: Platform, *, strict: bool) -> Descriptor:
        """Everything of the image for `platform`; the descriptor of its manifest."""
        document, manifest = self._resolve(source, platform)
        descriptor = Descriptor(manifest.media_type, document.digest, len(document.data))
        self._blobs.put(descriptor, document.data)
        diff_ids = self._config(source, manifest, platform, strict)
        self.get_layers(source, manifest.layers, diff_ids)
        return descriptor

    def unpack_all(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> None:
        """Unpack what is stored."""
        self.get_layers(None, layers, diff_ids)

    def get_layers(self, source: Source | None, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> None:
        """Fetch and unpack layers, some at a time; the first failure stops the others."""
        # one layer may come twice, packed differently: the image needs both blobs
        wanted = {(diff_id, layer.digest): layer for diff_id, layer in zip(diff_ids, layers, strict=True)}
        self._blobs.use(*diff_ids)
        if all(self._unpacker.has(diff_id) and self._blobs.has(layer) for (diff_id, _), layer in wanted.items()):
            return  # nothing to tell and no threads to start

        from concurrent.futures import ThreadPoolExecutor

        with self._written_back(), ThreadPoolExecutor(_PARALLEL, "layer") as pool:
            futures = [pool.submit(self._layer, source, layer, diff_id) for (diff_id, _), layer in wanted.items()]
            try:
                _first_failure(futures)
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                self._unpacker.abort()
                raise

    # ---- documents

    def _resolve(self, source: Source, platform: Platform) -> tuple[Document, Manifest]:
        document = source.top()
        for _ in range(DEPTH_MAX):
            body = parse_document(document.data, MANIFEST_MAX, source.what)
            media_type = agreed_type(body, document.declared, source.what)
            if media_type not in INDEX_TYPES:
                return document, parse_manifest(body, media_type, source.what)
            chosen = choose(parse_index(body, source.what), platform, source.what)
            document = self._stored(chosen) or source.document(chosen)
            self._check(document, chosen)
        raise WherryError(Kind.INVALID, f"{source.what}: indexes are nested deeper than {DEPTH_MAX}")

    def _stored(self, descriptor: Descriptor) -> Document | None:
        with contextlib.suppress(WherryError, OSError):  # absent, or damaged: then it comes anew
            data = self._blobs.read(descriptor.digest, MANIFEST_MAX)
            return Document(data, [descriptor.media_type], descriptor.digest)
        return None

    @staticmethod
    def _check(document: Document, expected: Descriptor) -> None:
        if document.digest != expected.digest or len(document.data) != expected.size:
            raise WherryError(
                Kind.INVALID,
                f"manifest {expected.digest} ({expected.size} bytes) came as {document.digest}"
                f" ({len(document.data)} bytes)",
                hint="the source is damaged or lies; nothing of it was used",
            )

    def _config(self, source: Source, manifest: Manifest, platform: Platform, strict: bool) -> tuple[str, ...]:
        descriptor = manifest.config
        if descriptor.size > CONFIG_MAX:
            raise WherryError(Kind.INVALID, f"config {descriptor.digest} is larger than {CONFIG_MAX} bytes")
        self._fetch(source, descriptor)
        what = f"{source.what}: config {descriptor.digest}"
        config = parse_config(parse_document(self._blobs.read(descriptor.digest, CONFIG_MAX), CONFIG_MAX, what), what)
        if len(config.diff_ids) != len(manifest.layers):
            raise WherryError(
                Kind.INVALID,
                f"{what} names {len(config.diff_ids)} layers, the manifest {len(manifest.layers)}",
                hint="this is not a container image, or a damaged one",
            )
        if strict and not matches(config.platform, platform):
            raise WherryError(
                Kind.NOT_FOUND,
                f"{source.what} is for {platform_text(config.platform)}, not for {platform_text(platform)}",
                hint="leave --platform out to take it all the same",
            )
        return config.diff_ids

    # ---- blobs and layers

    def _layer(self, source: Source | None, layer: Descriptor, diff_id: str) -> None:
        key = layer.digest.partition(":")[2][:12]
        self._say(key, "Pulling fs layer" if source else "Waiting")
        news = False
        if source is not None:
            news = self._fetch_layer(source, layer, diff_id, key)
            self._say(key, "Download complete", layer.size, layer.size)
        report = _throttled_pair(lambda done, total: self._say(key, "Extracting", done, total))
        news |= self._unpacker.unpack(self._blobs.path(layer.digest), diff_id, report, self._stop)
        self._say(key, "Pull complete" if news else "Already exists", layer.size, layer.size)

    def _fetch_layer(self, source: Source, layer: Descriptor, diff_id: str, key: str) -> bool:
        """Fetch a layer and unpack it while it comes. Where that fails it is unpacked from the verified blob."""
        report = _throttled(lambda done: self._say(key, "Downloading", done, layer.size))
        with self._blobs.partial(layer, self._stop) as partial:
            if partial is None:
                return False
            with self._unpacker.stream(diff_id, layer.size, self._stop, wait=False) as stream:
                if stream is not None:
                    tap = _Unpacking(stream, lambda: self._say(key, "Extracting", layer.size, layer.size))
                    self._taps.append(tap)
                    partial.attach(tap)
                source.fetch(partial, report, self._stop)
        return True

    @contextlib.contextmanager
    def _written_back(self) -> Iterator[None]:
        """Let the device work while the CPUs do: what is left for the sync of each layer is then little."""
        done = threading.Event()

        def work() -> None:
            synced = 0
            with files.directory(self._blobs.place) as fd, contextlib.suppress(OSError):
                while not done.wait(_FLUSH_SECONDS):
                    taken = sum(tap.taken for tap in list(self._taps))
                    if taken >= synced + _FLUSH_BYTES:
                        synced = taken
                        shim.syncfs(fd)

        thread = threading.Thread(target=work, name="write back", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _fetch(self, source: Source, descriptor: Descriptor) -> None:
        with self._blobs.partial(descriptor) as partial:
            if partial is not None:
                source.fetch(partial, lambda _done: None, self._stop)

    def _say(self, key: str, status: str, done: int = 0, total: int = 0) -> None:
        with self._lock:
            self._progress(ProgressEvent(key, status, done, total))


class _Unpacking:
    """The tap between a blob that comes and its layer. Its failures are kept to itself: nothing was verified yet."""

    def __init__(self, stream: LayerStream, settling: Callable[[], None]) -> None:
        self._stream: LayerStream | None = stream
        self._settling = settling
        self.taken = 0  # bytes

    def write(self, data: bytes) -> None:
        self.taken += len(data)
        if self._stream is not None:
            self._stream.write(data)

    def spoil(self) -> None:
        self._stream = None

    def settle(self) -> None:
        if self._stream is not None:
            self._settling()
            with contextlib.suppress(WherryError, OSError):
                self._stream.finish()


def _first_failure(futures: Sequence[Future[None]]) -> None:
    from concurrent.futures import FIRST_EXCEPTION, wait

    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def _throttled(report: Callable[[int], None]) -> Callable[[int], None]:
    both = _throttled_pair(lambda done, _total: report(done))
    return lambda done: both(done, 0)


def _throttled_pair(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    last = 0.0

    def maybe(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TICK:
            last = now
            report(done, total)

    return maybe


def copy_file(file_path: str, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
    """A blob from a local file."""
    partial.restart()
    with open(file_path, "rb") as file:
        copy_stream(file.read, os.fstat(file.fileno()).st_size, partial, report, stop)


def copy_stream(
    read: Callable[[int], bytes], size: int, partial: Partial, report: Callable[[int], None], stop: threading.Event
) -> None:
    """A blob of `size` bytes from a reader; commits it."""
    if size != partial.descriptor.size:
        raise WherryError(
            Kind.INVALID,
            f"blob {partial.descriptor.digest} has {size} bytes, not {partial.descriptor.size}",
            hint="the source is damaged or truncated",
        )
    while chunk := read(1 << 20):
        if stop.is_set():
            raise WherryError(Kind.CONFLICT, "cancelled")
        partial.write(chunk)
        report(partial.offset)
    partial.commit()
