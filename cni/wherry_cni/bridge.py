"""The plugin bridge: a veth pair whose host end is a port of a bridge, addressed by an IPAM plugin.

Decides what a container's interface on a bridge network is. Keys are the reference plugin's, and three of ours:
`nftTable` (the table of this instance), `isolate` (other networks reach its containers by published ports only) and
`internal` (nothing leaves or enters the network).
Refuses to know ports (portmap) and how addresses are chosen (IPAM).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wherry_cni import interface, masquerade, netlink, nft, rtnetlink, skel
from wherry_cni.config import boolean, integer, table_name, text
from wherry_cni.errors import BAD_CONFIG, KERNEL, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.interface import Steps, Style, host_ifname
from wherry_cni.ipam import delegate
from wherry_cni.nlwire import Message, Wire, put
from wherry_cni.results import Json
from wherry_cni.rtnetlink import Link
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "host_ifname", "main", "rules", "status"]

_SETS = (*masquerade.SETS, "same", "isolated", "internal")
_DEFAULT_ROUTE = {"4": "0.0.0.0/0", "6": "::/0"}
_VLANS = 4094  # the highest number (IEEE 802.1Q)
_IFNAME, _VLAN_ID = 15, 1  # IFNAMSIZ less the end, IFLA_VLAN_ID


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
    isolated_port: bool
    spoof_check: bool
    vlan: int
    trunk: tuple[int, ...]
    default_vlan: bool
    up: bool
    dad: bool
    table: str
    isolate: bool
    internal: bool
    mac: str
    ipam: bool

    @property
    def walls(self) -> bool:
        return self.isolate or self.internal

    @property
    def gateway_link(self) -> str:
        """The host's link to the network: the bridge, or for a VLAN of it a link of its own."""
        return f"{self.bridge}.{self.vlan}" if self.vlan else self.bridge


def add(call: Call) -> Json:
    """Address, links, routes, rules; whatever fails, what was done before is undone."""
    wish = _wish(call)
    with interface.undoing() as undo, rtnetlink.wired() as wire:
        interface.refuse_second(wire, call)
        leased = interface.leased(call, undo)
        undo.append(lambda: masquerade.forget(call, []))
        with netlink.beside(lambda: _protect(call, wish, leased)):
            return _join(wire, call, wish, leased, undo)


def delete(call: Call) -> None:
    """Links, rules, address; absent is success, and so is what ADD refused. The host end goes now: the kernel takes a
    dead namespace down later. The links' going and the rules' each wait for an RCU grace period: for the same one."""
    first = host_ifname(call) in netlink.links()
    with netlink.beside(lambda: _delete_links(call)):
        masquerade.forget(call, (call.previous or {}).get("ips", []) if first else [])
        if call.config.get("macspoofchk"):
            from wherry_cni import antispoof

            antispoof.forget(call)
    if interface.has_ipam(call):
        delegate(call, "DEL")


def _delete_links(call: Call) -> None:
    if not netlink.delete_link(host_ifname(call)):
        interface.delete(call)


def check(call: Call) -> None:
    """The attachment is as ADD left it."""
    wish = _wish(call)
    if wish.ipam:
        delegate(call, "CHECK")
    inner = interface.check(call, "veth", up=wish.up)
    with rtnetlink.wired() as wire:
        bridge, port = rtnetlink.find(wire, wish.bridge), rtnetlink.find(wire, host_ifname(call))
    if bridge is None:
        raise CniError(IO_ERROR, f"bridge {wish.bridge} is missing")
    if port is None or port.master != bridge.number:
        raise CniError(IO_ERROR, f"{host_ifname(call)} is not a port of bridge {wish.bridge}")
    if wish.masquerade:
        masquerade.check(call, wish.table, (call.previous or {}).get("ips", []))
    if wish.spoof_check:
        from wherry_cni import antispoof

        antispoof.check(call, port.name, inner.mac)


def collect(call: Call) -> None:
    """GC: rules and leases of attachments that the runtime no longer knows."""
    wish = _wish(call)
    if wish.masquerade or wish.walls:
        nft.remove_others(wish.table, call.network, skel.valid_attachments(call), _SETS,
                          removed=skel.removed(call))
    if wish.spoof_check:
        from wherry_cni import antispoof

        antispoof.forget_others(call, skel.valid_attachments(call))
    if wish.ipam:
        delegate(call, "GC")


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and so is IPAM."""
    if _wish(call).ipam:
        delegate(call, "STATUS")


def _join(wire: Wire, call: Call, wish: _Wish, leased: Json, undo: Steps) -> Json:
    ips = [{**part, "interface": 2} for part in leased.get("ips", [])]
    gateways = _gateways(wish, ips)
    routes = _routes(wish, leased, ips)
    with interface.opened(call.netns):  # before a bridge is made for a namespace that is not there
        bridge = _bridge(wire, wish)
    links = [_gateway_link(wire, wish, bridge)] if wish.vlan and wish.gateway and gateways else []
    if wish.gateway:
        _give_gateways(wire, wish, (links or [bridge])[0], gateways)
    host = interface.pair(wire, call, bridge.number, wish.mac or _mac_of(ips), wish.mtu, *_port(call, wish))
    undo.append(lambda: netlink.delete_link(host.name))
    if wish.vlan or wish.trunk:
        _vlans(wire, wish, bridge, host)
    if wish.spoof_check:
        _guard(call, host, undo)
    style = Style(dad=wish.dad, notify=bool(wish.mac), up=wish.up)
    inner = interface.configure(call, ips, interface.resolved(routes, ips), style)
    if wish.gateway:
        interface.forwarding(gateways)
    told = [interface.told(bridge), interface.told(host), interface.told(inner, call.netns)]
    return {"interfaces": [*told, *map(interface.told, links)], "ips": ips, "routes": routes,
            "dns": interface.dns(call, leased)}


def _guard(call: Call, host: Link, undo: Steps) -> None:
    """The container's end is down yet: nothing was sent."""
    from wherry_cni import antispoof

    with rtnetlink.wired(call.netns) as inside:
        inner = rtnetlink.find(inside, call.ifname)
    undo.append(lambda: antispoof.forget(call))
    antispoof.guard(call, host.name, inner.mac if inner else "")


def _bridge(wire: Wire, wish: _Wish) -> Link:
    """The bridge's link, made where it is missing. Its MAC is set, else it would follow its ports."""
    filters = bool(wish.vlan or wish.trunk)
    found = rtnetlink.find(wire, wish.bridge)
    if found is None:
        mac = "02:" + ":".join(f"{byte:02x}" for byte in os.urandom(5))
        _vlan_answer(wire.ask(rtnetlink.bridge(wish.bridge, mac, wish.mtu, vlans=filters))[0].code, errno.EEXIST)
        found = rtnetlink.find(wire, wish.bridge)
        if found is None:
            raise CniError(KERNEL, f"bridge {wish.bridge} vanished while it was made")
        interface.own_ipv6(wish.bridge)
    if found.kind != "bridge":
        raise CniError(BAD_CONFIG, f"{wish.bridge} exists and is not a bridge")
    if filters:
        from wherry_cni import rtbridge

        _vlan_answer(wire.ask(rtbridge.filtering(found.number))[0].code, 0)
    if not found.up or wish.promiscuous:
        promisc = rtnetlink.IFF_PROMISC if wish.promiscuous else 0
        wire.do(f"setting bridge {wish.bridge} up", rtnetlink.up(found.number, rtnetlink.IFF_UP | promisc))
    return found


def _vlan_answer(code: int, but: int) -> None:
    if code == errno.EOPNOTSUPP:
        raise CniError(UNSUPPORTED, "vlan, vlanTrunk: this kernel's bridges do not filter VLANs",
                       "it is built without CONFIG_BRIDGE_VLAN_FILTERING")
    if code not in (0, but):
        raise netlink.explained("making the bridge", code)


def _port(call: Call, wish: _Wish) -> list[Message]:
    if not wish.hairpin and not wish.isolated_port:
        return []
    from wherry_cni import rtbridge

    return [rtbridge.port(host_ifname(call), hairpin=wish.hairpin, isolated=wish.isolated_port)]


def _vlans(wire: Wire, wish: _Wish, bridge: Link, port: Link) -> None:
    """A port for frames without tags that are of one VLAN, or for tagged ones of several (trunk)."""
    from wherry_cni import rtbridge

    default = rtbridge.default_vlan(bridge)
    if default and not wish.default_vlan:
        wire.do("taking a port from the default VLAN", rtbridge.no_vlan(port.number, default), but=errno.ENOENT)
    wanted = [(wish.vlan, rtbridge.PVID | rtbridge.UNTAGGED)] if wish.vlan else [(number, 0) for number in wish.trunk]
    for number, flags in wanted:
        wire.do(f"making a port one of VLAN {number}", rtbridge.vlan(port.number, number, flags))


def _gateway_link(wire: Wire, wish: _Wish, bridge: Link) -> Link:
    """BRIDGE.VLAN, the bridge's own link to a VLAN; it lasts as the bridge does. Not a port, as the reference has: what
    a port gets is bridged, so where br_netfilter is on it would be masqueraded before it is routed, and dropped."""
    from wherry_cni import rtbridge

    name = wish.gateway_link
    found = rtnetlink.find(wire, name)
    if found is None:
        wire.do(f"making bridge {bridge.name} one of VLAN {wish.vlan}", rtbridge.own_vlan(bridge.number, wish.vlan))
        with interface.opened("/proc/thread-self/ns/net") as here:
            data = put(_VLAN_ID, struct.pack("=H", wish.vlan))
            (made,) = wire.ask(rtnetlink.child("vlan", name, bridge.number, here, data))
        if made.code == errno.EOPNOTSUPP:
            raise CniError(UNSUPPORTED, "a gateway in a VLAN: this kernel has no links of kind vlan", "load 8021q")
        if made.code not in (0, errno.EEXIST):
            raise netlink.explained(f"making {name}", made.code)
        found = rtnetlink.find(wire, name)
        if found is None:
            raise CniError(KERNEL, f"{name} vanished while it was made")
        interface.own_ipv6(name)
    if not found.up:
        wire.do(f"setting {name} up", rtnetlink.up(found.number))
    return found


def _give_gateways(wire: Wire, wish: _Wish, link: Link, gateways: Sequence[str]) -> None:
    """The gateways' addresses on the bridge; another IPv4 address there is refused unless forceAddress is set."""
    present = rtnetlink.addresses(wire, link.number)
    for wanted in gateways:
        if wanted in present:
            continue
        for other in (old for old in present if _conflicting(old, wanted, gateways)):
            if not wish.force:
                raise CniError(BAD_CONFIG, f"bridge {link.name} has the address {other}, not {wanted}",
                               "forceAddress would replace it")
            wire.do(f"taking {other} from {link.name}", rtnetlink.drop_address(link.number, other))
        wire.do(f"giving {link.name} the address {wanted}", rtnetlink.address(link.number, wanted, dad=False),
                but=errno.EEXIST)


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
    wanted = masquerade.rules(call, ips) if wish.masquerade else []
    if wish.walls:
        link, whole = wish.gateway_link, nft.owner_of_network(call.network)
        wanted.append(nft.Element("same", f"{link} . {link}", whole))
        wanted.append(nft.Element("internal" if wish.internal else "isolated", link, whole))
    return wanted


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
    """IPAM's routes, and the default routes of a default gateway."""
    gateways = {nft.family(part["address"]): part["gateway"] for part in reversed(ips) if part.get("gateway")}
    routes = [dict(route) for route in leased.get("routes") or []]
    if wish.default_gateway:
        present = {route["dst"] for route in routes}
        routes += [{"dst": _DEFAULT_ROUTE[suffix], "gw": gateway} for suffix, gateway in sorted(gateways.items())
                   if _DEFAULT_ROUTE[suffix] not in present]
    return routes


def _mac_of(ips: Sequence[Json]) -> str:
    """A MAC that follows the IPv4 address, so that a neighbour's old entry for a reused address is still true."""
    plain = next((part["address"].partition("/")[0] for part in ips if ":" not in part["address"]), "")
    return "0a:58:" + ":".join(f"{int(number):02x}" for number in plain.split(".")) if plain else ""


def _wish(call: Call) -> _Wish:
    config = call.config
    ipam, default_gateway = interface.has_ipam(call), boolean(config, "isDefaultGateway")
    wish = _Wish(
        bridge=interface.link_name("bridge", text(config, "bridge", "cni0")),
        gateway=boolean(config, "isGateway") or default_gateway, default_gateway=default_gateway,
        force=boolean(config, "forceAddress"), masquerade=masquerade.wished(config),
        mtu=integer(config, "mtu", 68, 65535), hairpin=boolean(config, "hairpinMode"),
        promiscuous=boolean(config, "promiscMode"), isolated_port=boolean(config, "portIsolation"),
        spoof_check=boolean(config, "macspoofchk"), vlan=integer(config, "vlan", 1, _VLANS),
        trunk=_trunk(config.get("vlanTrunk") or []), default_vlan=boolean(config, "preserveDefaultVlan", True),
        up=not boolean(config, "disableContainerInterface"), dad=boolean(config, "enabledad"), table=table_name(config),
        isolate=boolean(config, "isolate"), internal=boolean(config, "internal"), mac=interface.wished_mac(call),
        ipam=ipam)
    for bad, why in (
        (wish.hairpin and wish.promiscuous, "hairpinMode and promiscMode exclude each other"),
        (wish.vlan and wish.trunk, "vlan and vlanTrunk exclude each other"),
        (not wish.up and ipam, "disableContainerInterface: an interface that is down has no use for ipam"),
        (len(wish.gateway_link) > _IFNAME and wish.gateway,
         f"bridge: {wish.bridge} is too long: its VLAN's {wish.gateway_link} has more than {_IFNAME} characters"),
    ):
        if bad:
            raise CniError(BAD_CONFIG, why)
    return wish


def _trunk(parts: Any) -> tuple[int, ...]:
    """The VLANs of a trunk: [{"id": 5}, {"minID": 10, "maxID": 12}]."""
    found: set[int] = set()
    try:
        for part in parts:
            if ("minID" in part) != ("maxID" in part) or not part:
                raise ValueError(f"{part} is neither an id nor minID with maxID")
            ends = [(part["id"], part["id"])] if "id" in part else []
            ends += [(part["minID"], part["maxID"])] if "minID" in part else []
            if not all(0 < low <= high <= _VLANS for low, high in ends):
                raise ValueError(f"{part}: numbers from 1 to {_VLANS}, the lower one first")
            found |= {number for low, high in ends for number in range(low, high + 1)}
    except (TypeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"vlanTrunk: {problem}") from None
    return tuple(sorted(found))


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
