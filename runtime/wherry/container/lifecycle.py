"""The verbs on one container's directory: kill, stop, pause, resume, wait, start (of a created one), delete, update.

Decides how each verb reaches the processes: pidfds and cgroup files, never bare pids. Refuses to know policies (restart,
--rm) and names. Callers hold `ContainerDir.lock` for the verbs that change something, never while they wait.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable

from wherry.container.state import ContainerDir, State, Status, kill_cgroup
from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.model import ExitStatus

__all__ = ["delete", "kill", "pause", "remove_cgroup", "resume", "set_resources", "start_created", "stop", "wait"]

_KILL = 9
_EXIT_GRACE = 15.0  # seconds from init's end to exit.json: the monitor drains output for at most a few


def kill(container: ContainerDir, sig: str | int = "KILL", *, everyone: bool = False) -> None:
    """Send a signal to init, or with `everyone` to each process of the cgroup. CONFLICT if it does not run."""
    number = process.signal_number(sig)
    state = _running(container)
    if number == _KILL and (everyone or not _has_init_namespace(state)) and kill_cgroup(state.cgroup):
        return
    sent = _signal_everyone(state, number) if everyone else state.init is not None and process.signal(state.init, number)
    if not sent:
        raise _not_running(container)
    if number == _KILL:
        _thaw(state)


def _running(container: ContainerDir) -> State:
    state = container.load()
    if container.status(state) not in (Status.CREATED, Status.RUNNING, Status.PAUSED):
        raise _not_running(container)
    return state


def _not_running(container: ContainerDir) -> WherryError:
    return WherryError(Kind.CONFLICT, f"container {container.id} is not running")


def _has_init_namespace(state: State) -> bool:
    """Whether init is pid 1 of a namespace: then its end is the end of all."""
    if state.init is None:
        return False
    try:
        status = files.read_capped(f"/proc/{state.init.pid}/status", 1 << 16)
    except OSError:
        return True
    line = next((line for line in status.splitlines() if line.startswith(b"NSpid:")), b"NSpid:\t0")
    return line.split()[-1] == b"1"


def _signal_everyone(state: State, number: int) -> bool:
    sent = False
    for pid in _members(state.cgroup):
        found = process.identify(pid)
        sent |= found is not None and process.signal(found, number)
    return sent


def _members(cgroup: str) -> list[int]:
    try:
        return [int(pid) for pid in files.read_capped(os.path.join(cgroup, "cgroup.procs"), 1 << 22).split() if pid != b"0"]
    except OSError:
        return []


def stop(container: ContainerDir, sig: str | int = "TERM", timeout: float = 10.0) -> ExitStatus | None:
    """Ask init to end by `sig`, wait up to `timeout` seconds (negative: for ever), then kill everything.

    A container that does not run is fine. Returns how it ended (see `wait`).
    """
    number = process.signal_number(sig)
    state = container.load()
    if state.init is not None and process.alive(state.init):
        with process.held(state.init) as fd:
            if fd is not None:
                _thaw(state)  # a frozen process takes no signal but KILL
                process.send(fd, number)
                if not process.wait_pidfd(fd, None if timeout < 0 else timeout):
                    _kill_all(state, fd)
    return wait(container, _EXIT_GRACE)


def _kill_all(state: State, pidfd: int) -> None:
    kill_cgroup(state.cgroup)
    process.send(pidfd, _KILL)
    if not process.wait_pidfd(pidfd, 10):
        raise WherryError(Kind.UNAVAILABLE, f"container {state.id} does not end although it was killed",
                          hint="a process of it waits for a device or a network file system")


def wait(container: ContainerDir, timeout: float | None = None) -> ExitStatus | None:
    """Wait for the end and tell it. None: `timeout` seconds were not enough, or nobody of ours knows the status.

    Sleeps on the pidfds of init and monitor; exit.json is there when the monitor's work on this container is done.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    state = container.load()
    if state.init is not None and not process.wait_gone(state.init, timeout):
        return None
    if state.monitor is None:
        return container.exit_status()
    return _await_exit(container, state, deadline)


def _await_exit(container: ContainerDir, state: State, deadline: float | None) -> ExitStatus | None:
    """The moment between init's end and exit.json: a drained pipe, or a few seconds at worst."""
    assert state.monitor is not None
    with process.held(state.monitor) as monitor:
        pause = 0.0005
        while (status := container.exit_status()) is None:
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left < 0:
                return None
            if monitor is None or process.wait_pidfd(monitor, left):
                return container.settle(state)
            pause = min(pause * 2, 0.02)
    return status


def pause(container: ContainerDir, timeout: float = 10.0) -> None:
    """Freeze every process; undone if it does not succeed within `timeout` seconds."""
    state = _running(container)
    status = container.status(state)
    if status is not Status.RUNNING:
        raise WherryError(Kind.CONFLICT, f"container {container.id} is {status.value}, not running")
    if not _freeze(state, True, timeout):
        _freeze(state, False, 0)
        raise WherryError(Kind.UNAVAILABLE, f"container {container.id} does not freeze",
                          hint="a process of it waits for a device or a network file system")


def resume(container: ContainerDir, timeout: float = 10.0) -> None:
    """Thaw every process. CONFLICT if it is not paused."""
    state = container.load()
    if container.status(state) is not Status.PAUSED:
        raise WherryError(Kind.CONFLICT, f"container {container.id} is not paused")
    if not _freeze(state, False, timeout):
        raise WherryError(Kind.UNAVAILABLE, f"container {container.id} does not thaw",
                          hint="a cgroup above it may be frozen")


def _thaw(state: State) -> None:
    """Undo a pause where there is one; a killed process must run to die."""
    if state.cgroup:
        try:
            _write(os.path.join(state.cgroup, "cgroup.freeze"), "0")
        except OSError:
            return


def _freeze(state: State, on: bool, timeout: float) -> bool:
    if not state.cgroup:
        raise WherryError(Kind.PRECONDITION, f"container {state.id} has no cgroup to freeze")
    events = os.open(os.path.join(state.cgroup, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _write(os.path.join(state.cgroup, "cgroup.freeze"), "1" if on else "0")
        return _await_event(events, b"frozen 1" if on else b"frozen 0", timeout)
    except OSError as error:
        raise WherryError(Kind.PRECONDITION, f"cannot freeze {state.cgroup}: {error.strerror}") from error
    finally:
        os.close(events)


def _await_event(events: int, line: bytes, timeout: float) -> bool:
    """cgroup.events notifies by POLLPRI (kernel docs, cgroup-v2, "un/populated notification")."""
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    deadline = time.monotonic() + timeout
    while line not in os.pread(events, 4096, 0).splitlines():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        poll.poll(left * 1000)
    return True


def start_created(container: ContainerDir) -> None:
    """Let a created container run (role launch, or a plan with a start fifo)."""
    state = container.load()
    try:
        fd = os.open(container.fifo_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        status = container.status(state).value
        raise WherryError(Kind.CONFLICT, f"cannot start container {container.id}: it is {status}") from None
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
    os.unlink(container.fifo_path)
    container.change(started=time.time())


def set_resources(container: ContainerDir, writes: Iterable[tuple[str, str]]) -> None:
    """Write cgroup files of a running container, in order (oci.cgroup2 makes them)."""
    cgroup = _running(container).cgroup
    for name, value in writes:
        try:
            _write(os.path.join(cgroup, name), value)
        except FileNotFoundError:
            raise WherryError(Kind.PRECONDITION, f"cannot set {name}: the controller is not available",
                              hint="`wherry doctor` says who holds it") from None
        except OSError as error:
            raise WherryError(Kind.INVALID, f"cannot set {name} to {value}: {error.strerror}") from error


def _write(path: str, value: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(value.encode())


def delete(container: ContainerDir, *, force: bool = False) -> None:
    """Remove what is left of a stopped container: cgroup, directory. `force` kills it first; absent is fine then."""
    if not container.exists():
        if force:
            return
        raise WherryError(Kind.NOT_FOUND, f"no such container: {container.id}")
    try:
        state = container.load()
    except WherryError:
        state = State(container.id)  # a start that never got as far as state.json
    if process.alive(state.init):
        if not force and container.status(state) is not Status.CREATED:
            raise WherryError(Kind.CONFLICT, f"container {container.id} is {container.status(state).value}",
                              hint="stop it first, or use --force")
        stop_now(state)
    remove_cgroup(state.cgroup)
    container.remove()


def stop_now(state: State) -> None:
    """KILL everything and wait for init to be gone."""
    if state.init is not None:
        with process.held(state.init) as fd:
            if fd is not None:
                _kill_all(state, fd)


def remove_cgroup(path: str, timeout: float = 5.0) -> None:
    """Kill what is left in a cgroup and remove it with those below it; absent is fine."""
    if not path or not os.path.isdir(path):
        return
    kill_cgroup(path)
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not _rmdir_all(path):
        if time.monotonic() > deadline:
            raise WherryError(Kind.CONFLICT, f"cgroup {path} cannot be removed: it is busy")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _rmdir_all(path: str) -> bool:
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except FileNotFoundError:
        return not os.path.isdir(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
