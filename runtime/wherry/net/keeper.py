"""The keeper of one network: a process that answers DNS at the network's gateways and puts back what a flush of nft
took, as long as the network has members, and a few seconds more.

Decides when it lives and how much it takes on: questions in flight, connections, bytes and seconds are bounded for each
asker and in all, so that one container is at most a nuisance to itself. It holds no truth: killed, it is started again
by the next command. Refuses to know what is answered (dns.py) and what is put back (the plugins' restore).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import process, shim
from wherry.model import Place
from wherry.net import dns, kept, launchers, roster
from wherry.net.cni import Cni
from wherry.net.forward import HostServers, forward
from wherry.net.nftwatch import Loss, Watch

__all__ = ["main"]

_LINGER: Final = 5.0  # seconds after the last member: a network in use mostly has the next one soon
_GLANCE: Final = 30.0  # seconds until it looks around without being asked
_BURST: Final = 32  # datagrams of one socket before others have their turn
_IN_FLIGHT, _IN_FLIGHT_EACH = 512, 64  # questions forwarded at a time, in all and of one asker
_STREAMS, _STREAMS_EACH = 64, 8  # TCP connections, likewise
_STREAM_IDLE, _STREAM_LIFE = 10.0, 120.0  # seconds
_SETTLE: Final = 0.2  # seconds from a loss to its repair: a flush is several batches, and often followed by another
_PACE, _PACE_MAX = 1.0, 30.0  # seconds between two repairs; between two that fail
_EXPLAINED: Final = 4.0  # seconds: elements that go as an attachment goes are its own
_CHANGES: Final = 0x3C0  # IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE
_GONE: Final = 0xC00  # IN_DELETE_SELF, IN_MOVE_SELF
_EVENTS: Final = 1 << 16


class Given(NamedTuple):
    """What a keeper is born with: the descriptors of its lock and of its bound sockets, the cgroup to live in,
    the instance's nft table."""

    lock: int
    sockets: list[int]
    cgroup: str
    table: str


def main(place: Place, network: str, env: Mapping[str, str]) -> None:
    """Keep the network until it is alone for some seconds, or a SIGTERM. PRECONDITION unless `kept.ensure` calls."""
    try:
        given = Given(**json.loads(env[kept.GIVEN]))
    except (KeyError, ValueError, TypeError):
        raise WherryError(Kind.PRECONDITION, "a network's keeper is started by the first container that joins it",
                          hint="there is nothing to do by hand") from None
    _settle_in(given.cgroup)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_Keeper(place, network, given).live())
    os._exit(0)  # without a wait for a repair that is under way: who ends us takes the network away


def _settle_in(cgroup: str) -> None:
    """A cgroup that no caller's end takes along, and room for descriptors."""
    if cgroup:
        with contextlib.suppress(OSError):
            os.makedirs(cgroup, exist_ok=True)
            with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
    process.be_named("wherry-keeper")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Names:
    """The rosters of all networks, kept current by inotify(7): drained before each answer, so that who was written
    down before he asks is known."""

    def __init__(self, state: str) -> None:
        self._state = state
        self.fd = shim.inotify([roster.directory(state)], _CHANGES | _GONE)
        self._stale: set[str] = set()
        self._book = dns.Book(roster.load_all(state))

    def book(self) -> dns.Book:
        """The book as of now."""
        self.hear()
        if "" in self._stale:  # more than the kernel keeps for us
            self._book = dns.Book(roster.load_all(self._state))
            self._stale.clear()
        while self._stale:
            network = self._stale.pop()
            self._book.put(network, roster.load(roster.path(self._state, network)))
        return self._book

    def hear(self) -> None:
        """Note what changed; it is read when somebody asks."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, _EVENTS):
                self._stale.update(_told(data))


def _told(data: bytes) -> Iterator[str]:
    """Networks by struct inotify_event; "" for an overflow."""
    while data:
        mask, size = int.from_bytes(data[4:8], "little"), int.from_bytes(data[12:16], "little")
        name, data = os.fsdecode(data[16 : 16 + size].rstrip(b"\0")), data[16 + size :]
        if mask & 0x4000:  # IN_Q_OVERFLOW
            yield ""
        elif name.endswith(".json") and not name.startswith("."):
            yield name.removesuffix(".json")


class _Responder:
    """Questions in, answers out."""

    def __init__(self, names: _Names, network: str) -> None:
        self._names, self._network = names, network
        self._servers = HostServers()
        self._tasks: dict[tuple[object, ...], asyncio.Task[None]] = {}  # by asker, port and id: a repetition waits too
        self._streams: Counter[str] = Counter()

    async def serve(self, wire: socket.socket) -> None:
        """Take questions from a bound socket."""
        if wire.type == socket.SOCK_STREAM:
            await asyncio.start_server(self._stream, sock=wire, limit=dns.MAX_QUERY)
        else:
            asyncio.get_running_loop().add_reader(wire, self._datagrams, wire)

    def _datagrams(self, wire: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                query, source = wire.recvfrom(dns.MAX_QUERY + 1)
            except OSError:  # nothing more; or an ICMP error of an earlier answer
                return
            found = dns.respond(query, source[0], self._names.book(), self._network)
            if isinstance(found, dns.Forward):
                self._start((*source[:2], query[:2]), source[0], self._relay(wire, source, found))
            elif found is not None:
                _send(wire, found, source)

    def _start(self, key: tuple[object, ...], source: str, work: Coroutine[Any, Any, None]) -> None:
        """Unless it is the repetition of a question in flight, or too much: then the asker asks again."""
        own = sum(1 for other in self._tasks if other[0] == source)
        if key in self._tasks or len(self._tasks) >= _IN_FLIGHT or own >= _IN_FLIGHT_EACH:
            work.close()
            return
        self._tasks[key] = asyncio.get_running_loop().create_task(work)
        self._tasks[key].add_done_callback(lambda _: self._tasks.pop(key))

    async def _relay(self, wire: socket.socket, source: Any, asked: dns.Forward) -> None:
        _send(wire, await self._forwarded(asked, stream=False), source)

    async def _forwarded(self, asked: dns.Forward, *, stream: bool) -> bytes:
        ours = self._names.book().gateways()
        servers = [one for one in asked.upstreams if one not in ours] or self._servers.now(ours)
        return await forward(asked.query, servers, stream=stream)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = str((writer.get_extra_info("peername") or ("",))[0])
        if self._streams.total() < _STREAMS and self._streams[source] < _STREAMS_EACH:
            self._streams[source] += 1
            try:
                async with asyncio.timeout(_STREAM_LIFE):
                    await self._conversation(reader, writer, source)
            except (OSError, EOFError, TimeoutError):
                pass
            finally:
                self._streams[source] -= 1
                self._streams += Counter()  # those with none are forgotten
        writer.transport.abort()

    async def _conversation(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        """One question after the other, until the asker has no more (RFC 7766)."""
        writer.transport.set_write_buffer_limits(0)  # drain() is the end of each answer
        while True:
            async with asyncio.timeout(_STREAM_IDLE):
                size = int.from_bytes(await reader.readexactly(2), "big")
                if size > dns.MAX_QUERY:
                    return
                query = await reader.readexactly(size)
            found = dns.respond(query, source, self._names.book(), self._network, stream=True)
            if isinstance(found, dns.Forward):
                found = await self._forwarded(found, stream=True)
            if found is None:
                return
            writer.write(len(found).to_bytes(2, "big") + found)
            async with asyncio.timeout(_STREAM_IDLE):
                await writer.drain()


def _send(wire: socket.socket, answer: bytes, source: Any) -> None:
    with contextlib.suppress(OSError):  # a full buffer, an asker who has gone: he asks again, or never
        wire.sendto(answer, source)


class _Guard:
    """Puts back what was taken from the instance's table."""

    def __init__(self, place: Place, network: str, sockets: list[socket.socket]) -> None:
        self._place, self._network, self._sockets = place, network, sockets
        self._results = os.path.join(place.state, "cni", "results")

    async def watch(self, table: str) -> None:
        """For ever. A loss is repaired a moment later, and again when there was another meanwhile."""
        watch, heard = Watch(table), asyncio.Event()
        loss = Loss.NOTHING if watch.there() else Loss.TABLE  # it went while nobody kept the network

        def hear() -> None:  # at once, also while we pause: what is left unread would wake the loop without end
            nonlocal loss
            loss = max(loss, watch.news())
            heard.set()

        asyncio.get_running_loop().add_reader(watch, hear)
        while True:
            found, loss = loss, Loss.NOTHING
            if found > Loss.ELEMENTS or (found and await self._unexplained()):
                await asyncio.sleep(_SETTLE)
                loss = Loss.NOTHING
                await self._repair()
            heard.clear()
            if not loss:
                await heard.wait()

    async def _unexplained(self) -> bool:
        """Whether elements went without an attachment that did, just before or after."""
        await asyncio.sleep(_EXPLAINED / 4)
        try:
            return os.stat(self._results).st_mtime < time.time() - _EXPLAINED
        except FileNotFoundError:
            return False

    async def _repair(self) -> None:
        pause = _PACE
        while True:
            try:
                busy = await asyncio.to_thread(self._put_back)
            except (WherryError, OSError, ValueError, LookupError, ImportError):
                busy = True
            await asyncio.sleep(pause)
            if not busy:
                return
            pause = min(pause * 2, _PACE_MAX)

    def _put_back(self) -> bool:
        """Whether an attachment has to be looked at again: one that is being made or unmade keeps its lock."""
        own = roster.load(roster.path(self._place.state, self._network))
        if own is not None:
            kept.redirect(own, self._sockets)
        with Cni(self._place).at_rest(self._network) as (records, busy):
            if records:
                given = io.BytesIO(json.dumps({"attachments": records}).encode())
                out = io.BytesIO()
                if launchers.program("restore")(["restore"], os.environ, given, out):
                    raise OSError(out.getvalue().decode("utf-8", "replace"))
        return busy


class _Keeper:
    """The life of the process."""

    def __init__(self, place: Place, network: str, given: Given) -> None:
        self._place, self._network, self._given, self._lock = place, network, given, given.lock
        os.set_inheritable(given.lock, False)  # the lock ends with us, not with an nft that we started
        self._sockets = [socket.socket(fileno=fd) for fd in given.sockets]
        self._lock_path = kept.lock_path(place.state, network)

    async def live(self) -> None:
        """Serve, guard, and leave when there is nobody left to do it for."""
        loop, ended, changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        names = _Names(self._place.state)
        loop.add_reader(names.fd, self._told, names, changed)
        responder = _Responder(names, self._network)
        for one in self._sockets:
            one.set_inheritable(False)
            one.setblocking(False)
            await responder.serve(one)
        guard = _Guard(self._place, self._network, self._sockets).watch(self._given.table)
        tasks = [loop.create_task(guard), loop.create_task(self._until_alone(changed)), loop.create_task(ended.wait())]
        await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        if ended.is_set():
            self._withdraw()

    @staticmethod
    def _told(names: _Names, changed: asyncio.Event) -> None:
        names.hear()
        changed.set()

    async def _until_alone(self, changed: asyncio.Event) -> None:
        clock, alone = asyncio.get_running_loop().time, 0.0
        while self._reachable():
            patience = _GLANCE
            if os.path.exists(roster.path(self._place.state, self._network)):
                alone = 0.0
            else:
                alone = alone or clock()
                patience = alone + _LINGER - clock()
                if patience <= 0 and self._left():
                    return
            changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(patience, 0.05)):
                    await changed.wait()

    def _reachable(self) -> bool:
        """Whether the lock's name still leads to ours: who removes the state directory means us too."""
        try:
            return os.path.samestat(os.lstat(self._lock_path), os.fstat(self._lock))
        except OSError:
            return False

    def _left(self) -> bool:
        """Leave, unless there is a member again or somebody adds one now: the first to come must find the lock free,
        and the ports too."""
        try:
            gate = os.open(kept.gate(self._place.state), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(roster.path(self._place.state, self._network)):
                return False
            self._withdraw()
        except BlockingIOError:
            return False
        finally:
            os.close(gate)
        return True

    def _withdraw(self) -> None:
        if kept.moved(self._sockets):
            kept.unredirect(self._given.table, self._network)
        for one in self._sockets:
            one.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._lock_path)
        os.close(self._lock)
