"""The warm process: preloaded, single-threaded, it holds no truth. It accepts and hands over to a fork that waits, and
does the rest.

Decides when it lives: started after a cold `wherry`, it leaves when idle for some minutes, when its code on disk has
changed, or when told. One for each user, behind STATE/warm (0700).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from wherry.engine import warm
from wherry.errors import WherryError
from wherry.kernel import process

from . import peer, rehearsal, spare

__all__ = ["activated", "main"]

_IDLE: Final = 600.0  # seconds
_AT_ONCE: Final = 256  # children; the fronts of more commands are told to start Python
_BACKLOG: Final = 512
_SPARES: Final = 3  # a life by wherry-oci is three commands, one close behind the other
_CURIOSITY: Final = 0.2  # seconds between two commands that are asked for their pages
_BARREN: Final = 1.0  # seconds after a fork that failed
_QUIET: Final = 0.02  # seconds without a command before another spare is made: its fork would be in the way of the next
_GLANCE: Final = 30.0  # seconds until it looks around without being asked
_CHANGES: Final = 0xFC6  # IN_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF
_OVERFLOW: Final = 0x4000  # IN_Q_OVERFLOW
_EVENT: Final = struct.Struct("=4xI4xI")  # struct inotify_event: mask, and the size of the name behind it
_EVENTS: Final = 1 << 16  # bytes
_LISTEN_FD: Final = 3  # SD_LISTEN_FDS_START
#: imported by what is served, but not at the top of a module
_LATE: Final = ("sqlite3", "ctypes", "prctl", "json", "pwd", "subprocess", "ipaddress", "hashlib",
                "tomllib", "encodings.ascii", "encodings.idna", "requests.adapters")  # fmt: skip
#: what hot commands do without; above all click, which explains lines that are not plain
_SKIPPED: Final = ("wherry.cli.clicks", "wherry.cli.completion", "wherry.cli.manual", "wherry.cli.progress",
                   "wherry.cli.tree", "wherry.image.worker", "wherry.net.dns", "wherry.net.forward",
                   "wherry.net.keeper", "wherry.net.nftwatch", "wherry.net.confwatch", "wherry.engine.exposure",
                   "wherry.volume.csi", "wherry.daemon", "wherry.engine.pods", "wherry.warm.server", "wherry.__main__",
                   "wherry.boot")  # fmt: skip


def main(directory: str, idle: float = _IDLE) -> None:
    """Serve below `directory` until there is a reason to leave: `idle` seconds without a command, other code on disk.
    Any signal ends it at once, for it holds nothing; the lock goes with it, and the socket is made anew."""
    _alone()
    lock = -1 if _listened(directory) else _only(directory)
    if lock < 0:
        return
    _own_cgroup()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener:
        _serve(directory, idle, lock, listener)


def activated(idle: float = _IDLE) -> None:
    """The same for a socket that systemd made and keeps (sd_listen_fds(3)): whoever calls while there is nobody starts
    us. Those that called before us have waited long enough: they start Python."""
    if (os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")) != (str(os.getpid()), "1"):
        sys.exit("wherry-warm.socket starts this: systemctl start wherry-warm.socket")
    with socket.socket(fileno=_LISTEN_FD) as listener:
        listener.set_inheritable(False)
        _turn_away(listener)
        directory = os.path.dirname(listener.getsockname())
        _alone(_LISTEN_FD)
        warm.stop(os.path.dirname(directory))  # one without systemd, which cannot be reached any more
        lock = _only(directory)
        if lock >= 0:
            _serve(directory, idle, lock, listener)


def _serve(directory: str, idle: float, lock: int, listener: socket.socket) -> None:
    """Get ready, bind the listener unless it is, and serve."""
    process.be_named("wherry-warm")
    code = _Code(_preload())
    rehearsal.rehearse(directory)
    own = peer.world("self")
    if own is None or b"Seccomp:\t0" not in own[0]:  # of two filters only the number can be read, not the rules
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    server = _Server(listener, lock, code, own)
    if listener.getsockname():
        server.run(idle)
    elif not _listened(directory):  # else systemd came meanwhile
        _run_at(f"{directory}/socket", listener, server, idle)


def _run_at(path: str, listener: socket.socket, server: _Server, idle: float) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    listener.listen(_BACKLOG)
    own = os.lstat(path)
    try:
        server.run(idle)
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), own):  # not systemd's, which may have come meanwhile
                os.unlink(path)


def _listened(directory: str) -> bool:
    """Whether somebody is there already: systemd keeps its socket without a process of ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(f"{directory}/socket")
        except OSError:
            return False
    return True


def _turn_away(listener: socket.socket) -> None:
    listener.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
    listener.setblocking(True)


# ---- a world of its own


def _alone(keep: int = 2) -> None:
    """Nothing of the command that started us: no terminal, no descriptor (but `keep`, the highest), no environment, no
    directory."""
    with suppress(PermissionError):  # it is one already
        os.setsid()
    os.chdir("/")
    os.umask(0o066)  # STATE is 0711: users of containers' user namespaces come by
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    os.environ.clear()
    os.environ["PATH"] = os.defpath
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored


def _only(directory: str) -> int:
    """The lock of the directory's one server, made with it; -1 where there is one."""
    import fcntl

    os.makedirs(os.path.dirname(directory), 0o711, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o7777 != 0o700:
        return -1
    fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _own_cgroup() -> None:
    """So that the end of a caller's unit is not ours; without the right to one we stay."""
    from wherry.kernel import facts

    with suppress(WherryError, OSError):
        mount = facts.measure(None).cgroup_mount
        if mount:
            os.makedirs(f"{mount}/wherry-warm", exist_ok=True)
            with open(f"{mount}/wherry-warm/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")


def _modules(top: str) -> Iterator[str]:
    """The modules of the package at `top`. As pkgutil has it, which imports more than it finds."""
    for directory, _, names in os.walk(top):
        package = os.path.relpath(directory, os.path.dirname(top)).replace(os.sep, ".")
        for name in sorted(names):
            if name.endswith(".py") and os.path.exists(f"{directory}/__init__.py"):
                yield package if name == "__init__.py" else f"{package}.{name.removesuffix('.py')}"


def _preload() -> list[str]:
    """Import what is served; the files that the code came from."""
    import importlib

    import wherry
    from wherry.net import launchers

    for name in _modules(wherry.__path__[0]):
        if not name.startswith(_SKIPPED):
            importlib.import_module(name)
    for plugin in launchers.PLUGINS:
        launchers.program(plugin)
    for name in _LATE:
        importlib.import_module(name)
    files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("wherry")]
    return [path for path in files if path]


class _Code:
    """The code as it was when it was loaded. The kernel tells of changes (inotify(7)), for to look at 200 files takes a
    millisecond; where it does not, we look."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self._names = {os.path.basename(path).encode() for path in files}
        self._told = self._watch()
        self._then = self._now()

    def _watch(self) -> int:
        from wherry.kernel import shim

        try:
            return shim.inotify({os.path.dirname(path) for path in self._files}, _CHANGES)
        except OSError:  # the user's instances or watches are used up
            return -1

    def _now(self) -> list[tuple[int, int]]:
        return [_version(path) for path in self._files]

    def changed(self) -> bool:
        """Whether a file is another one now."""
        if self._told >= 0 and not self._heard() and _version(self._files[0]) == self._then[0]:
            return False
        return self._now() != self._then

    def _heard(self) -> bool:
        """Whether something happened to one of our names, or to a directory as a whole, or too much for the kernel."""
        found = False
        with suppress(BlockingIOError):
            while True:
                data = os.read(self._told, _EVENTS)
                while data:
                    mask, size = _EVENT.unpack_from(data)
                    name, data = data[_EVENT.size : _EVENT.size + size].rstrip(b"\0"), data[_EVENT.size + size :]
                    found |= name in self._names or not name or bool(mask & _OVERFLOW)
        return found

    def close(self) -> None:
        """In a fork, which has no use for it."""
        if self._told >= 0:
            os.close(self._told)


def _version(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


# ---- the loop


def _place(listener: socket.socket) -> tuple[int, int]:
    """Where the socket's name leads: who removes the state directory, or puts another socket there, means us too."""
    try:
        found = os.lstat(listener.getsockname())
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


class _Child(NamedTuple):
    """A spare one, which waits for a command, or one at work for `connection`, its front's."""

    pid: int
    channel: socket.socket  # ours to it
    connection: socket.socket | None = None


class _Server:
    """Accepts, hands over, reaps; keeps spare children ready."""

    def __init__(self, listener: socket.socket, lock: int, code: _Code, own: peer.World) -> None:
        from wherry.kernel import facts

        self._listener, self._lock, self._code, self._own = listener, lock, code, own
        self._mount = facts.measure(None).cgroup_mount
        self._children: dict[int, _Child] = {}  # by pidfd
        self._spares: list[int] = []  # pidfds
        self._hot: list[int] = []  # pages that commands write to, in order
        self._asked = 0.0  # when a command was last asked for its pages
        self._fronts: dict[int, int] = {}  # pidfds by the descriptor of the connection
        self._barren = 0.0  # when it is worth while again to try for a spare
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def run(self, idle: float) -> None:
        """Until idle, changed, or out of reach."""
        last, place = time.monotonic(), _place(self._listener)
        while True:
            ready = [fd for fd, _ in self._poll.poll(self._wait(idle) * 1000)]
            now = time.monotonic()
            if not ready and not self._fronts and (now - last >= idle or _place(self._listener) != place):
                return
            if not ready and len(self._spares) < _SPARES and now >= self._barren:
                self._spare()
            last = now if ready else last
            for fd in ready:
                if fd in self._fronts:
                    self._abandoned(fd)
            for fd in ready:
                if fd in self._children:
                    self._reap(fd)
            if self._listener.fileno() in ready:
                if self._code.changed():
                    return
                self._accept()

    def _wait(self, idle: float) -> float:
        """Seconds to wait for something to do, before the next spare is made or it is time for a look around."""
        if len(self._spares) < _SPARES:
            return max(_QUIET if self._spares else 0, self._barren - time.monotonic())
        return min(idle, _GLANCE)

    def _abandoned(self, fd: int) -> None:
        """The front is gone, its command goes too, unless it has answered: who kills it means what works for it."""
        self._poll.unregister(fd)
        pidfd = self._fronts.pop(fd)
        child = self._children[pidfd]
        if not spare.answered(child.channel):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if child.connection is not None:
            child.connection.close()
        self._children[pidfd] = child._replace(connection=None)

    def _reap(self, pidfd: int) -> None:
        ended = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        if told := spare.heard(ended.channel):
            self._hot = sorted({*self._hot, *told})
        ended.channel.close()
        if pidfd in self._spares:  # it was killed: for want of memory, perhaps
            self._spares.remove(pidfd)
            self._barren = time.monotonic() + _BARREN
        if ended.connection is not None:
            if self._fronts.pop(ended.connection.fileno(), -1) >= 0:
                self._poll.unregister(ended.connection)
            ended.connection.close()
        os.close(pidfd)
        os.waitpid(ended.pid, 0)

    def _accept(self) -> None:
        """A connection that is closed says to the front: start Python."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # no descriptor is left, or who called has gone
            return
        pid, uid = peer.pid_of(connection)
        group = peer.cgroup(pid, self._mount) if uid == os.geteuid() and self._mount else None
        if uid != os.geteuid() or (group is None and self._mount) or len(self._children) >= _AT_ONCE:
            connection.close()
        else:
            self._hand_over(connection, group)
        if group is not None:
            os.close(group)

    def _hand_over(self, connection: socket.socket, group: int | None) -> None:
        """To a spare one, or to one made for it. The connection stays open here: we see when the front is gone."""
        if not self._spares:
            self._spare()
        if not self._spares:
            connection.close()
            return
        pidfd = self._spares.pop(0)
        child = self._children[pidfd]
        passed = [connection.fileno(), *([] if group is None else [group])]
        try:
            socket.send_fds(child.channel, [self._question()], passed)
        except OSError:  # it was killed just now: the front starts Python
            connection.close()
            return
        self._children[pidfd] = child._replace(connection=connection)
        self._fronts[connection.fileno()] = pidfd
        self._poll.register(connection, 0)  # POLLHUP alone: what it says is for the child

    def _question(self) -> bytes:
        """In a burst of commands only one in a while is asked for the pages that it wrote to."""
        now = time.monotonic()
        if now - self._asked < _CURIOSITY:
            return spare.KEEP
        self._asked = now
        return spare.TELL

    def _spare(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._barren = time.monotonic() + _BARREN
            return
        try:
            pid = os.fork()
        except OSError:  # too many processes, or too little memory
            self._barren = time.monotonic() + _BARREN
            ours.close()
            theirs.close()
            return
        if pid:
            theirs.close()
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = _Child(pid, ours)
            self._spares.append(pidfd)
            self._poll.register(pidfd, select.POLLIN)
            return
        code = 1
        try:
            ours.close()
            self._let_go()
            code = spare.serve(theirs, self._own, self._hot)
        finally:
            os._exit(code)

    def _let_go(self) -> None:
        """In the fork: nothing of the other commands stays open, or their ends would not be heard; nor the lock, which
        a command that outlives us must not hold."""
        self._listener.close()
        self._code.close()
        os.close(self._lock)
        for pidfd, other in self._children.items():
            os.close(pidfd)
            other.channel.close()
            if other.connection is not None:
                other.connection.close()
