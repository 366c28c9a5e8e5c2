"""The plugins that are there: how one comes, what each is told, in which order, and how one goes.

Decides that events are told one at a time, to each plugin by its index, and that a plugin which fails to keep the
protocol or its deadline is let go: what was waiting for it goes on without it. Knows pods and containers only as
messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

import wherry
from wherry.daemon import sockets
from wherry.errors import Kind, WherryError

from . import api_pb2 as pb
from . import ttrpc
from .link import Gone, Link, Refused

__all__ = ["VERSION", "Node", "Plugins"]

_log = logging.getLogger("wherryd.nri")
_T = TypeVar("_T")
VERSION = "v0.12.0"  # whose api.proto ours says
_PACKAGE = pb.DESCRIPTOR.package
_REGISTRATION = 5.0  # seconds that a connection has to say who it is
_SYNCHRONIZATION = 10.0  # and a plugin to take in all that is there
_GOODBYE = 1.0
_PLUGINS_MAX = 64
_CHUNK = 2 << 20  # bytes of one Synchronize, as long as no object is larger
_ALL = (1 << (pb.LAST - 1)) - 1
_PLUGIN = pb.DESCRIPTOR.services_by_name["Plugin"]
_EVENTS = {
    "RunPodSandbox": pb.RUN_POD_SANDBOX, "StopPodSandbox": pb.STOP_POD_SANDBOX,
    "RemovePodSandbox": pb.REMOVE_POD_SANDBOX, "CreateContainer": pb.CREATE_CONTAINER,
    "PostCreateContainer": pb.POST_CREATE_CONTAINER, "StartContainer": pb.START_CONTAINER,
    "PostStartContainer": pb.POST_START_CONTAINER, "UpdateContainer": pb.UPDATE_CONTAINER,
    "PostUpdateContainer": pb.POST_UPDATE_CONTAINER, "StopContainer": pb.STOP_CONTAINER,
    "RemoveContainer": pb.REMOVE_CONTAINER, "UpdatePodSandbox": pb.UPDATE_POD_SANDBOX,
    "PostUpdatePodSandbox": pb.POST_UPDATE_POD_SANDBOX,
    "ValidateContainerAdjustment": pb.VALIDATE_CONTAINER_ADJUSTMENT,
}  # fmt: skip
#: what answers nothing: plugins made before these had calls of their own get them as a StateChange
_NOTICES = frozenset(_EVENTS) - {
    "CreateContainer", "UpdateContainer", "StopContainer", "UpdatePodSandbox", "ValidateContainerAdjustment",
}  # fmt: skip


class Node(Protocol):
    """What there is beside the plugins. All are called in threads."""

    def still(self) -> AbstractContextManager[None]:
        """Nothing comes to be that no plugin was told of."""

    def everything(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """All pods that are ready, and their containers that have not ended."""

    def change(self, plugin: str, updates: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        """Change limits as a plugin wants; what could not be."""

    def evict(self, plugin: str, evictions: Iterable[pb.ContainerEviction]) -> None:
        """Stop containers as a plugin wants."""


class _Plugin:
    """One connection, and who is at its other end once it has said so."""

    def __init__(self, node: Callable[[_Plugin, str, bytes], Any]) -> None:
        self.name = ""  # with its index before it
        self.events = 0
        self.link: Link
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._node = node

    async def serve(self, asked: ttrpc.Call) -> bytes:
        """Its calls to us."""
        if asked.service != f"{_PACKAGE}.Runtime":
            raise Refused(ttrpc.UNIMPLEMENTED, f"there is no service {asked.service[:200]}")
        try:
            if asked.method == "RegisterPlugin":
                self._register(pb.RegisterPluginRequest.FromString(asked.payload))
                return b""
            told: bytes = await self._node(self, asked.method, asked.payload)
        except DecodeError as error:
            raise Refused(ttrpc.INVALID_ARGUMENT, "the request cannot be parsed") from error
        return told

    def _register(self, asked: pb.RegisterPluginRequest) -> None:
        if not re.fullmatch(r"[0-9]{2}", asked.plugin_idx) or not re.fullmatch(r"[\w.+-]{1,128}", asked.plugin_name,
                                                                               re.ASCII):  # fmt: skip
            message = f"{asked.plugin_idx[:9]!r}, {asked.plugin_name[:80]!r}: an index is two digits, a name a word"
            raise Refused(ttrpc.INVALID_ARGUMENT, message)
        if self.registered.done():
            raise Refused(ttrpc.INVALID_ARGUMENT, "this plugin is registered")
        self.name = f"{asked.plugin_idx}-{asked.plugin_name}"
        self.registered.set_result(None)

    def wants(self, method: str) -> bool:
        """Whether it asked for this event."""
        return bool(self.events & 1 << (_EVENTS[method] - 1))

    async def call(self, method: str, request: Message, timeout: float) -> Any:
        """Its answer; Gone, Refused."""
        found = _PLUGIN.methods_by_name[method]
        asked = ttrpc.Call(_PLUGIN.full_name, method, request.SerializeToString())
        payload = await self.link.call(asked, timeout)
        try:
            return getattr(pb, found.output_type.name).FromString(payload)
        except DecodeError as error:
            self.link.close(f"its answer to {method} cannot be parsed")
            raise Gone(method) from error


class Plugins:
    """All of them. `start` and `stop` once; `tell` for each event."""

    def __init__(self, path: str, timeout: float, node: Node) -> None:
        self._path, self._timeout, self._node = path, timeout, node
        self._plugins: list[_Plugin] = []  # by index, and by when they came
        self._connections: dict[asyncio.Task[None], Link] = {}
        self._turn, self._joining = asyncio.Lock(), asyncio.Lock()
        self._threads = ThreadPoolExecutor(8, "nri")
        self._server: asyncio.Server | None = None

    @property
    def any(self) -> bool:
        """Whether there is one to be told anything."""
        return bool(self._plugins)

    async def start(self) -> None:
        """Listen."""
        self.loop = asyncio.get_running_loop()
        self._server = await asyncio.start_unix_server(self._accept, sock=sockets.private(self._path))
        _log.info("NRI plugins are served on %s", self._path)

    async def stop(self) -> None:
        """Take nobody more, say goodbye to who is there."""
        if self._server is not None:
            self._server.close()
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        await asyncio.gather(*(self._goodbye(plugin) for plugin in self._plugins))
        for link in self._connections.values():
            link.close("wherryd is ending")
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=_GOODBYE)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _goodbye(self, plugin: _Plugin) -> None:
        with suppress(Gone, Refused):
            await plugin.call("Shutdown", pb.Empty(), _GOODBYE)

    # ---- coming ----

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= _PLUGINS_MAX:
            _log.warning("a plugin was sent away: %d are there", len(self._connections))
            writer.transport.abort()
            return
        plugin = _Plugin(self._asked)
        plugin.link = self._connections[task] = Link(reader, writer, plugin.serve)
        reading = asyncio.ensure_future(plugin.link.run())
        try:
            await self._welcome(plugin, reading)
            why = await reading
        finally:
            plugin.link.close("wherryd is ending")
            del self._connections[task]
            if plugin in self._plugins:
                self._plugins.remove(plugin)
            reading.cancel()
        _log.info("plugin %s is gone: %s", plugin.name or "(unknown)", why)

    async def _welcome(self, plugin: _Plugin, reading: asyncio.Task[str]) -> None:
        known: set[asyncio.Future[Any]] = {plugin.registered, reading}
        await asyncio.wait(known, timeout=_REGISTRATION, return_when=asyncio.FIRST_COMPLETED)
        if not plugin.registered.done():
            plugin.link.close(f"it did not register within {_REGISTRATION:g} seconds")
            return
        try:
            await self._configure(plugin)
            await self._join(plugin)
        except (Gone, Refused) as error:
            plugin.link.close(f"it could not be taken in: {error}")
        except (WherryError, OSError) as error:
            _log.exception("plugin %s could not be taken in", plugin.name)
            plugin.link.close(f"it could not be taken in: {error}")

    async def _configure(self, plugin: _Plugin) -> None:
        asked = pb.ConfigureRequest(
            runtime_name="wherry", runtime_version=wherry.__version__, NRI_version=VERSION,
            registration_timeout=int(_REGISTRATION * 1000), request_timeout=int(self._timeout * 1000),
        )  # fmt: skip
        told = await plugin.call("Configure", asked, self._timeout)
        if told.events & ~_ALL:
            raise Refused(ttrpc.INVALID_ARGUMENT, f"it asks for events that are not known: {told.events:#x}")
        plugin.events = told.events or _ALL

    async def _join(self, plugin: _Plugin) -> None:
        """From one moment on it is told everything; what was there before, it is told now."""
        async with self._joining:
            still = self._node.still()
            await self._thread(still.__enter__)
            try:
                async with self._turn:
                    pods, containers = await self._thread(self._node.everything)
                    wanted = await self._synchronize(plugin, pods, containers)
                    if plugin.link.closed:
                        return
                    self._plugins.append(plugin)
                    self._plugins.sort(key=lambda one: one.name[:2])
            finally:
                still.__exit__(None, None, None)
        _log.info("plugin %s is there, of %d", plugin.name, len(self._plugins))
        if wanted:
            await self._thread(lambda: self._node.change(plugin.name, wanted))

    async def _synchronize(
        self, plugin: _Plugin, pods: list[pb.PodSandbox], containers: list[pb.Container]
    ) -> list[pb.ContainerUpdate]:
        chunks = list(_chunks(pods, containers))
        for asked in chunks[:-1]:
            asked.more = True
            told = await plugin.call("Synchronize", asked, _SYNCHRONIZATION)
            if not told.more or told.update:
                raise Refused(ttrpc.UNIMPLEMENTED, "it does not take in parts what does not fit into one message")
        told = await plugin.call("Synchronize", chunks[-1], _SYNCHRONIZATION)
        return list(told.update)

    async def _thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    # ---- being asked ----

    async def _asked(self, plugin: _Plugin, method: str, payload: bytes) -> bytes:
        """A plugin's own call."""
        if method != "UpdateContainers":
            raise Refused(ttrpc.UNIMPLEMENTED, f"there is no method {method[:200]}")
        if plugin not in self._plugins:
            raise Refused(ttrpc.INVALID_ARGUMENT, "a plugin must be synchronized first")
        asked = pb.UpdateContainersRequest.FromString(payload)
        failed = await self._thread(lambda: self._node.change(plugin.name, asked.update))
        self.evict(plugin.name, asked.evict)
        return pb.UpdateContainersResponse(failed=failed).SerializeToString()

    def evict(self, plugin: str, asked: Iterable[pb.ContainerEviction]) -> None:
        """Begin to stop containers. That is told as events, which wait for this plugin too: nothing waits for it."""
        if evictions := list(asked):
            asyncio.get_running_loop().run_in_executor(self._threads, self._node.evict, plugin, evictions)

    # ---- telling ----

    async def tell(
        self, method: str, request: Callable[[], Message], take: Callable[[str, Any], None] | None = None,
        then: Callable[[list[pb.PluginInstance]], Message | None] | None = None,
    ) -> None:  # fmt: skip
        """An event, to one plugin after the other; `request` is asked anew for each. `take`: what to do with an answer,
        by whom it is. `then`: what validators are asked at the end. WherryError: a plugin does not want it to be."""
        async with self._turn:
            for plugin in self._of(method):
                with suppress(Gone):
                    told = await self._told(plugin, method, request())
                    if take is not None and told is not None:
                        take(plugin.name, told)
            if then is not None and (validators := self._of("ValidateContainerAdjustment")):
                everyone = [pb.PluginInstance(name=one.name[3:], index=one.name[:2]) for one in self._plugins]
                if (asked := then(everyone)) is not None:
                    await asyncio.gather(*(self._validate(one, asked) for one in validators))

    def _of(self, method: str) -> list[_Plugin]:
        return [plugin for plugin in self._plugins if plugin.wants(method)]

    async def _told(self, plugin: _Plugin, method: str, request: Any) -> Any:
        """Its answer; None: it knows no such call."""
        try:
            return await plugin.call(method, request, self._timeout)
        except Refused as error:
            if error.code != ttrpc.UNIMPLEMENTED:
                raise _refusal(plugin, method, error) from error
        if method in _NOTICES:
            change = pb.StateChangeEvent(event=_EVENTS[method], pod=request.pod)
            if "container" in request.DESCRIPTOR.fields_by_name:
                change.container.CopyFrom(request.container)
            try:
                await plugin.call("StateChange", change, self._timeout)
            except Refused as error:
                raise _refusal(plugin, method, error) from error
        return None

    async def _validate(self, plugin: _Plugin, asked: Message) -> None:
        """A validator that cannot be asked has not agreed."""
        try:
            told = await plugin.call("ValidateContainerAdjustment", asked, self._timeout)
        except Refused as error:
            raise _refusal(plugin, "ValidateContainerAdjustment", error) from error
        except Gone as error:
            raise WherryError(Kind.PRECONDITION, f"NRI validator {plugin.name} is gone: {error}") from error
        if told.reject:
            message = f"NRI validator {plugin.name} rejects what plugins made of the container: {told.reason[:500]}"
            raise WherryError(Kind.PRECONDITION, message)


def _refusal(plugin: _Plugin, method: str, error: Refused) -> WherryError:
    return WherryError(Kind.PRECONDITION, f"NRI plugin {plugin.name} refuses {method}: {error.message[:500]}")


def _chunks(pods: list[pb.PodSandbox], containers: list[pb.Container]) -> Iterator[pb.SynchronizeRequest]:
    """All of them, in messages that fit into a frame; at least one."""
    made, size = pb.SynchronizeRequest(), 0
    for part, found in (("pods", pods), ("containers", containers)):
        for one in found:
            if size and size + one.ByteSize() > _CHUNK:
                yield made
                made, size = pb.SynchronizeRequest(), 0
            getattr(made, part).append(one)
            size += one.ByteSize()
    yield made
