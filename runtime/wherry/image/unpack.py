"""A stored layer becomes a directory: inflate, hash, and feed the confined helper (native/unpack.c).

Decides how much may come out of a layer and that it is published only when its diff id is right. The tar format is the
helper's; what images are is the store's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.inflate import broken_streams, inflate
from wherry.image.snapshot import layer_path
from wherry.kernel.files import remove_tree

__all__ = ["LayerLimits", "LayerStream", "Unpacker"]

_CHUNK = 256 << 10
_QUEUE = 8  # chunks between two threads of a stream
_FIRST_FREE = 16  # descriptors below are rearranged for the helper
_REPORT_MAX = 8192
_CLAIM_SECONDS = 3600.0


class LayerLimits(NamedTuple):
    """Bounds of one layer. The ratio counts only beyond `free` bytes: small layers may hold much emptiness."""

    total: int = 256 << 30
    ratio: int = 250
    free: int = 1 << 30
    entries: int = 10_000_000

    def bytes_for(self, packed: int) -> int:
        """How much a blob of `packed` bytes may inflate to."""
        return min(self.total, max(self.free, packed * self.ratio))


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

    def kill(self) -> None:
        """Nobody wants its work any more."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # our own child, not yet waited for: the pid is its

    def close(self) -> None:
        """Reap it; one that still runs is killed first."""
        if self.input >= 0:
            self.kill()
        self.end_input()
        os.close(self.output)
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
    ) -> None:
        self._root = root
        self._userxattr = userxattr
        self._helper = helper or _installed_helper
        self._limits = limits or LayerLimits()

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there; nothing is locked or made."""
        return os.path.isdir(layer_path(self._root, diff_id))

    def unpack(self, blob: str, diff_id: str, report: Callable[[int, int], None], stop: threading.Event) -> bool:
        """Unpack the file `blob`; False when the layer was there. `report` gets (packed bytes done, of)."""
        packed = 0 if self.has(diff_id) else os.stat(blob).st_size
        with self.stream(diff_id, packed, stop) as stream:
            if stream is None:
                return False
            with open(blob, "rb") as file:
                while not stream.ended and (chunk := file.read(_CHUNK)):
                    stream.write(chunk)
                    report(file.tell(), packed)
            stream.finish()
        return True

    @contextlib.contextmanager
    def stream(
        self, diff_id: str, packed: int, stop: threading.Event, *, wait: bool = True
    ) -> Iterator[LayerStream | None]:
        """A stream that makes the layer of `packed` bytes, or None when the layer is there.

        Without `wait` also None while another makes it. What is not finished when this ends leaves nothing.
        """
        target = layer_path(self._root, diff_id)
        if os.path.isdir(target):
            yield None
            return
        disk.make_private(os.path.join(self._root, "layers"))
        lock = os.path.join(self._root, "ingest", f"layer-{diff_id.partition(':')[2]}.lock")
        disk.make_private(os.path.dirname(lock))
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(disk.claim(lock, unlink=True, timeout=_CLAIM_SECONDS if wait else 0))
            except WherryError:
                if wait:
                    raise
                yield None
                return
            yield None if os.path.isdir(target) else held.enter_context(self._making(diff_id, target, packed, stop))

    def extract(self, file: BinaryIO, directory: str, what: str) -> None:
        """Unpack an archive that is no layer into an empty directory of ours, as confined as a layer."""
        most = self._limits.bytes_for(os.fstat(file.fileno()).st_size)

        def judge(words: list[str], _digest: str | None) -> None:
            if words[0].split()[:1] != ["ok"]:
                why = ": ".join(word for word in words[1:3] if word) or "no report"
                raise WherryError(Kind.INVALID, f"cannot unpack {what}: {why}", hint="it is damaged or hostile")

        stream = LayerStream(self._start(directory, most), "sha256", most, threading.Event(), judge)
        try:
            while not stream.ended and (chunk := file.read(_CHUNK)):
                stream.write(chunk)
            stream.finish()
        finally:
            stream.close()

    @contextlib.contextmanager
    def _making(self, diff_id: str, target: str, packed: int, stop: threading.Event) -> Iterator[LayerStream]:
        parent = os.path.dirname(target)
        temporary = os.path.join(parent, disk.fresh_name(".tmp-"))
        os.mkdir(temporary, 0o700)
        held = disk.try_lock(temporary)  # tells gc that someone works here

        def publish(words: list[str], digest: str | None) -> None:
            entries, size = self._judge(words, diff_id, digest)
            disk.dump_json(os.path.join(temporary, "size.json"), {"bytes": size, "entries": entries})
            os.rename(temporary, target)
            disk.fsync_dir(parent)

        try:
            os.mkdir(os.path.join(temporary, "fs"), 0o755)
            os.chmod(os.path.join(temporary, "fs"), 0o755)  # noqa: S103 - a root directory; what is above is 0700
            most = self._limits.bytes_for(packed)
            child = self._start(os.path.join(temporary, "fs"), most)
            stream = LayerStream(child, diff_id.partition(":")[0], most, stop, publish)
            try:
                yield stream
            finally:
                stream.close()
        finally:
            if os.path.isdir(temporary):  # not published
                self._discard(temporary)
            os.close(held)

    @staticmethod
    def _discard(temporary: str) -> None:
        fd = os.open(os.path.dirname(temporary), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(os.path.basename(temporary), fd)
        finally:
            os.close(fd)

    def _start(self, directory: str, most: int) -> _Child:
        helper = self._helper()
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                arguments = [f"--max-bytes={most}", f"--max-entries={self._limits.entries}"]
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
    kind, hint = _UNPACK_KINDS.get(number, (Kind.INVALID, "the image is damaged or hostile"))
    where = f" (entry {entry}, {path!r})" if path else ""
    words = "" if number == errno.EPROTO else f": {os.strerror(number)}"
    return WherryError(kind, f"cannot unpack layer {diff_id}: {what}{where}{words}", hint=hint)


class _Cancelled(WherryError):
    def __init__(self) -> None:
        super().__init__(Kind.CONFLICT, "cancelled")


class _Packed:
    """Packed bytes on their way from the thread that gets them to the one that inflates."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(_QUEUE)
        self._left = memoryview(b"")
        self._ended = False

    def put(self, data: bytes) -> None:
        self._queue.put(data)

    def read(self, size: int, /) -> bytes:
        if not self._left and not self._ended:
            data = self._queue.get()
            self._left, self._ended = memoryview(data), not data
        part, self._left = self._left[:size], self._left[size:]
        return bytes(part)

    def drain(self) -> None:
        """Take what still comes, so that nobody waits for room."""
        while not self._ended:
            self._ended = not self._queue.get()


class LayerStream:
    """Packed bytes in, a layer out: one thread inflates, one hashes and writes to the helper, while more bytes come.

    A failure shows in `finish` only; `ended` tells that more bytes would be for nothing.
    """

    def __init__(
        self,
        child: _Child,
        algorithm: str,
        most: int,
        stop: threading.Event,
        publish: Callable[[list[str], str | None], None],
    ) -> None:
        self._child, self._most, self._stop, self._publish = child, most, stop, publish
        self._packed = _Packed()
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._hash = hashlib.new(algorithm)
        self._broken_pipe = False  # the helper has ended: its report says why
        self._error: BaseException | None = None
        self._open = True
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._inflate, self._unpack)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> bool:
        return self._broken_pipe or self._error is not None

    def write(self, data: bytes) -> None:
        """The next packed bytes; waits where the kernel is slower."""
        if data and not self.ended:
            self._packed.put(data)

    def finish(self) -> None:
        """All bytes are there: compare the diff id and publish the layer, synced; else say why not."""
        self._join()
        if self._error is not None:
            raise self._error
        words = self._child.report()
        self._publish(words, None if self._broken_pipe else self._hash.hexdigest())

    def close(self) -> None:
        """End the threads and the helper, whatever they do."""
        if self._open:
            self._error = self._error or _Cancelled()
            self._child.kill()
            self._join()
        self._child.close()

    def _join(self) -> None:
        if self._open:
            self._open = False
            self._packed.put(b"")
            for thread in self._threads:
                thread.join()

    def _inflate(self) -> None:
        try:
            total = 0
            for chunk in inflate(self._packed):
                total += len(chunk)
                self._check(total)
                if self.ended:
                    break
                self._chunks.put(chunk)
        except broken_streams() as error:
            self._error = WherryError(Kind.INVALID, f"a layer's compressed data is damaged: {error}")
        except BaseException as error:
            self._error = error
        finally:
            self._chunks.put(None)
            self._packed.drain()

    def _check(self, total: int) -> None:
        if self._stop.is_set():
            raise _Cancelled
        if total > self._most:
            raise WherryError(Kind.INVALID, f"a layer inflates to more than {self._most} bytes",
                              hint="this looks like a decompression bomb")  # fmt: skip

    def _unpack(self) -> None:
        try:
            while (chunk := self._chunks.get()) is not None:
                if not self.ended:
                    self._hash.update(chunk)
                    self._broken_pipe = not self._child.feed(chunk)
        except BaseException as error:
            self._error = error
            while self._chunks.get() is not None:
                pass
