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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Address, Attachment, Interface, Json, NetworkResult, Place, PortMapping
from wherry.net import kept, wishes
from wherry.net import subnets as plan
from wherry.net.cni import Cni, Joined
from wherry.net.cniconf import Directory
from wherry.net.ports import PortBook

__all__ = ["DEFAULT", "HOST", "RESERVED", "Networks", "Subnet"]

Rows = list[Json]  # inside the class, `list` is a verb
Joins = list[Joined]
Names = list[str]

DEFAULT = "bridge"
HOST = "cni:"  # before a name: a list of the host's, though one of ours is called so
RESERVED = ("none", "host", "container", "default")
_NEVER = "0001-01-01T00:00:00Z"  # of what was not made: a time in Go, where there is none
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
_CNI_VERSION = "1.1.0"
_OWN_GATEWAY = ("bridge", "overlay")
_BUILT_IN = ("bridge", "host", "none")
_MTU_SIX = 1280  # RFC 8200, 5


class Subnet(NamedTuple):
    """One subnet as asked: "10.1.0.0/24"; gateway and ip_range "" leave the choice to us. `aux`: names to addresses
    that are never given out."""

    subnet: str
    gateway: str = ""
    ip_range: str = ""
    aux: Mapping[str, str] = {}


class Networks:
    """The networks of one wherry."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._directory = os.path.join(place.root, "networks")
        self._leases = os.path.join(place.state, "cni", "leases")
        self._ports = PortBook(os.path.join(place.state, "ports"))
        self._tag = "" if place.root == Place().root else hashlib.sha256(os.fsencode(place.root)).hexdigest()[:8]
        self._lists = (Directory(self._directory, (".conflist",)), Directory(place.cni_conf))
        self.cni = Cni(place)

    def create(self, name: str, driver: str = "bridge", subnets: Sequence[Subnet] = (),
               options: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None, *,
               internal: bool = False, ipv4: bool = True, ipv6: bool = False, attachable: bool = False,
               ipam: str = "", ipam_options: Mapping[str, str] | None = None) -> Json:
        """Make a network and show it (docker's inspect shape). Without `ipv4` it has IPv6 only."""
        from wherry.net import drivers

        _checked_name(name)
        drivers.find(driver, self._place.cni_conf)
        if not (ipv4 or ipv6 or any(":" in wish.subnet for wish in subnets)):
            raise WherryError(Kind.INVALID, f"network {name} would have neither IPv4 nor IPv6", hint="add --ipv6")
        chosen = drivers.ipam_settings(ipam, ipam_options or {})
        with self._locked():
            if self._named(name) is not None or name == DEFAULT:
                raise WherryError(Kind.EXISTS, f"network {name} exists already")
            self._write(self._conflist(name, driver, subnets, options or {}, labels or {}, internal=internal,
                                       families=(ipv4, ipv6), ipam=chosen, attachable=attachable))
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
            kept.stop_all(self._place.state, self._table)
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
               ports: Sequence[PortMapping] = (), args: Mapping[str, str] | None = None, *,
               dns: Mapping[str, Sequence[str]] | None = None, default: bool = True) -> NetworkResult:
        """Join one network. `ports` are claimed first; the granted ones are in the result. All or nothing.

        `dns`: servers, searches and options for plugins that want them. Without `default` the container's default route
        is another network's (a list of the host's makes its routes as it says).
        """
        conflist = self._for_attachment(self._get(attachment.network), attachment, bool(ports))
        self._collect_once_a_boot()
        if not default and "wherry" in conflist:
            from wherry.net.drivers import without_default

            conflist = without_default(conflist)
        given = wishes.capabilities(conflist, attachment, (), dns or {})  # what is refused, is before a port is taken
        granted = self._ports.claim(container_id, ports if wishes.declares(conflist, "portMappings") else ())
        try:
            raw = self.cni.add(conflist, container_id, netns_path, attachment.interface,
                               args=wishes.arguments(conflist, attachment, args or {}),
                               capabilities=given | wishes.port_mappings(granted))
        except BaseException:
            if granted:
                self._ports.release(container_id)
            raise
        if "wherry" not in conflist:
            self._note_use(str(conflist["name"]))
        return _network_result(str(conflist["name"]), raw, granted, _routed(conflist, raw))

    def detach(self, container_id: str, netns_path: str, network: str, ports: Sequence[PortMapping] = (),
               interface: str = "eth0") -> None:
        """Leave one network. Done already, the namespace gone, or the network gone: success."""
        name = DEFAULT if network in ("", "default") else network
        conflist = self._named(name)  # whole: a network that has gone must not be taken for one whose id begins so
        name = name.removeprefix(HOST)
        if conflist is not None:
            conflist = self._for_attachment(conflist, Attachment(name), bool(ports))
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

    def host_lists(self) -> Names:
        """The host's CNI lists as HOST and their names, in the order of their files; unusable files are left out."""
        return [f"{HOST}{conflist['name']}" for conflist in self._lists[1].lists()]

    def problems(self) -> Names:
        """Why files of the host's directory are no CNI configuration, as last seen."""
        return [f"{path} is no CNI configuration: {why}" for path, why in self._lists[1].problems().items()]

    def probe(self, name: str) -> None:
        """Raise unless the network could be joined now, as far as can be told: its plugins are there, and those of a
        list of the host's are asked (STATUS)."""
        conflist = self._get(name)
        ours = "wherry" in conflist
        for plugin in conflist["plugins"]:
            self.cni.find(str(plugin.get("type", "")), ours=ours)
        if not ours:
            self.cni.status(conflist)

    def settings(self, name: str) -> Json:
        """What is known of a network by name or id without looking who is on it: name, id, driver, bridge, publishes
        (whether its plugins publish ports), capabilities (all that they declare), icc (members reach each other),
        isolate (others do not reach them); and of one of ours what it was told: internal, subnets, prefix, host_ip."""
        conflist = self._get(name)
        first = conflist["plugins"][0]
        return {"subnets": [], **conflist.get("wherry", {}), "name": str(conflist["name"]), "id": _identity(conflist),
                "driver": _driver(conflist), "bridge": str(first.get("bridge", "")),
                "icc": not first.get("portIsolation"), "isolate": bool(first.get("isolate")),
                "publishes": wishes.declares(conflist, "portMappings"),
                "capabilities": {key for plugin in conflist["plugins"] for key in plugin.get("capabilities") or {}
                                 if wishes.declares(conflist, key)}}

    def collect(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """GC of our own networks and of those lists of the host that were ever used, or of `names`: the plugins drop
        what belongs to no attachment that is remembered. Returns the networks where it failed, and why."""
        used = set(_listed(os.path.join(self._directory, "used")))
        names = None if names is None else set(names)
        failed = {}
        for conflist in self._all() if names is None or names else ():
            name = str(conflist["name"])
            if ("wherry" in conflist or name in used) and (names is None or name in names):
                try:
                    self.cni.collect(conflist)
                except WherryError as error:
                    failed[name] = error.message
        return failed

    def _collect_once_a_boot(self) -> None:
        """`collect`, before the first ADD after a boot: the reset has taken what STATE knew, but not what a plugin of
        the host's keeps on a disk. Of ours nothing is left, unless STATE is on a disk as well."""
        note = os.path.join(self._place.state, "cni", "boot")
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            boot = stream.read()
        with contextlib.suppress(OSError), open(note, encoding="ascii") as stream:
            if stream.read() == boot:
                return
        outlived = os.path.isdir(os.path.join(self._place.state, "cni", "results"))
        self.collect(None if outlived else _listed(os.path.join(self._directory, "used")))
        os.makedirs(os.path.dirname(note), mode=0o700, exist_ok=True)
        files.atomic_write(note, boot.encode(), 0o600)

    def _note_use(self, name: str) -> None:
        """A list of the host's that was used once has to be collected after a crash."""
        path = os.path.join(self._directory, "used", name)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def attached(self, network: str = "") -> Joins:
        """What is attached now, as remembered below STATE."""
        return [joined for joined in self.cni.remembered() if network in ("", joined.network)]

    def sweep(self, living: Iterable[str]) -> Names:
        """Detach what a crash left: every attachment and port of ids that are not `living`. Returns those ids. Each has
        its turn; the first failure (a plugin that is not installed any more, say) is raised at the end."""
        alive = set(living)
        self.cni.tidy()
        return self._detach_all(lambda one: one not in alive)

    def drop(self, container_id: str) -> None:
        """Detach all that a crash left of one."""
        self._detach_all(lambda one: one == container_id)

    def _detach_all(self, is_dead: Callable[[str], bool]) -> Names:
        dead = set()
        problem: WherryError | None = None
        for joined in self.cni.remembered():
            if is_dead(joined.container_id):
                try:
                    self.detach(joined.container_id, joined.netns, joined.network, interface=joined.ifname)
                except WherryError as refused:
                    problem = problem or refused
                dead.add(joined.container_id)
        for holder in filter(is_dead, self._ports.holders()):
            self._ports.release(holder)
            dead.add(holder)
        if problem is not None:
            raise problem
        return sorted(dead)

    def gateway(self, network: str) -> str:
        """The host's address on the network (for host-gateway); "" where it has none."""
        if network in RESERVED:
            return ""
        meta = self._get(network).get("wherry", {})
        return next((str(part["gateway"]) for part in meta.get("subnets", []) if part.get("gateway")), "")

    def responder(self, network: str) -> tuple[str, bool] | None:
        """(nft table, internal) of a network of ours that has this host as its gateway, so that we can answer DNS
        there; None for any other."""
        conflist = self._own(DEFAULT if network in ("", "default") else network)
        if conflist is None or conflist["plugins"][0]["type"] not in _OWN_GATEWAY:
            return None
        return self._table, bool(conflist.get("wherry", {}).get("internal"))

    # -- the lists ----------------------------------------------------------------------------------------------

    def _default(self) -> Json:
        found = self._own(DEFAULT)
        if found is not None:
            return found
        with self._locked():
            found = self._own(DEFAULT)
            if found is None:
                self._write(self._conflist(DEFAULT, "bridge", (), {}, {}))
        return self._own(DEFAULT) or found or {}

    def _get(self, name: str) -> Json:
        if name in ("", "default", DEFAULT):
            return self._default()
        found = self._find(name)
        if found is None:
            raise WherryError(Kind.NOT_FOUND, f"network {name} not found", hint=self._not_found())
        return found

    def _not_found(self) -> str:
        broken = [f"{path} is no CNI configuration: {why}" for directory in self._lists
                  for path, why in directory.problems().items()]
        return "; ".join([*broken, "wherry network ls shows what there is"])

    def _find(self, name: str) -> Json | None:
        if name in ("", "default"):
            name = DEFAULT
        exact = self._named(name)
        matching = [] if exact else [conflist for conflist in self._all() if _matches(conflist, name)]
        if len(matching) > 1:
            raise WherryError(Kind.INVALID, f"network id prefix {name} is ambiguous")
        return exact or next(iter(matching), None)

    def _named(self, name: str) -> Json | None:
        """By its whole name."""
        if name.startswith(HOST):
            return next((found for found in self._lists[1].lists() if found["name"] == name.removeprefix(HOST)), None)
        return self._own(name) or next((conflist for conflist in self._all() if conflist["name"] == name), None)

    def _own(self, name: str) -> Json | None:
        return self._lists[0].get(f"{name}.conflist") if re.fullmatch(_NAME, name) else None

    def _all(self) -> Rows:
        found: dict[str, Json] = {}
        for directory in self._lists:
            for conflist in directory.lists():
                found.setdefault(str(conflist["name"]), conflist)
        return [*found.values()]

    def _conflist(self, name: str, driver: str, asked: Sequence[Subnet], options: Mapping[str, str],
                  labels: Mapping[str, str], *, internal: bool = False, families: tuple[bool, bool] = (True, False),
                  ipam: tuple[str, Mapping[str, str]] = ("host-local", {}), attachable: bool = False) -> Json:
        from wherry.net import drivers

        settings = drivers.settings(driver, options, internal=internal)
        own = self._bridge_name(name)
        plan.delete_idle_bridge(own)  # a deleted ROOT's at the same path: with its address, and its subnet in use
        keep = self._theirs(settings.get("bridge", ""))
        chosen = self._subnets(name, driver, asked, families, settings) if ipam[0] != "none" else []
        if any(":" in part["subnet"] for part in chosen) and int(settings.get("mtu", _MTU_SIX)) < _MTU_SIX:
            raise WherryError(Kind.INVALID, f"network {name}: IPv6 needs an MTU of {_MTU_SIX}",
                              hint="a larger mtu, or IPv4 only")
        wish = drivers.Wish(name, self._table, own, self._leases, chosen, settings, internal, *ipam)
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        identity = hashlib.sha256(f"{self._place.root}\0{name}\0{created}".encode()).hexdigest()
        meta: Json = {"id": identity, "created": created, "driver": driver, "labels": dict(labels),
                      "options": dict(options), "internal": internal, "subnets": chosen, "ipam": ipam[0],
                      "ipamOptions": dict(ipam[1]), "attachable": attachable, "keepBridge": keep}
        meta |= {key: settings[key] for key in ("prefix", "host_ip", "no_default_route") if key in settings}
        return {"cniVersion": _CNI_VERSION, "name": name, "loadOnlyInlinedPlugins": True,
                "plugins": drivers.DRIVERS[driver].plugins(wish), "wherry": meta}

    def _theirs(self, bridge: str) -> bool:
        """Whether a bridge asked for by name is there already, so it stays when the network goes; another network's is
        refused."""
        for conflist in self._all() if bridge else ():
            if any(plugin.get("bridge") == bridge for plugin in conflist["plugins"]):
                raise WherryError(Kind.CONFLICT, f"bridge {bridge} is network {conflist['name']}'s")
        return bool(bridge) and plan.link_exists(bridge)

    def _subnets(self, name: str, driver: str, asked: Sequence[Subnet], families: tuple[bool, bool],
                 settings: Mapping[str, str]) -> Rows:
        from wherry.net import drivers

        taken = [net for conflist in self._all() for net in plan.conflist_networks(conflist)]
        if not drivers.DRIVERS[driver].shares:
            taken += plan.host_networks()
        if driver == "overlay" and not asked:
            asked = [Subnet(text) for text in drivers.peers_subnets(settings["peers"], settings.get("address", ""))]
            families = (False, False)
        made: Rows = []
        for wish in asked:
            made.append(plan.checked(wish.subnet, wish.gateway, wish.ip_range, taken, wish.aux))
            taken.append(ipaddress.ip_network(wish.subnet))
        have = {ipaddress.ip_network(part["subnet"]).version for part in made}
        if families[0] and 4 not in have:
            made.insert(0, plan.choose([*taken, *plan.host_networks()], self._tag, default=name == DEFAULT))
        if families[1] and 6 not in have:
            made.append(plan.choose_v6(f"{self._place.root}\0{name}"))
        return made

    @property
    def _table(self) -> str:
        return f"wherry_{self._tag}" if self._tag else "wherry"

    def _bridge_name(self, name: str) -> str:
        if name == DEFAULT and not self._tag:
            return "wherry0"
        return "wh-" + hashlib.sha256(f"{self._place.root}\0{name}".encode()).hexdigest()[:12]  # IFNAMSIZ - 1 in all

    def _for_attachment(self, conflist: Json, attachment: Attachment, with_ports: bool) -> Json:
        """Our own lists lose portmap where nothing is published, for each plugin is a process, and get bandwidth where
        that is asked for."""
        if "wherry" not in conflist:
            return conflist
        plugins = [part for part in conflist["plugins"] if with_ports or part["type"] != "portmap"]
        if any(key.startswith("bandwidth.") for key in attachment.options):
            plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
        return {**conflist, "plugins": plugins}

    def _remove(self, conflist: Json) -> None:
        name = str(conflist["name"])
        users = sorted({joined.container_id[:12] for joined in self.attached(name)})
        if users:
            raise WherryError(Kind.CONFLICT, f"network {name} is in use by container {', '.join(users)}",
                              hint="disconnect or remove the container first")
        kept.stop(self._place.state, name, self._table)
        with contextlib.suppress(FileNotFoundError):
            last = [{**plugin, "networkRemoved": True} for plugin in conflist["plugins"]]
            self.cni.collect({**conflist, "plugins": last}, [])
        if (bridge := conflist["plugins"][0].get("bridge")) and not conflist["wherry"].get("keepBridge"):
            plan.delete_link(str(bridge))
        plan.drop_leases(os.path.join(self._leases, name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, f"{name}.conflist"))

    def _write(self, conflist: Json) -> None:
        path = os.path.join(self._directory, f"{conflist['name']}.conflist")
        temporary = f"{path}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
            stream.write(json.dumps(conflist, indent=1))
        os.replace(temporary, path)

    def _shown(self, conflist: Json) -> Json:
        meta = conflist.get("wherry", {})
        parts = meta.get("subnets") or plan.conflist_subnets(conflist)
        return {
            "Name": conflist["name"], "Id": _identity(conflist), "Created": meta.get("created") or _NEVER,
            "Scope": "local",
            "Driver": _driver(conflist), "EnableIPv4": any(":" not in part["subnet"] for part in parts),
            "EnableIPv6": any(":" in part["subnet"] for part in parts),
            "IPAM": {"Driver": _ipam_name(conflist), "Options": meta.get("ipamOptions", {}),
                     "Config": [_ipam_row(part) for part in parts]},
            "Internal": bool(meta.get("internal")), "Attachable": bool(meta.get("attachable")), "Ingress": False,
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


def _routed(conflist: Json, raw: Json) -> bool:
    """Whether the gateway of a network leads out. Of a list of the host's its routes tell."""
    meta = conflist.get("wherry")
    if meta is None:
        return any(route["dst"] in ("0.0.0.0/0", "::/0") for route in raw.get("routes") or ())
    return not (meta.get("internal") or meta.get("no_default_route") == "true")


def _driver(conflist: Json) -> str:
    return str(conflist.get("wherry", {}).get("driver") or conflist["plugins"][0].get("type", "cni"))


def _ipam_name(conflist: Json) -> str:
    """docker's word for the usual one."""
    name = conflist.get("wherry", {}).get("ipam", "host-local")
    return {"host-local": "default", "none": "null"}.get(name, str(name))


def _network_result(network: str, raw: Json, ports: tuple[PortMapping, ...], routed: bool = True) -> NetworkResult:
    inside = [(index, part) for index, part in enumerate(raw.get("interfaces") or []) if part.get("sandbox")]
    ips = raw.get("ips") or []
    interfaces = tuple(
        Interface(part.get("name") or "", part.get("mac") or "",
                  tuple(Address(ip["address"], ip.get("gateway") or "") for ip in ips
                        if ip.get("interface") in (index, None)))
        for index, part in inside)
    dns = raw.get("dns") or {}
    servers, search = tuple(dns.get("nameservers") or ()), tuple(dns.get("search") or ())
    return NetworkResult(network, interfaces, servers, search, raw, ports, routed)


def _matches(conflist: Json, name: str) -> bool:
    return conflist["name"] == name or (len(name) >= 4 and _identity(conflist).startswith(name))


def _identity(conflist: Json) -> str:
    meta = conflist.get("wherry", {})
    return str(meta.get("id") or hashlib.sha256(f"cni\0{conflist['name']}".encode()).hexdigest())


def _ipam_row(part: Json) -> Json:
    rows = {"Subnet": part["subnet"], "Gateway": part.get("gateway", ""), "IPRange": part.get("ip_range", ""),
            "AuxiliaryAddresses": part.get("aux")}
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
    return {"Name": name, "Id": hashlib.sha256(f"wherry\0{name}".encode()).hexdigest(), "Created": _NEVER,
            "Scope": "local", "Driver": driver, "EnableIPv4": True, "EnableIPv6": False,
            "IPAM": {"Driver": "default", "Options": {}, "Config": []}, "Internal": False, "Attachable": False,
            "Ingress": False, "ConfigFrom": {"Network": ""}, "ConfigOnly": False, "Containers": {}, "Options": {},
            "Labels": {}}


def _listed(directory: str) -> Names:
    try:
        return os.listdir(directory)
    except OSError:
        return []
