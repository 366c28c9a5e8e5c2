"""Where wherryd listens: sockets that systemd hands over by name, or its own below STATE.

Decides who may listen (one wherryd for each STATE) and what a socket's rights are. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from wherry.errors import Kind, WherryError

__all__ = ["Relay", "activated", "bound", "held", "private"]

_FIRST = 3  # SD_LISTEN_FDS_START
_CHUNK = 1 << 16


def activated(env: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The listening sockets of sd_listen_fds_with_names(3), by name. What told of them is taken out of `env`: whom we
    start, they do not concern."""
    pid, count, names = (env.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    numbers = range(_FIRST, _FIRST + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    return dict(zip(names.split(":"), map(_listening, numbers), strict=False))


def _listening(number: int) -> socket.socket:
    made = socket.socket(fileno=number)
    made.setblocking(False)
    return made


@contextmanager
def held(state: str) -> Iterator[None]:
    """The right to serve this STATE, as long as the process lives. CONFLICT where another wherryd has it."""
    fd = os.open(f"{state}/wherryd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        hint = "stop it, or give this one a --state and a --root of its own"
        raise WherryError(Kind.CONFLICT, f"another wherryd serves {state} already", hint=hint) from error
    try:
        yield
    finally:
        os.close(fd)


def private(path: str) -> socket.socket:
    """A bound unix socket that is root's alone, in a directory that is made where there is none."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        bound(path, made.bind, "", 0o600)
    except BaseException:
        made.close()
        raise
    return made


def bound(path: str, bind: Callable[[str], object], group: str, mode: int = 0o660) -> None:
    """Bind a unix socket, for root and `group` alone; what a dead server left is replaced, anything else is not."""
    _clear(path)
    old = os.umask(0o177)
    try:
        bind(path)
    except (OSError, RuntimeError) as error:
        raise WherryError(Kind.INTERNAL, f"{path} cannot be served: {error}") from error
    finally:
        os.umask(old)
    with suppress(KeyError):  # without the group it is root's
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    os.chmod(path, mode)


def _clear(path: str) -> None:
    if len(os.fsencode(path)) > 107:  # sizeof(sun_path) less the NUL, unix(7)
        raise WherryError(Kind.INVALID, f"{path} is too long for a socket", hint="choose a shorter --state")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise WherryError(Kind.CONFLICT, f"{path} is in the way: it is no socket", hint="remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)  # one that has more callers than it takes is alive (EAGAIN)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
            except BlockingIOError:
                pass
        raise WherryError(Kind.CONFLICT, f"somebody serves {path} already")


class Relay:
    """Brings the callers of a socket that we were handed to one that we bound: gRPC takes no descriptor."""

    def __init__(self, listener: socket.socket, inner: str) -> None:
        self._listener, self._inner = listener, inner
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept from now on."""
        self._keep(self._accept())

    def stop(self) -> None:
        """Accept nobody more and let go of who is there; the listener stays systemd's."""
        for task in list(self._tasks):
            task.cancel()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                caller, _ = await loop.sock_accept(self._listener)
            except OSError:  # he has left, or there is no descriptor left
                await asyncio.sleep(0.05)
                continue
            caller.setblocking(False)
            self._keep(self._bring(caller))

    async def _bring(self, caller: socket.socket) -> None:
        with caller, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
            server.setblocking(False)
            await asyncio.get_running_loop().sock_connect(server, self._inner)
            both = {asyncio.ensure_future(_copy(*ends)) for ends in ((caller, server), (server, caller))}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, _CHUNK):
            await loop.sock_sendall(sink, data)
