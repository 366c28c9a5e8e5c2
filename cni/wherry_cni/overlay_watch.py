"""The one process of an overlay network: it keeps kernel and table equal to the peers file while somebody is attached.

Decides when to look: something happened in a directory that leads to the file, an attachment went, or half a minute
passed, for links come and go, too, and take routes with them. A file that cannot be used changes nothing; it is told to
syslog, once, and by whoever calls CHECK or STATUS. It holds no truth: killed, the next ADD starts another.
It is born with its lock (the descriptor that ADD locked), so that there are never two and no moment has none.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import subprocess
import sys
import syslog
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from wherry_cni.errors import CniError
from wherry_cni.overlay_state import Network, State, apply, locked

__all__ = ["main", "start"]

_INTERVAL = 30.0  # seconds
_SETTLE = 0.05  # seconds: an editor makes several changes of one
_MOVED_TO, _DELETE = 0x80, 0x200
_OWN = _MOVED_TO | _DELETE  # another configuration, an attachment that went
_ANY = 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800  # ATTRIB, CLOSE_WRITE, MOVED_*, CREATE, DELETE, *_SELF
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_PROGRAM = "import sys; sys.path[:0] = [{path!r}]; from wherry_cni.overlay_watch import main; main({state!r}, {lock})"


def start(state: State) -> None:
    """Start the network's watcher, unless it runs: detached, with nothing of the caller but its network namespace."""
    lock = os.open(f"{state.path}/watch", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        program = _PROGRAM.format(path=path, state=state.path, lock=lock)
        subprocess.Popen(  # nobody waits: the plugin ends before it, and then it is init's
            [sys.executable, "-IS", "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd="/", start_new_session=True, pass_fds=(lock,),
            env={"PATH": os.environ.get("PATH") or _PATH, "LC_ALL": "C"}).returncode = 0
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def main(path: str, lock: int) -> None:
    """Watch the network of the directory `path` until its last attachment went; `lock` is the descriptor that ADD
    locked."""
    os.umask(0o077)
    syslog.openlog("wherry-overlay")
    _own_cgroup()
    notices, seen, told = _Notices(), None, ""
    while True:
        with locked(path) as state:
            if state is None or not _is(lock, f"{path}/watch"):
                return
            network = state.network()
            if network is None or not state.ports():
                state.end()
                return
            notices.watch((path, f"{path}/ports"), _leading(network.peers_file))
            now = (network, _signature(network.peers_file))
            problem = _refresh(state, network) if now != seen else told
        if problem and problem != told:
            syslog.syslog(syslog.LOG_WARNING, f"{network.name}: {problem}; what was before stays")
        seen, told = (now if notices.wait() else None), problem


def _is(fd: int, path: str) -> bool:
    """Whether the file at `path` is still ours; the network may have ended and begun anew."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False


def _signature(path: str) -> tuple[int, ...]:
    """What differs when a file was edited or replaced; () where there is none."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return ()


def _refresh(state: State, network: Network) -> str:
    try:
        apply(state, network, rules=False)
    except (CniError, OSError) as problem:
        return str(problem)
    return ""


def _leading(path: str) -> Iterator[str]:
    """The directories that a change of the file happens in: its own and, where it is a link, its target's; of one that
    is missing the nearest above it."""
    for name in (path, os.path.realpath(path)):
        directory = os.path.dirname(name)
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        yield directory


def _own_cgroup() -> None:
    """So that the end of a caller's unit is not ours, nor ours in the way of its removal; without the right to one we
    stay. It is left behind empty: the next watcher wants it again."""
    for mount in _CGROUPS:
        with suppress(OSError):
            if os.path.exists(f"{mount}/cgroup.procs"):
                os.makedirs(f"{mount}/wherry-overlay", exist_ok=True)
                with open(f"{mount}/wherry-overlay/cgroup.procs", "w", encoding="ascii") as stream:
                    stream.write("0")
                return


class _Notices:
    """inotify(7): what happened is not read, only that something did."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def watch(self, own: Iterable[str], others: Iterable[str]) -> None:
        """Watch directories, each anew, for one of the same name may be another by now. Where the kernel has no watch
        left, the interval serves."""
        for mask, directories in ((_OWN, own), (_ANY, others)):
            for directory in directories:
                self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)

    def wait(self) -> bool:
        """Until something happened; False: the interval is over."""
        ready, _, _ = select.select([self._fd] if self._fd >= 0 else [], [], [], _INTERVAL)
        if not ready:
            return False
        time.sleep(_SETTLE)
        with suppress(BlockingIOError):
            while os.read(self._fd, 1 << 16):
                pass
        return True
