"""The warm process from outside: is there one, why not, and its end.

Decides by the lock of STATE/warm alone, which the process holds as long as it lives. Refuses to know what it serves.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping

from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.model import Json

from . import command

__all__ = ["install", "status", "stop"]

_SOCKET = """[Unit]
Description=Socket of the warm process of wherry

[Socket]
ExecStartPre=/bin/mkdir -p -m 0711 {state}
ListenSequentialPacket={state}/warm/socket
DirectoryMode=0700
SocketMode=0600
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""
# Nothing is confined: it serves only callers whose world is its own.
_SERVICE = """[Unit]
Description=Warm process of wherry, which answers short commands
Requires=wherry-warm.socket

[Service]
Environment="PYTHONPATH={path}" LANG=C.UTF-8
ExecStart="{python}" -P -c "from wherry.warm.server import activated; activated()"
KillMode=process
"""
_SECONDS = 10.0  # for it to end
_SMALL = 1 << 16


def status(state: str, env: Mapping[str, str]) -> Json:
    """Pid, Age (seconds), Socket, Memory (bytes resident), Commands (at work now); without one Pid is 0, Why tells."""
    found: Json = {"Pid": 0, "Socket": f"{state}/warm/socket", "Why": _why_not(f"{state}/warm", env)}
    running = None if found["Why"] else _running(f"{state}/warm")
    if running is None:
        found["Why"] = found["Why"] or "none was left yet: the next command leaves one"
        return found
    del found["Why"]
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - running.start_time / os.sysconf("SC_CLK_TCK")
    return {**found, "Pid": running.pid, "Age": round(age, 1), "Memory": _resident(running.pid),
            "Commands": _at_work(running.pid)}  # fmt: skip


def install(state: str, directory: str) -> list[str]:
    """Write the units by which systemd keeps the socket, and the process while it is used; their paths.

    systemd.socket(5), systemd.service(5). NOT_FOUND, DENIED.
    """
    texts = {"wherry-warm.socket": _SOCKET.format(state=state), "wherry-warm.service": _SERVICE.format(
        python=sys.executable, path=command.python_path())}  # fmt: skip
    if not os.path.isdir(directory):
        hint = "is this a machine with systemd?"
        raise WherryError(Kind.NOT_FOUND, f"{directory} is not a directory", hint=hint)
    made = [os.path.join(directory, name) for name in texts]
    for path, text in zip(made, texts.values(), strict=True):
        try:
            files.atomic_write(path, text.encode(), 0o644)
        except OSError as error:
            raise WherryError(Kind.DENIED, f"cannot write {path}: {error.strerror}") from error
    return made


def stop(state: str) -> bool:
    """End it and wait; False where there is none. Commands that it was given go on."""
    running = _running(f"{state}/warm")
    if running is None:
        return False
    with process.held(running) as pidfd:
        if pidfd is not None and process.send(pidfd, signal.SIGTERM) and not process.wait_pidfd(pidfd, _SECONDS):
            raise WherryError(
                Kind.UNAVAILABLE, f"the warm process {running.pid} does not end",
                hint=f"kill -9 {running.pid}; it holds nothing that could be lost",
            )  # fmt: skip
    return True


def _why_not(directory: str, env: Mapping[str, str]) -> str:
    """Why no command from here would be served, "" where nothing speaks against it."""
    if env.get("WHERRY_WARM") == "off":
        return "WHERRY_WARM=off"
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return ""
    if found.st_uid != os.geteuid():
        return f"{directory} belongs to uid {found.st_uid}, not to us"
    if found.st_mode & 0o177777 != 0o40700:
        return f"{directory} is not a directory of mode 0700"
    if os.path.realpath(directory) != directory:
        return f"a part of {directory} is a symbolic link"
    return ""


def _running(directory: str) -> process.Process | None:
    """Who holds the lock. What it wrote there is true while the lock is held."""
    try:
        fd = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WherryError(Kind.DENIED, f"cannot read {directory}/lock: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(fd, 32).strip()
        return process.identify(int(text)) if text.isdigit() else None
    finally:
        os.close(fd)
    return None


def _at_work(pid: int) -> int:
    """Its spare children wait for a command, or for the end of their one, which is their child."""
    below = _children(pid)
    found = [*below, *(child for spare in below for child in _children(spare))]
    return sum(_text(f"/proc/{child}/comm") == "wherry-command\n" for child in found)


def _children(pid: str | int) -> list[str]:
    return _text(f"/proc/{pid}/task/{pid}/children").split()


def _resident(pid: int) -> int:
    return int((_text(f"/proc/{pid}/statm").split() or ["0", "0"])[1]) * os.sysconf("SC_PAGE_SIZE")


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(_SMALL)
    except OSError:
        return ""
