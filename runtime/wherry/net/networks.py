"""Networks by name: made, shown, removed, joined, left.

Decides names, subnets, bridge names and the list of plugins for one attachment. Refuses to know links, addresses and
firewall rules (the plugins' work), and which containers exist (the engine's).
A network is one CNI list, ROOT/networks/NAME.conflist; lists in /etc/cni/net.d are usable by name, never changed.
"""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Address, Attachment, Interface, Json, NetworkResult, Place, PortMapping
from wherry.net import subnets as plan
from wherry.net.cni import Cni, Joined
from wherry.net.ports import PortBook

__all__ = ["DEFAULT", "RESERVED", "Networks", "Subnet"]

Rows = list[Json]  # inside the class, `list` is a verb
Parts = list[dict[str, str]]
Joins = list[Joined]
Names = list[str]

DEFAULT = "bridge"
RESERVED = ("none", "host", "container", "default")
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
_CNI_VERSION = "1.1.0"
_OPTIONS = {  # docker's names for what a bridge network can be told, and ours
    "mtu": "mtu", "com.docker.network.driver.mtu": "mtu",
    "com.docker.network.bridge.name": "name", "bridge.name": "name",
    "com.docker.network.bridge.enable_ip_masquerade": "masquerade",
    "com.docker.network.bridge.enable_icc": "icc",
}
_BUILT_IN = ("bridge", "host", "none")


class Subnet(NamedTuple):
    """One subnet as asked: "10.1.0.0/24"; gateway and ip_range "" leave the choice to us."""

    subnet: str
    gateway: str = ""
    ip_range: str = ""


class Networks:
    """The networks of one wherry."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._directory = os.path.join(place.root, "networks")
        self._leases = os.path.join(place.state, "cni", "leases")
        self._ports = PortBook(os.path.join(place.state, "ports"))
        self._tag = "" if place.root == Place().root else hashlib.sha256(os.fsencode(place.root)).hexdigest()[:8]
        self.cni = Cni(place)

    def create(self, name: str, driver: str = "bridge", subnets: Sequence[Subnet] = (),
               options: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None, *,
               internal: bool = False, ipv6: bool = False) -> Json:
        """Make a network and show it (docker's inspect shape)."""
        _checked_name(name)
        if driver != "bridge":
            raise WherryError(Kind.UNSUPPORTED, f'network driver "{driver}" is not built in',
                              hint=f"write a CNI list for it into {self._place.cni_conf} and use it by its name")
        with self._locked():
            if self._find(name) is not None or name == DEFAULT:
                raise WherryError(Kind.EXISTS, f"network {name} exists already")
            self._write(self._conflist(name, subnets, options or {}, labels or {}, internal=internal, ipv6=ipv6))
        return self.inspect(name)

    def inspect(self, name: str) -> Json:
        """One network by name, id or unambiguous id prefix. `Containers` holds ids; the engine adds their names."""
        if name in ("none", "host"):
            return _synthetic(name)
        return self._shown(self._get(name))

    def list(self) -> Rows:
        """All networks, wherry's own, the host's CNI lists, and docker's two synthetic ones."""
        self._default()
        return [self._shown(conflist) for conflist in self._all()] + [_synthetic("host"), _synthetic("none")]

    def remove(self, name: str) -> str:
        """Remove a network, its bridge and its rules; returns its name. A network in use is a conflict."""
        if name in (*_BUILT_IN, *RESERVED):
            raise WherryError(Kind.DENIED, f"{name} is a pre-defined network and cannot be removed")
        with self._locked():
            conflist = self._get(name)
            if "wherry" not in conflist:
                raise WherryError(Kind.CONFLICT, f"network {name} is a CNI list of the host",
                                  hint=f"remove its file from {self._place.cni_conf}")
            self._remove(conflist)
        return str(conflist["name"])

    def teardown(self) -> None:
        """Take away every bridge, every lease and the table (for uninstall and tests). Nothing may be attached."""
        with self._locked():
            for conflist in self._all():
                if "wherry" in conflist:
                    self._remove(conflist)
            plan.delete_table(self._table)

    def claim_ports(self, container_id: str, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """Grant host ports (free ones where asked); idempotent for one container, `attach` does it by itself."""
        return self._ports.claim(container_id, ports)

    def release_ports(self, container_id: str) -> None:
        """Give all host ports of the container back."""
        self._ports.release(container_id)

    def attach(self, container_id: str, netns_path: str, attachment: Attachment,
               ports: Sequence[PortMapping] = (), args: Mapping[str, str] | None = None) -> NetworkResult:
        """Join one network. `ports` are claimed first; the granted ones are in the result. All or nothing."""
        conflist = self._for_attachment(self._get(attachment.network), bool(ports))
        granted = self._ports.claim(container_id, ports)
        try:
            raw = self.cni.add(conflist, container_id, netns_path, attachment.interface,
                               args=_args(attachment, args or {}),
                               capabilities=_capabilities(conflist, attachment, granted))
        except BaseException:
            if ports:
                self._ports.release(container_id)
            raise
        return _network_result(str(conflist["name"]), raw, granted)

    def detach(self, container_id: str, netns_path: str, network: str, ports: Sequence[PortMapping] = (),
               interface: str = "eth0") -> None:
        """Leave one network. Done already, the namespace gone, or the network gone: success."""
        conflist = self._find(network)
        name = str(conflist["name"]) if conflist else network
        if conflist is not None:
            conflist = self._for_attachment(conflist, bool(ports))
        remembered = self.cni.recall(name, container_id, interface)
        self.cni.delete(conflist, container_id, netns_path, interface, network=name)
        if ports or (remembered is not None and "portMappings" in remembered.capabilities):
            self._ports.release(container_id)

    def check(self, container_id: str, network: str, interface: str = "eth0") -> None:
        """Raise when the attachment is no longer as it was made."""
        self.cni.check(network, container_id, interface)

    def is_own(self, name: str) -> bool:
        """Whether we made it: not a list of the host."""
        return self._own(DEFAULT if name in ("", "default") else name) is not None

    def attached(self, network: str = "") -> Joins:
        """What is attached now, as remembered below STATE."""
        return [joined for joined in self.cni.remembered() if network in ("", joined.network)]

    def sweep(self, living: Iterable[str]) -> Names:
        """Detach what a crash left: every attachment and port of ids that are not `living`. Returns those ids."""
        alive = set(living)
        dead = set()
        self.cni.tidy()
        for joined in self.cni.remembered():
            if joined.container_id not in alive:
                self.detach(joined.container_id, joined.netns, joined.network, interface=joined.ifname)
                dead.add(joined.container_id)
        for holder in self._ports.holders() - alive:
            self._ports.release(holder)
            dead.add(holder)
        return sorted(dead)

    def gateway(self, network: str) -> str:
        """The host's address on the network (for host-gateway); "" where it has none."""
        if network in RESERVED:
            return ""
        meta = self._get(network).get("wherry", {})
        return next((str(part["gateway"]) for part in meta.get("subnets", []) if part.get("gateway")), "")

    # -- the lists ----------------------------------------------------------------------------------------------

    def _default(self) -> Json:
        found = self._own(DEFAULT)
        if found is not None:
            return found
        with self._locked():
            found = self._own(DEFAULT)
            if found is None:
                self._write(self._conflist(DEFAULT, (), {}, {}))
        return self._own(DEFAULT) or found or {}

    def _get(self, name: str) -> Json:
        if name in ("", "default", DEFAULT):
            return self._default()
        found = self._find(name)
        if found is None:
            raise WherryError(Kind.NOT_FOUND, f"network {name} not found", hint="wherry network ls shows what there is")
        return found

    def _find(self, name: str) -> Json | None:
        if name in ("", "default"):
            name = DEFAULT
        own = self._own(name)
        if own is not None:
            return own
        matching = [conflist for conflist in self._all() if _matches(conflist, name)]
        exact = [conflist for conflist in matching if conflist["name"] == name]
        if not exact and len(matching) > 1:
            raise WherryError(Kind.INVALID, f"network id prefix {name} is ambiguous")
        return next(iter(exact or matching), None)

    def _own(self, name: str) -> Json | None:
        if not re.fullmatch(_NAME, name):
            return None
        return _load(os.path.join(self._directory, f"{name}.conflist"))

    def _all(self) -> Rows:
        own = [_load(path) for path in _conflists(self._directory, (".conflist",))]
        host = [_load(path) for path in _conflists(self._place.cni_conf, (".conflist", ".conf", ".json"))]
        found: dict[str, Json] = {}
        for conflist in own + host:
            if conflist is not None:
                found.setdefault(str(conflist["name"]), conflist)
        return [*found.values()]

    def _conflist(self, name: str, wishes: Sequence[Subnet], options: Mapping[str, str], labels: Mapping[str, str],
                  *, internal: bool = False, ipv6: bool = False) -> Json:
        settings = _settings(options)
        own = self._bridge_name(name)
        plan.delete_idle_bridge(own)  # a deleted ROOT's at the same path: with its address, and its subnet in use
        chosen = self._subnets(name, wishes, ipv6)
        ranges = [[{key: value for key, value in part.items() if key != "ip_range"}] for part in chosen]
        bridge: Json = {
            "type": "bridge", "bridge": settings.get("name") or own, "isGateway": True,
            "isDefaultGateway": not internal, "ipMasq": not internal and settings.get("masquerade", "true") == "true",
            "ipMasqBackend": "nftables", "hairpinMode": True, "nftTable": self._table, "isolate": True,
            "internal": internal, "capabilities": {"ips": True, "mac": True},
            "ipam": {"type": "host-local", "dataDir": self._leases, "ranges": ranges},
        }
        if "mtu" in settings:
            bridge["mtu"] = int(settings["mtu"])
        portmap = {"type": "portmap", "backend": "nftables", "nftTable": self._table,
                   "capabilities": {"portMappings": True}}
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        identity = hashlib.sha256(f"{self._place.root}\0{name}\0{created}".encode()).hexdigest()
        return {"cniVersion": _CNI_VERSION, "name": name, "plugins": [bridge, portmap],
                "wherry": {"id": identity, "created": created, "driver": "bridge", "labels": dict(labels),
                           "options": dict(options), "internal": internal, "subnets": chosen}}

    def _subnets(self, name: str, wishes: Sequence[Subnet], ipv6: bool) -> Parts:
        taken = plan.host_networks() + [net for conflist in self._all() for net in plan.conflist_networks(conflist)]
        asked = [plan.checked(wish.subnet, wish.gateway, wish.ip_range, taken) for wish in wishes]
        families = {ipaddress.ip_network(part["subnet"]).version for part in asked}
        if 4 not in families:
            asked.insert(0, plan.choose(taken, self._tag, default=name == DEFAULT))
        if ipv6 and 6 not in families:
            asked.append(plan.choose_v6(f"{self._place.root}\0{name}"))
        return asked

    @property
    def _table(self) -> str:
        return f"wherry_{self._tag}" if self._tag else "wherry"

    def _bridge_name(self, name: str) -> str:
        if name == DEFAULT and not self._tag:
            return "wherry0"
        return "wh-" + hashlib.sha256(f"{self._place.root}\0{name}".encode()).hexdigest()[:12]  # IFNAMSIZ - 1 in all

    def _for_attachment(self, conflist: Json, with_ports: bool) -> Json:
        """Our own lists lose portmap where nothing is published: each plugin is a process."""
        if "wherry" not in conflist or with_ports:
            return conflist
        return {**conflist, "plugins": [part for part in conflist["plugins"] if part["type"] != "portmap"]}

    def _remove(self, conflist: Json) -> None:
        name = str(conflist["name"])
        users = sorted({joined.container_id[:12] for joined in self.attached(name)})
        if users:
            raise WherryError(Kind.CONFLICT, f"network {name} is in use by container {', '.join(users)}",
                              hint="disconnect or remove the container first")
        with contextlib.suppress(FileNotFoundError):
            self.cni.collect(conflist, [])
        plan.delete_link(str(conflist["plugins"][0]["bridge"]))
        plan.drop_leases(os.path.join(self._leases, name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, f"{name}.conflist"))

    def _write(self, conflist: Json) -> None:
        path = os.path.join(self._directory, f"{conflist['name']}.conflist")
        temporary = f"{path}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
            json.dump(conflist, stream, indent=1)
        os.replace(temporary, path)

    def _shown(self, conflist: Json) -> Json:
        meta = conflist.get("wherry", {})
        parts = meta.get("subnets") or plan.conflist_subnets(conflist)
        return {
            "Name": conflist["name"], "Id": _identity(conflist), "Created": meta.get("created", ""), "Scope": "local",
            "Driver": meta.get("driver") or str(conflist["plugins"][0].get("type", "cni")),
            "EnableIPv6": any(":" in part["subnet"] for part in parts),
            "IPAM": {"Driver": "default", "Options": {}, "Config": [_ipam_row(part) for part in parts]},
            "Internal": bool(meta.get("internal")), "Attachable": False, "Ingress": False,
            "ConfigFrom": {"Network": ""}, "ConfigOnly": False,
            "Containers": {joined.container_id: _endpoint(joined) for joined in self.attached(str(conflist["name"]))},
            "Options": meta.get("options", {}), "Labels": meta.get("labels", {}),
        }

    @contextmanager
    def _locked(self) -> Iterator[None]:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(self._directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _checked_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise WherryError(Kind.INVALID, f'"{name}" is not a network name', hint="letters, digits, then also _ . -")
    if name in RESERVED:
        raise WherryError(Kind.DENIED, f'network name "{name}" is reserved')


def _settings(options: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise WherryError(Kind.INVALID, f'network option "{unknown[0]}" is not known',
                          hint=f"known: {', '.join(_OPTIONS)}")
    settings = {_OPTIONS[key]: value for key, value in options.items()}
    if "mtu" in settings and not (settings["mtu"].isdigit() and 68 <= int(settings["mtu"]) <= 65535):
        raise WherryError(Kind.INVALID, f'network option mtu: "{settings["mtu"]}" is not 68 to 65535')
    if settings.get("icc", "true") != "true":
        raise WherryError(Kind.UNSUPPORTED, "network option enable_icc=false is not built")
    if "name" in settings and not re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", settings["name"]):
        raise WherryError(Kind.INVALID, f'bridge name "{settings["name"]}" is not 1 to 15 letters, digits, _ . -')
    return settings


def _args(attachment: Attachment, extra: Mapping[str, str]) -> dict[str, str]:
    """CNI_ARGS, for plugins that do not know the capabilities; IgnoreUnknown for those that know neither."""
    pairs = {"IgnoreUnknown": "1", **extra}
    if attachment.ip:
        pairs["IP"] = attachment.ip
    if attachment.mac:
        pairs["MAC"] = attachment.mac
    if any(";" in text or "=" in text for pair in pairs.items() for text in pair):
        raise WherryError(Kind.INVALID, "a network argument holds \";\" or \"=\"")
    return pairs


def _capabilities(conflist: Json, attachment: Attachment, ports: Sequence[PortMapping]) -> dict[str, object]:
    """runtimeConfig, by the conventions document; only what is asked is given."""
    given: dict[str, object] = {}
    if ports:
        given["portMappings"] = [
            {"hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol}
            | ({"hostIP": port.host_ip} if port.host_ip else {}) for port in ports]
    if attachment.ip:
        given["ips"] = [_checked_ip(attachment.ip)]
    if attachment.mac:
        given["mac"] = attachment.mac
    if attachment.aliases:
        given["aliases"] = {conflist["name"]: list(attachment.aliases)}
    return given


def _checked_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        raise WherryError(Kind.INVALID, f'"{text}" is not an IP address') from None


def _network_result(network: str, raw: Json, ports: tuple[PortMapping, ...]) -> NetworkResult:
    inside = [(index, part) for index, part in enumerate(raw.get("interfaces", [])) if part.get("sandbox")]
    ips = raw.get("ips", [])
    interfaces = tuple(
        Interface(str(part.get("name", "")), str(part.get("mac", "")),
                  tuple(Address(ip["address"], ip.get("gateway", "")) for ip in ips
                        if ip.get("interface") in (index, None)))
        for index, part in inside)
    dns = raw.get("dns") or {}
    servers, search = tuple(dns.get("nameservers") or ()), tuple(dns.get("search") or ())
    return NetworkResult(network, interfaces, servers, search, raw, ports)


def _matches(conflist: Json, name: str) -> bool:
    return conflist["name"] == name or (len(name) >= 4 and _identity(conflist).startswith(name))


def _identity(conflist: Json) -> str:
    meta = conflist.get("wherry", {})
    return str(meta.get("id") or hashlib.sha256(f"cni\0{conflist['name']}".encode()).hexdigest())


def _ipam_row(part: Mapping[str, str]) -> dict[str, str]:
    rows = {"Subnet": part["subnet"], "Gateway": part.get("gateway", ""), "IPRange": part.get("ip_range", "")}
    return {key: value for key, value in rows.items() if value}


def _endpoint(joined: Joined) -> Json:
    result = _network_result(joined.network, joined.result or {}, ())
    interface = result.interfaces[0] if result.interfaces else Interface("")
    texts = [address.address for address in interface.addresses]
    return {"Name": "", "EndpointID": hashlib.sha256(f"{joined.network}\0{joined.container_id}".encode()).hexdigest(),
            "MacAddress": interface.mac, "IPv4Address": next((text for text in texts if ":" not in text), ""),
            "IPv6Address": next((text for text in texts if ":" in text), "")}


def _synthetic(name: str) -> Json:
    driver = {"none": "null", "host": "host"}[name]
    return {"Name": name, "Id": hashlib.sha256(f"wherry\0{name}".encode()).hexdigest(), "Created": "",
            "Scope": "local", "Driver": driver, "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Options": {}, "Config": []}, "Internal": False, "Attachable": False,
            "Ingress": False, "ConfigFrom": {"Network": ""}, "ConfigOnly": False, "Containers": {}, "Options": {},
            "Labels": {}}


def _conflists(directory: str, endings: tuple[str, ...]) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if name.endswith(endings)]


def _load(path: str) -> Json | None:
    """A list from its file; a single plugin's .conf becomes a list of one. A broken file is nobody's network."""
    try:
        with open(path, encoding="utf-8") as stream:
            conflist = json.load(stream)
    except (OSError, ValueError):
        return None
    if isinstance(conflist, dict) and "plugins" not in conflist and "type" in conflist:
        conflist = {"cniVersion": conflist.get("cniVersion", "0.2.0"), "name": conflist.get("name", ""),
                    "plugins": [conflist]}
    good = isinstance(conflist, dict) and conflist.get("name") and isinstance(conflist.get("plugins"), list)
    return conflist if good and conflist["plugins"] else None
