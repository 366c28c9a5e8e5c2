"""The plugin bridge: a veth pair whose host end is a port of a bridge, addressed by an IPAM plugin.

Decides what a container's interface on a bridge network is. Keys are the reference plugin's, and three of ours:
`nftTable` (the table of this instance), `isolate` (other networks reach its containers by published ports only) and
`internal` (nothing leaves or enters the network). The host end's name is derived from network, container and interface,
so that DEL finds it when the container's namespace is gone and nothing was remembered.
Refuses to know ports (portmap) and how addresses are chosen (IPAM).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from wherry_cni import netlink, nft, rtnetlink, skel
from wherry_cni.config import boolean, integer, refuse, table_name, text
from wherry_cni.errors import BAD_CONFIG, KERNEL, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.ipam import delegate
from wherry_cni.nlwire import Wire
from wherry_cni.results import Json
from wherry_cni.rtnetlink import Link
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "host_ifname", "main", "rules", "status"]

_UNSUPPORTED = {
    "vlan": "VLAN filtering is not built", "vlanTrunk": "VLAN filtering is not built",
    "macspoofchk": "the MAC spoof check is not built", "portIsolation": "port isolation is not built",
    "disableContainerInterface": "an interface that stays down is not built",
}
_SETS = ("masq4", "masq6", "inside4", "inside6", "same", "isolated", "internal")
_MULTICAST = {"4": "224.0.0.0/4", "6": "ff00::/8"}
_DEFAULT_ROUTE = {"4": "0.0.0.0/0", "6": "::/0"}


class _Wish(NamedTuple):
    """The configuration, typed."""

    bridge: str
    gateway: bool
    default_gateway: bool
    force: bool
    masquerade: bool
    mtu: int
    hairpin: bool
    promiscuous: bool
    dad: bool
    table: str
    isolate: bool
    internal: bool
    mac: str
    ipam: bool

    @property
    def walls(self) -> bool:
        return self.isolate or self.internal


def add(call: Call) -> Json:
    """Address, links, routes, rules; whatever fails, what was done before is undone."""
    wish = _wish(call)
    leased = delegate(call, "ADD") if wish.ipam else {}
    try:
        with netlink.beside(lambda: _protect(call, wish, leased)):
            result = _join(call, wish, leased)
    except BaseException:
        _undo(call, wish)
        raise
    return result


def delete(call: Call) -> None:
    """Links, rules, address; absent is success. The host end goes now: the kernel takes a dead namespace down later.
    The links' going and the rules' each wait for an RCU grace period: for the same one."""
    wish = _wish(call)
    first = host_ifname(call) in netlink.links()
    with netlink.beside(lambda: _delete_links(call)):
        if wish.masquerade:
            _unmask(call, wish, call.previous or {} if first else {})
    if wish.ipam:
        delegate(call, "DEL")


def _delete_links(call: Call) -> None:
    if not netlink.delete_link(host_ifname(call)) and call.netns and os.path.exists(call.netns):
        netlink.in_namespace(call.netns, lambda: netlink.delete_link(call.ifname))


def _unmask(call: Call, wish: _Wish, previous: Json) -> None:
    """Drop the container's addresses from masquerading. `previous` names them only for the DEL that took the link: from
    then on the lease may be another's, and the elements are told by their owner."""
    addresses = [str(part["address"]).partition("/")[0] for part in previous.get("ips") or []]
    if addresses:
        nft.drop(wish.table, [(f"masq{nft.family(address)}", address) for address in addresses])
    else:
        nft.remove(wish.table, nft.owner(call.network, call.container_id, call.ifname), ("masq4", "masq6"))


def check(call: Call) -> None:
    """The attachment is as ADD left it."""
    wish = _wish(call)
    if wish.ipam:
        delegate(call, "CHECK")
    previous = call.previous or {}
    with rtnetlink.wired() as wire:
        bridge, port = rtnetlink.find(wire, wish.bridge), rtnetlink.find(wire, host_ifname(call))
    if bridge is None:
        raise CniError(IO_ERROR, f"bridge {wish.bridge} is missing")
    if port is None or port.master != bridge.number:
        raise CniError(IO_ERROR, f"{host_ifname(call)} is not a port of bridge {wish.bridge}")
    _check_inside(call, previous)
    _check_rules(call, wish, previous)


def collect(call: Call) -> None:
    """GC: rules and leases of attachments that the runtime no longer knows."""
    wish = _wish(call)
    if wish.masquerade or wish.walls:
        nft.remove_others(wish.table, call.network, skel.valid_attachments(call), _SETS)
    if wish.ipam:
        delegate(call, "GC")


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and so is IPAM."""
    if _wish(call).ipam:
        delegate(call, "STATUS")


def host_ifname(call: Call) -> str:
    """The name of the pair's host end (IFNAMSIZ allows 15 characters)."""
    seed = f"{call.network}\0{call.container_id}\0{call.ifname}"
    return "veth" + hashlib.sha256(seed.encode()).hexdigest()[:11]


def _join(call: Call, wish: _Wish, leased: Json) -> Json:
    ips = [{**part, "interface": 2} for part in leased.get("ips", [])]
    gateways = _gateways(wish, ips)
    routes = _routes(wish, leased, ips)
    mac = wish.mac or _mac_of(ips)
    with rtnetlink.wired() as wire:
        bridge = _bridge(wire, wish)
        if wish.gateway:
            _give_gateways(wire, wish, bridge.number, gateways)
        host = _pair(wire, call, wish, bridge.number, mac)
    inner = _configure(call, ips, routes, wish.dad)
    if wish.gateway:
        _forwarding(gateways)
    interfaces = [_told(bridge), _told(host), {**_told(inner), "sandbox": call.netns}]
    return {"interfaces": interfaces, "ips": ips, "routes": routes, "dns": _dns(call, leased)}


def _bridge(wire: Wire, wish: _Wish) -> Link:
    """The bridge's link, made where it is missing. Its MAC is set, else it would follow its ports."""
    found = rtnetlink.find(wire, wish.bridge)
    if found is None:
        mac = "02:" + ":".join(f"{byte:02x}" for byte in os.urandom(5))
        wire.do("netlink", rtnetlink.bridge(wish.bridge, mac, wish.mtu), but=errno.EEXIST)
        found = rtnetlink.find(wire, wish.bridge)
        if found is None:
            raise CniError(KERNEL, f"bridge {wish.bridge} vanished while it was made")
        _trust_link_local(wish.bridge)
    if found.kind != "bridge":
        raise CniError(BAD_CONFIG, f"{wish.bridge} exists and is not a bridge")
    if not found.up or wish.promiscuous:
        promisc = rtnetlink.IFF_PROMISC if wish.promiscuous else 0
        wire.do("netlink", rtnetlink.up(found.number, rtnetlink.IFF_UP | promisc))
    return found


def _trust_link_local(bridge: str) -> None:
    """No duplicate detection for the bridge's link-local address: its MAC is random and its first port would start a
    detection of 1 to 2 s, during which the host solicits no neighbour and so reaches no container by IPv6."""
    if os.path.exists(f"/proc/sys/net/ipv6/conf/{bridge}"):  # a kernel booted with ipv6.disable=1 has none
        netlink.sysctl(f"net/ipv6/conf/{bridge}/accept_dad", "0")


def _pair(wire: Wire, call: Call, wish: _Wish, bridge: int, mac: str) -> Link:
    """The veth pair in one message: the peer is born in the container's namespace, under its name."""
    name = host_ifname(call)
    netlink.delete_link(name)  # what a killed ADD of the same attachment left
    with _opened(call.netns) as fd:
        wanted = [rtnetlink.veth(name, bridge, call.ifname, fd, mac=mac, mtu=wish.mtu), rtnetlink.get(name)]
        if wish.hairpin:
            wanted.append(rtnetlink.hairpin(name))
        made, told, *more = wire.ask(*wanted)
    if made.code == errno.EEXIST:
        raise CniError(BAD_CONFIG, f"the container has an interface {call.ifname} already")
    for answer in (made, told, *more):
        if answer.code:
            raise netlink.explained("netlink", answer.code)
    host = rtnetlink.given(told)
    if host is None:
        raise CniError(KERNEL, f"{name} vanished while it was made")
    return host


def _configure(call: Call, ips: Sequence[Json], routes: Sequence[Json], dad: bool) -> Link:
    """The container's side: addresses, up, routes."""
    if any(":" in part["address"] for part in ips):
        name = f"net/ipv6/conf/{call.ifname}/disable_ipv6"
        netlink.in_namespace(call.netns, lambda: netlink.sysctl(name, "0"))
    with rtnetlink.wired(call.netns) as wire:
        inner = rtnetlink.find(wire, call.ifname)
        if inner is None:
            raise CniError(KERNEL, f"{call.ifname} vanished while it was made")
        addresses = [rtnetlink.address(inner.number, part["address"], dad=dad) for part in ips]
        ways = [rtnetlink.route(inner.number, wanted) for wanted in routes]
        wire.do("netlink", *addresses, rtnetlink.up(inner.number), *ways, but=errno.EEXIST)
    return inner


def _give_gateways(wire: Wire, wish: _Wish, bridge: int, gateways: Sequence[str]) -> None:
    """The gateways' addresses on the bridge; another IPv4 address there is refused unless forceAddress is set."""
    present = rtnetlink.addresses(wire, bridge)
    for wanted in gateways:
        if wanted in present:
            continue
        for other in (old for old in present if _conflicting(old, wanted, gateways)):
            if not wish.force:
                raise CniError(BAD_CONFIG, f"bridge {wish.bridge} has the address {other}, not {wanted}",
                               "forceAddress would replace it")
            wire.do("netlink", rtnetlink.drop_address(bridge, other))
        wire.do("netlink", rtnetlink.address(bridge, wanted, dad=False), but=errno.EEXIST)


def _conflicting(old: str, wanted: str, gateways: Sequence[str]) -> bool:
    one, two = ipaddress.ip_interface(old), ipaddress.ip_interface(wanted)
    if one.version != two.version or old in gateways or one.is_link_local:
        return False
    return one.version == 4 or one.network.overlaps(two.network)


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult."""
    return _rules(call, _wish(call), (call.previous or {}).get("ips", []))


def _protect(call: Call, wish: _Wish, leased: Json) -> None:
    """Masquerading and isolation: one batch."""
    wanted = _rules(call, wish, leased.get("ips", ()))
    if wanted:
        nft.add(wish.table, wanted)


def _rules(call: Call, wish: _Wish, ips: Sequence[Json]) -> list[nft.Element]:
    wanted: list[nft.Element] = []
    own, whole = nft.owner(call.network, call.container_id, call.ifname), nft.owner_of_network(call.network)
    for part in ips if wish.masquerade else ():
        address = ipaddress.ip_interface(part["address"])
        suffix, subnet = nft.family(part["address"]), address.network
        wanted.append(nft.Element(f"masq{suffix}", str(address.ip), own))
        wanted += [nft.Element(f"inside{suffix}", f"{subnet} . {other}", whole)
                   for other in (subnet, _MULTICAST[suffix])]
    if wish.walls:
        wanted.append(nft.Element("same", f"{wish.bridge} . {wish.bridge}", whole))
        wanted.append(nft.Element("internal" if wish.internal else "isolated", wish.bridge, whole))
    return wanted


def _forwarding(gateways: Sequence[str]) -> None:
    """A gateway forwards. Switching IPv6 forwarding on would end accepting router advertisements where it is 1."""
    families = {nft.family(address) for address in gateways}
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


def _undo(call: Call, wish: _Wish) -> None:
    """After a failed ADD: each part for itself, for the first error is the one to tell."""
    steps: list[Callable[[], object]] = [lambda: netlink.delete_link(host_ifname(call))]
    if wish.masquerade:
        steps.append(lambda: _unmask(call, wish, {}))
    if wish.ipam:
        steps.append(lambda: delegate(call, "DEL"))
    for step in steps:
        try:
            step()
        except Exception as second:  # told by the runtime's DEL again, if it lasts
            skel.note(f"while undoing: {second}")


def _gateways(wish: _Wish, ips: Sequence[Json]) -> list[str]:
    """The bridge's own addresses, and those that every ip gets where IPAM named none."""
    found = []
    for part in ips:
        network = ipaddress.ip_interface(part["address"]).network
        if (wish.gateway or wish.default_gateway) and not part.get("gateway"):
            part["gateway"] = str(network.network_address + 1)
        if part.get("gateway"):
            found.append(f"{part['gateway']}/{network.prefixlen}")
    return list(dict.fromkeys(found))


def _routes(wish: _Wish, leased: Json, ips: Sequence[Json]) -> list[Json]:
    """IPAM's routes, and the default routes of a default gateway; each with the gateway of its family."""
    gateways = {nft.family(part["address"]): part["gateway"] for part in reversed(ips) if part.get("gateway")}
    routes = [dict(route) for route in leased.get("routes") or []]
    if wish.default_gateway:
        present = {route["dst"] for route in routes}
        routes += [{"dst": _DEFAULT_ROUTE[suffix], "gw": gateway} for suffix, gateway in sorted(gateways.items())
                   if _DEFAULT_ROUTE[suffix] not in present]
    for route in routes:
        if not route.get("gw") and route.get("scope") is None and nft.family(route["dst"]) in gateways:
            route["gw"] = gateways[nft.family(route["dst"])]
    return routes


def _mac_of(ips: Sequence[Json]) -> str:
    """A MAC that follows the IPv4 address, so that a neighbour's old entry for a reused address is still true."""
    plain = next((part["address"].partition("/")[0] for part in ips if ":" not in part["address"]), "")
    return "0a:58:" + ":".join(f"{int(number):02x}" for number in plain.split(".")) if plain else ""


def _check_inside(call: Call, previous: Json) -> None:
    with rtnetlink.wired(call.netns) as wire:
        inner = rtnetlink.find(wire, call.ifname)
        if inner is None:
            raise CniError(IO_ERROR, f"the container has no interface {call.ifname}")
        present = set(rtnetlink.addresses(wire, inner.number))
    mine = [index for index, part in enumerate(previous.get("interfaces") or [])
            if part.get("sandbox") and part.get("name") == call.ifname]
    for part in previous.get("ips", []):
        if part.get("interface") in (*mine, None) and part["address"] not in present:
            raise CniError(IO_ERROR, f"{call.ifname} has lost its address {part['address']}")
    for index in mine:
        mac = previous["interfaces"][index].get("mac")
        if mac and mac != inner.mac:
            raise CniError(IO_ERROR, f"{call.ifname} has the MAC {inner.mac}, not {mac}")


def _check_rules(call: Call, wish: _Wish, previous: Json) -> None:
    if not wish.masquerade:
        return
    name = nft.owner(call.network, call.container_id, call.ifname)
    held = {found.key for found in nft.elements(wish.table) if found.owner == name}
    for part in previous.get("ips", []):
        if part["address"].partition("/")[0] not in held:
            raise CniError(IO_ERROR, f"{part['address']} is no longer masqueraded")


def _wish(call: Call) -> _Wish:
    config = call.config
    refuse(config, _UNSUPPORTED)
    if text(config, "ipMasqBackend") not in ("", "nftables"):
        raise CniError(UNSUPPORTED, 'unsupported field "ipMasqBackend"', "this plugin speaks nftables only")
    given: Any = (config.get("args") or {}).get("cni") or {}
    mac = str(call.runtime.get("mac") or given.get("mac") or call.args.get("MAC") or "")
    ipam = bool((config.get("ipam") or {}).get("type"))
    default_gateway = boolean(config, "isDefaultGateway")
    if boolean(config, "hairpinMode") and boolean(config, "promiscMode"):
        raise CniError(BAD_CONFIG, "hairpinMode and promiscMode exclude each other")
    return _Wish(
        bridge=_link_name(text(config, "bridge", "cni0")), gateway=boolean(config, "isGateway") or default_gateway,
        default_gateway=default_gateway, force=boolean(config, "forceAddress"), masquerade=boolean(config, "ipMasq"),
        mtu=integer(config, "mtu", 68, 65535), hairpin=boolean(config, "hairpinMode"),
        promiscuous=boolean(config, "promiscMode"), dad=boolean(config, "enabledad"), table=table_name(config),
        isolate=boolean(config, "isolate"), internal=boolean(config, "internal"), mac=_checked_mac(mac), ipam=ipam)


def _link_name(name: str) -> str:
    if not 0 < len(name) < 16 or any(char in '/:"\\' or not char.isprintable() or char.isspace() for char in name):
        raise CniError(BAD_CONFIG, f'bridge: "{name}" is not a link name')
    return name


def _checked_mac(mac: str) -> str:
    parts = mac.split(":")
    good = len(parts) == 6 and all(len(part) == 2 and all(char in "0123456789abcdefABCDEF" for char in part)
                                   for part in parts)
    if mac and (not good or int(parts[0], 16) & 1):
        raise CniError(BAD_CONFIG, f'mac: "{mac}" is not a unicast MAC address')
    return mac.lower()


def _dns(call: Call, leased: Json) -> Json:
    """The network's own settings go before IPAM's."""
    return dict(call.config.get("dns") or leased.get("dns") or {})


def _told(found: Link) -> Json:
    return {"name": found.name, "mac": found.mac, "mtu": found.mtu}


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}


def main(argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """One call with injected streams."""
    return skel.main(VERBS, argv, env, stdin, stdout)


def entry() -> int:
    """The executable."""
    return skel.process_main(VERBS)
