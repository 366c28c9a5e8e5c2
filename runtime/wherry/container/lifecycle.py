"""The verbs on one container's directory: kill, stop, pause, resume, wait, start (if created), delete, update.

Decides how each verb reaches the processes: by pidfd and cgroup, never by bare pid. Refuses to know policies (restart,
--rm) and names. Callers hold `ContainerDir.lock` for the verbs that change something, never while they wait.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable

from wherry.container.state import ContainerDir, State, Status, frozen, kill_cgroup
from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.model import ExitStatus

__all__ = ["delete", "kill", "pause", "remove_cgroup", "resume", "set_resources", "start_created", "stop", "wait"]

_KILL = 9
_START_GRACE = 5.0  # seconds from "created" to init's wait on the fifo
_YOUNG = 2.0  # seconds after its start in which a process may still be getting ready for signals
_EXIT_GRACE = 15.0  # seconds from init's end to exit.json: the monitor drains output for at most a few


def kill(container: ContainerDir, sig: str | int = "KILL", *, everyone: bool = False) -> None:
    """Send a signal to init, or with `everyone` to each process of the cgroup. CONFLICT if it does not run."""
    number = process.signal_number(sig)
    state = _running(container)
    if number == _KILL and (everyone or not _has_init_namespace(state)) and kill_cgroup(state.cgroup):
        return
    if not (_signal_everyone(state, number) if everyone else _signal_init(state, number)):
        raise _not_running(container)


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


def _signal_init(state: State, number: int) -> bool:
    return state.init is not None and process.signal(state.init, number)


def _signal_everyone(state: State, number: int) -> bool:
    from wherry.kernel import cgroup

    sent = False
    if not state.cgroup:  # all that is known of it
        return _signal_init(state, number)
    for pid in cgroup.processes(state.cgroup):
        found = process.identify(pid)
        sent |= found is not None and process.signal(found, number)
    return sent


def stop(container: ContainerDir, sig: str | int = "TERM", timeout: float = 10.0) -> ExitStatus | None:
    """Ask init to end by `sig`, wait up to `timeout` seconds (negative: for ever), then kill everything.

    A container that does not run is fine. Returns how it ended (see `wait`).
    """
    number = process.signal_number(sig)
    state = container.load()
    if state.init is not None and process.alive(state.init):
        with process.held(state.init) as fd:
            if fd is not None:
                _thaw(state)
                left = _until_heard(state, fd, number, timeout)
                process.send(fd, number)
                if not process.wait_pidfd(fd, None if left < 0 else left):
                    _kill_all(state, fd)
    return wait(container, _EXIT_GRACE)


def _until_heard(state: State, pidfd: int, number: int, timeout: float) -> float:
    """Pid 1 of a namespace loses a signal that it has no handler for (signal(7)), and who has just begun has none yet:
    give it a moment. What is left of `timeout`."""
    begun = time.monotonic()
    young = state.started + _YOUNG - time.time()
    end = begun + (young if timeout < 0 else min(young, timeout))
    while number != _KILL and time.monotonic() < end and not _hears(state, number):
        if process.wait_pidfd(pidfd, 0.01):
            break
    return timeout if timeout < 0 else max(0.0, timeout - (time.monotonic() - begun))


def _hears(state: State, number: int) -> bool:
    """Whether init is no pid 1, or catches the signal."""
    assert state.init is not None
    try:
        lines = files.read_capped(f"/proc/{state.init.pid}/status", 1 << 16).splitlines()
    except OSError:
        return True
    found = dict(line.split(b":", 1) for line in lines if b":" in line)
    catches = int(found.get(b"SigCgt", b"0"), 16) >> (number - 1) & 1
    return bool(catches) or found.get(b"NSpid", b"1 0").split()[-1] != b"1"


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
    from wherry.kernel import cgroup

    cgroup.freeze(_cgroup(state), timeout)


def _cgroup(state: State) -> str:
    if not state.cgroup:
        raise WherryError(Kind.PRECONDITION, f"container {state.id} has no cgroup")
    return state.cgroup


def resume(container: ContainerDir, timeout: float = 10.0) -> None:
    """Thaw every process. CONFLICT if it is not paused."""
    state = container.load()
    if container.status(state) is not Status.PAUSED:
        raise WherryError(Kind.CONFLICT, f"container {container.id} is not paused")
    from wherry.kernel import cgroup

    cgroup.thaw(_cgroup(state), timeout)


def _thaw(state: State) -> None:
    """Undo a pause where there is one: a frozen process takes no signal but KILL."""
    if frozen(state.cgroup):
        from wherry.kernel import cgroup

        cgroup.thaw(state.cgroup)


def start_created(container: ContainerDir) -> bool:
    """Let a created container run (role launch, or a plan with a start fifo). False: a step before its exec failed."""
    state = container.load()
    fd = _open_fifo(container, state, time.monotonic() + _START_GRACE)
    try:
        container.change(started=time.time())  # first: a start that is killed after its write has started it
        os.write(fd, b"11")
        ran = _await_exec(fd)
    finally:
        os.close(fd)
    os.unlink(container.fifo_path)
    return ran


def _await_exec(fifo: int) -> bool:
    """Init takes one byte and closes its end by the exec, or by its end; a failure takes the other byte too."""
    import fcntl
    import select
    import termios

    poll = select.poll()
    poll.register(fifo, 0)  # POLLERR: no reader any more
    poll.poll()
    return fcntl.ioctl(fifo, termios.FIONREAD, bytes(4)) != bytes(4)


def _open_fifo(container: ContainerDir, state: State, deadline: float) -> int:
    """The fifo's writing end. "Created" is told a moment before init opens its end: ENXIO until then."""
    while True:
        try:
            return os.open(container.fifo_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise
            waits = error.errno == errno.ENXIO and process.alive(state.init) and time.monotonic() < deadline
        if not waits:
            status = container.status().value
            raise WherryError(Kind.CONFLICT, f"cannot start container {container.id}: it is {status}")
        time.sleep(0.001)


def set_resources(container: ContainerDir, writes: Iterable[tuple[str, str]]) -> None:
    """Write cgroup files of a running container, in order (oci.cgroup2 makes them); all or nothing."""
    from wherry.kernel import cgroup

    cgroup.update(_cgroup(_running(container)), list(writes))


def delete(container: ContainerDir, *, force: bool = False, before: Callable[[], None] | None = None) -> None:
    """Remove what is left of a stopped container: cgroup, directory. `force` kills it first; absent is fine then.
    `before` the directory goes, what else only it tells of can be removed."""
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
    if before is not None:
        before()
    container.remove()


def stop_now(state: State) -> None:
    """KILL everything and wait for init to be gone."""
    if state.init is not None:
        with process.held(state.init) as fd:
            if fd is not None:
                _kill_all(state, fd)


def remove_cgroup(path: str, timeout: float = 5.0) -> None:
    """Kill what is left in a cgroup and remove it with those below it; absent is fine."""
    if path and os.path.isdir(path):
        from wherry.kernel import cgroup

        cgroup.kill(path)
        cgroup.remove(path, timeout)
