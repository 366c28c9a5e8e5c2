"""A network's keeper from outside: is there one, its start, its end.

Decides by one lock a network (STATE/names/NETWORK.lock), which the keeper is born with and holds as long as it lives,
that there is never a second one: who gets the lock binds the sockets and starts it, with the lock and the sockets as
descriptors, and waits for nothing; questions wait in the sockets. Where a container publishes port 53, which then is
its at the gateways too, the keeper listens at another, and comes first. Refuses to know what a keeper does (keeper.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.net import roster as rosters
from wherry.net.ports import is_published
from wherry.net.roster import Roster

__all__ = ["GIVEN", "PORT", "chain", "ensure", "gate", "lock_path", "moved", "port", "redirect", "running", "shut",
           "stop", "stop_all", "there", "unredirect"]

PORT = 53
GIVEN = "WHERRY_KEEPER"  # environment: JSON keeper.Given
_LOCK = ".lock"
_BACKLOG = 64  # TCP connections that wait for the keeper to come up
_TRIES = 8  # free ports that UDP has and TCP has not
_SECONDS = 10.0  # for a keeper to end
_NFT_SECONDS = 30


def gate(state: str) -> str:
    """The lock under which members come and go. A keeper leaves under it, and `ensure` is called under it: so none
    leaves that somebody has just relied on."""
    return f"{state}/peers.lock"


def ensure(state: str, roster: Roster, argv: Sequence[str], env: Mapping[str, str], cgroup: str) -> bool:
    """Start the network's keeper by `argv` unless it is there; whether it was started. To be called under `gate`.

    `cgroup`: where it moves to. OSError where its addresses cannot be bound.
    """
    lock = _claim(lock_path(state, roster.network))
    if lock < 0:
        return False
    try:
        if os.pread(lock, 1, 0):  # the one before was killed
            unredirect(roster.table, roster.network)
        with contextlib.ExitStack() as held:
            wanted = 0 if is_published(f"{state}/ports", PORT) else PORT
            sockets = [held.enter_context(one) for address in roster.gateways for one in _bound(address, wanted)]
            if not sockets:
                return False
            redirect(roster, sockets)
            fds = [one.fileno() for one in sockets]
            given = {"lock": lock, "sockets": fds, "cgroup": cgroup, "table": roster.table}
            child = subprocess.Popen(
                list(argv), env={**env, GIVEN: json.dumps(given)}, cwd="/", stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                pass_fds=[lock, *fds],
            )  # fmt: skip
            os.pwrite(lock, f"{child.pid} {max(one.getsockname()[1] for one in sockets)}\n".encode(), 0)
    finally:
        os.close(lock)
    return True


def there(state: str, network: str) -> bool:
    """Whether the network has a keeper."""
    return _holder(state, network) is not None


def running(state: str, network: str) -> process.Process | None:
    """The network's keeper; None also for the moment in which it is being started."""
    pid, _ = _told(state, network)
    return process.identify(pid) if pid else None


def port(state: str, network: str) -> int:
    """Where the network's keeper listens: 53, or where that is led to; 0 without a keeper."""
    return _told(state, network)[1]


def _told(state: str, network: str) -> tuple[int, int]:
    words = (_holder(state, network) or b"").split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)


def _holder(state: str, network: str) -> bytes | None:
    """What the lock says, which is true while it is held."""
    try:
        fd = os.open(lock_path(state, network), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(fd, 32).strip()
    finally:
        os.close(fd)
    return None


def stop(state: str, network: str, table: str) -> None:
    """End the network's keeper and wait; absent is success. `table`: the instance's nft table."""
    deadline = time.monotonic() + _SECONDS
    while (found := running(state, network)) is not None:
        with process.held(found) as pidfd:
            if pidfd is not None:
                process.send(pidfd, signal.SIGTERM)
                if not process.wait_pidfd(pidfd, _SECONDS / 2):
                    process.send(pidfd, signal.SIGKILL)
                process.wait_pidfd(pidfd, _SECONDS / 2)
        if time.monotonic() > deadline:
            raise WherryError(Kind.UNAVAILABLE, f"the keeper {found.pid} of network {network} does not end",
                              hint=f"kill -9 {found.pid}; it holds nothing that could be lost")
    with contextlib.suppress(FileNotFoundError):  # else: it was killed
        os.unlink(lock_path(state, network))
        unredirect(table, network)


def stop_all(state: str, table: str) -> None:
    """End every keeper of this state."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(rosters.directory(state)):
            if name.endswith(_LOCK):
                stop(state, name.removesuffix(_LOCK), table)


def lock_path(state: str, network: str) -> str:
    """The lock of one network's keeper; in it, the keeper's pid."""
    return f"{rosters.directory(state)}/{network}{_LOCK}"


def _claim(path: str) -> int:
    """The lock, ours; -1 where somebody has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return -1
        if os.fstat(fd).st_nlink:  # else: the one before has just left, and took the file along
            return fd
        os.close(fd)


# ---- the sockets


def _bound(address: str, wanted: int) -> list[socket.socket]:
    """UDP and TCP at the port of the address; at a free port where another program has that (one that binds all
    addresses of the host, as a rule) or 0 is wanted; none where the host has not the address any more."""
    for port in (wanted, *(0,) * _TRIES):
        try:
            return _pair(address, port)
        except OSError as problem:
            if problem.errno == errno.EADDRNOTAVAIL:
                return []
            if problem.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free", address)


def _pair(address: str, port: int) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            made.append(socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK))
            if kind == socket.SOCK_STREAM:  # connections that a keeper before us closed do not hold the port
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made[-1].bind((address, port))
            port = int(made[0].getsockname()[1])
        made[-1].listen(_BACKLOG)
    except BaseException:
        for one in made:
            one.close()
        raise
    return made


# ---- a port in the place of 53


def chain(network: str) -> str:
    """The chain of the instance's table that leads questions to another port than 53."""
    return f"names_{hashlib.sha256(network.encode()).hexdigest()[:12]}"


def redirect(roster: Roster, sockets: Sequence[socket.socket]) -> None:
    """Lead port 53 of the gateways to those sockets that have another one; idempotent, and nothing where all have 53.
    By dnat, for nft's redirect would choose another address of the link. OSError when nft refuses."""
    if not moved(sockets):
        return
    ports = {str(name[0]): int(name[1]) for name in (one.getsockname() for one in sockets) if name[1] != PORT}
    where = f"inet {roster.table} {chain(roster.network)}"
    lines = [f"add table inet {roster.table}",
             f"add chain {where} {{ type nat hook prerouting priority dstnat - 1; }}", f"flush chain {where}",
             *(f"add rule {where} {rule}" for rule in _rules(ports))]  # fmt: skip
    if problem := _nft(lines):
        raise OSError(errno.EADDRINUSE, f"port {PORT} is taken, and nft does not lead it elsewhere: {problem}")


def unredirect(table: str, network: str) -> None:
    """Take back what `redirect` did, if it did; absent is success."""
    where = f"inet {table} {chain(network)}"
    _nft([f"flush chain {where}", f"delete chain {where}"])


def moved(sockets: Sequence[socket.socket]) -> bool:
    """Whether another program has port 53."""
    return any(one.getsockname()[1] != PORT for one in sockets)


def _nft(lines: Sequence[str]) -> str:
    """What nft has against the batch, "" for nothing."""
    try:
        done = subprocess.run(["nft", "-f", "-"], input="\n".join(lines), capture_output=True, text=True, check=False,
                              timeout=_NFT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return done.stderr if done.returncode else ""


def shut() -> list[str]:
    """Base chains that drop what they do not name on its way to this host, in nft's words: questions of containers too,
    unless they let them in. Our own have no such policy."""
    done = subprocess.run(["nft", "-j", "list", "chains"], capture_output=True, check=False, timeout=_NFT_SECONDS)
    if done.returncode:
        return []
    found = [item.get("chain", {}) for item in json.loads(done.stdout)["nftables"]]
    return [f"{one['family']} {one['table']} {one['name']}" for one in found
            if (one.get("hook"), one.get("policy")) == ("input", "drop")]  # fmt: skip


def _rules(ports: Mapping[str, int]) -> Iterator[str]:
    for address, port in ports.items():
        family, target = ("ip6", f"[{address}]:{port}") if ":" in address else ("ip", f"{address}:{port}")
        yield f"{family} daddr {address} meta l4proto {{ tcp, udp }} th dport {PORT} dnat {family} to {target}"
