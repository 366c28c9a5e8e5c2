"""Start the helper with a plan and learn what came of it.

Decides how descriptors reach the helper and what a failed step means in words. Refuses to know what the steps do: the
plan's own sentences say it. No path leaves a child, a descriptor or a cgroup behind.
"""

import errno
import fcntl
import math
import os
import select
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

from wherry.container import spawn
from wherry.container.state import kill_cgroup
from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.kernel.process import Process
from wherry.oci.plan import Op, Plan, sentence

__all__ = ["CREATED", "STARTED", "Launched", "close_all", "failure", "listen", "start", "stdio_pipes"]

CREATED, STARTED, FAILED, MONITOR = 1, 2, 3, 4  # native/plan.h WH_CREATED ...
_REPORT = struct.Struct("=IIIiiI104s")
_MAGIC = 0x4C504857
_FIRST_FD = 5
_PIPE_BYTES = 1 << 18  # a burst of output should not wait for the monitor's next turn


class Launched(NamedTuple):
    """A plan that went through. `monitor` is None for the role launch."""

    init: Process
    monitor: Process | None = None
    stage: int = STARTED


def start(container_dir: str, plan: Plan, role: str, fds: Mapping[str, int], *, name: str = "",
          timeout: float = 120.0) -> Launched:
    """Carry `plan` out in the helper's `role` ("monitor" or "launch").

    `fds` gives descriptors by the names of `plan.inherited` (oci/how.py lists them); they stay the caller's. Pipes
    come from `stdio_pipes`, the listening socket from `listen`, a first client from `attach.pair`. Returns once init
    runs (or waits for its start). Raises WherryError with the failed step; its `code` is 126 or 127 where the command
    itself could not be run. `name` is what sentences call the container, by default the directory's name.
    """
    with ExitStack() as stack:
        watch = _Watch(plan, name or os.path.basename(container_dir), time.monotonic() + timeout)
        try:
            child, reports = _spawn(stack, plan, role, fds)
            return watch.run(child, reports, role)
        except BaseException:
            watch.abandon()
            raise


def _spawn(stack: ExitStack, plan: Plan, role: str, fds: Mapping[str, int]) -> tuple[int, int]:
    """Spawn the helper: its pid and our end of the report pipe, which `stack` closes."""
    from wherry.container import idmaps, wire
    from wherry.kernel import shim

    maps = [slot for slot in plan.inherited if slot.startswith(idmaps.PREFIX) and slot not in fds]
    fds = {**fds, **{slot: _keep(stack, idmaps.open_map(slot)) for slot in maps}}
    missing = [slot for slot in plan.inherited if slot not in fds]
    if missing:
        raise WherryError(Kind.INTERNAL, f"no descriptor for {', '.join(missing)}")
    # the writing ends go with the inner stack, or the end of the helper would not be the end of the pipe
    with ExitStack() as passed:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        _keep(stack, ours)
        _keep(passed, theirs)
        image = _keep(passed, shim.sealed_memfd("wherry-plan", wire.encode(plan)))
        helper = _keep(passed, shim.helper_memfd())
        slots = [fds[slot] for slot in plan.inherited]
        return spawn.current().spawn(helper, role, [image, theirs, *slots]), ours


def _keep(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


class _Watch:
    """What is known of one start while it goes on."""

    def __init__(self, plan: Plan, name: str, deadline: float) -> None:
        self.plan, self.name, self.deadline = plan, name, deadline
        self.monitor: Process | None = None
        self.init: Process | None = None
        self.child = 0
        self.cgroups = [op.s0 for op in plan.ops if op.name == "CGROUP_DIR" and isinstance(op.s0, str)]
        self.cgroups = [path for path in self.cgroups if not os.path.exists(path)]  # others are not ours to undo
        self.last = CREATED if any(op.name == "WAIT_START" for op in plan.ops) else STARTED

    def run(self, child: int, reports: int, role: str) -> Launched:
        """Read reports until the last one that this plan sends."""
        self.child = child
        stage = 0
        while stage != self.last:
            report = self._read(reports)
            if report is None:
                raise self._gone()
            stage = self._take(*report)
        self._reap()
        if self.init is None:
            raise WherryError(Kind.INTERNAL, f"cannot start container {self.name}: the helper named no process")
        return Launched(self.init, self.monitor if role == "monitor" else None, stage)

    def _read(self, reports: int) -> tuple[int, int, int, int, bytes] | None:
        poll = select.poll()
        poll.register(reports, select.POLLIN)
        left = self.deadline - time.monotonic()
        if not poll.poll(None if left == math.inf else max(0, left) * 1000):
            text = f"cannot start container {self.name}: no answer from the helper in time"
            raise WherryError(Kind.UNAVAILABLE, text, hint="a hook or the storage below may hang")
        data = os.read(reports, _REPORT.size)  # one write each, shorter than PIPE_BUF: never torn
        if len(data) < _REPORT.size:
            return None
        magic, stage, index, error, pid, _, detail = _REPORT.unpack(data)
        if magic != _MAGIC:
            raise WherryError(Kind.INTERNAL, f"cannot start container {self.name}: the helper's report is damaged")
        return stage, index, error, pid, detail.split(b"\0", 1)[0]

    def _take(self, stage: int, index: int, error: int, pid: int, detail: bytes) -> int:
        if stage == FAILED:
            raise failure(self.plan, self.name, index, error, detail.decode("utf-8", "replace"))
        if stage == MONITOR:
            self.monitor = _named(pid)
        elif pid and self.init is None:
            self.init = _named(pid)
        return stage

    def _gone(self) -> WherryError:
        code = self._reap()
        return WherryError(Kind.INTERNAL, f"cannot start container {self.name}: the helper ended without a report "
                                          f"(exit code {code})")

    def _reap(self) -> int:
        """The spawned process: gone by itself once it has detached (monitor) or is done (launch)."""
        child, self.child = self.child, 0
        return spawn.current().reap(child) if child else 0

    def abandon(self) -> None:
        """End what runs of it and remove the cgroups it made; nothing is left to do if the helper reported failure."""
        for proc in (self.monitor, self.init):
            if proc is not None and proc.start_time:
                process.signal(proc, 9)
        if self.child:
            os.kill(self.child, 9)  # our own child, not reaped yet: the pid is still its own
            self._reap()
        for proc in (self.monitor, self.init):
            if proc is not None and proc.start_time:
                process.wait_gone(proc, 5)
        for path in reversed(self.cgroups):
            _remove_cgroup(path)


def _named(pid: int) -> Process:
    # start time 0: it ran and is gone by now, which no later look can mistake for a living process
    return process.identify(pid) or Process(pid, 0)


def _remove_cgroup(path: str) -> None:
    if not os.path.isdir(path):
        return
    kill_cgroup(path)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:  # EBUSY: the killed are still leaving
            time.sleep(0.005)


def stdio_pipes(streams: tuple[str, ...], uid: int = 0) -> dict[str, int]:
    """Pipes for `streams` (of stdin, stdout, stderr): both ends by slot name (stdin, stdin_w, stdout, stdout_r ...).

    The container's user owns them, so that it can open /dev/stdout anew.
    """
    fds: dict[str, int] = {}
    try:
        for stream in streams:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            inner, outer = ("", "_w") if stream == "stdin" else ("_r", "")
            fds[stream + inner], fds[stream + outer] = reader, writer
            if stream != "stdin":
                _widen(writer)
            if uid:
                os.fchown(reader, uid, -1)  # one inode for both ends
    except BaseException:
        close_all(fds)
        raise
    return fds


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return  # the user's pipe quota is spent: the default size works too


def listen(path: str) -> int:
    """The listening attach socket at `path`, 0600; slot "attach". One left over there is replaced."""
    import socket

    folder, name = os.path.split(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with files.directory(folder) as parent:
            files.remove_tree(name, parent)
            os.fchmod(sock.fileno(), 0o600)  # the mode that bind gives the name
            sock.bind(f"/proc/self/fd/{parent}/{name}")  # sun_path is short, directories may not be
        sock.listen(64)
        return sock.detach()
    except BaseException:
        sock.close()
        raise


def close_all(fds: dict[str, int]) -> None:
    """Close descriptors and forget them: a number closed twice may be another thread's by then."""
    while fds:
        os.close(fds.popitem()[1])


# --- a failed step in words ---

#: (operation, errno) -> what the user can do; operation "" for any
_HINTS: dict[tuple[str, int], str] = {
    ("TREE", errno.ENOENT): "the source of a mount does not exist on the host",
    ("TREE", errno.EACCES): "the source of a mount cannot be reached",
    ("OPEN", errno.ENOENT): "it does not exist on the host",
    ("CGROUP_DIR", errno.EEXIST): "a cgroup of that name is left over: `wherry gc` sweeps those that nobody uses",
    ("CGROUP_DIR", errno.EROFS): "the cgroup file system is mounted read-only here",
    ("CGROUP_DIR", errno.EACCES): "this user owns no cgroup there",
    ("CGROUP_SET", errno.ENOENT): "the controller is not available there; `wherry doctor` says who holds it",
    ("CGROUP_SET", errno.EINVAL): "the kernel refuses this value",
    ("CLONE", errno.EPERM): "this user may not make these namespaces; `wherry doctor` tells what is missing",
    ("CLONE", errno.ENOSPC): "the limit of namespaces is reached: see /proc/sys/user/max_*_namespaces",
    ("CLONE", errno.EAGAIN): "the limit of processes is reached",
    ("CLONE", errno.EBUSY): "the cgroup is not a leaf, or a controller forbids processes in it",
    ("FS_NEW", errno.ENODEV): "this kernel does not have the file system",
    ("FS_NEW", errno.EINVAL): "the file system refuses an option",
    ("ATTACH", errno.EROFS): "the mount point does not exist and the root is read-only: make it in the image",
    ("ATTACH", errno.ENOTDIR): "a directory can only be mounted on a directory, a file on a file",
    ("ATTACH", errno.EINVAL): "a directory can only be mounted on a directory, a file on a file",
    ("ATTACH", errno.ELOOP): "a symbolic link stands where a real directory is wanted",
    ("CHDIR", errno.ENOENT): "the working directory does not exist in the image (-w)",
    ("SYSCTL", errno.ENOENT): "this kernel does not have it, or it belongs to a namespace that the container shares",
    ("SYSCTL", errno.EPERM): "it is not the container's own to set",
    ("REMOUNT", errno.EINVAL): "nothing is mounted there, or the file system refuses an option",
    ("SCHEDULER", errno.EPERM): "it needs CAP_SYS_NICE, and real-time policies a share of the CPU's cgroup",
    ("SCHEDULER", errno.EBUSY): "no CPU has so much time left",
    ("SCHEDULER", errno.EOPNOTSUPP): "this kernel was built without it",
    ("IO_PRIORITY", errno.EPERM): "it needs CAP_SYS_NICE",
    ("CPUS", errno.EINVAL): "none of these CPUs is there, or the cgroup may use none of them",
    ("MEM_POLICY", errno.EINVAL): "a memory node is not there, or the kernel does not know this mode",
    ("NET_DEVICE", errno.ENODEV): "the host has no network device of that name",
    ("NET_DEVICE", errno.EEXIST): "the container has a network device of that name already",
    ("RDT_DIR", errno.ENOSPC): "the CPU has no class of service or monitoring group left",
    ("RDT_SCHEMA", errno.EINVAL): "the CPU does not take this schema: see info/last_cmd_status of resctrl",
    ("MON_LOG", errno.ENOENT): "the directory of the log, or journald's socket, does not exist",
    ("MON_LOG", errno.ECONNREFUSED): "journald does not run on this host",
    ("RLIMIT", errno.EPERM): "the hard limit may not be raised here (CAP_SYS_RESOURCE)",
    ("SECCOMP", errno.EINVAL): "this kernel refuses the filter",
    ("HOOK", errno.ETIMEDOUT): "the hook took longer than its timeout",
    ("EXEC", errno.ENOEXEC): "it is not a program for this machine, or a script without #!",
    ("EXEC", errno.EACCES): "it is not executable by the container's user",
    ("", errno.ENOSPC): "the disk or a kernel limit is full",
    ("", errno.ENOMEM): "out of memory",
    ("", errno.EMFILE): "the limit of open files is reached",
}
_KINDS = {
    errno.ENOENT: Kind.PRECONDITION, errno.EPERM: Kind.DENIED, errno.EACCES: Kind.DENIED,
    errno.ENOSPC: Kind.EXHAUSTED, errno.ENOMEM: Kind.EXHAUSTED, errno.EMFILE: Kind.EXHAUSTED,
    errno.EAGAIN: Kind.EXHAUSTED, errno.EEXIST: Kind.CONFLICT, errno.EBUSY: Kind.CONFLICT,
    errno.ENOSYS: Kind.UNSUPPORTED, errno.ENODEV: Kind.UNSUPPORTED,
    errno.EOPNOTSUPP: Kind.UNSUPPORTED, errno.EINVAL: Kind.INVALID, errno.ENOTDIR: Kind.INVALID,
}


def failure(plan: Plan, name: str, index: int, error: int, detail: str = "") -> WherryError:
    """The error that says which step failed, on what, and why."""
    if index >= len(plan.ops):  # no step at fault: the plan itself, or memory
        return WherryError(Kind.INTERNAL, f"cannot start container {name}: {detail or 'the helper'}: {_words(error)}")
    op = plan.ops[index]
    if op.name in ("EXEC", "FIND"):
        return _exec_failure(op, error)
    text = f"cannot start container {name}: step {index + 1} of {len(plan.ops)}, {sentence(op)}"
    if detail and detail not in text:
        text += f" ({detail})"
    hint = _HINTS.get((op.name, error)) or _HINTS.get(("", error), "")
    return WherryError(_KINDS.get(error, Kind.INTERNAL), f"{text}: {_words(error)}", hint=hint)


def _exec_failure(op: Op, error: int) -> WherryError:
    """docker's sentences and codes: 127 there is no such command, 126 it cannot be run."""
    command = op.s0 if isinstance(op.s0, str) else ""
    missing = error in (errno.ENOENT, errno.ENOTDIR)
    if missing and "/" not in command:
        why = "executable file not found in $PATH"
    elif missing:
        why = f"stat {command}: no such file or directory"
    else:
        why = os.strerror(error).lower()
    return WherryError(Kind.INVALID, f'exec: "{command}": {why}', hint=_HINTS.get(("EXEC", error), ""),
                       code=127 if missing else 126)


def _words(error: int) -> str:
    return f"{errno.errorcode.get(error, error)}, {os.strerror(error)}"
