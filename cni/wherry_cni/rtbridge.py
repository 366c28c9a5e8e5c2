"""Messages of rtnetlink(7) about a bridge's ports: hairpin and isolation, VLANs.

Decides how they are asked for (IFLA_BRPORT_*, and bridge_vlan_info of linux/if_bridge.h). Refuses to know why.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from wherry_cni.nlwire import Message, attributes, nest, put
from wherry_cni.rtnetlink import Link

__all__ = ["PVID", "UNTAGGED", "default_vlan", "filtering", "no_vlan", "own_vlan", "port", "vlan"]

PVID, UNTAGGED = 0x2, 0x4  # BRIDGE_VLAN_INFO_*: what comes without a tag is of this VLAN; it leaves without one
_NEWLINK, _DELLINK, _SETLINK = 16, 17, 19
_NAME, _LINKINFO, _AF_SPEC = 3, 18, 26  # IFLA_*
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_MODE, _ISOLATED = 4, 33  # IFLA_BRPORT_*
_FLAGS, _SELF, _VLAN_INFO = 0, 2, 2  # IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF, IFLA_BRIDGE_VLAN_INFO
_VLAN_FILTERING, _DEFAULT_PVID = 7, 39  # IFLA_BR_*
_IFINFO = struct.Struct("=BxHiII")


def port(name: str, *, hairpin: bool = False, isolated: bool = False) -> Message:
    """Let the bridge send back what it hears from this port; let it hear and reach no other isolated port."""
    wanted = b"".join(put(kind, b"\1") for kind, on in ((_MODE, hairpin), (_ISOLATED, isolated)) if on)
    info = put(_INFO_SLAVE_KIND, b"bridge") + nest(_INFO_SLAVE_DATA, wanted)
    named = put(_NAME, os.fsencode(name) + b"\0")
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + named + nest(_LINKINFO, info))


def filtering(index: int) -> Message:
    """Let a bridge tell VLANs apart; EOPNOTSUPP where the kernel cannot."""
    info = put(_INFO_KIND, b"bridge") + nest(_INFO_DATA, put(_VLAN_FILTERING, b"\1"))
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + nest(_LINKINFO, info))


def default_vlan(bridge: Link) -> int:
    """The VLAN that a bridge puts new ports into, 0 for none."""
    return int.from_bytes(dict(attributes(bridge.data)).get(_DEFAULT_PVID, b""), sys.byteorder)


def vlan(index: int, number: int, flags: int = 0) -> Message:
    """Make a port one of a VLAN."""
    return _vlan(_SETLINK, index, number, flags)


def own_vlan(index: int, number: int) -> Message:
    """Let a bridge itself hear and speak in a VLAN, with a tag."""
    return _vlan(_SETLINK, index, number, 0, put(_FLAGS, struct.pack("=H", _SELF)))


def no_vlan(index: int, number: int) -> Message:
    """Take a port out of a VLAN."""
    return _vlan(_DELLINK, index, number, 0)


def _vlan(kind: int, index: int, number: int, flags: int, to: bytes = b"") -> Message:
    info = nest(_AF_SPEC, to + put(_VLAN_INFO, struct.pack("=HH", flags, number)))
    return Message(kind, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + info)
