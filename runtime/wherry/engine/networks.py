"""Network verbs. Decides that a network which a container asks for stays; the rest is net/'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import cleanup, events, filters
from .house import House

if TYPE_CHECKING:
    from wherry.net.networks import Subnet

__all__ = ["Ranges", "create", "inspect", "listing", "prune", "remove"]

Filters = Mapping[str, Sequence[str]]
_FILTERS = ("name", "id", "driver", "label", "type", "scope", "dangling")


class Ranges(NamedTuple):
    """The addresses of a network as asked: lists whose members belong to the subnet that holds them."""

    subnets: Sequence[str]
    gateways: Sequence[str] = ()
    ip_ranges: Sequence[str] = ()
    aux: Mapping[str, str] = {}


def create(  # noqa: PLR0917  # the facade's keywords, in order
    house: House, name: str, driver: str, ranges: Ranges, options: Mapping[str, str], labels: Mapping[str, str], *,
    internal: bool, attachable: bool, families: tuple[bool, bool], ipam: tuple[str, Mapping[str, str]],
) -> str:  # fmt: skip
    """`network create`."""
    house.prepare()
    made = house.networks.create(
        name, driver, _subnets(ranges), options, labels, internal=internal, attachable=attachable, ipv4=families[0],
        ipv6=families[1], ipam=ipam[0], ipam_options=ipam[1],
    )  # fmt: skip
    events.emit(house, "network", "create", made["Id"], {"name": name, "type": driver})
    return str(made["Id"])


def _subnets(ranges: Ranges) -> list[Subnet]:
    """Each gateway, range and auxiliary address with its subnet; one that no subnet holds is refused."""
    from wherry.net.networks import Subnet

    given = (("gateway", ranges.gateways), ("ip-range", ranges.ip_ranges), ("aux-address", ranges.aux.values()))
    for what, texts in given:
        for text in texts:
            if not any(_holds(net, text, what) for net in ranges.subnets):
                raise WherryError(Kind.INVALID, f"{what} {text} is in no subnet", hint="give its subnet with --subnet")
    return [
        Subnet(
            net,
            next((text for text in ranges.gateways if _holds(net, text, "gateway")), ""),
            next((text for text in ranges.ip_ranges if _holds(net, text, "ip-range")), ""),
            {key: text for key, text in ranges.aux.items() if _holds(net, text, "aux-address")},
        )
        for net in ranges.subnets
    ]


def _holds(net: str, text: str, what: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(text.partition("/")[0]) in ipaddress.ip_network(net, strict=False)
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"invalid subnet or {what}: {error}") from error


def _matches(house: House, network: Json, wanted: Filters) -> bool:
    filters.check(wanted, _FILTERS)
    checks = {
        "name": lambda v: filters.named(v, network["Name"]),
        "id": lambda v: any(network["Id"].startswith(text) for text in v),
        "driver": lambda v: network["Driver"] in v,
        "label": lambda v: filters.labels(v, network["Labels"]),
        "type": lambda v: ("builtin" if network["Name"] in ("bridge", "host", "none") else "custom") in v,
        "scope": lambda v: "local" in v,
        "dangling": lambda v: (v[0].lower() in ("true", "1")) == (not house.db.network_users(network["Name"])),
    }
    return all(checks[name](values) for name, values in wanted.items())


def listing(house: House, wanted: Filters) -> list[Json]:
    """`network ls`."""
    house.prepare()
    found = [network for network in house.networks.list() if _matches(house, network, wanted)]
    return sorted(found, key=lambda network: str(network["Name"]))


def inspect(house: House, name: str) -> Json:
    """`network inspect`: with the names of the containers on it."""
    house.prepare()
    network = house.networks.inspect(name)
    for cid, endpoint in network["Containers"].items():
        row, pod = house.db.container(cid), house.db.pod(cid)
        endpoint["Name"] = row.name if row else f"{pod.namespace}/{pod.name}" if pod else ""
    return network


def remove(house: House, name: str, *, force: bool) -> None:
    """`network rm`."""
    cleanup.await_rest(house)
    try:
        with house.db.write():  # nobody can ask for it meanwhile
            network = house.networks.inspect(name)
            users = [row.name for cid in house.db.network_users(network["Name"]) if (row := house.db.container(cid))]
            if users:
                hint = "remove the containers that use it first"
                message = f"network {network['Name']} is in use by {', '.join(users)}"
                raise WherryError(Kind.CONFLICT, message, hint=hint)
            house.networks.remove(network["Name"])
    except WherryError as error:
        if not (force and error.kind is Kind.NOT_FOUND):
            raise
        return
    events.emit(house, "network", "destroy", network["Id"], {"name": network["Name"], "type": network["Driver"]})


def prune(house: House, wanted: Filters) -> Json:
    """`network prune`: custom networks of ours that no container asks for, but for that of pods to come."""
    deleted = []
    chosen = {key: values for key, values in wanted.items() if key == "label"}
    for network in listing(house, {**chosen, "type": ["custom"], "dangling": ["true"]}):
        if network["Name"] == house.settings.pod_network:
            continue
        try:
            remove(house, network["Name"], force=True)
        except WherryError as error:
            if error.kind not in (Kind.CONFLICT, Kind.DENIED):
                raise
            continue
        deleted.append(network["Name"])
    return {"NetworksDeleted": deleted}
