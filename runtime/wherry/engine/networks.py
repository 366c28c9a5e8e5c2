"""Network verbs. Decides that a network which a container asks for stays; the rest is net/'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import cleanup, events, filters
from .house import House

__all__ = ["create", "inspect", "listing", "prune", "remove"]

Filters = Mapping[str, Sequence[str]]
_FILTERS = ("name", "id", "driver", "label", "type", "scope", "dangling")


def create(  # noqa: PLR0917  # the facade's keywords, in order
    house: House,
    name: str,
    driver: str,
    subnets: Sequence[str],
    gateways: Sequence[str],
    ip_ranges: Sequence[str],
    internal: bool,
    ipv6: bool,
    options: Mapping[str, str],
    labels: Mapping[str, str],
) -> str:
    """`network create`: each gateway and range goes to the subnet that holds it."""
    from wherry.net.networks import Subnet

    house.prepare()
    wishes = [Subnet(net, _inside(net, gateways, "gateway"), _inside(net, ip_ranges, "ip range")) for net in subnets]
    made = house.networks.create(name, driver, wishes, options, labels, internal=internal, ipv6=ipv6)
    _all_used(subnets, [*gateways, *ip_ranges])
    events.emit(house, "network", "create", made["Id"], {"name": name, "type": driver})
    return str(made["Id"])


def _all_used(subnets: Sequence[str], given: Sequence[str]) -> None:
    if given and not subnets:
        raise WherryError(Kind.INVALID, "every ip-range or gateway must have a corresponding subnet")


def _inside(net: str, given: Sequence[str], what: str) -> str:
    import ipaddress

    try:
        subnet = ipaddress.ip_network(net, strict=False)
        inside = [text for text in given if ipaddress.ip_address(text.partition("/")[0]) in subnet]
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"invalid subnet or {what}: {error}") from error
    return inside[0] if inside else ""


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
        row = house.db.container(cid)
        endpoint["Name"] = row.name if row else ""
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
    """`network prune`: custom networks of ours that no container asks for."""
    deleted = []
    chosen = {key: values for key, values in wanted.items() if key == "label"}
    for network in listing(house, {**chosen, "type": ["custom"], "dangling": ["true"]}):
        try:
            remove(house, network["Name"], force=True)
        except WherryError as error:
            if error.kind not in (Kind.CONFLICT, Kind.DENIED):
                raise
            continue
        deleted.append(network["Name"])
    return {"NetworksDeleted": deleted}
