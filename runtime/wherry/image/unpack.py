"""A stored layer becomes a directory: inflate, hash, and feed the confined helper (native/unpack.c).

Decides how much may come out of a layer and that it is published only when its diff id is right. The tar format is the
helper's; what images are is the store's.
"""

import contextlib
import errno
import functools
import hashlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from wherry.errors import Kind, WherryError
from wherry.image import disk, formats
from wherry.image.snapshot import layer_path
from wherry.kernel.files import remove_tree

__all__ = ["LayerLimits", "Unpacker", "inflate"]

_CHUNK = 256 << 10
_QUEUE = 8
_FIRST_FREE = 16  # descriptors below are rearranged for the helper
_REPORT_MAX = 8192
_ZSTD_WINDOW = 1 << 27  # 128 MiB: zstd --ultra without --long=28 and more
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class LayerLimits(NamedTuple):
    """Bounds of one layer. The ratio counts only beyond `free` bytes: small layers may hold much emptiness."""

    total: int = 256 << 30
    ratio: int = 250
    free: int = 1 << 30
    entries: int = 10_000_000

    def bytes_for(self, packed: int) -> int:
        """How much a blob of `packed` bytes may inflate to."""
        return min(self.total, max(self.free, packed * self.ratio))


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _gzip_inflater() -> _Inflater:
    try:
        from isal import isal_zlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        import zlib

        return zlib.decompressobj(wbits=31)
    inflater: _Inflater = isal_zlib.decompressobj(wbits=31)
    return inflater


def inflate(file: BinaryIO) -> Iterator[bytes]:
    """The tar stream of a layer, whatever its compression: the first bytes tell (the diff id is verified anyway)."""
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        yield from _gunzip(file)
    elif head == _ZSTD:
        yield from _unzstd(file)
    else:
        while chunk := file.read(_CHUNK):
            yield chunk


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    inflater = _gzip_inflater()
    fed = False  # a member has begun
    data = file.read(_CHUNK)
    while data:
        if not fed and data.count(0) == len(data):  # zeros after the last member pad to a block, as gzip(1) tolerates
            data = file.read(_CHUNK)
            continue
        fed = True
        chunk = inflater.decompress(data, _CHUNK)
        if chunk:
            yield chunk
        if inflater.eof:
            data, inflater, fed = inflater.unused_data or file.read(_CHUNK), _gzip_inflater(), False
        else:
            data = getattr(inflater, "unconsumed_tail", b"") or file.read(_CHUNK)
    if fed:
        yield from _gunzip_rest(inflater)


def _gunzip_rest(inflater: _Inflater) -> Iterator[bytes]:
    while not inflater.eof:
        chunk = inflater.decompress(b"", _CHUNK)
        if not chunk:
            raise EOFError("the gzip stream is truncated")
        yield chunk


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        file, read_size=_CHUNK, read_across_frames=True
    )
    while chunk := reader.read(_CHUNK):
        yield chunk


class _Child:
    """One helper process with its pipes; always reaped."""

    def __init__(self, helper: int, directory: int, arguments: list[str]) -> None:
        fds = contextlib.ExitStack()
        with fds:
            stdin, self.input = self._pipe(fds)
            self.output, stdout = self._pipe(fds)
            program, target = self._high(fds, helper), self._high(fds, directory)
            self.pid = os.posix_spawn(
                f"/proc/self/fd/{program}", ["wherry-helper", "unpack", *arguments], {},
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1),
                              (os.POSIX_SPAWN_DUP2, target, 3)],
                setsigdef=[signal.SIGPIPE], setsigmask=[],
            )  # fmt: skip
            self.input, self.output = os.dup(self.input), os.dup(self.output)

    @staticmethod
    def _high(fds: contextlib.ExitStack, fd: int) -> int:
        import fcntl

        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        fds.callback(os.close, high)
        return high

    def _pipe(self, fds: contextlib.ExitStack) -> tuple[int, int]:
        import fcntl

        read, write = os.pipe2(os.O_CLOEXEC)
        fds.callback(os.close, read)
        fds.callback(os.close, write)
        with contextlib.suppress(OSError):  # above the user's pipe limit: slower, no more
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        return self._high(fds, read), self._high(fds, write)

    def feed(self, data: bytes) -> bool:
        """Write all; False when the helper has ended (its report says why)."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.input, view) :]
        except BrokenPipeError:
            return False
        return True

    def end_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def report(self) -> list[str]:
        """Wait for the end; the words of its report."""
        self.end_input()
        text = b""
        while len(text) < _REPORT_MAX and (part := os.read(self.output, _REPORT_MAX - len(text))):
            text += part
        return text.decode("utf-8", "backslashreplace").split("\n", 2)

    def close(self) -> None:
        """Reap it; one that still runs is killed first."""
        running = self.input >= 0
        self.end_input()
        os.close(self.output)
        if running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # our own child, not yet waited for: the pid is its
        os.waitpid(self.pid, 0)


def _installed_helper() -> int:
    from wherry.kernel.shim import helper_memfd

    return helper_memfd()


class Unpacker:
    """Makes ROOT/layers/<diff id>. Several may want the same layer at once: one works, the others wait."""

    def __init__(
        self,
        root: str,
        *,
        userxattr: bool = False,
        helper: Callable[[], int] | None = None,
        limits: LayerLimits | None = None,
        snapshot_format: str = formats.DIRECTORY.name,
    ) -> None:
        self._root = root
        self._wanted = snapshot_format
        self._userxattr = userxattr
        self._helper = helper or _installed_helper
        self._limits = limits or LayerLimits()

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there; nothing is locked or made."""
        return os.path.isdir(layer_path(self._root, diff_id))

    def unpack(self, blob: str, diff_id: str, report: Callable[[int, int], None], stop: threading.Event) -> bool:
        """Unpack the file `blob`; False when the layer was there. `report` gets (packed bytes done, of)."""
        target = layer_path(self._root, diff_id)
        if os.path.isdir(target):
            return False
        disk.make_private(os.path.join(self._root, "layers"))
        lock = os.path.join(self._root, "ingest", f"layer-{diff_id.partition(':')[2]}.lock")
        disk.make_private(os.path.dirname(lock))
        with disk.claim(lock, unlink=True):
            if os.path.isdir(target):
                return False
            self._unpack(blob, diff_id, target, report, stop)
        return True

    @functools.cached_property
    def format(self) -> formats.Format:
        """What layers are unpacked as here, from now on."""
        return formats.choose(self._wanted, self._probe)

    def _probe(self) -> str:
        """A layer of nothing, and whether the kernel takes it: the file system below ROOT, our rights, all at once."""
        if self._userxattr:
            return "it is for overlays of a user namespace"
        place = os.path.join(self._root, "ingest")
        disk.make_private(place)
        temporary = os.path.join(place, disk.fresh_name(".tmp-"))
        os.mkdir(temporary, 0o700)
        held = disk.try_lock(temporary)
        try:
            child = self._start(temporary, 0, formats.EROFS)
            try:
                words = child.report()
            finally:
                child.close()
            return formats.refusal(temporary) if words[0].startswith("ok ") else " ".join(words[1:2]) or "no report"
        finally:
            self._discard(temporary)
            os.close(held)

    def _unpack(
        self, blob: str, diff_id: str, target: str, report: Callable[[int, int], None], stop: threading.Event
    ) -> None:
        try:
            self._unpack_as(self.format, blob, diff_id, target, report, stop)
        except formats.DoesNotFitError:
            self._unpack_as(formats.DIRECTORY, blob, diff_id, target, report, stop)

    def _unpack_as(  # noqa: PLR0917  # as above, in one format
        self, how: formats.Format, blob: str, diff_id: str, target: str, report: Callable[[int, int], None],
        stop: threading.Event,
    ) -> None:  # fmt: skip
        parent = os.path.dirname(target)
        temporary = os.path.join(parent, disk.fresh_name(".tmp-"))
        os.mkdir(temporary, 0o700)
        held = disk.try_lock(temporary)  # tells gc that someone works here
        try:
            os.mkdir(os.path.join(temporary, "fs"), 0o755)
            os.chmod(os.path.join(temporary, "fs"), 0o755)  # noqa: S103 - a root directory; what is above is 0700
            entries, size = self._fill(temporary, how, blob, diff_id, report, stop)
            disk.dump_json(os.path.join(temporary, "size.json"), {"bytes": size, "entries": entries})
            os.rename(temporary, target)
            disk.fsync_dir(parent)
        except BaseException:
            self._discard(temporary)
            raise
        finally:
            os.close(held)

    @staticmethod
    def _discard(temporary: str) -> None:
        fd = os.open(os.path.dirname(temporary), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(os.path.basename(temporary), fd)
        finally:
            os.close(fd)

    def _fill(  # noqa: PLR0917  # as above
        self, directory: str, how: formats.Format, blob: str, diff_id: str, report: Callable[[int, int], None],
        stop: threading.Event,
    ) -> tuple[int, int]:  # fmt: skip
        with open(blob, "rb") as file:
            packed = os.fstat(file.fileno()).st_size
            most = self._limits.bytes_for(packed)
            child = self._start(os.path.join(directory, how.place), most, how)
            watch = _Watch(lambda done: report(done, packed), stop)
            try:
                digest = _pump(file, child, diff_id.partition(":")[0], watch, most)
                words = child.report()
            finally:
                child.close()
        return self._judge(words, diff_id, digest)

    def _start(self, directory: str, most: int, how: formats.Format) -> _Child:
        helper = self._helper()
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                arguments = [f"--format={how.name}", f"--max-bytes={most}", f"--max-entries={self._limits.entries}"]
                return _Child(helper, fd, arguments + (["--userxattr"] if self._userxattr else []))
            finally:
                os.close(fd)
        finally:
            os.close(helper)

    @staticmethod
    def _judge(words: list[str], diff_id: str, digest: str | None) -> tuple[int, int]:
        first = words[0].split()
        if first[:1] == ["fail"] and len(words) == 3 and len(first) == 3:
            raise _refusal(diff_id, int(first[1]), int(first[2]), words[1], words[2])
        if first[:1] != ["ok"] or len(first) != 3:
            raise WherryError(Kind.INTERNAL, f"the unpacking of layer {diff_id} ended without a report")
        if digest != diff_id.partition(":")[2]:
            raise WherryError(
                Kind.INVALID,
                f"layer {diff_id} unpacks to the diff id sha256:{digest}",
                hint="the image is damaged or lies",
            )
        return int(first[1]), int(first[2])


_UNPACK_KINDS = {
    errno.ENOSPC: (Kind.EXHAUSTED, "free space on this file system, or remove images with `wherry rmi`"),
    errno.EDQUOT: (Kind.EXHAUSTED, "the quota of this file system is used up"),
    errno.ENOMEM: (Kind.EXHAUSTED, ""),
    errno.EROFS: (Kind.PRECONDITION, "choose a writable place with --root"),
    errno.EPERM: (Kind.DENIED, "unpacking needs root (CAP_SYS_ADMIN, CAP_CHOWN, CAP_MKNOD)"),
    errno.ENOSYS: (Kind.UNSUPPORTED, "wherry needs kernel 5.15 or newer"),
    errno.EOPNOTSUPP: (Kind.PRECONDITION, "the file system below --root lacks extended attributes"),
}


def _refusal(diff_id: str, number: int, entry: int, what: str, path: str) -> WherryError:
    if number == errno.EOVERFLOW:
        return formats.DoesNotFitError(Kind.UNSUPPORTED, f"layer {diff_id}: {what}")
    kind, hint = _UNPACK_KINDS.get(number, (Kind.INVALID, "the image is damaged or hostile"))
    where = f" (entry {entry}, {path!r})" if path else ""
    words = "" if number == errno.EPROTO else f": {os.strerror(number)}"
    return WherryError(kind, f"cannot unpack layer {diff_id}: {what}{where}{words}", hint=hint)


class _Watch(NamedTuple):
    """Who wants to know how far it is, and who may stop it."""

    report: Callable[[int], None]
    stop: threading.Event


class _Cancelled(WherryError):
    def __init__(self) -> None:
        super().__init__(Kind.CONFLICT, "cancelled")


def _pump(file: BinaryIO, child: _Child, algorithm: str, watch: _Watch, most: int) -> str | None:
    """Inflate here, hash and write in a second thread. The diff id in hex, None where the helper ended early."""
    chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
    hashed = hashlib.new(algorithm)
    alive = threading.Event()
    alive.set()

    def drain() -> None:
        while (chunk := chunks.get()) is not None:
            if alive.is_set():
                hashed.update(chunk)
                if not child.feed(chunk):
                    alive.clear()

    worker = threading.Thread(target=drain, name="unpack", daemon=True)
    worker.start()
    try:
        _inflate_into(file, chunks, watch, alive, most)
    except _broken_streams() as error:
        raise WherryError(Kind.INVALID, f"a layer's compressed data is damaged: {error}") from error
    finally:
        chunks.put(None)
        worker.join()
    return hashed.hexdigest() if alive.is_set() else None


def _broken_streams() -> tuple[type[BaseException], ...]:
    import zlib

    kinds: list[type[BaseException]] = [zlib.error, EOFError]
    with contextlib.suppress(ImportError):
        import zstandard

        kinds.append(zstandard.ZstdError)
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        kinds.append(isal_zlib.error)
    return tuple(kinds)


def _inflate_into(
    file: BinaryIO, chunks: queue.Queue[bytes | None], watch: _Watch, alive: threading.Event, most: int
) -> None:
    total = 0
    for chunk in inflate(file):
        if watch.stop.is_set():
            raise _Cancelled
        if not alive.is_set():
            return
        total += len(chunk)
        if total > most:
            raise WherryError(Kind.INVALID, f"a layer inflates to more than {most} bytes",
                              hint="this looks like a decompression bomb")  # fmt: skip
        chunks.put(chunk)
        watch.report(file.tell())
