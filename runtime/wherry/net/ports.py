"""Host ports: which are asked, which are free, who has them.

Decides the grant: a port that a socket of the host listens on, or that another container of this wherry publishes, is
one clear error that names the holder. Refuses to know how packets get to the container (the portmap plugin's work).
The book is STATE/ports: one file a port, holding the container's id, changed under one lock; it dies with the boot, as
the rules do.
"""

import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import PortMapping

__all__ = ["PortBook", "hold", "is_published", "parse_publish"]

_SOCKETS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, 132)}
_ANY = {"": (socket.AF_INET, socket.AF_INET6), "0.0.0.0": (socket.AF_INET,), "::": (socket.AF_INET6,)}  # noqa: S104
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
_EPHEMERAL_TRIES = 64


class _Claim(NamedTuple):
    protocol: str
    host_ip: str
    port: int
    holder: str

    def clashes(self, wish: PortMapping, port: int) -> bool:
        if (self.protocol, self.port) != (wish.protocol, port):
            return False
        one, two = self.host_ip, wish.host_ip
        return one == two or _covers(one, two) or _covers(two, one)


class PortBook:
    """Who publishes what. `directory` is STATE/ports."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def claim(self, container_id: str, wishes: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """Grant all wishes or none. Asking again for what the container has already is a success."""
        if not wishes:
            return ()
        with self._locked():
            granted: list[PortMapping] = []
            for wish in wishes:
                granted.append(self._grant(container_id, _checked(wish), granted))
            for mapping in granted:
                self._write(container_id, mapping)
        return tuple(granted)

    def release(self, container_id: str) -> None:
        """Forget every port of the container. None held is success."""
        if not os.path.isdir(self._directory):
            return
        with self._locked():
            for name, claim in self._claims():
                if claim.holder == container_id:
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(self._directory, name))

    def holders(self) -> set[str]:
        """The ids that hold a port."""
        return {claim.holder for _, claim in self._claims()} if os.path.isdir(self._directory) else set()

    def _grant(self, container_id: str, wish: PortMapping, granted: Sequence[PortMapping]) -> PortMapping:
        if not wish.host_port:
            return self._grant_free(wish, granted)
        problem: WherryError | None = None
        for port in range(wish.host_port, max(wish.host_port_end, wish.host_port) + 1):
            try:
                return self._grant_exact(container_id, wish._replace(host_port=port, host_port_end=0), granted)
            except WherryError as refused:
                problem = refused
        assert problem is not None
        if wish.host_port_end <= wish.host_port:
            raise problem
        raise WherryError(Kind.CONFLICT, f"no port of {wish.host_port}-{wish.host_port_end}/{wish.protocol} is free",
                          hint=f"the last one tried: {problem.message}")

    def _grant_exact(self, container_id: str, wish: PortMapping, granted: Sequence[PortMapping]) -> PortMapping:
        self._refuse_clash(container_id, wish, granted)
        if not any(claim.holder == container_id and _same(claim, wish) for _, claim in self._claims()):
            for taken in hold([wish]):
                taken.close()
        return wish

    def _grant_free(self, wish: PortMapping, granted: Sequence[PortMapping]) -> PortMapping:
        """A free port of the kernel's choice; asked of the first family, then proven on all."""
        for _ in range(_EPHEMERAL_TRIES):
            with closing(_socket(_families(wish.host_ip)[0], wish.protocol)) as trial:
                trial.bind((_bind_address(wish.host_ip, trial.family), 0))
                port = int(trial.getsockname()[1])
            with suppress(WherryError):
                return self._grant_exact("", wish._replace(host_port=port), granted)
        raise WherryError(Kind.EXHAUSTED, f"no free host port for {wish.container_port}/{wish.protocol}")

    def _refuse_clash(self, container_id: str, wish: PortMapping, granted: Sequence[PortMapping]) -> None:
        mine = [_Claim(done.protocol, done.host_ip, done.host_port, "") for done in granted]
        others = [claim for _, claim in self._claims() if claim.holder != container_id]
        for claim in mine + others:
            if claim.clashes(wish, wish.host_port):
                holder = f"container {claim.holder[:12]} publishes it" if claim.holder else "it is published twice here"
                raise WherryError(Kind.CONFLICT, f"port {_name(wish)} is in use: {holder}",
                                  hint="choose another host port")

    def _write(self, container_id: str, mapping: PortMapping) -> None:
        path = os.path.join(self._directory, f"{mapping.protocol},{mapping.host_ip},{mapping.host_port}")
        with open(path, "w", encoding="ascii") as stream:
            stream.write(container_id)

    def _claims(self) -> list[tuple[str, _Claim]]:
        found = []
        for name in os.listdir(self._directory):
            protocol, _, rest = name.partition(",")
            host_ip, _, port = rest.rpartition(",")
            with suppress(FileNotFoundError):
                if port.isdigit():
                    with open(os.path.join(self._directory, name), encoding="ascii") as stream:
                        found.append((name, _Claim(protocol, host_ip, int(port), stream.read(256))))
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(self._directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def is_published(directory: str, port: int) -> bool:
    """Whether a container has the host port, by any protocol and at any address. `directory` as for the book."""
    with suppress(FileNotFoundError):
        return any(name.endswith(f",{port}") for name in os.listdir(directory))
    return False


def hold(mappings: Iterable[PortMapping]) -> list[socket.socket]:
    """Bind every port on the host, not listening: while the sockets are open nobody else gets the port."""
    held: list[socket.socket] = []
    try:
        for mapping in mappings:
            for family in _families(mapping.host_ip):
                held += _bound(mapping, family)
    except BaseException:
        for done in held:
            done.close()
        raise
    return held


def parse_publish(text: str) -> tuple[PortMapping, ...]:
    """One -p as docker writes it: [[ADDRESS:]HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTOCOL]."""
    body, _, protocol = text.partition("/")
    head, _, container = body.rpartition(":")
    address, _, host = head.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    first, last = _range(container, text)
    low, high = _range(host, text) if host else (0, 0)
    protocol = (protocol or "tcp").lower()
    if not host or (high - low) == (last - first):
        pairs = [PortMapping(port, low + port - first if host else 0, protocol, address)
                 for port in range(first, last + 1)]
    elif first == last:
        pairs = [PortMapping(first, low, protocol, address, high)]
    else:
        raise WherryError(Kind.INVALID, f'bad port mapping "{text}": the two ranges differ in length')
    return tuple(_checked(pair) for pair in pairs)


def _range(text: str, whole: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))):
        raise WherryError(Kind.INVALID, f'bad port mapping "{whole}"',
                          hint="write [ADDRESS:][HOST:]CONTAINER[/tcp|udp|sctp]")
    first, last = int(low), int(high or low)
    if not 0 < first <= last < 65536:
        raise WherryError(Kind.INVALID, f'bad port mapping "{whole}": ports are 1 to 65535, the lower one first')
    return first, last


def _checked(wish: PortMapping) -> PortMapping:
    if wish.protocol not in _SOCKETS:
        raise WherryError(Kind.INVALID, f'port {wish.container_port}: unknown protocol "{wish.protocol}"',
                          hint="tcp, udp or sctp")
    if not (0 < wish.container_port < 65536 and 0 <= wish.host_port < 65536 and 0 <= wish.host_port_end < 65536):
        raise WherryError(Kind.INVALID, f"port {_name(wish)}: ports are 1 to 65535")
    return wish._replace(host_ip=_checked_address(wish)) if wish.host_ip else wish


def _checked_address(wish: PortMapping) -> str:
    try:
        address = str(ipaddress.ip_address(wish.host_ip))
    except ValueError:
        problem = f'port {wish.container_port}: "{wish.host_ip}" is not an IP address'
        raise WherryError(Kind.INVALID, problem) from None
    if address == "::1":
        raise WherryError(Kind.UNSUPPORTED, f"port {wish.container_port} cannot be published on ::1",
                          hint="the kernel has no route_localnet for IPv6; publish on 127.0.0.1")
    return address


def _bound(mapping: PortMapping, family: socket.AddressFamily) -> list[socket.socket]:
    """The bound socket; none where the host lacks the family or the protocol and it was not asked for by name."""
    try:
        made = _socket(family, mapping.protocol)
    except OSError as problem:
        if problem.errno in _NO_SUCH_FAMILY and (not mapping.host_ip or mapping.protocol == "sctp"):
            return []
        raise
    try:
        made.bind((_bind_address(mapping.host_ip, family), mapping.host_port))
    except OSError as problem:
        made.close()
        if problem.errno == errno.EADDRNOTAVAIL and not mapping.host_ip:
            return []  # IPv6 is switched off
        raise _refused(mapping, problem) from None
    return [made]


def _socket(family: int, protocol: str) -> socket.socket:
    kind, number = _SOCKETS[protocol]
    made = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    if protocol == "tcp":  # connections in TIME_WAIT hold nothing back; a listener still does (socket(7))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _refused(mapping: PortMapping, problem: OSError) -> WherryError:
    if problem.errno == errno.EADDRINUSE:
        return WherryError(Kind.CONFLICT, f"port {_name(mapping)} is in use: {_listener(mapping)}",
                           hint="choose another host port, or stop what listens there")
    if problem.errno == errno.EADDRNOTAVAIL:
        return WherryError(Kind.INVALID, f"port {_name(mapping)}: {mapping.host_ip} is not an address of this host")
    if problem.errno in (errno.EACCES, errno.EPERM):
        return WherryError(Kind.DENIED, f"port {_name(mapping)}: {problem.strerror}",
                           hint="ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE")
    return WherryError(Kind.INTERNAL, f"port {_name(mapping)}: {problem.strerror}")


def _listener(mapping: PortMapping) -> str:
    """Who has the port, in words. Read from /proc only once the answer is an error."""
    inodes = set(_inodes(mapping.protocol, mapping.host_port))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:[") and target[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
                        return f"{stream.read(64).strip()} (pid {pid}) has it"
    return "another socket of the host has it"


def _inodes(protocol: str, port: int) -> Iterator[str]:
    for table in (protocol, f"{protocol}6"):
        with suppress(OSError), open(f"/proc/thread-self/net/{table}", encoding="ascii") as stream:
            for row in stream:
                words = row.split()
                if len(words) > 9 and words[1].endswith(f":{port:04X}"):
                    yield words[9]


def _families(host_ip: str) -> tuple[socket.AddressFamily, ...]:
    return _ANY.get(host_ip) or ((socket.AF_INET6,) if ":" in host_ip else (socket.AF_INET,))


def _bind_address(host_ip: str, family: int) -> str:
    return host_ip or ("::" if family == socket.AF_INET6 else "0.0.0.0")  # noqa: S104


def _covers(wide: str, narrow: str) -> bool:
    return wide in _ANY and set(_families(narrow)) & set(_ANY[wide]) != set()


def _same(claim: _Claim, wish: PortMapping) -> bool:
    return (claim.protocol, claim.host_ip, claim.port) == (wish.protocol, wish.host_ip, wish.host_port)


def _name(mapping: PortMapping) -> str:
    address = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip
    return f"{address + ':' if address else ''}{mapping.host_port or mapping.container_port}/{mapping.protocol}"
