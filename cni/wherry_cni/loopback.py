"""The plugin loopback: `lo` up in the container's namespace, as it should be born.

Decides nothing else; refuses any other interface name, since `lo` is the only one there is.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping

from wherry_cni import netlink, skel
from wherry_cni.errors import BAD_ENV, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "delete", "entry", "main"]

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_REQUEST = "16sh22x"  # struct ifreq


def add(call: Call) -> Json:
    """Bring it up; a result that came before is passed on."""
    _only_lo(call)
    netlink.in_namespace(call.netns, lambda: _write(_read() | _IFF_UP))
    if call.previous:
        return call.previous
    ips = [{"address": address, "interface": 0} for address in ("127.0.0.1/8", "::1/128")]
    return {"interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": call.netns}], "ips": ips}


def delete(call: Call) -> None:
    """Take it down, unless ADD refused the name. A namespace that is gone took it along."""
    if call.netns and call.ifname == "lo":
        with netlink.if_there():
            netlink.in_namespace(call.netns, lambda: _write(_read() & ~_IFF_UP))


def check(call: Call) -> None:
    """It is up."""
    _only_lo(call)
    if not netlink.in_namespace(call.netns, _read) & _IFF_UP:
        raise CniError(IO_ERROR, "lo is down")


def _only_lo(call: Call) -> None:
    if call.ifname != "lo":
        raise CniError(BAD_ENV, f'loopback serves the interface lo, not "{call.ifname}"')


def _read() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_REQUEST, b"lo", 0))
    return int(struct.unpack_from("h", answer, 16)[0])


def _write(flags: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_REQUEST, b"lo", flags))


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check}
main, entry = skel.faces(VERBS)
