"""Traffic control (tc(8), linux/pkt_sched.h, linux/pkt_cls.h): the few messages that shape what a link sends or gets.

Decides how queueing disciplines, classes and filters are asked for. Refuses to know whose traffic it is. Rates are
bytes a second, bursts bytes.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
import sys
from collections.abc import Sequence

from wherry_cni.netlink import explained
from wherry_cni.nlwire import CREATE, DUMP, EXCL, Message, Wire, attributes, nest, put

__all__ = ["Network", "bucket", "classes", "clean", "ifb", "ingress", "passing", "redirected", "root_rate"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NEWLINK, _NEWQDISC, _DELQDISC, _GETQDISC, _NEWTCLASS, _GETTCLASS, _NEWTFILTER = 16, 36, 37, 38, 40, 42, 44
_KIND, _OPTIONS = 1, 2  # TCA_*
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_EGRESS_REDIR, _STOLEN = 1, 4  # TCA_EGRESS_REDIR, TC_ACT_STOLEN
_TERMINAL = 1  # TC_U32_TERMINAL
_ROOT, _INGRESS, _AT_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_HANDLE = 0x00010000  # 1:
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel reckons with the rate, no table is handed in
_LATENCY = 0.025  # seconds that a packet may wait in a bucket
_TICK = 64e-9  # seconds (PSCHED_SHIFT)
_MOST = (1 << 32) - 1
_ALL, _IPV4, _IPV6 = 0x0003, 0x0800, 0x86DD  # ETH_P_*
_PEER = {("src", 4): 12, ("dst", 4): 16, ("src", 6): 8, ("dst", 6): 24}  # offsets in the headers
_EVERYTHING = bytes(16)  # a key that any word fits
_TCMSG = struct.Struct("=BxxxiIII")
_RATESPEC = struct.Struct("=BBHhHI")


def bucket(link: int, rate: int, burst: int) -> Message:
    """A token bucket (tc-tbf(8)) for all that a link sends; EEXIST where it has a discipline of ours."""
    limit = min(int(rate * _LATENCY) + burst, _MOST)
    parameters = _ratespec(rate) + _RATESPEC.pack(0, 0, 0, 0, 0, 0) + struct.pack("=III", limit, 0, 0)
    told = put(_TBF_PARMS, parameters) + put(_TBF_BURST, struct.pack("=I", min(burst, _MOST)))
    return _qdisc(link, "tbf", told + put(_TBF_RATE64, struct.pack("=Q", rate)))


def classes(link: int, rate: int, burst: int, *, rest: bool) -> list[Message]:
    """Shape a part of what a link sends (tc-htb(8)): class 1:1 has the rate; what no filter names goes there (`rest`),
    or out at once."""
    init = put(_HTB_INIT, struct.pack("=IIIII", 3, 10, 1 if rest else 0, 0, 0))  # version, rate2quantum, default
    ticks = min(int(burst / rate / _TICK), _MOST)
    parameters = _ratespec(rate) * 2 + struct.pack("=IIIII", ticks, ticks, 0, 0, 0)
    wide = b"".join(put(kind, struct.pack("=Q", rate)) for kind in (_HTB_RATE64, _HTB_CEIL64))
    shaped = put(_KIND, b"htb\0") + nest(_OPTIONS, put(_HTB_PARMS, parameters) + wide)
    head = _TCMSG.pack(0, link, _HANDLE | 1, _HANDLE, 0)
    return [_qdisc(link, "htb", init), Message(_NEWTCLASS, CREATE | EXCL, head + shaped)]


def ingress(link: int) -> Message:
    """The place for filters upon what a link gets."""
    head = _TCMSG.pack(0, link, _AT_INGRESS, _INGRESS, 0)
    return Message(_NEWQDISC, CREATE | EXCL, head + put(_KIND, b"ingress\0") + nest(_OPTIONS, b""))


def passing(link: int, networks: Sequence[Network], way: str, *, sent: bool, minor: int = 0) -> list[Message]:
    """Filters that let go what has its `way` ("src", "dst") in the networks: past the redirection of what a link gets,
    or, where it is `sent`, into class 1:minor (0: none, out at once)."""
    outcome = put(_U32_CLASSID, struct.pack("=I", _HANDLE | minor))
    return [_filter(link, _HANDLE if sent else _AT_INGRESS, 1 + at, _keys(network, way), outcome)
            for at, network in enumerate(networks)]


def redirected(link: int, to: int, networks: Sequence[Network] = (), way: str = "", first: int = 1) -> list[Message]:
    """Filters that send what a link gets by way of another: all of it, or what has its `way` in the networks. `first`
    is their order among the link's filters."""
    parameters = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIR, to)
    action = put(_ACT_KIND, b"mirred\0") + nest(_ACT_OPTIONS, put(_MIRRED_PARMS, parameters))
    return [_filter(link, _AT_INGRESS, first + at, _keys(network, way), nest(_U32_ACT, nest(1, action)))
            for at, network in enumerate(networks or (None,))]


def ifb(name: str, mtu: int) -> Message:
    """An intermediate functional block: a link whose queue what another link gets can pass; up."""
    body = struct.pack("=BxHiII", 0, 0, 0, 1, 1) + put(3, name.encode() + b"\0") + put(4, struct.pack("=I", mtu))
    return Message(_NEWLINK, CREATE | EXCL, body + nest(18, put(1, b"ifb")))


def clean(wire: Wire, link: int) -> None:
    """Take a link's disciplines and all below them away; none there is success."""
    answers = wire.ask(*[Message(_DELQDISC, 0, _TCMSG.pack(0, link, 0, parent, 0)) for parent in (_ROOT, _INGRESS)])
    for answer in answers:
        if answer.code not in (0, errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise explained("taking traffic control away", answer.code)


def root_rate(wire: Wire, link: int) -> int:
    """The rate of a link's bucket or class 1:1, 0 where there is none."""
    for kind, name in ((_GETQDISC, b"tbf"), (_GETTCLASS, b"htb")):
        asked = Message(kind, DUMP, _TCMSG.pack(0, link, 0, 0, 0))
        for told in wire.do("asking for traffic control", asked)[0].told:
            have = dict(attributes(told[_TCMSG.size :]))
            if _TCMSG.unpack_from(told)[1] == link and have.get(_KIND, b"").rstrip(b"\0") == name:
                parameters = dict(attributes(have.get(_OPTIONS, b"")))[_TBF_PARMS]  # as _HTB_PARMS: the rate is first
                return int(_RATESPEC.unpack_from(parameters)[5])
    return 0


def _qdisc(link: int, kind: str, options: bytes) -> Message:
    head = _TCMSG.pack(0, link, _HANDLE, _ROOT, 0)
    return Message(_NEWQDISC, CREATE | EXCL, head + put(_KIND, kind.encode() + b"\0") + nest(_OPTIONS, options))


def _ratespec(rate: int) -> bytes:
    return _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(rate, _MOST))


def _filter(link: int, parent: int, order: int, keys: tuple[int, list[bytes]], outcome: bytes) -> Message:
    """A u32 filter (tc-u32(8)) of its own order."""
    protocol, words = keys
    selector = struct.pack("=BBBxHHhHI", _TERMINAL, 0, len(words), 0, 0, 0, 0, 0) + b"".join(words)
    info = order << 16 | int.from_bytes(struct.pack("!H", protocol), sys.byteorder)
    told = put(_KIND, b"u32\0") + nest(_OPTIONS, put(_U32_SEL, selector) + outcome)
    return Message(_NEWTFILTER, CREATE | EXCL, _TCMSG.pack(0, link, 0, parent, info) + told)


def _keys(network: Network | None, way: str) -> tuple[int, list[bytes]]:
    """The protocol, and struct tc_u32_key of each word: mask and value in network order, offset, offset mask."""
    if network is None:
        return _ALL, [_EVERYTHING]
    mask, value, start = network.netmask.packed, network.network_address.packed, _PEER[way, network.version]
    words = [mask[at : at + 4] + value[at : at + 4] + struct.pack("=ii", start + at, 0)
             for at in range(0, len(mask), 4) if any(mask[at : at + 4])]
    return _IPV4 if network.version == 4 else _IPV6, words or [_EVERYTHING]
