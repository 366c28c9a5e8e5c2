"""A process that can do nothing but compute: it inflates what comes by one pipe, hashes it, and writes it to another.

What a registry sends is inflated by C libraries. They run here, after a seccomp filter that leaves no path, no socket
and no other process (invariant 6), before the first byte. Decides nothing else. `Worker` is its owner's side.

    one message for each layer: "ALGORITHM MOST" with three descriptors: packed bytes, inflated bytes, the report's pipe
    the report: "ok HEX BYTES", or "fail KIND WORDS"
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from wherry.errors import Kind, WherryError
from wherry.image.inflate import broken_streams, inflate

__all__ = ["Worker", "main", "verdict"]

_QUEUE = 8  # chunks between the two threads of a layer
_ASK_MAX = 256
_REPORT_MAX = 1024
_MEMORY = 3 << 30  # of addresses: zstd's windows of four layers at once, and the stacks of threads
_ALGORITHMS = ("sha256", "sha512")
_BOOT = "import sys; sys.path[:0] = sys.argv[2:]; from wherry.image.worker import main; main(int(sys.argv[1]))"


# ---- the owner's side


class Worker:
    """Started with the first layer; ends with its owner, whatever becomes of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._pid = 0

    def begin(self, algorithm: str, most: int, packed: int, inflated: int, report: int) -> None:
        """Inflate from `packed` to `inflated`, at most `most` bytes. The descriptors stay the caller's."""
        ask, fds = [f"{algorithm} {most}".encode()], [packed, inflated, report]
        with self._lock:
            try:
                socket.send_fds(self._sock or self._start(), ask, fds)
            except ConnectionError:  # it was killed
                self._end()
                socket.send_fds(self._start(), ask, fds)

    def start(self) -> None:
        """Start it before it is needed: until its first byte Python takes 30 ms."""
        with self._lock:
            if self._sock is None:
                self._start()

    def close(self) -> None:
        """End and reap it."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._sock is None:
            return
        self._sock.close()
        self._sock = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # our own child, not yet waited for
        os.waitpid(self._pid, 0)

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            words = [sys.executable, "-I", "-S", "-c", _BOOT, "3", *(path for path in sys.path if path)]
            self._pid = os.posix_spawn(
                sys.executable, words, {},
                file_actions=[(os.POSIX_SPAWN_DUP2, its.fileno(), 3), (os.POSIX_SPAWN_DUP2, null, 0),
                              (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)],
                setsigdef=[signal.SIGINT, signal.SIGPIPE], setsigmask=[],
            )  # fmt: skip
        finally:
            its.close()
            os.close(null)
        self._sock = ours
        return ours


def verdict(report: int) -> str:
    """The digest in hex that a layer's report tells; else its error."""
    text = b""
    while len(text) < _REPORT_MAX and (part := os.read(report, _REPORT_MAX - len(text))):
        text += part
    state, _, rest = text.decode("utf-8", "backslashreplace").partition(" ")
    if state == "ok":
        return rest.partition(" ")[0]
    kind, _, words = rest.partition(" ")
    if state != "fail" or kind not in set(Kind):
        raise WherryError(Kind.INTERNAL, "the process that inflates layers ended without a report")
    bomb = "inflates to more" in words
    raise WherryError(Kind(kind), words, hint="this looks like a decompression bomb" if bomb else "")


# ---- the process


def main(control: int) -> None:
    """Serve until the owner is gone."""
    _prepare()
    with socket.socket(fileno=control) as sock:
        _confine(control)
        while True:
            data, fds, _, _ = socket.recv_fds(sock, _ASK_MAX, 3)
            if not data:
                os._exit(0)
            algorithm, most = data.decode().split()
            threading.Thread(target=_layer, args=(fds, algorithm, int(most)), daemon=True).start()


def _prepare() -> None:
    """What libraries load at their first use: later they may open nothing."""
    broken_streams()
    for algorithm in _ALGORITHMS:
        hashlib.new(algorithm, b"x").hexdigest()
    for name in ("utf-8", "ascii", "idna"):
        with contextlib.suppress(LookupError):
            "".encode(name)
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def _confine(control: int) -> None:
    from wherry.kernel import shim

    os.closerange(control + 1, 1 << 16)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is its owner's, who ends it
    for what, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError):  # it is lower already
            resource.setrlimit(what, (most, most))
    shim.only_compute()


class _Pipe:
    """A descriptor to read from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        return os.read(self._fd, size)


class _Refused(Exception):
    """(kind, words) of a report."""


def _layer(fds: Sequence[int], algorithm: str, most: int) -> None:
    packed, inflated, report = fds
    try:
        words = _carry(packed, inflated, algorithm, most)
    except _Refused as error:
        words = f"fail {error.args[0]} {error.args[1]}"
    except MemoryError:
        words = f"fail {Kind.EXHAUSTED.value} no memory left to inflate a layer"
    except Exception as error:  # told, and no reason to end the other layers
        words = f"fail {Kind.INTERNAL.value} {type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        os.write(report, words.encode("utf-8", "backslashreplace")[:_REPORT_MAX])
    for fd in fds:
        os.close(fd)


def _carry(packed: int, inflated: int, algorithm: str, most: int) -> str:
    """Inflate here; hash and write in a second thread."""
    chunks: queue.Queue[bytes] = queue.Queue(_QUEUE)
    hashed = hashlib.new(algorithm)
    failed: list[OSError] = []

    def drain() -> None:
        while chunk := chunks.get():
            if not failed:
                hashed.update(chunk)
                _write(inflated, chunk, failed)

    worker = threading.Thread(target=drain, daemon=True)
    worker.start()
    total = 0
    try:
        for chunk in inflate(_Pipe(packed)):
            total += len(chunk)
            if total > most:
                raise _Refused(Kind.INVALID.value, f"a layer inflates to more than {most} bytes")
            if failed:
                break
            chunks.put(chunk)
    except broken_streams() as error:
        raise _Refused(Kind.INVALID.value, f"a layer's compressed data is damaged: {error}") from error
    finally:
        chunks.put(b"")
        worker.join()
    return f"ok {hashed.hexdigest()} {total}" if not failed else f"fail {Kind.CONFLICT.value} nobody reads it any more"


def _write(fd: int, data: bytes, failed: list[OSError]) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        failed.append(error)
