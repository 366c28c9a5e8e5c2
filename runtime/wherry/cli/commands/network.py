"""The verbs of networks."""

from __future__ import annotations

from wherry.cli.app import App, each, verb
from wherry.cli.options import LINK, Values, many, one, switch, text
from wherry.cli.parse import attachment, cidr, driver_option, hostname, integer, ip, ip4, ip6, key_value, mac, named_ip
from wherry.cli.parse import required_value as pair
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
    switch("--attachable", "for swarms; taken and shown, without effect"),
    many("--aux-address", named_ip, "NAME=IP", "an address that no container is given"),
    one("-d --driver", text, "DRIVER", "bridge (default), macvlan, ipvlan or overlay"),
    many("--gateway", ip, "IP", "gateway of a subnet"),
    switch("--internal", "no way out of the network"),
    many("--ip-range", cidr, "CIDR", "give addresses of this part of a subnet only"),
    one("--ipam-driver", text, "DRIVER", "host-local (default), static (addresses by --ip only) or none"),
    many("--ipam-opt", pair, "KEY=VALUE", "option of the IPAM driver"),
    switch("--ipv4", "give IPv4 addresses; --ipv4=false: IPv6 only", default=True),
    switch("--ipv6", "give IPv6 addresses"),
    many("--label", key_value, "KEY=VALUE", "set a label"),
    many("-o --opt", pair, "KEY=VALUE", "option of the driver"),
    many("--subnet", cidr, "CIDR", "subnet, such as 10.90.0.0/24"),
    examples="""
wherry network create back
wherry network create --subnet 10.90.0.0/24 --gateway 10.90.0.1 --internal db
wherry network create --ipv4=false --ipv6 six
wherry network create -d macvlan -o parent=eth0 --subnet 192.0.2.0/24 --gateway 192.0.2.1 lan
wherry network create -d overlay -o peers=/etc/wherry/peers.json -o mode=vxlan all""",
)
def create(app: App, values: Values) -> None:
    """Create a network and print its id."""
    made = app.engine.network_create(
        values["network"],
        driver=values["driver"] or "bridge",
        subnets=values["subnet"],
        gateways=values["gateway"],
        ip_ranges=values["ip_range"],
        aux_addresses=dict(values["aux_address"]),
        internal=values["internal"],
        attachable=values["attachable"],
        ipv4=values["ipv4"],
        ipv6=values["ipv6"],
        options=dict(values["opt"]),
        labels=dict(values["label"]),
        ipam=values["ipam_driver"] or "",
        ipam_options=dict(values["ipam_opt"]),
    )
    app.out(made)


@verb(
    "connect",
    "NETWORK CONTAINER",
    many("--alias", hostname, "NAME", "one more name on the network"),
    many("--driver-opt", driver_option, "KEY=VALUE", "option of this endpoint"),
    one("--gw-priority", integer(-(2**31), 2**31 - 1), "N", "the highest gets the default route"),
    one("--ip", ip4, "IP", "IPv4 address on the network"),
    one("--ip6", ip6, "IP", "IPv6 address on the network"),
    LINK,
    one("--mac-address", mac, "MAC", "MAC address on the network"),
    examples="""
wherry network connect back web
wherry network connect --ip 10.90.0.7 --alias db back web""",
)
def connect(app: App, values: Values) -> None:
    """Let a container join one more network: at once if it runs, and at each start."""
    given = [(key.replace("_", "-"), values[key]) for key in ("ip", "ip6", "mac_address", "gw_priority")]
    pairs = [(key, str(value)) for key, value in given if value is not None]
    pairs += [("alias", name) for name in values["alias"]]
    pairs += [("driver-opt", f"{key}={value}") for key, value in values["driver_opt"]]
    wish = attachment("--network", values["network"], [("name", values["network"]), *pairs])
    app.engine.network_connect(values["network"], values["container"], wish)


@verb(
    "disconnect",
    "NETWORK CONTAINER",
    switch("-f --force", "also what a container that is gone has left"),
    examples="wherry network disconnect back web",
)
def disconnect(app: App, values: Values) -> None:
    """Let a container leave a network, at once if it runs."""
    app.engine.network_disconnect(values["network"], values["container"], force=values["force"])


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
