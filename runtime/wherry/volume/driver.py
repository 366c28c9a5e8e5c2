"""wherry's own CSI driver, on demand: is it there, its start, its end.

Decides by one lock (STATE/csi.lock) that two commands start it once. It ends by itself when idle: nothing that is
mounted needs it. Refuses to know the calls (csi.py) and what the driver does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from wherry.errors import Kind, WherryError
from wherry.kernel import files, process

__all__ = ["argv", "endpoint", "ensure", "holder", "stop"]

_SECONDS = 20.0  # for a driver to come up, and to end
_LOCK_SECONDS = 60.0
_PAUSES = (0.1, 0.5, 2.0, 0.0)  # seconds after a start that failed: one that is just leaving may hold the pool still
_UCRED = "3i"  # struct ucred of unix(7)
_LOG_TAIL = 4096


def endpoint(state: str) -> str:
    """Where it listens: not at csi.sock, where one that runs as a service does (`wherry-csi`), with other pools."""
    return f"{state}/csi-own.sock"


def argv(root: str, state: str, idle: int) -> tuple[str, ...]:
    """Its command line. `idle`: seconds without a call after which it leaves. -P: no module of the caller's directory
    runs as root."""
    return (
        sys.executable, "-P", "-m", "wherry_csi", "serve", "--endpoint", f"unix://{endpoint(state)}",
        "--node-id", _node(), "--pool", _pool(root), "--idle", str(idle),
    )  # fmt: skip


def _pool(root: str) -> str:
    return f"default={root}/csi"


def _node() -> str:
    """The host's name, as far as it can be a topology value (CSI 1.12, Topology)."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:63].strip("._-") or "localhost"


def ensure(root: str, state: str, idle: int, env: Mapping[str, str], cgroup: str) -> None:
    """Start it unless something answers there, and wait until it does. `cgroup`: where it moves to, "" for nowhere."""
    path = endpoint(state)
    if _answers(path):
        _must_be_ours(holder(state), root)
        return
    with files.flock(f"{state}/csi.lock", _LOCK_SECONDS):
        if _answers(path):  # another was faster
            _must_be_ours(holder(state), root)
            return
        os.makedirs(f"{root}/csi", 0o700, exist_ok=True)
        log, why = f"{state}/csi.log", ""
        for pause in _PAUSES:
            child = _spawn(argv(root, state, idle), env, log)
            _settle_in(cgroup, child.pid)
            if not (why := _await(path, child, log)):
                return
            time.sleep(pause)
    raise WherryError(Kind.UNAVAILABLE, f"the volume driver could not be started: {why}", hint=f"see {log}")


def _must_be_ours(there: process.Process | None, root: str) -> None:
    """One of another --root keeps other volumes, which our sweeps would take for garbage; one that was started in
    another mount namespace would mount where this command sees nothing."""
    try:
        if there is None or (why := _stranger(there.pid, root)) is None:
            return
    except (FileNotFoundError, ProcessLookupError):  # it has just left
        return
    message, hint = why
    raise WherryError(Kind.PRECONDITION, f"the volume driver (process {there.pid}) {message}", hint=hint)


def _stranger(pid: int, root: str) -> tuple[str, str] | None:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    if words != [b""] and os.fsencode(_pool(root)) not in words:  # of one that ends nothing can be read
        return "keeps the volumes of another --root", "give each --root a --state of its own"
    if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        hint = "wait until it leaves, some seconds after its last call, or use another --root and --state in here"
        return "was started in another mount namespace", hint
    return None


def _spawn(words: tuple[str, ...], env: Mapping[str, str], log: str) -> subprocess.Popen[bytes]:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return subprocess.Popen(
            words, env=dict(env), cwd="/", stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True,
            umask=0o022,
        )  # fmt: skip
    finally:
        os.close(fd)


def _settle_in(cgroup: str, pid: int) -> None:
    """A cgroup that no caller's end takes along."""
    if cgroup:
        with contextlib.suppress(OSError):
            os.makedirs(cgroup, exist_ok=True)
            with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))


def _await(path: str, child: subprocess.Popen[bytes], log: str) -> str:
    """Wait until it answers; why it does not, "" if it does."""
    deadline, pause = time.monotonic() + _SECONDS, 0.005
    while not _answers(path):
        if child.poll() is not None:
            return _last_line(log) or f"it ended with {child.returncode}"
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            return f"it did not answer within {_SECONDS:.0f} s"
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return ""


def _last_line(log: str) -> str:
    with open(log, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _LOG_TAIL, 0))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as made:
        made.settimeout(_SECONDS)
        made.connect(path)
        yield made


def _answers(path: str) -> bool:
    try:
        with _connected(path):
            return True
    except OSError:
        return False


def holder(state: str) -> process.Process | None:
    """The process that listens, as the kernel knows it (SO_PEERCRED); None if nobody does."""
    try:
        with _connected(endpoint(state)) as made:
            told = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_UCRED))
    except OSError:
        return None
    return process.identify(struct.unpack(_UCRED, told)[0])


def stop(state: str) -> None:
    """End it and wait; absent is success. What is mounted stays."""
    found = holder(state)
    if found is None:
        return
    with process.held(found) as pidfd:
        if pidfd is None:
            return
        process.send(pidfd, signal.SIGTERM)
        if not process.wait_pidfd(pidfd, _SECONDS):
            process.send(pidfd, signal.SIGKILL)
            process.wait_pidfd(pidfd, _SECONDS)
