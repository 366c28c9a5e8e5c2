"""The client's side of a monitor's attach socket, and the loop that relays a terminal or pipes over it.

Frames (native/monitor.h): type u8, three zero bytes, length u32 big endian, payload. Decides when a relay ends.
Refuses to know what a container is, and to touch terminal modes: faces put terminals into raw mode and back.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import (
    ATTACH_ACK,
    ATTACH_CLAIM,
    ATTACH_DONE,
    ATTACH_EOF,
    ATTACH_EXIT,
    ATTACH_QUIET,
    ATTACH_REOPEN,
    ATTACH_RESIZE,
    ATTACH_STDERR,
    ATTACH_STDIN,
    ATTACH_STDOUT,
    ExitStatus,
)

__all__ = [
    "CHUNK", "AttachStream", "DetachKeys", "End", "Relayed", "connect", "decode_exit", "detach_keys", "pair", "relay",
]

CHUNK = 1 << 16
_HEADER = struct.Struct(">B3xI")
_FRAME_MAX = 1 << 20  # the monitor sends at most 64 KiB; more is not a monitor


class AttachStream:
    """One connection to a monitor. Blocking, unless `waits` is unset; usable by one reader and one writer at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.waits = True
        self._data = bytearray()
        self._at = 0
        self._out = bytearray()

    def __enter__(self) -> AttachStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor, to poll for input; -1 once closed."""
        return self._sock.fileno()

    def read(self) -> tuple[int, bytes] | None:
        """The next frame as (type, payload); blocks. None: the monitor has hung up."""
        while (frame := self.take()) is None:
            if not self.fill():
                return None
        return frame

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Every frame up to the end of the stream."""
        while (frame := self.read()) is not None:
            yield frame

    def fill(self) -> bool:
        """Read once from the socket; False at its end."""
        try:
            data = self._sock.recv(4 * CHUNK, 0 if self.waits else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data
        return bool(data)

    def take(self) -> tuple[int, bytes] | None:
        """A whole frame out of what has been read, None if there is none yet."""
        start = self._at + _HEADER.size
        if len(self._data) < start:
            return None
        kind, length = _HEADER.unpack_from(self._data, self._at)
        if length > _FRAME_MAX:
            raise WherryError(Kind.INTERNAL, f"attach stream: frame of {length} bytes")
        if len(self._data) < start + length:
            return None
        self._at = start + length
        with memoryview(self._data) as view:
            return kind, bytes(view[start : start + length])

    def _send(self, kind: int, payload: bytes = b"") -> None:
        self.queue(kind, payload)
        self.flush(wait=self.waits)

    def queue(self, kind: int, payload: bytes = b"") -> None:
        """Add a frame to what `flush` sends."""
        self._out += _HEADER.pack(kind, len(payload)) + payload

    def flush(self, wait: bool = False) -> bool:
        """Send what is queued, as much as goes without waiting; whether all of it is gone."""
        try:
            while self._out:
                del self._out[: self._sock.send(self._out, 0 if wait else socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()  # the end shows on the reading side, as EXIT or the end of the stream
        return True

    def write(self, data: bytes) -> None:
        """Send bytes to the process's standard input; blocks while it does not read, if it `waits`."""
        for start in range(0, len(data), CHUNK):
            self._send(ATTACH_STDIN, data[start : start + CHUNK])

    def eof(self) -> None:
        """No more input: closes the process's standard input if it was opened for this client."""
        self._send(ATTACH_EOF)

    def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""
        self._send(ATTACH_RESIZE, struct.pack(">HH", rows & 0xFFFF, cols & 0xFFFF))

    def claim(self) -> None:
        """Promise to do the cleanup: the monitor starts its command only if we vanish before `done`."""
        self._send(ATTACH_CLAIM)

    def done(self) -> None:
        """The cleanup is done; the monitor can go."""
        self._send(ATTACH_DONE)

    def let_go(self) -> None:
        """`done`, and hang up."""
        try:
            self.done()
        finally:
            self.close()

    def quiet(self) -> None:
        """Ask for nothing but EXIT: output that we would not read must not hold the container back."""
        self._send(ATTACH_QUIET)

    def reopen_log(self) -> int:
        """Let the log go on in a new file at the same path; the errno of that, 0 for success, -1 if the end was faster.
        Output that comes meanwhile is not kept: for a connection of its own."""
        self.quiet()
        self._send(ATTACH_REOPEN)
        for kind, payload in self.frames():
            if kind == ATTACH_REOPEN:
                return int.from_bytes(payload, "big")
        return -1

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def decode_exit(payload: bytes) -> ExitStatus:
    """The status in an EXIT frame."""
    code, oom = struct.unpack_from(">iB", payload)
    return ExitStatus(code=code, oom=bool(oom))


def pair() -> tuple[AttachStream, int]:
    """A connected stream and the monitor's end of it: slot "client" of a plan. The caller closes both."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    return AttachStream(ours), theirs.detach()


def connect(path: str, timeout: float = 5.0) -> AttachStream:
    """Connect to the attach socket of a running container."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _send_timeout(sock, timeout)  # waits for a place in the queue; settimeout would give up at once (EAGAIN)
        _dial(sock, path)
        _send_timeout(sock, 0)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise WherryError(Kind.CONFLICT, "cannot attach: the container is not running") from None
    except OSError as error:
        sock.close()
        raise WherryError(Kind.UNAVAILABLE, f"cannot attach: {error.strerror or error}") from error
    return AttachStream(sock)


def _send_timeout(sock: socket.socket, seconds: float) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))


def _dial(sock: socket.socket, path: str) -> None:
    # sun_path holds 107 bytes: reach a longer one through its directory's descriptor
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


class End(Enum):
    """Why a relay ended."""

    EXIT = "exit"
    DETACHED = "detached"
    LOST = "lost"  # the monitor hung up without a status


class Relayed(NamedTuple):
    """How a relay ended; `status` with EXIT only."""

    end: End
    status: ExitStatus | None = None


class DetachKeys:
    """Finds the detach sequence in a stream of key strokes; holds back what may be the start of it."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What may pass on, and whether the sequence is complete."""
        if not self._keys:
            return data, False
        data = self._held + data
        found = data.find(self._keys)
        if found >= 0:
            self._held = b""
            return data[:found], True
        keep = next(n for n in range(min(len(data), len(self._keys) - 1), -1, -1) if data.endswith(self._keys[:n]))
        self._held = self._keys[:keep]
        return data[: len(data) - keep], False


def detach_keys(text: str) -> bytes:
    """docker's notation, "ctrl-p,ctrl-q", as bytes; "" means no detaching."""
    return b"".join(_key(part) for part in text.split(",")) if text else b""


def _key(part: str) -> bytes:
    control = part.removeprefix("ctrl-")
    if control != part and len(control) == 1 and control.lower() in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
        return bytes([ord(control.upper()) & 0x1F])
    if len(part) == 1 and part.isascii():
        return part.encode()
    raise WherryError(Kind.INVALID, f"invalid detach keys ({part!r})", hint='like "ctrl-p,ctrl-q" or "a,b"')


def relay(  # noqa: PLR0917  # three descriptors in their order
    stream: AttachStream,
    stdin_fd: int | None,
    stdout_fd: int | None,
    stderr_fd: int | None,
    keys: bytes = b"",
    wake_fd: int | None = None,
    on_wake: Callable[[], None] | None = None,
) -> Relayed:
    """Copy until the process ends, the user detaches or the monitor is gone.

    `stdin_fd` None: no input is sent. `wake_fd` readable: `on_wake` is called (it reads the descriptor): window sizes,
    signals. Output goes to descriptors as it comes; one that is closed by its reader swallows the rest.
    """
    return _Relay(stream, {ATTACH_STDOUT: stdout_fd, ATTACH_STDERR: stderr_fd}, keys).run(stdin_fd, wake_fd, on_wake)


class _Relay:
    """One relay. Input is read only when the last of it has been sent, and sending never blocks: a process that waits
    for its output to be read before it reads its input would wait for ever."""

    def __init__(self, stream: AttachStream, sinks: dict[int, int | None], keys: bytes) -> None:
        self._stream, self._sinks, self._keys = stream, sinks, DetachKeys(keys)
        self._ended: Relayed | None = None
        self._selector = selectors.DefaultSelector()
        self._source: int | None = None  # standard input, while it lasts
        self._always_ready = False  # a regular file: epoll refuses those
        self._sending = False

    def run(self, stdin_fd: int | None, wake_fd: int | None, on_wake: Callable[[], None] | None) -> Relayed:
        with self._selector as selector:
            selector.register(self._stream, selectors.EVENT_READ)
            if wake_fd is not None and on_wake is not None:
                selector.register(wake_fd, selectors.EVENT_READ, on_wake)
            if stdin_fd is not None:
                self._listen(stdin_fd)
            while self._ended is None:
                self._turn()
            return self._ended

    def _listen(self, fd: int) -> None:
        self._source = fd
        try:
            self._selector.register(fd, selectors.EVENT_READ, self._input)
        except PermissionError:
            self._always_ready = True

    def _turn(self) -> None:
        eager = self._always_ready and self._source is not None and not self._sending
        for key, events in self._selector.select(0 if eager else None):
            if key.fileobj is not self._stream:
                key.data()
                continue
            if events & selectors.EVENT_WRITE:
                self._flush()
            if events & selectors.EVENT_READ:
                self._output()
        if eager and self._ended is None:
            self._input()

    def _input(self) -> None:
        if self._source is None or self._sending:
            return
        try:
            data = os.read(self._source, CHUNK)
        except OSError:  # EIO: the terminal is gone
            data = b""
        if not data:
            self._stop_input()
            self._stream.queue(ATTACH_EOF)
        passed, detach = self._keys.feed(data)
        if passed:
            self._stream.queue(ATTACH_STDIN, passed)
        self._flush()
        if detach:
            self._ended = Relayed(End.DETACHED)

    def _stop_input(self) -> None:
        if self._source is not None and not self._always_ready:
            self._selector.unregister(self._source)
        self._source = None

    def _flush(self) -> None:
        """Send; while some is left, watch for room and leave the input alone."""
        left = not self._stream.flush()
        if left == self._sending:
            return
        self._sending = left
        write = selectors.EVENT_WRITE if left else 0
        self._selector.modify(self._stream, selectors.EVENT_READ | write)
        if self._source is not None and not self._always_ready:
            if left:
                self._selector.unregister(self._source)
            else:
                self._selector.register(self._source, selectors.EVENT_READ, self._input)

    def _output(self) -> None:
        alive = self._stream.fill()
        while (frame := self._stream.take()) is not None:
            self._frame(*frame)
        if not alive and self._ended is None:
            self._ended = Relayed(End.LOST)

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == ATTACH_EXIT:
            self._ended = Relayed(End.EXIT, decode_exit(payload))
        elif kind != ATTACH_ACK and (sink := self._sinks.get(kind)) is not None:
            self._write(kind, sink, payload)

    def _write(self, kind: int, sink: int, payload: bytes) -> None:
        try:
            view = memoryview(payload)
            while view:
                view = view[os.write(sink, view) :]
        except BrokenPipeError:  # docker's client goes on too: the exit code still matters
            self._sinks[kind] = None
