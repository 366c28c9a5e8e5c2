"""An overlay network on this host: what it is, who is on it, and that the kernel is equal to the peers file.

Decides what a peers file means for the kernel and the table in either mode, and what is remembered: below /run a
directory for each network of a network namespace, with the network's configuration, the elements that it has in the
table, and an empty file per attachment, under the name of its host end. `locked` is the way in, while a change lasts.
Refuses to know containers: their part is the bridge's.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from wherry_cni import netlink, nft, overlay_kernel, overlay_peers, rtnetlink
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.nlwire import Wire
from wherry_cni.overlay_kernel import Route, Vtep, Way
from wherry_cni.overlay_peers import Peer

__all__ = ["Network", "Plan", "State", "apply", "locked", "missing", "place", "plan", "watched"]

_RUN = "/run/wherry-cni/overlay"
_NETNS_COOKIE = 71  # SO_NETNS_COOKIE, socket(7): unlike an inode's number it is never used again
_YOUNG = 120  # seconds that an ADD may take until its link is there
_OVERHEAD = {4: 50, 6: 70}  # bytes of VXLAN: outer IP, UDP, VXLAN, inner Ethernet (RFC 7348, section 5)
_LEAST = {4: 68, 6: 1280}  # MTUs: RFC 791, RFC 8200
VXLAN, HOST_GW = "vxlan", "host-gw"


class Network(NamedTuple):
    """The configuration, as the watcher needs it."""

    name: str
    mode: str
    peers_file: str
    address: str
    vni: int
    port: int
    bridge: str
    mtu: int
    table: str
    masquerade: bool
    walled: bool

    @property
    def digest(self) -> bytes:
        """What is derived from a network: an instance's table tells two of the same name apart."""
        return hashlib.sha256(f"{self.name}\0{self.table}".encode()).digest()

    @property
    def device(self) -> str:
        """The VXLAN device's name."""
        return f"vx{self.digest.hex()[:12]}"

    @property
    def metric(self) -> int:
        """Tells our routes from another network's, and lets everybody else's come first."""
        return 100_000 + int.from_bytes(self.digest[:4], "big") % 900_000


class Plan(NamedTuple):
    """What the peers file means here. `subnets` are this host's; `mtu` fits whatever the containers send."""

    subnets: tuple[str, ...]
    mtu: int
    vtep: Vtep | None
    ways: tuple[Way, ...]
    peers: tuple[Peer, ...]
    elements: tuple[nft.Element, ...]

    def routes(self, index: int) -> list[Route]:
        """The peers' subnets: by our device to the hop that stands for the subnet, or by the peer itself."""
        return [Route(subnet, _hop(subnet) if self.vtep else peer.address, index)
                for peer in self.peers for subnet in peer.subnets]

    def beyond(self) -> list[str]:
        """Few routes that lead to all peers' subnets, of the IP versions that this host's containers have."""
        found: list[str] = []
        for version in sorted({_version(subnet) for subnet in self.subnets} if self.peers else ()):
            every = (*self.subnets, *(subnet for peer in self.peers for subnet in peer.subnets))
            nets: Iterable[Any] = (ipaddress.ip_network(text) for text in every if _version(text) == version)
            found += [str(net) for net in ipaddress.collapse_addresses(nets)]
        return [text for text in found if text not in self.subnets]

    def named(self, hop: str) -> str:
        """The peer behind a next hop, for errors."""
        found = [peer for peer in self.peers if hop == peer.address or hop in map(_hop, peer.subnets)]
        return f"peer {found[0].address}" if found else hop


class State:
    """A network's directory, while its lock is held."""

    def __init__(self, path: str) -> None:
        self.path = path

    def network(self) -> Network | None:
        """What ADD wrote last; None where nothing was or it cannot be read."""
        with suppress(OSError, ValueError, TypeError):
            return Network(**self._read("network"))
        return None

    def remember(self, network: Network) -> None:
        """The configuration from now on."""
        if self.network() != network:
            self._write("network", network._asdict())

    def elements(self) -> list[nft.Element]:
        """The elements that the network had put into the table."""
        with suppress(OSError, ValueError, TypeError):
            return [nft.Element(*row) for row in self._read("elements")]
        return []

    def remember_elements(self, elements: Sequence[nft.Element]) -> None:
        """The elements from now on."""
        self._write("elements", elements)

    def join(self, port: str) -> None:
        """An attachment, by its host end's name."""
        os.makedirs(f"{self.path}/ports", exist_ok=True)
        with open(f"{self.path}/ports/{port}", "w", encoding="ascii"):
            pass

    def leave(self, port: str) -> None:
        """It is gone; absent is success."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.path}/ports/{port}")

    def every_port(self) -> set[str]:
        """All attachments."""
        with suppress(FileNotFoundError):
            return set(os.listdir(f"{self.path}/ports"))
        return set()

    def ports(self) -> set[str]:
        """Attachments that live: their link is there, or they are so young that it may still come."""
        links, young = netlink.links(), time.time() - _YOUNG
        return {name for name in self.every_port()
                if name in links or os.stat(f"{self.path}/ports/{name}").st_mtime > young}

    def end(self) -> None:
        """Take everything of the network away, the directory last: a repeated call finishes what one began."""
        network = self.network()
        if network is not None:
            with rtnetlink.wired() as wire:
                overlay_kernel.remove(wire, network.device, network.metric)
            _drop(network.table, self.elements())
        with suppress(FileNotFoundError):
            for name in os.listdir(f"{self.path}/ports"):
                os.unlink(f"{self.path}/ports/{name}")
            os.rmdir(f"{self.path}/ports")
        for name in sorted(os.listdir(self.path), key="lock".__eq__):
            os.unlink(f"{self.path}/{name}")
        os.rmdir(self.path)

    def _read(self, name: str) -> Any:
        with open(f"{self.path}/{name}.json", encoding="utf-8") as stream:
            return json.load(stream)

    def _write(self, name: str, value: object) -> None:
        with open(f"{self.path}/{name}.new", "w", encoding="utf-8") as stream:
            json.dump(value, stream)
        os.replace(f"{self.path}/{name}.new", f"{self.path}/{name}.json")


def place(network: Network) -> str:
    """The directory of a network in the network namespace that this is."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _NETNS_COOKIE, 8), "little")
    return f"{_RUN}/{cookie}-{network.device}"


@contextmanager
def locked(path: str, *, make: bool = False) -> Iterator[State | None]:
    """The directory, while nobody else changes its network; None where there is none."""
    fd = _lock(path, make)
    try:
        yield State(path) if fd >= 0 else None
    finally:
        if fd >= 0:
            os.close(fd)


def _lock(path: str, make: bool) -> int:
    """A descriptor whose lock is ours; -1. The file may have been removed while we waited: then it is not the lock."""
    while True:
        try:
            for directory in (os.path.dirname(_RUN), _RUN, path) if make else ():
                with suppress(FileExistsError):
                    os.mkdir(directory, 0o700)  # whatever the caller's umask
            fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
        except FileNotFoundError:
            if make:  # it went between the two
                continue
            return -1
        fcntl.flock(fd, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(f"{path}/lock")):
                return fd
        os.close(fd)


def watched(path: str) -> bool:
    """Whether the network's watcher runs."""
    with suppress(FileNotFoundError), open(f"{path}/watch", "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# ---- from the file to the kernel


def plan(wire: Wire, network: Network) -> Plan:
    """What the file means now; a CniError says what is wrong with it, or with this host."""
    peers = overlay_peers.read(network.peers_file)
    here = overlay_kernel.local_addresses(wire)
    own = overlay_peers.own(peers, network.address, here)
    others = tuple(peer for peer in peers if peer != own)
    mtu = _mtu(wire, network, own, here[own.address])
    elements = tuple(_elements(network, own, others))
    if network.mode == HOST_GW:
        _routable(others)
        return Plan(own.subnets, mtu, None, (), others, elements)
    for peer in others:
        if _version(peer.address) != _version(own.address):
            raise CniError(BAD_CONFIG, f"peer {peer.address}: a tunnel from {own.address} needs the same IP version")
    vtep = Vtep(network.device, own.address, network.vni, network.port, _mac(own.address, network.vni), mtu,
                f"overlay network {network.name}")
    ways = tuple(Way(tuple(map(_hop, peer.subnets)), _mac(peer.address, network.vni), peer.address) for peer in others)
    return Plan(own.subnets, mtu, vtep, ways, others, elements)


def apply(state: State, network: Network, *, rules: bool) -> Plan:
    """Make kernel and table equal to the file. `rules`: also elements that we think are there."""
    with rtnetlink.wired() as wire:
        wanted = plan(wire, network)
        _refresh(state, network, wanted, rules)
        index = 0
        if wanted.vtep:
            hosts = [str(ipaddress.ip_interface(_hop(subnet))) for subnet in wanted.subnets]
            index = overlay_kernel.set_device(wire, wanted.vtep, hosts)
            overlay_kernel.set_ways(wire, index, wanted.ways)
        else:
            netlink.delete_link(network.device)  # where the mode has been another
        overlay_kernel.set_routes(wire, network.metric, wanted.routes(index), wanted.named)
    return wanted


def missing(network: Network) -> str:
    """What is not as the file wants it, in words; "" where all is well."""
    with rtnetlink.wired() as wire:
        wanted = plan(wire, network)
        found = rtnetlink.find(wire, network.device)
        if wanted.vtep and (found is None or not found.up):
            return f"the device {network.device} is {'missing' if found is None else 'down'}"
        lost = overlay_kernel.differences(wire, found.number if found else 0, network.metric, wanted.ways,
                                          wanted.routes(found.number if found else 0))
    return f"{lost} routes or entries of peers are not as the peers file has them" if lost else ""


def _refresh(state: State, network: Network, wanted: Plan, rules: bool) -> None:
    """The table: what has gone goes first, for it may overlap what has come. Each is remembered as long as it may be
    there, wherever we are killed."""
    before = state.elements()
    gone = [old for old in before if old not in wanted.elements]
    changed = list(wanted.elements) != before
    if changed:
        state.remember_elements([*gone, *wanted.elements])
    _drop(network.table, gone)
    if wanted.elements and (rules or changed):
        nft.add(network.table, wanted.elements)
    if gone:
        state.remember_elements(wanted.elements)


def _drop(table: str, gone: Sequence[nft.Element]) -> None:
    if gone:
        nft.drop(table, [(element.where, element.key) for element in gone])


def _elements(network: Network, own: Peer, others: Sequence[Peer]) -> Iterator[nft.Element]:
    """Between subnets of the overlay nothing is masqueraded, and a walled bridge is open to them. The owner is not the
    network's (nft.owner_of_network), whose elements the bridge's GC judges."""
    name = f"{nft.owner_of_network(network.name)}/peers"
    for peer in others:
        for subnet in peer.subnets:
            suffix = nft.family(subnet)
            if network.masquerade:
                yield from (nft.Element(f"inside{suffix}", f"{mine} . {subnet}", name)
                            for mine in own.subnets if nft.family(mine) == suffix)
        if network.walled:
            known = peer.subnets if network.mode == VXLAN else (*peer.subnets, peer.address)
            yield from (nft.Element(f"peers{nft.family(text)}", f"{network.bridge} . {text}", name) for text in known)


def _mtu(wire: Wire, network: Network, own: Peer, index: int) -> int:
    """The largest that fits into a packet of the underlay, or a configured one that does."""
    if network.mtu and index == overlay_kernel.LOOPBACK:  # an address that routers announce: the way's MTU is not known
        return network.mtu
    over = _OVERHEAD[_version(own.address)] if network.mode == VXLAN else 0
    fits = overlay_kernel.underlay_mtu(wire, index) - over
    if network.mtu > fits:
        raise CniError(BAD_CONFIG, f"mtu: {network.mtu} is more than the underlay of {own.address} carries ({fits})")
    least = max(_LEAST[_version(subnet)] for subnet in own.subnets)
    if (network.mtu or fits) < least:
        raise CniError(BAD_CONFIG, f"an MTU of {network.mtu or fits} is less than the {least} that IP wants")
    return network.mtu or fits


def _routable(others: Sequence[Peer]) -> None:
    """An IPv4 subnet has a route by either version, an IPv6 subnet by IPv6 only."""
    for peer in others:
        for subnet in peer.subnets:
            if _version(subnet) == 6 and _version(peer.address) == 4:
                raise CniError(BAD_CONFIG, f"host-gw: peer {peer.address}: subnet {subnet} needs an IPv6 address",
                               "give the hosts' IPv6 addresses, or use the mode vxlan")


def _mac(address: str, vni: int) -> str:
    """A VTEP's MAC follows from what everybody knows, so nothing is exchanged."""
    return "02:" + hashlib.sha256(f"{address}/{vni}".encode()).digest()[:5].hex(":")


def _hop(subnet: str) -> str:
    """The address that stands for a subnet in the tunnel: its first, which no container has."""
    return subnet.partition("/")[0]


def _version(text: str) -> int:
    return 6 if ":" in text else 4
