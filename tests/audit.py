"""The leak audit: facts of the host before and after, and the difference in words.

Decides what counts as left behind: mounts, cgroups, network namespaces, links, addresses, firewall rules, processes,
loop devices, abstract sockets, descriptors, files. Refuses to know what the test did in between.

The tests run in a network namespace of their own (`enter_private_network`), so links, addresses, rules and abstract
sockets are compared whole; mounts, cgroups and processes are shared with the rest of the machine and are compared where
they carry a mark of ours: a path below the test's directories, the test's cgroup parent, or our network namespace.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

__all__ = ["Mark", "Snapshot", "canary", "enter_private_network", "files_below", "settle", "take"]

CLONE_NEWNET = 0x40000000
GRACE_SECONDS = 15.0  # the kernel frees namespaces, links and cgroups after the last process has gone


@dataclass(frozen=True, slots=True)
class Mark:
    """What makes a thing of the shared machine ours."""

    paths: tuple[str, ...] = ()  # directories of the test: --root, --state
    cgroup: str = ""  # the cgroup parent of the test's containers, "" for none


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the host, as sets of lines that a reader understands."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    netns: frozenset[str]
    links: frozenset[str]
    addresses: frozenset[str]
    rules: frozenset[str]
    processes: frozenset[str]
    loops: frozenset[str]
    sockets: frozenset[str]

    def left_since(self, before: Snapshot) -> list[str]:
        """What is here now and was not then, and what was taken away that was not ours to take."""
        found = []
        for field in fields(self):
            then, now = getattr(before, field.name), getattr(self, field.name)
            found += [f"left {field.name}: {line}" for line in sorted(now - then)]
            if field.name not in ("processes", "sockets"):  # others' may end meanwhile
                found += [f"gone {field.name}: {line}" for line in sorted(then - now)]
        return found


def take(mark: Mark) -> Snapshot:
    """Look at everything."""
    return Snapshot(
        mounts=frozenset(_mounts(mark)),
        cgroups=frozenset(_cgroups(mark)),
        netns=frozenset(_named_netns(mark)),
        links=frozenset(_links()),
        addresses=frozenset(_addresses()),
        rules=frozenset(_rules()),
        processes=frozenset(_processes(mark)),
        loops=frozenset(_loops(mark)),
        sockets=frozenset(_abstract_sockets()),
    )


def settle(before: Snapshot, mark: Mark, grace: float = GRACE_SECONDS) -> list[str]:
    """Leaks since `before`, after giving the kernel time to finish what it does asynchronously."""
    deadline = time.monotonic() + grace
    pause = 0.02
    while leaks := take(mark).left_since(before):
        if time.monotonic() > deadline:
            return leaks
        time.sleep(pause)
        pause = min(pause * 2, 0.5)
    return []


# ---- each kind of thing ----


def _ours(text: str, mark: Mark) -> bool:
    return any(path in text for path in mark.paths)


def _mounts(mark: Mark) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if _ours(line, mark):
            yield " ".join(line.split()[3:])


def cgroup_mounts() -> Iterator[tuple[str, str]]:
    """(mount point, type) of every cgroup hierarchy, v1 and v2."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in ("cgroup", "cgroup2"):
            yield left.split()[4], right.split()[0]


def _cgroups(mark: Mark) -> Iterator[str]:
    """Ours in v2; in v1, where we never make any, those that carry our mark by mistake."""
    if not mark.cgroup:
        return
    name = mark.cgroup.strip("/")
    for mount, kind in cgroup_mounts():
        for directory, _, _ in os.walk(mount):
            if f"/{name}/" in f"{directory}/":
                yield f"{kind} {directory}"


def _named_netns(mark: Mark) -> Iterator[str]:
    """Names below the test's directories; /run/netns as a whole (we never write there)."""
    for path in mark.paths:
        for found in Path(path).glob("**/netns/*"):
            yield str(found)


def _ip_lines(*words: str) -> list[str]:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    return [
        re.sub(r"\s+", " ", re.sub(r"(valid|preferred)_lft \S+", "", line)).strip() for line in done.stdout.splitlines()
    ]


def _addresses() -> Iterator[str]:
    """But for link-local ones, which the kernel gives and takes by itself, some time after."""
    for line in _ip_lines("-o", "addr", "show"):
        if " scope link" not in line:
            yield line


def _links() -> Iterator[str]:
    for line in _ip_lines("-o", "link", "show"):
        name = line.split(": ")[1]
        if not name.startswith(KEPT_LINKS):
            yield name


#: made once in a network namespace by the kernel itself, never by us
KEPT_LINKS = ("lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0")


def _rules() -> list[str]:
    """The ruleset without counters and handles."""
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
    return [re.sub(r"packets \d+ bytes \d+", "", line).strip() for line in done.stdout.splitlines() if line.strip(" }")]


def _processes(mark: Mark) -> Iterator[str]:
    """Processes in our network namespace or in the test's cgroups, but for this one's own family."""
    own_netns = os.readlink("/proc/self/ns/net")
    private = os.environ.get("WHERRY_TEST_NETNS") == "private"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(pid) == os.getpid() or _state(pid) in "ZX" or _spare(pid):
                continue
            line = f"{pid} {_command(pid)}"
            if (
                (private and os.readlink(f"/proc/{pid}/ns/net") == own_netns)
                or _in_cgroup(pid, mark)
                or _ours(line, mark)
            ):
                yield line
        except OSError:
            continue


def _spare(pid: str) -> bool:
    """One that waits for a command; another takes its place after each. Those at work are named otherwise."""
    return Path(f"/proc/{pid}/comm").read_text() == "wherry-spare\n"


def _state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:160]


def _in_cgroup(pid: str, mark: Mark) -> bool:
    return bool(mark.cgroup) and f"/{mark.cgroup.strip('/')}/" in Path(f"/proc/{pid}/cgroup").read_text()


def _loops(mark: Mark) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            line = backing.read_text().strip()
        except OSError:
            continue
        if _ours(line, mark):
            yield f"{backing.parts[3]} {line}"


def _abstract_sockets() -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        path = line.split()[7:]
        if path and path[0].startswith("@") and not path[0].startswith("@/tmp/.X"):
            yield path[0]


def files_below(*roots: str | Path, ignore: tuple[str, ...] = ("*-wal", "*-shm", "*.log")) -> frozenset[str]:
    """Paths of all files and directories below, for a comparison before and after."""
    found = set()
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in [*names, *files]:
                if not any(fnmatch.fnmatch(name, pattern) for pattern in ignore):
                    found.add(os.path.join(directory, name))
    return frozenset(found)


def open_descriptors(pid: int) -> list[str]:
    """What a process holds open."""
    held = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.append(f"{entry} -> {os.readlink(f'/proc/{pid}/fd/{entry}')}")
        except OSError:
            continue
    return held


# ---- the host canary ----

SYSCTLS = (
    "kernel/core_pattern",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/sysrq",
    "kernel/modprobe",
    "kernel/shmmax",
    "kernel/msgmax",
    "kernel/randomize_va_space",
    "kernel/pid_max",
    "fs/file-max",
    "fs/suid_dumpable",
    "vm/swappiness",
    "vm/overcommit_memory",
)
FILES = (
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/shadow",
    "/etc/ld.so.cache",
)


def canary() -> dict[str, str]:
    """Facts of the host that no container and no command of ours may change."""
    facts = {f"sysctl {name}": _text(f"/proc/sys/{name}") for name in SYSCTLS}
    facts |= {f"file {name}": _stat(name) for name in FILES}
    facts |= {
        f"mode {name}": oct(os.stat(name).st_mode)
        for name in ("/", "/tmp", "/run", "/dev", "/proc", "/sys", "/dev/null")
    }
    names = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    facts["run/netns of ours"] = " ".join(sorted(name for name in names if "wherry" in name))
    facts["cgroup v1 groups of ours"] = " ".join(_v1_of_ours())
    facts["binfmt_misc"] = " ".join(sorted(os.listdir("/proc/sys/fs/binfmt_misc")))
    return facts


def _v1_of_ours() -> list[str]:
    return [
        path for mount, kind in cgroup_mounts() if kind == "cgroup" for path in map(str, Path(mount).glob("wherry*"))
    ]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        return f"errno {error.errno}"


def _stat(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        return f"errno {error.errno}"
    return f"{found.st_ino} {found.st_mode:o} {found.st_size} {found.st_mtime_ns}"


# ---- a network namespace of our own ----


def enter_private_network() -> None:
    """Move this process into a new network namespace with loopback up; its children follow."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare network namespace")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ["WHERRY_TEST_NETNS"] = "private"
