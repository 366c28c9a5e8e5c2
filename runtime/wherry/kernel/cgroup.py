"""Cgroups of the v2 hierarchy: make the way there, read limits back, freeze, kill, measure, remove. v1 is never
touched.

Paths are absolute directories below HostFacts.cgroup_mount. Decides how to do without a controller or an old kernel's
missing
file; refuses to know containers and what the limits should be (oci/cgroup2.py).
"""

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel.facts import read
from wherry.oci.facts import HostFacts

__all__ = [
    "Stats",
    "events",
    "freeze",
    "frozen",
    "kill",
    "limits",
    "locate",
    "mismatches",
    "oom_kills",
    "prepare",
    "processes",
    "remove",
    "stats",
    "thaw",
    "update",
    "wait_empty",
]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class Stats(NamedTuple):
    """One reading. `limited` fields are -1 where nothing limits; `estimated` names what was summed over the processes
    because
    the controller is missing (it forgets processes that have ended)."""

    cpu_usec: int = 0
    cpu_user_usec: int = 0
    cpu_system_usec: int = 0
    throttled_usec: int = 0
    throttled_periods: int = 0
    periods: int = 0
    memory: int = 0  # without the inactive file cache, as docker counts
    memory_cache: int = 0
    memory_limit: int = -1
    swap: int = 0
    pids: int = 0
    pids_limit: int = -1
    io_read: int = 0
    io_write: int = 0
    estimated: tuple[str, ...] = ()


def locate(facts: HostFacts, *parts: str) -> str:
    """The absolute path of a cgroup given below the mount; PRECONDITION where no cgroup2 is mounted."""
    if not facts.cgroup_mount:
        raise WherryError(
            Kind.PRECONDITION,
            "no cgroup v2 hierarchy is mounted on this host",
            hint="mount -t cgroup2 none /sys/fs/cgroup",
        )
    words = [word for part in parts for word in part.split("/") if word]
    if ".." in words or "." in words:
        raise WherryError(Kind.INVALID, f'"{"/".join(parts)}" is not the path of a cgroup')
    return "/".join([facts.cgroup_mount.rstrip("/"), *words])


# ---- the way there


def prepare(facts: HostFacts, path: str, wanted: tuple[str, ...] = ()) -> frozenset[str]:
    """Make the parents of `path` and hand down controllers to it (`wanted`; none given: all there are). Returns those
    that a
    cgroup made at `path` will have. The last directory is left to the plan, which makes it and removes it on
    failure."""
    mount = facts.cgroup_mount.rstrip("/")
    if not path.startswith(mount + "/"):
        raise WherryError(Kind.INVALID, f"{path} is not below {mount}")
    here, have = mount, frozenset(facts.cgroup_available)
    for part in [*path[len(mount) + 1 :].split("/")[:-1], ""]:
        have = _hand_down(here, frozenset(wanted) & have if wanted else have)
        if part:
            here = f"{here}/{part}"
            _make(here)
    return have


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    except OSError as error:
        raise WherryError(_kind(error), f"cannot make the cgroup {path}: {error.strerror}") from error


def _kind(error: OSError) -> Kind:
    return Kind.DENIED if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else Kind.PRECONDITION


def _hand_down(path: str, wanted: frozenset[str]) -> frozenset[str]:
    """Enable controllers for the children of `path`. One that cannot be (processes in an inner cgroup) is left out."""
    enabled = frozenset(read(f"{path}/cgroup.subtree_control").split())
    for name in sorted(wanted - enabled):
        try:
            _write(path, "cgroup.subtree_control", f"+{name}")
        except OSError:
            continue
        enabled |= {name}
    return enabled & wanted


def _write(path: str, file: str, value: str) -> None:
    fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


# ---- limits


def update(path: str, writes: list[tuple[str, str]]) -> None:
    """Change limits of a living cgroup. What was written before a failure is put back."""
    undo: list[tuple[str, str]] = []
    for file, value in writes:
        before = read(f"{path}/{file}").strip()
        try:
            _write(path, file, value)
        except OSError as error:
            for old_file, old_value in reversed(undo):
                _try(lambda f=old_file, v=old_value: _write(path, f, v))  # type: ignore[misc]
            raise WherryError(
                _update_kind(error),
                f"cannot set {file} = {value} on {path}: {error.strerror}",
                hint=_update_hint(file, error),
            ) from error
        if before and "\n" not in before:
            undo.append((file, before))


def _update_kind(error: OSError) -> Kind:
    kinds = {
        errno.EINVAL: Kind.INVALID,
        errno.ERANGE: Kind.INVALID,
        errno.EBUSY: Kind.CONFLICT,
        errno.ENOENT: Kind.PRECONDITION,
    }
    return kinds.get(error.errno or 0, _kind(error))


def _update_hint(file: str, error: OSError) -> str:
    return (
        f"the controller {file.partition('.')[0]} is not enabled for this cgroup" if error.errno == errno.ENOENT else ""
    )


def _try(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return


def limits(path: str, files: tuple[str, ...]) -> dict[str, str]:
    """The files as the kernel has them now; those that do not exist are left out."""
    found = ((file, read(f"{path}/{file}", "\0")) for file in files)
    return {file: value.strip() for file, value in found if value != "\0"}


def mismatches(path: str, writes: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(file, wanted, found) where a limit read back is not what was asked (invariant 9). The last write to a file
    counts."""
    found = limits(path, tuple(dict.fromkeys(file for file, _ in writes)))
    last = {(file, value.split()[0] if _keyed(file) else ""): value for file, value in writes}
    return [
        (file, value, found.get(file, ""))
        for (file, _), value in last.items()
        if not _agrees(file, value, found.get(file, ""))
    ]


def _keyed(file: str) -> bool:
    return file in {"io.max", "io.weight", "io.latency", "rdma.max"}


def _agrees(file: str, wanted: str, found: str) -> bool:
    if _keyed(file):
        return _keyed_agrees(wanted.split(), found)
    if wanted.isdigit() and found.isdigit():  # the kernel rounds sizes down to (huge) pages
        want, have = int(wanted), int(found)
        return want == have or (file.startswith(("memory.", "hugetlb.")) and want - _page(file) < have <= want)
    return wanted == found or (file.startswith("cpuset.") and _cpus(wanted) == _cpus(found))


def _keyed_agrees(words: list[str], found: str) -> bool:
    """Every word of the line is in the line with the same key. A limit of "max" makes the kernel drop the line."""
    lines = {line.split()[0]: line.split()[1:] for line in found.splitlines() if line.strip()}
    have = lines.get(words[0], [])
    return all(word in have or (word.endswith("=max") and not have) for word in words[1:])


def _page(file: str) -> int:
    size = file.split(".")[1] if file.startswith("hugetlb.") else ""
    units = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
    return int(size[:-2]) * units[size[-2:]] if size[-2:] in units else _PAGE


def _cpus(text: str) -> frozenset[int]:
    result: set[int] = set()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit():
            result.update(range(int(low), int(high or low) + 1))
    return frozenset(result)


# ---- processes


def _tree(path: str) -> Iterator[str]:
    """`path` and every cgroup below it, the deepest first."""
    try:
        children = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for child in children:
        yield from _tree(child)
    yield path


def processes(path: str) -> list[int]:
    """Pids in the cgroup and below, as our pid namespace numbers them (0: not visible here; left out)."""
    found = {int(word) for directory in _tree(path) for word in read(f"{directory}/cgroup.procs").split()}
    return sorted(found - {0})


def events(path: str) -> dict[str, int]:
    """cgroup.events: populated, frozen."""
    return _flat(read(f"{path}/cgroup.events"))


def _flat(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def oom_kills(path: str) -> int:
    """How often the kernel's OOM killer took something in this cgroup; 0 without the memory controller."""
    return _flat(read(f"{path}/memory.events")).get("oom_kill", 0)


def _await(path: str, key: str, value: int, timeout: float) -> bool:
    """Wait until cgroup.events says `key value`. The file gives POLLPRI at each change (cgroup-v2.rst)."""
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return key == "populated" and value == 0
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while True:
            try:
                now = _flat(os.pread(fd, 4096, 0).decode())
            except OSError:  # ENODEV: removed meanwhile
                return key == "populated" and value == 0
            left = deadline - time.monotonic()
            if now.get(key) == value or left <= 0:
                return now.get(key) == value
            poll.poll(min(left, 0.5) * 1000)
    finally:
        os.close(fd)


def wait_empty(path: str, timeout: float) -> bool:
    """Whether the cgroup and all below it ran empty in time (a cgroup that is gone is empty)."""
    return _await(path, "populated", 0, timeout)


def frozen(path: str) -> bool:
    """Asked to freeze, by us or by someone else."""
    return read(f"{path}/cgroup.freeze").strip() == "1"


def freeze(path: str, timeout: float = 10.0) -> None:
    """Stop every process in the cgroup; thawed again if some will not stop (uninterruptible I/O)."""
    _write(path, "cgroup.freeze", "1")
    if not _await(path, "frozen", 1, timeout):
        thaw(path)
        raise WherryError(Kind.UNAVAILABLE, f"the processes in {path} did not freeze within {timeout:g} s")


def thaw(path: str, timeout: float = 10.0) -> None:
    """Let them go on."""
    _write(path, "cgroup.freeze", "0")
    _await(path, "frozen", 0, timeout)


def kill(path: str) -> None:
    """SIGKILL to everything in the cgroup and below, also to what it is forking now. A cgroup that is gone is no
    error."""
    try:
        _write(path, "cgroup.kill", "1")  # 5.14
    except FileNotFoundError:
        if os.path.isdir(path):
            _kill_one_by_one(path)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _kill_one_by_one(path: str) -> None:
    """Before 5.14: frozen, nothing can fork; a SIGKILL takes frozen processes too."""
    _try(lambda: _write(path, "cgroup.freeze", "1"))
    try:
        for _ in range(100):
            pids = processes(path)
            for pid in pids:
                _try(lambda pid=pid: os.kill(pid, signal.SIGKILL))  # type: ignore[misc]
            if not pids or wait_empty(path, 0.05):
                return
    finally:
        _try(lambda: _write(path, "cgroup.freeze", "0"))


def remove(path: str, timeout: float = 2.0) -> None:
    """rmdir the cgroup and all below it; gone is success. Dying processes and their pages keep it busy for a moment."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        busy = [error for directory in _tree(path) if (error := _rmdir(directory)) is not None]
        if not os.path.isdir(path):
            return
        if time.monotonic() >= deadline:
            reason = busy[-1].strerror if busy else "it came back"
            raise WherryError(
                Kind.CONFLICT,
                f"cannot remove the cgroup {path}: {reason}",
                hint=f"processes in it: {' '.join(map(str, processes(path))) or 'none that are visible here'}",
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _rmdir(path: str) -> OSError | None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


# ---- measuring


def stats(path: str) -> Stats:
    """One reading of everything; sums over the processes stand in for a missing controller."""
    cpu = _flat(read(f"{path}/cpu.stat"))
    pids = processes(path)
    values = {
        "cpu_usec": cpu.get("usage_usec", 0),
        "cpu_user_usec": cpu.get("user_usec", 0),
        "cpu_system_usec": cpu.get("system_usec", 0),
        "throttled_usec": cpu.get("throttled_usec", 0),
        "throttled_periods": cpu.get("nr_throttled", 0),
        "periods": cpu.get("nr_periods", 0),
    }
    estimated = []
    for name, by_cgroup, by_process in (
        ("memory", _memory, _memory_sum),
        ("pids", _pids, _pids_sum),
        ("io", _io, _io_sum),
    ):
        found = by_cgroup(path)
        if found is None:
            found = by_process(pids)
            estimated.append(name)
        values |= found
    return Stats(**values, estimated=tuple(estimated))


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else -1


def _memory(path: str) -> dict[str, int] | None:
    current = read(f"{path}/memory.current")
    if not current:
        return None
    detail = _flat(read(f"{path}/memory.stat"))
    cache = detail.get("file", 0)
    used = max(0, int(current) - detail.get("inactive_file", 0))
    return {
        "memory": used,
        "memory_cache": cache,
        "memory_limit": _number(read(f"{path}/memory.max")),
        "swap": max(0, _number(read(f"{path}/memory.swap.current"))),
    }


def _memory_sum(pids: list[int]) -> dict[str, int]:
    """Proportional set sizes; where they cannot be read, resident pages less the shared ones."""
    return {"memory": sum(_pss(pid) for pid in pids)}


def _pss(pid: int) -> int:
    for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    fields = read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0


def _pids(path: str) -> dict[str, int] | None:
    current = read(f"{path}/pids.current")
    return {"pids": int(current), "pids_limit": _number(read(f"{path}/pids.max"))} if current else None


def _pids_sum(pids: list[int]) -> dict[str, int]:
    """Tasks, as the pids controller counts them."""
    return {"pids": sum(_threads(pid) for pid in pids)}


def _threads(pid: int) -> int:
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[17]) if len(fields) > 17 else 0


def _io(path: str) -> dict[str, int] | None:
    try:
        with open(f"{path}/io.stat", encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        return None
    return {"io_read": _summed(words, "rbytes="), "io_write": _summed(words, "wbytes=")}


def _summed(words: list[str], prefix: str) -> int:
    return sum(int(word[len(prefix) :]) for word in words if word.startswith(prefix))


def _io_sum(pids: list[int]) -> dict[str, int]:
    pairs = [dict(line.split(": ") for line in read(f"/proc/{pid}/io").splitlines()) for pid in pids]
    return {
        "io_read": sum(int(pair.get("read_bytes", 0)) for pair in pairs),
        "io_write": sum(int(pair.get("write_bytes", 0)) for pair in pairs),
    }
