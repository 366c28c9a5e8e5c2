"""The systemd cgroup driver: a container's cgroup as a transient scope, asked for over D-Bus.

Decides how the unit comes to be, is changed and goes. Refuses to know what its limits mean (oci/systemd.py).

A scope is made around a process, and the container's is born later, by clone3 straight into the scope's cgroup, with no
Python beside it. So a process that only waits, the holder, keeps the unit until then. It ends with us, however we end,
and a scope without processes is taken away by systemd.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple

from wherry.container.waiting import Waiting
from wherry.errors import Kind, WherryError
from wherry.kernel import cgroup
from wherry.oci.facts import HostFacts
from wherry.oci.systemd import INFINITY, Property, Scope

__all__ = ["Holder", "Manager", "available", "set_properties", "start", "start_slice", "stop", "stop_slice"]

Properties = Sequence[Property]
_NAME, _PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER: Final = f"{_NAME}.Manager"
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_SIGKILL = 9


class Manager(NamedTuple):
    """Which systemd: the system's, or the instance of the user who calls (`user`), whose sockets `env` names."""

    user: bool = False
    env: Mapping[str, str] = {}

    def addresses(self) -> list[tuple[str, bool]]:
        """(D-Bus address, whether a bus stands between), the best first: without the bus daemon there is one hop less
        and nothing that may not run."""
        runtime = self.env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
        if self.user:
            bus = self.env.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus"
            return [(f"unix:path={runtime}/systemd/private", False), (bus, True)]
        bus = self.env.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
        return [("unix:path=/run/systemd/private", False), (bus, True)]


SYSTEM: Final = Manager()


def available(manager: Manager = SYSTEM) -> bool:
    """Whether systemd runs here (sd_booted(3)), for a user: whether one of the sockets is there."""
    if not manager.user:
        return os.path.isdir("/run/systemd/system")
    return any(os.path.exists(path) for address, _ in manager.addresses() for path in _paths(address))


# ---- the verbs


class Holder:
    """A scope with nothing in it but a process that waits. `path` is the cgroup's absolute path: start the container
    there, then `release`. As a context: released at the end, and an error takes the unit along."""

    def __init__(self, scope: Scope, manager: Manager, waiting: Waiting, path: str, tasks: int) -> None:
        self.scope, self.manager, self.path = scope, manager, path
        self._waiting, self._tasks = waiting, tasks

    def release(self) -> None:
        """The scope is the container's alone; with no process in it, it goes. Idempotent. CONFLICT if somebody killed
        the process that waited: what the container was born into may be no unit of systemd's any more."""
        if not self._waiting.open:
            return
        if not self._waiting.end():
            text = f"the process that kept {self.scope.unit} was killed before the container was there"
            raise WherryError(Kind.CONFLICT, text, hint="the kernel's log (dmesg) tells of a lack of memory")
        _limit_tasks(self.path, self._tasks)

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.release()
            return
        self._waiting.end()
        _give_up(self.scope, self.manager)


def start(scope: Scope, properties: Properties, facts: HostFacts, *, description: str = "",
          manager: Manager = SYSTEM, timeout: float = 30.0) -> Holder:
    """Make the unit with these properties (of oci/systemd.properties and others) and wait until it is there.

    EXISTS: a unit of that name runs. Nothing is left of a failed start."""
    deadline = time.monotonic() + timeout
    kind, tasks = dict(properties).get("TasksMax", ("t", INFINITY))
    if kind != "t" or tasks == INFINITY:
        tasks = 0
    with _Bus(manager, deadline) as bus, ExitStack() as undo:
        waiting = Waiting(f"in {scope.unit}")
        undo.callback(waiting.end)
        job = _ask(bus, scope, [*_unit(scope, waiting.process.pid, description), *properties], facts)
        undo.callback(_give_up, scope, manager)
        _done(scope, bus.job(job))
        path = _cgroup(bus, scope, facts)
        _limit_tasks(path, tasks and tasks + 1)  # the holder counts: with a limit of 1 nothing could be born
        undo.pop_all()
    return Holder(scope, manager, waiting, path, tasks)


def _give_up(scope: Scope, manager: Manager) -> None:
    with suppress(WherryError):  # the first failure is the one to tell
        stop(scope, manager, 5)


def stop(scope: Scope, manager: Manager = SYSTEM, timeout: float = 30.0) -> None:
    """End the unit and whatever runs in it; one that is not there is fine."""
    with _Bus(manager, time.monotonic() + timeout) as bus:
        _stop(bus, scope)


def start_slice(name: str, properties: Properties, *, description: str = "", timeout: float = 30.0) -> None:
    """Make a slice ("a-b.slice"; those above it come with it) that stays until `stop_slice`. One that is there gets the
    properties."""
    unit = [("Description", ("s", description or f"wherry slice {name}")),
            *((f"{what}Accounting", ("b", True)) for what in ("CPU", "Memory", "IO", "Tasks"))]  # fmt: skip
    with _Bus(SYSTEM, time.monotonic() + timeout) as bus:
        try:
            job = bus.call(f"start {name}", "StartTransientUnit", "ssa(sv)a(sa(sv))",
                           (name, "fail", [*unit, *properties], []))[0]  # fmt: skip
        except WherryError as error:
            if error.kind is not Kind.EXISTS:
                raise
            bus.call(f"change {name}", "SetUnitProperties", "sba(sv)", (name, True, list(properties)))
            return
        _done(Scope("", name), bus.job(job))


def stop_slice(name: str, timeout: float = 30.0) -> None:
    """End a slice and all units in it; one that is not there is fine."""
    with _Bus(SYSTEM, time.monotonic() + timeout) as bus, suppress(_Absent):
        bus.job(bus.call(f"stop {name}", "StopUnit", "ss", (name, "replace"))[0])


def set_properties(scope: Scope, properties: Properties, manager: Manager = SYSTEM, timeout: float = 30.0, *,
                   path: str = "") -> None:
    """Change a living unit, until the next boot at most. NOT_FOUND if there is none. `path`, its cgroup: systemd writes
    all limits anew at each change, and what it rounds (cpu.max) is put back."""
    exact = cgroup.limits(path, ("cpu.max",)) if path else {}
    with _Bus(manager, time.monotonic() + timeout) as bus:
        bus.call(f"change {scope.unit}", "SetUnitProperties", "sba(sv)", (scope.unit, True, list(properties)))
    for file, value in exact.items():
        _write(path, file, value)


# ---- what is said


def _unit(scope: Scope, pid: int, description: str) -> list[Property]:
    """What makes it a container's scope. Delegated: what lies below is not systemd's. Collected though failed: the name
    is free again. Accounting is what enables the controllers."""
    return [
        ("Description", ("s", description or f"wherry container {scope.unit}")),
        ("Slice", ("s", scope.slice)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        ("CollectMode", ("s", "inactive-or-failed")),
        *((f"{what}Accounting", ("b", True)) for what in ("CPU", "Memory", "IO", "Tasks")),
    ]


def _limit_tasks(path: str, value: int) -> None:
    """In the file alone: systemd knows the true limit from the beginning. 0: none was asked for. Without the
    controller there is no file."""
    if value and os.path.exists(f"{path}/pids.max"):
        _write(path, "pids.max", str(value))


def _write(path: str, file: str, value: str) -> None:
    """A container that has ended meanwhile has no cgroup any more, which is no error."""
    try:
        cgroup.update(path, [(file, value)])
    except WherryError:
        if os.path.exists(f"{path}/{file}"):
            raise


def _ask(bus: _Bus, scope: Scope, properties: list[Property], facts: HostFacts) -> str:
    """The job that makes the unit. "fail": no job of somebody else's is displaced for ours."""
    while True:
        try:
            job: str = bus.call(f"start {scope.unit}", "StartTransientUnit", "ssa(sv)a(sa(sv))",
                                (scope.unit, "fail", properties, []))[0]  # fmt: skip
            return job
        except WherryError as error:
            if error.kind is not Kind.EXISTS or not _over(bus, scope, facts) or time.monotonic() > bus.deadline - 1:
                raise
        time.sleep(0.01)  # the last one of that name is on its way out


def _done(scope: Scope, result: str) -> None:
    if result != "done":
        text = f"systemd could not start {scope.unit}: the job ended as {result}"
        raise WherryError(Kind.UNAVAILABLE, text, hint=f"journalctl -u {scope.unit}")


def _over(bus: _Bus, scope: Scope, facts: HostFacts) -> bool:
    """The unit that has the name is dead, failed or going, or systemd has not yet seen that it is empty."""
    try:
        state: str = _property(bus, scope, "Unit", "ActiveState")
        with suppress(WherryError):
            bus.call(f"forget {scope.unit}", "ResetFailedUnit", "s", (scope.unit,))
        return state != "active" or not cgroup.events(_cgroup(bus, scope, facts)).get("populated")
    except _Absent:
        return True


def _cgroup(bus: _Bus, scope: Scope, facts: HostFacts) -> str:
    """The absolute path of the unit's cgroup."""
    path: str = _property(bus, scope, "Scope", "ControlGroup")  # "/system.slice/x.scope"
    if not path:
        raise _Absent(Kind.NOT_FOUND, f"{scope.unit} has no cgroup: it has ended")
    return cgroup.locate(facts, path)


def _property(bus: _Bus, scope: Scope, kind: str, name: str) -> Any:
    what = f"look at {scope.unit}"
    (unit,) = bus.call(what, "GetUnit", "s", (scope.unit,))
    where = (_NAME, unit, "org.freedesktop.DBus.Properties")
    return bus.call(what, "Get", "ss", (f"{_NAME}.{kind}", name), where)[0][1]


def _stop(bus: _Bus, scope: Scope) -> None:
    """Killed first: a stop alone sends SIGTERM and waits 90 s. Last, a failed unit is forgotten."""
    unit, what = scope.unit, f"stop {scope.unit}"
    try:
        with suppress(_Absent):
            bus.call(what, "KillUnit", "ssi", (unit, "all", _SIGKILL))
        bus.job(bus.call(what, "StopUnit", "ss", (unit, "replace"))[0])
        bus.call(what, "ResetFailedUnit", "s", (unit,))
    except _Absent:
        return


# ---- D-Bus


class _Absent(WherryError):
    """There is no such unit."""


_KINDS: Final = {
    "UnitExists": Kind.EXISTS,
    "AccessDenied": Kind.DENIED,
    "InteractiveAuthorizationRequired": Kind.DENIED,
    "InvalidArgs": Kind.INVALID,
    "BadUnitSetting": Kind.INVALID,
    "PropertyReadOnly": Kind.UNSUPPORTED,  # systemd says so of a property that it does not know
    "UnknownProperty": Kind.UNSUPPORTED,
    "TransactionIsDestructive": Kind.CONFLICT,
    "TransactionJobsConflicting": Kind.CONFLICT,
}
_ABSENT: Final = ("NoSuchUnit", "LoadFailed", "UnitMasked")
_HINTS: Final = {
    Kind.EXISTS: "another container has this linux.cgroupsPath: delete it, or choose another one",
    Kind.DENIED: "root may, and a user in the own instance of systemd (--rootless)",
    Kind.UNSUPPORTED: "this systemd does not know the property",
}


class _Bus:
    """One connection to systemd; every call and wait ends at `deadline` (time.monotonic)."""

    def __init__(self, manager: Manager, deadline: float) -> None:
        from jeepney.low_level import Parser

        self.deadline, self._parser, self._serial = deadline, Parser(), 0
        self._jobs: dict[str, str] = {}
        (self._socket, early), named = _connect(manager, deadline)
        self._parser.add_data(early)
        try:
            if named:
                self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> _Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _greet(self) -> None:
        """On a bus one has a name and asks for signals; systemd sends them to a direct peer anyway."""
        rule = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
        self.call("greet the bus", "Hello", "", (), _BUS)
        self.call("hear of jobs", "AddMatch", "s", (rule,), _BUS)
        self.call("hear of jobs", "Subscribe", "", ())

    def call(self, what: str, method: str, signature: str, body: tuple[Any, ...],
             where: tuple[str, str, str] = (_NAME, _PATH, _MANAGER)) -> tuple[Any, ...]:
        """The reply's body. `what` we are about, for the error's sentence."""
        from jeepney.low_level import HeaderFields, MessageType
        from jeepney.wrappers import DBusAddress, new_method_call

        name, path, interface = where
        message = new_method_call(DBusAddress(path, name, interface), method, signature or None, body)
        self._serial += 1
        self._io(what, lambda: self._socket.sendall(message.serialise(self._serial)))
        while True:
            reply = self._receive(what)
            fields = reply.header.fields
            if fields.get(HeaderFields.reply_serial) == self._serial:
                break
        if reply.header.message_type is MessageType.error:
            raise _refusal(what, fields.get(HeaderFields.error_name, ""), reply.body)
        return tuple(reply.body)

    def job(self, path: str) -> str:
        """Wait for the end of a job: "done", "failed", "canceled", "timeout", "dependency" ..."""
        while path not in self._jobs:
            self._receive("wait for the job")
        return self._jobs.pop(path)

    def _receive(self, what: str) -> Any:
        """The next message; the results of jobs are kept whenever they come."""
        from jeepney.low_level import HeaderFields, MessageType

        while (message := self._parser.get_next_message()) is None:
            data = self._io(what, lambda: self._socket.recv(65536))
            if not data:
                raise WherryError(Kind.UNAVAILABLE, f"cannot {what}: systemd closed the connection")
            self._parser.add_data(data)
        header = message.header
        if header.message_type is MessageType.signal and header.fields.get(HeaderFields.member) == "JobRemoved":
            _, path, _, result = message.body
            self._jobs[path] = result
        return message

    def _io(self, what: str, action: Callable[[], Any]) -> Any:
        try:
            self._socket.settimeout(max(0.001, self.deadline - time.monotonic()))
            return action()
        except OSError as error:
            why = "it did not answer in time" if isinstance(error, TimeoutError) else error.strerror
            raise WherryError(Kind.UNAVAILABLE, f"cannot {what} by systemd: {why}") from error


def _refusal(what: str, name: str, body: Sequence[Any]) -> WherryError:
    said = body[0] if body and isinstance(body[0], str) else name
    short = name.rpartition(".")[2]
    text = f"cannot {what}: systemd says: {said.rstrip('.')}"
    if short in _ABSENT:
        return _Absent(Kind.NOT_FOUND, text)
    kind = _KINDS.get(short, Kind.PRECONDITION)
    return WherryError(kind, text, hint=_HINTS.get(kind, ""))


def _connect(manager: Manager, deadline: float) -> tuple[tuple[socket.socket, bytes], bool]:
    """The first socket that lets us in, and whether a bus is behind it."""
    whose = "the user's instance of systemd" if manager.user else "systemd"
    tried = []
    for address, named in manager.addresses():
        for path in _paths(address):
            try:
                return _open(path, deadline), named
            except OSError as error:
                tried.append(f"{path}: {error.strerror or error}")
    hint = "boot this host with systemd, or leave --systemd-cgroup out: then the cgroup is made as a directory"
    raise WherryError(Kind.PRECONDITION, f"{whose} does not answer ({', '.join(tried)})", hint=hint)


def _paths(address: str) -> list[str]:
    """Socket paths of a D-Bus address (a list of transports); an abstract one begins with NUL, as bind wants it."""
    from jeepney.bus import get_connectable_addresses

    try:
        return list(get_connectable_addresses(address))
    except (RuntimeError, ValueError) as error:
        raise WherryError(Kind.INVALID, f'"{address}" is no address of a D-Bus socket') from error


def _open(path: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Connected and authenticated by who we are to the kernel, and what came behind the answers: a direct peer is sent
    signals from then on. No uid is claimed: in a user namespace ours is another one than the socket's owner sees
    (D-Bus specification, EXTERNAL).

    All lines go at once, as sd-bus sends them: if systemd reads BEGIN and our first message together, it leaves the
    message lying until more comes."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(path)
        sock.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        answer = b""
        while answer.count(b"\r\n") < 2 and (more := sock.recv(256)):
            answer += more
        if not answer.startswith(b"DATA\r\nOK "):
            raise PermissionError(f"it does not take us: {answer.decode(errors='replace').strip()}")
    except BaseException:
        sock.close()
        raise
    return sock, answer.split(b"\r\n", 2)[2]
