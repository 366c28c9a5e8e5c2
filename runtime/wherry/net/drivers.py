"""What `network create -d DRIVER -o OPTION` means as a list of CNI plugins. Pure, but for a look at overlay's peers.

Decides which options a driver has (docker's names where docker has them), what each does to the plugins, and how IPAM
is written. Refuses to know which subnet is free (subnets.py) and where lists are kept (networks.py).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.net.cniconf import parsed

__all__ = ["DRIVERS", "IPAM", "Driver", "Wish", "find", "ipam_settings", "peers_subnets", "settings", "without_default"]

_DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
_LINK = r"[a-zA-Z0-9_.-]{1,15}"
_DOCKER = "com.docker.network."


class Wish(NamedTuple):
    """A network as asked, checked. `subnets`: subnet, gateway, rangeStart, rangeEnd and aux (names to addresses that
    are never given out) of each; `bridge` is the name that a bridge gets where the settings have none."""

    name: str
    table: str
    bridge: str
    leases: str
    subnets: Sequence[Json]
    settings: Mapping[str, str]
    internal: bool
    ipam: str
    ipam_settings: Mapping[str, str]

    def on(self, key: str, default: bool) -> bool:
        """A setting that is on or off."""
        return self.settings.get(key, "true" if default else "false") == "true"


class Driver(NamedTuple):
    """One row: option to setting, the plugins, and whether its subnets may be what the host itself is on."""

    options: Mapping[str, str]
    plugins: Callable[[Wish], list[Json]]
    shares: bool = False


# ---- the plugins of each driver ----


def _bridge(wish: Wish) -> list[Json]:
    return [_bridged("bridge", wish), _portmap(wish)]


def _bridged(kind: str, wish: Wish) -> Json:
    """The keys of our plugin bridge, and of overlay, which hands them on to it."""
    addressed = bool(wish.subnets) and wish.on("gateway", True)
    plugin: Json = {
        "type": kind, "bridge": wish.settings.get("bridge") or wish.bridge, "isGateway": addressed,
        "isDefaultGateway": addressed and _routed(wish), "ipMasq": not wish.internal and wish.on("masquerade", True),
        "ipMasqBackend": "nftables", "hairpinMode": True, "nftTable": wish.table,
        "isolate": wish.on("isolate", True), "internal": wish.internal, "capabilities": _capabilities(wish, mac=True),
        "ipam": _ipam(wish),
    }
    if not wish.on("icc", True):
        plugin["portIsolation"] = True
    return plugin | _numbers(wish, "mtu", "vlan")


def _overlay(wish: Wish) -> list[Json]:
    plugin = _bridged("overlay", wish)
    plugin |= {"mode": wish.settings.get("mode", "vxlan"), "peersFile": wish.settings["peers"]}
    plugin |= {"address": wish.settings["address"]} if "address" in wish.settings else {}
    plugin["ipam"] = {key: value for key, value in plugin["ipam"].items() if key != "ranges"}  # the peers file tells
    return [plugin | _numbers(wish, "vni", "port"), _portmap(wish)]


def _macvlan(wish: Wish) -> list[Json]:
    return [_child("macvlan", wish) | {"mode": wish.settings.get("mode", "bridge")}]


def _ipvlan(wish: Wish) -> list[Json]:
    return [_child("ipvlan", wish, mac=False) | {"mode": wish.settings.get("mode", "l2")}]


def _child(kind: str, wish: Wish, *, mac: bool = True) -> Json:
    """A link on one of the host's. The default route is IPAM's to give, for the gateway is another machine."""
    ipam = _ipam(wish)
    if ipam and _routed(wish):
        families = {ipaddress.ip_network(part["subnet"]).version for part in wish.subnets}
        ipam["routes"] = [{"dst": _DEFAULT_ROUTES[family]} for family in sorted(families)]
    master = {"master": wish.settings["parent"]} if "parent" in wish.settings else {}
    return {"type": kind, **master, "capabilities": _capabilities(wish, mac=mac), "ipam": ipam} | _numbers(wish, "mtu")


def _portmap(wish: Wish) -> Json:
    return {"type": "portmap", "backend": "nftables", "nftTable": wish.table, "capabilities": {"portMappings": True}}


def _routed(wish: Wish) -> bool:
    return not wish.internal and not wish.on("no_default_route", False)


def _numbers(wish: Wish, *keys: str) -> Json:
    return {key: int(wish.settings[key]) for key in keys if key in wish.settings}


def _capabilities(wish: Wish, *, mac: bool) -> Json:
    """A static address is told by CNI_ARGS, which have a gateway beside it."""
    return ({"ips": True} if wish.ipam == "host-local" else {}) | ({"mac": True} if mac else {})


def without_default(conflist: Json) -> Json:
    """A list of ours for a container whose default route is another network's."""
    first, *rest = conflist["plugins"]
    if first.get("isDefaultGateway"):
        first = {**first, "isDefaultGateway": False}
    elif (first.get("ipam") or {}).get("routes"):
        ways = [way for way in first["ipam"]["routes"] if way["dst"] not in _DEFAULT_ROUTES.values()]
        first = {**first, "ipam": {**first["ipam"], "routes": ways}}
    return {**conflist, "plugins": [first, *rest]}


# ---- IPAM ----


def _ipam(wish: Wish) -> Json:
    return IPAM[wish.ipam].compose(wish) | dict(wish.ipam_settings)


def _host_local(wish: Wish) -> Json:
    return {"type": "host-local", "dataDir": wish.leases, "ranges": [_ranges(part) for part in wish.subnets]}


def _ranges(part: Json) -> list[Json]:
    """The set of ranges of a subnet: one, or what its auxiliary addresses leave of it."""
    plain = {key: part[key] for key in ("subnet", "gateway", "rangeStart", "rangeEnd") if part.get(key)}
    network = ipaddress.ip_network(part["subnet"])
    taken = sorted(int(ipaddress.ip_address(text)) for text in part.get("aux", {}).values())
    low = int(ipaddress.ip_address(plain["rangeStart"])) if "rangeStart" in plain else int(network[1])
    top = int(ipaddress.ip_address(plain["rangeEnd"])) if "rangeEnd" in plain else int(
        network[-2] if network.version == 4 else network[-1])
    if not any(low <= number <= top for number in taken):
        return [plain]
    edges = [low - 1, *(number for number in taken if low <= number <= top), top + 1]
    spans = [(one + 1, two - 1) for one, two in pairwise(edges) if one + 1 <= two - 1]
    make = type(network.network_address)
    return [{**plain, "rangeStart": str(make(first)), "rangeEnd": str(make(last))} for first, last in spans]


class _Ipam(NamedTuple):
    compose: Callable[[Wish], Json]
    options: tuple[str, ...] = ()


IPAM: Mapping[str, _Ipam] = {
    "host-local": _Ipam(_host_local, ("resolvConf",)),
    "static": _Ipam(lambda _wish: {"type": "static"}),
    "none": _Ipam(lambda _wish: {}),
}


def ipam_settings(driver: str, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """--ipam-driver and --ipam-opt: the plugin's name, and its keys."""
    name = {"": "host-local", "default": "host-local", "null": "none"}.get(driver, driver)
    if name not in IPAM:
        raise WherryError(Kind.UNSUPPORTED, f'IPAM driver "{driver}" is not there', hint=f"one of {', '.join(IPAM)}")
    for key in options:
        if key not in IPAM[name].options:
            known = ", ".join(IPAM[name].options) or "none"
            raise WherryError(Kind.INVALID, f'IPAM option "{key}" is not known to {name}', hint=f"known: {known}")
    return name, dict(options)


# ---- options ----

_MTU = {"mtu": "mtu", f"{_DOCKER}driver.mtu": "mtu", f"{_DOCKER}container_iface_prefix": "prefix"}
_BRIDGE = {
    **_MTU,
    f"{_DOCKER}bridge.name": "bridge", "bridge.name": "bridge",
    f"{_DOCKER}bridge.enable_ip_masquerade": "masquerade",
    f"{_DOCKER}bridge.enable_icc": "icc",
    f"{_DOCKER}bridge.host_binding_ipv4": "host_ip",
    f"{_DOCKER}bridge.inhibit_ipv4": "inhibit",
    f"{_DOCKER}bridge.gateway_mode_ipv4": "gateway_mode4", f"{_DOCKER}bridge.gateway_mode_ipv6": "gateway_mode6",
    "isolate": "isolate", "no_default_route": "no_default_route", "vlan": "vlan",
}  # fmt: skip
DRIVERS: Mapping[str, Driver] = {
    "bridge": Driver(_BRIDGE, _bridge),
    "ipvlan": Driver({**_MTU, "parent": "parent", "ipvlan_mode": "mode", "mode": "mode", "ipvlan_flag": "flag"},
                     _ipvlan, shares=True),
    "macvlan": Driver({**_MTU, "parent": "parent", "macvlan_mode": "mode", "mode": "mode"}, _macvlan, shares=True),
    "overlay": Driver({**_MTU, "bridge.name": "bridge", f"{_DOCKER}bridge.name": "bridge", "peers": "peers",
                       "mode": "mode", "vni": "vni", f"{_DOCKER}driver.overlay.vxlanid_list": "vni", "port": "port",
                       "address": "address", "isolate": "isolate",
                       f"{_DOCKER}bridge.enable_ip_masquerade": "masquerade"}, _overlay),
}  # fmt: skip
_SWITCHES = ("masquerade", "icc", "isolate", "no_default_route", "inhibit")
_WORDS = {"true": "true", "1": "true", "false": "false", "0": "false"}
_NUMBERS = {"mtu": (68, 65535), "vlan": (1, 4094), "vni": (1, 16777215), "port": (1, 65535)}
_MODES = {"macvlan": ("bridge", "private", "vepa", "passthru"), "ipvlan": ("l2", "l3", "l3s"),
          "overlay": ("vxlan", "host-gw")}  # fmt: skip
_GATEWAY_MODES: Mapping[str, Mapping[str, str]] = {
    "nat": {}, "nat-unprotected": {"isolate": "false"}, "isolated": {"gateway": "false"},
}  # fmt: skip


def find(driver: str, conf_dir: str) -> Driver:
    """The row of a driver."""
    if driver not in DRIVERS:
        hint = f"one of {', '.join(DRIVERS)}; or write a CNI list into {conf_dir} and use it by its name"
        raise WherryError(Kind.UNSUPPORTED, f'network driver "{driver}" is not built in', hint=hint)
    return DRIVERS[driver]


def settings(driver: str, options: Mapping[str, str], *, internal: bool) -> dict[str, str]:
    """Options as given, as our settings; what is unknown or bad is refused by name."""
    known = DRIVERS[driver].options
    for key in options:
        if key not in known:
            raise WherryError(Kind.INVALID, f'network option "{key}" is not known to {driver}',
                              hint=f"known: {', '.join(known)}")
    made = {known[key]: _checked(driver, known[key], key, value) for key, value in options.items()}
    for key in ("gateway_mode4", "gateway_mode6"):
        made |= _gateway_mode(made.pop(key), internal=internal) if key in made else {}
    if made.pop("inhibit", "false") == "true":
        made["gateway"] = "false"
    if driver == "overlay" and "peers" not in made:
        raise WherryError(Kind.INVALID, "an overlay network needs its peers", hint="-o peers=/path/of/the/file.json")
    return made


def _checked(driver: str, key: str, option: str, value: str) -> str:
    def bad(allowed: str) -> WherryError:
        return WherryError(Kind.INVALID, f'network option {option}: "{value}" is not {allowed}')

    if key in _SWITCHES:
        if value.lower() not in _WORDS:
            raise bad("true or false")
        return _WORDS[value.lower()]
    if key in _NUMBERS:
        low, high = _NUMBERS[key]
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise bad(f"{low} to {high}")
    if key == "mode" and value not in _MODES[driver]:
        raise bad(f"one of {', '.join(_MODES[driver])}")
    if key == "flag" and value != "bridge":
        raise WherryError(Kind.UNSUPPORTED, f"network option {option}={value} is not built", hint="bridge is")
    if key in ("bridge", "parent") and not re.fullmatch(_LINK, value):
        raise bad("a link's name: 1 to 15 letters, digits, _ . -")
    if key == "prefix" and not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]{0,11}", value):
        raise bad("the beginning of a link's name")
    if key in ("host_ip", "address") and not _is_ip(value):
        raise bad("an IP address")
    if key == "peers" and not value.startswith("/"):
        raise bad("an absolute path")
    return value


def _gateway_mode(mode: str, *, internal: bool) -> dict[str, str]:
    if mode not in _GATEWAY_MODES:
        hint = f"{', '.join(_GATEWAY_MODES)}; for routed: enable_ip_masquerade=false and isolate=false"
        raise WherryError(Kind.UNSUPPORTED, f"gateway mode {mode} is not built", hint=hint)
    if mode == "isolated" and not internal:
        raise WherryError(Kind.INVALID, "gateway mode isolated is for internal networks", hint="--internal")
    return dict(_GATEWAY_MODES[mode])


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# ---- the overlay's peers ----


def peers_subnets(path: str, address: str) -> list[str]:
    """The subnets of this host's own entry: that of `address`, else the one whose address is ours."""
    try:
        peers = parsed(path)["peers"]
        own = [peer for peer in peers if (peer["address"] == address if address else _is_ours(str(peer["address"])))]
        found = [str(ipaddress.ip_network(text)) for peer in own for text in peer["subnets"]]
    except OSError as problem:
        raise WherryError(Kind.NOT_FOUND, f"peers file {path}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError) as problem:
        hint = '{"peers": [{"address": "192.0.2.1", "subnets": ["10.244.1.0/24"]}, ...]}'
        raise WherryError(Kind.INVALID, f"peers file {path} is not a list of peers: {problem}", hint=hint) from None
    if not found:
        raise WherryError(Kind.INVALID, f"peers file {path} has no entry for this host",
                          hint="its own address and subnets stand there too; or name the entry with -o address=")
    return found


def _is_ours(address: str) -> bool:
    """Whether the address is one of this host: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True

