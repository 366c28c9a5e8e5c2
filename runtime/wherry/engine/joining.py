"""A container's network side: its namespace, its attachments and ports, and the three files that speak of them.

Decides what each --network means at start and what is undone at the end. Who else must know is members.py's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, Json, PortMapping, RunOptions

from . import cleanup, codec, keeping, members
from .house import House
from .undo import Undo

if TYPE_CHECKING:
    from wherry.model import NetworkResult

    from .db import Container

__all__ = ["Joined", "ask_anew", "attach", "be_gone", "join", "leave", "mode", "netns_path", "refresh_peers"]


class Joined(NamedTuple):
    """What the launch needs of it. `namespace`: None the host's, "" a new empty one, else a path to join."""

    namespace: str | None
    files: Mapping[str, str] = {}
    facts: Mapping[str, Any] = {}


def mode(options: RunOptions) -> str:
    """none, host, container:ID, pod:ID, or "" for real networks."""
    first = options.network[0].network if options.network else ""
    return first if first in ("none", "host") or first.startswith(("container:", "pod:")) else ""


def netns_path(house: House, cid: str) -> str:
    """Where a container's network namespace is pinned."""
    return f"{house.place.state}/netns/{cid}"


def join(house: House, row: Container, options: RunOptions, undo: Undo) -> Joined:
    """Make the network side. The state directory exists; undos are added as things come to be."""
    kind = mode(options)
    if kind.startswith("container:"):
        return _share(house, kind.partition(":")[2])
    facts: Json = {"mode": kind or "cni", "networks": [], "domain": options.domainname}
    if not kind:
        _attach(house, row, options, facts, undo)
        facts["nameserver"], facts["upstreams"] = _asked(house, options, facts)
    facts["resolv"] = _resolv(options, facts, same=kind == "host")
    members.store(house, row.id, facts)
    files = _write_files(house, row, options, facts)
    refresh_peers(house, options)  # before the launch: the first look-up of the new process must find its peers
    return Joined({"host": None, "none": ""}.get(kind, netns_path(house, row.id)), files, facts)


def _share(house: House, other: str) -> Joined:
    from .status import look

    target = house.db.find(other)
    if not look(house, target.id).running:
        raise WherryError(Kind.CONFLICT, f"cannot join network of a non running container: {target.name}")
    names = {"/etc/hosts": "hosts", "/etc/hostname": "hostname", "/etc/resolv.conf": "resolv.conf"}
    folder = house.container_dir(target.id)
    files = {inside: f"{folder}/{name}" for inside, name in names.items() if os.path.exists(f"{folder}/{name}")}
    return Joined(f"container:{target.id}", files)


def _attach(house: House, row: Container, options: RunOptions, facts: Json, undo: Undo) -> None:
    from wherry.net import netns

    path = netns_path(house, row.id)
    netns.remove(path)
    netns.create(path)
    undo.add(netns.remove, path)
    published = tuple(PortMapping(**port) for port in row.config["ports"])
    alone = len(options.network) < 2
    for index, attachment in enumerate(options.network):
        ports = published if index == 0 else ()
        undo.add(house.networks.detach, row.id, path, attachment.network, ports, attachment.interface)
        facts["networks"].append(attach(house, row, path, attachment, ports, default=alone))
    if not alone:
        from . import routing

        routing.apply(path, facts["networks"])


def attach(
    house: House, row: Container, path: str, attachment: Attachment, ports: tuple[PortMapping, ...], *, default: bool
) -> Json:
    """Join one network; what it gave. Where no address is left, those that a command before us has still to give back
    are worth waiting for. Without `default` the default route is left to `routing`."""
    options = codec.decode_options(row.config["options"])
    dns = {"servers": options.dns, "searches": options.dns_search, "options": options.dns_option}

    def once() -> NetworkResult:
        args = {"K8S_POD_NAME": row.name}
        with keeping.room_for(house, ports):
            return house.networks.attach(row.id, path, attachment, ports, args, dns=dns, default=default)

    try:
        return _fact(once(), attachment)
    except WherryError as error:
        if error.kind is not Kind.EXHAUSTED:
            raise
    cleanup.await_rest(house, row.id)
    return _fact(once(), attachment)


def _fact(result: NetworkResult, attachment: Attachment) -> Json:
    return {
        "network": result.network,
        "ifname": attachment.interface,
        "aliases": list(attachment.aliases),
        "routed": result.routed,
        "priority": attachment.priority,
        "interfaces": [
            {"name": i.name, "mac": i.mac, "addresses": [[a.address, a.gateway] for a in i.addresses]}
            for i in result.interfaces
        ],
        "dns": list(result.dns),
        "search": list(result.search),
        "ports": [codec.encode(port) for port in result.ports],
    }


# ---- files ----


def _write_files(house: House, row: Container, options: RunOptions, facts: Json) -> dict[str, str]:
    from wherry.net import files

    folder = house.container_dir(row.id)
    host = facts["mode"] == "host"
    gateway = house.networks.gateway(options.network[0].network) if facts["networks"] else ""
    name = row.config["hostname"]
    own = [files.HostEntry(tuple(members.addresses(fact)), own_names(row, options)) for fact in facts["networks"]]
    texts = {
        "/etc/hostname": files.hostname_file(name),
        "/etc/hosts": files.hosts_file(own, options.add_host, gateway),
        "/etc/resolv.conf": facts["resolv"],
    }
    if host:
        texts["/etc/hosts"] = _host_hosts(options)
    written = {}
    for inside, text in texts.items():
        path = f"{folder}/{inside.rpartition('/')[2]}"
        _write(path, text)
        written[inside] = path
    return written


def own_names(row: Container, options: RunOptions) -> tuple[str, ...]:
    """What a container calls itself."""
    name = row.config["hostname"]
    return (f"{name}.{options.domainname}", name) if options.domainname else (name,)


def _asked(house: House, options: RunOptions, facts: Json) -> tuple[str, tuple[str, ...]]:
    """The server that the container asks, "" for those of its file, and whom that one asks for it, () for the host's.

    A loopback address that was asked for means the container itself: no responder of the host's could ask there.
    """
    from wherry.net import files

    wanted = options.dns or tuple(server for fact in facts["networks"] for server in fact["dns"])
    if any(map(files.is_loopback, wanted)):
        return "", ()
    found = (keeping.nameserver(house, fact["network"], members.gateways(fact)) for fact in facts["networks"])
    return next(filter(None, found), ""), wanted


def _resolv(options: RunOptions, facts: Json, *, same: bool) -> str:
    from wherry.net import files

    ours = facts.get("nameserver")
    dns = (ours,) if ours else options.dns or tuple(server for fact in facts["networks"] for server in fact["dns"])
    search = options.dns_search or tuple(word for fact in facts["networks"] for word in fact["search"])
    return files.resolv_conf(files.host_resolv_conf(), dns, search, options.dns_option, same_namespace=same)


def ask_anew(house: House, row: Container, options: RunOptions, facts: Json) -> None:
    """After its networks changed: whom the container asks for names. A file that somebody edited stays as it is; that
    the host's changed meanwhile is no edit."""
    from wherry.net import files

    before = facts["resolv"]
    facts["nameserver"], facts["upstreams"] = _asked(house, options, facts)
    after, path = _resolv(options, facts, same=False), f"{house.container_dir(row.id)}/resolv.conf"
    with contextlib.suppress(OSError, WherryError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            untouched = files.read_bytes(fd) == before.encode("utf-8", "surrogateescape")
        finally:
            os.close(fd)
        if untouched and after != before:
            _write(path, after)
            facts["resolv"] = after


def _host_hosts(options: RunOptions) -> str:
    from wherry.net import files

    try:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        text = files.hosts_file(())
    added = [line for entry in options.add_host for line in files.parse_add_host(entry, "127.0.0.1").lines()]
    return text + "".join(f"{line}\n" for line in added)


def _write(path: str, text: str) -> None:
    """Write in place: a file that is bound somewhere keeps its inode."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.truncate()


# ---- the end, and the peers ----


def leave(house: House, row: Container, options: RunOptions) -> None:
    """Detach and unpin; all of it idempotent, all of it tried."""
    if mode(options):
        return
    from wherry.net import netns

    path = netns_path(house, row.id)
    first: Exception | None = None
    for index, attachment in enumerate(options.network):
        ports = tuple(PortMapping(**port) for port in row.config["ports"]) if index == 0 else ()
        try:
            house.networks.detach(row.id, path, attachment.network, ports, attachment.interface)
        except WherryError as error:
            first = first or error
    netns.remove(path)
    if first is not None:
        raise first


def be_gone(house: House, cid: str, options: RunOptions) -> None:
    """A member no more, and its peers know."""
    members.forget(house, cid)
    refresh_peers(house, options)


def named_networks(options: RunOptions) -> list[str]:
    """The networks on which names are told: all of them, the default one too, where docker tells none."""
    return [] if mode(options) else [a.network for a in options.network]


def refresh_peers(house: House, options: RunOptions) -> None:
    """Rewrite the hosts files of every member of the container's named networks, its own included, and what their
    responders know."""
    members.refresh(house, named_networks(options))
