"""The plugin bandwidth: rates for what a container gets and sends, chained behind what made a pair of links for it.

Decides where the traffic is held up: what the container gets, in a token bucket on the host's end of its pair; what it
sends comes in there, is redirected to an ifb device, and waits in that one's bucket. Rates are bits a second and bursts
bits, as the reference has them; both are given or neither. `unshapedSubnets` are let by on both ways, or
`shapedSubnets` alone are held up: subnets of whom the container speaks with.
The ifb device's name is derived from network, container and interface: DEL needs neither the namespace nor prevResult.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wherry_cni import interface, netlink, rtnetlink, skel, tc
from wherry_cni.config import integer
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.nlwire import Message, Wire
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "ifb_name", "main", "status"]

_MOST = (1 << 63) - 1
_MOST_BURST = 8 * ((1 << 32) - 1)  # bits: the kernel counts 32 bits of bytes
_WAYS = ("ingress", "egress")
_PREFIX = "bwp"


class _Limit(NamedTuple):
    """Bytes a second, and bytes that may pass at once."""

    rate: int
    burst: int


class _Wish(NamedTuple):
    """The configuration, typed; None is no limit."""

    ingress: _Limit | None
    egress: _Limit | None
    unshaped: tuple[tc.Network, ...]
    shaped: tuple[tc.Network, ...]


def add(call: Call) -> Json:
    """Queues on the host's links; the ifb device is told among the interfaces. What fails is undone."""
    wish, previous = _wish(call), call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "bandwidth must be called as a chained plugin: no prevResult")
    if not wish.ingress and not wish.egress:
        return previous
    with rtnetlink.wired() as wire, interface.undoing() as undo:
        host = _host_end(wire, previous)
        tc.clean(wire, host.number)
        undo += [lambda: netlink.delete_link(ifb_name(call)), lambda: tc.clean(wire, host.number)]
        if wish.ingress:
            wire.do("shaping what the container gets", *_queue(host.number, wish, wish.ingress, "src"))
        more = [_shape_egress(wire, call, wish, host)] if wish.egress else []
    return {**previous, "interfaces": [*previous["interfaces"], *more]}


def delete(call: Call) -> None:
    """The ifb device and, as far as it is there, what is on the host's end; absent is success."""
    netlink.delete_link(ifb_name(call))
    if call.previous:
        with rtnetlink.wired() as wire:
            for found in _pairs(wire, call.previous):
                tc.clean(wire, found.number)


def check(call: Call) -> None:
    """The rates are as ADD set them."""
    wish, previous = _wish(call), call.previous or {}
    with rtnetlink.wired() as wire:
        if wish.ingress:
            _check(wire, _host_end(wire, previous).name, wish.ingress)
        if wish.egress:
            _check(wire, ifb_name(call), wish.egress)


def collect(call: Call) -> None:
    """GC: ifb devices of attachments that the runtime no longer knows. Their names tell the network and, by digest, the
    attachment."""
    kept = {_derived(call.network, *pair) for pair in skel.valid_attachments(call)}
    start = _of_network(call.network)
    for name in netlink.links():
        if name.startswith(start) and name not in kept:
            netlink.delete_link(name)


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound."""
    _wish(call)


def ifb_name(call: Call) -> str:
    """The name of the device that holds up what the container sends (IFNAMSIZ allows 15 characters)."""
    return _derived(call.network, call.container_id, call.ifname)


def _derived(network: str, container_id: str, ifname: str) -> str:
    return _of_network(network) + _digest(f"{container_id}\0{ifname}", 7)


def _of_network(network: str) -> str:
    return _PREFIX + _digest(network, 5)


def _digest(text: str, length: int) -> str:
    """So many characters of five bits each: of a thousand attachments two are called alike on one host of 70,000; there
    one would lose what it sends to the other's end."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:length]


def _shape_egress(wire: Wire, call: Call, wish: _Wish, host: rtnetlink.Link) -> Json:
    """The ifb device with its queue, then the filters that lead there."""
    assert wish.egress is not None
    name = ifb_name(call)
    netlink.delete_link(name)  # what a killed ADD of the same attachment left
    wire.do(f"making {name}", tc.ifb(name, host.mtu))
    made = rtnetlink.find(wire, name)
    if made is None:
        raise CniError(IO_ERROR, f"{name} vanished while it was made")
    passing = tc.passing(host.number, wish.unshaped, "dst", sent=False)
    wire.do("shaping what the container sends", tc.bucket(made.number, *wish.egress), tc.ingress(host.number), *passing,
            *tc.redirected(host.number, made.number, wish.shaped, "dst", 1 + len(passing)))
    return {"name": name, "mac": made.mac, "mtu": made.mtu}


def _queue(link: int, wish: _Wish, limit: _Limit, way: str) -> list[Message]:
    """One bucket for all, or classes that tell whom it is for."""
    if not wish.unshaped and not wish.shaped:
        return [tc.bucket(link, *limit)]
    networks, minor = (wish.unshaped, 0) if wish.unshaped else (wish.shaped, 1)
    return [*tc.classes(link, *limit, rest=not minor), *tc.passing(link, networks, way, sent=True, minor=minor)]


def _check(wire: Wire, name: str, limit: _Limit) -> None:
    found = rtnetlink.find(wire, name)
    rate = tc.root_rate(wire, found.number) if found else 0
    if rate != min(limit.rate, (1 << 32) - 1):
        raise CniError(IO_ERROR, f"{name} lets {rate * 8} bits a second pass, not {limit.rate * 8}" if rate else
                       f"{name} is no longer shaped")


def _host_end(wire: Wire, previous: Json) -> rtnetlink.Link:
    """The host's end of the container's pair."""
    found = _pairs(wire, previous)
    if not found:
        raise CniError(BAD_CONFIG, "prevResult has no veth interface of the host",
                       "bandwidth goes behind bridge or ptp; what macvlan and ipvlan carry passes no link of the host")
    return found[0]


def _pairs(wire: Wire, previous: Json) -> list[rtnetlink.Link]:
    names = [part.get("name", "") for part in previous.get("interfaces") or [] if not part.get("sandbox")]
    return [link for name in names if (link := rtnetlink.find(wire, name)) and link.kind == "veth"]


def _wish(call: Call) -> _Wish:
    given: Any = call.runtime.get("bandwidth")
    own = any(call.config.get(f"{way}{part}") for way in _WAYS for part in ("Rate", "Burst"))
    config: Mapping[str, Any] = call.config if own or given is None else given
    if not isinstance(config, Mapping):
        raise CniError(BAD_CONFIG, "runtimeConfig.bandwidth is not an object")
    ingress, egress = (_limit(config, way) for way in _WAYS)
    unshaped, shaped = (_networks(config.get(key) or call.config.get(key) or [], key)
                        for key in ("unshapedSubnets", "shapedSubnets"))
    if unshaped and shaped:
        raise CniError(BAD_CONFIG, "unshapedSubnets and shapedSubnets exclude each other")
    return _Wish(ingress, egress, unshaped, shaped)


def _limit(config: Mapping[str, Any], way: str) -> _Limit | None:
    rate, burst = integer(config, f"{way}Rate", 1, _MOST), integer(config, f"{way}Burst", 1, _MOST_BURST)
    if bool(rate) != bool(burst):
        raise CniError(BAD_CONFIG, f"{way}Rate and {way}Burst go together",
                       "the burst, in bits, is what may pass at once; a tenth of a second's rate is a good one")
    if rate and rate < 8:
        raise CniError(BAD_CONFIG, f"{way}Rate: bits a second, at least 8")
    return _Limit(rate // 8, max(burst // 8, 1)) if rate else None


def _networks(listed: Any, key: str) -> tuple[tc.Network, ...]:
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise CniError(BAD_CONFIG, f"{key} is not a list")
    try:
        return tuple(ipaddress.ip_network(part) for part in listed)
    except ValueError as problem:
        raise CniError(BAD_CONFIG, f"{key}: {problem}") from None


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
