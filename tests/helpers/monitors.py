"""Containers without a root of their own, for tests of the monitor: its records and a host process make the plan.

Everything that a start needs is real (helper, pipes, sockets, files); only namespaces and mounts are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from wherry.container import attach, launch
from wherry.container.attach import AttachStream
from wherry.container.launch import Launched
from wherry.container.state import ContainerDir, State
from wherry.kernel import process
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT, ExitStatus
from wherry.oci.plan import Op, Plan

DRIVERS = {"none": 0, "cri": 1, "json": 2, "journald": 3}


@dataclass
class How:
    """What a test wants of one start."""

    argv: tuple[str, ...]
    log: str = "cri"
    log_path: str = ""
    log_bytes: int = 0
    log_files: int = 1
    log_fields: tuple[str, ...] = ()
    stdin: bool = False
    tty: bool = False
    client: bool = False
    listen: bool = True
    record: bool = True
    cgroup: str = ""
    kill: bool = False
    oom: str = ""  # directory with memory.events
    cleanup: tuple[str, ...] = ()
    timer: tuple[int, int, tuple[str, ...]] | None = None


@dataclass
class Builder:
    inherited: list[str] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def slot(self, name: str) -> int:
        self.inherited.append(name)
        return len(self.inherited) - 1


def sh(text: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text)


def plan_of(how: How, place: ContainerDir) -> Plan:
    b = Builder()
    streams = [] if how.tty else [*(["stdin"] if how.stdin else []), "stdout", "stderr"]
    numbers = {"stdin": 0, "stdout": 1, "stderr": 2}
    inner = {name: b.slot(name) for name in streams}
    outer = {name: b.slot(name + ("_w" if name == "stdin" else "_r")) for name in streams}
    extra = {name: b.slot(name) for name, on in (("attach", how.listen), ("client", how.client)) if on}
    slots = len(b.inherited)
    cgroup, oom, master = slots, slots + 1, slots + 2
    m: list[Op] = [Op("MON_STDIO", "M", fd0=fd, n0=numbers[name]) for name, fd in outer.items()]
    if how.tty:
        m.append(Op("MON_STDIO", "M", ("TTY",), fd0=master, n0=1))
    size = len(how.log_fields) if how.log == "journald" else how.log_bytes
    path = how.log_path or place.file("log")
    m.append(Op("MON_LOG", "M", s0=path, n0=DRIVERS[how.log], n1=size, n2=how.log_files, s1=how.log_fields))
    m += [Op({"attach": "MON_ATTACH", "client": "MON_CLIENT"}[name], "M", fd0=fd) for name, fd in extra.items()]
    if how.record:
        m.append(Op("MON_EXIT", "M", s0=place.path))
    if how.cleanup:
        env = (f"PATH={os.environ['PATH']}", f"PLACE={place.path}")
        m.append(Op("MON_CLEANUP", "M", s0=how.cleanup, n0=len(how.cleanup), s1=env, n1=len(env)))
    if how.timer:
        interval, first, argv = how.timer
        m.append(Op("MON_TIMER", "M", s0=argv, n0=interval, n1=first, n2=len(argv)))
    h: list[Op] = []
    if how.cgroup:
        h.append(Op("CGROUP_DIR", "H", fd0=cgroup, s0=how.cgroup))
        if how.kill:
            m.append(Op("MON_KILL", "M", fd0=cgroup))
    if how.oom:
        h.append(Op("OPEN", "H", s0=how.oom, n0=os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, fd0=oom))
        m.append(Op("MON_OOM", "M", fd0=oom))
    h.append(Op("CLONE", "H", n0=0, s0="a process", fd0=cgroup if how.cgroup else -1))
    h.append(Op("REPORT", "H", n0=1, s0="created"))
    c = [Op("STDIO", "C", fd0=fd, n0=numbers[name]) for name, fd in inner.items()]
    if how.tty:
        c.append(Op("CONSOLE", "C", ("HOST_PTMX", "NO_BIND")))
        h.append(Op("RECV_FD", "H", fd0=master))
    c += [Op("SESSION", "C", ("TTY",) if how.tty else ()), Op("PDEATHSIG", "C", n0=9), Op("CLOSE_FROM", "C", n0=3),
          Op("EXEC", "C", s0=how.argv[0], s1=how.argv, n0=len(how.argv), s2=("PATH=/usr/bin:/bin", "TERM=xterm"), n1=2)]
    ops = (*m, *h, *c, Op("REPORT", "H", n0=2, s0="started"))
    return Plan(ops, tuple(b.inherited), slots + 3)


class Box:
    """One container directory and what runs for it."""

    def __init__(self, root: str, name: str) -> None:
        self.place = ContainerDir(root, name)
        self.place.make()
        self.launched: Launched | None = None
        self.stream: AttachStream | None = None
        self.cgroup = ""

    def start(self, how: How) -> AttachStream | None:
        plan = plan_of(how, self.place)
        streams = tuple(name for name in ("stdin", "stdout", "stderr") if name in plan.inherited)
        fds = launch.stdio_pipes(streams)
        try:
            if how.listen:
                fds["attach"] = launch.listen(self.place.attach_path)
            if how.client:
                self.stream, fds["client"] = attach.pair()
            self.launched = launch.start(self.place.path, plan, "monitor", fds)
        finally:
            launch.close_all(fds)
        self.cgroup = how.cgroup
        self.place.save(State(self.place.id, cgroup=how.cgroup, init=self.launched.init, monitor=self.launched.monitor))
        return self.stream

    def connect(self) -> AttachStream:
        return attach.connect(self.place.attach_path)

    def ended(self, timeout: float = 20) -> ExitStatus:
        status = until(self.place.exit_status, timeout)
        assert status is not None
        return status

    def log(self, name: str = "log") -> str:
        with open(self.place.file(name), encoding="utf-8", newline="") as file:
            return file.read()

    def lines(self, name: str = "log") -> list[tuple[str, str, str]]:
        """(stream, F or P, text) of a CRI log."""
        rows = [line.split(" ", 3) for line in self.log(name).split("\n")[:-1]]
        return [(row[1], row[2], row[3]) for row in rows]

    def monitor_gone(self, timeout: float = 10) -> bool:
        assert self.launched is not None
        assert self.launched.monitor is not None
        return process.wait_gone(self.launched.monitor, timeout)

    def remove(self) -> None:
        if self.stream is not None:
            self.stream.close()
        if self.launched is not None:
            for one in (self.launched.monitor, self.launched.init):
                if one is not None and process.alive(one):
                    process.signal(one, 9)
                    process.wait_gone(one, 5)
        if self.cgroup and os.path.isdir(self.cgroup):
            from wherry.container import lifecycle

            lifecycle.remove_cgroup(self.cgroup)
        self.place.remove()


T = TypeVar("T")


def until(look: Callable[[], T | None], timeout: float = 10) -> T | None:
    """What `look` gives once it is true; None after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.005)
    return found or None


@contextmanager
def box(root: str, name: str) -> Iterator[Box]:
    one = Box(root, name)
    try:
        yield one
    finally:
        one.remove()


def collect(stream: AttachStream, timeout: float = 30) -> tuple[bytes, bytes, ExitStatus | None]:
    """Everything up to the end of the stream: stdout, stderr, status."""
    out, status = {ATTACH_STDOUT: bytearray(), ATTACH_STDERR: bytearray()}, None
    for kind, payload in stream.frames():
        if kind == ATTACH_EXIT:
            status = attach.decode_exit(payload)
            break
        if kind in out:
            out[kind] += payload
    return bytes(out[ATTACH_STDOUT]), bytes(out[ATTACH_STDERR]), status


def read_until(stream: AttachStream, text: bytes) -> bytes:
    """Output up to and with `text`."""
    seen = bytearray()
    while text not in seen:
        frame = stream.read()
        assert frame is not None, f"ended after {bytes(seen)!r}"
        assert frame[0] != ATTACH_EXIT, f"exited after {bytes(seen)!r}"
        if frame[0] in (ATTACH_STDOUT, ATTACH_STDERR):
            seen += frame[1]
    return bytes(seen)
