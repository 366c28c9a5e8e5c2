"""The plugin host-local: addresses of this host's ranges, leased in files.

Decides which addresses an interface gets: those asked for (CNI_ARGS IP=, runtimeConfig.ips, args.cni.ips), else the
next free one of each range set. Refuses to know links: it never touches the kernel.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any

from wherry_cni import skel
from wherry_cni.allocator import IPAddress, Range, parse_ranges, walk
from wherry_cni.config import ipam_part, routes, text
from wherry_cni.errors import BAD_CONFIG, EXHAUSTED, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import Json
from wherry_cni.skel import Call
from wherry_cni.store import Store, opened

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "status"]

_DATA_DIR = "/var/lib/cni/networks"  # the reference's
_MAX_RESOLV = 1 << 16


def add(call: Call) -> Json:
    """One address of each range set, or nothing at all."""
    ipam = ipam_part(call.config)
    sets = parse_ranges(_with_asked_ranges(call, ipam))
    asked, ways, dns = _asked(call), routes(ipam), _dns(text(ipam, "resolvConf"))
    taken: list[str] = []
    with opened(_data_dir(ipam), call.network) as store:
        try:
            _refuse_second(store, call)
            ips = [_asked_for(store, call, group, asked, taken) or _next(store, call, index, group, taken)
                   for index, group in enumerate(sets)]
            if asked:
                raise CniError(BAD_CONFIG, f"requested address {', '.join(map(str, asked))} is in no range")
        except BaseException:
            store.drop(taken)
            raise
    return {"ips": ips, "routes": ways, "dns": dns}


def delete(call: Call) -> None:
    """End the leases of this interface. None held is success, and so is what ADD refused."""
    try:
        directory = _data_dir(ipam_part(call.config))
    except CniError:
        return
    if not os.path.isdir(os.path.join(directory, call.network)):
        return
    with opened(directory, call.network) as store:
        store.drop(store.held(call.container_id, call.ifname))


def check(call: Call) -> None:
    """The interface still has a lease."""
    with opened(_data_dir(ipam_part(call.config)), call.network) as store:
        held = store.held(call.container_id, call.ifname)
    told = {part["address"].partition("/")[0] for part in (call.previous or {}).get("ips", [])}
    if not held or (told and not told.intersection(held)):
        raise CniError(IO_ERROR, f"host-local: no address of {call.container_id} is leased")


def collect(call: Call) -> None:
    """GC: end the leases of whoever is not in the list of valid attachments."""
    valid = skel.valid_attachments(call)
    valid |= {(container_id, "") for container_id, _ in valid}  # as very old plugins wrote it
    with opened(_data_dir(ipam_part(call.config)), call.network) as store:
        store.drop(address for address, owner, ifname in store.leases() if (owner, ifname) not in valid)


def status(call: Call) -> None:
    """The ranges can be read and the directory can be written."""
    parse_ranges(_with_asked_ranges(call, ipam_part(call.config)))
    with opened(_data_dir(ipam_part(call.config)), call.network):
        return


def _asked_for(store: Store, call: Call, group: Sequence[Range], asked: list[IPAddress], taken: list[str]) -> Json:
    """Lease the address asked for that lies in this set, and use the wish up; {} when there is none."""
    for part, wish in ((part, wish) for part in group for wish in asked if part.holds(wish)):
        asked.remove(wish)
        if wish == part.gateway:
            raise CniError(BAD_CONFIG, f"requested address {wish} is the network's gateway")
        if not store.take(str(wish), call.container_id, call.ifname):
            raise CniError(EXHAUSTED, f"requested address {wish} is in use")
        taken.append(str(wish))
        return {"address": part.interface(wish), "gateway": str(part.gateway)}
    return {}


def _next(store: Store, call: Call, index: int, group: Sequence[Range], taken: list[str]) -> Json:
    """Lease the next free address of a set."""
    for part, address in walk(group, store.last(index)):
        if store.take(str(address), call.container_id, call.ifname):
            taken.append(str(address))
            store.remember(index, str(address))
            return {"address": part.interface(address), "gateway": str(part.gateway)}
    raise CniError(EXHAUSTED, "no address is free in " + ", ".join(f"{part.start}-{part.end}" for part in group))


def _refuse_second(store: Store, call: Call) -> None:
    """A repeated ADD is an error of the runtime (section 2, ADD); the lease it made stays with the first."""
    for address in store.held(call.container_id, call.ifname):
        raise CniError(BAD_CONFIG, f"{address} has been allocated to {call.container_id}, duplicate allocation is not "
                                   "allowed")


def _with_asked_ranges(call: Call, ipam: Mapping[str, Any]) -> Mapping[str, Any]:
    """Range sets that the runtime gives (capability ipRanges) go before the configuration's, as in the reference."""
    given = call.runtime.get("ipRanges")
    if not given:
        return ipam
    own = ipam.get("ranges") or []
    if not isinstance(given, list) or not isinstance(own, list):
        raise CniError(BAD_CONFIG, "ipRanges is not a list of lists of ranges")
    return {**ipam, "ranges": [*given, *own]}


def _asked(call: Call) -> list[IPAddress]:
    """Addresses that the runtime asks for, by any of the three ways."""
    texts = [call.args["IP"]] if call.args.get("IP") else []
    try:
        texts += [*(call.runtime.get("ips") or []), *(call.given.get("ips") or [])]  # type: ignore[misc]
        found = [ipaddress.ip_interface(str(text)).ip for text in texts]
    except (TypeError, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"requested address: {problem}") from None
    return list(dict.fromkeys(found))


def _dns(path: str) -> Json:
    """The resolver settings of a resolv.conf(5) file."""
    if not path:
        return {}
    with open(path, encoding="utf-8", errors="replace") as stream:
        rows = [line.split() for line in stream.read(_MAX_RESOLV).splitlines() if not line.startswith(("#", ";"))]
    found: dict[str, Any] = {
        "nameservers": [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"],
        "search": [word for row in rows if row[:1] == ["search"] for word in row[1:]],
        "options": [word for row in rows if row[:1] == ["options"] for word in row[1:]],
        "domain": next((row[1] for row in rows if len(row) > 1 and row[0] == "domain"), ""),
    }
    return {key: value for key, value in found.items() if value}


def _data_dir(ipam: Mapping[str, Any]) -> str:
    directory = text(ipam, "dataDir", _DATA_DIR)
    if not os.path.isabs(directory):
        raise CniError(BAD_CONFIG, f'ipam.dataDir: "{directory}" is not an absolute path')
    return directory


VERBS = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
