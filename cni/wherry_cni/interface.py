"""What the interface plugins share: an interface inside a container's namespace, configured, checked and taken away.

Decides how addresses, routes and the state "up" get there, how a veth pair to the host is made and named, which MAC is
asked for, what CHECK compares, and that a failed ADD takes back what it did, last things first.
Refuses to know what an interface is attached to (bridge, ptp, macvlan, ...) and how addresses are chosen (IPAM).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from wherry_cni import netlink, nft, rtnetlink, skel
from wherry_cni.errors import BAD_CONFIG, KERNEL, UNKNOWN_CONTAINER, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.ipam import delegate
from wherry_cni.nlwire import Message, Wire
from wherry_cni.results import Json
from wherry_cni.rtnetlink import Link
from wherry_cni.skel import Call

__all__ = ["Steps", "Style", "check", "configure", "delete", "dns", "forwarding", "has_ipam", "host_ifname", "leased",
           "link_name", "opened", "own_ipv6", "pair", "refuse_second", "refuse_taken", "resolved", "told", "told_macs",
           "undoing", "wished_mac"]

Steps = list[Callable[[], object]]
_SETTLED, _LOOK = 10.0, 0.05  # seconds: duplicate detection takes one or two


class Style(NamedTuple):
    """How `configure` goes about it.

    `dad`: look for duplicates of IPv6 addresses and wait for the answer. `notify`: tell neighbours of the addresses
    (arp_notify, ndisc_notify). `connected`: let the kernel make the routes to the addresses' subnets. `up`: set it up.
    """

    dad: bool = False
    notify: bool = False
    connected: bool = True
    up: bool = True


_PLAIN = Style()


# ---- ADD and its undo


@contextmanager
def undoing() -> Iterator[Steps]:
    """A list for what takes back each thing done; it is worked off, last first, when the block fails. Each step for
    itself, for the first error is the one to tell: what fails to be undone, the runtime's DEL meets again."""
    steps: Steps = []
    try:
        yield steps
    except BaseException:
        for step in reversed(steps):
            try:
                step()
            except Exception as second:
                skel.note(f"while undoing: {second}")
        raise


def has_ipam(call: Call) -> bool:
    """Whether the configuration names an address plugin. For a DEL, one that ADD refused names none."""
    ipam = call.config.get("ipam") or {}
    sound = isinstance(ipam, dict) and isinstance(ipam.get("type") or "", str)
    if not sound and call.verb != "DEL":
        raise CniError(BAD_CONFIG, "ipam is not an object with a type")
    return sound and bool(ipam.get("type"))


def leased(call: Call, undo: Steps) -> Json:
    """IPAM's result, which has an address; {} without IPAM."""
    if not has_ipam(call):
        return {}
    undo.append(lambda: delegate(call, "DEL"))  # also when it fails itself (section 4, "Delegated Plugin Execution")
    result = delegate(call, "ADD")
    if not result.get("ips"):
        raise CniError(BAD_CONFIG, f"IPAM plugin {call.config['ipam']['type']} gave no address")
    return result


def refuse_taken(call: Call) -> None:
    """Specification, section 2, ADD: an interface of that name in the container is an error."""
    with rtnetlink.wired(call.netns) as wire:
        if rtnetlink.find(wire, call.ifname) is not None:
            raise _taken(call)


def refuse_second(wire: Wire, call: Call) -> None:
    """The host end of a pair is there already: the attachment is, too, or it is what a killed ADD left."""
    name = host_ifname(call)
    if rtnetlink.find(wire, name) is not None:
        refuse_taken(call)
        netlink.delete_link(name)


def host_ifname(call: Call) -> str:
    """The name of a pair's host end, from network, container and interface (IFNAMSIZ allows 15 characters), so that DEL
    finds it when the container's namespace is gone and nothing was remembered."""
    seed = f"{call.network}\0{call.container_id}\0{call.ifname}"
    return "veth" + hashlib.sha256(seed.encode()).hexdigest()[:11]


def pair(wire: Wire, call: Call, master: int, mac: str, mtu: int, *more: Message) -> Link:
    """A veth pair in one message, then `more` about its host end, which is told: the peer is born in the container's
    namespace, under its name. A failure leaves no link."""
    name = host_ifname(call)
    with opened(call.netns) as fd:
        made, shown, *others = wire.ask(rtnetlink.veth(name, master, call.ifname, fd, mac=mac, mtu=mtu),
                                        rtnetlink.get(name), *more)
    if made.code == errno.EEXIST:
        raise _taken(call)
    host = rtnetlink.given(shown)
    bad = next((answer.code for answer in (made, shown, *others) if answer.code), 0)
    if bad or host is None:
        if not made.code:
            netlink.delete_link(name)
        raise netlink.explained(f"making the veth pair of {call.ifname}", bad or errno.ENODEV)
    return host


def configure(call: Call, ips: Sequence[Json], routes: Sequence[Json], style: Style = _PLAIN) -> Link:
    """Addresses, up, routes, for the container's interface; routes have their gateways (`resolved`)."""
    _prepare(call, any(":" in part["address"] for part in ips), style)
    with rtnetlink.wired(call.netns) as wire:
        inner = rtnetlink.find(wire, call.ifname)
        if inner is None:
            raise CniError(KERNEL, f"{call.ifname} vanished while it was made")
        wanted = [rtnetlink.address(inner.number, part["address"], dad=style.dad, connected=style.connected)
                  for part in ips]
        ways = [rtnetlink.route(inner.number, way) for way in routes]
        answers = wire.ask(*wanted, rtnetlink.up(inner.number) if style.up else rtnetlink.get(call.ifname), *ways)
        _judge(call, [part["address"] for part in ips], routes, [answer.code for answer in answers])
        if style.dad and any(":" in part["address"] for part in ips):
            _settle(wire, inner)
    return inner


def _prepare(call: Call, six: bool, style: Style) -> None:
    wanted = ([("ipv6", "disable_ipv6", "0")] if six else []) + (
        [("ipv4", "arp_notify", "1"), ("ipv6", "ndisc_notify", "1")] if style.notify else [])

    def write() -> None:
        for family, key, value in wanted:
            name = f"net/{family}/conf/{call.ifname}/{key}"
            if six or os.path.exists(f"/proc/sys/{name}"):  # a kernel booted with ipv6.disable=1 has none
                netlink.sysctl(name, value)

    if wanted:
        netlink.in_namespace(call.netns, write)


def _judge(call: Call, addresses: Sequence[str], routes: Sequence[Json], codes: Sequence[int]) -> None:
    """The kernel's answers: to each address, to `up`, to each route (one that is there already is no failure)."""
    about = [f"giving {call.ifname} the address {text}" for text in addresses] + [f"setting {call.ifname} up"]
    about += [f"giving {call.ifname} the route to {way['dst']}" for way in routes]
    for at, (what, code) in enumerate(zip(about, codes, strict=True)):
        if code == errno.EEXIST and at < len(addresses):
            raise CniError(BAD_CONFIG, f"{what}: it has it already", "the address was given twice")
        if code and code != errno.EEXIST:
            raise netlink.explained(what, code)


def _settle(wire: Wire, inner: Link) -> None:
    """Wait until no address is tentative (RFC 4862, 5.4); one that a neighbour has is an error."""
    patience = time.monotonic() + _SETTLED
    while True:
        found = rtnetlink.told_addresses(wire, inner.number)
        twice = [part.text for part in found if part.flags & rtnetlink.DAD_FAILED]
        if twice:
            raise CniError(IO_ERROR, f"{', '.join(twice)}: another machine on the link of {inner.name} has it")
        if not any(part.flags & rtnetlink.TENTATIVE for part in found):
            return
        if time.monotonic() > patience:  # no carrier: it is found out when there is one
            skel.note(f"{inner.name}: duplicate detection did not end in {_SETTLED:.0f} s")
            return
        time.sleep(_LOOK)


def resolved(routes: Sequence[Json], ips: Sequence[Json]) -> list[Json]:
    """The routes, each with a gateway: where it names none (and no scope), the first of the addresses of its family."""
    gateways = {nft.family(part["address"]): part["gateway"] for part in reversed(ips) if part.get("gateway")}
    return [{**route, "gw": gateways[nft.family(route["dst"])]}
            if not route.get("gw") and route.get("scope") is None and nft.family(route["dst"]) in gateways else route
            for route in routes]


def forwarding(addresses: Sequence[str]) -> None:
    """The families of these addresses are forwarded. Switching IPv6 forwarding on would end accepting router
    advertisements where it is 1."""
    families = {nft.family(address) for address in addresses}
    if "4" in families:
        netlink.sysctl("net/ipv4/ip_forward", "1")
    if "6" in families:
        with open("/proc/sys/net/ipv6/conf/all/forwarding", encoding="ascii") as stream:
            if stream.read().strip() == "1":
                return
        for name in netlink.links():
            path = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
            if os.path.exists(path):
                _raise_accept_ra(name, path)
        netlink.sysctl("net/ipv6/conf/all/forwarding", "1")


def _raise_accept_ra(name: str, path: str) -> None:
    with open(path, encoding="ascii") as stream:
        if stream.read().strip() == "1":
            netlink.sysctl(f"net/ipv6/conf/{name}/accept_ra", "2")


def own_ipv6(name: str) -> None:
    """A host's link towards containers: no duplicate detection for its link-local address (its MAC is random, and for 1
    to 2 s the host would solicit no neighbour), and no router among the containers (CVE-2020-10749)."""
    if os.path.exists(f"/proc/sys/net/ipv6/conf/{name}"):  # a kernel booted with ipv6.disable=1 has none
        netlink.sysctl(f"net/ipv6/conf/{name}/accept_dad", "0")
        netlink.sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")


# ---- DEL and CHECK


def delete(call: Call, mark: str = "") -> None:
    """Remove the attachment's interface in the container's namespace: it has the MAC of prevResult, or `mark` as its
    alias or name. Another's of the wanted name stays, for a DEL follows an ADD that was refused because of it.
    Absent is success, and so is a namespace that is gone."""
    if not call.netns:
        return
    macs = told_macs(call)
    with netlink.if_there(), rtnetlink.wired(call.netns) as wire:
        for name in filter(None, (call.ifname, mark)):
            link = rtnetlink.find(wire, name)
            if link and (link.mac in macs or (mark and mark in (link.alias, link.name))):
                wire.do(f"removing {name}", rtnetlink.removed(link.number), but=errno.ENODEV)


def told_macs(call: Call) -> list[str]:
    """The MACs that prevResult tells for the container's interface."""
    links = (call.previous or {}).get("interfaces") or []
    return [str(link["mac"]).lower() for link in links
            if link.get("sandbox") and link.get("name") == call.ifname and link.get("mac")]


def check(call: Call, kind: str, *, up: bool = True) -> Link:
    """The container's interface, which is of a `kind` ("" for any) and `up`, has its MAC and addresses, and its routes
    are there: as prevResult says."""
    previous = call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "CHECK without prevResult")
    with rtnetlink.wired(call.netns) as wire:
        inner = rtnetlink.find(wire, call.ifname)
        if inner is None:
            raise CniError(IO_ERROR, f"the container has no interface {call.ifname}")
        present, ways = set(rtnetlink.addresses(wire, inner.number)), rtnetlink.routes(wire)
    if kind and inner.kind != kind:
        raise CniError(IO_ERROR, f"{call.ifname} is a {inner.kind or 'device'}, not a {kind}")
    if up and not inner.up:
        raise CniError(IO_ERROR, f"{call.ifname} is down")
    _check_told(call, previous, inner, present)
    for route in previous.get("routes") or []:
        if not any(_is_route(way, route) for way in ways):
            raise CniError(IO_ERROR, f"the container has lost its route to {route['dst']}")
    return inner


def _check_told(call: Call, previous: Json, inner: Link, present: set[str]) -> None:
    told_links = previous.get("interfaces") or []
    mine = [index for index, part in enumerate(told_links) if part.get("sandbox") and part.get("name") == call.ifname]
    if told_links and not mine:
        raise CniError(BAD_CONFIG, f"prevResult has no interface {call.ifname} of a container")
    for part in previous.get("ips") or []:
        if part.get("interface") in (*mine, None) and _plain(part["address"]) not in present:
            raise CniError(IO_ERROR, f"{call.ifname} has lost its address {part['address']}")
    for index in mine:
        mac = told_links[index].get("mac")
        if mac and mac.lower() != inner.mac:
            raise CniError(IO_ERROR, f"{call.ifname} has the MAC {inner.mac}, not {mac}")


def _plain(address: str) -> str:
    return str(ipaddress.ip_interface(address))


def _is_route(way: rtnetlink.Route, told_route: Mapping[str, Any]) -> bool:
    """A later plugin may have put it into another table, so that counts only where it is named."""
    table, gateway = told_route.get("table"), told_route.get("gw")
    return (way.dst == str(ipaddress.ip_network(told_route["dst"], strict=False))
            and (not gateway or (bool(way.gw) and ipaddress.ip_address(way.gw) == ipaddress.ip_address(gateway)))
            and (not table or way.table == table))


# ---- words of the configuration and the result


def link_name(key: str, name: str) -> str:
    """The name of a link, fit for the kernel and for nft."""
    if not 0 < len(name) < 16 or any(char in '/:"\\*' or not char.isprintable() or char.isspace() for char in name):
        raise CniError(BAD_CONFIG, f'{key}: "{name}" is not a link name')
    return name


def wished_mac(call: Call) -> str:
    """The MAC asked for by runtimeConfig.mac, args.cni.mac, CNI_ARGS MAC or the key mac, in this order; "" for none."""
    mac = str(call.runtime.get("mac") or call.given.get("mac") or call.args.get("MAC") or call.config.get("mac") or "")
    parts = mac.split(":")
    good = len(parts) == 6 and all(len(part) == 2 and all(char in "0123456789abcdefABCDEF" for char in part)
                                   for part in parts)
    if mac and (not good or int(parts[0], 16) & 1):
        raise CniError(BAD_CONFIG, f'mac: "{mac}" is not a unicast MAC address')
    return mac.lower()


def dns(call: Call, result: Json) -> Json:
    """The network's own settings go before IPAM's."""
    found = call.config.get("dns") or result.get("dns") or {}
    if not isinstance(found, dict):
        raise CniError(BAD_CONFIG, "dns is not an object")
    return dict(found)


def told(found: Link, netns: str = "") -> Json:
    """A link as a result tells it."""
    return {"name": found.name, "mac": found.mac, "mtu": found.mtu, **({"sandbox": netns} if netns else {})}


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of a network namespace."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise CniError(UNKNOWN_CONTAINER, f"network namespace {path}: {problem.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _taken(call: Call) -> CniError:
    return CniError(BAD_CONFIG, f"the container has an interface {call.ifname} already")
