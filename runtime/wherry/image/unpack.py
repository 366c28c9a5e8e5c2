"""Packed bytes become a layer: through the worker that inflates and hashes into the confined helper (native/unpack.c).

Decides how much may come out of a layer and that it is published only when its diff id is right. The tar format is the
helper's; what images are is the store's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image import disk, formats
from wherry.image.snapshot import layer_path
from wherry.image.worker import Worker, verdict
from wherry.kernel.files import remove_tree

__all__ = ["LayerLimits", "LayerStream", "Unpacker"]

_CHUNK = 256 << 10
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


def pipe() -> tuple[int, int]:
    """A wide one: (read, write), above the descriptors that the helper's are arranged among."""
    import fcntl

    with contextlib.ExitStack() as low:
        ends = os.pipe2(os.O_CLOEXEC)
        for fd in ends:
            low.callback(os.close, fd)
        with contextlib.suppress(OSError):  # above the user's pipe limit: slower, no more
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        return _high(ends[0]), _high(ends[1])


def _high(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)


class _Child:
    """One helper process with its pipes; always reaped."""

    def __init__(self, helper: int, directory: int, arguments: list[str]) -> None:
        stdin, self.input = pipe()
        self.output, stdout = pipe()
        program, target = _high(helper), _high(directory)
        self._lock = threading.Lock()
        self._reaped = False
        try:
            self.pid = os.posix_spawn(
                f"/proc/self/fd/{program}", ["wherry-helper", "unpack", *arguments], {},
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1),
                              (os.POSIX_SPAWN_DUP2, target, 3)],
                setsigdef=[signal.SIGPIPE], setsigmask=[],
            )  # fmt: skip
        except BaseException:
            self.end_input()
            os.close(self.output)
            raise
        finally:
            for fd in (stdin, stdout, program, target):
                os.close(fd)

    def end_input(self) -> None:
        """Our end of its standard input."""
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def report(self) -> list[str]:
        """Wait for the end; the words of its report."""
        text = b""
        while len(text) < _REPORT_MAX and (part := os.read(self.output, _REPORT_MAX - len(text))):
            text += part
        return text.decode("utf-8", "backslashreplace").split("\n", 2)

    def kill(self) -> None:
        """End it, whatever it does; also for other threads than the one that reads its report."""
        with self._lock:
            if not self._reaped:
                os.kill(self.pid, signal.SIGKILL)  # our own child, not yet waited for: the pid is its

    def close(self) -> None:
        """Reap it; one that still runs is killed first."""
        self.kill()
        self.end_input()
        os.close(self.output)
        with self._lock:
            os.waitpid(self.pid, 0)
            self._reaped = True


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
        self._unfit: set[str] = set()  # layers that the format cannot hold
        self._userxattr = userxattr
        self._helper = helper or _installed_helper
        self._limits = limits or LayerLimits()
        self._worker = Worker()
        self._children: set[_Child] = set()

    def abort(self) -> None:
        """End what works on layers, however it hangs: who waits for it fails."""
        for child in list(self._children):
            child.kill()
        self._worker.close()

    def expect(self) -> None:
        """There will be layers to unpack."""
        self._worker.start()

    def close(self) -> None:
        """End the process that inflates."""
        self._worker.close()

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, diff_id: str) -> bool:
        """Whether the layer is there; nothing is locked or made."""
        return os.path.isdir(layer_path(self._root, diff_id))

    @property
    def format(self) -> formats.Format:
        """What layers are unpacked as here, from now on."""
        return self.choice[0]

    @functools.cached_property
    def choice(self) -> tuple[formats.Format, str]:
        """The format, and why it is not erofs where a probe said so."""
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
            with self._child(temporary, 0, formats.EROFS) as child:
                child.end_input()
                words = child.report()
            return formats.refusal(temporary) if words[0].startswith("ok ") else " ".join(words[1:2]) or "no report"
        finally:
            self._discard(temporary)
            os.close(held)

    def extract(self, file: BinaryIO, directory: str, what: str) -> bool:
        """Unpack an archive that is no layer into an empty directory of ours, as confined as a layer is.

        False where the file does not even begin as one.
        """
        most = self._limits.bytes_for(os.fstat(file.fileno()).st_size)
        found: list[str] = []
        with self._child(directory, most, formats.DIRECTORY) as child:
            stream = LayerStream(child, threading.Event(), lambda words, _digest: found.extend(words))
            try:
                stream.begin(self._worker, "sha256:", most)
                while not stream.ended and (chunk := file.read(_CHUNK)):
                    stream.write(chunk)
                stream.finish()
            finally:
                stream.close()
        return _unpacked(found, what)

    def unpack(self, blob: str, diff_id: str, report: Callable[[int, int], None], stop: threading.Event) -> bool:
        """Unpack the file `blob`; False when the layer was there. `report` gets (packed bytes done, of)."""
        try:
            return self._unpack(blob, diff_id, report, stop)
        except formats.DoesNotFitError:  # as a directory, then
            return self._unpack(blob, diff_id, report, stop)

    def _unpack(self, blob: str, diff_id: str, report: Callable[[int, int], None], stop: threading.Event) -> bool:
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
                held.enter_context(disk.claim(lock, unlink=True, timeout=_CLAIM_SECONDS if wait else 0, stop=stop))
            except WherryError:
                if wait:
                    raise
                yield None
                return
            yield None if os.path.isdir(target) else held.enter_context(self._making(diff_id, target, packed, stop))

    @contextlib.contextmanager
    def _making(self, diff_id: str, target: str, packed: int, stop: threading.Event) -> Iterator[LayerStream]:
        how = formats.DIRECTORY if diff_id in self._unfit else self.format  # it may refuse: first
        parent = os.path.dirname(target)
        temporary = os.path.join(parent, disk.fresh_name(".tmp-"))
        os.mkdir(temporary, 0o700)
        held = disk.try_lock(temporary)  # tells gc that someone works here

        def publish(words: list[str], digest: str) -> None:
            try:
                entries, size = self._judge(words, diff_id, digest)
            except formats.DoesNotFitError:
                self._unfit.add(diff_id)
                raise
            facts = {"bytes": size, "entries": entries, "format": how.name}
            disk.dump_json(os.path.join(temporary, "size.json"), facts)
            os.rename(temporary, target)
            disk.fsync_dir(parent)

        try:
            os.mkdir(os.path.join(temporary, "fs"), 0o755)
            os.chmod(os.path.join(temporary, "fs"), 0o755)  # noqa: S103 - a root directory; what is above is 0700
            most = self._limits.bytes_for(packed)
            with self._child(os.path.join(temporary, how.place), most, how) as child:
                stream = LayerStream(child, stop, publish)
                try:
                    stream.begin(self._worker, diff_id, most)
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

    @contextlib.contextmanager
    def _child(self, directory: str, most: int, how: formats.Format) -> Iterator[_Child]:
        child = self._start(directory, most, how)
        self._children.add(child)
        try:
            yield child
        finally:
            self._children.discard(child)
            child.close()

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
    def _judge(words: list[str], diff_id: str, digest: str) -> tuple[int, int]:
        first = words[0].split()
        if first[:1] == ["fail"] and len(words) == 3 and len(first) == 3:
            raise _refusal(diff_id, int(first[1]), int(first[2]), words[1], words[2])
        if first[:1] != ["ok"] or len(first) != 3:
            raise WherryError(Kind.INTERNAL, f"the unpacking of layer {diff_id} ended without a report",
                              hint="it was killed, or worked for more than an hour of a CPU's time")  # fmt: skip
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


def _unpacked(words: list[str], what: str) -> bool:
    """What the helper's report says of an archive."""
    first = words[0].split()
    if first[:1] == ["ok"]:
        return True
    if first[:1] == ["fail"] and len(first) == 3 and first[1:] == [str(errno.EPROTO), "0"]:
        return False
    why = ": ".join(word for word in words[1:3] if word) or "no report"
    raise WherryError(Kind.INVALID, f"cannot unpack {what}: {why}", hint="it is damaged or hostile")


class _Cancelled(WherryError):
    def __init__(self) -> None:
        super().__init__(Kind.CONFLICT, "cancelled")


class LayerStream:
    """Packed bytes in, a layer out: to the worker that inflates and hashes, from there to the helper that unpacks.

    A failure shows in `finish` only; `ended` tells that more bytes would be for nothing.
    """

    def __init__(self, child: _Child, stop: threading.Event, publish: Callable[[list[str], str], None]) -> None:
        self._child, self._stop, self._publish = child, stop, publish
        self._packed = self._report = -1
        self.ended = False

    def begin(self, worker: Worker, diff_id: str, most: int) -> None:
        """Have the worker wait for the first byte."""
        packed, self._packed = pipe()
        self._report, report = pipe()
        try:
            worker.begin(diff_id.partition(":")[0], most, packed, self._child.input, report)
        finally:
            os.close(packed)
            os.close(report)
            self._child.end_input()  # the worker's now

    def write(self, data: bytes) -> None:
        """The next packed bytes; waits where the unpacking is slower."""
        view = memoryview(data)
        try:
            while view and not self.ended:
                if self._stop.is_set():
                    raise _Cancelled
                view = view[os.write(self._packed, view) :]
        except BrokenPipeError:  # its report says why
            self.ended = True

    def finish(self) -> None:
        """All bytes are there: compare the diff id and publish the layer, synced; else say why not."""
        if self._stop.is_set():
            raise _Cancelled
        self._end_packed()
        words = self._child.report()
        self._publish(words, self._digest())

    def _digest(self) -> str:
        try:
            return verdict(self._report)
        except WherryError as error:
            if error.kind is Kind.CONFLICT:  # the helper ended first: its report says why
                return ""
            raise

    def close(self) -> None:
        """Let go of the worker; the helper is its starter's."""
        self._end_packed()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def _end_packed(self) -> None:
        if self._packed >= 0:
            os.close(self._packed)
            self._packed = -1
