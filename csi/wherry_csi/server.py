"""The socket: gRPC served by threads, one gate through which every call goes, and the end of work.

The gate turns errors into the spec's codes with a sentence, writes one line a call, and keeps the idle clock. Decides
the code of what the kernel refuses; what else has which code is decided where it is known.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from csi_spec import services

from .config import Config
from .controller import Controller
from .errors import CsiError
from .groups import Groups
from .identity import Identity
from .life import Life
from .metadata import Metadata
from .node import Node

__all__ = ["Busy", "serve"]

_Method = Callable[..., Any]
_Parse = Callable[[bytes], Message]

_THREADS = 16
_CALLS_MAX = 256  # waiting and running; more are told to come again
_MESSAGE_MAX = 4 << 20  # bytes of a request; the fields of the spec leave it far below
_GRACE = 60.0  # seconds that running calls have when it is told to end
_PARTING = 0.5  # seconds that a call takes at most, from its connection on, to begin

#: what is written to the log of a request: never secrets, mount flags or contexts (spec, csi_secret)
_LOGGED = (
    "name", "volume_id", "source_volume_id", "source_volume_ids", "snapshot_id", "group_snapshot_id",
    "base_snapshot_id", "target_snapshot_id", "node_id", "staging_target_path", "target_path", "volume_path",
)
#: errno and the code that says what the caller can do about it; all others are INTERNAL
_CODES = {
    errno.ENOSPC: ("RESOURCE_EXHAUSTED", "the pool is full"),
    errno.EDQUOT: ("RESOURCE_EXHAUSTED", "a quota is used up"),
    errno.EMFILE: ("RESOURCE_EXHAUSTED", "the driver has no descriptors left"),
    errno.ENFILE: ("RESOURCE_EXHAUSTED", "the node has no descriptors left"),
    errno.ENOMEM: ("RESOURCE_EXHAUSTED", "the node has no memory left"),
    errno.EFBIG: ("OUT_OF_RANGE", "the pool's file system has no files that large"),
    errno.EROFS: ("UNAVAILABLE", "the pool is read-only"),
    errno.EIO: ("UNAVAILABLE", "the pool's disk fails"),
    errno.ENODEV: ("UNAVAILABLE", "the pool's disk is gone"),
    errno.ENXIO: ("UNAVAILABLE", "a device is gone"),
    errno.ESTALE: ("UNAVAILABLE", "the pool's file system was replaced"),
    errno.ENOTCONN: ("UNAVAILABLE", "the pool's file system has no server"),
    errno.ESHUTDOWN: ("UNAVAILABLE", "the pool's file system was shut down"),
    errno.EUCLEAN: ("UNAVAILABLE", "the pool's file system is damaged"),
    errno.EBUSY: ("FAILED_PRECONDITION", "it is in use"),
    errno.ENAMETOOLONG: ("INVALID_ARGUMENT", "a path is too long"),
    errno.ELOOP: ("FAILED_PRECONDITION", "a symlink is in the way"),
    errno.ENOTDIR: ("FAILED_PRECONDITION", "a part of the path is no directory"),
}


class Busy:
    """How many calls run, and since when none does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._since = time.monotonic()

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            self._since = time.monotonic()

    def idle(self) -> float:
        """Seconds without a call."""
        with self._lock:
            return 0.0 if self._running else time.monotonic() - self._since


def told(error: BaseException) -> tuple[str, str]:
    """(code, sentence) of whatever a call ended with."""
    if isinstance(error, CsiError):
        return error.code, str(error)
    if isinstance(error, OSError):
        code, why = _CODES.get(error.errno or 0, ("INTERNAL", "the kernel refused"))
        about = f" ({error.filename})" if error.filename else ""
        return code, f"{why}: {error.strerror or error}{about}"
    return "INTERNAL", f"a defect of the driver: {type(error).__name__}: {error}"


class _Gate(grpc.ServerInterceptor):
    """What every call goes through."""

    def __init__(self, busy: Busy) -> None:
        self._busy = busy

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of a method, with the gate before it. Requests are parsed in here: a bad one is the caller's."""
        handler = continuation(details)
        if handler is None:
            return None
        verb = details.method.rpartition("/")[2]
        if handler.unary_stream is not None:
            streaming = self._streaming(verb, handler.unary_stream, handler.request_deserializer)
            return grpc.unary_stream_rpc_method_handler(streaming, None, handler.response_serializer)
        plain = self._plain(verb, handler.unary_unary, handler.request_deserializer)
        return grpc.unary_unary_rpc_method_handler(plain, None, handler.response_serializer)

    def _plain(self, verb: str, method: _Method, parse: _Parse) -> _Method:
        def call(raw: bytes, context: grpc.ServicerContext) -> Any:
            with self._busy, _Told(verb, context) as told_:
                return method(told_.parsed(raw, parse), context)

        return call

    def _streaming(self, verb: str, method: _Method, parse: _Parse) -> _Method:
        def call(raw: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._busy, _Told(verb, context) as told_:
                yield from method(told_.parsed(raw, parse), context)

        return call


class _Told:
    """One call's line in the log, and its status."""

    def __init__(self, verb: str, context: grpc.ServicerContext) -> None:
        self._verb, self._context, self._about, self._began = verb, context, "", time.monotonic()

    def parsed(self, raw: bytes, parse: _Parse) -> Message:
        """The request."""
        try:
            request = parse(raw)
        except DecodeError as error:
            raise CsiError("INVALID_ARGUMENT", "the request cannot be parsed: is it CSI 1.x?") from error
        self._about = _fields(request)
        return request

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        took = (time.monotonic() - self._began) * 1000
        if error is None or isinstance(error, GeneratorExit):
            _log(f"{self._verb} {self._about}OK {took:.1f} ms")
            return
        code, sentence = told(error)
        _log(f"{self._verb} {self._about}{code} {took:.1f} ms: {sentence}")
        if not isinstance(error, CsiError | OSError):
            traceback.print_exception(error)
        self._context.abort(grpc.StatusCode[code], sentence)


def _fields(request: Message) -> str:
    """The part of a request that may be in a log; quoted, so that no name can write a line of its own."""
    words = []
    for name in _LOGGED:
        if value := getattr(request, name, None):
            plain = value if isinstance(value, str) else list(value)
            words.append(f"{name}={json.dumps(plain)[:300]} ")
    return "".join(words)


def _log(line: str) -> None:
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    with suppress(OSError, ValueError):  # nobody reads it any more
        print(plain, file=sys.stderr, flush=True)


def _notify(state: str) -> None:
    """sd_notify(3)."""
    if not (path := os.environ.get("NOTIFY_SOCKET", "")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)


def _clear(path: str) -> None:
    """Make room for the socket: its directory is made, a stale one removed. CsiError if a driver answers there, or if
    what is there is no socket."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # one that has more callers than it takes is alive (EAGAIN)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
        except ConnectionRefusedError as error:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise CsiError("FAILED_PRECONDITION", f"{path} is no socket: choose another --endpoint") from error
            os.unlink(path)
            return
    raise CsiError("FAILED_PRECONDITION", f"somebody serves {path} already: stop it, or choose another --endpoint")


def _server(life: Life, busy: Busy) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, "call"),
        interceptors=[_Gate(busy)],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_MAX),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=_CALLS_MAX,
    )
    node = Node(life)
    servicers = {
        "Identity": Identity(life),
        "Controller": Controller(life, node.limited),
        "GroupController": Groups(life),
        "SnapshotMetadata": Metadata(life),
        "Node": node,
    }
    server.add_generic_rpc_handlers([services.handlers(name, servicer) for name, servicer in servicers.items()])
    return server


def serve(config: Config, life: Life) -> None:
    """Serve until SIGTERM or SIGINT, or until nothing was asked for `config.idle` seconds. Running calls end first.

    Errors of the start are CsiError, PoolHeld or OSError.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    life.open(patience=3.0)
    busy = Busy()
    server = _server(life, busy)
    _clear(config.socket)
    old = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix://{config.socket}")
    except RuntimeError as error:
        raise CsiError("INTERNAL", f"{config.socket} cannot be served: {error}") from error
    finally:
        os.umask(old)
    server.start()
    _notify("READY=1")
    pools = ", ".join(f"{pool.name} ({pool.facts.fs})" if pool.up else pool.trouble for pool in life.pools)
    _log(f"serving {config.endpoint} for node {config.node_id}; pools: {pools}")
    _until_left(config.socket, stop, config.idle, lambda: busy.idle() if life.reaper.idle else 0.0)
    _notify("STOPPING=1")
    with suppress(FileNotFoundError):
        os.unlink(config.socket)  # whoever comes now starts another
    server.stop(_GRACE).wait()
    life.close()


def _until_left(path: str, stop: threading.Event, most: float, idle: Callable[[], float]) -> None:
    """Until it is to stop, or is idle for good: whoever connected just before would have his call cancelled, so the
    socket is put aside for a moment first, and back if somebody calls."""
    aside = f"{path}.aside"
    while _is_idle(stop, most, idle):
        began = time.monotonic()
        try:
            os.replace(path, aside)
            stop.wait(_PARTING)
            if idle() < time.monotonic() - began:
                os.link(aside, path)
                continue
        except (FileNotFoundError, FileExistsError):  # nobody could reach us any more
            pass
        finally:
            with suppress(FileNotFoundError):
                os.unlink(aside)
        return


def _is_idle(stop: threading.Event, most: float, idle: Callable[[], float]) -> bool:
    """Wait until it is to stop (False), or nothing was done for `most` seconds (0: whatever that is)."""
    while not stop.wait(min(max(most - idle(), 0.05), 3600.0) if most else None):
        if idle() >= most:
            return True
    return False
