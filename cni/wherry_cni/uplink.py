"""What macvlan and ipvlan share: a link in the container upon a link of the host, its master.

Decides how the master is found (named, or that of the default route), and how the link comes into the container: made
there under a name of its own, then renamed, for older kernels look for the wanted name among the host's.
Refuses to know what the two kinds' modes mean.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from wherry_cni import interface, netlink, rtnetlink, skel
from wherry_cni.config import boolean, integer, text
from wherry_cni.errors import BAD_CONFIG, NOT_AVAILABLE, UNSUPPORTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.interface import Steps, Style
from wherry_cni.ipam import delegate
from wherry_cni.nlwire import Wire, attributes, put
from wherry_cni.results import Json
from wherry_cni.rtnetlink import Link
from wherry_cni.skel import Call

__all__ = ["Kind", "verbs"]

_MODE = 1  # IFLA_MACVLAN_MODE and IFLA_IPVLAN_MODE
_STYLE = Style(dad=True, notify=True)  # there are others on the link, and a switch that learns


class Kind(NamedTuple):
    """A kind of link. `modes` maps the configuration's words to the kernel's numbers, the first is the default; `width`
    is the struct format of that number; `own_mac` whether a MAC can be asked for; `chained` whether without IPAM master
    and addresses may be those of a previous result; `more` maps keys to attributes that are u32."""

    name: str
    modes: Mapping[str, int]
    width: str
    own_mac: bool
    chained: bool
    more: Mapping[str, int]


class _Wish(NamedTuple):
    """The configuration, typed. `master` is "" for that of the default route."""

    kind: Kind
    master: str
    mode: int
    mtu: int
    mac: str
    inside: bool
    data: bytes


def verbs(kind: Kind) -> Mapping[str, skel.Verb]:
    """The plugin of a kind."""
    return {"ADD": partial(_add, kind), "DEL": _delete, "CHECK": partial(_check, kind),
            "GC": partial(_collect, kind), "STATUS": partial(_status, kind)}


def _add(kind: Kind, call: Call) -> Json:
    """Address and link; whatever fails, what was done before is undone."""
    wish = _wish(kind, call)
    with interface.undoing() as undo:
        interface.refuse_taken(call)
        with rtnetlink.wired(call.netns if wish.inside else "") as wire:
            master = _master(wire, wish)
            _fits(wish, master)
            result = _addresses(kind, call, undo)
            _make(wire, call, wish, master, undo)
        ips = [{**part, "interface": 0} for part in result.get("ips") or []]
        routes = result.get("routes") or []
        inner = interface.configure(call, ips, interface.resolved(routes, ips), _STYLE)
    return {"interfaces": [interface.told(inner, call.netns)], "ips": ips, "routes": routes,
            "dns": interface.dns(call, result)}


def _delete(call: Call) -> None:
    """Link, then address, so that nobody gets it before; absent is success, and so is what ADD refused."""
    interface.delete(call, _first_name(call))
    if interface.has_ipam(call):
        delegate(call, "DEL")


def _check(kind: Kind, call: Call) -> None:
    """The interface is as ADD left it, and so is its master."""
    wish = _wish(kind, call)
    if interface.has_ipam(call):
        delegate(call, "CHECK")
    inner = interface.check(call, kind.name)
    mode = dict(attributes(inner.data)).get(_MODE, b"")
    if mode != struct.pack(kind.width, wish.mode):
        raise CniError(IO_ERROR, f"{call.ifname} is in another mode of {kind.name} than configured")
    if wish.master:
        with rtnetlink.wired(call.netns if wish.inside else "") as wire:
            _master(wire, wish)


def _collect(kind: Kind, call: Call) -> None:
    """GC: leases of attachments that the runtime no longer knows; their links went with their namespaces."""
    _wish(kind, call)
    if interface.has_ipam(call):
        delegate(call, "GC")


def _status(kind: Kind, call: Call) -> None:
    """An ADD could work: the configuration is sound, the master there, and so is IPAM."""
    wish = _wish(kind, call)
    if not wish.inside and (wish.master or not kind.chained):
        with rtnetlink.wired() as wire:
            try:
                _master(wire, wish)
            except CniError as problem:
                raise CniError(NOT_AVAILABLE, problem.msg, problem.details) from None
    if interface.has_ipam(call):
        delegate(call, "STATUS")


def _master(wire: Wire, wish: _Wish) -> Link:
    if wish.master:
        found = rtnetlink.find(wire, wish.master)
        if found is None:
            raise CniError(IO_ERROR, f"the master {wish.master} is missing")
        return found
    number = rtnetlink.default_link(wire)
    found = next((link for link in rtnetlink.links(wire) if link.number == number), None)
    if found is None:
        raise CniError(IO_ERROR, "no master is named, and there is no default route whose link it could be")
    return found


def _fits(wish: _Wish, master: Link) -> None:
    if wish.mtu > master.mtu:
        raise CniError(BAD_CONFIG, f"mtu: {wish.mtu} is more than the {master.mtu} of its master {master.name}")


def _addresses(kind: Kind, call: Call, undo: Steps) -> Json:
    """IPAM's result; in a chain without IPAM that of the plugins before."""
    if not kind.chained or interface.has_ipam(call):
        return interface.leased(call, undo)
    previous = call.previous or {}
    if not previous.get("ips"):
        raise CniError(BAD_CONFIG, f"{kind.name} needs ipam, or the addresses of a plugin before it")
    return previous


def _make(wire: Wire, call: Call, wish: _Wish, master: Link, undo: Steps) -> None:
    kind, first = wish.kind.name, _first_name(call)
    with interface.opened(call.netns) as fd:
        wanted = rtnetlink.child(kind, first, master.number, fd, wish.data, mac=wish.mac, mtu=wish.mtu)
        (made,) = wire.ask(wanted)
    if made.code == errno.EOPNOTSUPP:
        raise CniError(UNSUPPORTED, f"this kernel has no {kind}", f"load the module {kind}")
    if made.code:
        raise netlink.explained(f"making a {kind} upon {master.name}", made.code)
    undo.append(lambda: interface.delete(call, first))
    with rtnetlink.wired(call.netns) as inside:
        link = rtnetlink.find(inside, first)
        inside.do(f"naming {call.ifname}", rtnetlink.marked(link.number if link else 0, first, call.ifname))


def _first_name(call: Call) -> str:
    """What the link is called before it has its name, and its alias from then on: DEL knows it by that."""
    return "mk" + hashlib.sha256(f"{call.network}\0{call.container_id}\0{call.ifname}".encode()).hexdigest()[:12]


def _wish(kind: Kind, call: Call) -> _Wish:
    config = call.config
    word = text(config, "mode", next(iter(kind.modes)))
    if word not in kind.modes:
        raise CniError(BAD_CONFIG, f'mode: "{word}" is none of {", ".join(kind.modes)}')
    mode = kind.modes[word]
    more = {number: integer(config, key, 1, 0xFFFFFFFF) for key, number in kind.more.items()}
    data = put(_MODE, struct.pack(kind.width, mode)) + b"".join(
        put(number, struct.pack("=I", value)) for number, value in more.items() if value)
    return _Wish(kind, _named_master(kind, call), mode, integer(config, "mtu", 68, 65535),
                 interface.wished_mac(call) if kind.own_mac else "", boolean(config, "linkInContainer"), data)


def _named_master(kind: Kind, call: Call) -> str:
    """The key, else in a chain the one interface of the plugins before."""
    name = text(call.config, "master")
    if name:
        return interface.link_name("master", name)
    previous: Any = call.previous if kind.chained and call.verb == "ADD" else None
    if previous is None:
        return ""
    links: Sequence[Json] = previous.get("interfaces") or []
    if len(links) != 1 or not links[0].get("name"):
        raise CniError(BAD_CONFIG, "no master is named, and the plugin before gave not just one interface")
    return str(links[0]["name"])
