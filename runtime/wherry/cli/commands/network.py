"""The verbs of networks."""

from __future__ import annotations

from wherry.cli.app import App, each, verb
from wherry.cli.options import Values, many, one, switch, text
from wherry.cli.parse import cidr, ip, key_value, required_value
from wherry.cli.table import LISTING, Column, filters, show


def _yes(value: object) -> str:
    return "true" if value else "false"


COLUMNS = (
    Column("ID", "NETWORK ID", lambda r, look: str(r["Id"]) if look.full else str(r["Id"])[:12]),
    Column("Name", "NAME", lambda r, _: str(r["Name"])),
    Column("Driver", "DRIVER", lambda r, _: str(r["Driver"])),
    Column("Scope", "SCOPE", lambda r, _: str(r.get("Scope", "local"))),
    Column("IPv6", "IPV6", lambda r, _: _yes(r.get("EnableIPv6"))),
    Column("Internal", "INTERNAL", lambda r, _: _yes(r.get("Internal"))),
    Column("Labels", "LABELS", lambda r, _: ",".join(f"{k}={v}" for k, v in sorted((r.get("Labels") or {}).items()))),
    Column("CreatedAt", "CREATED AT", lambda r, _: str(r.get("Created", ""))),
)


@verb(
    "create",
    "NETWORK",
    one("-d --driver", text, "DRIVER", "the driver (bridge)"),
    many("--gateway", ip, "IP", "gateway of a subnet"),
    switch("--internal", "no way out of the network"),
    many("--ip-range", cidr, "CIDR", "give addresses of this part of a subnet only"),
    switch("--ipv6", "give IPv6 addresses too"),
    many("--label", key_value, "KEY=VALUE", "set a label"),
    many("-o --opt", required_value, "KEY=VALUE", "option of the driver"),
    many("--subnet", cidr, "CIDR", "subnet, such as 10.90.0.0/24"),
    examples="""
wherry network create back
wherry network create --subnet 10.90.0.0/24 --gateway 10.90.0.1 --internal db""",
)
def create(app: App, values: Values) -> None:
    """Create a network and print its id."""
    made = app.engine.network_create(
        values["network"],
        driver=values["driver"] or "bridge",
        subnets=values["subnet"],
        gateways=values["gateway"],
        ip_ranges=values["ip_range"],
        internal=values["internal"],
        ipv6=values["ipv6"],
        options=dict(values["opt"]),
        labels=dict(values["label"]),
    )
    app.out(made)


@verb("ls", "", *LISTING, aliases="wherry network ls, wherry network list", examples="wherry network ls --no-trunc")
def ls(app: App, values: Values) -> None:
    """List networks. Filters: driver, id, label, name, type."""
    rows = app.engine.network_list(filters(values, ("driver", "id", "label", "name", "type")))
    show(app, rows, COLUMNS, ("ID", "Name", "Driver", "Scope"), values)


@verb(
    "rm",
    "NETWORK...",
    switch("-f --force", "a missing network is no failure"),
    aliases="wherry network rm, wherry network remove",
    examples="wherry network rm back",
)
def rm(app: App, values: Values) -> int:
    """Remove networks that no container uses."""
    return each(app, values["network"], lambda name: app.engine.network_remove(name, force=values["force"]))
