"""The texts of /etc/hosts, /etc/resolv.conf and /etc/hostname, and the one write that keeps a peer's hosts file true.

Decides what the lines are. Refuses to know who is whose peer (the engine asks its records) and where the files lie.
Everything composed here rejects control bytes and blanks (invariant 10): a name or an address can never add a line.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = [
    "HostEntry", "host_resolv_conf", "hostname_file", "hosts_file", "is_loopback", "nameservers", "parse_add_host",
    "read_bytes", "resolv_conf", "update_own", "update_peers", "with_peers",
]

_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_PEER_TAG = "# wherry: peer"  # ends every line that update_peers owns; all resolvers stop reading at "#"
_WORD = r"[!-\"$-~]+"  # printable ASCII without blank and "#"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?"
_FALLBACK = {4: ("8.8.8.8", "8.8.4.4"), 6: ("2001:4860:4860::8888", "2001:4860:4860::8844")}  # docker's choice
_STUB_CONF, _REAL_CONF = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
_MAX_BYTES = 1 << 20


class HostEntry(NamedTuple):
    """One machine as hosts(5) sees it: each address ("10.0.0.2", a prefix length is dropped) gets one line of names."""

    addresses: tuple[str, ...]
    names: tuple[str, ...]

    def lines(self, tag: str = "") -> Sequence[str]:
        """The lines; none when there is no name."""
        return _lines(self, tag)


@lru_cache(maxsize=1 << 12)  # each member of a network is told to all others
def _lines(entry: HostEntry, tag: str) -> tuple[str, ...]:
    names = " ".join(dict.fromkeys(_checked_name(name) for name in entry.names))
    tail = f"\t{tag}" if tag else ""
    return tuple(f"{_checked_address(address)}\t{names}{tail}" for address in entry.addresses) if names else ()


def hosts_file(own: Sequence[HostEntry], add_host: Iterable[str] = (), host_gateway: str = "",
               peers: Iterable[HostEntry] = ()) -> str:
    """The whole file of a fresh container. `add_host` as on the command line: "name:address" or "name=address"."""
    lines = [line for entry in own for line in entry.lines()]
    lines += [line for text in add_host for line in parse_add_host(text, host_gateway).lines()]
    return with_peers(_LOCAL + "".join(f"{line}\n" for line in lines), peers)


def with_peers(text: str, peers: Iterable[HostEntry]) -> str:
    """The same file with other peers: lines that are not ours stay byte for byte as they are."""
    kept = [line for line in text.split("\n") if not line.endswith(_PEER_TAG)]
    if kept and kept[-1] == "":
        kept.pop()
    return "".join(f"{line}\n" for line in kept + [line for peer in peers for line in peer.lines(_PEER_TAG)])


def update_peers(path: str, peers: Iterable[HostEntry]) -> bool:
    """Rewrite the peers in an existing hosts file. False: the file is gone."""
    return _rewrite(path, lambda text: with_peers(text, peers))


def update_own(path: str, gone: Iterable[str], new: Iterable[HostEntry]) -> bool:
    """Rewrite the container's own lines: those of addresses that are `gone` go, `new` ones come before its peers'."""
    without = {*gone, *(address for entry in new for address in entry.addresses)}

    def change(text: str) -> str:
        lines = [line for line in text.split("\n") if line.partition("\t")[0] not in without]
        at = next((n for n, line in enumerate(lines) if line.endswith(_PEER_TAG) or (not line and n == len(lines) - 1)),
                  len(lines))
        return "\n".join([*lines[:at], *(line for entry in new for line in entry.lines()), *lines[at:]])

    return _rewrite(path, change)


def _rewrite(path: str, change: Callable[[str], str]) -> bool:
    """Change a hosts file in place, same inode (it is bind-mounted). False: it is gone.

    The container can write this file too, so what it holds is read with a cap and trusted for nothing; and it could
    hold a lock on it for ever, so what writers of ours lock is the directory, which the container never sees.
    """
    with ExitStack() as closing:
        try:
            directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, directory)
            fcntl.flock(directory, fcntl.LOCK_EX)
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            closing.callback(os.close, fd)
        except FileNotFoundError:
            return False
        old = read_bytes(fd)
        new = change(old.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if new != old:
            os.pwrite(fd, new, 0)  # first the new bytes, then the length: a reader never finds an empty file
            os.ftruncate(fd, len(new))
    return True


def read_bytes(fd: int, limit: int = _MAX_BYTES) -> bytes:
    """Everything from offset 0, at most `limit` bytes (invariant 3)."""
    data = os.pread(fd, limit + 1, 0)
    if len(data) > limit:
        raise WherryError(Kind.EXHAUSTED, f"hosts file is larger than {limit} bytes")
    return data


def parse_add_host(text: str, host_gateway: str = "") -> HostEntry:
    """One --add-host. The address may be "host-gateway", or an IPv6 address with or without brackets."""
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if not found or not name or not address:
        raise WherryError(Kind.INVALID, f'bad --add-host "{_shown(text)}": it takes NAME:ADDRESS')
    if address == "host-gateway":
        if not host_gateway:
            raise WherryError(Kind.PRECONDITION, f'--add-host "{_shown(text)}": this network has no gateway address',
                              hint="use a bridge network, or name the address")
        address = host_gateway
    return HostEntry((address.strip("[]"),), (name,))


def hostname_file(name: str) -> str:
    """The text of /etc/hostname."""
    return f"{_checked_name(name)}\n"


def host_resolv_conf(read: str = _STUB_CONF, real: str = _REAL_CONF) -> str:
    """The host's resolv.conf; behind systemd-resolved's stub (127.0.0.53) the file with the true servers."""
    text = _read_text(read)
    servers = _values(text, "nameserver")
    if servers and all(server == "127.0.0.53" for server in servers):
        return _read_text(real) or text
    return text


def nameservers(path: str = _STUB_CONF) -> tuple[str, ...]:
    """The servers that a resolv.conf names, in order, each once; a stub of this host as any other."""
    found = _values(_read_text(path), "nameserver")
    return tuple(dict.fromkeys(server for server in found if _is_address(server)))


def is_loopback(address: str) -> bool:
    """Whether an address means whoever uses it."""
    packed = _packed(address)
    return bool(packed) and _is_loopback(packed)


def resolv_conf(host_text: str, dns: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = (),
                *, same_namespace: bool = False, ipv6: bool = False) -> str:
    """The container's file: what is asked wins, the rest is the host's.

    A loopback server of the host answers nobody in another network namespace: it is dropped, and public servers stand
    in when none is left (docker does the same). With `same_namespace` (--network host) the host's servers stay.
    """
    servers = [_checked_address(server) for server in dns] or _host_servers(host_text, same_namespace, ipv6)
    domains = [_checked_word(word) for word in search] or _host_words(host_text, "search")
    if list(search) == ["."]:  # docker: --dns-search . means none
        domains = []
    words = [_checked_word(word) for word in options] or _host_words(host_text, "options")
    lines = [f"search {' '.join(domains)}"] if domains else []
    lines += [f"nameserver {server}" for server in servers]
    lines += [f"options {' '.join(words)}"] if words else []
    return "".join(f"{line}\n" for line in lines)


def _host_servers(text: str, same_namespace: bool, ipv6: bool) -> list[str]:
    found = [server for server in _values(text, "nameserver") if _is_address(server)]
    if same_namespace:
        return found
    reachable = [server for server in found if not _is_loopback(_packed(server))]
    return reachable or list(_FALLBACK[4]) + (list(_FALLBACK[6]) if ipv6 else [])


def _host_words(text: str, keyword: str) -> list[str]:
    lines = [line.split() for line in text.splitlines()]
    found = [words[1:] for words in lines if words and words[0] == keyword]
    if not found:
        return []
    chosen = found[-1] if keyword == "search" else [word for words in found for word in words]  # resolv.conf(5)
    return [word for word in chosen if re.fullmatch(_WORD, word)]


def _values(text: str, keyword: str) -> list[str]:
    lines = [line.split() for line in text.splitlines()]
    return [words[1] for words in lines if len(words) > 1 and words[0] == keyword]


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _packed(text: str) -> bytes:
    """The bytes of an address, an IPv6 one with or without its scope; b"" for anything else. By inet_pton, since every
    run comes by here and ipaddress costs 5 ms of import."""
    plain = text.partition("/")[0]
    for family, word in ((socket.AF_INET, plain), (socket.AF_INET6, plain.partition("%")[0])):
        try:
            return socket.inet_pton(family, word)
        except (OSError, ValueError):
            continue
    return b""


def _is_loopback(packed: bytes) -> bool:
    return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\1"


def _is_address(text: str) -> bool:
    return bool(_packed(text)) and re.fullmatch(_WORD, text) is not None


def _checked_address(text: str) -> str:
    if not _is_address(text):
        raise WherryError(Kind.INVALID, f'"{_shown(text)}" is not an IP address')
    return text.partition("/")[0]


def _checked_name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise WherryError(Kind.INVALID, f'"{_shown(text)}" is not a host name')
    return text


def _checked_word(text: str) -> str:
    if not re.fullmatch(_WORD, text):
        raise WherryError(Kind.INVALID, f'"{_shown(text)}" does not belong in resolv.conf')
    return text


def _shown(text: str) -> str:
    return text.encode("unicode_escape").decode()[:80]
