"""A plugin of the Node Resource Interface, written against the protocol alone: nothing of wherry's framing is used.

    with NriPlugin(socket, "watcher", "10", {"CreateContainer": lambda asked: api.CreateContainerResponse(...)}) as it:
        it.joined()
        ... it.events: (method, request) in the order in which they came

A handler that raises `Refusal` is an error's answer. Every call is served in a thread of its own, as Go's plugins do.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from wherry.daemon.nri import api_pb2 as api
from wherry.daemon.nri import ttrpc_pb2

from .wherry import until

__all__ = ["NriPlugin", "Refusal"]

Handlers = Mapping[str, Callable[[Any], Any]]
SERVICE = api.DESCRIPTOR.services_by_name["Plugin"]
UNIMPLEMENTED = 12


class Refusal(Exception):
    """What a plugin says to a call: a code and a sentence."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class NriPlugin:
    """One plugin and its connection. `events`: the mask that it asks for, 0 is all."""

    def __init__(
        self, path: str | Path, name: str, index: str, handlers: Handlers | None = None, events: int = 0
    ) -> None:
        self.name, self.index, self.mask, self.handlers = name, index, events, dict(handlers or {})
        self.events: list[tuple[str, Any]] = []
        self.configured: Any = None
        self.synchronized: Any = None
        self._parts: Any = api.SynchronizeRequest()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lock = threading.Lock()
        self._answers: dict[int, ttrpc_pb2.Response] = {}
        self._answered = threading.Condition()
        self._next = 1
        self.gone = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> NriPlugin:
        self._thread.start()
        self.call("RegisterPlugin", api.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index), api.Empty)
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        if not self.gone.is_set():
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def joined(self) -> NriPlugin:
        """Wait until it has been synchronized."""
        until(lambda: self.synchronized is not None or self.gone.is_set(), 20, "the plugin is not synchronized")
        assert not self.gone.is_set()
        return self

    def told(self, *methods: str) -> list[Any]:
        """The requests of these calls."""
        return [request for method, request in self.events if method in methods]

    # ---- the wire

    def call(self, method: str, request: Any, kind: Any, timeout: float = 20) -> Any:
        """A call of ours to the runtime."""
        with self._answered:
            stream, self._next = self._next, self._next + 2
        asked = ttrpc_pb2.Request(service=f"{api.DESCRIPTOR.package}.Runtime", method=method,
                                  payload=request.SerializeToString())  # fmt: skip
        self.send(2, stream, 1, asked.SerializeToString())
        with self._answered:
            done = self._answered.wait_for(lambda: stream in self._answers or self.gone.is_set(), timeout)
            assert done, f"no answer to {method}"
            if stream not in self._answers:
                raise ConnectionError(method)
            told = self._answers.pop(stream)
        if told.status.code:
            raise Refusal(told.status.message, told.status.code)
        return kind.FromString(told.payload)

    def send(self, connection: int, stream: int, kind: int, data: bytes) -> None:
        """One message, in one piece."""
        self.raw(struct.pack(">IIIIBB", connection, 10 + len(data), len(data), stream, kind, 0) + data)

    def raw(self, data: bytes) -> None:
        """Any bytes."""
        with self._lock:
            self._socket.sendall(data)

    def _read(self) -> None:
        streams = {1: bytearray(), 2: bytearray()}
        with suppress(OSError):
            while header := self._exactly(8):
                connection, size = struct.unpack(">II", header)
                streams[connection] += self._exactly(size)
                self._take(connection, streams[connection])
        self.gone.set()
        with self._answered:
            self._answered.notify_all()

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self._socket.recv(count - len(found))
            if not part:
                return b""
            found += part
        return found

    def _take(self, connection: int, buffer: bytearray) -> None:
        while len(buffer) >= 10:
            size, stream, kind, _ = struct.unpack_from(">IIBB", buffer)
            if len(buffer) < 10 + size:
                return
            data = bytes(buffer[10 : 10 + size])
            del buffer[: 10 + size]
            if connection == 2:
                assert kind == 2
                with self._answered:
                    self._answers[stream] = ttrpc_pb2.Response.FromString(data)
                    self._answered.notify_all()
            else:
                threading.Thread(target=self._serve, args=(stream, ttrpc_pb2.Request.FromString(data))).start()

    def _serve(self, stream: int, asked: ttrpc_pb2.Request) -> None:
        told = ttrpc_pb2.Response()
        try:
            method = SERVICE.methods_by_name[asked.method]
            assert asked.service == SERVICE.full_name
            assert asked.timeout_nano > 0
            request = getattr(api, method.input_type.name).FromString(asked.payload)
            told.payload = self._handled(asked.method, request).SerializeToString()
        except Refusal as error:
            told.status.code, told.status.message = error.code, str(error)
        with suppress(OSError):
            self.send(1, stream, 2, told.SerializeToString())

    def _handled(self, method: str, request: Any) -> Any:
        if method == "Configure":
            self.configured = request
            return api.ConfigureResponse(events=self.mask)
        if method == "Synchronize":
            return self._synchronize(request)
        self.events.append((method, request))
        answer = self.handlers[method](request) if method in self.handlers else None
        return answer if answer is not None else getattr(api, SERVICE.methods_by_name[method].output_type.name)()

    def _synchronize(self, request: Any) -> Any:
        self._parts.pods.extend(request.pods)
        self._parts.containers.extend(request.containers)
        if request.more:
            return api.SynchronizeResponse(more=True)
        answer = self.handlers["Synchronize"](self._parts) if "Synchronize" in self.handlers else None
        self.synchronized = self._parts
        return answer if answer is not None else api.SynchronizeResponse()
