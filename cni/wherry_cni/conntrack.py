"""What the kernel remembers of UDP flows, which it would go on sending to the container that had a port before.

Decides which flows are stale: those to this host. What passes it on the way to other machines (a container's DNS, its
QUIC) is carried by what the kernel remembers. Two messages of ctnetlink (linux/netfilter/nfnetlink_conntrack.h). The
kernel is asked to tell only what may be stale (CTA_FILTER, Linux 5.8; older ones tell all): of 30,000 flows to read
takes half a second.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Collection
from contextlib import suppress

from wherry_cni import nlwire, rtnetlink
from wherry_cni.errors import CniError
from wherry_cni.nlwire import DUMP, Message, attributes, nest, put

__all__ = ["forget_udp"]

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
_ORIGINAL, _IP, _PROTO = 1, 1, 2  # CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_TUPLE_PROTO
_TO_IPV4, _TO_IPV6 = 2, 4  # CTA_IP_V4_DST, CTA_IP_V6_DST
_NUMBER, _TO_PORT = 1, 3  # CTA_PROTO_NUM, CTA_PROTO_DST_PORT
_FILTER, _FILTER_ORIGINAL = 25, 1  # CTA_FILTER, CTA_FILTER_ORIG_FLAGS
_BY_NUMBER, _BY_TO_PORT = 1 << 3, 1 << 5  # CTA_FILTER_FLAG(CTA_PROTO_NUM), (CTA_PROTO_DST_PORT)
_LOOPBACK = b"\x7f"  # 127.0.0.0/8 is the host's whole; no IPv6 address in use begins so
_UDP = bytes([socket.IPPROTO_UDP])
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def forget_udp(ports: Collection[int]) -> None:
    """Drop the flows to these ports. They come and go while we look, and a kernel may lack the interface: neither is
    worth an ADD's failure."""
    with suppress(OSError, CniError), nlwire.opened(_NETLINK_NETFILTER) as wire:
        here = _addresses()
        for family in _FAMILIES:
            head = struct.pack("=BBH", family, 0, 0)  # struct nfgenmsg
            (answer,) = wire.ask(Message(_GET, DUMP, head + _only(ports)))
            for body in answer.told:
                flow = dict(attributes(body[4:])).get(_ORIGINAL, b"")
                address, port = _to(flow)
                if port in ports and (address in here or address.startswith(_LOOPBACK)):
                    wire.ask(Message(_DELETE, 0, head + nest(_ORIGINAL, flow)))


def _only(ports: Collection[int]) -> bytes:
    """UDP; where one port is asked for, that one."""
    flags, wanted = _BY_NUMBER, put(_NUMBER, _UDP)
    if len(ports) == 1:
        flags, wanted = flags | _BY_TO_PORT, wanted + put(_TO_PORT, struct.pack("!H", *ports))
    return nest(_ORIGINAL, nest(_PROTO, wanted)) + nest(_FILTER, put(_FILTER_ORIGINAL, struct.pack("=I", flags)))


def _addresses() -> set[bytes]:
    with rtnetlink.wired() as wire:
        return {ipaddress.ip_interface(text).ip.packed for text in rtnetlink.addresses(wire)}


def _to(flow: bytes) -> tuple[bytes, int]:
    """The address and port that a UDP flow goes to; port 0 for any other."""
    parts = dict(attributes(flow))
    addresses, protocol = (dict(attributes(parts.get(kind, b""))) for kind in (_IP, _PROTO))
    if protocol.get(_NUMBER) != _UDP:
        return b"", 0
    to = addresses.get(_TO_IPV4) or addresses.get(_TO_IPV6) or b""
    return to, int.from_bytes(protocol.get(_TO_PORT, b""), "big")
