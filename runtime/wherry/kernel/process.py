"""Processes named by pid and start time, held by pidfd: no signal ever reaches a recycled pid.

Decides what "the same process" means. Refuses to know containers. The only user of python-prctl.
"""

import os
import select
import signal as signals
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = [
    "Process", "alive", "alive_many", "be_named", "become_subreaper", "die_with_parent", "held", "identify",
    "kill_group", "open_pidfd", "parent", "reap", "securebits", "send", "signal", "signal_number", "start_time",
    "state", "subreaper", "wait_gone", "wait_pidfd",
]

_STAT_STATE, _STAT_PPID, _STAT_START = 0, 1, 19  # of proc(5) /proc/pid/stat, counted from behind comm
_STAT_MAX, _STAT_USUAL = 4096, 512  # bytes
_PROCESS_GROUP = 1 << 2  # linux/pidfd.h PIDFD_SIGNAL_PROCESS_GROUP


class Process(NamedTuple):
    """One process for all time of this boot. `start_time` in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start_time: int


def _stat(pid: int) -> list[str] | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, _STAT_MAX)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _fields(text)


def _fields(text: bytes) -> list[str]:
    """Those after comm, which may hold spaces and parentheses itself."""
    return text[text.rindex(b")") + 2 :].decode("ascii").split()


def start_time(pid: int) -> int | None:
    """The start time of `pid`, None if there is no such process."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_STAT_START])


def state(process: Process) -> str:
    """The state letter of proc(5); "" if the process is gone or its pid belongs to another one now."""
    fields = _stat(process.pid)
    return "" if fields is None or int(fields[_STAT_START]) != process.start_time else fields[_STAT_STATE]


def parent(pid: int) -> int:
    """The parent's pid, 0 if there is none to see or no such process."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[_STAT_PPID])


def identify(pid: int) -> Process | None:
    """Name the process that has `pid` now."""
    started = start_time(pid)
    return None if started is None else Process(pid, started)


def alive(process: Process | None) -> bool:
    """Whether it runs. A zombie does not: all that is left of it is a status."""
    return process is not None and state(process) not in ("", "Z", "X")


def alive_many(processes: Sequence[Process | None]) -> list[bool]:
    """`alive` for each, at the cost of a few."""
    from wherry.kernel import shim

    names = [f"{process.pid}/stat" if process is not None else "" for process in processes]
    texts = shim.read_many("/proc", names, _STAT_USUAL * (len(names) + 8))
    return [bool(process and text and _lives(process, text)) for process, text in zip(processes, texts, strict=True)]


def _lives(process: Process, text: bytes) -> bool:
    fields = _fields(text)
    return int(fields[_STAT_START]) == process.start_time and fields[_STAT_STATE] not in ("Z", "X")


def open_pidfd(process: Process) -> int | None:
    """A pidfd (close-on-exec) of exactly this process, None if it is gone. A zombie can still be opened."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # checked after the open: from here on the pid cannot change hands under us
    if start_time(process.pid) == process.start_time:
        return fd
    os.close(fd)
    return None


@contextmanager
def held(process: Process) -> Iterator[int | None]:
    """`open_pidfd` for a with statement."""
    fd = open_pidfd(process)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def send(pidfd: int, number: int) -> bool:
    """Signal through a pidfd; False if the process is gone."""
    try:
        signals.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def signal(process: Process, number: int) -> bool:
    """Signal exactly this process; False if it is gone."""
    with held(process) as fd:
        return fd is not None and send(fd, number)


def kill_group(process: Process) -> bool:
    """Kill this process and, where the kernel can do it by a pidfd (6.9), its process group; False if it is gone."""
    with held(process) as fd:
        if fd is None:
            return False
        try:
            signals.pidfd_send_signal(fd, signals.SIGKILL, None, _PROCESS_GROUP)
        except OSError:
            return send(fd, signals.SIGKILL)
        return True


def wait_pidfd(pidfd: int, timeout: float | None = None) -> bool:
    """Wait until the process has ended (it need not be a child); False after `timeout` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))


def wait_gone(process: Process, timeout: float | None = None) -> bool:
    """Wait until the process has ended; False after `timeout` seconds."""
    with held(process) as fd:
        return fd is None or wait_pidfd(fd, timeout)


def reap(pid: int) -> int:
    """Wait for our own child; its exit code as a shell's (128 + n by signal)."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def signal_number(text: str | int) -> int:
    """A signal by number, name or name with SIG, RTMIN and RTMAX offsets too, in any case: docker's habits."""
    name = str(text).strip().upper().removeprefix("SIG")
    number = int(name) if name.isascii() and name.isdigit() else _by_name(name)
    if not 0 < number <= signals.SIGRTMAX:
        raise WherryError(Kind.INVALID, f"invalid signal: {text}", hint="a name such as TERM or SIGTERM, or a number")
    return number


def _by_name(name: str) -> int:
    for base in ("RTMIN", "RTMAX"):
        offset = name.removeprefix(base)
        if offset != name and (offset == "" or (offset[0] in "+-" and offset[1:].isdigit())):
            return int(getattr(signals, f"SIG{base}")) + int(offset or 0)
    # POLL, IO and CLD are aliases that the enum's members keep only as attributes
    return int(getattr(signals, f"SIG{name}", 0)) if name.isalnum() and not name.startswith("_") else 0


def securebits() -> int:
    """Our securebits as PR_GET_SECUREBITS tells them (linux/securebits.h: a bit and its lock for each)."""
    import prctl

    names = ("noroot", "noroot_locked", "no_setuid_fixup", "no_setuid_fixup_locked", "keep_caps", "keep_caps_locked")
    return sum(bool(getattr(prctl.securebits, name)) << place for place, name in enumerate(names))


@contextmanager
def subreaper() -> Iterator[None]:
    """`become_subreaper` for a with statement: afterwards as before."""
    import prctl

    before = bool(prctl.get_child_subreaper())
    become_subreaper()
    try:
        yield
    finally:
        become_subreaper(before)


def be_named(name: str) -> None:
    """What /proc/PID/comm and ps(1) show, up to 15 bytes."""
    import prctl

    prctl.set_name(name)


def die_with_parent(parent: int) -> bool:
    """PR_SET_PDEATHSIG with SIGKILL; False where `parent` is gone already."""
    import prctl

    prctl.set_pdeathsig(signals.SIGKILL)
    return os.getppid() == parent


def become_subreaper(on: bool = True) -> None:
    """Orphans below this process become its children: what a caller needs that must wait for a container's init."""
    import prctl

    prctl.set_child_subreaper(on)
