"""`network connect` and `network disconnect`: a container joins or leaves a network, while it runs or at rest.

Decides what is remembered for the next start, and what a running container gets at once: its interface, its default
route, the names of its peers. Everything happens under the container's lock, so no start or end comes in between.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, Json, PortMapping, RunOptions

from . import codec, events, joining, members, routing
from .house import House
from .status import folder, look
from .undo import Undo, container_lock

if TYPE_CHECKING:
    from .db import Container

__all__ = ["connect", "disconnect", "named"]

_IFNAME = "com.docker.network.endpoint.ifname"


def connect(house: House, network: str, ref: str, wish: Attachment) -> None:
    """The verb."""
    row = house.db.find(ref)
    with container_lock(house, row.id):
        row, options = _read(house, row)
        if kind := joining.mode(options):
            message = f"container {row.name} has network mode {kind} and joins no other network"
            raise WherryError(Kind.CONFLICT, message, hint="make it anew with --network NETWORK")
        if network in ("none", "host") or network.startswith("container:"):
            raise WherryError(Kind.CONFLICT, f"network {network} is joined by a container alone, and when it is made",
                              hint=f"run the container with --network {network}")
        settings = house.networks.settings(network)
        name = settings["name"]
        if any(have.network == name for have in options.network):
            raise WherryError(Kind.CONFLICT, f"container {row.name} is on network {name} already")
        wish = named(settings, wish._replace(network=name), [have.interface for have in options.network])
        with Undo() as undo:
            _remember(house, row, options, wish, undo)
            if look(house, row.id).running:
                _join(house, row, wish, undo)
        _told(house, "connect", row, settings)


def named(settings: Json, wish: Attachment, taken: Sequence[str]) -> Attachment:
    """The wish with the name of its interface: as asked, else eth or the network's own word with the next number."""
    if asked := wish.options.get(_IFNAME, ""):
        if asked in taken:
            raise WherryError(Kind.CONFLICT, f"the container has an interface {asked} already")
        return wish._replace(interface=asked)
    prefix = settings.get("prefix", "eth")
    number = next(n for n in range(len(taken) + 1) if f"{prefix}{n}" not in taken)
    return wish._replace(interface=f"{prefix}{number}")


def _read(house: House, row: Container) -> tuple[Container, RunOptions]:
    row = house.db.find(row.id)
    return row, codec.decode_options(row.config["options"])


def _remember(house: House, row: Container, options: RunOptions, wish: Attachment, undo: Undo) -> None:
    with house.db.write():  # a network that is asked for is not removed
        house.networks.settings(wish.network)
        house.db.connect(row.id, wish.network)
        _write(house, row, (*options.network, wish))
    undo.add(_forget, house, row, options, wish.network)


def _forget(house: House, row: Container, options: RunOptions, network: str) -> None:
    with house.db.write():
        house.db.disconnect(row.id, network)
        _write(house, row, tuple(have for have in options.network if have.network != network))


def _write(house: House, row: Container, networks: tuple[Attachment, ...]) -> None:
    options = codec.decode_options(row.config["options"])._replace(network=networks)
    house.db.set_config(row.id, {**row.config, "options": codec.encode(options)})


def _join(house: House, row: Container, wish: Attachment, undo: Undo) -> None:
    path, facts = joining.netns_path(house, row.id), members.load(house, row.id)
    ports = () if facts["networks"] else _published(row)
    undo.add(house.networks.detach, row.id, path, wish.network, ports, wish.interface)
    facts["networks"].append(joining.attach(house, row, path, wish, ports, default=False))
    before, new = members.load(house, row.id), members.addresses(facts["networks"][-1])
    undo.add(members.refresh, house, [wish.network])
    undo.add(routing.apply, path, before["networks"])
    undo.add(_given, house, row.id, before)
    joining.ask_anew(house, row, codec.decode_options(row.config["options"]), facts)
    _given(house, row.id, facts)
    routing.apply(path, facts["networks"])
    undo.add(functools.partial(_tell_itself, house, row, gone=new, new=()))
    _tell_itself(house, row, gone=(), new=new)
    members.refresh(house, [wish.network])


def _published(row: Container) -> tuple[PortMapping, ...]:
    return tuple(PortMapping(**port) for port in row.config["ports"])


def _given(house: House, cid: str, facts: Json) -> None:
    """Both records of what a running container has: the one of membership, and that of the run."""
    members.store(house, cid, facts)
    place = folder(house, cid)
    state = place.load()
    place.save(state._replace(extra={**state.extra, "net": facts}))


def _tell_itself(house: House, row: Container, *, gone: Sequence[str], new: Sequence[str]) -> None:
    """The container's own lines of its hosts file."""
    from wherry.net import files

    own = [files.HostEntry(tuple(new), joining.own_names(row, codec.decode_options(row.config["options"])))]
    with contextlib.suppress(OSError, WherryError):
        files.update_own(f"{house.container_dir(row.id)}/hosts", gone, own)


def disconnect(house: House, network: str, ref: str, *, force: bool = False) -> None:
    """The verb. With `force`, what a container that is gone has left on the network goes, too."""
    try:
        row = house.db.find(ref)
    except WherryError as error:
        if not force or error.kind is not Kind.NOT_FOUND or not _drop(house, network, ref):
            raise
        return
    with container_lock(house, row.id):
        row, options = _read(house, row)
        settings = _settings(house, network, force=force)
        name = settings["name"]
        wish = next((have for have in options.network if have.network == name), None)
        if wish is None or joining.mode(options):
            raise WherryError(Kind.CONFLICT, f"container {row.name} is not connected to network {name}")
        if look(house, row.id).running:
            _part(house, row, options, wish)
        elif os.path.isdir(house.state_dir(row.id)):  # ended; who cleans up after it will know this network no more
            _detach(house, row, options, wish)
        _forget(house, row, options, name)
        members.refresh(house, [name, *(have.network for have in options.network)])
        _told(house, "disconnect", row, settings)


def _settings(house: House, network: str, *, force: bool) -> Json:
    """With `force` a list of the host's that was taken away can be left, too."""
    try:
        return house.networks.settings(network)
    except WherryError as error:
        if force and error.kind is Kind.NOT_FOUND:
            return {"name": network, "id": "", "driver": ""}
        raise


def _detach(house: House, row: Container, options: RunOptions, wish: Attachment) -> None:
    ports = _published(row) if wish == options.network[0] else ()
    house.networks.detach(row.id, joining.netns_path(house, row.id), wish.network, ports, wish.interface)


def _part(house: House, row: Container, options: RunOptions, wish: Attachment) -> None:
    path, facts = joining.netns_path(house, row.id), members.load(house, row.id)
    _detach(house, row, options, wish)
    gone = [address for fact in facts["networks"] if fact["network"] == wish.network
            for address in members.addresses(fact)]  # fmt: skip
    facts["networks"] = [fact for fact in facts["networks"] if fact["network"] != wish.network]
    if wish == options.network[0] and row.config["ports"] and facts["networks"]:
        _move_ports(house, row, options.network[1], facts)
    joining.ask_anew(house, row, options, facts)
    _given(house, row.id, facts)
    routing.apply(path, facts["networks"])
    _tell_itself(house, row, gone=gone, new=())


def _move_ports(house: House, row: Container, wish: Attachment, facts: Json) -> None:
    """What was published on the network that is left is published on the next: it is joined anew, with what it had."""
    path, fact = joining.netns_path(house, row.id), facts["networks"][0]
    have = members.addresses(fact)
    four, six = (next((text for text in have if (":" in text) is kind), "") for kind in (False, True))
    mac = next((interface["mac"] for interface in fact["interfaces"]), "")
    house.networks.detach(row.id, path, wish.network, (), wish.interface)
    again = wish._replace(ip=four or six, ip6=six if four else "", mac=mac)
    try:
        made = joining.attach(house, row, path, again, _published(row), default=False)
    except WherryError as error:
        house.warn(f"network {wish.network} does not publish the ports of container {row.name}: {error.message}")
        made = joining.attach(house, row, path, again, (), default=False)
    facts["networks"][0] = made


def _drop(house: House, network: str, ref: str) -> bool:
    """Take away what is left of a container that no row tells of."""
    pods = house.db.pod_ids()  # theirs are no leftovers
    found = [left for left in house.networks.attached(network)
             if left.container_id.startswith(ref) and left.container_id not in pods]  # fmt: skip
    for left in found:
        house.networks.detach(left.container_id, left.netns, left.network, interface=left.ifname)
    return bool(found)


def _told(house: House, action: str, row: Container, settings: Json) -> None:
    attributes = {"container": row.id, "name": settings["name"], "type": settings["driver"]}
    events.emit(house, "network", action, settings["id"], attributes)
